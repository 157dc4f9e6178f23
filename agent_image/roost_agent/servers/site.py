"""Where a server of the machine listens, and how it says no.

Promises: never more connections than are allowed; whoever has not sent a whole first request head in time is closed;
what is no HTTP, and a defect of ours, are answered as a plain problem that quotes nothing. Nothing here is logged but
defects, and those without their text.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader

from roost_agent import log
from roost_agent.contract.wire import JSON, canonical

__all__ = [
    "AGAIN_SECONDS",
    "HANDSHAKE_SECONDS",
    "KILOCLAW",
    "SERVER",
    "Answer",
    "Limits",
    "Problem",
    "json_answer",
    "later",
    "listen",
    "routed",
]

AGAIN_SECONDS = 5
"""What Retry-After says to whoever came too early (S1-100)."""
HANDSHAKE_SECONDS = 5.0
"""From a connection to its first whole request head, and from an upgrade to its answer (S1-101)."""
KILOCLAW = "/_kilo/"
"""Before the paths of KiloClaw's controller."""
SERVER = "roost-agent"
_KEEP_ALIVE_SECONDS = 75.0
"""Between two requests of one connection, the second one's head included."""
_LINGER_SECONDS = 2.0
"""For so long the rest of a body that was refused unread is taken in, so that the answer arrives (RFC 9112, 9.6)."""
_END_SECONDS = 0.5
_MOST_HEADERS = 64
_MOST_HEAD_BYTES = 32 * 1024
"""Of a connection's first request: until it has come whole, nobody knows who sends it."""
_log = structlog.get_logger()

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
"""Answers any request; raises Problem."""


class Problem(Exception):
    """An answer that is no success: `{"error": code, "message": text}`, after which the connection ends.

    Args:
        headers: What else the answer says.
    """

    def __init__(self, status: int, code: str, message: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def answer(self, path: str = "") -> web.Response:
        """As an answer to a request of this path."""
        body = {"error": self.code, "message": self.message}
        if path.startswith(KILOCLAW):
            body["code"] = self.code  # where its callers look for it
        answer = json_answer(body, self.status, self.headers)
        answer.force_close()
        return answer


def json_answer(body: JSON, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer of JSON that nobody may keep: it may hold what only this caller is to see."""
    given = {"Server": SERVER, "Cache-Control": "no-store", **(headers or {})}
    return web.Response(body=canonical(body), status=status, headers=given, content_type="application/json")


def later(code: str, message: str) -> Problem:
    """What may be tried again soon (S1-100)."""
    return Problem(503, code, message, headers={"Retry-After": str(AGAIN_SECONDS)})


def routed(routes: Mapping[str, Answer], request: web.BaseRequest) -> Answer:
    """Who answers a request.

    Args:
        routes: By method and path, such as `GET /v1/status`.
        request: Any.

    Raises:
        Problem: 404, or 405 with the methods that there are.
    """
    method, path = "GET" if request.method == "HEAD" else request.method, request.path
    if (answer := routes.get(f"{method} {path}")) is not None:
        return answer
    if methods := [route.split()[0] for route in routes if route.split()[1] == path]:
        raise Problem(405, "method_not_allowed", "not with this method", headers={"Allow": ", ".join(methods)})
    raise Problem(404, "not_found", "there is no such call here")


class Limits:
    """Of one server.

    Args:
        connections: Most of them at once; one too many is closed unheard.
        handshake: Seconds from a connection to its first whole request head.
    """

    def __init__(self, connections: int, handshake: float = HANDSHAKE_SECONDS) -> None:
        self.connections, self.handshake = connections, handshake


class _Connection(web.RequestHandler):
    """aiohttp's, closed when nothing is asked."""

    __slots__ = ("_hushing", "_received", "_server")

    def __init__(self, server: "_Server", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            max_headers=_MOST_HEADERS,
            lingering_time=_LINGER_SECONDS,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type] # as web.Server's own callers do
        )
        self._server = server
        self._hushing: asyncio.TimerHandle | None = None
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._server.connections) > self._server.limits.connections:
            self.force_close()
            return
        self._hushing = self._loop.call_later(self._server.limits.handshake, self.force_close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._request_count == 0:
            self._received += len(data)
            if self._received > _MOST_HEAD_BYTES:
                self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.heard()
        super().connection_lost(exc)

    def heard(self) -> None:
        """A request has come, or none will."""
        if self._hushing is not None:
            self._hushing.cancel()
            self._hushing = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes what was sent
    ) -> web.StreamResponse:
        """What is no HTTP is nobody's news; a defect of ours is logged."""
        if status == 400:
            return Problem(400, "bad_request", "this is no request that HTTP knows").answer()
        if isinstance(exc, ConnectionError):
            raise exc  # the caller has left, or must not take what it has for the whole: there is nothing to answer
        _log.error("a server's defect", where=log.where(exc) if exc is not None else status)
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer is on its way already")
        return Problem(500, "internal_error", "the supervisor failed; its log says how").answer()


class _Server(web.Server):
    """aiohttp's, that makes our connections."""

    def __init__(self, answer: Answer, limits: Limits, *, cancels: bool) -> None:
        super().__init__(_refusing(answer), request_factory=self._request, handler_cancellation=cancels)
        self.limits = limits

    def __call__(self) -> _Connection:
        return _Connection(self, self._loop)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        assert isinstance(protocol, _Connection)
        protocol.heard()
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop)


class _Runner(web.ServerRunner):
    def __init__(self, server: web.Server, ending: Callable[[], Awaitable[None]] | None) -> None:
        super().__init__(server, shutdown_timeout=_END_SECONDS)
        self._ending = ending

    async def shutdown(self) -> None:
        if self._ending is not None:
            await self._ending()


async def listen(
    answer: Answer,
    address: str | None,
    port: int,
    limits: Limits,
    *,
    cancels: bool = False,
    ending: Callable[[], Awaitable[None]] | None = None,
) -> web.ServerRunner:
    """Opens the port; the caller ends it with `cleanup()`, which takes a second at most.

    Args:
        answer: Answers every request.
        address: One address of the machine; None: all.
        port: Of every such address.
        limits: Of this server.
        cancels: Whether an answer is given up when its caller has left.
        ending: Ends what would go on for long; called once nobody new is let in, and when the port can't be opened.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    runner = _Runner(_Server(answer, limits, cancels=cancels), ending)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner


def _refusing(answer: Answer) -> Answer:
    async def refusing(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await answer(request)
        except Problem as problem:
            return problem.answer(request.path)

    return refusing
