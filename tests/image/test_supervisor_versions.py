"""A machine and an operator of different versions: what either does not know leaves the agent alone."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from endpoint import OperatorDouble, bundle
from machine import Machine, alive, eventually

from roost_agent.contract import Exit

COMMAND: dict[str, Any] = {"kind": "Command", "version": "1.0", "command": ["sleep", "1000"]}
LATER_KIND: dict[str, Any] = {"kind": "Wasm", "version": "2026.9.6", "command": None, "readiness": None}
SKILL = {
    "layoutVersion": "openclaw-workspace-skill-v1",
    "policy": "AllowlistOnly",
    "items": [
        {"name": "weather", "version": "1", "files": [{"path": "SKILL.md", "content": "x", "sha256": "0" * 64}]},
    ],
}
HOT: dict[str, Any] = {
    "generation": 2,
    "soul": "kind",
    "workspace": [{"path": "AGENTS.md", "content": "x", "policy": "Seed"}],
    "skills": SKILL,
    "heartbeat": {"intervalSeconds": 31},
    "telemetry": {"intervalSeconds": 60, "initialDelaySeconds": 5},
}
LATER: dict[str, Any] = {
    "runtime": COMMAND | {"sandbox": {"level": 3}},
    "heartbeat": {"intervalSeconds": 30, "jitterSeconds": 3},
    "agent": bundle()["agent"] | {"tenant": "t-1"},
    "channels": {"telegram": {"enabled": True, "dmPolicy": "askMe", "tokenEnv": "T"}, "carrierPigeon": {"coop": 7}},
    "memory": {"engine": "lance", "shards": [1, 2]},
}
"""What an operator of some later version may send beside what is known today."""


async def test_a_runtime_that_the_image_cannot_run_leaves_the_one_that_runs(
    machine: Machine, operator: OperatorDouble
) -> None:
    machine.start()
    pid = await machine.ready()
    good = operator.last["bundleRevision"]
    operator.change(runtime=LATER_KIND, files=[{"path": "new", "mode": "0600", "content": "x"}])
    await machine.heard(lambda b: b["degraded"], "what is wrong")
    remedy = "set machine.image to one that can, or runtime.kind to Command"
    assert operator.last["degraded"] == [f"runtime: this image can't run a newer runtime.kind: {remedy}"]
    assert (operator.last["status"], operator.last["bundleRevision"]) == ("degraded", good)
    assert (operator.last["runtime"]["pid"], operator.last["ready"]) == (pid, True)
    assert operator.last["lastCommandId"] is None
    assert alive(pid)
    assert not (machine.data / "new").exists()
    assert len(operator.bundle_calls) == 2

    revision = operator.change(runtime=COMMAND, soul="kind")
    os.kill(pid, signal.SIGKILL)  # news, so that there is a heartbeat
    await machine.heard(lambda b: b["bundleRevision"] == revision, "that it was put right")
    assert operator.last["degraded"] == []


@pytest.mark.parametrize("wrong", ["runtime", "configure"])
async def test_a_change_that_is_taken_back_leaves_nothing_wrong(
    machine: Machine, operator: OperatorDouble, wrong: str
) -> None:
    """Nobody asks for an update then: what is wanted is what runs."""
    operator.next_seconds = 1
    pace = {"heartbeat": {"intervalSeconds": 1}}
    operator.change(**pace)
    machine.start()
    pid = await machine.ready()
    good = operator.bundle
    if wrong == "runtime":
        operator.change(runtime=LATER_KIND, **pace)
    else:
        (machine.data / "etc").symlink_to("/")
        operator.change(files=[{"path": "etc/x", "mode": "0600", "content": "x"}], **pace)
    await machine.heard(lambda b: b["degraded"], "what is wrong")
    assert operator.last["degraded"][0].startswith(f"{wrong}: ")
    operator.bundle = good
    operator.wake()
    await machine.heard(lambda b: not b["degraded"], "that nothing is wrong")
    assert (operator.last["status"], operator.last["runtime"]["pid"]) == ("running", pid)
    calls, beats = len(operator.bundle_calls), len(operator.beats)
    await machine.heard(lambda b: len(operator.beats) > beats + 2, "heartbeats that were answered")
    assert len(operator.bundle_calls) == calls


async def test_with_nothing_to_run_a_machine_waits_and_says_why(machine: Machine, operator: OperatorDouble) -> None:
    operator.next_seconds = 1  # the pace while a command is repeated in vain
    operator.change(runtime=LATER_KIND)
    machine.start()
    await machine.heard(lambda b: b["bootPhase"] == "done", "the end of the boot")
    beat = operator.last
    assert (beat["status"], beat["ready"], beat["bundleRevision"]) == ("degraded", False, None)
    assert beat["degraded"][0].startswith("runtime: this image can't run a newer runtime.kind")
    assert beat["runtime"] == {"state": "stopped", "pid": None, "restarts": 0, "lastExit": None}
    assert await machine.get("/healthz") == (200, {"status": "degraded", "phase": "done"})
    assert (await machine.get("/readyz"))[0] == 503
    assert not (
        machine.data / ".roost/bundle.sealed"
    ).exists()  # or the next boot would run it, were it of another kind

    # It is asked to start anew, which it can't; and what it can run it takes up.
    operator.change(runtime=LATER_KIND | {"restartedAt": "now"})
    await eventually(lambda: [line for line in machine.lines("command") if line["type"] == "restart"], "the restart")
    operator.change(runtime=COMMAND, files=[{"path": "new", "mode": "0600", "content": "x"}])
    await machine.ready()
    assert (machine.data / "new").read_text() == "x"
    assert operator.last["degraded"] == []
    assert await machine.stop() == Exit.ASKED


async def test_after_a_boot_the_last_configuration_that_the_image_could_run_goes_on(
    machine: Machine, operator: OperatorDouble
) -> None:
    machine.start()
    await machine.ready()
    good = operator.last["bundleRevision"]
    await machine.stop()
    operator.change(runtime=LATER_KIND)
    operator.beats.clear()
    machine.start()
    pid = await machine.heard(lambda b: b["ready"] and b["degraded"], "the old one, and what is wrong")
    assert operator.last["bundleRevision"] == good
    assert operator.last["degraded"][0].startswith("runtime: ")
    assert alive(pid)


async def test_nothing_starts_while_nothing_can_and_it_still_ends_when_it_is_asked(
    machine: Machine, operator: OperatorDouble
) -> None:
    operator.next_seconds = 1
    operator.change(runtime=LATER_KIND)
    machine.start()
    await machine.heard(lambda b: b["bootPhase"] == "done", "the end of the boot")
    operator.stop_cause = "deleted"
    operator.wake()
    assert await machine.ended() == Exit.ASKED
    assert machine.lines("runtime started") == []


@pytest.mark.parametrize("field", HOT)
async def test_what_is_hot_takes_effect_without_a_restart(
    machine: Machine, operator: OperatorDouble, field: str
) -> None:
    machine.start()
    pid = await machine.ready()
    revision = operator.change(**{field: HOT[field]})
    if field == "generation":
        return  # it is no part of the revision
    await machine.heard(lambda b: b["bundleRevision"] == revision, "the new revision")
    assert operator.last["runtime"] == {"state": "running", "pid": pid, "restarts": 0, "lastExit": None}
    assert alive(pid)
    assert operator.last["degraded"] == []


async def test_what_is_not_hot_restarts(machine: Machine, operator: OperatorDouble) -> None:
    """The same list of changes, and one that the process depends on."""
    machine.start()
    pid = await machine.ready()
    operator.change(**HOT, secretEnv={"KEY": "g"})
    assert await machine.ready() != pid


async def test_a_command_is_neither_given_the_gateway_token_nor_restarted_for_it(
    machine: Machine, operator: OperatorDouble
) -> None:
    machine.start()
    pid = await machine.ready()
    revision = operator.change(**HOT, secretEnv={"OPENCLAW_GATEWAY_TOKEN": "g"})
    await machine.heard(lambda b: b["bundleRevision"] == revision, "the new revision")
    assert alive(pid)
    assert "OPENCLAW_GATEWAY_TOKEN" not in psutil.Process(pid).environ()


async def test_a_later_operator_is_understood_as_far_as_it_can_be(machine: Machine, operator: OperatorDouble) -> None:
    """Fields, words and commands that nobody knows today, as they would come over the wire."""
    operator.change(**LATER)
    machine.start()
    pid = await machine.ready()
    assert operator.last["degraded"] == []
    commands = [
        {"id": "defragment:1", "type": "defragment", "reason": "", "depth": 3},
        {"id": "defragment:2", "type": "defragment", "reason": ""},
        {"id": "update_version:2", "type": "update_version", "reason": "", "version": "2026.9.9"},
        {"id": "drain:scaleDown", "type": "drain", "reason": "", "deadline": "2026-11-21T10:00:00Z"},
    ]
    text = json.dumps({"commands": commands, "nextHeartbeatSeconds": 1, "serverTime": "2026-11-21T10:00:00Z"})
    operator.beat_answer = lambda: web.Response(text=text, content_type="application/json")
    operator.wake()
    await machine.heard(lambda b: b["lastCommandId"] == "drain:scaleDown", "the one that is known")
    counted = len(operator.beats)
    await eventually(lambda: len(operator.beats) > counted + 1, "another heartbeat")
    told = machine.lines("command not known to this version")
    assert [line["id"] for line in told] == ["defragment:1", "defragment:2"]
    assert (operator.last["status"], operator.last["runtime"]["pid"]) == ("running", pid)
    assert alive(pid)


async def test_an_earlier_operator_is_enough(machine: Machine, operator: OperatorDouble) -> None:
    """It sends nothing but what the first version sent, and answers without a pace."""
    sent = {"apiVersion", "kind", "revision", "generation", "agent", "revoked", "runtime"}
    assert set(operator.bundle) == sent | {"env", "secretEnv", "files", "heartbeat"}
    operator.beat_answer = lambda: web.json_response({"commands": []})
    machine.start()
    await machine.ready()
    beat = operator.last
    assert (beat["channels"], beat["pendingPairings"]) == ({}, None)  # the kind Command has neither
    commands = [{"id": "restart:x", "type": "restart", "reason": "", "restartedAt": "x"}]
    operator.beat_answer = lambda: web.json_response({"commands": commands})
    os.kill(beat["runtime"]["pid"], signal.SIGKILL)  # news, so that there is a heartbeat
    await machine.heard(lambda b: b["restartedAt"] == "x" and b["runtime"]["pid"], "the restart")


def says(machine: Machine, sessions: int) -> None:
    """What the runtime says of itself."""
    path = Path(machine.data, ".roost-activity.json")
    path.with_suffix(".new").write_text(json.dumps({"activeSessions": sessions}))
    path.with_suffix(".new").replace(path)


async def test_a_runtime_that_is_to_drain_is_said_to_until_its_sessions_have_ended(
    machine: Machine, operator: OperatorDouble
) -> None:
    operator.next_seconds = 1
    operator.change(heartbeat={"intervalSeconds": 1})
    machine.start()
    pid = await machine.ready()
    says(machine, 2)
    await machine.heard(lambda b: b["activeSessions"] == 2, "the sessions")
    assert operator.last["status"] == "running"

    drain = {"commands": [{"id": "drain:scaleDown", "type": "drain", "reason": "it leaves"}], "nextHeartbeatSeconds": 1}
    operator.beat_answer = lambda: web.json_response(drain)
    operator.wake()
    await machine.heard(lambda b: b["lastCommandId"] == "drain:scaleDown", "that it has heard")
    assert (operator.last["status"], operator.last["ready"]) == ("draining", True)
    says(machine, 0)
    await machine.heard(lambda b: b["status"] == "running" and b["activeSessions"] == 0, "that it has finished")
    assert operator.last["lastCommandId"] == "drain:scaleDown"
    assert operator.last["runtime"]["pid"] == pid  # its end is another command's
