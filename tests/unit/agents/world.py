"""Fly as the planner may meet it, and the operator around the planner: both as values, on a clock of their own.

`Cloud` holds what exists at Fly. `Door` is the client that `actions.perform` calls: it never waits, it changes the
cloud, and a `Fate` says how the call ends. It is also the judge: a call that breaks one of the `RULES` raises `Broken`,
whatever the planner thinks of it; and `judge` looks at any state, however it came about.

`Life` is one Agent, its Fly and the operator's memory at one moment. Its functions do what the reconcile does, without
a queue: think, act, rest, crash. Being a value, it can be kept, compared and gone on with in several ways.
"""

import functools
import json
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from math import inf
from typing import Any

from roost.agents import fold, machine_config, plan, recovery, storage
from roost.agents.actions import perform
from roost.agents.names import derive
from roost.agents.reconcile import CALLS_PER_TURN, _remembered
from roost.agents.status import render
from roost.agents.view import (
    FINALIZER,
    Act,
    Action,
    AgentView,
    AskRoom,
    Beat,
    Declared,
    Place,
    ReleaseFinalizer,
    Settled,
    Source,
    Step,
    StoreFinalizer,
    Stuck,
    Wait,
    World,
)
from roost.api.agent import AgentSpec, Phase, Runtime
from roost.api.conditions import Reason
from roost.fly import errors
from roost.fly.types import App, Extended, Machine, MachineRow, Snapshot, Volume, WaitResult
from roost.secrets.state import Resolution

ORG = "acme"
SHARED_APP = "everyone"
OWNER, CLUSTER, ROOT = "owner-1", "cluster-1", b"i" * 32
ABSENCE = 90.0

BOOT, STOPPING, DYING, LINGER = 2.0, 1.0, 1.0, 3.0
LAG = 20.0
"""How far behind a list may be."""
LATE = 40.0
"""How long after its lost answer a call may still be carried out."""
YOUNG = 45.0
"""For how long a new thing may not be known everywhere. LATE and the longer of LAG and YOUNG stay below ABSENCE."""
TICK = 0.001
"""No alarm rings in the instant in which it is set."""
REFRESH = 15.0
"""How often the org's machines are listed."""
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


ENDS = {
    "stopping": "stopped",
    "suspending": "suspended",
    "destroying": "destroyed",
    "settling": "stopped",
}
"""How a state ends by itself; every other ends in `started`. (`settling`: an update that does not launch.)"""


RULES = {
    "S1": "at most one live machine and one current volume; none is made empty while the data is elsewhere",
    "S2": "nothing is changed before our finalizer is stored, nor is it released while anything of ours may exist",
    "S3": "nothing is destroyed that is not ours, or that a living Agent needs",
    "S4": "down only, machine, then volume, then app, each when the one before is gone; what is retained stays",
    "S5": "the spec is never written; observedGeneration follows the generation; Ready tells of what was last seen",
    "S8": "no call again and again without a rest",
    "TRUTH": "what is settled is so at Fly",
    "GOAL": "when nothing fails any more, the Agent gets to where it is declared to be",
}
"""The rules of the house; the last two are what the others are for."""


class Broken(AssertionError):
    """One of the `RULES` is broken."""

    def __init__(self, rule: str, what: str) -> None:
        assert rule in RULES, rule
        super().__init__(f"{rule}: {what}")
        self.rule = rule


class Fate(Enum):
    """How one call ends."""

    OK = "ok"
    LOST = "carried out, the answer is lost"
    LATE = "carried out long after its answer was given up"
    VAIN = "no answer, and nothing was done"
    NOT_YET = "refused: time will heal it"
    CAPACITY = "refused: no room in the region"
    HOST_FULL = "refused: no room on the host"
    QUOTA = "refused: the org's quota"
    INVALID = "refused: as it stands"
    UNAUTHORIZED = "refused: the token is not good"
    FORBIDDEN = "refused: not for this token"
    RATE_LIMITED = "refused: too many calls"
    CONFLICT = "refused: somebody else was quicker"
    EMPTY = "a list, empty by mistake"
    OLD = "a list, as things were some seconds ago"
    UNKNOWN = "404 for what is too young to be known everywhere"


# --- What exists at Fly ------------------------------------------------------------------------------------------


def of_name(volume: str, base: str) -> bool:
    """Whether a volume's name is one of those of the Agent whose first volume is called `base`."""
    return volume == base or volume.startswith((f"{base}_", f"{base[:22]}r"))


@dataclass(frozen=True, slots=True)
class FlyApp:
    name: str
    org: str
    ours: bool
    made_at: float
    gone_at: float = inf


@dataclass(frozen=True, slots=True)
class FlyMachine:
    id: str
    app: str
    name: str
    region: str
    state: str
    version: int
    metadata: tuple[tuple[str, str], ...]
    volume: str | None
    made_at: float
    config: str = "{}"
    due: float = inf
    """When the state it is in ends by itself."""
    gone_at: float = inf
    reachable: bool = True
    cut_off: bool = False
    """Its host was out of reach once: it may have a successor by now."""

    @property
    def mine(self) -> bool:
        return dict(self.metadata).get("roost_owner") == OWNER

    @property
    def alive(self) -> bool:
        return self.state != "destroyed"


@dataclass(frozen=True, slots=True)
class FlyVolume:
    id: str
    app: str
    name: str
    region: str
    size_gb: int
    made_at: float
    gone_at: float = inf
    data: str = ""
    """Whose data it holds: the id of the volume that a machine first wrote to; empty when nobody has."""
    retention: int = 5
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class FlySnapshot:
    id: str
    volume: str
    data: str
    made_at: float


@dataclass(frozen=True, slots=True)
class Pending:
    """A create on its way: Fly carries it out at `due`."""

    due: float
    what: FlyApp | FlyMachine | FlyVolume


