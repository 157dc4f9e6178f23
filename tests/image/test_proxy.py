"""The proxy before the gateway: who passes and what passes, with real sockets on both sides."""

import asyncio
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import eventually
from server_calls import (
    BEARER,
    SECONDS,
    TOKEN,
    Gateway,
    Passed,
    answer,
    asked,
    chunks,
    connected,
    gateway,
    head,
    request,
    says,
)

from roost_agent.servers import proxy

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==",
    "Sec-WebSocket-Version: 13",
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
MANY = 200 << 20
PIECE = b"x" * (1 << 16)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@dataclass
class Proxied:
    port: int
    traffic: proxy.Traffic
    runner: web.ServerRunner


@asynccontextmanager
async def proxied(
    behind: Gateway,
    *,
    token: str | None = TOKEN,
    ready: bool = True,
    now: Callable[[], datetime] = lambda: NOON,
    **limits: float,
) -> AsyncIterator[Proxied]:
    traffic = proxy.Traffic(now)
    runner = await proxy.serve(
        ("127.0.0.1", behind.port),
        token=lambda: token,
        ready=lambda: ready,
        traffic=traffic,
        address="127.0.0.1",
        port=0,
        **limits,
    )
    try:
        yield Proxied(runner.addresses[0][1], traffic, runner)
    finally:
        await runner.cleanup()


# --- Who passes


@pytest.mark.parametrize(
    "shown",
    [
        f"Authorization: Bearer {TOKEN}",
        f"authorization: bearer {TOKEN}",
        f"X-Gateway-Token: {TOKEN}",
        f"X-KiloClaw-Gateway-Token: {TOKEN}",
        f"X-Roost-Proxy-Token: {TOKEN}",
        f"x-kiloclaw-proxy-token: {TOKEN}",
    ],
)
async def test_the_token_opens_in_each_of_its_headers(shown: str) -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        assert (await asked(here.port, request("GET /", shown, token=None))).body == b"ok"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("GET /", ()),
        ("GET /", ("Authorization: Bearer",)),
        ("GET /", ("Authorization: Bearer ",)),
        ("GET /", ("X-Roost-Proxy-Token: ",)),
        ("GET /", (f"Authorization: Bearer {TOKEN[:-1]}",)),
        ("GET /", (f"Authorization: Bearer {TOKEN}x",)),
        ("GET /", (f"Authorization: Basic {TOKEN}",)),
        ("GET /", ("Authorization: Bearer \xff\xfe",)),
        ("GET /", ("Authorization: Bearer other", f"Authorization: Bearer {TOKEN}")),
        ("GET /", (f"X-Heartbeat-Token: {TOKEN}",)),
        ("GET /", (f"Cookie: token={TOKEN}",)),
        (f"GET /?token={TOKEN}&access_token={TOKEN}", ()),
        ("GET /", UPGRADE),
        (f"GET /?token={TOKEN}", UPGRADE),
    ],
)
async def test_nobody_else_passes(line: str, shown: tuple[str, ...]) -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        refused = await asked(here.port, request(line, *shown, token=None))
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.headers["connection"] == "close"
        assert json.loads(refused.body)["error"] == "unauthorized"
        assert (behind.heads, here.traffic.connections, here.traffic.last_at) == ([], 0, None)


@pytest.mark.parametrize("token", [None, ""])
async def test_while_no_token_is_known_nobody_passes(token: str | None) -> None:
    async with gateway(says(OK)) as behind, proxied(behind, token=token) as here:
        for shown in ("Authorization: Bearer None", "Authorization: Bearer ", "X-Gateway-Token: "):
            refused = await asked(here.port, request("GET /", shown, token=None))
            assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert behind.heads == []


async def test_an_early_caller_is_told_when_to_come_again_and_a_stranger_is_told_nothing() -> None:
    async with gateway(says(OK)) as behind, proxied(behind, ready=False) as here:
        early = await asked(here.port, request("GET /"))
        assert (early.status, early.headers["retry-after"], behind.heads) == (503, "5", [])
        assert (await asked(here.port, request("GET /", *UPGRADE))).status == 503
        assert (await asked(here.port, request("GET /", token=None))).status == 401


