"""A bundle becomes openclaw.json and an environment: whole, closed, without a secret, and valid for its version."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openclaw_bundles import BOTH, PLACES, REALISTIC, bundle, rendered, schema, strings
from roost_agent.contract import ConfigBundle
from roost_agent.runtime import Refused
from roost_agent.runtime.openclaw.config import environment, restart_inputs
from roost_agent.runtime.openclaw.traits import of

MODEL = {"default": "anthropic/claude-sonnet-4-6"}
TELEGRAM = {"tokenEnv": "TELEGRAM_BOT_TOKEN"}
TOKEN = {"TELEGRAM_BOT_TOKEN": "123456:AAbbccdd"}


def inputs(one: ConfigBundle) -> bytes:
    assert one.runtime is not None
    return restart_inputs(one, {"PATH": "/bin"}, places=PLACES, traits=of(one.runtime.version))


# --- What stands in it. ------------------------------------------------------------------------------------------


def test_a_gateway_listens_on_the_loopback_alone_and_opens_with_the_token_from_its_environment():
    gateway = rendered(bundle())["gateway"]
    assert (gateway["mode"], gateway["port"], gateway["bind"]) == ("local", 3001, "loopback")
    assert gateway["auth"] == {"mode": "token", "token": "${OPENCLAW_GATEWAY_TOKEN}"}
    assert gateway["controlUi"] == gateway["terminal"] == {"enabled": False}


def test_what_costs_money_or_calls_home_by_itself_is_off():
    config = rendered(bundle())
    assert config["agents"]["defaults"]["heartbeat"] == {"every": "0m"}
    assert config["models"]["catalogRefresh"] == config["telemetry"] == {"enabled": False}
    assert config["update"] == {"checkOnStart": False}
    assert config["discovery"] == {"mdns": {"mode": "off"}}


def test_a_command_that_is_on_no_list_is_asked_about():
    assert rendered(bundle())["tools"]["exec"] == {"security": "allowlist", "ask": "on-miss"}


def test_a_model_is_an_object_with_those_to_fall_back_on_and_without_one_openclaw_chooses():
    named = rendered(bundle(model={**MODEL, "fallbacks": ["openai/gpt-5.5"], "thinking": "low"}))["agents"]["defaults"]
    assert named["model"] == {"primary": "anthropic/claude-sonnet-4-6", "fallbacks": ["openai/gpt-5.5"]}
    assert named["thinkingDefault"] == "low"
    assert "model" not in rendered(bundle())["agents"]["defaults"]


def test_a_channel_that_is_wanted_is_switched_on_with_its_plugin():
    config = rendered(bundle(**REALISTIC["every channel"]))
    assert {name for name, c in config["channels"].items() if c["enabled"]} == {
        "telegram",
        "discord",
        "slack",
        "whatsapp",
    }
    assert all(config["plugins"]["entries"][name] == {"enabled": True} for name in config["channels"])
    assert config["channels"]["slack"]["botToken"] == "${SLACK_BOT_TOKEN}"
    assert config["channels"]["slack"]["appToken"] == "${SLACK_APP_TOKEN}"


def test_everybody_may_write_only_where_the_policy_is_open():
    opened = bundle(channels={"telegram": {**TELEGRAM, "dmPolicy": "open", "allowFrom": ["7"]}}, secretEnv=TOKEN)
    assert rendered(opened)["channels"]["telegram"]["allowFrom"] == ["7", "*"]
    for policy in ("pairing", "allowlist", "disabled"):
        closed = {"telegram": {**TELEGRAM, "dmPolicy": policy, "allowFrom": ["*"]}}
        with pytest.raises(Refused, match=r"channels\.telegram\.allowFrom \* means everybody"):
            rendered(bundle(channels=closed, secretEnv=TOKEN))


def test_a_channel_that_is_off_keeps_its_place_but_loads_nothing():
    config = rendered(bundle(channels={"telegram": {**TELEGRAM, "enabled": False}}, secretEnv=TOKEN))
    assert config["channels"]["telegram"]["enabled"] is False
    assert "telegram" not in config["plugins"]["entries"]


def test_a_provider_that_openclaw_brings_is_changed_and_any_other_described_with_the_models_in_use():
    config = rendered(bundle(**REALISTIC["foreign providers"]))["models"]["providers"]
    assert config["moonshot"] == {
        "api": "openai-completions",
        "apiKey": "${MOONSHOT_API_KEY}",
        "baseUrl": "https://api.moonshot.ai/v1",
        "models": [{"id": "kimi-k3", "name": "kimi-k3"}],
    }
    assert "apiKey" not in config["own-llm"], "a provider without a key is asked without one"
    changed = rendered(bundle(**REALISTIC["anthropic on telegram"]))["models"]["providers"]
    assert changed["openai"]["baseUrl"] == "https://proxy.example.com/v1"
    assert changed["openai"]["models"] == []


def test_the_protocol_of_a_changed_provider_is_always_written_out():
    """Without it 2026.9.6 sends the small model's calls to Anthropic in the protocol of OpenAI."""
    one = bundle(providers=[{"id": "anthropic", "baseUrl": "https://proxy.example.com"}])
    assert rendered(one)["models"]["providers"]["anthropic"]["api"] == "anthropic-messages"


