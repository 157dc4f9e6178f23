"""What can go wrong at a call, by name: the fault's cause, then where it strikes.

`before`: nothing has happened at the other side. `after`: all has, and the answer is another or none. `late`: the
process has died, another works already, and then the request arrives; that is also what a leader does that was paused
for so long. `once` faults strike one call, storms every call for a while.

How late a request may arrive has a stated bound, `settings.fly.absenceSeconds` (90 s, counted from the start of the
process that works now): no later call is injected. One that comes later still may leave an empty app or a volume that
is told of, or take away what was made again under the same name.

`EXHAUSTIVE` holds one fault of each kind that the clients tell apart: 500, 502, 503, 504 and 408 are one kind to a
caller (`roost.fly.errors.classify`, `roost.kube.client`), and so are 401 and 403, a cut connection and an answer that
can't be read, or that Kubernetes doesn't give. The random part of the sweep draws from all of them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from faults.wire import GAVE_UP_SECONDS, Do, Event, Passing, Seen

FLY_WRITE, FLY_READ, FLY_LIST = "fly-write", "fly-read", "fly-list"
KUBE_WRITE, KUBE_READ, EVENT, WATCH = "kube-write", "kube-read", "event", "watch"
FLY = frozenset({FLY_WRITE, FLY_READ, FLY_LIST})
KUBE = frozenset({KUBE_WRITE, KUBE_READ, EVENT})
MAKES_ROOM = frozenset(
    {"create_machine", "create_volume", "update_machine", "start_machine", "extend_volume", "restart_machine"}
)
STORM_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `kinds` and `fits` say at which calls; `sweep`: at every call of every story."""

    name: str
    does: str
    kinds: frozenset[str]
    do: Do
    sweep: bool = True
    fits: Callable[[Seen], bool] = lambda _: True
    like: str = ""
    """The story that the fault is by itself: what it costs comes on top."""
    again: Callable[[Seen], bool] = lambda _: False
    """Where the sweep needs it not: the world is as a fault of the sweep at the call before leaves it."""

    def at(self, seen: Seen) -> bool:
        return seen.kind in self.kinds and self.fits(seen)


CATALOGUE: dict[str, Fault] = {}


def fault(
    name: str,
    kinds: frozenset[str] | set[str],
    *,
    sweep: bool = True,
    fits: Callable[[Seen], bool] = lambda _: True,
    like: str = "",
    again: Callable[[Seen], bool] = lambda _: False,
) -> Callable[[Do], Do]:
    def known(do: Do) -> Do:
        assert name not in CATALOGUE, name
        CATALOGUE[name] = Fault(name, (do.__doc__ or "").strip(), frozenset(kinds), do, sweep, fits, like, again)
        return do

    return known


def said(
    name: str,
    does: str,
    kinds: frozenset[str] | set[str],
    status: int,
    body: Any = "",
    *,
    after: bool = False,
    sweep: bool = True,
    fits: Callable[[Seen], bool] = lambda _: True,
    like: str = "",
    **headers: str,
) -> None:
    """An answer in place of the real one."""

    async def do(passing: Passing) -> Any:
        if after:
            await passing.go()
        return passing.refuse(status, body, {key.replace("_", "-"): value for key, value in headers.items()})

    do.__doc__ = does
    fault(name, kinds, sweep=sweep, fits=fits, like=like)(do)


def error(text: str, status: str = "") -> dict[str, str]:
    return {"error": text} | ({"status": status} if status else {})


# --- What Fly answers ---------------------------------------------------------------------------------------------

said("fly-500-before", "HTTP 500, nothing done", FLY, 500, error("internal"))
for code in (408, 502, 503, 504):
    said(f"fly-{code}-before", f"HTTP {code}, nothing done", FLY, code, error("upstream"), sweep=False)
for code in (408, 500, 504):
    said(f"fly-{code}-after", f"HTTP {code}, all done", {FLY_WRITE}, code, error("upstream"), after=True, sweep=False)
said("fly-429", "HTTP 429 with Retry-After", FLY, 429, error("rate limit exceeded"), Retry_After="7")
said("fly-429-bare", "HTTP 429 without", FLY, 429, error("rate limit exceeded"), sweep=False)
said("fly-409-lease", "another holds the machine's lease", {FLY_WRITE}, 409, {"message": "lease currently held by a@b"},
     fits=lambda s: "machine" in s.op and s.op != "create_machine")  # fmt: skip
