"""Fly's proxy in small: takes requests for `<app>.fly.dev`, finds a machine for each, wakes it, and puts it to sleep.

It speaks plain HTTP and WebSocket on one port and stands for every public port. It needs a public IP address of the
app, knows services by their public ports, leaves out machines that are cordoned, on a dead host or failing a check of
the service, and starts one that sleeps where its service has `autostart`. Machines with `autostop` are stopped (or
suspended) after a time without connections. It never sends one request to two machines, once one has taken it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from flysim import errors, hosts
from flysim.checks import failing
from flysim.leases import Leases
from flysim.ledger import because
from flysim.life import stop_of
from flysim.machines import unsuspendable
from flysim.records import App, Machine
from flysim.regions import NEAREST
from flysim.requests import Port, Service
from flysim.sim import Sim

_log = logging.getLogger(__name__)
_DOMAIN = ".fly.dev"
_HTTPS, _HTTP = 443, 80
_FORCE, _PREFER = "fly-force-instance-id", "fly-prefer-instance-id"
_ASLEEP = frozenset({"stopped", "suspended"})
_CHANGING = frozenset({"created", "starting", "restarting", "replacing", "stopping", "suspending"})
_RETRY = 0.05
"""Seconds between two tries to reach a machine whose program does not listen yet."""
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_OURS = frozenset([_FORCE, _PREFER, "fly-client-ip", "fly-region", "fly-forwarded-port", "fly-request-id", "via"])
_OF_A_HANDSHAKE = frozenset(
    ["sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"]
)


class _Unroutable(Exception):
    """The caller gets this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Route:
    """A machine that may take the request, and which of its services and public ports is meant."""

    machine: Machine
    index: int
    service: Service
    port: Port
    number: int

    @property
    def scheme(self) -> str:
        return "https" if "tls" in self.port.handlers or self.number == _HTTPS else "http"


