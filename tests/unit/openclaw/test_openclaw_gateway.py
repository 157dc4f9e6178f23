"""The RPC of a gateway that may be anything: slow, gone, mistaken, or hostile."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from openclaw_stub import PORT, Running, address, eventually, running

from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway, GatewayError, answer_in, error_in

Script = Callable[[web.WebSocketResponse, dict[str, Any]], Awaitable[None]]
"""What a hostile gateway does with a request."""
HELLO = {"auth": {"scopes": ["operator.admin", "operator.read", "operator.pairing"]}}


def answer(id_: str, payload: Any) -> str:
    return json.dumps({"type": "res", "id": id_, "ok": True, "payload": payload})


@asynccontextmanager
async def hostile(script: Script) -> AsyncIterator[Gateway]:
    """A gateway that shakes hands as it should, and then does what the script says."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "event", "event": "connect.challenge", "payload": {}})
        async for message in socket:
            frame = message.json()
            if frame["method"] == "connect":
                await socket.send_str(answer(frame["id"], HELLO))
            else:
                await script(socket, frame)
        return socket

    host = address()
    application = web.Application()
    application.add_routes([web.get("/", serve)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, PORT).start()
    gateway = Gateway(host, PORT, lambda: "any")
    try:
        async with gateway.life(), gateway.connected():
            await gateway.hello()
            yield gateway
    finally:
        await runner.cleanup()


async def test_it_is_taken_for_the_operator_and_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        status = await gateway.call("channels.status")
        assert status["channelAccounts"]["telegram"][0]["running"] is True


async def test_what_comes_from_it_comes_from_the_machines_own_address(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        transport = gateway._socket._response.connection.transport  # type: ignore[union-attr]
        assert transport.get_extra_info("sockname")[0] == world.host


async def test_it_says_no_in_the_gateways_own_words(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        with pytest.raises(GatewayError, match="unknown method: nonsense") as refused:
            await gateway.call("nonsense")
        assert (refused.value.code, refused.value.retry_after) == ("INVALID_REQUEST", None)


async def test_one_that_is_too_early_is_asked_again(tmp_path: Path) -> None:
    async with running(tmp_path, startSeconds=3600) as world, world.gateway.life(), world.gateway.connected():
        await eventually(lambda: world.stub.calls["connect"] > 1, "asked again")
        world.stub.tell({"startSeconds": 0})
        assert await world.gateway.call("channels.status")


async def test_a_wrong_token_is_said_and_a_rotated_one_is_taken_up(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        token = "an old one"
        gateway = Gateway(world.host, PORT, lambda: token)
        async with gateway.life(), gateway.connected():
            await eventually(lambda: "token mismatch" in gateway.why, "a refusal")
            with pytest.raises(GatewayAway, match="token mismatch"):
                await gateway.call("channels.status", seconds=0.01)
            token = "the gateway's token"
            assert await gateway.call("channels.status")


async def test_without_a_life_there_is_nobody_to_ask() -> None:
    gateway = Gateway(address(), PORT, lambda: "any")
    with pytest.raises(GatewayAway, match="does not run"):
        await gateway.call("status")
    with pytest.raises(GatewayAway, match="does not run"):
        await gateway.get("/healthz", 1)


async def test_what_waits_for_a_connection_is_told_when_the_life_ends() -> None:
    gateway = Gateway(address(), PORT, lambda: "any")
    async with gateway.life(), gateway.connected():
        asking = asyncio.create_task(gateway.call("status", seconds=60))
        await eventually(lambda: "ClientConnectorError" in gateway.why, "a connection that is refused")
    with pytest.raises(GatewayAway):
        await asking


async def test_a_lost_connection_fails_all_that_waits_and_is_made_anew() -> None:
    lost = 0

    async def script(socket: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        nonlocal lost
        if frame["method"] != "b" and lost < 2:
            lost += 1
            if lost == 2:
                await socket.close()
        else:
            await socket.send_str(answer(frame["id"], {"well": True}))

    async with hostile(script) as gateway:
        waiting = await asyncio.gather(gateway.call("a"), gateway.call("a"), return_exceptions=True)
        assert [str(one) for one in waiting] == ["the connection was lost before there was an answer"] * 2
        assert await gateway.call("b") == {"well": True}


async def test_an_answer_that_never_comes_is_not_waited_for_and_one_that_comes_late_is_nobodys() -> None:
    late: list[str] = []

    async def script(socket: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        if frame["method"] == "slow":
            late.append(frame["id"])
            return
        for id_ in late:
            await socket.send_str(answer(id_, {"of": "the slow one"}))
        await socket.send_str(answer(frame["id"], {"of": "this"}))

    async with hostile(script) as gateway:
        with pytest.raises(GatewayAway, match=r"slow was not answered in 0.05 s"):
            await gateway.call("slow", seconds=0.05)
        assert await gateway.call("other") == {"of": "this"}
        assert gateway._pending == {}


async def test_events_strangers_and_repetitions_come_between_and_count_for_nothing() -> None:
    async def script(socket: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        for text in ('{"type":"event","event":"tick"}', "[", "7", answer("no such id", {}), '{"type":"res","id":7}'):
            await socket.send_str(text)
        await socket.send_bytes(b"\x00\xff")
        await socket.send_str("[" * 100_000)
        for payload in ({"first": True}, {"second": True}):
            await socket.send_str(answer(frame["id"], payload))

    async with hostile(script) as gateway:
        assert await gateway.call("one") == {"first": True}
        assert await gateway.call("two") == {"first": True}


async def test_a_frame_that_is_too_large_is_not_taken_in() -> None:
    async def script(socket: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        await socket.send_str(answer(frame["id"], {"much": "x" * (9 << 20)} if frame["method"] == "much" else {}))

    async with hostile(script) as gateway:
        with pytest.raises(GatewayAway):
            await gateway.call("much")
        assert await gateway.call("little") == {}


async def test_an_answer_that_is_no_object_is_a_refusal() -> None:
    async def script(socket: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        await socket.send_str(answer(frame["id"], [1]))

    async with hostile(script) as gateway:
        with pytest.raises(GatewayError, match="no object"):
            await gateway.call("list")


async def test_a_probe_that_says_much_is_not_read_to_its_end(tmp_path: Path) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    host = address()
    application = web.Application()
    application.add_routes([web.get("/readyz", endless)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, PORT).start()
    gateway = Gateway(host, PORT, lambda: "any")
    async with gateway.life():
        assert await gateway.get("/readyz", 5) == (200, None)
    await runner.cleanup()


async def test_nothing_is_left_after_many_lives(tmp_path: Path) -> None:
    world = Running(tmp_path)
    for _ in range(5):
        world.start(startSeconds=0)
        async with world.connected() as gateway:
            await gateway.call("channels.status")
        await world.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert world.gateway._pending == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FRAMES = st.fixed_dictionaries(
    {"type": st.just("res") | JSON, "id": st.text() | JSON, "ok": st.booleans() | JSON},
    optional={
        "payload": JSON,
        "error": JSON
        | st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("code", "message", "retryable", "retryAfterMs", "details"), JSON)
        ),
    },
)


@settings(max_examples=60)
@given(FRAMES.map(json.dumps) | st.text())
def test_no_frame_breaks_the_reader(text: str) -> None:
    found = answer_in(text)
    assert found is None or isinstance(found.id, str)
    if found is not None and found.error is not None:
        assert found.error.retry_after is None or 0 < found.error.retry_after <= 30


@pytest.mark.parametrize("wait", [10**400, 1e308, float("inf"), float("nan"), -1, True, "7", None])
def test_however_long_it_asks_for_patience_it_gets_a_little(wait: object) -> None:
    error = error_in({"code": "UNAVAILABLE", "message": "m" * 9999, "retryable": True, "retryAfterMs": wait})
    assert error.retry_after is None or 0 < error.retry_after <= 30
    assert len(error.text) <= 500


def test_numbers_without_end_are_no_frame() -> None:
    assert answer_in('{"type":"res","id":"1","ok":true,"payload":' + "9" * 10_000 + "}") is None


async def test_a_gateway_that_gives_no_rights_is_not_connected(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        world.stub.hello = lambda *_: {"auth": {"scopes": ["operator.read"]}}  # type: ignore[method-assign]
        async with world.gateway.life(), world.gateway.connected():
            await eventually(lambda: "does not take the supervisor for its operator" in world.gateway.why, "a refusal")
            assert world.gateway._socket is None
