"""Copies of volumes: snapshots, restores and forks, and how full a volume is."""

from pathlib import Path
from typing import Any

import pytest
from flysim_client import Client, Make, eventually, on

from flysim import process

GB = 1 << 30


async def volume_with(fly: Client, app: str, text: str, **fields: Any) -> dict[str, Any]:
    """A volume on which a machine, gone by now, has written a file."""
    volume = await fly.volume(app, **fields)
    write = {"init": {"exec": ["/bin/sh", "-c", f'mkdir "$DATA_DIR/d"; echo {text} > "$DATA_DIR/d/file"; kill -9 $$']}}
    machine = await fly.machine(
        app, "tells", until="stopped", config=on(volume) | write | {"restart": {"policy": "no"}}
    )
    await fly.call("DELETE", machine)
    await fly.wait(machine, "destroyed")
    return volume


async def content(fly: Client, app: str, volume: dict[str, Any]) -> str:
    """The file on a volume, as a machine that mounts it finds it at its boot."""
    read = {"init": {"exec": ["/bin/sh", "-c", 'cat "$DATA_DIR/d/file"; echo ready; exec sleep 1000']}}
    return await fly.log(await fly.machine(app, "tells", config=on(volume) | read))


async def snapshot_of(fly: Client, volume: str) -> dict[str, Any]:
    """A finished snapshot of a volume (by its path)."""
    job = (await fly.call("POST", f"{volume}/snapshots")).json["Msg"]["backup"]

    async def finished() -> bool:
        return {row["id"]: row["status"] for row in await fly.get(f"{volume}/snapshots")}[job["graph_id"]] == "created"

    await eventually(finished)
    (row,) = [row for row in await fly.get(f"{volume}/snapshots") if row["id"] == job["graph_id"]]
    return dict(row)


async def test_a_snapshot_runs_for_a_while_and_only_one_at_a_time(make: Make) -> None:
    fly = await make(snapshot=60)
    app = await fly.app()
    path = f"{app}/volumes/{(await volume_with(fly, app, 'x'))['id']}"
    job = (await fly.call("POST", f"{path}/snapshots")).json["Msg"]["backup"]
    (row,) = await fly.get(f"{path}/snapshots")
    assert (row["id"], row["status"], row["size"]) == (job["graph_id"], "running", 0)
    assert row["created_at"] == "0001-01-01T00:00:00Z"

    again = await fly.call("POST", f"{path}/snapshots")
    assert again.status == 412
    assert again.json["error"].startswith("failed_precondition: snapshot is already scheduled at 20")


async def test_a_finished_snapshot_says_what_it_is(fly: Client) -> None:
    app = await fly.app()
    path = f"{app}/volumes/{(await volume_with(fly, app, 'x', snapshot_retention=7))['id']}"
    assert await fly.get(f"{path}/snapshots") == []
    row = await snapshot_of(fly, path)
    assert row["id"].startswith("vs_")
    assert (row["size"], row["volume_size"], row["retention_days"]) == (2, GB, 7)
    assert row["created_at"].startswith("20")
    assert (await fly.call("POST", f"{path}/snapshots")).status == 200


async def test_a_restored_volume_holds_what_the_old_one_held_then(fly: Client) -> None:
    app = await fly.app()
    volume = await volume_with(fly, app, "then", size_gb=2)
    path = f"{app}/volumes/{volume['id']}"
    snapshot = await snapshot_of(fly, path)
    folder = Path((await fly.inside(await fly.machine(app, config=on(volume))))["volume_dir"])
    (folder / "d/file").write_text("now\n")

    restored = await fly.volume(app, region="ord", size_gb=3, snapshot_id=snapshot["id"])

    assert (restored["state"], restored["region"], restored["size_gb"]) == ("restoring", "ord", 3)
    assert (await content(fly, app, restored)).startswith("then\n")

    async def done() -> bool:
        return bool((await fly.get(f"{app}/volumes/{restored['id']}"))["state"] == "created")

    await eventually(done)
    (told,) = [line for line in await fly.happened("volume_created") if line["volume"] == restored["id"]]
    assert told["detail"]["snapshot"] == snapshot["id"]


