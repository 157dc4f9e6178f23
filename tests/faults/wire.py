"""The one place through which everything passes that the operator says and hears: where faults happen.

Calls to Fly, calls to Kubernetes and events of the watch are numbered jointly, in the order in which they are made. At
each the wire asks its plan whether something is to go wrong there. Processes die and are started here as well, for
which call they die at is what matters.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from flysim import routes
from flysim.sim import Sim
from operator_world import LISTS, Line, World
from roost.fly.errors import is_read
from roost.kube.client import Body, KubeError, Unreachable, _error
from roost.kube.records import Record

Kind = Literal["fly-write", "fly-read", "fly-list", "kube-write", "kube-read", "event", "watch"]
GAVE_UP_SECONDS = {"fly-write": 60.0, "fly-read": 30.0, "fly-list": 30.0}
"""After so long the Fly client gives up; a wait for a machine may take longer."""
KUBE_SECONDS = YOUNG_SECONDS = 30.0
AT_ONCE_SECONDS = 0.1
BY_CLOCK = LISTS | {"get_secrets"}
"""Calls that are made again and again, whatever happens."""
SWEEP_SECONDS = 60.0
"""From a relist to the sweep that finds deletions which it did not tell."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One call, or one event of the watch, by its number."""

    n: int
    kind: Kind
    op: str
    about: str
    young: bool = False
    """What it is about has been there for less than half a minute."""
    at_once: bool = False
    """It follows the call before without a pause, so that nothing outside has changed since that one's effect."""
    unstirred: bool = False
    """A list or a poll as the one before, and nothing else has been said or heard since."""

    def __str__(self) -> str:
        return f"{self.n} {self.kind} {self.op} {self.about}"


class Passing:
    """A call on its way: what a fault can do with it."""

    def __init__(self, wire: "Wire", seen: Seen, go: Callable[[], Awaitable[Any]]) -> None:
        self.wire, self.seen, self.go = wire, seen, go
        wire.hits += 1

    def refuse(self, status: int, body: Any = "", headers: Mapping[str, str] | None = None) -> Any:
        """The answer that stands in place of the real one. Raises KubeError in Kubernetes' place."""
        if not self.seen.kind.startswith("fly"):
            raise _error(self.seen.op, status, str(body) or "ordered")
        content = body if isinstance(body, str) else json.dumps(body)
        return httpx.Response(status, headers={"fly-request-id": "ordered", **(headers or {})}, text=content)

    def cut(self) -> Any:
        """The connection ends, and no answer comes."""
        if self.seen.kind.startswith("fly"):
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        raise Unreachable(self.seen.op, 0, "ServerDisconnectedError")

    async def hang(self) -> Any:
        """No answer comes until the operator gives up."""
        self.wire.busy(GAVE_UP_SECONDS.get(self.seen.kind, KUBE_SECONDS) + 1.0)
        if self.seen.kind.startswith("fly"):
            await asyncio.Future()
        await asyncio.sleep(KUBE_SECONDS)
        raise Unreachable(self.seen.op, 0, "TimeoutError")

    def later(self, seconds: float) -> None:
        """The request arrives in so many seconds, whoever still waits for its answer."""

        async def arrive() -> None:
            await asyncio.sleep(seconds)
            with suppress(KubeError, httpx.HTTPError):
                await self.go()

        self.wire.busy(seconds + 1.0)
        self.wire.spawn(arrive())


Do = Callable[[Passing], Awaitable[Any]]


