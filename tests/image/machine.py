"""A machine of the tests: the real supervisor as a real process, on an address and with a data directory of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from endpoint import DID, TOKEN, OperatorDouble

from roost_agent.contract import PORTS

SECONDS = 15.0
"""The deadline of a condition that should come true soon."""


async def eventually(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Waits until the condition is true, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
    return value


class Machine:
    """One supervisor. `address` is its own on the loopback network, so no port is ever shared."""

    def __init__(self, operator: OperatorDouble, folder: Path, address: str) -> None:
        self.operator = operator
        self.address = address
        self.data = folder / "data"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            "PATH": os.environ["PATH"],
            "AGENT_DID": DID,
            "AGENTSHIELD_API_URL": operator.url,
            "AS_HEARTBEAT_TOKEN": TOKEN,
            "DATA_DIR": str(self.data),
            "FLY_MACHINE_ID": "m-1",
            "FLY_MACHINE_VERSION": "01JV",
            "FLY_REGION": "iad",
            "ROOST_BIND_ADDRESS": address,
            "ROOST_STOP_GRACE_SECONDS": "2",
        }

    def start(self, *under: str, **environment: str) -> None:
        """Starts the supervisor, below another program if that is given."""
        self.run([*under, sys.executable, "-m", "roost_agent"], **environment)

    def run(self, argv: Sequence[str], **environment: str) -> None:
        """Starts this program as the machine's first."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    async def heard(self, condition: Callable[[dict[str, Any]], Any], what: str, seconds: float = SECONDS) -> int:
        """Waits until a heartbeat says so; returns the runtime's pid, 0 when it has none."""
        await eventually(lambda: self.operator.beats and condition(self.operator.last), what, seconds)
        return self.operator.last["runtime"]["pid"] or 0

    async def runs(self) -> int:
        """Waits until a runtime runs, ready or not, with the operator's bundle; returns its pid."""
        return await self.heard(
            lambda b: b["runtime"]["pid"] and b["bundleRevision"] == self.operator.bundle["revision"], "a runtime"
        )

    async def ready(self) -> int:
        """Waits until it says that it is ready with the operator's bundle; returns the runtime's pid."""
        return await self.heard(
            lambda b: b["ready"] and b["bundleRevision"] == self.operator.bundle["revision"], "ready"
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def ended(self, seconds: float = SECONDS) -> int:
        """Waits until the supervisor has exited; returns its code."""
        process = self.process
        assert process is not None
        await eventually(lambda: process.poll() is not None, "the supervisor's exit", seconds)
        self.process = None
        return int(process.returncode)

    async def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return await self.ended()

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """What the supervisor has logged, all of it or one kind."""
        text = self.log.read_text() if self.log.exists() else ""
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in found if event in (None, line["event"])]

    async def get(self, path: str) -> tuple[int, dict[str, str]]:
        """A GET of the supervisor's own port."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self.address}:{PORTS['health']}{path}") as answer,
        ):
            return answer.status, await answer.json()

    def kill(self) -> None:
        """Ends the supervisor and all below it, whatever state they are in."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGSTOP)  # or it might start another runtime while we look
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        self.process.kill()
        self.process.wait()
        for left in below:
            try:
                left.kill()
            except psutil.NoSuchProcess:
                pass


def python(program: str, *arguments: str) -> Sequence[str]:
    """An argument vector that runs this Python text, without reading anyone's site packages."""
    return [sys.executable, "-I", "-S", "-c", program, *arguments]


def seen_in_proc(pid: int, name: str) -> str:
    """What this user may read of a process; nothing, when it may not."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except PermissionError:
        return ""


def alive(pid: int) -> bool:
    """A process is there and not only its remains."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