async def test_the_right_token_does_not_wait_for_those_who_guess() -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        guesses = [asyncio.create_task(asked(here.port, request("GET /", token=f"guess-{n}"))) for n in range(50)]
        async with asyncio.timeout(0.2):
            assert (await asked(here.port, request("GET /"))).status == 200
        assert {each.status for each in await asyncio.gather(*guesses)} == {401}


# --- What passes


async def test_the_gateway_sees_a_caller_of_its_own_machine() -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        await asked(
            here.port,
            request(
                "GET /a%2Fb//c?x=%20&y",
                "X-Forwarded-For: 1.2.3.4",
                "x-forwarded-Proto: https",
                "Forwarded: for=1.2.3.4",
                "X-Real-IP: 1.2.3.4",
                "Fly-Client-IP: 1.2.3.4",
                "Via: 2 fly.io",
                f"X-Roost-Proxy-Token: {TOKEN}",
                f"X-KiloClaw-Proxy-Token: {TOKEN}",
                f"X-Gateway-Token: {TOKEN}",
                "Connection: keep-alive, X-Mine",
                "X-Mine: hop",
                "Keep-Alive: timeout=5",
                "TE: trailers",
                "Upgrade: h2c",
                "Origin: https://example.test",
                "X-Kept: 1",
                "X-Kept: 2",
                "X-Other: \xc3\xbc",
            ),
        )
        lines = behind.heads[0].strip().split("\r\n")
        assert lines[0] == "GET /a%2Fb//c?x=%20&y HTTP/1.1"
        assert sorted(lines[1:]) == sorted(
            [
                f"Host: 127.0.0.1:{behind.port}",
                f"Authorization: Bearer {TOKEN}",
                "Origin: https://example.test",
                "X-Kept: 1",
                "X-Kept: 2",
                "X-Other: \xc3\xbc",
                "Connection: close",
            ]
        )


async def test_authorization_is_the_gateways_when_another_header_opened_the_door() -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        for own in ((), ("Authorization: Bearer of-a-hook",)):
            await asked(here.port, request("GET /", f"X-Roost-Proxy-Token: {TOKEN}", *own, token=None))
        assert "authorization" not in behind.heads[0].lower()
        assert "Authorization: Bearer of-a-hook\r\n" in behind.heads[1]


async def test_an_answer_passes_as_it_is() -> None:
    body = gzip.compress(b"hello " * 100)
    given = (
        b"HTTP/1.1 404 Nowhere\r\nContent-Encoding: gzip\r\nContent-Type: text/plain\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\nX-Hop: 1\r\nConnection: close, X-Hop\r\nServer: openclaw\r\nContent-Length: %d\r\n\r\n"
    )
    async with (
        gateway(says(given % len(body) + body)) as behind,
        proxied(behind) as here,
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(f"http://127.0.0.1:{here.port}/", headers=BEARER) as got,
    ):
        assert (got.status, got.reason, await got.read()) == (404, "Nowhere", body)
        assert got.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert (got.headers["Server"], got.headers["Content-Encoding"]) == ("openclaw", "gzip")
        assert "X-Hop" not in got.headers


