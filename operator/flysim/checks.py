"""Health checks: which ones a config asks for, and making them for as long as a machine is started.

The checks of a machine that is a process are really made, over TCP or HTTP, at the machine's own address. A machine
without a process has nobody at its address; its checks pass at once. What is found is shown and steers the edge, and
changes nothing else about the machine.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from flysim import errors, requests
from flysim.records import CheckStatus, Machine
from flysim.requests import Check, MachineConfig
from flysim.world import World

_INTERVAL = 15.0
_TIMEOUT = 2.0
_LEAST_INTERVAL = 0.01
"""Less than this would only keep the simulator busy."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One check as it is made; durations in seconds. `service` is its service's index, None for a machine's own."""

    name: str
    service: int | None
    type: str
    port: int
    interval: float
    timeout: float
    grace: float
    method: str
    path: str
    scheme: str
    headers: Mapping[str, str]
    verify: bool


def probes(config: MachineConfig) -> list[Probe]:
    """All checks that a config asks for, in its order. Raises Refusal (400)."""
    found: list[Probe] = []
    for index, service in enumerate(config.services):
        for check in service.checks:
            port = check.port or service.internal_port
            name = f"servicecheck-{len(found):02d}-{check.type}-{port}"
            found.append(_probe(name, index, check, port, f"config.services[{index}].checks"))
    found += [_probe(name, None, check, check.port, f"config.checks.{name}") for name, check in config.checks.items()]
    return found


def _probe(name: str, service: int | None, check: Check, port: int, where: str) -> Probe:
    if check.type not in ("tcp", "http"):
        raise errors.invalid(f"{where}: type {check.type!r} is not one of tcp, http")
    if not 0 < port < 1 << 16:
        raise errors.invalid(f"{where}: port {port} is not between 1 and 65535")
    if check.protocol not in ("http", "https"):
        raise errors.invalid(f"{where}: protocol {check.protocol!r} is not one of http, https")
    return Probe(
        name=name,
        service=service,
        type=check.type,
        port=port,
        interval=max(_LEAST_INTERVAL, requests.seconds(check.interval, _INTERVAL, f"{where}: interval")),
        timeout=requests.seconds(check.timeout, _TIMEOUT, f"{where}: timeout"),
        grace=requests.seconds(check.grace_period, 0.0, f"{where}: grace_period"),
        method=check.method.upper(),
        path=check.path if check.path.startswith("/") else f"/{check.path}",
        scheme=check.protocol,
        headers={header.name: ", ".join(header.values) for header in check.headers},
        verify=not check.tls_skip_verify,
    )


def failing(machine: Machine, service: int) -> bool:
    """Whether a check of this service (by its index) has failed."""
    names = {probe.name for probe in probes(machine.config) if probe.service == service}
    return any(check.status == "critical" and check.name in names for check in machine.checks)


class Checks:
    """Makes the checks of machines that are started."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[str, list[asyncio.Task[None]]] = {}
        self._http: aiohttp.ClientSession | None = None

    def begin(self, machine: Machine) -> None:
        """From now on its checks are made; nothing is known of them yet."""
        self.end(machine)
        now = self._world.clock.now()
        wanted = probes(machine.config)
        machine.checks = [CheckStatus(probe.name, now) for probe in wanted]
        if machine.boot is None or machine.boot.instance.pid is None:
            for check in machine.checks:
                check.status, check.output = "passing", "not made, the machine is no process"
        elif wanted:
            since, name = machine.boot.since, f"check of {machine.id}"
            self._running[machine.id] = [
                asyncio.create_task(self._watch(machine, since, probe, check), name=name)
                for probe, check in zip(wanted, machine.checks, strict=True)
            ]

    def end(self, machine: Machine) -> None:
        """They are not made any more; what was found last stays shown."""
        for task in self._running.pop(machine.id, ()):
            task.cancel()

    async def close(self) -> None:
        """Ends all of them."""
        tasks = [task for some in self._running.values() for task in some]
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    async def _watch(self, machine: Machine, since: float, probe: Probe, check: CheckStatus) -> None:
        """A failure within the grace period is not told."""
        while True:
            error, output = None, ""
            try:
                async with asyncio.timeout(probe.timeout):
                    output = await (self._get(machine, probe) if probe.type == "http" else _connect(machine, probe))
            except TimeoutError:
                error = f"{_target(machine, probe)}: no answer within {probe.timeout:g} s"
            except (OSError, aiohttp.ClientError, ValueError) as failure:
                error = f"{_target(machine, probe)}: {failure}"
            now = self._world.clock.now()
            found = ("passing", output) if error is None else ("critical", error)
            if found != (check.status, check.output) and (error is None or now >= since + probe.grace):
                (check.status, check.output), check.updated_at = found, now
            await asyncio.sleep(probe.interval)

    async def _get(self, machine: Machine, probe: Probe) -> str:
        """Raises ValueError for an answer outside 2xx."""
        if self._http is None:
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        url = _target(machine, probe)
        async with self._http.request(
            probe.method, url, headers=probe.headers, allow_redirects=False, ssl=probe.verify
        ) as reply:
            if not 200 <= reply.status < 300:
                raise ValueError(f"{reply.status} {reply.reason}")
            return f"HTTP {probe.method} {url}: {reply.status} {reply.reason}"


async def _connect(machine: Machine, probe: Probe) -> str:
    _, writer = await asyncio.open_connection(machine.address, probe.port)
    writer.transport.abort()
    return f"{_target(machine, probe)}: Success"


def _target(machine: Machine, probe: Probe) -> str:
    if probe.type == "tcp":
        return f"TCP connect {machine.address}:{probe.port}"
    return f"{probe.scheme}://{machine.address}:{probe.port}{probe.path}"
