"""Secrets and ConfigMaps that nobody should have written: what becomes of the bundle that is to be made of them.

Whatever they hold, the answer is a bundle that the supervisor understands, or 503 with a reason that shows no value;
the Agent's status says the reason in a sentence, and it heals by itself.
"""

import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import structlog
from endpoint_world import Caller, EndpointWorld, endpoint_world
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from operator_world import World, operator_world
from roost.agents.sessions import Session
from roost.kube.client import Gone, core_object
from roost.kube.records import Key
from roost.secrets.values import NotNow
from roost_agent.contract import ConfigBundle
from store import NAMESPACE

many = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MARKER = "marker-0a1b2c3d"
SPEC: dict[str, Any] = {
    "env": [
        {"name": "KEY", "valueFrom": {"name": "keys", "key": "env"}},
        {"name": "RAW", "valueFrom": {"name": "raw", "key": "env", "kind": "CoreSecret"}},
    ],
    "files": [{"path": "key.pem", "contentFrom": {"name": "keys", "key": "file"}}],
    "soul": {"configMapRef": {"name": "words", "key": "soul"}},
    "workspace": [{"path": "AGENTS.md", "configMapRef": {"name": "words", "key": "agents"}}],
    "skills": {"items": [{"name": "weather", "version": "1.0.0", "configMapRef": {"name": "skill"}}]},
}
VALUE = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(str.encode),
    st.sampled_from([b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[31m\r\n", "\u2028\ufeff".encode(), b'"}],', b"${X}"]),
    st.integers(60_000, 1_000_000).map(lambda n: b"x" * n),
).map(lambda value: MARKER.encode() + value)
TEXT = st.one_of(
    st.text(max_size=40), st.sampled_from(["\0", "\x85", "{{}}"]), st.integers(60_000, 1_000_000).map(lambda n: "x" * n)
).map(lambda text: MARKER + text)
FILE = st.from_regex(r"[-._a-zA-Z0-9]{1,30}", fullmatch=True) | st.sampled_from(
    ["SKILL.md", "..__x", "a__..__b", "__x", "x__", "__", "a____b", "a__b", ".roost__x", "x" * 253, ".", "..", "a__."]
)


@dataclass(frozen=True)
class Written:
    """What people have written; None where they have not."""

    env: bytes | None
    raw: bytes | None
    file: bytes | None
    soul: str | None
    agents: str | None
    binary: bool
    skill: dict[str, str] | None

    def to(self, world: EndpointWorld) -> None:
        held = {"env": self.env, "file": self.file}
        world.secrets.values = {"keys-v1": {k: v for k, v in held.items() if v is not None}}
        world.secrets.values |= {"raw": {"env": self.raw}} if self.raw is not None else {}
        words = {k: v for k, v in (("soul", self.soul), ("agents", self.agents)) if v is not None}
        kind = "binaryData" if self.binary else "data"
        world.secrets.maps = {"words": {kind: words}}
        world.secrets.maps |= {"skill": {"data": self.skill}} if self.skill is not None else {}
        world.clock.now += 60  # what was read before serves nobody any more


GOOD = Written(b"a", b"b", b"c", "d", "e", False, {"SKILL.md": "f", "lib__a.py": "g"})
HOSTILE_PART: dict[str, st.SearchStrategy[Any]] = {
    "env": VALUE | st.none(),
    "raw": VALUE | st.none(),
    "file": VALUE | st.none(),
    "soul": TEXT | st.none(),
    "agents": TEXT | st.none(),
    "binary": st.just(True),
    "skill": st.dictionaries(FILE, TEXT, max_size=4) | st.none(),
}
PART = st.sampled_from([*HOSTILE_PART, "skill"]).flatmap(lambda p: st.tuples(st.just(p), HOSTILE_PART[p]))
WRITTEN = st.lists(PART, min_size=1, max_size=2).map(lambda parts: replace(GOOD, **dict(parts)))


@pytest.fixture
async def ada() -> AsyncIterator[Caller]:
    async with endpoint_world() as world:
        world.secret("keys", {})
        yield world.agent("ada", **SPEC)


