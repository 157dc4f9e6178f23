"""The figures that need no cluster: held heartbeats in memory, heartbeats and unchanged bundles a second.

The server is a process of its own on one core (bench_server.py), the agents are here, on the others.
"""

import asyncio
import json
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from bench_client import Caller, Connection, Lost, connect_all

Say = Callable[[str], None]
WAIT_SECONDS = 25
"""For how long agents let their heartbeats be held: the longest that they may."""
WARM_SECONDS = 1.0
FEW_CONNECTIONS = 8
AT_ONCE = 64


class ServerEnded(Exception):
    """It does not answer any more."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running bench_server.py."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    bare: tuple[str, int]
    callers: Sequence[Caller]
    callers_file: str

    def ask(self, order: str) -> Any:
        """Its answer to an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return _line(self.process)

    @property
    def rss_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    @property
    def cpu_seconds(self) -> float:
        spent = psutil.Process(self.process.pid).cpu_times()
        return float(spent.user + spent.system)


@contextmanager
def server(agents: int, core: int, *more: str) -> Iterator[Server]:
    """A server with so many Agents on a core."""
    with tempfile.NamedTemporaryFile("r") as callers, tempfile.TemporaryFile() as log:
        script = str(Path(__file__).with_name("bench_server.py"))
        argv = (sys.executable, script, f"--core={core}", f"--agents={agents}", f"--callers={callers.name}", *more)
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            ports = _line(process)
            known = [Caller(*json.loads(line)) for line in callers]
            yield Server(process, ("127.0.0.1", ports["port"]), ("127.0.0.1", ports["bare"]), known, callers.name)
        except ServerEnded as error:
            process.wait()
            log.seek(0)
            raise RuntimeError(f"the server has ended: {log.read()[-3000:].decode()}") from error
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ServerEnded
    return json.loads(line)


# --- Held heartbeats ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """What so many held heartbeats cost, at the most, seen over a whole round of waits: MB more than before.

    `heard_mb` is the part of it that stays when nobody is connected: what each agent has said last.
    """

    mb: float
    heard_mb: float
    kb_each: float
    seconds_to_connect: float
    lost: int


async def hold(
    server: Server, seconds: float, say: Say, *, bare: bool = False, tls: ssl.SSLContext | None = None
) -> Held:
    """Lets all agents hold a heartbeat each, and looks at the server's memory for so long."""
    address, count, lost = server.bare if bare else server.address, len(server.callers), 0
    await _once(address, server.callers[:1], tls)  # what is loaded with the first call is no connection's cost
    server.ask("trim")
    base = server.rss_mb
    await _once(address, server.callers, tls)
    server.ask("trim")
    heard, began = server.rss_mb, time.monotonic()
    connections, beating = list[Connection](), list[asyncio.Task[None]]()

    async def beat(connection: Connection, request: bytes) -> None:
        nonlocal lost
        try:
            while True:
                answer = await connection.ask(request)
                lost += answer.status != 200
        except Lost:
            lost += 1

    for first in range(0, count, AT_ONCE):  # they speak as soon as they are connected: who is silent is thrown out
        callers = server.callers[first : first + AT_ONCE]
        taken = await connect_all(address, len(callers), tls)
        connections += taken
        pairs = zip(taken, callers, strict=True)
        beating += [asyncio.create_task(beat(connection, caller.beat(WAIT_SECONDS))) for connection, caller in pairs]
    if not bare:  # some are always between an answer and the next heartbeat
        await _until(lambda: server.ask("held") >= 0.98 * count, 60.0, f"{count} heartbeats held")
    connected, most = time.monotonic() - began, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, server.rss_mb)
        await asyncio.sleep(min(0.5, seconds / 4))
    for task in beating:
        task.cancel()
    await asyncio.gather(*beating, return_exceptions=True)
    for connection in connections:
        connection.close()
    say(
        f"{count} held heartbeats: {most - base:.1f} MB over {base:.1f} MB, {heard - base:.1f} MB of it for what was "
        f"said; connected in {connected:.1f} s"
    )
    return Held(most - base, heard - base, (most - base) * 1000 / count, connected, lost)


async def _once(address: tuple[str, int], callers: Sequence[Caller], tls: ssl.SSLContext | None) -> None:
    """One heartbeat of each agent, on a few connections."""

    async def beat(connection: Connection, mine: Sequence[Caller]) -> None:
        for caller in mine:
            await connection.ask(caller.beat())
        connection.close()

    few = await connect_all(address, FEW_CONNECTIONS, tls)
    await asyncio.gather(*(beat(connection, callers[n::FEW_CONNECTIONS]) for n, connection in enumerate(few)))


async def _until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(0.2)


# --- Calls a second ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """What the server managed: calls in a second of the clock, and of its own CPU time."""

    per_second: float
    per_cpu_second: float
    refused: int

    @property
    def cpu_us(self) -> float:
        return 1e6 / self.per_cpu_second


async def rate(
    server: Server,
    address: tuple[str, int],
    request: Callable[[Caller], bytes],
    expected: int,
    connections: int,
    seconds: float,
) -> Rate:
    """Lets agents call as fast as they are answered, on so many connections that stay; each agent in its turn."""
    taken = await connect_all(address, connections)
    done = refused = 0

    async def call(connection: Connection, requests: list[bytes]) -> None:
        nonlocal done, refused
        while True:
            for each in requests:
                answer = await connection.ask(each)
                done += 1
                refused += answer.status != expected

    mine = [[request(caller) for caller in server.callers[n::connections]] for n in range(connections)]
    calling = [asyncio.create_task(call(*pair)) for pair in zip(taken, mine, strict=True)]
    await asyncio.sleep(WARM_SECONDS)
    cpu, began, before = server.cpu_seconds, time.monotonic(), done
    await asyncio.sleep(seconds)
    spent, passed, made = server.cpu_seconds - cpu, time.monotonic() - began, done - before
    broken = [task.exception() for task in calling if task.done()]
    for task in calling:
        task.cancel()
    await asyncio.gather(*calling, return_exceptions=True)
    for connection in taken:
        connection.close()
    if broken:
        raise RuntimeError(f"{len(broken)} of {connections} connections were lost: {broken[0]}")
    return Rate(made / passed, made / max(spent, 1e-9), refused)