said("fly-409-busy", "a change of others is under way", {FLY_WRITE}, 409,
     error("aborted: machine update failed due to concurrent update"), fits=lambda s: s.op != "create_app")  # fmt: skip
said("fly-412", "not yet", {FLY_WRITE}, 412, error("failed_precondition: machine still active, refusing to start"))
said("fly-422", "invalid", {FLY_WRITE}, 422, error("invalid_argument: no"))
said("fly-401", "the token is refused once", FLY, 401, error("Authenticate: token validation error"))
said("fly-403", "the token may not", FLY, 403, error("unauthorized"), sweep=False)
said("fly-404-young", "the app is not known everywhere yet", {FLY_WRITE, FLY_READ}, 404,
     error('Could not find App "x"'), fits=lambda s: s.young)  # fmt: skip
said("fly-404-machine", "the machine is not known everywhere yet", {FLY_READ}, 404, error("machine not found"),
     fits=lambda s: s.young and "machine" in s.op and s.op != "list_machines")  # fmt: skip
said("fly-full", "no room in the region", {FLY_WRITE}, 422, error("no capacity", "insufficient_capacity"),
     fits=lambda s: s.op in MAKES_ROOM, like="host-full")  # fmt: skip
said("fly-host-full", "no room on the volume's host", {FLY_WRITE}, 409,
     error("aborted: could not reserve resource for machine: insufficient memory available to fulfill request"),
     fits=lambda s: s.op in MAKES_ROOM, sweep=False, like="host-full")  # fmt: skip
said("fly-empty-body", "a success without a body, all done", FLY, 200, "", after=True, sweep=False)
said("fly-html", "a proxy's page, all done", {FLY_WRITE, FLY_READ, FLY_LIST}, 200, "<html>sorry</html>", after=True,
     sweep=False)  # fmt: skip
said("fly-truncated", "half an answer", {FLY_READ, FLY_LIST}, 200, '[{"id": "d8', after=True)


@fault("fly-cut-before", FLY, sweep=False)
async def _cut_before(passing: Passing) -> Any:
    """the connection is cut, nothing done"""
    return passing.cut()


@fault("fly-cut-after", {FLY_WRITE})
async def _cut_after(passing: Passing) -> Any:
    """the connection is cut, all done"""
    await passing.go()
    return passing.cut()


@fault("fly-silent-before", FLY)
async def _silent_before(passing: Passing) -> Any:
    """never answers, nothing done"""
    return await passing.hang()


@fault("fly-silent-after", {FLY_WRITE})
async def _silent_after(passing: Passing) -> Any:
    """never answers, all done"""
    await passing.go()
    return await passing.hang()


@fault("fly-slow", {FLY_WRITE})
async def _slow(passing: Passing) -> Any:
    """takes its effect 15 s after the operator has given up"""
    passing.later(GAVE_UP_SECONDS[passing.seen.kind] + 15.0)
    return await passing.hang()


def storm(name: str, does: str, at: str, kinds: frozenset[str], status: int, body: Any) -> None:
    async def blow(passing: Passing) -> Any:
        if passing.seen.kind in kinds:
            return passing.refuse(status, body)
        passing.wire.hits -= 1
        return await passing.go()

    async def do(passing: Passing) -> Any:
        passing.wire.blow(blow, STORM_SECONDS)
        return await blow(passing)

    do.__doc__ = does
    fault(name, {at})(do)


storm("fly-503-storm", "Fly answers 503 to everything for 30 s", FLY_WRITE, FLY, 503, error("unavailable"))
storm("fly-401-storm", "the token is refused for 30 s", FLY_WRITE, FLY, 401, error("token validation error"))
storm("kube-503-storm", "the API server answers 503 to everything for 30 s", KUBE_WRITE, KUBE, 503, "")


@fault(
    "list-empty", {FLY_LIST, FLY_READ}, fits=lambda s: s.kind == FLY_LIST or s.op in {"list_machines", "list_volumes"}
)
async def _list_empty(passing: Passing) -> Any:
    """a list that is empty by mistake"""
    lists = passing.wire.world.sim.world.lists
    lists.empty = True
    try:
        return await passing.go()
    finally:
        lists.empty = False


