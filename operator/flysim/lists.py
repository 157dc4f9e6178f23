"""How lists differ from the truth: they lag behind it, leave out regions that can't be read, or are empty.

A GET by id never goes through here. What a list tells of a thing is what was true `lag` seconds ago, so a new thing is
not in it yet, and a deleted one still is.
"""

from collections.abc import Iterable
from copy import copy
from typing import TypeVar

from flysim.clock import Clock
from flysim.records import Machine, Volume

_Thing = TypeVar("_Thing", Machine, Volume)


class Lists:
    """What lists show.

    Attributes:
        error_regions: what an org's lists can't read, leave out, and name.
        empty: whether every list is empty, as in the incident of 2026-04-28.
    """

    def __init__(self, clock: Clock, lag: float = 0.0) -> None:
        self.error_regions: list[str] = []
        self.empty = False
        self._clock = clock
        self._lag = lag
        self._past: dict[str, list[tuple[float, Machine | Volume]]] = {}

    @property
    def lag(self) -> float:
        """Seconds."""
        return self._lag

    def set_lag(self, seconds: float, things: Iterable[Machine | Volume]) -> None:
        """From now on lists are so far behind; `things` are all that they show at this moment."""
        self._lag = seconds
        self._past = {thing.id: [(float("-inf"), _frozen(thing))] for thing in things} if seconds else {}

    def saw(self, thing: Machine | Volume) -> None:
        """The thing is new or has changed: keeps how it is now, and of its past what a list may still show."""
        if not self._lag:
            return
        now = self._clock.now()
        past = self._past.setdefault(thing.id, [])
        past.append((now, _frozen(thing)))
        while len(past) > 1 and past[1][0] <= now - self._lag:
            del past[0]

    def shown(self, things: Iterable[_Thing]) -> list[_Thing]:
        """The things as a list tells of them."""
        if self.empty:
            return []
        return list(things) if not self._lag else [then for thing in things for then in self._then(thing)]

    def readable(self, things: Iterable[_Thing]) -> list[_Thing]:
        """The same for an org's lists, without the regions that can't be read."""
        return [thing for thing in self.shown(things) if thing.region not in self.error_regions]

    def _then(self, thing: _Thing) -> list[_Thing]:
        """The thing as it was `lag` seconds ago, if it was there."""
        moment = self._clock.now() - self._lag
        known = [view for at, view in self._past.get(thing.id, []) if at <= moment]
        return [view for view in known[-1:] if isinstance(view, type(thing))]


def _frozen(thing: Machine | Volume) -> Machine | Volume:
    """As it is now: what changes later in the thing does not change this. Configs are replaced, never changed."""
    view = copy(thing)
    if isinstance(view, Machine):
        view.events = list(view.events)
    return view
