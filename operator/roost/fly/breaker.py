"""Stops calling while Fly answers nobody: instead of thousands of calls that fail, one probe now and then.

Promises: opens only when calls for different things went without an answer and none that was sent later, or with them,
was answered; while open, one call in each period may go, and the period grows; the first answer closes it.
Never: sleeps, sends, or knows what a call is.

That the first of many calls counts by when it was *sent* keeps one dead host from opening it: calls to its machines
hang for a minute, and whatever else Fly answers in that time speaks for Fly.
"""

import random
from collections import deque
from collections.abc import Callable, Hashable

OPENS_AFTER = 5
"""So many calls without an answer, one after the other."""
WINDOW_SECONDS = 60.0
"""Older failures are no sign of the present."""
FIRST_PERIOD_SECONDS = 1.0
MAX_PERIOD_SECONDS = 30.0


class Breaker:
    """The state of one credential's calls. Belongs to one event loop.

    Args:
        clock: monotonic seconds.
        rng: for jitter, so that many operators do not probe together.
    """

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self._failures: deque[tuple[float, Hashable]] = deque(maxlen=OPENS_AFTER)
        """When each became known, and which thing it was about."""
        self._answered_at = float("-inf")
        self._probe_at: float | None = None
        self._period = FIRST_PERIOD_SECONDS

    @property
    def is_open(self) -> bool:
        return self._probe_at is not None

    def wait(self) -> float:
        """Seconds until a call may go; 0.0 when it may go now."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - self._clock())

    def sent(self) -> float:
        """A call goes, which `wait` allowed; returns when, for `failed`. While open, it is this period's probe."""
        now = self._clock()
        if self._probe_at is not None:
            self._period = min(2.0 * self._period, MAX_PERIOD_SECONDS)
            self._set_probe(now)
        return now

    def answered(self) -> None:
        """Fly gave an answer, a refusal or not: it is there."""
        self._answered_at = self._clock()
        self._failures.clear()
        self._probe_at = None

    def failed(self, thing: Hashable, sent_at: float) -> bool:
        """A call about this thing had no usable answer. Returns whether this one has opened the breaker."""
        if self._probe_at is not None or sent_at < self._answered_at:
            return False
        now = self._clock()
        self._failures.append((now, thing))
        recent = [thing for at, thing in self._failures if now - at <= WINDOW_SECONDS]
        if len(recent) < OPENS_AFTER or len(set(recent)) == 1:
            return False
        self._period = FIRST_PERIOD_SECONDS
        self._set_probe(now)
        return True

    def _set_probe(self, now: float) -> None:
        self._probe_at = now + self._period * self._rng.uniform(0.5, 1.0)
