"""People and tools that change their mind, repeat themselves, or edit what is not theirs: on virtual time.

Each ends as the last word said, with one machine and one volume an Agent, and then in silence: no write, no call.
"""

import asyncio
import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from flysim import routes
from flysim.transport import SimTransport
from operator_world import COMMAND, LISTS, ROOTS, TOKEN, Inmate, Line, World, in_a_world, operator_world
from roost.fly.client import Fly
from roost.housekeeping.scan import Wanted, scan
from roost.kube.client import core_secret
from roost.kube.roots import SECRET_NAME
from store import NAMESPACE, path_of

pytestmark = pytest.mark.looptime
AGENTS = "/apis/roost.dev/v1alpha1/agents"


async def runs(world: World, name: str = "ada", **blocks: Any) -> None:
    """Given an Agent that runs, and has come to rest."""
    await world.apply(name, **blocks)
    await world.until_phase(name, "Running", 300)
    await world.settle(120)


async def is_silent(world: World, seconds: float = 900.0) -> None:
    calls, writes = world.mark(), len(world.store.writes)
    await world.settle(seconds)
    assert (world.store.writes[writes:], world.calls(since=calls)) == ([], [])


async def runs_alone(world: World, name: str = "ada", boots: int = 1) -> None:
    """Then it runs, in one machine on one volume, was started so often, and nothing moves any more."""
    await world.until_phase(name, "Running", 300)
    await world.settle(60)
    assert (len(world.machines(name)), len(world.volumes(name)), world.inmates[name].boots) == (1, 1, boots)
    await is_silent(world)


# --- The spec ----------------------------------------------------------------------------------------------------


@in_a_world
async def test_twenty_edits_within_seconds_end_where_the_last_says(world: World) -> None:
    await runs(world)
    before = world.mark()
    for edit in range(20):
        await world.edit("ada", machine={"memoryMb": 2048 if edit % 2 else 1280})
        await asyncio.sleep(0.2)
    await world.until_phase("ada", "Running", 300)
    await world.settle(60)
    updates = world.calls("ada", before).count("update_machine")
    assert world.config("ada")["guest"]["memory_mb"] == 2048
    assert updates <= 4, "an edit that comes while one is carried out is carried out with those that come after it"
    assert world.inmates["ada"].boots <= 1 + updates
    await is_silent(world)


@in_a_world
async def test_an_edit_that_is_taken_back_at_once_restarts_nothing_twice(world: World) -> None:
    await runs(world)
    await world.edit("ada", machine={"memoryMb": 2048})
    await world.edit("ada", machine={"memoryMb": 1024})
    await runs_alone(world)


@in_a_world
async def test_pause_and_resume_in_turns_touches_no_machine(world: World) -> None:
    await runs(world)
    before, writes = world.mark(), len(world.store.writes)
    for turn in range(20):
        await world.edit("ada", paused=turn % 2 == 0)
        await asyncio.sleep(0.5)
    await runs_alone(world)
    assert world.calls("ada", before) == []
    assert len(world.store.writes) - writes <= 20 + 1


@in_a_world
async def test_stop_and_start_in_turns_ends_as_the_last_says(world: World) -> None:
    await runs(world)
    for state in ["Stopped", "Running"] * 5:
        await world.edit("ada", desiredState=state)
        await asyncio.sleep(0.5)
    await world.until_phase("ada", "Running", 300)
    assert world.inmates["ada"].boots <= 1 + 4, "a start a wish would be one more"
    await runs_alone(world, boots=world.inmates["ada"].boots)


@in_a_world
async def test_an_invalid_spec_stops_nothing_and_heals_when_it_is_put_right(world: World) -> None:
    await runs(world)
    good = world.body("ada")["spec"]
    world.store.apply("Agent", "ada", good | {"machine": {"memoryMb": 7}})
    await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
    await is_silent(world)
    world.store.apply("Agent", "ada", good)
    await runs_alone(world)
    assert world.condition("ada", "Stalled")[0] == "False"


