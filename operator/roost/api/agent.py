"""The Agent: one agent on one Fly machine with one volume.

The spec is what a person declares; the status is what the operator saw and did. Every field stands here once, with its
bounds, default, meaning and rules; the CRD, the reference page and the parser follow from it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from roost.api.block import (
    Block,
    Column,
    Conditions,
    Kind,
    Line,
    ObjectName,
    Rule,
    SecretKey,
    Sized,
    Time,
    Word,
    immutable,
    keyed,
    never_falls,
    parse,
    says,
)
from roost_agent.contract.paths import RESERVED_DIRECTORY

NAME_LIMIT = 52
"""Characters of an Agent's name; what is derived from it must still fit Fly's limits."""
RESERVED_ENV_PREFIXES = ("FLY_", "ROOST_", "DIDCOMM_")
RESERVED_ENV = (
    "AGENT_DID",
    "AGENTSHIELD_API_URL",
    "AS_HEARTBEAT_TOKEN",
    "OPENCLAW_GATEWAY_TOKEN",
    "DATA_DIR",
    "CONTROL_PORT",
    "PAIRING_PORT",
    "HEARTBEAT_INTERVAL_MS",
    "FLEET_MCP_PORT",
)
_RESERVED = "|".join([*(f"{p}.*" for p in RESERVED_ENV_PREFIXES), *RESERVED_ENV])
_STAYS = "what exists at Fly can't move; apply it under another name"
# One part of a relative path: printable ASCII without slashes (\x2f), and neither "" nor "." (\x2e) nor "..".
_PART = (
    r"([\x20-\x2d\x30-\x7e][\x20-\x2e\x30-\x7e]*"
    r"|[.][\x20-\x2d\x30-\x7e][\x20-\x2e\x30-\x7e]*"
    r"|[.][.][\x20-\x2e\x30-\x7e]+)"
)
_NO_NUL = r"^[^\x00]*$"
_PATH = f"^{_PART}(/{_PART})*$"
_NO_SPACE = r"^[\x21-\x7e]+$"
_OPENCLAW_VERSION = "^[0-9]+[.][0-9]+[.][0-9]+(-[0-9A-Za-z.-]+)?$"
_SEMVER_PART = "[0-9A-Za-z-]+([.][0-9A-Za-z-]+)*"
_NUMBER = "(0|[1-9][0-9]*)"
_SEMVER = f"^{_NUMBER}[.]{_NUMBER}[.]{_NUMBER}(-{_SEMVER_PART})?([+]{_SEMVER_PART})?$"
# OpenClaw's own words; an enum can't be null, so they stand in a pattern.
_THINKING = ("off", "minimal", "low", "medium", "high", "xhigh", "adaptive", "max", "ultra")


class Identity(Block):
    """Who the agent is."""

    display_name: str | None = Field(None, max_length=64, description="A name for people.")
    token_epoch: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="Raise it to give the agent a new token; the one before ends.",
        json_schema_extra=never_falls("an earlier token must never work again; use a higher number"),
    )
    bootstrap: Literal["Token", "FlyOidc"] = Field(
        "Token",
        description="How the machine proves who it is: Token, with a secret that it is given; FlyOidc, with the OIDC "
        "token that Fly makes for it, so that no secret of it is stored at Fly.",
    )

    @property
    def proves_itself(self) -> bool:
        """Whether the machine gets no token, and has its agent's for the one that Fly makes of it."""
        return self.bootstrap == "FlyOidc"


class Fly(Block):
    """Where the agent lives at Fly. Nothing of it changes after creation."""

    credential: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$",
        description="A Fly credential of the operator's settings, by name; left out, the settings' default.",
        json_schema_extra=immutable(_STAYS) | says("the name of a credential: letters, digits and dashes"),
    )
    org: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="The Fly organization, by slug; left out, the settings' default.",
        json_schema_extra=immutable(_STAYS) | says("an org's slug: lower-case letters, digits and dashes"),
    )
    app_strategy: Literal["PerAgent", "Shared"] = Field(
        "PerAgent",
        description="PerAgent: an app of its own, made and deleted with it. Shared: the existing app named by app, "
        "which is neither made nor deleted.",
        json_schema_extra=immutable(_STAYS),
    )
    app: str | None = Field(
        None,
        max_length=62,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="The name of the app; left out, a name is derived. Needed with Shared.",
        json_schema_extra=immutable(_STAYS) | says("a Fly app name: lower-case letters, digits and dashes"),
    )
    network: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[a-zA-Z0-9]([-_a-zA-Z0-9]*[a-zA-Z0-9])?$",
        description="The private network that the app joins when it is made; left out, one of its own.",
        json_schema_extra=immutable(_STAYS) | says("a network's name: letters, digits, dashes and underscores"),
    )

    RULES = (
        Rule(
            "self.appStrategy != 'Shared' || has(self.app)",
            "app is missing: with appStrategy Shared, name the existing Fly app in it, or use appStrategy PerAgent",
            field="app",
        ),
    )


Region = Annotated[
    str,
    Field(
        max_length=8,
        pattern=r"^[a-z]{2,8}$",
        description="A Fly region's code, such as iad, or an alias of several, such as eu.",
        json_schema_extra=says("a Fly region's code or alias of lower-case letters, such as iad or eu"),
    ),
]


