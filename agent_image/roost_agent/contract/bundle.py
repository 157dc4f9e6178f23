"""The config bundle: everything one agent is to be, in one document.

It holds secrets (`secretEnv`, `files`), so it is never logged, never stored unsealed, and never part of a status.
"""

import hmac
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from roost_agent.contract.paths import GATEWAY_TOKEN_ENV, RESERVED_DIRECTORY
from roost_agent.contract.wire import JSON, Count, Name, RestartedAt, Version, Wire, Word, canonical

__all__ = [
    "API_VERSION",
    "HOT",
    "VOLATILE",
    "BundleAgent",
    "BundleBridge",
    "BundleChannel",
    "BundleChannels",
    "BundleDidcomm",
    "BundleFile",
    "BundleGateway",
    "BundleHeartbeat",
    "BundleModel",
    "BundleOpenClaw",
    "BundleProvider",
    "BundleRuntime",
    "BundleSkills",
    "BundleTelemetry",
    "ConfigBundle",
    "DidcommRole",
    "DmPolicy",
    "HttpGet",
    "Readiness",
    "RuntimeKind",
    "Skill",
    "SkillFile",
    "SkillsPolicy",
    "WorkspaceFile",
    "WorkspacePolicy",
    "canonical",
    "revision",
]

API_VERSION: Final = "roost.dev/v1alpha1"

VOLATILE = ("revision", "generation", "runtime.restartedAt", f"secretEnv.{GATEWAY_TOKEN_ENV}")
"""Fields that do not count for the revision: they say when and for what, not what the agent is to be.

The gateway token is the machine's, and comes with its own token: another one is no news of the agent.
"""


def _inside(path: str) -> str:
    """A file's path below the data directory: relative, plain, and not in the supervisor's own corner."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or path.endswith("/") or "\0" in path or ".." in parts:
        raise ValueError("a file's path must be relative, name a file, and have no '..' and no NUL")
    if parts[0] == RESERVED_DIRECTORY:
        raise ValueError(f"{RESERVED_DIRECTORY}/ belongs to the supervisor")
    return path


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("NUL can be part of neither an argument nor a variable")
    return value


FilePath = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_inside)]
Text = Annotated[str, AfterValidator(_no_nul)]
Variable = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
HOT: Final = "x-roost-hot"


def _hot(default: Any = ...) -> Any:
    """A field whose change the runtime does not have to be started anew for; marked so in the published schema."""
    return Field(default, json_schema_extra={HOT: True})


class BundleAgent(Wire):
    """Whose bundle this is. `fleet` and `ordinal` only for a member of a Fleet."""

    did: Name
    namespace: Name
    name: Name
    uid: Name
    fleet: Name | None = None
    ordinal: Count | None = None


class HttpGet(Wire):
    """Ready means: a GET of this path on this port of the machine answers 200 to 399."""

    path: Annotated[str, Field(max_length=1024, pattern=r"^/[\x21-\x7e]*$")]
    port: Annotated[int, Field(ge=1, le=65535)]


class Readiness(Wire):
    """When the runtime counts as ready. One that is not ready within the deadline (seconds) is started anew."""

    http_get: HttpGet | None = None
    initial_deadline_seconds: Annotated[int, Field(ge=1, le=86400)] = 300


class RuntimeKind(Word):
    """Which program the supervisor keeps alive, and how it sets it up."""

    OPENCLAW = "OpenClaw"
    COMMAND = "Command"
    UNKNOWN = "unknown"


class BundleRuntime(Wire):
    """What runs. For the kind Command an argument vector, started without a shell in the data directory.

    For OpenClaw the version is that of its package; with `rollback` one that does not come up is taken back.
    """

    kind: RuntimeKind = Field(strict=False)
    version: Version
    command: Annotated[list[Text], Field(min_length=1, max_length=256)] | None = None
    readiness: Readiness | None = None
    rollback: bool = True
    restarted_at: RestartedAt | None = None

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        if self.kind is RuntimeKind.COMMAND and self.command is None:
            raise ValueError("the kind Command needs a command")
        return self


class BundleModel(Wire):
    """The language model: `provider/model`, those to fall back on in order, and how much it thinks."""

    default: Text
    fallbacks: list[Text] = Field(default_factory=list)
    thinking: Text | None = None


class BundleProvider(Wire):
    """Where a model is had. Its key is the variable `api_key_env` of `secretEnv`; without one it needs no key."""

    id: Name
    base_url: Text | None = None
    api: Text | None = None
    api_key_env: Variable | None = None


class DmPolicy(Word):
    """Who may write to the agent: after pairing, those on the list, everybody, nobody."""

    PAIRING = "pairing"
    ALLOWLIST = "allowlist"
    OPEN = "open"
    DISABLED = "disabled"
    UNKNOWN = "unknown"


class BundleChannel(Wire):
    """A messenger; its tokens are variables of `secretEnv`. Slack has two, WhatsApp none."""

    enabled: bool = True
    dm_policy: DmPolicy = Field(default=DmPolicy.PAIRING, strict=False)
    allow_from: list[Text] = Field(default_factory=list)
    token_env: Variable | None = None
    app_token_env: Variable | None = None


class BundleChannels(Wire):
    """The messengers that are set up."""

    telegram: BundleChannel | None = None
    discord: BundleChannel | None = None
    slack: BundleChannel | None = None
    whatsapp: BundleChannel | None = None


class BundleGateway(Wire):
    """Where the runtime listens behind the supervisor's own port, and the variable of `secretEnv` that opens it.

    `token_epoch` moves when that token changes while the machine stays as it is.
    """

    port: Annotated[int, Field(ge=1, le=65535)] = 3001
    bind: Text = "loopback"
    token_env: Variable = GATEWAY_TOKEN_ENV
    token_epoch: Count = 0


class BundleFile(Wire):
    """A file below the data directory; `mode` as in chmod, octal."""

    path: FilePath
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "0600"
    content: str


class WorkspacePolicy(Word):
    """Seed: written once, and the agent's own from then on. Overwrite: always as it stands here."""

    SEED = "Seed"
    OVERWRITE = "Overwrite"
    UNKNOWN = "unknown"


