"""The acceptance list of systems that have kept agents alive on Fly before, told on the whole operator over flysim.

Destroy, reconcile, create, recovery, status: each scenario by its own name.
"""

from typing import Any

import pytest

from flysim.faults import Order
from operator_world import Inmate, World, operator_world

pytestmark = pytest.mark.looptime

CHANGES = ("create_", "update_", "delete_", "start_", "stop_", "restart_", "suspend_", "set_", "extend_")
HOST_FULL = {
    "error": "aborted: could not reserve resource for machine: insufficient memory available to fulfill request"
}
ON_FULL_HOST = {
    "error": "insufficient resources to create new machine with existing volume id 'vol_1'",
    "status": "volume_placement_capacity",
}


def fault(world: World, op: str, status: int | None = 500, text: str = "internal", **order: Any) -> None:
    body = order.pop("body", {"error": text})
    order.setdefault("match", {"agent": "roost/*"})
    world.sim.faults.add(Order(op=op, status=status, body=body, **order))


async def runs(world: World, **blocks: Any) -> None:
    await world.apply("ada", **blocks)
    await world.until_phase("ada", "Running")


def changes(world: World, since: int = 0) -> list[str]:
    return [call for call in world.calls("ada", since) if call.startswith(CHANGES)]


def nothing_left(world: World) -> bool:
    fly = world.sim.world
    machines = [m for m in fly.machines.values() if m.state != "destroyed"]
    return not fly.apps and not machines and all(v.deleted_at is not None for v in fly.volumes.values())


async def gone(world: World, seconds: float = 300.0) -> None:
    await world.until_gone("ada", seconds)
    await world.settle(5)
    assert nothing_left(world)


# --- Destroy -----------------------------------------------------------------------------------------------------


async def test_destroy_both_deletes_succeed() -> None:
    async with operator_world() as world:
        await runs(world)
        before = world.mark()
        await world.delete("ada")
        await gone(world, 30)
        deletes = [c for c in world.calls(since=before) if c.startswith("delete_")]
        assert deletes[0] == "delete_machine"
        assert deletes[-1] == "delete_app"
        assert deletes.count("delete_volume") >= 1


async def test_destroy_machine_delete_fails_then_volume_untouched_and_id_kept() -> None:
    async with operator_world() as world:
        await runs(world)
        machine, before = world.machine("ada").id, world.mark()
        fault(world, "delete_machine")
        await world.delete("ada")
        await world.settle(120)
        assert "delete_volume" not in world.calls(since=before)
        assert world.status("ada")["destroy"]["machineIds"] == [machine]
        assert world.status("ada")["destroy"]["lastError"]["op"] == "delete_machine"
        world.sim.faults.remove(None)
        await gone(world, 600)


async def test_destroy_volume_delete_fails_keeps_only_its_id() -> None:
    async with operator_world() as world:
        await runs(world)
        volume = world.volume("ada").id
        fault(world, "delete_volume")
        await world.delete("ada")
        await world.settle(300)
        assert world.status("ada")["destroy"]["volumeIds"] == [volume]
        assert world.status("ada")["destroy"]["lastError"]["op"] == "delete_volume"
        assert world.machines("ada") == []
        assert "delete_app" not in world.calls()
        world.sim.faults.remove(None)
        await gone(world, 900)


async def test_destroy_404_is_success() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.settle(100)
        fault(world, "delete_machine", 404, "machine not found", where="after")
        fault(world, "delete_volume", 404, "volume not found", where="after", skip=0)
        await world.delete("ada")
        await gone(world, 200)


async def test_destroy_is_finished_later_by_the_timer() -> None:
    async with operator_world() as world:
        await runs(world)
        fault(world, "delete_*", 503, times=20)
        await world.delete("ada")
        await world.settle(60)
        assert not nothing_left(world)
        await gone(world, 7200)