class Placement(Block):
    """In which regions the agent may live."""

    regions: tuple[Region, ...] = Field(
        (),
        max_length=16,
        description="In order of preference; the next is tried when one is full. Empty: the settings' regions. A "
        "volume that exists is not moved by a change. A region that comes twice, by itself or by an alias, counts "
        "once.",
    )
    relocate: Literal["Never", "OnCapacity", "OnFailure"] = Field(
        "OnCapacity",
        description="When the agent may move with its data: Never; OnCapacity, when the host of its volume is full; "
        "OnFailure, also when that host is lost, from the newest snapshot.",
    )


MetadataValue = Annotated[
    str,
    Field(
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Plain characters; no secret belongs here.",
        json_schema_extra=says("plain characters, at least one; to take a key away, leave it out"),
    ),
]
# Metadata keys of Fly's own tools, and ours; flyctl acts on machines that carry its keys.
_TAKEN_METADATA = r"^(roost_|fly_|fly-|process_group$)"
_METADATA_KEY = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"


class Machine(Block):
    """The machine's image, size and manners."""

    image: str | None = Field(
        None,
        max_length=512,
        pattern=r"^[^\s]+$",
        description="The container image, best with a digest; left out, the settings' image. It must hold the "
        "supervisor.",
        json_schema_extra=says("an image reference without spaces, such as registry.fly.io/agent@sha256:…"),
    )
    cpu_kind: Literal["shared", "performance"] = Field(
        "shared", description="shared: a part of a CPU at a time; performance: whole CPUs."
    )
    cpus: Literal[1, 2, 4, 6, 8, 10, 12, 14, 16] = Field(
        1, description="CPUs: 1, 2, 4, 6 or 8; with cpuKind performance also 10, 12, 14 or 16."
    )
    memory_mb: int = Field(
        1024,
        ge=1024,
        le=131_072,
        multiple_of=256,
        description="Memory in MiB, in steps of 256, at least 1024; 256 to 2048 for each shared CPU, 2048 to 8192 for "
        "each performance CPU.",
    )
    stop_timeout_seconds: int = Field(
        30, ge=1, le=300, description="How long the agent has to end by itself before it is killed."
    )
    restart: Literal["Always", "OnFailure", "Never"] = Field(
        "OnFailure",
        description="When Fly starts the machine again after the supervisor has ended; the supervisor itself keeps "
        "the runtime alive.",
    )
    public: Literal["None", "Gateway", "All"] = Field(
        "None",
        description="Ports that the Internet reaches: None; Gateway, 443 to the runtime's 18789; All, also 18790 and "
        "18791. The app's addresses are assigned once and go with the app.",
    )
    autostart: bool = Field(
        False,
        description="Whether traffic starts the machine when it rests for idleness; off while it is stopped, suspended "
        "or revoked on purpose. Needs public.",
    )
    metadata: dict[str, MetadataValue] = Field(
        {},
        max_length=16,
        description="More metadata of the machine, for your own tools; keys of at most 63 characters. A change does "
        "not restart it.",
    )

    RULES = (
        Rule(
            "self.cpuKind != 'shared' || self.cpus <= 8",
            "cpus {self.cpus} are too many for cpuKind shared: use at most 8, or cpuKind performance",
            field="cpus",
        ),
        Rule(
            "self.cpuKind != 'shared' || self.cpus > 8 || (self.memoryMb >= 256 * self.cpus && "
            "self.memoryMb <= 2048 * self.cpus)",
            "memoryMb {self.memoryMb} does not fit cpus {self.cpus} of cpuKind shared: use "
            "{self.cpus > 4 ? 256 * self.cpus : 1024} to {2048 * self.cpus}, or change cpus or cpuKind",
            field="memoryMb",
        ),
        Rule(
            "self.cpuKind != 'performance' || (self.memoryMb >= 2048 * self.cpus && self.memoryMb <= 8192 * self.cpus)",
            "memoryMb {self.memoryMb} does not fit cpus {self.cpus} of cpuKind performance: use {2048 * self.cpus} to "
            "{8192 * self.cpus}, or change cpus or cpuKind",
            field="memoryMb",
        ),
        Rule(
            f"self.metadata.all(k, size(k) <= 63 && k.matches('{_METADATA_KEY}'))",
            f"metadata key {{self.metadata.filter(k, size(k) > 63 || !k.matches('{_METADATA_KEY}'))[0]}} is not valid: "
            "use at most 63 letters, digits, dots, dashes and underscores, with a letter or digit at both ends",
            field="metadata",
        ),
        Rule(
            f"!self.metadata.exists(k, k.matches('{_TAKEN_METADATA}'))",
            f"metadata key {{self.metadata.filter(k, k.matches('{_TAKEN_METADATA}'))[0]}} belongs to Roost or Fly: "
            "choose one that is not process_group and does not begin with roost_, fly_ or fly-",
            field="metadata",
        ),
        Rule(
            "!self.autostart || self.public != 'None'",
            "autostart needs public Gateway or All: without a port there is no traffic that could start it",
            field="autostart",
        ),
    )


class AutoExtend(Block):
    """Growth by itself, done by Fly when the disk fills up."""

    at_percent: int = Field(ge=50, le=99, description="It grows when so many percent of it are used.")
    by_gb: int = Field(ge=1, le=100, description="By so many GB at a time.")
    limit_gb: int = Field(ge=1, le=500, description="Up to this size, which is more than sizeGb.")


