"""The whole Agents' room on virtual time: the real operator, against the simulated Fly, in one process.

Real are `Agents`, `Fleets`, `Secrets`, the engine, `Orgs` with refresher and Fly client, memories, sessions, the cache,
`Objects` and `Recorder`. Doubled is Kubernetes alone: `Store` keeps objects in memory and answers what the API server
would (versions, conflicts, finalizers), behind the same methods as `roost.kube.client.Kube`. Fly is `flysim` with
virtual machines; in each runs an `Inmate`, which beats as the supervisor does.

    pytestmark = pytest.mark.looptime

    @in_a_world                                                   # or, with options: async with operator_world(…)
    async def test_it_runs(world: World) -> None:
        await world.apply("ada", machine={"public": "Gateway"})   # top-level blocks of the spec
        await world.until_phase("ada", "Running")
        assert world.calls("ada") == ["create_app", …]            # what the operator asked of Fly about ada
        world.inmates["ada"].silent = True                        # and busy, idle, …: see `Inmate`
        await world.admin("DELETE", f"machines/{world.machine('ada').id}")   # behind the operator's back
        await world.edit("ada", desiredState="Stopped")           # a merge patch of the spec
        await world.annotate("ada", wake="1")
        await world.restart()                                     # or crash(), start(): a new process
        await world.delete("ada")
        await world.until_gone("ada")

Fixtures can't hold a world: they are set up on real time, and virtual time begins at 0 with the test itself. Time
passes with `asyncio.sleep` (it costs none), and `until` waits for a condition. The rooms' wall clock runs with the loop
for as long as the world is open. Faults at Fly: `world.sim.faults.add(Order(…))`; at Kubernetes:
`world.store.meddle`. What was written: `world.store.writes`; what was sent: `world.sent`; Fly's own record:
`world.ledger()`.
"""

import asyncio
import functools
import inspect
import json
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx

from flysim import routes
from flysim.clock import Clock
from flysim.records import App, Machine, Volume
from flysim.runner import BootError, Launch
from flysim.sim import Sim
from flysim.transport import SimTransport
from flysim.virtual import Script, VirtualMachine, VirtualRunner
from roost.agents import orgs as orgs_room
from roost.agents import reconcile as reconcile_room
from roost.agents import sessions as sessions_room
from roost.agents.memory import Installation, Memories
from roost.agents.names import derive
from roost.agents.orgs import FlyToken, Orgs
from roost.agents.reconcile import Agents
from roost.agents.sessions import Sessions
from roost.api.agent import parse_agent_spec
from roost.engine.engine import Engine
from roost.engine.queue import Lane
from roost.fleets import reconcile as fleets_room
from roost.fleets.reconcile import Fleets
from roost.kube.client import Body
from roost.kube.events import Recorder
from roost.kube.objects import Objects, condition
from roost.kube.records import Cache, Key, Record
from roost.kube.roots import Roots
from roost.run import lane_of
from roost.secrets import reconcile as secrets_room
from roost.secrets.lookup import Lookup
from roost.secrets.reconcile import Secrets
from roost.secrets.sources import Sources
from roost.secrets.table import SOURCES, SecretTable
from roost.secrets.values import Values
from roost.secrets.watch import Watches
from roost.settings import Settings
from roost.telemetry.metrics import Metrics
from roost_agent.contract.heartbeat import BootPhase, CommandType, Heartbeat, Status
from store import NAMESPACE, Store, date, merged, path_of

EPOCH = 1_800_000_000.0
ROOTS = Roots("owner1", b"i" * 32, b"t" * 32, b"f" * 32)
ORG, TOKEN = "personal", "fm2_operator"
COMMAND = {"kind": "Command", "command": ["run"]}
LISTS = frozenset({"org_machines", "org_volumes"})
"""Calls that the refresher makes for everybody."""


# --- One process of the operator ---------------------------------------------------------------------------------


