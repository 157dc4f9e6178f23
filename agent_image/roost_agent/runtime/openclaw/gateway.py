"""How the supervisor talks with a running OpenClaw: its gateway's RPC over one WebSocket, and its HTTP probes.

    GatewayAway    no answer: it does not run, does not listen, was too slow, or the connection was lost on the way
    GatewayError   it answered that it will not

The gateway runs what the agent runs, so all that it sends may be hostile: frames are bounded in size, one that makes no
sense is passed over, an answer that nobody waits for (a second one, one that comes too late) counts for nothing, and
none is waited for without an end. A call that was lost is never made again here: it may have taken effect.

The protocol (version 4) is that of OpenClaw's docs/gateway/protocol/handshake.md. A client of the mode "backend" that
has the gateway's token and comes from the machine itself needs no device pairing.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from roost_agent import __version__
from roost_agent.backoff import Backoff

__all__ = ["Answer", "Gateway", "GatewayAway", "GatewayError", "answer_in", "error_in"]

_LARGEST_FRAME = 8 * 2**20
_LARGEST_BODY = 64 * 1024
_LONGEST_TEXT = 500
_HELLO_SECONDS = 10.0
_CLOSE_SECONDS = 1.0
_RECONNECTS = Backoff(start=0.1, cap=5)
_STEADY_SECONDS = 10.0
"""A connection that held for so long is followed by another without delay."""
_LONGEST_RETRY_AFTER = 30.0
_PROTOCOL = 4
_SCOPES = ("operator.admin", "operator.read", "operator.pairing")
_CLIENT = {"id": "gateway-client", "version": __version__, "platform": "linux", "mode": "backend"}


class GatewayAway(Exception):
    """There was no answer; whether the call had an effect is not known. The text is for people."""


class GatewayError(Exception):
    """The gateway said no.

    Args:
        code: Its word for the kind of refusal, such as UNAVAILABLE or INVALID_REQUEST.
        text: What it says to people; bounded, but its own: not to be shown without being made printable.
        reason: The finer word of its details, such as AUTH_TOKEN_MISMATCH or gateway-suspending.
        retry_after: Seconds after which it wants to be asked again; None when asking again is of no use.
    """

    def __init__(self, code: str, text: str, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.reason = reason
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the gateway: `payload` as it came, or why there is none."""

    id: str
    payload: Any = None
    error: GatewayError | None = None


