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
from flysim.ledger import Origin
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
    ips: list["IpAssignment"] = field(default_factory=list)
    deleting: bool = False


@dataclass(slots=True)
class Host:
    """A host. None is no end of CPUs, memory or slots for machines; it holds machines until they are destroyed."""

    id: str
    region: str
    cpus: int | None
    memory_mb: int | None
    slots: int | None
    up: bool = True
    machines: dict[str, "Machine"] = field(default_factory=dict)
    volumes: dict[str, "Volume"] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """In the API's words."""
        return "ok" if self.up else "unreachable"


@dataclass(slots=True)
class Volume:
    """A volume. `machine_id` is who holds it, and stays a while after that machine was destroyed.

    `bytes_used` is as last measured; `usage` stands for it once it was set by hand.
    """

    id: str
    name: str
    app: App
    host: Host
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
    bytes_used: int = 0
    usage: int | None = None


@dataclass(slots=True)
class Snapshot:
    """A copy of a volume's data. `size` is 0 until it is `created`; `size_gb` and `usage` are the volume's then."""

    id: str
    number: int
    volume_id: str
    app: App
    size_gb: int
    retention_days: int
    asked_at: float
    usage: int | None
    status: str = "running"
    size: int = 0
    created_at: float | None = None


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
    """One boot of a machine, from its start until nothing of it is left.

    `since` is when it began or was last resumed, in epoch seconds; `frozen` while the machine is suspended.
    """

    instance: Instance
    since: float
    frozen: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class CheckStatus:
    """What is known of one check: `status` is passing, warning (nothing known yet) or critical."""

    name: str
    updated_at: float
    status: str = "warning"
    output: str = "waiting for status update"


@dataclass(frozen=True, slots=True)
class IpAssignment:
    """An address of an app; `type` is the one that was asked for."""

    ip: str
    type: str
    region: str
    service_name: str
    network: str
    created_at: float


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
    fixed when the version was made, and so are `digests` (by version) and `runs`, the reference of its image.
    `ending` says why its process is being ended on purpose, if it is; `origin` whose the last order was.
    """

    id: str
    name: str
    app: App
    host: Host
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
    digests: dict[str, str] = field(default_factory=dict)
    runs: str = ""
    waiters: list[Waiter] = field(default_factory=list)
    boot: Boot | None = None
    checks: list[CheckStatus] = field(default_factory=list)
    booting: "asyncio.Task[None] | None" = None
    work: "asyncio.Task[None] | None" = None
    origin: Origin = field(default_factory=Origin)
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
        "image_ref": image_ref(machine.config.image, machine.digests[machine.version]),
        "created_at": rfc3339(machine.created_at),
        "updated_at": rfc3339(machine.updated_at),
        "cordoned": machine.cordoned,
    }
    if summary:
        return row
    return row | {
        **_config_json(machine),
        "events": [event_json(event) for event in reversed(machine.events[-20:])],
        "checks": [check_json(check) for check in machine.checks],
        "host_status": machine.host.status,
    }


def _config_json(machine: Machine) -> JSON:
    """Only a host that can be asked knows the whole config."""
    return {"config": machine.shown} if machine.host.up else {"incomplete_config": _slim(machine)}


def _slim(machine: Machine) -> JSON:
    """What Fly knows of a config without asking the host."""
    return {key: machine.shown[key] for key in ("guest", "image", "metadata") if key in machine.shown}


def old_version_json(machine: Machine, version: str) -> JSON:
    """A version that an update has replaced."""
    row = machine_json(machine)
    return row | {
        "state": "replaced",
        "version": version,
        "instance_id": version,
        **({"config": machine.versions[version]} if machine.host.up else {}),
        "image_ref": image_ref(machine.versions[version]["image"], machine.digests[version]),
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
    return row | {"config": _slim(machine)}


def event_json(event: Event) -> JSON:
    return {
        "id": event.id,
        "type": event.type,
        "status": event.status,
        "source": event.source,
        "timestamp": event.timestamp,
        "request": event.request,
    }


def check_json(check: CheckStatus) -> JSON:
    return {
        "name": check.name,
        "status": check.status,
        "output": check.output,
        "updated_at": rfc3339(check.updated_at),
    }


def lease_json(lease: Lease) -> JSON:
    return {
        "nonce": lease.nonce,
        "expires_at": lease.expires_at,
        "owner": lease.owner,
        "description": lease.description,
        "version": lease.version,
    }


def ip_json(assignment: IpAssignment) -> JSON:
    return {
        "ip": assignment.ip,
        "region": assignment.region,
        "service_name": assignment.service_name,
        "shared": assignment.type == "shared_v4",
        "network": assignment.network,
        "created_at": rfc3339(assignment.created_at),
    }


def secret_json(secret: Secret) -> JSON:
    return {
        "name": secret.name,
        "digest": secret.digest,
        "created_at": rfc3339(secret.created_at),
        "updated_at": rfc3339(secret.updated_at),
    }


GB = 1 << 30
_BLOCK = 4096


def volume_json(volume: Volume) -> JSON:
    total = volume.size_gb * GB
    taken = min(total, volume.usage if volume.usage is not None else volume.bytes_used)
    blocks, free = total // _BLOCK, (total - taken) // _BLOCK
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
        "blocks_free": free,
        "blocks_avail": free,
        "bytes_used": taken,
        "bytes_total": total,
        "fstype": volume.fstype,
        "snapshot_retention": volume.snapshot_retention,
        "auto_backup_enabled": volume.auto_backup_enabled,
        "host_status": volume.host.status,
        "host_dedication_key": "",
        "type": "local",
    }


def org_volume_json(volume: Volume) -> JSON:
    return volume_json(volume) | {"app_name": volume.app.name, "updated_at": rfc3339_fine(volume.updated_at)}


def snapshot_json(snapshot: Snapshot) -> JSON:
    """While it runs it has no size, and the zero time of Fly's language."""
    done = snapshot.created_at is not None
    return {
        "id": snapshot.id,
        "size": snapshot.size,
        "volume_size": snapshot.size_gb * GB,
        "digest": f"{hashlib.sha256(snapshot.id.encode()).hexdigest()[:32]}-1" if done else "",
        "status": snapshot.status,
        "created_at": rfc3339(snapshot.created_at) if snapshot.created_at is not None else "0001-01-01T00:00:00Z",
        "retention_days": snapshot.retention_days,
    }


def backup_json(snapshot: Snapshot) -> JSON:
    """The answer to the order of a snapshot: not the snapshot, but the job that makes it; `graph_id` is its id."""
    moment = rfc3339_fine(snapshot.asked_at)
    job = {
        "id": str(snapshot.number),
        "app_id": str(snapshot.app.number),
        "volume_id": snapshot.volume_id,
        "state": "prepare",
        "type": "BACKUP_TYPE_ON_DEMAND",
        "message": "",
        "created_at": moment,
        "updated_at": moment,
        "finished_at": None,
        "graph_id": snapshot.id,
    }
    return {"Msg": {"backup": job}}


def image_ref(image: str, digest: str) -> JSON:
    """An image reference in its parts, with its digest."""
    rest, at, _ = image.partition("@")
    first, slash, tail = rest.partition("/")
    registry, path = (first, tail) if slash and ("." in first or ":" in first) else ("registry-1.docker.io", rest)
    repository, _, tag = path.partition(":")
    if "/" not in repository:
        repository = f"library/{repository}"
    return {
        "registry": registry,
        "repository": repository,
        "tag": tag or ("" if at else "latest"),
        "digest": digest,
        "labels": {},
    }
