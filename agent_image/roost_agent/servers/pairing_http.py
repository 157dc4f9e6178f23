"""Who may write to the agent: lists those who wait for leave, lets them in or turns them away.

Everything is asked of the runtime at that moment; nothing is kept here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Protocol, TypeVar

from aiohttp import hdrs, web
from pydantic import Field, ValidationError

from roost_agent.contract.wire import JSON, Wire, refused
from roost_agent.runtime.openclaw.pairing import NoSuchPairing, NotReady, Pairing
from roost_agent.servers.access import admit
from roost_agent.servers.site import HANDSHAKE_SECONDS, Answer, Limits, Problem, json_answer, later, listen, routed

__all__ = ["Pairings", "described", "serve"]

MOST_BYTES = 4096
_CONNECTIONS = 64
_SECONDS = 15.0
"""For an answer of the runtime; the slowest case starts a program once."""
_T = TypeVar("_T")
_Message = TypeVar("_Message", bound=Wire)

Channel = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Code = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,32}$")]
Id = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}$")]


class Pairings(Protocol):
    """The runtime's requests for leave; raises NotReady and NoSuchPairing."""

    async def list(self) -> Sequence[Pairing]: ...
    async def approve(self, channel: str, *, id: str | None = None, code: str | None = None) -> Pairing: ...  # noqa: A002
    async def dismiss(self, channel: str, *, id: str) -> Pairing: ...  # noqa: A002


class _Approve(Wire):
    channel: Channel
    id: Id | None = None
    code: Code | None = None


class _Dismiss(Wire):
    channel: Channel
    id: Id


async def serve(
    pairings: Pairings, *, token: Callable[[], str | None], address: str | None, port: int
) -> web.ServerRunner:
    """Opens the port; the caller ends it with `cleanup()`.

    Args:
        pairings: What the runtime knows.
        token: The gateway token; None while it is not known.
        address: Where to listen; None: every address of the machine.
        port: Where to listen.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    server = _Server(pairings)
    routes: dict[str, Answer] = {
        "GET /v1/status": server.status,
        "GET /v1/pairings": server.all,
        "POST /v1/pairings/approve": server.approve,
        "POST /v1/pairings/dismiss": server.dismiss,
        "GET /_kilo/pairing/channels": server.as_requests,
        "POST /_kilo/pairing/channels/approve": server.approve_as_kiloclaw,
    }

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await admit(request, token())
        return await routed(routes, request)(request)

    return await listen(answer, address, port, Limits(_CONNECTIONS))


class _Server:
    def __init__(self, pairings: Pairings) -> None:
        self._pairings = pairings

    async def status(self, _: web.BaseRequest) -> web.Response:
        try:
            pending = len(await _asked(self._pairings.list()))
        except Problem:
            return json_answer({"ready": False, "pending": None})
        return json_answer({"ready": True, "pending": pending})

    async def all(self, _: web.BaseRequest) -> web.Response:
        return json_answer({"pairings": [described(each) for each in await _asked(self._pairings.list())]})

    async def approve(self, request: web.BaseRequest) -> web.Response:
        return json_answer({"pairing": described(await self._approved(request))})

    async def dismiss(self, request: web.BaseRequest) -> web.Response:
        wish = await _understood(_Dismiss, request)
        return json_answer({"pairing": described(await _asked(self._pairings.dismiss(wish.channel, id=wish.id)))})

    async def as_requests(self, _: web.BaseRequest) -> web.Response:
        found = [
            {"code": p.code, "id": p.sender, "channel": p.channel, "createdAt": p.created_at, "meta": {"name": p.name}}
            for p in await _asked(self._pairings.list())
        ]
        return json_answer({"requests": found})

    async def approve_as_kiloclaw(self, request: web.BaseRequest) -> web.Response:
        await self._approved(request)
        return json_answer({"success": True, "message": "Pairing approved"})

    async def _approved(self, request: web.BaseRequest) -> Pairing:
        wish = await _understood(_Approve, request)
        if (wish.id is None) == (wish.code is None):
            raise Problem(400, "bad_request", "id, code: give one of the two")
        return await _asked(self._pairings.approve(wish.channel, id=wish.id, code=wish.code))


def described(pairing: Pairing) -> dict[str, JSON]:
    """Somebody who waits, as JSON; null is what is not known."""
    return {
        "channel": pairing.channel,
        "account": pairing.account,
        "id": pairing.id,
        "sender": pairing.sender,
        "code": pairing.code,
        "name": pairing.name,
        "createdAt": pairing.created_at,
        "expiresAt": pairing.expires_at,
    }


async def _asked(answer: Awaitable[_T]) -> _T:
    """What the runtime answers.

    Raises:
        Problem: 404, or 503 when it can't be asked.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            return await answer
    except NoSuchPairing as error:
        raise Problem(404, "no_such_pairing", str(error)) from None
    except NotReady as error:
        raise later("not_ready", f"the runtime can't be asked now: {error}") from None
    except TimeoutError:
        raise later("not_ready", "the runtime did not answer in time") from None


async def _understood(model: type[_Message], request: web.BaseRequest) -> _Message:
    """The body of a request.

    Raises:
        Problem: too large (413, unread when it says so), too slow (408), or not what is asked for (400).
    """
    if (request.content_length or 0) > MOST_BYTES:
        raise _too_large()
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    content = b""
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            while piece := await request.content.readany():
                content += piece
                if len(content) > MOST_BYTES:
                    raise _too_large()
        return model.read(content)
    except TimeoutError:
        raise Problem(408, "too_slow", f"the body must arrive within {HANDSHAKE_SECONDS:.0f} s") from None
    except ValidationError as error:
        raise Problem(400, "bad_request", refused(error)) from None
    except web.RequestPayloadError:
        raise Problem(400, "bad_request", "the body can't be read to its end") from None


def _too_large() -> Problem:
    return Problem(413, "too_large", f"the body may have {MOST_BYTES} bytes")