@pytest.mark.parametrize(
    ("changes", "plugins"),
    [
        ({"secretEnv": {"MOONSHOT_API_KEY": "sk-moonshot"}}, {"moonshot"}),
        ({"secretEnv": {"KIMI_API_KEY": "sk-kimi-1"}}, {"kimi", "moonshot"}),
        ({"env": {"GROQ_API_KEY": "gsk"}}, {"groq"}),
        ({"env": {"GROQ_API_KEY": " "}}, set()),
        ({"providers": [{"id": "moonshotai", "baseUrl": "https://m.example.com/v1"}]}, {"moonshot"}),
        ({"model": {"default": "mistral/large"}}, {"mistral"}),
        ({"model": MODEL, "secretEnv": {"ANTHROPIC_API_KEY": "sk-ant-1"}}, set()),
        (
            {"openclaw": {"overlay": {"models": {"providers": {"groq": {"baseUrl": "https://g.example.com"}}}}}},
            {"groq"},
        ),
    ],
)
def test_a_name_that_would_make_openclaw_fetch_a_plugin_at_every_start_keeps_that_plugin_out(changes, plugins):
    entries = rendered(bundle(**changes))["plugins"]["entries"]
    assert {name for name, entry in entries.items() if entry == {"enabled": False}} == plugins


def test_whoever_wants_such_a_plugin_says_so_in_the_escape_hatch():
    overlay = {"plugins": {"entries": {"groq": {"enabled": True}}}}
    config = rendered(bundle(env={"GROQ_API_KEY": "gsk"}, openclaw={"overlay": overlay}))
    assert config["plugins"]["entries"]["groq"] == {"enabled": True}


def test_the_fleets_server_is_there_for_its_coordinator_alone():
    assert "mcp" not in rendered(bundle(didcomm={"role": "Worker"}))
    servers = rendered(bundle(didcomm={"role": "Coordinator", "mcpPort": 3002}))["mcp"]["servers"]
    assert servers["fleet"]["url"] == "http://127.0.0.1:3002/mcp"


