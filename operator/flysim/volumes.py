"""Volumes: a name may be used many times, a machine holds a volume alone, and a deleted one stays listed for a day."""

import asyncio
import re
from dataclasses import dataclass, field

from flysim import errors, machine_config, regions, requests
from flysim.call import Answer, Call, answer
from flysim.hosts import SMALLEST
from flysim.paging import page
from flysim.records import GB, App, Host, Volume, volume_json
from flysim.requests import CreateVolume, ExtendVolume, UpdateVolume
from flysim.runner import Runner
from flysim.snapshots import Snapshots
from flysim.world import World

_NAME = re.compile(r"[a-z0-9_]{1,30}")
_PAGE = 1000
_GB = range(1, 501)
_RETENTION = range(1, 61)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a new volume's data comes from, and what it is like until the data is all there; nowhere by default."""

    state: str = "created"
    id: str | None = None
    size_gb: int = 3
    told: dict[str, str] = field(default_factory=dict)
    host: Host | None = None
    usage: int | None = None

    def check(self, size_gb: int) -> None:
        """Raises Refusal (422): the data would not fit."""
        if self.id is None or size_gb >= self.size_gb:
            return
        if self.state == "restoring":
            text = f"volume size ({size_gb} GiB) is smaller than the snapshot size ({self.size_gb} GiB)"
            raise errors.volume_size_bad(text)
        raise errors.volume_size_bad(f"volume size must be greater than or equal to its source's ({self.size_gb} GB)")


