"""Malformed calls of every kind, with good and with bad credentials: each is told so, shows no token, changes nothing.

A call is a good one with exactly one flaw, so that the flaw alone is what is refused; the contract's own models say
which bodies are none. Bytes are written to real sockets, at the leader and at a standby that passes calls on.
"""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import structlog
from endpoint_world import DEADLINE, MAX_BODY, NAMESPACE, ROOTS, Caller, EndpointWorld, endpoint_world
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oidc_issuer import Issuer
from pydantic import ValidationError
from test_token_exchange import Bed

from roost.agents.names import derive, gateway_token
from roost.telemetry import logs
from roost_agent.contract import (
    BUNDLE_ROUTES,
    CHECKIN_ROUTES,
    HEARTBEAT_ROUTES,
    TOKEN_ROUTE,
    Checkin,
    Heartbeat,
)

many = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SECRET = {"env": [{"name": "KEY", "valueFrom": {"name": "keys", "key": "api-key"}}]}
DIDS = {name: derive(ROOTS.identity, ROOTS.owner_id, NAMESPACE, name).did for name in ("ada", "bob")}
MACHINE = "machine-of-bob"
TOKEN = b"{" + b"t" * 41 + b"}"
"""Stands for the good token, and is as long, wherever one is where it does not belong."""
BEAT: dict[str, Any] = {
    "status": "running",
    "machineId": MACHINE,
    "uptimeSeconds": 60,
    "memoryMb": 40,
    "computeVersion": "0.1.0",
    "ready": True,
    "degraded": ["volume: full"],
    "runtime": {"state": "running", "pid": 42, "restarts": 1, "lastExit": {"code": 1, "at": "2026-11-21T10:00:00Z"}},
    "channels": {"telegram": {"state": "connected", "lastError": "none"}},
    "disk": {"usedBytes": 1, "totalBytes": 2},
}
FIGURES: dict[str, Any] = {
    "sandboxId": DIDS["bob"],
    "machineId": MACHINE,
    "controllerVersion": "0.1.0",
    "controllerCommit": "0f1e2d3",
    "supervisorState": "running",
    "totalRestarts": 7,
    "restartsSinceLastCheckin": 2,
    "uptimeSeconds": 86461,
    "loadAvg5m": 0.31,
    "bandwidthBytesIn": 71234,
    "bandwidthBytesOut": 88123,
    "productTelemetry": {"channelCount": 1},
}


# --- Calls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A request before it is written; `proof` is None where the flaw brings its own credentials."""

    kind: str
    method: bytes
    target: bytes
    body: bytes = b""
    headers: tuple[bytes, ...] = ()
    """Whole lines without their end."""
    framing: bytes | None = None
    """The lines about the body's length, where they are not what they should be."""
    proof: str | None = "good"
    breaks: bool = False
    """HTTP itself is broken, so that the connection may be closed without a word."""
    ends: bool = False
    """The sender goes away in the middle of it."""

    def but(self, *lines: bytes, **other: Any) -> "Call":
        return replace(self, headers=(*self.headers, *lines), **other)

    def written(self, proofs: tuple[bytes, ...]) -> bytes:
        framing = b"Content-Length: %d" % len(self.body) if self.framing is None else self.framing
        lines = [b"%s %s HTTP/1.1" % (self.method, self.target), b"Host: x", *proofs, *self.headers, framing]
        return b"\r\n".join([*filter(None, lines), b"Connection: close", b"", self.body])


def _address(route: str, name: str) -> bytes:
    return route.format(did=DIDS[name]).encode()


_BEAT, _FIGURES = json.dumps(BEAT).encode(), json.dumps(FIGURES).encode()
GOOD = (
    *(
        Call("bundle", b"GET", _address(route, "bob"), headers=(b"X-Machine-Id: " + MACHINE.encode(),))
        for route in BUNDLE_ROUTES
    ),
    *(Call("heartbeat", b"POST", _address(route, "bob"), _BEAT) for route in HEARTBEAT_ROUTES),
    *(Call("checkin", b"POST", _address(route, "bob"), _FIGURES) for route in CHECKIN_ROUTES),
    Call("token", b"POST", _address(TOKEN_ROUTE, "ada")),
)
MODELS = {"heartbeat": (BEAT, Heartbeat), "checkin": (FIGURES, Checkin)}
TALKING = frozenset(MODELS)
SENDING = TALKING | {"token"}
EVERYBODY = SENDING | {"bundle"}

