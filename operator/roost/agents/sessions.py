"""The living picture of each agent: who calls, what it said last, what it is told, what it may fetch.

Held in memory; only transitions wake the planner. A token is derived, never stored; a stranger costs the same work as
an agent and learns nothing. A machine that is not the Agent's current one gets no secrets.
"""

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import structlog

from roost.agents import bundle
from roost.agents.commands import commands
from roost.agents.memory import Heard, Installation, Memories, Memory, tidings
from roost.agents.names import gateway_token, heartbeat_token
from roost.engine.engine import Engine
from roost.engine.queue import Lane
from roost.kube.records import Cache, Key
from roost.secrets.state import Ref, fingerprint
from roost.secrets.values import NotNow, Values
from roost.telemetry.agents import Seen, fold
from roost_agent.contract import Checkin, Command, ConfigBundle, Heartbeat, Status

log = structlog.get_logger(__name__)
Purpose = Literal["heartbeat", "gateway"]
OVERLAP_SECONDS = 900.0
"""How long the token of the epoch before still works, until the new one was proved."""
CHECKINS_MISSED = 3
"""After so many intervals without another check-in its figures are no longer those of now."""


@dataclass(frozen=True, slots=True)
class Session:
    """An agent that proved who it is."""

    key: Key
    did: str


