"""Fly's documented rate limits: a token bucket per action and per machine, or per app for calls that name none."""

from collections.abc import Callable

_DEFAULT = (1.0, 3.0)
"""Calls per second, and how many may come at once."""
_RATES = {"get_machine": (5.0, 10.0), "delete_app": (100 / 60, 100.0)}


class Limits:
    """Counts calls; `now` gives seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def allow(self, op: str, subject: str) -> bool:
        """Whether this call is within its limit; a refused one costs nothing."""
        rate, burst = _RATES.get(op, _DEFAULT)
        now = self._now()
        tokens, at = self._buckets.get((op, subject), (burst, now))
        tokens = min(burst, tokens + (now - at) * rate)
        allowed = tokens >= 1
        self._buckets[op, subject] = (tokens - allowed, now)
        return allowed
