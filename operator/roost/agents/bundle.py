"""The config bundle of one Agent: rendered purely from the Agent and the values that it refers to.

The revision is keyed and made over the bundle with every value that comes from elsewhere replaced by its fingerprint:
it can be known, compared and published without holding a value.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from roost.agents.view import Declared
from roost.api.agent import AgentSpec, ConfigMapKeyRef, SecretRef
from roost.secrets.state import Ref
from roost_agent.contract import GATEWAY_TOKEN_ENV
from roost_agent.contract import bundle as wire
from roost_agent.contract.wire import refused

ValueOf = Callable[[Ref], str]

_KEY_NAMES = {"google": "GEMINI_API_KEY"}
"""Providers whose key the runtime does not find under their id."""
_BOT_TOKENS = {"telegram": "TELEGRAM_BOT_TOKEN", "discord": "DISCORD_BOT_TOKEN"}
_SLACK_TOKENS = ("SLACK_BOT_TOKEN", "SLACK_APP_TOKEN")
_SLASH = "__"
"""What stands for a slash in a key of a skill's ConfigMap, which can't hold one."""


class Unrenderable(ValueError):
    """The values make no bundle, such as a skill whose files have impossible paths; the message names the field."""


# --- References. -------------------------------------------------------------------------------------------------


def refs_of(declared: Declared) -> Iterator[Ref]:
    """Every reference of an Agent: keys of Secrets, keys of ConfigMaps, and whole ConfigMaps."""
    spec = declared.spec
    yield from _secret_env(spec).values()
    for file in spec.files:
        if file.content_from is not None:
            yield _ref(file.content_from)
    for text in (spec.soul, *spec.workspace):
        if text is not None and text.config_map_ref is not None:
            yield _key(text.config_map_ref)
    for skill in spec.skills.items:
        yield Ref(skill.config_map_ref.name, "", "ConfigMap")


def bot_refs_of(declared: Declared) -> Iterator[Ref]:
    """The references that are tokens of bots: what one of them holds belongs to one Agent alone."""
    channels = declared.spec.channels
    for channel in (channels.telegram, channels.discord):
        if channel is not None:
            yield _ref(channel.token_from)
    if channels.slack is not None:
        yield _ref(channels.slack.bot_token_from)


def _ref(ref: SecretRef) -> Ref:
    return Ref(ref.name, ref.key, ref.kind)


def _key(ref: ConfigMapKeyRef) -> Ref:
    return Ref(ref.name, ref.key, "ConfigMap")


def _secret_env(spec: AgentSpec) -> dict[str, Ref]:
    """Variables from Secrets; what a provider, channel or bridge brings is stronger than one of `env`."""
    found = {e.name: _ref(e.value_from) for e in spec.env if e.value_from is not None}
    names = provider_keys(spec)
    found |= {names[p.id]: _ref(p.api_key_from) for p in spec.providers if p.api_key_from is not None}
    for channel, name in _BOT_TOKENS.items():
        if (bot := getattr(spec.channels, channel)) is not None:
            found[name] = _ref(bot.token_from)
    if (slack := spec.channels.slack) is not None:
        found |= dict(zip(_SLACK_TOKENS, (_ref(slack.bot_token_from), _ref(slack.app_token_from)), strict=True))
    if (bridge := spec.bridge) is not None and bridge.enabled:
        for name, ref in (
            ("OPENCLAW_SERVICE_KEY", bridge.service_key_from),
            ("OPENCLAW_LINKING_SHARED_SECRET", bridge.linking_secret_from),
            ("OPENCLAW_APP_BASE_URL_MAP_JSON", bridge.base_url_map_from),
        ):
            if ref is not None:
                found[name] = _ref(ref)
    return found


def provider_keys(spec: AgentSpec) -> dict[str, str]:
    """The variable of each provider's key, by the provider's id; never one for two."""
    names: dict[str, str] = {}
    for provider in sorted(spec.providers, key=lambda p: p.id):
        plain = "".join(c if c.isalnum() else "_" for c in provider.id.upper())
        name = _KEY_NAMES.get(provider.id, f"{'_' if plain[0].isdigit() else ''}{plain}_API_KEY")
        while name in names.values():
            name += "_"
        names[provider.id] = name
    return names


# --- Rendering. --------------------------------------------------------------------------------------------------


def render(declared: Declared, did: str, value_of: ValueOf, gateway_token: str, revision: str) -> wire.ConfigBundle:
    """The bundle as it goes over the wire; a revoked agent's has neither secrets nor files nor anything to run.

    Raises:
        Unrenderable: a value can't be what it is referred to as.
    """
    spec = declared.spec
    common: dict[str, Any] = {
        "revision": revision,
        "generation": declared.generation,
        "agent": _agent(declared, did),
        "heartbeat": wire.BundleHeartbeat(interval_seconds=spec.heartbeat.interval_seconds),
        "telemetry": wire.BundleTelemetry(
            interval_seconds=spec.telemetry.interval_seconds,
            initial_delay_seconds=spec.telemetry.initial_delay_seconds,
        ),
    }
    if declared.revoked:
        return wire.ConfigBundle(revoked=True, **common)
    secret_env = {name: value_of(ref) for name, ref in _secret_env(spec).items()} | {GATEWAY_TOKEN_ENV: gateway_token}
    env = {e.name: e.value for e in spec.env if e.value is not None}
    if spec.bridge is not None and spec.bridge.enabled and spec.bridge.service_id is not None:
        env["OPENCLAW_SERVICE_ID"] = spec.bridge.service_id
    try:
        return wire.ConfigBundle(
            runtime=_runtime(spec),
            model=_model(spec),
            providers=_providers(spec),
            channels=_channels(spec),
            # Otherwise the machine is updated with its token, and fetches its bundle anew.
            gateway=wire.BundleGateway(token_epoch=spec.identity.token_epoch if spec.identity.proves_itself else 0),
            env={name: value for name, value in env.items() if name not in secret_env},
            secret_env=secret_env,
            files=[
                wire.BundleFile(
                    path=f.path,
                    mode=f.mode,
                    content=value_of(_ref(f.content_from)) if f.content_from else f.content or "",
                )
                for f in spec.files
            ],
            soul=_text(spec.soul, value_of) if spec.soul is not None else None,
            workspace=[
                wire.WorkspaceFile(path=f.path, content=_text(f, value_of), policy=wire.WorkspacePolicy(f.policy))
                for f in spec.workspace
            ],
            skills=wire.BundleSkills(policy=wire.SkillsPolicy(spec.skills.policy), items=list(_skills(spec, value_of))),
            bridge=_bridge(spec),
            openclaw=wire.BundleOpenClaw(overlay=spec.runtime.config),
            **common,
        )
    except ValidationError as error:
        raise Unrenderable(f"the configuration can't be made: {refused(error)}") from None


def revision(root: bytes, declared: Declared, did: str, print_of: ValueOf) -> str:
    """The bundle's revision; `print_of` gives the fingerprint of a referenced value."""

    def stand_in(ref: Ref) -> str:
        return print_of(ref) if ref.key else json.dumps({"all": print_of(ref)})

    content = render(declared, did, stand_in, "", "").model_dump(mode="json", by_alias=True)
    return wire.revision(root, content)