class RestoreFrom(Block):
    """What a new volume is filled with: exactly one of both."""

    snapshot: str | None = Field(
        None,
        max_length=64,
        pattern=r"^vs_[A-Za-z0-9]+$",
        description="A snapshot of one of this Agent's own volumes.",
        json_schema_extra=says("the id of a snapshot, such as vs_0123456789abcdef"),
    )
    agent: ObjectName | None = Field(
        None, description="An Agent of this namespace; the newest snapshot of its volume is taken."
    )

    RULES = (
        Rule(
            "has(self.snapshot) != has(self.agent)",
            "restoreFrom needs exactly one of snapshot and agent; for neither, leave restoreFrom out",
        ),
    )


class Volume(Block):
    """The agent's disk."""

    size_gb: int = Field(
        1,
        ge=1,
        le=500,
        description="Size in GB. It may grow while the agent runs, never shrink.",
        json_schema_extra=never_falls("a volume at Fly can't shrink; keep the size, or apply it under another name"),
    )
    mount_path: str = Field(
        "/data",
        max_length=256,
        pattern=r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$",
        description="Where the disk is mounted; the runtime finds it in DATA_DIR and starts there. Never changes.",
        json_schema_extra=immutable("files would be lost from sight; keep it, or apply it under another name")
        | says("an absolute path such as /data, without dots at the start of a part and no slash at its end"),
    )
    snapshot_retention_days: int = Field(
        5, ge=1, le=60, description="For how long Fly keeps each daily snapshot of the volume."
    )
    auto_extend: AutoExtend | None = None
    on_loss: Literal["Restore", "Fail", "Recreate"] = Field(
        "Restore",
        description="When the volume is lost at Fly: Restore, from its newest snapshot, else Fail; Fail, wait for a "
        "person; Recreate, an empty one, once the annotation roost.dev/allow-data-loss names the lost volume.",
    )
    restore_from: RestoreFrom | None = Field(
        None,
        description="What a new volume is filled with, once: a snapshot or an agent; never over a volume in use.",
    )

    RULES = (
        Rule(
            "!has(self.autoExtend) || self.autoExtend.limitGb > self.sizeGb",
            "autoExtend.limitGb {self.autoExtend.limitGb} must be more than sizeGb {self.sizeGb}: raise it, or leave "
            "autoExtend out",
            field="autoExtend.limitGb",
        ),
    )


class HttpGet(Block):
    """An HTTP request to the runtime, from inside the machine."""

    path: str = Field(
        "/",
        max_length=256,
        pattern=r"^/[\x21-\x7e]*$",
        description="The path that is asked for.",
        json_schema_extra=says("a path of plain characters that starts with a slash, such as /healthz"),
    )
    port: int = Field(ge=1, le=65535, description="The port that the runtime listens on.")


class Readiness(Block):
    """How the supervisor knows that the runtime is ready; left out, a process that stays up is ready."""

    http_get: HttpGet = Field(description="The runtime is ready when this answers with 200 to 399.")
    initial_deadline_seconds: int = Field(
        300, ge=1, le=86_400, description="How long the runtime may take to be ready for the first time."
    )


Argument = Annotated[str, Field(max_length=32_768, pattern=_NO_NUL, description="The program, then its arguments.")]


class Runtime(Block):
    """What runs inside: the agent itself."""

    kind: Literal["OpenClaw", "Command"] = Field(
        description="OpenClaw: the named version of it, set up as it is described here. Command: the program in "
        "command. Either is kept alive by the supervisor."
    )
    version: str | None = Field(
        None,
        max_length=64,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9])?$",
        description="With OpenClaw its version, such as 2026.9.6; with Command a label of what runs. Reported back in "
        "the status; changing it restarts the runtime.",
        json_schema_extra=says("letters, digits, dots, dashes, pluses and underscores, such as 1.4.2"),
    )
    command: tuple[Argument, ...] = Field(
        (),
        max_length=64,
        description="The program and its arguments, not passed through a shell. Needed with kind Command. It starts "
        "in DATA_DIR and should listen on ROOST_BIND_ADDRESS.",
    )
    readiness: Readiness | None = None
    rollback: bool = Field(
        True,
        description="OpenClaw: whether a new version that does not become ready is taken back, with the state from "
        "before it.",
    )
    config: dict[str, Any] = Field(
        {},
        max_length=64,
        description="OpenClaw: merged last into openclaw.json, for what has no field here; at most 64 keys at the top, "
        "a null is left out. No secret belongs here: ${NAME} stands for a variable of env.",
    )

    RULES = (
        Rule(
            "self.kind != 'Command' || (size(self.command) > 0 && self.command[0] != '')",
            "command is empty: with kind Command, give the program and its arguments, "
            'for example ["python3", "-m", "http.server"]',
            field="command",
        ),
        Rule(
            "self.kind != 'OpenClaw' || has(self.version)",
            "version is missing: with kind OpenClaw, name the version to run, such as 2026.9.6",
            field="version",
        ),
        Rule(
            f"self.kind != 'OpenClaw' || !has(self.version) || self.version.matches('{_OPENCLAW_VERSION}')",
            "version {self.version} is no version of OpenClaw: use an exact one, such as 2026.9.6",
            field="version",
        ),
        Rule(
            "self.kind != 'OpenClaw' || size(self.command) == 0",
            "command does not go with kind OpenClaw, which is started by its version: leave it out, or use kind "
            "Command",
            field="command",
        ),
        Rule(
            "self.kind != 'Command' || size(dyn(self.config)) == 0",
            "config does not go with kind Command, since it is a part of openclaw.json: leave it out, or use kind "
            "OpenClaw",
            field="config",
        ),
    )


