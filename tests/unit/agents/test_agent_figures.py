"""The figures that the operator promises about Agents, measured on the whole room over the simulated Fly."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from flysim.runner import Exit
from operator_world import LISTS, World, in_a_world, operator_world

pytestmark = pytest.mark.looptime

REFRESH, JITTER, GAP = 15.0, 1.1, 2.0
PERIOD = REFRESH * JITTER + GAP
"""The longest time until a change is in a list of machines."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.reset_defaults()


async def many(world: World, count: int, prefix: str = "a", **blocks: Any) -> list[str]:
    """So many Agents, all of them Running."""
    names = [f"{prefix}{n:04d}" for n in range(count)]
    for name in names:
        await world.apply(name, **blocks)
    await world.until(lambda: all(world.phase(name) == "Running" for name in names), 600, about=names[:3])
    return names


# --- Calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("public", "most"), [("None", 5), ("Gateway", 7), ("All", 7)])
@in_a_world
async def test_a_fresh_agent_converges_with_few_calls(world: World, public: str, most: int) -> None:
    await world.apply("ada", machine={"public": public})
    await world.until_phase("ada", "Running")
    await world.settle(600)
    calls = world.calls()
    assert len(calls) <= most, calls
    assert world.writes("ada").count("finalizer") == 1
    assert world.writes("ada").count("status") <= 2, "one to converge, one that tells of a step over a second"


@pytest.mark.parametrize("slow", [False, True], ids=["quick stop", "slow stop"])
@pytest.mark.parametrize("public", ["None", "Gateway"])
@in_a_world
async def test_a_destroy_needs_few_calls_graceful_stop_and_last_look_included(
    world: World, public: str, *, slow: bool
) -> None:
    await world.apply("ada", machine={"public": public})
    await world.until_phase("ada", "Running")
    if slow:  # it is killed after its timeout of 30 s
        machine = world.runner.machines[world.machine("ada").id]
        machine.frozen = True
    before = world.mark()
    await world.delete("ada")
    await world.until_gone("ada")
    calls = world.calls(since=before)
    told = [line for line in world.ledger(before) if line["kind"] == "call" and line["status"] == 412]
    bound = sum(line["op"] == "delete_volume" for line in told)
    assert len(calls) <= 7 + bound, calls
    assert calls.index("stop_machine") < calls.index("delete_machine") < calls.index("delete_volume")
    last_change = max(n for n, op in enumerate(calls) if op == "delete_volume")
    assert "get_app" in calls[last_change : calls.index("delete_app")], "a last look before the app goes"
    assert world.app_name("ada") not in world.sim.world.apps


# --- How old a status may be -------------------------------------------------------------------------------------


class Witness:
    """Watches how long what the statuses say of the machines has differed from what Fly holds."""

    def __init__(self, world: World, names: list[str]) -> None:
        self._world, self._names = world, names
        self._since: dict[str, float] = {}
        self.worst = 0.0
        self.worst_of = ""

    async def watch(self) -> None:
        while True:
            now = self._world.loop.time()
            for name in self._names:
                told = self._world.status(name).get("machine") or {}
                holds = [(m.id, m.state, m.version) for m in self._world.machines(name)]
                if [(told.get("id"), told.get("state"), told.get("version"))] == holds or (not told and not holds):
                    self._since.pop(name, None)
                elif (lasts := now - self._since.setdefault(name, now)) > self.worst:
                    self.worst, self.worst_of = lasts, name
            await asyncio.sleep(0.5)


async def meddle(world: World, name: str, way: str) -> None:
    """Somebody else changes the Agent's machine."""
    machine = world.machine(name)
    path = f"/v1/apps/{machine.app.name}/machines/{machine.id}"
    match way:
        case "stop":
            await world.by_hand("POST", f"{path}/stop", {})
        case "suspend":
            await world.by_hand("POST", f"{path}/suspend")
        case "destroy":
            await world.admin("DELETE", f"machines/{machine.id}")
        case "update":
            config = world.config(name) | {"env": {"EVIL": "1"}}
            await world.by_hand("POST", path, {"config": config})
        case _:
            world.runner.machines[machine.id].end(Exit(code=3))


