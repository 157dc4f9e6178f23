"""Volumes: who holds them, for how long, and what is left of a deleted one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from flysim_client import Client, Make, Reply, eventually, on


async def freed(fly: Client, app: str, volume: dict[str, Any]) -> Reply:
    """The answer of the first delete that is not refused because a machine holds the volume."""
    async with asyncio.timeout(10):
        while (reply := await fly.call("DELETE", f"{app}/volumes/{volume['id']}")).status == 412:
            pass
    return reply


async def test_a_volume_is_made_changed_and_grown(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app, name="data_1", size_gb=2, snapshot_retention=7)
    assert volume["id"].startswith("vol_")
    assert len(volume["id"]) == 20
    assert (volume["state"], volume["attached_machine_id"], volume["snapshot_retention"]) == ("created", None, 7)
    path = f"{app}/volumes/{volume['id']}"
    assert (await fly.call("PUT", path, {"snapshot_retention": 9})).json["snapshot_retention"] == 9
    grown = await fly.call("PUT", f"{path}/extend", {"size_gb": 5})
    assert (grown.json["volume"]["size_gb"], grown.json["needs_restart"]) == (5, False)
    assert (await fly.call("PUT", f"{path}/extend", {"size_gb": 4})).status == 400
    assert (await fly.get(path))["size_gb"] == 5
    assert (await fly.get(app))["volume_count"] == 1


async def test_defaults(fly: Client) -> None:
    volume = (await fly.call("POST", f"{await fly.app()}/volumes", {"name": "data"})).json
    shown = {
        key: volume[key] for key in ("size_gb", "encrypted", "fstype", "snapshot_retention", "auto_backup_enabled")
    }
    assert shown == {
        "size_gb": 3,
        "encrypted": True,
        "fstype": "ext4",
        "snapshot_retention": 5,
        "auto_backup_enabled": True,
    }


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"name": ""}, 400),
        ({"name": "Not-Good"}, 400),
        ({"size_gb": 0}, 400),
        ({"size_gb": 501}, 400),
        ({"snapshot_retention": 61}, 400),
        ({"region": "eu"}, 400),
        ({"snapshot_id": "vs_1"}, 404),
        ({"source_volume_id": "vol_1"}, 404),
        ({"snapshot_id": "vs_1", "source_volume_id": "vol_1"}, 400),
        ({"compute": {"memory_mb": 300}}, 422),
    ],
)
async def test_bad_volumes_are_refused(fly: Client, fields: dict[str, Any], status: int) -> None:
    app = await fly.app()
    reply = await fly.call("POST", f"{app}/volumes", {"name": "data", "region": "ams"} | fields)
    assert reply.status == status
    assert await fly.get(f"{app}/volumes") == []


async def test_names_are_not_unique(fly: Client) -> None:
    app = await fly.app()
    ids = [(await fly.volume(app))["id"] for _ in range(2)]
    assert [row["id"] for row in await fly.get(f"{app}/volumes")] == ids


async def test_a_volume_is_bound_until_a_moment_after_its_machine_is_destroyed(make: Make) -> None:
    fly = await make(unbind=60)
    app = await fly.app()
    volume = await fly.volume(app)
    machine = await fly.machine(app, config=on(volume))
    identity = machine.rsplit("/", 1)[1]
    path = f"{app}/volumes/{volume['id']}"
    assert (await fly.get(path))["attached_machine_id"] == identity
    bound = (412, f"failed_precondition: volume is currently bound to machine: {identity}")
    assert (await fly.call("DELETE", path)).error == bound
    claimed = (412, f"failed_precondition: volume already claimed by machine {identity}")
    assert (await fly.create(app, config=on(volume))).error == claimed

    await fly.call("DELETE", machine, force="true")
    await fly.wait(machine, "destroyed")
    assert (await fly.call("DELETE", path)).error == bound
    assert (await fly.create(app, config=on(volume))).error == claimed


async def test_a_volume_is_free_in_the_end(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    await fly.call("DELETE", await fly.machine(app, config=on(volume)), force="true")
    assert (await freed(fly, app, volume)).json["state"] == "pending_destroy"


async def test_a_deleted_volume_stays_in_the_lists_but_carries_no_machine(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    path = f"{app}/volumes/{volume['id']}"
    assert (await fly.call("DELETE", path)).json["state"] == "pending_destroy"
    assert (await fly.call("DELETE", path)).json["state"] == "pending_destroy"
    assert len(await fly.happened("volume_destroyed")) == 1
    assert [row["state"] for row in await fly.get(f"{app}/volumes")] == ["pending_destroy"]
    assert (await fly.get(path))["state"] == "pending_destroy"
    assert (await fly.create(app, config=on(volume))).error == (400, "volume not found")
    assert (await fly.call("PUT", f"{path}/extend", {"size_gb": 9})).status == 404
    assert (await fly.get("/v1/orgs/personal/volumes"))["volumes"] == []
    listed = await fly.get("/v1/orgs/personal/volumes", include_deleted="true")
    assert [row["state"] for row in listed["volumes"]] == ["pending_destroy"]


async def test_a_deleted_volume_is_gone_in_the_end(make: Make) -> None:
    fly = await make(keep_volume=0)
    app = await fly.app()
    volume = await fly.volume(app)
    await fly.call("DELETE", f"{app}/volumes/{volume['id']}")
    assert await fly.get(f"{app}/volumes") == []
    assert (await fly.call("GET", f"{app}/volumes/{volume['id']}")).error == (404, "volume not found")


async def test_a_volume_draws_its_machine_into_its_region(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app, region="fra")
    elsewhere = await fly.create(app, region="ord,us", config=on(volume))
    assert elsewhere.status == 422
    assert await fly.get(f"{app}/machines") == []
    assert (await fly.create(app, region="ord,eu", config=on(volume))).json["region"] == "fra"


async def test_an_unnamed_region_is_that_of_the_volume(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app, region="syd")
    assert (await fly.create(app, config=on(volume))).json["region"] == "syd"


@pytest.mark.parametrize("identity", ["vol_0000000000000000", "of another app"])
async def test_a_machine_on_a_volume_that_is_not_there(fly: Client, identity: str) -> None:
    app = await fly.app()
    if identity == "of another app":
        identity = (await fly.volume(await fly.app("bob")))["id"]
    assert (await fly.create(app, config=on({"id": identity}))).error == (400, "volume not found")


async def test_an_update_keeps_the_volume_or_lets_it_go_but_takes_no_other(fly: Client) -> None:
    app = await fly.app()
    volume, other = await fly.volume(app), await fly.volume(app)
    machine = await fly.machine(app, config=on(volume))
    assert (await fly.call("POST", machine, {"config": {"image": "sleeper"} | on(other)})).status == 400
    kept = (await fly.call("POST", machine, {"config": {"image": "sleeper"} | on(volume)})).json
    assert kept["config"]["mounts"][0] | {"encrypted": True} == {
        "volume": volume["id"],
        "path": "/data",
        "name": "data",
        "size_gb": 1,
        "encrypted": True,
    }
    await fly.wait(machine, "started")
    assert (await fly.call("POST", machine, {"config": {"image": "sleeper"}})).status == 200
    await fly.wait(machine, "started")
    assert (await freed(fly, app, volume)).status == 200


async def test_data_outlives_the_machine_but_not_the_app(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    write = {"init": {"exec": ["/bin/sh", "-c", 'echo kept > "$DATA_DIR/file"']}}
    first = await fly.machine(app, "tells", until="stopped", config=on(volume) | write)
    folder = Path((await fly.inside(first))["volume_dir"])
    await fly.call("DELETE", first)
    await fly.wait(first, "destroyed")
    async with asyncio.timeout(10):
        while (made := await fly.create(app, "tells", config=on(volume))).status == 412:
            pass
    assert (folder / "file").read_text() == "kept\n"
    await fly.call("DELETE", f"{app}/machines/{made.json['id']}", force="true")
    await fly.call("DELETE", app, force="true")
    await eventually(lambda: not folder.exists())
