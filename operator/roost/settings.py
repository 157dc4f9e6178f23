"""Every knob of the operator, in one model; read from a YAML file, each key overridable by flag or environment.

Nothing here belongs to one Agent: what a user declares is in the resources, what an administrator decides is here.
"""

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def _port_in_range(listen: str) -> str:
    if int(listen.rpartition(":")[2]) > 65535:
        raise ValueError("the port must be at most 65535")
    return listen


Listen = Annotated[
    str,
    Field(pattern=r"^[^\s]*:\d{1,5}$", description="host:port; an empty host means every address"),
    AfterValidator(_port_in_range),
]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BadSettings(Exception):
    """The settings file can't be used; the message names file, field, value and remedy."""


class _Block(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class EndpointTls(_Block):
    """The endpoint's own certificate: a core Secret of type kubernetes.io/tls in the operator's namespace."""

    secret_name: str = Field(
        "roost-endpoint-tls",
        pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$",
        description="tls.crt, tls.key and, for a private authority, ca.crt, as cert-manager writes them",
    )


class EndpointLimits(_Block):
    """What one caller, and all of them together, may take of the endpoint."""

    connections: int = Field(20_000, ge=100, le=1_000_000, description="at once; one too many is closed")
    request_seconds: Seconds = Field(10, description="within which a request must be here whole, TLS handshake too")
    answer_seconds: Seconds = Field(30, description="within which an answer must be taken")
    idle_seconds: Seconds = Field(75, description="after which a connection that nobody uses is closed")
    requests_per_second: float = Field(
        10, gt=0, allow_inf_nan=False, description="of one agent, for long; five seconds' worth at once"
    )


class GatewaySecret(_Block):
    """The secret from which the seed systems make their agents' gateway tokens: a key of a core Secret here."""

    secret_name: str = "roost-gateway"  # noqa: S105 - a name
    secret_key: str = "secret"  # noqa: S105 - a name


class Endpoint(_Block):
    """Where agents call: bundle and heartbeat."""

    listen: Listen = ":8081"
    public_url: str = Field(
        "http://roost-endpoint.roost-system.svc:8081",
        pattern=r"^https?://[^\s/]+$",
        description="the address that machines use; put into AGENTSHIELD_API_URL",
    )
    tls: EndpointTls | None = Field(None, description="left out: plain HTTP, behind an ingress that ends TLS")
    limits: EndpointLimits = EndpointLimits()
    gateway_secret: GatewaySecret | None = Field(
        None, description="left out: check-ins of agents of the seed systems are not taken"
    )

    @model_validator(mode="after")
    def _call_it_by_https(self) -> Self:
        if self.tls is not None and not self.public_url.startswith("https://"):
            raise ValueError("with tls, publicUrl must be https://, since nothing else is spoken there")
        return self


class Metrics(_Block):
    """Where Prometheus and the kubelet call: /metrics, /healthz, /readyz."""

    listen: Listen = ":8080"


class Credential(_Block):
    """A Fly API token: a key of a core Secret in the operator's own namespace; and for whom it is.

    A list that is left out allows everything, an empty one nothing.
    """

    secret_name: str = "roost-fly"  # noqa: S105 - a name
    secret_key: str = "token"  # noqa: S105 - a name
    namespaces: tuple[str, ...] | None = None
    orgs: tuple[str, ...] | None = None
    shared_apps: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None


class Fly(_Block):
    """The Fly Machines API, and how often everybody's machines are listed."""

    base_url: str = Field("https://api.machines.dev", pattern=r"^https?://[^\s]+$")
    org: str = "personal"
    credentials: Annotated[dict[str, Credential], Field(min_length=1)] = {"default": Credential()}
    refresh_seconds: Seconds = 15
    volume_refresh_seconds: Seconds = 60
    full_sweep_seconds: Seconds = 600
    oidc_issuer: str = Field(
        "https://oidc.fly.io/{org}",
        pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/])[^\s]*[^\s/]$",
        description="who makes the OIDC tokens of an org's machines; plain http on loopback alone",
    )
    absence_seconds: Seconds = Field(
        90, description="how long a list may lag behind a create whose answer was lost, before absence is believed"
    )


class Defaults(_Block):
    """What an Agent gets when it leaves a field out; computed in memory, never written back to spec."""

    image: str = "roost/agent:0.1.0"
    regions: Annotated[tuple[str, ...], Field(min_length=1)] = ("iad",)


class LeaderElection(_Block):
    """Which replica works: as Kubernetes' own components do it, with their names and defaults."""

    lease_seconds: int = Field(15, ge=1, le=3600, description="how long a standby waits for a leader that is not heard")
    renew_seconds: Seconds = 10
    retry_seconds: Seconds = 2

    @model_validator(mode="after")
    def _leave_room(self) -> Self:
        if not self.lease_seconds > self.renew_seconds > self.retry_seconds:
            raise ValueError(
                "leaseSeconds must be more than renewSeconds, and that more than retrySeconds (15, 10 and 2): else two "
                "replicas could act at once"
            )
        return self


class Settings(_Block):
    """All settings. `load` reads a file; a missing key has the default written here."""

    endpoint: Endpoint = Endpoint()
    metrics: Metrics = Metrics()
    fly: Fly = Fly()
    defaults: Defaults = Defaults()
    leader_election: LeaderElection = LeaderElection()
    adopt_from_cluster: str = Field(
        "",
        description="the kube-system uid of a cluster that is gone for good and whose machines this one takes over; "
        "ClusterMoved in an Agent's status tells it",
    )
    namespace: str = Field("roost-system", description="the operator's own namespace: roots and Fly tokens live here")
    in_flight: int = Field(64, ge=1, le=1024, description="Agents that are worked on at the same time")
    secret_poll_seconds: Seconds = Field(
        15,
        description="how often a core Secret is read; stretched so that all together stay under 5 a second",
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")


def load(path: Path | None) -> Settings:
    """The settings of a YAML file, or the defaults.

    Raises:
        BadSettings: the file is missing, isn't YAML, or a field is unknown or has a value that can't be used.
    """
    if path is None:
        return Settings()
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadSettings(f"settings file {path}: {error.strerror}; give another with --config") from error
    except UnicodeDecodeError as error:
        raise BadSettings(f"settings file {path} is not UTF-8 text; save it as such") from error
    except yaml.YAMLError as error:
        raise BadSettings(f"settings file {path} is not YAML: {error}") from error
    data = _without_nulls(data) or {}
    if not isinstance(data, dict):
        raise BadSettings(f"settings file {path} holds {data!r:.40}, not keys; docs/reference/settings.md lists them")
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        said = "; ".join(_sentence(e["loc"], e["msg"], e["type"], e["input"]) for e in error.errors())
        raise BadSettings(f"settings file {path}: {said}") from error


def _without_nulls(value: Any) -> Any:
    """A key with nothing behind it, as when all below it is a comment, counts as left out."""
    return {k: _without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _sentence(where: tuple[int | str, ...], message: str, kind: str, value: object) -> str:
    """The key, what it must be, and what stands there."""
    if kind == "extra_forbidden":
        message = "there is no such setting; correct the name, or take it out (docs/reference/settings.md has them all)"
    return f"{'.'.join(map(str, where))}: {message} (value: {value!r:.80})"
