"""What the operator keeps in mind of each Agent between two looks. Lost with the process, found again by looking."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from roost.agents import bundle
from roost.agents.names import Names, derive, gateway_token, heartbeat_token
from roost.agents.pace import Pace
from roost.agents.view import Beat, Declared, World
from roost.api.agent import AgentSpec, parse_agent_spec
from roost.kube.records import Key, Record
from roost.kube.roots import Roots
from roost.secrets.table import SecretTable
from roost.telemetry.agents import Figures
from roost_agent.contract import Heartbeat
from roost_agent.contract.wire import instant


@dataclass(slots=True)
class Installation:
    """Which Roost this is: its roots, the cluster it lives in, and when it began to act and to listen (clock seconds).

    A standby begins when it becomes the leader: heartbeats come to it, and the leader before may have sent calls, from
    then on.
    """

    roots: Roots
    cluster: str
    started_at: float

    def heartbeat_token(self, of: Declared, incarnation: str) -> str:
        """The token with which this incarnation of an Agent calls us."""
        epoch = of.spec.identity.token_epoch
        return heartbeat_token(self.roots.token, self.roots.owner_id, of.namespace, of.name, incarnation, epoch)

    def gateway_token(self, of: Declared, incarnation: str) -> str:
        """The token of its gateway."""
        epoch = of.spec.identity.token_epoch
        return gateway_token(self.roots.token, self.roots.owner_id, of.namespace, of.name, incarnation, epoch)


@dataclass(frozen=True, slots=True)
class Heard:
    """The last heartbeat and when it arrived, in clock and in epoch seconds.

    Kept as it came, which takes a fifth of what it takes once it is read; `tidings` are what of it is worth a look.
    """

    body: bytes
    tidings: tuple[object, ...]
    at: float
    wall: float

    @property
    def beat(self) -> Heartbeat:
        return Heartbeat.read(self.body)

    def seen(self, now: float) -> Beat:
        """What the planner may know of it."""
        b = self.beat
        runtime = b.runtime
        last = runtime.last_exit if runtime is not None else None
        how = "" if last is None else f"signal {last.signal}" if last.signal else f"code {last.code}"
        return Beat(
            machine_id=b.machine_id,
            machine_version=b.machine_version,
            age=now - self.at,
            ready=b.ready,
            status=b.status,
            boot_phase=b.boot_phase,
            bundle_revision=b.bundle_revision,
            restarts=runtime.restarts if runtime is not None else 0,
            supervisor_version=b.compute_version,
            runtime_version=b.openclaw_version,
            last_exit=how,
            degraded=tuple(b.degraded),
            pending_pairings=b.pending_pairings,
            active_sessions=b.active_sessions,
            connections=b.connections,
            last_activity_at=self._clock(b.last_activity_at),
            next_run_at=self._clock(b.next_scheduled_run_at),
        )

    def _clock(self, date: str | None) -> float | None:
        """A date of the agent's in clock seconds."""
        return None if date is None else self.at + (instant(date).timestamp() - self.wall)


def tidings(beat: Heartbeat) -> tuple[object, ...]:
    """The part of a heartbeat whose change is worth a look: all that reaches a status."""
    runtime = beat.runtime
    last = runtime.last_exit if runtime is not None else None
    return (
        beat.machine_id,
        beat.machine_version,
        beat.ready,
        beat.status,
        beat.boot_phase,
        beat.bundle_revision,
        runtime and (runtime.restarts, last and (last.code, last.signal, last.at)),
        tuple(beat.degraded),
        beat.pending_pairings,
    )