@pytest.mark.parametrize("way", ["stop", "suspend", "destroy", "update", "end"])
@in_a_world
async def test_a_status_is_never_staler_than_thirty_seconds(world: World, way: str) -> None:
    """Sixteen machines, each changed behind our back at a moment of its own within a quarter of an hour."""
    rng = random.Random(way)
    names = await many(world, 16)
    for name in names:
        if way == "end":
            await world.edit(name, machine={"restart": "Never"})
    await world.until(lambda: all(world.phase(name) == "Running" for name in names), 600)
    await world.settle(60)
    witness = Witness(world, names)
    watching = asyncio.create_task(witness.watch())

    async def once(name: str) -> None:
        await asyncio.sleep(rng.uniform(0, 900))
        await meddle(world, name, way)

    await asyncio.gather(*map(once, names))
    await world.settle(120)
    watching.cancel()
    assert {world.phase(name) for name in names} == {"Running"}
    assert witness.worst <= 30.0, f"{witness.worst_of}: {world.status(witness.worst_of)}"


@in_a_world
async def test_a_lost_machine_is_back_on_its_volume_within_one_period_and_a_start(world: World) -> None:
    rng, worst = random.Random(4), 0.0
    began = world.loop.time()
    names = await many(world, 1)
    start = world.loop.time() - began
    names += await many(world, 15, "b")
    await world.settle(60)
    volumes = {name: world.volume(name).id for name in names}

    async def lose(name: str) -> float:
        await asyncio.sleep(rng.uniform(0, 700))
        lost, at = world.machine(name).id, world.loop.time()
        await meddle(world, name, "destroy")
        await world.until(
            lambda: [m.id for m in world.machines(name) if m.state == "started" and m.id != lost], about=[name]
        )
        return world.loop.time() - at

    worst = max(await asyncio.gather(*map(lose, names)))
    assert worst <= PERIOD + start
    for name in names:
        assert world.volume(name).id == volumes[name]
        assert world.machine(name).volume is world.volume(name)


# --- Idle is free ------------------------------------------------------------------------------------------------


@in_a_world
async def test_agents_at_rest_cost_neither_calls_nor_writes(world: World) -> None:
    """A hundred for an hour; a thousand for a day cost none either, and too long for this place."""
    names = await many(world, 100)
    await world.settle(120)
    calls, writes = world.mark(), len(world.store.writes)
    await world.settle(3600)
    assert world.calls(since=calls) == []
    assert world.store.writes[writes:] == []
    lists = Counter(line["op"] for line in world.ledger(calls) if line.get("op") in LISTS)
    assert 3600 / REFRESH * 0.85 < lists["org_machines"] < 3600 / REFRESH * 1.2
    assert all(world.inmates[name].heard > 100 for name in names)


# --- All together ------------------------------------------------------------------------------------------------


async def test_a_changed_default_image_rolls_one_in_twenty_at_a_time() -> None:
    async with operator_world({"defaults": {"image": "roost/agent:1"}}) as world:
        names = await many(world, 100)
        await world.settle(120)
        await world.stop()
        world.settings = world.settings.model_copy(
            update={"defaults": world.settings.defaults.model_copy(update={"image": "roost/agent:2"})}
        )
        began, before = world.loop.time(), world.mark()
        world.start()

        def at_work() -> int:
            return sum(
                machine.state != "started" or (machine.config.image.startswith("roost/agent:2") and not fresh(name))
                for name in names
                for machine in world.machines(name)
            )

        def fresh(name: str) -> bool:
            told = world.status(name).get("machine", {})
            return world.phase(name) == "Running" and told.get("version") == world.machine(name).version

        most = 0
        while not all(m.config.image.startswith("roost/agent:2") for n in names for m in world.machines(n)):
            most = max(most, at_work())
            assert world.loop.time() - began < 7200
            await asyncio.sleep(0.25)
        await world.until(lambda: all(map(fresh, names)), about=names[:1])
        assert 0 < most <= 5
        assert Counter(world.calls(since=before))["update_machine"] == 100


async def test_a_default_image_that_does_not_boot_stops_at_one_in_twenty() -> None:
    async with operator_world({"defaults": {"image": "roost/agent:1"}}) as world:
        names = await many(world, 100)
        await world.settle(120)
        await world.stop()
        world.settings = world.settings.model_copy(
            update={"defaults": world.settings.defaults.model_copy(update={"image": "roost/agent:bad"})}
        )
        world.broken_images |= {"roost/agent:bad"}
        world.start()
        await world.settle(900)
        broken = [n for n in names if world.machine(n).config.image.startswith("roost/agent:bad")]
        assert 0 < len(broken) <= 5
        assert sum(world.machine(n).state == "started" for n in names) >= 95