@fault("list-lag", {FLY_WRITE})
async def _list_lag(passing: Passing) -> Any:
    """from here on lists are 20 s old, for 100 s"""
    world, wire = passing.wire.world, passing.wire
    things = world.sim.world
    things.lists.set_lag(20.0, [*things.machines.values(), *things.volumes.values()])
    wire.busy(100.0)
    wire.loop.call_later(100.0, things.lists.set_lag, 0.0, [])
    return await passing.go()


# --- What Kubernetes answers --------------------------------------------------------------------------------------

for code, sweep in ((409, True), (422, True), (403, False), (503, True), (429, False), (500, False), (504, False)):
    said(f"kube-{code}", f"HTTP {code}, nothing done", {KUBE_WRITE}, code, sweep=sweep)
said("kube-504-after", "HTTP 504, all done", {KUBE_WRITE}, 504, after=True, sweep=False)
for code, sweep in ((503, True), (403, True), (404, False)):
    said(f"kube-read-{code}", f"HTTP {code} to a read", {KUBE_READ}, code, sweep=sweep)
said("kube-500-after", "HTTP 500, all done", {KUBE_WRITE}, 500, after=True, sweep=False)
said("event-503", "an Event is refused", {EVENT}, 503)


@fault("kube-404", {KUBE_WRITE})
async def _kube_404(passing: Passing) -> Any:
    """HTTP 404, nothing done: the CRD was away; 30 s later the watch lists all objects anew"""
    wire = passing.wire
    wire.busy(31.0)
    wire.loop.call_later(30.0, lambda: wire.spawn(wire.relist()))
    return passing.refuse(404)


@fault("kube-cut-after", {KUBE_WRITE})
async def _kube_cut_after(passing: Passing) -> Any:
    """the connection is cut, all done"""
    await passing.go()
    return passing.cut()


@fault("kube-silent-before", {KUBE_WRITE, KUBE_READ})
async def _kube_silent_before(passing: Passing) -> Any:
    """never answers, nothing done"""
    return await passing.hang()


@fault("kube-silent-after", {KUBE_WRITE}, sweep=False)
async def _kube_silent_after(passing: Passing) -> Any:
    """never answers, all done"""
    await passing.go()
    return await passing.hang()


@fault("kube-late", {KUBE_WRITE})
async def _kube_late(passing: Passing) -> Any:
    """the write arrives when the operator has given up"""
    passing.later(31.0)
    return await passing.hang()


def _object(passing: Passing) -> tuple[str, str] | None:
    """Kind and name of the Agent or Fleet that a call is about, if it is there."""
    kind = "Fleet" if "fleets" in passing.seen.op else "Agent"
    there = passing.wire.world.store.find(kind, passing.seen.about) is not None
    return (kind, passing.seen.about) if there else None


def _of_ours(seen: Seen) -> bool:
    return "agents" in seen.op or "fleets" in seen.op


@fault("kube-touched", {KUBE_WRITE}, fits=_of_ours)
async def _touched(passing: Passing) -> Any:
    """somebody else changes the object right before"""
    if (found := _object(passing)) is not None:
        passing.wire.world.store.annotate(found[1], {"somebody/else": "here"}, found[0])
    return await passing.go()


@fault("kube-wiped", {KUBE_WRITE}, fits=_of_ours)
async def _wiped(passing: Passing) -> Any:
    """somebody wipes the status right before"""
    if (found := _object(passing)) is not None:
        passing.wire.world.store.wipe_status(found[1], found[0])
    return await passing.go()


FOREIGN, FOREIGN_SECONDS = "somebody/else", 20.0


@fault("kube-finalizer", {KUBE_WRITE}, fits=lambda s: _of_ours(s) and "status" not in s.op)
async def _finalizer(passing: Passing) -> Any:
    """somebody adds a finalizer right before, and takes it away 20 s later; it must be there until then"""
    wire, store = passing.wire, passing.wire.world.store
    found = _object(passing)
    if found is not None and "deletionTimestamp" not in store.find(*found)["metadata"]:
        store.change(*found, {"finalizers": [*store.find(*found)["metadata"].get("finalizers", ()), FOREIGN]})

        def let_go() -> None:
            body = store.find(*found)
            held = list(body["metadata"].get("finalizers", ())) if body is not None else []
            if FOREIGN not in held:
                wire.broke.append(f"the finalizer of somebody else on {found[1]} is gone")
                return
            store.change(*found, {"finalizers": [each for each in held if each != FOREIGN] or None})

        wire.busy(FOREIGN_SECONDS + 1.0)
        wire.loop.call_later(FOREIGN_SECONDS, let_go)
    return await passing.go()


