"""Room: what a host, a region, an org and an account have of it, and in which words they say that it is used up.

The published refusals themselves are held to their texts in test_flysim_error_bodies.py.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from flysim_client import Client, on
from flysim_world import World, make_world

from flysim.hosts import Size

FULL_REGION = (422, "could not find a candidate host")
NO_CAPACITY = (409, "aborted: no capacity")
NO_CPUS = (409, "aborted: could not reserve resource for machine: insufficient CPUs available to fulfill request")
NO_MEMORY = (409, "aborted: could not reserve resource for machine: insufficient memory available to fulfill request")
BIG = {"cpu_kind": "shared", "cpus": 4, "memory_mb": 4096}


async def only(fly: Client, region: str, *sizes: dict[str, int]) -> None:
    """The region has these hosts and no others."""
    await fly.sim("POST", "hosts", {"region": region, "hosts": sizes})


async def test_a_full_region_hands_on_to_the_next_of_the_list(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams")
    await only(fly, "ord", {"slots": 1})
    assert [(await fly.create(app, region="ams,ord,fra")).json["region"] for _ in range(2)] == ["ord", "fra"]
    refused = await fly.create(app, region="ams,ord")
    assert (refused.error, refused.json["status"]) == (FULL_REGION, "insufficient_capacity")
    assert len(await fly.get(f"{app}/machines")) == 2


async def test_a_host_is_full_when_its_cpus_or_its_memory_are_taken(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams", {"cpus": 4, "memory_mb": 8192})
    first = await fly.machine(app, region="ams", config={"guest": BIG | {"cpus": 2, "memory_mb": 4096}})
    assert (await fly.create(app, region="ams", config={"guest": BIG})).error == FULL_REGION
    update = {"config": {"image": "sleeper", "guest": BIG | {"memory_mb": 8192}}}
    assert (await fly.call("POST", first, update)).status == 200, "its own share counts for nothing"
    (host,) = [host for host in await fly.sim("GET", "hosts") if host["region"] == "ams"]
    assert host["used"] == {"cpus": 4, "memory_mb": 8192, "slots": 1}


async def test_a_stopped_machine_gives_its_room_away_and_may_not_get_it_back(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams", {"memory_mb": 256})
    first = await fly.machine(app, region="ams")
    assert (await fly.create(app, region="ams")).error == FULL_REGION
    await fly.call("POST", f"{first}/stop", {})
    await fly.wait(first, "stopped")
    second = await fly.machine(app, region="ams")

    assert (await fly.call("POST", f"{first}/restart")).error == NO_MEMORY
    await eventually_refused(fly, first, NO_MEMORY)
    assert (await fly.call("POST", first, {"config": {"image": "sleeper"}})).error == NO_MEMORY
    changed = await fly.call("POST", first, {"config": {"image": "sleeper"}, "skip_launch": True})
    assert changed.status == 200, "what is not started needs no room"
    await fly.wait(first, "stopped")

    await fly.call("DELETE", second, force="true")
    await fly.wait(second, "destroyed")
    await fly.call("POST", first, {"config": {"image": "sleeper"}})
    await fly.wait(first, "started")


async def eventually_refused(fly: Client, machine: str, error: tuple[int, str]) -> None:
    """A machine that has just stopped is `still active` for a moment."""
    while (reply := await fly.call("POST", f"{machine}/start")).status == 412:
        pass
    assert reply.error == error


async def test_a_suspended_machine_keeps_its_room(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams", {"slots": 1})
    first = await fly.machine(app, region="ams")
    await fly.call("POST", f"{first}/suspend")
    await fly.wait(first, "suspended")
    assert (await fly.create(app, region="ams")).error == FULL_REGION
    assert (await fly.call("POST", f"{first}/start")).status == 200


async def test_a_volume_pins_a_host_that_may_fill_up_and_a_fork_lands_on_another(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams", {"slots": 1}, {"slots": 1})
    volume = await fly.volume(app)
    await fly.machine(app, region="ams")
    await fly.sim("POST", "hosts/ams-1", {"slots": 0})

    refused = await fly.create(app, config=on(volume))
    text = f"insufficient resources to create new machine with existing volume id '{volume['id']}'"
    assert (refused.error, refused.json["status"]) == ((412, text), "volume_placement_capacity")
    assert (await fly.get(f"{app}/volumes/{volume['id']}"))["attached_machine_id"] is None

    fork = {"name": "data", "region": "ams", "source_volume_id": volume["id"]}
    assert (await fly.call("POST", f"{app}/volumes", fork)).error == NO_CAPACITY
    await fly.sim("POST", "hosts/ams-2", {"slots": 2})
    moved = (await fly.call("POST", f"{app}/volumes", fork)).json
    assert (await fly.create(app, config=on(moved))).status == 200


async def test_a_fork_keeps_away_from_its_source_s_host(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams", {}, {})
    source = await fly.volume(app)
    for _ in range(2):
        fork = await fly.volume(app, source_volume_id=source["id"])
        (host,) = [host for host in await fly.sim("GET", "hosts") if fork["id"] in host["volumes"]]
        assert host["id"] == "ams-2", "though the other one is emptier in the end"
    await fly.sim("POST", "hosts/ams-2", {"status": "dead"})
    assert (await fly.volume(app, source_volume_id=source["id"]))["host_status"] == "ok"


async def test_a_volume_with_compute_goes_where_that_machine_fits(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams", {"cpus": 2}, {"cpus": 4}, {"memory_mb": 2048})
    volumes = [await fly.volume(app, compute=BIG) for _ in range(2)]
    (host,) = [host for host in await fly.sim("GET", "hosts") if host["id"] == "ams-2"]
    assert host["volumes"] == [volume["id"] for volume in volumes]
    assert (await fly.create(app, config=on(volumes[0]) | {"guest": BIG})).status == 200
    body = {"name": "data", "region": "ams", "compute": BIG}
    assert (await fly.call("POST", f"{app}/volumes", body)).error == NO_CAPACITY
    assert (await fly.call("POST", f"{app}/volumes", body | {"region": "ord"})).status == 200


async def test_a_refused_create_leaves_nothing_behind(fly: Client) -> None:
    app = await fly.app()
    await only(fly, "ams")
    await fly.create(app, name="ag-1", region="ams")
    assert await fly.happened("machine_created") == []
    assert (await fly.create(app, name="ag-1", region="ord")).status == 200


# Org and account


async def test_an_org_s_quota_is_counted_by_region(fly: Client) -> None:
    app = await fly.app()
    await fly.sim("POST", "quotas", {"org": "personal", "memory_mb": {"ams": 512}})
    one = await fly.machine(app, region="ams")
    await fly.create(app, region="ams")
    text = 'organization "personal" is using 768 MB of memory in ams which is over the allowed quota'
    assert (await fly.create(app, region="ams")).error == (403, f"{text}. please consider other regions")
    assert (await fly.create(app, region="ams,ord")).json["region"] == "ord"
    await fly.call("POST", f"{one}/stop", {})
    await fly.wait(one, "stopped")
    assert (await fly.create(app, region="ams")).status == 200
    await fly.sim("POST", "quotas", {"org": "personal", "memory_mb": {"ams": None}})
    assert (await fly.create(app, region="ams")).status == 200


async def test_a_quota_holds_for_a_machine_on_a_volume_too(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    await fly.sim("POST", "quotas", {"org": "personal", "memory_mb": {"ams": 0}})
    assert (await fly.create(app, config=on(volume))).status == 403


async def test_an_account_without_a_payment_method(fly: Client) -> None:
    told = await fly.sim("POST", "quotas", {"machines_per_app": 1})
    assert told == {"memory_mb": [], "machines_per_app": 1}
    app = await fly.app()
    first = await fly.machine(app)
    text = "To create more than 1 machine per app please add a payment method."
    assert (await fly.create(app)).error == (422, text)
    assert (await fly.create(await fly.app("bob"))).status == 200
    await fly.call("DELETE", first, force="true")
    await fly.wait(first, "destroyed")
    assert (await fly.create(app)).status == 200
    for body in (b'{"org": "abroad", "memory_mb": {"ams": 1}}', b'{"org": "personal", "memory_mb": {"xyz": 1}}'):
        assert (await fly.raw("POST", "/_sim/quotas", body)).status == 400


# From the start


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = await make_world(hosts={"iad": [Size(slots=1)]})
    yield world
    await world.sim.close()


@pytest.mark.looptime
async def test_a_simulator_can_begin_with_hosts_of_its_own(world: World) -> None:
    await world.machine(region="iad")
    body = {"config": {"image": "puppet"}, "region": "iad"}
    assert (await world.call("POST", "/v1/apps/ada/machines", body)).status == 422
    await world.machine(region="ams")


@pytest.mark.parametrize(
    ("guest", "status"),
    [
        ({"cpu_kind": "shared", "cpus": 2, "memory_mb": 512}, 200),
        ({"cpu_kind": "shared", "cpus": 2, "memory_mb": 4096}, 200),
        ({"cpu_kind": "shared", "cpus": 2, "memory_mb": 256}, 422),
        ({"cpu_kind": "shared", "cpus": 2, "memory_mb": 4352}, 422),
        ({"cpu_kind": "shared", "cpus": 2, "memory_mb": 600}, 422),
        ({"cpu_kind": "shared", "cpus": 3}, 422),
        ({"cpu_kind": "performance", "cpus": 1, "memory_mb": 2048}, 200),
        ({"cpu_kind": "performance", "cpus": 8, "memory_mb": 8192}, 422),
        ({"cpu_kind": "performance", "cpus": 1, "memory_mb": 16384}, 422),
    ],
)
async def test_memory_must_fit_the_cpus(fly: Client, guest: dict[str, Any], status: int) -> None:
    assert (await fly.create(await fly.app(), config={"guest": guest})).status == status