# --- What is refused. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gateway": {"bind": "lan"}}, "gateway.bind lan"),
        ({"model": {"default": "claude"}}, "model.default claude names no provider"),
        ({"model": {**MODEL, "fallbacks": ["openai/"]}}, "model.fallbacks openai/ names no provider"),
        ({"providers": [{"id": "own"}]}, "providers own has no baseUrl"),
        ({"providers": [{"id": "openai"}, {"id": "openai"}]}, "providers openai is there twice"),
        ({"providers": [{"id": "openai", "apiKeyEnv": "K"}]}, "providers openai apiKeyEnv: the variable K is not"),
        ({"channels": {"telegram": {}}}, "channels.telegram has no botToken"),
        ({"channels": {"telegram": TELEGRAM}}, "channels.telegram.botToken: the variable TELEGRAM_BOT_TOKEN is not"),
        ({"channels": {"whatsapp": {"dmPolicy": "allowlist"}}}, "channels.whatsapp.allowFrom is empty"),
        ({"channels": {"whatsapp": {"dmPolicy": "sometimes"}}}, "channels.whatsapp.dmPolicy"),
        ({"gateway": {"tokenEnv": "OTHER"}}, "gateway.tokenEnv: the variable OTHER is not"),
        (
            {"providers": [{"id": "openai", "apiKeyEnv": "key"}], "secretEnv": {"key": "sk"}},
            "providers openai apiKeyEnv key can't stand",
        ),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused_with_field_and_remedy(changes, sentence):
    with pytest.raises(Refused) as refused:
        rendered(bundle(**changes))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "overlay",
    [
        {"gateway": {"port": 4000}},
        {"gateway": {"bind": "lan"}},
        {"gateway": {"customBindHost": "0.0.0.0"}},
        {"gateway": {"mode": "remote"}},
        {"gateway": {"auth": {"mode": "none"}}},
        {"gateway": {"auth": {"token": "another"}}},
        {"gateway": {"auth": None}},
        {"gateway": {"tls": {"enabled": True}}},
        {"gateway": {"reload": {"mode": "off"}}},
        {"gateway": None},
        {"gateway": "none"},
        {"logging": {"file": "/elsewhere"}},
        {"logging": {"consoleStyle": "pretty"}},
        {"agents": {"defaults": {"workspace": "/elsewhere"}}},
        {"agents": []},
        {"update": {"auto": {"enabled": True}}},
        {"$include": "/data/workspace/other.json"},
        {"agents": {"entries": {"$include": ["x.json"]}}},
    ],
)
def test_the_escape_hatch_does_not_move_what_the_supervisor_stands_on(overlay):
    with pytest.raises(Refused, match=r"^runtime\.config "):
        rendered(bundle(openclaw={"overlay": overlay}))


def test_the_escape_hatch_comes_last_and_takes_out_with_null():
    overlay = {"agents": {"defaults": {"thinkingDefault": "high"}}, "session": None, "gateway": {"port": 3001}}
    config = rendered(bundle(model={**MODEL, "thinking": "low"}, openclaw={"overlay": overlay}))
    assert config["agents"]["defaults"]["thinkingDefault"] == "high"
    assert config["agents"]["defaults"]["model"]["primary"] == MODEL["default"]
    assert "session" not in config


# --- No secret. --------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["ANTHROPIC_API_KEY", "TELEGRAM_BOT_TOKEN", "MOONSHOT_API_KEY", "MY_SECRET"])
# The sign keeps them from being, by chance, part of our own words, such as the name of a field in a refusal.
secret_values = st.text(min_size=7, max_size=23).filter(lambda s: "\0" not in s).map(lambda s: f"{s}¤")


@settings(deadline=None)
@given(
    secrets=st.dictionaries(names, secret_values, max_size=4),
    where=st.sampled_from(
        ["overlay", "key", "below a key", "within", "sender", "url", "model", "bare model", "id", "bind", "nowhere"]
    ),
    overlay=st.dictionaries(st.sampled_from(["tools", "env", "messages", "x"]), json_values, max_size=2),
)
def test_no_value_of_a_secret_is_ever_in_the_file(secrets, where, overlay):
    leak = next(iter(secrets.values()), "nothing-to-leak")
    changes: dict[str, Any] = {"secretEnv": secrets, "openclaw": {"overlay": overlay}}
    match where:
        case "overlay":
            overlay["tools"] = {"deep": [{"er": leak}]}
        case "key":
            overlay["tools"] = {leak: True}
        case "below a key":
            overlay["gateway"] = {leak: {"$include": leak}}
        case "within":
            overlay["messages"] = f"Bearer {leak}!"
        case "sender":
            changes["channels"] = {"whatsapp": {"allowFrom": [leak]}}
        case "url":
            changes["providers"] = [{"id": "own", "baseUrl": f"https://x/?key={leak}"}]
        case "model":
            changes["model"] = {"default": f"openai/{leak}"}
        case "bare model":
            changes["model"] = {"default": leak}
        case "id":
            changes["providers"] = [{"id": leak}]
        case "bind":
            changes["gateway"] = {"bind": leak}
    try:
        found = strings(rendered(bundle(**changes)))
    except Refused as refused:
        found = [str(refused)]
    assert not any(secret in text for secret in secrets.values() for text in found)


