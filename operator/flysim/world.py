"""The simulated Fly's state, and how things are found in it. Knows no HTTP and moves nothing by itself."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from flysim import errors
from flysim.clock import Clock
from flysim.ids import Ids
from flysim.ledger import Ledger
from flysim.records import App, Machine, Volume


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take, in seconds.

    Attributes:
        prepare: a new machine stays `created` for so long.
        replace: an update stays `replacing` for so long after the old version has ended.
        active: a stopped machine refuses to start for so long.
        unbind: a volume stays bound to its destroyed machine for so long.
        restart: between the end of a main process and its restart by the policy.
        keep_volume: a deleted volume stays listed for so long.
        grace: machines get so long at most to end when the simulator itself ends.
    """

    prepare: float = 0.2
    replace: float = 0.2
    active: float = 0.4
    unbind: float = 0.3
    restart: float = 0.25
    keep_volume: float = 24 * 3600.0
    grace: float = 2.0


@dataclass(slots=True)
class World:
    """Everything that exists. `apps` by name; `machines` and `volumes` of all apps by id, gone ones included."""

    orgs: Sequence[str]
    clock: Clock
    ids: Ids
    ledger: Ledger
    timing: Timing
    apps: dict[str, App] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
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
        """A machine that can still be acted on. Raises Refusal (404)."""
        if (machine := self.machine(app, machine_id)).state == "destroyed":
            raise errors.machine_not_found()
        return machine

    def volume(self, app: str, volume_id: str) -> Volume:
        """A volume that Fly still shows. Raises Refusal (404)."""
        volume = self.app(app).volumes.get(volume_id)
        if volume is None or not self.shows(volume):
            raise errors.volume_not_found()
        return volume

    def shows(self, volume: Volume) -> bool:
        """Whether a volume is there, or has been deleted only lately."""
        return volume.deleted_at is None or self.clock.now() < volume.deleted_at + self.timing.keep_volume

    def touch(self, thing: Machine | Volume) -> None:
        """What the API says about it has changed."""
        thing.updated_at = self.clock.now()

    def digest(self, value: str) -> str:
        """What Fly shows in a secret's place: tells equal values from different ones, and nothing else."""
        return hashlib.blake2b(value.encode(), key=self.digest_key, digest_size=8).hexdigest()
