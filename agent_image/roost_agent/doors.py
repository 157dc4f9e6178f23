"""What a machine offers beside its health port while its runtime has a gateway: three ports, all closed to strangers.

A port that can't be opened is told in the heartbeat, and opened once it can be; the agent lives without it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from aiohttp import web

from roost_agent.contract.bundle import ConfigBundle
from roost_agent.contract.heartbeat import Command
from roost_agent.runtime.openclaw.pairing import Pairings
from roost_agent.servers import control_ws, pairing_http, proxy
from roost_agent.settings import Settings
from roost_agent.vitals import Vitals

__all__ = ["CONTROL", "GATEWAY", "PAIRING", "Doors"]

GATEWAY, CONTROL, PAIRING = "gateway", "control", "pairing"
_log = structlog.get_logger()


class Doors:
    """One per process.

    Args:
        traffic: Where is counted what goes to the gateway.
        target: Where the runtime's own gateway listens.
        offer: Takes commands, and does not wait.
        token: What opens them, None while it is not known.
    """

    def __init__(
        self,
        settings: Settings,
        vitals: Vitals,
        pairings: Pairings,
        traffic: proxy.Traffic,
        target: tuple[str, int],
        *,
        offer: Callable[[Sequence[Command]], None],
        token: Callable[[], str | None],
    ) -> None:
        self._vitals = vitals
        self._open: dict[str, web.ServerRunner] = {}
        self._turn = asyncio.Lock()
        address = settings.bind_address
        self._how: dict[str, tuple[int, Callable[[int], Awaitable[web.ServerRunner]]]] = {
            GATEWAY: (
                settings.gateway_port,
                lambda port: proxy.serve(
                    target,
                    token=token,
                    ready=lambda: vitals.ready,
                    traffic=traffic,
                    address=address,
                    port=port,
                ),
            ),
            CONTROL: (
                settings.control_port,
                lambda port: control_ws.serve(vitals, pairings, offer=offer, token=token, address=address, port=port),
            ),
            PAIRING: (
                settings.pairing_port,
                lambda port: pairing_http.serve(pairings, token=token, address=address, port=port),
            ),
        }

    async def suit(self, bundle: ConfigBundle, *names: str) -> None:
        """Opens those that are not open yet (without names: all), or closes all where there is no gateway."""
        async with self._turn:
            if not bundle.has_gateway:
                await self._closed()
                for name in self._how:
                    self._vitals.trouble(name, None)
                return
            for name in names or self._how:
                if name not in self._open:
                    await self._opened(name)

    async def close(self) -> None:
        """Closes all."""
        async with self._turn:
            await self._closed()

    async def _opened(self, name: str) -> None:
        port, serve = self._how[name]
        try:
            self._open[name] = await serve(port)
        except OSError as error:
            why = f"port {port} can't be opened ({error.strerror})"
            if self._vitals.trouble(name, why):
                _log.warning("degraded", topic=name, why=why)
        else:
            self._vitals.trouble(name, None)

    async def _closed(self) -> None:
        while self._open:
            _, runner = self._open.popitem()
            await runner.cleanup()