Draw = Callable[[st.SearchStrategy[Any]], Any]
NO_BREAK = st.binary(max_size=100).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b""))
HIGH = st.binary(min_size=1, max_size=60).map(lambda b: bytes(0x80 | c for c in b))
CONTROL = st.sampled_from([bytes([c]) for c in (*range(9), 11, 12, *range(14, 32), 127)])


def odd_address(draw: Draw, call: Call) -> Call:
    did = DIDS["ada" if call.kind == "token" else "bob"].encode()
    broken = [b"%", b"%zz", b"%0", b"%00", b"%ff", b"%c0%af", b"%ed%a0%80", b"%2f..%2f", b"%2500", b"%u0041", b"\xff"]
    other = [
        *(call.target.replace(did, did + end) for end in broken if did in call.target),
        *(call.target.replace(did, quote(text, safe="").encode()) for text in ("", ".", "..", "\0", "🦉", "x" * 300)),
        *(
            before + call.target
            for before in (b"http://[::1", b"http://h:x", b"http://h:-1", b"://", b"/", b"x", b"\\")
        ),
        *(call.target + after for after in (b"/", b"/..", b"%", b"%00", b";", b"\xc3", b" x")),
        *(b"", b"*", b"/", b"h:80", b"http://", b"/v1/agents//heartbeat", b"/v1/agents/../healthz", b"/" * 5000),
        call.target.upper(),
        call.target.replace(b"/", b"\\"),
    ]
    if did in call.target and draw(st.booleans()):
        target = call.target.replace(did, draw(NO_BREAK))
    else:
        target = draw(st.sampled_from(other))
    assume(target != call.target)
    return call.but(target=target, breaks=True)


def wrong_method(draw: Draw, call: Call) -> Call:
    known = {b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"BREW", b"GET", b"POST"} - {call.method}
    known -= {b"HEAD"} if call.kind == "bundle" else set()
    if draw(st.booleans()):
        return call.but(method=draw(st.sampled_from(sorted(known))))
    broken = [
        call.method.lower(),
        b"",
        b"\xff",
        b"P\0ST",
        b"G" * 9000,
        b"PRI",
        b"CONNECT",
        b"GET GET",
        b"{}",
        b"\x16\x03",
    ]
    return call.but(method=draw(st.sampled_from(broken)), breaks=True)


def odd_wait(draw: Draw, call: Call) -> Call:
    text = draw(
        st.text(min_size=1, max_size=20) | st.sampled_from(["0x10", "1,5", "25s", "--1", "9" * 400 + "x", "[]"])
    )
    try:
        float(text)
    except ValueError:
        pass
    else:
        assume(False)
    raw = quote(text, safe="", errors="surrogatepass")
    return call.but(target=call.target + b"?wait=" + raw.encode() + draw(st.sampled_from([b"", b"&wait=1", b"&a=%"])))


def odd_credentials(draw: Draw, call: Call) -> Call:
    name = draw(st.sampled_from([b"X-Heartbeat-Token", b"Authorization", b"X-Gateway-Token"]))
    value = draw(
        HIGH | st.sampled_from([b"", b" ", b"Bearer", b"Basic eA==", b"Bearer\t", b"x" * 8000, b"a b", b"null"])
    )
    scheme = b"Bearer " if name == b"Authorization" and draw(st.booleans()) else b""
    if call.kind in ("heartbeat", "bundle") and value.strip() and draw(st.booleans()):
        # The first of two is the one that counts, so a good one behind it is of no use.
        return call.but(b"X-Heartbeat-Token: " + value, b"X-Heartbeat-Token: " + TOKEN, proof=None)
    return call.but(name + b": " + scheme + value, proof=None)


def odd_machine(draw: Draw, call: Call) -> Call:
    value = draw(HIGH | st.sampled_from([b"", b"machine", MACHINE.encode() + b"x", b"x" * 8000, b"\t.", b"null", b"0"]))
    return replace(call, headers=()).but(b"X-Machine-Id: " + value)


