"""Volumes: a name may be used many times, a machine holds a volume alone, and a deleted one stays listed for a day."""

import re

from flysim import errors, regions, requests
from flysim.call import Answer, Call, answer
from flysim.paging import page
from flysim.records import Volume, volume_json
from flysim.requests import CreateVolume, ExtendVolume, UpdateVolume
from flysim.runner import Runner
from flysim.world import World

_NAME = re.compile(r"[a-z0-9_]{1,30}")
_PAGE = 1000
_GB = range(1, 501)
_RETENTION = range(1, 61)


class Volumes:
    """The calls on `/v1/apps/{app}/volumes`."""

    def __init__(self, world: World, runner: Runner) -> None:
        self._world = world
        self._runner = runner

    async def create_volume(self, call: Call) -> Answer:
        app = self._world.living_app(call.params["app"])
        body = requests.read(CreateVolume, call.body)
        if _NAME.fullmatch(body.name) is None:
            raise errors.invalid("name: up to 30 lowercase letters, digits and underscores")
        if body.size_gb not in _GB:
            raise errors.invalid(f"size_gb: value must be inside range [{_GB[0]}, {_GB[-1]}]")
        _check_retention(body.snapshot_retention)
        if body.snapshot_id or body.source_volume_id:
            raise errors.not_simulated("snapshots and forks of volumes")
        now = self._world.clock.now()
        volume = Volume(
            id=self._world.ids.volume(),
            name=body.name,
            app=app,
            region=regions.one(body.region),
            zone=self._world.ids.zone(),
            size_gb=body.size_gb,
            encrypted=body.encrypted,
            fstype=body.fstype,
            snapshot_retention=body.snapshot_retention,
            auto_backup_enabled=body.auto_backup_enabled,
            created_at=now,
            updated_at=now,
        )
        self._runner.make_volume(volume.id)
        app.volumes[volume.id] = self._world.volumes[volume.id] = volume
        call.volume, call.effect = volume.id, "volume created"
        detail = {"name": volume.name, "region": volume.region, "size_gb": volume.size_gb}
        self._world.ledger.event("volume_created", app=app.name, volume=volume.id, detail=detail)
        return answer(200, volume_json(volume))

    async def list_volumes(self, call: Call) -> Answer:
        """Deleted ones are among them, with a state that says so."""
        volumes = [v for v in self._world.app(call.params["app"]).volumes.values() if self._world.shows(v)]
        shown, cursor = page(
            volumes, lambda v: (v.created_at, v.id), call.query, now=self._world.clock.now(), most=_PAGE
        )
        return answer(200, [volume_json(v) for v in shown], {"fly-next-cursor": cursor} if cursor else None)

    async def get_volume(self, call: Call) -> Answer:
        return answer(200, volume_json(self._volume(call)))

    async def update_volume(self, call: Call) -> Answer:
        volume = self._living(call)
        body = requests.read(UpdateVolume, call.body)
        if body.snapshot_retention is not None:
            _check_retention(body.snapshot_retention)
            volume.snapshot_retention = body.snapshot_retention
        if body.auto_backup_enabled is not None:
            volume.auto_backup_enabled = body.auto_backup_enabled
        self._world.touch(volume)
        call.effect = "volume updated"
        return answer(200, volume_json(volume))

    async def extend_volume(self, call: Call) -> Answer:
        volume = self._living(call)
        body = requests.read(ExtendVolume, call.body)
        if body.size_gb < volume.size_gb or body.size_gb not in _GB:
            raise errors.invalid(f"size_gb: a volume of {volume.size_gb} GB can only grow, up to {_GB[-1]}")
        if body.size_gb > volume.size_gb:
            volume.size_gb = body.size_gb
            self._world.touch(volume)
            call.effect = "volume extended"
        return answer(200, {"volume": volume_json(volume), "needs_restart": False})

    async def delete_volume(self, call: Call) -> Answer:
        volume = self._volume(call)
        if volume.machine_id is not None:
            raise errors.volume_bound(volume.machine_id)
        if volume.deleted_at is None:
            volume.state = "pending_destroy"
            volume.deleted_at = self._world.clock.now()
            self._world.touch(volume)
            call.effect = "volume deleted"
            self._world.ledger.event(
                "volume_destroyed", app=volume.app.name, volume=volume.id, detail={"state": volume.state}
            )
        return answer(200, volume_json(volume))

    def _volume(self, call: Call) -> Volume:
        return self._world.volume(call.params["app"], call.params["volume"])

    def _living(self, call: Call) -> Volume:
        if (volume := self._volume(call)).deleted_at is not None:
            raise errors.volume_not_found()
        return volume


def _check_retention(days: int) -> None:
    if days not in _RETENTION:
        raise errors.invalid(f"snapshot_retention: value must be inside range [{_RETENTION[0]}, {_RETENTION[-1]}]")
