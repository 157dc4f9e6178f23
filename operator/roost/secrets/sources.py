"""Looks at core Secrets and ConfigMaps, by name, for all who refer to them; keeps fingerprints, never a value.

What is watched is looked at when the watch tells; the rest takes turns: all together stay under five reads a second,
and the time between two looks grows with their number. The first look, and one that somebody asks for, is taken at
once.
"""

import math
from collections.abc import Callable

import structlog

from roost.engine.engine import GONE, Again, News
from roost.kube.client import Gone, Kube, KubeError, Refused, core_object
from roost.kube.records import Key
from roost.secrets.state import SourceState, looked_at
from roost.secrets.table import SecretTable

log = structlog.get_logger(__name__)
READS_PER_SECOND = 5.0
WATCHED_SECONDS = 600.0
"""How often what is watched is read all the same: a watch may be deaf."""
EARLIEST = 0.85
"""Alarms ring up to a tenth early."""


class Sources:
    """Reconciles the kinds CoreSecret and ConfigMap; `clock` in seconds."""

    def __init__(
        self, kube: Kube, table: SecretTable, root: bytes, poll_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._kube, self._table, self._root = kube, table, root
        self._poll_seconds, self._clock = poll_seconds, clock
        self._looked_at: dict[Key, float] = {}
        self._slots: dict[Key, float] = {}
        self._free = float("-inf")

    def watched(self, source: Key) -> bool | None:
        """Whether a change of it is told by a watch; None while that is not known."""
        told = self._table.watched
        return None if told is None else bool(told & {(source.kind, ""), (source.kind, source.namespace)})

    def interval(self, source: Key) -> float:
        """Seconds between two looks at it: in steps of two, so that it does not change with each new source."""
        least = max(self._poll_seconds, WATCHED_SECONDS) if self.watched(source) else self._poll_seconds
        needed = len(self._table.sources) / READS_PER_SECOND
        return least * 2.0 ** max(0, math.ceil(math.log2(needed / least))) if needed > least else least

    async def reconcile(self, source: Key, _news: News, /) -> Again:
        """One look at one source, if it is its turn."""
        if not self._table.users(source):
            self._table.asked.discard(source)
            self._table.sources.pop(source, None)
            self._looked_at.pop(source, None)
            self._slots.pop(source, None)
            return GONE
        if source in self._table.sources and source not in self._table.asked and (pause := self._pause(source)) > 0:
            return Again(after=pause)
        self._table.asked.discard(source)
        try:
            await self._look(source)
        except KubeError:
            self._table.asked.add(source)
            raise
        self._slots.pop(source, None)
        self._looked_at[source] = self._clock()
        return Again(after=self.interval(source))

    def _pause(self, source: Key) -> float:
        """Seconds until its turn; 0 now."""
        now, interval = self._clock(), self.interval(source)
        due = self._looked_at[source] + interval
        if now < due - (1 - EARLIEST) * interval:
            return due - now
        if source not in self._slots:
            self._free = max(now, self._free + 1 / READS_PER_SECOND)
            self._slots[source] = self._free
        return max(0.0, self._slots[source] - now) / EARLIEST

    async def _look(self, source: Key) -> None:
        table = self._table
        try:
            body = await self._kube.get(core_object(source))
            state = looked_at(self._root, source, body, table.patterns(source))
        except Gone:
            state = SourceState(absent=True)
        except Refused as error:
            state = SourceState(refused=error.message)
        before, table.sources[source] = table.sources.get(source), state
        if state != before:
            log.info("looked at", key=str(source), keys=len(state.prints), absent=state.absent, refused=state.refused)
            for user in table.users(source):
                table.wake(user)