def odd_header(draw: Draw, call: Call) -> Call:
    """What HTTP does not allow, or we do not: lines that are none, too long ones, too many, contradictions."""
    line = st.one_of(
        CONTROL.map(lambda c: b"X-Odd: a" + c + b"b"),
        CONTROL.map(lambda c: b"X-Odd" + c + b": a"),
        st.sampled_from([b"X-Odd", b": a", b"X Odd: a", b"X-Odd : a", b"\xff: a", b"X-Odd:\n a", b"X-Odd: a\rb", b" "]),
        st.integers(8191, 200_000).map(lambda n: b"X-Odd: " + b"a" * n),
        st.integers(8191, 20_000).map(lambda n: b"X" * n + b": a"),
        st.integers(66, 400).map(lambda n: b"\r\n".join([b"X-Odd: a"] * n)),
        st.integers(40, 60).map(lambda n: b"\r\n".join([b"X-Odd: " + b"a" * 8000] * n)),
        st.sampled_from([b"-1", b"+5", b"1e3", b"0x10", b"5, 5", b"\xb2", b"9" * 30, b"", b"NaN"]).map(
            lambda n: b"Content-Length: " + n
        ),
        st.sampled_from([b"gzip", b"chunked, gzip", b"chunked, chunked", b"xchunked", b"chunked\x0b", b"identity"]).map(
            lambda n: b"Transfer-Encoding: " + n
        ),
        st.just(b"Content-Length: 5\r\nContent-Length: 6"),
        st.just(b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
    )
    chosen = draw(line)
    framing = b"" if b"Content-Length" in chosen or b"Transfer-Encoding" in chosen else None
    return call.but(chosen, framing=framing, breaks=True)


BOMB = gzip.compress(b" " * 2**23)


def odd_framing(draw: Draw, call: Call) -> Call:
    """A body that is not as long as it says, not packed as it says, or too large."""
    chunked, body = b"Transfer-Encoding: chunked", call.body or b"{}"
    length = b"Content-Length: %d"
    whole = b"%x\r\n%s\r\n" % (len(body), body)
    unfinished = [
        (length % (len(body) + 5), body),
        (chunked, whole),
        (chunked, whole + b"0\r\nX-Odd"),
        (chunked, b"%x\r\n%s" % (len(body) + 1, body)),
    ]
    framing, sent = draw(
        st.sampled_from(
            [
                *unfinished,
                (length % (MAX_BODY + 1), b"x" * (MAX_BODY + 1)),
                (length % 2**40, body),
                (chunked, b"zz\r\n" + body),
                (chunked, b"-1\r\n" + body),
                (chunked, b"1\r\n" + body),
                (chunked, b"f" * 17 + b"\r\n" + body),
                (chunked, b"%x\r\n%s\r\n0\r\n\r\n" % (MAX_BODY + 1, b"x" * (MAX_BODY + 1))),
                (chunked, b";" * 9000),
                (b"Content-Encoding: gzip\r\n" + length % len(body), body),
                (b"Content-Encoding: deflate\r\n" + length % len(body), body),
                (b"Content-Encoding: gzip\r\n" + length % len(BOMB), BOMB),
                *([(b"Content-Encoding: gzip\r\n" + length % 20, gzip.compress(body)[:20])] if call.body else []),
            ]
        )
    )
    return call.but(framing=framing, body=sent, breaks=True, ends=(framing, sent) in unfinished)


# --- Bodies ---------------------------------------------------------------------------------------------------------

TEXT = (
    st.text(max_size=60)
    | st.sampled_from(
        ["\0", "\ud800", "\x1b[31m", "\u2028", "x" * 5000, "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "٢٠٢٦"]
    )
    | st.just(TOKEN.decode())
)
NUMBERS = st.sampled_from([float("nan"), float("inf"), -1, 2**53, -(2**63), 10**400, 1e308, 0.5, True])
ANY_JSON = st.recursive(
    st.none() | NUMBERS | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=8,
)


def odd_body(draw: Draw, call: Call) -> Call:
    plain, model = MODELS[call.kind]
    good = json.dumps(plain)
    how = draw(st.sampled_from(["field", "missing", "cut", "byte", "encoding", "nested", "twice", "text"]))
    field = draw(st.sampled_from(sorted(plain)))
    match how:
        case "field":
            body = json.dumps(_put(draw, plain, draw(st.just(TOKEN.decode()) | ANY_JSON))).encode()
        case "missing":
            body = json.dumps({k: v for k, v in plain.items() if k != field}).encode()
        case "cut":
            body = good.encode()[: draw(st.integers(0, len(good) - 1))]
        case "byte":
            at = draw(st.integers(0, len(good) - 1))
            body = good[:at].encode() + draw(HIGH | CONTROL) + good[at + 1 :].encode()
        case "encoding":
            codec = draw(st.sampled_from(["utf-16", "utf-32-le", "utf-8-sig", "cp037", "utf-7"]))
            body = (good if codec != "utf-7" else good.replace("running", "rünning")).encode(codec)
        case "nested":
            deep = draw(st.integers(300, 5000))
            opened, closed = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
            body = b'{"x":' + opened * deep + b"1" + closed * min(deep, draw(st.sampled_from([0, deep]))) + b"}"
            body = body[:MAX_BODY]
        case "twice":
            body = f'{good[:-1]}, "{field}": {json.dumps(draw(ANY_JSON))}}}'.encode()
        case _:
            body = draw(st.binary(max_size=200) | ANY_JSON.map(lambda v: json.dumps(v).encode()))
    try:
        model.model_validate_json(body)
    except ValidationError:
        return call.but(body=body)
    assume(False)
    raise AssertionError


def _put(draw: Draw, plain: dict[str, Any], value: Any) -> dict[str, Any]:
    """A copy with another value in some field, which may be one of a nested object."""
    field = draw(st.sampled_from(sorted(plain)))
    inner = plain[field]
    if isinstance(inner, dict) and inner and draw(st.booleans()):
        return plain | {field: _put(draw, inner, value)}
    return plain | {field: value}


FLAWS: dict[Callable[[Draw, Call], Call], frozenset[str]] = {
    odd_address: EVERYBODY,
    wrong_method: EVERYBODY,
    odd_wait: frozenset({"heartbeat"}),
    odd_credentials: EVERYBODY,
    odd_machine: EVERYBODY,
    odd_header: EVERYBODY,
    odd_framing: SENDING,
    odd_body: TALKING,
}


@st.composite
def malformed(draw: Draw, flaw: Callable[[Draw, Call], Call]) -> Call:
    call = draw(st.sampled_from([c for c in GOOD if c.kind in FLAWS[flaw]]))
    proof = draw(st.sampled_from(["good", "good", "bearer", "wrong", "another's", "none"]))
    made = flaw(draw, replace(call, proof=proof))
    assume(made != call)
    return made


# --- The scene ------------------------------------------------------------------------------------------------------


class Scene:
    """An operator that leads, perhaps a standby before it, and who is there: `bob`, `ada` without a token, `grace`."""

    def __init__(self, bed: Bed, entry: EndpointWorld) -> None:
        self.bed, self.leader, self.entry = bed, bed.world, entry
        self.worlds = [bed.world] if entry is bed.world else [bed.world, entry]
        for world in self.worlds:
            world.secret("keys", {"api-key": "the key of the provider"})
            for name in ("bob", "grace"):
                memory = world.agent(name, **SECRET).memory
                memory.machine_id, memory.epoch_proved = f"machine-of-{name}", 0
        bed.sees(bed.ada)
        self.grace = Caller(entry, "grace")
        self.bob = Caller(entry, "bob")
        self.gateway = gateway_token(ROOTS.token, ROOTS.owner_id, NAMESPACE, "bob", "uid-of-bob", 0)
        self.proof = bed.proof()
        self.woken: list[Any] = []
        self.well: Any = None
        for world in self.worlds:
            world.engine.add = lambda key, lane=None: self.woken.append(key)  # type: ignore[method-assign]

    def proofs(self, call: Call) -> tuple[tuple[bytes, ...], list[str]]:
        """The lines that prove who calls, and what of it nobody may see again."""
        token = {"wrong": "w" * 43, "another's": self.grace.token}.get(call.proof or "", self.bob.token)
        proof = {"wrong": self.proof[:-9] + "AAAAAAAAA", "another's": token}.get(call.proof or "", self.proof)
        seen = [token, self.gateway, proof, self.bob.token, "w" * 40]
        if call.proof in (None, "none"):
            return (), seen
        if call.kind == "token":
            return (f"Authorization: Bearer {proof}".encode(),), seen
        if call.kind == "checkin":
            return (f"Authorization: Bearer {token}".encode(), f"X-Gateway-Token: {self.gateway}".encode()), seen
        name = "Authorization: Bearer" if call.proof == "bearer" else "X-Heartbeat-Token:"
        return (f"{name} {token}".encode(),), seen

    def mind(self) -> Any:
        """All that a call could change."""
        memories = [
            (key, m.uid, m.declared, m.machine_id, m.heard, m.figures, m.revision, m.refused, m.epoch_proved, m.world)
            for world in self.worlds
            for key, m in world.memories.items()
            if key.name != "grace"
        ]
        return memories, [list(world.cache.of_kind("Agent")) for world in self.worlds]

    async def healthy(self) -> Any:
        """What an agent that does no harm is answered."""
        beat, bundle = await self.grace.say(), await self.grace.fetch()
        assert (beat.status, bundle.status) == (200, 200), (beat.content, bundle.content)
        return beat.content, bundle.content, bundle.headers["ETag"]

    async def send(self, request: bytes, *, ends: bool = False) -> tuple[int, bytes, bytes] | None:
        """Status, head and body of the answer; None when the connection was closed without one."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.entry.port)
        try:
            writer.write(request)
            if ends:
                writer.write_eof()
            async with asyncio.timeout(DEADLINE):
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"HTTP/1.1 100"):
                    head = await reader.readuntil(b"\r\n\r\n")
                lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = (
                    b""
                    if request.startswith(b"HEAD ")
                    else await reader.readexactly(int(lines.get(b"content-length", 0)))
                )
            return int(head.split()[1]), head, body
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            broken = getattr(error, "partial", b"")
        finally:
            writer.close()
        assert not broken, "an answer that breaks off"
        return None


@asynccontextmanager
async def _leader() -> AsyncIterator[Bed]:
    issuer = Issuer()
    await issuer.start()
    async with endpoint_world() as world, aiohttp.ClientSession() as web:
        yield Bed(world, issuer, web)
    await issuer.stop()


@pytest.fixture(params=["leader", "standby"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    logs.ignore_broken_requests()  # as the operator does when it sets up its log
    async with _leader() as bed:
        if request.param == "leader":
            yield Scene(bed, bed.world)
            return
        async with endpoint_world() as standby, aiohttp.ClientSession() as web:
            Bed(standby, bed.issuer, web)
            standby.leads, standby.leader = False, f"http://127.0.0.1:{bed.world.port}"
            yield Scene(bed, standby)


# --- What must hold -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw.__name__)
@many
@given(data=st.data())
async def test_a_call_with_a_flaw_is_told_so_and_changes_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture, flaw: Callable[[Draw, Call], Call], data: st.DataObject
) -> None:
    call = data.draw(malformed(flaw))
    proofs, tokens = scene.proofs(call)
    request = call.written(proofs).replace(TOKEN, scene.bob.token.encode())
    before, well = scene.mind(), scene.well or await scene.healthy()
    scene.well = well
    scene.woken.clear()
    caplog.clear()

    with structlog.testing.capture_logs() as lines:
        answer = await scene.send(request, ends=call.ends)

    if answer is None:
        assert call.breaks, "closed without a word"
    else:
        status, head, body = answer
        assert 400 <= status < 500, answer
        if not request.startswith(b"HEAD "):
            problem = json.loads(body)
            assert problem.keys() == {"error", "message"}
            assert all(isinstance(text, str) and text for text in problem.values())
        assert not [token for token in tokens if token.encode() in head + body]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    assert not [line for line in lines if line["log_level"] not in ("debug", "info")]
    assert not [token for token in tokens if token in repr(lines)]
    assert scene.woken == []
    assert scene.mind() == before
    assert await scene.healthy() == well


@pytest.mark.parametrize("call", GOOD, ids=lambda call: call.target.decode().rsplit("/", 1)[-1])
async def test_without_the_flaw_it_would_have_been_taken(scene: Scene, call: Call) -> None:
    proofs, _ = scene.proofs(call)
    answer = await scene.send(call.written(proofs))
    assert answer is not None
    assert answer[0] in (200, 204), answer
