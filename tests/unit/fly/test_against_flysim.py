"""Every call of the client against the simulator: two readings of the same documents, made to agree."""

import asyncio
import json
import random
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.fly import errors, types
from roost.fly import refresher as refresher_module
from roost.fly.client import Fly
from roost.fly.refresher import Refresher, State, Sweep, VolumeSweep

TOKEN = "fm2_test"
SLEEPER = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); [signal.pause() for _ in iter(int, 1)]"
)
CONFIG: dict[str, Any] = {
    "image": "test/sleeper:1",
    "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
    "metadata": {"roost_name": "ada"},
}


@pytest.fixture
async def flysim(tmp_path: Path) -> AsyncIterator[str]:
    """A simulator in a process of its own; its address."""
    images = tmp_path / "images.json"
    images.write_text(
        json.dumps({"images": {"test/sleeper:1": {"command": [sys.executable, "-S", "-c", SLEEPER], "env": {}}}})
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flysim.cli", "serve", "--listen", "127.0.0.1:0", "--token", TOKEN),
        *(
            "--state",
            str(tmp_path / "state"),
            "--images",
            str(images),
            "--org",
            "personal",
            "--prepare-seconds",
            "0.05",
        ),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert line.startswith(b"flysim: listening on "), line
        yield line.decode().split()[-1]
    finally:
        process.terminate()
        await process.wait()


class Called(set[str]):
    def __call__(self, op: str, outcome: str, seconds: float, throttled: float) -> None:
        self.add(op)


async def token() -> str:
    return TOKEN


def fault(flysim: str, **order: Any) -> None:
    request = urllib.request.Request(
        f"{flysim}/_sim/faults", json.dumps(order).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=5).close()


async def settled(fly: Fly, machine: str, state: str) -> types.Machine:
    """Looks until the machine is in a state; the client's own rate limit is the pause."""
    async with asyncio.timeout(20):
        while (seen := await fly.get_machine("ag-1", machine)).state != state:
            pass
        return seen


async def test_a_life_from_the_first_call_to_the_last(flysim: str) -> None:
    called = Called()
    async with Fly(token, called, base_url=flysim) as fly:
        app = await fly.create_app("ag-1", "personal", "net-1")
        assert (app.name, app.org, app.network) == ("ag-1", "personal", "net-1")
        with pytest.raises(errors.NameTaken):
            await fly.create_app("ag-1", "personal", None)
        seen = await fly.get_app("ag-1")
        assert (seen.name, seen.org, seen.network) == ("ag-1", "personal", "net-1")

        secrets = await fly.set_secrets("ag-1", {"AS_HEARTBEAT_TOKEN": "x"})
        assert await fly.set_secrets("ag-1", {"OTHER": "y"}) > secrets

        assert await fly.list_secret_names("ag-1") == ["AS_HEARTBEAT_TOKEN", "OTHER"]
        for kind in ("v6", "shared_v4"):
            await fly.assign_ip("ag-1", kind)
            await fly.assign_ip("ag-1", kind)
        assert sorted(ip.kind for ip in await fly.list_ips("ag-1")) == ["shared_v4", "v6"]
        room = await fly.placements("personal", ["iad"], CONFIG["guest"], volume_size_gb=1)
        assert room.keys() == {"iad"}
        assert room["iad"] > 0

        volume = await fly.create_volume("ag-1", "data", "iad", 1, snapshot_retention_days=7)
        assert volume.snapshot_retention == 7
        assert (await fly.update_volume("ag-1", volume.id, snapshot_retention_days=9)).snapshot_retention == 9
        assert (volume.app, volume.name, volume.region, volume.size_gb) == ("ag-1", "data", "iad", 1)
        assert [v.id for v in await fly.list_volumes("ag-1")] == [volume.id]

        config = CONFIG | {"mounts": [{"volume": volume.id, "path": "/data"}]}
        machine = await fly.create_machine("ag-1", "ada-1", "iad", config, min_secrets_version=secrets)
        assert (machine.name, machine.region, machine.volume_id) == ("ada-1", "iad", volume.id)
        with pytest.raises(errors.AlreadyExists) as exists:
            await fly.create_machine("ag-1", "ada-1", "iad", config)
        assert exists.value.machine_id == machine.id
        with pytest.raises(errors.VolumeBound) as bound:
            await fly.create_machine("ag-1", "ada-2", "iad", config)
        assert bound.value.machine_id == machine.id
        result = await fly.wait_machine("ag-1", machine.id, ["started"], version=None, timeout_seconds=10)
        assert result.state == "started"
        attached = await fly.get_volume("ag-1", volume.id)
        assert attached.attached_machine_id == machine.id

        changed = config | {"env": {"A": "1"}}
        updated = await fly.update_machine("ag-1", machine.id, changed, machine.version, min_secrets_version=secrets)
        assert updated.version != machine.version
        with pytest.raises(errors.Conflict) as conflict:
            await fly.update_machine("ag-1", machine.id, changed, machine.version)
        assert conflict.value.kind == "version"
        await fly.wait_machine("ag-1", machine.id, ["started"], version=updated.version, timeout_seconds=10)
        seen_machine = await fly.get_machine("ag-1", machine.id)
        assert (seen_machine.version, seen_machine.state) == (updated.version, "started")
        assert seen_machine.config is not None
        assert seen_machine.config["env"] == {"A": "1"}

        await fly.stop_machine("ag-1", machine.id, signal="SIGTERM", timeout_seconds=5)
        stopped = await settled(fly, machine.id, "stopped")
        assert stopped.last_exit is not None
        assert stopped.last_exit.requested
        await start_when_ready(fly, machine.id)
        await settled(fly, machine.id, "started")
        await fly.restart_machine("ag-1", machine.id, timeout_seconds=5)
        await settled(fly, machine.id, "started")

        await fly.suspend_machine("ag-1", machine.id)
        await settled(fly, machine.id, "suspended")
        await start_when_ready(fly, machine.id)
        await settled(fly, machine.id, "started")

        await fly.patch_metadata("ag-1", machine.id, {"roost_uid": "u", "roost_name": None})
        assert (await fly.get_machine("ag-1", machine.id)).metadata == {"roost_uid": "u"}
        assert [m.id for m in await fly.list_machines("ag-1")] == [machine.id]
        (row,) = (await fly.org_machines("personal")).rows
        assert (row.app, row.id, row.image, row.metadata) == ("ag-1", machine.id, CONFIG["image"], {"roost_uid": "u"})
        (listed,) = (await fly.org_volumes("personal")).volumes
        assert (listed.app, listed.id, listed.attached_machine_id) == ("ag-1", volume.id, machine.id)

        (app,) = await fly.list_apps("personal")
        assert (app.name, app.org, app.machine_count, app.volume_count) == ("ag-1", "personal", 1, 1)

        await fly.create_snapshot("ag-1", volume.id)
        snapshot = await snapshot_taken(fly, volume.id)
        restored = await fly.create_volume("ag-1", "data", "iad", 1, snapshot_id=snapshot.id)
        forked = await fly.create_volume("ag-1", "data", "iad", None, source_volume_id=volume.id)
        assert (restored.size_gb, forked.size_gb) == (1, 1)
        for twin in (restored, forked):
            await fly.delete_volume("ag-1", twin.id)

        assert (await fly.extend_volume("ag-1", volume.id, 2)).volume.size_gb == 2
        with pytest.raises(errors.VolumeBound) as bound:
            await fly.delete_volume("ag-1", volume.id)
        assert bound.value.machine_id == machine.id
        with pytest.raises(errors.NotYet):
            await fly.delete_machine("ag-1", machine.id, force=False)
        await fly.delete_machine("ag-1", machine.id, force=True)
        assert (await settled(fly, machine.id, "destroyed")).state == "destroyed"
        assert await fly.list_machines("ag-1") == []
        await delete_when_free(fly, volume.id)
        assert [v for v in await fly.list_volumes("ag-1") if not v.deleted] == []
        await fly.delete_app("ag-1")
        with pytest.raises(errors.NotFound):
            await fly.get_app("ag-1")

    methods = {name for name in dir(Fly) if not name.startswith("_") and callable(getattr(Fly, name))}
    calls = {name for name in methods if not name.endswith("_pages")}
    assert called == calls


async def snapshot_taken(fly: Fly, volume: str) -> types.Snapshot:
    """The first snapshot that is there; the client's own rate limit is the pause."""
    async with asyncio.timeout(30):
        while True:
            for snapshot in await fly.list_snapshots("ag-1", volume):
                if snapshot.id and snapshot.status == "created":
                    return snapshot


async def start_when_ready(fly: Fly, machine: str) -> None:
    """Right after a stop, a machine may still be too active to start."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await fly.start_machine("ag-1", machine)
            except errors.NotYet:  # the client's own rate limit is the pause
                continue


async def delete_when_free(fly: Fly, volume: str) -> None:
    """A volume stays bound for a while after its machine is gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await fly.delete_volume("ag-1", volume)
            except errors.VolumeBound:  # the client's own rate limit is the pause
                continue


async def test_what_the_simulator_refuses_is_what_the_client_tells(flysim: str) -> None:
    async def wrong() -> str:
        return "fm2_wrong"

    async with Fly(wrong, Called(), base_url=flysim) as stranger:
        with pytest.raises(errors.Unauthorized):
            await stranger.org_machines("personal")
    async with Fly(token, Called(), base_url=flysim) as fly:
        with pytest.raises(errors.NotFound):
            await fly.get_app("ag-none")
        with pytest.raises(errors.NotFound):
            await fly.list_machines("ag-none")
        await fly.create_app("ag-1", "personal", None)
        with pytest.raises(errors.NotFound):
            await fly.get_machine("ag-1", "00000000000000")
        with pytest.raises(errors.NotFound):
            await fly.get_volume("ag-1", "vol_0000000000000000")
        mount = {"mounts": [{"volume": "vol_0000000000000000", "path": "/data"}]}
        with pytest.raises(errors.VolumeMissing):
            await fly.create_machine("ag-1", "ada-1", "iad", CONFIG | mount)
        with pytest.raises(errors.SnapshotMissing):
            await fly.create_volume("ag-1", "data", "iad", 1, snapshot_id="vs_0000000000000000")
        with pytest.raises(errors.VolumeMissing):
            await fly.create_volume("ag-1", "data", "iad", None, source_volume_id="vol_0000000000000000")
        with pytest.raises(errors.Invalid) as nowhere:
            await fly.create_volume("ag-1", "data", "xxx", 1)
        assert "spec.placement.regions" in nowhere.value.advice
        with pytest.raises(errors.Invalid) as huge:
            await fly.create_machine("ag-1", "ada-1", "iad", CONFIG | {"guest": CONFIG["guest"] | {"memory_mb": 100}})
        assert "memoryMb" in huge.value.advice


async def test_a_cut_reply_is_ambiguous_and_the_effect_is_found_by_looking(flysim: str) -> None:
    async with Fly(token, Called(), base_url=flysim) as fly:
        await fly.create_app("ag-1", "personal", None)
        fault(flysim, op="create_volume", where="reply", times=1)
        with pytest.raises(errors.Ambiguous):
            await fly.create_volume("ag-1", "data", "iad", 1)
        assert [v.name for v in await fly.list_volumes("ag-1")] == ["data"]

        fault(flysim, op="create_machine", where="after", status=500, body={"error": "internal"}, times=1)
        with pytest.raises(errors.Ambiguous):
            await fly.create_machine("ag-1", "ada-1", "iad", CONFIG)
        (made,) = await fly.list_machines("ag-1")
        with pytest.raises(errors.AlreadyExists) as exists:
            await fly.create_machine("ag-1", "ada-1", "iad", CONFIG)
        assert exists.value.machine_id == made.id

        fault(flysim, op="delete_machine", where="before", status=503, body={"error": "?"}, times=1)
        with pytest.raises(errors.Ambiguous):
            await fly.delete_machine("ag-1", made.id, force=True)
        assert [m.id for m in await fly.list_machines("ag-1")] == [made.id]


async def test_many_callers_at_once_stay_within_the_documented_limits(flysim: str) -> None:
    async with Fly(token, Called(), base_url=flysim) as fly:
        await fly.create_app("ag-1", "personal", None)
        machine = await fly.create_machine("ag-1", "ada-1", "iad", CONFIG)
        gets = [fly.get_machine("ag-1", machine.id) for _ in range(12)]
        patches = [fly.patch_metadata("ag-1", machine.id, {"n": str(n)}) for n in range(4)]
        await asyncio.gather(*gets, *patches)  # a 429 would raise


async def test_the_refresher_tells_of_a_machine_made_and_destroyed(
    flysim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresher_module, "MIN_GAP_SECONDS", 0.1)
    sweeps: asyncio.Queue[Sweep] = asyncio.Queue()
    volumes: asyncio.Queue[VolumeSweep] = asyncio.Queue()
    clock = asyncio.get_running_loop().time
    async with Fly(token, Called(), base_url=flysim) as fly, asyncio.timeout(20):
        await fly.create_app("ag-1", "personal", None)
        machine = await fly.create_machine("ag-1", "ada-1", "iad", CONFIG)
        volume = await fly.create_volume("ag-1", "data", "iad", 1)
        refresher = Refresher(
            fly,
            "personal",
            apps=list,
            clock=clock,
            rng=random.Random(),
            on_rows=sweeps.put_nowait,
            on_volumes=volumes.put_nowait,
        )
        task = asyncio.create_task(refresher.run())
        full = await sweeps.get()
        assert (full.full, [row.id for row in full.rows]) == (True, [machine.id])
        listed = await volumes.get()
        assert (listed.full, [row.id for row in listed.rows]) == (True, [volume.id])

        await fly.delete_machine("ag-1", machine.id, force=True)
        await settled(fly, machine.id, "destroyed")
        refresher.kick()
        changes = await sweeps.get()
        assert (changes.full, [(row.id, row.state) for row in changes.rows]) == (False, [(machine.id, "destroyed")])
        task.cancel()


async def test_the_refresher_lists_app_by_app_what_it_may_not_list_as_a_whole(
    flysim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresher_module, "MIN_GAP_SECONDS", 0.1)
    sweeps: asyncio.Queue[Sweep] = asyncio.Queue()
    volumes: asyncio.Queue[VolumeSweep] = asyncio.Queue()
    async with Fly(token, Called(), base_url=flysim) as fly, asyncio.timeout(20):
        await fly.create_app("ag-1", "personal", None)
        machine = await fly.create_machine("ag-1", "ada-1", "iad", CONFIG)
        volume = await fly.create_volume("ag-1", "data", "iad", 1)
        (row,) = (await fly.org_machines("personal")).rows
        for op in ("org_machines", "org_volumes"):
            fault(flysim, op=op, where="before", status=403, body={"error": "not allowed"}, times=None)
        refresher = Refresher(
            fly,
            "personal",
            apps=lambda: ["ag-1", "ag-none"],
            clock=asyncio.get_running_loop().time,
            rng=random.Random(),
            on_rows=sweeps.put_nowait,
            on_volumes=volumes.put_nowait,
            period=0.2,
            volume_period=0.2,
        )
        task = asyncio.create_task(refresher.run())
        told, listed = await sweeps.get(), await volumes.get()
        task.cancel()
    assert (told.full, told.apps, [seen.id for seen in told.rows]) == (True, {"ag-1"}, [machine.id])
    assert (told.rows[0].metadata, told.rows[0].name) == (row.metadata, row.name)
    assert (listed.apps, [seen.id for seen in listed.rows]) == ({"ag-1"}, [volume.id])
    assert refresher.health.state is State.CANNOT_LIST_ORG
