"""The simulated Fly's state, and how things are found in it. Knows no HTTP and moves nothing by itself."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from flysim import errors
from flysim.clock import Clock
from flysim.hosts import Hosts, memory, reserves
from flysim.ids import Ids
from flysim.images import Images
from flysim.ledger import Ledger
from flysim.lists import Lists
from flysim.records import App, Machine, Snapshot, Volume


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take, in seconds.

    Attributes:
        prepare: a new machine stays `created` for so long.
        replace: an update stays `replacing` for so long after the old version has ended.
        active: a stopped machine refuses to start for so long.
        unbind: a volume stays bound to its destroyed machine for so long.
        suspend: a machine stays `suspending` for so long.
        idle: the edge stops a machine that asks for it after so long without connections.
        restart: between the end of a main process and its restart by the policy.
        keep_volume: a deleted volume stays listed for so long.
        hydrate: a fork stays `hydrating`, and a restored volume `restoring`, for so long.
        snapshot: a snapshot runs for so long.
        list_lag: lists are so far behind.
        app_young: a new app can't be read for so long.
        grace: machines get so long at most to end when the simulator itself ends.
    """

    prepare: float = 0.2
    replace: float = 0.2
    active: float = 0.4
    unbind: float = 0.3
    suspend: float = 0.1
    idle: float = 300.0
    restart: float = 0.25
    keep_volume: float = 24 * 3600.0
    hydrate: float = 0.2
    snapshot: float = 0.2
    list_lag: float = 0.0
    app_young: float = 0.0
    grace: float = 2.0


@dataclass(slots=True)
class Quotas:
    """What Fly grants: MB of memory by org and region, and machines in one app. What is not named has no limit."""

    memory_mb: dict[tuple[str, str], int] = field(default_factory=dict)
    machines_per_app: int | None = None


@dataclass(slots=True)
class World:
    """Everything that exists. `apps` by name; `machines` and `volumes` of all apps by id, gone ones included.

    `extend_needs_restart` is what Fly says when a volume is extended.
    """

    orgs: Sequence[str]
    clock: Clock
    ids: Ids
    ledger: Ledger
    timing: Timing
    hosts: Hosts
    lists: Lists
    apps: dict[str, App] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    images: Images = field(default_factory=Images)
    quotas: Quotas = field(default_factory=Quotas)
    extend_needs_restart: bool = False
    addresses: set[str] = field(default_factory=set)
    idempotency: dict[tuple[str, str], App] = field(default_factory=dict)
    digest_key: bytes = field(default=b"", repr=False)

    def require_org(self, slug: str) -> None:
        """Raises Refusal (404)."""
        if slug not in self.orgs:
            raise errors.org_not_found(slug)

    def app(self, name: str) -> App:
        """Raises Refusal (404)."""
        if (app := self.apps.get(name)) is None:
            raise errors.app_not_found(name)
        return app

    def seen_app(self, name: str) -> App:
        """An app that reads find already: to a new one they answer as if it, or the token, were unknown.

        Raises Refusal (404, 401).
        """
        app, young = self.app(name), self.timing.app_young
        if young and (age := self.clock.now() - app.created_at) < young:
            raise errors.app_not_found(name) if age < young / 2 else errors.unauthorized()
        return app

    def living_app(self, name: str) -> App:
        """An app that things may be made in. Raises Refusal (404)."""
        if (app := self.app(name)).deleting:
            raise errors.app_not_found(name)
        return app

    def machine(self, app: str, machine_id: str) -> Machine:
        """A machine, destroyed or not. Raises Refusal (404)."""
        if (machine := self.app(app).machines.get(machine_id)) is None:
            raise errors.machine_not_found()
        return machine

    def living_machine(self, app: str, machine_id: str) -> Machine:
        """A machine that can still be acted on. Raises Refusal (404, and 408 when its host is dead)."""
        machine = self.standing_machine(app, machine_id)
        if not machine.host.up:
            raise errors.host_unreachable()
        return machine

    def standing_machine(self, app: str, machine_id: str) -> Machine:
        """A machine that is not destroyed, whether or not its host can be reached. Raises Refusal (404)."""
        if (machine := self.machine(app, machine_id)).state == "destroyed":
            raise errors.machine_not_found()
        return machine

    def volume(self, app: str, volume_id: str) -> Volume:
        """A volume that Fly still shows. Raises Refusal (404)."""
        volume = self.app(app).volumes.get(volume_id)
        if volume is None or not self.shows(volume):
            raise errors.volume_not_found()
        return volume

    def living_volume(self, app: str, volume_id: str) -> Volume:
        """A volume that can still be changed. Raises Refusal (404, and 408 when its host is dead)."""
        if (volume := self.volume(app, volume_id)).deleted_at is not None:
            raise errors.volume_not_found()
        if not volume.host.up:
            raise errors.host_unreachable()
        return volume

    def shows(self, volume: Volume) -> bool:
        """Whether a volume is there, or has been deleted only lately."""
        return volume.deleted_at is None or self.clock.now() < volume.deleted_at + self.timing.keep_volume

    def touch(self, thing: Machine | Volume) -> None:
        """What the API says about it has changed; to be called after the change."""
        thing.updated_at = self.clock.now()
        self.lists.saw(thing)

    def memory_used(self, org: str, region: str) -> int:
        """MB that an org's machines take in a region."""
        machines = (
            machine for machine in self.machines.values() if machine.region == region and machine.app.org == org
        )
        return memory(machine.config.guest for machine in machines if reserves(machine))

    def digest(self, value: str) -> str:
        """What Fly shows in a secret's place: tells equal values from different ones, and nothing else."""
        return hashlib.blake2b(value.encode(), key=self.digest_key, digest_size=8).hexdigest()
