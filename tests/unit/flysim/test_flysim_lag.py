"""Lists that lag, are empty or can't read a region; what takes its time; and snapshots that end. On virtual time."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from flysim_world import World, make_world, passing

from flysim.world import Timing

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

APP, ORG = "/v1/apps/ada", "/v1/orgs/personal"
DAY = 24 * 3600


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """One whose lists are ten seconds behind."""
    world = await make_world(timing=Timing(list_lag=10))
    yield world
    await world.sim.close()


@pytest.fixture
async def exact() -> AsyncIterator[World]:
    """One whose lists tell the truth."""
    world = await make_world()
    yield world
    await world.sim.close()


async def admin(world: World, method: str, path: str, body: Any = None) -> Any:
    content = json.dumps(body).encode() if body is not None else b""
    answer = await world.sim.handle(method, f"/_sim/{path}", {}, {}, content)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


async def listed(world: World, kind: str = "machines", **query: Any) -> tuple[list[str], list[str]]:
    """The states in the app's list and in the org's."""
    rows = await world.json("GET", f"{APP}/{kind}", **query)
    return [row["state"] for row in rows], [
        row["state"] for row in (await world.json("GET", f"{ORG}/{kind}", **query))[kind]
    ]


async def test_lists_tell_what_was_true_a_while_ago_and_a_get_what_is_true(world: World) -> None:
    machine = await world.machine()
    await world.json("GET", f"{machine}/wait")
    assert await listed(world) == ([], [])
    await passing(10)
    assert await listed(world) == (["started"], ["started"])

    await world.call("DELETE", machine, force="true")
    await world.json("GET", f"{machine}/wait", state="destroyed")
    assert (await world.json("GET", machine))["state"] == "destroyed"
    assert await listed(world) == (["started"], ["started"])
    (row,) = await world.json("GET", f"{APP}/machines")
    assert [event["type"] for event in row["events"]] == ["start", "launch"]
    await passing(10)
    assert await listed(world) == ([], [])
    assert await listed(world, include_deleted="true") == (["destroyed"], ["destroyed"])


async def test_a_machine_that_only_is_created_comes_into_the_lists_too() -> None:
    world = await make_world(timing=Timing(list_lag=10, prepare=60))
    await world.machine()
    await passing(9)
    assert await listed(world) == ([], [])
    await passing(1)
    assert await listed(world) == (["created"], ["created"])
    await world.sim.close()


async def test_filters_and_times_are_those_of_a_while_ago_too(world: World) -> None:
    machine = await world.machine(config={"image": "puppet", "metadata": {"k": "1"}})
    await passing(20)
    first = (await world.json("GET", f"{ORG}/machines"))["last_updated_at"]
    await world.call("PATCH", f"{machine}/metadata", {"metadata": {"k": "2"}})
    assert len((await listed(world, **{"metadata.k": "1"}))[0]) == 1
    assert (await world.json("GET", f"{ORG}/machines"))["last_updated_at"] == first
    await passing(10)
    assert await listed(world, **{"metadata.k": "1"}) == ([], [])
    assert (await world.json("GET", f"{ORG}/machines"))["last_updated_at"] > first


async def test_a_volume_lags_in_lists_as_well(world: World) -> None:
    volume = await world.json("POST", f"{APP}/volumes", {"name": "data"})
    path = f"{APP}/volumes/{volume['id']}"
    assert await listed(world, "volumes") == ([], [])
    await passing(10)
    await world.call("DELETE", path)
    assert (await world.json("GET", path))["state"] == "pending_destroy"
    assert await listed(world, "volumes") == (["created"], ["created"])
    await passing(10)
    assert await listed(world, "volumes") == (["pending_destroy"], [])


async def test_lag_can_be_switched_on_and_off(exact: World) -> None:
    machine = await exact.machine()
    await exact.json("GET", f"{machine}/wait")
    told = await admin(exact, "POST", "lists", {"lag": 5})
    assert told == {"lag": 5, "error_regions": [], "empty": False}
    await exact.call("POST", f"{machine}/stop", {})
    await exact.json("GET", f"{machine}/wait", state="stopped")
    assert await listed(exact) == (["started"], ["started"])
    await admin(exact, "POST", "lists", {"lag": 0})
    assert await listed(exact) == (["stopped"], ["stopped"])


async def test_an_org_s_lists_name_the_regions_that_they_leave_out(exact: World) -> None:
    for region in ("ams", "ord"):
        await exact.machine(region=region)
        await exact.json("POST", f"{APP}/volumes", {"name": "data", "region": region})
    await admin(exact, "POST", "lists", {"error_regions": ["ams"]})
    for kind in ("machines", "volumes"):
        page = await exact.json("GET", f"{ORG}/{kind}")
        assert ([row["region"] for row in page[kind]], page["error_regions"]) == (["ord"], ["ams"])
        assert len(await exact.json("GET", f"{APP}/{kind}")) == 2
    await admin(exact, "POST", "lists", {"error_regions": []})
    assert len((await exact.json("GET", f"{ORG}/machines"))["machines"]) == 2
    answer = await exact.sim.handle("POST", "/_sim/lists", {}, {}, b'{"error_regions": ["xyz"]}')
    assert answer.status == 400


async def test_lists_can_be_empty_though_nothing_is_gone(exact: World) -> None:
    machine = await exact.machine()
    await exact.json("POST", f"{APP}/volumes", {"name": "data"})
    await admin(exact, "POST", "lists", {"empty": True})
    assert await listed(exact) == ([], [])
    assert await listed(exact, "volumes") == ([], [])
    assert (await exact.json("GET", machine))["id"]
    assert (await exact.json("GET", APP))["machine_count"] == 1
    await admin(exact, "POST", "lists", {"empty": False})
    assert len((await listed(exact))[0]) == 1
    assert await admin(exact, "GET", "lists") == {"lag": 0.0, "error_regions": [], "empty": False}


async def test_a_young_app_is_not_found_then_not_ours_then_there() -> None:
    world = await make_world(timing=Timing(app_young=10))
    assert (await world.call("GET", APP)).status == 404
    await world.machine()
    await passing(5)
    assert (await world.call("GET", APP)).status == 401
    await passing(5)
    assert (await world.json("GET", APP))["machine_count"] == 1
    await world.sim.close()


async def test_a_fork_hydrates_and_a_snapshot_runs_for_so_long(exact: World) -> None:
    volume = await exact.json("POST", f"{APP}/volumes", {"name": "data"})
    path = f"{APP}/volumes/{volume['id']}"
    fork = await exact.json("POST", f"{APP}/volumes", {"name": "data", "source_volume_id": volume["id"]})
    await exact.json("POST", f"{path}/snapshots")
    states = []
    for _ in range(2):
        states.append(
            (
                (await exact.json("GET", f"{APP}/volumes/{fork['id']}"))["state"],
                (await exact.json("GET", f"{path}/snapshots"))[0]["status"],
            )
        )
        await passing(0.3)
    assert states == [("hydrating", "running"), ("created", "created")]


async def test_a_snapshot_ends_with_its_retention(exact: World) -> None:
    volume = await exact.json("POST", f"{APP}/volumes", {"name": "data", "snapshot_retention": 2})
    path = f"{APP}/volumes/{volume['id']}"
    snapshot = (await admin(exact, "POST", f"volumes/{volume['id']}/snapshot"))["id"]
    await exact.call("DELETE", path)
    counts = []
    for _ in range(2):
        counts.append(len(await exact.json("GET", f"{path}/snapshots")))
        await passing(DAY - 60)
    assert counts == [1, 1]
    await passing(120)
    assert (await exact.call("GET", f"{path}/snapshots")).status == 404
    body = {"name": "data", "snapshot_id": snapshot}
    assert (await exact.call("POST", f"{APP}/volumes", body)).status == 404


async def test_a_dead_host_s_machine_does_not_come_by_itself(exact: World) -> None:
    machine = await exact.machine(config={"image": "puppet", "init": {"cmd": ["slow"]}})
    await passing(1)
    (host,) = [host for host in await admin(exact, "GET", "hosts") if host["machines"]]
    await admin(exact, "POST", f"hosts/{host['id']}", {"status": "dead"})
    await passing(600)
    row = await exact.json("GET", machine)
    assert (row["state"], row["host_status"]) == ("starting", "unreachable")
    assert [event["type"] for event in row["events"]] == ["launch"]
    await admin(exact, "POST", f"hosts/{host['id']}", {"status": "ok"})
    await exact.json("GET", f"{machine}/wait")
