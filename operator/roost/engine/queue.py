"""The work queue: which key is worked on next, and when.

Promises: a key is never worked on twice at once; a key added while it is worked on runs once more afterwards; a key
with an alarm comes back; people's changes (USER) go before housekeeping (BACKGROUND). Knows keys only, never agents.
No I/O, no tasks: `Engine` drives it with the clock it is given.
"""

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from roost.kube.records import Key


class Lane(IntEnum):
    """USER: somebody changed something and waits. BACKGROUND: listings, echoes, alarms, news from Fly."""

    USER = 0
    BACKGROUND = 1


BACKOFF_BASE = 0.5
BACKOFF_CAP = 300.0


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds to wait after the n-th failure in a row: exponential, 0.5 s to 5 min, with jitter over the upper half.

    Not over the whole: a first failure must never come back in the same instant.
    """
    ceiling: float = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** min(failures, 16))
    return ceiling * (0.5 + rng.random() / 2)


@dataclass(slots=True)
class Turn:
    """One key being worked on. `on_news` is called when somebody waits for it meanwhile."""

    key: Key
    started: float
    dirty: Lane | None = None
    on_news: Callable[[], None] | None = None


@dataclass(slots=True)
class WorkQueue:
    """Dirty set, processing set, two FIFO lanes and an alarm heap with lazy deletion (the earliest alarm wins)."""

    clock: Callable[[], float]
    rng: random.Random
    _lanes: tuple[OrderedDict[Key, float], OrderedDict[Key, float]] = field(
        default_factory=lambda: (OrderedDict(), OrderedDict())
    )
    _turns: dict[Key, Turn] = field(default_factory=dict)
    _alarms: dict[Key, float] = field(default_factory=dict)
    _heap: list[tuple[float, Key]] = field(default_factory=list)
    _failures: dict[Key, int] = field(default_factory=dict)
    adds: int = 0
    retries: int = 0

    def add(self, key: Key, lane: Lane) -> None:
        """Marks a key as due now; a second add before it is worked on changes nothing but may raise its lane."""
        self.adds += 1
        if (turn := self._turns.get(key)) is not None:
            turn.dirty = lane if turn.dirty is None else min(turn.dirty, lane)
            if turn.on_news is not None and lane is Lane.USER:
                turn.on_news()
            return
        user, background = self._lanes
        if key in user:
            return
        if lane is Lane.USER:
            user[key] = background.pop(key, self.clock())
        else:
            background.setdefault(key, self.clock())

    def alarm(self, key: Key, at: float) -> None:
        """Adds the key at clock time `at`, unless an earlier alarm is set already."""
        if at < self._alarms.get(key, float("inf")):
            self._alarms[key] = at
            heapq.heappush(self._heap, (at, key))

    def failed(self, key: Key) -> float:
        """Sets the back-off alarm after a failure; returns its delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.retries += 1
        delay = backoff(failures, self.rng)
        self.alarm(key, self.clock() + delay)
        return delay

    def failures(self, key: Key) -> int:
        return self._failures.get(key, 0)

    def succeeded(self, key: Key) -> None:
        self._failures.pop(key, None)

    def pop(self) -> tuple[Turn, float] | None:
        """The next key and how many seconds it waited; None when nothing is due. Ends with `done`."""
        now = self.clock()
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._alarms.get(key) == at:
                del self._alarms[key]
                self.add(key, Lane.BACKGROUND)
        for lane in self._lanes:
            if lane:
                key, since = lane.popitem(last=False)
                # Whatever it waited for, it is looked at now: the turn sets the next alarm.
                self._alarms.pop(key, None)
                turn = self._turns[key] = Turn(key, now)
                return turn, now - since
        return None

    def done(self, turn: Turn) -> None:
        """Ends a turn; the key runs again at once when it was added meanwhile."""
        del self._turns[turn.key]
        if turn.dirty is not None:
            self.add(turn.key, turn.dirty)

    def forget(self, key: Key) -> None:
        """Drops alarm and back-off of an object that is gone."""
        self._alarms.pop(key, None)
        self._failures.pop(key, None)

    def next_alarm(self) -> float | None:
        """Clock time of the earliest alarm."""
        while self._heap and self._alarms.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def holds(self, key: Key) -> bool:
        """True when something will happen to this key: due, worked on, or with an alarm."""
        return key in self._turns or key in self._alarms or any(key in lane for lane in self._lanes)

    def works_on(self, key: Key) -> bool:
        return key in self._turns

    def depth(self) -> int:
        return sum(map(len, self._lanes))

    def turns(self) -> list[Turn]:
        return list(self._turns.values())
