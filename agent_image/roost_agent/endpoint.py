"""The supervisor's calls to the operator, and what their answers mean.

    CallFailed                 the call may be made again later
    ├── Unreachable            no answer, or one that makes no sense: soon, backing off
    ├── Busy                   429, 503: after the time it says
    ├── NotAllowed             401, 403: slowly; the last good bundle stays in force
    └── NotUnderstood          400, 413: slowly; one of both sides is of another version
    Ended                      the machine's work is over; not a failure
    └── Superseded             409: another machine is the agent's now

A call that failed is not made again here, with one exception: a machine that proves itself with Fly's token has its own
for that, and when that one is refused, as after a rotation, it asks for another and calls once more.

Redirects are not followed: the token goes to the configured address and nowhere else.
"""

import asyncio
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import ValidationError

from roost_agent.backoff import CALLS, REFUSED, Random
from roost_agent.contract.bootstrap import TokenAnswer
from roost_agent.contract.bundle import ConfigBundle
from roost_agent.contract.checkin import Checkin
from roost_agent.contract.heartbeat import Heartbeat, HeartbeatAnswer
from roost_agent.contract.paths import (
    GATEWAY_TOKEN_HEADERS,
    MACHINE_ID_HEADER,
    TOKEN_HEADER,
    bundle_path,
    checkin_path,
    heartbeat_path,
    token_path,
)
from roost_agent.contract.wire import refused
from roost_agent.proof import NoProof, fly_token
from roost_agent.settings import Settings

__all__ = [
    "Busy",
    "CallFailed",
    "Ended",
    "Endpoint",
    "Fetched",
    "NotAllowed",
    "NotUnderstood",
    "Superseded",
    "Unreachable",
    "pause",
    "raise_for",
    "understood",
]

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
"""Beyond what the answer may be held open."""
_CHECKIN_SECONDS = 10.0
_GOOD = (200, 304)
_LONGEST_RETRY_AFTER = 300.0


class CallFailed(Exception):
    """A call that did not succeed. Its text is for people and holds no secret."""


class Unreachable(CallFailed):
    pass


class Busy(CallFailed):
    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class NotAllowed(CallFailed):
    pass


class NotUnderstood(CallFailed):
    pass


class Ended(Exception):
    """The supervisor is to stop the runtime and exit 0; the text says why."""


class Superseded(Ended):
    pass


@dataclass(frozen=True, slots=True)
class Fetched:
    """A bundle as it came and as it reads; `bundle` is None when the agent is revoked."""

    raw: bytes = field(repr=False)
    bundle: ConfigBundle | None


def pause(error: CallFailed, attempt: int, random: Random) -> float:
    """Seconds until the same call may be made again, after so many failures in a row."""
    if isinstance(error, Busy):
        return error.retry_after
    policy = REFUSED if isinstance(error, NotAllowed | NotUnderstood) else CALLS
    return policy.jittered(attempt, random)


