"""Hosts: where things stand, and what is seen and lost when one dies."""

from pathlib import Path
from typing import Any

import pytest
from flysim_client import Client, Make, alive, eventually, on

UNREACHABLE = (408, "deadline_exceeded: request to the host timed out")


async def host_of(fly: Client, thing: str) -> dict[str, Any]:
    """The host on which a machine (by its path) or a volume (by its id) stands."""
    name = thing.rsplit("/", 1)[-1]
    (host,) = [host for host in await fly.sim("GET", "hosts") if name in host["machines"] + host["volumes"]]
    return dict(host)


async def set_host(fly: Client, host: dict[str, Any], **change: Any) -> None:
    await fly.sim("POST", f"hosts/{host['id']}", change)


async def an_agent(fly: Client, image: str = "sleeper", **config: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A started machine on a volume, the volume, and their host."""
    app = await fly.app()
    volume = await fly.volume(app)
    machine = await fly.machine(app, image, config=on(volume) | {"metadata": {"owner": "ada"}} | config)
    return machine, volume, await host_of(fly, machine)


async def test_every_region_has_hosts_without_an_end(fly: Client) -> None:
    hosts = await fly.sim("GET", "hosts")
    assert len({host["region"] for host in hosts}) == 18
    assert {(host["status"], host["cpus"], host["memory_mb"], host["slots"]) for host in hosts} == {
        ("ok", None, None, None)
    }


async def test_a_machine_stands_where_its_volume_is(fly: Client) -> None:
    app = await fly.app()
    volumes = [await fly.volume(app) for _ in range(4)]
    for volume in volumes:
        machine = await fly.machine(app, config=on(volume), until="created")
        assert (await host_of(fly, machine))["id"] == (await host_of(fly, volume["id"]))["id"]
    assert len({(await host_of(fly, volume["id"]))["id"] for volume in volumes}) > 1, "they are spread"


async def test_a_region_s_hosts_are_replaced_only_while_they_are_empty(fly: Client) -> None:
    made = await fly.sim("POST", "hosts", {"region": "ams", "hosts": [{"cpus": 4, "memory_mb": 8192}, {"slots": 2}]})
    assert [(host["id"], host["cpus"], host["slots"]) for host in made] == [("ams-1", 4, None), ("ams-2", None, 2)]
    await fly.volume(await fly.app())
    refused = await fly.raw("POST", "/_sim/hosts", b'{"region": "ams", "hosts": []}')
    assert refused.status == 400
    assert "/_sim/hosts/ams-1" in refused.json["error"]
    for path, body in (
        ("hosts", b'{"region": "xyz", "hosts": []}'),
        ("hosts", b'{"region": "ams", "hosts": [{"cpus": -1}]}'),
        ("hosts/ams-1", b'{"status": "tired"}'),
    ):
        assert (await fly.raw("POST", f"/_sim/{path}", body)).status == 400
    assert (await fly.raw("POST", "/_sim/hosts/ams-9", b"{}")).status == 404


# Death


async def test_a_dead_host_takes_its_machines_with_it_and_nobody_is_told(fly: Client) -> None:
    machine, _, host = await an_agent(fly, "family")
    await fly.log(machine)
    pid, before = (await fly.inside(machine))["pid"], await fly.get(machine)
    since = len(await fly.ledger())

    await set_host(fly, host, status="dead")

    await eventually(lambda: not alive(pid))
    after = await fly.get(machine)
    assert (after["state"], after["host_status"]) == ("started", "unreachable")
    assert after["events"] == before["events"]
    assert after["updated_at"] == before["updated_at"]
    assert [line["event"] for line in await fly.ledger(since) if line["kind"] == "event"] == ["host_died"]


async def test_what_stands_on_a_dead_host_is_read_in_part(fly: Client) -> None:
    machine, volume, host = await an_agent(fly)
    app = machine.partition("/machines")[0]
    await set_host(fly, host, status="dead")
    for row in (await fly.get(machine), (await fly.get(f"{app}/machines"))[0]):
        assert "config" not in row
        assert row["incomplete_config"].keys() == {"guest", "image", "metadata"}
        assert row["incomplete_config"]["metadata"] == {"owner": "ada"}
        assert row["host_status"] == "unreachable"
    assert (await fly.get(f"{app}/volumes/{volume['id']}"))["host_status"] == "unreachable"
    assert (await fly.get("/v1/orgs/personal/volumes"))["volumes"][0]["host_status"] == "unreachable"
    assert (await fly.get("/v1/orgs/personal/machines"))["machines"][0]["config"]["metadata"] == {"owner": "ada"}


async def test_nothing_on_a_dead_host_can_be_changed(fly: Client) -> None:
    machine, volume, host = await an_agent(fly)
    app = machine.partition("/machines")[0]
    path = f"{app}/volumes/{volume['id']}"
    await set_host(fly, host, status="dead")
    for method, target, body in (
        ("POST", f"{machine}/stop", {}),
        ("POST", f"{machine}/start", None),
        ("POST", f"{machine}/restart", None),
        ("POST", machine, {"config": {"image": "sleeper"}}),
        ("PATCH", f"{machine}/metadata", {"metadata": {"a": "b"}}),
        ("POST", f"{machine}/lease", {"ttl": 5}),
        ("PUT", path, {"snapshot_retention": 9}),
        ("PUT", f"{path}/extend", {"size_gb": 9}),
        ("POST", f"{path}/snapshots", None),
    ):
        assert (await fly.call(method, target, body)).error == UNREACHABLE, target
    fork = {"name": "data", "region": "ams", "source_volume_id": volume["id"]}
    refused = (412, f"failed_precondition: volume {volume['id']} is on a host that is unreachable")
    assert (await fly.call("POST", f"{app}/volumes", fork)).error == refused
    assert len(await fly.get(f"{app}/volumes")) == 1


async def test_a_restore_needs_nothing_of_a_dead_host(fly: Client) -> None:
    machine, volume, host = await an_agent(fly)
    app = machine.partition("/machines")[0]
    snapshot = (await fly.sim("POST", f"volumes/{volume['id']}/snapshot"))["id"]
    await set_host(fly, host, status="dead")
    assert [row["id"] for row in await fly.get(f"{app}/volumes/{volume['id']}/snapshots")] == [snapshot]
    restored = await fly.volume(app, snapshot_id=snapshot)
    assert (await fly.create(app, config=on(restored))).status == 200


async def test_nothing_new_is_placed_on_a_dead_host(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    host = await host_of(fly, volume["id"])
    await set_host(fly, host, status="dead")
    refused = await fly.create(app, config=on(volume))
    assert (refused.status, refused.json["status"]) == (412, "volume_placement_capacity")
    for _ in range(4):
        assert (await host_of(fly, await fly.machine(app, region="ams", until="created")))["id"] != host["id"]
        assert (await host_of(fly, (await fly.volume(app))["id"]))["id"] != host["id"]


async def test_a_machine_deleted_on_a_dead_host_keeps_its_name_and_volume_until_the_host_is_back(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    machine = await fly.machine(app, name="ag-1", config=on(volume))
    host = await host_of(fly, machine)
    await set_host(fly, host, status="dead")

    assert (await fly.call("DELETE", machine)).status == 412, "it still reads started"
    assert (await fly.call("DELETE", machine, force="true")).json == {"ok": True}
    assert (await fly.get(machine))["state"] == "destroying"
    assert (await fly.create(app, name="ag-1")).status == 409
    assert (await fly.call("DELETE", f"{app}/volumes/{volume['id']}")).status == 412
    assert (await fly.call("GET", f"{machine}/wait", state="destroyed", timeout=1)).status == 408

    await set_host(fly, host, status="ok")
    await fly.wait(machine, "destroyed")
    assert len(await fly.happened("machine_started")) == 1, "it does not boot once more"
    assert (await fly.create(app, name="ag-1")).status == 200


async def test_a_host_that_returns_brings_its_old_machine_along(fly: Client) -> None:
    machine, volume, host = await an_agent(fly)
    pid = (await fly.inside(machine))["pid"]
    folder = Path((await fly.inside(machine))["volume_dir"])
    (folder / "kept").write_text("data")
    await set_host(fly, host, status="dead")
    await eventually(lambda: not alive(pid))
    last = (await fly.get(f"{machine}/events"))[0]["id"]

    await set_host(fly, host, status="ok")

    await fly.get(f"{machine}/wait", state="started", from_event_id=last)
    row = await fly.get(machine)
    assert (row["host_status"], row["config"]["mounts"][0]["volume"]) == ("ok", volume["id"])
    assert "incomplete_config" not in row
    assert [event["type"] for event in row["events"]] == ["start", "start", "launch"], "no exit was ever seen"
    assert alive((await fly.inside(machine))["pid"])
    assert (folder / "kept").read_text() == "data"


@pytest.mark.parametrize(("order", "state"), [("stop", "stopped"), ("suspend", "suspended")])
async def test_a_machine_that_did_not_run_does_not_run_afterwards(fly: Client, order: str, state: str) -> None:
    machine, _, host = await an_agent(fly)
    pid = (await fly.inside(machine))["pid"]
    await fly.call(
        "POST", f"{machine}/{'stop' if state == 'stopped' else 'suspend'}", {} if state == "stopped" else None
    )
    await fly.wait(machine, state)
    await set_host(fly, host, status="dead")
    await eventually(lambda: not alive(pid))
    await set_host(fly, host, status="ok")
    assert (await fly.get(machine))["state"] == state
    await eventually(lambda: started_again(fly, machine))
    assert (await fly.inside(machine))["pid"] != pid


async def started_again(fly: Client, machine: str) -> bool:
    return (await fly.call("POST", f"{machine}/start")).status == 200 and bool(await fly.wait(machine, "started"))


async def test_a_suspended_machine_resumed_right_after_its_host_came_back_boots(fly: Client) -> None:
    machine, _, host = await an_agent(fly)
    pid = (await fly.inside(machine))["pid"]
    await fly.call("POST", f"{machine}/suspend")
    await fly.wait(machine, "suspended")
    await set_host(fly, host, status="dead")
    await set_host(fly, host, status="ok")
    assert (await fly.call("POST", f"{machine}/start")).status == 200
    await eventually(lambda: comes_up(fly, machine, pid))


async def test_a_host_that_dies_while_its_machine_boots_or_stops(fly: Client, make: Make) -> None:
    slow = await make(prepare=60)
    machine = await slow.machine(await slow.app(), until="created")
    host = await host_of(slow, machine)
    await set_host(slow, host, status="dead")
    await set_host(slow, host, status="ok")
    await slow.wait(machine, "started")

    machine, _, host = await an_agent(fly, "stubborn", stop_config={"timeout": "60s"})
    await fly.log(machine)
    pid = (await fly.inside(machine))["pid"]
    await fly.call("POST", f"{machine}/stop", {})
    await set_host(fly, host, status="dead")
    assert (await fly.get(machine))["state"] == "stopping"
    await eventually(lambda: not alive(pid))
    await set_host(fly, host, status="ok")
    await fly.wait(machine, "stopped")


async def test_a_host_that_blinks_leaves_one_process(fly: Client) -> None:
    machine, _, host = await an_agent(fly, restart={"policy": "always"})
    first = (await fly.inside(machine))["pid"]
    for _ in range(5):
        await set_host(fly, host, status="dead")
        await set_host(fly, host, status="ok")
    await eventually(lambda: comes_up(fly, machine, first))
    pids = {line["detail"]["pid"] for line in await fly.happened("machine_started")}
    assert [alive(pid) for pid in pids].count(True) == 1
    assert await fly.happened("machine_exited") == []


async def comes_up(fly: Client, machine: str, before: int) -> bool:
    pid, state = (await fly.inside(machine))["pid"], (await fly.get(machine))["state"]
    return state == "started" and pid is not None and pid != before and alive(pid)


async def test_an_app_is_gone_only_when_its_dead_host_has_answered(fly: Client) -> None:
    machine, _, host = await an_agent(fly)
    await set_host(fly, host, status="dead")
    assert (await fly.call("DELETE", "/v1/apps/ada")).status == 202
    assert (await fly.get(machine))["state"] == "destroying"
    await set_host(fly, host, status="ok")

    async def gone() -> bool:
        return (await fly.call("GET", "/v1/apps/ada")).status == 404

    await eventually(gone)


# Losses behind our back


async def test_a_machine_destroyed_behind_our_back(fly: Client) -> None:
    machine, _, _ = await an_agent(fly)
    pid = (await fly.inside(machine))["pid"]
    await fly.sim("DELETE", f"machines/{machine.rsplit('/', 1)[1]}")
    await fly.wait(machine, "destroyed")
    assert not alive(pid)
    (told,) = await fly.happened("machine_destroyed")
    assert (told["request_id"], told["cause"]) == (None, "destroyed by hand")
    assert (await fly.raw("DELETE", f"/_sim/machines/{machine.rsplit('/', 1)[1]}")).status == 404


async def test_a_lost_volume_is_gone_with_its_data_and_its_machine_can_t_boot(fly: Client) -> None:
    machine, volume, _ = await an_agent(fly, restart={"policy": "always"})
    folder = Path((await fly.inside(machine))["volume_dir"])
    path = f"/v1/apps/ada/volumes/{volume['id']}"
    await fly.call("POST", f"{path}/snapshots")

    async def kept() -> bool:
        return [row["status"] for row in await fly.get(f"{path}/snapshots")] == ["created"]

    await eventually(kept)
    await fly.sim("DELETE", f"volumes/{volume['id']}")
    assert (await fly.call("GET", path)).error == (404, "volume not found")
    assert await fly.get("/v1/apps/ada/volumes") == []
    await eventually(lambda: not folder.exists())
    await fly.wait(machine, "failed")
    assert len(await fly.get(f"{path}/snapshots")) == 1, "snapshots lie elsewhere"
