"""Bundles and answers that make no sense: the supervisor says so and goes on as it is, whatever they hold."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from endpoint import DID, TOKEN, OperatorDouble, bundle
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from machine import Machine, alive, eventually

from roost_agent.contract import BundleFile, ConfigBundle, Heartbeat, Status
from roost_agent.endpoint import CallFailed, Endpoint, Fetched, Superseded, understood
from roost_agent.runtime import Layout
from roost_agent.runtime.command import CommandRuntime
from roost_agent.settings import Settings, read
from roost_agent.volume import Volume

many = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MARKER = "marker-0a1b2c3d"
WHOLE = bundle(
    env={"GREETING": "hello"},
    secretEnv={"KEY": MARKER},
    files=[{"path": "a/b", "mode": "0600", "content": MARKER}],
    soul="You are Ada.",
    workspace=[{"path": "AGENTS.md", "content": "x", "policy": "Seed"}],
    skills={"items": [{"name": "s", "version": "1", "files": [{"path": "x", "content": "y", "sha256": "0" * 64}]}]},
    channels={"telegram": {"dmPolicy": "pairing", "tokenEnv": "KEY"}},
    providers=[{"id": "p", "apiKeyEnv": "KEY"}],
    openclaw={"overlay": {"a": {"b": [1]}}},
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
SCALARS |= st.sampled_from(["\0", "\ud800", "../x", "/etc/passwd", "x" * 5000, 10**400, -(2**63), "NaN", MARKER])
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TEXTS = ["\0", "../x", "a//b", "x" * 5000, "é", "\u2028", "", " ", "0777", "Command", "0" * 64, MARKER]
LIKE: dict[type, st.SearchStrategy[Any]] = {
    str: st.sampled_from(TEXTS) | st.text(max_size=30),
    int: st.sampled_from([0, 1, 42, 2**53 - 1, 10**30]) | st.integers(0, 300),
    bool: st.booleans(),
    list: st.just([]),
    dict: st.just({}),
}
DEEP = [opened * 20_000 for opened in (b"[", b'{"a":')] + [
    b"[" * 20_000 + b"]" * 20_000,
    b'{"revoked":' + b"[" * 20_000,
]
CUT = st.integers(0, len(json.dumps(WHOLE)) - 1).map(lambda n: json.dumps(WHOLE).encode()[:n])


@st.composite
def changed(draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """The whole bundle with other values in some places, however deep."""
    made = json.loads(json.dumps(WHOLE))
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        here: Any = made
        while True:
            at = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
            if not (isinstance(here[at], dict | list) and here[at] and draw(st.booleans())):
                break
            here = here[at]
        match draw(st.sampled_from(["value", "value", "gone", "more"])):
            case "value":
                here[at] = draw(ANY_JSON if draw(st.booleans()) else LIKE.get(type(here[at]), ANY_JSON))
            case "gone":
                del here[at]
            case _ if isinstance(here, dict):
                here[draw(st.text(max_size=8))] = draw(ANY_JSON)
            case _:
                here.append(draw(ANY_JSON))
        if not made:
            break
    return json.dumps(made).encode()  # surrogates and NaN as a careless library writes them


BODY = (
    changed() | CUT | st.binary(max_size=300) | ANY_JSON.map(lambda v: json.dumps(v).encode()) | st.sampled_from(DEEP)
)


@many
@given(raw=BODY)
def test_any_bundle_is_carried_out_as_far_as_it_can_be_or_told_to_make_no_sense(raw: bytes) -> None:
    made, said = None, ""
    try:
        made = understood(raw).bundle
    except CallFailed as error:
        said = str(error)
    if said:
        assert MARKER not in said
        assert len(said) < 2000
        return
    if made is None:
        assert json.loads(raw)["revoked"] is True
        return
    assert made.runtime_inputs() == ConfigBundle.read(made.write() if not _extra(made) else raw).runtime_inputs()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "data")
        root.mkdir()
        volume = Volume(root, lambda: TOKEN)
        if made.runtime is not None and made.runtime.command is not None:
            launch = CommandRuntime({"PATH": os.defpath}, root, "127.0.0.1", None).launch(made)
            assert not [text for text in (*launch.argv, *launch.env.values()) if "\0" in text]
            assert MARKER not in repr(launch)
        with suppress(OSError):
            volume.put(Layout(made.files))
        volume.keep(raw)
        assert volume.last_good() == raw
        assert sorted(p.name for p in Path(folder).iterdir()) == ["data"], "nothing is written elsewhere"


def _extra(made: ConfigBundle) -> bool:
    try:
        made.write()
    except ValueError:
        return True
    return False


@settings(many, max_examples=20)
@given(
    paths=st.lists(
        st.sampled_from(["a", "a/b", "a/./b", "a/b/c", "b", "x" * 300, "x/" * 200 + "y", ". /z", "é"]), max_size=5
    )
)
def test_files_that_are_in_each_others_way_are_no_defect(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volume = Volume(Path(folder), lambda: TOKEN)
        for content in ("one", "two"):
            with suppress(OSError):
                volume.put(Layout([BundleFile(path=p, content=content) for p in paths]))


# --- Answers ----------------------------------------------------------------------------------------------------------


class Liar:
    """A server that answers every call with these bytes and hangs up."""

    def __init__(self) -> None:
        self.says = b""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.says)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def liar() -> AsyncIterator[Liar]:
    made = Liar()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


def settings_of(liar: Liar, folder: Path) -> Settings:
    made = read(
        {
            "AGENT_DID": DID,
            "AGENTSHIELD_API_URL": f"http://127.0.0.1:{liar.port}",
            "AS_HEARTBEAT_TOKEN": TOKEN,
            "DATA_DIR": str(folder),
            "FLY_MACHINE_ID": "m-1",
        }
    )
    return replace(made, api_socket=folder / "none")


HEAD = st.sampled_from(
    [
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: x",
        b"Transfer-Encoding: chunked",
        b"Set-Cookie: \xff",
    ]
    + [b"Content-Encoding: " + coding for coding in (b"gzip", b"br", b"zstd", b"deflate", b"\xff")]
    + [
        b"Content-Type: \xff/",
        b"Location: http://[",
        b"Retry-After: 9999999999",
        b"Retry-After: \xd9\xa3",
        b"X",
        b"\0: x",
    ]
    + [b"Connection: upgrade\r\nUpgrade: websocket", b"A: " + b"x" * 9000]
)
STATUS = st.sampled_from(
    [b"200 OK", b"304 Not Modified", b"200", b"999 X", b"204 No", b"101 Switch", b"abc", b"307 See"]
)
STATUS |= st.sampled_from([b"%d X" % code for code in (100, 400, 401, 403, 404, 409, 413, 429, 500, 503)])
LIES = st.binary(max_size=100) | st.builds(
    lambda status, heads, body: b"HTTP/1.1 " + b"\r\n".join([status, *heads, b"", body]),
    STATUS,
    st.lists(HEAD, max_size=3),
    BODY | ANY_JSON.map(lambda v: json.dumps({"commands": v, "nextHeartbeatSeconds": 1}).encode()),
)
BEAT = Heartbeat(status=Status.RUNNING, machine_id="m-1", uptime_seconds=1, memory_mb=1, compute_version="1")
CALLS: dict[str, Callable[[Endpoint], Awaitable[Any]]] = {
    "bundle": lambda endpoint: endpoint.bundle(),
    "bundle again": lambda endpoint: endpoint.bundle("some-revision"),
    "heartbeat": lambda endpoint: endpoint.beat(BEAT, 0),
}


@pytest.mark.parametrize("call", CALLS)
@settings(many, max_examples=100)
@given(says=LIES)
@example(says=b"HTTP/1.1 304 Not Modified\r\n\r\n")
async def test_any_answer_is_an_answer_or_a_failure_of_the_call(
    liar: Liar, tmp_path: Path, call: str, says: bytes
) -> None:
    liar.says = says
    async with Endpoint(settings_of(liar, tmp_path)) as endpoint:
        found, said = None, ""
        try:
            found = await CALLS[call](endpoint)
        except (CallFailed, Superseded) as error:
            said = str(error)
    assert TOKEN not in said
    assert said or call != "bundle" or isinstance(found, Fetched), "nobody said that there is nothing new"


# --- The real supervisor ---------------------------------------------------------------------------------------------


async def test_it_boots_in_spite_of_answers_that_make_no_sense(machine: Machine, operator: OperatorDouble) -> None:
    lies = [web.Response(body=DEEP[0]), web.Response(status=304), web.Response(body=b"\xff\0")]
    operator.bundle_answer = lambda: lies.pop(0)
    machine.start()
    await eventually(lambda: not lies or machine.process is None or machine.process.poll() is not None, "all three")
    operator.bundle_answer = None
    await machine.runs()
    assert machine.lines("ended by a defect") == []


async def test_a_bundle_that_is_too_deep_leaves_what_runs(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    pid = await machine.runs()
    operator.bundle_answer = lambda: web.Response(body=DEEP[1])
    revision = operator.change(env={"GREETING": "hello"})
    await machine.heard(lambda b: any("no JSON" in text for text in b["degraded"]), "that it makes no sense")
    assert alive(pid)
    operator.bundle_answer = None
    await machine.heard(lambda b: b["bundleRevision"] == revision, "the good one")