@dataclass(frozen=True, slots=True)
class Cloud:
    """All of Fly at one moment."""

    apps: tuple[FlyApp, ...] = ()
    machines: tuple[FlyMachine, ...] = ()
    volumes: tuple[FlyVolume, ...] = ()
    secrets: frozenset[tuple[str, str]] = frozenset()
    snapshots: tuple[FlySnapshot, ...] = ()
    addresses: frozenset[tuple[str, str]] = frozenset()
    pending: tuple[Pending, ...] = ()
    made: int = 0
    moves: int = 0
    """Changes that were taken up, whenever they are carried out."""

    def app(self, name: str) -> FlyApp | None:
        return next((a for a in self.apps if a.name == name), None)

    def machine(self, machine_id: str) -> FlyMachine | None:
        return next((m for m in self.machines if m.id == machine_id), None)

    def volume(self, volume_id: str) -> FlyVolume | None:
        return next((v for v in self.volumes if v.id == volume_id), None)

    def my_machines(self) -> list[FlyMachine]:
        return [m for m in self.machines if m.mine and m.alive]

    def my_volumes(self, name: str) -> list[FlyVolume]:
        """All of an Agent's volumes that are there, the one before the current among them."""
        return [v for v in self.volumes if of_name(v.name, name) and v.gone_at == inf]

    def put(self, thing: FlyApp | FlyMachine | FlyVolume) -> "Cloud":
        match thing:
            case FlyApp():
                return replace(self, apps=(*(a for a in self.apps if a.name != thing.name), thing))
            case FlyMachine():
                return replace(self, machines=(*(m for m in self.machines if m.id != thing.id), thing))
            case FlyVolume():
                return replace(self, volumes=(*(v for v in self.volumes if v.id != thing.id), thing))

    def at(self, now: float) -> "Cloud":
        """The cloud after all that time alone has done until `now`."""
        cloud = self
        for sent in sorted((p for p in cloud.pending if p.due <= now), key=lambda p: p.due):
            cloud = replace(cloud, pending=tuple(p for p in cloud.pending if p is not sent))
            cloud = cloud._arrived(sent)
        for app in [a for a in cloud.apps if a.gone_at <= now]:
            cloud = replace(
                cloud,
                apps=tuple(a for a in cloud.apps if a.name != app.name),
                machines=tuple(m for m in cloud.machines if m.app != app.name),
                volumes=tuple(v for v in cloud.volumes if v.app != app.name),
                secrets=frozenset(s for s in cloud.secrets if s[0] != app.name),
            )
        for machine in [m for m in cloud.machines if m.due <= now and (m.reachable or m.state != "destroying")]:
            after = ENDS.get(machine.state, "started")
            gone = machine.due if after == "destroyed" else inf
            cloud = cloud.put(replace(machine, state=after, due=inf, gone_at=gone))
            volume = cloud.volume(machine.volume or "")
            if after == "started" and volume is not None and not volume.data:
                cloud = cloud.put(replace(volume, data=volume.id))
        return cloud

    def _arrived(self, sent: Pending) -> "Cloud":
        thing = replace(sent.what, made_at=sent.due)
        if isinstance(thing, FlyApp):
            return self if self.app(thing.name) else self.put(thing)
        if self.app(thing.app) is None:
            return self
        if isinstance(thing, FlyMachine):
            volume = self.volume(thing.volume or "")
            if volume is None or volume.gone_at < inf:
                return self
            if any(m.alive and m.volume == thing.volume for m in self.machines):
                return self
            thing = replace(thing, due=sent.due + BOOT)
        return made(self, thing)


def made(cloud: Cloud, thing: FlyApp | FlyMachine | FlyVolume) -> Cloud:
    """Puts a new thing of ours into the cloud, if the house allows it."""
    if isinstance(thing, FlyMachine):
        volume = cloud.volume(thing.volume or "")
        on_dead_hosts = {m.id for m in cloud.my_machines() if not m.reachable}
        if others := [m for m in cloud.my_machines() if m.id not in on_dead_hosts]:
            raise Broken("S1", f"a second machine is made beside {others[0].id}")
        if volume is not None and not volume.data and any(v.data for v in _relatives(cloud, volume)):
            raise Broken("S1", "a machine is made on an empty volume, and the Agent's data is elsewhere")
    if isinstance(thing, FlyVolume) and not thing.data:
        if any(v.name == thing.name for v in cloud.volumes):
            raise Broken("S1", "an empty volume is made although one of this Agent exists, or was lost")
        if any(v.data for v in _relatives(cloud, thing)):
            raise Broken("S1", "an empty volume is made, and the Agent has data")
    return cloud.put(thing)


def _relatives(cloud: Cloud, volume: FlyVolume) -> list[FlyVolume]:
    """The Agent's other volumes, those that are gone among them; a loss that a person accepted is forgotten."""
    mine = [v for v in cloud.volumes if v.name[:22] == volume.name[:22]]
    return [v for v in mine if v.id != volume.id and v.app == volume.app]


# --- The door to it ----------------------------------------------------------------------------------------------


_OWN_CONFLICT = frozenset({"create_machine", "update_machine", "patch_metadata"})
"""Calls that meet a conflict in their own way."""


