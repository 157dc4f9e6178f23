"""The one that keeps the process, asked for things at awkward moments; without any process."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from roost_agent import policy
from roost_agent.contract.heartbeat import LastExit, ProcessState
from roost_agent.reaper import Reaper
from roost_agent.runtime import Launch, Tell
from roost_agent.supervisor import Supervisor

SECONDS = 5.0


class FakeProcess:
    """One that ends when it is told how, or by a signal."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited: asyncio.Future[LastExit] = asyncio.get_running_loop().create_future()

    def end(self, code: int) -> None:
        self.exited.set_result(LastExit(code=code, at="2026-11-21T10:00:00Z"))

    def signal(self, number: signal.Signals, *, group: bool) -> None:
        if not self.exited.done():
            self.exited.set_result(LastExit(signal=number, at="2026-11-21T10:00:00Z"))


class FakeReaper:
    def __init__(self) -> None:
        self.lives: list[FakeProcess] = []

    def spawn(self, _: Launch) -> FakeProcess:
        self.lives.append(FakeProcess(1000 + len(self.lives)))
        return self.lives[-1]

    async def group_gone(self, process: FakeProcess) -> None:
        await process.exited

    def kill_descendants(self) -> None: ...


class World:
    def __init__(self) -> None:
        self.reaper = FakeReaper()
        self.supervisor = Supervisor(
            cast("Reaper", self.reaper),
            grace=1.0,
            before_start=lambda: None,
            changed=lambda: None,
            trouble=lambda _: None,
            clock=asyncio.get_running_loop().time,
            random=lambda: 0.0,
        )

    def launch(self, cancelled: Callable[[], Any] = lambda: None) -> Launch:
        async def follow(tell: Tell) -> str:
            tell(True)
            try:
                return str(await asyncio.Event().wait())
            finally:
                cancelled()
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        return Launch(("true",), {}, Path("/"), follow, policy.gateway)

    async def lives(self, count: int) -> FakeProcess:
        """Waits until so many have been started, the last of them ready."""
        async with asyncio.timeout(SECONDS):
            await self.supervisor.until(lambda: len(self.reaper.lives) == count and self.supervisor.ready)
        return self.reaper.lives[-1]


async def test_a_restart_is_carried_out_that_comes_while_a_refused_life_is_cleared_away() -> None:
    world = World()
    asked: list[asyncio.Task[None]] = []

    def restart() -> None:
        if not asked:
            asked.append(asyncio.create_task(world.supervisor.restart(launch)))

    launch = world.launch(restart)
    running = asyncio.create_task(world.supervisor.run(launch))
    (await world.lives(1)).end(78)
    await world.lives(2)
    async with asyncio.timeout(SECONDS):
        await asked[0]
    world.supervisor.stop()
    await running


async def test_a_halt_of_what_waits_for_its_next_start_is_no_refusal_to_start() -> None:
    world = World()
    running = asyncio.create_task(world.supervisor.run(world.launch()))
    (await world.lives(1)).end(1)
    async with asyncio.timeout(SECONDS):
        await world.supervisor.until(lambda: world.supervisor.state.state is ProcessState.CRASHED)
        await world.supervisor.halt()
    assert world.supervisor.idle
    assert not world.supervisor.held
    world.supervisor.stop()
    await running


@pytest.mark.parametrize("awkward", ["before it runs", "while it waits", "while it lives", "while it is halted"])
async def test_it_can_be_stopped_at_any_moment(awkward: str) -> None:
    world = World()
    launch = world.launch()
    running = asyncio.create_task(world.supervisor.run(launch))
    if awkward != "before it runs":
        process = await world.lives(1)
        if awkward == "while it waits":
            process.end(1)
            await world.supervisor.until(lambda: world.supervisor.ends == 1)
        if awkward == "while it is halted":
            await world.supervisor.halt()
    world.supervisor.stop()
    async with asyncio.timeout(SECONDS):
        await running
        await world.supervisor.restart(launch)  # nothing, and it does not wait for anything
        await world.supervisor.halt()
    assert world.supervisor.state.state is ProcessState.STOPPED


async def test_the_ends_of_earlier_launches_are_not_counted_against_this_one() -> None:
    world = World()
    running = asyncio.create_task(world.supervisor.run(world.launch()))
    (await world.lives(1)).end(0)
    process = await world.lives(2)
    assert world.supervisor.ends == 1
    await world.supervisor.restart(world.launch())
    await world.lives(3)
    assert process.exited.done()
    assert world.supervisor.ends == 0
    world.supervisor.stop()
    await running