class WorkspaceFile(Wire):
    """A file of the agent's workspace."""

    path: FilePath
    content: str
    policy: WorkspacePolicy = Field(default=WorkspacePolicy.SEED, strict=False)


class SkillFile(Wire):
    """A file of a skill; `sha256` is of its content, in hex."""

    path: FilePath
    content: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Skill(Wire):
    r"""A skill: instructions and programs that the agent may use.

    `sha256` is the checksum that its files must have together: of path, newline, content's checksum, newline, content
    of each file in the order of their paths, joined by `\n---\n`. None: whatever they are.
    """

    name: Name
    version: Version
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    files: list[SkillFile]


class SkillsPolicy(Word):
    """AllowlistOnly: what is not listed is removed. Merge: it stays."""

    ALLOWLIST_ONLY = "AllowlistOnly"
    MERGE = "Merge"
    UNKNOWN = "unknown"


class BundleSkills(Wire):
    """All skills that are wanted."""

    layout_version: Text = "openclaw-workspace-skill-v1"
    policy: SkillsPolicy = Field(default=SkillsPolicy.ALLOWLIST_ONLY, strict=False)
    items: list[Skill] = Field(default_factory=list)


class BundleBridge(Wire):
    """The agent bridge; its keys are variables of `secretEnv` (OPENCLAW_SERVICE_KEY and others)."""

    enabled: bool = False
    base_url: Text | None = None
    service_id: Text | None = None
    app_key: Text | None = None


class DidcommRole(Word):
    """The agent's part in a fleet that talks among itself."""

    NONE = "None"
    WORKER = "Worker"
    COORDINATOR = "Coordinator"
    UNKNOWN = "unknown"


class BundleDidcomm(Wire):
    """How the agents of a fleet find each other."""

    role: DidcommRole = Field(default=DidcommRole.NONE, strict=False)
    hub_endpoint: Text | None = None
    hub_port: int = 18821
    mcp_port: int = 3002
    name: Name | None = None
    peers: list[Name] = Field(default_factory=list)