class Door:
    """The Fly client of one call: what `actions.perform` asks for happens at once, or ends as `fate` says."""

    def __init__(
        self, cloud: Cloud, now: float, fate: Fate, *, held: bool, volume_name: str, leaving: bool, retained: bool
    ) -> None:
        self.cloud, self.now, self.fate = cloud.at(now), now, fate
        self._held, self._volume_name, self._leaving, self._retained = held, volume_name, leaving, retained

    # Apps

    async def create_app(self, name: str, org: str, network: str | None) -> App:
        self._change("create_app")
        if (there := self.cloud.app(name)) is not None:
            raise errors.NameTaken("create_app", 422, f"Name has already been taken ({there.name})")
        # One transaction at Fly: what was asked for before has been decided by now.
        self.cloud = replace(self.cloud, pending=tuple(p for p in self.cloud.pending if p.what.name != name))
        self._make("create_app", FlyApp(name, org, True, self.now))
        return App(name, org, network or "", "pending")

    async def get_app(self, name: str) -> App:
        self._read("get_app", name)
        app = self._app("get_app", name)
        if app.org != ORG:
            raise errors.Unauthorized("get_app", 403, "of another org")
        machines = sum(m.app == name and m.alive for m in self.cloud.machines)
        volumes = sum(v.app == name and v.gone_at == inf for v in self.cloud.volumes)
        return App(app.name, app.org, "", "deployed", machines, volumes)

    async def delete_app(self, name: str) -> None:
        self._change("delete_app", name)
        app = self._app("delete_app", name)
        if not app.ours or not self._leaving:
            raise Broken("S3", f"app {name} is not ours, or its Agent lives, and it is deleted")
        if self._retained:
            raise Broken("S4", f"app {name} is retained and deleted")
        if left := [m.id for m in self.cloud.machines if m.app == name and m.alive]:
            raise Broken("S4", f"app {name} is deleted and takes {left} along")
        # A volume of ours that nobody knew of may go this way: its machine is gone, and it is to go too.
        foreign = [v.id for v in self.cloud.volumes if v.app == name and not self._named(v) and v.gone_at == inf]
        if foreign:
            raise Broken("S3", f"app {name} is deleted and takes {foreign} along")
        self.cloud = self.cloud.put(replace(app, gone_at=min(app.gone_at, self.now + DYING)))
        self._answer("delete_app")

    async def set_secrets(self, app: str, values: Mapping[str, str | None]) -> int:
        self._change("set_secrets", app)
        self._app("set_secrets", app)
        gone = {(app, name) for name, value in values.items() if value is None}
        kept = {(app, name) for name, value in values.items() if value is not None}
        self.cloud = replace(self.cloud, secrets=(self.cloud.secrets - gone) | kept, moves=self.cloud.moves + 1)
        self._answer("set_secrets")
        return self.cloud.moves

    async def assign_ip(self, app: str, kind: str) -> None:
        self._change("assign_ip", app)
        self._app("assign_ip", app)
        addresses = self.cloud.addresses | {(app, kind)}
        self.cloud = replace(self.cloud, addresses=addresses, moves=self.cloud.moves + 1)
        self._answer("assign_ip")

    async def placements(self, org: str, regions: list[str], guest: Mapping[str, Any]) -> dict[str, int]:
        if self.fate is Fate.CAPACITY:
            return {}
        self._read("placements", "")
        return dict.fromkeys(["ams", "cdg"] if regions == ["eu"] else regions, 3)

    # Machines

    async def list_machines(self, app: str) -> list[Machine]:
        self._read("list_machines", app)
        self._app("list_machines", app)
        as_of = self._as_of()
        there = [m for m in self.cloud.machines if m.app == app and m.made_at <= as_of < m.gone_at]
        return [self._told(m if m.alive else replace(m, state="started")) for m in there]

    async def get_machine(self, app: str, machine_id: str) -> Machine:
        self._read("get_machine", app, machine_id)
        return self._told(self._machine("get_machine", machine_id))

    async def create_machine(
        self, app: str, name: str, region: str, config: Mapping[str, Any], *, min_secrets_version: int | None
    ) -> Machine:
        self._change("create_machine", app)
        self._app("create_machine", app)
        twin = next((m for m in self.cloud.machines if m.alive and m.app == app and m.name == name), None)
        if twin is not None:
            said = None if self.fate is Fate.CONFLICT else twin.id
            raise errors.AlreadyExists("create_machine", 409, "unique machine name violation", machine_id=said)
        volume_id = config["mounts"][0]["volume"]
        volume = self.cloud.volume(volume_id)
        if volume is None or volume.gone_at < inf:
            raise errors.VolumeMissing("create_machine", 400, "volume not found")
        if (holder := self._holder(volume_id)) is not None:
            raise errors.VolumeBound("create_machine", 412, "volume already claimed", machine_id=holder.id)
        if volume.region != region:
            raise Broken("S1", f"a machine in {region} for a volume in {volume.region}")
        machine = FlyMachine(
            id=f"m{self.cloud.made}",
            app=app,
            name=name,
            region=region,
            state="created",
            version=1,
            metadata=tuple(sorted(config["metadata"].items())),
            volume=volume_id,
            made_at=self.now,
            config=json.dumps(config, sort_keys=True),
            due=self.now + BOOT,
        )
        self._make("create_machine", machine)
        return self._told(machine)

    async def update_machine(
        self,
        app: str,
        machine_id: str,
        config: Mapping[str, Any],
        current_version: str,
        *,
        min_secrets_version: int | None,
        skip_launch: bool = False,
    ) -> Machine:
        self._change("update_machine", app, machine_id)
        machine = self._mine("update_machine", machine_id)
        if self.fate is Fate.CONFLICT or current_version != f"v{machine.version}":
            raise errors.Conflict("update_machine", 409, "machine_version mismatch", kind="version")
        if config["mounts"][0]["volume"] != machine.volume:
            raise Broken("S1", "an update puts another volume under the machine")
        machine = replace(
            machine,
            version=machine.version + 1,
            metadata=tuple(sorted(config["metadata"].items())),
            config=json.dumps(config, sort_keys=True),
            state="settling" if skip_launch else "replacing",
            due=self.now + BOOT,
        )
        self.cloud = replace(self.cloud.put(machine), moves=self.cloud.moves + 1)
        self._answer("update_machine")
        return self._told(machine)

    async def start_machine(self, app: str, machine_id: str) -> None:
        self._change("start_machine", app, machine_id)
        machine = self._mine("start_machine", machine_id)
        if machine.state not in ("stopped", "suspended", "failed", "started"):
            raise errors.NotYet("start_machine", 412, f"unable to start machine from current state: {machine.state}")
        self._move(replace(machine, state="starting", due=self.now + BOOT), "start_machine")

    async def stop_machine(self, app: str, machine_id: str, *, signal: str, timeout_seconds: int) -> None:
        self._change("stop_machine", app, machine_id)
        machine = self._mine("stop_machine", machine_id)
        if machine.state in ("started", "starting", "suspended"):
            machine = replace(machine, state="stopping", due=self.now + STOPPING)
        elif machine.state != "stopped":
            raise errors.NotYet("stop_machine", 412, f"unable to stop machine from current state: {machine.state}")
        self._move(machine, "stop_machine")

    async def suspend_machine(self, app: str, machine_id: str) -> None:
        self._change("suspend_machine", app, machine_id)
        machine = self._mine("suspend_machine", machine_id)
        if machine.state != "started":
            raise errors.NotYet("suspend_machine", 412, f"unable to suspend machine from state: {machine.state}")
        self._move(replace(machine, state="suspending", due=self.now + STOPPING), "suspend_machine")

    async def restart_machine(self, app: str, machine_id: str, *, timeout_seconds: int) -> None:
        self._change("restart_machine", app, machine_id)
        machine = self._mine("restart_machine", machine_id)
        self._move(replace(machine, state="restarting", due=self.now + BOOT), "restart_machine")

    async def patch_metadata(
        self, app: str, machine_id: str, metadata: Mapping[str, str | None], *, machine_version: str
    ) -> None:
        self._change("patch_metadata", app, machine_id)
        machine = self._mine("patch_metadata", machine_id)
        if self.fate is Fate.CONFLICT or machine_version != f"v{machine.version}":
            raise errors.Conflict("patch_metadata", 412, "machine_version does not match", kind="version")
        after = {k: v for k, v in (dict(machine.metadata) | dict(metadata)).items() if v is not None}
        self._move(replace(machine, metadata=tuple(sorted(after.items()))), "patch_metadata")

    async def delete_machine(self, app: str, machine_id: str, *, force: bool) -> None:
        self._change("delete_machine", app, machine_id)
        machine = self._mine("delete_machine", machine_id)
        volumes = self.cloud.my_volumes(self._volume_name)
        if not self._leaving and volumes and machine.volume == max(volumes, key=lambda v: v.made_at).id:
            raise Broken("S3", f"machine {machine_id} on the Agent's volume is destroyed, and the Agent lives")
        self._move(replace(machine, state="destroying", due=min(machine.due, self.now + DYING)), "delete_machine")

    async def wait_machine(
        self, app: str, machine_id: str, states: Iterable[str], *, version: str | None, timeout_seconds: int
    ) -> WaitResult:
        """Time passes here: until the machine is where it is wanted, or the wait is over."""
        self._read("wait_machine", app, machine_id)
        until = self.now + timeout_seconds
        for moment in (self.now, self._machine("wait_machine", machine_id).due, until):
            if moment <= until and self.fate is not Fate.NOT_YET:
                self.now, self.cloud = moment, self.cloud.at(moment)
                machine = self._machine("wait_machine", machine_id)
                if machine.state in states and (version is None or version == f"v{machine.version}"):
                    return WaitResult(machine.state, f"v{machine.version}")
        self.now, self.cloud = until, self.cloud.at(until)
        raise errors.NotYet("wait_machine", 408, "machine failed to reach desired state")

    # Volumes

    async def list_volumes(self, app: str) -> list[Volume]:
        self._read("list_volumes", app)
        self._app("list_volumes", app)
        as_of = self._as_of()
        return [self._seen(v, as_of) for v in self.cloud.volumes if v.app == app and v.made_at <= as_of]

    async def get_volume(self, app: str, volume_id: str) -> Volume:
        self._read("get_volume", app)
        self._app("get_volume", app)
        return self._seen(self._volume("get_volume", volume_id), self.now)

    async def create_volume(
        self,
        app: str,
        name: str,
        region: str,
        size_gb: int | None,
        *,
        snapshot_retention_days: int,
        snapshot_id: str | None = None,
        source_volume_id: str | None = None,
        compute: Mapping[str, Any],
    ) -> Volume:
        self._change("create_volume", app)
        self._app("create_volume", app)
        data, size = "", size_gb or 0
        if source_volume_id is not None:
            source = self._volume("create_volume", source_volume_id)
            if source.gone_at < inf or not source.reachable:
                raise errors.Invalid("create_volume", 400, "source volume can't be forked")
            data, size = source.data, source.size_gb
        if snapshot_id is not None:
            data = next(s.data for s in self.cloud.snapshots if s.id == snapshot_id) or snapshot_id
        volume = FlyVolume(
            f"vol_{self.cloud.made}", app, name, region, size, self.now, data=data, retention=snapshot_retention_days
        )
        self._make("create_volume", volume)
        return self._seen(volume, self.now)

    async def update_volume(self, app: str, volume_id: str, *, snapshot_retention_days: int) -> Volume:
        self._change("update_volume", app)
        volume = replace(self._my_volume("update_volume", volume_id), retention=snapshot_retention_days)
        self.cloud = replace(self.cloud.put(volume), moves=self.cloud.moves + 1)
        self._answer("update_volume")
        return self._seen(volume, self.now)

    async def list_snapshots(self, app: str, volume_id: str) -> list[Snapshot]:
        self._read("list_snapshots", app)
        return [_snapshot(s, self.now) for s in self.cloud.snapshots if s.volume == volume_id]

    async def create_snapshot(self, app: str, volume_id: str) -> None:
        self._change("create_snapshot", app)
        volume = self._volume("create_snapshot", volume_id)
        snapshot = FlySnapshot(f"vs_{self.cloud.made}", volume.id, volume.data, self.now)
        self.cloud = replace(
            self.cloud,
            snapshots=(*self.cloud.snapshots, snapshot),
            made=self.cloud.made + 1,
            moves=self.cloud.moves + 1,
        )
        self._answer("create_snapshot")

    async def extend_volume(self, app: str, volume_id: str, size_gb: int) -> Extended:
        self._change("extend_volume", app)
        volume = self._my_volume("extend_volume", volume_id)
        volume = replace(volume, size_gb=size_gb)
        self.cloud = replace(self.cloud.put(volume), moves=self.cloud.moves + 1)
        self._answer("extend_volume")
        return Extended(self._seen(volume, self.now), needs_restart=False)

    async def delete_volume(self, app: str, volume_id: str) -> None:
        self._change("delete_volume", app)
        self._app("delete_volume", app)
        volume = self._my_volume("delete_volume", volume_id)
        if self._leaving and self._retained:
            raise Broken("S4", f"volume {volume_id} is retained and deleted")
        if (holder := self._holder(volume_id)) is not None:
            raise errors.VolumeBound("delete_volume", 412, "volume is currently bound", machine_id=holder.id)
        if self._leaving and (mine := self.cloud.my_machines()):
            raise Broken("S4", f"volume {volume_id} is deleted before machine {mine[0].id} is gone")
        if not self._leaving and volume.data and self.now - self._follower(volume).made_at < 7 * 86_400:
            raise Broken("S3", f"volume {volume_id} with the Agent's data is deleted")
        self.cloud = self.cloud.put(replace(volume, gone_at=min(volume.gone_at, self.now)))
        self._answer("delete_volume")

    def _follower(self, volume: FlyVolume) -> FlyVolume:
        """The Agent's newest volume."""
        mine = [v for v in self.cloud.my_volumes(self._volume_name) if v.app == volume.app]
        return max(mine, key=lambda v: v.made_at)

    def _named(self, volume: FlyVolume) -> bool:
        return of_name(volume.name, self._volume_name)

    # How calls end

    def _change(self, op: str, app: str = "", machine: str = "") -> None:
        """The start of a call that changes something."""
        if not self._held:
            raise Broken("S2", f"{op} before our finalizer is stored")
        if self.fate is Fate.VAIN:
            raise errors.Ambiguous(op, 500, "internal")
        self._refuse(op, app, machine)

    def _read(self, op: str, app: str, machine: str = "") -> None:
        if self.fate in (Fate.VAIN, Fate.LOST, Fate.LATE):
            raise errors.Unavailable(op, 500, "internal")
        self._refuse(op, app, machine)

    def _refuse(self, op: str, app: str, machine: str) -> None:
        match self.fate:
            case Fate.NOT_YET if op != "wait_machine":
                raise errors.NotYet(op, 412, "min_secrets_version not yet available")
            case Fate.CAPACITY:
                raise errors.Capacity(op, 422, "could not find a candidate host", scope="region")
            case Fate.HOST_FULL:
                raise errors.Capacity(op, 412, "insufficient resources", scope="host")
            case Fate.QUOTA:
                raise errors.Capacity(op, 403, "over the allowed quota", scope="quota")
            case Fate.INVALID:
                raise errors.Invalid(op, 400, "invalid_argument")
            case Fate.UNAUTHORIZED:
                raise errors.Unauthorized(op, 401, "token validation error")
            case Fate.FORBIDDEN:
                raise errors.Unauthorized(op, 403, "not authorized to access this resource")
            case Fate.RATE_LIMITED:
                raise errors.RateLimited(op, 429, "rate limit exceeded", retry_after=2.0)
            case Fate.CONFLICT if op not in _OWN_CONFLICT:
                raise errors.Conflict(op, 409, "lease currently held by somebody else", kind="lease")
            case Fate.UNKNOWN:
                found = self.cloud.machine(machine) if machine else self.cloud.app(app)
                if found is not None and self.now - found.made_at < YOUNG:
                    raise errors.NotFound(op, 404, "not found")

    def _answer(self, op: str) -> None:
        """The end of a change that was carried out."""
        if self.fate in (Fate.LOST, Fate.LATE):
            raise errors.Ambiguous(op, 0, "no answer within 60 s")

    def _make(self, op: str, thing: FlyApp | FlyMachine | FlyVolume) -> None:
        if self._leaving:
            raise Broken("S4", f"{op} while the Agent leaves")
        self.cloud = replace(self.cloud, made=self.cloud.made + 1, moves=self.cloud.moves + 1)
        if self.fate is Fate.LATE:
            self.cloud = replace(self.cloud, pending=(*self.cloud.pending, Pending(self.now + LATE, thing)))
        else:
            self.cloud = made(self.cloud, thing)
        self._answer(op)

    def _move(self, machine: FlyMachine, op: str) -> None:
        self.cloud = replace(self.cloud.put(machine), moves=self.cloud.moves + 1)
        self._answer(op)

    # What is found

    def _app(self, op: str, name: str) -> FlyApp:
        if (app := self.cloud.app(name)) is None:
            raise errors.NotFound(op, 404, f'Could not find App "{name}"')
        return app

    def _machine(self, op: str, machine_id: str) -> FlyMachine:
        if (machine := self.cloud.machine(machine_id)) is None:
            raise errors.NotFound(op, 404, "machine not found")
        return machine

    def _mine(self, op: str, machine_id: str) -> FlyMachine:
        """The machine of a change: it must be ours, and there."""
        machine = self._machine(op, machine_id)
        if not machine.mine:
            raise Broken("S3", f"{op}: machine {machine_id} is not ours")
        if not machine.alive:
            raise errors.NotFound(op, 404, "machine not found")
        return machine

    def _volume(self, op: str, volume_id: str) -> FlyVolume:
        if (volume := self.cloud.volume(volume_id)) is None:
            raise errors.NotFound(op, 404, "volume not found")
        return volume

    def _my_volume(self, op: str, volume_id: str) -> FlyVolume:
        volume = self._volume(op, volume_id)
        if not self._named(volume):
            raise Broken("S3", f"{op}: volume {volume_id} is not ours")
        return volume

    def _holder(self, volume_id: str) -> FlyMachine | None:
        """The machine that holds a volume; for some seconds after it is gone, too."""
        held = (m for m in self.cloud.machines if m.volume == volume_id and self.now < m.gone_at + LINGER)
        return next(held, None)

    def _as_of(self) -> float:
        return -1.0 if self.fate is Fate.EMPTY else self.now - LAG if self.fate is Fate.OLD else self.now

    def _told(self, machine: FlyMachine) -> Machine:
        return Machine(
            app=machine.app,
            id=machine.id,
            name=machine.name,
            state=machine.state,
            region=machine.region,
            version=f"v{machine.version}",
            private_ip="fdaa::1",
            image="image",
            image_digest="",
            host_status="ok" if machine.reachable else "unreachable",
            metadata=dict(machine.metadata) if machine.reachable else {},
            volume_id=machine.volume if machine.reachable else None,
            last_exit=None,
            created_at="",
            updated_at=f"{self.now:012.1f}",
            config=json.loads(machine.config) if machine.reachable else None,
        )

    def _seen(self, volume: FlyVolume, as_of: float) -> Volume:
        return Volume(
            app=volume.app,
            id=volume.id,
            name=volume.name,
            state="created" if as_of < volume.gone_at else "pending_destroy",
            region=volume.region,
            size_gb=volume.size_gb,
            attached_machine_id=next((m.id for m in self.cloud.machines if m.alive and m.volume == volume.id), None),
            host_status="ok" if volume.reachable else "unreachable",
            created_at=wall(volume.made_at),
            snapshot_retention=volume.retention,
        )


