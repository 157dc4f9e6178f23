"""Those that fail for ever: they hold up nobody else, cost next to nothing, and heal as soon as their cause is gone.

Each way of failing runs for two and a half hours of virtual time, from an Agent's first day or from its best one.
"""

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from flysim.faults import Order
from operator_world import LISTS, World, in_a_world, operator_world
from roost.agents.pace import Pace

pytestmark = pytest.mark.looptime

WELL_KNOWN_SECONDS = 1800.0
"""From here on, one that has failed all the time may cost one call in `PERIOD_SECONDS`."""
PERIOD_SECONDS = 300.0
FOUND_SECONDS = 600.0
"""So long it may take until the operator knows."""
MEASURED_SECONDS = 7200.0
CALLS_OF_A_TRY = 4
"""The longest of all ways to fail: start it, wait for it, look at it, look at its volume."""

Failing = Callable[[World, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.reset_defaults()


# --- Ways to fail for ever ---------------------------------------------------------------------------------------


def refused(op: str, status: int, body: Any = None, **more: Any) -> Failing:
    """Calls of one operation for its app fail; it is new."""

    async def fail(world: World, name: str) -> None:
        world.sim.faults.add(Order(op=op, status=status, body=body, match={"app": world.app_name(name)}, **more))
        await world.apply(name)

    return fail


def later(op: str, status: int, then: Failing, **more: Any) -> Failing:
    """It ran well, then calls fail, then something is wanted of it."""

    async def fail(world: World, name: str) -> None:
        await world.apply(name)
        await world.until_phase(name, "Running")
        world.sim.faults.add(Order(op=op, status=status, match={"app": world.app_name(name)}, **more))
        await then(world, name)

    return fail


async def _bad_image(world: World, name: str) -> None:
    world.broken_images.add("roost/agent:bad")
    await world.apply(name, machine={"image": "roost/agent:bad"})


def ends(lives: float, restart: str) -> Failing:
    """Its machine ends so many seconds after each start; its supervisor is heard after two."""

    async def fail(world: World, name: str) -> None:
        usual = world.runner._script
        image = f"roost/agent:{lives}"
        world.runner._script = lambda launch: replace(usual(launch), lives=lives if launch.image == image else None)
        await world.apply(name, machine={"restart": restart, "image": image})

    return fail


async def _silent(world: World, name: str) -> None:
    await world.apply(name)
    world.inmates[name].silent = True


async def _not_ready(world: World, name: str) -> None:
    await world.apply(name)
    world.inmates[name].ready = False


async def _no_room(world: World, name: str) -> None:
    for region in ("ams", "fra"):
        await world.admin("POST", "hosts", {"region": region, "hosts": [{"slots": 0}]})
    await world.apply(name, placement={"regions": ["ams", "fra"]})


async def _volume_never_made(world: World, name: str) -> None:
    """Fly is never done with putting its data back."""
    await world.apply(name)
    await world.until_phase(name, "Running")
    world.volume(name).state = "restoring"
    await world.admin("DELETE", f"machines/{world.machine(name).id}")


async def _no_secret(world: World, name: str) -> None:
    await world.apply(name, env=[{"name": "KEY", "valueFrom": {"name": "absent", "key": "k"}}])


async def _no_shared_app(world: World, name: str) -> None:
    await world.apply(name, fly={"appStrategy": "Shared", "app": "nowhere"})


async def _edited(world: World, name: str) -> None:
    await world.edit(name, machine={"memoryMb": 2048})


async def _grown(world: World, name: str) -> None:
    await world.edit(name, volume={"sizeGb": 5})


async def _stopped(world: World, name: str) -> None:
    await world.edit(name, desiredState="Stopped")


async def _deleted(world: World, name: str) -> None:
    await world.delete(name)


async def _volume_lost(world: World, name: str) -> None:
    await world.apply(name)
    await world.until_phase(name, "Running")
    await world.settle(600)
    await world.admin("DELETE", f"volumes/{world.volume(name).id}")


async def _host_dead(world: World, name: str, **more: Any) -> None:
    await world.apply(name, **more)
    await world.until_phase(name, "Running")
    await world.admin("POST", f"hosts/{world.volume(name).host.id}", {"status": "dead"})


async def _host_dead_and_no_snapshot(world: World, name: str) -> None:
    await _host_dead(world, name, placement={"relocate": "OnFailure"})


async def _host_dead_and_deleted(world: World, name: str) -> None:
    await _host_dead(world, name)
    await world.delete(name)


WAYS: dict[str, Failing] = {
    "the image can't be pulled": _bad_image,
    "its machine ends before it is heard": ends(1, "Never"),
    "its machine ends soon after it is ready": ends(20, "Never"),
    "its machine ends and is started by Fly": ends(1, "Always"),
    "it is never heard": _silent,
    "it is never ready": _not_ready,
    "no room anywhere": _no_room,
    "its volume is never there": _volume_never_made,
    "a secret is missing": _no_secret,
    "its shared app is missing": _no_shared_app,
    "create_machine 422": refused("create_machine", 422),
    "create_machine 500": refused("create_machine", 500),
    "create_machine 409": refused("create_machine", 409),
    "create_machine 412": refused("create_machine", 412),
    "create_volume 500": refused("create_volume", 500),
    "everything 403": refused("*", 403),
    "everything 500": refused("*", 500),
    "everything 503": refused("*", 503),
    "everything 429": refused("*", 429),
    "everything hangs": refused("*", 504, delay=30.0),
    "everything 404": refused("*", 404),
    "set_secret 500": refused("*secret*", 500),
    "update 422": later("update_machine", 422, _edited),
    "update 500": later("update_machine", 500, _edited),
    "extend 500": later("extend_volume", 500, _grown),
    "stop 500": later("stop_machine", 500, _stopped),
    "all 403 and deleted": later("*", 403, _deleted),
    "delete_machine 500": later("delete_machine", 500, _deleted),
    "delete_volume 500": later("delete_volume", 500, _deleted),
    "delete_volume 412": later("delete_volume", 412, _deleted),
    "delete_app 500": later("delete_app", 500, _deleted),
    "its volume is gone": _volume_lost,
    "its host is dead": _host_dead,
    "its host is dead and it may move": _host_dead_and_no_snapshot,
    "its host is dead and it is deleted": _host_dead_and_deleted,
}


@pytest.mark.parametrize("way", WAYS)
@in_a_world
async def test_one_that_fails_for_long_costs_one_call_in_five_minutes(world: World, way: str) -> None:
    await WAYS[way](world, "ada")
    await world.settle(WELL_KNOWN_SECONDS + FOUND_SECONDS)
    before = world.mark()
    await world.settle(MEASURED_SECONDS)
    times = [line["at"] for line in world.ledger(before) if line["kind"] == "call" and line["op"] not in LISTS]
    retry = max((sum(at <= later < at + PERIOD_SECONDS for later in times) for at in times), default=0)
    print(f"{way}: {len(times) / (MEASURED_SECONDS / PERIOD_SECONDS):.2f} calls in 5 min, {retry} in a row")
    assert retry <= CALLS_OF_A_TRY
    assert len(times) <= MEASURED_SECONDS / PERIOD_SECONDS + max(0, retry - 1), Counter(world.calls(since=before))
    assert world.phase("ada"), "it is still there, and nobody has forgotten it"
    if times and retry and world.condition("ada", "Ready")[0] != "True":
        assert "one try in" in world.condition("ada", "Ready")[2]


def change_of_spec(world: World) -> Awaitable[object]:
    return world.edit("ada", env=[{"name": "A", "value": "1"}])


def a_persons_wish(world: World) -> Awaitable[object]:
    return world.annotate("ada", reconcile_at="now")


@pytest.mark.parametrize("change", [change_of_spec, a_persons_wish])
@in_a_world
async def test_what_a_person_changes_is_acted_on_at_once_after_hours_of_failing(
    world: World, change: Callable[[World], Awaitable[object]]
) -> None:
    await refused("create_machine", 422)(world, "ada")
    await world.settle(3 * 3600 + 7)
    world.sim.faults.remove(None)
    await change(world)
    await world.until_phase("ada", "Running", 10)


@in_a_world
async def test_a_rotated_secret_is_acted_on_at_once_after_hours_of_failing(world: World) -> None:
    world.secret("key", k="old")
    await world.apply("ada", env=[{"name": "KEY", "valueFrom": {"name": "key", "key": "k"}}])
    world.sim.faults.add(Order(op="create_machine", status=422))
    await world.settle(3 * 3600 + 7)
    world.sim.faults.remove(None)
    world.secret("key", k="new")
    await world.until_phase("ada", "Running", 75)


@in_a_world
async def test_a_new_fly_token_is_acted_on_at_once_after_hours_of_failing(world: World) -> None:
    await refused("*", 401)(world, "ada")
    await world.settle(3 * 3600 + 7)
    world.sim.faults.remove(None)
    credential = world.settings.fly.credentials["default"]
    world.sim.replace_tokens(["fm2_new"])
    world.store.put_core_secret(world.settings.namespace, credential.secret_name, {credential.secret_key: "fm2_new"})
    await world.until_phase("ada", "Running", 75)


@pytest.mark.parametrize("then", [None, _deleted], ids=["made", "destroyed"])
@in_a_world
async def test_what_fly_does_again_at_last_is_seen_in_minutes_and_then_goes_on_at_full_speed(
    world: World, then: Failing | None
) -> None:
    if then is None:
        await refused("create_volume", 500)(world, "ada")
    else:
        await later("delete_machine", 500, then)(world, "ada")
    await world.settle(3 * 3600)
    world.sim.faults.remove(None)
    before, done = world.mark(), "create_volume" if then is None else "delete_machine"
    await world.until(lambda: done in world.calls("ada", before), 4 * PERIOD_SECONDS, about=["ada"])
    if then is None:
        await world.until_phase("ada", "Running", 20)
    else:
        await world.until_gone("ada", 60)


@in_a_world
async def test_one_that_is_ready_for_a_moment_only_does_not_say_so_while_its_next_try_is_to_come(world: World) -> None:
    await ends(20, "Never")(world, "ada")
    await world.settle(2 * 3600)
    said = 0
    for _ in range(1800):
        await world.settle(1)
        down = all(machine.state != "started" for machine in world.machines("ada"))
        ready = world.condition("ada", "Ready")[0] == "True"
        said = said + 1 if down and ready else 0
        assert said <= 30, world.status("ada")


def test_a_change_that_is_made_now_and_then_and_undone_is_no_progress() -> None:
    pace = Pace()
    for minute in range(120):
        pace.called("start", minute * 60.0, failed=minute % 2 == 0)
        assert pace.slow(minute * 60.0) is (minute >= 30)


# --- The others --------------------------------------------------------------------------------------------------

HEALTHY, FAILING = 100, 12


async def times_to_ready(failing: bool) -> list[float]:
    """How long each of a hundred healthy Agents took, among others that fail for ever or do not exist."""
    async with operator_world() as world:
        if failing:
            ways = ["everything hangs", "the image can't be pulled", "its machine ends before it is heard"]
            ways += ["no room anywhere", "create_machine 500", "everything 403", "everything 503"]
            for number in range(FAILING):
                await WAYS[ways[number % len(ways)]](world, f"bad{number}")
            await world.settle(3600)
        rng, ready, applied = random.Random(1), {}, {}
        for number in range(HEALTHY):
            name = f"a{number}"
            applied[name] = world.loop.time()
            await world.apply(name)
            if failing and number % 10 == 0:
                await WAYS[ways[(number // 10) % len(ways)]](world, f"late{number}")
            await world.settle(rng.uniform(0, 0.2))

        def all_ready() -> bool:
            for name in applied:
                if name not in ready and world.phase(name) == "Running":
                    ready[name] = world.loop.time()
            return len(ready) == HEALTHY

        await world.until(all_ready, 600, about=["a0"])
        return sorted(ready[name] - applied[name] for name in applied)


async def test_the_healthy_are_ready_as_soon_with_one_in_ten_failing_for_ever() -> None:
    alone, among = await times_to_ready(failing=False), await times_to_ready(failing=True)
    p99 = [times[int(len(times) * 0.99) - 1] for times in (alone, among)]
    print(f"p99 to Ready: {p99[0]:.2f} s alone, {p99[1]:.2f} s with one in ten failing")
    assert p99[1] <= 1.1 * p99[0]