async def test_nothing_is_created_or_started_while_destroying() -> None:
    """Not by an edit, not by a wake, not by a start: only deletion goes on."""
    async with operator_world() as world:
        await runs(world)
        before = world.mark()
        fault(world, "delete_machine")
        await world.delete("ada")
        await world.settle(5)
        await world.edit("ada", desiredState="Running", restartedAt="2027-01-01T00:00:00Z")
        await world.annotate("ada", wake="now")
        await world.settle(60)
        assert {c for c in changes(world, before) if not c.startswith("delete_")} <= {"stop_machine"}
        world.sim.faults.remove(None)
        await gone(world, 600)


async def test_destroying_a_stopped_agent_stops_nothing() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.edit("ada", desiredState="Stopped")
        await world.until_phase("ada", "Stopped")
        before = world.mark()
        await world.delete("ada")
        await gone(world)
        assert "stop_machine" not in world.calls(since=before)


async def test_destroy_repeated_delete_is_safe() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.delete("ada")
        await world.delete("ada")
        await world.settle(0.5)
        if world.store.find("Agent", "ada") is not None:
            await world.delete("ada")
        await gone(world)
        assert world.calls().count("delete_app") == 1


async def test_destroy_operator_killed_between_machine_and_volume() -> None:
    async with operator_world() as world:
        await runs(world)
        fault(world, "delete_volume", None, delay=30.0)
        await world.delete("ada")
        await world.until(lambda: world.machines("ada") == [], 60)
        await world.crash()
        world.sim.faults.remove(None)
        world.start()
        await gone(world)


async def test_destroy_volume_still_attached_for_a_minute() -> None:
    from flysim.world import Timing

    async with operator_world(timing=Timing(unbind=60.0)) as world:
        await runs(world)
        before = world.mark()
        await world.delete("ada")
        await gone(world, 300)
        assert world.calls(since=before).count("delete_volume") <= 12


async def test_destroy_machine_that_appears_after_the_delete_goes_too() -> None:
    """The create is on its way while the operator dies and the Agent is deleted."""
    async with operator_world() as world:
        fault(world, "create_machine", None, delay=20.0)
        await world.apply("ada")
        await world.until(lambda: "set_secrets" in world.calls("ada"))
        await world.settle(1)
        await world.crash()
        await world.delete("ada")
        await world.settle(5)
        assert world.machines("ada") == []
        world.start()
        await gone(world, 900)


# --- Reconcile ---------------------------------------------------------------------------------------------------


async def test_reconcile_missing_volume_is_made_once() -> None:
    """The answer is lost on the wire, and the operator dies with it."""
    async with operator_world() as world:
        fault(world, "create_volume", None, where="reply", times=1)
        await world.apply("ada")
        await world.until(lambda: len(world.volumes("ada")) == 1)
        await world.crash()
        world.start()
        await world.until_phase("ada", "Running", 300)
        assert len(world.volumes("ada")) == len(world.machines("ada")) == 1


async def test_reconcile_lost_volume_is_replaced_and_warned_not_silently() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.settle(100)
        lost = world.volume("ada")
        taken = await world.admin("POST", f"volumes/{lost.id}/snapshot")
        await world.admin("DELETE", f"volumes/{lost.id}")
        await world.until(lambda: len(world.volumes("ada")) == 1, 900, about=["ada"])
        await world.until_phase("ada", "Running", 300)
        assert world.volume("ada").id != lost.id
        warned = [e for e in world.store.events if e["type"] == "Warning" and e["reason"] == "Restoring"]
        assert taken["id"] in warned[0]["note"]


async def test_reconcile_machine_404_is_recreated_on_its_volume() -> None:
    async with operator_world() as world:
        await runs(world)
        before, volume = world.machine("ada").id, world.volume("ada").id
        await world.admin("DELETE", f"machines/{before}")
        await world.until(lambda: [m.id for m in world.machines("ada")] not in ([], [before]), 60, about=["ada"])
        await world.until_phase("ada", "Running")
        assert world.volume("ada").id == volume
        assert world.machine("ada").volume is not None
        assert world.machine("ada").volume.id == volume