def _snapshot(snapshot: FlySnapshot, now: float) -> Snapshot:
    done = now - snapshot.made_at >= 3.0
    return Snapshot(
        snapshot.id if done else "", "created" if done else "running", wall(snapshot.made_at), None, None, None
    )


# --- One Agent and its operator ----------------------------------------------------------------------------------


@functools.cache
def names_of(name: str) -> Any:
    return derive(ROOT, OWNER, "team", name)


def spec(**fields: Any) -> AgentSpec:
    """The spec of an Agent that runs a command, with these blocks set: `spec(fly={"app_strategy": "Shared"})`."""
    return AgentSpec(**{"runtime": Runtime(kind="Command", command=("agent",))} | fields)


def declared(wanted: AgentSpec | None = None, name: str = "ada") -> Declared:
    return Declared(
        namespace="team",
        name=name,
        uid="uid-1",
        generation=1,
        resource_version="1",
        finalizers=(),
        deleting=False,
        annotations={},
        labels={},
        spec=wanted or spec(),
    )


RESOLVED = Resolution(known=True)


@dataclass(frozen=True, slots=True)
class Life:
    """All there is at one moment. `turn` holds what this turn has done so far, and whether it went well."""

    declared: Declared
    now: float = 1000.0
    cloud: Cloud = field(default_factory=Cloud)
    status: Mapping[str, Any] = field(default_factory=dict)
    world: World = field(default_factory=lambda: World(quiet_since=900.0))
    started_at: float = 900.0
    failures: int = 0
    turn: tuple[tuple[Action, bool], ...] = ()
    released: bool = False
    began: int = 0
    """How many changes there had been at Fly when this object was made."""
    talks: bool = True
    """The agent in a started machine sends heartbeats."""
    hushed_at: float | None = None
    """Since when it sends no more, after it did."""
    secrets: Resolution = RESOLVED
    revision: str | None = "revision-1"
    regions: tuple[str, ...] = ("iad",)
    room: tuple[tuple[str, tuple[str, ...] | None, float], ...] = ()
    """What Fly said about room, and when."""
    source: Source | None = None
    adopt_from: str = ""
    cluster: str = CLUSTER
    image: str = "image"
    endpoint: str = "https://roost"
    may_roll: bool = True
    endpoint_suspect: bool = False
    nudged_at: float = -inf
    says: Mapping[str, Any] = field(default_factory=dict)
    """What its heartbeats say beside that all is well."""

    @property
    def held(self) -> bool:
        return FINALIZER in self.declared.finalizers


