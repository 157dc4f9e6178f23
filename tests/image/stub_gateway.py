"""A stand-in for OpenClaw that starts in milliseconds: `stub_gateway.py gateway run`, as the real one is started.

It serves the three probes and the RPC methods that the supervisor calls, reads the same openclaw.json, and behaves as
2026.9.6 was seen to, which tests/openclaw/test_stub_is_true.py holds it to. It needs no more than the standard library
and aiohttp, and imports nothing of what it tests.

What it is to do is told before it starts, by the file stub.json in its state directory, or while it runs, by a POST of
the same to /stub. Fields, all optional:

    startSeconds      for so long /startupz says "starting" (0.05)
    exitAtStart       this exit code instead of starting
    exit              this exit code, now
    hangOnTerm        SIGTERM closes the listener, and nothing more
    deaf              the listener is closed now, the process lives on
    mute              /healthz is not answered any more
    suppressed        names of messengers that are not started
    channels          {name: state}: what channels.status says of its one account, over what a healthy one says
    startFails        channels.start has no effect this many times
    requests          [{channel, senderId, code, username}]: who waits for leave to write
    turns             how many turns are under way
    refuseReload      every new configuration is refused, with this message

GET /stub tells {"calls": {method or path: count}, "pid": n, "applied": the configuration in effect}.
"""

import asyncio
import hashlib
import json
import os
import re
import signal
import sqlite3
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

VERSION = "2026.9.6"
_SCOPES = {"operator.admin", "operator.read", "operator.write", "operator.approvals", "operator.pairing"}
_NEEDS_RESTART = ("env", "browser", "discovery", "proxy")
_WATCH_SECONDS = 0.02
_APPLY_SECONDS = 0.05


class Invalid(Exception):
    pass


class Failure(Exception):
    """An error of the RPC."""

    def __init__(self, code: str, message: str, retry_after: int | None = None, /, **details: str) -> None:
        super().__init__(message)
        self.body: dict[str, Any] = {"code": code, "message": message}
        if retry_after is not None:
            self.body |= {"retryable": True, "retryAfterMs": retry_after}
        if details:
            self.body["details"] = details


