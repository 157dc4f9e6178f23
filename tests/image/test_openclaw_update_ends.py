"""What ends or replaces the agent in the middle of something is heard at once, and leaves nothing behind."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from endpoint import OperatorDouble
from machine import Machine, eventually
from openclaw_faults import memory, snapshots
from openclaw_image import lives, make, quick, want

from roost_agent.contract import PORTS

OLD, NEW = "2026.9.5", "2026.9.6"
GRACE = 2.0
SPARE = 3.0
"""What a stop may take beside the grace: a last heartbeat, and a slow machine of the tests."""


def ready_with(version: str) -> Callable[[dict[str, Any]], bool]:
    return lambda beat: beat["ready"] and beat["openclawVersion"] == version


async def reached(machine: Machine, operator: OperatorDouble, moment: str) -> None:
    """The agent is at that moment of its life."""
    openclaw = machine.data / "openclaw"
    openclaw.mkdir(parents=True)
    told = {"starting": '{"startSeconds": 60}', "busy": '{"turns": 1}', "drained": '{"turns": 1}'}
    (openclaw / "stub.json").write_text(told.get(moment, "{}"))
    want(operator, OLD)
    machine.run(quick(60))
    if moment == "starting":
        await eventually(lambda: machine.lines("runtime started"), "a start")
        return
    await machine.heard(ready_with(OLD), "the old version")
    if moment != "busy":
        want(operator, NEW)
        await eventually(lambda: machine.lines("update begins"), "the update")
    if moment == "on trial":
        await machine.heard(ready_with(NEW), "the new version")


MOMENTS = ("starting", "busy", "drained", "on trial")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("ending", ["signal", "stop", "revoked"])
async def test_an_end_is_heard_in_time_and_leaves_nothing(
    machine: Machine, operator: OperatorDouble, tmp_path: Path, moment: str, ending: str
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {}, NEW: {}})
    await reached(machine, operator, moment)
    below = psutil.Process(machine.pid).children(recursive=True)
    began = time.monotonic()
    if ending == "signal":
        os.kill(machine.pid, signal.SIGTERM)
    else:
        operator.stop_cause = ending
        operator.wake()
    # A command is heard with the next heartbeat, a second later at most.
    assert await machine.ended(GRACE + SPARE + (ending != "signal")) == 0
    assert time.monotonic() - began < GRACE + SPARE + (ending != "signal")
    assert not [process for process in below if process.is_running()]
    assert not memory(machine).get("rejected")


async def test_another_kind_of_runtime_and_back_keeps_state_and_version(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    want(operator, OLD)
    machine.run(quick(1))
    await machine.heard(ready_with(OLD), "the old version")
    assert await opens(machine)
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    await eventually(lambda: machine.lines("update done"), "its proof")
    operator.change(runtime={"kind": "Command", "version": OLD, "command": ["sleep", "1000"]})
    await machine.ready()
    assert not await opens(machine)
    assert operator.last["channels"] == {}
    assert operator.last["degraded"] == []
    want(operator, NEW)
    await machine.heard(lambda b: ready_with(NEW)(b) and not b["degraded"], "the new version again")
    assert await opens(machine)
    assert lives(machine) == [OLD, NEW, NEW]
    assert len(snapshots(machine)) == 1
    assert memory(machine)["version"] == NEW


async def test_a_trial_ends_with_another_kind_of_runtime_even_of_the_same_version(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {"schema": 17}, NEW: {"schema": 18}})
    want(operator, OLD)
    machine.run(quick(60))
    await machine.heard(ready_with(OLD), "the old version")
    want(operator, NEW)
    await machine.heard(ready_with(NEW), "the new version")
    operator.change(runtime={"kind": "Command", "version": NEW, "command": ["sleep", "1000"]})
    await machine.ready()
    assert memory(machine)["version"] == OLD
    assert not memory(machine).get("trial")
    assert lives(machine) == [OLD]


async def test_a_port_that_was_taken_is_no_trouble_of_a_runtime_without_ports(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    machine.environment |= make(tmp_path / "opt", {OLD: {}})
    with socket.create_server((machine.address, PORTS["control"])):
        want(operator, OLD)
        machine.run(quick(1))
        await machine.heard(lambda b: b["ready"] and "control: port" in str(b["degraded"]), "the port")
        operator.change(runtime={"kind": "Command", "version": OLD, "command": ["sleep", "1000"]})
        await machine.ready()
        await machine.heard(lambda b: not b["degraded"], "well")


async def opens(machine: Machine) -> bool:
    """Whether the gateway's port takes connections."""
    try:
        _, writer = await asyncio.open_connection(machine.address, PORTS["gateway"])
    except OSError:
        return False
    writer.close()
    return True
