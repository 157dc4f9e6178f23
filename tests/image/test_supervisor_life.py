"""The life of a machine: boot, readiness, crashes, stopping, orphans, PID 1."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from endpoint import TOKEN, OperatorDouble, refuse
from machine import Machine, alive, eventually, python

from roost_agent.contract import MACHINE_ID_HEADER, TOKEN_HEADER, BootPhase, Exit

IGNORES_SIGTERM = """
import signal, sys, pathlib
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("deaf").touch()
while True: signal.pause()
"""
SERVES_ONCE_TOLD = """
import http.server, os, pathlib, time
while not pathlib.Path("go").exists(): time.sleep(0.01)
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204 if self.path == "/up" else 500)
        self.end_headers()
http.server.HTTPServer((os.environ["ROOST_BIND_ADDRESS"], 8080), Hello).serve_forever()
"""
LEAVES_ORPHANS = """
import os, pathlib, time
for i in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while not pathlib.Path("go").exists(): time.sleep(0.01)
            os._exit(i)
        os._exit(0)
    os.wait()
pathlib.Path("forked").touch()
while True: time.sleep(1000)
"""
DIVIDES = """
import os, time, pathlib
for session in (False, True):
    if os.fork() == 0:
        if session: os.setsid()
        pathlib.Path("escaped" if session else "member").write_text(str(os.getpid()))
        while True: time.sleep(1000)