class Stub:
    def __init__(self, state: Path, environment: dict[str, str]) -> None:
        self.state = state
        self.path = Path(environment.get("OPENCLAW_CONFIG_PATH", state / "openclaw.json"))
        self.environment = environment
        self.calls: Counter[str] = Counter()
        self.began = time.monotonic()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.start_seconds = 0.05
        self.hang_on_term = self.mute = False
        self.suppressed: list[str] = []
        self.channels: dict[str, dict[str, Any]] = {}
        self.start_fails = 0
        self.turns = 0
        self.refuse_reload: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.lease: str | None = None
        self.prepared = False
        self.applied: dict[str, Any] = {}
        self.file: dict[str, Any] | None = None
        """What stands in the file; None when that is refused, and `refused` says why."""
        self.refused = ""
        self.site: web.TCPSite | None = None
        self.sockets: set[web.WebSocketResponse] = set()

    def tell(self, said: dict[str, Any]) -> None:
        """Does as stub.json or a POST says."""
        if "exit" in said and not self.ended.done():
            self.ended.set_result(said["exit"])
        if said.get("deaf"):
            asyncio.get_running_loop().create_task(self.close_listener())
        for field, name in (
            ("startSeconds", "start_seconds"),
            ("hangOnTerm", "hang_on_term"),
            ("mute", "mute"),
            ("suppressed", "suppressed"),
            ("startFails", "start_fails"),
            ("turns", "turns"),
            ("refuseReload", "refuse_reload"),
        ):
            if field in said:
                setattr(self, name, said[field])
        self.channels |= said.get("channels", {})
        if "requests" in said:
            self.requests = [self.request(**one) for one in said["requests"]]
            self.store()

    def request(self, senderId: str, code: str, channel: str = "telegram", username: str = "ann") -> dict[str, Any]:  # noqa: N803
        now = datetime.now(UTC)
        times = {key: f"{at:%Y-%m-%dT%H:%M:%S}.000Z" for key, at in (("createdAt", now), ("lastSeenAt", now))}
        return {
            "code": code,
            "shown": {
                "requestId": hashlib.sha256(f"{channel}{senderId}{code}".encode()).hexdigest()[:32],
                "channel": channel,
                "channelLabel": channel.title(),
                "accountId": "default",
                "senderId": senderId,
                "senderLabel": f"{channel}UserId",
                "metadata": {"username": username},
                **times,
                "expiresAt": f"{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}.000Z",
                "notifySupported": True,
            },
        }

    def store(self) -> None:
        """Writes the requests where the real one keeps them, in the same manner (write-ahead log)."""
        (self.state / "state").mkdir(exist_ok=True)
        database = sqlite3.connect(self.state / "state" / "openclaw.sqlite")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS channel_pairing_requests "
            "(channel_key, account_id, request_id, code, created_at, last_seen_at, meta_json)"
        )
        database.execute("DELETE FROM channel_pairing_requests")
        for one in self.requests:
            shown = one["shown"]
            row = (shown["channel"], "default", shown["senderId"], one["code"], shown["createdAt"], shown["createdAt"])
            database.execute("INSERT INTO channel_pairing_requests VALUES (?,?,?,?,?,?,'{}')", row)
        database.commit()
        database.close()

    # The configuration.

    def read(self) -> dict[str, Any]:
        """The configuration of the file.

        Raises:
            Invalid: as the real one would not take it, in the cases that are told apart here.
        """
        try:
            config = json.loads(self.path.read_text())
        except OSError:
            raise Invalid("Missing config") from None
        except ValueError as error:
            raise Invalid(f"JSON5 parse failed: {error}") from None
        if "nonsense" in config:
            raise Invalid('Unrecognized key: "nonsense"')
        if config.get("gateway", {}).get("mode") != "local":
            raise Invalid("Missing gateway.mode")
        return config

    def expanded(self, text: str) -> str:
        return re.sub(r"\$\{([A-Z0-9_]+)\}", lambda found: self.environment.get(found[1], found[0]), text)

    @property
    def token(self) -> str:
        return self.expanded(self.applied.get("gateway", {}).get("auth", {}).get("token", ""))

    async def watch(self) -> None:
        """Takes up what is written to the file, or passes it over."""
        before = self.path.read_bytes()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if (now := self.path.read_bytes()) == before:
                continue
            before = now
            try:
                config = self.read()
                if self.refuse_reload:
                    raise Invalid(self.refuse_reload)
            except Invalid as error:
                print(f"config reload skipped (invalid config): {error}", flush=True)
                self.file, self.refused = None, str(error)
                continue
            if _restart_part(config) != _restart_part(self.applied):
                self.ended.set_result(0)
                return
            self.file = config
            await asyncio.sleep(_APPLY_SECONDS)
            self.applied = config

    # What it says over HTTP.

    @property
    def starting(self) -> bool:
        return time.monotonic() - self.began < self.start_seconds

    async def healthz(self, _: web.Request) -> web.Response:
        self.calls["/healthz"] += 1
        if self.mute:
            await asyncio.wait({self.ended})
        return web.json_response({"ok": True, "status": "live"})

    async def startupz(self, _: web.Request) -> web.Response:
        status = "starting" if self.starting else "draining" if self.lease else "started"
        return web.json_response(
            {"ok": status == "started", "status": status, "version": VERSION},
            status=200 if status == "started" else 503,
        )

    async def readyz(self, _: web.Request) -> web.Response:
        failing = [name for name, account in self.accounts() if not account["running"] and name not in self.suppressed]
        if self.lease:
            failing = ["gateway-draining"]
        if self.starting:
            failing = ["startup-sidecars"]
        body: dict[str, Any] = {"ready": not failing, "failing": failing}
        if self.suppressed:
            body["suppressed"] = self.suppressed
        return web.json_response(body, status=503 if failing else 200)

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Any other path: the control UI, or the socket."""
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self.socket(request)
        return web.Response(text="<!doctype html>", content_type="text/html")

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.tell(await request.json())
        return web.json_response({"calls": self.calls, "pid": os.getpid(), "applied": self.applied})

    # What it says over the socket.

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=25 * 2**20)
        await socket.prepare(request)
        self.sockets.add(socket)
        await socket.send_json({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}})
        operator = False
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            frame = json.loads(message.data)
            answer: dict[str, Any] = {"type": "res", "id": frame["id"]}
            try:
                payload = self.answer(frame["method"], frame.get("params") or {}, operator=operator)
            except Failure as failure:
                answer |= {"ok": False, "error": failure.body}
            else:
                operator = True
                answer |= {"ok": True, "payload": payload}
                await socket.send_json({"type": "event", "event": "tick", "payload": {}})
            await socket.send_json(answer)
        self.sockets.discard(socket)
        return socket

    def answer(self, method: str, params: dict[str, Any], *, operator: bool) -> dict[str, Any]:
        self.calls[method] += 1
        if not operator:
            return self.hello(method, params)
        if self.lease and not method.startswith("gateway.suspend."):
            phase = "prepared" if self.prepared else "draining"
            text = f"{method} unavailable during gateway suspension"
            raise Failure("UNAVAILABLE", text, 1000, method=method, reason="gateway-suspending", phase=phase)
        known = {
            "channels.status": self.channels_status,
            "channels.start": self.channels_start,
            "channels.pairing.list": self.pairing_list,
            "channels.pairing.approve": self.pairing_decide,
            "channels.pairing.dismiss": self.pairing_decide,
            "sessions.list": self.sessions_list,
            "cron.status": lambda _: {"enabled": True, "jobs": 1, "nextWakeAtMs": 1795316400000},
            "config.get": self.config_get,
            "gateway.suspend.prepare": self.suspend_prepare,
            "gateway.suspend.resume": self.suspend_resume,
        }
        if method not in known:
            raise Failure("INVALID_REQUEST", f"unknown method: {method}")
        return known[method](params)

    def hello(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if self.starting:
            raise Failure("UNAVAILABLE", "gateway starting; retry shortly", 50, reason="startup-sidecars")
        if method != "connect" or params.get("auth", {}).get("token") != self.token:
            text = "unauthorized: gateway token mismatch (provide gateway auth token)"
            raise Failure("INVALID_REQUEST", text, code="AUTH_TOKEN_MISMATCH", authReason="token_mismatch")
        phase = "accepting" if not self.lease else "prepared" if self.prepared else "draining"
        return {
            "type": "hello-ok",
            "protocol": 4,
            "server": {"version": VERSION},
            "features": {"methods": [], "events": []},
            "snapshot": {"suspension": {"phase": phase}},
            "auth": {"role": "operator", "scopes": sorted(_SCOPES & set(params["scopes"]))},
            "policy": {"maxPayload": 26214400},
        }

    def accounts(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for name, channel in self.applied.get("channels", {}).items():
            up = channel.get("enabled", True) and name not in self.suppressed
            account = {"accountId": "default", "enabled": channel.get("enabled", True), "configured": True}
            account |= {"running": up, "connected": up, "lifecycle": "ready" if up else "stopped", "lastError": None}
            found.append((name, account | self.channels.get(name, {})))
        return found

    def channels_status(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"channelAccounts": {name: [account] for name, account in self.accounts()}, "statusIssues": []}

    def channels_start(self, params: dict[str, Any]) -> dict[str, Any]:
        name = params.get("channel")
        if name not in self.applied.get("channels", {}):
            raise Failure("INVALID_REQUEST", "invalid channels.start channel")
        here = {"channel": name, "accountId": params.get("accountId", "default")}
        if self.start_fails:
            self.start_fails -= 1
            return {**here, "started": False, "outcome": {"status": "retry", "reason": "start-in-progress"}}
        if name not in self.suppressed:
            return {**here, "started": True, "outcome": {"status": "retry", "reason": "task-owned"}}
        self.suppressed = [other for other in self.suppressed if other != name]
        return {**here, "started": True, "outcome": {"status": "handed-off"}}

    def pairing_list(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "accounts": [],
            "requests": [one["shown"] for one in self.requests],
            "limits": {"pendingPerAccount": 3, "ttlMs": 3600000},
        }

    def pairing_decide(self, params: dict[str, Any]) -> dict[str, Any]:
        left = [one for one in self.requests if one["shown"]["requestId"] != params["requestId"]]
        if len(left) == len(self.requests):
            raise Failure("INVALID_REQUEST", "pending DM access request no longer exists")
        self.requests = left
        self.store()
        return {"ok": True}

    def sessions_list(self, _: dict[str, Any]) -> dict[str, Any]:
        rows = [{"key": str(n), "hasActiveRun": True, "lastActivityAt": 1795303857779} for n in range(self.turns)]
        return {"sessions": rows}

    def config_get(self, _: dict[str, Any]) -> dict[str, Any]:
        def revision(config: Any) -> str:
            return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()

        valid = self.file is not None
        return {
            "valid": valid,
            "issues": [] if valid else [{"path": "", "message": self.refused}],
            "parsed": _redacted(self.file),
            "configRevisionHash": revision(self.file) if valid else None,
            "appliedConfigHash": revision(self.applied),
        }

    def suspend_prepare(self, params: dict[str, Any]) -> dict[str, Any]:
        if self.turns and not params.get("drain"):
            return {"status": "busy", "reason": "active-work", "retryAfterMs": 20000, "activeCount": self.turns}
        if self.lease not in (None, params["requestId"]):
            text = "another gateway suspension is already prepared"
            raise Failure("UNAVAILABLE", text, 119997, reason="gateway-suspension-conflict")
        self.lease = params["requestId"]
        self.prepared = not self.turns
        if self.prepared:
            return {"status": "ready", "suspensionId": f"s-{self.lease}", "activeCount": 0, "blockers": []}
        work = {"kind": "session-admission", "count": self.turns, "message": "admitted session turn(s)"}
        return {
            "status": "draining",
            "suspensionId": f"s-{self.lease}",
            "retryAfterMs": 20000,
            "activeCount": self.turns,
            "blockers": [work],
        }

    def suspend_resume(self, params: dict[str, Any]) -> dict[str, Any]:
        held = self.lease is not None and params["suspensionId"] == f"s-{self.lease}"
        self.lease = None if held else self.lease
        return {"ok": True, "status": "running", "resumed": held}

    # Its life.

    async def close(self) -> None:
        await self.close_listener()
        for socket in list(self.sockets):
            await socket.close()

    async def close_listener(self) -> None:
        if self.site:
            site, self.site = self.site, None
            await site.stop()

    def terminated(self) -> None:
        if self.hang_on_term:
            asyncio.get_running_loop().create_task(self.close())
        elif not self.ended.done():
            self.ended.set_result(0)

    async def run(self, port: int | None) -> int:
        told = self.state / "stub.json"
        said = json.loads(told.read_text()) if told.exists() else {}
        try:
            self.applied = self.file = self.read()
        except Invalid as error:
            print(f"Invalid config: {error}", file=sys.stderr, flush=True)
            return 78
        if "exitAtStart" in said:
            return int(said["exitAtStart"])
        self.tell(said)
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self.healthz),
                web.get("/startupz", self.startupz),
                web.get("/readyz", self.readyz),
                web.route("*", "/stub", self.control),
                web.route("*", "/{path:.*}", self.page),
            ]
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        gateway = self.applied["gateway"]
        host = gateway["customBindHost"] if gateway.get("bind") == "custom" else "127.0.0.1"
        self.site = web.TCPSite(runner, host, port or gateway["port"])
        try:
            await self.site.start()
        except OSError:
            print("port is taken", file=sys.stderr, flush=True)
            return 1
        print(json.dumps({"level": "info", "subsystem": "gateway", "message": "http server listening"}), flush=True)
        watching = asyncio.create_task(self.watch())
        try:
            return await self.ended
        finally:
            watching.cancel()
            await self.close()
            await runner.cleanup()


def _restart_part(config: dict[str, Any]) -> list[Any]:
    gateway = config.get("gateway", {})
    return [
        *(config.get(key) for key in _NEEDS_RESTART),
        *(gateway.get(key) for key in ("port", "bind", "customBindHost", "tls")),
        gateway.get("auth", {}).get("mode"),
    ]


def _redacted(config: Any, name: str = "") -> Any:
    """The configuration as `config.get` shows it: what may be a secret only where it is a reference."""
    if isinstance(config, dict):
        return {key: _redacted(value, key) for key, value in config.items()}
    if isinstance(config, list):
        return [_redacted(value, name) for value in config]
    secret = isinstance(config, str) and re.search("token|apikey|secret|password", name.lower())
    return "__OPENCLAW_REDACTED__" if secret and not config.startswith("${") else config


def main() -> None:
    if sys.argv[1:2] == ["--version"]:
        print(f"OpenClaw {VERSION} (eb377ac)")
        return
    assert sys.argv[1:3] == ["gateway", "run"], f"the stub knows `gateway run` and `--version`, not {sys.argv[1:]}"
    port = int(sys.argv[sys.argv.index("--port") + 1]) if "--port" in sys.argv else None
    environment = dict(os.environ)
    home = environment.get("OPENCLAW_STATE_DIR") or f"{environment['HOME']}/.openclaw"

    async def run() -> int:
        stub = Stub(Path(home), environment)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stub.terminated)
        return await stub.run(port)

    sys.exit(asyncio.run(run()))


if __name__ == "__main__":
    main()
