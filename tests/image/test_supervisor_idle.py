"""Telling whether an agent is idle, and waking up: a real runtime is visited, speaks for itself, and is stopped."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from endpoint import OperatorDouble
from machine import Machine, eventually, python

from roost_agent.contract import instant
from roost_agent.contract.paths import ACTIVITY_FILE

PAGE = Path(__file__).parents[2] / "docs/reference/supervisor.md"
PORT = 8080
KEEPS_CONNECTIONS = """
import http.server, os
class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
http.server.ThreadingHTTPServer((os.environ["ROOST_BIND_ADDRESS"], 8080), Hello).serve_forever()
"""


def command(*argv: str, **more: Any) -> dict[str, Any]:
    return {"kind": "Command", "version": "1.0", "command": list(argv), **more}


def beating(operator: OperatorDouble, runtime: Mapping[str, Any]) -> None:
    """An agent with this runtime that is heard every second."""
    operator.next_seconds = 1
    operator.change(runtime=runtime, heartbeat={"intervalSeconds": 1})


async def beats_more(operator: OperatorDouble, count: int) -> list[dict[str, Any]]:
    """The next heartbeats."""
    seen = len(operator.beats)
    await eventually(lambda: len(operator.beats) >= seen + count, f"{count} heartbeats")
    return [beat.body for beat in operator.beats[seen : seen + count]]


async def test_a_runtime_that_says_nothing_is_not_said_to_have_no_sessions(
    machine: Machine, operator: OperatorDouble
) -> None:
    beating(operator, command("sleep", "1000"))
    machine.start()
    await machine.ready()
    for beat in await beats_more(operator, 2):
        assert (beat["activeSessions"], beat["lastActivityAt"], beat["nextScheduledRunAt"]) == (None, None, None)
        assert (beat["connections"], beat["degraded"]) == (0, [])


async def test_the_documented_line_says_that_the_agent_is_idle(machine: Machine, operator: OperatorDouble) -> None:
    section = PAGE.read_text().split("## Telling whether it is idle")[1]
    line = section.split("```sh\n")[1].split("```")[0].replace("python3", sys.executable)
    beating(operator, command("sh", "-c", f"{line}\nexec sleep 1000"))
    machine.start()
    await machine.heard(lambda b: b["activeSessions"] == 0, "the runtime's word")
    assert operator.last["nextScheduledRunAt"] == "2026-11-22T06:00:00Z"
    assert instant(operator.last["lastActivityAt"]) == instant("2026-11-21T10:00:00Z")
    assert operator.last["degraded"] == []
    assert [path.name for path in machine.data.glob(".roost-*")] == [ACTIVITY_FILE]


async def test_a_visit_is_activity_and_a_look_at_readiness_is_none(machine: Machine, operator: OperatorDouble) -> None:
    readiness = {"httpGet": {"path": "/", "port": PORT}}
    beating(operator, command(*python(KEEPS_CONNECTIONS), readiness=readiness))
    machine.start()
    pid = await machine.ready()
    looks = [s for s in psutil.Process(pid).net_connections("tcp") if s.status == psutil.CONN_ESTABLISHED]
    assert looks, "the supervisor keeps its connection, so there is one that could be miscounted"
    for beat in await beats_more(operator, 2):
        assert (beat["connections"], beat["lastActivityAt"]) == (0, None)

    visits = [await asyncio.open_connection(machine.address, PORT) for _ in range(2)]
    await machine.heard(lambda b: b["connections"] == 2, "both visitors")
    first, second = [instant(beat["lastActivityAt"]) for beat in await beats_more(operator, 2)]
    assert first < second
    for _, writer in visits:
        writer.close()
        await writer.wait_closed()
    await machine.heard(lambda b: b["connections"] == 0, "that they have left")
    left = operator.last["lastActivityAt"]
    assert {beat["lastActivityAt"] for beat in await beats_more(operator, 3)} == {left}
    assert operator.last["activeSessions"] is None


async def test_a_wrong_file_is_told_once_until_it_is_right(machine: Machine, operator: OperatorDouble) -> None:
    beating(operator, command("sleep", "1000"))
    machine.start()
    await machine.ready()
    file = machine.data / ACTIVITY_FILE
    file.write_text('{"activeSession": 0}')
    await machine.heard(lambda b: b["degraded"], "what is wrong")
    for beat in await beats_more(operator, 2):
        assert beat["degraded"] == [f"activity: {ACTIVITY_FILE} is not understood (activeSession: extra_forbidden)"]
        assert (beat["status"], beat["ready"], beat["activeSessions"]) == ("degraded", True, None)
    assert len(machine.lines("degraded")) == 1
    file.write_text(json.dumps({"activeSessions": 0}))
    await machine.heard(lambda b: b["activeSessions"] == 0 and b["status"] == "running", "it put right")


async def test_sessions_end_with_the_process_that_spoke_of_them(machine: Machine, operator: OperatorDouble) -> None:
    beating(operator, command("sleep", "1000"))
    machine.start()
    first = await machine.ready()
    (machine.data / ACTIVITY_FILE).write_text(json.dumps({"activeSessions": 3}))
    await machine.heard(lambda b: b["activeSessions"] == 3, "its sessions")
    os.kill(first, signal.SIGKILL)
    await machine.heard(lambda b: b["runtime"]["restarts"] == 1 and b["runtime"]["pid"], "its successor")
    assert operator.last["activeSessions"] is None


async def test_a_machine_that_was_stopped_is_heard_soon_after_it_goes_on(
    machine: Machine, operator: OperatorDouble
) -> None:
    beating(operator, command("sleep", "1000"))
    operator.holds, operator.next_seconds = False, 300  # so that nothing else would make it speak
    machine.start()
    runtime = await machine.ready()
    await eventually(lambda: operator.open == 0, "the answer")
    before, said = operator.beats[-1], len(operator.beats)

    family = [psutil.Process(machine.pid), psutil.Process(runtime)]
    for process in family:
        process.suspend()
    stopped = time.monotonic()
    await eventually(lambda: time.monotonic() - stopped > 3.5, "more than two intervals")
    assert len(operator.beats) == said
    for process in reversed(family):
        process.resume()

    await eventually(lambda: len(operator.beats) > said, "a heartbeat", 5)
    beat = operator.beats[said]
    assert beat.port != before.port, "on a connection of before the stop"
    assert beat.body["runtime"] == before.body["runtime"]
    assert (beat.body["ready"], beat.body["degraded"]) == (True, [])
    assert machine.lines("awake again")[-1]["seconds"] >= 2
    assert machine.lines("heartbeat not taken") == []
