"""The other side of the contract: a small real HTTP server that gives a bundle and commands, and records what it hears.

By default it answers as the operator does: commands are a pure function of the bundle and of the heartbeat, and a long
poll is held until there is one. A test scripts what else it wants to see.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from roost_agent.contract import (
    BUNDLE_ROUTES,
    CHECKIN_ROUTES,
    GATEWAY_TOKEN_ENV,
    GATEWAY_TOKEN_HEADERS,
    HEARTBEAT_ROUTES,
    MACHINE_ID_HEADER,
    TOKEN_HEADER,
    TOKEN_ROUTE,
    revision,
)

DID = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
TOKEN = "token-of-the-agent-HsZ0Yx3V"
ROOT = b"fingerprint root of these tests."

Answer = Callable[[], web.Response]


def bundle(**given: Any) -> dict[str, Any]:
    """A bundle as JSON whose runtime does nothing; with its revision."""
    whole: dict[str, Any] = {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "ConfigBundle",
        "generation": 1,
        "agent": {"did": DID, "namespace": "team-a", "name": "ada", "uid": "u-1"},
        "revoked": False,
        "runtime": {"kind": "Command", "version": "1.0", "command": ["sleep", "1000"]},
        "env": {},
        "secretEnv": {},
        "files": [],
        "heartbeat": {"intervalSeconds": 30},
    }
    whole |= given
    return whole | {"revision": revision(ROOT, whole)}


def refuse(status: int, **headers: str) -> Answer:
    """An answer that is no success."""
    return lambda: web.json_response({"error": "scripted", "message": "as told"}, status=status, headers=headers)


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat as it arrived."""

    at: float
    body: dict[str, Any]
    headers: dict[str, str]
    wait: int
    port: int
    """The other end of the connection on which it came."""


class OperatorDouble:
    """A server on 127.0.0.1. `bundle_answer` and `beat_answer` replace the usual answer while they are set."""

    def __init__(self) -> None:
        self.bundle: dict[str, Any] = bundle()
        self.bundle_answer: Answer | None = None
        self.beat_answer: Answer | None = None
        self.holds = True
        self.token = TOKEN
        self.token_answer: Answer | None = None
        self.proofs: list[dict[str, str]] = []
        """The headers of the calls for a token."""
        self.stop_cause: str | None = None
        self.next_seconds = 30
        self.beats: list[Beat] = []
        self.bundle_calls: list[tuple[float, dict[str, str]]] = []
        self.checkin_answer: Answer | None = None
        self.checkins: list[tuple[dict[str, Any], dict[str, str]]] = []
        """Body and headers of those that proved themselves."""
        self.open = 0
        self.most_open = 0
        self._news = asyncio.Event()
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def last(self) -> dict[str, Any]:
        """The body of the last heartbeat; empty before the first."""
        return self.beats[-1].body if self.beats else {}

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Opens the port; the same one again after `stop`."""
        application = web.Application()
        application.router.add_get(BUNDLE_ROUTES[0], self._bundle)
        application.router.add_post(HEARTBEAT_ROUTES[0], self._heartbeat)
        application.router.add_post(CHECKIN_ROUTES[0], self._checkin)
        application.router.add_post(TOKEN_ROUTE, self._exchange)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def change(self, **given: Any) -> str:
        """Another bundle from now on; long polls that are held hear of it. Returns its revision."""
        self.bundle = bundle(**given)
        self.wake()
        return str(self.bundle["revision"])

    def wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def due(self, beat: dict[str, Any]) -> list[dict[str, Any]]:
        """What this heartbeat is to be answered with."""
        if self.stop_cause:
            return [{"id": f"stop:{self.stop_cause}", "type": "stop", "reason": self.stop_cause}]
        commands = []
        if beat["bundleRevision"] != self.bundle["revision"]:
            commands.append({"id": f"update_config:{self.bundle['revision']}", "type": "update_config", "reason": ""})
        wanted = (self.bundle["runtime"] or {}).get("restartedAt")
        if wanted and beat["restartedAt"] != wanted:
            commands.append({"id": f"restart:{wanted}", "type": "restart", "reason": "", "restartedAt": wanted})
        return commands

    async def _exchange(self, request: web.Request) -> web.Response:
        self.proofs.append(dict(request.headers))
        if self.token_answer is not None:
            return self.token_answer()
        return web.json_response({"token": self.token, "epoch": 0}, headers={"Cache-Control": "no-store"})

    async def _checkin(self, request: web.Request) -> web.Response:
        body = await request.json()
        gateway = self.bundle["secretEnv"].get(GATEWAY_TOKEN_ENV)
        proofs = request.headers.get("Authorization"), request.headers.get(GATEWAY_TOKEN_HEADERS[0])
        if None in proofs:
            return refuse(401)()
        if proofs != (f"Bearer {self.token}", gateway) or not (request.match_info["did"] == body["sandboxId"] == DID):
            return refuse(403)()
        self.checkins.append((body, dict(request.headers)))
        return web.Response(status=204) if self.checkin_answer is None else self.checkin_answer()

    async def _bundle(self, request: web.Request) -> web.Response:
        self.bundle_calls.append((time.monotonic(), dict(request.headers)))
        if request.headers.get(TOKEN_HEADER) != self.token or request.match_info["did"] != DID:
            return refuse(403)()
        if self.bundle_answer is not None:
            return self.bundle_answer()
        etag = f'"{self.bundle["revision"]}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.json_response(self.bundle, headers={"ETag": etag, "Cache-Control": "no-store"})

    async def _heartbeat(self, request: web.Request) -> web.Response:
        body = await request.json()
        wait = int(request.query.get("wait", "0"))
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        self.beats.append(Beat(time.monotonic(), body, dict(request.headers), wait, port))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self._answer(request, body, wait)
        finally:
            self.open -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any], wait: int) -> web.Response:
        if (
            request.headers.get(TOKEN_HEADER) != self.token
            or request.headers.get(MACHINE_ID_HEADER) != body["machineId"]
        ):
            return refuse(403)()
        until = time.monotonic() + wait
        while not (commands := self.due(body)) and self.beat_answer is None and self.holds:
            if (left := until - time.monotonic()) <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                break
        if self.beat_answer is not None:
            return self.beat_answer()
        return web.json_response({"commands": commands, "nextHeartbeatSeconds": self.next_seconds})