class Gateway:
    """The gateway of one machine, for all lives of its process.

    Args:
        host: The address on which it listens, and from which it is called: a look at it is nobody's visit.
        token: Gives the gateway's token as it is now.
    """

    def __init__(self, host: str, port: int, token: Callable[[], str]) -> None:
        self._host = host
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._token = token
        self._ids = itertools.count(1)
        self._pending: dict[str, asyncio.Future[Any]] = {}
        self._lives = asyncio.Lock()
        """The next life begins when nothing is left of the one before, whose end may take a moment."""
        self._web: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._turned = asyncio.Event()
        """Set while there is a connection, and once there will be none."""
        self.why = "not connected yet"
        """Why there is no connection, when there is none, or was none in the end."""

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """One life of the process: only within it can anything be asked. On leaving it all that is asked fails."""
        # Each probe with a connection of its own: an old one may be answered long after the listener is closed.
        async with self._lives:
            connector = aiohttp.TCPConnector(local_addr=(self._host, 0), force_close=True)
            try:
                async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as self._web:
                    yield
            finally:
                self._web = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Within a life: keeps a connection, made anew whenever it is lost. Does not wait for the first."""
        self.why = "not connected yet"
        self._turned.clear()
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            (ended,) = await asyncio.gather(keeping, return_exceptions=True)
            self._turned.set()
            if isinstance(ended, Exception):
                raise ended  # a defect, which must not pass for a gateway that does not answer

    async def get(self, path: str, seconds: float) -> tuple[int, Any]:
        """Asks one of the HTTP probes, which want no token: the status and the body's JSON, None when it is none.

        Raises:
            GatewayAway: no answer in time.
        """
        if self._web is None:
            raise GatewayAway("OpenClaw does not run")
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._web.get(self._url + path, timeout=timeout, allow_redirects=False) as answer:
                body = b""
                while len(body) <= _LARGEST_BODY and (more := await answer.content.readany()):
                    body += more
                return answer.status, _json(body[: _LARGEST_BODY + 1])
        except TimeoutError:
            raise GatewayAway(f"no answer to {path} in {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise GatewayAway(f"no answer to {path} ({type(error).__name__})") from None

    async def hello(self) -> None:
        """Waits until the gateway has taken us for its operator.

        Raises:
            GatewayAway: the life ended.
        """
        await self._connection()

    async def call(self, method: str, params: Mapping[str, Any] | None = None, seconds: float = 10.0) -> dict[str, Any]:
        """Calls one method, waiting for a connection if there is none just now, all in so many seconds.

        Raises:
            GatewayError: it was refused, or answered with something that is no object.
            GatewayAway: there was no answer.
        """
        id_, answer = str(next(self._ids)), asyncio.get_running_loop().create_future()
        request = {"type": "req", "id": id_, "method": method, "params": params or {}}
        try:
            async with asyncio.timeout(seconds):
                connection = await self._connection()
                self._pending[id_] = answer
                await connection.send_str(json.dumps(request))
                payload = await answer
        except TimeoutError:
            why = f"{method} was not answered in {seconds:g} s" if self._socket else self.why
            raise GatewayAway(why) from None
        except (aiohttp.ClientError, OSError) as error:
            raise GatewayAway(f"{method} could not be sent ({type(error).__name__})") from None
        finally:
            self._pending.pop(id_, None)
        if not isinstance(payload, dict):
            raise GatewayError("UNEXPECTED", f"{method} was answered with no object")
        return payload

    async def _connection(self) -> aiohttp.ClientWebSocketResponse:
        while self._socket is None:
            if self._web is None:
                raise GatewayAway("OpenClaw does not run")
            await self._turned.wait()
            if self._socket is None:
                raise GatewayAway(self.why)
        return self._socket

    async def _keep(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began, wait = loop.time(), None
            try:
                await self._talk()
            except GatewayError as error:
                self.why, wait = str(error), error.retry_after
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.why = f"no connection ({type(error).__name__})"
            else:
                self.why = "the connection was lost"
            failures = 1 if loop.time() - began > _STEADY_SECONDS else failures + 1
            await asyncio.sleep(_RECONNECTS.seconds(failures) if wait is None else wait)

    async def _talk(self) -> None:
        """One connection, from the handshake until it is lost."""
        assert self._web is not None, "only within a life"
        patience = aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS)
        async with asyncio.timeout(_HELLO_SECONDS) as limit:
            async with self._web.ws_connect(self._url, max_msg_size=_LARGEST_FRAME, timeout=patience) as socket:
                await self._shake_hands(socket)
                limit.reschedule(None)
                try:
                    self._socket = socket
                    self._turned.set()
                    while (text := await _text(socket)) is not None:
                        self._take(answer_in(text))
                finally:
                    self._socket = None
                    self._turned.clear()
                    self._lose()

    async def _shake_hands(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        params = {
            "minProtocol": _PROTOCOL,
            "maxProtocol": _PROTOCOL,
            "client": _CLIENT,
            "role": "operator",
            "scopes": _SCOPES,
            "caps": [],
            "commands": [],
            "permissions": {},
            "auth": {"token": self._token()},
        }
        challenge = await _text(socket)  # its nonce is for clients that sign as a device
        if challenge is not None:
            await socket.send_str(json.dumps({"type": "req", "id": "0", "method": "connect", "params": params}))
        while (text := await _text(socket)) is not None:
            answer = answer_in(text)
            if answer is None or answer.id != "0":
                continue
            if answer.error:
                raise answer.error
            auth = answer.payload.get("auth") if isinstance(answer.payload, dict) else None
            granted = auth.get("scopes") if isinstance(auth, dict) else None
            if not isinstance(granted, list) or not all(scope in granted for scope in _SCOPES):
                raise GatewayError("UNEXPECTED", "the gateway does not take the supervisor for its operator")
            return
        raise aiohttp.ClientConnectionError("closed while shaking hands")

    def _take(self, answer: Answer | None) -> None:
        waiting = self._pending.pop(answer.id, None) if answer else None
        if answer is None or waiting is None or waiting.done():
            return
        if answer.error:
            waiting.set_exception(answer.error)
        else:
            waiting.set_result(answer.payload)

    def _lose(self) -> None:
        lost, self._pending = self._pending, {}
        for waiting in lost.values():
            if not waiting.done():
                waiting.set_exception(GatewayAway("the connection was lost before there was an answer"))


async def _text(socket: aiohttp.ClientWebSocketResponse) -> str | None:
    """The next text frame; None at the end. What is no text is passed over; what is too large ends the connection."""
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            return str(message.data)
    return None


def answer_in(text: str) -> Answer | None:
    """The answer that a frame is; None for an event, and for what makes no sense. Never raises."""
    frame = _json(text)
    if not isinstance(frame, dict) or frame.get("type") != "res" or not isinstance(id_ := frame.get("id"), str):
        return None
    if frame.get("ok") is True:
        return Answer(id_, frame.get("payload"))
    return Answer(id_, error=error_in(frame.get("error")))


def error_in(said: object) -> GatewayError:
    """The refusal that the `error` of a frame is, whatever it is. Never raises."""
    error = said if isinstance(said, dict) else {}
    details = error["details"] if isinstance(error.get("details"), dict) else {}
    wait, retry_after = error.get("retryAfterMs"), None
    if error.get("retryable") is True and isinstance(wait, int | float) and wait >= 0:
        retry_after = max(min(wait, _LONGEST_RETRY_AFTER * 1000) / 1000, _RECONNECTS.start)
    return GatewayError(
        _word(error.get("code")) or "UNEXPECTED",
        _word(error.get("message")) or "refused without a reason",
        _word(details.get("reason")) or _word(details.get("code")),
        retry_after,
    )


def _word(value: object) -> str:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # too deep, or a number of too many digits
        return None