ConfigMapKey = Annotated[
    str,
    Field(
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        json_schema_extra=says("a key of a ConfigMap: letters, digits, dashes, dots and underscores"),
    ),
]
Url = Annotated[
    str,
    Field(
        max_length=2048,
        pattern=r"^https?://[\x21-\x2e\x30-\x3f\x41-\x7e]+(/[\x21-\x7e]*)?$",
        json_schema_extra=says("a URL of http or https without user and password, such as https://api.example.com/v1"),
    ),
]
ModelName = Annotated[
    str,
    Field(
        max_length=253,
        pattern=r"^[a-z0-9][a-z0-9._-]*(/[\x21-\x2e\x30-\x7e]+)+$",
        description="A provider's id and a model's name, such as anthropic/claude-sonnet-4-6.",
        json_schema_extra=says(
            "a provider's id and a model's name with a slash between, such as anthropic/claude-sonnet-4-6"
        ),
    ),
]
Sender = Annotated[
    str,
    Field(
        max_length=128,
        pattern=_NO_SPACE,
        description="A sender's id in the messenger, such as 123456789 or +15550100; * is everybody.",
        json_schema_extra=says('a sender\'s id without spaces, such as "123456789", "+15550100" or "*"'),
    ),
]
BridgeName = Annotated[
    str,
    Field(
        max_length=253,
        pattern=_NO_SPACE,
        json_schema_extra=says("plain characters without spaces"),
    ),
]


class SecretRef(Block):
    """A key of a Secret."""

    name: ObjectName = Field(
        description="The name of the Secret. With kind Secret, one named NAME.AGENT after this Agent is taken before "
        "it, and one of the operator's namespace that is offered to this one after it."
    )
    key: SecretKey = Field(description="The key in it.")
    kind: Literal["Secret", "CoreSecret"] = Field(
        "Secret",
        description="Secret: one of roost.dev (secrets.roost.dev). CoreSecret: one of Kubernetes itself, in this "
        "namespace.",
    )


class ConfigMapRef(Block):
    """A ConfigMap in the same namespace."""

    name: ObjectName = Field(description="Its name.")


class ConfigMapKeyRef(Block):
    """A key of a ConfigMap in the same namespace."""

    name: ObjectName = Field(description="The name of the ConfigMap.")
    key: ConfigMapKey = Field(description="The key in it.")


class EnvVar(Block):
    """An environment variable of the runtime."""

    name: str = Field(
        max_length=256,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The variable's name.",
        json_schema_extra=says("a variable's name: letters, digits and underscores, no digit first"),
    )
    value: str | None = Field(
        None, max_length=32_768, pattern=_NO_NUL, description="Its value as it stands; no secret belongs here."
    )
    value_from: SecretRef | None = Field(None, description="Its value from a Secret, in place of value.")

    RULES = (
        Rule(
            "has(self.value) != has(self.valueFrom)",
            "env {self.name} needs exactly one of value and valueFrom",
        ),
        Rule(
            f"!self.name.matches('^({_RESERVED})$')",
            "env name {self.name} is reserved for the supervisor: choose another name",
            field="name",
        ),
    )


class File(Block):
    """A file that is written before the runtime starts."""

    path: str = Field(
        max_length=255,
        pattern=_PATH,
        description="Where, relative to volume.mountPath.",
        json_schema_extra=says(
            "a path of plain characters relative to volume.mountPath, without empty, . and .. parts, such as etc/a.conf"
        ),
    )
    mode: str = Field(
        "0600",
        max_length=4,
        pattern=r"^0[0-7]{3}$",
        description="The file's permissions in octal, in quotes.",
        json_schema_extra=says("four octal digits in quotes, such as '0600'"),
    )
    content: str | None = Field(None, max_length=65_536, description="The text as it stands; no secret belongs here.")
    content_from: SecretRef | None = Field(None, description="The text from a Secret, in place of content.")

    RULES = (
        Rule(
            "has(self.content) != has(self.contentFrom)",
            "file {self.path} needs exactly one of content and contentFrom",
        ),
        Rule(
            f"self.path != '{RESERVED_DIRECTORY}' && !self.path.startsWith('{RESERVED_DIRECTORY}/')",
            f"path {{self.path}} lies in {RESERVED_DIRECTORY}, which belongs to the supervisor: choose another path",
            field="path",
        ),
    )


class Model(Block):
    """The language model that the agent thinks with."""

    default: ModelName = Field(description="The model that is used first.")
    fallbacks: tuple[ModelName, ...] = Field(
        (), max_length=16, description="The models that are tried in its place, in order."
    )
    thinking: str | None = Field(
        None,
        max_length=16,
        pattern=f"^({'|'.join(_THINKING)})$",
        description=f"How much it thinks before it answers: {', '.join(_THINKING)}; left out, as the runtime thinks "
        "best.",
        json_schema_extra=says(f"one of {', '.join(_THINKING)}"),
    )


class Provider(Block):
    """Who serves models, and with which key."""

    id: str = Field(
        max_length=63,
        pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$",
        description="Its id, the first part of a model's name, such as anthropic.",
        json_schema_extra=says("a provider's id: lower-case letters, digits, dots, dashes and underscores"),
    )
    api_key_from: SecretRef | None = Field(None, description="Its key from a Secret; left out, it needs none.")
    base_url: Url | None = Field(None, description="Where it answers; left out, where the runtime knows it to be.")
    api: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        description="The protocol that it speaks, in the runtime's words, such as openai-completions.",
        json_schema_extra=says("a protocol in the runtime's words, such as openai-completions or anthropic-messages"),
    )

    RULES = (
        Rule(
            "has(self.apiKeyFrom) || has(self.baseUrl)",
            "provider {self.id} says nothing: give apiKeyFrom, baseUrl or both, or leave it out",
        ),
    )