@dataclass(slots=True)
class Memory:
    """One Agent (by uid) in mind."""

    uid: str
    version: int
    names: Names
    declared: Declared
    incarnation: str
    world: World
    machine_id: str | None = None
    """The Agent's current machine; None while it is not known."""
    heard: Heard | None = None
    figures: Figures | None = None
    """What its check-ins have said."""
    revision: str | None = None
    """The desired bundle's; None while its secrets can't be resolved."""
    revision_of: tuple[object, ...] = ()
    refused: tuple[tuple[object, ...], str] | None = None
    """What was tried to be rendered and why it can't be."""
    epoch_changed_at: float = 0.0
    epoch_proved: int | None = None
    """The epoch whose token was used since this process began."""
    tokens: tuple[tuple[object, ...], tuple[bytes, bytes, bytes]] | None = None
    """The heartbeat tokens that are taken, and what they were derived from."""
    moving_since: float | None = None
    told: tuple[int, str] | None = None
    """What progress was last told on this way, and of which generation, so that it is told once."""
    told_at: float = float("-inf")
    tidings: tuple[object, ...] = ()
    """What of its heartbeats its status holds."""
    tidings_at: float = float("-inf")
    """When that was written, and, while it waits for its turn to be written, when that is."""
    tidings_due: float | None = None
    phase: str = ""
    nudge: tuple[str, float] = ("", float("-inf"))
    """The value of roost.dev/reconcile-at, and when it was first seen."""
    pace: Pace = field(default_factory=Pace)
    waiting: set[asyncio.Future[None]] = field(default_factory=set)
    """Those who hold a heartbeat open; they put themselves in and out."""

    def ring(self) -> None:
        """After each look: whoever holds a heartbeat open looks whether there is a command now."""
        for news in self.waiting:
            if not news.done():
                news.set_result(None)


class Memories:
    """All Agents in mind, found by key or by DID."""

    def __init__(self, here: Installation, secrets: SecretTable) -> None:
        self._here, self._secrets = here, secrets
        self._by_key: dict[Key, Memory] = {}
        self._by_did: dict[str, Key] = {}

    def get(self, key: Key) -> Memory | None:
        return self._by_key.get(key)

    def __len__(self) -> int:
        return len(self._by_key)

    def items(self) -> Iterator[tuple[Key, Memory]]:
        return iter(list(self._by_key.items()))

    def key_of(self, did: str) -> Key | None:
        return self._by_did.get(did)

    def of(self, found: Record, now: float) -> Memory:
        """The memory of an Agent as it is declared now; a new one when it was not in mind, or is another by uid.

        Raises:
            BadResource: its spec holds what this version does not know.
        """
        memory = self._by_key.get(found.key)
        if memory is not None and memory.uid == found.uid and memory.version == found.version:
            return memory
        if memory is None or memory.uid != found.uid:
            if memory is not None:
                memory.ring()  # whoever is held for the one before is a stranger now
            memory = self._new(found, now)
            self._by_key[found.key] = memory
            self._by_did[memory.names.did] = found.key
        else:
            spec = memory.declared.spec
            if memory.declared.generation != found.generation:
                spec = parse_agent_spec({"spec": found.spec})
            if spec.identity.token_epoch != memory.declared.spec.identity.token_epoch:
                memory.epoch_changed_at = now
            memory.declared = _declared(found, spec)
            memory.version = found.version
        pinned = (found.status.get("app") or {}).get("incarnation")
        memory.incarnation = pinned or memory.incarnation
        declared = memory.declared
        bots = () if declared.revoked else bundle.bot_refs_of(declared)
        self._secrets.uses(found.key, bundle.refs_of(declared), bots)
        return memory

    def begin(self, now: float) -> None:
        """This process acts from now on: whatever another has done meanwhile to any of them is not known here."""
        self._here.started_at = now
        for memory in self._by_key.values():
            memory.world = World(quiet_since=now)

    def forget(self, key: Key) -> Memory | None:
        memory = self._by_key.pop(key, None)
        if memory is not None:
            self._by_did.pop(memory.names.did, None)
            self._secrets.uses(key, ())
            memory.ring()
        return memory

    def _new(self, found: Record, now: float) -> Memory:
        roots = self._here.roots
        # Whatever an earlier process may have sent, it sent before this one began.
        world = World(quiet_since=self._here.started_at)
        return Memory(
            uid=found.uid,
            version=found.version,
            names=derive(roots.identity, roots.owner_id, found.key.namespace, found.key.name),
            declared=_declared(found, parse_agent_spec({"spec": found.spec})),
            incarnation=found.uid,
            world=world,
            epoch_changed_at=now,
        )


def _declared(found: Record, spec: AgentSpec) -> Declared:
    return Declared(
        namespace=found.key.namespace,
        name=found.key.name,
        uid=found.uid,
        generation=found.generation,
        resource_version=str(found.version),
        finalizers=found.finalizers,
        deleting=found.deleting,
        annotations=found.annotations,
        labels=found.labels,
        spec=spec,
    )
