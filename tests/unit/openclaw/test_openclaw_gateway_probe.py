"""When a gateway counts as ready, and when it must be started anew."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from openclaw_stub import TOKEN, Running, eventually, running

from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway
from roost_agent.runtime.openclaw.probe import follow


async def test_it_is_ready_soon_after_it_has_started(tmp_path: Path) -> None:
    # Given a gateway that listens long before it has started
    told: list[bool] = []
    async with running(tmp_path, startSeconds=0.5) as world, world.followed(told.append):
        # Then it counts as ready once it says started, at once, and connected
        await eventually(lambda: told, "ready")
        assert not world.stub.starting
        assert time.monotonic() - world.stub.began < 0.5 + 2
        assert told == [True]
        assert await world.gateway.call("channels.status")


async def test_one_that_starts_while_it_is_looked_for_is_found(tmp_path: Path) -> None:
    told: list[bool] = []
    world = Running(tmp_path)
    async with world.followed(told.append):
        await asyncio.sleep(0)
        world.start(startSeconds=0)
        await eventually(lambda: told, "ready")
    await world.stop()


async def test_one_that_never_starts_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    told: list[bool] = []
    async with running(tmp_path, startSeconds=60) as world, world.followed(told.append, deadline=1) as life:
        assert await life == "not ready in 1 s: /startupz does not say started"
    assert told == []


async def test_one_that_does_not_listen_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    async with Running(tmp_path).followed(lambda _: None, deadline=1) as life:
        assert await life == "not ready in 1 s: /healthz does not answer"


async def test_one_that_does_not_know_the_supervisor_is_given_up_with_its_own_words(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        world.gateway._token = lambda: "another"
        async with world.followed(lambda _: None, deadline=1) as life:
            assert "token mismatch" in await life


async def test_a_page_with_the_status_200_is_no_word_of_having_started(tmp_path: Path) -> None:
    # Given a version that answers every path with its page
    world = Running(tmp_path)
    world.start(startSeconds=0)
    world.stub.startupz = world.stub.page  # type: ignore[method-assign,assignment]
    await eventually(lambda: world.stub.site, "listening")
    async with world.followed(lambda _: None, deadline=1) as life:
        assert await life == "not ready in 1 s: /startupz does not say started"
    await world.stop()


async def test_one_whose_listener_is_closed_while_it_lives_on_is_wedged(tmp_path: Path) -> None:
    told: list[bool] = []
    async with running(tmp_path) as world, world.followed(told.append) as life:
        await eventually(lambda: told, "ready")
        # Given connections that were made before, and would still be answered
        looks = world.stub.calls["/healthz"]
        await eventually(lambda: world.stub.calls["/healthz"] > looks + 2, "some looks")
        world.stub.tell({"deaf": True})
        assert await life == "/healthz did not answer 3 times"
    assert told == [True, False]


async def test_one_that_closes_its_listener_on_sigterm_and_lives_on_is_wedged(tmp_path: Path) -> None:
    told: list[bool] = []
    async with running(tmp_path, hangOnTerm=True) as world, world.followed(told.append) as life:
        await eventually(lambda: told, "ready")
        world.stub.terminated()
        assert await life == "/healthz did not answer 3 times"
        assert not world.code.done()
        world.stub.tell({"exit": 1})
        assert await world.code == 1


async def test_one_that_takes_connections_and_says_nothing_is_wedged(tmp_path: Path) -> None:
    told: list[bool] = []
    async with running(tmp_path) as world, world.followed(told.append, answer_seconds=0.05) as life:
        await eventually(lambda: told, "ready")
        world.stub.tell({"mute": True})
        assert await life == "/healthz did not answer 3 times"


async def test_two_misses_are_forgiven(tmp_path: Path) -> None:
    told: list[bool] = []
    looks = 0

    async def healthz(_: web.Request) -> web.Response:
        nonlocal looks
        looks += 1
        return web.Response(status=500 if looks % 3 else 200)

    world = Running(tmp_path)
    world.start(startSeconds=0)
    world.stub.healthz = healthz  # type: ignore[method-assign]
    async with world.followed(told.append, look_seconds=0.001) as life:
        await eventually(lambda: looks > 30, "many looks")
        assert not life.done()
    assert told == [True, False]
    await world.stop()


async def test_a_messenger_that_fails_is_no_reason_to_start_anew(tmp_path: Path) -> None:
    # Given a wrong token of a messenger, for which /readyz says 503 without end
    told: list[bool] = []
    channels = {"telegram": {"running": False, "lifecycle": "blocked", "lastError": "401"}}
    async with running(tmp_path, channels=None) as world:
        world.stub.tell({"channels": channels})
        async with world.followed(told.append, look_seconds=0.001) as life:
            await eventually(lambda: told, "ready")
            assert (await world.gateway.get("/readyz", 1))[0] == 503
            await asyncio.wait({life}, timeout=0.05)
            assert not life.done()
    assert told == [True, False]


async def test_what_runs_while_it_is_ready_ends_with_it(tmp_path: Path) -> None:
    ran: list[str] = []

    async def while_ready() -> None:
        ran.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            ran.append("ended")

    told: list[bool] = []
    async with running(tmp_path) as world, world.followed(told.append, while_ready=while_ready):
        await eventually(lambda: ran, "begun")
        assert told == [True]
    await eventually(lambda: ran == ["began", "ended"], "ended")


async def test_a_defect_of_what_runs_beside_is_not_hidden(tmp_path: Path) -> None:
    async def defect() -> None:
        raise ZeroDivisionError

    async with running(tmp_path) as world, world.followed(lambda _: None, while_ready=defect) as life:
        with pytest.raises(ZeroDivisionError):
            await life


class Steady:
    """A gateway of a loop whose time is virtual: it is ready, until it does not answer any more."""

    answers = True
    why = ""

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        yield

    connected = life

    async def hello(self) -> None:
        pass

    async def get(self, path: str, seconds: float) -> tuple[int, dict[str, str]]:
        if not self.answers:
            await asyncio.sleep(seconds)
            raise GatewayAway(path)
        return 200, {"status": "started"}


@pytest.mark.looptime
async def test_the_deadline_is_for_getting_ready_and_a_wedged_one_is_given_up_within_a_minute() -> None:
    gateway, now = Steady(), asyncio.get_running_loop().time
    life = asyncio.create_task(
        follow(lambda _: None, gateway, deadline=60, while_ready=asyncio.Event().wait)  # type: ignore[arg-type]
    )
    await asyncio.sleep(3600)
    assert not life.done()
    gateway.answers, began = False, now()
    assert await life == "/healthz did not answer 3 times"
    assert 30 < now() - began <= 3 * (10 + 5)


async def test_a_life_that_ends_while_the_next_begins_takes_nothing_from_it(tmp_path: Path) -> None:
    before: list[bool] = []
    after: list[bool] = []
    async with running(tmp_path) as world, world.followed(before.append) as life:
        await eventually(lambda: before, "ready")
        life.cancel()
        async with world.followed(after.append):
            await eventually(lambda: after, "ready again")
            assert await world.gateway.call("channels.status")


async def test_the_same_gateway_is_followed_through_many_lives(tmp_path: Path) -> None:
    world = Running(tmp_path)
    gateway = Gateway(world.host, 3001, lambda: TOKEN)
    world.gateway = gateway
    for _ in range(3):
        told: list[bool] = []
        world.start(startSeconds=0)
        async with world.followed(told.append) as life:
            await eventually(lambda told=told: told, "ready")  # type: ignore[misc]
            await world.stop()
            assert await life == "/healthz did not answer 3 times"
