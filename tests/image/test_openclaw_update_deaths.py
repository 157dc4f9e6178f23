"""The machine dies at each step of an update: the next boot ends with one version and the state that belongs to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint import OperatorDouble
from machine import Machine, eventually
from openclaw_faults import faulty, memory
from openclaw_image import lives, make, quick, want

OLD, NEW = "2026.9.5", "2026.9.6"

ON_THE_WAY = {
    "before the snapshot": "around(Snapshots, 'take', before=lambda *a, **k: die())",
    "after the snapshot": "around(Snapshots, 'take', after=lambda *a, **k: die())",
    "before the trial is remembered": "around(Volume, 'remember', before=lambda *a, **k: k.get('trial') and die())",
    "once the trial is remembered": "around(Volume, 'remember', after=lambda *a, **k: k.get('trial') and die())",
    "once the files are in place": ("around(Volume, 'put', after=lambda volume, *a: volume.memory.trial and die())"),
    "once it runs": f"around(Reaper, 'spawn', after=lambda r, l: '{NEW}' in l.argv[1] and (time.sleep(0.5), die()))",
    "before it is kept": "around(Update, 'keep', before=lambda *a: die())",
    "once it is kept": "around(Update, 'keep', after=lambda *a: die())",
}
ON_THE_WAY_BACK = {
    "before the state is put back": "around(Snapshots, 'restore', before=lambda *a: die())",
    "before the states are swapped": "around(Snapshots, '_swap', before=lambda *a: die())",
    "once the state is back": "around(Snapshots, 'restore', after=lambda *a: die())",
    "once that is remembered": "around(Volume, 'remember', after=lambda *a, **k: k.get('rejected') and die())",
    "before the files are put back": "around(Volume, 'put', before=lambda v, *a: v.memory.rejected and die())",
}


def ready_with(version: str) -> Callable[[dict[str, Any]], bool]:
    return lambda beat: beat["ready"] and beat["openclawVersion"] == version


async def begun(machine: Machine, operator: OperatorDouble, fault: str) -> None:
    """The old version has run, the new one is asked for, and the machine has died at that point."""
    want(operator, OLD)
    machine.run(faulty(fault))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.ended()
    operator.beats.clear()


@pytest.mark.parametrize("fault", ON_THE_WAY.values(), ids=ON_THE_WAY.keys())
async def test_a_death_on_the_way_to_a_good_version_ends_with_that_version(
    machine: Machine, operator: OperatorDouble, tmp_path: Path, fault: str
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    await begun(machine, operator, fault)
    machine.run(quick(1))
    await machine.heard(lambda b: ready_with(NEW)(b) and not b["degraded"], "the new version")
    await eventually(lambda: (m := memory(machine)).get("version") == NEW and not m.get("trial"), "its proof")
    assert lives(machine)[0] == OLD
    assert set(lives(machine)[1:]) == {NEW}
    assert operator.last["bundleRevision"] == operator.bundle["revision"]


@pytest.mark.parametrize("fault", ON_THE_WAY_BACK.values(), ids=ON_THE_WAY_BACK.keys())
async def test_a_death_on_the_way_back_from_a_bad_version_ends_with_the_old_one_and_its_state(
    machine: Machine, operator: OperatorDouble, tmp_path: Path, fault: str
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18, "fails": 1}})
    await begun(machine, operator, fault)
    machine.run(quick(1))
    await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version")
    assert set(lives(machine)) == {OLD}
    assert memory(machine)["version"] == OLD
    assert not memory(machine).get("trial")
    assert not (machine.data / ".roost" / "restore" / "whole").exists()


async def test_a_version_that_takes_the_machine_down_each_time_is_taken_back_in_the_end(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    fault = ON_THE_WAY["once it runs"]
    await begun(machine, operator, fault)
    for _ in range(3):
        machine.run(faulty(fault))
        await machine.ended()
    machine.run(faulty(fault))
    await machine.heard(lambda b: ready_with(OLD)(b) and b["degraded"], "the old version")
    assert operator.last["degraded"][0].startswith(f"configure: version {NEW} did not outlive 3 boots. {OLD} runs: ")
    assert set(lives(machine)) == {OLD}
