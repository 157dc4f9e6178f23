"""Watching the supervisor and asking something of it: a WebSocket, and a few calls for those who come from KiloClaw.

Promises: whoever connects gets the present state first and every change from then on, in order; whoever does not read
is dropped and never waited for; what is not understood is answered and changes nothing. It holds nothing of its own:
state is asked of the vitals, requests for leave of the runtime, and a command is offered to who carries it out. Without
a listener it does nothing.
"""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Protocol

import aiohttp
import psutil
from aiohttp import web
from pydantic import Field, ValidationError

from roost_agent import __version__
from roost_agent.contract.bundle import API_VERSION
from roost_agent.contract.heartbeat import BootPhase, Command, CommandType, Heartbeat, ProcessState, Status
from roost_agent.contract.wire import JSON, Wire, canonical, refused
from roost_agent.runtime.openclaw.pairing import NotReady, Pairing
from roost_agent.servers.access import admit
from roost_agent.servers.pairing_http import Pairings, described
from roost_agent.servers.site import Answer, Limits, Problem, json_answer, later, listen, routed

__all__ = ["CAPABILITIES", "Vitals", "serve"]

MOST_WEBSOCKETS = 100
MOST_BYTES = 4096
MOST_WAITING = 64
"""Messages that may wait for a listener who does not read."""
PING_SECONDS = 40.0
"""From a listener's last sign of life to a ping; half as long after that it is given up (S1-101 allows 600 s)."""
COMMANDS, A_TIME = 10, 60.0
"""So many commands in so many seconds, of all listeners together: what is offered is queued."""
LOOK_SECONDS = 5.0
_LIMITS = Limits(connections=MOST_WEBSOCKETS + 64)
_SLOW_SECONDS = 10.0
_LIST_SECONDS = 2.0
_END_SECONDS = 0.5
_OFFERED = (CommandType.DRAIN, CommandType.RESTART, CommandType.UPDATE_CONFIG)
CAPABILITIES = sorted(
    [
        *(f"command.{each}" for each in _OFFERED),
        *(f"event.{each}" for each in ("command", "pairing", "phase", "status")),
    ]
)
_CHANGES_ALWAYS = {"uptimeSeconds", "memoryMb", "disk"}
_WEBSOCKET_PATHS = ("/", "/v1/events")
_UNAVAILABLE = "controller_route_unavailable"


class Vitals(Protocol):
    """What is true of the machine now."""

    def heartbeat(self) -> Heartbeat: ...
    def listen(self, callback: Callable[[], None]) -> Callable[[], None]: ...


class _Asked(Wire):
    """What a listener asks for. The same id once more is the same command."""

    type: Literal["command"]
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
    command: CommandType = Field(strict=False)
    reason: Annotated[str, Field(max_length=300)] = ""


async def serve(
    vitals: Vitals,
    pairings: Pairings | None,
    *,
    offer: Callable[[Sequence[Command]], None],
    token: Callable[[], str | None],
    address: str | None,
    port: int,
    ping: float = PING_SECONDS,
) -> web.ServerRunner:
    """Opens the port; the caller ends it with `cleanup()`.

    Args:
        vitals: What is told.
        pairings: Of a runtime that has such; None: none are told.
        offer: Takes commands, and does not wait.
        token: The gateway token; None while it is not known.
        address: Where to listen; None: every address of the machine.
        port: Where to listen.
        ping: Seconds without a sign of life after which one is asked for.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    control = _Control(vitals, pairings, offer, ping)
    # KiloClaw's names, by which nothing else is meant than by ours.
    public: dict[str, Answer] = {
        "GET /health": control.alive,
        "GET /v1/health": control.health,
        "GET /_kilo/health": control.health,
    }
    closed: dict[str, Answer] = {
        **{f"GET {path}": control.listened for path in _WEBSOCKET_PATHS},
        "GET /v1/status": control.status,
        "GET /v1/version": control.version,
        "GET /_kilo/version": control.version,
        "GET /_kilo/gateway/status": control.gateway,
        "POST /_kilo/gateway/start": control.start,
        "POST /_kilo/gateway/restart": control.restart,
    }

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if (anybodys := public.get(f"{request.method} {request.path}")) is not None:
            answered = await anybodys(request)
            answered.force_close()  # or strangers could hold all connections that there are
            return answered
        await admit(request, token())
        return await routed(closed, request)(request)

    unlisten = vitals.listen(control.changed)

    async def ending() -> None:
        unlisten()
        await control.end()

    return await listen(answer, address, port, _LIMITS, ending=ending)


class _Listener:
    """One WebSocket; `tell` never waits."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self.ws = ws
        self._transport = transport
        self._waiting: asyncio.Queue[str] = asyncio.Queue(MOST_WAITING)

    def tell(self, message: Mapping[str, JSON]) -> None:
        try:
            self._waiting.put_nowait(canonical(message).decode())
        except asyncio.QueueFull:
            self._transport.abort()

    async def write(self) -> None:
        """Sends what it is told, for ever."""
        while True:
            text = await self._waiting.get()
            try:
                async with asyncio.timeout(_SLOW_SECONDS):
                    await self.ws.send_str(text)
            except (TimeoutError, ConnectionError):
                self._transport.abort()
                return