def view(life: Life) -> AgentView:
    """What the planner may know, as the reconcile gathers it."""
    d, status = life.declared, life.status
    names, pinned = names_of(d.name), status.get("app") or {}
    beat, heard_world = _beat(life), life.world
    if beat is not None:
        heard_world = fold.heard(heard_world, beat.machine_id, life.now - beat.age, life.now)
    app = pinned.get("name") or d.spec.fly.app or names.app
    shared = d.spec.fly.app_strategy == "Shared"
    return AgentView(
        now=life.now,
        wall=EPOCH.timestamp() + life.now,
        declared=d,
        remembered=_remembered(status, life.now, EPOCH.timestamp() + life.now),
        names=names,
        place=Place(
            app=app,
            org=pinned.get("org") or ORG,
            network=None if shared else app,
            regions=life.regions,
            image=d.spec.machine.image or life.image,
            endpoint_url=life.endpoint,
            credential="default",
        ),
        owner_id=OWNER,
        cluster=life.cluster,
        token_root="root-1",
        token_root_changed=False,
        world=heard_world,
        secrets=life.secrets,
        bundle_revision=life.revision,
        beat=beat,
        listening_since=life.started_at,
        swept=True,
        absence_seconds=ABSENCE,
        room={region: found for region, found, at in life.room if life.now - at < 60.0},
        source=life.source,
        adopt_from=life.adopt_from,
        may_roll=life.may_roll,
        endpoint_suspect=life.endpoint_suspect,
        nudged_at=life.nudged_at,
        listing_note="",
    )


