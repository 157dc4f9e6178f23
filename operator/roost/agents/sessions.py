"""The living picture of each agent: who calls, what it said last, what it is told, what it may fetch.

Held in memory; only transitions wake the planner. A token is derived, never stored; a stranger costs the same work as
an agent and learns nothing. A machine that is not the Agent's current one gets no secrets.
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from roost.agents import bundle
from roost.agents.commands import commands
from roost.agents.memory import Heard, Installation, Memories, Memory, tidings
from roost.agents.names import heartbeat_token
from roost.api.block import BadResource, parse
from roost.api.secret import SecretSpec
from roost.engine.engine import Engine
from roost.engine.queue import Lane
from roost.kube.client import Gone, Kube, Refused, core_secret
from roost.kube.records import Cache, Key
from roost.secrets.state import NotAText, Ref, fingerprint, values_of
from roost_agent.contract import Command, ConfigBundle, Heartbeat

log = structlog.get_logger(__name__)
OVERLAP_SECONDS = 900.0
"""How long the token of the epoch before still works, until the new one was proved."""


class NotNow(Exception):
    """The bundle can't be rendered now: a secret is missing or can't be read. The agent keeps its last good one."""


@dataclass(frozen=True, slots=True)
class Session:
    """An agent that proved who it is."""

    key: Key
    did: str


class Sessions:
    """What the endpoint asks of the agents' room."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        memories: Memories,
        here: Installation,
        engine: Engine,
        clock: Callable[[], float],
    ) -> None:
        self._kube, self._cache, self._memories = kube, cache, memories
        self._here, self._engine, self._clock = here, engine, clock

    def authenticate(self, did: str, token: str) -> Session | None:
        """The session of an agent with a good token; None for every stranger, after equal work."""
        key = self._memories.key_of(did)
        memory = self._memories.get(key) if key is not None else None
        epochs = (0, 0) if memory is None else self._epochs(memory)
        good = [self._matches(key, memory, epoch, token) for epoch in epochs]
        if key is None or memory is None or not any(good):
            return None
        if good[0]:
            memory.epoch_proved = epochs[0]
        return Session(key, did)

    def superseded(self, session: Session, machine_id: str) -> bool:
        """Whether another machine is the Agent's current one; unknown means no."""
        memory, found = self._memories.get(session.key), self._cache.get(session.key)
        if memory is None or found is None:
            return False
        if memory.machine_id is not None:
            return memory.machine_id != machine_id
        known = (found.status.get("machine") or {}).get("id")
        return memory.world.machines is None and known is not None and known != machine_id

    def hear(self, session: Session, beat: Heartbeat) -> None:
        """Takes a heartbeat; the Agent is looked at when it says something new."""
        memory = self._memories.get(session.key)
        if memory is None:
            return
        before, now = memory.heard, self._clock()
        memory.heard = Heard(beat, now, time.time())
        world, window = memory.world, memory.declared.silence_window
        starts = [t for t in (world.start_asked_at, *(m.up_since for m in world.machines or ())) if t is not None]
        # The first one after a start counts even if it says what the last one before it said: it went on where it was.
        awake = any(before is not None and before.at < start <= now for start in starts)
        if before is None or awake or tidings(before.beat) != tidings(beat) or now - before.at > window:
            self._engine.add(session.key, Lane.BACKGROUND)

    def due(self, session: Session, beat: Heartbeat) -> list[Command]:
        """The commands for this agent now."""
        memory = self._memories.get(session.key)
        return [] if memory is None else commands(memory.declared, memory.revision, beat)

    async def change(self, session: Session) -> None:
        """Waits until the Agent was looked at again: there may be a command then."""
        if (memory := self._memories.get(session.key)) is not None:
            await memory.bell.wait()

    def interval(self, session: Session) -> int:
        """Seconds between heartbeats, as declared."""
        memory = self._memories.get(session.key)
        return 30 if memory is None else memory.declared.spec.heartbeat.interval_seconds

    def revision(self, session: Session) -> str | None:
        """The desired bundle's revision, as the planner knows it."""
        memory = self._memories.get(session.key)
        return None if memory is None else memory.revision

    async def bundle(self, session: Session) -> ConfigBundle:
        """The bundle as it is now, rendered from the Agent and the core Secrets read by name.

        Raises:
            NotNow: a secret it needs is missing.
            Unreachable: Kubernetes can't be asked.
        """
        memory = self._memories.get(session.key)
        if memory is None:
            raise NotNow("it is not known yet")
        did, root = memory.names.did, self._here.roots.fingerprint
        values = await self._values(session.key.namespace, {r.name for r in _refs(memory)})
        declared, refs = memory.declared, _refs(memory)  # as it is now: it may have been revoked meanwhile
        missing = [r for r in refs if r.key not in values.get(r.name, {})]
        if missing:
            raise NotNow(f"secret {missing[0].name} lacks key {missing[0].key}")
        revision = bundle.revision(root, declared, did, lambda r: fingerprint(root, values[r.name][r.key]))
        if revision != memory.revision:
            # The core Secret is newer than our last look at it: look now, so that everybody learns of it.
            for name in {r.name for r in refs}:
                self._engine.add(Key("Secret", session.key.namespace, name), Lane.USER)
        return bundle.render(declared, did, lambda r: values[r.name][r.key], revision)

    async def _values(self, namespace: str, names: set[str]) -> dict[str, dict[str, str]]:
        values = {}
        for name in names:
            found = self._cache.get(Key("Secret", namespace, name))
            if found is None:
                raise NotNow(f"secret {name} is missing")
            try:
                spec = parse(SecretSpec, found.spec)
                core = await self._kube.get(core_secret(namespace, spec.source.secret_ref.name))
                values[name], _ = values_of(spec, core.get("data") or {})
            except (Gone, Refused, NotAText, BadResource) as error:
                raise NotNow(f"secret {name} can't be read") from error
        return values

    def _epochs(self, memory: Memory) -> tuple[int, int]:
        """The epoch whose token works, and the one whose token still works (the same, when none does)."""
        epoch = memory.declared.spec.identity.token_epoch
        over = memory.epoch_proved == epoch or self._clock() - memory.epoch_changed_at > OVERLAP_SECONDS
        # A machine that was given the new token has no use for the one before, whenever this process began.
        over = over or any(m.metadata.get("roost_token_epoch") == str(epoch) for m in memory.world.machines or ())
        return (epoch, epoch) if over or epoch == 0 or memory.declared.revoked else (epoch, epoch - 1)

    def _matches(self, key: Key | None, memory: Memory | None, epoch: int, token: str) -> bool:
        roots = self._here.roots
        namespace, name, incarnation = (
            (key.namespace, key.name, memory.incarnation) if key is not None and memory is not None else ("", "", "")
        )
        expected = heartbeat_token(roots.token, roots.owner_id, namespace, name, incarnation, epoch)
        return hmac.compare_digest(expected.encode(), token.encode())


def _refs(memory: Memory) -> tuple[Ref, ...]:
    """What the bundle needs of Secrets; nothing when the agent is revoked."""
    return () if memory.declared.revoked else tuple(bundle.refs_of(memory.declared))
