"""Another version comes with a net, and one that does not come up is taken back; with the stand-in for OpenClaw."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from endpoint import OperatorDouble
from machine import Machine, alive, eventually
from openclaw_image import lives, make, quick, want

OLD, NEW = "2026.9.5", "2026.9.6"


def ready_with(version: str) -> Callable[[dict[str, Any]], bool]:
    return lambda beat: beat["ready"] and beat["openclawVersion"] == version


async def test_a_new_version_takes_over_the_state_and_is_kept_once_it_has_proved_itself(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    assert lives(machine) == [OLD, NEW]
    await eventually(lambda: machine.lines("update done"), "its proof")
    assert operator.last["bundleRevision"] == operator.bundle["revision"]
    assert operator.last["degraded"] == []
    (manifest,) = (machine.data / ".roost" / "snapshots").glob("*.json")
    assert json.loads(manifest.read_text())["version"] == OLD


async def test_a_version_that_does_not_come_up_is_taken_back_with_the_state_from_before(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18, "fails": 1}})
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version again")
    assert lives(machine) == [OLD, OLD]  # what the new one wrote is gone
    (why,) = operator.last["degraded"]
    assert why.startswith(f"configure: version {NEW} ended with exit 1. {OLD} runs: name another version")
    assert operator.last["bundleRevision"] is None  # the bundle is not in force in full
    assert operator.last["status"] == "degraded"

    # It is not tried again of its own accord, not even by the next boot.
    assert await machine.stop() == 0
    machine.run(quick(1))
    await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version after a boot")
    assert len(machine.lines("update begins")) == 1

    # Other changes of the configuration take effect meanwhile, and a restart is leave to try again.
    want(operator, NEW, soul="You are Ada.")
    await eventually((machine.data / "workspace" / "SOUL.md").is_file, "the soul")
    want(operator, NEW, runtime={"kind": "OpenClaw", "version": NEW, "restartedAt": "2026-11-21T10:00:00Z"})
    await eventually(lambda: len(machine.lines("update begins")) == 2, "another try")
    await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version once more")


async def test_without_leave_to_roll_back_the_new_version_stays(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {}, NEW: {"fails": 1}})
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW, runtime={"kind": "OpenClaw", "version": NEW, "rollback": False})
    await machine.heard(lambda b: any(w.startswith("update: ") for w in b["degraded"]), "what is wrong")
    assert operator.last["openclawVersion"] == NEW


async def test_a_downgrade_is_refused_before_anything_is_changed(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    want(operator, NEW)
    machine.run(quick(1))
    await machine.heard(ready_with(NEW), "the new version")
    want(operator, OLD)
    await machine.heard(lambda b: ready_with(NEW)(b) and b["degraded"], "the new version again")
    (why,) = operator.last["degraded"]
    assert "its state has schema 18, and 2026.9.5 knows 17 (incompatible)" in why
    assert lives(machine) == [NEW, NEW]
    assert len(machine.lines("update begins")) == 1


async def test_a_machine_that_dies_during_the_trial_goes_on_with_it(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    want(operator, OLD)
    machine.run(quick(60))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    machine.kill()

    machine.run(quick(1))
    await machine.heard(ready_with(NEW), "the new version after the boot")
    await eventually(lambda: machine.lines("update done"), "its proof")
    assert len(machine.lines("update begins")) == 1


async def test_who_changes_his_mind_during_the_trial_gets_the_old_state_back(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    want(operator, OLD)
    machine.run(quick(60))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    want(operator, OLD)
    await machine.heard(ready_with(OLD), "the old version")
    assert lives(machine) == [OLD, OLD]
    assert operator.last["degraded"] == []
    assert operator.last["bundleRevision"] == operator.bundle["revision"]


async def test_exit_78_is_not_followed_by_another_start_until_something_changes(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {NEW: {"fails": 78}, "2026.9.7": {}})
    want(operator, NEW)
    machine.run(quick(1))
    await machine.heard(lambda b: b["degraded"], "what is wrong")
    assert operator.last["degraded"] == ["process: it refuses its configuration or its state (exit 78)"]
    assert operator.last["runtime"]["state"] == "crashed"
    assert len(machine.lines("runtime started")) == 1
    want(operator, "2026.9.7")
    await machine.heard(lambda b: ready_with("2026.9.7")(b) and not b["degraded"], "a version that starts")


async def test_a_configuration_with_which_it_does_not_start_gives_way_to_the_one_before(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {NEW: {}})
    want(operator, NEW)
    machine.run(quick(1))
    await machine.heard(ready_with(NEW), "ready")
    good = operator.last["bundleRevision"]
    (machine.data / "openclaw" / "stub.json").write_text('{"exitAtStart": 78}')
    want(operator, NEW, env={"MODE": "new"})
    await machine.heard(lambda b: b["runtime"]["state"] == "crashed", "the refusal")
    (machine.data / "openclaw" / "stub.json").unlink()
    await machine.heard(lambda b: b["ready"] and b["degraded"], "the configuration from before")
    assert operator.last["degraded"] == [
        "configure: the runtime does not start with it (exit 78): the one before is back"
    ]
    assert operator.last["bundleRevision"] == good
    want(operator, NEW, env={"MODE": "newer"})
    await machine.heard(lambda b: b["bundleRevision"] == operator.bundle["revision"], "the next one")
    await machine.heard(lambda b: b["ready"] and not b["degraded"], "well again")


async def test_a_kill_is_followed_by_a_start_within_a_second_or_so(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {NEW: {}})
    want(operator, NEW)
    machine.run(quick(1))
    pid = await machine.heard(ready_with(NEW), "ready")
    os.kill(pid, signal.SIGKILL)
    await machine.heard(lambda b: b["runtime"]["restarts"] == 1 and b["ready"], "another life")
    assert not alive(pid)
    (wait,) = machine.lines("runtime starts again")
    assert 0.8 <= wait["seconds"] <= 1.0