class _Control:
    def __init__(
        self, vitals: Vitals, pairings: Pairings | None, offer: Callable[[Sequence[Command]], None], ping: float
    ) -> None:
        self._vitals, self._pairings, self._offer, self._ping = vitals, pairings, offer, ping
        self._open = 0
        self._listeners: set[_Listener] = set()
        self._told: dict[str, JSON] = {}
        """The state that the listeners know."""
        self._waiting: dict[tuple[str, str, str], Pairing] | None = None
        """Who waits for leave, as the listeners know it; None: that is not known."""
        self._looking: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()
        self._accepted: deque[float] = deque(maxlen=COMMANDS)
        self._loop = asyncio.get_running_loop()

    # --- Listeners

    async def listened(self, request: web.BaseRequest) -> web.StreamResponse:
        ws = web.WebSocketResponse(heartbeat=self._ping, max_msg_size=MOST_BYTES, compress=False, timeout=_END_SECONDS)
        if not ws.can_prepare(request):
            raise Problem(426, "upgrade_required", "this is a WebSocket", headers={"Upgrade": "websocket"})
        if self._open >= MOST_WEBSOCKETS:
            raise later("too_many_connections", f"there are {MOST_WEBSOCKETS} WebSockets already: try again")
        self._open += 1
        try:
            await self._listen(request, ws)
        finally:
            self._open -= 1
        return ws

    async def _listen(self, request: web.BaseRequest, ws: web.WebSocketResponse) -> None:
        if self._waiting is None:
            await self._look()
        await ws.prepare(request)
        if request.transport is None:
            return
        listener = _Listener(ws, request.transport)
        self._welcome(listener)
        writing = asyncio.create_task(listener.write())
        try:
            async for message in ws:
                if message.type is aiohttp.WSMsgType.ERROR:
                    break
                listener.tell(self._heard(message))
        finally:
            self._listeners.discard(listener)
            writing.cancel()
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking, self._waiting = None, None

    def _welcome(self, listener: _Listener) -> None:
        """The present state, and from now on every change: nothing can come in between."""
        if not self._listeners:
            self._told = self._state()
            self._looking = asyncio.create_task(self._keep_looking())
        else:
            self.changed()
        waiting = None if self._waiting is None else [described(each) for each in self._waiting.values()]
        listener.tell({"type": "hello", **_about(), "state": self._state(), "pairings": waiting})
        self._listeners.add(listener)

    async def end(self) -> None:
        """Says goodbye to all, without waiting for any."""
        goodbyes = (
            listener.ws.close(code=aiohttp.WSCloseCode.GOING_AWAY, message=b"the supervisor ends")
            for listener in self._listeners
        )
        await asyncio.gather(*goodbyes, return_exceptions=True)

    def _tell(self, message: Mapping[str, JSON]) -> None:
        for listener in self._listeners:
            listener.tell(message)

    # --- Events

    def changed(self) -> None:
        """Something may have changed."""
        if not self._listeners:
            return
        self._look_now.set()
        before, now = self._told, self._state()
        if _lasting(now) == _lasting(before):
            return
        self._told = now
        if now.get("bootPhase") != before.get("bootPhase"):
            self._tell({"type": "phase", "phase": now.get("bootPhase")})
        self._tell({"type": "status", "state": now})
        if now.get("lastCommandId") != before.get("lastCommandId"):
            self._tell({"type": "command", "command": now.get("lastCommandId"), "done": True})

    def _state(self) -> dict[str, JSON]:
        return self._vitals.heartbeat().model_dump(mode="json")

    async def _keep_looking(self) -> None:
        """The runtime tells nobody of a new request for leave, so it is asked as long as somebody listens."""
        while self._pairings is not None:
            self._look_now.clear()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look_now.wait()
            except TimeoutError:
                pass
            await self._look()

    async def _look(self) -> None:
        """Tells who has come and who has gone. While the runtime can't be asked, nobody has."""
        if self._pairings is None:
            return
        try:
            async with asyncio.timeout(_LIST_SECONDS):
                found = {(each.channel, each.account, each.id): each for each in await self._pairings.list()}
        except (NotReady, TimeoutError):
            return
        before, self._waiting = self._waiting or {}, found
        for key in found.keys() - before.keys():
            self._tell({"type": "pairing", "change": "new", "pairing": described(found[key])})
        for key in before.keys() - found.keys():
            self._tell({"type": "pairing", "change": "gone", "pairing": described(before[key])})

    # --- Commands

    def _heard(self, message: aiohttp.WSMessage) -> dict[str, JSON]:
        """The answer to what a listener said."""
        if message.type is not aiohttp.WSMsgType.TEXT:
            return {"type": "error", "error": "bad_message", "message": "text of JSON is understood, nothing else"}
        try:
            asked = _Asked.read(message.data)
        except ValidationError as error:
            return {"type": "error", "error": "bad_message", "message": refused(error)}
        try:
            command = self._command(asked.command, asked.id, asked.reason)
        except Problem as problem:
            why = {"error": problem.code, "message": problem.message}
            return {"type": "answer", "id": asked.id, "accepted": False, **why}
        return {"type": "answer", "id": asked.id, "accepted": True, "command": command.id}

    def _command(self, type_: CommandType, id_: str, reason: str = "") -> Command:
        """Offers a command.

        Raises:
            Problem: it is refused, and why.
        """
        beat = self._vitals.heartbeat()
        if beat.status is Status.STOPPING:
            raise Problem(409, "shutting_down", "the supervisor is shutting down")
        if beat.boot_phase is not BootPhase.DONE:
            raise later(_UNAVAILABLE, "the machine has not booted yet: try again")
        if type_ is CommandType.STOP:
            raise Problem(
                409, "not_here", "the operator would start it again: set desiredState of the Agent to Stopped"
            )
        if type_ not in _OFFERED:
            raise Problem(400, "unknown_command", f"command: use one of {', '.join(_OFFERED)}")
        now = self._loop.time()
        if len(self._accepted) == COMMANDS and now - self._accepted[0] < A_TIME:
            raise Problem(429, "too_many_commands", f"{COMMANDS} in {A_TIME:.0f} s are enough: try again later")
        self._accepted.append(now)
        command = Command(id=f"{type_}:control:{id_}", type=type_, reason=reason)
        self._offer([command])
        return command

    # --- Calls

    async def alive(self, _: web.BaseRequest) -> web.Response:
        return json_answer({"status": "ok"})

    async def health(self, _: web.BaseRequest) -> web.Response:
        return json_answer(_health(self._vitals.heartbeat()))

    async def status(self, _: web.BaseRequest) -> web.Response:
        return json_answer({"apiVersion": API_VERSION, "state": self._state()})

    async def version(self, _: web.BaseRequest) -> web.Response:
        return json_answer({**_about(), "openclawVersion": self._vitals.heartbeat().openclaw_version})

    async def gateway(self, _: web.BaseRequest) -> web.Response:
        return json_answer(_gateway(self._booted()))

    async def start(self, _: web.BaseRequest) -> web.Response:
        if _gateway(self._booted())["state"] not in (ProcessState.STOPPED, ProcessState.CRASHED):
            raise Problem(409, "already_running", "the gateway is running or starting")
        self._command(CommandType.RESTART, f"start-{time.time_ns()}")
        return json_answer({"ok": True})

    async def restart(self, _: web.BaseRequest) -> web.Response:
        self._command(CommandType.RESTART, f"restart-{time.time_ns()}")
        return json_answer({"ok": True})

    def _booted(self) -> Heartbeat:
        beat = self._vitals.heartbeat()
        if beat.boot_phase is not BootPhase.DONE:
            raise later(_UNAVAILABLE, "the machine has not booted yet: try again")
        return beat