@in_a_world
async def test_a_re_apply_every_second_for_ten_minutes_is_free(world: World) -> None:
    await runs(world)
    spec, body = world.body("ada")["spec"], {"apiVersion": "roost.dev/v1alpha1", "kind": "Agent"}
    applied = body | {"metadata": {"name": "ada"}, "spec": spec}
    before, writes = world.mark(), len(world.store.writes)
    for _ in range(600):
        world.store.apply("Agent", "ada", spec)
        world.store.answer("apply", path_of("Agent", "ada"), applied, manager="argocd")
        await asyncio.sleep(1.0)
    assert (world.store.writes[writes:], world.calls(since=before)) == ([], [])


@in_a_world
async def test_what_others_note_on_an_agent_is_theirs(world: World) -> None:
    await runs(world)
    before, writes = world.mark(), len(world.store.writes)
    for second in range(120):
        world.store.annotate("ada", {"example.com/seen": str(second)})
        world.store.label("ada", {"example.com/round": str(second)})
        await asyncio.sleep(1.0)
    assert (world.store.writes[writes:], world.calls(since=before)) == ([], [])
    assert world.body("ada")["metadata"]["annotations"] == {"example.com/seen": "119"}


# --- Deletion ----------------------------------------------------------------------------------------------------


class Interrupted(Line):
    """The way to Fly, on which something happens at the n-th call, before or after it was made."""

    def __init__(self, world: World, at: int, where: str, what: Callable[[], None]) -> None:
        super().__init__(world.sim)
        self._at, self._where, self._what = at, where, what

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        route = routes.match(request.method, request.url.path)
        mine = route is not None and route[0] not in LISTS
        self._at -= mine
        if mine and self._at == 0 and self._where == "before":
            self._what()
        answer = await super().handle_async_request(request)
        if mine and self._at == 0 and self._where == "after":
            self._at = -1
            self._what()
        return answer


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("call", range(1, 8))
async def test_a_deletion_at_any_call_of_the_creation_leaves_nothing(call: int, where: str) -> None:
    async with operator_world(started=False) as world:
        asked: list[str] = []

        def delete() -> None:
            world.store.delete("Agent", "ada")
            asked.append("ada")

        world.line = Interrupted(world, call, where, delete)
        world.start()
        await world.apply("ada", machine={"public": "Gateway"})
        await world.until(lambda: asked, 60)
        await world.until_gone("ada")
        assert (world.machines("ada"), world.volumes("ada")) == ([], [])
        assert world.app_name("ada") not in world.sim.world.apps
        assert world.calls("ada").count("create_machine") <= 1
        await is_silent(world)


@in_a_world
async def test_deleted_and_made_again_at_once_it_is_a_new_one(world: World) -> None:
    await runs(world)
    first, volume = world.machine("ada").id, world.volume("ada").id
    await world.delete("ada")
    await world.until_gone("ada")
    await world.apply("ada")
    await runs_alone(world, boots=2)
    assert world.machine("ada").id != first
    assert world.volume("ada").id != volume


@in_a_world
async def test_replaced_by_force_it_keeps_its_machine_and_its_volume(world: World) -> None:
    """`kubectl replace --force` with the finalizer torn off: another uid under the same name, in the same moment."""
    await runs(world)
    first, volume, uid = world.machine("ada").id, world.volume("ada").id, world.body("ada")["metadata"]["uid"]
    world.store.delete("Agent", "ada", force=True)
    await world.apply("ada")
    await world.until_phase("ada", "Running", 300)
    assert world.body("ada")["metadata"]["uid"] != uid
    await world.settle(60)
    assert [m.id for m in world.machines("ada")] == [first]
    assert [v.id for v in world.volumes("ada")] == [volume]
    await is_silent(world)


# --- Finalizers --------------------------------------------------------------------------------------------------


