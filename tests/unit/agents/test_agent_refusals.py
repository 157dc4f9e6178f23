"""What becomes of an Agent whose call Fly refuses: each published refusal, at the moment of a life that it belongs to.

A refusal is said in the status in words that a person understands, is met with patience, and is over when its cause is.
Nothing is doubled on the way and nothing is left behind: each story ends with a deletion that leaves Fly empty.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from flysim.faults import Order
from operator_world import World, operator_world

pytestmark = pytest.mark.looptime

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "fly" / "data" / "fly-error-bodies.json").read_text()
)["cases"]

PATIENCE = 400.0
"""Longer than the slow alarm with its jitter."""
NO_ROOM = 'no room in "iad" (spec.placement.regions)'

SAID = (
    ("createMachine", "existing volume 'vol_", "CapacityExhausted", True, NO_ROOM),
    ("createMachine", "existing volume id 'vol_", "CapacityExhausted", True, NO_ROOM),
    ("createMachine", "over the allowed quota", "QuotaExceeded", True, "over the allowed quota"),
    ("createMachine", "out of capacity", "CapacityExhausted", True, NO_ROOM),
    ("createMachine", "could not find a candidate host", "CapacityExhausted", True, NO_ROOM),
    ("createMachine", "volume already claimed", "WaitingForFly", False, "volume already claimed by machine 784eee"),
    ("createMachine", "add a payment method", "QuotaExceeded", True, "a payment method. Add a payment method, or"),
    ("createMachine", "min_secrets_version", "WaitingForFly", False, "min_secrets_version not yet available"),
    ("createMachine", "unauthorized", "FlyUnauthorized", True, "Put a good token in its place"),
    ("createMachine", "volume not found", "FlyConflict", False, "volume not found"),
    ("createMachine", "already_exists", "FlyConflict", False, "unique machine name violation"),
    ("createMachine", "request timeout", "FlyUnknown", False, "request timeout"),
    ("createVolume", "no capacity", "CapacityExhausted", True, NO_ROOM),
    ("createApp", "already been taken", "WaitingForFly", False, "Could not find App"),
    ("createApp", "Name under 63", "FlyInvalid", True, "Name under 63 chars"),
    ("createApp", "uniqueness constraint", "FlyConflict", False, "uniqueness constraint violated"),
    ("createApp", "org_slug", "FlyInvalid", True, "request doesn't contain org_slug"),
    ("updateMachine", "insufficient", "Running", False, ""),
    ("updateMachine", "concurrent update", "FlyConflict", False, "due to concurrent update"),
    ("updateMachine", "already being updated", "FlyConflict", False, "machine is already being updated"),
    ("updateMachine", "machine_version mismatch", "FlyConflict", False, "current_version does not match"),
    ("updateMachine", "volume not found", "FlyConflict", False, "volume not found"),
    ("startMachine", "from current state", "WaitingForFly", False, "unable to start machine"),
    ("startMachine", "still active", "WaitingForFly", False, "machine still active"),
    ("stopMachine", "cannot unmarshal", "FlyInvalid", True, "cannot unmarshal array"),
    ("getVolume", "volume not found", "VolumeLost", True, "is gone at Fly and its data with it"),
    ("waitMachine", "failed to reach", "Running", False, ""),
    ("deleteVolume", "currently bound", "WaitingForFly", False, "volume is currently bound to machine"),
    ("deleteVolume", "GraphQL", "FlyInvalid", False, "no longer supports volume operations"),
    ("deleteMachine", "unable to destroy", "WaitingForFly", False, "unable to destroy machine"),
    ("deleteMachine", "machine not found", "Running", False, ""),
    ("any", "rate limit", "FlyRateLimited", False, "rate limit exceeded"),
    ("any", "internal", "FlyUnavailable", False, "internal"),
)
"""By operation and text: the reason of Ready while it lasts, whether a person is asked, and words of the message."""


def expected(case: dict[str, Any]) -> tuple[str, bool, str]:
    text = case["body"]["error"]
    [row] = [row for row in SAID if row[0] == case["op"] and row[1] in text]
    return row[2:]


def test_every_row_of_the_table_is_met_by_a_published_refusal() -> None:
    for op, text, *_ in SAID:
        assert [c for c in CASES if c["op"] == op and text in c["body"]["error"]], (op, text)


def name_of(case: dict[str, Any]) -> str:
    return f"{case['op']} {case['status']} {case['body']['error'][:48]}"


def refuse(world: World, op: str, status: int, body: Any, *, delay: float = 0.0) -> None:
    world.sim.faults.add(Order(op=op, status=status, body=body, delay=delay, match={"agent": "roost/*"}))


async def runs(world: World, **blocks: Any) -> None:
    await world.apply("ada", placement={"regions": ["iad"]}, **blocks)
    await world.until_phase("ada", "Running")


async def meets(world: World, op: str, case: dict[str, Any]) -> str:
    """Brings the Agent to the moment at which it meets the refusal; answers the phase that it is on its way to."""

    def refused() -> None:
        refuse(world, OPERATIONS[op], case["status"], case["body"], delay=5.0 if op == "waitMachine" else 0.0)

    match op:
        case "createApp" | "createVolume" | "createMachine" | "waitMachine":
            refused()
            await world.apply("ada", placement={"regions": ["iad"]})
        case "updateMachine" | "any":
            await runs(world)
            refused()
            await world.edit("ada", machine={"memoryMb": 2048})
        case "startMachine":
            await runs(world)
            await world.edit("ada", desiredState="Stopped")
            await world.until_phase("ada", "Stopped")
            refused()
            await world.edit("ada", desiredState="Running")
        case "stopMachine":
            await runs(world)
            refused()
            await world.edit("ada", desiredState="Stopped")
            return "Stopped"
        case "getVolume":
            await runs(world)
            await world.settle(100)  # it is not young any more
            refused()
            await world.admin("POST", "lists", {"empty": True})
            await world.until(lambda: "get_volume" in world.calls("ada"), 700)
            await world.admin("POST", "lists", {"empty": False})
        case "deleteMachine" if case["status"] == 404:
            await runs(world)
            await world.settle(100)  # a young one is not believed to be gone
            order = Order(op="delete_machine", where="after", status=404, body=case["body"])
            world.sim.faults.add(order)
            await world.delete("ada")
            await world.until_gone("ada", 60)
            await world.apply("ada")  # made once more, under the same name
        case _:
            await runs(world)
            refused()
            await world.delete("ada")
            return ""
    return "Running"


OPERATIONS = {
    "createApp": "create_app",
    "createVolume": "create_volume",
    "createMachine": "create_machine",
    "updateMachine": "update_machine",
    "startMachine": "start_machine",
    "stopMachine": "stop_machine",
    "waitMachine": "wait_machine",
    "getVolume": "get_volume",
    "deleteMachine": "delete_machine",
    "deleteVolume": "delete_volume",
    "any": "*",
}


async def leaves_nothing(world: World) -> None:
    await world.delete("ada")
    await world.until_gone("ada", 900)
    await world.settle(5)
    fly = world.sim.world
    assert not fly.apps
    assert [m.state for m in fly.machines.values() if m.state != "destroyed"] == []
    assert [v.id for v in fly.volumes.values() if v.deleted_at is None] == []


@pytest.mark.parametrize("case", CASES, ids=name_of)
async def test_a_refusal_is_said_met_with_patience_and_over_when_its_cause_is(case: dict[str, Any]) -> None:
    reason, stalled, words = expected(case)
    async with operator_world() as world:
        to = await meets(world, case["op"], case)
        begun = world.mark()
        await world.settle(120)
        if reason:
            assert world.condition("ada", "Ready")[1] == reason
            assert words in world.condition("ada", "Ready")[2]
            assert world.condition("ada", "Stalled")[0] == str(stalled)
        refused = [line for line in world.ledger(begun) if line["kind"] == "call" and line["fault"] is not None]
        assert len([c for c in refused if c["agent"].startswith("roost/") and c["app"]]) <= 20, "a hammer"
        world.sim.faults.remove(None)
        if to:
            await world.until_phase("ada", to, PATIENCE)
            moved = case["op"] == "updateMachine" and "insufficient" in case["body"]["error"]
            assert len(world.volumes("ada")) == (2 if moved else 1), "a copy keeps the one before for seven days"
            assert len(world.machines("ada")) == 1
            assert len(world.sim.world.apps) == 1
            assert world.condition("ada", "Stalled")[0] == "False"
            await leaves_nothing(world)
        else:
            await world.until_gone("ada", 900)
            await world.settle(5)
            assert not world.sim.world.apps


@pytest.mark.parametrize(
    ("op", "status", "text"),
    [
        ("create_app", 422, "Validation failed: Name under 63 chars using numbers, lowercase letters and dashes"),
        ("create_machine", 408, "request timeout"),
    ],
)
async def test_a_refusal_that_lasts_is_met_more_and_more_slowly(op: str, status: int, text: str) -> None:
    """Also while the lists of the org come in, which show nothing new."""
    async with operator_world() as world:
        refuse(world, op, status, {"error": text})
        await world.apply("ada")
        await world.settle(600)
        before = world.mark()
        await world.settle(3600)
        assert 6 <= world.calls(since=before).count(op) <= 40


# --- What people get wrong ---------------------------------------------------------------------------------------


async def test_an_account_over_its_quota_is_named_and_it_runs_when_the_quota_is_raised() -> None:
    async with operator_world() as world:
        await world.admin("POST", "quotas", {"org": "personal", "memory_mb": {"iad": 512}})
        await world.apply("ada", placement={"regions": ["iad"]})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True")
        assert world.condition("ada", "Stalled")[1] == "QuotaExceeded"
        assert "over the allowed quota" in world.condition("ada", "Ready")[2]
        await world.admin("POST", "quotas", {"org": "personal", "memory_mb": {"iad": None}})
        await world.until_phase("ada", "Running", PATIENCE)
        assert len(world.volumes("ada")) == 1
        await leaves_nothing(world)


async def test_an_image_that_can_not_be_pulled_is_named_and_it_runs_once_it_can() -> None:
    async with operator_world() as world:
        world.broken_images.add("registry.example/none:1")
        await world.apply("ada", machine={"image": "registry.example/none:1"})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        assert world.condition("ada", "Stalled")[1] == "MachineFailed"
        assert "registry.example/none:1" in world.condition("ada", "Ready")[2]
        world.broken_images.clear()
        await world.until_phase("ada", "Running", PATIENCE)
        await leaves_nothing(world)


async def test_another_image_heals_at_once() -> None:
    async with operator_world() as world:
        world.broken_images.add("registry.example/none:1")
        await world.apply("ada", machine={"image": "registry.example/none:1"})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        await world.edit("ada", machine={"image": "registry.example/some:1"})
        await world.until_phase("ada", "Running", 30)


async def test_an_image_that_fly_refuses_is_named_with_its_field() -> None:
    async with operator_world() as world:
        body = {"error": "failed to get manifest registry.example/none:1: not found"}
        refuse(world, "create_machine", 400, body)
        await world.apply("ada", machine={"image": "registry.example/none:1"})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        assert world.condition("ada", "Stalled")[1] == "ImageNotFound"
        assert "Correct spec.machine.image" in world.condition("ada", "Ready")[2]
        world.sim.faults.remove(None)
        await world.until_phase("ada", "Running", PATIENCE)


async def test_a_region_that_does_not_exist_is_named_and_another_heals_at_once() -> None:
    async with operator_world() as world:
        await world.apply("ada", placement={"regions": ["zzz"]})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        assert "zzz" in world.condition("ada", "Ready")[2]
        assert "spec.placement.regions" in world.condition("ada", "Ready")[2]
        assert world.volumes("ada") == []
        await world.edit("ada", placement={"regions": ["iad"]})
        await world.until_phase("ada", "Running", 60)
        assert world.volume("ada").region == "iad"
        await leaves_nothing(world)


async def test_a_snapshot_of_somebody_else_is_refused_and_nothing_of_it_is_read() -> None:
    async with operator_world() as world:
        await world.apply("bob")
        await world.until_phase("bob", "Running")
        taken = await world.admin("POST", f"volumes/{world.volume('bob').id}/snapshot")
        await world.apply("ada", volume={"restoreFrom": {"snapshot": taken["id"]}})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        assert world.condition("ada", "Stalled")[1] == "RestoreRefused"
        assert f'"{taken["id"]}" is not a snapshot of a volume of this Agent' in world.condition("ada", "Ready")[2]
        assert world.volumes("ada") == []
        await world.edit("ada", volume={"restoreFrom": None})
        await world.until_phase("ada", "Running", 60)
        assert len(world.volumes("ada")) == 1


async def test_a_volume_destroyed_by_hand_is_said_and_nothing_empty_takes_its_place() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.settle(100)
        lost = world.volume("ada").id
        await world.admin("DELETE", f"volumes/{lost}")
        await world.until(lambda: world.condition("ada", "Stalled")[1] == "VolumeLost", 900, about=["ada"])
        assert f"volume {lost} is gone at Fly" in world.condition("ada", "Ready")[2]
        assert world.volumes("ada") == []
        await world.edit("ada", volume={"onLoss": "Recreate"})
        await world.annotate("ada", allow_data_loss=lost)
        await world.until_phase("ada", "Running", PATIENCE)
        assert len(world.volumes("ada")) == len(world.machines("ada")) == 1
        await leaves_nothing(world)


async def test_memory_that_fly_refuses_is_named_with_its_field_and_the_machine_runs_on() -> None:
    async with operator_world() as world:
        await runs(world)
        body = {"error": "invalid guest: memory_mb 8192 is too much for 1 shared CPUs"}
        refuse(world, "update_machine", 422, body)
        await world.edit("ada", machine={"memoryMb": 8192})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        assert "Change spec.machine.cpuKind, cpus or memoryMb" in world.condition("ada", "Ready")[2]
        assert world.machine("ada").state == "started"
        assert world.phase("ada") == "Updating"
        await world.edit("ada", machine={"memoryMb": 1024})
        await world.until_phase("ada", "Running", 60)


@pytest.mark.parametrize("hours", [6, -6])
async def test_a_wall_clock_that_jumps_changes_nothing(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is restarted, deleted or stuck for it: durations are of a clock that nobody sets."""
    async with operator_world() as world:
        await runs(world)
        await world.settle(300)
        before, boots = world.machine("ada"), world.inmates["ada"].boots
        truth = world.clock.now
        monkeypatch.setattr(world.clock, "now", lambda: truth() + hours * 3600.0)
        begun = world.mark()
        await world.settle(3 * 3600)
        assert world.machine("ada") is before
        assert world.inmates["ada"].boots == boots
        assert world.condition("ada", "Ready")[0] == "True"
        assert [c for c in world.calls("ada", begun) if not c.startswith(("get_", "list_"))] == []
        await world.edit("ada", machine={"memoryMb": 2048})
        await world.until_phase("ada", "Running", 60)
        await leaves_nothing(world)