@in_a_world
async def test_when_all_fall_silent_nothing_is_restarted_and_all_say_why(world: World) -> None:
    names = await many(world, 100)
    await world.settle(120)
    before = world.mark()
    world.endpoint_up = False
    await world.settle(1200)
    assert world.calls(since=before) == []
    assert {world.condition(name, "Ready")[1] for name in names} == {"EndpointUnreachable"}
    late = names[:15]  # fewer than a fifth: they are heard again later than the others
    for name in late:
        world.inmates[name].silent = True
    world.endpoint_up = True
    await world.settle(45)
    for name in late:
        world.inmates[name].silent = False
    await world.until(lambda: {world.phase(name) for name in names} == {"Running"}, about=names[:1])
    await world.settle(600)
    assert world.calls(since=before) == []
    assert {inmate.boots for inmate in world.inmates.values()} == {1}


@in_a_world
async def test_one_that_falls_silent_is_restarted(world: World) -> None:
    names = await many(world, 100)
    await world.settle(120)
    before, lost = world.mark(), names[42]
    world.inmates[lost].silent = True
    await world.until(lambda: world.inmates[lost].boots == 2, 30 * 4 + 30 + 60, about=[lost])
    world.inmates[lost].silent = False
    await world.until_phase(lost, "Running")
    assert "restart_machine" in world.calls(lost, before)
    assert world.calls(since=before) == world.calls(lost, before)


# --- Writes that heartbeats cause --------------------------------------------------------------------------------


@in_a_world
async def test_an_agent_that_changes_its_mind_is_written_down_once_in_ten_seconds(world: World) -> None:
    [ada] = await many(world, 1, heartbeat={"intervalSeconds": 5})
    await world.settle(60)
    began, inmate = world.store.now(), world.inmates[ada]
    for turn in range(24):
        inmate.degraded = () if turn % 2 else (f"trouble {turn}",)
        await world.settle(5)
    inmate.degraded = ()
    await world.settle(30)
    assert 8 <= world.writes(ada, began).count("status") <= 13
    assert world.condition(ada, "Ready")[1] == "Running", "what was said last is what stands there"


@in_a_world
async def test_that_a_configuration_is_refused_is_told_however_soon_it_follows_other_news(world: World) -> None:
    for after, ada in enumerate(await many(world, 10, heartbeat={"intervalSeconds": 5})):
        inmate = world.inmates[ada]
        inmate.degraded = ("trouble",)
        await world.until(lambda of=ada: world.condition(of, "AgentHealthy")[1] == "Degraded", 60, about=[ada])
        await world.settle(after)
        inmate.refuses = "configure: openclaw.json: bogus: is not known to this version"
        await world.edit(ada, env=[{"name": "MODE", "value": "new"}])
        await world.until(lambda of=ada: world.condition(of, "ConfigApplied")[1] == "ConfigFailed", 60, about=[ada])


@in_a_world
async def test_what_many_agents_say_at_once_is_written_down_at_twenty_a_second(world: World) -> None:
    names = await many(world, 200, heartbeat={"intervalSeconds": 5})
    await world.settle(60)
    began = world.store.now()
    for name in names:
        world.inmates[name].degraded = ("the same for all",)
    await world.until(lambda: all(world.condition(n, "Ready")[1] == "Degraded" for n in names), 60)
    at = sorted(w.at - began for w in world.store.writes if w.kind == "status" and w.at >= began)
    assert len(at) == len(names)
    for n, when in enumerate(at):
        assert n + 1 <= 20 + 20 * (when - at[0]) + 5, "a burst of 20, then 20 a second; 5 for the jitter of alarms"


@in_a_world
async def test_what_a_person_does_is_written_down_at_once_all_the_same(world: World) -> None:
    [ada] = await many(world, 1, heartbeat={"intervalSeconds": 5})
    world.inmates[ada].degraded = ("trouble",)
    await world.settle(6)
    world.inmates[ada].degraded = ()
    began = world.store.now()
    await world.edit(ada, desiredState="Stopped")
    await world.until_phase(ada, "Stopped", 60)
    assert min(w.at for w in world.store.writes if w.kind == "status" and w.at >= began) - began < 5
