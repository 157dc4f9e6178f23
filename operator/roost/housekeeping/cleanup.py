"""Deletes orphans: machine, confirmed gone, volume, confirmed gone, a last look, app, confirmed gone.

Right before each deletion the cluster is asked once more for the Agent, and Fly for the thing; what has changed since
it was listed is left alone. A failure ends the work on that app, never the whole.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from roost.agents.machine_config import RETAINED
from roost.fly.client import Fly
from roost.fly.errors import Ambiguous, FlyError, NotFound, NotYet, VolumeBound
from roost.fly.types import App, Machine, MachineRow, Volume, row_of
from roost.housekeeping.findings import MARK, Finding, Key, Verdict
from roost.kube.client import KubeError

STOP_SECONDS = 30
GONE_SECONDS = 60
BOUND_SECONDS = 120.0
"""Fly keeps a volume bound for up to minutes after its machine has gone."""
PAUSE_SECONDS = 0.5


class Stays(Exception):
    """A thing is not deleted; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one finding: `deleted`, `marked`, `failed`, or `left` because something before it failed."""

    finding: Finding
    outcome: str
    message: str = ""


class Cleanup:
    """Removes what a scan has found. `exists` asks the cluster for an Agent; `say` is told each outcome at once."""

    def __init__(
        self,
        flies: Mapping[str, Fly],
        exists: Callable[[Key], Awaitable[bool]],
        say: Callable[[Outcome], None],
        now: datetime,
    ) -> None:
        self._flies, self._exists, self._say, self._now = flies, exists, say, now

    async def run(self, findings: Sequence[Finding]) -> list[Outcome]:
        """Works on orphans, and on machines that are to be marked; passes over all others."""
        outcomes: list[Outcome] = []
        wanted = [f for f in findings if f.verdict is Verdict.ORPHAN or f.to_mark]
        for _, group in groupby(wanted, key=lambda f: f.app):
            outcomes += await self._one_app(list(group))
        return outcomes

    async def _one_app(self, findings: list[Finding]) -> list[Outcome]:
        fly, outcomes, failed = self._flies[findings[0].credential], [], ""
        machines = {f.id for f in findings if f.kind == "machine"}
        for finding in findings:
            if failed:
                outcome = Outcome(finding, "left", f"{failed} is still there")
            else:
                try:
                    await self._check(fly, finding)
                    outcome = Outcome(finding, await self._work(fly, finding, machines))
                except (FlyError, KubeError, Stays) as error:
                    failed = f"{finding.kind} {finding.id}"
                    outcome = Outcome(finding, "failed", str(error))
            outcomes.append(outcome)
            self._say(outcome)
        return outcomes

    async def _check(self, fly: Fly, finding: Finding) -> None:
        """Raises Stays when it is no orphan any more."""
        if await self._exists(finding.agent):
            raise Stays(f"Agent {'/'.join(finding.agent)} is there now")
        with suppress(NotFound):
            if any(name.startswith(RETAINED) for name in await fly.list_secret_names(finding.app)):
                raise Stays("its app is retained now")

    async def _work(self, fly: Fly, finding: Finding, machines: set[str]) -> str:
        match finding.thing:
            case MachineRow() as row:
                return await self._machine(fly, row, mark=finding.to_mark)
            case Volume() as volume:
                return await self._volume(fly, volume, machines)
            case App() as app:
                return await self._app(fly, app)
        raise Stays("there is nothing of it at Fly")

    async def _machine(self, fly: Fly, row: MachineRow, *, mark: bool) -> str:
        try:
            seen = await fly.get_machine(row.app, row.id)
        except NotFound:
            return "deleted"
        if seen.state == "destroyed":
            return "deleted"
        if seen.host_status != "ok":
            raise Stays("its host can't be reached; try again later")
        if not _same(row, seen):
            raise Stays(f"it has changed since it was listed (it is {seen.state}); look again")
        if mark:
            mine = {MARK: f"{row.metadata.get('roost_uid', '')} {self._now.isoformat(timespec='seconds')}"}
            await fly.patch_metadata(row.app, row.id, mine, machine_version=seen.version)
            return "marked"
        if seen.state == "started":
            with suppress(NotYet, NotFound, Ambiguous):
                await fly.stop_machine(row.app, row.id, signal="SIGTERM", timeout_seconds=STOP_SECONDS)
                await fly.wait_machine(
                    row.app, row.id, ["stopped"], version=seen.version, timeout_seconds=STOP_SECONDS + 10
                )
        with suppress(NotFound, Ambiguous):
            await fly.delete_machine(row.app, row.id, force=True)
        with suppress(NotYet, NotFound):
            await fly.wait_machine(row.app, row.id, ["destroyed"], version=None, timeout_seconds=GONE_SECONDS)
        with suppress(NotFound):
            if (seen := await fly.get_machine(row.app, row.id)).state != "destroyed":
                raise Stays(f"it is still {seen.state}; try again later")
        return "deleted"

    async def _volume(self, fly: Fly, volume: Volume, machines: set[str]) -> str:
        deadline = asyncio.get_running_loop().time() + BOUND_SECONDS
        while True:
            try:
                seen = await fly.get_volume(volume.app, volume.id)
                if seen.deleted:
                    return "deleted"
                if seen.attached_machine_id not in (None, *machines):
                    raise Stays(f"machine {seen.attached_machine_id} holds it now")
                if asyncio.get_running_loop().time() > deadline:
                    raise Stays(f"it is still {seen.state}, and Fly still keeps it bound; try again later")
                with suppress(VolumeBound, Ambiguous):
                    await fly.delete_volume(volume.app, volume.id)
            except NotFound:
                return "deleted"
            await asyncio.sleep(PAUSE_SECONDS)

    async def _app(self, fly: Fly, app: App) -> str:
        try:
            counted = await fly.get_app(app.name)
            machines = await fly.list_machines(app.name)
            volumes = await fly.list_volumes(app.name)
        except NotFound:
            return "deleted"
        inside = [m.id for m in machines if m.state != "destroyed"] + [v.id for v in volumes if not v.deleted]
        if inside:
            raise Stays(f"it holds {', '.join(inside[:3])}, which would go with it")
        # A list has been empty by mistake; the app's own counts are another witness.
        if (counted.machine_count or 0) > 0 or (counted.volume_count or 0) > len(volumes):
            raise Stays("Fly still counts machines or volumes in it; try again later")
        with suppress(NotFound, Ambiguous):
            await fly.delete_app(app.name)
        deadline = asyncio.get_running_loop().time() + GONE_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            try:
                await fly.get_app(app.name)
            except NotFound:
                return "deleted"
            await asyncio.sleep(PAUSE_SECONDS)
        raise Stays("its deletion was asked for, and it is still there; look again later")


def _same(row: MachineRow, seen: Machine) -> bool:
    """Still the machine that was listed."""
    now = row_of(seen)
    return (row.name, row.state, row.version, row.metadata) == (now.name, now.state, now.version, now.metadata)
