"""Hosts: what machines and volumes stand on, how much goes onto one, and which one takes something new.

A volume pins its host, and a machine with a mount stands where its volume is. Only what may run takes room: a stopped
machine gives its share back, a suspended one does not. Nothing here ends or starts a machine; a host that dies does so
in `flysim.hardware`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flysim.records import Host, Machine, Volume
from flysim.regions import REGIONS
from flysim.requests import Guest

Lack = Literal["CPUs", "memory"]
SMALLEST = Guest()
"""What a volume without a `compute` wants its host to have room for."""
PLENTY = 1000
"""As many machines are told to fit where there is no end of room."""
_RELEASED = frozenset({"stopped", "failed", "destroyed"})
_USUAL = 3


class Size(BaseModel):
    """What a host can hold; None is without an end. `slots` counts machines that take room, whatever their size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: int | None = Field(default=None, ge=0)
    memory_mb: int | None = Field(default=None, ge=0)
    slots: int | None = Field(default=None, ge=0)


class Hosts:
    """All hosts, by id. A region that is not named has three, which hold whatever comes.

    Raises:
        ValueError: a region that there is not.
    """

    def __init__(self, sizes: Mapping[str, Sequence[Size]] | None = None) -> None:
        self._by_region: dict[str, list[Host]] = {}
        for region in REGIONS:
            self._set(region, [Size()] * _USUAL)
        for region, own in (sizes or {}).items():
            self.replace(region, own)

    def all(self) -> list[Host]:
        return [host for hosts in self._by_region.values() for host in hosts]

    def find(self, host_id: str) -> Host | None:
        return next((host for host in self._by_region.get(host_id.partition("-")[0], []) if host.id == host_id), None)

    def replace(self, region: str, sizes: Sequence[Size]) -> list[Host]:
        """From now on the region has these hosts and no others; none means that it is full.

        Raises:
            ValueError: there is no such region, or one of its hosts still holds something.
        """
        if region not in REGIONS:
            raise ValueError(f"there is no region {region!r}; GET /v1/platform/regions lists them")
        for host in self._by_region[region]:
            if host.machines or volumes(host):
                raise ValueError(
                    f"host {host.id} holds machines or volumes; change its size with POST /_sim/hosts/{host.id} instead"
                )
        return self._set(region, sizes)

    def place(self, region: str, guest: Guest, besides: Host | None = None) -> Host | None:
        """The host of the region that takes this guest: the emptiest, and `besides` only where there is no other."""
        fit = [host for host in self._by_region[region] if host.up and lack(host, guest) is None]
        return min(fit, key=lambda host: (host is besides, len(host.machines) + len(host.volumes)), default=None)

    def room(self, region: str, guest: Guest) -> int:
        """How many more of these guests the region takes."""
        return min(PLENTY, sum(_room(host, guest) for host in self._by_region[region] if host.up))

    def _set(self, region: str, sizes: Sequence[Size]) -> list[Host]:
        hosts = [Host(f"{region}-{n}", region, **size.model_dump()) for n, size in enumerate(sizes, 1)]
        self._by_region[region] = hosts
        return hosts


def volumes(host: Host) -> list[Volume]:
    """Those that are not deleted."""
    return [volume for volume in host.volumes.values() if volume.deleted_at is None]


def reserves(machine: Machine) -> bool:
    """Whether the machine keeps room for itself on its host."""
    return machine.state not in _RELEASED


def used(host: Host, but: Machine | None = None) -> tuple[int, int, int]:
    """CPUs, MB of memory and slots that are taken, those of one machine apart."""
    guests = [machine.config.guest for machine in host.machines.values() if reserves(machine) and machine is not but]
    return sum(guest.cpus for guest in guests), memory(guests), len(guests)


def memory(guests: Iterable[Guest]) -> int:
    """MB."""
    return sum(guest.memory_mb for guest in guests)


def lack(host: Host, guest: Guest, but: Machine | None = None) -> Lack | None:
    """What the host has too little of for this guest, in Fly's word; without a free slot it is CPUs."""
    if host.cpus is None and host.memory_mb is None and host.slots is None:
        return None
    cpus, megabytes, slots = used(host, but)
    if host.slots is not None and slots + 1 > host.slots:
        return "CPUs"
    if host.cpus is not None and cpus + guest.cpus > host.cpus:
        return "CPUs"
    return "memory" if host.memory_mb is not None and megabytes + guest.memory_mb > host.memory_mb else None


def _room(host: Host, guest: Guest) -> int:
    cpus, megabytes, slots = used(host)
    rooms = [PLENTY]
    if host.slots is not None:
        rooms.append(host.slots - slots)
    if host.cpus is not None:
        rooms.append((host.cpus - cpus) // guest.cpus)
    if host.memory_mb is not None:
        rooms.append((host.memory_mb - megabytes) // guest.memory_mb)
    return max(0, min(rooms))