class DirectMessages(Block):
    """Who may write to the agent in a messenger."""

    dm_policy: Literal["Pairing", "Allowlist", "Open", "Disabled"] = Field(
        "Pairing",
        description="Who may write: Pairing, whoever has been approved after a first message; Allowlist, those of "
        "allowFrom; Open, everybody, with * in allowFrom; Disabled, nobody.",
    )
    allow_from: tuple[Sender, ...] = Field(
        (), max_length=128, description="Those who may write without pairing, by the messenger's ids; * is everybody."
    )

    # Both are OpenClaw's own; without them it would refuse its configuration and not start.
    RULES = (
        Rule(
            "self.dmPolicy != 'Open' || self.allowFrom.exists(sender, sender == '*')",
            'dmPolicy Open needs "*" in allowFrom, so that it is said twice that everybody may write: add it, or use '
            "Pairing or Allowlist",
            field="allowFrom",
        ),
        Rule(
            "self.dmPolicy != 'Allowlist' || size(self.allowFrom) > 0",
            "dmPolicy Allowlist with an empty allowFrom hears nobody: add those who may write, or use Pairing or "
            "Disabled",
            field="allowFrom",
        ),
    )


class Bot(DirectMessages):
    """A messenger with a bot."""

    token_from: SecretRef = Field(description="The bot's token from a Secret. One bot belongs to one Agent.")


class Slack(DirectMessages):
    """Slack, over its socket mode."""

    bot_token_from: SecretRef = Field(
        description="The bot's token (xoxb-…) from a Secret. One bot belongs to one Agent."
    )
    app_token_from: SecretRef = Field(description="The app's token (xapp-…) from a Secret.")


class Channels(Block):
    """The messengers that the agent is reached by. One that is left out is off."""

    telegram: Bot | None = Field(None, description="Telegram, with a bot.")
    discord: Bot | None = Field(None, description="Discord, with a bot.")
    slack: Slack | None = None
    whatsapp: DirectMessages | None = Field(
        None, description="WhatsApp; somebody links it with a phone once, so there is no token."
    )


class Soul(Block):
    """Who the agent is to be, in words: SOUL.md in its workspace, always as it stands here."""

    content: str | None = Field(None, max_length=65_536, description="The text as it stands; no secret belongs here.")
    config_map_ref: ConfigMapKeyRef | None = Field(None, description="The text from a ConfigMap, in place of content.")

    RULES = (
        Rule(
            "has(self.content) != has(self.configMapRef)",
            "soul needs exactly one of content and configMapRef; for neither, leave soul out",
        ),
    )


class WorkspaceFile(Block):
    """A file of the agent's workspace, which it reads and may write."""

    path: str = Field(
        max_length=255,
        pattern=_PATH,
        description="Where, relative to the workspace.",
        json_schema_extra=says(
            "a path of plain characters relative to the workspace, without empty, . and .. parts, such as AGENTS.md"
        ),
    )
    content: str | None = Field(None, max_length=65_536, description="The text as it stands; no secret belongs here.")
    config_map_ref: ConfigMapKeyRef | None = Field(None, description="The text from a ConfigMap, in place of content.")
    policy: Literal["Seed", "Overwrite"] = Field(
        "Seed",
        description="Seed: written when it is not there, and the agent's own from then on. Overwrite: always as it "
        "stands here.",
    )

    RULES = (
        Rule(
            "has(self.content) != has(self.configMapRef)",
            "workspace file {self.path} needs exactly one of content and configMapRef",
        ),
        Rule(
            f"!self.path.matches('^({RESERVED_DIRECTORY.replace('.', '[.]')}|skills)(/|$)')",
            f"path {{self.path}} lies in {RESERVED_DIRECTORY} or skills, which belong to the supervisor and to "
            "the declared skills: choose another path",
            field="path",
        ),
    )


class Skill(Block):
    """Instructions and programs that the agent may use, from a ConfigMap."""

    name: str = Field(
        max_length=128,
        pattern=r"^[a-z0-9][a-z0-9_-]{1,127}$",
        description="Its name, and that of its directory.",
        json_schema_extra=says("a skill's name: two or more lower-case letters, digits, dashes and underscores"),
    )
    version: str = Field(
        max_length=64,
        pattern=_SEMVER,
        description="Its version.",
        json_schema_extra=says("a semantic version such as 1.2.0"),
    )
    config_map_ref: ConfigMapRef = Field(description="The ConfigMap with its files, SKILL.md among them.")
    sha256: str | None = Field(
        None,
        max_length=64,
        pattern=r"^[0-9a-f]{64}$",
        description="The checksum that its files must have together; left out, they are whatever the ConfigMap holds.",
        json_schema_extra=says("a SHA-256 checksum of 64 lower-case hex digits"),
    )


class Skills(Block):
    """The agent's skills."""

    policy: Literal["AllowlistOnly", "Merge"] = Field(
        "AllowlistOnly",
        description="What becomes of skills in the workspace that are not listed: AllowlistOnly, they are removed; "
        "Merge, they stay.",
    )
    items: tuple[Skill, ...] = Field(
        (), max_length=32, description="The skills that it is given.", json_schema_extra=keyed("name")
    )


