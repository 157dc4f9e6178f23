"""Time as the simulator sees it: one source for what the calendar says and for how long things take.

All waiting goes through the event loop's timers, and `Clock.now` is the same loop's time moved to the epoch: on a loop
with virtual time the whole simulator runs on virtual time, and wall-clock changes never disturb a run.
"""

import asyncio
import re
from datetime import UTC, datetime


class Clock:
    """Epoch seconds that run with the event loop. Must be made inside the running loop."""

    def __init__(self, epoch: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._zero = epoch - self._loop.time()

    def now(self) -> float:
        return self._zero + self._loop.time()


def rfc3339(moment: float) -> str:
    """Whole seconds, as Fly writes a machine's times."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_fine(moment: float) -> str:
    """Milliseconds, as Fly writes a volume's times."""
    return datetime.fromtimestamp(int(moment * 1000) / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def parse_rfc3339(text: str) -> float | None:
    """Epoch seconds, or None when the text is no RFC 3339 time with an offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


def go_duration(text: str) -> float | None:
    """Seconds of a Go duration such as `1m30s`; None when it is none."""
    if text == "0":
        return 0.0
    if _DURATION.fullmatch(text) is None:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