async def test_reconcile_500_does_not_recreate_however_often() -> None:
    async with operator_world() as world:
        await runs(world)
        before, machine = world.mark(), world.machine("ada")
        fault(world, "get_machine")
        fault(world, "org_machines")
        await world.restart()
        await world.settle(1800)
        assert changes(world, before) == []
        assert world.machine("ada") is machine
        assert world.condition("ada", "Stalled")[0] == "False"


async def test_reconcile_a_good_read_ends_what_failing_reads_have_begun() -> None:
    async with operator_world() as world:
        await runs(world)
        fault(world, "get_machine")
        fault(world, "update_machine", 409, "aborted: machine update failed due to concurrent update", times=1)
        await world.edit("ada", machine={"memoryMb": 2048})
        await world.settle(60)
        assert world.condition("ada", "Ready")[1] == "FlyUnavailable"
        world.sim.faults.remove(None)
        await world.until_phase("ada", "Running", 300)
        assert world.condition("ada", "Ready")[0] == "True"
        begun = world.mark()
        await world.edit("ada", machine={"memoryMb": 1024})
        await world.until_phase("ada", "Running", 10)  # no pause is left over
        assert changes(world, begun) == ["update_machine"]


async def test_reconcile_wrong_mount_is_repaired() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.stop()
        machine, volume = world.machine("ada"), world.volume("ada").id
        app = f"/v1/apps/{world.app_name('ada')}"
        other = await world.by_hand("POST", f"{app}/volumes", {"name": "other", "region": machine.region, "size_gb": 1})
        config = world.config("ada") | {"mounts": [{"volume": other["id"], "path": "/data"}]}
        await world.admin("DELETE", f"machines/{machine.id}")
        await world.settle(5)
        await world.by_hand(
            "POST", f"{app}/machines", {"name": machine.name, "region": machine.region, "config": config}
        )
        world.start()
        await world.until(
            lambda: [m.volume.id for m in world.machines("ada") if m.volume] == [volume], 120, about=["ada"]
        )
        await world.until_phase("ada", "Running")
        assert {v.id for v in world.volumes("ada")} == {volume, other["id"]}, "what isn't ours stays"


async def test_reconcile_status_mismatch_is_copied_and_put_right() -> None:
    async with operator_world() as world:
        await runs(world)
        machine = world.machine("ada")
        await world.by_hand("POST", f"/v1/apps/{machine.app.name}/machines/{machine.id}/stop", {})
        await world.until(lambda: machine.state == "stopped")
        await world.until(lambda: machine.state == "started", 90, about=["ada"])
        await world.until_phase("ada", "Running")
        assert world.status("ada")["machine"]["state"] == "started"
        assert world.machine("ada") is machine


# --- Create ------------------------------------------------------------------------------------------------------


async def test_create_id_is_stored_before_waiting() -> None:
    async with operator_world() as world:
        fault(world, "wait_machine", None, delay=20.0)
        world.inmates.clear()
        await world.apply("ada")
        world.inmates["ada"].boot_seconds = 15.0
        await world.settle(5)
        assert world.phase("ada") != "Running"
        assert world.status("ada")["machine"]["id"] == world.machine("ada").id
        assert world.status("ada")["volume"]["id"] == world.volume("ada").id


async def test_create_wait_timeout_keeps_the_id() -> None:
    async with operator_world() as world:
        fault(world, "wait_machine", 408, "deadline_exceeded: machine failed to reach desired state", delay=5.0)
        await world.apply("ada")
        world.inmates["ada"].boot_seconds = 15.0
        await world.until(lambda: world.machines("ada"))
        made = world.machine("ada").id
        await world.until_phase("ada", "Running")
        assert world.machine("ada").id == made
        assert world.calls("ada").count("create_machine") == 1


async def test_create_408_adopts_what_was_made() -> None:
    async with operator_world() as world:
        fault(world, "create_machine", 408, "request timeout", where="after", times=1)
        await runs(world)
        assert world.calls("ada").count("create_machine") == 1
        assert len(world.machines("ada")) == 1