class Edge:
    """The proxy in front of a `Sim`'s machines. Must be closed before the simulator.

    Args:
        sim: whose machines it sends to. `Timing.idle` says after how many seconds it stops an idle machine.
        patience: seconds in which a machine must be found, started and reached.
    """

    def __init__(self, sim: Sim, *, patience: float = 30.0) -> None:
        self._world, self._life = sim.world, sim.life
        self._leases = Leases(sim.world)
        self._patience = patience
        self._port = 0
        self._connections: Counter[str] = Counter()
        self._last: dict[str, float] = {}
        self._http: aiohttp.ClientSession | None = None
        self._sleeper: asyncio.Task[None] | None = None
        # A caller that hangs up ends its connection to the machine too, else an idle machine would look busy.
        server = web.Server(self._serve, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)

    async def start(self, host: str, port: int) -> str:
        """Listens, and returns the base URL; port 0 takes a free one. Raises OSError."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024).start()
        address = self._runner.addresses[0]
        self._port = address[1]
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._http = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=["accept", "accept-encoding", "content-type", "user-agent"],
        )
        self._sleeper = asyncio.create_task(self._autostop(), name="autostop")
        return f"http://{address[0]}:{address[1]}"

    async def close(self) -> None:
        """Stops listening; connections are cut."""
        if self._sleeper is not None:
            self._sleeper.cancel()
            await asyncio.wait({self._sleeper})
        await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    # Finding a machine

    def _app(self, request: web.BaseRequest) -> tuple[App, int | None]:
        """The app of the Host header, and the public port in it (the edge's own says nothing). Raises _Unroutable."""
        host, _, port = request.headers.get(hdrs.HOST, "").partition(":")
        app = self._world.apps.get(host.lower().removesuffix(_DOMAIN)) if host.lower().endswith(_DOMAIN) else None
        if app is None:
            raise _Unroutable(503, f"no app has the host name {host!r}; it is <app>{_DOMAIN}")
        if all(ip.type == "private_v6" for ip in app.ips):
            raise _Unroutable(503, f"app {app.name} has no public IP address; assign one (POST …/ip_assignments)")
        return app, int(port) if port.isdecimal() and int(port) != self._port else None

    def _routes(self, app: App, wanted: int | None) -> list[_Route]:
        """All machines that serve this public port and may be sent to. Without a port it is 443, else 80."""
        routes = [
            _Route(machine, index, service, port, number)
            for machine in app.machines.values()
            if machine.state not in ("destroying", "destroyed") and not machine.cordoned and machine.host.up
            for index, service in enumerate(machine.config.services)
            if service.protocol == "tcp"
            for port in service.ports
            for number in ([wanted] if wanted is not None else [_HTTPS, _HTTP])
            if port.takes(number)
        ]
        number = max((route.number for route in routes), default=0)
        return [route for route in routes if route.number == number]

    def _choose(self, request: web.BaseRequest, app: App, wanted: int | None) -> tuple[_Route | None, str | None]:
        """Where to send it now (None: to nobody yet), and the preferred machine that can't have it.

        A machine that sleeps is woken when no other can take the request. Raises _Unroutable.
        """
        routes = self._routes(app, wanted)
        if forced := request.headers.get(_FORCE):
            routes = [route for route in routes if route.machine.id == forced]
        if not routes:
            which = f"machine {forced}" if forced else f"port {wanted or _HTTPS}"
            raise _Unroutable(503, f"[PR01] no known healthy instances found for {which} of app {app.name}")
        preferred = request.headers.get(_PREFER)
        ready = [
            route for route in routes if route.machine.state == "started" and not failing(route.machine, route.index)
        ]
        ready.sort(key=lambda route: (route.machine.id != preferred, self._connections[route.machine.id]))
        if ready:
            missing = preferred if preferred and ready[0].machine.id != preferred else None
            return ready[0], missing
        if not any(route.machine.state in _CHANGING for route in routes):
            self._wake(routes, preferred)
        return None, None

    def _wake(self, routes: list[_Route], preferred: str | None) -> None:
        """Starts one machine. Raises _Unroutable when there is none to start."""
        asleep = [route.machine for route in routes if route.machine.state in _ASLEEP and route.service.autostart]
        if not asleep:
            states = ", ".join(sorted({f"{route.machine.id} {route.machine.state}" for route in routes}))
            raise _Unroutable(503, f"[PR01] no known healthy instances found; there are: {states}")
        obstacles = {machine.id: self._obstacle(machine) for machine in asleep}
        free = [machine for machine in asleep if obstacles[machine.id] is None]
        if not free:
            raise _Unroutable(503, f'[PM01] machines API returned an error: "{obstacles[asleep[0].id]}"')
        machine = min(free, key=lambda machine: (machine.id != preferred, machine.state != "suspended"))
        if self._world.clock.now() >= machine.active_until:
            with because("proxy"):
                self._life.start(machine)

    def _obstacle(self, machine: Machine) -> str | None:
        """Why the API would refuse to start this machine that sleeps, in its words."""
        if (lease := self._leases.held(machine)) is not None:
            return errors.leased(machine.id, lease.owner, lease.expires_at).error
        if not hosts.reserves(machine) and (lack := hosts.lack(machine.host, machine.config.guest)) is not None:
            return errors.host_full(lack).error
        return None

    async def _candidates(self, request: web.BaseRequest) -> AsyncIterator[tuple[_Route, str | None]]:
        """Machines to try, one after the other, for as long as there is patience. Raises _Unroutable."""
        app, wanted = self._app(request)
        failure = _Unroutable(503, f"[PM07] no machine of app {app.name} became ready within {self._patience:g} s")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while loop.time() < deadline:
            route, missing = self._choose(request, app, wanted)
            if route is not None:
                yield route, missing
                at = f"port {route.service.internal_port} of machine {route.machine.id}"
                failure = _Unroutable(502, f"[PC01] instance refused connection: nobody listens at {at}")
            await asyncio.sleep(_RETRY)
        raise failure

    # Carrying

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = f"{self._world.ids.ulid()}-{NEAREST}"
        try:
            async for route, missing in self._candidates(request):
                headers = self._headers(request, route, request_id, missing)
                with self._connected(route.machine):
                    try:
                        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
                            return await self._websocket(request, route, headers)
                        return await self._pass(request, route, headers)
                    except aiohttp.ClientConnectorError:  # nothing was sent
                        continue
            raise AssertionError("candidates end by raising")
        except _Unroutable as error:
            status, text = error.status, str(error)
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status, headers={"fly-request-id": request_id}, text=error.message)
        except aiohttp.ClientError as error:
            status, text = 502, f"[PC05] the machine broke off: {error}"
        return web.Response(status=status, headers={"fly-request-id": request_id}, text=f"fly-proxy: {text}\n")

    @contextmanager
    def _connected(self, machine: Machine) -> Iterator[None]:
        self._connections[machine.id] += 1
        try:
            yield
        finally:
            self._connections[machine.id] -= 1
            self._last[machine.id] = self._world.clock.now()

    def _headers(
        self, request: web.BaseRequest, route: _Route, request_id: str, missing: str | None
    ) -> "CIMultiDict[str]":
        headers = CIMultiDict(
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP and name.lower() not in _OURS
        )
        client = request.remote or ""
        before = headers.popall("x-forwarded-for", [])
        headers.extend(
            {
                "fly-client-ip": client,
                "fly-region": NEAREST,
                "fly-forwarded-port": str(route.number),
                "fly-request-id": request_id,
                "via": "1.1 fly.io",
                "x-forwarded-for": ", ".join([*before, client]),
            }
        )
        headers["x-forwarded-proto"] = route.scheme
        headers["x-forwarded-port"] = str(route.number)
        headers["x-forwarded-ssl"] = "on" if route.scheme == "https" else "off"
        if missing is not None:
            headers["fly-preferred-instance-unavailable"] = missing
        return headers

    async def _pass(self, request: web.BaseRequest, route: _Route, headers: "CIMultiDict[str]") -> web.StreamResponse:
        assert self._http is not None
        body = request.content if request.body_exists else None
        async with self._http.request(
            request.method, _url(request, route), headers=headers, data=body, allow_redirects=False
        ) as reply:
            response = web.StreamResponse(status=reply.status, reason=reply.reason)
            for name, value in reply.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    response.headers.add(name, value)
            response.headers["fly-request-id"] = headers["fly-request-id"]
            await response.prepare(request)
            try:
                async for chunk in reply.content.iter_any():
                    await response.write(chunk)
            except aiohttp.ClientError:  # too late for another answer: the caller must see that it is not whole
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write_eof()
            return response

    async def _websocket(
        self, request: web.BaseRequest, route: _Route, headers: "CIMultiDict[str]"
    ) -> web.StreamResponse:
        assert self._http is not None
        protocols = [
            word.strip() for word in request.headers.get("sec-websocket-protocol", "").split(",") if word.strip()
        ]
        for name in _OF_A_HANDSHAKE:
            headers.popall(name, None)
        async with self._http.ws_connect(
            _url(request, route), headers=headers, protocols=protocols, autoping=False, max_msg_size=0
        ) as inside:
            outside = web.WebSocketResponse(
                protocols=[inside.protocol] if inside.protocol else (), autoping=False, max_msg_size=0, compress=False
            )
            await outside.prepare(request)
            ways = {asyncio.create_task(_pump(outside, inside)), asyncio.create_task(_pump(inside, outside))}
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            return outside

    # Putting to sleep

    async def _autostop(self) -> None:
        """Wakes up exactly when the next machine may have been idle for long enough."""
        idle = self._world.timing.idle
        while True:
            now = self._world.clock.now()
            due = {machine.id: self._idle_since(machine) + idle for machine in self._stoppable()}
            for machine in self._stoppable():
                if due[machine.id] <= now and self._enough_others(machine):
                    self._sleep(machine)
            await asyncio.sleep(min([idle, *(moment - now for moment in due.values() if moment > now)]))

    def _stoppable(self) -> list[Machine]:
        return [
            machine
            for machine in self._world.machines.values()
            if machine.state == "started"
            and machine.host.up
            and machine.config.services
            and all(service.autostop not in (False, "off") for service in machine.config.services)
            and self._connections[machine.id] == 0
            and self._leases.held(machine) is None
        ]

    def _idle_since(self, machine: Machine) -> float:
        since = machine.boot.since if machine.boot is not None else self._world.clock.now()
        return max(since, self._last.get(machine.id, 0.0))

    def _enough_others(self, machine: Machine) -> bool:
        """Whether as many machines as each of its services asks for run without this one."""
        others = [other for other in machine.app.machines.values() if other is not machine and other.state == "started"]
        return all(
            sum(
                any(theirs.internal_port == service.internal_port for theirs in other.config.services)
                for other in others
            )
            >= service.min_machines_running
            for service in machine.config.services
        )

    def _sleep(self, machine: Machine) -> None:
        """Suspends it where all its services say so and it can be, else stops it."""
        suspend = all(service.autostop == "suspend" for service in machine.config.services)
        with because("autostop"):
            if suspend and unsuspendable(machine.config) is None:
                self._life.suspend(machine)
            else:
                self._life.stop(machine, *stop_of(machine))


async def _pump(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    """Messages go from one to the other until the first closes."""
    async for message in source:
        match message.type:
            case aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
            case aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)
            case aiohttp.WSMsgType.PING:
                await target.ping(message.data)
            case aiohttp.WSMsgType.PONG:
                await target.pong(message.data)
    await target.close(code=source.close_code or aiohttp.WSCloseCode.GOING_AWAY)


def _url(request: web.BaseRequest, route: _Route) -> URL:
    """Path and query go on byte by byte."""
    return URL(f"http://{route.machine.address}:{route.service.internal_port}{request.raw_path}", encoded=True)
