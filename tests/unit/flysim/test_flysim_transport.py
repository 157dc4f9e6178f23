"""The httpx door: a simulator in the same process, on virtual time, that fails as a socket would."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from flysim_client import TOKEN
from flysim_world import World, make_world

from flysim.faults import Order
from flysim.transport import SimTransport

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = await make_world()
    yield world
    await world.sim.close()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(
        transport=SimTransport(world.sim), base_url="http://fly", headers=headers, timeout=90
    ) as client:
        yield client


async def test_calls_answers_and_waits_take_no_real_time(world: World, http: httpx.AsyncClient) -> None:
    made = await http.post("/v1/apps/ada/machines", json={"name": "a b", "config": {"image": "puppet"}})
    assert made.status_code == 200
    assert made.headers["fly-request-id"]
    path = f"/v1/apps/ada/machines/{made.json()['id']}"
    before = world.clock.now()
    late = await http.get(f"{path}/wait", params={"state": ["stopped", "suspended"], "timeout": 50})
    assert (late.status_code, world.clock.now() - before) == (408, pytest.approx(50, abs=0.01))
    assert "stopped, suspended" in late.json()["error"]
    assert (await http.delete(path, params={"force": "true"})).json() == {"ok": True}
    assert (await http.get("/nowhere")).text == "404 page not found"


async def test_a_cut_answer_is_a_protocol_error_and_the_effect_is_there(world: World, http: httpx.AsyncClient) -> None:
    world.sim.faults.add(Order(op="create_volume", where="reply", times=1))
    with pytest.raises(httpx.RemoteProtocolError) as cut:
        await http.post("/v1/apps/ada/volumes", json={"name": "data"})
    assert cut.value.request.url.path == "/v1/apps/ada/volumes"
    assert len((await http.get("/v1/apps/ada/volumes")).json()) == 1


@pytest.mark.parametrize("how", ["timeout", "hang up"])
async def test_a_caller_that_gives_up_changes_nothing_about_the_effect(
    world: World, http: httpx.AsyncClient, how: str
) -> None:
    world.sim.faults.add(Order(op="create_volume", delay=20, times=1))
    making = asyncio.create_task(http.post("/v1/apps/ada/volumes", json={"name": "data"}, timeout=5))
    if how == "hang up":
        await asyncio.sleep(1)
        making.cancel()
    begun = world.clock.now()
    with pytest.raises((httpx.ReadTimeout, asyncio.CancelledError)):
        await making
    assert world.clock.now() - begun == pytest.approx(5 if how == "timeout" else 0, abs=0.01)
    assert (await http.get("/v1/apps/ada/volumes")).json() == []
    await asyncio.sleep(20)
    assert len((await http.get("/v1/apps/ada/volumes")).json()) == 1


async def test_calls_tell_their_cause_and_events_theirs(world: World, http: httpx.AsyncClient) -> None:
    body = {"config": {"image": "puppet", "restart": {"policy": "always"}}}
    made = await http.post("/v1/apps/ada/machines", json=body, headers={"x-cause": "c" * 300})
    path = f"/v1/apps/ada/machines/{made.json()['id']}"
    await http.get(f"{path}/wait")
    world.puppet.kill()
    await http.get(f"{path}/wait")
    stopped = await http.post(f"{path}/stop")
    await http.get(f"{path}/wait", params={"state": "stopped"})
    lines = world.sim.world.ledger.since(0)
    (call,) = [line for line in lines if line.get("op") == "create_machine"]
    assert call["cause"] == "c" * 200
    assert {line["cause"] for line in lines if line.get("op") == "wait_machine"} == {None}
    created, ended = made.headers["fly-request-id"], stopped.headers["fly-request-id"]
    told = [
        (line["event"], line["request_id"], line["cause"])
        for line in lines
        if line.get("machine") and line["kind"] == "event"
    ]
    assert told == [
        ("machine_created", created, None),
        ("machine_started", created, None),
        ("machine_exited", None, "exit"),
        ("machine_started", None, "restart policy"),
        ("machine_restarted", None, "restart policy"),
        ("machine_exited", ended, None),
        ("machine_stopped", ended, None),
    ]
    assert json.dumps(lines)
