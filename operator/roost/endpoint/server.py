"""What agents call: GET config-bundle and POST heartbeat, each under its own and its older path.

Promises: a stranger gets the same 403 for a wrong token and for an agent that does not exist, after equal work; a body
over the limit is refused unread (413); nothing is served before the cache is in sync (503); a held heartbeat is
answered within its wait, at shutdown, and as soon as its sender may not call any more. Any replica serves bundles; a
heartbeat is heard by the leader, to whom a standby passes it on. Never logs a token, a body or a value.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from aiohttp import web
from prometheus_client import Counter
from pydantic import ValidationError

from roost.agents.sessions import NotNow, Session, Sessions
from roost.endpoint.relay import NoLeader, Relay
from roost.kube.client import KubeError
from roost.telemetry.metrics import Metrics
from roost_agent.contract import (
    BUNDLE_ROUTES,
    HEARTBEAT_ROUTES,
    MACHINE_ID_HEADER,
    MAX_HEARTBEAT_BYTES,
    MAX_WAIT_SECONDS,
    TOKEN_HEADER,
    Command,
    Heartbeat,
    HeartbeatAnswer,
)

log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Problem(Exception):
    """An answer that is no success: `{"error": code, "message": text}`."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def answer(self) -> web.Response:
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        return web.json_response({"error": self.code, "message": self.message}, status=self.status, headers=headers)


