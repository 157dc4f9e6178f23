"""How long to wait before trying again. Pure: the count of attempts and the random source come from the caller."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CALLS", "REFUSED", "RESTARTS", "Backoff", "Random"]

Random = Callable[[], float]
"""A source of numbers from 0 up to 1."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """`start`, then `factor` times the one before, never more than `cap`; all in seconds."""

    start: float
    cap: float
    factor: float = 2.0

    def seconds(self, attempt: int) -> float:
        """The wait after this many failures, counted from 1."""
        return min(self.cap, self.start * self.factor ** min(attempt - 1, 64))

    def jittered(self, attempt: int, random: Random) -> float:
        """Anything from nothing to the full wait, so that a crowd that failed together does not return together."""
        return random() * self.seconds(attempt)


RESTARTS = Backoff(start=1, cap=300)
"""Between starts of a runtime that keeps ending."""
CALLS = Backoff(start=0.5, cap=30)
"""Between calls of an endpoint that does not answer."""
REFUSED = Backoff(start=1, cap=60)
"""Between calls that were refused, or not understood: only a person or a rotation changes that."""