async def test_snapshots_outlive_their_volume(fly: Client) -> None:
    app = await fly.app()
    volume = await volume_with(fly, app, "kept")
    path = f"{app}/volumes/{volume['id']}"
    snapshot = await snapshot_of(fly, path)

    async def deleted() -> bool:
        return (await fly.call("DELETE", path)).status == 200

    await eventually(deleted)
    assert [row["id"] for row in await fly.get(f"{path}/snapshots")] == [snapshot["id"]]
    assert (await fly.call("POST", f"{path}/snapshots")).status == 404
    assert (await content(fly, app, await fly.volume(app, snapshot_id=snapshot["id"]))).startswith("kept\n")


async def test_a_restore_of_too_little_or_of_nothing_is_refused(make: Make) -> None:
    fly = await make(orgs=("personal", "other"), snapshot=60)
    app, stranger = await fly.app(), await fly.app("eve", "other")
    volume = await fly.volume(app, size_gb=11)
    taken = (await fly.sim("POST", f"volumes/{volume['id']}/snapshot"))["id"]
    running = (await fly.call("POST", f"{app}/volumes/{volume['id']}/snapshots")).json["Msg"]["backup"]["graph_id"]
    body = {"name": "data", "region": "ams", "size_gb": 10, "snapshot_id": taken}
    for where, change, error in (
        (app, {}, (422, "volume size (10 GiB) is smaller than the snapshot size (11 GiB)")),
        (app, {"snapshot_id": "vs_nothing"}, (404, "snapshot not found")),
        (stranger, {"size_gb": 11}, (404, "snapshot not found")),
        (app, {"size_gb": 11, "snapshot_id": running}, (422, f"snapshot {running} is not ready to restore from")),
    ):
        assert (await fly.call("POST", f"{where}/volumes", body | change)).error == error
    assert len(await fly.get(f"{app}/volumes")) == 1
    del body["size_gb"]
    assert (await fly.call("POST", f"{app}/volumes", body)).json["size_gb"] == 11, "the source's size when left out"


async def test_a_fork_is_a_copy_that_lives_its_own_life(make: Make) -> None:
    fly = await make(hydrate=60)
    app = await fly.app()
    volume = await volume_with(fly, app, "same", size_gb=2)
    fork = await fly.volume(app, region="fra", size_gb=2, source_volume_id=volume["id"])
    assert (fork["state"], fork["region"], fork["attached_machine_id"]) == ("hydrating", "fra", None)
    assert (await content(fly, app, fork)).startswith("same\n"), "mountable at once"
    folder = Path((await fly.sim("GET", "machines"))[0]["volume_dir"])
    (folder / "d/file").write_text("other\n")
    assert (folder.parent / volume["id"] / "d/file").read_text() == "same\n"


@pytest.mark.parametrize("manner", ["too small", "of nothing", "of a deleted one", "of another org"])
async def test_a_fork_that_cannot_be(make: Make, manner: str) -> None:
    fly = await make(orgs=("personal", "other"))
    app = await fly.app()
    volume = await fly.volume(app, size_gb=5)
    body = {"name": "data", "region": "ams", "size_gb": 5, "source_volume_id": volume["id"]}
    error = (404, "volume not found")
    match manner:
        case "too small":
            body["size_gb"] = 4
            error = (422, "volume size must be greater than or equal to its source's (5 GB)")
        case "of nothing":
            body["source_volume_id"] = "vol_0"
        case "of a deleted one":
            await fly.call("DELETE", f"{app}/volumes/{volume['id']}")
        case _:
            app = await fly.app("eve", "other")
    assert (await fly.call("POST", f"{app}/volumes", body)).error == error


