"""What we use of Fly's answers, as frozen records; parsed by hand at this wall.

By hand because cost does not decide (a row of an org's list: 3.3 µs here, 2.5 µs through pydantic into nested records
that would then have to be flattened) and flat records with a few plain functions read best. Each `parse_*` checks the
type of every field it takes and raises `Malformed` otherwise; fields that Fly adds are ignored. An answer that lacks
what it must have is never read as empty.

Times are RFC 3339 strings as Fly sent them; they order as Fly's clock does. Sizes are GiB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Json = Mapping[str, Any]

_VOLUME_GOING: Final = frozenset(
    {"scheduling_destroy", "fork_cleanup", "waiting_for_detach", "pending_destroy", "destroying", "destroyed"}
)
"""States of a volume that is deleted but still listed, for up to a week (fly-go hides the same ones)."""
_GIB: Final = 1 << 30
_NO_METADATA: Final[Mapping[str, str]] = {}


class Malformed(ValueError):
    """The answer does not have the documented shape: not Fly's, or cut short."""


@dataclass(frozen=True, slots=True)
class App:
    """An app; `network` is its private network, `status` Fly's word (pending, deployed, suspended)."""

    name: str
    org: str
    network: str
    status: str
    machine_count: int | None = None
    volume_count: int | None = None
    """Both None when not told, as after its creation. They lag behind: zero is no proof of an empty app."""


@dataclass(frozen=True, slots=True)
class Check:
    """A health check of a machine: passing, warning or critical, and what it said."""

    name: str
    status: str
    output: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How a machine's main process last ended. `code` is 0 when Fly leaves it out."""

    code: int
    signal: int | None
    oom_killed: bool
    requested: bool
    """Somebody asked for the stop. False during an update too, so False alone is no crash."""
    at: str

    def __str__(self) -> str:
        if self.oom_killed:
            return "killed: out of memory"
        return f"killed by signal {self.signal}" if self.signal else f"exited with code {self.code}"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as a GET, a list of its app, or a create or update of it tells."""

    app: str
    id: str
    name: str
    state: str
    region: str
    version: str
    private_ip: str
    image: str
    """As the config says it; `image_digest` is what Fly made of it (`sha256:…`, or empty)."""
    image_digest: str
    host_status: str
    """ok, unknown or unreachable; unless ok, what is told may be old and the config partial or missing."""
    metadata: Mapping[str, str]
    volume_id: str | None
    """The volume of the one mount; None also when there is no config to tell (`config` is None)."""
    last_exit: Exit | None
    created_at: str
    updated_at: str
    config: Json | None
    """None when the host can't be reached: a partial config must never be sent back."""
    cordoned: bool = False
    """Fly's proxy sends it no requests."""
    checks: tuple[Check, ...] = ()

    @property
    def exit_note(self) -> str:
        """The last exit in words, for a person; empty when there was none."""
        return "" if self.last_exit is None else str(self.last_exit)


@dataclass(frozen=True, slots=True)
class MachineRow:
    """A machine as the org's list tells it: no mounts, no services, no checks, no exits."""

    app: str
    id: str
    name: str
    state: str
    region: str
    version: str
    private_ip: str
    image: str
    metadata: Mapping[str, str]
    created_at: str
    updated_at: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. Names are not unique; `attached_machine_id` may lag behind and outlive its machine."""

    app: str
    id: str
    name: str
    state: str
    region: str
    size_gb: int
    attached_machine_id: str | None
    host_status: str
    created_at: str
    updated_at: str = ""
    """Only lists of an org tell it."""
    snapshot_retention: int | None = None
    """Days; this and the bytes of its file system are None when not told."""
    bytes_used: int | None = None
    bytes_total: int | None = None

    @property
    def deleted(self) -> bool:
        """Deleted, though still listed and readable."""
        return self.state in _VOLUME_GOING

    @property
    def host_ok(self) -> bool:
        """Its host can be reached; otherwise what is told may be old, and its data can't be reached either."""
        return self.host_status == "ok"


@dataclass(frozen=True, slots=True)
class Extended:
    """A volume that was grown; `needs_restart`: the file system follows at the machine's next restart only."""

    volume: Volume
    needs_restart: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a volume. `size` is what it takes, in bytes; the others are None when not told."""

    id: str
    """Empty while it is being taken."""
    status: str
    created_at: str
    size: int | None
    volume_size_gb: int | None
    """The size of the volume it was taken of: one restored from it can't be smaller."""
    retention_days: int | None


@dataclass(frozen=True, slots=True)
class Ip:
    """An address of an app; `kind` is the word that `assign_ip` takes, or `egress` for one of outgoing traffic."""

    address: str
    kind: str


@dataclass(frozen=True, slots=True)
class WaitResult:
    """A wait that ended in one of the states asked for; `version` is empty when Fly does not tell it."""

    state: str
    version: str


@dataclass(frozen=True, slots=True)
class MachinesPage:
    """One page of an org's machines. It may be short or empty while more remain: only `next_cursor` tells."""

    rows: tuple[MachineRow, ...]
    next_cursor: str
    last_updated_at: str
    error_regions: tuple[str, ...]
    """Regions that could not be read: their machines are unknown, not gone."""


