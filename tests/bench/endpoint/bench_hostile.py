"""Healthy agents beside hostile load: what they lose, how long they wait, how large the server grows.

The server is bench_server.py on its core; bench_attackers.py and the healthy agents, which are here, have the others.
Each healthy agent beats once a second on a connection that it keeps, and now and then makes a new one.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_client import Caller, Lost, connected, percentile
from bench_parts import Server

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
BEATS_A_CONNECTION = 20
CALM_SECONDS = 5.0


@dataclass(slots=True)
class Beats:
    """What became of heartbeats: ms of each that was answered well, and a word for each that was not."""

    ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


async def hostile(server: Server, share: float, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The figures; the last agent is left to the attackers. `share` is the strength of the attack, 1 all of it."""
    healthy = server.callers[:-1]
    calm, beats = Beats(), Beats()
    async with _beating(server, healthy, calm):
        await asyncio.sleep(1.5 * BEAT_SECONDS)
        calm.ms.clear()  # of when all of them connected
        await asyncio.sleep(min(seconds, CALM_SECONDS))
        base = most = server.rss_mb
    async with _attackers(server, share) as told, _beating(server, healthy, beats):
        cpu = server.cpu_seconds
        for _ in range(round(seconds / 0.25)):
            await asyncio.sleep(0.25)
            most = max(most, server.rss_mb)
        busy = (server.cpu_seconds - cpu) / seconds
    await asyncio.sleep(1.0)
    after = server.rss_mb
    server.ask("trim")
    say(f"hostile: {told}; calm p99 {percentile(calm.ms, 0.99):.1f} ms; {len(beats.ms)} beats beside it")
    if beats.lost:
        say(f"hostile: {len(beats.lost)} were lost, the first by {beats.lost[:3]}")
    return {
        "hostile_agents": len(healthy),
        "hostile_beats": len(beats.ms) + len(beats.lost),
        "hostile_calm_p99_ms": percentile(calm.ms, 0.99),
        "hostile_p50_ms": percentile(beats.ms, 0.5),
        "hostile_p99_ms": percentile(beats.ms, 0.99),
        "hostile_max_ms": max(beats.ms, default=float("inf")),
        "lost": len(beats.lost) + len(calm.lost),
        "hostile_core_busy": busy,
        "hostile_rss_base_mb": base,
        "hostile_rss_max_mb": most,
        "hostile_rss_after_mb": after,
        "hostile_rss_trimmed_mb": server.rss_mb,
        "hostile_attacks": told.get("begun", {}),
        "hostile_refused": told.get("answers", {}),
    }


@asynccontextmanager
async def _beating(server: Server, callers: Sequence[Caller], beats: Beats) -> AsyncIterator[None]:
    """All of them beat while the block lasts."""
    ending = asyncio.Event()
    lives = [asyncio.create_task(_live(server, n, caller, beats, ending)) for n, caller in enumerate(callers)]
    try:
        yield
    finally:
        ending.set()  # what is under way is still answered
        await asyncio.gather(*lives)


async def _live(server: Server, number: int, caller: Caller, beats: Beats, ending: asyncio.Event) -> None:
    request, beat, connection = caller.beat(), number % BEATS_A_CONNECTION, None
    loop = asyncio.get_running_loop()
    due = loop.time() + (number % 997) / 997 * BEAT_SECONDS
    while await _until(due, ending):
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if connection is None:
                    connection = await connected(server.address, number)
                answer = await connection.ask(request)
            if answer.status == 200:
                beats.ms.append((answer.at - began) * 1000)
            else:
                beats.lost.append(str(answer.status))
        except (Lost, OSError, TimeoutError) as error:
            beats.lost.append(f"{type(error).__name__}: {error}")
            beat = -1  # with the next one on another connection
        beat += 1
        if connection is not None and beat % BEATS_A_CONNECTION == 0:
            connection.close()
            connection = None
        due = max(due + BEAT_SECONDS, loop.time())
    if connection is not None:
        connection.close()


async def _until(due: float, ending: asyncio.Event) -> bool:
    """False when the end comes first."""
    try:
        async with asyncio.timeout_at(due):
            await ending.wait()
    except TimeoutError:
        return True
    return False


@asynccontextmanager
async def _attackers(server: Server, share: float) -> AsyncIterator[dict[str, Any]]:
    """They attack while the block lasts; afterwards what they tell is in the dict."""
    told: dict[str, Any] = {}
    script = str(Path(__file__).with_name("bench_attackers.py"))
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            script,
            f"--port={server.address[1]}",
            f"--callers={server.callers_file}",
            f"--share={share}",
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        await asyncio.sleep(1.5)  # until it is there
        yield told
        out, _ = await asyncio.wait_for(process.communicate(b""), 15)
        told |= json.loads(out)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