async def test_create_name_collision_adopts() -> None:
    """The list does not show it yet; its name is taken, and Fly tells by whom."""
    async with operator_world() as world:
        fault(world, "create_machine", 408, "request timeout", where="after", times=1)
        fault(world, "list_machines", 200, body=[], times=2)
        await runs(world)
        assert world.calls("ada").count("create_machine") == 2
        assert len(world.machines("ada")) == len(world.volumes("ada")) == 1


async def test_create_image_pull_408_waits() -> None:
    async with operator_world() as world:
        fault(world, "create_machine", 408, "deadline_exceeded: failed to pull image in time", times=2)
        await world.apply("ada")
        await world.until_phase("ada", "Running", 300)
        assert world.condition("ada", "Stalled")[0] == "False"
        assert len(world.machines("ada")) == len(world.volumes("ada")) == 1


async def test_create_capacity_then_next_region() -> None:
    async with operator_world() as world:
        fault(world, "create_volume", 409, "aborted: no capacity", times=1)
        await runs(world, placement={"regions": ["iad", "ord"]})
        assert world.machine("ada").region == world.volume("ada").region == "ord"


async def test_create_capacity_twice_fails_with_a_reason() -> None:
    async with operator_world() as world:
        fault(world, "create_volume", 409, "aborted: no capacity", times=2)
        await world.apply("ada", placement={"regions": ["iad", "ord"]})
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        assert world.condition("ada", "Stalled")[1] == "CapacityExhausted"
        assert 'no room in "iad, ord"' in world.condition("ada", "Ready")[2]
        await world.until_phase("ada", "Running", 400)


async def test_create_fork_for_used_agents() -> None:
    async with operator_world() as world:
        await runs(world, placement={"regions": ["iad", "ord"]})
        used = world.volume("ada").id
        await world.edit("ada", desiredState="Stopped")
        await world.until_phase("ada", "Stopped")
        fault(world, "start_machine", 409, body=HOST_FULL, times=1)
        await world.edit("ada", desiredState="Running")
        await world.until_phase("ada", "Running")
        assert world.volumes("ada")[0].id == used
        assert world.machine("ada").volume is world.volumes("ada")[1]
        assert world.status("ada")["previousVolume"]["id"] == used


async def test_create_fresh_for_never_used() -> None:
    async with operator_world() as world:
        fault(world, "create_machine", 412, body=ON_FULL_HOST, times=1)
        await runs(world, placement={"regions": ["iad", "ord"]})
        await world.until(lambda: len(world.volumes("ada")) == 1, 60, about=["ada"])
        assert world.machine("ada").volume is world.volume("ada")
        assert "previousVolume" not in world.status("ada")


async def test_create_fork_failure_surfaces() -> None:
    async with operator_world() as world:
        await runs(world, placement={"regions": ["iad"]})
        await world.edit("ada", desiredState="Stopped")
        await world.until_phase("ada", "Stopped")
        fault(world, "start_machine", 409, body=HOST_FULL)
        fault(world, "create_volume", 400, "invalid_argument: volume can't be forked")
        await world.edit("ada", desiredState="Running")
        await world.until(lambda: world.condition("ada", "Stalled")[0] == "True", about=["ada"])
        assert "nothing empty is put in its place" in world.condition("ada", "Ready")[2]
        assert len(world.volumes("ada")) == 1
        world.sim.faults.remove(None)
        await world.until_phase("ada", "Running", 900)


# --- Recovery ----------------------------------------------------------------------------------------------------


async def test_recovery_no_candidates_makes_one_machine_on_the_volume_that_is_there() -> None:
    async with operator_world() as world:
        fault(world, "create_machine", 503, "unavailable")
        await world.apply("ada")
        await world.until(lambda: len(world.volumes("ada")) == 1)
        await world.crash()
        world.store.wipe_status("ada")
        world.sim.faults.remove(None)
        world.start()
        await world.until_phase("ada", "Running", 300)
        assert len(world.volumes("ada")) == len(world.machines("ada")) == 1


