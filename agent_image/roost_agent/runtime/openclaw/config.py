"""Turns a bundle into what an OpenClaw process is given: `openclaw.json` and its environment. Pure.

The whole file is ours: whatever else stood in it is gone with the next write. No secret is ever in it, only `${NAME}`
of a variable. What the supervisor stands on (address, token, log) can't be moved by the escape hatch, which is merged
last as a JSON Merge Patch (RFC 7396).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from roost_agent.contract.bundle import BundleChannel, ConfigBundle, DidcommRole, DmPolicy
from roost_agent.contract.wire import canonical
from roost_agent.runtime import Refused
from roost_agent.runtime.openclaw import Places, providers
from roost_agent.runtime.openclaw.traits import Traits

__all__ = ["environment", "render", "restart_inputs"]

_EVERYBODY = "*"
_CHANNEL_TOKENS = {
    "telegram": {"botToken": "token_env"},
    "discord": {"token": "token_env"},
    "slack": {"botToken": "token_env", "appToken": "app_token_env"},
    "whatsapp": {},
}
"""Where openclaw.json has a channel's tokens, and where the bundle names their variables."""
_CHANNEL_MORE: Mapping[str, Mapping[str, Any]] = {"slack": {"mode": "socket"}}

_STANDS = (
    "agents.defaults.workspace",
    "gateway.auth.mode",
    "gateway.auth.password",
    "gateway.auth.token",
    "gateway.bind",
    "gateway.customBindHost",
    "gateway.mode",
    "gateway.port",
    "gateway.reload",
    "gateway.remote",
    "gateway.tailscale",
    "gateway.tls",
    "logging.consoleStyle",
    "logging.file",
    "update",
)
"""Paths of openclaw.json that the supervisor relies on."""
_INCLUDE = "$include"
"""OpenClaw replaces it by the content of a file, which nobody would have checked."""

_RENDERED = {"model", "providers", "channels", "gateway", "didcomm", "openclaw"}
"""The parts of a bundle that openclaw.json is made of."""
_SHORTEST_SECRET = 8
"""A shorter value may well stand in the file by chance, and hides nothing."""
_REPLACED = re.compile(r"[A-Z_][A-Z0-9_]*")
"""The variables that OpenClaw puts in the place of `${NAME}`."""

_PASSED_ON = ("PATH", "LANG", "TZ", "DATA_DIR", "FLY_APP_NAME", "FLY_MACHINE_ID", "FLY_REGION")
"""What OpenClaw, and with it every command of the agent, sees of the supervisor's own environment."""
_CALM = {
    "DO_NOT_TRACK": "1",
    "NO_COLOR": "1",
    "OPENCLAW_CONFIG_READONLY": "1",
    "OPENCLAW_DISABLE_BONJOUR": "1",
    "OPENCLAW_EXEC_SHELL_SNAPSHOT": "0",
    "OPENCLAW_NO_AUTO_UPDATE": "1",
    "OPENCLAW_SERVICE_REPAIR_POLICY": "external",
    "OPENCLAW_SUPERVISOR_MODE": "external",
}
"""It does not update, announce, or restart itself, and leaves its configuration to us."""
_NEVER = frozenset(
    {
        "AS_HEARTBEAT_TOKEN",
        "NODE_COMPILE_CACHE",  # with it, what we start is only the parent of the gateway
        "OPENCLAW_GATEWAY_PASSWORD",
        "OPENCLAW_INCLUDE_ROOTS",
        "OPENCLAW_NO_RESPAWN",
        "OPENCLAW_PROFILE",  # moves the state off the volume
    }
)


def render(bundle: ConfigBundle, *, places: Places, traits: Traits) -> dict[str, Any]:
    """The whole openclaw.json.

    Args:
        bundle: Of the kind OpenClaw.
        places: Where its things lie.
        traits: Of the version that will read it.

    Raises:
        Refused: the bundle contradicts itself, moves what the supervisor stands on, or would write a secret down.
    """
    _check_secrets(bundle)
    if bundle.gateway.bind != "loopback":
        raise Refused(f"gateway.bind {bundle.gateway.bind[:40]} is not possible behind the proxy: leave it loopback")
    base = _base(bundle, places, traits)
    config: dict[str, Any] = _merged(base, bundle.openclaw.overlay)
    _check_stands(base, config)
    _check_includes(config)
    kept_out = {p: {"enabled": False} for p in providers.plugins_kept_out(config, _variables(bundle), traits)}
    result: dict[str, Any] = _merged({"plugins": {"entries": kept_out}}, config)
    return result