class BundleHeartbeat(Wire):
    """How often the machine reports, in seconds."""

    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 30


class BundleTelemetry(Wire):
    """How often the machine checks in with its figures, and how long after its start for the first time, in seconds."""

    interval_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    initial_delay_seconds: Annotated[int, Field(ge=0, le=86400)] = 120


class BundleOpenClaw(Wire):
    """Merged last into openclaw.json: the escape hatch."""

    overlay: dict[str, Any] = Field(default_factory=dict)


class ConfigBundle(Wire):
    """The whole bundle. Only one that is revoked has no runtime.

    A field marked `x-roost-hot` takes effect while the runtime runs; a change of any other starts it anew.
    """

    api_version: Literal["roost.dev/v1alpha1"] = API_VERSION
    kind: Literal["ConfigBundle"] = "ConfigBundle"
    revision: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9:._-]*$")] = _hot()
    generation: Count = _hot()
    agent: BundleAgent = _hot()
    revoked: bool = _hot(False)
    runtime: BundleRuntime | None = None
    model: BundleModel | None = None
    providers: list[BundleProvider] = Field(default_factory=list)
    channels: BundleChannels = BundleChannels()
    gateway: BundleGateway = BundleGateway()
    env: dict[Variable, Text] = Field(default_factory=dict)
    secret_env: dict[Variable, Text] = Field(default_factory=dict, repr=False)
    files: list[BundleFile] = Field(default_factory=list, repr=False)
    soul: str | None = _hot(None)
    workspace: list[WorkspaceFile] = _hot([])
    skills: BundleSkills = _hot(BundleSkills())
    bridge: BundleBridge = BundleBridge()
    didcomm: BundleDidcomm = BundleDidcomm()
    heartbeat: BundleHeartbeat = _hot(BundleHeartbeat())
    telemetry: BundleTelemetry = _hot(BundleTelemetry())
    openclaw: BundleOpenClaw = BundleOpenClaw()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.runtime is None and not self.revoked:
            raise ValueError("a bundle that is not revoked needs a runtime")
        if len({str(PurePosixPath(f.path)) for f in self.files}) < len(self.files):
            raise ValueError("two files have the same path")
        return self

    def runtime_inputs(self) -> bytes:
        """All that the running process depends on; equal bytes mean that no restart is needed."""
        whole = self.model_dump(mode="json", include=RUNTIME_INPUTS)
        if whole["runtime"] is not None:
            del whole["runtime"]["restartedAt"]
        if not self.has_gateway:
            del whole["gateway"]
            whole["secretEnv"].pop(self.gateway.token_env, None)
        return canonical(whole)

    @property
    def to_run(self) -> BundleRuntime:
        """Its runtime, for whoever starts it: a revoked agent has none, and is never started."""
        assert self.runtime is not None, "only a revoked agent has no runtime, and that one is never started"
        return self.runtime

    @property
    def has_gateway(self) -> bool:
        """A Command has none: the token is the supervisor's alone, for its check-ins."""
        return self.runtime is not None and self.runtime.kind is not RuntimeKind.COMMAND


RUNTIME_INPUTS: Final = {
    name
    for name, field in ConfigBundle.model_fields.items()
    if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get(HOT))
}
"""The fields that are not hot."""


def revision(root: bytes, bundle: dict[str, Any]) -> str:
    """The revision of a bundle (as JSON): hex HMAC-SHA256 of its canonical text without the volatile fields.

    Keyed, because a plain hash would let anyone who sees it in a status try out guesses of a secret.
    """
    return hmac.digest(root, canonical(_without(bundle, VOLATILE)), "sha256").hex()


def _without(value: dict[str, Any], paths: tuple[str, ...]) -> JSON:
    left = dict(value)
    for path in paths:
        head, _, rest = path.partition(".")
        if not rest:
            left.pop(head, None)
        elif isinstance(left.get(head), dict):
            left[head] = _without(left[head], (rest,))
    return left