class Bridge(Block):
    """The agent bridge: what the agent calls to act in your own applications."""

    enabled: bool = Field(False, description="Whether it is used; it then needs serviceId, serviceKeyFrom and a URL.")
    base_url: Url | None = Field(None, description="Where it answers.")
    service_id: BridgeName | None = Field(None, description="The id by which the agent calls it.")
    app_key: BridgeName | None = Field(
        None, description="The application that a call is for unless it names one; no secret belongs here."
    )
    service_key_from: SecretRef | None = Field(None, description="The key that goes with serviceId, from a Secret.")
    base_url_map_from: SecretRef | None = Field(
        None, description="A JSON map of applications to URLs from a Secret, beside baseUrl or in place of it."
    )
    linking_secret_from: SecretRef | None = Field(
        None, description="The secret shared with the applications to link their users, from a Secret."
    )

    RULES = (
        Rule(
            "!self.enabled || (has(self.serviceId) && has(self.serviceKeyFrom))",
            "bridge.enabled needs serviceId and serviceKeyFrom: give both, or leave enabled out",
            field="enabled",
        ),
        Rule(
            "!self.enabled || has(self.baseUrl) || has(self.baseUrlMapFrom)",
            "bridge.enabled needs a URL to call: give baseUrl or baseUrlMapFrom, or leave enabled out",
            field="enabled",
        ),
    )


class Heartbeat(Block):
    """How often the agent reports, and how long its silence is borne."""

    interval_seconds: int = Field(30, ge=5, le=3600, description="Seconds from one report to the next.")
    missed_before_unhealthy: int = Field(
        4, ge=1, le=100, description="After so many intervals without a report the agent counts as unhealthy."
    )


class Telemetry(Block):
    """How often the machine checks in with its figures, for dashboards."""

    interval_seconds: int = Field(300, ge=30, le=86_400, description="Seconds from one check-in to the next.")
    initial_delay_seconds: int = Field(
        120, ge=0, le=86_400, description="Seconds from the supervisor's start to the first check-in."
    )


class Idle(Block):
    """Rest while there is nothing to do: no session, no traffic, no run soon, all by the agent's own heartbeat."""

    after_seconds: int = Field(
        0,
        ge=0,
        le=604_800,
        description="How long there must have been nothing to do, at least 60; 0: it never rests.",
    )
    action: Literal["None", "Stop", "Suspend"] = Field(
        "None",
        description="How it rests: None, never; Stop, a cold start wakes it; Suspend, it goes on where it was, with at "
        "most 2048 MiB of memory.",
    )
    allow_deaf: bool = Field(
        False,
        description="Accept that a resting agent hears nothing that it would have to fetch by itself; needed where no "
        "traffic can wake it.",
    )

    RULES = (
        Rule(
            "self.action == 'None' ? self.afterSeconds == 0 : self.afterSeconds >= 60",
            "idle.action {self.action} with afterSeconds {self.afterSeconds}: set both, afterSeconds to at least 60, "
            "or neither",
        ),
    )


class Recovery(Block):
    """What is done with an agent that has fallen silent."""

    on_unhealthy: Literal["None", "RestartMachine", "Relocate"] = Field(
        "RestartMachine",
        description="None: it is only told. RestartMachine: its machine is restarted. Relocate: when restarts have not "
        "helped, it is moved to another host with its data.",
    )
    max_per_hour: int = Field(
        4, ge=1, le=60, description="So many attempts within an hour; then it waits for a person, or for a heartbeat."
    )