@pytest.mark.parametrize(
    ("line", "given", "length"),
    [
        ("HEAD /", b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", "12345"),
        ("GET /", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", None),
        ("GET /", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        ("OPTIONS /", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAllow: GET\r\n\r\n", "0"),
    ],
)
async def test_an_answer_without_a_body_stays_one(line: str, given: bytes, length: str | None) -> None:
    async with gateway(says(given)) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        for _ in range(2):  # on one connection: the second answer would be read from the first one's body
            writer.write(request(line))
            async with asyncio.timeout(SECONDS):
                status, headers = await head(reader)
            assert str(status).encode() in given
            assert headers.get("content-length") == length
            assert "transfer-encoding" not in headers
        assert behind.heads[1].startswith(line.split()[0])
        writer.close()


async def test_a_compressed_body_is_not_opened_on_its_way() -> None:
    body = gzip.compress(b"hello " * 100)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = await reader.readexactly(len(body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        await writer.drain()

    async with gateway(echo) as behind, proxied(behind) as here:
        sent = request("PUT /", "Content-Encoding: gzip", f"Content-Length: {len(body)}", body=body)
        assert (await asked(here.port, sent)).body == body
        assert f"Content-Length: {len(body)}\r\n" in behind.heads[0]


async def test_events_arrive_one_by_one() -> None:
    more = asyncio.Event()

    async def events(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(3):
            await more.wait()
            more.clear()
            writer.write(b"a\r\ndata: %d \n\n\r\n" % n)
        await more.wait()
        writer.write(b"0\r\n\r\n")

    async with gateway(events) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /events"))
        async with asyncio.timeout(SECONDS):
            assert (await head(reader))[1]["content-type"] == "text/event-stream"
            assert here.traffic.connections == 1
            pieces = chunks(reader)
            for n in range(3):
                more.set()
                assert await anext(pieces) == b"data: %d \n\n" % n
            more.set()
            assert [piece async for piece in pieces] == []
            await eventually(lambda: here.traffic.connections == 0, "the request's end")
        writer.close()


async def test_what_is_sent_arrives_piece_by_piece_after_the_door_was_opened() -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for piece in chunks(reader):
            arrived.put_nowait(piece)
        writer.write(OK)

    async with gateway(takes) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        async with asyncio.timeout(SECONDS):
            writer.write(request("POST /", "Transfer-Encoding: chunked", "Expect: 100-continue"))
            assert (await head(reader))[0] == 100
            for piece in (b"one", b"two"):
                writer.write(b"3\r\n%b\r\n" % piece)
                assert await arrived.get() == piece
            writer.write(b"0\r\n\r\n")
            assert (await answer(reader)).body == b"ok"
        assert "expect" not in behind.heads[0].lower()
        writer.close()

        reader, writer = await connected(here.port)
        writer.write(request("POST /", "Transfer-Encoding: chunked", "Expect: 100-continue", token=None))
        assert (await head(reader))[0] == 401, "nobody is asked for a body whom it would not be taken from"
        writer.close()


# --- Much, and slowly


async def test_200_mb_go_down_no_faster_than_they_are_taken() -> None:
    sent = 0

    async def much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MANY)
        while sent < MANY:
            writer.write(PIECE)
            await writer.drain()
            sent += len(PIECE)

    async with gateway(much) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /"))
        await eventually(Stalled(lambda: sent), "backpressure")
        assert 0 < sent < MANY / 4, "more than the sockets of the system hold was taken in"
        async with asyncio.timeout(60):
            assert await read_all(reader) == MANY
        writer.close()


async def test_200_mb_go_up_no_faster_than_they_are_taken() -> None:
    begin, taken, sent = asyncio.Event(), 0, 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await begin.wait()
        async for piece in chunks(reader):
            taken += len(piece)
        writer.write(OK)

    async def feed(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < MANY:
            writer.write(b"10000\r\n%b\r\n" % PIECE)
            await writer.drain()
            sent += len(PIECE)
        writer.write(b"0\r\n\r\n")

    async with gateway(slow) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        writer.write(request("POST /", "Transfer-Encoding: chunked"))
        feeding = asyncio.create_task(feed(writer))
        await eventually(Stalled(lambda: sent), "backpressure")
        assert 0 < sent < MANY / 4
        begin.set()
        async with asyncio.timeout(60):
            assert (await answer(reader)).body == b"ok"
        assert taken == MANY
        await feeding
        writer.close()


async def test_a_websocket_that_is_not_read_holds_up_the_gateway_and_nobody_else() -> None:
    sent = 0

    async def floods(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if len(behind.heads) > 1:
            return await says(OK)(_, writer)
        writer.write(SWITCHED)
        while True:
            writer.write(PIECE)
            await writer.drain()
            sent += len(PIECE)

    async with gateway(floods) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /", *UPGRADE))
        assert (await head(reader))[0] == 101
        await eventually(Stalled(lambda: sent), "backpressure")
        assert 0 < sent < MANY / 4
        assert (await asked(here.port, request("GET /"))).status == 200
        writer.close()
        await eventually(lambda: behind.open == 0, "the gateway's side to end")


async def test_a_gateway_that_does_not_read_a_websocket_holds_up_its_caller() -> None:
    async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCHED)
        await over.wait()

    async def feed(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(PIECE)
            await writer.drain()
            sent += len(PIECE)

    sent, over = 0, asyncio.Event()
    stalled = Stalled(lambda: sent)
    async with gateway(deaf) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /", *UPGRADE))
        assert (await head(reader))[0] == 101
        feeding = asyncio.create_task(feed(writer))
        try:
            await eventually(lambda: stalled() or sent > MANY, "backpressure")
            assert 0 < sent < MANY / 4
        finally:
            feeding.cancel()
            over.set()
            writer.close()


async def test_a_reader_who_stops_for_too_long_is_dropped() -> None:
    async def much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MANY)
        for _n in range(MANY // len(PIECE)):
            writer.write(PIECE)
            await writer.drain()

    async with gateway(much) as behind, proxied(behind, idle=0.3) as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /"))
        await eventually(lambda: behind.open == 1, "the request")
        await eventually(lambda: (behind.open, here.traffic.connections) == (0, 0), "the end")
        with pytest.raises(ConnectionError):
            await read_all(reader)
        writer.close()


# --- What breaks off


@pytest.mark.parametrize(
    ("begun", "version"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "1.1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "1.1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "1.0"),
    ],
)
async def test_half_an_answer_is_never_taken_for_a_whole_one(begun: bytes, version: str) -> None:
    async with gateway(says(begun)) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        writer.write(request("GET /").replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(SECONDS):
                await answer(reader)
        writer.close()


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (b"", 502),
        (b"garbage\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\n", 502),
        (SWITCHED, 502),
    ],
)
async def test_a_gateway_that_answers_nothing_sensible_is_a_bad_gateway(given: bytes, status: int) -> None:
    async with gateway(says(given)) as behind, proxied(behind) as here:
        assert (await asked(here.port, request("GET /"))).status == status
        assert (here.traffic.connections, len(behind.heads)) == (0, 1), "a request is made once"


async def test_a_gateway_that_is_not_there_is_asked_again_later() -> None:
    async with gateway(says(OK)) as gone:
        pass
    async with proxied(gone) as here:
        for headers in ((), UPGRADE):
            early = await asked(here.port, request("GET /", *headers))
            assert (early.status, early.headers["retry-after"]) == (503, "5")


async def test_half_a_body_is_never_taken_for_a_whole_one() -> None:
    arrived: list[bytes] = []
    over = asyncio.Event()

    async def takes(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read())
        over.set()

    for sent in (
        request("POST /", "Transfer-Encoding: chunked", body=b"4\r\nhalf\r\n"),
        request("POST /", "Content-Length: 10", body=b"half"),
    ):
        over.clear()
        async with gateway(takes) as behind, proxied(behind) as here:
            _, writer = await connected(here.port)
            writer.write(sent)
            await eventually(lambda: behind.heads, "the request")
            writer.close()
            async with asyncio.timeout(SECONDS):
                await over.wait()
    assert b"half" in arrived[0]
    assert b"0\r\n\r\n" not in arrived[0]
    assert arrived[1] in (b"", b"half")


async def test_whoever_leaves_is_left() -> None:
    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCHED if "Upgrade" in behind.heads[-1] else b"")
        assert await reader.read() == b""

    async with gateway(waits) as behind, proxied(behind) as here:
        for headers in ((), UPGRADE):
            _, writer = await connected(here.port)
            writer.write(request("GET /", *headers))
            await eventually(lambda: behind.open == 1 and here.traffic.connections == 1, "the request")
            writer.transport.abort()
            await eventually(lambda: behind.open == 0 and here.traffic.connections == 0, "its end")


# --- What does not pass


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (
            request(
                "POST /", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\nGET /evil HTTP/1.1\r\n"
            ),
            400,
        ),
        (request("POST /", "Content-Length: 1", "Content-Length: 2", body=b"xx"), 400),
        (request("POST /", "Content-Length: 1, 1", body=b"x"), 400),
        (request("POST /", "Content-Length: -1"), 400),
        (request("POST /", "Content-Length: +1", body=b"x"), 400),
        (request("POST /", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
        (request("POST /", "Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), 400),
        (request("POST /", "Transfer-Encoding : chunked", body=b"0\r\n\r\n"), 400),
        (request("GET /", "X-Folded: a\r\n b"), 400),
        (request("GET /", "X-Nul: \x00"), 400),
        (request("GET /", "X-Long: " + "x" * 9000), 400),
        (request("GET /", *(f"X-{n}: 1" for n in range(100))), 400),
        (request("GET /" + "x" * 9000), 400),
        (request("GET http://example.test/"), 400),
        (request("OPTIONS *"), 400),
        (request("CONNECT example.test:443"), 405),
        (request("TRACE /"), 405),
        (request("GET /", "X-Latin: \xff"), 400),
        (request("GET /\xff"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
    ],
)
async def test_what_is_no_plain_request_reaches_no_gateway(sent: bytes, status: int) -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        writer.write(sent)
        async with asyncio.timeout(SECONDS):
            refused = await answer(reader)
            assert (refused.status, behind.heads) == (status, [])
            assert set(json.loads(refused.body)) == {"error", "message"}
            assert await reader.read() == b"", "and the connection ends, with whatever else was sent"
        writer.close()


PLAIN = request("POST /a?b", "Content-Length: 3", "X-A: 1", "X-B: 2", body=b"xyz")
NEAR = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"Content-Length: 0\r\n", b"Host: x\r\n", b"\xff"]
)
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\x00]*")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(PLAIN)), st.integers(0, 3), st.one_of(NEAR, st.binary(max_size=8)))
async def test_whatever_is_sent_the_gateway_sees_one_plain_request_or_none(at: int, without: int, extra: bytes) -> None:
    async with gateway(says(OK)) as behind, proxied(behind, handshake=0.1, idle=0.2) as here:
        reader, writer = await connected(here.port)
        writer.write(PLAIN[:at] + extra + PLAIN[at + without :] + request("GET /last", "Connection: close"))
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        for seen in behind.heads:
            line, *headers = seen.removesuffix("\r\n\r\n").split("\r\n")
            assert re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+ /[^ \r\n]* HTTP/1\.1", line)
            assert all(HEADER.fullmatch(header) for header in headers), headers
            names = [header.partition(":")[0].lower() for header in headers]
            assert names.count("host") == 1
            assert names.count("content-length") + names.count("transfer-encoding") <= 1


async def test_two_requests_on_one_connection_are_two_on_the_other_side() -> None:
    async def reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int(behind.heads[-1].lower().partition("content-length: ")[2].split("\r\n")[0] or 0)
        bodies.append(await reader.readexactly(length))
        writer.write(OK)
        rest.append(await reader.read())

    bodies: list[bytes] = []
    rest: list[bytes] = []
    async with gateway(reads) as behind, proxied(behind) as here:
        reader, writer = await connected(here.port)
        inner = request("GET /inner")
        writer.write(request("POST /outer", f"Content-Length: {len(inner)}", body=inner) + request("GET /next"))
        async with asyncio.timeout(SECONDS):
            assert [(await answer(reader)).body for _ in range(2)] == [b"ok", b"ok"]
        assert [line.split(" ")[1] for line in behind.heads] == ["/outer", "/next"]
        assert bodies == [inner, b""]
        writer.close()
    await eventually(lambda: rest == [b"", b""], "nothing else on either connection")


# --- WebSockets


@asynccontextmanager
async def speaking() -> AsyncIterator[Gateway]:
    """A gateway that repeats what it hears, and speaks a protocol of its own."""

    async def echo(request: web.Request) -> web.WebSocketResponse:
        seen.heads.append(str(dict(request.headers)))
        ws = web.WebSocketResponse(protocols=("openclaw",), max_msg_size=0)
        await ws.prepare(request)
        async for message in ws:
            if message.data == "end":
                await ws.close(code=4321, message=b"as asked")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await ws.send_str(message.data)
            else:
                await ws.send_bytes(message.data)
        return ws

    application = web.Application()
    application.add_routes([web.get("/", echo)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    seen = Gateway(runner.addresses[0][1])
    try:
        yield seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("compress", [0, 15])
async def test_a_websocket_passes_with_all_that_belongs_to_it(compress: int) -> None:
    async with speaking() as behind, proxied(behind) as here, aiohttp.ClientSession() as session:
        url = f"ws://127.0.0.1:{here.port}/"
        async with session.ws_connect(
            url, headers=BEARER, protocols=["openclaw"], compress=compress, max_msg_size=0
        ) as ws:
            assert (ws.protocol, bool(ws.compress)) == ("openclaw", bool(compress))
            assert here.traffic.connections == 1
            for text in ("hello", "", "ü" * 70_000):
                await ws.send_str(text)
                assert (await ws.receive(SECONDS)).data == text
            await ws.send_bytes(PIECE * 64)
            assert (await ws.receive(SECONDS)).data == PIECE * 64
            await ws.ping()
            await ws.send_str("end")
            last = await ws.receive(SECONDS)
            assert (last.type, last.data, last.extra) == (aiohttp.WSMsgType.CLOSE, 4321, "as asked")
        await eventually(lambda: here.traffic.connections == 0, "its end")
        assert TOKEN in behind.heads[0], "it proves itself to the gateway as well"


async def test_there_are_a_hundred_websockets_and_not_one_more() -> None:
    many = aiohttp.TCPConnector(limit=0)
    async with speaking() as behind, proxied(behind) as here, aiohttp.ClientSession(connector=many) as session:
        url = f"ws://127.0.0.1:{here.port}/"
        open_ = [await session.ws_connect(url, headers=BEARER) for _ in range(proxy.MOST_WEBSOCKETS)]
        assert here.traffic.connections == proxy.MOST_WEBSOCKETS == 100
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(url, headers=BEARER)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "5")
        assert (await asked(here.port, request("GET /"))).status == 400, "plain requests still pass"
        await open_[0].close()
        await eventually(lambda: here.traffic.connections == 99, "room")
        await open_[1].send_str("still here")
        assert (await open_[1].receive(SECONDS)).data == "still here"
        again = await session.ws_connect(url, headers=BEARER)
        for ws in (*open_[1:], again):
            await ws.close()


async def test_a_websocket_on_which_nothing_moves_ends() -> None:
    async with speaking() as behind, proxied(behind, idle=0.5) as here, aiohttp.ClientSession() as session:
        async with session.ws_connect(f"ws://127.0.0.1:{here.port}/", headers=BEARER) as ws:
            for _ in range(4):
                await eventually(Passed(0.2), "less than it may be idle")
                await ws.send_str("x")
                assert (await ws.receive(SECONDS)).data == "x"
            assert (await ws.receive(SECONDS)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await eventually(lambda: here.traffic.connections == 0, "its end")


async def test_a_slow_answer_is_waited_for_as_long_as_it_moves() -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        for _n in range(4):
            await eventually(Passed(0.2), "less than it may be idle")
            writer.write(b"x")

    async with gateway(slow) as behind, proxied(behind, idle=0.5) as here:
        assert (await asked(here.port, request("GET /"))).body == b"xxxx"


@pytest.mark.parametrize(("headers", "limit"), [(UPGRADE, "handshake"), ((), "idle")])
async def test_a_gateway_that_does_not_answer_in_time_is_not_waited_for(headers: tuple[str, ...], limit: str) -> None:
    async def deaf(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with gateway(deaf) as behind, proxied(behind, **{limit: 0.2}) as here:
        assert (await asked(here.port, request("GET /", *headers))).status == 504
        await eventually(lambda: behind.open == 0, "the gateway's side to end")


async def test_a_refusal_of_the_gateway_is_the_callers() -> None:
    given = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    async with gateway(says(given)) as behind, proxied(behind) as here:
        refused = await asked(here.port, request("GET /", *UPGRADE, body=b"\x81\x00" + request("GET /evil")))
        assert (refused.status, refused.body) == (403, b"no")
        assert len(behind.heads) == 1


@pytest.mark.parametrize(
    "sent",
    [
        request("GET /", "Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: x"),
        request("GET /", "Upgrade: websocket"),
        request("POST /", "Content-Length: 0", *UPGRADE[:2]),
        request("GET /", *UPGRADE[:2]).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_another_wish_to_upgrade_is_passed_over(sent: bytes) -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        assert (await asked(here.port, sent)).status == 200
        assert "upgrade:" not in behind.heads[0].lower()


# --- Connections


async def test_whoever_does_not_speak_is_not_listened_to() -> None:
    async with gateway(says(OK)) as behind, proxied(behind, handshake=0.3) as here:
        silent, _ = await connected(here.port)
        trickling, writer = await connected(here.port)
        writer.write(b"GET / HTTP/1.1\r\nX-Slow: ")
        async with asyncio.timeout(SECONDS):
            assert (await silent.read(), await trickling.read()) == (b"", b"")
        reader, writer = await connected(here.port)
        writer.write(request("GET /"))
        assert (await answer(reader)).status == 200
        await eventually(Stalled(lambda: len(behind.heads)), "more than the handshake's time")
        writer.write(request("GET /"))
        assert (await answer(reader)).status == 200, "who has spoken may pause"
        writer.close()


async def test_a_stranger_is_not_listened_to_for_long() -> None:
    body = b"x" * (1 << 20)

    async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(body)) == body
        writer.write(OK)

    async with gateway(takes) as behind, proxied(behind, handshake=60) as here:
        reader, writer = await connected(here.port)
        writer.write(b"GET / HTTP/1.1\r\n")
        for n in range(8):
            writer.write(b"X-%d: %b\r\n" % (n, b"x" * 8000))
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        sent = request("POST /", f"Content-Length: {len(body)}", f"X-Long: {'x' * 8000}", body=body)
        assert (await asked(here.port, sent)).status == 200, "a body may be as long as it likes"


async def test_the_controllers_calls_are_not_the_gateways() -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        refused = await asked(here.port, request("GET /_kilo/version"))
        assert (refused.status, json.loads(refused.body)["code"]) == (404, "controller_route_unavailable")
        assert behind.heads == []


async def test_one_connection_too_many_is_closed_and_the_others_live_on() -> None:
    async with gateway(says(OK)) as behind, proxied(behind) as here:
        held = [await connected(here.port) for _ in range(256)]
        async with asyncio.timeout(SECONDS):
            reader, _ = await connected(here.port)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                assert await reader.readexactly(1)
            held[0][1].write(request("GET /"))
            assert (await answer(held[0][0])).status == 200
            for _, writer in held:
                writer.close()
        await eventually(lambda: here.runner.server is not None and not here.runner.server.connections, "room")
        assert (await asked(here.port, request("GET /"))).status == 200


async def test_the_end_waits_for_nobody() -> None:
    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        writer.write(SWITCHED if "Upgrade" in behind.heads[-1] else begun)
        await reader.read()

    async with gateway(waits) as behind, proxied(behind) as here:
        callers = [await connected(here.port) for _ in range(3)]
        for (reader, writer), headers in zip(callers, ((), UPGRADE, ()), strict=True):
            writer.write(request("GET /", *headers))
            await head(reader)
        assert here.traffic.connections == 3
        began = asyncio.get_running_loop().time()
        await here.runner.cleanup()
        assert asyncio.get_running_loop().time() - began < 0.4
        await eventually(lambda: (here.traffic.connections, behind.open) == (0, 0), "the end of all")
        await here.runner.setup()  # so that it can be ended a second time


@pytest.mark.parametrize("pong", [b"\x8a\x80mask", b"\x8a\x84masktick"])
async def test_only_what_a_caller_says_is_traffic(pong: bytes) -> None:
    clock = NOON
    ping, answered = asyncio.Event(), asyncio.Event()

    async def pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCHED)
        await ping.wait()
        writer.write(b"ping")
        assert await reader.readexactly(len(pong)) == pong
        answered.set()
        writer.write(await reader.readexactly(8))
        await reader.read()

    async with gateway(pings) as behind, proxied(behind, now=lambda: clock) as here:
        assert (here.traffic.connections, here.traffic.last_at) == (0, None)
        reader, writer = await connected(here.port)
        writer.write(request("GET /", *UPGRADE))
        await head(reader)
        clock = NOON + timedelta(minutes=1)
        async with asyncio.timeout(SECONDS):
            ping.set()
            assert await reader.readexactly(4) == b"ping"
            writer.write(pong)
            await answered.wait()
            assert here.traffic.last_at == NOON
            writer.write(b"question")
            assert await reader.readexactly(8) == b"question"
            assert here.traffic.last_at == clock
        clock = NOON + timedelta(minutes=2)
        writer.close()
        await eventually(lambda: here.traffic.connections == 0, "its end")
        assert here.traffic.last_at == clock


class Stalled:
    """True once a number has not changed for 0.3 s."""

    def __init__(self, number: Callable[[], Any]) -> None:
        self._number = number
        self._seen: Any = None
        self._since = 0.0

    def __call__(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._number() != self._seen:
            self._seen, self._since = self._number(), now
        return now - self._since > 0.3


async def read_all(reader: asyncio.StreamReader) -> int:
    await head(reader)
    total = 0
    while piece := await reader.read(1 << 20):
        total += len(piece)
        if total == MANY:
            break
    return total