def test_a_secret_in_the_escape_hatch_is_refused_and_not_repeated():
    overlay = {"env": {"vars": {"X": "hunter2-hunter2"}}}
    with pytest.raises(Refused) as refused:
        rendered(bundle(openclaw={"overlay": overlay}, secretEnv={"MY_SECRET": "hunter2-hunter2"}))
    assert str(refused.value) == (
        "openclaw.overlay.env.vars.X holds the value of MY_SECRET, in a file without secrets: write ${MY_SECRET}"
    )


# --- Valid for its version. --------------------------------------------------------------------------------------

senders = st.lists(st.text(alphabet="0123456789+", min_size=1, max_size=12), max_size=3)
policies = st.sampled_from(["pairing", "allowlist", "open", "disabled", "of tomorrow"])
channel = st.fixed_dictionaries(
    {"enabled": st.booleans(), "dmPolicy": policies, "allowFrom": senders | st.just(["*"])},
    optional={"tokenEnv": st.sampled_from(["T_ONE", "MISSING"]), "appTokenEnv": st.just("T_TWO")},
)
provider = st.fixed_dictionaries(
    {"id": st.sampled_from(["anthropic", "openrouter", "moonshot", "own-llm", "groq", "ollama"])},
    optional={
        "baseUrl": st.just("https://llm.example.com/v1"),
        "api": st.sampled_from(["openai-completions", "anthropic-messages", "google-generative-ai"]),
        "apiKeyEnv": st.sampled_from(["T_ONE", "MISSING"]),
    },
)
refs = st.sampled_from(["anthropic/claude-sonnet-5", "own-llm/a/b", "moonshot/kimi-k3", "bare", "groq/"])
thinking = st.sampled_from(["off", "minimal", "low", "medium", "high", "xhigh", "adaptive", "max", "ultra"])
bundles = st.fixed_dictionaries(
    {
        "secretEnv": st.just({"T_ONE": "secret-one", "T_TWO": "secret-two"}),
        "channels": st.dictionaries(st.sampled_from(["telegram", "discord", "slack", "whatsapp"]), channel, max_size=4),
        "providers": st.lists(provider, max_size=3),
        "didcomm": st.fixed_dictionaries({"role": st.sampled_from(["None", "Worker", "Coordinator"])}),
    },
    optional={
        "model": st.fixed_dictionaries(
            {"default": refs, "fallbacks": st.lists(refs, max_size=2)}, optional={"thinking": thinking}
        )
    },
)


@BOTH
@settings(deadline=None)
@given(changes=bundles)
def test_whatever_the_bundle_holds_it_is_refused_or_its_version_takes_it(version, changes):
    one = bundle(runtime={"kind": "OpenClaw", "version": version}, **changes)
    try:
        config = rendered(one)
    except Refused:
        return
    assert [(list(e.absolute_path), e.message) for e in schema(version).iter_errors(config)] == []


@BOTH
@pytest.mark.parametrize("name", REALISTIC)
def test_a_realistic_bundle_is_rendered_and_valid(version, name):
    config = rendered(bundle(runtime={"kind": "OpenClaw", "version": version}, **REALISTIC[name]))
    assert [e.message for e in schema(version).iter_errors(json.loads(json.dumps(config)))] == []


# --- The environment. --------------------------------------------------------------------------------------------


def test_a_process_sees_what_it_is_given_and_never_the_supervisors_own_secrets():
    base = {"PATH": "/bin", "AS_HEARTBEAT_TOKEN": "hb", "FLY_REGION": "fra", "HOME": "/root", "FLY_API_SOCKET": "/s"}
    one = bundle(env={"TZ": "Europe/Rome"}, secretEnv=TOKEN)
    env = environment(one, base, places=PLACES)
    assert "AS_HEARTBEAT_TOKEN" not in env
    assert "FLY_API_SOCKET" not in env
    assert "NODE_COMPILE_CACHE" not in env
    assert env["HOME"] == "/data/home"
    assert env["TMPDIR"] == "/data/tmp"
    assert env["OPENCLAW_STATE_DIR"] == "/data/openclaw"
    assert env["OPENCLAW_SUPERVISOR_MODE"] == "external"
    assert env["OPENCLAW_CONFIG_READONLY"] == "1"
    assert (env["TZ"], env["FLY_REGION"], env["TELEGRAM_BOT_TOKEN"]) == ("Europe/Rome", "fra", "123456:AAbbccdd")