class Endpoint:
    """The operator's endpoint as this machine calls it. An async context manager that owns the connections.

    `token` is the one of the settings, or the last that was had for Fly's; None before the first.
    """

    def __init__(self, settings: Settings) -> None:
        self._bundle_url = settings.endpoint + bundle_path(settings.did)
        self._heartbeat_url = settings.endpoint + heartbeat_path(settings.did)
        self._checkin_url = settings.endpoint + checkin_path(settings.did)
        self._token_url = settings.endpoint + token_path(settings.did)
        self._settings = settings
        self.token = settings.token
        self._refused: str | None = None
        self._proving = asyncio.Lock()
        self._tls = settings.tls or True
        self._session = self._fresh()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def renew(self) -> None:
        """Gives every connection up; calls under way on them fail, later ones begin with connections of their own."""
        old, self._session = self._session, self._fresh()
        await old.close()

    def _fresh(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._tls), cookie_jar=aiohttp.DummyCookieJar())

    async def bundle(self, applied: str | None = None) -> Fetched | None:
        """The agent's bundle; None when it is still the one with the revision `applied`.

        Raises:
            CallFailed, Superseded
        """
        conditional = {"If-None-Match": f'"{applied}"'} if applied else {}
        status, body = await self._call("GET", self._bundle_url, headers=conditional)
        if status != 304:
            return understood(body)
        if applied is None:
            raise Unreachable("unexpected answer 304")
        return None

    async def beat(self, heartbeat: Heartbeat, wait: int) -> HeartbeatAnswer:
        """Posts a heartbeat; the answer may be held open for `wait` seconds.

        Raises:
            CallFailed, Superseded
        """
        body = heartbeat.write()
        headers = {"Content-Type": "application/json"}
        url = f"{self._heartbeat_url}?wait={wait}" if wait else self._heartbeat_url
        _, answer = await self._call("POST", url, headers=headers, body=body, seconds=wait + _ANSWER_SECONDS)
        try:
            return HeartbeatAnswer.read(answer)
        except ValidationError as error:
            raise Unreachable(f"the answer to the heartbeat makes no sense ({refused(error)})") from None

    async def checkin(self, body: Checkin, gateway_token: str) -> None:
        """Posts figures, with both proofs; returns when they were taken.

        Raises:
            CallFailed, Superseded
        """
        await self._call(
            "POST",
            self._checkin_url,
            headers={"Content-Type": "application/json", GATEWAY_TOKEN_HEADERS[0]: gateway_token},
            body=body.write(),
            seconds=_CHECKIN_SECONDS,
            proof=_bearer,
            good=(204,),
        )

    async def prove(self) -> None:
        """Has a token in hand that was not refused, if need be for the one that Fly makes of this machine.

        Raises:
            CallFailed, Superseded
        """
        async with self._proving:
            if self.token in (None, self._refused):
                self.token = await self._exchanged()
                self._refused = None

    async def _exchanged(self) -> str:
        try:
            proof = await fly_token(self._settings.api_socket, self._settings.endpoint)
        except NoProof as error:
            raise Unreachable(str(error)) from None
        _, answer = await self._send("POST", self._token_url, headers={"Authorization": f"Bearer {proof}"})
        try:
            return TokenAnswer.read(answer).token
        except ValidationError as error:
            raise Unreachable(f"the answer to the proof makes no sense ({refused(error)})") from None

    async def _call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float = _ANSWER_SECONDS,
        proof: Callable[[str], Mapping[str, str]] = lambda token: {TOKEN_HEADER: token},
        good: Container[int] = _GOOD,
    ) -> tuple[int, bytes]:
        await self.prove()
        token = self.token
        assert token is not None
        try:
            proved = {**proof(token), **headers}
            return await self._send(method, url, headers=proved, body=body, seconds=seconds, good=good)
        except NotAllowed:
            if (another := await self._another(token)) is None:
                raise
        proved = {**proof(another), **headers}
        return await self._send(method, url, headers=proved, body=body, seconds=seconds, good=good)

    async def _another(self, refused: str) -> str | None:
        """A token that is not the one that was refused; None when there is no other."""
        if self._settings.token is not None:
            return None
        if self.token == refused:
            self._refused = refused
        await self.prove()
        return None if self.token == refused else self.token

    async def _send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float = _ANSWER_SECONDS,
        good: Container[int] = _GOOD,
    ) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=seconds, connect=_CONNECT_SECONDS)
        named = {MACHINE_ID_HEADER: self._settings.machine_id, **headers}
        try:
            async with self._session.request(
                method, url, data=body, headers=named, timeout=timeout, allow_redirects=False
            ) as answer:
                raise_for(answer.status, answer.headers.get("Retry-After"), good)
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"no answer ({type(error).__name__})") from None


def _bearer(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"}


def raise_for(status: int, retry_after: str | None, good: Container[int] = _GOOD) -> None:
    """Raises what a status means, nothing for the good ones."""
    if status in good:
        return
    match status:
        case 409:
            raise Superseded("superseded by another machine")
        case 401 | 403:
            raise NotAllowed(f"refused with {status}")
        case 400 | 413:
            raise NotUnderstood(f"not understood ({status})")
        case 429 | 503:
            raise Busy(f"busy ({status})", _seconds(retry_after))
        case _:
            raise Unreachable(f"unexpected answer {status}")


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds, from 1 to 300; 5 when it is missing or a date."""
    return min(max(float(retry_after), 1.0), _LONGEST_RETRY_AFTER) if retry_after and retry_after.isdecimal() else 5.0


def understood(raw: bytes) -> Fetched:
    """Reads a bundle. The kill switch comes first: it holds even in one that is otherwise not understood.

    Raises:
        Unreachable: it makes no sense; the text names fields, never values.
    """
    try:
        if json.loads(raw).get("revoked") is True:
            return Fetched(raw, None)
        return Fetched(raw, ConfigBundle.read(raw))
    except ValidationError as error:
        raise Unreachable(f"the bundle makes no sense ({refused(error)})") from None
    except (ValueError, AttributeError, RecursionError):
        raise Unreachable("the bundle is no JSON object") from None