def environment(bundle: ConfigBundle, base_env: Mapping[str, str], *, places: Places) -> dict[str, str]:
    """All variables of the process: allow-listed ones of the supervisor's, the bundle's, and those that calm OpenClaw.

    Raises:
        Refused: the bundle sets a variable that is ours.
    """
    ours = _CALM | {
        "HOME": str(places.home),
        "OPENCLAW_CONFIG_PATH": str(places.config),
        "OPENCLAW_GATEWAY_PORT": str(bundle.gateway.port),
        "OPENCLAW_STATE_DIR": str(places.state),
        "OPENCLAW_WORKSPACE_DIR": str(places.workspace),
        "TMPDIR": str(places.temporary),
    }
    theirs = _bridge(bundle) | bundle.env | bundle.secret_env
    for name in sorted(theirs.keys() & (ours.keys() | _NEVER)):
        raise Refused(f"env {name} is set by the supervisor, or breaks it: leave it out")
    return {name: base_env[name] for name in _PASSED_ON if name in base_env} | theirs | ours


def restart_inputs(bundle: ConfigBundle, base_env: Mapping[str, str], *, places: Places, traits: Traits) -> bytes:
    """All that a running process does not take up by itself: version, environment, files, cold parts of openclaw.json.

    Raises:
        Refused: as `render` and `environment`.
    """
    config = render(bundle, places=places, traits=traits)
    return canonical(
        {
            "version": traits.version,
            "env": environment(bundle, base_env, places=places),
            "files": [file.model_dump(mode="json") for file in bundle.files],
            "config": _cold(config, "", traits.reload, hot=False),
        }
    )


def _base(bundle: ConfigBundle, places: Places, traits: Traits) -> dict[str, Any]:
    token = _placeholder(bundle, "gateway.tokenEnv", bundle.gateway.token_env)
    channels = {
        name: _channel(bundle, name, channel)
        for name in _CHANNEL_TOKENS
        if (channel := getattr(bundle.channels, name)) is not None
    }
    for provider in bundle.providers:
        if provider.api_key_env is not None:
            _placeholder(bundle, f"providers {provider.id} apiKeyEnv", provider.api_key_env)
    config: dict[str, Any] = {
        "gateway": {
            "mode": "local",
            "port": bundle.gateway.port,
            "bind": "loopback",
            "auth": {"mode": "token", "token": token},
            "controlUi": {"enabled": False},
            "terminal": {"enabled": False},
            "reload": {"mode": "hybrid"},
        },
        "agents": {
            "defaults": {
                "workspace": str(places.workspace),
                "skipBootstrap": True,
                "heartbeat": {"every": "0m"},  # by default a call to the model every half hour
                **providers.model(bundle),
            }
        },
        "models": {"catalogRefresh": {"enabled": False}, "providers": providers.providers(bundle, traits)},
        "channels": channels,
        "plugins": {
            "entries": {
                # By default calls to the model every night, for which a machine that rests would be woken.
                "memory-core": {"config": {"dreaming": {"enabled": False}}},
                **{name: {"enabled": True} for name, channel in channels.items() if channel["enabled"]},
            }
        },
        "tools": {"exec": {"security": "allowlist", "ask": "on-miss"}},
        "commands": {"ownerAllowFrom": []},  # not whoever happens to be approved first
        "session": {"dmScope": "per-channel-peer"},
        "logging": {"file": str(places.log), "consoleStyle": "json", "consoleLevel": "info"},
        "update": {"checkOnStart": False},
        "telemetry": {"enabled": False},
        "discovery": {"mdns": {"mode": "off"}},
    }
    if bundle.didcomm.role is DidcommRole.COORDINATOR:
        url = f"http://127.0.0.1:{bundle.didcomm.mcp_port}/mcp"
        config["mcp"] = {"servers": {"fleet": {"url": url, "transport": "streamable-http"}}}
    return config