@pytest.mark.parametrize("name", ["HOME", "NODE_COMPILE_CACHE", "OPENCLAW_STATE_DIR", "OPENCLAW_PROFILE", "TMPDIR"])
@pytest.mark.parametrize("field", ["env", "secretEnv"])
def test_a_variable_that_is_the_supervisors_is_refused(name, field):
    with pytest.raises(Refused, match=f"env {name} is set by the supervisor"):
        environment(bundle(**{field: {name: "x"}}), {}, places=PLACES)


def test_the_bridge_is_told_in_variables_and_a_secret_is_stronger():
    bridge = {"enabled": True, "baseUrl": "https://b.example.com", "serviceId": "ada", "appKey": "shop"}
    env = environment(bundle(bridge=bridge, secretEnv={"OPENCLAW_SERVICE_KEY": "k"}), {}, places=PLACES)
    assert env["OPENCLAW_APP_BASE_URL"] == "https://b.example.com"
    assert (env["OPENCLAW_SERVICE_ID"], env["OPENCLAW_SERVICE_KEY"], env["OPENCLAW_APP_KEY"]) == ("ada", "k", "shop")
    off = environment(bundle(bridge={**bridge, "enabled": False}), {}, places=PLACES)
    assert "OPENCLAW_SERVICE_ID" not in off


# --- What starts it anew. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"default": "openai/gpt-5.5", "thinking": "high"}},
        {"channels": {"telegram": TELEGRAM}},
        {"providers": [{"id": "own", "baseUrl": "https://llm.example.com/v1"}]},
        {"soul": "Be kind."},
        {"workspace": [{"path": "AGENTS.md", "content": "x"}]},
        {"openclaw": {"overlay": {"gateway": {"http": {"endpoints": {"chatCompletions": {"enabled": True}}}}}}},
        {"openclaw": {"overlay": {"tools": {"exec": {"ask": "always"}}}}},
        {"openclaw": {"overlay": {"commands": {"ownerAllowFrom": ["telegram:1"]}}}},
        {"heartbeat": {"intervalSeconds": 60}},
        {"runtime": {"kind": "OpenClaw", "version": "2026.9.6", "restartedAt": "now"}},
    ],
)
def test_what_openclaw_takes_up_by_itself_starts_nothing_anew(changes):
    assert inputs(bundle(secretEnv=TOKEN, **changes)) == inputs(bundle(secretEnv=TOKEN))


@pytest.mark.parametrize(
    "changes",
    [
        {"secretEnv": {**TOKEN, "ANTHROPIC_API_KEY": "sk-ant-1"}},
        {"secretEnv": {"TELEGRAM_BOT_TOKEN": "654321:another"}},
        {"env": {"TZ": "Europe/Rome"}},
        {"gateway": {"port": 3005}},
        {"runtime": {"kind": "OpenClaw", "version": "2026.9.5"}},
        {"files": [{"path": "home/x.json", "content": "{}"}]},
        {"openclaw": {"overlay": {"browser": {"enabled": False}}}},
        {"openclaw": {"overlay": {"gateway": {"http": {"securityHeaders": {"x": "y"}}}}}},
        {"openclaw": {"overlay": {"secrets": {"egressProxy": {"enabled": True}}}}},
    ],
)
def test_what_it_reads_at_its_start_alone_starts_it_anew(changes):
    assert inputs(bundle(**{"secretEnv": TOKEN, **changes})) != inputs(bundle(secretEnv=TOKEN))


def test_what_newer_versions_take_up_starts_an_older_one_anew():
    def changed(version: str) -> bool:
        runtime = {"kind": "OpenClaw", "version": version}
        overlay = {"gateway": {"trustedProxies": ["10.0.0.1"]}}
        return inputs(bundle(runtime=runtime, openclaw={"overlay": overlay})) != inputs(bundle(runtime=runtime))

    assert changed("2026.9.5")
    assert not changed("2026.9.6")