class Operator:
    """The rooms of one process over a store and a Fly, put together as `roost.run` does."""

    def __init__(
        self, store: Any, settings: Settings, roots: Roots, cluster: str, transport: SimTransport, seed: int
    ) -> None:
        loop, kube = asyncio.get_running_loop(), store.kube
        self._settings, self._transport = settings, transport
        self.metrics, self.cache = Metrics(), Cache()
        table = self.table = SecretTable(Lookup(self.cache, settings.namespace), self._wake)
        here = Installation(roots, cluster, loop.time())
        self.memories = Memories(here, table)
        objects, recorder = Objects(kube, self.cache, self.metrics), Recorder(kube, loop.time, "roost")
        self.agents = Agents(
            objects, self.cache, table, self.memories, settings, here, recorder, self.metrics, loop.time
        )
        poll = settings.secret_poll_seconds
        sources = Sources(kube, table, roots.fingerprint, poll, loop.time)
        secrets = Secrets(objects, self.cache, table, sources, roots.fingerprint, recorder, self.metrics, loop.time)
        self._watches = Watches(kube, table, loop.time)
        fleets = Fleets(kube, objects, self.cache, recorder, self.metrics, self._wake)
        reconciles = {"Agent": self.agents.reconcile, "Fleet": fleets.reconcile, "Secret": secrets.reconcile}
        reconciles |= dict.fromkeys(SOURCES, sources.reconcile)
        self.engine = Engine(reconciles, self.metrics, random.Random(seed), in_flight=settings.in_flight)
        self.values = Values(kube, table, loop.time)
        self.sessions = Sessions(self.values, self.cache, self.memories, here, self.engine, loop.time)
        self._tokens = {
            name: FlyToken(kube, settings.namespace, credential, self._wake_all)
            for name, credential in settings.fly.credentials.items()
        }
        self.orgs: Orgs
        self._connected = asyncio.Event()
        for found in store.records():
            self.told(None, found)
            if found.key.kind == "Agent":
                self.memories.of(found, loop.time())
        store.told = self.told
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        agents = self.agents
        async with (
            asyncio.TaskGroup() as tasks,
            Orgs(
                self._settings,
                self._tokens,
                self.metrics,
                tasks,
                agents.swept,
                agents.volumes_swept,
                agents.apps,
                self._transport,
            ) as self.orgs,
        ):
            agents.connect(self.engine, self.orgs)
            watching = tasks.create_task(self._watches.run())
            try:
                await self.engine.run()
            finally:
                self.orgs.stop()
                watching.cancel()

    def complain(self) -> None:
        """Raises what has ended the process by itself, if anything has."""
        if self._running.done():
            self._running.result()

    async def stop(self) -> None:
        """As by SIGTERM: what is in flight ends. Raises what has ended it before, if anything has."""
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    async def crash(self) -> None:
        """As by SIGKILL: nothing is waited for, and no answer is heard any more."""
        for turn in self.engine._tasks:
            turn.cancel()
        await self.stop()

    def broke(self) -> float:
        """How often a reconcile raised, or a sweep stumbled."""
        registry = self.metrics.registry
        name = "controller_runtime_reconcile_errors_total"
        raised = [registry.get_sample_value(name, {"controller": kind}) or 0.0 for kind in self.engine._reconciles]
        return sum(raised) + sum(known.unexpected_errors for known, _ in self.orgs._refreshers.values())

    def told(self, kind: str | None, new: Record) -> None:
        """As `roost.run.Operator._told` and what it calls."""
        if kind == "DELETED":
            self.cache.bury(new.key, new.uid)
            self.engine.add(new.key, Lane.USER)
            self._wake_fleet(new)
            return
        before = self.cache.put(new)
        if self.cache.get(new.key) is not new:
            return
        if (lane := lane_of(kind, before, new, worked_on=self.engine.works_on(new.key))) is not None:
            self.engine.add(new.key, lane)
        self._wake_fleet(new)

    def _wake_fleet(self, member: Record) -> None:
        if member.owner_uid is not None and (fleet := member.labels.get("roost.dev/fleet")):
            self.engine.add(Key("Fleet", member.key.namespace, fleet), Lane.BACKGROUND)

    def _wake(self, key: Key) -> None:
        found = self.cache.get(key)
        self.engine.add(key, Lane.BACKGROUND if found is not None and found.deleting else Lane.USER)

    def _wake_all(self) -> None:
        for found in self.cache.of_kind("Agent"):
            self.engine.add(found.key, Lane.BACKGROUND)


