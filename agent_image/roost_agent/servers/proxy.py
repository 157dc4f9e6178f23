"""The way from outside to the gateway, which itself listens where nobody else comes.

Promises: nothing passes without the token, and nothing while the gateway is not ready. What passes is streamed both
ways piece by piece, with at most a few hundred kB in memory however slow either end is. Each request has a connection
to the gateway of its own, so no two can be mixed up; an answer that breaks off breaks off for its caller too, and a
caller who leaves is left alone.

To the gateway every caller is one of this machine: it sees its own address as Host and no trace of other proxies,
because whoever has the token may do everything there. `Authorization` is the gateway's business and passes unchanged,
the headers that open this door alone do not.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from roost_agent.contract.paths import GATEWAY_TOKEN_HEADERS, PORTS
from roost_agent.servers.access import PROXY_TOKEN_HEADERS, admit
from roost_agent.servers.site import HANDSHAKE_SECONDS, KILOCLAW, SERVER, Limits, Problem, later, listen

__all__ = ["MOST_WEBSOCKETS", "Traffic", "serve"]

MOST_WEBSOCKETS = 100
IDLE_SECONDS = 600.0
"""How long nothing may move, in either direction, before a request or a WebSocket is ended (S1-101)."""
_LIMITS = Limits(connections=256)
_PIECE_BYTES = 64 * 1024
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Of one connection and not of the message (RFC 9110 section 7.6.1)."""
_OTHERS_SAID = frozenset({"forwarded", "via", "x-real-ip", "fly-client-ip"})
_OTHERS_SAID_PREFIXES = ("x-forwarded-", "fly-forwarded-")
"""By these OpenClaw would take a caller for one from elsewhere, which it asks for more than the token."""
_OURS = frozenset(name.lower() for name in (*GATEWAY_TOKEN_HEADERS, *PROXY_TOKEN_HEADERS))
_NOT_ONWARD = _HOP_BY_HOP | _OTHERS_SAID | _OURS | {"host", "expect"}
_AUTOMATIC = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)
_NEVER = frozenset({"CONNECT", "TRACE"})
Moved = Callable[[], None]


class Traffic:
    """What goes through the proxy, of those who were let in.

    Args:
        now: The wall clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._open = 0
        self._last: datetime | None = None

    @property
    def connections(self) -> int:
        """Requests under way and WebSockets that are open; a connection on which nothing is asked is none."""
        return self._open

    @property
    def last_at(self) -> datetime | None:
        """When a caller last asked or sent something, or was answered.

        What a gateway sends into a WebSocket on its own does not count, nor does the answer to its ping: OpenClaw
        sends something every 30 s at the latest.
        """
        return self._last

    def moved(self) -> None:
        self._last = self._now()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """A request or a WebSocket, from here to the end of the block."""
        self._open += 1
        self.moved()
        try:
            yield
        finally:
            self._open -= 1
            self.moved()


async def serve(
    target: tuple[str, int],
    *,
    token: Callable[[], str | None],
    ready: Callable[[], bool],
    traffic: Traffic,
    address: str | None,
    port: int,
    idle: float = IDLE_SECONDS,
    handshake: float = HANDSHAKE_SECONDS,
) -> web.ServerRunner:
    """Opens the port; the caller ends it with `cleanup()`.

    Args:
        target: Address and port of the gateway, on this machine.
        token: The gateway token; None while it is not known.
        ready: Whether the gateway is.
        traffic: Where is counted what passes.
        address: Where to listen; None: every address of the machine.
        port: Where to listen.
        idle: Seconds in which something must move.
        handshake: Seconds that a caller has for its first request, and the gateway for accepting a WebSocket.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    # From the gateway's own address, so that what passes here is not counted as a visit to it a second time.
    connector = aiohttp.TCPConnector(limit=0, force_close=True, local_addr=(target[0], 0))
    session = aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_AUTOMATIC,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=handshake),
        middlewares=(_once,),
        read_bufsize=_PIECE_BYTES,
    )
    proxy = _Proxy(session, target, token, ready, traffic, idle, handshake)
    limits = Limits(_LIMITS.connections, handshake)
    try:
        return await listen(proxy.answer, address, port, limits, cancels=True, ending=proxy.end)
    except OSError:
        await session.close()
        raise


