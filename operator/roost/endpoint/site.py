"""Where the endpoint listens: it accepts, ends what takes too long, and goes away without leaving anybody waiting.

Promises: never more connections than are allowed, TLS handshakes under way among them: one too many is closed at once
and those that are there live on. One sweep looks after all of them. On leaving: nobody new, an answer for everybody who
waits for one, then the end, within a bounded time.
"""

import asyncio
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader

from roost.endpoint.access import AccessLog
from roost.endpoint.connection import Connection
from roost.endpoint.server import Endpoint
from roost.settings import EndpointLimits
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
BACKLOG = 1024
SWEEP_SECONDS = 1.0
AGAIN_SECONDS = 1.0
"""How long nobody is accepted after the system had no room for one more (asyncio's own pause)."""
DRAIN_SECONDS = 5.0
SPARE_DESCRIPTORS = 512
"""Kept for calls to Kubernetes, to Fly and to other replicas."""


class Server(web.Server):
    """aiohttp's, that makes our connections and knows those that are open."""

    def __init__(
        self,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: EndpointLimits,
        metrics: Metrics,
        access: AccessLog,
    ) -> None:
        super().__init__(answer, request_factory=self._request, handler_cancellation=True)
        self.limits, self.access = limits, access
        self.opened: set[Connection] = set()
        self.draining = False
        self.empty = asyncio.Event()
        self.swept = self._loop.call_soon(lambda: None)
        """In the place of a timer in each connection."""
        self._metrics = metrics

    def __call__(self) -> Connection:
        return Connection(self, self._loop)

    def lost(self, connection: Connection) -> None:
        self.opened.discard(connection)
        if self.draining and not self.opened:
            self.empty.set()

    def closed(self, reason: str) -> None:
        """Counts a connection that we ended."""
        self._metrics.endpoint_closed.labels(reason).inc()

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop)


class Site:
    """The endpoint on its address; `start`, then `drain`.

    Args:
        tls: with what connections are secured; None for plain HTTP.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: EndpointLimits,
        metrics: Metrics,
        access: AccessLog,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._endpoint, self._limits, self._tls = endpoint, limits, tls
        self._loop = asyncio.get_running_loop()
        self._server = Server(endpoint.answer, limits, metrics, access)
        self._most = min(limits.connections, descriptors() - SPARE_DESCRIPTORS)
        self._sockets: list[socket.socket] = []
        self._taking: set[asyncio.Task[None]] = set()
        metrics.endpoint_connections.set_function(lambda: float(self._open))

    async def start(self, listen: str) -> None:
        """Listens on `host:port`; an empty host means every address.

        Raises:
            OSError: the address is taken, or is none of this machine's.
        """
        if self._most < self._limits.connections:
            log.info("fewer connections than endpoint.limits.connections: the limit of open files", most=self._most)
        host, _, port = listen.rpartition(":")
        self._sockets = await _listening(host.strip("[]") or None, int(port))
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)
        self._sweeping = asyncio.create_task(self._sweep(), name="endpoint sweep")

    @property
    def port(self) -> int:
        """Where it listens, also when any port was asked for."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def _open(self) -> int:
        return len(self._server.opened) + len(self._taking)

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Accepts nobody, answers all who wait, and ends; after `seconds` whatever is left is cut."""
        while self._sockets:
            listening = self._sockets.pop()
            self._loop.remove_reader(listening)
            listening.close()
        for task in self._taking:
            task.cancel()
        self._server.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._endpoint.release()
                for connection in [c for c in self._server.opened if c.unasked]:
                    connection.force_close()
                if self._server.opened:
                    await self._server.empty.wait()
        except TimeoutError:
            log.info("connections were cut at the end", connections=len(self._server.opened))
        self._sweeping.cancel()
        for connection in list(self._server.opened):
            connection.abort()
        await asyncio.gather(self._sweeping, *self._taking, return_exceptions=True)
        await self._server.shutdown(0)

    # --- Accepting ---------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(BACKLOG):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("no connection can be accepted for a moment", error=error.strerror)
                self._loop.remove_reader(listening)
                self._loop.call_later(AGAIN_SECONDS, self._accept_again, listening)
                return
            if self._open >= self._most:
                accepted.close()
                self._server.closed("full")
                continue
            accepted.setblocking(False)
            task = self._loop.create_task(self._take(accepted))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, listening)

    async def _take(self, accepted: socket.socket) -> None:
        """Makes it a connection; with TLS that takes a handshake, which must not take long either."""
        patience = self._limits.request_seconds if self._tls is not None else None
        try:
            await self._loop.connect_accepted_socket(
                self._server, accepted, ssl=self._tls, ssl_handshake_timeout=patience, ssl_shutdown_timeout=patience
            )
        except (OSError, TimeoutError):
            self._server.closed("no_handshake")
            accepted.close()

    # --- Sweeping ----------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        limits = self._limits
        pause = min(SWEEP_SECONDS, limits.request_seconds / 4, limits.answer_seconds / 4, limits.idle_seconds / 4)
        while True:
            await asyncio.sleep(pause)
            now = self._loop.time()
            for connection in list(self._server.opened):
                if (reason := connection.overdue(now)) is not None:
                    self._server.closed(reason)
                    connection.abort()
            self._endpoint.sweep()


def descriptors() -> int:
    """How many files this process may have open, after raising that to what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 2**20 if hard == resource.RLIM_INFINITY else hard


async def _listening(host: str | None, port: int) -> list[socket.socket]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listening = socket.socket(family, kind, protocol)
            except OSError:  # a family that this kernel does not have
                continue
            made.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            listening.setblocking(False)
    except OSError:
        for listening in made:
            listening.close()
        raise
    return made