# --- What runs in the machines -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Inmate:
    """The agent in an Agent's machine, whichever machine that is: what it does, and what it says of itself.

    `sessions`, `connections`, `active_at` and `next_run_at` (epoch seconds) are what a heartbeat says of work; None is
    not said. `boots` counts its starts, `told` the commands that it got, `tokens` the tokens that it was started with.
    """

    boot_seconds: float = 2.0
    silent: bool = False
    ready: bool = True
    degraded: tuple[str, ...] = ()
    refuses: str | None = None
    """What it says instead of taking up another configuration."""
    sessions: int | None = None
    connections: int | None = None
    active_at: float | None = None
    next_run_at: float | None = None
    restarted_at: str | None = None
    boots: int = 0
    heard: int = 0
    refused: int = 0
    told: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)


class Supervisor:
    """One boot of a machine: beats as long as it runs and stands not still."""

    def __init__(self, world: "World", launch: Launch, machine: VirtualMachine, inmate: Inmate) -> None:
        env = launch.environment
        self._world, self._machine, self._inmate = world, machine, inmate
        self._did, self._token = env["AGENT_DID"], env["AS_HEARTBEAT_TOKEN"]
        self._id, self._version = launch.machine, env["FLY_MACHINE_VERSION"]
        self._revision: str | None = None
        self._said: tuple[object, ...] | None = None
        self._beat: Heartbeat
        self._body: bytes
        inmate.boots += 1
        inmate.tokens.append(self._token)
        self._next(inmate.boot_seconds)

    def _next(self, seconds: float) -> None:
        self._world.loop.call_later(seconds, self._turn)

    def _turn(self) -> None:
        if self._machine.ended is None:
            self._next(self._say() if not self._machine.frozen else 5.0)

    def _say(self) -> float:
        """One heartbeat; the seconds until the next."""
        inmate, operator = self._inmate, self._world.operator
        if inmate.silent or operator is None or not self._world.endpoint_up:
            return 30.0 if operator is None or inmate.silent else 5.0
        session = operator.sessions.authenticate(self._did, self._token)
        if session is None or operator.sessions.superseded(session, self._id):
            inmate.refused += 1
            return 5.0
        inmate.heard += 1
        beat = self._heartbeat()
        operator.sessions.hear(session, beat, self._body)
        again: float = operator.sessions.interval(session)
        for command in operator.sessions.due(session, beat):
            inmate.told.append(command.id)
            if command.type is CommandType.UPDATE_CONFIG and inmate.refuses is not None:
                inmate.degraded, again = (inmate.refuses,), 1.0
            elif command.type is CommandType.UPDATE_CONFIG:
                self._revision, again = operator.sessions.revision(session), 1.0
            elif command.type is CommandType.RESTART:
                inmate.restarted_at, again = command.restarted_at, 1.0
        return again

    def _heartbeat(self) -> Heartbeat:
        i = self._inmate
        says = (self._revision, i.restarted_at, i.ready, i.degraded, i.sessions, i.connections, i.active_at)
        says = (*says, i.next_run_at)
        if says != self._said:
            self._said = says
            self._beat = Heartbeat(
                status=Status.RUNNING,
                machine_id=self._id,
                machine_version=self._version,
                uptime_seconds=1,
                memory_mb=100,
                compute_version="0.1.0",
                bundle_revision=self._revision,
                boot_phase=BootPhase.DONE,
                ready=i.ready,
                degraded=list(i.degraded),
                restarted_at=i.restarted_at,
                active_sessions=i.sessions,
                connections=i.connections,
                last_activity_at=None if i.active_at is None else date(i.active_at),
                next_scheduled_run_at=None if i.next_run_at is None else date(i.next_run_at),
            )
            self._body = self._beat.write()
        return self._beat


