"""What exists in the simulated Fly: orgs' apps with their machines, volumes and secrets, and how the API shows them.

These are the simulator's only mutable records. `*_json` functions give what Fly's answers hold and nothing else; no
secret value is ever part of one.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flysim.clock import rfc3339, rfc3339_fine
from flysim.requests import MachineConfig
from flysim.runner import Instance

JSON = dict[str, Any]

GONE = frozenset({"destroying", "destroyed"})
SETTLED = frozenset({"started", "stopped", "suspended", "failed", "destroyed"})


@dataclass(slots=True)
class Secret:
    name: str
    value: str = field(repr=False)
    digest: str
    created_at: float
    updated_at: float


@dataclass(slots=True)
class App:
    """An app. `machines` holds destroyed ones too; `deleting` from the DELETE until everything in it has ended."""

    id: str
    number: int
    name: str
    org: str
    network: str
    created_at: float
    machines: dict[str, "Machine"] = field(default_factory=dict)
    volumes: dict[str, "Volume"] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    secrets_version: int = 0
    deleting: bool = False


@dataclass(slots=True)
class Volume:
    """A volume. `machine_id` is who holds it, and stays a while after that machine was destroyed."""

    id: str
    name: str
    app: App
    region: str
    zone: str
    size_gb: int
    encrypted: bool
    fstype: str
    snapshot_retention: int
    auto_backup_enabled: bool
    created_at: float
    updated_at: float
    state: str = "created"
    machine_id: str | None = None
    deleted_at: float | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """`expires_at` in whole epoch seconds; `version` is the machine's when the lease was taken."""

    nonce: str
    expires_at: int
    owner: str
    description: str
    version: str


@dataclass(frozen=True, slots=True)
class Event:
    """`timestamp` in epoch milliseconds."""

    id: str
    type: str
    status: str
    source: str
    timestamp: int
    request: JSON | None


@dataclass(slots=True)
class Boot:
    """One boot of a machine, from its start until nothing of it is left."""

    instance: Instance
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Waiter:
    """A `wait` call: `states` as asked for, and the oldest event and the version it is about, where it named them."""

    states: frozenset[str]
    version: str | None
    after_event: str
    found: "asyncio.Future[str]"


@dataclass(slots=True)
class Machine:
    """A machine.

    `shown` is its config as the API echoes it, `config` the same as we read it. `secrets` is what its boots inject,
    fixed when the version was made. `ending` says why its process is being ended on purpose, if it is.
    """

    id: str
    name: str
    app: App
    region: str
    state: str
    version: str
    shown: JSON
    config: MachineConfig
    private_ip: str
    address: str
    created_at: float
    updated_at: float
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    cordoned: bool = False
    volume: Volume | None = None
    lease: Lease | None = None
    events: list[Event] = field(default_factory=list)
    versions: dict[str, JSON] = field(default_factory=dict)
    waiters: list[Waiter] = field(default_factory=list)
    boot: Boot | None = None
    booting: "asyncio.Task[None] | None" = None
    work: "asyncio.Task[None] | None" = None
    ending: str | None = None
    active_until: float = 0.0
    restarts: list[float] = field(default_factory=list)


def app_json(app: App) -> JSON:
    live = sum(machine.state != "destroyed" for machine in app.machines.values())
    return {
        "id": app.id,
        "internal_numeric_id": app.number,
        "name": app.name,
        "status": "deployed" if app.machines else "pending",
        "machine_count": live,
        "volume_count": sum(volume.deleted_at is None for volume in app.volumes.values()),
        "network": app.network,
        "organization": {"name": app.org, "slug": app.org},
    }


