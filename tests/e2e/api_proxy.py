"""An API server that misbehaves: a proxy before the real one, with faults by code.

It runs in a thread and loop of its own; every method may be called from any thread and has taken effect when it
returns. Each fault answers a `Fault`: it ends by itself after `times` hits, by `end()`, or with its `with` block.

    with ApiProxy(stack.admin.server, stack.admin.ca_file) as proxy:
        cluster = Cluster(proxy.url, None, fixed_token=token)       # in process: plain HTTP
        with proxy.answers(503, on=watches("agents")):
            ...
        proxy.cut()

A process finds the API server by KUBERNETES_SERVICE_HOST and _PORT and speaks TLS: give `tls=serving_pair(stack)`, the
API server's own certificate (for 127.0.0.1, of the CA that the operator trusts already), and set `proxy.port`.
"""

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp import web

from roost.local.stack import Stack

T = TypeVar("T")
_HOP_BY_HOP = {"connection", "host", "keep-alive", "transfer-encoding", "content-length", "upgrade", "te", "trailer"}
_REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 410: "Expired", 429: "TooManyRequests"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came in; `at` is `time.monotonic()`."""

    method: str
    path: str
    query: Mapping[str, str]
    at: float

    @property
    def watch(self) -> bool:
        return self.query.get("watch") in ("true", "1")

    @property
    def lists(self) -> bool:
        """Reads a collection of our kinds, and not to watch it."""
        return self.method == "GET" and not self.watch and self.path.endswith(("/agents", "/fleets", "/secrets"))


On = Callable[[Call], bool]
Event = dict[str, Any]


def everything(_: Call) -> bool:
    return True


def watches(plural: str = "") -> On:
    """Watches of one of our kinds, or of all three."""
    return lambda call: call.watch and "/roost.dev/" in call.path and call.path.endswith(plural)


def lists(plural: str = "") -> On:
    """Lists of one of our kinds, or of all three; their further pages too."""
    return lambda call: call.lists and call.path.endswith(plural)


def pages(plural: str = "") -> On:
    """Further pages of a list."""
    return lambda call: call.lists and call.path.endswith(plural) and "continue" in call.query


@dataclass(slots=True, eq=False)
class Fault:
    """What goes wrong, and how often it did."""

    on: On
    left: int | None = None
    hits: int = 0
    status: int = 0
    body: bytes = b""
    seconds: float = 0.0
    loses: Callable[[Event], bool] | None = None
    holds: bool = False
    stale: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    def hit(self) -> None:
        self.hits += 1
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.over.set()

    def end(self) -> None:
        assert self._loop is not None
        _done(self._loop, _call(self.over.set))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


@dataclass(slots=True, eq=False)
class _Stream:
    """One open watch."""

    call: Call
    upstream: aiohttp.ClientResponse
    answer: web.StreamResponse
    transport: asyncio.Transport


class ApiProxy:
    """Stands before the API server at `upstream`. Use with `with` or `async with`."""

    def __init__(self, upstream: str, ca_file: Path, *, tls: tuple[Path, Path] | None = None) -> None:
        self._upstream, self._ca_file, self._tls = upstream, ca_file, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-proxy", daemon=True)
        self._faults: list[Fault] = []
        self._streams: set[_Stream] = set()
        self._connections: set[asyncio.Transport] = set()
        self._last: dict[str, bytes] = {}
        self._calls: list[Call] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    # --- What was seen ---------------------------------------------------------------------------------------------

    def calls(self, on: On = everything) -> list[Call]:
        """Every call so far that fits, those that a fault met too."""
        return [c for c in list(self._calls) if on(c)]

    def open_watches(self, plural: str = "") -> int:
        """How many watches of our kinds are open, in whatever state a fault holds them."""
        on = watches(plural)
        return sum(on(s.call) for s in list(self._streams))

    # --- Faults ----------------------------------------------------------------------------------------------------

    def answers(
        self, status: int, *, on: On = everything, times: int | None = None, message: str = "by the proxy"
    ) -> Fault:
        """The call never reaches the API server and gets this status, as Kubernetes words it."""
        return self._add(Fault(on, times, status=status, body=json.dumps(_status(status, message)).encode()))

    def answers_with(self, body: bytes, *, on: On, times: int | None = None) -> Fault:
        """200 and this body: half a JSON document, a page of a login portal."""
        return self._add(Fault(on, times, status=200, body=body))

    def delays(self, seconds: float, *, on: On = everything, times: int | None = None) -> Fault:
        """Calls that fit, and each line of watches that fit, come so much later."""
        return self._add(Fault(on, times, seconds=seconds))

    def holds(self, *, on: On | None = None) -> Fault:
        """Watches that fit, open or opened meanwhile, stay open and say nothing, not even bookmarks.

        When the fault ends, all that was held back comes in its order.
        """
        return self._add(Fault(on or watches(), holds=True))

    def loses(self, what: Callable[[Event], bool], *, on: On | None = None, times: int | None = None) -> Fault:
        """Events of watches that fit are never passed on; the watch goes on."""
        return self._add(Fault(on or watches(), times, loses=what))

    def lists_stale(self, *, on: On | None = None, times: int | None = None) -> Fault:
        """Lists are answered as they were answered last, before this fault."""
        return self._add(Fault(on or lists(), times, stale=True))

    def cut(self, *, on: On | None = None) -> int:
        """Resets open watches that fit; how many there were."""
        return self._run(self._end(on or watches(), None))

    def cut_after(self, line: bytes, *, on: On | None = None) -> int:
        """Says `line` (a truncated one, say) on open watches that fit, and ends them as a server does."""
        return self._run(self._end(on or watches(), line))

    def says(self, event: Event, *, on: On | None = None) -> int:
        """One more event on open watches that fit; how many heard it."""
        return self._run(self._say(on or watches(), json.dumps(event).encode() + b"\n"))

    def says_expired(self, *, on: On | None = None) -> int:
        """The ERROR event with 410 that ends a watch whose version is too old."""
        return self.says({"type": "ERROR", "object": _status(410, "too old resource version")}, on=on)

    def goes_away(self) -> None:
        """Connections are reset and refused until `comes_back`."""
        self._run(self._away())

    def comes_back(self) -> None:
        self._run(self._listen())

    # --- In the proxy's own thread ---------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return _done(self._loop, work)

    def _add(self, fault: Fault) -> Fault:
        fault._loop = self._loop
        self._run(_call(lambda: self._faults.append(fault)))
        return fault

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(
            self._upstream,
            connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(self._ca_file)), limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        await self._listen()

    async def _listen(self) -> None:
        context = None
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await self._site.start()

    async def _away(self) -> None:
        await self._site.stop()
        for transport in list(self._connections):
            transport.abort()

    async def _close(self) -> None:
        for fault in self._faults:
            fault.over.set()
        for transport in list(self._connections):
            transport.abort()
        await self._runner.cleanup()
        await self._session.close()

    async def _end(self, on: On, line: bytes | None) -> int:
        found = [s for s in self._streams if on(s.call)]
        for stream in found:
            if line is None:
                stream.transport.abort()
            else:
                await stream.answer.write(line)
                stream.upstream.close()
        return len(found)

    async def _say(self, on: On, line: bytes) -> int:
        found = [s for s in self._streams if on(s.call)]
        for stream in found:
            await stream.answer.write(line)
        return len(found)

    def _active(self, call: Call) -> list[Fault]:
        self._faults = [f for f in self._faults if not f.over.is_set()]
        return [f for f in self._faults if f.on(call)]

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if not isinstance(transport, asyncio.Transport):
            raise ConnectionResetError
        self._connections = {t for t in self._connections if not t.is_closing()} | {transport}
        call = Call(request.method, request.path, dict(request.query), time.monotonic())
        self._calls.append(call)
        for fault in self._active(call):
            if fault.seconds:
                fault.hit()
                await asyncio.sleep(fault.seconds)
            elif fault.status:
                fault.hit()
                return web.Response(status=fault.status, body=fault.body, content_type="application/json")
            elif fault.stale and request.path_qs in self._last:
                fault.hit()
                return web.Response(body=self._last[request.path_qs], content_type="application/json")
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        async with self._session.request(
            request.method, request.rel_url, headers=headers, data=await request.read() or None
        ) as upstream:
            kept = {k: v for k, v in upstream.headers.items() if k.lower() not in _HOP_BY_HOP}
            if call.watch and upstream.status == 200:
                return await self._stream(request, call, upstream, kept, transport)
            body = await upstream.read()
            if call.lists and upstream.status == 200 and "Content-Encoding" not in upstream.headers:
                self._last[request.path_qs] = body
            return web.Response(status=upstream.status, body=body, headers=kept)

    async def _stream(
        self,
        request: web.Request,
        call: Call,
        upstream: aiohttp.ClientResponse,
        headers: Mapping[str, str],
        transport: asyncio.Transport,
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        stream = _Stream(call, upstream, answer, transport)
        self._streams.add(stream)
        try:
            async for line in _lines(upstream.content):
                if await self._passes(call, line):
                    await answer.write(line)
        except aiohttp.ClientError:
            pass  # ended by `cut_after`, or the API server itself went away
        finally:
            self._streams.discard(stream)
        await answer.write_eof()
        return answer

    async def _passes(self, call: Call, line: bytes) -> bool:
        for fault in self._active(call):
            if fault.holds:
                fault.hit()
                await fault.over.wait()
            elif fault.seconds:
                fault.hit()
                await asyncio.sleep(fault.seconds)
            elif fault.loses is not None and fault.loses(json.loads(line)):
                fault.hit()
                return False
        return True


def serving_pair(stack: Stack) -> tuple[Path, Path]:
    """Certificate and key of the stack's API server."""
    return stack.layout.credentials / "serving.crt", stack.layout.credentials / "serving.key"


def _status(code: int, message: str) -> Event:
    reason = _REASONS.get(code, "InternalError")
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _done(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result(10)


async def _call(function: Callable[[], None]) -> None:
    function()


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however long; aiohttp's own iteration refuses those over 128 KiB."""
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
