"""OpenClaw dies, hangs and is deaf: the supervisor brings it back, and ends it in time when it is asked to."""

import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from machine import eventually
from openclaw_world import ANN, GRACE_SECONDS, World, another, shot, stays

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.openclaw_full, pytest.mark.timeout(600)]
Record = Callable[[str, object], None]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talking(world: World) -> AsyncIterator[World]:
    """An agent that has talked already."""
    world.declare()
    world.machine.start()
    await world.ready()
    await world.pair()
    await world.turn("first")
    yield world


async def test_one_that_is_killed_is_there_again_within_a_second(talking: World, record_property: Record) -> None:
    world = talking
    pid, at = await shot(world)
    record_property("respawned_s", await another(world, pid) - at)
    await world.ready()
    assert world.operator.last["runtime"]["lastExit"]["signal"] == signal.SIGKILL
    assert world.operator.last["runtime"]["restarts"] == 1
    asked = await world.turn("still there?")
    assert asked.said[0] == "first", "the conversation outlives the process"
    assert world.starts == 2


async def test_one_that_hangs_is_ended_and_started_again(talking: World, record_property: Record) -> None:
    world = talking
    pid, at = await shot(world, signal.SIGSTOP)
    record_property("hang_noticed_s", await another(world, pid) - at)
    await world.ready()
    await world.turn("still there after that?")
    assert world.starts == 3


async def test_after_three_unclean_ends_it_hears_again(talking: World) -> None:
    # Given a third unclean end within five minutes, after which OpenClaw starts with its channels switched off
    world = talking
    pid, _ = await shot(world)
    await another(world, pid)
    # When it is said something, then it is answered all the same
    await world.bot.say("do you hear me?", ANN)
    since = len(world.bot.heard)
    await world.ready()
    await world.bot.hears(since, containing=": do you hear me?", seconds=120)
    await world.well()
    assert world.starts == 4


async def test_a_state_of_a_newer_version_is_refused_once_and_not_in_a_loop(talking: World) -> None:
    # Given a state that says it is of a newer OpenClaw
    world = talking
    assert await world.machine.stop() == 0
    database = world.machine.data / "openclaw" / "state" / "openclaw.sqlite"
    version = _schema(database)
    _schema(database, 99)
    # When the machine boots, then OpenClaw ends with 78 and is left alone
    world.machine.start()
    await world.heard(lambda b: (b["runtime"]["lastExit"] or {}).get("code") == 78, "exit 78")
    before = world.starts
    await stays(lambda: world.starts == before, 5, "it was started again")
    assert world.operator.last["runtime"]["state"] == "crashed"
    await world.troubled("process", "78")
    # When that has been put right and a person restarts it, then it runs
    _schema(database, version)
    runtime = world.operator.bundle["runtime"] | {"restartedAt": "2026-11-21T10:00:00Z"}
    world.declare(runtime=runtime)
    await world.ready()
    await world.well()


async def test_a_machine_is_stopped_in_time_when_openclaw_does_not_end(talking: World, record_property: Record) -> None:
    # Given an OpenClaw that does not hear SIGTERM
    world = talking
    gateway = world.gateway
    family = [gateway, *gateway.children(recursive=True)]
    await shot(world, signal.SIGSTOP)
    began = time.monotonic()
    # When the machine is stopped, then it ends within the grace and the 2 s that Fly adds to it
    assert await world.machine.stop() == 0
    took = time.monotonic() - began
    record_property("wedged_stop_s", took)
    assert took <= GRACE_SECONDS + 2
    await eventually(lambda: not any(process.is_running() for process in family), "nothing of it is left")


def _schema(database: object, version: int | None = None) -> int:
    """The version of the state's schema, set if one is given."""
    import sqlite3

    with sqlite3.connect(str(database)) as connection:
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version is not None:
            connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    return found