class AgentSpec(Block):
    """What is declared."""

    desired_state: Literal["Running", "Stopped", "Suspended"] = Field(
        "Running",
        description="Running; Stopped: the machine is stopped and its volume stays; Suspended, with at most 2048 MiB "
        "of memory: it is put to sleep and goes on where it was (one that is not running stays as it is).",
    )
    revoked: bool = Field(
        False,
        description="The kill switch: the machine is stopped and its configuration has no secrets and no files. The "
        "annotation roost.dev/revoked does the same.",
    )
    paused: bool = Field(False, description="Leave everything as it is; deletion and the kill switch still work.")
    deletion_policy: Literal["Delete", "Retain"] = Field(
        "Delete",
        description="What deletion does: Delete takes machine, volume and app away; Retain takes only the machine, and "
        "an Agent of the same name finds the volume again.",
    )
    restarted_at: str | None = Field(
        None,
        max_length=64,
        pattern=r"^[\x20-\x7e]+$",
        description="Any new value restarts the runtime once; a time is customary.",
        json_schema_extra=says("plain characters, such as 2026-11-21T10:00:00Z"),
    )
    identity: Identity = Identity()
    fly: Fly = Fly()
    placement: Placement = Placement()
    machine: Machine = Machine()
    volume: Volume = Volume()
    runtime: Runtime
    model: Model | None = None
    providers: tuple[Provider, ...] = Field(
        (),
        max_length=32,
        description="Those who serve models, with the key for each.",
        json_schema_extra=keyed("id"),
    )
    channels: Channels = Channels()
    env: tuple[EnvVar, ...] = Field(
        (),
        max_length=256,
        description="Environment of the runtime; it reaches the agent without a new machine.",
        json_schema_extra=keyed("name"),
    )
    files: tuple[File, ...] = Field(
        (),
        max_length=64,
        description="Files on the volume, written before the runtime starts.",
        json_schema_extra=keyed("path"),
    )
    soul: Soul | None = None
    workspace: tuple[WorkspaceFile, ...] = Field(
        (),
        max_length=64,
        description="Files of the agent's workspace.",
        json_schema_extra=keyed("path"),
    )
    skills: Skills = Skills()
    bridge: Bridge | None = None
    heartbeat: Heartbeat = Heartbeat()
    telemetry: Telemetry = Telemetry()
    idle: Idle = Idle()
    recovery: Recovery = Recovery()

    RULES = (
        Rule(
            "self.machine.public == 'None' || self.fly.appStrategy != 'Shared'",
            "machine.public {self.machine.public} in a shared app: its addresses reach any machine in it, not this "
            "one; use fly.appStrategy PerAgent",
            field="machine.public",
        ),
        Rule(
            "self.desiredState != 'Suspended' || self.machine.memoryMb <= 2048",
            "desiredState Suspended does not go with machine.memoryMb {self.machine.memoryMb}, since Fly suspends "
            "machines of at most 2048 MiB: use Stopped, or less memory",
            field="desiredState",
        ),
        Rule(
            "self.idle.action != 'Suspend' || self.machine.memoryMb <= 2048",
            "idle.action Suspend does not go with machine.memoryMb {self.machine.memoryMb}, since Fly suspends "
            "machines of at most 2048 MiB: use Stop, or less memory",
            field="idle.action",
        ),
        Rule(
            "self.idle.action == 'None' || self.idle.allowDeaf || self.machine.autostart",
            "idle.action {self.idle.action} would make the agent deaf, since no traffic could wake it: set "
            "machine.public and machine.autostart, or accept it with idle.allowDeaf",
            field="idle.action",
        ),
        Rule(
            "self.recovery.onUnhealthy != 'Relocate' || self.placement.relocate != 'Never'",
            "recovery.onUnhealthy Relocate does not go with placement.relocate Never: use RestartMachine, or let the "
            "agent move with OnCapacity or OnFailure",
            field="recovery.onUnhealthy",
        ),
        Rule(
            "!has(self.soul) || !self.workspace.exists(file, file.path == 'SOUL.md')",
            "workspace file SOUL.md is what soul says: leave it out, or leave soul out",
            field="workspace",
        ),
    )


class Phase(StrEnum):
    """One word for people; the conditions carry the truth."""

    PENDING = "Pending"
    PROVISIONING = "Provisioning"
    STARTING = "Starting"
    RUNNING = "Running"
    UPDATING = "Updating"
    RECOVERING = "Recovering"
    RESTORING = "Restoring"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    DEGRADED = "Degraded"
    REVOKED = "Revoked"
    FAILED = "Failed"
    TERMINATING = "Terminating"


class AppStatus(Block):
    """The Fly app, pinned when it was first used."""

    name: Word | None = Field(None, description="Its name.")
    org: Word | None = Field(None, description="The org it is in.")
    network: Word | None = Field(None, description="The private network it joined when it was made.")
    incarnation: Word | None = Field(
        None, description="The uid of the Agent that first made it; tokens are derived from it."
    )


class MachineStatus(Block):
    """The Fly machine as last seen."""

    id: Word | None = Field(None, description="Its id.")
    name: Word | None = Field(None, description="Its name.")
    state: Word | None = Field(None, description="Its state in Fly's words.")
    version: Word | None = Field(None, description="Fly's id of its configuration.")
    region: Word | None = Field(None, description="The region it is in.")
    private_ip: Word | None = Field(None, description="Its address in the private network.")
    image: Annotated[str, Sized(1024)] | None = Field(
        None, description="The image it runs; a tag is pinned to the digest it had when it was first used."
    )
    config_hash: Word | None = Field(None, description="The hash of the configuration it was given.")


class VolumeStatus(Block):
    """The Fly volume as last seen."""

    id: Word | None = Field(None, description="Its id.")
    name: Word | None = Field(None, description="Its name; the number at its end tells which of the agent's it is.")
    state: Word | None = Field(None, description="Its state in Fly's words.")
    region: Word | None = Field(None, description="The region it is in.")
    size_gb: int | None = Field(None, description="Its size in GB; more than declared is no fault.")
    mounted_by: Word | None = Field(None, description="The machine that holds it.")
    restored_from: Word | None = Field(None, description="What volume.restoreFrom named when it was made.")


class PreviousVolume(Block):
    """The volume that the current one has taken the place of; kept for seven days, then deleted."""

    id: Word | None = Field(None, description="Its id.")
    region: Word | None = Field(None, description="The region it is in.")
    expires_at: Time | None = Field(None, description="When it is deleted.")


class IdleStatus(Block):
    """Its rest, while it rests for idleness."""

    since: Time | None = Field(None, description="When it was put to rest.")
    wake_at: Time | None = Field(None, description="When it is woken by itself, two minutes before its next run.")
    generation: int | None = Field(None, description="The generation it rests under; an edit wakes it.")
    wake: Word | None = Field(None, description="The value of the annotation roost.dev/wake that was acted on.")


class RecoveryStatus(Block):
    """Attempts to bring a silent agent back, within the last hour."""

    count: int | None = Field(None, description="How many.")
    window_start: Time | None = Field(None, description="When the first of them was.")
    last_reason: Line | None = Field(None, description="Why the last one was made.")


class BundleStatus(Block):
    """The configuration that the agent fetches, by revision."""

    desired: Word | None = Field(None, description="What it should run.")
    applied: Word | None = Field(None, description="What it says that it runs.")