class Volumes:
    """The calls on `/v1/apps/{app}/volumes`."""

    def __init__(self, world: World, runner: Runner, snapshots: Snapshots) -> None:
        self._world = world
        self._runner = runner
        self._snapshots = snapshots
        self._hydrating: set[asyncio.TimerHandle] = set()

    async def create_volume(self, call: Call) -> Answer:
        """Empty, restored from a snapshot, or forked from a volume. Copied data is there when the call is answered."""
        app = self._world.living_app(call.params["app"])
        body = requests.read(CreateVolume, call.body)
        if _NAME.fullmatch(body.name) is None:
            raise errors.invalid("name: up to 30 lowercase letters, digits and underscores")
        _check_retention(body.snapshot_retention)
        region = regions.one(body.region)
        guest = machine_config.guest(body.compute) if body.compute else SMALLEST
        source = self._source(app, body)
        size_gb = body.size_gb if body.size_gb is not None else source.size_gb
        if size_gb not in _GB:
            raise errors.invalid(f"size_gb: value must be inside range [{_GB[0]}, {_GB[-1]}]")
        source.check(size_gb)
        if (host := self._world.hosts.place(region, guest, besides=source.host)) is None:
            raise errors.no_capacity()
        now = self._world.clock.now()
        volume = Volume(
            id=self._world.ids.volume(),
            name=body.name,
            app=app,
            host=host,
            region=region,
            zone=self._world.ids.zone(),
            size_gb=size_gb,
            encrypted=body.encrypted,
            fstype=body.fstype,
            snapshot_retention=body.snapshot_retention,
            auto_backup_enabled=body.auto_backup_enabled,
            created_at=now,
            updated_at=now,
            state=source.state,
            usage=source.usage,
        )
        await self._fill(volume, source)
        self._world.living_app(app.name)  # it may have gone while data was copied
        host.volumes[volume.id] = app.volumes[volume.id] = self._world.volumes[volume.id] = volume
        self._world.touch(volume)
        call.volume, call.effect = volume.id, "volume created"
        detail = {"name": volume.name, "region": volume.region, "size_gb": volume.size_gb} | source.told
        self._world.ledger.event("volume_created", app=app.name, volume=volume.id, detail=detail)
        return answer(200, volume_json(volume))

    def _source(self, app: App, body: CreateVolume) -> "_Source":
        """Where the data comes from. Raises Refusal (400, 404, 412, 422)."""
        if body.snapshot_id and body.source_volume_id:
            raise errors.invalid("snapshot_id and source_volume_id exclude each other")
        if body.snapshot_id:
            snapshot = self._snapshots.restorable(app, body.snapshot_id)
            return _Source("restoring", snapshot.id, snapshot.size_gb, {"snapshot": snapshot.id}, usage=snapshot.usage)
        if body.source_volume_id:
            volume = self._world.volumes.get(body.source_volume_id)
            if volume is None or volume.deleted_at is not None or volume.app.org != app.org:
                raise errors.volume_not_found()
            if not volume.host.up:
                raise errors.volume_unreachable(volume.id)
            told = {"source_volume": volume.id}
            return _Source("hydrating", volume.id, volume.size_gb, told, volume.host, volume.usage)
        return _Source()

    async def _fill(self, volume: Volume, source: "_Source") -> None:
        if source.id is None:
            self._runner.make_volume(volume.id)
            return
        await self._runner.copy_volume(source.id, volume.id)
        volume.bytes_used = await self._runner.used_bytes(volume.id) or 0

        def hydrated() -> None:
            self._hydrating.discard(handle)
            if volume.state == source.state:
                volume.state = "created"
                self._world.touch(volume)

        handle = asyncio.get_running_loop().call_later(self._world.timing.hydrate, hydrated)
        self._hydrating.add(handle)

    async def close(self) -> None:
        """Ends what would still change by itself."""
        for handle in self._hydrating:
            handle.cancel()

    async def list_volumes(self, call: Call) -> Answer:
        """Deleted ones are among them, with a state that says so."""
        there = [v for v in self._world.app(call.params["app"]).volumes.values() if self._world.shows(v)]
        for volume in there:
            await self._measure(volume)
        volumes = self._world.lists.shown(there)
        shown, cursor = page(
            volumes, lambda v: (v.created_at, v.id), call.query, now=self._world.clock.now(), most=_PAGE
        )
        return answer(200, [volume_json(v) for v in shown], {"fly-next-cursor": cursor} if cursor else None)

    async def get_volume(self, call: Call) -> Answer:
        volume = self._volume(call)
        await self._measure(volume)
        return answer(200, volume_json(volume))

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
            grow(self._world, volume, body.size_gb)
            call.effect = "volume extended"
        return answer(200, {"volume": volume_json(volume), "needs_restart": self._world.extend_needs_restart})

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
        return self._world.living_volume(call.params["app"], call.params["volume"])

    async def _measure(self, volume: Volume) -> None:
        """Looks how full the volume is, where somebody can look."""
        if volume.host.up and volume.deleted_at is None and volume.usage is None:
            volume.bytes_used = await self._runner.used_bytes(volume.id) or 0


def auto_extend(world: World, volume: Volume) -> None:
    """Lets the volume grow as its machine's mount asks for, until it is below the threshold or at the limit."""
    machine = world.machines.get(volume.machine_id or "")
    if machine is None or not machine.host.up or machine.state != "started" or not machine.config.mounts:
        return
    mount = machine.config.mounts[0]
    limit, used = mount.size_gb_limit or _GB[-1], volume.usage or 0
    while (
        mount.extend_threshold_percent
        and mount.add_size_gb > 0
        and volume.size_gb < limit
        and used * 100 >= volume.size_gb * GB * mount.extend_threshold_percent
    ):
        grow(world, volume, min(limit, volume.size_gb + mount.add_size_gb))


def grow(world: World, volume: Volume, size_gb: int) -> None:
    volume.size_gb = size_gb
    world.touch(volume)
    world.ledger.event("volume_extended", app=volume.app.name, volume=volume.id, detail={"size_gb": size_gb})


def _check_retention(days: int) -> None:
    if days not in _RETENTION:
        raise errors.invalid(f"snapshot_retention: value must be inside range [{_RETENTION[0]}, {_RETENTION[-1]}]")