class Wire:
    """Stands between a world's operators and their two ports, from `on` on.

    `plan` says what happens at which number; `at` is called at each. `over` is when the last fault has ended (loop
    time), `hits` how many calls and events faults have met; `seen` is what has passed.
    """

    def __init__(self, world: World) -> None:
        self.world, self.loop = world, world.loop
        self.on = False
        self.seen: list[Seen] = []
        self.plan: dict[int, Do] = {}
        self.at: Callable[[Seen], None] | None = None
        self.weather: Callable[[Passing], Awaitable[Any]] | None = None
        self.over = 0.0
        self.hits = 0
        self.broke: list[str] = []
        self._down = False
        self._called_at = -1.0
        self._listed: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        world.line = FlyLine(world.sim, self)
        world.port = KubePort(world.store, self)

    def busy(self, seconds: float) -> None:
        self.over = max(self.over, self.loop.time() + seconds)

    def spawn(self, what: Any) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broke.append(f"{error!r}")

    def met(self, kind: Kind, op: str, about: str) -> tuple[Seen, Do | None]:
        """Numbers what passes, and says what is to happen to it."""
        now = self.loop.time()
        at_once, unstirred = now - self._called_at < AT_ONCE_SECONDS, (op, about) in self._listed
        seen = Seen(len(self.seen) + 1, kind, op, about, self._young(about), at_once, unstirred)
        self.seen.append(seen)
        if op not in BY_CLOCK:
            self._listed.clear()
        self._listed.add((op, about))
        if kind not in ("watch", "event"):
            self._called_at = now
        if self.at is not None:
            self.at(seen)
        if (planned := self.plan.pop(seen.n, None)) is not None:
            self.busy(0.0)
            return seen, planned
        return seen, self.weather

    def _young(self, about: str) -> bool:
        fly, now = self.world.sim.world, self.world.clock.now()
        thing = fly.machines.get(about) or fly.volumes.get(about) or fly.apps.get(about)
        return thing is not None and now - thing.created_at < YOUNG_SECONDS

    async def pass_(self, kind: Kind, op: str, about: str, go: Callable[[], Awaitable[Any]]) -> Any:
        if self._down:
            raise asyncio.CancelledError  # that process is dead
        if not self.on:
            return await go()
        seen, fault = self.met(kind, op, about)
        return await go() if fault is None else await fault(Passing(self, seen, go))

    async def relist(self) -> None:
        """What a watch that is begun anew tells: all that is there; later the sweep finds what is not."""
        self.world.store.relist()
        await asyncio.sleep(SWEEP_SECONDS)
        if (operator := self.world.operator) is not None:
            there = {found.key for found in self.world.store.records()}
            for kind in ("Agent", "Fleet", "Secret"):
                for old in operator.cache.of_kind(kind):
                    if old.key not in there:
                        operator.told("DELETED", old)

    # What can happen to a process

    def kill(self) -> None:
        """SIGKILL, and at once another is started."""

        async def reborn() -> None:
            self._down = True
            await self.world.crash()
            self._down = False
            self.world.start()

        self.spawn(reborn())

    def terminate(self) -> None:
        """SIGTERM, and another is started when this one has ended."""
        self.spawn(self.world.restart())

    def blow(self, what: Do, seconds: float) -> None:
        """For so long this happens to every call (and to no event)."""
        self.weather = what
        self.busy(seconds)

        def calm() -> None:
            self.weather = None

        self.loop.call_later(seconds, calm)


class FlyLine(Line):
    """The way to Fly, faults included."""

    def __init__(self, sim: Sim, wire: Wire) -> None:
        super().__init__(sim)
        self._wire = wire

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        route = routes.match(request.method, request.url.path)
        assert route is not None
        op, values = route
        kind: Kind = "fly-list" if op in LISTS else "fly-read" if _reads(op) else "fly-write"
        about = values.get("machine") or values.get("volume") or values.get("app") or values.get("org") or ""
        go = super().handle_async_request
        response: httpx.Response = await self._wire.pass_(kind, op, about, lambda: go(request))
        response.request = request
        return response


def _reads(op: str) -> bool:
    return is_read(op) or op == "platform_placements"


