"""Two replicas over real sockets: agents may call either, and the one that leads hears them."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from endpoint_world import DEADLINE, Caller, EndpointWorld, endpoint_world

from roost.endpoint.relay import PASSED_ON_HEADER
from roost.run import _serve


@pytest.fixture
async def leader() -> AsyncIterator[EndpointWorld]:
    async with endpoint_world() as made:
        yield made


@pytest.fixture
async def standby(leader: EndpointWorld) -> AsyncIterator[EndpointWorld]:
    async with endpoint_world() as made:
        made.leads, made.leader = False, f"http://127.0.0.1:{leader.port}"
        yield made


@pytest.fixture
def ada(leader: EndpointWorld, standby: EndpointWorld) -> Caller:
    """The agent, who calls the standby; both replicas know it."""
    leader.agent("ada")
    return standby.agent("ada")


def heard(world: EndpointWorld) -> bool:
    return any(memory.heard is not None for _, memory in world.memories.items())


async def test_the_leader_hears_what_a_standby_is_told(
    leader: EndpointWorld, standby: EndpointWorld, ada: Caller
) -> None:
    answer = await ada.say()
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert heard(leader)
    assert not heard(standby)


async def test_a_command_of_the_leader_arrives_through_the_standby(
    leader: EndpointWorld, standby: EndpointWorld, ada: Caller
) -> None:
    leader.agent("ada", restartedAt="2026-11-21T10:00:00Z")
    assert (await ada.say()).commands == ["restart:2026-11-21T10:00:00Z"]


async def test_a_standby_serves_bundles_by_itself(leader: EndpointWorld, standby: EndpointWorld, ada: Caller) -> None:
    standby.leader = ""
    assert (await ada.fetch()).status == 200


async def test_a_stranger_gets_no_further_than_the_standby(
    leader: EndpointWorld, standby: EndpointWorld, ada: Caller
) -> None:
    assert (await ada.say(X_Heartbeat_Token="wrong")).status == 403
    assert not leader.metrics.registry.get_sample_value("roost_heartbeats_total", {"code": "403"})


async def test_while_nobody_leads_an_agent_is_asked_to_come_again(standby: EndpointWorld, ada: Caller) -> None:
    standby.leader = ""
    answer = await ada.say()
    assert (answer.status, answer.json["error"], answer.headers["Retry-After"]) == (503, "no_leader", "2")


async def test_so_it_is_when_the_leader_does_not_answer(standby: EndpointWorld, ada: Caller) -> None:
    standby.leader = "http://127.0.0.1:9"
    assert (await ada.say()).status == 503


async def test_two_that_take_each_other_for_the_leader_pass_nothing_on_for_ever(
    leader: EndpointWorld, standby: EndpointWorld, ada: Caller
) -> None:
    leader.leads, leader.leader = False, f"http://127.0.0.1:{standby.port}"
    answer = await asyncio.wait_for(ada.say(), DEADLINE)
    assert (answer.status, answer.json["error"]) == (503, "no_leader")


async def test_what_the_leader_refuses_is_refused_in_its_own_words(
    leader: EndpointWorld, standby: EndpointWorld, ada: Caller
) -> None:
    leader.ready = False
    answer = await ada.say()
    assert (answer.status, answer.json["error"], answer.headers["Retry-After"]) == (503, "not_ready", "2")


async def test_a_heartbeat_that_is_held_ends_when_the_standby_goes_away(standby: EndpointWorld, ada: Caller) -> None:
    """The leader may hold it for a minute; the agent is to find another replica at once."""
    arrived, marks = asyncio.Event(), []

    async def hold(request: web.Request) -> web.Response:
        marks.append(request.headers.get(PASSED_ON_HEADER))
        arrived.set()
        await asyncio.sleep(60)
        return web.Response()

    slow = web.Application()
    slow.router.add_post("/{path:.*}", hold)
    site = await _serve(slow, "127.0.0.1:0")
    standby.leader = f"http://127.0.0.1:{site.addresses[0][1]}"
    try:
        held = asyncio.create_task(ada.say(wait="50"))
        await asyncio.wait_for(arrived.wait(), DEADLINE)
        began = time.monotonic()
        await standby.endpoint.release()
        assert (await asyncio.wait_for(held, DEADLINE)).status == 503
        assert time.monotonic() - began < 1
        assert marks == ["1"]
    finally:
        await site.cleanup()


async def test_a_change_of_the_leader_loses_no_command(leader: EndpointWorld, standby: EndpointWorld) -> None:
    """It is held at the standby, by the old leader; the command comes to be when the new one leads already."""
    async with endpoint_world() as successor:
        for world in (leader, standby, successor):
            world.agent("ada")
        ada = Caller(standby, "ada")
        held = asyncio.create_task(ada.say(wait="25"))
        await leader.until_held()
        successor.agent("ada", restartedAt="now")  # nobody tells the old leader, which goes away
        await leader.site.drain()
        told = await asyncio.wait_for(held, DEADLINE)
        assert (told.status, told.commands) == (200, [])
        assert (await ada.say(wait="25")).status == 503, "until the next one is known"
        standby.leader = f"http://127.0.0.1:{successor.port}"
        assert (await ada.say(wait="25")).commands == ["restart:now"]


async def test_a_standby_passes_on_as_many_held_heartbeats_as_there_are_agents(
    leader: EndpointWorld, standby: EndpointWorld, ada: Caller
) -> None:
    """More than the hundred connections that aiohttp's client makes where nobody says otherwise."""
    few = standby.http
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{standby.port}", connector=aiohttp.TCPConnector(limit=0)
    ) as standby.http:
        held = [asyncio.create_task(ada.say(wait="20")) for _ in range(150)]
        await leader.until_held(150)
        await leader.endpoint.release()
        async with asyncio.timeout(DEADLINE):
            assert {(await each).status for each in held} == {200}
    standby.http = few