@dataclass(frozen=True, slots=True)
class VolumesPage:
    """One page of an org's volumes; as above."""

    volumes: tuple[Volume, ...]
    next_cursor: str
    last_updated_at: str
    error_regions: tuple[str, ...]

    @property
    def rows(self) -> tuple[Volume, ...]:
        """The same, by the name that a page of machines has for its own."""
        return self.volumes


@dataclass(frozen=True, slots=True)
class AppsPage:
    """One page of an org's apps; as above."""

    apps: tuple[App, ...]
    next_cursor: str


def parse_app(data: Any, org: str = "") -> App:
    """An app; `org` is whose list it stands in, because rows of a list may leave that out."""
    return App(
        name=_must(data, "name"),
        org=org or _must(_maybe(data, "organization") or {}, "slug"),
        network=_text(data, "network"),
        status=_text(data, "status"),
        machine_count=_int(data, "machine_count"),
        volume_count=_int(data, "volume_count"),
    )


def parse_apps_page(org: str, data: Any) -> AppsPage:
    return AppsPage(
        tuple(parse_app(item, org) for item in _required_list(data, "apps")),
        _text(data, "next_cursor"),
    )


def parse_machine(app: str, data: Any) -> Machine:
    config = _maybe(data, "config")
    told = config if config is not None else _maybe(data, "incomplete_config") or {}
    image_ref = _maybe(data, "image_ref") or {}
    return Machine(
        app=app,
        id=_must(data, "id"),
        name=_text(data, "name"),
        state=_must(data, "state"),
        region=_text(data, "region"),
        version=_text(data, "version") or _text(data, "instance_id"),
        private_ip=_text(data, "private_ip"),
        image=_text(told, "image"),
        image_digest=_text(image_ref, "digest"),
        host_status=_text(data, "host_status") or ("ok" if config is not None else "unknown"),
        metadata=_metadata(told),
        volume_id=_volume_id(told),
        last_exit=_last_exit(_list(data, "events")),
        created_at=_text(data, "created_at"),
        updated_at=_text(data, "updated_at"),
        config=config,
        cordoned=data.get("cordoned") is True,
        checks=_checks(data),
    )


def parse_machines(app: str, data: Any) -> list[Machine]:
    return [parse_machine(app, item) for item in _array(data)]


def parse_volume(app: str, data: Any) -> Volume:
    size = _object(data).get("size_gb")
    if type(size) is not int:
        raise Malformed(f"size_gb is {size!r:.60}")
    return Volume(
        app=app or _text(data, "app_name"),
        id=_must(data, "id"),
        name=_text(data, "name"),
        state=_must(data, "state"),
        region=_text(data, "region"),
        size_gb=size,
        attached_machine_id=_text(data, "attached_machine_id") or None,
        host_status=_text(data, "host_status") or "ok",
        created_at=_text(data, "created_at"),
        updated_at=_text(data, "updated_at"),
        snapshot_retention=_int(data, "snapshot_retention"),
        bytes_used=_int(data, "bytes_used"),
        bytes_total=_int(data, "bytes_total"),
    )


def parse_volumes(app: str, data: Any) -> list[Volume]:
    return [parse_volume(app, item) for item in _array(data)]


def parse_machines_page(data: Any) -> MachinesPage:
    return MachinesPage(
        tuple([_row(item) for item in _required_list(data, "machines")]),
        _text(data, "next_cursor"),
        _text(data, "last_updated_at"),
        _regions(data),
    )


def parse_volumes_page(data: Any) -> VolumesPage:
    return VolumesPage(
        tuple([parse_volume("", item) for item in _required_list(data, "volumes")]),
        _text(data, "next_cursor"),
        _text(data, "last_updated_at"),
        _regions(data),
    )


def parse_wait(data: Any, states: tuple[str, ...]) -> WaitResult:
    """Every field of the answer is optional; asked for one state, that is the one."""
    told = _text(_object(data), "state")
    return WaitResult(told or (states[0] if len(states) == 1 else ""), _text(data, "version"))


def parse_secrets_version(data: Any) -> int:
    found = _object(data)
    version = found.get("version", found.get("Version"))
    if type(version) is not int:
        raise Malformed(f"version is {version!r:.60}")
    return version


def parse_extended(app: str, data: Any) -> Extended:
    return Extended(parse_volume(app, _object(data).get("volume")), data.get("needs_restart") is True)


def parse_snapshots(data: Any) -> list[Snapshot]:
    return [_snapshot(item) for item in _array(data)]


def parse_ips(data: Any) -> list[Ip]:
    return [_ip(item) for item in _required_list(data, "ips")]


def parse_secret_names(data: Any) -> list[str]:
    return [_must(item, "name") for item in _required_list(data, "secrets")]


def parse_placements(data: Any) -> dict[str, int]:
    """Region to count. The live API writes capital letters, its description small ones."""
    found = _lower(data)
    return {_must(row, "region"): _int(row, "count") or 0 for row in map(_lower, _required_list(found, "regions"))}