while True: time.sleep(1000)
"""


def command(*argv: str, **more: object) -> dict[str, object]:
    return {"kind": "Command", "version": "1.0", "command": list(argv), **more}


async def test_boots_in_order_and_tells_that_it_is_ready(machine: Machine, operator: OperatorDouble) -> None:
    began = time.monotonic()
    machine.start()
    pid = await machine.ready()
    assert operator.beats[0].at - began < 1.5  # with the bundle applied; under half a second on an idle machine

    steps = [line["phase"] for line in machine.lines("boot step")]
    assert steps == [phase for phase in BootPhase if phase not in (BootPhase.DONE, BootPhase.UNKNOWN)]
    assert all(line["seconds"] >= 0 for line in machine.lines("boot step"))
    beat = operator.last
    assert alive(pid)
    assert (beat["status"], beat["bootPhase"], beat["machineId"]) == ("running", "done", "m-1")
    assert (beat["machineVersion"], beat["openclawVersion"], beat["computeVersion"]) == ("01JV", "1.0", "0.1.0")
    assert beat["runtime"] == {"state": "running", "pid": pid, "restarts": 0, "lastExit": None}
    assert 0 < beat["disk"]["usedBytes"] <= beat["disk"]["totalBytes"]
    assert beat["memoryMb"] > 10
    assert beat["degraded"] == []
    assert await machine.get("/healthz") == (200, {"status": "running", "phase": "done"})
    assert (await machine.get("/readyz"))[0] == 200
    assert operator.beats[-1].wait == 25
    for headers in (operator.beats[0].headers, operator.bundle_calls[0][1]):
        assert headers[MACHINE_ID_HEADER] == "m-1"
        assert headers[TOKEN_HEADER] == TOKEN

    os.kill(machine.pid, signal.SIGTERM)
    assert await machine.ended() == Exit.ASKED
    assert (operator.last["status"], operator.last["runtime"]["state"]) == ("stopping", "stopped")
    assert not alive(pid)


async def test_the_own_port_answers_while_there_is_no_bundle(machine: Machine, operator: OperatorDouble) -> None:
    operator.bundle_answer = refuse(500)
    machine.start()
    await eventually(lambda: operator.bundle_calls, "the first call")
    assert await machine.get("/healthz") == (200, {"status": "starting", "phase": "bundle"})
    assert (await machine.get("/readyz"))[0] == 503
    await eventually(lambda: len(operator.bundle_calls) > 1, "the call made again")
    assert await machine.stop() == Exit.ASKED
    assert operator.beats == []


async def test_readiness_is_what_the_runtime_answers(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=command(*python(SERVES_ONCE_TOLD), readiness={"httpGet": {"path": "/up", "port": 8080}}))
    machine.start()
    await machine.runs()
    assert not operator.last["ready"]
    assert (await machine.get("/readyz"))[0] == 503
    (machine.data / "go").touch()
    await machine.ready()
    assert (await machine.get("/readyz"))[0] == 200


async def test_a_runtime_that_is_never_ready_is_started_anew(machine: Machine, operator: OperatorDouble) -> None:
    wrong = {"httpGet": {"path": "/down", "port": 8080}, "initialDeadlineSeconds": 1}
    machine.data.mkdir()
    (machine.data / "go").touch()
    operator.change(runtime=command(*python(SERVES_ONCE_TOLD), readiness=wrong))
    machine.start()
    first = await machine.runs()
    second = await machine.heard(lambda b: b["runtime"]["restarts"] == 1 and b["runtime"]["pid"], "another start")
    assert second != first
    assert not alive(first)
    assert not any(beat.body["ready"] for beat in operator.beats)


async def test_a_killed_runtime_is_back_within_a_moment(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    first = await machine.runs()
    await eventually(lambda: operator.open == 1, "the long poll")
    killed = time.monotonic()
    os.kill(first, signal.SIGKILL)
    await machine.heard(lambda b: b["runtime"]["state"] == "crashed", "the crash, at once", 0.5)
    assert operator.last["status"] == "degraded"
    assert operator.last["runtime"]["lastExit"]["signal"] == signal.SIGKILL
    second = await machine.heard(lambda b: b["runtime"]["restarts"] == 1 and b["runtime"]["pid"], "the new one")
    assert time.monotonic() - killed <= 1.5
    assert second != first
    assert operator.most_open <= 2  # one long poll; its successor may be heard of before its end is seen


async def test_exit_zero_unasked_is_an_end_like_any_other(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=command("sh", "-c", "echo start >> starts"))
    machine.start()
    await machine.heard(lambda b: b["runtime"]["restarts"] == 1, "the second start")
    await machine.heard(lambda b: b["runtime"]["state"] == "crashed", "its end")
    assert operator.last["runtime"]["lastExit"]["code"] == 0
    assert (machine.data / "starts").read_text() == "start\n" * 2  # the next start is two seconds away
    assert not any(beat.body["ready"] for beat in operator.beats)


async def test_a_program_that_is_not_there_is_said_to_be(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=command("no-such-program"))
    machine.start()
    await machine.heard(lambda b: b["runtime"]["state"] == "crashed", "the failure")
    assert operator.last["runtime"]["lastExit"]["code"] == 127
    operator.change(runtime=command("sleep", "1000"))
    await machine.runs()


async def test_a_runtime_deaf_to_sigterm_is_killed_after_the_grace(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=command(*python(IGNORES_SIGTERM)))
    machine.start(ROOST_STOP_GRACE_SECONDS="0.5")
    pid = await machine.runs()
    await eventually((machine.data / "deaf").exists, "the program to have started")
    told = time.monotonic()
    assert await machine.stop() == Exit.ASKED
    assert 0.5 <= time.monotonic() - told < 2
    assert not alive(pid)
    assert operator.last["runtime"]["lastExit"]["signal"] == signal.SIGKILL
    assert operator.last["status"] == "stopping"


async def test_nothing_is_left_of_the_group_nor_of_what_escaped_it(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=command(*python(DIVIDES)))
    machine.start()
    leader = await machine.runs()
    files = [machine.data / name for name in ("member", "escaped")]
    await eventually(lambda: all(file.exists() and file.read_text() for file in files), "both")
    left = [int(file.read_text()) for file in files]
    assert all(map(alive, left))
    os.kill(leader, signal.SIGKILL)
    await eventually(lambda: not any(map(alive, left)), "the end of both")
    assert await machine.stop() == Exit.ASKED


async def test_orphans_are_taken_in(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=command(*python(LEAVES_ORPHANS)))
    machine.start()
    pid = await machine.runs()
    await eventually((machine.data / "forked").exists, "the orphans")
    below = psutil.Process(machine.pid).children()
    assert len(below) == 6
    (machine.data / "go").touch()
    await eventually(lambda: psutil.Process(machine.pid).children() == [psutil.Process(pid)], "no zombie, no orphan")
    os.kill(pid, signal.SIGKILL)
    await machine.heard(lambda b: b["runtime"]["lastExit"], "the runtime's own end")
    assert operator.last["runtime"]["lastExit"]["signal"] == signal.SIGKILL  # not mixed up with theirs


def pid_namespace(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/pid").readlink()


def _no_namespaces() -> str:
    """Why there can be no PID 1 here; empty when there can."""
    if shutil.which("unshare") is None:
        return "no `unshare` here to make a PID namespace with"
    tried = subprocess.run(["unshare", "-pf", "--mount-proc", "true"], capture_output=True, text=True, check=False)
    return f"unshare is not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


async def test_as_a_real_pid_1(machine: Machine, operator: OperatorDouble) -> None:
    if why := _no_namespaces():
        pytest.skip(why)
    operator.change(runtime=command(*python(LEAVES_ORPHANS)))
    machine.start("unshare", "-pf", "--mount-proc", "--kill-child")
    await machine.runs()
    [supervisor] = psutil.Process(machine.pid).children()
    assert pid_namespace(supervisor.pid) != pid_namespace(os.getpid())
    await eventually((machine.data / "forked").exists, "the orphans")
    assert len(supervisor.children()) == 6
    (machine.data / "go").touch()
    await eventually(lambda: len(supervisor.children()) == 1, "no zombie, no orphan")
    supervisor.terminate()
    assert await machine.ended() == Exit.ASKED
    assert operator.last["status"] == "stopping"


async def test_a_stop_is_heard_in_every_step(machine: Machine, operator: OperatorDouble) -> None:
    operator.bundle_answer = refuse(503, **{"Retry-After": "300"})
    machine.start()
    await eventually(lambda: operator.bundle_calls, "the first call")
    assert await machine.stop() == Exit.ASKED
    assert len(operator.bundle_calls) == 1


async def test_two_supervisors_do_not_share_a_machine(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    await machine.runs()
    first = machine.process
    machine.start()
    assert await machine.ended() == Exit.PORT_TAKEN
    assert "HEALTH_PORT 18792" in machine.lines("ended")[-1]["why"]
    machine.process = first


async def test_a_bad_environment_is_one_sentence(machine: Machine) -> None:
    machine.start(AS_HEARTBEAT_TOKEN="")
    assert await machine.ended() == Exit.BAD_ENVIRONMENT
    [line] = machine.lines()
    assert line["why"].startswith("AS_HEARTBEAT_TOKEN is not set: set it to ")
    assert f"roost-agent: {line['why']}" in machine.log.read_text()
