"""Safety that shows only where the rooms meet: what stands in the API server, in Fly's lists and in Fly's versions."""

import pytest

from operator_world import World, in_a_world
from roost.agents.view import FINALIZER
from store import Call, Where

pytestmark = pytest.mark.looptime
FULL_SWEEP = 660.0
"""Within so many seconds, everything is listed once in full."""


@in_a_world
async def test_finalizers_of_others_come_and_go_untouched(world: World) -> None:
    world.store.apply("Agent", "ada", {"runtime": {"kind": "Command", "command": ["run"]}})
    world.store.change("Agent", "ada", {"finalizers": ["somebody.else/waits"]})
    await world.until_phase("ada", "Running")
    assert set(world.body("ada")["metadata"]["finalizers"]) == {"somebody.else/waits", FINALIZER}
    await world.delete("ada")
    await world.until(lambda: world.body("ada")["metadata"]["finalizers"] == ["somebody.else/waits"])


@in_a_world
async def test_a_region_that_can_not_be_listed_hides_nobody(world: World) -> None:
    await world.apply("ada")
    await world.until_phase("ada", "Running")
    await world.settle(FULL_SWEEP)
    await world.admin("POST", "lists", {"error_regions": [world.machine("ada").region]})
    mark = world.mark()
    await world.settle(FULL_SWEEP)
    assert world.calls("ada", mark) == [], "nothing was heard of it, so nothing is to be doubted"


@in_a_world
async def test_an_update_of_an_older_version_changes_nothing(world: World) -> None:
    """A process that was stopped between its decision and the send: its update comes late, and is refused."""
    await world.apply("ada")
    await world.until_phase("ada", "Running")
    before = world.sent("update_machine")
    await world.edit("ada", machine={"memoryMb": 4096})
    await world.until(lambda: len(world.sent("update_machine")) > len(before))
    version = world.sent("update_machine")[-1].get("current_version")
    assert version, "without the version it saw, a late update would undo its successor's"


@in_a_world
async def test_a_deletion_in_the_moment_of_a_status_write_is_seen_at_once(world: World) -> None:
    """The last write before a long rest: its answer must not be the first that is heard of the deletion."""

    def meddle(where: Where, call: Call) -> float | None:
        said = (call.body or {}).get("status") or {}
        if where == "before" and call.path.endswith("/ada/status") and said.get("phase") == "Running":
            world.store.meddle = None
            world.store.delete("Agent", "ada")
        return None

    world.store.meddle = meddle
    await world.apply("ada")
    await world.until(lambda: world.store.meddle is None)
    await world.until(lambda: "stop_machine" in world.calls("ada"), 5)
    await world.until_gone("ada")


@in_a_world
async def test_at_rest_nothing_is_written(world: World) -> None:
    await world.apply("ada")
    await world.until_phase("ada", "Running")
    await world.settle(5)
    before = len(world.store.writes)
    await world.settle(FULL_SWEEP)
    assert world.store.writes[before:] == []
