"""Structured log: one JSON object a line on standard output, one line per change of state.

Nothing that is logged is ever a secret: lines name files, fields and states, never contents. An unexpected error is
logged by its type and where it was raised, without its text, because nobody knows what that text quotes. Should one
slip in all the same, the value of a secret that is known does not leave, nor what looks like one.
"""

import select
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping

import structlog

from roost_agent.redact import Redactor

__all__ = ["hide", "reason", "room", "set_up", "where"]

_redact = Redactor(tuple)


class _Lines:
    """Standard output. A line that can't be written is lost, the supervisor must not be."""

    def msg(self, line: str) -> None:
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = critical = msg


def set_up() -> None:
    """Makes every logger of this process write JSON lines to standard output."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _redacted,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )


def hide(secrets: Callable[[], Iterable[str]]) -> None:
    """From now on no line shows one of these values; they are asked for anew for every line."""
    global _redact
    _redact = Redactor(secrets)


def room() -> bool:
    """Whether a line of up to 4 kB (PIPE_BUF, pipe(7)) would be written now, without waiting for whoever reads them."""
    try:
        return bool(select.select([], [sys.stdout], [], 0)[1])
    except (OSError, ValueError):
        return True  # closed, or no file at all: what is written is lost at once


def _redacted(_logger: object, _method: str, event: structlog.typing.EventDict) -> Mapping[str, object]:
    return {key: _clean(value) for key, value in event.items()}


def _clean(value: object) -> object:
    match value:
        case None | int() | float():
            return value
        case str():
            return _redact(value)
        case Mapping():
            return {str(key): _clean(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(each) for each in value]
        case _:
            return _redact(repr(value))


def where(error: BaseException) -> str:
    """The type of an error and the innermost places it came through, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join([type(error).__name__, *(f"{f.name}:{f.lineno}" for f in reversed(frames))])


def reason(error: Exception) -> str:
    """What an expected error says, for people: the system's word where it is one of the system."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
