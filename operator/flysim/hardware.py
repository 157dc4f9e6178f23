"""The physical part of `/_sim/…`: hosts that fill up, die and come back, data that is lost, limits, lists that lie.

What happens here happens behind the API's back, as at Fly: nobody is told, and the API shows what Fly would show.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from flysim import hosts
from flysim.hosts import Size
from flysim.ledger import because
from flysim.life import Life
from flysim.records import JSON, Host, Volume
from flysim.regions import REGIONS
from flysim.runner import Runner
from flysim.snapshots import Snapshots
from flysim.volumes import auto_extend
from flysim.world import World

_Model = TypeVar("_Model", bound=BaseModel)


class NoSuchThingError(Exception):
    """There is nothing at this path; answered with 404."""


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _RegionsHosts(_Order):
    region: str
    hosts: list[Size]


class _HostChange(Size):
    """Only what is given changes."""

    status: Literal["ok", "dead"] | None = None


class _Usage(_Order):
    bytes: int = Field(ge=0)


class _Extending(_Order):
    extend_needs_restart: bool


class _ListsChange(_Order):
    """Only what is given changes."""

    lag: float | None = Field(default=None, ge=0)
    error_regions: list[str] | None = None
    empty: bool | None = None


class _Image(_Order):
    reference: str = Field(min_length=1, pattern="^[^@]+$")
    digest: str = Field(pattern="^sha256:[0-9a-f]{64}$")


class _QuotasChange(_Order):
    """Only what is given changes; null takes a limit away. `memory_mb` is by region, in the org."""

    org: str = ""
    memory_mb: dict[str, int | None] = {}
    machines_per_app: int | None = Field(default=None, ge=0)


class Hardware:
    """Answers what comes to `/_sim/hosts`, `machines`, `volumes`, `lists`, `images` and `quotas`."""

    def __init__(self, world: World, life: Life, runner: Runner, snapshots: Snapshots) -> None:
        self._world = world
        self._life = life
        self._runner = runner
        self._snapshots = snapshots

    async def handle(self, method: str, parts: list[str], body: bytes) -> Any:
        """Raises NoSuchThingError, ValueError (pydantic's too), and OSError when data can't be copied."""
        match method, parts:
            case "GET", ["hosts"]:
                return [_host(host) for host in self._world.hosts.all()]
            case "POST", ["hosts"]:
                order = read(_RegionsHosts, body)
                return [_host(host) for host in self._world.hosts.replace(order.region, order.hosts)]
            case "POST", ["hosts", host_id]:
                return self._change_host(host_id, read(_HostChange, body))
            case "DELETE", ["machines", machine_id]:
                return self._lose_machine(machine_id)
            case _, ["volumes", *rest]:
                return await self._volumes(method, rest, body)
            case "GET", ["lists"]:
                return self._lists()
            case "POST", ["lists"]:
                return self._change_lists(read(_ListsChange, body))
            case "POST", ["images"]:
                image = read(_Image, body)
                self._world.images.move(image.reference, image.digest)
                return image.model_dump()
            case "POST", ["quotas"]:
                return self._change_quotas(read(_QuotasChange, body))
            case _:
                raise NoSuchThingError(f"flysim has no {method} /_sim/{'/'.join(parts)}")

    async def _volumes(self, method: str, parts: list[str], body: bytes) -> Any:
        match method, parts:
            case "POST", []:
                self._world.extend_needs_restart = read(_Extending, body).extend_needs_restart
                return {"extend_needs_restart": self._world.extend_needs_restart}
            case "POST", [volume_id, "snapshot"]:
                return {"id": (await self._snapshots.take(self._volume(volume_id))).id}
            case "POST", [volume_id, "usage"]:
                volume = self._volume(volume_id)
                volume.usage = read(_Usage, body).bytes
                auto_extend(self._world, volume)
                self._world.touch(volume)
                return {"bytes": volume.usage, "size_gb": volume.size_gb}
            case "DELETE", [volume_id]:
                await self._lose_volume(self._volume(volume_id))
                return {"ok": True}
            case _:
                raise NoSuchThingError(f"flysim has no {method} /_sim/{'/'.join(['volumes', *parts])}")

    # Hosts

    def _change_host(self, host_id: str, change: _HostChange) -> JSON:
        if (host := self._world.hosts.find(host_id)) is None:
            raise NoSuchThingError(f"there is no host {host_id}; GET /_sim/hosts lists them")
        for name in change.model_fields_set - {"status"}:
            setattr(host, name, getattr(change, name))
        if change.status == "dead" and host.up:
            self._die(host)
        elif change.status == "ok" and not host.up:
            self._return(host)
        return _host(host)

    def _die(self, host: Host) -> None:
        host.up = False
        self._tell("host_died", host)
        with because("host died"):
            for machine in host.machines.values():
                self._life.lose(machine)

    def _return(self, host: Host) -> None:
        host.up = True
        self._tell("host_returned", host)
        with because("host returned"):
            for machine in host.machines.values():
                self._life.come_back(machine)

    def _tell(self, event: str, host: Host) -> None:
        detail = {"host": host.id, "machines": list(host.machines), "volumes": [v.id for v in hosts.volumes(host)]}
        self._world.ledger.event(event, app="", detail=detail)

    # Losses

    def _lose_machine(self, machine_id: str) -> JSON:
        machine = self._world.machines.get(machine_id)
        if machine is None or machine.state == "destroyed":
            raise NoSuchThingError(f"there is no machine {machine_id}")
        with because("destroyed by hand"):
            self._life.destroy(machine)
        return {"ok": True}

    async def _lose_volume(self, volume: Volume) -> None:
        """The machine that holds it crashes, and can't boot any more."""
        world, machine = self._world, self._world.machines.get(volume.machine_id or "")
        for there in (world.volumes, volume.app.volumes, volume.host.volumes):
            del there[volume.id]
        world.ledger.event("volume_lost", app=volume.app.name, volume=volume.id)
        await self._runner.drop_volume(volume.id)
        if machine is not None and machine.boot is not None:
            machine.boot.instance.kill()

    def _volume(self, volume_id: str) -> Volume:
        volume = self._world.volumes.get(volume_id)
        if volume is None or volume.deleted_at is not None:
            raise NoSuchThingError(f"there is no volume {volume_id}")
        return volume

    # What Fly tells and grants

    def _lists(self) -> JSON:
        lists = self._world.lists
        return {"lag": lists.lag, "error_regions": lists.error_regions, "empty": lists.empty}

    def _change_lists(self, change: _ListsChange) -> JSON:
        world = self._world
        if change.error_regions is not None:
            _check_regions(change.error_regions)
            world.lists.error_regions = change.error_regions
        if change.empty is not None:
            world.lists.empty = change.empty
        if change.lag is not None:
            world.lists.set_lag(change.lag, [*world.machines.values(), *world.volumes.values()])
        return self._lists()

    def _change_quotas(self, change: _QuotasChange) -> JSON:
        quotas = self._world.quotas
        if change.memory_mb and change.org not in self._world.orgs:
            raise ValueError(f"there is no org {change.org!r}; memory_mb needs one")
        _check_regions(change.memory_mb)
        for region, megabytes in change.memory_mb.items():
            if megabytes is None:
                quotas.memory_mb.pop((change.org, region), None)
            else:
                quotas.memory_mb[change.org, region] = megabytes
        if "machines_per_app" in change.model_fields_set:
            quotas.machines_per_app = change.machines_per_app
        memory = [{"org": org, "region": region, "memory_mb": mb} for (org, region), mb in quotas.memory_mb.items()]
        return {"memory_mb": memory, "machines_per_app": quotas.machines_per_app}


def read(model: type[_Model], body: bytes) -> _Model:
    """An order's body; an empty one counts as `{}`. Raises ValueError."""
    return model.model_validate(json.loads(body or b"{}"))


def _check_regions(names: Iterable[str]) -> None:
    for name in names:
        if name not in REGIONS:
            raise ValueError(f"there is no region {name!r}; GET /v1/platform/regions lists them")


def _host(host: Host) -> JSON:
    cpus, memory, slots = hosts.used(host)
    return {
        "id": host.id,
        "region": host.region,
        "status": "ok" if host.up else "dead",
        "cpus": host.cpus,
        "memory_mb": host.memory_mb,
        "slots": host.slots,
        "used": {"cpus": cpus, "memory_mb": memory, "slots": slots},
        "machines": list(host.machines),
        "volumes": [volume.id for volume in hosts.volumes(host)],
    }
