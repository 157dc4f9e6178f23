"""What the runtime prints: its own log lines are passed on, everything else stays in the machine.

A line is passed on when it is a JSON object with a `subsystem`, as OpenClaw writes its log: with subsystem, level and
message, nothing else of it. Answers of the model are printed too, without a subsystem or as plain text; those lines,
like all that is not understood, are counted and never kept. Secrets are taken out first (see `redact.py` for what that
can't find).

The reader of the runtime's output is never held up: when there is more than can be looked at, or nobody takes our own
lines, what is too much is dropped and counted.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from roost_agent import log
from roost_agent.redact import Redactor

__all__ = ["Counts", "Line", "Output"]

_KEPT = 2000
_MESSAGE, _WORD = 2048, 128
"""Bytes of a message, and of what stands beside it, as they are logged."""
_BYTES_A_SECOND, _BURST = 65536, 524_288
"""What is looked at of the output: at most some 15 ms of a core for a second of it."""
_EACH = 256
"""For how many bytes a line counts that has none."""
_TELL_SECONDS = 10.0
_LEVELS = {"trace": "debug", "debug": "debug", "info": "info", "warn": "warning", "error": "error", "fatal": "critical"}
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the runtime's own log, redacted and bounded. `time` is the runtime's word."""

    time: str
    level: str
    subsystem: str
    message: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many lines were passed on, kept in the machine because of what they are, and dropped unseen."""

    passed: int = 0
    withheld: int = 0
    dropped: int = 0


class Output:
    """The output of one runtime, whatever process it is.

    Args:
        secrets: What the values are now that must not be shown.
        clock: A monotonic clock, in seconds.
        room: Whether a line can be logged now without waiting.
    """

    def __init__(
        self,
        secrets: Callable[[], Iterable[str]],
        *,
        clock: Callable[[], float] = time.monotonic,
        room: Callable[[], bool] = log.room,
    ) -> None:
        self._redact = Redactor(secrets)
        self._clock = clock
        self._room = room
        self._lines: deque[Line] = deque(maxlen=_KEPT)
        self._passed = self._withheld = self._dropped = 0
        self._budget, self._counted_at = float(_BURST), clock()
        self._told, self._tell_at = 0, clock()

    @property
    def counts(self) -> Counts:
        return Counts(self._passed, self._withheld, self._dropped)

    def tail(self, n: int) -> Sequence[Line]:
        """The last lines that were passed on, the oldest first; 2,000 are kept."""
        return list(self._lines)[-n:] if n > 0 else []

    def line(self, raw: bytes) -> None:
        """Takes one line, without its newline. Never waits, never raises."""
        if not raw.startswith(b"{"):
            self._withheld += 1
        elif not (self._affordable(len(raw) + _EACH) and self._room()):
            self._dropped += 1
        elif (line := self._understood(raw)) is None:
            self._withheld += 1
        else:
            self._pass_on(line)

    def _affordable(self, size: int) -> bool:
        now = self._clock()
        self._budget = min(_BURST, self._budget + (now - self._counted_at) * _BYTES_A_SECOND)
        self._counted_at = now
        if size > self._budget:
            return False
        self._budget -= size
        return True

    def _understood(self, raw: bytes) -> Line | None:
        try:
            said = json.loads(raw.decode(errors="replace"))
        except (ValueError, RecursionError):
            return None
        subsystem, message = said.get("subsystem"), said.get("message")
        if not isinstance(subsystem, str) or not isinstance(message, str) or not subsystem:
            return None
        level, at = (word if isinstance(word, str) else "" for word in (said.get("level"), said.get("time")))
        return Line(
            time=_bounded(self._redact(at), _WORD),
            level=_LEVELS.get(level, "info"),
            subsystem=_bounded(self._redact(subsystem), _WORD),
            message=_bounded(self._redact(message), _MESSAGE),
        )

    def _pass_on(self, line: Line) -> None:
        self._lines.append(line)
        self._passed += 1
        getattr(_log, line.level)("runtime", subsystem=line.subsystem, message=line.message)
        if self._dropped > self._told and self._clock() >= self._tell_at:
            _log.warning("runtime lines dropped", count=self._dropped - self._told)
            self._told, self._tell_at = self._dropped, self._clock() + _TELL_SECONDS


def _bounded(text: str, most: int) -> str:
    """So much of it that it has no more bytes than that in a log line, where what is not ASCII is escaped."""
    text = text[:most]
    while (excess := len(json.dumps(text)) - 2 - most) > 0:
        text = text[: -(excess // 12 + 1)]
    return text
