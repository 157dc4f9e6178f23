"""The config bundle: its revision moves with every value and nothing else, and a revoked agent is given nothing."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import declared, spec

from roost.agents import bundle
from roost.agents.view import Declared
from roost.api.agent import AgentSpec
from roost.secrets.state import Ref, fingerprint
from roost_agent.contract import ConfigBundle

ROOT = b"f" * 32
VALUES = {Ref("llm", "key"): "sk-marker-1", Ref("llm", "other"): "sk-marker-2", Ref("files", "cert"): "marker-3"}
DID = "did:key:z6Mk"
WANTED = spec(
    env=(
        {"name": "PLAIN", "value": "v"},
        {"name": "KEY", "valueFrom": {"name": "llm", "key": "key"}},
        {"name": "OTHER", "valueFrom": {"name": "llm", "key": "other"}},
    ),
    files=(
        {"path": "a.conf", "content": "text"},
        {"path": "b.pem", "mode": "0640", "contentFrom": {"name": "files", "key": "cert"}},
    ),
    restarted_at="2026-11-21T10:00:00Z",
)


def rendered(of: Declared) -> ConfigBundle:
    return bundle.render(of, DID, VALUES.__getitem__, "r")


def revision(of: Declared, values: dict[Ref, str] | None = None, root: bytes = ROOT) -> str:
    known = VALUES | (values or {})
    return bundle.revision(root, of, DID, lambda ref: fingerprint(root, known[ref]))


def test_it_holds_what_is_declared() -> None:
    told = rendered(declared(WANTED))
    assert told.env == {"PLAIN": "v"}
    assert told.secret_env == {"KEY": "sk-marker-1", "OTHER": "sk-marker-2"}
    assert [(f.path, f.mode, f.content) for f in told.files] == [
        ("a.conf", "0600", "text"),
        ("b.pem", "0640", "marker-3"),
    ]
    assert told.runtime is not None
    assert (told.runtime.command, told.runtime.restarted_at) == (["agent"], "2026-11-21T10:00:00Z")
    assert ConfigBundle.read(told.write()) == told


@pytest.mark.parametrize("how", ["spec", "annotation"])
def test_a_revoked_agent_is_given_nothing(how: str) -> None:
    of = declared(WANTED)
    of = (
        replace(of, spec=of.spec.model_copy(update={"revoked": True}))
        if how == "spec"
        else replace(of, annotations={"roost.dev/revoked": "true"})
    )
    told = rendered(of)
    assert told.revoked
    assert (told.runtime, told.env, told.secret_env, told.files) == (None, {}, {}, [])
    assert b"marker" not in told.write()
    assert revision(of) != revision(declared(WANTED))


def test_the_revision_stays_with_what_is_volatile() -> None:
    of = declared(WANTED)
    same = (
        replace(of, generation=9),
        replace(of, resource_version="9", finalizers=("x",), annotations={"roost.dev/reconcile-at": "now"}),
        replace(of, spec=of.spec.model_copy(update={"restarted_at": "another"})),
        replace(of, spec=of.spec.model_copy(update={"restarted_at": None})),
    )
    assert {revision(s) for s in same} == {revision(of)}


CHANGES: list[dict[str, Any]] = [
    {"env": ({"name": "PLAIN", "value": "w"},)},
    {"env": ({"name": "PLAIN", "valueFrom": {"name": "llm", "key": "key"}},)},
    {"env": ({"name": "PLAIN", "valueFrom": {"name": "llm", "key": "other"}},)},
    {"env": ()},
    {"files": ({"path": "a.conf", "content": "text", "mode": "0644"},)},
    {"files": ({"path": "a.conf", "content": "other"},)},
    {"files": ({"path": "b.conf", "content": "text"},)},
    {"files": ()},
    {"heartbeat": {"interval_seconds": 31}},
    {"runtime": {"kind": "Command", "command": ("agent", "-v")}},
    {"runtime": {"kind": "Command", "command": ("agent",), "version": "2"}},
    {"runtime": {"kind": "Command", "command": ("agent",), "readiness": {"httpGet": {"port": 80}}}},
    {"revoked": True},
]


def test_the_revision_moves_with_every_change() -> None:
    specs = [AgentSpec.model_validate(WANTED.model_dump() | change) for change in ({}, *CHANGES)]
    revisions = [revision(declared(s)) for s in specs]
    assert len(set(revisions)) == len(revisions)


def test_the_revision_moves_with_who_it_is_for() -> None:
    of = declared(WANTED)
    others = (
        replace(of, uid="uid-2"),
        replace(of, labels={"roost.dev/fleet": "support", "roost.dev/ordinal": "1"}),
        replace(of, labels={"roost.dev/fleet": "support", "roost.dev/ordinal": "2"}),
    )
    assert len({revision(o) for o in (of, *others)}) == 4


@given(which=st.sampled_from(sorted(VALUES, key=str)), value=st.text(max_size=20))
def test_the_revision_moves_with_every_secret_value(which: Ref, value: str) -> None:
    of = declared(WANTED)
    assert (revision(of, {which: value}) == revision(of)) == (value == VALUES[which])


def test_the_revision_is_keyed() -> None:
    assert revision(declared(WANTED)) != revision(declared(WANTED), root=b"g" * 32)


def test_every_reference_is_named_once_for_each_use() -> None:
    assert list(bundle.refs_of(declared(WANTED))) == [Ref("llm", "key"), Ref("llm", "other"), Ref("files", "cert")]


@given(label=st.text(max_size=12))
def test_a_label_that_is_no_ordinal_is_no_ordinal(label: str) -> None:
    """Labels are anybody's to write; whatever stands there must not stop the Agent from being worked on."""
    told = rendered(replace(declared(WANTED), labels={"roost.dev/ordinal": label}))
    assert told.agent.ordinal is None or str(told.agent.ordinal) == str(int(label))
