"""Structured log: one JSON object a line on standard output, one line per change of state.

Nothing that is logged is ever a secret: lines name files, fields and states, never contents. An unexpected error is
logged by its type and where it was raised, without its text, because nobody knows what that text quotes.
"""

import sys
import traceback

import structlog

__all__ = ["set_up", "where"]


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
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )


def where(error: BaseException) -> str:
    """The type of an error and the innermost places it came through, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join([type(error).__name__, *(f"{f.name}:{f.lineno}" for f in reversed(frames))])