async def test_a_copy_of_a_busy_volume_leaves_out_what_is_no_file(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    busy = (
        'cd "$DATA_DIR"; mkfifo pipe; ln -s nowhere link; echo x > file; echo ready;'
        " while :; do echo y > t.$$; rm t.$$; done"
    )
    machine = await fly.machine(app, "tells", config=on(volume) | {"init": {"exec": ["/bin/sh", "-c", busy]}})
    await fly.log(machine)
    fork = await fly.volume(app, source_volume_id=volume["id"])
    folder = Path((await fly.inside(machine))["volume_dir"]).parent / fork["id"]
    assert (folder / "file").read_text() == "x\n"
    assert (folder / "link").is_symlink()
    assert not (folder / "pipe").exists()


async def test_a_file_that_goes_away_while_it_is_copied_is_no_error(
    fly: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    folder = Path((await fly.inside(await fly.machine(app, config=on(volume))))["volume_dir"])
    (folder / "short").write_text("lived")

    def too_late(_: str, names: list[str]) -> list[str]:
        (folder / "short").unlink()
        return []

    monkeypatch.setattr(process, "_not_files", too_late)
    fork = await fly.volume(app, source_volume_id=volume["id"])
    assert (folder.parent / fork["id"]).is_dir()


async def test_fly_takes_snapshots_by_itself(fly: Client) -> None:
    app = await fly.app()
    volume = await volume_with(fly, app, "daily")
    taken = (await fly.sim("POST", f"volumes/{volume['id']}/snapshot"))["id"]
    rows = await fly.get(f"{app}/volumes/{volume['id']}/snapshots")
    assert [(row["id"], row["status"]) for row in rows] == [(taken, "created")]
    assert (await fly.raw("POST", "/_sim/volumes/vol_0/snapshot")).status == 404


# How full


async def test_a_volume_is_as_full_as_its_directory(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    folder = Path((await fly.inside(await fly.machine(app, config=on(volume))))["volume_dir"])
    (folder / "file").write_bytes(bytes(1 << 20))
    row = await fly.get(f"{app}/volumes/{volume['id']}")
    assert (row["bytes_used"], row["bytes_total"]) == (1 << 20, GB)
    assert row["blocks"] - row["blocks_free"] == (1 << 20) // row["block_size"]
    assert (await fly.get(f"{app}/volumes"))[0]["bytes_used"] == 1 << 20


async def test_a_volume_grows_when_its_machine_fills_it(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app, size_gb=10)
    path = f"{app}/volumes/{volume['id']}"
    growth = {"extend_threshold_percent": 80, "add_size_gb": 5, "size_gb_limit": 18}
    mounts = {"mounts": [{"volume": volume["id"], "path": "/data"} | growth]}
    machine = await fly.machine(app, config=mounts)

    async def size_at(gigabytes: float) -> int:
        await fly.sim("POST", f"volumes/{volume['id']}/usage", {"bytes": int(gigabytes * GB)})
        return int((await fly.get(path))["size_gb"])

    assert [await size_at(full) for full in (7.9, 8, 11.9, 12, 18)] == [10, 15, 15, 18, 18]
    assert [line["detail"]["size_gb"] for line in await fly.happened("volume_extended")] == [15, 18]
    assert (await fly.get(path))["bytes_used"] == 18 * GB
    await fly.call("POST", f"{machine}/stop", {})


async def test_a_volume_grows_only_while_its_machine_runs_and_asks_for_it(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app, size_gb=1)
    await fly.machine(app, config=on(volume))
    asked = await fly.sim("POST", f"volumes/{volume['id']}/usage", {"bytes": 5 * GB})
    assert asked == {"bytes": 5 * GB, "size_gb": 1}
    row = await fly.get(f"{app}/volumes/{volume['id']}")
    assert (row["bytes_used"], row["blocks_free"]) == (GB, 0), "no more than there is"


async def test_an_extension_may_want_a_restart(fly: Client) -> None:
    app = await fly.app()
    path = f"{app}/volumes/{(await fly.volume(app))['id']}"
    assert (await fly.call("PUT", f"{path}/extend", {"size_gb": 2})).json["needs_restart"] is False
    await fly.sim("POST", "volumes", {"extend_needs_restart": True})
    assert (await fly.call("PUT", f"{path}/extend", {"size_gb": 3})).json["needs_restart"] is True
