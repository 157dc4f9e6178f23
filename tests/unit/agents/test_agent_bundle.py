"""The config bundle: its revision moves with every value and nothing else, and a revoked agent is given nothing."""

import hashlib
import json
import re
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
from roost_agent.contract import revision as contract_revision

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
    return bundle.render(of, DID, VALUES.__getitem__, "gw-marker", "r")


def revision(of: Declared, values: dict[Ref, str] | None = None, root: bytes = ROOT) -> str:
    known = VALUES | (values or {})
    return bundle.revision(root, of, DID, lambda ref: fingerprint(root, known[ref]))


def test_it_holds_what_is_declared() -> None:
    told = rendered(declared(WANTED))
    assert told.env == {"PLAIN": "v"}
    assert told.secret_env == {"KEY": "sk-marker-1", "OTHER": "sk-marker-2", "OPENCLAW_GATEWAY_TOKEN": "gw-marker"}
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
    {"model": {"default": "anthropic/claude-sonnet-4-6"}},
    {"providers": ({"id": "anthropic", "baseUrl": "http://x"},)},
    {"channels": {"whatsapp": {}}},
    {"soul": {"content": "kind"}},
    {"workspace": ({"path": "AGENTS.md", "content": "x"},)},
    {"telemetry": {"intervalSeconds": 60}},
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


@given(
    which=st.sampled_from(sorted({r for r in VALUES if r.name in ("llm", "files")}, key=str)),
    value=st.text(max_size=20),
)
def test_the_revision_moves_with_every_secret_value(which: Ref, value: str) -> None:
    of = declared(WANTED)
    assert (revision(of, {which: value}) == revision(of)) == (value == VALUES[which])


def test_the_revision_is_keyed() -> None:
    assert revision(declared(WANTED)) != revision(declared(WANTED), root=b"g" * 32)


def test_every_reference_is_named_once_for_each_use() -> None:
    assert list(bundle.refs_of(declared(WANTED))) == [Ref("llm", "key"), Ref("llm", "other"), Ref("files", "cert")]


OPENCLAW = AgentSpec.model_validate(
    {
        "runtime": {"kind": "OpenClaw", "version": "2026.9.6", "config": {"ui": {"theme": "dark"}}},
        "model": {"default": "anthropic/claude-sonnet-4-6", "fallbacks": ["openai/gpt-5"], "thinking": "low"},
        "providers": [
            {"id": "anthropic", "apiKeyFrom": {"name": "llm", "key": "key"}},
            {"id": "google", "apiKeyFrom": {"name": "llm", "key": "other"}},
            {"id": "local-llm", "baseUrl": "http://10.0.0.1:8000", "api": "openai-completions"},
        ],
        "channels": {
            "telegram": {"tokenFrom": {"name": "bot", "key": "token"}, "dmPolicy": "Allowlist", "allowFrom": ["7"]},
            "slack": {
                "botTokenFrom": {"name": "slack", "key": "bot", "kind": "CoreSecret"},
                "appTokenFrom": {"name": "slack", "key": "app", "kind": "CoreSecret"},
            },
            "whatsapp": {},
        },
        "env": [
            {"name": "ANTHROPIC_API_KEY", "value": "weaker"},
            {"name": "TELEGRAM_BOT_TOKEN", "valueFrom": {"name": "llm", "key": "other"}},
        ],
        "soul": {"configMapRef": {"name": "words", "key": "soul"}},
        "workspace": [
            {"path": "AGENTS.md", "content": "Be good.", "policy": "Overwrite"},
            {"path": "notes/a.md", "configMapRef": {"name": "words", "key": "note"}},
        ],
        "skills": {"items": [{"name": "weather", "version": "1.2.0", "configMapRef": {"name": "weather-skill"}}]},
        "bridge": {
            "enabled": True,
            "baseUrl": "https://bridge.example.com",
            "serviceId": "ada",
            "serviceKeyFrom": {"name": "bridge", "key": "service"},
            "linkingSecretFrom": {"name": "bridge", "key": "linking"},
        },
        "telemetry": {"intervalSeconds": 60},
    }
)
VALUES |= {
    Ref("bot", "token"): "marker-telegram",
    Ref("slack", "bot", "CoreSecret"): "marker-slack-bot",
    Ref("slack", "app", "CoreSecret"): "marker-slack-app",
    Ref("words", "soul", "ConfigMap"): "You are Ada.",
    Ref("words", "note", "ConfigMap"): "Remember.",
    Ref("weather-skill", "", "ConfigMap"): json.dumps({"SKILL.md": "# Weather", "scripts__index.mjs": "x"}),
    Ref("bridge", "service"): "marker-service",
    Ref("bridge", "linking"): "marker-linking",
}