class _Proxy:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: tuple[str, int],
        token: Callable[[], str | None],
        ready: Callable[[], bool],
        traffic: Traffic,
        idle: float,
        handshake: float,
    ) -> None:
        self._session, self._token, self._ready, self._traffic = session, token, ready, traffic
        self._base = str(URL.build(scheme="http", host=target[0], port=target[1]))
        self._idle, self._handshake = idle, handshake
        self._websockets = 0
        self._under_way: set[asyncio.Task[Any] | None] = set()
        self._loop = asyncio.get_running_loop()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await admit(request, self._token(), *PROXY_TOKEN_HEADERS)
        if request.path.startswith(KILOCLAW):  # where KiloClaw answers them; the gateway would, with a page
            elsewhere = f"the controller's calls are answered on port {PORTS['control']}"
            raise Problem(404, "controller_route_unavailable", elsewhere)
        if not self._ready():
            raise later("not_ready", "the gateway is not ready: try again")
        if request.method in _NEVER:
            raise Problem(405, "method_not_allowed", f"{request.method} does not pass here")
        if not request.raw_path.startswith("/"):
            raise Problem(400, "bad_request", "the request's target must be a path")
        if not _is_utf8(request.raw_path, *request.headers.values()):
            raise Problem(400, "bad_request", "the path and every header must be UTF-8")
        with self._traffic.one_more(), self._ended_with_us():
            try:
                return await (self._websocket if _upgrades(request) else self._plain)(request)
            except _NotThere:
                raise later("not_ready", "the gateway takes no connection: try again") from None
            except TimeoutError:
                raise Problem(504, "gateway_timeout", "the gateway did not answer in time") from None
            except aiohttp.ClientError:
                raise Problem(502, "bad_gateway", "the gateway broke off, or did not speak HTTP") from None

    async def end(self) -> None:
        """Cuts whatever is under way."""
        for task in self._under_way:
            if task is not None:
                task.cancel()
        await self._session.close()

    @contextmanager
    def _ended_with_us(self) -> Iterator[None]:
        task = asyncio.current_task()
        self._under_way.add(task)
        try:
            yield
        finally:
            self._under_way.discard(task)

    def _url(self, request: web.BaseRequest) -> URL:
        return URL(self._base + request.raw_path, encoded=True)

    async def _plain(self, request: web.BaseRequest) -> web.StreamResponse:
        async with asyncio.timeout(self._idle) as patience:

            def moved() -> None:
                self._traffic.moved()
                patience.reschedule(self._loop.time() + self._idle)

            body = _body(request, moved) if request.body_exists else None
            headers = _onward(request.headers)
            async with self._session.request(
                request.method, self._url(request), headers=headers, data=body, allow_redirects=False
            ) as given:
                return await _handed_on(request, given, moved)

    async def _websocket(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._websockets >= MOST_WEBSOCKETS:
            raise later("too_many_connections", f"there are {MOST_WEBSOCKETS} WebSockets already: try again")
        self._websockets += 1
        try:
            return await self._tunnel(request)
        finally:
            self._websockets -= 1

    async def _tunnel(self, request: web.BaseRequest) -> web.StreamResponse:
        """Bytes, not messages: who speaks what in a WebSocket is between caller and gateway."""
        headers = _onward(request.headers)
        headers.popall(hdrs.CONTENT_LENGTH, None)
        headers[hdrs.CONNECTION], headers[hdrs.UPGRADE] = "Upgrade", "websocket"
        async with asyncio.timeout(self._handshake) as patience:
            url = self._url(request)
            async with self._session.get(url, headers=headers, allow_redirects=False, read_until_eof=False) as given:
                patience.reschedule(self._loop.time() + self._idle)

                def moved(_: bytes = b"") -> None:
                    patience.reschedule(self._loop.time() + self._idle)

                def said(piece: bytes) -> None:
                    if piece and not _is_pong(piece):
                        self._traffic.moved()
                    moved()

                if given.status != 101:
                    return await _handed_on(request, given, moved)
                return await self._joined(request, given, said, moved)

    async def _joined(
        self,
        request: web.BaseRequest,
        given: aiohttp.ClientResponse,
        said: Callable[[bytes], None],
        moved: Callable[[bytes], None],
    ) -> web.StreamResponse:
        connection = given.connection
        if connection is None or connection.protocol is None or not _is_websocket(given.headers):
            raise Problem(502, "bad_gateway", "the gateway went over to something that is no WebSocket")
        answer = web.StreamResponse(status=101, reason=given.reason, headers=_back(given.headers))
        answer.headers[hdrs.CONNECTION], answer.headers[hdrs.UPGRADE] = "Upgrade", "websocket"
        answer.force_close()
        await answer.prepare(request)
        gateway = connection.protocol
        from_gateway, from_caller = _Bytes(gateway, self._loop), _Bytes(request.protocol, self._loop)
        gateway.set_parser(from_gateway, from_gateway.stream)
        request.protocol.set_parser(from_caller)  # type: ignore[arg-type] # any that is fed; aiohttp has no such type
        request.protocol.keep_alive(False)
        both = (
            asyncio.create_task(_copy(from_caller.stream, StreamWriter(gateway, self._loop).write, said)),
            asyncio.create_task(_copy(from_gateway.stream, answer.write, moved)),
        )
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            _cut(request)  # nothing has moved for too long, or the caller has left
            raise
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        return answer


class _NotThere(aiohttp.ClientError):
    """The gateway takes no connection."""


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keeps aiohttp from making a request twice, which it does with other errors of the same kind."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError as error:
        raise _NotThere from error
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientError from error


class _Bytes:
    """What comes from one end once it is a WebSocket; reading from it goes no faster than it is taken."""

    def __init__(self, protocol: BaseProtocol, loop: asyncio.AbstractEventLoop) -> None:
        self.stream = aiohttp.StreamReader(protocol, _PIECE_BYTES, loop=loop)

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.stream.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self.stream.feed_eof()


async def _copy(
    source: aiohttp.StreamReader, write: Callable[[bytes], Awaitable[None]], moved: Callable[[bytes], None]
) -> None:
    async for piece in source.iter_any():
        moved(piece)
        await write(piece)
        moved(b"")


def _is_pong(piece: bytes) -> bool:
    """Whether this is one pong of a caller (RFC 6455 section 5.2); a piece that holds more counts as something said."""
    return len(piece) >= 6 and piece[0] == 0x8A and len(piece) == 6 + (piece[1] & 0x7F)


async def _body(request: web.BaseRequest, moved: Moved) -> AsyncIterator[bytes]:
    """What the caller sends, as it comes; only now that it was let in is it told to go on."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    async for piece in request.content.iter_any():
        moved()
        yield piece


async def _handed_on(request: web.BaseRequest, given: aiohttp.ClientResponse, moved: Moved) -> web.StreamResponse:
    """The gateway's answer, as it comes.

    Raises:
        ConnectionError: it broke off, or the caller left, when half of it was on its way.
    """
    if given.status < 200:
        raise Problem(502, "bad_gateway", "the gateway went over to something that nobody asked for")
    answer = web.StreamResponse(status=given.status, reason=given.reason, headers=_back(given.headers))
    if _upgrades(request):
        answer.force_close()
    await answer.prepare(request)
    moved()
    try:
        async for piece in given.content.iter_any():
            moved()
            await answer.write(piece)
            moved()
    except aiohttp.ClientError as error:
        _cut(request)
        raise ConnectionError("the gateway broke off") from error
    except asyncio.CancelledError:
        _cut(request)  # nothing has moved for too long, or the caller has left
        raise
    await answer.write_eof()
    return answer


def _is_utf8(*texts: str) -> bool:
    """Whether they can be passed on as they came: aiohttp leaves out what it can't encode."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(request: web.BaseRequest) -> None:
    """Ends a connection so that nobody can take what has arrived for the whole."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        request.transport.abort()


def _upgrades(request: web.BaseRequest) -> bool:
    """Only GET of HTTP/1.1, and only to WebSocket (RFC 6455 section 4.1); another wish is passed over."""
    http11 = request.version >= aiohttp.HttpVersion11
    return request.method == "GET" and http11 and _is_websocket(request.headers)


def _is_websocket(headers: CIMultiDictProxy[str]) -> bool:
    upgrade = headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"
    return upgrade and "upgrade" in _named(headers)


def _named(headers: CIMultiDictProxy[str]) -> set[str]:
    """What the connection's own header names (RFC 9110 section 7.6.1)."""
    return {name.strip().lower() for value in headers.getall(hdrs.CONNECTION, ()) for name in value.split(",")}


def _onward(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What the gateway gets of a request's headers."""
    # Content-Length may not be named away: the body would be another (RFC 9112 section 6).
    gone = _NOT_ONWARD | (_named(headers) - {"content-length"})
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in gone and not name.lower().startswith(_OTHERS_SAID_PREFIXES)
    )


def _back(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What the caller gets of an answer's headers."""
    gone = _HOP_BY_HOP | (_named(headers) - {"content-length"})
    kept = CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in gone)
    kept.setdefault(hdrs.SERVER, SERVER)
    return kept
