"""A small client for stories: real HTTP, and every answer is judged by Fly's OpenAPI document on its way in."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from flysim_openapi import check, check_request

from flysim.sim import Sim

TOKEN = "fm2_good"
DEADLINE = 10.0


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and text of a refusal."""
        return self.status, self.json["error"]


class Client:
    """`core` is the simulator, where it runs in this process.

    `call` is any call; the other methods are the ones that stories need all the time.
    """

    def __init__(self, url: str, core: Sim | None = None) -> None:
        self.url, self.core = url, core
        self.seen: set[tuple[str, str]] = set()
        self._http = httpx.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=30)

    async def close(self) -> None:
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        nonce: str | None = None,
        departs: str = "",
        **query: Any,
    ) -> Reply:
        """A body must be one that Fly's document knows, unless it is said in what it `departs` from it."""
        headers = {"authorization": f"Bearer {token}"} if token is not None else {}
        if nonce is not None:
            headers["fly-machine-lease-nonce"] = nonce
        content = json.dumps(body) if body is not None else None
        answer = await self._http.request(method, path, content=content, headers=headers, params=query)
        assert answer.headers["fly-request-id"]
        if answer.status_code < 400 and content is not None and not departs:
            check_request(method, path, content.encode())
        self.seen.add(check(method, path, answer.status_code, answer.headers.get("content-type", ""), answer.content))
        return Reply(answer.status_code, answer.headers, answer.content)

    async def raw(self, method: str, path: str, content: bytes = b"", **headers: str) -> Reply:
        """Without a look at the document: for what it does not know."""
        answer = await self._http.request(method, path, content=content, headers=headers)
        return Reply(answer.status_code, answer.headers, answer.content)

    async def sim(self, method: str, path: str, body: Any = None) -> Any:
        """A call to the simulator's own side."""
        content = json.dumps(body).encode() if body is not None else b""
        reply = await self.raw(method, f"/_sim/{path}", content)
        assert reply.status == 200, reply.body
        return reply.json

    async def ledger(self, since: int = 0) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = await self.sim("GET", f"ledger?since={since}")
        return lines

    async def happened(self, event: str) -> list[dict[str, Any]]:
        """The ledger's lines of one kind of event."""
        return [line for line in await self.ledger() if line.get("event") == event]

    async def app(self, name: str = "ada", org: str = "personal") -> str:
        reply = await self.call("POST", "/v1/apps", {"name": name, "org_slug": org})
        assert reply.status == 201, reply.body
        return f"/v1/apps/{name}"

    async def volume(self, app: str, **fields: Any) -> dict[str, Any]:
        reply = await self.call("POST", f"{app}/volumes", {"name": "data", "region": "ams", "size_gb": 1} | fields)
        assert reply.status == 200, reply.body
        volume: dict[str, Any] = reply.json
        return volume

    async def create(self, app: str, image: str = "sleeper", name: str = "", **fields: Any) -> Reply:
        config = {"image": image} | fields.pop("config", {})
        return await self.call("POST", f"{app}/machines", {"name": name, "config": config} | fields)

    async def machine(self, app: str, image: str = "sleeper", *, until: str = "started", **fields: Any) -> str:
        """The path of a new machine that has come to this state."""
        reply = await self.create(app, image, **fields)
        assert reply.status == 200, reply.body
        path = f"{app}/machines/{reply.json['id']}"
        if until != "created":
            await self.wait(path, until)
        return path

    async def wait(self, machine: str, state: str) -> dict[str, Any]:
        reply = await self.call("GET", f"{machine}/wait", state=state, timeout=10)
        assert reply.status == 200, reply.body
        told: dict[str, Any] = reply.json
        return told

    async def get(self, path: str, **query: Any) -> Any:
        reply = await self.call("GET", path, **query)
        assert reply.status == 200, reply.body
        return reply.json

    async def inside(self, machine: str) -> dict[str, Any]:
        """What the simulator knows about a machine: pid, address, log, volume_dir."""
        (row,) = [row for row in await self.sim("GET", "machines") if machine.endswith(row["id"])]
        return dict(row)

    async def log(self, machine: str, until: str = "ready") -> str:
        """A machine's output, once it holds this text: only then it does what its image says."""
        path = (await self.inside(machine))["log"]
        await eventually(lambda: until in text(path))
        return text(path)


Make = Callable[..., Awaitable[Client]]
"""Starts a simulator; see the fixture `make`."""


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Returns when the condition holds; fails when it does not in time."""
    async with asyncio.timeout(DEADLINE):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.005)


def text(path: str | Path) -> str:
    """What a file holds; nothing when it is not there (yet)."""
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""


def on(volume: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that mounts this volume."""
    return {"mounts": [{"volume": volume["id"], "path": "/data"}]}


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
