"""Watching the supervisor and asking something of it: real WebSockets to the real server."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import eventually
from server_calls import BEARER, SECONDS, TOKEN, Passed, answer, asked, connected, head, request
from test_pairing_http import ANN, Runtime

from roost_agent import __version__
from roost_agent.contract import Command, CommandType, Heartbeat
from roost_agent.contract.heartbeat import BootPhase, LastExit, ProcessState, RuntimeState, Status
from roost_agent.runtime.openclaw.pairing import Pairing
from roost_agent.servers import control_ws
from roost_agent.servers.pairing_http import described

WELL = Heartbeat(
    status=Status.RUNNING,
    openclaw_version="2026.9.6",
    machine_id="m-1",
    uptime_seconds=1,
    memory_mb=50,
    compute_version="1",
    boot_phase=BootPhase.DONE,
    ready=True,
    runtime=RuntimeState(state=ProcessState.RUNNING, pid=os.getpid()),
)
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==",
    "Sec-WebSocket-Version: 13",
)


class Vitals:
    """What is true now; `show` changes it and tells."""

    def __init__(self) -> None:
        self.now = WELL
        self.callbacks: list[Callable[[], None]] = []

    def heartbeat(self) -> Heartbeat:
        return self.now

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def show(self, **changes: Any) -> None:
        self.now = self.now.model_copy(update=changes)
        for callback in self.callbacks:
            callback()


class World:
    """One server, what it looks at, and what it offers."""

    def __init__(self) -> None:
        self.vitals = Vitals()
        self.runtime = Runtime()
        self.offered: list[Command] = []
        self.port = 0
        self.runner: web.ServerRunner | None = None
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    @property
    def connections(self) -> int:
        assert self.runner is not None
        assert self.runner.server is not None
        return len(self.runner.server.connections)

    async def listener(self) -> "Listener":
        return Listener(await self.session.ws_connect(f"ws://127.0.0.1:{self.port}/", headers=BEARER))

    async def get(self, path: str, token: str | None = TOKEN) -> tuple[int, dict[str, Any]]:
        got = await asked(self.port, request(f"GET {path}", token=token))
        return got.status, json.loads(got.body)

    async def post(self, path: str) -> tuple[int, dict[str, Any]]:
        got = await asked(self.port, request(f"POST {path}", "Content-Length: 0"))
        return got.status, json.loads(got.body)


class Listener:
    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def hears(self) -> dict[str, Any]:
        message = await self.ws.receive(SECONDS)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return dict(json.loads(message.data))

    async def asks(self, command: str, id_: str = "1", **more: Any) -> dict[str, Any]:
        await self.ws.send_json({"type": "command", "id": id_, "command": command, **more})
        return await self.hears()


@asynccontextmanager
async def world(token: str | None = TOKEN, ping: float = 40.0) -> AsyncIterator[World]:
    made = World()
    runner = await control_ws.serve(
        made.vitals,
        made.runtime,
        offer=made.offered.extend,
        token=lambda: token,
        address="127.0.0.1",
        port=0,
        ping=ping,
    )
    made.port, made.runner = runner.addresses[0][1], runner
    try:
        yield made
    finally:
        await runner.cleanup()
        await made.session.close()
        assert made.vitals.callbacks == []


# --- Listening


async def test_whoever_connects_learns_the_present_state_and_then_every_change_in_order() -> None:
    async with world() as here:
        here.vitals.show(boot_phase=BootPhase.INSTALL, ready=False, status=Status.STARTING)
        here.runtime.waiting = [ANN]
        early = await here.listener()
        hello = await early.hears()
        assert (hello["type"], hello["apiVersion"], hello["version"]) == ("hello", "roost.dev/v1alpha1", __version__)
        assert hello["capabilities"] == sorted(hello["capabilities"]) == control_ws.CAPABILITIES
        assert (hello["state"]["bootPhase"], hello["state"]["ready"]) == ("install", False)
        assert hello["pairings"] == [described(ANN)]

        for phase in (BootPhase.START, BootPhase.DONE):
            here.vitals.show(boot_phase=phase)
        here.vitals.show(ready=True, status=Status.RUNNING)
        heard = [await early.hears() for _ in range(5)]
        assert [each["type"] for each in heard] == ["phase", "status", "phase", "status", "status"]
        assert [heard[0]["phase"], heard[2]["phase"]] == ["start", "done"]
        assert (heard[4]["state"]["ready"], heard[4]["state"]["status"]) == (True, "running")

        late = await here.listener()
        assert (await late.hears())["state"] == heard[4]["state"]
        here.vitals.show(status=Status.DEGRADED, degraded=["telegram: token refused"])
        assert (await early.hears())["state"]["degraded"] == (await late.hears())["state"]["degraded"]


async def test_what_is_no_change_is_not_told() -> None:
    async with world() as here:
        listener = await here.listener()
        await listener.hears()
        here.vitals.show()
        here.vitals.show(uptime_seconds=2, memory_mb=51)
        here.vitals.show(last_command_id="restart:noon")
        assert (await listener.hears())["state"]["uptimeSeconds"] == 2
        assert await listener.hears() == {"type": "command", "command": "restart:noon", "done": True}


async def test_who_comes_and_who_goes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bea = replace(ANN, id="req-2", code="AAAAAAAA", name="bea")
    monkeypatch.setattr(control_ws, "LOOK_SECONDS", 0.02)
    async with world() as here:
        listener = await here.listener()
        assert (await listener.hears())["pairings"] == []
        here.runtime.waiting = [ANN, bea]
        heard = [await listener.hears(), await listener.hears()]
        assert {(each["type"], each["change"], each["pairing"]["name"]) for each in heard} == {
            ("pairing", "new", "ann"),
            ("pairing", "new", "bea"),
        }
        here.runtime.away = True
        await eventually(Passed(0.1), "several looks in vain")
        here.runtime.waiting, here.runtime.away = [bea], False
        assert await listener.hears() == {"type": "pairing", "change": "gone", "pairing": described(ANN)}
        late = await here.listener()
        assert (await late.hears())["pairings"] == [described(bea)]


async def test_a_change_of_state_is_reason_enough_to_look_who_waits() -> None:
    async with world() as here:
        listener = await here.listener()
        await listener.hears()
        here.runtime.waiting = [ANN]
        here.vitals.show(pending_pairings=1)
        assert [(await listener.hears())["type"] for _ in range(2)] == ["status", "pairing"]


async def test_while_the_runtime_is_away_it_is_not_known_who_waits() -> None:
    async with world() as here:
        here.runtime.away = True
        assert (await (await here.listener()).hears())["pairings"] is None


async def test_without_listeners_nothing_is_asked() -> None:
    class Counting(Runtime):
        looks = 0

        async def list(self) -> Sequence[Pairing]:
            self.looks += 1
            return []

    async with world() as here:
        counting = Counting()
        here.runtime.list = counting.list  # type: ignore[method-assign]
        listener = await here.listener()
        await listener.hears()
        await listener.ws.close()
        looks = counting.looks
        await eventually(lambda: not [t for t in asyncio.all_tasks() if "_keep_looking" in repr(t)], "the task's end")
        here.vitals.show(ready=False)
        await eventually(Passed(0.1), "time to look")
        assert counting.looks == looks


# --- Commands


@pytest.mark.parametrize("command", ["restart", "update_config", "drain"])
async def test_a_command_is_offered_and_its_result_told(command: str) -> None:
    async with world() as here:
        listener = await here.listener()
        await listener.hears()
        answered = await listener.asks(command, "abc", reason="by hand")
        id_ = f"{command}:control:abc"
        assert answered == {"type": "answer", "id": "abc", "accepted": True, "command": id_}
        assert here.offered == [Command(id=id_, type=CommandType(command), reason="by hand")]
        here.vitals.show(last_command_id=id_)
        assert (await listener.hears())["type"] == "status"
        assert await listener.hears() == {"type": "command", "command": id_, "done": True}


@pytest.mark.parametrize(
    ("command", "state", "error"),
    [
        ("stop", {}, "not_here"),
        ("update_version", {}, "unknown_command"),
        ("explode", {}, "unknown_command"),
        ("restart", {"status": Status.STOPPING}, "shutting_down"),
        ("restart", {"boot_phase": BootPhase.INSTALL}, "controller_route_unavailable"),
    ],
)
async def test_a_command_is_refused_with_a_reason(command: str, state: dict[str, Any], error: str) -> None:
    async with world() as here:
        here.vitals.show(**state)
        listener = await here.listener()
        await listener.hears()
        answered = await listener.asks(command)
        assert (answered["type"], answered["id"], answered["accepted"], answered["error"]) == (
            "answer",
            "1",
            False,
            error,
        )
        assert answered["message"]
        assert here.offered == []


async def test_there_is_a_limit_to_commands_of_all_together() -> None:
    async with world() as here:
        first, second = await here.listener(), await here.listener()
        for listener in (first, second):
            await listener.hears()
        accepted = [(await first.asks("restart", str(n)))["accepted"] for n in range(control_ws.COMMANDS)]
        assert accepted == [True] * control_ws.COMMANDS
        assert (await second.asks("restart", "x"))["error"] == "too_many_commands"
        assert len(here.offered) == control_ws.COMMANDS


@pytest.mark.parametrize(
    "said",
    [
        "",
        "{",
        "null",
        "[]",
        '{"type": "command"}',
        '{"type": "command", "id": "", "command": "restart"}',
        '{"type": "command", "id": "a b", "command": "restart"}',
        '{"type": "command", "id": "a\\n", "command": "restart"}',
        '{"type": "command", "id": 1, "command": "restart"}',
        '{"type": "command", "id": "1", "command": 1}',
        '{"type": "command", "id": "1", "command": "restart", "reason": 1}',
        '{"type": "command", "id": "1", "command": "restart", "reason": "' + "x" * 301 + '"}',
        '{"type": "other", "id": "1", "command": "restart"}',
        "[" * 4000,
        b'{"type": "command", "id": "1", "command": "restart"}',
    ],
)
async def test_what_is_not_understood_is_answered_and_changes_nothing(said: str | bytes) -> None:
    async with world() as here:
        listener = await here.listener()
        await listener.hears()
        await (listener.ws.send_str(said) if isinstance(said, str) else listener.ws.send_bytes(said))
        answered = await listener.hears()
        assert (answered["type"], answered["error"]) == ("error", "bad_message")
        assert here.offered == []
        assert (await listener.asks("drain"))["accepted"], "and the next one is heard"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.text(max_size=200), st.binary(max_size=200)), min_size=1, max_size=20))
async def test_every_message_has_exactly_one_answer(said: list[str | bytes]) -> None:
    async with world() as here:
        listener = await here.listener()
        await listener.hears()
        for each in said:
            await (listener.ws.send_str(each) if isinstance(each, str) else listener.ws.send_bytes(each))
        assert {(await listener.hears())["type"] for _ in said} == {"error"}
        assert (await listener.asks("drain"))["accepted"]


# --- Limits


async def test_a_message_that_is_too_long_ends_the_conversation() -> None:
    async with world() as here:
        listener = await here.listener()
        await listener.hears()
        await listener.ws.send_str("x" * (control_ws.MOST_BYTES + 1))
        ended = await listener.ws.receive(SECONDS)
        assert (ended.type, ended.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.MESSAGE_TOO_BIG)


async def test_whoever_does_not_read_is_dropped_and_holds_up_nobody() -> None:
    async with world() as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /", *UPGRADE))
        assert (await head(reader))[0] == 101
        writer.transport.pause_reading()
        listener = await here.listener()
        await listener.hears()
        assert here.connections == 2
        degraded = [chr(ord("a") + n) * 200 for n in range(16)]
        for n in range(5000):
            here.vitals.show(degraded=degraded, restarted_at=str(n))
            assert (await listener.hears())["state"]["restartedAt"] == str(n)
            if here.connections == 1:
                break
        else:
            pytest.fail("the one who does not read is still there")
        assert n < 3000
        writer.transport.resume_reading()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 30)
        writer.close()


async def test_there_are_a_hundred_listeners_and_not_one_more() -> None:
    async with world() as here:
        listeners = [await here.listener() for _ in range(control_ws.MOST_WEBSOCKETS)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await here.listener()
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "5")
        await listeners[0].ws.close()
        assert (await (await here.listener()).hears())["type"] == "hello"
        for listener in listeners[1:]:
            await listener.hears()
        here.vitals.show(ready=False)
        heard = await asyncio.gather(*(listener.hears() for listener in listeners[1:]))
        assert {each["state"]["ready"] for each in heard} == {False}


async def test_whoever_answers_no_ping_is_given_up_and_whoever_does_may_listen_for_ever() -> None:
    async with world(ping=0.2) as here:
        dead, writer = await connected(here.port)
        writer.write(request("GET /", *UPGRADE))
        assert (await head(dead))[0] == 101
        alive = await here.listener()
        await alive.hears()
        hearing = asyncio.create_task(alive.hears())  # aiohttp answers pings only while it reads
        async with asyncio.timeout(SECONDS):
            assert b"\x89\x00" in await dead.read(), "a ping, then the end"
        here.vitals.show(ready=False)
        assert (await hearing)["state"]["ready"] is False
        writer.close()


async def test_the_end_is_said_to_all_and_waits_for_nobody() -> None:
    async with world() as here:
        _, deaf = await connected(here.port)
        deaf.write(request("GET /", *UPGRADE))
        listener = await here.listener()
        await listener.hears()
        began = asyncio.get_running_loop().time()
        ended = asyncio.create_task(listener.ws.receive(SECONDS))
    assert (await ended).data == aiohttp.WSCloseCode.GOING_AWAY
    assert asyncio.get_running_loop().time() - began < 2
    deaf.close()


# --- Who may


async def test_strangers_hear_nothing_but_that_it_lives() -> None:
    async with world() as here:
        for token in (None, "wrong"):
            refused = await asked(here.port, request("GET /", *UPGRADE, token=token))
            assert (refused.status, json.loads(refused.body)["error"]) == (401, "unauthorized")
            refused = await asked(here.port, request(f"GET /?token={TOKEN}", *UPGRADE, token=token))
            assert refused.status == 401
            for path in ("/v1/status", "/v1/version", "/_kilo/version", "/_kilo/gateway/status", "/nowhere"):
                assert (await here.get(path, token=token))[0] == 401
            refused = await asked(here.port, request("POST /_kilo/gateway/restart", "Content-Length: 0", token=token))
            assert refused.status == 401
        assert here.offered == []
        alive = await asked(here.port, request("GET /health", token=None))
        assert (json.loads(alive.body), alive.headers["connection"]) == ({"status": "ok"}, "close")


async def test_a_browser_elsewhere_is_allowed_nothing() -> None:
    async with world() as here:
        preflight = await asked(
            here.port,
            request("OPTIONS /v1/status", "Origin: https://x.test", "Access-Control-Request-Method: GET", token=None),
        )
        got = await asked(here.port, request("GET /v1/status", "Origin: https://x.test"))
        assert (preflight.status, got.status) == (401, 200)
        assert not [name for name in {**preflight.headers, **got.headers} if name.startswith("access-control")]


# --- Calls


async def test_the_state_and_the_version_can_be_asked_for() -> None:
    async with world() as here:
        status, body = await here.get("/v1/status")
        assert (status, body["state"]["machineId"], body["apiVersion"]) == (200, "m-1", "roost.dev/v1alpha1")
        for path in ("/v1/version", "/_kilo/version"):
            status, body = await here.get(path)
            assert (status, body["version"], body["openclawVersion"]) == (200, __version__, "2026.9.6")
            assert body["capabilities"] == sorted(body["capabilities"])
        assert (await here.get("/"))[0] == 426


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({}, {"state": "ready"}),
        ({"boot_phase": BootPhase.INSTALL}, {"state": "bootstrapping", "phase": "install"}),
        ({"ready": False, "status": Status.STARTING}, {"state": "starting"}),
        (
            {"status": Status.DEGRADED, "degraded": ["telegram: 123456:SECRET"]},
            {"state": "degraded", "error": "degraded"},
        ),
        ({"status": Status.STOPPING}, {"state": "degraded", "error": "stopping"}),
        ({"status": Status.DRAINING}, {"state": "ready"}),
    ],
)
async def test_health_is_always_200_and_tells_no_details(state: dict[str, Any], told: dict[str, str]) -> None:
    async with world(token=None) as here:
        here.vitals.show(**state)
        for path in ("/_kilo/health", "/v1/health"):
            assert await here.get(path, token=None) == (200, {"status": "ok", **told})


async def test_the_gateway_is_described_as_kiloclaw_does() -> None:
    async with world() as here:
        status, body = await here.get("/_kilo/gateway/status")
        assert (status, body["state"], body["pid"], body["restarts"]) == (200, "running", os.getpid(), 0)
        assert body["uptime"] >= 0
        assert body["lastExit"] == {"code": None, "signal": None, "at": None}
        ended = LastExit(signal=9, at="2026-11-21T12:00:00Z")
        here.vitals.show(runtime=RuntimeState(state=ProcessState.CRASHED, restarts=3, last_exit=ended))
        assert (await here.get("/_kilo/gateway/status"))[1] == {
            "state": "crashed",
            "pid": None,
            "uptime": 0,
            "restarts": 3,
            "lastExit": {"code": None, "signal": "SIGKILL", "at": "2026-11-21T12:00:00Z"},
        }
        here.vitals.show(status=Status.STOPPING)
        assert (await here.get("/_kilo/gateway/status"))[1]["state"] == "shutting_down"


async def test_start_and_restart_know_when_they_make_no_sense() -> None:
    async with world() as here:
        assert (await here.post("/_kilo/gateway/start"))[0] == 409
        assert await here.post("/_kilo/gateway/restart") == (200, {"ok": True})
        here.vitals.show(runtime=RuntimeState(state=ProcessState.CRASHED))
        assert await here.post("/_kilo/gateway/start") == (200, {"ok": True})
        assert [each.type for each in here.offered] == [CommandType.RESTART] * 2
        assert len({each.id for each in here.offered}) == 2
        here.vitals.show(status=Status.STOPPING)
        assert (await here.post("/_kilo/gateway/restart"))[0] == 409
        assert (await here.post("/_kilo/gateway/start"))[0] == 409
        here.vitals.show(status=Status.STARTING, boot_phase=BootPhase.INSTALL)
        for early in (await here.get("/_kilo/gateway/status"), await here.post("/_kilo/gateway/restart")):
            assert (early[0], early[1]["code"]) == (503, "controller_route_unavailable")
        assert len(here.offered) == 2


async def test_the_end_of_one_call_is_the_beginning_of_the_next() -> None:
    async with world() as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /v1/version") + request("GET /v1/status"))
        async with asyncio.timeout(SECONDS):
            assert [(await answer(reader)).status for _ in range(2)] == [200, 200]
        writer.close()
