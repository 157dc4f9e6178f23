"""Steps of an update that fail: what ran goes on, each state stays with its version, and nobody is left in the dark."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from endpoint import TOKEN, OperatorDouble
from machine import Machine, eventually
from openclaw_faults import faulty, memory, snapshots
from openclaw_image import GATEWAY_TOKEN, lives, make, quick, want

from roost_agent.update import rejection
from roost_agent.volume import Trial

OLD, NEW = "2026.9.5", "2026.9.6"
GROWS = {OLD: {"schema": 17}, NEW: {"schema": 18}}


def ready_with(version: str) -> Callable[[dict[str, Any]], bool]:
    return lambda beat: beat["ready"] and beat["openclawVersion"] == version


async def test_what_waited_for_its_next_start_goes_on_when_the_new_version_is_refused(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", GROWS)
    want(operator, NEW)
    machine.run(quick(1))
    pid = await machine.heard(ready_with(NEW), "the new version")
    # Given it can't be started for a while, and waits for its next turn
    (machine.data / "openclaw" / "stub.json").write_text('{"exitAtStart": 1}')
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: len(machine.lines("runtime starts again")) == 3, "a pause of seconds")
    (machine.data / "openclaw" / "stub.json").unlink()
    # when a version is asked for that does not take its state
    want(operator, OLD)
    # then it is started, and not left as it was found.
    await machine.heard(lambda b: ready_with(NEW)(b) and "knows 17" in str(b["degraded"]), "the new version again")


async def test_a_volume_that_takes_no_note_keeps_what_runs_from_being_ended(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", GROWS)
    full = tmp_path / "full"
    want(operator, OLD)
    machine.run(
        faulty(
            f"around(Tree, 'write', before=lambda t, p, *a: p.endswith('memory.json') and os.path.exists({str(full)!r})"
            " and fail(errno.EROFS, 'Read-only file system'))"
        )
    )
    pid = await machine.heard(ready_with(OLD), "the old version")
    full.touch()
    want(operator, NEW)
    await machine.heard(lambda b: "Read-only" in str(b["degraded"]), "what is wrong")
    tries = len(operator.bundle_calls)
    await eventually(lambda: len(operator.bundle_calls) >= tries + 2, "two more tries")
    assert operator.last["runtime"]["pid"] == pid
    full.unlink()
    await machine.heard(lambda b: ready_with(NEW)(b) and not b["degraded"], "the new version, once that is possible")


async def test_a_new_version_never_runs_without_a_net_on_the_state_that_was_put_back(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18, "fails": 1}})
    want(operator, OLD)
    full = "once(lambda: fail(errno.ENOSPC, 'No space left on device'))"
    machine.run(faulty(f"f = {full}\naround(Volume, 'put', before=lambda v, *a: v.memory.rejected and f())"))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(lambda b: "No space" in str(b["degraded"]), "that the files can't be put back")
    await machine.heard(lambda b: ready_with(OLD)(b) and f"{OLD} runs" in str(b["degraded"]), "the old version")
    assert set(lives(machine)) == {OLD}


async def test_a_boot_never_starts_a_new_version_that_could_not_be_given_a_net(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", GROWS)
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    assert await machine.stop() == 0
    # Given there is no last good bundle to go back to, as after a rotation of the token
    (machine.data / ".roost" / "bundle.sealed").unlink()
    want(operator, NEW)
    operator.beats.clear()
    machine.run(faulty("around(Snapshots, 'take', before=lambda *a, **k: fail(errno.ENOSPC, 'no room'))"))
    await machine.heard(lambda b: ready_with(OLD)(b) and "no room" in str(b["degraded"]), "the old version")
    assert set(lives(machine)) == {OLD}


async def test_a_first_bundle_that_openclaw_refuses_is_told_and_ends_nothing(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {NEW: {}})
    want(operator, NEW, env={"OPENCLAW_STATE_DIR": "elsewhere"})
    machine.run(quick(1))
    await machine.heard(lambda b: "OPENCLAW_STATE_DIR" in str(b["degraded"]), "what is wrong")
    assert operator.last["bundleRevision"] is None
    assert operator.last["runtime"]["pid"] is None
    want(operator, NEW)
    await machine.heard(lambda b: ready_with(NEW)(b) and not b["degraded"], "the one that was corrected")


async def test_a_version_that_ends_at_once_is_taken_back_at_once(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {}, NEW: {"fails": 78}})
    want(operator, OLD)
    machine.run(faulty("around(Volume, 'keep', after=lambda *a: None)\n" + _SLOW_DOORS))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version again", 8)
    assert f"version {NEW} ended with exit 78. " in operator.last["degraded"][0]


_SLOW_DOORS = """\
import asyncio
real = Doors.suit
async def suit(self, *args):
    await asyncio.sleep(1)
    await real(self, *args)