async def test_recovery_only_destroyed_ones_are_no_candidates() -> None:
    async with operator_world() as world:
        await runs(world)
        before, volume = world.machine("ada").id, world.volume("ada").id
        await world.crash()
        world.store.wipe_status("ada")
        await world.admin("DELETE", f"machines/{before}")
        world.start()
        await world.until_phase("ada", "Running", 300)
        assert world.machine("ada").id != before
        assert world.volume("ada").id == volume


async def test_recovery_volume_is_found_through_the_mount() -> None:
    async with operator_world() as world:
        await runs(world)
        machine, volume, before = world.machine("ada").id, world.volume("ada").id, world.mark()
        await world.crash()
        world.store.wipe_status("ada")
        world.start()
        await world.until_phase("ada", "Running", 300)
        assert (world.status("ada")["machine"]["id"], world.status("ada")["volume"]["id"]) == (machine, volume)
        assert set(changes(world, before)) <= {"create_app"}, "the name of the app is taken, nothing was made"


async def test_recovery_has_a_cooldown() -> None:
    async with operator_world() as world:
        await runs(world, recovery={"maxPerHour": 2}, heartbeat={"intervalSeconds": 10})
        world.inmates["ada"].silent = True
        await world.until(lambda: world.condition("ada", "Stalled")[1] == "RecoveryExhausted", 3000, about=["ada"])
        assert world.calls("ada").count("restart_machine") == 2
        await world.settle(600)
        assert world.calls("ada").count("restart_machine") == 2
        world.inmates["ada"].silent = False
        await world.until_phase("ada", "Running", 120)


async def test_recovery_more_than_one_machine_is_told_and_none_destroyed() -> None:
    async with operator_world() as world:
        await runs(world)
        machine = world.machine("ada")
        config = {key: value for key, value in world.config("ada").items() if key != "mounts"}
        made = await world.by_hand(
            "POST",
            f"/v1/apps/{machine.app.name}/machines",
            {"name": "ada-twin", "region": machine.region, "config": config},
        )
        await world.until(lambda: world.condition("ada", "MachineReady")[1] == "DuplicateMachines", 120, about=["ada"])
        assert made["id"] in world.condition("ada", "Ready")[2]
        assert {m.id for m in world.machines("ada")} == {machine.id, made["id"]}
        assert world.status("ada")["machine"]["id"] == machine.id


# --- Status ------------------------------------------------------------------------------------------------------


async def test_status_live_check_is_throttled_to_nothing_of_its_own() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.settle(60)
        before, at = world.mark(), world.clock.now()
        await world.settle(3600)
        assert world.calls("ada", before) == []
        assert world.writes("ada", at) == []


async def test_status_transitional_states_keep_it_as_it_is() -> None:
    async with operator_world() as world:
        await runs(world)
        machine, before = world.machine("ada"), world.mark()
        await world.by_hand("POST", f"/v1/apps/{machine.app.name}/machines/{machine.id}/restart")
        await world.settle(120)
        assert world.phase("ada") == "Running"
        assert world.machine("ada") is machine
        assert changes(world, before) == []


async def test_status_provider_error_keeps_the_old_status() -> None:
    async with operator_world() as world:
        await runs(world)
        await world.settle(60)
        before = world.status("ada")
        fault(world, "*")
        await world.settle(1200)
        assert world.status("ada") == before
        world.sim.faults.remove(None)
        await world.settle(300)
        assert world.status("ada") == before


async def test_an_edit_of_one_that_still_waits_for_its_agent_is_told_as_taken_note_of() -> None:
    """`kubectl rollout`-like tools wait for observedGeneration; the agent may take long to answer."""
    async with operator_world() as world:
        world.inmates["ada"] = Inmate(silent=True)
        await world.apply("ada", heartbeat={"intervalSeconds": 300})
        await world.until(lambda: world.status("ada").get("observedGeneration") == 1, about=["ada"])
        await world.edit("ada", env=[{"name": "A", "value": "1"}])
        await world.until(lambda: world.status("ada").get("observedGeneration") == 2, 30, about=["ada"])