def _beat(life: Life) -> Beat | None:
    talking = [m for m in life.cloud.machines if m.mine and m.reachable and m.state == "started"]
    if not talking or not life.talks:
        return None
    machine = max(talking, key=lambda m: m.made_at)
    told: dict[str, Any] = {
        "machine_id": machine.id,
        "machine_version": f"v{machine.version}",
        "age": 0.0 if life.hushed_at is None else life.now - life.hushed_at,
        "ready": True,
        "status": "running",
        "boot_phase": "done",
        "bundle_revision": life.revision,
        "restarts": 0,
        "supervisor_version": "0.1.0",
        "runtime_version": None,
        "last_exit": "",
        "degraded": (),
    }
    return Beat(**told | dict(life.says))


def wall(now: float) -> str:
    return (EPOCH + timedelta(seconds=now)).strftime("%Y-%m-%dT%H:%M:%SZ")


def think(life: Life) -> Step:
    """What the planner wants now. Thinking twice gives the same."""
    return plan.step(view(life))


def act(life: Life, step: Act, fate: Fate = Fate.OK) -> tuple[Life, Wait | Stuck | None]:
    """Performs the action, and folds what came of it; a rest when the turn ends with it."""
    action = step.action
    if isinstance(action, StoreFinalizer | ReleaseFinalizer):
        again = Wait(step.phase, Reason.WAITING_FOR_FLY, step.say)
        return _finalizer(life, action, fate), None if fate is Fate.OK else again
    seen = view(life)
    door = Door(
        life.cloud,
        life.now,
        fate,
        held=life.held,
        volume_name=seen.names.volume,
        leaving=life.declared.deleting,
        retained=life.declared.spec.deletion_policy == "Retain",
    )
    try:
        answer = _now(perform(door, seen, action, "the-token"))  # type: ignore[arg-type]
    except errors.FlyError as error:
        if isinstance(action, AskRoom):
            return replace(life, room=(*life.room, (action.region, None, life.now))), None
        world = fold.failed(seen.world, action, error, door.now)
        life = _went(life, door, world, action, well=False)
        if world.failure is None:
            return life, None
        return life, plan.after_failure(view(life))
    if isinstance(action, AskRoom):
        life = replace(life, room=(*life.room, (action.region, tuple(answer), life.now)))
    world = fold.answered(seen.world, action, answer, door.now, recovery.attempts(seen))
    return _went(life, door, world, action, well=True), None


def _went(life: Life, door: Door, world: World, action: Action, *, well: bool) -> Life:
    """After a call; what was asked and answered in this turn is looked at for calls that go in circles."""
    waited = door.now > life.now
    turn = () if waited else (*life.turn, (action, well))
    if turn.count((action, False)) > 1:
        raise Broken("S8", f"hot loop: {action} fails again and again without a rest")
    if turn.count((action, True)) > 2:
        raise Broken("S8", f"hot loop: {action} again and again without a rest")
    if len(turn) > CALLS_PER_TURN:
        raise Broken("S8", "a turn that does not end")
    return replace(life, now=door.now, cloud=door.cloud, world=world, turn=turn)


def _finalizer(life: Life, action: StoreFinalizer | ReleaseFinalizer, fate: Fate) -> Life:
    """Stored or released at the API server; `VAIN` is a conflict, `LOST` an answer that did not come."""
    if fate is Fate.VAIN:
        return life
    if isinstance(action, ReleaseFinalizer):
        judge_release(life)
        return replace(life, declared=replace(life.declared, finalizers=()), released=True)
    world = life.world
    if fate is Fate.OK and not life.status.get("app"):
        world = replace(world, quiet_since=None)
    return replace(life, declared=replace(life.declared, finalizers=(FINALIZER,)), world=world)


def judge_release(life: Life) -> None:
    """Nothing of ours may be left, or still be on its way, when our finalizer goes."""
    cloud, names = life.cloud.at(life.now), names_of(life.declared.name)
    retained = life.declared.spec.deletion_policy == "Retain"
    if mine := cloud.my_machines():
        raise Broken("S2", f"the finalizer is released and machine {mine[0].id} lives on")
    later = cloud.at(life.now + 2 * ABSENCE)
    if mine := later.my_machines():
        raise Broken("S2", f"the finalizer is released and machine {mine[0].id} is on its way")
    if retained:
        return
    kept = {word.strip() for word in life.declared.annotations.get("roost.dev/forget", "").split(",")}
    if volumes := [v for v in later.my_volumes(names.volume) if v.id not in kept]:
        raise Broken("S2", f"the finalizer is released and volume {volumes[0].id} is left")
    # A create of the app that is carried out after its deletion leaves an empty name behind, and nothing in it.
    deleted = life.world.app_delete_accepted
    if [a for a in later.apps if a.ours and not deleted and not kept - {""}]:
        raise Broken("S2", "the finalizer is released and the app is left")


def rest(life: Life, step: Step, *, told: bool = True) -> Life:
    """Writes the status (a mere wait may go untold) and sleeps until the next look."""
    assert not isinstance(step, Act)
    status = life.status
    if told or not isinstance(step, Wait):
        status = render(view(life), step, life.status, wall(life.now))
        judge_status(life, status, step)
    backoff = isinstance(step, Wait) and step.after is None
    seconds = min(300.0, 0.25 * 2**life.failures) if backoff else step.after
    assert seconds is not None
    if seconds <= 0:
        raise Broken("S8", f"a rest of {seconds} s")
    now, world = life.now + max(seconds, TICK), view(life).world
    failures = life.failures + 1 if backoff else 0
    return replace(life, now=now, cloud=life.cloud.at(now), world=world, status=status, failures=failures, turn=())


def judge_settled(life: Life, step: Settled) -> None:
    """Settled means: Fly holds what is declared."""
    cloud = life.cloud.at(life.now)
    up = [m for m in cloud.my_machines() if m.state not in ("stopped", "suspended", "failed")]
    if step.phase in (Phase.STOPPED, Phase.REVOKED, Phase.SUSPENDED) and up:
        raise Broken("TRUTH", f"{step.phase} is said, and machine {up[0].id} is {up[0].state}")
    if step.phase is Phase.RUNNING:
        current = storage.current(view(life))
        if [m.state for m in up if m.reachable] != ["started"] or current is None or up[0].volume != current.id:
            raise Broken("TRUTH", f"Running is said of {cloud.my_machines()} and {cloud.volumes}")
        told = dict(up[0].metadata)
        if told["roost_config_hash"] != machine_config.config_hash(view(life), up[0].volume or ""):
            raise Broken("TRUTH", "Running is said, and the machine is not as declared")
        _judge_token(life, cloud, up[0])