Doors.suit = suit
"""


async def test_when_the_state_from_before_is_spoilt_the_new_version_stays_and_that_is_told(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18, "fails": 1}})
    want(operator, OLD)
    machine.run(faulty(_SPOIL))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(lambda b: "can't be taken back" in str(b["degraded"]), "that it can't be taken back")
    starts = len(machine.lines("runtime started"))
    await eventually(lambda: len(machine.lines("runtime started")) > starts, "another start of it")
    assert memory(machine)["version"] == NEW
    assert set(lives(machine)[1:]) == {NEW}
    assert len(machine.lines("update taken back")) == 1


async def test_who_changes_his_mind_while_the_state_from_before_is_spoilt_keeps_what_runs(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", GROWS)
    want(operator, OLD)
    machine.run(faulty(_SPOIL, proof=60))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    want(operator, OLD)
    await machine.heard(lambda b: ready_with(NEW)(b) and "knows 17" in str(b["degraded"]), "the new version")
    # It is not ended once more with each repetition of the command.
    pid, tries = operator.last["runtime"]["pid"], len(operator.bundle_calls)
    await eventually(lambda: len(operator.bundle_calls) >= tries + 2, "two more tries")
    assert operator.last["runtime"]["pid"] == pid


_SPOIL = """\
def spoil(snapshots, paths, *, label, version):
    archive = snapshots._root / ".roost" / "snapshots" / f"{label}.tar"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
around(Snapshots, 'take', after=spoil)
"""


async def test_a_proof_that_can_not_be_written_down_is_written_down_later(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", GROWS)
    want(operator, OLD)
    full = "f = once(lambda: fail(errno.ENOSPC, 'No space left on device'))\n"
    machine.run(faulty(f"{full}around(Volume, 'remember', before=lambda *a, **k: k.get('version') == '{NEW}' and f())"))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(lambda b: "No space" in str(b["degraded"]), "what is wrong")
    await machine.heard(lambda b: ready_with(NEW)(b) and not b["degraded"], "well again")
    assert memory(machine)["version"] == NEW
    assert not memory(machine).get("trial")


async def test_a_version_that_stays_without_proof_is_told_until_it_is_well(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {}, NEW: {}})
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    (machine.data / "openclaw" / "stub.json").write_text('{"exitAtStart": 1}')
    want(operator, NEW, runtime={"kind": "OpenClaw", "version": NEW, "rollback": False})
    await machine.heard(lambda b: any(w.startswith("update: ") for w in b["degraded"]), "what is wrong")
    (machine.data / "openclaw" / "stub.json").unlink()
    await machine.heard(lambda b: ready_with(NEW)(b) and not b["degraded"], "well again")


async def test_a_restart_during_the_trial_begins_the_proof_anew(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {}, NEW: {}})
    want(operator, OLD)
    machine.run(quick(2))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    (machine.data / "openclaw" / "stub.json").write_text(json.dumps({"startSeconds": 4}))
    want(operator, NEW, runtime={"kind": "OpenClaw", "version": NEW, "restartedAt": "2026-11-21T10:00:00Z"})
    await eventually(lambda: machine.lines("update done"), "its proof")
    told = [line["event"] for line in machine.lines()]
    assert told[: told.index("update done")].count("runtime ready") == 3


async def test_tries_in_vain_do_not_fill_the_volume_with_snapshots(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18, "fails": 1}})
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    for hour in range(4):
        at = f"2026-11-21T{hour + 10}:00:00Z"
        want(operator, NEW, runtime={"kind": "OpenClaw", "version": NEW, "restartedAt": at})
        tries = hour + 1
        await eventually(lambda tries=tries: len(machine.lines("update taken back")) == tries, "one more try")  # type: ignore[misc]
        await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version again")
    assert len(snapshots(machine)) <= 2


def test_why_a_version_was_taken_back_is_always_one_bounded_line() -> None:
    trial = Trial(version=NEW, before=OLD, snapshot="before-1")
    said = rejection(trial, "can't take over: its state holds\n" + "a long word " * 40, None)
    assert len(said.why) <= 200
    assert said.why.endswith(f". {OLD} runs: name another version, or restart to try again")
    assert "\n" not in said.why


async def test_a_third_version_during_the_trial_follows_the_first_and_its_state(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    third = "2026.9.7"
    machine.environment |= make(tmp_path / "opt", GROWS | {third: {"schema": 19}})
    want(operator, OLD)
    machine.run(quick(60))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    want(operator, third)
    await machine.heard(lambda b: ready_with(third)(b) and not b["degraded"], "the third version")
    assert lives(machine) == [OLD, third]
    assert memory(machine)["trial"]["before"] == OLD


async def test_a_third_version_that_is_refused_during_the_trial_leaves_the_first_at_once(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    third = "2026.9.4"
    machine.environment |= make(tmp_path / "opt", GROWS | {third: {"schema": 16}})
    want(operator, OLD)
    machine.run(quick(60))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    want(operator, third)
    await machine.heard(lambda b: ready_with(OLD)(b) and "knows 16" in str(b["degraded"]), "the old version", 10)
    assert set(lives(machine)) == {OLD}


async def test_no_secret_is_left_in_what_an_update_writes_or_says(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18, "fails": 1}})
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version again")
    corner = machine.data / ".roost"
    written = [corner / "memory.json", *(corner / "snapshots").iterdir(), machine.log]
    assert len(written) >= 4
    for file in written:
        assert GATEWAY_TOKEN.encode() not in file.read_bytes(), file.name
        assert TOKEN.encode() not in file.read_bytes(), file.name
    assert GATEWAY_TOKEN not in json.dumps([beat.body for beat in operator.beats])
