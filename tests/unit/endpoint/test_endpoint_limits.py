"""What one caller, and all of them together, may take: real sockets, and deadlines so short that nobody waits."""

import asyncio
import errno
import gc
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from endpoint_world import DEADLINE, Caller, EndpointWorld, endpoint_world

from roost.endpoint import site
from roost.endpoint.connection import MAX_HEAD_BYTES
from roost.endpoint.walls import BURST_SECONDS, Route, json_answer
from roost.settings import EndpointLimits
from roost_agent.contract import bundle_path, heartbeat_path

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SHORT = 0.2
MANY = 10_000


def limits(**changed: float) -> EndpointLimits:
    return EndpointLimits.model_validate({"requests_per_second": MANY} | changed)


async def dial(world: EndpointWorld) -> Pair:
    return await asyncio.open_connection("127.0.0.1", world.port)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that still comes before the connection is closed, which must be soon."""
    async with asyncio.timeout(DEADLINE):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def answer(reader: asyncio.StreamReader) -> int:
    """The status of the next answer; its body is taken too."""
    async with asyncio.timeout(DEADLINE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = [line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length:")]
        await reader.readexactly(int(length[0]) if length else 0)
    return int(head.split()[1])


def post(caller: Caller, *, wait: str = "", headers: bytes = b"") -> bytes:
    body = json.dumps(caller.beat()).encode()
    line = f"POST {heartbeat_path(caller.did)}{wait} HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: {caller.token}\r\n"
    return line.encode() + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def closed(world: EndpointWorld, reason: str) -> float:
    return world.metric("roost_endpoint_connections_closed_total", reason=reason)


# --- Slow senders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begin",
    [b"", b"P", b"POST /v1/agents/x/heartbeat HTTP/1.1\r\nHost: x\r\nX-"],
    ids=["nothing at all", "half a line", "half a head"],
)
async def test_who_does_not_send_a_request_in_time_is_cut(begin: bytes) -> None:
    async with endpoint_world(limits(request_seconds=SHORT)) as world:
        reader, writer = await dial(world)
        writer.write(begin)
        assert await ended(reader) == b""
        assert closed(world, "slow_sender") == 1
        writer.close()


async def test_a_byte_now_and_then_buys_no_time() -> None:
    async with endpoint_world(limits(request_seconds=SHORT)) as world:
        reader, writer = await dial(world)

        async def drip() -> None:
            for byte in post(world.agent("ada")):
                writer.write(bytes([byte]))
                await asyncio.sleep(SHORT / 20)

        dripping = asyncio.create_task(drip())
        assert await ended(reader) == b""
        assert closed(world, "slow_sender") == 1
        dripping.cancel()
        writer.close()


async def test_so_it_is_for_a_body_that_does_not_come_and_for_the_second_request_of_a_connection() -> None:
    async with endpoint_world(limits(request_seconds=SHORT)) as world:
        ada = world.agent("ada")
        reader, writer = await dial(world)
        writer.write(post(ada))
        assert await answer(reader) == 200
        writer.write(post(ada)[:-10])
        assert await ended(reader) == b""
        assert closed(world, "slow_sender") == 1
        assert world.metric("roost_endpoint_connections") == 0
        writer.close()


async def test_a_heartbeat_that_is_held_is_no_slow_sender() -> None:
    async with endpoint_world(limits(request_seconds=SHORT, idle_seconds=SHORT, answer_seconds=SHORT)) as world:
        ada = world.agent("ada")
        reader, writer = await dial(world)
        writer.write(post(ada, wait=f"?wait={SHORT * 5}"))
        assert await answer(reader) == 200
        writer.close()


# --- Those who do not read, and those who do nothing ----------------------------------------------------------------


async def test_who_does_not_take_an_answer_is_cut() -> None:
    async with endpoint_world(limits(answer_seconds=SHORT)) as world:
        huge = b'"' + b"x" * 20_000_000 + b'"'

        async def give(_request: web.BaseRequest, _did: str) -> web.Response:
            return json_answer(huge)

        world.endpoint.add(Route("GET", ("/huge",), give))
        _, writer = await dial(world)
        writer.transport.pause_reading()
        writer.write(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
        await world.until(lambda: closed(world, "slow_reader") == 1, "it is cut")
        await world.until(lambda: world.metric("roost_endpoint_connections") == 0, "it is gone")
        writer.close()


async def test_who_takes_it_in_time_gets_it_whole() -> None:
    async with endpoint_world(limits(answer_seconds=5)) as world:

        async def give(_request: web.BaseRequest, _did: str) -> web.Response:
            return json_answer(b"x" * 5_000_000)

        world.endpoint.add(Route("GET", ("/huge",), give))
        async with world.http.get("/huge") as taken:
            assert len(await taken.read()) == 5_000_000


async def test_a_connection_that_nobody_uses_is_closed() -> None:
    async with endpoint_world(limits(idle_seconds=SHORT)) as world:
        reader, writer = await dial(world)
        writer.write(post(world.agent("ada")))
        assert await answer(reader) == 200
        assert await ended(reader) == b""
        assert closed(world, "idle") == 1
        writer.close()


# --- Heads that are too large ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: x\r\n" % i for i in range(65)) + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: %s\r\n" % (i, b"x" * 8000) for i in range(5)), 431),
    ],
    ids=["line", "one header", "how many headers", "all together, without an end"],
)
async def test_a_head_that_is_too_large_is_refused(head: bytes, status: int) -> None:
    async with endpoint_world() as world:
        reader, writer = await dial(world)
        assert len(head) < MAX_HEAD_BYTES or status == 431
        writer.write(head)
        assert await answer(reader) == status
        writer.close()


# --- How many -------------------------------------------------------------------------------------------------------


async def test_one_connection_too_many_is_closed_and_the_others_live_on() -> None:
    async with endpoint_world(limits(connections=100)) as world:
        ada = world.agent("ada")
        there = [await dial(world) for _ in range(100)]
        await world.until(lambda: world.metric("roost_endpoint_connections") == 100, "all of them are there")
        reader, writer = await dial(world)
        assert await ended(reader) == b""
        assert closed(world, "full") == 1
        writer.close()
        for r, w in (there[0], there[-1]):
            w.write(post(ada))
            assert await answer(r) == 200
        for _, w in there:
            w.close()
        await world.until(lambda: world.metric("roost_endpoint_connections") == 0, "there is room again")
        assert (await ada.say()).status == 200


async def test_when_the_system_has_no_room_whoever_waits_is_taken_a_little_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with endpoint_world() as world:
        tries, accept = [], socket.socket.accept

        def full(listening: socket.socket) -> tuple[socket.socket, object]:
            tries.append(listening)
            if len(tries) == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(listening)

        monkeypatch.setattr(site, "AGAIN_SECONDS", SHORT)
        monkeypatch.setattr(socket.socket, "accept", full)
        assert (await world.agent("ada").say()).status == 200
        assert len(tries) > 1


# --- How often ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def strict() -> AsyncIterator[EndpointWorld]:
    async with endpoint_world(EndpointLimits(requests_per_second=2)) as world:
        yield world


async def test_an_agent_that_calls_too_often_is_told_when_to_come_again(strict: EndpointWorld) -> None:
    ada, grace = strict.agent("ada"), strict.agent("grace")
    at_once = int(2 * BURST_SECONDS)
    assert [(await ada.say()).status for _ in range(at_once)] == [200] * at_once
    for refused in (await ada.say(), await ada.fetch()):
        assert (refused.status, refused.json["error"]) == (429, "too_many_requests")
        assert refused.headers["Retry-After"] == "1"
    assert (await grace.say()).status == 200, "another one's calls are not counted"
    strict.clock.now += 0.5
    assert [(await ada.say()).status for _ in range(2)] == [200, 429]


async def test_nobody_can_spend_an_agents_calls_without_its_token(strict: EndpointWorld) -> None:
    ada = strict.agent("ada")
    for _ in range(30):
        assert (await ada.say(X_Heartbeat_Token="wrong")).status == 403
    assert (await ada.say()).status == 200


async def test_who_waits_for_each_answer_never_meets_the_limit() -> None:
    """Long polls one after the other, a command that comes again and again, a bundle each time."""
    async with endpoint_world(EndpointLimits()) as world:
        ada = world.agent("ada", restartedAt="now")
        for _ in range(200):
            assert (await ada.say(wait="25")).status == 200
            assert (await ada.fetch()).status == 200
            world.clock.now += 1


async def test_of_those_who_are_silent_nothing_is_kept(strict: EndpointWorld) -> None:
    for number in range(20):
        await strict.agent(f"ada-{number}").say()
    strict.clock.now += 1
    strict.endpoint.sweep()
    assert not strict.walls._paid_until


# --- Strangers ------------------------------------------------------------------------------------------------------


async def test_a_stranger_learns_nothing_from_any_route(strict: EndpointWorld) -> None:
    ada, nobody = strict.agent("ada"), Caller(strict, "nobody")
    seen = set()
    for did in (ada.did, nobody.did, "x"):
        for call in (
            lambda did=did: ada.fetch(path=bundle_path(did), X_Heartbeat_Token="wrong"),
            lambda did=did: ada.say(path=heartbeat_path(did), X_Heartbeat_Token="wrong"),
            lambda did=did: ada.say(b"{", path=heartbeat_path(did), X_Heartbeat_Token="wrong"),
        ):
            refused = await call()
            headers = tuple(sorted((k, v) for k, v in refused.headers.items() if k != "Date"))
            seen.add((refused.status, refused.content, headers))
    assert len(seen) == 1


# --- Probes, and calls that are none --------------------------------------------------------------------------------


async def test_the_probes_are_answered_on_this_port_too() -> None:
    async with endpoint_world() as world:
        for ready, status in ((True, 200), (False, 503)):
            world.ready = ready
            async with world.http.get("/readyz") as probed:
                assert probed.status == status
            async with world.http.get("/healthz") as probed:
                assert probed.status == 200


@pytest.mark.parametrize("method", ["OPTIONS", "DELETE", "PATCH", "GET"])
async def test_another_method_is_told_which_there_is(method: str) -> None:
    async with endpoint_world() as world, world.http.request(method, "/v1/agents/x/heartbeat") as refused:
        assert (refused.status, refused.headers["Allow"]) == (405, "POST")
        assert (await refused.json())["error"] == "method_not_allowed"


async def test_head_is_answered_as_get_without_a_body() -> None:
    async with endpoint_world() as world:
        ada = world.agent("ada")
        headers = {"X-Heartbeat-Token": ada.token, "X-Machine-Id": "m1"}
        async with world.http.head(bundle_path(ada.did), headers=headers) as known:
            assert (known.status, await known.read()) == (200, b"")
            assert known.headers["ETag"]


async def test_who_asks_whether_to_go_on_with_its_body_is_told_to() -> None:
    async with endpoint_world() as world:
        reader, writer = await dial(world)
        head, body = post(world.agent("ada"), headers=b"Expect: 100-continue\r\n").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await answer(reader) == 100
        writer.write(body)
        assert await answer(reader) == 200
        writer.close()


# --- Leaving --------------------------------------------------------------------------------------------------------


async def test_on_leaving_all_who_wait_are_answered_and_nobody_new_is_taken() -> None:
    async with endpoint_world() as world:
        ada = world.agent("ada")
        there = [await dial(world) for _ in range(450)]
        for _, writer in there:
            writer.write(post(ada, wait="?wait=25"))
        await world.until_held(450)
        idle, _ = await dial(world)
        half, writing = await dial(world)
        writing.write(b"POST /v1")
        await asyncio.wait_for(world.site.drain(60), DEADLINE)  # no slow sender can make it longer
        for reader, writer in there:
            everything = await ended(reader)
            assert everything.startswith(b"HTTP/1.1 200 OK")
            assert b"Connection: close" in everything
            writer.close()
        assert await ended(idle) == await ended(half) == b""
        with pytest.raises(OSError, match=r"refused|failed"):
            await dial(world)


async def test_leaving_takes_no_longer_than_it_may() -> None:
    async with endpoint_world() as world:
        arrived, never = asyncio.Event(), asyncio.Event()

        async def stuck(_request: web.BaseRequest, _did: str) -> web.Response:
            arrived.set()
            await never.wait()
            return json_answer(b"{}")

        world.endpoint.add(Route("GET", ("/stuck",), stuck))
        reader, writer = await dial(world)
        writer.write(b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(arrived.wait(), DEADLINE)
        await asyncio.wait_for(world.site.drain(SHORT), DEADLINE)
        assert await ended(reader) == b""
        writer.close()


# --- What a held heartbeat costs ------------------------------------------------------------------------------------


async def test_a_held_heartbeat_costs_no_task_and_no_timer_of_its_own() -> None:
    async with endpoint_world() as world:
        ada = world.agent("ada")

        async def cost(make: Callable[[Pair], Awaitable[None]], count: int = 20) -> int:
            before = len(asyncio.all_tasks())
            for _ in range(count):
                await make(await dial(world))
            await world.until(lambda: world.metric("roost_long_polls") in (0, count), "they are there")
            return len(asyncio.all_tasks()) - before

        kept = []

        async def hold(pair: Pair) -> None:
            kept.append(pair)
            pair[1].write(post(ada, wait="?wait=25"))

        tasks = await cost(hold)
        await world.until_held(20)
        gc.collect()
        assert tasks <= 2 * 20, "aiohttp's own: one for the connection, one for the request"
        assert len(ada.memory.waiting) == 20
        assert len(world.endpoint._held) <= 2
        for _, writer in kept:
            writer.close()
        await world.until_held(0)
        assert not ada.memory.waiting