# --- The watch ----------------------------------------------------------------------------------------------------


async def _dropped(event: Event) -> None:
    """an event is lost; after 30 s all objects are listed anew"""
    event.wire.busy(91.0)
    await asyncio.sleep(30.0)
    await event.wire.relist()


async def _delayed(event: Event) -> None:
    """an event comes 5 s late, and the later ones of this object with it"""
    event.wire.busy(5.0)
    await event.hold(5.0)


async def _twice(event: Event) -> None:
    """an event is told twice"""
    event.tell()
    await asyncio.sleep(1.0)
    event.tell()


async def _stale(event: Event) -> None:
    """after the event, a list tells of the object as it was before"""
    event.tell()
    await asyncio.sleep(0.5)
    if event.before is not None and event.before.uid == event.new.uid:
        event.tell(event.before, None)


for _name, _do in (("dropped", _dropped), ("delayed", _delayed), ("twice", _twice), ("stale", _stale)):
    fault(f"watch-{_name}", {WATCH})(_do)  # type: ignore[arg-type]

# --- The process --------------------------------------------------------------------------------------------------

CALLS = FLY | {KUBE_WRITE, KUBE_READ}


@fault("kill-before", CALLS, again=lambda s: s.at_once)
async def _kill_before(passing: Passing) -> Any:
    """SIGKILL before the call is sent (or the answer of the call before is used)"""
    passing.wire.kill()
    await asyncio.Future()


@fault("kill-after", {FLY_WRITE, KUBE_WRITE})
async def _kill_after(passing: Passing) -> Any:
    """SIGKILL between effect and answer"""
    await passing.go()
    passing.wire.kill()
    await asyncio.Future()


def late(seconds: float) -> None:
    async def do(passing: Passing) -> Any:
        passing.later(seconds)
        passing.wire.kill()
        await asyncio.Future()

    do.__doc__ = f"SIGKILL after sending; the request arrives {seconds:g} s later"
    fault(f"late-{seconds:g}", {FLY_WRITE, KUBE_WRITE} if seconds < 10 else {FLY_WRITE})(do)


for _seconds in (5.0, 40.0, 80.0):
    late(_seconds)


@fault("term", CALLS)
async def _term(passing: Passing) -> Any:
    """SIGTERM while the call is on its way"""
    passing.wire.terminate()
    return await passing.go()


# --- Others -------------------------------------------------------------------------------------------------------


def _victim(passing: Passing) -> Any:
    """A machine of the story's Agents: of the one that the call is about, or of the first that has one."""
    world = passing.wire.world
    machines = [machine for name in world.inmates if name != "bob" for machine in world.machines(name)]
    about = [machine for machine in machines if passing.seen.about in (machine.id, machine.app.name)]
    return next(iter(about or machines), None)


@fault("destroyed", {FLY_WRITE, FLY_READ, KUBE_WRITE}, like="lost-machine")
async def _destroyed(passing: Passing) -> Any:
    """somebody destroys the machine right before"""
    if (machine := _victim(passing)) is not None:
        await passing.wire.world.admin("DELETE", f"machines/{machine.id}")
    return await passing.go()


async def _by_hand(passing: Passing, what: str) -> Any:
    machine = _victim(passing)
    if machine is not None and machine.state == "started":
        path = f"/v1/apps/{machine.app.name}/machines/{machine.id}/{what}"
        await passing.wire.world.by_hand("POST", path, {})
    return await passing.go()


@fault("stopped", {FLY_WRITE, FLY_READ}, like="ended")
async def _stopped(passing: Passing) -> Any:
    """somebody stops the machine right before"""
    return await _by_hand(passing, "stop")


@fault("restarted", {FLY_WRITE, FLY_READ}, sweep=False, like="ended")
async def _restarted(passing: Passing) -> Any:
    """somebody restarts the machine right before"""
    return await _by_hand(passing, "restart")


EXHAUSTIVE = [f for f in CATALOGUE.values() if f.sweep]


def swept(seen: Seen) -> list[Fault]:
    """Those that the sweep lets happen here: none where the clock alone has brought about the call once more."""
    return [] if seen.unstirred else [f for f in EXHAUSTIVE if f.at(seen) and not f.again(seen)]


def possible(seen: Seen) -> list[Fault]:
    """All that can happen here."""
    return [f for f in CATALOGUE.values() if f.at(seen)]
