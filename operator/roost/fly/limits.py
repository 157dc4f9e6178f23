"""Token buckets that keep our calls within Fly's documented limits, so that its 429 is the exception.

Source: Fly's "Working with the Machines API", rate limits: each action has its own limit for each machine, or for the
app where no machine is named: 1 request a second with bursts of 3; getting a machine 5 a second with bursts of 10;
deleting apps 100 a minute. Lists of an org are not mentioned there; they are held to the common limit.

A caller gets its turn at once (`reserve`), in the order of asking, and then waits for it: nobody is overtaken, and no
queue has to be kept. A turn given to a caller that was cancelled is lost; that costs at most one interval.
Buckets that have filled up again say nothing and are dropped, so memory follows the calls of the last seconds, not the
number of machines.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_SWEEP_AT = 1024


@dataclass(frozen=True, slots=True)
class Limit:
    """So many calls a second in the long run, and so many at once."""

    per_second: float
    burst: int


COMMON = Limit(0.8, 3)
GET_MACHINE = Limit(4.0, 8)
DELETE_APP = Limit(1.5, 10)
"""Fly's limits less what the network needs: calls arrive up to 0.1 s closer together than they were sent."""


class WaitTooLong(Exception):
    """The turn would come after `seconds`, which is more than the caller wants to wait. No turn was taken."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the next turn is in {seconds:.1f} s")
        self.seconds = seconds


class Bucket:
    """One action on one thing. Holds one time: when it will be full again (the "virtual scheduling" of GCRA)."""

    __slots__ = ("_burst", "_closed_until", "_full_at", "_interval", "_pushed")

    def __init__(self, limit: Limit) -> None:
        self._interval, self._burst = 1.0 / limit.per_second, limit.burst
        self._full_at = self._closed_until = float("-inf")
        self._pushed = 0.0

    def reserve(self, now: float, max_wait: float) -> "Turn":
        """The next turn.

        Raises:
            WaitTooLong: it comes more than `max_wait` seconds from now.
        """
        full_at = max(self._full_at, now)
        at = max(now, full_at - (self._burst - 1) * self._interval)
        if at - now > max_wait:
            raise WaitTooLong(at - now)
        self._full_at = full_at + self._interval
        return Turn(self, at)

    def close(self, now: float, seconds: float) -> None:
        """No turn for so long, also for those that wait already; they keep their order and distance.

        Several refusals of one burst say the same thing: only what is later than the last closing counts.
        """
        opens_at = now + seconds
        push = opens_at - max(now, self._closed_until)
        if push > 0:
            self._pushed += push
            self._full_at = max(self._full_at, now + (self._burst - 1) * self._interval) + push
            self._closed_until = opens_at

    def pushed(self) -> float:
        """By how many seconds turns have been put off in all; what one turn was put off is a difference of two."""
        return self._pushed

    def idle(self, now: float) -> bool:
        return now >= self._full_at


class Turn:
    """A place in the order: the moment at which a call may be sent, put off when the bucket is closed meanwhile."""

    __slots__ = ("_at", "_bucket", "_pushed")

    def __init__(self, bucket: Bucket, at: float) -> None:
        self._bucket, self._at, self._pushed = bucket, at, bucket.pushed()

    def at(self) -> float:
        return self._at + self._bucket.pushed() - self._pushed


class Limits:
    """The buckets of one credential, by any key. Belongs to one event loop, whose sleep must run with `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[Hashable, Bucket] = {}
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._buckets)

    async def take(self, key: Hashable, limit: Limit, max_wait: float) -> float:
        """Waits for the turn and returns the seconds waited (0.0, without yielding, when there was no need).

        Raises:
            WaitTooLong: the turn is, or was put, more than `max_wait` seconds after the call of this method.
        """
        asked = now = self._clock()
        turn = self._bucket(key, limit).reserve(now, max_wait)
        while (due := turn.at()) > now:
            if due - asked > max_wait:
                raise WaitTooLong(due - now)
            await asyncio.sleep(due - now)
            now = self._clock()
        return now - asked

    def close(self, key: Hashable, limit: Limit, seconds: float) -> None:
        """Nothing goes through this bucket for so many seconds (a 429 said so)."""
        self._bucket(key, limit).close(self._clock(), seconds)

    def _bucket(self, key: Hashable, limit: Limit) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._sweep_at:
                self._drop_idle()
            bucket = self._buckets[key] = Bucket(limit)
        return bucket

    def _drop_idle(self) -> None:
        """Each sweep costs its length and comes after as many additions, so a call pays for one bucket or so."""
        now = self._clock()
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.idle(now)}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._buckets))