def machine_json(machine: Machine, *, summary: bool = False) -> JSON:
    """A Machine of the API; the summary of lists leaves out config, checks, events and host_status."""
    row: JSON = {
        "id": machine.id,
        "name": machine.name,
        "state": machine.state,
        "region": machine.region,
        "version": machine.version,
        "instance_id": machine.version,
        "private_ip": machine.private_ip,
        "image_ref": image_ref(machine.config.image),
        "created_at": rfc3339(machine.created_at),
        "updated_at": rfc3339(machine.updated_at),
        "cordoned": machine.cordoned,
    }
    if summary:
        return row
    return row | {
        "config": machine.shown,
        "events": [event_json(event) for event in reversed(machine.events[-20:])],
        "checks": [],
        "host_status": "ok",
    }


def old_version_json(machine: Machine, version: str) -> JSON:
    """A version that an update has replaced."""
    row = machine_json(machine)
    return row | {
        "state": "replaced",
        "version": version,
        "instance_id": version,
        "config": machine.versions[version],
        "image_ref": image_ref(machine.versions[version]["image"]),
    }


def org_machine_json(machine: Machine, *, summary: bool = False) -> JSON:
    row: JSON = {
        "app_name": machine.app.name,
        "id": machine.id,
        "name": machine.name,
        "state": machine.state,
        "region": machine.region,
        "version": machine.version,
        "instance_id": machine.version,
        "private_ip": machine.private_ip,
        "created_at": rfc3339(machine.created_at),
        "updated_at": rfc3339(machine.updated_at),
    }
    if summary:
        return row
    slim = {key: machine.shown[key] for key in ("guest", "image", "metadata") if key in machine.shown}
    return row | {"config": slim}


def event_json(event: Event) -> JSON:
    return {
        "id": event.id,
        "type": event.type,
        "status": event.status,
        "source": event.source,
        "timestamp": event.timestamp,
        "request": event.request,
    }


def lease_json(lease: Lease) -> JSON:
    return {
        "nonce": lease.nonce,
        "expires_at": lease.expires_at,
        "owner": lease.owner,
        "description": lease.description,
        "version": lease.version,
    }


def secret_json(secret: Secret) -> JSON:
    return {
        "name": secret.name,
        "digest": secret.digest,
        "created_at": rfc3339(secret.created_at),
        "updated_at": rfc3339(secret.updated_at),
    }


_BLOCK = 4096


def volume_json(volume: Volume) -> JSON:
    blocks = volume.size_gb * (1 << 30) // _BLOCK
    return {
        "id": volume.id,
        "name": volume.name,
        "state": volume.state,
        "size_gb": volume.size_gb,
        "region": volume.region,
        "zone": volume.zone,
        "encrypted": volume.encrypted,
        "attached_machine_id": volume.machine_id,
        "attached_alloc_id": None,
        "created_at": rfc3339_fine(volume.created_at),
        "blocks": blocks,
        "block_size": _BLOCK,
        "blocks_free": blocks,
        "blocks_avail": blocks,
        "bytes_used": 0,
        "bytes_total": blocks * _BLOCK,
        "fstype": volume.fstype,
        "snapshot_retention": volume.snapshot_retention,
        "auto_backup_enabled": volume.auto_backup_enabled,
        "host_status": "ok",
        "host_dedication_key": "",
        "type": "local",
    }


def org_volume_json(volume: Volume) -> JSON:
    return volume_json(volume) | {"app_name": volume.app.name, "updated_at": rfc3339_fine(volume.updated_at)}


def image_ref(image: str) -> JSON:
    """An image reference in its parts; the digest is made up (from the reference) when it names none."""
    rest, _, digest = image.partition("@")
    first, slash, tail = rest.partition("/")
    registry, path = (first, tail) if slash and ("." in first or ":" in first) else ("registry-1.docker.io", rest)
    repository, _, tag = path.partition(":")
    if "/" not in repository:
        repository = f"library/{repository}"
    return {
        "registry": registry,
        "repository": repository,
        "tag": tag or ("" if digest else "latest"),
        "digest": digest or f"sha256:{hashlib.sha256(image.encode()).hexdigest()}",
        "labels": {},
    }