@many
@given(written=WRITTEN)
@example(written=GOOD)
async def test_whatever_is_written_there_is_a_bundle_or_a_reason(
    ada: Caller, caplog: pytest.LogCaptureFixture, written: Written
) -> None:
    written.to(ada.world)
    with structlog.testing.capture_logs() as lines:
        answer = await ada.fetch()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    assert not [line for line in lines if line["log_level"] not in ("debug", "info")]
    assert MARKER not in repr(lines)
    if answer.status == 503:
        assert written != GOOD
        assert answer.json["error"] == "not_now"
        assert answer.json["message"].startswith("the bundle can't be made now: ")
        assert MARKER not in answer.content.decode()
        return
    assert answer.status == 200
    read = ConfigBundle.read(answer.content)
    assert written.env is not None
    assert read.secret_env["KEY"].encode() == written.env
    assert [f.content.encode() for f in read.files] == [written.file]
    assert (read.soul, read.workspace[0].content) == (written.soul, written.agents)
    assert {f.content for f in read.skills.items[0].files} == set((written.skill or {}).values())


# --- What the status says --------------------------------------------------------------------------------------------


def secret(world: World, value: bytes) -> None:
    _write(world, Key("CoreSecret", NAMESPACE, "keys"), {"data": {"api": base64.b64encode(value).decode()}})
    world.store.apply("Secret", "keys", {"source": {"secretRef": {"name": "keys"}}})


def words(world: World, data: dict[str, str], binary: dict[str, str]) -> None:
    _write(world, Key("ConfigMap", NAMESPACE, "words"), {"data": data, "binaryData": binary})


def _write(world: World, source: Key, content: dict[str, Any]) -> None:
    path = core_object(source)
    try:
        world.store.answer("update", path, world.store.answer("get", path, {}) | content)
    except Gone:
        world.store.answer("create", path.rpartition("/")[0], {"metadata": {"name": source.name}} | content)


ENV = {"env": [{"name": "KEY", "valueFrom": {"name": "keys", "key": "api"}}]}
SOUL = {"soul": {"configMapRef": {"name": "words", "key": "soul"}}}
SKILL = {"skills": {"items": [{"name": "weather", "version": "1.0.0", "configMapRef": {"name": "words"}}]}}
NUL, BINARY = MARKER.encode() + b"\0", MARKER.encode() + b"\xff"
HOSTILE: dict[str, tuple[dict[str, Any], Callable[[World], None], Callable[[World], None], str]] = {
    "a NUL": (
        ENV,
        lambda w: secret(w, NUL),
        lambda w: secret(w, b"good"),
        'key "api" of core Secret "keys" is not UTF-8',
    ),
    "no text": (
        ENV,
        lambda w: secret(w, BINARY),
        lambda w: secret(w, b"good"),
        'key "api" of core Secret "keys" is not',
    ),
    "a picture for a soul": (
        SOUL,
        lambda w: words(w, {}, {"soul": base64.b64encode(BINARY).decode()}),
        lambda w: words(w, {"soul": "good"}, {}),
        "words",
    ),
    "a path that leads out": (
        SKILL,
        lambda w: words(w, {"a__..__..__x": MARKER}, {}),
        lambda w: words(w, {"SKILL.md": "good"}, {}),
        "the configuration can't be made: ",
    ),
}


@pytest.mark.looptime
@pytest.mark.parametrize(("spec", "spoil", "mend", "says"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_the_status_says_why_there_is_no_bundle_and_it_heals(
    spec: dict[str, Any], spoil: Callable[[World], None], mend: Callable[[World], None], says: str
) -> None:
    async with operator_world() as world:
        mend(world)
        await world.apply("ada", **spec)
        await world.until_phase("ada", "Running")
        spoil(world)
        assert world.operator is not None
        sessions = world.operator.sessions
        session = Session(Key("Agent", NAMESPACE, "ada"), world.status("ada")["did"])

        async def refused() -> str:
            try:
                await sessions.bundle(session)
            except NotNow as error:
                return str(error)
            return ""

        await world.settle(40)
        why = await refused()
        assert why
        assert MARKER not in why
        await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "False", 60)
        assert says in world.condition("ada", "SecretsResolved")[2]
        assert MARKER not in json.dumps(world.body("ada"))
        assert world.machines("ada"), "it runs on with what it has"
        mend(world)
        await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "True", 60)
        assert not await refused()