def _judge_token(life: Life, cloud: Cloud, machine: FlyMachine) -> None:
    """A machine was given the token of the declared epoch; or it proves itself, and none is stored."""
    identity, told = life.declared.spec.identity, dict(machine.metadata)
    proves = identity.bootstrap == "FlyOidc"
    if told["roost_token_epoch"] != ("oidc" if proves else str(identity.token_epoch)):
        raise Broken("TRUTH", f"Running is said, and of its token the machine says {told['roost_token_epoch']}")
    if (json.loads(machine.config)["env"].get("ROOST_BOOTSTRAP") == "FlyOidc") != proves:
        raise Broken("TRUTH", "Running is said, and the machine does not know where it has its token from")
    if ((machine.app, machine_config.token_secret(view(life))) in cloud.secrets) == proves:
        raise Broken("TRUTH", f"Running is said with bootstrap {identity.bootstrap}, and stored is {cloud.secrets}")


def judge_status(life: Life, status: Mapping[str, Any], step: Step) -> None:
    """What is about to be written: no condition against another, no generation out of turn, no Ready unseen."""
    said = {c["type"]: c for c in status["conditions"]}
    if said["Reconciling"]["status"] == said["Stalled"]["status"] == "True":
        raise Broken("S5", "Reconciling and Stalled at once")
    before = life.status.get("observedGeneration", -1)
    if not before <= status["observedGeneration"] <= life.declared.generation:
        raise Broken("S5", "observedGeneration passes the generation, or goes back")
    if said["Ready"]["status"] != "True" or not isinstance(step, Settled) or life.declared.paused:
        return
    if said["Ready"]["observedGeneration"] != life.declared.generation:
        raise Broken("S5", "Ready is said of another generation than the declared one")
    seen = view(life)
    up = [m for m in seen.ours() if m.state == "started"]
    if step.phase in (Phase.RUNNING, Phase.DEGRADED):
        heard = seen.beat is not None and seen.beat.ready and seen.beat.age <= seen.silence_window
        if not heard or all(m.suspect or m.id != seen.beat.machine_id for m in up):
            raise Broken("S5", "Ready is said of an agent that was neither seen to run nor heard")
    elif [m for m in up if not m.suspect]:
        raise Broken("S5", f"{step.phase} is said as Ready, and its machine was last seen to run")


def judge(life: Life, start: Life) -> None:
    """S1 to S5 of one state of a life that began as `start`, whatever has led to it."""
    cloud, d, names = life.cloud.at(life.now), life.declared, names_of(life.declared.name)
    up = [m for m in cloud.my_machines() if not m.cut_off]
    if len(up) > 1:
        raise Broken("S1", f"machines {[m.id for m in up]} live at once")
    numbers = [names.serial(v.name) for v in cloud.my_volumes(names.volume)]
    if len(set(numbers)) < len(numbers):
        raise Broken("S1", f"volumes {numbers} are there, and one of them twice")
    if not life.held and not life.released and cloud.moves > life.began:
        raise Broken("S2", "something was changed, and our finalizer is not stored")
    if life.released and d.deleting:
        judge_release(life)
    theirs = {(m.id, m.state) for m in start.cloud.machines if not m.mine}
    if not theirs <= {(m.id, m.state) for m in cloud.machines}:
        raise Broken("S3", "somebody else's machine is gone, or no longer as it was")
    others = {v.id for v in start.cloud.volumes if names.serial(v.name) is None}
    if not others <= {v.id for v in cloud.volumes if v.gone_at == inf}:
        raise Broken("S3", "somebody else's volume is gone")
    if d.deleting:
        _judge_order(life, cloud, start)
    if not life.status.get("observedGeneration", 0) <= d.generation:
        raise Broken("S5", "observedGeneration passes the generation")


def _judge_order(life: Life, cloud: Cloud, start: Life) -> None:
    """S4: what a deletion may have taken so far."""
    volume = names_of(life.declared.name).volume
    there = {v.id for v in cloud.my_volumes(volume)}
    for machine in cloud.my_machines():
        if machine.volume not in there:
            raise Broken("S4", f"volume {machine.volume} is gone before its machine {machine.id}")
    if life.declared.spec.deletion_policy == "Retain":
        apps = {a.name for a in cloud.apps if a.gone_at == inf}
        if (
            not {v.id for v in start.cloud.my_volumes(volume)} <= there
            or not {a.name for a in start.cloud.apps} <= apps
        ):
            raise Broken("S4", "what is retained is gone")


def reached(life: Life, step: Step | None) -> bool:
    """GOAL: whether this is where the declaration leads, when the planner rests on `step`."""
    d = life.declared
    if life.released or d.deleting:
        return life.released
    if not isinstance(step, Settled):
        return False
    if step.reason is Reason.IDLE or d.paused:
        return (step.reason is Reason.IDLE) == d.wants_running
    wanted = (Phase.REVOKED,) if d.revoked else _GOALS[d.spec.desired_state]
    return step.phase in wanted


_GOALS = {
    "Running": (Phase.RUNNING,),
    "Stopped": (Phase.STOPPED,),
    "Suspended": (Phase.SUSPENDED, Phase.STOPPED),  # one that was stopped already has nothing to keep in memory
}


def crash(life: Life, *, keep_status: bool = True) -> Life:
    """The operator dies and another begins: its memory is lost, and with `keep_status=False` the status too."""
    return replace(
        life,
        world=World(quiet_since=life.now),
        started_at=life.now,
        status=life.status if keep_status else {},
        room=(),
        failures=0,
        turn=(),
    )


def edit(life: Life, **changes: Any) -> Life:
    """The user changes the spec: a new generation, looked at at once. `edit(life, machine={"memory_mb": 2048})`."""
    d = life.declared
    wanted = AgentSpec(**_merged(d.spec.model_dump(), changes))
    return replace(life, declared=replace(d, spec=wanted, generation=d.generation + 1), turn=(), failures=0)