def test_an_openclaw_agent_is_told_all_of_it() -> None:
    told = rendered(declared(OPENCLAW))
    assert ConfigBundle.read(told.write()) == told
    said = json.loads(told.write())
    assert said["runtime"]["kind"] == "OpenClaw"
    assert (said["runtime"]["version"], said["runtime"]["command"]) == ("2026.9.6", None)
    assert said["model"] == {
        "default": "anthropic/claude-sonnet-4-6",
        "fallbacks": ["openai/gpt-5"],
        "thinking": "low",
    }
    assert [(p["id"], p["apiKeyEnv"], p["baseUrl"], p["api"]) for p in said["providers"]] == [
        ("anthropic", "ANTHROPIC_API_KEY", None, None),
        ("google", "GEMINI_API_KEY", None, None),
        ("local-llm", None, "http://10.0.0.1:8000", "openai-completions"),
    ]
    telegram, slack = said["channels"]["telegram"], said["channels"]["slack"]
    assert telegram == {
        "enabled": True,
        "dmPolicy": "allowlist",
        "allowFrom": ["7"],
        "tokenEnv": "TELEGRAM_BOT_TOKEN",
        "appTokenEnv": None,
    }
    assert (slack["tokenEnv"], slack["appTokenEnv"]) == ("SLACK_BOT_TOKEN", "SLACK_APP_TOKEN")
    assert said["channels"]["whatsapp"]["tokenEnv"] is None
    assert said["channels"]["discord"] is None
    assert said["gateway"] == {
        "port": 3001,
        "bind": "loopback",
        "tokenEnv": "OPENCLAW_GATEWAY_TOKEN",
        "tokenEpoch": 0,
    }
    assert said["soul"] == "You are Ada."
    assert [(w["path"], w["content"], w["policy"]) for w in said["workspace"]] == [
        ("AGENTS.md", "Be good.", "Overwrite"),
        ("notes/a.md", "Remember.", "Seed"),
    ]
    [skill] = said["skills"]["items"]
    assert [f["path"] for f in skill["files"]] == ["SKILL.md", "scripts/index.mjs"]
    assert skill["files"][1]["sha256"] == hashlib.sha256(b"x").hexdigest()
    assert said["bridge"]["serviceId"] == "ada"
    assert said["openclaw"] == {"overlay": {"ui": {"theme": "dark"}}}
    assert said["telemetry"] == {"intervalSeconds": 60, "initialDelaySeconds": 120}


def test_secrets_travel_in_secret_env_alone_and_what_is_named_for_them_is_stronger() -> None:
    told = rendered(declared(OPENCLAW))
    assert told.env == {"OPENCLAW_SERVICE_ID": "ada"}
    assert told.secret_env == {
        "ANTHROPIC_API_KEY": "sk-marker-1",
        "GEMINI_API_KEY": "sk-marker-2",
        "TELEGRAM_BOT_TOKEN": "marker-telegram",
        "SLACK_BOT_TOKEN": "marker-slack-bot",
        "SLACK_APP_TOKEN": "marker-slack-app",
        "OPENCLAW_SERVICE_KEY": "marker-service",
        "OPENCLAW_LINKING_SHARED_SECRET": "marker-linking",
        "OPENCLAW_GATEWAY_TOKEN": "gw-marker",
    }
    assert b"marker" not in told.model_copy(update={"secret_env": {}}).write()


@given(which=st.sampled_from(sorted(set(VALUES), key=str)))
def test_the_revision_moves_with_every_reference_of_an_openclaw_agent(which: Ref) -> None:
    of = declared(OPENCLAW)
    used = which in set(bundle.refs_of(of))
    assert (revision(of, {which: '{"SKILL.md": "another"}'}) != revision(of)) == used


def test_the_gateway_token_comes_with_the_machines_own_and_is_no_news() -> None:
    of = declared(OPENCLAW)
    one, two = (bundle.render(of, DID, VALUES.__getitem__, token, "r") for token in ("one", "two"))
    raw = [b.model_dump(mode="json") for b in (one, two)]
    assert contract_revision(ROOT, raw[0]) == contract_revision(ROOT, raw[1])
    assert one.runtime_inputs() != two.runtime_inputs()  # whoever fetches it for another reason takes it up
    command = [bundle.render(declared(WANTED), DID, VALUES.__getitem__, token, "r") for token in ("one", "two")]
    assert command[0].runtime_inputs() == command[1].runtime_inputs()
    assert ConfigBundle.read(one.write()).gateway.token_epoch == 0


def test_where_the_machine_stays_as_it_is_a_new_epoch_is_news() -> None:
    def at(epoch: int, bootstrap: str) -> Declared:
        identity = {"tokenEpoch": epoch, "bootstrap": bootstrap}
        return declared(AgentSpec.model_validate(OPENCLAW.model_dump() | {"identity": identity}))

    assert revision(at(0, "Token")) == revision(at(1, "Token"))
    assert revision(at(0, "FlyOidc")) != revision(at(1, "FlyOidc"))


def test_bots_are_the_tokens_that_belong_to_one_agent() -> None:
    of = declared(OPENCLAW)
    bots = [Ref("bot", "token"), Ref("slack", "bot", "CoreSecret")]
    assert list(bundle.bot_refs_of(of)) == bots
    assert set(bots) <= set(bundle.refs_of(of))


@given(st.lists(st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,3}[a-z0-9])?", fullmatch=True), unique=True, max_size=8))
def test_two_providers_never_share_a_key(ids: list[str]) -> None:
    of = spec(providers=tuple({"id": i, "baseUrl": "http://x"} for i in ids))
    names = bundle.provider_keys(of)
    assert len(set(names.values())) == len(ids)
    assert all(re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) for name in names.values())


@pytest.mark.parametrize("key", ["..__x", ".roost__x", "a__", "__a"])
def test_a_skill_with_an_impossible_path_is_told_by_its_field(key: str) -> None:
    hostile = VALUES | {Ref("weather-skill", "", "ConfigMap"): json.dumps({key: "marker"})}
    with pytest.raises(bundle.Unrenderable, match=r"path") as caught:
        bundle.render(declared(OPENCLAW), DID, hostile.__getitem__, "gw", "r")
    assert "marker" not in str(caught.value)


@given(label=st.text(max_size=12))
def test_a_label_that_is_no_ordinal_is_no_ordinal(label: str) -> None:
    """Labels are anybody's to write; whatever stands there must not stop the Agent from being worked on."""
    told = rendered(replace(declared(WANTED), labels={"roost.dev/ordinal": label}))
    assert told.agent.ordinal is None or str(told.agent.ordinal) == str(int(label))
