"""The config bundle: everything one agent is to be, in one document.

It holds secrets (`secretEnv`, `files`), so it is never logged, never stored unsealed, and never part of a status.
"""

import hmac
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from roost_agent.contract.paths import RESERVED_DIRECTORY
from roost_agent.contract.wire import JSON, Count, Name, RestartedAt, Version, Wire, canonical

__all__ = [
    "API_VERSION",
    "VOLATILE",
    "BundleAgent",
    "BundleFile",
    "BundleHeartbeat",
    "BundleRuntime",
    "ConfigBundle",
    "HttpGet",
    "Readiness",
    "canonical",
    "revision",
]

API_VERSION: Final = "roost.dev/v1alpha1"

VOLATILE = ("revision", "generation", "runtime.restartedAt")
"""Fields that do not count for the revision: they say when and for what, not what the agent is to be."""


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


class BundleRuntime(Wire):
    """What runs: for the kind Command an argument vector, started without a shell in the data directory."""

    kind: Literal["Command"]
    version: Version
    command: Annotated[list[Text], Field(min_length=1, max_length=256)]
    readiness: Readiness | None = None
    restarted_at: RestartedAt | None = None


class BundleFile(Wire):
    """A file below the data directory; `mode` as in chmod, octal."""

    path: FilePath
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "0600"
    content: str


class BundleHeartbeat(Wire):
    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 30


class ConfigBundle(Wire):
    """The whole bundle. Only one that is revoked has no runtime."""

    api_version: Literal["roost.dev/v1alpha1"] = API_VERSION
    kind: Literal["ConfigBundle"] = "ConfigBundle"
    revision: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9:._-]*$")]
    generation: Count
    agent: BundleAgent
    revoked: bool = False
    runtime: BundleRuntime | None = None
    env: dict[Variable, Text] = Field(default_factory=dict)
    secret_env: dict[Variable, Text] = Field(default_factory=dict, repr=False)
    files: list[BundleFile] = Field(default_factory=list, repr=False)
    heartbeat: BundleHeartbeat = BundleHeartbeat()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.runtime is None and not self.revoked:
            raise ValueError("a bundle that is not revoked needs a runtime")
        if len({str(PurePosixPath(f.path)) for f in self.files}) < len(self.files):
            raise ValueError("two files have the same path")
        return self

    def runtime_inputs(self) -> bytes:
        """All that the running process depends on; equal bytes mean that no restart is needed."""
        whole = self.model_dump(mode="json", include={"runtime", "env", "secret_env", "files"})
        if whole["runtime"] is not None:
            del whole["runtime"]["restartedAt"]
        return canonical(whole)


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
