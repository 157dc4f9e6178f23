"""Snapshots: copies of a volume's data that outlive the volume, until their retention ends."""

import asyncio
import logging

from flysim import errors
from flysim.call import Answer, Call, answer
from flysim.records import App, Snapshot, Volume, backup_json, snapshot_json
from flysim.runner import Runner
from flysim.world import World

_log = logging.getLogger(__name__)
_DAY = 24 * 3600.0


class Snapshots:
    """The calls on `…/volumes/{volume}/snapshots`, and what restores need of snapshots."""

    def __init__(self, world: World, runner: Runner) -> None:
        self._world = world
        self._runner = runner
        self._jobs: set[asyncio.Task[None]] = set()

    async def list_snapshots(self, call: Call) -> Answer:
        """Oldest first; those of a deleted or lost volume too."""
        app, volume_id = self._world.app(call.params["app"]), call.params["volume"]
        found = [
            snapshot
            for snapshot in self._world.snapshots.values()
            if snapshot.volume_id == volume_id and snapshot.app is app and self._kept(snapshot)
        ]
        if not found:
            self._world.volume(app.name, volume_id)
        return answer(200, [snapshot_json(snapshot) for snapshot in found])

    async def create_snapshot(self, call: Call) -> Answer:
        """Answers with the job; the snapshot is there a while later."""
        volume = self._world.living_volume(call.params["app"], call.params["volume"])
        for snapshot in self._world.snapshots.values():
            if snapshot.volume_id == volume.id and snapshot.status == "running":
                raise errors.snapshot_running(snapshot.asked_at)
        snapshot = self._order(volume)
        call.effect = "snapshot ordered"
        job = asyncio.create_task(self._run(volume, snapshot), name=f"snapshot {snapshot.id} of {volume.id}")
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return answer(200, backup_json(snapshot))

    async def take(self, volume: Volume) -> Snapshot:
        """A snapshot as Fly takes it by itself every day, here and now. Raises OSError."""
        snapshot = self._order(volume)
        self._finish(snapshot, await self._copy(volume, snapshot))
        return snapshot

    def restorable(self, app: App, snapshot_id: str) -> Snapshot:
        """A snapshot that a volume of this app can be made from. Raises Refusal (404, 422)."""
        snapshot = self._world.snapshots.get(snapshot_id)
        if snapshot is None or snapshot.app.org != app.org or not self._kept(snapshot):
            raise errors.snapshot_not_found()
        if snapshot.status == "running":
            raise errors.snapshot_unfinished(snapshot_id)
        return snapshot

    async def close(self) -> None:
        """Ends what still runs."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def _order(self, volume: Volume) -> Snapshot:
        world = self._world
        snapshot = Snapshot(
            id=world.ids.snapshot(),
            number=world.ids.number(),
            volume_id=volume.id,
            app=volume.app,
            size_gb=volume.size_gb,
            retention_days=volume.snapshot_retention,
            asked_at=world.clock.now(),
            usage=volume.usage,
        )
        world.snapshots[snapshot.id] = snapshot
        return snapshot

    async def _run(self, volume: Volume, snapshot: Snapshot) -> None:
        try:
            size = await self._copy(volume, snapshot)
        except OSError as error:
            _log.warning("snapshot %s failed: %s", snapshot.id, error)
            return
        await asyncio.sleep(self._world.timing.snapshot)
        self._finish(snapshot, size)

    async def _copy(self, volume: Volume, snapshot: Snapshot) -> int:
        """The size of the copy. A snapshot whose volume went away meanwhile is none."""
        try:
            await self._runner.copy_volume(volume.id, snapshot.id)
            size = await self._runner.used_bytes(snapshot.id)
        except OSError:
            del self._world.snapshots[snapshot.id]
            raise
        return snapshot.usage if snapshot.usage is not None else size or 0

    def _finish(self, snapshot: Snapshot, size: int) -> None:
        snapshot.status, snapshot.size, snapshot.created_at = "created", size, self._world.clock.now()
        detail = {"snapshot": snapshot.id, "size": snapshot.size}
        self._world.ledger.event("snapshot_created", app=snapshot.app.name, volume=snapshot.volume_id, detail=detail)

    def _kept(self, snapshot: Snapshot) -> bool:
        return self._world.clock.now() < snapshot.asked_at + snapshot.retention_days * _DAY
