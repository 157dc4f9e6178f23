"""The walls before every call of the endpoint, for all routes: who may call, how often, how much, from which machine.

Promises: what is refused is refused as a `Problem`, and every stranger as the same one, after equal work. Never keeps
or logs a token.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from prometheus_client import Counter
from pydantic import BaseModel, ValidationError

from roost.agents.sessions import Session, Sessions
from roost.endpoint.connection import Connection
from roost.endpoint.problems import Problem, json_answer
from roost_agent.contract import MAX_HEARTBEAT_BYTES, TOKEN_HEADER

__all__ = [
    "Handler",
    "Problem",
    "Route",
    "Walls",
    "bearer",
    "body",
    "connection",
    "json_answer",
    "stranger",
    "text",
    "understood",
]

Handler = Callable[[web.BaseRequest, str], Awaitable[web.Response]]
"""Answers one call; the second argument is the `{did}` of its path, empty when the path has none. Raises Problem."""
Message = TypeVar("Message", bound=BaseModel)
BURST_SECONDS = 5.0
"""An agent may call at once what it may call in so many seconds."""


@dataclass(frozen=True, slots=True)
class Route:
    """A call: its method, its paths (the canonical one and aliases, `{did}` in at most one place), who answers it."""

    method: str
    paths: tuple[str, ...]
    handler: Handler
    answers: Counter | None = None
    """Counts its answers by their one label, the code."""


def stranger() -> Problem:
    """What everybody gets who is not the agent it says it is, on every route."""
    return Problem(403, "forbidden", "these credentials are not good for this agent")


def bearer(request: web.BaseRequest) -> str:
    """The token of `Authorization: Bearer`; empty when there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return text(token.strip()) if scheme.lower() == "bearer" else ""


def text(header: str) -> str:
    """A header's value that can be encoded: bytes that are no UTF-8 arrive as lone surrogates; no token has them."""
    return header if header.isascii() else header.encode(errors="replace").decode()


async def body(request: web.BaseRequest) -> bytes:
    """The whole body.

    Raises:
        Problem: it is too large (413, unread when it says so) or breaks off (400).
    """
    if (request.content_length or 0) > MAX_HEARTBEAT_BYTES:
        raise _too_large()
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    content = b""
    try:
        while piece := await request.content.readany():  # request.read() would keep a copy with the request
            content += piece
            if len(content) > MAX_HEARTBEAT_BYTES:
                raise _too_large()
    except (ConnectionError, web.RequestPayloadError) as error:
        raise Problem(400, "bad_request", "the body can't be read to its end") from error
    connection(request).arrived()
    return content


def understood(model: type[Message], content: bytes) -> Message:
    """The message in a JSON body.

    Raises:
        Problem: 400; it names the field, never its value.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Problem(400, "bad_request", f"{where}: {first['msg']}") from error


def connection(request: web.BaseRequest) -> Connection:
    """The connection by which a request came."""
    protocol = request.protocol
    assert isinstance(protocol, Connection)
    return protocol


class Walls:
    """What is asked of a caller.

    Args:
        ready: whether the cache is in sync.
        rate: calls a second that one agent may make for long.
        clock: seconds, monotonic.
    """

    def __init__(self, sessions: Sessions, ready: Callable[[], bool], rate: float, clock: Callable[[], float]) -> None:
        self._sessions, self.ready, self._clock = sessions, ready, clock
        self._cost, self._burst = 1.0 / rate, max(0.0, BURST_SECONDS - 1.0 / rate)
        self._paid_until: dict[str, float] = {}
        """By DID, for those who called a moment ago: until when the calls are spent that it made."""

    def opened(self) -> None:
        """Refuses everybody while the cluster is not known.

        Raises:
            Problem: 503.
        """
        if not self.ready():
            raise Problem(503, "not_ready", "the operator has not read the cluster yet", retry_after=2)

    def who(self, request: web.BaseRequest, did: str) -> Session:
        """The agent with this DID, by its heartbeat token in either header.

        Raises:
            Problem: not ready (503), no credentials (401), a stranger (403).
        """
        self.opened()
        given = request.headers.get(TOKEN_HEADER)
        token = text(given) if given else bearer(request)
        if not token:
            raise Problem(401, "unauthorized", f"send {TOKEN_HEADER} or Authorization: Bearer")
        session = self._sessions.authenticate(did, token)
        if session is None:
            raise stranger()
        connection(request).caller = session
        return session

    def pace(self, did: str) -> None:
        """Takes one call from what an agent that proved who it is may make.

        Raises:
            Problem: 429; it calls too often.
        """
        now = self._clock()
        until = max(now, self._paid_until.get(did, now))
        if (excess := until - now - self._burst) > 0:
            raise Problem(429, "too_many_requests", "this agent calls too often", retry_after=math.ceil(excess))
        self._paid_until[did] = until + self._cost

    def sweep(self) -> None:
        """Forgets those whose calls are spent."""
        now = self._clock()
        for did in [d for d, until in self._paid_until.items() if until <= now]:
            del self._paid_until[did]

    def current(self, session: Session, *machines: str | None) -> None:
        """Refuses a machine that is not the Agent's current one, by whatever it calls itself.

        Raises:
            Problem: 409.
        """
        if any(machine is not None and self._sessions.superseded(session, machine) for machine in machines):
            raise Problem(409, "superseded", "another machine is this agent's current one")


def _too_large() -> Problem:
    return Problem(413, "too_large", f"a body may have {MAX_HEARTBEAT_BYTES} bytes")