def _channel(bundle: ConfigBundle, name: str, channel: BundleChannel) -> dict[str, Any]:
    field = f"channels.{name}"
    policy, senders = channel.dm_policy, list(dict.fromkeys(channel.allow_from))
    if policy is DmPolicy.UNKNOWN:
        raise Refused(f"{field}.dmPolicy is none that this image knows: use Pairing, Allowlist, Open or Disabled")
    if policy is DmPolicy.OPEN:
        senders = list(dict.fromkeys((*senders, _EVERYBODY)))
    elif _EVERYBODY in senders:
        raise Refused(f"{field}.allowFrom {_EVERYBODY} means everybody: take it out, or set dmPolicy to Open")
    elif policy is DmPolicy.ALLOWLIST and not senders:
        raise Refused(f"{field}.allowFrom is empty, so nobody could write: name senders, or set dmPolicy to Pairing")
    tokens = {}
    for key, where in _CHANNEL_TOKENS[name].items():
        variable = getattr(channel, where)
        if variable is not None:
            tokens[key] = _placeholder(bundle, f"{field}.{key}", variable)
        elif channel.enabled:
            raise Refused(f"{field} has no {key}: give it one, or leave the channel out")
    return {
        "enabled": channel.enabled,
        "dmPolicy": policy.value,
        "allowFrom": senders,
        "groupPolicy": "allowlist",
        **tokens,
        **_CHANNEL_MORE.get(name, {}),
    }


def _placeholder(bundle: ConfigBundle, field: str, variable: str) -> str:
    if not _REPLACED.fullmatch(variable):
        raise Refused(f"{field} {variable} can't stand in openclaw.json: use upper-case letters, digits and _ only")
    if not bundle.secret_env.get(variable):
        raise Refused(f"{field}: the variable {variable} is not in secretEnv, or empty; give it its value")
    return f"${{{variable}}}"


def _bridge(bundle: ConfigBundle) -> dict[str, str]:
    bridge = bundle.bridge
    if not bridge.enabled:
        return {}
    named = {
        "OPENCLAW_APP_BASE_URL": bridge.base_url,
        "OPENCLAW_APP_KEY": bridge.app_key,
        "OPENCLAW_SERVICE_ID": bridge.service_id,
    }
    return {name: value for name, value in named.items() if value is not None}


def _variables(bundle: ConfigBundle) -> set[str]:
    return {name for name, value in (bundle.env | bundle.secret_env).items() if value.strip()}


def _merged(base: Any, patch: Any) -> Any:
    """RFC 7396, without touching either."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _check_stands(base: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    for path in _STANDS:
        if _at(config, path) != _at(base, path):
            raise Refused(f"runtime.config {path} is what the supervisor relies on: leave it out")


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _check_includes(config: Mapping[str, Any]) -> None:
    for path, value in _walk(config, ()):
        if isinstance(value, dict) and _INCLUDE in value:
            raise Refused(f"runtime.config {_shown(path)}{_INCLUDE} brings in what nobody has checked: write it out")


def _check_secrets(bundle: ConfigBundle) -> None:
    """A secret is found wherever it stands, within a longer text and in a key as well.

    Looked for before anything else, so that no other sentence repeats it.
    """
    secrets = {name: value for name, value in bundle.secret_env.items() if len(value) >= _SHORTEST_SECRET}
    for path, value in _walk(bundle.model_dump(mode="json", include=_RENDERED), ()):
        texts = list(value) if isinstance(value, dict) else [value]
        for name, secret in secrets.items():
            if any(secret in str(text) for text in texts if isinstance(text, str | int | float)):
                raise Refused(f"{_shown(path)}holds the value of {name}, in a file without secrets: write ${{{name}}}")


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, value
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _walk(below, (*path, str(key)))
    elif isinstance(value, list):
        for below in value:
            yield from _walk(below, path)


def _shown(path: tuple[str, ...]) -> str:
    return f"{'.'.join(path)[:200]} " if path else ""


def _cold(value: Any, path: str, reload: Mapping[str, bool], *, hot: bool) -> Any:
    """What of it starts the process anew; None when nothing does."""
    hot = reload.get(path, hot)
    if isinstance(value, dict):
        below = {k: _cold(v, f"{path}.{k}" if path else k, reload, hot=hot) for k, v in value.items()}
        return {k: v for k, v in below.items() if v is not None} or None
    return None if hot else value
