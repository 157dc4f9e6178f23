"""What agents call: GET config-bundle and POST heartbeat, each under its own and its older path.

Promises: a stranger gets the same 403 for a wrong token and for an agent that does not exist, after equal work; a body
over the limit is refused unread (413); nothing is served before the cache is in sync (503); a held heartbeat costs no
task, and is answered within its wait, at shutdown, and as soon as its sender may not call any more. Any replica serves
bundles; a heartbeat is heard by the leader, to whom a standby passes it on. Never logs a token, a body or a value.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote

from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import Counter

from roost.agents.sessions import Sessions
from roost.endpoint.relay import Relay
from roost.endpoint.walls import Handler, Problem, Route, Walls, body, connection, json_answer, understood
from roost.kube.client import KubeError
from roost.secrets.values import NotNow
from roost.telemetry.metrics import Metrics
from roost_agent.contract import (
    BUNDLE_ROUTES,
    HEARTBEAT_ROUTES,
    MACHINE_ID_HEADER,
    MAX_WAIT_SECONDS,
    Command,
    Heartbeat,
    HeartbeatAnswer,
)

TICK_SECONDS = 0.25
"""How much later than asked the answer to a held heartbeat may come."""
CANONICAL = "/v1/"
"""Agents of the seed systems, who call the older paths, don't say on every call which machine they are."""
RELEASED_A_TURN = 200
"""Held heartbeats that are answered in one turn of the loop: probes, the Lease and others come in between."""


class _Call:
    """A route as it is served, with the counters of its answers at hand."""

    __slots__ = ("_answers", "_counters", "handler", "name")

    def __init__(self, route: Route) -> None:
        self.handler: Handler = route.handler
        self.name = route.paths[0]
        self._answers = route.answers
        self._counters: dict[int, Counter] = {}

    def count(self, status: int) -> None:
        counter = self._counters.get(status)
        if counter is None and self._answers is not None:
            counter = self._counters[status] = self._answers.labels(str(status))
        if counter is not None:
            counter.inc()


_Calls = dict[str, _Call]