def _merged(whole: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    return whole | {k: _merged(whole[k] or {}, v) if isinstance(v, dict) else v for k, v in part.items()}


def delete(life: Life) -> Life:
    """`kubectl delete`: without finalizers the object is gone at once."""
    d = life.declared
    if not d.finalizers:
        return replace(life, released=True)
    return replace(life, declared=replace(d, deleting=True, generation=d.generation + 1), turn=(), failures=0)


def apply_again(life: Life, uid: str, wanted: AgentSpec | None = None) -> Life:
    """An Agent of the same name, after the one before is gone: a new object, a new memory."""
    assert life.released
    cloud = life.cloud.at(life.now)
    return replace(
        life,
        cloud=replace(
            cloud,
            machines=tuple(m for m in cloud.machines if m.alive),
            volumes=tuple(v for v in cloud.volumes if v.gone_at == inf),
        ),
        declared=replace(declared(wanted, life.declared.name), uid=uid),
        status={},
        world=World(quiet_since=life.started_at),
        released=False,
        began=cloud.moves,
        failures=0,
        turn=(),
    )


# --- What happens at Fly by itself, or by somebody's hand ---------------------------------------------------------


def _of_mine(life: Life, **changes: Any) -> Life:
    """The same life with our machine changed, if there is one."""
    cloud = life.cloud.at(life.now)
    for machine in cloud.my_machines():
        cloud = cloud.put(replace(machine, due=inf, **changes))
    return replace(life, cloud=cloud, turn=())


def machine_stops(life: Life) -> Life:
    """Its main process ends."""
    return _of_mine(life, state="stopped")


def machine_destroyed(life: Life) -> Life:
    """`fly machine destroy`, by hand."""
    return _of_mine(life, state="destroyed", gone_at=life.now)


def machine_forgotten(life: Life) -> Life:
    """Destroyed so long ago that Fly no longer knows it."""
    cloud = life.cloud.at(life.now)
    return replace(life, cloud=replace(cloud, machines=tuple(m for m in cloud.machines if not m.mine)))


def volume_lost(life: Life) -> Life:
    """A host is lost, and machine and volume with it."""
    life = machine_destroyed(life)
    mine = names_of(life.declared.name).volume
    there = life.cloud.my_volumes(mine)
    volumes = tuple(replace(v, gone_at=min(v.gone_at, life.now)) if v in there else v for v in life.cloud.volumes)
    return replace(life, cloud=replace(life.cloud, volumes=volumes))


def host_dies(life: Life) -> Life:
    """The host of the Agent's volume is out of reach, and the machine on it with it."""
    cloud, mine = life.cloud.at(life.now), names_of(life.declared.name).volume
    for volume in cloud.my_volumes(mine):
        cloud = cloud.put(replace(volume, reachable=False))
    for machine in cloud.my_machines():
        cloud = cloud.put(replace(machine, reachable=False, cut_off=True))
    return replace(life, cloud=cloud)


def host_returns(life: Life) -> Life:
    """What was out of reach is back as it was; what was ordered meanwhile happens now."""
    cloud = life.cloud.at(life.now)
    for volume in cloud.volumes:
        cloud = cloud.put(replace(volume, reachable=True))
    for machine in cloud.machines:
        cloud = cloud.put(replace(machine, reachable=True))
    return replace(life, cloud=cloud)


def snapshot(life: Life) -> Life:
    """Fly's daily snapshot of the Agent's volumes."""
    cloud = life.cloud.at(life.now)
    for volume in cloud.my_volumes(names_of(life.declared.name).volume):
        taken = FlySnapshot(f"vs_{cloud.made}", volume.id, volume.data, life.now)
        cloud = replace(cloud, snapshots=(*cloud.snapshots, taken), made=cloud.made + 1)
    return replace(life, cloud=cloud)


def annotate(life: Life, **annotations: str) -> Life:
    """`kubectl annotate agent ada roost.dev/…=…`; dashes are written as underscores."""
    d = life.declared
    new = {f"roost.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return replace(life, declared=replace(d, annotations={**d.annotations, **new}), turn=(), failures=0)


def everyone() -> Cloud:
    """A shared app in which somebody else lives already."""
    return Cloud(
        apps=(FlyApp(SHARED_APP, ORG, False, 0.0),),
        machines=(
            FlyMachine("theirs", SHARED_APP, "other", "iad", "started", 1, (("roost_owner", "x"),), "vol_theirs", 0.0),
        ),
        volumes=(FlyVolume("vol_theirs", SHARED_APP, "other", "iad", 1, 0.0),),
    )


def shared(**fields: Any) -> Life:
    """An Agent that is to live in the shared app."""
    return Life(declared(spec(fly={"app_strategy": "Shared", "app": SHARED_APP}, **fields)), cloud=everyone())


def sweep(life: Life, *, full: bool = True, lag: float = 0.0) -> Life:
    """The list of the org's machines, as the refresher hands it over: ours by their metadata."""
    cloud, world, as_of = life.cloud.at(life.now), life.world, life.now - lag
    listed = [m for m in cloud.machines if m.made_at <= as_of and (m.alive or not full)]
    for m in listed:
        if m.mine:
            row = MachineRow(
                m.app,
                m.id,
                m.name,
                m.state,
                m.region,
                f"v{m.version}",
                "fdaa::1",
                "image",
                dict(m.metadata),
                "",
                f"{as_of:012.1f}",
            )
            world = fold.row_seen(world, row, life.now)
    if full:
        for sight in world.machines or ():
            if sight.id not in {m.id for m in listed}:
                world = fold.row_missing(world, sight.id)
    return replace(life, world=world)


def _now(call: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


# --- Telling a story ---------------------------------------------------------------------------------------------


class Story:
    """A life that goes on. `calls` holds the names of what was done; `fates` says how the n-th of a kind ends."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.calls: list[str] = []
        self.actions: list[Action] = []
        self.began: list[float] = []
        self.fates: dict[tuple[str, int], Fate] = {}
        self.rests: list[Step] = []

    def when(self, call: str, fate: Fate, *nth: int) -> "Story":
        """The n-th calls of this kind from now on (the first, when not said) end like this."""
        done = self.calls.count(call)
        for n in nth or (1,):
            self.fates[call, done + n] = fate
        return self

    def step(self) -> Step:
        """One thing: a call, and the rest that its failure brings, or a rest."""
        step = think(self.life)
        ended = self._call(step) if isinstance(step, Act) else step
        if ended is None or self.life.released:
            return step
        self.rests.append(ended)
        self.life = rest(self.life, ended)
        return ended

    def run(self, seconds: float = 3600.0) -> Step:
        """Until it is settled or stuck, or the Agent is gone; for so long at most."""
        end = self.life.now + seconds
        while not self.life.released:
            step = self.step()
            if isinstance(step, Settled | Stuck):
                return step
            if self.life.now > end:
                raise AssertionError(f"not settled after {seconds} s: {self.calls[-12:]}, {step}")
        return Settled(Phase.TERMINATING, Reason.TERMINATING, 1.0)

    def until(self, call: str) -> "Story":
        """Until the planner wants to make this call, which is not made yet."""
        for _ in range(200):
            step = think(self.life)
            if isinstance(step, Act) and type(step.action).__name__ == call:
                return self
            self.step()
        raise AssertionError(f"{call} is never wanted: {self.calls}")

    def quiet(self, looks: int = 3) -> None:
        """It stays settled: no call for so many looks."""
        before = len(self.calls)
        for _ in range(looks):
            step = self.step()
            assert isinstance(step, Settled), step
        assert self.calls[before:] == []

    def _call(self, step: Act) -> Wait | Stuck | None:
        name = type(step.action).__name__
        self.calls.append(name)
        self.actions.append(step.action)
        self.began.append(self.life.now)
        fate = self.fates.pop((name, self.calls.count(name)), Fate.OK)
        self.life, ended = act(self.life, step, fate)
        return ended


def agent(**fields: Any) -> Life:
    """An Agent that was just applied, with these fields of its spec."""
    return Life(declared(spec(**fields)))


def settled(life: Life | None = None) -> Story:
    """A story that begins with an Agent that runs as declared."""
    story = Story(life or agent())
    done = story.run()
    assert isinstance(done, Settled), done
    return Story(story.life)
