"""The record of everything that was asked of the simulator and of everything that happened in it.

Promises: lines are numbered without gaps, flushed one by one, in the order in which things became true; a call's line
is written when it is answered. No value of a secret is ever given to it. It never forgets and never decides.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flysim.clock import Clock


@dataclass(frozen=True, slots=True)
class Origin:
    """Why something happens: the call that asked for it, or, where nobody asked, the cause in words."""

    request_id: str | None = None
    cause: str | None = None


_NOBODY = Origin()
_origin: ContextVar[Origin] = ContextVar("origin", default=_NOBODY)
"""Tasks and timers inherit it, so what a call sets going carries that call's id, however late it comes true."""


def origin() -> Origin:
    """Why the running code runs."""
    return _origin.get()


@contextmanager
def within(why: Origin) -> Iterator[None]:
    """What becomes true inside, or is set going there, happens for this reason."""
    token = _origin.set(why)
    try:
        yield
    finally:
        _origin.reset(token)


def because(cause: str) -> AbstractContextManager[None]:
    """Like `within`, for what happens by itself: "restart policy", "proxy", "autostop"."""
    return within(Origin(cause=cause))


class Ledger:
    """JSON lines, in memory and (with a path) in a file. The forms of the lines: docs/reference/flysim.md."""

    def __init__(self, clock: Clock, path: Path | None = None) -> None:
        self._clock = clock
        self._lines: list[dict[str, Any]] = []
        self._file = path.open("a", encoding="utf-8") if path is not None else None

    def since(self, number: int) -> list[dict[str, Any]]:
        """Lines with a greater `n`, oldest first."""
        return self._lines[max(0, number) :]

    def call(self, line: Mapping[str, Any]) -> None:
        """One answered call, arrived at `line["at"]`."""
        self._write({"kind": "call", **line})

    def begin(self, op: str | None, request_id: str) -> None:
        """A call has arrived and is being held back by a fault."""
        self._write({"kind": "begin", "at": self._clock.now(), "op": op, "request_id": request_id})

    def held(self, op: str | None, request_id: str) -> None:
        """A call has taken its effect, if it has one, and a fault holds its answer back."""
        self._write({"kind": "held", "at": self._clock.now(), "op": op, "request_id": request_id})

    def event(
        self,
        event: str,
        *,
        app: str,
        machine: str | None = None,
        volume: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Something became true just now, for the reason that `origin` gives."""
        self._write(
            {
                "kind": "event",
                "at": self._clock.now(),
                "event": event,
                "app": app,
                "machine": machine,
                "volume": volume,
                "detail": dict(detail or {}),
                "request_id": origin().request_id,
                "cause": origin().cause,
            }
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        line = {"n": len(self._lines) + 1, **line}
        self._lines.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
            self._file.flush()
