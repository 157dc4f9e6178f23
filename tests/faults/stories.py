"""The stories that are disturbed: how each begins, what happens in it, and when it has come to its end.

`before` brings the world to where the story begins, undisturbed, and says what is to be remembered of it; `part` is
what people and the world do then; `goal` is whether Fly's and the API server's records say that all is as it should be.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flysim.hosts import Size
from operator_world import COMMAND, World
from roost.kube.objects import condition

Was = dict[str, Any]
OPEN = {"machine": {"public": "Gateway"}}
RESTART = "2027-02-01T10:00:00Z"
IDLE = {"action": "Stop", "afterSeconds": 60, "allowDeaf": True}


@dataclass(frozen=True, slots=True)
class Story:
    """See the module. `seconds`: how long it may take, once nothing disturbs it any more.

    `member_every`: in a Fleet's story, each fault strikes one in so many of its members' own calls, for what becomes of
    those the stories of a single Agent tell in full; and every call of the Fleet's. `objects` are worked on at once.
    """

    name: str
    before: Callable[[World], Awaitable[Was]]
    part: Callable[[World, Was], Awaitable[None]]
    goal: Callable[[World, Was], bool]
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {"fly": {"org": "personal", "volumeRefreshSeconds": 20}}
    )
    seconds: float = 1500.0
    member_every: int = 1
    objects: int = 1


STORIES: dict[str, Story] = {}


def story(
    name: str, before: Callable[[World], Awaitable[Was]], goal: Callable[[World, Was], bool], **more: Any
) -> Callable[[Callable[[World, Was], Awaitable[None]]], None]:
    def known(part: Callable[[World, Was], Awaitable[None]]) -> None:
        STORIES[name] = Story(name, before, part, goal, **more)

    return known


# --- Beginnings ---------------------------------------------------------------------------------------------------


async def nothing(world: World) -> Was:
    return {}


def one(**blocks: Any) -> Callable[[World], Awaitable[Was]]:
    """One Agent that runs."""

    async def running(world: World) -> Was:
        await world.apply("ada", **blocks)
        await world.until_phase("ada", "Running")
        await world.settle(100)  # neither app nor machine is young any more
        return was(world)

    return running


def was(world: World) -> Was:
    return {"volume": world.volume("ada").id, "boots": world.inmates["ada"].boots, "machine": world.machine("ada").id}


# --- Ends ---------------------------------------------------------------------------------------------------------


def settled_as(world: World, phase: str, name: str = "ada") -> bool:
    """What the API server has on record is this phase, of the spec as it is now."""
    body = world.store.find("Agent", name)
    if body is None or "deletionTimestamp" in body["metadata"]:
        return False
    status = body.get("status", {})
    return (status.get("phase"), status.get("observedGeneration")) == (phase, body["metadata"]["generation"])


def lives(world: World, remembered: Was, state: str = "started", phase: str = "Running", name: str = "ada") -> bool:
    """One machine in this state on one volume, the status names both, and whatever else there is it names too.

    The volume is the one of before, or one that has taken its place for a reason that allows it.
    """
    machines, volumes = world.machines(name), world.volumes(name)
    if len(machines) != 1 or machines[0].volume not in volumes or machines[0].app.deleting:
        return False
    machine, status = machines[0], world.status(name)
    before = status.get("previousVolume", {}).get("id")
    strays = [volume for volume in volumes if volume is not machine.volume and volume.id != before]
    phases = [phase, "Degraded"] if strays and told_of(world, strays, name) else [] if strays else [phase]
    says = (status.get("machine", {}).get("id"), status.get("volume", {}).get("id"))
    there = any(settled_as(world, p, name) for p in phases) and says == (machine.id, machine.volume.id)
    return (
        there and machine.state == state and remembered.get("volume", machine.volume.id) in (machine.volume.id, before)
    )


def told_of(world: World, strays: list[Any], name: str) -> bool:
    """Volumes that a late call of a dead process has made when another was in use: kept, and said to people.

    That no machine was ever made on them only their maker knew.
    """
    reason, message = world.condition(name, "Ready")[1:]
    return reason == "DuplicateVolumes" and all(volume.id in message for volume in strays)


def runs(world: World, remembered: Was) -> bool:
    return lives(world, remembered)


def rests(world: World, remembered: Was, phase: str = "Stopped", state: str = "stopped") -> bool:
    """It does not run, and its volume is there. Its machine may be gone: nobody needs it."""
    alone = not world.machines("ada") and [v.id for v in world.volumes("ada")] == [remembered["volume"]]
    return lives(world, remembered, state, phase) or (alone and any(settled_as(world, p) for p in (phase, "Stopped")))


def stopped(world: World, remembered: Was) -> bool:
    return rests(world, remembered)


def gone(world: World, remembered: Was, name: str = "ada") -> bool:
    """Neither the Agent nor anything of it."""
    nothing_left = not world.machines(name) and not world.volumes(name)
    return world.store.find("Agent", name) is None and nothing_left and world.app_name(name) not in world.sim.world.apps


# --- Made ---------------------------------------------------------------------------------------------------------

WITH_A_SECRET = {"objects": 3}
"""An Agent, a Secret, and the core Secret that is looked at for it."""


@story("create", nothing, lambda w, r: lives(w, r) and bool(w.app("ada").ips), **WITH_A_SECRET)
async def _create(world: World, _: Was) -> None:
    world.secret("llm", key="sesame")
    await world.apply("ada", **OPEN, env=[{"name": "KEY", "valueFrom": {"name": "llm", "key": "key"}}])


async def _everyone(world: World) -> Was:
    await world.by_hand("POST", "/v1/apps", {"name": "everyone", "org_slug": "personal"})
    return {}


SHARED = {"fly": {"appStrategy": "Shared", "app": "everyone"}}


@story("create-shared", _everyone, runs)
async def _create_shared(world: World, _: Was) -> None:
    await world.apply("ada", **SHARED)


# --- Changed ------------------------------------------------------------------------------------------------------


@story("update", one(), lambda w, r: lives(w, r) and w.machine("ada").config.image.startswith("me/agent:2"))
async def _update(world: World, _: Was) -> None:
    await world.edit("ada", machine={"image": "me/agent:2"})


@story(
    "configure",
    one(),
    lambda w, r: lives(w, r) and in_step(w) and w.machine("ada").config.metadata.get("team") == "a",
    **WITH_A_SECRET,
)
async def _configure(world: World, _: Was) -> None:
    """A secret and a setting for the agent inside, and metadata for its machine."""
    world.secret("llm", key="sesame")
    await world.edit(
        "ada", env=[{"name": "KEY", "valueFrom": {"name": "llm", "key": "key"}}], machine={"metadata": {"team": "a"}}
    )


def in_step(world: World) -> bool:
    """The agent has applied what it should have: the bundle of the spec as it is now."""
    told = world.status("ada").get("bundle", {})
    return bool(told.get("desired")) and told["desired"] == told.get("applied")


@story("grow", one(volume={"sizeGb": 2}), lambda w, r: lives(w, r) and w.volumes("ada")[0].size_gb == 5)
async def _grow(world: World, _: Was) -> None:
    await world.edit("ada", volume={"sizeGb": 5})


@story("epoch", one(), lambda w, r: lives(w, r) and len(set(w.inmates["ada"].tokens)) == 2)
async def _epoch(world: World, _: Was) -> None:
    await world.edit("ada", identity={"tokenEpoch": 1})


@story("restart", one(), lambda w, r: lives(w, r) and w.inmates["ada"].restarted_at == RESTART)
async def _restart(world: World, _: Was) -> None:
    await world.edit("ada", restartedAt=RESTART)


# --- Stopped and started ------------------------------------------------------------------------------------------


@story("stop", one(), stopped)
async def _stop(world: World, _: Was) -> None:
    await world.edit("ada", desiredState="Stopped")


@story("suspend", one(machine={"memoryMb": 1024}), lambda w, r: rests(w, r, "Suspended", "suspended") or stopped(w, r))
async def _suspend(world: World, _: Was) -> None:
    await world.edit("ada", desiredState="Suspended")


@story("revoke", one(), lambda w, r: rests(w, r, "Revoked"))
async def _revoke(world: World, _: Was) -> None:
    await world.edit("ada", revoked=True)


async def _resting(world: World) -> Was:
    remembered = await one()(world)
    await world.edit("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped")
    await world.settle(20)
    return remembered


@story("start", _resting, runs)
async def _start(world: World, _: Was) -> None:
    await world.edit("ada", desiredState="Running")


async def _with_nothing_to_do(world: World) -> Was:
    remembered = await one(idle=IDLE)(world)
    inmate = world.inmates["ada"]
    inmate.sessions, inmate.connections = 0, 0
    return remembered


@story("idle", _with_nothing_to_do, lambda w, r: stopped(w, r) and idles(w))
async def _idle(world: World, _: Was) -> None:
    """It has nothing to do until it is put to rest."""


def idles(world: World) -> bool:
    return world.condition("ada", "Ready")[1] == "Idle"


async def _idling(world: World) -> Was:
    remembered = await _with_nothing_to_do(world)
    await world.until(lambda: [m.state for m in world.machines("ada")] == ["stopped"] and idles(world), 600)
    await world.settle(20)
    return remembered


@story("wake", _idling, runs)
async def _wake(world: World, _: Was) -> None:
    world.inmates["ada"].sessions = 1
    await world.annotate("ada", wake="1")


# --- What others do, and what breaks ------------------------------------------------------------------------------


@story("lost-machine", one(), runs)
async def _lost_machine(world: World, remembered: Was) -> None:
    await world.admin("DELETE", f"machines/{remembered['machine']}")


@story("ended", one(), runs)
async def _ended(world: World, remembered: Was) -> None:
    """Somebody stops the machine."""
    path = f"/v1/apps/{world.app_name('ada')}/machines/{remembered['machine']}/stop"
    await world.by_hand("POST", path, {})


@story("silent", one(), lambda w, r: lives(w, r) and w.inmates["ada"].boots > r["boots"])
async def _silent(world: World, remembered: Was) -> None:
    """The agent hangs, until its machine is restarted."""
    world.inmates["ada"].silent = True
    await world.until(lambda: world.inmates["ada"].boots > remembered["boots"], 1500)
    world.inmates["ada"].silent = False


async def _on_failure(world: World) -> Was:
    remembered = await one(placement={"relocate": "OnFailure"})(world)
    await world.admin("POST", f"volumes/{remembered['volume']}/snapshot")
    await world.settle(20)
    return remembered


def moved(world: World, remembered: Was) -> bool:
    """It runs on another volume, and the one of before is kept."""
    on = [m for m in world.machines("ada") if m.host.up and m.state == "started"]
    volumes = world.volumes("ada")
    if not settled_as(world, "Running") or len(on) != 1 or on[0].volume not in volumes:
        return False
    named = [world.status("ada").get(block, {}).get("id") for block in ("machine", "volume", "previousVolume")]
    return named == [on[0].id, on[0].volume.id, remembered["volume"]] and len(volumes) == 2


@story("host-lost", _on_failure, moved, seconds=2500.0)
async def _host_lost(world: World, _: Was) -> None:
    await world.admin("POST", f"hosts/{world.volume('ada').host.id}", {"status": "dead"})


async def _full(world: World) -> Was:
    world.sim.world.hosts.replace("iad", [Size(slots=1), Size(slots=1), Size(slots=1)])
    remembered = await one(placement={"relocate": "OnCapacity"})(world)
    await world.edit("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped")
    await world.admin("POST", f"hosts/{world.volume('ada').host.id}", {"slots": 0})
    await world.settle(20)
    return remembered


@story("host-full", _full, moved)
async def _host_full(world: World, _: Was) -> None:
    await world.edit("ada", desiredState="Running")


async def _lost_with_snapshot(world: World) -> Was:
    remembered = await one()(world)
    await world.admin("POST", f"volumes/{remembered['volume']}/snapshot")
    await world.settle(20)
    return remembered


def restored(world: World, remembered: Was) -> bool:
    return lives(world, {}) and world.volumes("ada")[0].id != remembered["volume"]


@story("lost-volume", _lost_with_snapshot, restored)
async def _lost_volume(world: World, remembered: Was) -> None:
    await world.admin("DELETE", f"volumes/{remembered['volume']}")


async def _other(world: World) -> Was:
    await world.apply("bob")
    await world.until_phase("bob", "Running")
    await world.settle(20)
    return {}


@story("restore-from", _other, runs)
async def _restore_from(world: World, _: Was) -> None:
    await world.apply("ada", volume={"restoreFrom": {"agent": "bob"}})


async def _orphaned(world: World) -> Was:
    remembered = await one()(world)
    await world.stop()
    world.store.wipe_status("ada")
    return remembered


@story("adopt", _orphaned, runs)
async def _adopt(world: World, _: Was) -> None:
    """A new process, and a status that somebody has wiped."""
    world.start()


# --- Gone ---------------------------------------------------------------------------------------------------------


@story("destroy", one(**OPEN), gone)
async def _destroy(world: World, _: Was) -> None:
    await world.delete("ada")


async def _one_of_everyone(world: World) -> Was:
    await _everyone(world)
    return await one(**SHARED)(world)


def gone_from_shared(world: World, _: Was) -> bool:
    app = world.sim.world.apps["everyone"]
    left = [v for v in app.volumes.values() if v.deleted_at is None]
    machines = [m for m in app.machines.values() if m.state != "destroyed"]
    return world.store.find("Agent", "ada") is None and not left and not machines and not app.deleting


@story("destroy-shared", _one_of_everyone, gone_from_shared)
async def _destroy_shared(world: World, _: Was) -> None:
    await world.delete("ada")


def retained(world: World, remembered: Was) -> bool:
    """The volume stays, in an app that says so."""
    app = world.sim.world.apps.get(world.app_name("ada"))
    kept = app is not None and [v.id for v in world.volumes("ada")] == [remembered["volume"]]
    marked = app is not None and "ROOST_RETAINED" in app.secrets
    return world.store.find("Agent", "ada") is None and kept and marked and not world.machines("ada")


@story("retain", one(deletionPolicy="Retain"), retained)
async def _retain(world: World, _: Was) -> None:
    await world.delete("ada")


@story("delete-in-create", nothing, gone)
async def _delete_in_create(world: World, _: Was) -> None:
    """Deleted when the call for its machine is on its way."""
    await world.apply("ada")
    await world.until(lambda: "create_machine" in world.calls(), 600)
    await world.delete("ada")


@story("re-create", one(), lambda w, r: lives(w, {}) and w.machines("ada")[0].id != r["machine"])
async def _re_create(world: World, _: Was) -> None:
    await world.delete("ada")
    await world.until_gone("ada", 1500)
    await world.apply("ada")


@story("fickle", one(), lambda w, r: lives(w, r) and w.machine("ada").config.guest.memory_mb == 2048)
async def _fickle(world: World, _: Was) -> None:
    """The spec changes while what it said before is being done."""
    await world.edit("ada", machine={"memoryMb": 1024})
    await world.settle(0.5)
    await world.edit("ada", desiredState="Stopped")
    await world.settle(0.5)
    await world.edit("ada", desiredState="Running", machine={"memoryMb": 2048})


# --- Fleets -------------------------------------------------------------------------------------------------------

MEMBERS = ("crew-0", "crew-1", "crew-2")
REVISIONS = "/apis/apps/v1/namespaces/team/controllerrevisions"
OF_MEMBERS = {"member_every": 24, "objects": 4, "seconds": 2500.0}


def a_fleet(replicas: int, image: str = "me/agent:1") -> dict[str, Any]:
    return {"replicas": replicas, "template": {"spec": {"runtime": COMMAND, "machine": {"image": image}}}}


def fleet_of(replicas: int) -> Callable[[World], Awaitable[Was]]:
    async def running(world: World) -> Was:
        world.store.apply("Fleet", "crew", a_fleet(replicas))
        await world.until(lambda: manned(world, replicas), 300)
        await world.settle(40)
        return {name: world.volume(name).id for name in MEMBERS[:replicas]}

    return running


def manned(world: World, replicas: int, image: str = "me/agent:1", remembered: Was | None = None) -> bool:
    """So many members live, no other is there, and the Fleet says so."""
    volumes = remembered or {}
    there = all(
        lives(world, {"volume": volumes[name]} if name in volumes else {}, name=name)
        and world.machine(name).config.image.startswith(image)
        for name in MEMBERS[:replicas]
    )
    return there and all(gone(world, {}, name) for name in MEMBERS[replicas:]) and fleet_says(world, replicas)


def fleet_says(world: World, replicas: int) -> bool:
    body = world.store.find("Fleet", "crew")
    if body is None or "deletionTimestamp" in body["metadata"]:
        return False
    status = body.get("status", {})
    counted = [status.get(key) for key in ("replicas", "readyReplicas", "updatedReplicas")]
    seen = status.get("observedGeneration") == body["metadata"]["generation"]
    return seen and counted == [replicas] * 3 and condition(status, "Ready").get("status") == "True"


@story("fleet-scale", fleet_of(0), lambda w, r: manned(w, 0), **OF_MEMBERS)
async def _fleet_scale(world: World, _: Was) -> None:
    """0, 3, 0."""
    world.store.apply("Fleet", "crew", a_fleet(3))
    await world.until(lambda: manned(world, 3), 2500)
    world.store.apply("Fleet", "crew", a_fleet(0))


@story("fleet-rollout", fleet_of(2), lambda w, r: manned(w, 2, "me/agent:2", r), **OF_MEMBERS)
async def _fleet_rollout(world: World, _: Was) -> None:
    world.store.apply("Fleet", "crew", a_fleet(2, "me/agent:2"))


def disbanded(world: World, _: Was) -> bool:
    """Neither the Fleet, nor its members, nor its revisions."""
    there = world.store.find("Fleet", "crew") is not None or world.store.of(REVISIONS)
    return not there and all(gone(world, {}, name) for name in MEMBERS)


@story("fleet-delete", fleet_of(2), disbanded, **OF_MEMBERS)
async def _fleet_delete(world: World, _: Was) -> None:
    world.store.delete("Fleet", "crew")
