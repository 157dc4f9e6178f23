"""What callers send: bodies and queries, read as strictly as Fly's own decoder reads them.

Unknown fields are ignored (they vanish from the echoed config too), null counts as absent, and a wrong JSON type is
refused with 400. Everything that raises here raises Refusal.
"""

import json
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flysim import errors
from flysim.clock import go_duration

_STOP_SIGNALS = frozenset({"SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM"})
_SIGNALS = _STOP_SIGNALS | {"SIGABRT", "SIGALRM", "SIGFPE", "SIGILL", "SIGPIPE", "SIGSEGV", "SIGTRAP"}

DEFAULT_STOP_SIGNAL = int(signal.SIGINT)
DEFAULT_STOP_TIMEOUT = 5.0


class Body(BaseModel):
    """A JSON object that Fly takes; `go_type` is what its decoder calls it in refusals."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    go_type: ClassVar[str] = "main.request"


class Guest(Body):
    cpu_kind: str = "shared"
    cpus: int = 1
    memory_mb: int = 256


class Mount(Body):
    """A volume's place. From `extend_threshold_percent` of it on (0: never) it grows, 0 as its limit is none."""

    volume: str = ""
    path: str = ""
    extend_threshold_percent: int = 0
    add_size_gb: int = 0
    size_gb_limit: int = 0


class Init(Body):
    exec: list[str] = []
    entrypoint: list[str] = []
    cmd: list[str] = []
    swap_size_mb: int = 0


class Restart(Body):
    policy: Literal["", "no", "always", "on-failure", "spot-price"] = "on-failure"
    max_retries: int = 10


class StopConfig(Body):
    """How a machine is asked to end; also the body of a stop call."""

    go_type: ClassVar[str] = "main.stopRequest"
    signal: str | int | None = None
    timeout: str | float | None = None


class ProcessSecret(Body):
    env_var: str = ""
    name: str = ""


class Process(Body):
    exec: list[str] = []
    entrypoint: list[str] = []
    cmd: list[str] = []
    env: dict[str, str] = {}
    secrets: list[ProcessSecret] = []
    ignore_app_secrets: bool = False


class Header(Body):
    name: str = ""
    values: list[str] = []


class Check(Body):
    """A health check, of a service or of the machine; `port` 0 means the service's own."""

    type: str = ""
    port: int = 0
    interval: str | float | None = None
    timeout: str | float | None = None
    grace_period: str | float | None = None
    method: str = "GET"
    path: str = "/"
    protocol: str = "http"
    headers: list[Header] = []
    tls_skip_verify: bool = False


class Port(Body):
    """A public port, or a range of them."""

    port: int = 0
    start_port: int = 0
    end_port: int = 0
    handlers: list[str] = []

    def takes(self, port: int) -> bool:
        return port == self.port or (self.start_port > 0 and self.start_port <= port <= self.end_port)


class Service(Body):
    """What the edge may send to a machine. `autostop` is as sent: a word, or the boolean of older callers."""

    protocol: str = "tcp"
    internal_port: int = 0
    ports: list[Port] = []
    checks: list[Check] = []
    autostart: bool = False
    autostop: str | bool = False
    min_machines_running: int = 0


class File(Body):
    """A file that is put into a machine before it boots; `raw_value` is base64."""

    guest_path: str = ""
    raw_value: str = ""
    secret_name: str = ""
    image_config: str = ""


class MachineConfig(Body):
    """The part of a machine's config that the simulator acts on."""

    image: str = ""
    size: str = ""
    guest: Guest = Guest()
    env: dict[str, str] = {}
    metadata: dict[str, str] = {}
    mounts: list[Mount] = []
    init: Init = Init()
    restart: Restart = Restart()
    stop_config: StopConfig = StopConfig()
    services: list[Service] = []
    checks: dict[str, Check] = {}
    processes: list[Process] = []
    files: list[File] = []
    auto_destroy: bool = False
    containers: list[Any] = []
    schedule: str = ""

    @property
    def process(self) -> Process:
        """The one process of the machine; an empty one where the config names none."""
        return self.processes[0] if self.processes else Process()


class LaunchMachine(Body):
    """The body of a machine's create and update."""

    go_type: ClassVar[str] = "main.createMachineRequest"
    name: str = ""
    region: str = ""
    config: dict[str, Any] = {}
    lease_ttl: int = 0
    skip_launch: bool = False
    skip_service_registration: bool = False
    skip_secrets: bool = False
    min_secrets_version: int = 0
    current_version: str = ""


class Named(Body):
    """Only the name in the body of a create."""

    name: str = ""


class CreateApp(Body):
    go_type: ClassVar[str] = "main.createAppRequest"
    name: str = ""
    app_name: str = ""
    org_slug: str = ""
    network: str = ""
    idempotency_key: str = ""

    @property
    def wanted(self) -> str:
        """The app's name; Fly takes it under either key."""
        return self.name or self.app_name


class SignalMachine(Body):
    go_type: ClassVar[str] = "main.signalRequest"
    signal: str | int = ""


class AcquireLease(Body):
    go_type: ClassVar[str] = "main.createLeaseRequest"
    ttl: int | None = None
    description: str = ""