class Sessions:
    """What the endpoint asks of the agents' room."""

    def __init__(
        self,
        values: Values,
        cache: Cache,
        memories: Memories,
        here: Installation,
        engine: Engine,
        clock: Callable[[], float],
    ) -> None:
        self._values, self._cache, self._memories = values, cache, memories
        self._here, self._engine, self._clock = here, engine, clock
        self._nobody = (secrets.token_urlsafe(32).encode(),) * 3

    def authenticate(self, did: str, token: str, purpose: Purpose = "heartbeat") -> Session | None:
        """The session of an agent with a good token of this purpose; None for every stranger, after equal work.

        Only the heartbeat token proves an epoch: the new gateway token comes by the bundle, to the one before too.
        """
        key = self._memories.key_of(did)
        memory = self._memories.get(key) if key is not None else None
        epoch = memory.declared.spec.identity.token_epoch if memory is not None else 0
        expected = self._nobody if key is None or memory is None else self._tokens(key, memory, purpose)
        given = token.encode()
        good = [hmac.compare_digest(one, given) for one in expected]
        if key is None or memory is None or not any(good):
            return None
        if good[0] and purpose == "heartbeat":
            memory.epoch_proved = epoch
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

    def hear(self, session: Session, beat: Heartbeat, body: bytes) -> None:
        """Takes a heartbeat, read and as it came; the Agent is looked at when it says something new."""
        memory = self._memories.get(session.key)
        if memory is None:
            return
        before, now, said = memory.heard, self._clock(), tidings(beat)
        memory.heard = Heard(body, said, now, time.time())
        world, window = memory.world, memory.declared.silence_window
        starts = [t for t in (world.start_asked_at, *(m.up_since for m in world.machines or ())) if t is not None]
        # The first one after a start counts even if it says what the last one before it said: it went on where it was.
        awake = any(before is not None and before.at < start <= now for start in starts)
        if before is None or awake or before.tidings != said or now - before.at > window:
            self._engine.add(session.key, Lane.BACKGROUND)

    def check_in(self, session: Session, said: Checkin) -> None:
        """Takes the figures of a check-in. Nothing is decided by them."""
        if (memory := self._memories.get(session.key)) is not None:
            memory.figures = fold(memory.figures, said, time.time())

    def seen(self) -> Iterator[Seen]:
        """Every agent that was heard, for its figures. Only reads, so that it may run in a thread."""
        now, wall = self._clock(), time.time()
        for key, memory in self._memories.items():
            heard, figures = memory.heard, memory.figures
            if heard is None and figures is None:
                continue
            spec, machines = memory.declared.spec, memory.world.machines or ()
            awake = heard is not None and now - heard.at <= memory.declared.silence_window
            beat = heard.beat if heard is not None and awake else None
            yield Seen(
                namespace=key.namespace,
                name=key.name,
                machine_id=memory.machine_id or "",
                region=next((m.region for m in machines if m.id == memory.machine_id), ""),
                heard_at=heard.wall if heard is not None else None,
                beat=beat if beat is not None and beat.status is not Status.STOPPING else None,
                figures=figures,
                figures_hold=figures is not None
                and wall - figures.at <= CHECKINS_MISSED * spec.telemetry.interval_seconds,
            )

    def due(self, session: Session, beat: Heartbeat) -> list[Command]:
        """The commands for this agent now."""
        memory = self._memories.get(session.key)
        return [] if memory is None else commands(memory.declared, memory.revision, beat)

    def waiting(self, session: Session) -> set[asyncio.Future[None]]:
        """What is to be put in here is told when the Agent was looked at again: there may be a command then."""
        memory = self._memories.get(session.key)
        return set() if memory is None else memory.waiting

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
        for fresh in (False, True):
            values = await self._values.of(session.key, _refs(memory), fresh=fresh)
            declared, refs = memory.declared, _refs(memory)  # as it is now: it may have been revoked meanwhile
            if not values.keys() >= set(refs):
                raise NotNow("it was changed meanwhile")
            gateway = self._here.gateway_token(declared, memory.incarnation)
            prints = {ref: fingerprint(root, value) for ref, value in values.items()}
            try:
                revision = bundle.revision(root, declared, did, prints.__getitem__)
                made = bundle.render(declared, did, values.__getitem__, gateway, revision)
            except bundle.Unrenderable as error:
                memory.refused = (memory.revision_of, str(error))
                self._engine.add(session.key, Lane.BACKGROUND)  # its status says why
                raise NotNow(str(error)) from error
            if memory.revision in (None, revision):
                break  # else what others had read a moment ago may be too old
        if revision != memory.revision:
            # The core Secret is newer than our last look at it: look now, so that everybody learns of it.
            self._values.look(session.key)
        return made

    def _tokens(self, key: Key, memory: Memory, purpose: Purpose) -> tuple[bytes, bytes, bytes]:
        """The token that works, and those before it that still work: of the epoch before, of the root before.

        Where there is none, the first once more, so that everybody is compared as often.
        """
        roots, identity = self._here.roots, memory.declared.spec.identity
        epoch = identity.token_epoch
        # One that proves itself with Fly's token gets its new one as soon as the old one is refused.
        over = memory.epoch_proved == epoch or memory.declared.revoked or identity.proves_itself
        before, root_before = epoch, roots.token
        if not over:
            # A machine that was given the new token has no use for the one before, whenever this process began.
            given = any(m.metadata.get("roost_token_epoch") == str(epoch) for m in memory.world.machines or ())
            late = self._clock() - memory.epoch_changed_at > OVERLAP_SECONDS
            before = epoch if given or late else max(0, epoch - 1)
            root_before = roots.token_before or roots.token
        made_of = (memory.incarnation, epoch, before, root_before)
        if purpose == "heartbeat" and memory.tokens is not None and memory.tokens[0] == made_of:
            return memory.tokens[1]
        derive = {"heartbeat": heartbeat_token, "gateway": gateway_token}[purpose]
        which = ((roots.token, epoch), (roots.token, before), (root_before, epoch))
        made = {
            (root, of): derive(root, roots.owner_id, key.namespace, key.name, memory.incarnation, of).encode()
            for root, of in dict.fromkeys(which)
        }
        tokens = (made[which[0]], made[which[1]], made[which[2]])
        if purpose == "heartbeat":
            memory.tokens = (made_of, tokens)
        return tokens


def _refs(memory: Memory) -> tuple[Ref, ...]:
    """What the bundle needs of Secrets; nothing when the agent is revoked."""
    return () if memory.declared.revoked else tuple(bundle.refs_of(memory.declared))