class _Inhabited(VirtualRunner):
    """Virtual machines with somebody in them."""

    def __init__(self, moved_in: Callable[[Launch, VirtualMachine], None], script: Callable[[Launch], Script]) -> None:
        super().__init__(script)
        self._moved_in = moved_in

    async def start(self, launch: Launch) -> VirtualMachine:
        machine = await super().start(launch)
        self._moved_in(launch, machine)
        return machine


class Line(SimTransport):
    """The way to Fly, which outlives an operator: what a process has sent before its end takes its course.

    `sent` are operation and body of every call that had one.
    """

    def __init__(self, sim: Sim) -> None:
        super().__init__(sim)
        self.sent: list[tuple[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if body := await request.aread():
            route = routes.match(request.method, request.url.path)
            assert route is not None
            self.sent.append((route[0], json.loads(body)))
        return await super().handle_async_request(request)

    async def aclose(self) -> None: ...


# --- The world ---------------------------------------------------------------------------------------------------


class World:
    """All of it. See the module's text for its use.

    `broken_images` are references whose boot fails; `cluster` is the uid that the next process sees, `roots` are its.
    `line` and `port` are the ways on which the next process reaches Fly and Kubernetes.
    """

    def __init__(self, settings: Settings, make_store: Callable[[Clock], Store] = Store, **sim: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = Clock(EPOCH)
        self.settings, self.roots, self.cluster = settings, ROOTS, "cluster-1"
        self.store = make_store(self.clock)
        self.runner = _Inhabited(self._moved_in, self._script)
        self.sim = Sim(self.runner, self.clock, random.Random(1), tokens=[TOKEN], **{"orgs": (ORG, "acme")} | sim)
        self.line = Line(self.sim)
        self.port: Any = self.store
        self.inmates: dict[str, Inmate] = {}
        self.broken_images: set[str] = set()
        self.endpoint_up = True
        self.operator: Operator | None = None
        self._processes = 0
        for credential in settings.fly.credentials.values():
            self.store.put_core_secret(settings.namespace, credential.secret_name, {credential.secret_key: TOKEN})

    # The operator

    def start(self) -> None:
        self._processes += 1
        self.operator = Operator(self.port, self.settings, self.roots, self.cluster, self.line, self._processes)

    async def stop(self) -> None:
        """Raises AssertionError when something broke in this process that nobody foresaw."""
        if self.operator is not None:
            operator, self.operator, self.store.told = self.operator, None, None
            await operator.stop()
            assert self.store.meddle is not None or not operator.broke(), "see the log: a reconcile or a sweep broke"

    async def crash(self) -> None:
        if self.operator is not None:
            operator, self.operator, self.store.told = self.operator, None, None
            await operator.crash()

    async def restart(self) -> None:
        await self.stop()
        self.start()

    # People

    async def apply(self, name: str, **blocks: Any) -> None:
        """An Agent of these blocks of the spec (in the API's own words, `volume={"sizeGb": 2}`)."""
        spec = {"runtime": COMMAND} | blocks
        parse_agent_spec({"spec": spec})
        self.inmates.setdefault(name, Inmate())
        self.store.apply("Agent", name, spec)

    async def edit(self, name: str, **change: Any) -> None:
        """A merge patch of an Agent's spec."""
        spec = merged(self.body(name)["spec"], change)
        parse_agent_spec({"spec": spec})
        self.store.apply("Agent", name, spec)

    async def annotate(self, name: str, **values: str | None) -> None:
        """Annotations by their last word, with underscores: `reconcile_at="1"` is roost.dev/reconcile-at."""
        self.store.annotate(name, {f"roost.dev/{key.replace('_', '-')}": value for key, value in values.items()})

    async def delete(self, name: str) -> None:
        self.store.delete("Agent", name)

    def secret(self, name: str, **values: str) -> None:
        """A core Secret, and the Roost Secret of the same name that offers it."""
        self.store.put_core_secret(NAMESPACE, name, values)
        self.store.apply("Secret", name, {"source": {"secretRef": {"name": name}}})

    async def admin(self, method: str, path: str, body: Any = None) -> Any:
        """The simulator's own side: `hosts`, `machines`, `volumes`, `lists`, `images`, `quotas`."""
        content = b"" if body is None else json.dumps(body).encode()
        answer = await self.sim.handle(method, f"/_sim/{path}", {}, {}, content)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    async def by_hand(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """A call to the Machines API by somebody else than the operator (`/v1/…`)."""
        content = b"" if body is None else json.dumps(body).encode()
        values = {key: [value] for key, value in query.items()}
        headers = {"authorization": f"Bearer {TOKEN}", "user-agent": "somebody"}
        answer = await self.sim.handle(method, path, values, headers, content)
        assert answer.status < 300, answer.body
        return json.loads(answer.body or b"null")

    # What is

    def body(self, name: str) -> Body:
        found = self.store.find("Agent", name)
        assert found is not None, f"there is no Agent {name}"
        return found

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.body(name).get("status", {})
        return status

    def phase(self, name: str) -> str:
        return str(self.status(name).get("phase", ""))

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        found = condition(self.status(name), kind)
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def app_name(self, name: str) -> str:
        pinned = (self.store.find("Agent", name) or {}).get("status", {}).get("app", {}).get("name")
        return pinned or _derived(name)

    def app(self, name: str) -> App:
        return self.sim.world.apps[self.app_name(name)]

    def machines(self, name: str) -> list[Machine]:
        """The living machines in the Agent's app."""
        app = self.sim.world.apps.get(self.app_name(name))
        return [m for m in app.machines.values() if m.state != "destroyed"] if app is not None else []

    def machine(self, name: str) -> Machine:
        (machine,) = self.machines(name)
        return machine

    def volumes(self, name: str) -> list[Volume]:
        """The living volumes in the Agent's app, oldest first."""
        app = self.sim.world.apps.get(self.app_name(name))
        return [v for v in app.volumes.values() if v.deleted_at is None] if app is not None else []

    def volume(self, name: str) -> Volume:
        (volume,) = self.volumes(name)
        return volume

    def config(self, name: str) -> dict[str, Any]:
        """The machine's config as Fly echoes it."""
        return self.machine(name).shown

    def ledger(self, since: int = 0) -> list[dict[str, Any]]:
        return self.sim.world.ledger.since(since)

    def mark(self) -> int:
        """Where the record of Fly is now, for `ledger` and `calls`."""
        return len(self.ledger())

    def calls(self, name: str | None = None, since: int = 0) -> list[str]:
        """The operator's calls to Fly, the refresher's lists left out; of one Agent's app, or of all."""
        app = None if name is None else self.app_name(name)
        return [
            line["op"]
            for line in self.ledger(since)
            if line["kind"] == "call"
            and line["agent"].startswith("roost/")
            and line["op"] not in LISTS
            and (app is None or line["app"] == app)
        ]

    def sent(self, op: str) -> list[Any]:
        """The bodies of the operator's calls of one operation."""
        return [body for name, body in self.line.sent if name == op]

    def writes(self, name: str, since: float = 0.0) -> list[str]:
        """What the operator wrote to an Agent, since an epoch time."""
        path = path_of("Agent", name)
        return [w.kind for w in self.store.writes if w.path == path and w.at >= since]

    # Waiting

    async def until(self, holds: Callable[[], object], seconds: float = 120.0, *, about: Iterable[str] = ()) -> None:
        """Waits until it holds.

        Raises:
            AssertionError: it does not within so many (virtual) seconds; tells the status of those it is about.
        """
        began = self.loop.time()
        while not holds():
            if self.operator is not None:
                self.operator.complain()
            if (lasts := self.loop.time() - began) >= seconds:
                told = {name: (self.store.find("Agent", name) or {}).get("status") for name in about}
                lines = [
                    f"{e['at'] - EPOCH:.1f} {e.get('op') or e.get('event')} {e.get('status', '')}"
                    for e in self.ledger()[-40:]
                    if e.get("op") not in LISTS
                ]
                raise AssertionError(f"not within {seconds} s: {json.dumps(told, indent=1)}\n" + "\n".join(lines))
            await asyncio.sleep(0.05 if lasts < 5 else 0.25 if lasts < 60 else 1.0)

    async def until_phase(self, name: str, phase: str, seconds: float = 120.0) -> None:
        """Until the status says so of the spec as it is now."""

        def there() -> bool:
            body = self.body(name)
            status = body.get("status", {})
            return (status.get("phase"), status.get("observedGeneration")) == (phase, body["metadata"]["generation"])

        await self.until(there, seconds, about=[name])

    async def until_gone(self, name: str, seconds: float = 300.0) -> None:
        await self.until(lambda: self.store.find("Agent", name) is None, seconds, about=[name])

    async def settle(self, seconds: float = 60.0) -> None:
        """Lets time pass."""
        await asyncio.sleep(seconds)

    # Machines

    def _script(self, launch: Launch) -> Script:
        if launch.image in self.broken_images:
            raise BootError(f"image {launch.image} can't be pulled")
        return Script(boot=0.5)

    def _moved_in(self, launch: Launch, machine: VirtualMachine) -> None:
        config = self.sim.world.machines[launch.machine].config
        if config.metadata.get("roost_owner") == ROOTS.owner_id and "AGENT_DID" in launch.environment:
            Supervisor(self, launch, machine, self.inmates.setdefault(config.metadata["roost_name"], Inmate()))


@asynccontextmanager
async def operator_world(
    settings: Mapping[str, Any] | None = None, *, started: bool = True, **sim: Any
) -> AsyncIterator[World]:
    """A world with an operator in it, unless it is not to be started yet; other arguments are `World`'s and `Sim`'s.

    To be entered in the test itself: fixtures are set up on real time, before virtual time begins at 0.
    """
    assert getattr(asyncio.get_running_loop(), "looptime_on", False), "enter it in a test marked looptime, no fixture"
    world = World(Settings.model_validate({"fly": {"org": ORG}} | dict(settings or {})), **sim)
    time = SimpleNamespace(time=world.clock.now, monotonic=world.loop.time)

    def wall() -> str:
        return date(world.clock.now())

    with ExitStack() as patched:
        for room in (reconcile_room, sessions_room, orgs_room):
            patched.enter_context(patch.object(room, "time", time))
        patched.enter_context(patch.object(world.loop, "call_at", _at_ticks(world.loop)))
        for room in (reconcile_room, fleets_room, secrets_room):
            patched.enter_context(patch.object(room, "wall", wall))
        if started:
            world.start()
        try:
            yield world
        finally:
            try:
                await world.stop()
            finally:
                await SimTransport.aclose(world.line)
                await world.sim.close()


@functools.cache
def _derived(name: str) -> str:
    return derive(ROOTS.identity, ROOTS.owner_id, NAMESPACE, name).app


def _at_ticks(loop: asyncio.AbstractEventLoop) -> Callable[..., asyncio.TimerHandle]:
    """Timers at whole ticks of the virtual clock, and never at the present one.

    That clock stands still while anything runs, and asyncio runs timers up to a nanosecond early: whoever waits until a
    moment between two ticks would wake before it, wait again, and so for ever.
    """
    call_at = loop.call_at

    def at_tick(when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        return call_at(math.ceil(max(when, loop.time() + 1e-6) * 1e6) / 1e6, *args, **options)

    return at_tick


def in_a_world(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Gives a test a world of its own as its first argument; the others are the fixtures and parameters it asks for."""

    @functools.wraps(test)
    async def within(**asked: Any) -> None:
        async with operator_world() as world:
            await test(world, **asked)

    signature = inspect.signature(test)
    within.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    del within.__wrapped__  # type: ignore[attr-defined]
    return within
