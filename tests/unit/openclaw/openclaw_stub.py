"""The stand-in for OpenClaw inside the test's own loop, and a gateway client that talks to it."""

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "image"))

from stub_gateway import Stub

from roost_agent.runtime import Ran, User
from roost_agent.runtime.openclaw import probe
from roost_agent.runtime.openclaw.gateway import Gateway

TOKEN = "the gateway's token"
PORT = 3001
TELEGRAM = {"telegram": {"enabled": True, "botToken": "${TELEGRAM_BOT_TOKEN}"}}
_numbers = itertools.count(1)


def address() -> str:
    """One of this process and this test alone."""
    number = next(_numbers)
    return f"127.{220 + os.getpid() // 250 % 30}.{os.getpid() % 250 + 1}.{number % 250 + 1}"


def configuration(host: str, channels: Mapping[str, Any] | None = None) -> dict[str, Any]:
    auth = {"mode": "token", "token": "${OPENCLAW_GATEWAY_TOKEN}"}
    gateway = {"mode": "local", "port": PORT, "bind": "custom", "customBindHost": host, "auth": auth}
    return {"gateway": gateway, "channels": TELEGRAM if channels is None else dict(channels)}


async def eventually(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """Waits until the condition is true, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)
    return value


class Running:
    """A stand-in that runs, and what is needed to talk to it."""

    def __init__(self, folder: Path, channels: Mapping[str, Any] | None = None) -> None:
        self.host = address()
        self.state = folder / "openclaw"
        self.state.mkdir(exist_ok=True)
        self.path = self.state / "openclaw.json"
        self.config = configuration(self.host, channels)
        self.write(self.config)
        self.gateway = Gateway(self.host, PORT, lambda: TOKEN)
        self.stub: Stub
        self.code: asyncio.Task[int]

    def write(self, config: Mapping[str, Any] | str) -> None:
        """Puts a configuration in its place in one step, as the supervisor does."""
        beside = self.path.with_suffix(".new")
        beside.write_text(config if isinstance(config, str) else json.dumps(config))
        beside.replace(self.path)

    def start(self, **told: Any) -> None:
        self.stub = Stub(self.state, {"OPENCLAW_GATEWAY_TOKEN": TOKEN})
        (self.state / "stub.json").write_text(json.dumps(told))
        self.code = asyncio.create_task(self.stub.run(None))

    async def stop(self) -> int:
        if not self.stub.ended.done():
            self.stub.ended.set_result(0)
        return await self.code

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Gateway]:
        async with self.gateway.life(), self.gateway.connected():
            await asyncio.wait_for(self.gateway.hello(), 10)
            yield self.gateway

    @asynccontextmanager
    async def followed(self, tell: Callable[[bool], None], **given: Any) -> AsyncIterator[asyncio.Task[str]]:
        """Follows its life as the supervisor does, with looks that follow each other closely."""
        usual: dict[str, Any] = {
            "deadline": 10.0,
            "while_ready": asyncio.Event().wait,
            "look_seconds": 0.02,
            "answer_seconds": 5.0,
        }
        task = asyncio.create_task(probe.follow(tell, self.gateway, **(usual | given)))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def running(folder: Path, channels: Mapping[str, Any] | None = None, **told: Any) -> AsyncIterator[Running]:
    made = Running(folder, channels)
    made.start(**{"startSeconds": 0} | told)
    try:
        await eventually(lambda: made.stub.site, "a stand-in that listens")
        yield made
    finally:
        await made.stop()


async def run(argv: Any, *, env: Mapping[str, str], cwd: Path, user: User | None, seconds: float) -> Ran:
    """A short program, as the supervisor's reaper runs it."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, env=env, cwd=cwd, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), seconds)
    return Ran(process.returncode or 0, out, err)