class PatchMetadata(Body):
    go_type: ClassVar[str] = "main.updateMetadataRequest"
    metadata: dict[str, str | None] = {}
    machine_version: str = ""


class SetValue(Body):
    """A metadata value, or a secret's."""

    go_type: ClassVar[str] = "main.setValueRequest"
    value: str = ""


class SetSecrets(Body):
    go_type: ClassVar[str] = "main.appSecretsUpdateRequest"
    values: dict[str, str | None] = {}


class AssignIp(Body):
    go_type: ClassVar[str] = "main.assignIPRequest"
    type: str = ""
    region: str = ""
    network: str = ""
    service_name: str = ""


class CreateVolume(Body):
    go_type: ClassVar[str] = "main.createVolumeRequest"
    name: str = ""
    region: str = ""
    size_gb: int | None = None
    encrypted: bool = True
    fstype: str = "ext4"
    snapshot_retention: int = Field(default=5)
    auto_backup_enabled: bool = True
    snapshot_id: str = ""
    source_volume_id: str = ""
    compute: dict[str, Any] = {}


class UpdateVolume(Body):
    go_type: ClassVar[str] = "main.updateVolumeRequest"
    snapshot_retention: int | None = None
    auto_backup_enabled: bool | None = None


class ExtendVolume(Body):
    go_type: ClassVar[str] = "main.extendVolumeRequest"
    size_gb: int = 0


class CreateOidcToken(Body):
    go_type: ClassVar[str] = "main.createOIDCTokenRequest"
    aud: str = ""
    aws_principal_tags: Any = None


class GetPlacements(Body):
    go_type: ClassVar[str] = "main.getPlacementsRequest"
    org_slug: str = ""
    region: str = ""
    compute: dict[str, Any] = {}
    count: int = 0


_Body = TypeVar("_Body", bound=Body)


def read(model: type[_Body], body: bytes) -> _Body:
    """A call's body; an empty one counts as `{}`. Raises Refusal (400)."""
    if not body.strip():
        return model()
    try:
        value = json.loads(body)
    except ValueError as error:
        raise errors.unreadable(f"invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.unreadable(f"json: cannot unmarshal {_kind(value)} into Go value of type {model.go_type}")
    return read_value(model, {key: item for key, item in value.items() if item is not None})


def read_value(model: type[_Body], value: Mapping[str, Any]) -> _Body:
    """A JSON object that is already decoded. Raises Refusal (400)."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"].endswith("_type"):
            text = f"json: cannot unmarshal {_kind(first['input'])} into Go struct field {model.go_type}.{field}"
            raise errors.unreadable(text) from error
        raise errors.invalid(f"{field}: {first['msg']}") from error


def without_nulls(value: Any) -> Any:
    """The same JSON without null members of objects, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "number"


# Queries

Query = Mapping[str, Sequence[str]]


def last(query: Query, name: str) -> str | None:
    """The value of a parameter that is given once; of several the last."""
    values = query.get(name)
    return values[-1] if values else None


def flag(query: Query, *names: str) -> bool:
    """Whether one of these parameters is true. Raises Refusal (400) for what is no boolean."""
    return any(_bool(name, value) for name in names if (value := last(query, name)) is not None)


def number(query: Query, name: str) -> int | None:
    """A whole number, or None when it is not given. Raises Refusal (400)."""
    value = last(query, name)
    if value is None or value == "":
        return None
    if re.fullmatch(r"-?\d{1,18}", value) is None:
        raise errors.invalid(f"{name}: {value!r} is not a number")
    return int(value)


def words(query: Query, name: str) -> list[str]:
    """All values of a parameter that may be repeated and may hold comma lists."""
    return [word.strip() for value in query.get(name, ()) for word in value.split(",") if word.strip()]


def _bool(name: str, value: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False", ""):
        return False
    raise errors.invalid(f"{name}: {value!r} is not a boolean")


# Signals and durations


def stop_signal(value: str | int | None, default: int) -> int:
    """The number of a signal that may stop a machine. Raises Refusal (400)."""
    return default if value in (None, "", 0) else _signal(value, _STOP_SIGNALS)


def any_signal(value: str | int) -> int:
    """The number of a signal that may be sent to a machine. Raises Refusal (400)."""
    return _signal(value, _SIGNALS)


def _signal(value: str | int | None, allowed: frozenset[str]) -> int:
    try:
        name = signal.Signals(int(value)) if str(value).isdecimal() else signal.Signals[str(value)]  # type: ignore[arg-type]
    except (KeyError, ValueError):
        name = None
    if name is None or name.name not in allowed:
        raise errors.invalid(f"signal: {value!r} is not one of {', '.join(sorted(allowed))}")
    return int(name)


def seconds(value: str | float | None, default: float, field: str = "timeout") -> float:
    """Seconds of a duration: a Go duration text, or nanoseconds as a number. Raises Refusal (400), naming the field."""
    if value is None or value in ("", 0):
        return default
    if not isinstance(value, str):
        return value / 1e9
    if (duration := go_duration(value)) is None:
        raise errors.invalid(f"{field}: {value!r} is not a duration")
    return duration
