"""The values that a bundle needs, read from the core objects by name, and forgotten at once.

Every replica serves them: what is read follows from the cache alone.
"""

import asyncio
from collections.abc import Callable, Iterable

from roost.kube.client import Body, Gone, Kube, Refused, core_object
from roost.kube.records import Key
from roost.secrets.lookup import Found
from roost.secrets.state import NotAText, Ref, matches, text_of
from roost.secrets.table import SecretTable, refused_a_bot

SHARED_SECONDS = 0.5
"""How long what was read serves others: many ask at once after a change."""


class NotNow(Exception):
    """The bundle can't be rendered now: a secret is missing or can't be read. The agent keeps its last good one."""


class Values:
    """Reads what Agents refer to. Reads of one object are shared; `clock` in seconds."""

    def __init__(self, kube: Kube, table: SecretTable, clock: Callable[[], float]) -> None:
        self._kube, self._table, self._clock = kube, table, clock
        self._reads: dict[Key, tuple[float, asyncio.Task[Body]]] = {}

    async def of(self, agent: Key, refs: Iterable[Ref], *, fresh: bool = False) -> dict[Ref, str]:
        """The value of each reference; `fresh`: not from what was read before.

        Raises:
            NotNow: one is missing or can't be read, or belongs to another Agent.
            Unreachable: Kubernetes can't be asked.
        """
        wanted = tuple(dict.fromkeys(refs))
        found = self._table.lookup.cache.get(agent)
        if wanted and found is not None and refused_a_bot(found):
            raise NotNow("its bot's token is in use by an older agent")
        try:
            return await self._read_all(agent, wanted, fresh=fresh)
        except NotNow:
            if fresh:
                raise
            return await self._read_all(agent, wanted, fresh=True)

    def look(self, agent: Key) -> None:
        """Has all that an Agent refers to looked at: what was read is newer than what is known of it."""
        self._table.look_for(agent)

    async def _read_all(self, agent: Key, refs: tuple[Ref, ...], *, fresh: bool) -> dict[Ref, str]:
        places = {ref: self._table.lookup.find(agent, ref) for ref in refs}
        for ref, place in places.items():
            if not isinstance(place, Found):
                raise NotNow(f"secret {ref.name} is missing")
        found = {ref: place for ref, place in places.items() if isinstance(place, Found)}
        sources = list({place.source for place in found.values()})
        bodies = dict(zip(sources, await asyncio.gather(*(self._read(s, fresh=fresh) for s in sources)), strict=True))
        return {ref: _value(ref, place, bodies[place.source]) for ref, place in found.items()}

    async def _read(self, source: Key, *, fresh: bool) -> Body:
        at, task = self._reads.get(source, (float("-inf"), None))
        if task is None or (task.done() and (fresh or self._clock() - at > SHARED_SECONDS)):
            task = asyncio.create_task(self._kube.get(core_object(source)))
            self._reads[source] = (self._clock(), task)
            task.add_done_callback(lambda done: self._read_ended(source, done))
        try:
            return await asyncio.shield(task)
        except (Gone, Refused) as error:
            raise NotNow(f"{source.name} can't be read") from error

    def _read_ended(self, source: Key, task: asyncio.Task[Body]) -> None:
        good = not task.cancelled() and task.exception() is None
        if good:
            asyncio.get_running_loop().call_later(SHARED_SECONDS, self._forget, source, task)
        else:
            self._forget(source, task)

    def _forget(self, source: Key, task: asyncio.Task[Body]) -> None:
        if self._reads.get(source, (0.0, None))[1] is task:
            del self._reads[source]


def _value(ref: Ref, place: Found, body: Body) -> str:
    key = next((k for k in place.keys if k.name == place.key), None)
    name = key.in_source if key is not None else place.key if not place.keys else None
    try:
        value = None if name is None else text_of(place.source, body, name)
    except NotAText as error:
        raise NotNow(f"secret {ref.name} holds no text in key {ref.key}") from error
    if value is None or (key is not None and key.pattern and not matches(key.pattern, value)):
        raise NotNow(f"secret {ref.name} lacks key {ref.key}")
    return value
