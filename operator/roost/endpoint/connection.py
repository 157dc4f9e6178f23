"""One connection of the endpoint: in which stage it is and since when, so that a sweep can end what takes too long.

Promises: no task, no timer and no closure of its own. A request must arrive whole in time (slow senders, half-open
connections), an answer be taken in time (slow readers); whoever neither sends nor reads is closed after a while. The
head of a request is bounded as a whole, not only line by line.
"""

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING

from aiohttp import web

from roost.agents.sessions import Session
from roost.endpoint.problems import Problem
from roost_agent.contract import MAX_HEARTBEAT_BYTES

if TYPE_CHECKING:
    from roost.endpoint.site import Server

MAX_LINE_BYTES = 8190
MAX_HEADERS = 64
MAX_HEAD_BYTES = 32 * 1024
LINGER_SECONDS = 2.0
"""For so long the rest of a body that was refused unread is taken in, so that the answer arrives (RFC 9112, 9.6)."""
_WHY = b'{"error":"too_large","message":"the head of a request may have %d bytes"}' % MAX_HEAD_BYTES
_HEAD_TOO_LARGE = b"\r\n".join(
    [
        b"HTTP/1.1 431 Request Header Fields Too Large",
        b"Content-Type: application/json; charset=utf-8",
        b"Content-Length: %d" % len(_WHY),
        b"Connection: close",
        b"",
        _WHY,
    ]
)


class Stage(IntEnum):
    """What is waited for."""

    IDLE = 0
    RECEIVING = 1
    WORKING = 2
    ANSWERING = 3


class Connection(web.RequestHandler):
    """aiohttp's, with a stage."""

    __slots__ = ("_received", "_server", "_since", "_stage", "caller", "route")

    def __init__(self, server: "Server", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_SECONDS,
            read_bufsize=MAX_HEARTBEAT_BYTES,
            keepalive_timeout=0,
            access_log=None,  # type: ignore[arg-type] # as web.Server's own callers do
        )
        self._keepalive_handle = server.swept  # so that no timer of its own is ever made
        self._server = server
        self.caller: Session | None = None
        """Who proved to be calling, in this request."""
        self.route = ""
        self._enter(Stage.RECEIVING)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.opened.add(self)
        self._enter(Stage.RECEIVING)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.IDLE:
            self._enter(Stage.RECEIVING)
        super().data_received(data)
        if self._stage is Stage.RECEIVING:
            self._received += len(data)
            if self._received > MAX_HEAD_BYTES and self.unasked and self.transport is not None:
                self.transport.write(_HEAD_TOO_LARGE)
                self._server.closed("large_head")
                self.force_close()

    def arrived(self) -> None:
        """The request is here whole: from now on nobody waits for its sender."""
        self._enter(Stage.WORKING)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._server.draining:
            resp.force_close()
        began = self._since
        self._enter(Stage.ANSWERING)
        finished = await super().finish_response(request, resp, start_time)
        self._server.access.tell(request, resp, self, self._loop.time() - began)
        self.caller, self.route = None, ""
        self._enter(Stage.IDLE)
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A defect of ours is logged and answered as one; what is no HTTP is nobody's news."""
        if status == 400:
            answer = Problem(400, "bad_request", "this is no request that HTTP knows").answer()
        else:
            super().handle_error(request, status, exc, message)
            answer = Problem(status, "internal_error", "the operator failed; its log says how").answer()
        answer.force_close()
        return answer

    @property
    def unasked(self) -> bool:
        """Whether no request has come that would have to be answered first."""
        return self._waiter is not None and not self._waiter.done()

    def overdue(self, now: float) -> str | None:
        """Why it is to be closed, if it is."""
        limits, passed = self._server.limits, now - self._since
        if self._stage is Stage.IDLE:
            if passed > limits.answer_seconds and self.transport and self.transport.get_write_buffer_size():
                return "slow_reader"
            return "idle" if passed > limits.idle_seconds else None
        if self._stage is Stage.RECEIVING:
            return "slow_sender" if passed > limits.request_seconds else None
        return "slow_reader" if self._stage is Stage.ANSWERING and passed > limits.answer_seconds else None

    def abort(self) -> None:
        """Ends it at once; what was written and not taken is lost."""
        if self.transport is not None:
            self.transport.abort()

    def _enter(self, stage: Stage) -> None:
        self._stage, self._since, self._received = stage, self._loop.time(), 0