def _about() -> dict[str, JSON]:
    return {"apiVersion": API_VERSION, "version": __version__, "capabilities": CAPABILITIES}


def _lasting(state: Mapping[str, JSON]) -> dict[str, JSON]:
    """Without what is another at every look."""
    return {name: value for name, value in state.items() if name not in _CHANGES_ALWAYS}


def _health(beat: Heartbeat) -> dict[str, JSON]:
    """For anybody, so without a word of what is wrong (S1-92)."""
    if beat.boot_phase is not BootPhase.DONE:
        return {"status": "ok", "state": "bootstrapping", "phase": beat.boot_phase}
    if beat.status in (Status.DEGRADED, Status.STOPPING):
        return {"status": "ok", "state": "degraded", "error": beat.status}
    return {"status": "ok", "state": "ready" if beat.ready else "starting"}


def _gateway(beat: Heartbeat) -> dict[str, JSON]:
    """The runtime's process in the words of KiloClaw (S1-94, S1-95)."""
    runtime = beat.runtime
    last = runtime.last_exit if runtime else None
    state = "shutting_down" if beat.status is Status.STOPPING else runtime.state if runtime else ProcessState.STOPPED
    return {
        "state": state,
        "pid": runtime.pid if runtime else None,
        "uptime": _age(runtime.pid) if runtime and runtime.pid else 0,
        "restarts": runtime.restarts if runtime else 0,
        "lastExit": {
            "code": last.code if last else None,
            "signal": signal.Signals(last.signal).name if last and last.signal else None,
            "at": last.at if last else None,
        },
    }


def _age(pid: int) -> int:
    """Seconds since a process began; 0 when it has ended."""
    try:
        return max(0, int(time.time() - psutil.Process(pid).create_time()))
    except psutil.Error:
        return 0
