"""Callers that mean harm, or are broken: whatever arrives is answered below 500, nothing is raised, nothing is said.

Bytes are written to real sockets, since a client library would not let most of this out of the door.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from endpoint_world import DEADLINE, MAX_BODY, Caller, EndpointWorld, endpoint_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roost.telemetry import logs
from roost_agent.contract import Heartbeat, bundle_path, heartbeat_path

many = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# What a caller can provoke, each on purpose; 100 asks for the body that `Expect` holds back.
CALLERS_FAULT = {100, 200, 304, 400, 401, 403, 404, 405, 409, 411, 413, 414, 415, 417, 431}


@pytest.fixture
async def world() -> AsyncIterator[EndpointWorld]:
    async with endpoint_world() as made:
        yield made


@pytest.fixture
def ada(world: EndpointWorld) -> Caller:
    return world.agent("ada")


class Complaints(logging.Handler):
    """What was logged as a warning or worse, by anybody."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.entries: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.entries.append(self.format(record))


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    logs.ignore_broken_requests()  # as the operator does when it sets up its log
    handler = Complaints()
    logging.getLogger().addHandler(handler)
    yield handler.entries
    logging.getLogger().removeHandler(handler)


async def sent(world: EndpointWorld, request: bytes) -> int:
    """Writes a request; the status of its answer, which must come before the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    try:
        writer.write(request)
        async with asyncio.timeout(DEADLINE):
            line = await reader.readline()
        assert line, f"closed without an answer: {request[:400]!r}"
        return int(line.split()[1])
    finally:
        writer.close()


def post(caller: Caller, body: bytes, *, query: bytes = b"", headers: bytes = b"") -> bytes:
    head = (
        b"POST %s%s HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: %s\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n"
    )
    return head % (heartbeat_path(caller.did).encode(), query, caller.token.encode(), len(body), headers) + body


# --- Bodies ---------------------------------------------------------------------------------------------------------

WEIRD_TEXT = st.one_of(
    st.text(max_size=300),
    st.sampled_from(
        ["\ud800", "\x00", "\u2028", "x" * 5000, "../../etc/passwd", "${jndi:ldap://x}", "NaN", "\x1b[31m"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), WEIRD_TEXT, st.sampled_from([2**53, -(2**63), 10**400])
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=8),
    max_leaves=20,
)
FIELDS = (
    *Heartbeat.model_json_schema()["properties"],
    "channels",  # one that this version does not know
)


@many
@given(changes=st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, min_size=1, max_size=4))
async def test_any_value_in_any_field(
    world: EndpointWorld, ada: Caller, complaints: list[str], changes: dict[str, Any]
) -> None:
    body = json.dumps(ada.beat() | changes).encode()  # surrogates and NaN as a careless library writes them
    assert await sent(world, post(ada, body)) in CALLERS_FAULT
    assert not complaints


@many
@given(body=st.binary(max_size=2000) | ANY_JSON.map(lambda v: json.dumps(v).encode()))
async def test_any_body_at_all(world: EndpointWorld, ada: Caller, complaints: list[str], body: bytes) -> None:
    assert await sent(world, post(ada, body)) == (400 if len(body) <= MAX_BODY else 413)
    assert ada.memory.heard is None
    assert not complaints


@many
@given(data=st.data())
async def test_a_good_body_cut_or_changed_anywhere(
    world: EndpointWorld, ada: Caller, complaints: list[str], data: st.DataObject
) -> None:
    body = bytearray(json.dumps(ada.beat(degraded=["x"], runtime={"state": "running", "restarts": 1})).encode())
    at = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        del body[at:]
    else:
        body[at] = data.draw(st.integers(0, 255))
    assert await sent(world, post(ada, bytes(body))) in {200, 400}
    assert not complaints


@many
@given(
    token_is_good=st.booleans(),
    encoding=st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b"identity", b"\xff", b"gzip, gzip"]),
    body=st.binary(max_size=200),
)
async def test_a_body_packed_in_any_way_or_none(
    world: EndpointWorld, ada: Caller, complaints: list[str], token_is_good: bool, encoding: bytes, body: bytes
) -> None:
    caller = ada if token_is_good else Caller(world, "nobody")
    status = await sent(world, post(caller, body, headers=b"Content-Encoding: %s\r\n" % encoding))
    assert status == 400 or (status == 403 and not token_is_good)  # what it can not unpack, aiohttp refuses itself
    assert not complaints


# --- Addresses, queries, headers ------------------------------------------------------------------------------------

NO_BREAK = st.binary(max_size=200).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b""))


@many
@given(query=NO_BREAK | st.text(max_size=20).map(lambda t: b"wait=" + t.encode("utf-8", "surrogatepass")))
async def test_any_query(world: EndpointWorld, ada: Caller, complaints: list[str], query: bytes) -> None:
    # What reads as a real wait is answered at once here, since the agent is to stop.
    world.agent("ada", desiredState="Stopped")
    body = json.dumps(ada.beat()).encode()
    assert await sent(world, post(ada, body, query=b"?" + query)) in CALLERS_FAULT
    assert not complaints


@many
@given(did=NO_BREAK, tail=st.sampled_from([b"config-bundle", b"heartbeat", b""]))
async def test_any_address(world: EndpointWorld, ada: Caller, complaints: list[str], did: bytes, tail: bytes) -> None:
    head = b"GET /v1/agents/%s/%s HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: %s\r\nConnection: close\r\n\r\n"
    assert await sent(world, head % (did, tail, ada.token.encode())) in CALLERS_FAULT - {200, 304}
    assert not complaints


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"X-Heartbeat-Token",
                b"Authorization",
                b"X-Machine-Id",
                b"If-None-Match",
                b"Content-Type",
                b"Content-Length",
                b"Transfer-Encoding",
                b"Expect",
                b"Connection",
                b"Upgrade",
                b"Cookie",
                b"Range",
            ]
        ),
        NO_BREAK | st.sampled_from([b"Bearer \xff", b"chunked", b"100-continue", b"-1", b"websocket", b'W/"', b"*"]),
    ),
    max_size=8,
)


@many
@given(headers=HEADERS, method=st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"PRI", b"\xff"]))
async def test_any_headers(
    world: EndpointWorld,
    ada: Caller,
    complaints: list[str],
    headers: list[tuple[bytes, bytes]],
    method: bytes,
) -> None:
    path = (bundle_path if method in (b"GET", b"HEAD") else heartbeat_path)(ada.did).encode()
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    head = b"%s %s HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: %s\r\n%s\r\n" % (method, path, ada.token.encode(), lines)
    rest = b"0\r\n\r\n" + b"x" * MAX_BODY  # whatever length or end of a body the headers may promise
    assert await sent(world, head + rest) in CALLERS_FAULT
    assert not complaints


@many
@given(request=st.binary(max_size=300))
async def test_any_bytes_at_all(world: EndpointWorld, complaints: list[str], request: bytes) -> None:
    # A line that is whole, and a request after it: nothing is left to wait for.
    assert await sent(world, request + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n") in CALLERS_FAULT
    assert not complaints


@pytest.mark.parametrize(
    "broken", [b"X-Heartbeat-Token: %s\0", b"X-Heartbeat-Token %s", b"X-Heartbeat-Token: %s\n\x01:"]
)
async def test_a_token_in_a_broken_header_stays_out_of_the_log(
    world: EndpointWorld, ada: Caller, complaints: list[str], broken: bytes
) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n" + broken % ada.token.encode() + b"\r\n\r\n"
    assert await sent(world, request) == 400
    assert not complaints


async def test_a_defect_of_ours_is_still_told(
    world: EndpointWorld, ada: Caller, complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.sessions, "hear", None)
    assert await sent(world, post(ada, json.dumps(ada.beat()).encode())) == 500
    assert len(complaints) == 1
    assert "TypeError" in complaints[0]


# --- Those who go away ----------------------------------------------------------------------------------------------


async def test_a_caller_that_goes_away_in_the_middle_of_its_body_is_no_trouble(
    world: EndpointWorld, ada: Caller, complaints: list[str]
) -> None:
    whole = post(ada, json.dumps(ada.beat()).encode())
    for leave in (lambda w: w.transport.abort(), lambda w: w.write_eof(), lambda w: w.close()):
        before = asyncio.all_tasks()
        _, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(whole[:-10])
        await world.until(lambda known=before: asyncio.all_tasks() - known, "it is being served")
        leave(writer)
        await world.until(lambda known=before: not asyncio.all_tasks() - known, "it is served no more")
        writer.close()
    assert await sent(world, whole) == 200
    assert not complaints


async def test_others_are_served_while_one_sends_byte_after_byte(
    world: EndpointWorld, ada: Caller, complaints: list[str]
) -> None:
    slow = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(50)]
    for _, writer in slow:
        writer.write(post(ada, json.dumps(ada.beat()).encode())[:-1])
    async with asyncio.timeout(DEADLINE):
        assert (await ada.say()).status == 200
        assert (await ada.fetch()).status == 200
    for _, writer in slow:
        writer.close()
    assert not complaints
