"""Nothing is left of what has ended: neither of a runtime's lives, nor of its connections, nor of configurations."""

import asyncio
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openclaw_image
import psutil
import pytest
from endpoint import OperatorDouble
from machine import Machine
from supervisor_lives import KINDS, settled

sys.path.append(str(Path(__file__).parents[1] / "unit" / "openclaw"))  # the stand-in inside the test's own loop

from openclaw_stub import TOKEN, Running, eventually

from roost_agent.runtime.openclaw.sight import Observer

LIVES = Path(__file__).with_name("supervisor_lives.py")
COUNTS = {"ended": 1000, "killed": 30, "orphans": 30, "never": 10, "absent": 100, "restarted": 30, "short": 30}
WAYS = ("ends", "deaf", "stranger", "starting", "ends", "deaf", "mute")
NOISE = 32 * 1024
"""Bytes that caches may still grow by. A thousand lives that left one small object each are beyond it."""
BYTES_A_LIFE = 40
GATEWAY_LIVES = 50
UPDATES = 20


def left(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """By how much each count is higher than before."""
    return {what: after[what] - count for what, count in before.items() if what != "bytes" and after[what] > count}


@pytest.fixture(scope="module", autouse=True)
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The program of the lives, which runs while the other tests do."""
    told = tmp_path_factory.mktemp("lives") / "told"
    argv = [sys.executable, str(LIVES), *(f"{kind}={count}" for kind, count in COUNTS.items())]
    with told.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file)
    yield process, told
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def lived(living: tuple[subprocess.Popen[bytes], Path]) -> dict[str, Any]:
    process, told = living
    code = process.wait(200)
    assert code == 0, told.read_text()[-4000:]
    return dict(json.loads(told.read_text().splitlines()[-1]))


class Ways:
    """A stand-in that ends in one way after the other, each time followed as the supervisor does."""

    def __init__(self, folder: Path) -> None:
        self.running = Running(folder)
        self.observer = Observer(self.running.gateway, changed=lambda: None, clean=str, look_seconds=0.01)

    async def live(self, number: int) -> None:
        """One life, from the start of the stand-in until nothing of it is left."""
        ready = asyncio.Event()
        way = WAYS[number % len(WAYS)]
        self.running.gateway._token = lambda: "wrong" if way == "stranger" else TOKEN
        self.running.start(startSeconds=60 if way == "starting" else 0)
        follow = self.running.followed(
            lambda is_ready: ready.set() if is_ready else None,
            while_ready=self.observer.run,
            answer_seconds=0.1 if way == "mute" else 5.0,
        )
        async with follow as following:
            if way == "starting":
                await eventually(lambda: self.running.stub.calls["/healthz"], "a first look")
            elif way == "stranger":
                await eventually(lambda: "TOKEN" in self.running.gateway.why.upper(), "a refusal")
            else:
                await asyncio.wait_for(ready.wait(), 10)
                await eventually(lambda: self.observer.sight.channels, "what it says of itself")
            if way in ("deaf", "mute"):
                self.running.stub.tell({way: True})
                assert await asyncio.wait_for(following, 10) == "/healthz did not answer 3 times"
        await self.running.stop()


async def test_nothing_is_left_of_a_gateways_connections(tmp_path: Path) -> None:
    ways = Ways(tmp_path)
    tracemalloc.start()
    try:
        for number in range(len(WAYS)):
            await ways.live(number)
        before = await settled({})
        before.pop("children")  # the lives beside it
        for number in range(GATEWAY_LIVES):
            await ways.live(number)
        after = await settled(before)
    finally:
        tracemalloc.stop()
    assert left(before, after) == {}
    assert after["bytes"] - before["bytes"] < 2 * NOISE
    assert not ways.running.gateway._pending
    assert not ways.observer.sight.channels
    assert ways.running.gateway._web is None, "no session is open"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may count the files of a process that hides its memory")
async def test_nothing_is_left_of_configurations(machine: Machine, operator: OperatorDouble, tmp_path: Path) -> None:
    async def updated(times: int) -> tuple[int, int, int]:
        for number in range(times):
            model = {"default": f"anthropic/claude-sonnet-{number % 2}"}
            openclaw_image.want(operator, "2026.9.6", soul=f"You are {times}-{number}.\n", model=model)
            await machine.ready()
        process = psutil.Process(machine.pid)
        return process.num_fds(), process.num_threads(), process.memory_info().rss

    machine.environment |= openclaw_image.make(tmp_path / "image", {"2026.9.6": {}})
    openclaw_image.want(operator, "2026.9.6")
    machine.start()
    await machine.ready()
    descriptors, threads, rss = await updated(6)
    after = await updated(UPDATES)
    assert after[0] <= descriptors
    assert after[1] <= threads
    assert after[2] - rss < 2 * 2**20
    assert len(machine.lines("runtime started")) == 1, "each of them was taken up while it ran"
    assert [line for line in machine.lines() if "Unclosed" in str(line)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_lives(lived: dict[str, Any], kind: str) -> None:
    before, after = lived[kind]["before"], lived[kind]["after"]
    assert (before["children"], after["children"]) == (0, 0), "no zombie, and no orphan that runs on"
    assert left(before, after) == {}
    assert after["bytes"] - before["bytes"] < NOISE + COUNTS[kind] * BYTES_A_LIFE