class InsideStatus(Block):
    """What the agent said of itself; written when it changes, not with every heartbeat."""

    supervisor_version: Word | None = Field(None, description="The version of the supervisor.")
    runtime_version: Word | None = Field(None, description="The version label of the runtime.")
    boot_phase: Word | None = Field(None, description="How far its start has come.")
    since: Time | None = Field(None, description="When it last said something new.")
    restarts: int | None = Field(None, description="How often the runtime was started again.")
    last_exit_reason: Line | None = Field(None, description="How the runtime ended the last time.")
    degraded: tuple[Annotated[str, Sized(253, description="One thing that does not work.")], ...] | None = Field(
        None,
        max_length=16,
        description="What in it does not work.",
    )
    pending_pairings: int | None = Field(None, description="How many people wait to be approved in its messengers.")


class SecretUse(Block):
    """A Secret that the agent's configuration uses."""

    name: Word = Field(description="The Secret's name.")
    version: int | None = Field(None, description="The version of its values that is used.")


class DestroyError(Block):
    """Why the last step of the deletion failed."""

    op: Word | None = Field(None, description="What was tried.")
    status: int | None = Field(None, description="Fly's HTTP status; 0 when there was no answer.")
    message: Line | None = Field(None, description="What Fly said.")
    at: Time | None = Field(None, description="When.")


ThingId = Annotated[str, Sized(253, description="An id at Fly.")]


class DestroyStatus(Block):
    """How far deletion has come."""

    started_at: Time | None = Field(None, description="When it began.")
    machine_ids: tuple[ThingId, ...] | None = Field(None, max_length=32, description="Machines that are left.")
    volume_ids: tuple[ThingId, ...] | None = Field(None, max_length=32, description="Volumes that are left.")
    app: Word | None = Field(None, description="The app that is left.")
    last_error: DestroyError | None = None


class AgentStatus(Block):
    """What the operator saw and did; written by it alone."""

    observed_generation: int = Field(-1, description="The generation of the spec that this speaks of; -1: none yet.")
    phase: Annotated[str, Sized(32, enum=[p.value for p in Phase])] | None = Field(
        None, description="One word for people; the conditions carry the truth."
    )
    conditions: Conditions = ()
    did: Word | None = Field(None, description="The agent's decentralized identifier (did:key).")
    app: AppStatus | None = None
    machine: MachineStatus | None = None
    volume: VolumeStatus | None = None
    previous_volume: PreviousVolume | None = None
    idle: IdleStatus | None = None
    recovery: RecoveryStatus | None = None
    bundle: BundleStatus | None = None
    agent: InsideStatus | None = None
    secrets: tuple[SecretUse, ...] | None = Field(
        None,
        max_length=384,
        description="The Secrets in use, with the version of each.",
        json_schema_extra=keyed("name"),
    )
    destroy: DestroyStatus | None = None
    next_action: Line | None = Field(None, description="What happens next, in one line.")
    last_handled_reconcile_at: Word | None = Field(
        None, description="The last value of the annotation roost.dev/reconcile-at that was acted on."
    )


AGENT = Kind(
    kind="Agent",
    plural="agents",
    short="ag",
    about="An Agent is one AI agent on one Fly machine with one volume, kept as declared until it is deleted.",
    spec=AgentSpec,
    status=AgentStatus,
    columns=(
        Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        Column("Phase", ".status.phase"),
        Column("Region", ".status.machine.region"),
        Column("Runtime", ".spec.runtime.kind"),
        Column("Machine", ".status.machine.id"),
        Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', wide=True),
        Column("Display", ".spec.identity.displayName", wide=True),
        Column("Volume", ".status.volume.id", wide=True),
        Column("Image", ".status.machine.image", wide=True),
        Column("Next", ".status.nextAction", wide=True),
        Column("Age", ".metadata.creationTimestamp", type="date"),
    ),
    rules=(
        Rule(
            f"size(self.metadata.name) <= {NAME_LIMIT}",
            f"metadata.name {{self.metadata.name}} is too long: use at most {NAME_LIMIT} characters",
        ),
        Rule(
            "!self.metadata.name.contains('.')",
            "metadata.name {self.metadata.name} has a dot: use lower-case letters, digits and dashes only",
        ),
    ),
    annotations=(
        ("roost.dev/reconcile-at", "Any new value has it looked at now; the status echoes it."),
        ("roost.dev/revoked", "Any value but false is the kill switch, like spec.revoked; a Fleet never undoes it."),
        ("roost.dev/wake", "Any new value wakes an agent that rests for idleness."),
        ("roost.dev/drain", "Any value but false: the agent finishes what it has begun and takes on nothing new."),
        (
            "roost.dev/allow-data-loss",
            "The id of a lost volume: with volume.onLoss Recreate, an empty one may take its place.",
        ),
        (
            "roost.dev/forget",
            "Ids at Fly, separated by commas, that a deletion which is stuck lets go of: they stay, and the app with "
            "them, and nobody looks after them any more.",
        ),
    ),
)


def parse_agent_spec(obj: Mapping[str, Any]) -> AgentSpec:
    """The spec of a stored Agent (the whole object, as the API server gives it).

    Raises:
        BadResource: it holds what this version does not know, such as a value of a newer CRD.
    """
    return parse(AgentSpec, obj.get("spec") or {})


def parse_agent_status(obj: Mapping[str, Any]) -> AgentStatus:
    """What an Agent's status remembers; an object without one has the defaults."""
    return parse(AgentStatus, obj.get("status") or {})
