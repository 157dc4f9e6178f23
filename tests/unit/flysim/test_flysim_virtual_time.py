"""The core without sockets and processes, on a loop whose time is virtual: what takes long takes no time here."""

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest
from flysim_client import TOKEN
from flysim_world import EPOCH, World, make_world, manner, passing

from flysim.call import Answer
from flysim.clock import Clock
from flysim.runner import Exit
from flysim.sim import Sim
from flysim.virtual import VirtualRunner

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = await make_world()
    yield world
    await world.sim.close()


async def test_a_wait_ends_after_its_timeout(world: World) -> None:
    machine = await world.machine(skip_launch=True)
    await world.json("GET", f"{machine}/wait", state="stopped")
    for timeout, lasts in (({"timeout": 7}, 7.0), ({}, 60.0)):
        before = world.clock.now()
        late = await world.call("GET", f"{machine}/wait", **timeout)
        text = "deadline_exceeded: machine failed to reach desired state, started, currently stopped"
        assert (late.status, json.loads(late.body)["error"]) == (408, text)
        assert world.clock.now() - before == pytest.approx(lasts, abs=0.01)
    last = (await world.json("GET", f"{machine}/events"))[0]["id"]
    assert (await world.call("GET", f"{machine}/wait", state="stopped", from_event_id=last)).status == 408


async def test_a_lease_runs_out(world: World) -> None:
    machine = await world.machine()
    await world.json("GET", f"{machine}/wait")
    await world.json("POST", f"{machine}/lease", {"ttl": 30})
    await passing(29)
    assert (await world.call("POST", f"{machine}/stop", {})).status == 409
    await passing(2)
    assert (await world.call("GET", f"{machine}/lease")).status == 404
    assert (await world.call("POST", f"{machine}/stop", {})).status == 200


async def test_a_machine_is_prepared_for_so_long(world: World) -> None:
    before = world.clock.now()
    machine = await world.machine()
    await world.json("GET", f"{machine}/wait")
    assert world.clock.now() - before == pytest.approx(0.2, abs=0.01)


async def test_retries_count_within_five_minutes(world: World) -> None:
    machine = await world.machine(config={"image": "puppet", "restart": {"policy": "on-failure", "max_retries": 2}})
    await world.json("GET", f"{machine}/wait")
    for _ in range(6):
        world.puppet.end(Exit(code=1))
        await world.json("GET", f"{machine}/wait")
        await passing(180)
    world.puppet.end(Exit(code=1))
    await world.json("GET", f"{machine}/wait")
    world.puppet.end(Exit(code=1))
    assert (await world.json("GET", machine))["state"] == "stopped", "the third within five minutes"


async def test_a_deleted_volume_is_listed_for_a_day(world: World) -> None:
    volume = await world.json("POST", "/v1/apps/ada/volumes", {"name": "data"})
    await world.json("DELETE", f"/v1/apps/ada/volumes/{volume['id']}")
    listed = []
    for _ in range(25):
        listed.append(len(await world.json("GET", "/v1/apps/ada/volumes")))
        await passing(3600)
    assert listed == [1] * 24 + [0]


async def test_a_cursor_is_good_for_half_an_hour(world: World) -> None:
    for _ in range(3):
        await world.machine(skip_launch=True)
    cursor = (await world.json("GET", "/v1/orgs/personal/machines", limit=1))["next_cursor"]
    assert (await world.call("GET", "/v1/orgs/personal/machines", cursor=cursor)).status == 200
    await passing(31 * 60)
    assert (await world.call("GET", "/v1/orgs/personal/machines", cursor=cursor)).status == 400


async def test_a_wait_does_not_miss_a_short_stay(world: World) -> None:
    machine = await world.machine(config={"image": "puppet", "init": {"cmd": ["brief"]}})
    waiting = asyncio.create_task(world.json("GET", f"{machine}/wait", state="started"))
    assert (await waiting)["state"] == "started"
    assert (await world.json("GET", machine))["state"] == "stopped"


@pytest.mark.parametrize("order", ["destroy", "stop", "delete app", "close"])
async def test_a_machine_that_is_ended_while_it_boots_is_not_lost(world: World, order: str) -> None:
    machine = await world.machine(config={"image": "puppet", "init": {"cmd": ["slow"]}})
    await passing(1)
    puppet = world.puppet
    assert (await world.json("GET", machine))["state"] == "starting"
    match order:
        case "destroy":
            await world.call("DELETE", machine, force="true")
            await world.json("GET", f"{machine}/wait", state="destroyed")
        case "stop":
            await world.call("POST", f"{machine}/stop", {})
            await world.json("GET", f"{machine}/wait", state="stopped")
        case "delete app":
            await world.call("DELETE", "/v1/apps/ada", force="true")
            await passing(10)
        case _:
            await world.sim.close()
    assert puppet.ended is not None
    assert puppet is world.puppet, "and it was not booted again"


async def test_a_call_that_is_held_back_has_no_effect_before(world: World) -> None:
    await world.sim.handle("POST", "/_sim/faults", {}, {}, b'{"op": "create_machine", "delay": 30}')
    making = asyncio.create_task(world.machine())
    await passing(29)
    assert await world.json("GET", "/v1/apps/ada/machines") == []
    assert not making.done()
    await making
    assert len(await world.json("GET", "/v1/apps/ada/machines")) == 1


async def test_rate_limits_are_enforced_when_asked_for() -> None:
    world = await make_world(rate_limits=True)
    await world.json("POST", "/v1/apps", {"name": "bob", "org_slug": "personal"})

    async def statuses(path: str, count: int) -> list[int]:
        return [(await world.call("GET", path)).status for _ in range(count)]

    assert await statuses("/v1/apps/ada/volumes", 5) == [200, 200, 200, 429, 429]
    assert await statuses("/v1/apps/bob/volumes", 1) == [200], "each app has its own"
    await passing(2)
    assert await statuses("/v1/apps/ada/volumes", 3) == [200, 200, 429]
    machine = await world.machine()
    assert await statuses(machine, 11) == [200] * 10 + [429], "reading one machine has more"
    await passing(1)
    assert await statuses(machine, 6) == [200] * 5 + [429]
    await world.sim.close()


async def test_the_same_seed_and_times_give_the_same_answers() -> None:
    def told(answers: list[Answer]) -> list[tuple[int, bytes]]:
        return [(answer.status, answer.body) for answer in answers]

    runs = []
    for _ in range(2):
        clock, runner = Clock(EPOCH), VirtualRunner(manner)
        sim = Sim(runner, clock, random.Random(5), tokens=[TOKEN])
        world = World(sim, runner, clock)
        answers = [await world.call("POST", "/v1/apps", {"name": "ada", "org_slug": "personal"})]
        answers += [await world.call("POST", "/v1/apps/ada/volumes", {"name": "data"})]
        answers += [await world.call("POST", "/v1/apps/ada/machines", {"config": {"image": "puppet"}})]
        runs.append(told(answers))
        await sim.close()
    assert runs[0] == runs[1]


async def test_at_the_end_even_stubborn_machines_get_a_short_grace_only(world: World) -> None:
    for timeout in ("1s", "60s"):
        config = {"image": "puppet", "init": {"cmd": ["stubborn"]}, "stop_config": {"timeout": timeout}}
        await world.json("GET", f"{await world.machine(config=config)}/wait")
    before = world.clock.now()
    await world.sim.close()
    assert world.clock.now() - before == pytest.approx(2.0, abs=0.01)
    assert [puppet.ended for puppet in world.runner.machines.values()] == [Exit(signal=9)] * 2