def _agent(declared: Declared, did: str) -> wire.BundleAgent:
    ordinal = declared.labels.get("roost.dev/ordinal", "")  # a label: anybody may write anything
    return wire.BundleAgent(
        did=did,
        namespace=declared.namespace,
        name=declared.name,
        uid=declared.uid,
        fleet=declared.labels.get("roost.dev/fleet"),
        ordinal=int(ordinal) if ordinal.isdecimal() and len(ordinal) < 10 else None,
    )


def _runtime(spec: AgentSpec) -> wire.BundleRuntime:
    runtime, readiness = spec.runtime, None
    if runtime.readiness is not None:
        get = runtime.readiness.http_get
        readiness = wire.Readiness(
            http_get=wire.HttpGet(path=get.path, port=get.port),
            initial_deadline_seconds=runtime.readiness.initial_deadline_seconds,
        )
    return wire.BundleRuntime(
        kind=wire.RuntimeKind(runtime.kind),
        version=runtime.version or "",
        command=list(runtime.command) or None,
        readiness=readiness,
        rollback=runtime.rollback,
        restarted_at=spec.restarted_at,
    )


def _model(spec: AgentSpec) -> wire.BundleModel | None:
    if (model := spec.model) is None:
        return None
    return wire.BundleModel(default=model.default, fallbacks=list(model.fallbacks), thinking=model.thinking)


def _providers(spec: AgentSpec) -> list[wire.BundleProvider]:
    names = provider_keys(spec)
    return [
        wire.BundleProvider(
            id=p.id,
            base_url=p.base_url,
            api=p.api,
            api_key_env=names[p.id] if p.api_key_from is not None else None,
        )
        for p in spec.providers
    ]


def _channels(spec: AgentSpec) -> wire.BundleChannels:
    tokens = {name: (token, None) for name, token in _BOT_TOKENS.items()} | {"slack": _SLACK_TOKENS}
    found = {}
    for name in ("telegram", "discord", "slack", "whatsapp"):
        if (channel := getattr(spec.channels, name)) is not None:
            token, app_token = tokens.get(name, (None, None))
            found[name] = wire.BundleChannel(
                dm_policy=wire.DmPolicy(channel.dm_policy.lower()),
                allow_from=list(channel.allow_from),
                token_env=token,
                app_token_env=app_token,
            )
    return wire.BundleChannels(**found)


def _bridge(spec: AgentSpec) -> wire.BundleBridge:
    if (bridge := spec.bridge) is None:
        return wire.BundleBridge()
    return wire.BundleBridge(
        enabled=bridge.enabled, base_url=bridge.base_url, service_id=bridge.service_id, app_key=bridge.app_key
    )


def _text(text: Any, value_of: ValueOf) -> str:
    """The words of a soul or a workspace file."""
    return value_of(_key(text.config_map_ref)) if text.config_map_ref is not None else text.content or ""


def _skills(spec: AgentSpec, value_of: ValueOf) -> Iterator[wire.Skill]:
    for skill in spec.skills.items:
        held: dict[str, str] = json.loads(value_of(Ref(skill.config_map_ref.name, "", "ConfigMap")))
        yield wire.Skill(
            name=skill.name, version=skill.version, sha256=skill.sha256, files=list(_skill_files(held.items()))
        )


def _skill_files(held: Iterable[tuple[str, str]]) -> Iterator[wire.SkillFile]:
    for key, content in sorted(held):
        digest = hashlib.sha256(content.encode()).hexdigest()
        yield wire.SkillFile(path=key.replace(_SLASH, "/"), content=content, sha256=digest)