class Endpoint:
    """The web application; `ready` says whether the cache is in sync."""

    def __init__(
        self, sessions: Sessions, metrics: Metrics, ready: Callable[[], bool], closing: asyncio.Event, relay: Relay
    ) -> None:
        self._sessions, self._metrics, self._ready, self._closing = sessions, metrics, ready, closing
        self._relay = relay

    def application(self) -> web.Application:
        """Routes of the contract, canonical and alias."""
        app = web.Application(middlewares=[self._no_call], client_max_size=MAX_HEARTBEAT_BYTES)
        for path in BUNDLE_ROUTES:
            app.router.add_get(path, _counted(self._bundle, self._metrics.bundles))
        for path in HEARTBEAT_ROUTES:
            app.router.add_post(path, _counted(self._heartbeat, self._metrics.heartbeats))
        return app

    @web.middleware
    async def _no_call(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            code = error.reason.lower().replace(" ", "_")
            return Problem(error.status, code, f"{request.method} {request.path} is no call of this contract").answer()

    # --- Calls -------------------------------------------------------------------------------------------------

    async def _bundle(self, request: web.Request) -> web.Response:
        session = self._who(request)
        machine = request.headers.get(MACHINE_ID_HEADER)
        self._current(session, machine)
        known = request.headers.get("If-None-Match", "").strip().removeprefix("W/").strip('"')
        if known and known == self._sessions.revision(session):
            return web.Response(status=304, headers={"ETag": f'"{known}"'})
        try:
            bundle = await self._sessions.bundle(session)
        except NotNow as error:
            raise Problem(503, "not_now", f"the bundle can't be made now: {error}", retry_after=5) from error
        except KubeError as error:
            raise Problem(503, "not_now", "Kubernetes can't be asked now", retry_after=5) from error
        if known == bundle.revision:
            return web.Response(status=304, headers={"ETag": f'"{known}"'})
        return web.Response(
            text=bundle.model_dump_json(by_alias=True),
            content_type="application/json",
            headers={"ETag": f'"{bundle.revision}"', "Cache-Control": "no-store"},
        )

    async def _heartbeat(self, request: web.Request) -> web.Response:
        session, wait = self._who(request), _wait(request)
        body = await self._body(request)
        if self._relay.needed:
            return await self._pass_on(request, body)
        beat = _parsed(body)
        self._current(session, request.headers.get(MACHINE_ID_HEADER), beat.machine_id)
        self._sessions.hear(session, beat)
        due = self._sessions.due(session, beat) or (await self._hold(request, beat, wait) if wait else [])
        interval = self._sessions.interval(session)
        answer = HeartbeatAnswer(commands=due, next_heartbeat_seconds=interval)
        return web.Response(text=answer.model_dump_json(by_alias=True), content_type="application/json")

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        """The leader's answer; at shutdown the agent is sent to another replica at once."""
        answer = asyncio.ensure_future(self._relay.pass_on(request, body))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({answer, closing}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Problem(503, "not_now", "this replica goes away", retry_after=1)
        except NoLeader as error:
            raise Problem(503, "no_leader", str(error), retry_after=2) from error
        finally:
            for task in (answer, closing):
                task.cancel()
            await asyncio.gather(answer, closing, return_exceptions=True)

    async def _hold(self, request: web.Request, beat: Heartbeat, seconds: float) -> list[Command]:
        """Holds the answer until there is a command, the wait is over, or the operator goes away.

        With all news the sender is asked anew who it is: its Agent may be gone, its token or machine another by now.
        """
        closing = asyncio.ensure_future(self._closing.wait())
        self._metrics.long_polls.inc()
        try:
            async with asyncio.timeout(seconds):
                while not closing.done():
                    session = self._who(request)
                    self._current(session, request.headers.get(MACHINE_ID_HEADER), beat.machine_id)
                    change = asyncio.ensure_future(self._sessions.change(session))
                    try:
                        await asyncio.sleep(0)  # it listens from here on, and news of before are seen in the next line
                        if due := self._sessions.due(session, beat):
                            return due
                        await asyncio.wait({change, closing}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        change.cancel()
        except TimeoutError:
            pass
        finally:
            self._metrics.long_polls.dec()
            closing.cancel()
            with suppress(asyncio.CancelledError):
                await closing
        return []

    # --- Walls -------------------------------------------------------------------------------------------------

    def _who(self, request: web.Request) -> Session:
        if not self._ready():
            raise Problem(503, "not_ready", "the operator has not read the cluster yet", retry_after=2)
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        token = request.headers.get(TOKEN_HEADER) or (bearer.strip() if scheme.lower() == "bearer" else "")
        if not token:
            raise Problem(401, "unauthorized", f"send {TOKEN_HEADER} or Authorization: Bearer")
        # Bytes that are no UTF-8 arrive as lone surrogates: no token has them, and nothing can encode them.
        session = self._sessions.authenticate(request.match_info["did"], token.encode(errors="replace").decode())
        if session is None:
            raise Problem(403, "forbidden", "these credentials are not good for this agent")
        return session

    def _current(self, session: Session, *machines: str | None) -> None:
        """Refuses a machine that is not the Agent's current one, by whatever it calls itself."""
        if any(machine is not None and self._sessions.superseded(session, machine) for machine in machines):
            raise Problem(409, "superseded", "another machine is this agent's current one")

    async def _body(self, request: web.Request) -> bytes:
        if (request.content_length or 0) > MAX_HEARTBEAT_BYTES:
            raise Problem(413, "too_large", f"a body may have {MAX_HEARTBEAT_BYTES} bytes")
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise Problem(413, "too_large", f"a body may have {MAX_HEARTBEAT_BYTES} bytes") from error
        except (ConnectionError, web.RequestPayloadError) as error:
            raise Problem(400, "bad_request", "the body can't be read to its end") from error


def _counted(handler: Handler, answers: Counter) -> Handler:
    """The handler with its problems turned into answers, all of them counted by their code."""

    async def call(request: web.Request) -> web.StreamResponse:
        try:
            answer = await handler(request)
        except Problem as problem:
            answer = problem.answer()
        answers.labels(str(answer.status)).inc()
        return answer

    return call


def _parsed(body: bytes) -> Heartbeat:
    try:
        return Heartbeat.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Problem(400, "bad_request", f"{where}: {first['msg']}") from error


def _wait(request: web.Request) -> float:
    text = request.query.get("wait", "0")
    try:
        seconds = float(text)
        return min(seconds, float(MAX_WAIT_SECONDS)) if seconds > 0 else 0.0
    except ValueError as error:
        raise Problem(400, "bad_request", "wait: a number of seconds is needed") from error