@in_a_world
async def test_a_finalizer_that_was_torn_off_is_put_back(world: World) -> None:
    await runs(world)
    before, since = world.mark(), world.clock.now()
    world.store.change("Agent", "ada", {"finalizers": None})
    await world.until(lambda: world.body("ada")["metadata"].get("finalizers"), 10)
    await runs_alone(world)
    assert (world.writes("ada", since), world.calls("ada", before)) == (["finalizer"], [])


@in_a_world
async def test_a_finalizer_of_somebody_else_is_left_alone(world: World) -> None:
    await runs(world)
    ours = world.body("ada")["metadata"]["finalizers"]
    world.store.change("Agent", "ada", {"finalizers": [*ours, "example.com/theirs"]})
    await is_silent(world)
    await world.delete("ada")
    await world.until(lambda: world.body("ada")["metadata"]["finalizers"] == ["example.com/theirs"], 300)
    assert (world.machines("ada"), world.volumes("ada")) == ([], [])
    await is_silent(world)
    world.store.change("Agent", "ada", {"finalizers": None})
    await is_silent(world)
    assert world.store.find("Agent", "ada") is None


async def test_what_a_torn_off_finalizer_leaves_is_found_by_roost_orphans() -> None:
    async with operator_world(started=False) as world:
        store = world.store
        world.cluster = store.answer("create", "/api/v1/namespaces", {"metadata": {"name": "kube-system"}})["metadata"][
            "uid"
        ]
        store.answer("create", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        roots = {"ownerId": ROOTS.owner_id.encode(), "identity": ROOTS.identity, "token": ROOTS.token}
        data = {k: base64.b64encode(v).decode() for k, v in (roots | {"fingerprint": ROOTS.fingerprint}).items()}
        home = core_secret(world.settings.namespace, "").removesuffix("/")
        store.answer("create", home, {"metadata": {"name": SECRET_NAME}, "data": data})
        world.start()
        await runs(world)
        await runs(world, "bob")
        left = {world.app_name("ada"), world.machine("ada").id, world.volume("ada").id}
        store.delete("Agent", "ada", force=True)
        await is_silent(world)

        async def token() -> str:
            return TOKEN

        transport = SimTransport(world.sim)
        async with Fly(
            token, lambda *_: None, base_url="http://fly", clock=world.loop.time, transport=transport
        ) as fly:
            now = datetime.fromtimestamp(world.clock.now(), UTC)
            report = await scan(store.kube, {"default": fly}, world.settings, Wanted(grace=timedelta()), now)
        assert {finding.id for finding in report.left} == left
        assert report.problems == ()


# --- The status --------------------------------------------------------------------------------------------------


@in_a_world
async def test_a_wiped_status_is_restored_by_one_write_and_nothing_is_done_again(world: World) -> None:
    await runs(world, "bob")
    await runs(world, volume={"restoreFrom": {"agent": "bob"}})
    told, before, since = world.status("ada"), world.mark(), world.clock.now()
    world.store.wipe_status("ada")
    await world.until_phase("ada", "Running", 60)
    await runs_alone(world)
    assert world.writes("ada", since) == ["status"]
    assert {c for c in world.calls("ada", before) if not c.startswith(("get_", "list_"))} <= {"create_app"}
    assert {k: v for k, v in world.status("ada").items() if k in ("app", "machine", "volume", "did")} == {
        k: v for k, v in told.items() if k in ("app", "machine", "volume", "did")
    }


@pytest.mark.parametrize(
    "lie",
    [
        {"phase": "Failed"},
        {"observedGeneration": 99},
        {"conditions": None},
        {"machine": None},
        {"volume": None},
        {"machine": {"id": "00000000000000"}},
        {"nextAction": "dance"},
    ],
    ids=str,
)
async def test_a_status_that_was_edited_by_hand_is_put_right_and_moves_nothing(lie: dict[str, Any]) -> None:
    async with operator_world() as world:
        await runs(world)
        told, machine, volume = world.status("ada"), world.machine("ada").id, world.volume("ada").id
        writes = len(world.store.writes)
        world.store.edit_status("ada", lie)
        await world.until(lambda: without_times(world.status("ada")) == without_times(told), 1200, about=["ada"])
        assert len(world.store.writes) - writes <= 2
        await is_silent(world)
        assert [m.id for m in world.machines("ada")] == [machine]
        assert [v.id for v in world.volumes("ada")] == [volume]


@pytest.mark.parametrize("lie", [{"volume": {"id": "vol_0000000000000000"}}, {"app": {"name": "another"}}], ids=str)
async def test_a_lie_about_where_the_data_is_destroys_nothing_and_a_wiped_status_heals_it(lie: dict[str, Any]) -> None:
    """The status is what remembers them: what is not there is taken for lost, and a person is asked before more is."""
    async with operator_world() as world:
        await runs(world)
        app, machine, volume = world.app("ada"), world.machine("ada").id, world.volume("ada").id
        world.store.edit_status("ada", lie)
        await world.until(lambda: world.condition("ada", "Stalled")[1] == "VolumeLost", 1200, about=["ada"])
        await world.settle(900)
        assert app.machines[machine].state == "started"
        assert app.volumes[volume].deleted_at is None
        world.store.wipe_status("ada")
        await runs_alone(world)
        assert (world.machine("ada").id, world.volume("ada").id) == (machine, volume)


def without_times(status: dict[str, Any]) -> dict[str, Any]:
    """A status, but for the moments at which its conditions flipped."""
    conditions = [condition | {"lastTransitionTime": ""} for condition in status.get("conditions", ())]
    return status | {"conditions": conditions}


# --- Fleets ------------------------------------------------------------------------------------------------------


def crew(world: World, replicas: int, **spec: Any) -> None:
    for ordinal in range(replicas):
        world.inmates.setdefault(f"crew-{ordinal}", Inmate())
    template = {"spec": {"runtime": COMMAND} | spec}
    world.store.apply("Fleet", "crew", {"replicas": replicas, "template": template})


async def crew_is_ready(world: World, count: int) -> None:
    def ready() -> bool:
        body = world.store.find("Fleet", "crew") or {}
        status = body.get("status", {})
        seen = status.get("observedGeneration") == body["metadata"]["generation"]
        return seen and (status.get("replicas"), status.get("readyReplicas")) == (count, count)

    await world.until(ready, 900)


@in_a_world
async def test_a_fleet_scaled_away_and_back_at_once_ends_whole(world: World) -> None:
    crew(world, 3)
    await crew_is_ready(world, 3)
    await world.settle(120)
    for replicas in (0, 3, 0, 3):
        crew(world, replicas)
        await asyncio.sleep(0.5)
    await crew_is_ready(world, 3)
    await world.settle(120)
    names = [body["metadata"]["name"] for body in world.store.of(AGENTS)]
    assert sorted(names) == ["crew-0", "crew-1", "crew-2"]
    assert [len(world.machines(name)) for name in names] == [1, 1, 1]
    assert [len(world.volumes(name)) for name in names] == [1, 1, 1]
    await is_silent(world)


@in_a_world
async def test_a_fleet_of_a_template_that_flaps_ends_at_the_last(world: World) -> None:
    crew(world, 2)
    await crew_is_ready(world, 2)
    for turn in range(10):
        crew(world, 2, machine={"memoryMb": 2048 if turn % 2 else 1280})
        await asyncio.sleep(0.2)
    await crew_is_ready(world, 2)
    await world.until(lambda: all(world.config(f"crew-{n}")["guest"]["memory_mb"] == 2048 for n in (0, 1)), 600)
    await world.settle(120)
    assert all(world.inmates[f"crew-{n}"].boots <= 4 for n in (0, 1))
    await is_silent(world)


@in_a_world
async def test_a_fleet_whose_finalizer_is_torn_off_takes_its_members_along_by_the_garbage_collector(
    world: World,
) -> None:
    crew(world, 2)
    await crew_is_ready(world, 2)
    world.store.delete("Fleet", "crew", force=True)
    await world.until(lambda: not world.store.of(AGENTS), 600)
    assert world.store.of("/apis/apps/v1/controllerrevisions") == []
    assert not [m for app in world.sim.world.apps.values() for m in app.machines.values() if m.state != "destroyed"]
    await is_silent(world)


@in_a_world
async def test_a_fleet_deleted_with_orphan_leaves_its_members_running(world: World) -> None:
    crew(world, 2)
    await crew_is_ready(world, 2)
    world.store.delete("Fleet", "crew", orphan=True)
    await world.until(lambda: world.store.find("Fleet", "crew") is None, 60)
    await world.settle(120)
    assert [len(world.machines(f"crew-{n}")) for n in (0, 1)] == [1, 1]
    assert all("ownerReferences" not in body["metadata"] for body in world.store.of(AGENTS))
    await is_silent(world)


# --- Secrets -----------------------------------------------------------------------------------------------------

KEYED = [{"name": "KEY", "valueFrom": {"name": "keys", "key": "api"}}]


@in_a_world
async def test_a_secret_that_flaps_ends_at_its_last_value(world: World) -> None:
    world.secret("keys", api="0")
    await runs(world, env=KEYED)
    before, writes = world.mark(), len(world.store.writes)
    for turn in range(20):
        world.store.put_core_secret(NAMESPACE, "keys", {"api": str(turn)})
        await asyncio.sleep(1.0)
    await world.settle(300)
    bundle = world.status("ada")["bundle"]
    assert bundle["applied"] == bundle["desired"]
    assert world.calls("ada", before) == []
    assert len(world.store.writes) - writes <= 12
    await runs_alone(world)


@in_a_world
async def test_a_secret_that_goes_and_comes_back_stops_nobody_who_runs(world: World) -> None:
    world.secret("keys", api="0")
    await runs(world, env=KEYED)
    before, bundle = world.mark(), world.status("ada")["bundle"]
    world.store.drop_core_secret(NAMESPACE, "keys")
    await world.settle(600)
    assert len(world.machines("ada")) == 1
    await is_silent(world)
    world.store.put_core_secret(NAMESPACE, "keys", {"api": "0"})
    await world.settle(300)
    await runs_alone(world)
    assert world.calls("ada", before) == []
    assert world.status("ada")["bundle"] == bundle
    assert world.condition("ada", "SecretsResolved")[0] == "True"


# --- The watch ---------------------------------------------------------------------------------------------------


@in_a_world
async def test_being_told_everything_again_is_free(world: World) -> None:
    await runs(world)
    await world.edit("ada", paused=True)
    await world.settle(60)
    await world.edit("ada", paused=False)
    await world.settle(60)
    before, writes = world.mark(), len(world.store.writes)
    for turn in range(20):
        world.store.relist()
        world.store.relist(as_of=world.store.now() - 90 - turn)
        await asyncio.sleep(5)
    assert (world.store.writes[writes:], world.calls(since=before)) == ([], [])


@in_a_world
async def test_news_twice_late_and_in_another_order_end_as_the_last_says(world: World) -> None:
    await runs(world)
    told = 0

    def deliver(_kind: str, _new: Any) -> tuple[float, ...]:
        nonlocal told
        told += 1
        return ((0.02,), (3.0,), (0.02, 4.0))[told % 3]

    world.store.deliver = deliver
    for turn in range(10):
        await world.edit("ada", machine={"memoryMb": 2048 if turn % 2 else 1280})
        await asyncio.sleep(0.3)
    await world.settle(10)
    await world.until_phase("ada", "Running", 300)
    await world.settle(60)
    assert world.config("ada")["guest"]["memory_mb"] == 2048
    assert world.inmates["ada"].boots <= 6
    await is_silent(world)