class KubePort:
    """The way to Kubernetes, the watch included, faults included."""

    def __init__(self, store: Any, wire: Wire) -> None:
        self._store, self._wire = store, wire
        self._told: Callable[[str | None, Record], None] | None = None
        self._before: dict[Any, Record] = {}
        self.held: dict[Any, list[tuple[str | None, Record]]] = {}
        self.kube = self

    async def get(self, path: str, **params: str) -> Body:
        return await self._call("kube-read", "get", path, lambda: self._store.kube.get(path, **params))

    async def create(self, path: str, body: Body) -> Body:
        if path.endswith("/selfsubjectaccessreviews"):
            return await self._store.kube.create(path, body)
        kind: Kind = "event" if path.endswith("/events") else "kube-write"
        return await self._call(kind, "create", path, lambda: self._store.kube.create(path, body))

    async def merge(self, path: str, body: Body) -> Body:
        return await self._call("kube-write", "merge", path, lambda: self._store.kube.merge(path, body))

    async def apply(self, path: str, body: Body, manager: str) -> Body:
        return await self._call("kube-write", "apply", path, lambda: self._store.kube.apply(path, body, manager))

    async def update(self, path: str, body: Body) -> Body:
        return await self._call("kube-write", "update", path, lambda: self._store.kube.update(path, body))

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> Body:
        go = self._store.kube.delete
        return await self._call(
            "kube-write", "delete", path, lambda: go(path, uid=uid, resource_version=resource_version)
        )

    async def _call(self, kind: Kind, verb: str, path: str, go: Callable[[], Awaitable[Body]]) -> Body:
        parts = path.split("/")
        parts = parts[parts.index("namespaces") + 2 :]  # agents, ada, status
        found: Body = await self._wire.pass_(
            kind, f"{verb}_{'_'.join(parts[:1] + parts[2:])}", "/".join(parts[1:2]), go
        )
        return found

    def records(self) -> list[Record]:
        found: list[Record] = self._store.records()
        return found

    @property
    def told(self) -> Callable[[str | None, Record], None] | None:
        return self._told

    @told.setter
    def told(self, watch: Callable[[str | None, Record], None] | None) -> None:
        self._told = watch

        def through(kind: str | None, new: Record) -> None:
            if watch is not None:
                self._event(watch, kind, new)

        self._store.told = through

    def _event(self, watch: Callable[[str | None, Record], None], kind: str | None, new: Record) -> None:
        wire = self._wire
        if not wire.on:
            watch(kind, new)
            return
        seen, fault = wire.met("watch", str(kind).lower(), f"{new.key.kind} {new.key.name}")
        if (held := self.held.get(new.key)) is not None:
            held.append((kind, new))
            return
        if fault is None or fault is wire.weather:
            watch(kind, new)
        else:
            wire.spawn(fault(Event(wire, seen, watch, self._told, kind, new, self._before.get(new.key))))
        self._before[new.key] = new


class Event(Passing):
    """An event of the watch on its way."""

    def __init__(
        self,
        wire: Wire,
        seen: Seen,
        watch: Callable[[str | None, Record], None],
        now: Any,
        kind: str | None,
        new: Record,
        before: Record | None,
    ) -> None:
        super().__init__(wire, seen, self._never)
        self._watch, self._now, self.kind, self.new, self.before = watch, now, kind, new, before

    async def hold(self, seconds: float) -> None:
        """This event and the later ones of the object are told so much later, in their order."""
        held = self.wire.world.port.held
        told = held[self.new.key] = [(self.kind, self.new)]
        await asyncio.sleep(seconds)
        del held[self.new.key]
        for kind, new in told:
            self.tell(new, kind)

    async def _never(self) -> None:
        raise AssertionError("an event has no answer")

    def tell(self, new: Record | None = None, kind: str | None = "") -> None:
        """Unless the process that watched is gone."""
        operator = self.wire.world.operator
        if operator is not None and operator.told == self._watch:
            self._watch(self.kind if kind == "" else kind, new or self.new)
