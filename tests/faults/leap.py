"""An event loop on virtual time for code that neither reads nor writes files or sockets: it leaps from timer to timer.

`looptime` does the same under pytest, and turns 42 times before each leap in case something arrives from outside. Here
nothing does, and a fault sweep spends most of its time on leaps.
"""

import asyncio
import selectors
from typing import Any


class _Leaping(selectors.SelectSelector):
    loop: "LeapLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left that could ever happen")
        if timeout > 0:
            self.loop.leap()
        return []


class LeapLoop(asyncio.SelectorEventLoop):
    """Its clock begins at 0 and stands still while anything runs."""

    looptime_on = True

    def __init__(self) -> None:
        self._virtual = 0.0
        selector = _Leaping()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual

    def leap(self) -> None:
        self._virtual = max(self._virtual, self._scheduled[0].when())  # type: ignore[attr-defined]
