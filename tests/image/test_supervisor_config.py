"""How a machine comes to its configuration, keeps it, and changes it."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from endpoint import TOKEN, OperatorDouble, bundle, refuse
from machine import Machine, alive, eventually, python, seen_in_proc

from roost_agent.contract import Exit, seal

SEALED = ".roost/bundle.sealed"
TELLS = """
import json, os, sys, time
with open("told", "a") as told: told.write(json.dumps(dict(os.environ)) + "\\n")
while True: time.sleep(1000)
"""


def telling(**more: Any) -> dict[str, Any]:
    """A runtime that writes its environment down at every start."""
    return {"kind": "Command", "version": "1.0", "command": list(python(TELLS)), **more}


def told(machine: Machine) -> list[dict[str, str]]:
    """The environment of every start so far, whole lines only."""
    path = machine.data / "told"
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


async def starts(machine: Machine, count: int) -> list[dict[str, str]]:
    await eventually(lambda: len(told(machine)) >= count, f"start number {count}")
    return told(machine)


async def test_the_runtime_gets_its_environment_and_no_more(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(
        runtime=telling(), env={"COLOUR": "green"}, secretEnv={"API_KEY": "s3cret", "AS_HEARTBEAT_TOKEN": "x"}
    )
    machine.start(TZ="Europe/Rome", SECRET_OF_THE_HOST="x", HEALTH_PORT="18792")
    [environment] = await starts(machine, 1)
    assert environment | {"PATH": ""} == {
        "PATH": "",
        "TZ": "Europe/Rome",
        "DATA_DIR": str(machine.data),
        "ROOST_BIND_ADDRESS": machine.address,
        "ROOST_ACTIVITY_FILE": str(machine.data / ".roost-activity.json"),
        "FLY_MACHINE_ID": "m-1",
        "FLY_MACHINE_VERSION": "01JV",
        "FLY_REGION": "iad",
        "COLOUR": "green",
        "API_KEY": "s3cret",
        **({"LC_CTYPE": environment["LC_CTYPE"]} if "LC_CTYPE" in environment else {}),  # Python's own doing
    }


async def test_a_changed_variable_restarts_the_runtime_once(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=telling(), env={"COLOUR": "green"})
    machine.start()
    first = await machine.runs()
    await starts(machine, 1)
    operator.change(runtime=telling(), env={"COLOUR": "blue"})
    done = f"update_config:{operator.bundle['revision']}"
    second = await machine.heard(lambda b: b["lastCommandId"] == done, "the update")
    assert second != first
    assert not alive(first)
    assert [t["COLOUR"] for t in await starts(machine, 2)] == ["green", "blue"]
    assert operator.last["runtime"]["restarts"] == 0  # asked for


async def test_another_interval_restarts_nothing(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    first = await machine.runs()
    operator.change(heartbeat={"intervalSeconds": 7})
    assert await machine.runs() == first
    await eventually(lambda: operator.beats[-1].wait == 7, "a heartbeat at the new interval")
    assert len(operator.bundle_calls) == 2


async def test_a_restart_is_carried_out_once_and_remembered(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=telling())
    machine.start()
    first = await machine.runs()
    await starts(machine, 1)
    when = "2026-11-21T10:00:00Z"
    operator.change(runtime=telling(restartedAt=when))
    second = await machine.heard(lambda b: b["lastCommandId"] == f"restart:{when}", "the restart")
    assert second != first
    assert operator.last["restartedAt"] == when
    assert len(await starts(machine, 2)) == 2

    # What the first bundle of a boot asks for is in effect with that boot.
    await machine.stop()
    operator.change(runtime=telling(restartedAt="another"))
    machine.start()
    await machine.runs()
    assert len(await starts(machine, 3)) == 3
    assert operator.last["restartedAt"] == "another"


async def test_update_and_restart_together_are_one_restart(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=telling())
    machine.start()
    await machine.runs()
    await starts(machine, 1)
    operator.change(runtime=telling(restartedAt="now"), env={"A": "b"})
    await machine.heard(lambda b: b["runtime"]["pid"] and not operator.due(b), "nothing more to do")
    assert operator.last["restartedAt"] == "now"
    assert len(machine.lines("runtime started")) == 2


async def test_revoked_at_boot_starts_nothing(machine: Machine, operator: OperatorDouble) -> None:
    machine.data.mkdir()
    (machine.data / ".roost").mkdir()
    (machine.data / SEALED).write_bytes(seal(TOKEN, json.dumps(bundle()).encode()))
    operator.bundle = bundle(revoked=True, runtime=None, files=[{"path": "a", "mode": "0600", "content": "x"}])
    machine.start()
    assert await machine.ended() == Exit.ASKED
    assert operator.beats == []
    assert machine.lines("runtime started") == []
    assert sorted(p.name for p in machine.data.rglob("*")) == [".roost"]  # no file, and no copy to start from later
    assert [line["phase"] for line in machine.lines("boot step")][-1] == "bundle"


async def test_the_kill_switch_holds_in_a_bundle_not_understood(machine: Machine, operator: OperatorDouble) -> None:
    operator.bundle = {"revoked": True, "revision": "r", "generation": "of another age"}
    machine.start()
    assert await machine.ended() == Exit.ASKED


async def test_revoked_while_running_stops_it(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    pid = await machine.runs()
    operator.change(revoked=True, runtime=None)
    assert await machine.ended() == Exit.ASKED
    assert not alive(pid)
    assert not (machine.data / SEALED).exists()
    assert operator.last["status"] == "stopping"


async def test_without_the_endpoint_it_starts_with_the_last_good_copy(
    machine: Machine, operator: OperatorDouble
) -> None:
    operator.change(runtime=telling(), env={"COLOUR": "green"})
    machine.start()
    await machine.runs()
    await starts(machine, 1)
    operator.change(runtime=telling(restartedAt="once"), env={"COLOUR": "green"})
    await machine.heard(lambda b: b["restartedAt"] == "once", "the restart")
    await starts(machine, 2)
    assert await machine.stop() == Exit.ASKED
    sealed = machine.data / SEALED
    assert sealed.stat().st_mode & 0o7777 == 0o600
    assert b"COLOUR" not in sealed.read_bytes()
    await operator.stop()
    operator.beats.clear()

    machine.start()
    assert (await starts(machine, 3))[-1]["COLOUR"] == "green"
    assert (await machine.get("/healthz"))[1]["status"] == "degraded"
    await operator.start()
    pid = await machine.heard(lambda b: b["status"] != "degraded", "that all is well")
    assert alive(pid)
    assert operator.last["runtime"]["restarts"] == 0
    operator.change(runtime=telling(restartedAt="once"), env={"COLOUR": "blue"})
    assert (await starts(machine, 4))[-1]["COLOUR"] == "blue"
    await machine.runs()
    assert {b.body["restartedAt"] for b in operator.beats} == {"once"}  # remembered: the kept bundle is older
    assert operator.last["degraded"] == []


@pytest.mark.parametrize("copy", ["of another token", "no bundle"])
async def test_a_copy_that_is_no_good_is_ignored(machine: Machine, operator: OperatorDouble, copy: str) -> None:
    sealed = machine.data / SEALED
    sealed.parent.mkdir(parents=True)
    if copy == "of another token":
        sealed.write_bytes(seal("another", json.dumps(bundle()).encode()))
    else:
        sealed.write_bytes(seal(TOKEN, b'{"revision": 1}'))
    operator.bundle_answer = refuse(500)
    machine.start()
    await eventually(lambda: len(operator.bundle_calls) > 1, "the call made again")
    assert len(machine.lines("last good bundle ignored")) == 1
    assert machine.lines("runtime started") == []


async def test_files_are_written_changed_and_removed(machine: Machine, operator: OperatorDouble) -> None:
    first = [
        {"path": "etc/app/a.conf", "mode": "0640", "content": "a = 1\n"},
        {"path": "b", "mode": "0600", "content": "bé"},
    ]
    operator.change(files=first)
    machine.start()
    pid = await machine.runs()
    conf = machine.data / "etc/app/a.conf"
    assert conf.read_text() == "a = 1\n"
    assert conf.stat().st_mode & 0o7777 == 0o640
    assert conf.parent.stat().st_mode & 0o7777 == 0o700
    assert (machine.data / "b").read_text() == "bé"
    (machine.data / "its own").touch()

    operator.change(files=[first[0] | {"content": "a = 2\n"}])
    assert await machine.runs() != pid
    assert conf.read_text() == "a = 2\n"
    assert not (machine.data / "b").exists()

    # What left the bundle while the machine was down goes as well.
    await machine.stop()
    operator.change(files=[])
    machine.start()
    await machine.runs()
    assert sorted(p.name for p in machine.data.rglob("*") if p.is_file()) == ["bundle.sealed", "its own", "memory.json"]


async def test_a_planted_link_keeps_the_old_configuration_running(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    machine.start()
    pid = await machine.runs()
    good = operator.last["bundleRevision"]
    (machine.data / "etc").symlink_to(outside)
    files = [{"path": name, "mode": "0600", "content": "x"} for name in ("fine", "etc/passwd")]
    operator.change(files=files)
    await machine.heard(lambda b: b["degraded"], "what is wrong")
    assert operator.last["degraded"] == ["configure: etc is a link or no directory, or leads over one"]
    assert (operator.last["bundleRevision"], operator.last["status"]) == (good, "degraded")
    assert operator.last["lastCommandId"] is None
    assert operator.last["runtime"]["pid"] == pid
    assert alive(pid)
    assert list(outside.iterdir()) == []
    assert sorted(p.name for p in machine.data.iterdir()) == [".roost", "etc"]  # nor the file that was fine
    assert len(operator.bundle_calls) == 2

    # The same revision is not tried again at once, another one is.
    calls, beats = len(operator.bundle_calls), len(operator.beats)
    os.kill(pid, signal.SIGKILL)  # news, so there is another heartbeat, answered with the same command
    await machine.heard(lambda b: len(operator.beats) > beats and b["runtime"]["restarts"] == 1, "heartbeats")
    assert len(operator.bundle_calls) == calls
    operator.change(files=[files[0]])
    os.kill(await machine.heard(lambda b: b["runtime"]["pid"], "the runtime"), signal.SIGKILL)
    await machine.runs()
    assert (machine.data / "fine").read_text() == "x"
    assert operator.last["degraded"] == []


async def test_a_bundle_with_a_path_that_leads_out_is_refused(machine: Machine, operator: OperatorDouble) -> None:
    operator.bundle = bundle(files=[{"path": "../escaped", "mode": "0600", "content": "hidden"}])
    machine.start()
    await eventually(lambda: machine.lines("no bundle yet"), "the refusal")
    assert machine.lines("no bundle yet")[0]["why"] == "the bundle makes no sense (files.0.path: value_error)"
    assert not (machine.data.parent / "escaped").exists()


def _read_only(folder: Path) -> list[str]:
    """A program below which this folder is a read-only volume."""
    folder.mkdir()
    under = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare is not permitted here: no mount namespace for a read-only volume")
    return under


async def test_a_volume_that_is_read_only_stops_no_boot(machine: Machine, operator: OperatorDouble) -> None:
    mount = _read_only(machine.data)
    machine.start(*mount)
    await machine.runs()
    assert operator.last["degraded"] == ["volume: Read-only file system"]
    operator.change(files=[{"path": "a", "mode": "0600", "content": "x"}])
    await machine.heard(lambda b: len(b["degraded"]) == 2, "the file that can't be written")
    assert "configure: Read-only file system" in operator.last["degraded"]


async def test_no_secret_is_ever_told(machine: Machine, operator: OperatorDouble) -> None:
    secret, hidden = "sk-1234567890", "in-a-file-1234567890"
    files = [{"path": "key", "mode": "0600", "content": hidden}]
    operator.change(runtime=telling(), secretEnv={"API_KEY": secret}, files=files)
    machine.start()
    await machine.runs()
    for broken in ({"secretEnv": {"API_KEY": [secret]}}, {"files": [{"path": "/x", "content": hidden}]}):
        operator.bundle = bundle() | broken | {"revision": f"r{len(operator.beats)}"}
        operator.wake()
        await machine.heard(lambda b: b["degraded"] and b["degraded"][0].startswith("bundle: the bundle makes"), "it")
        operator.change(runtime=telling(), secretEnv={"API_KEY": secret}, files=files)
        await machine.heard(lambda b: not b["degraded"], "that all is well")
    (machine.data / "d").symlink_to("/")
    operator.change(runtime=telling(), secretEnv={"API_KEY": secret}, files=[{"path": "d/x", "content": hidden}])
    await machine.heard(lambda b: b["degraded"], "what is wrong")
    said = machine.log.read_text() + json.dumps([b.body for b in operator.beats])
    said += seen_in_proc(machine.pid, "cmdline") + seen_in_proc(operator.last["runtime"]["pid"], "cmdline")
    said += seen_in_proc(machine.pid, "environ")
    await machine.stop()
    said += machine.log.read_text()
    assert "roost_agent" in said
    assert [word for word in (secret, hidden, TOKEN) if word in said] == []