def row_of(machine: Machine) -> MachineRow:
    """A machine as the org's list would tell it."""
    return MachineRow(
        machine.app,
        machine.id,
        machine.name,
        machine.state,
        machine.region,
        machine.version,
        machine.private_ip,
        machine.image,
        machine.metadata,
        machine.created_at,
        machine.updated_at,
    )


def _row(data: Any) -> MachineRow:
    config = _maybe(data, "config") or {}
    return MachineRow(
        _must(data, "app_name"),
        _must(data, "id"),
        _text(data, "name"),
        _must(data, "state"),
        _text(data, "region"),
        _text(data, "version") or _text(data, "instance_id"),
        _text(data, "private_ip"),
        _text(config, "image"),
        _metadata(config),
        _text(data, "created_at"),
        _text(data, "updated_at"),
    )


def _object(data: Any) -> dict[str, Any]:
    if type(data) is dict:
        return data
    raise Malformed(f"an object was expected, not {data!r:.60}")


def _maybe(data: Any, key: str) -> dict[str, Any] | None:
    """An object, or None when it is absent or null."""
    value = _object(data).get(key)
    return None if value is None else _object(value)


def _array(data: Any) -> list[Any]:
    """An array; Go writes an empty one as null, which only a whole answer may be."""
    if data is None:
        return []
    if type(data) is list:
        return data
    raise Malformed(f"an array was expected, not {data!r:.60}")


def _list(data: Any, key: str) -> list[Any]:
    return _array(_object(data).get(key))


def _required_list(data: Any, key: str) -> list[Any]:
    """An array that may be empty or null but not left out: an unknown object is no empty list."""
    if key not in _object(data):
        raise Malformed(f"{key} is missing")
    return _list(data, key)


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if type(value) is str:
        return value
    if value is None:
        return ""
    raise Malformed(f"{key} is {value!r:.60}")


def _int(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is None or type(value) is int:
        return value
    raise Malformed(f"{key} is {value!r:.60}")


def _lower(data: Any) -> dict[str, Any]:
    return {key.lower(): value for key, value in _object(data).items()}


def _must(data: Any, key: str) -> str:
    value = _text(_object(data), key)
    if not value:
        raise Malformed(f"{key} is missing")
    return value


def _metadata(config: dict[str, Any]) -> Mapping[str, str]:
    found = config.get("metadata")
    if not found:
        return _NO_METADATA
    for value in _object(found).values():
        if type(value) is not str:
            raise Malformed(f"a value of metadata is {value!r:.60}")
    return found  # type: ignore[no-any-return]  # every value was just checked


def _regions(data: Any) -> tuple[str, ...]:
    return tuple(str(region) for region in _list(data, "error_regions"))


def _volume_id(config: dict[str, Any]) -> str | None:
    for mount in _list(config, "mounts"):
        if volume := _text(_object(mount), "volume"):
            return volume
    return None


def _checks(data: dict[str, Any]) -> tuple[Check, ...]:
    """Without those that Fly adds for its own sake during blue-green deployments (fly-go hides them too)."""
    told = [Check(_text(item, "name"), _text(item, "status"), _text(item, "output")) for item in _list(data, "checks")]
    return tuple(check for check in told if not check.name.startswith("bg_deployments_compat"))


def _snapshot(data: Any) -> Snapshot:
    volume_size = _int(_object(data), "volume_size")  # bytes, as flyctl reads it
    return Snapshot(
        id=_text(data, "id"),
        status=_text(data, "status"),
        created_at=_text(data, "created_at"),
        size=_int(data, "size"),
        volume_size_gb=-(-volume_size // _GIB) if volume_size else None,
        retention_days=_int(data, "retention_days"),
    )


def _ip(data: Any) -> Ip:
    address = _must(data, "ip")
    if data.get("egress") is True:
        return Ip(address, "egress")
    if ":" in address:
        return Ip(address, "private_v6" if address.startswith("fdaa:") else "v6")
    return Ip(address, "shared_v4" if data.get("shared") is True else "v4")


def _last_exit(events: list[Any]) -> Exit | None:
    """The newest exit: events come newest first. Its payload sits in `request`, sometimes one level deeper."""
    for event in events:
        if not isinstance(event, dict) or event.get("type") != "exit":
            continue
        request = event.get("request")
        request = request if isinstance(request, dict) else {}
        monitor = request.get("MonitorEvent")
        payload = request.get("exit_event", monitor.get("exit_event") if isinstance(monitor, dict) else None)
        if isinstance(payload, dict):
            return _exit(payload)
    return None


def _exit(payload: dict[str, Any]) -> Exit:
    """Forgiving: the payload is not in Fly's API description, and an exit is a note for people."""
    code, signal = payload.get("exit_code"), payload.get("signal")
    return Exit(
        code=code if type(code) is int else 0,
        signal=signal if type(signal) is int and signal > 0 else None,
        oom_killed=payload.get("oom_killed") is True,
        requested=payload.get("requested_stop") is True,
        at=str(payload.get("exited_at") or ""),
    )