class Endpoint:
    """All calls; `answer` is given to the server.

    Args:
        alive: whether the process does its work; what `/healthz` tells, as on the operator's own port.
    """

    def __init__(
        self, sessions: Sessions, metrics: Metrics, walls: Walls, relay: Relay, alive: Callable[[], bool]
    ) -> None:
        self._sessions, self._walls, self._relay, self._alive = sessions, walls, relay, alive
        self._loop = asyncio.get_running_loop()
        self._leaving = False
        self._held: dict[int, set[asyncio.Future[None]]] = {}
        """Whoever is held, by the tick at whose end the wait is over: one timer for all of them."""
        self._ticking: asyncio.Handle | None = None
        self._passing: set[asyncio.Future[None]] = set()
        metrics.long_polls.set_function(lambda: float(sum(map(len, self._held.values()))))
        self._fixed: dict[str, _Calls] = {}
        self._shaped: dict[tuple[str, str], _Calls] = {}
        self.add(
            Route("GET", BUNDLE_ROUTES, self._bundle, metrics.bundles),
            Route("POST", HEARTBEAT_ROUTES, self._heartbeat, metrics.heartbeats),
            Route("GET", ("/healthz",), self._healthz),
            Route("GET", ("/readyz",), self._readyz),
        )

    def add(self, *routes: Route) -> None:
        """More calls."""
        for route in routes:
            call = _Call(route)
            for path in route.paths:
                before, shaped, after = path.partition("{did}")
                calls = self._shaped.setdefault((before, after), {}) if shaped else self._fixed.setdefault(path, {})
                calls[route.method] = call

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answers any request."""
        here = connection(request)
        if request.content.is_eof():
            here.arrived()
        calls, did = self._find(request.rel_url.raw_path)
        call = calls.get("GET" if request.method == "HEAD" else request.method)
        if call is None:
            return self._no_call(request, calls)
        here.route = call.name
        try:
            answer = await call.handler(request, did)
        except Problem as problem:
            answer = problem.answer()
        call.count(answer.status)
        return answer

    async def release(self) -> None:
        """Answers whoever is held, and holds nobody any more."""
        self._leaving = True
        waiting = [*self._passing, *(news for held in self._held.values() for news in held)]
        for begin in range(0, len(waiting), RELEASED_A_TURN):
            for news in waiting[begin : begin + RELEASED_A_TURN]:
                _tell(news)
            await asyncio.sleep(0)

    def sweep(self) -> None:
        """To be called every now and then: lets go of what is over."""
        self._walls.sweep()

    def _find(self, path: str) -> tuple[_Calls, str]:
        for (before, after), calls in self._shaped.items():
            if path.startswith(before) and path.endswith(after):
                did = path[len(before) : -len(after)]
                if did and "/" not in did:
                    return calls, unquote(did) if "%" in did else did
        return self._fixed.get(path, {}), ""

    def _no_call(self, request: web.BaseRequest, calls: _Calls) -> web.Response:
        text = f"{request.method} {request.path} is no call of this contract"
        if calls:
            return Problem(405, "method_not_allowed", text, allow=", ".join(calls)).answer()
        return Problem(404, "not_found", text).answer()

    # --- Calls -------------------------------------------------------------------------------------------------

    async def _healthz(self, _request: web.BaseRequest, _did: str) -> web.Response:
        return _probe(holds=self._alive())

    async def _readyz(self, _request: web.BaseRequest, _did: str) -> web.Response:
        return _probe(holds=self._walls.ready())

    async def _bundle(self, request: web.BaseRequest, did: str) -> web.Response:
        session = self._walls.who(request, did)
        self._walls.pace(did)
        machine = request.headers.get(MACHINE_ID_HEADER)
        if machine is None and request.rel_url.raw_path.startswith(CANONICAL):
            raise Problem(400, "bad_request", f"{MACHINE_ID_HEADER}: say which machine asks")
        self._walls.current(session, machine)
        known = request.headers.get("If-None-Match", "").strip().removeprefix("W/").strip('"')
        if known and known == self._sessions.revision(session):
            return _not_modified(known)
        try:
            bundle = await self._sessions.bundle(session)
        except NotNow as error:
            raise Problem(503, "not_now", f"the bundle can't be made now: {error}", retry_after=5) from error
        except KubeError as error:
            raise Problem(503, "not_now", "Kubernetes can't be asked now", retry_after=5) from error
        if known == bundle.revision:
            return _not_modified(known)
        headers = {"ETag": f'"{bundle.revision}"', "Cache-Control": "no-store"}
        return json_answer(bundle.model_dump_json(by_alias=True).encode(), headers=headers)

    async def _heartbeat(self, request: web.BaseRequest, did: str) -> web.Response:
        session, wait = self._walls.who(request, did), _wait(request)
        self._walls.pace(did)
        content = await body(request)
        if self._relay.needed:
            return await self._pass_on(request, content)
        beat = understood(Heartbeat, content)
        machines = request.headers.get(MACHINE_ID_HEADER), beat.machine_id
        self._walls.current(session, *machines)
        self._sessions.hear(session, beat, content)
        due = self._sessions.due(session, beat)
        del beat  # while it is held it is kept as it came, together with what is kept in mind
        until = self._loop.time() + wait
        # Held until there is a command, the wait is over, or the operator goes away. No coroutine of its own: there are
        # many of them. With all news the sender is asked anew who it is: its token or machine may be another by now.
        while not due and not self._leaving and self._loop.time() < until:
            news, waiting, held = self._loop.create_future(), self._sessions.waiting(session), self._until(until)
            waiting.add(news)
            held.add(news)
            try:
                await news
            finally:
                waiting.discard(news)
                held.discard(news)
            if not self._leaving:
                session = self._walls.who(request, did)
                self._walls.current(session, *machines)
                due = self._sessions.due(session, understood(Heartbeat, content))
        return json_answer(_answered(tuple(due), self._sessions.interval(session)))

    async def _pass_on(self, request: web.BaseRequest, content: bytes) -> web.Response:
        """The leader's answer; at shutdown the agent is sent to another replica at once."""
        answer = asyncio.ensure_future(self._relay.pass_on(request, content))
        leaving = self._loop.create_future()
        self._passing.add(leaving)
        try:
            if not self._leaving:
                await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Problem(503, "not_now", "this replica goes away", retry_after=1)
        finally:
            self._passing.discard(leaving)
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    def _until(self, when: float) -> set[asyncio.Future[None]]:
        """Where to put who is to be told then, or up to one tick later."""
        if self._ticking is None:
            self._ticking = self._loop.call_later(TICK_SECONDS, self._tick)
        return self._held.setdefault(int(when / TICK_SECONDS) + 1, set())

    def _tick(self) -> None:
        """Tells those whose wait is over; when they are many, the others in the next turns of the loop."""
        now = int(self._loop.time() / TICK_SECONDS)
        over = [news for tick, held in self._held.items() if tick <= now for news in held if not news.done()]
        for news in over[:RELEASED_A_TURN]:
            news.set_result(None)
        for tick in [tick for tick, held in self._held.items() if not held]:
            del self._held[tick]
        if len(over) > RELEASED_A_TURN:
            self._ticking = self._loop.call_soon(self._tick)
        else:
            self._ticking = self._loop.call_later(TICK_SECONDS, self._tick) if self._held else None


@lru_cache(maxsize=64)
def _answered(due: tuple[Command, ...], interval: int) -> bytes:
    """The answer to a heartbeat: nearly always the same one."""
    answer = HeartbeatAnswer(commands=list(due), next_heartbeat_seconds=interval)
    return answer.model_dump_json(by_alias=True).encode()


def _tell(news: "asyncio.Future[None]") -> None:
    if not news.done():
        news.set_result(None)


def _wait(request: web.BaseRequest) -> float:
    if not request.rel_url.raw_query_string:
        return 0.0
    text = request.query.get("wait", "0")
    try:
        seconds = float(text)
        return min(seconds, float(MAX_WAIT_SECONDS)) if seconds > 0 else 0.0
    except ValueError as error:
        raise Problem(400, "bad_request", "wait: a number of seconds is needed") from error


def _not_modified(revision: str) -> web.Response:
    return web.Response(status=304, headers=CIMultiDict({"ETag": f'"{revision}"'}))


def _probe(*, holds: bool) -> web.Response:
    return web.Response(text="ok") if holds else web.Response(text="not ok", status=503)
