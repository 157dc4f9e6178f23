"""The life of an Agent, told call by call: what the planner does at Fly, and in which order."""

from collections import Counter
from dataclasses import replace
from math import inf
from typing import Any

import pytest
import world
from world import (
    ABSENCE,
    ORG,
    OWNER,
    SHARED_APP,
    Cloud,
    Fate,
    FlyApp,
    FlyMachine,
    FlyVolume,
    Life,
    Story,
    agent,
    apply_again,
    crash,
    delete,
    edit,
    everyone,
    machine_destroyed,
    machine_stops,
    names_of,
    rest,
    settled,
    shared,
    sweep,
    think,
    view,
    volume_lost,
)

from roost.agents import plan
from roost.agents.view import Act, CreateMachine, CreateVolume, Failure, GetMachine, Settled, Stuck, UpdateMachine, Wait
from roost.api.agent import Phase
from roost.api.conditions import Reason
from roost.secrets.state import Resolution

ADA = names_of("ada")
MAKE = ["StoreFinalizer", "CreateApp", "CreateVolume", "SetToken", "CreateMachine", "AwaitMachine"]
DESTROY = [
    "StopMachine",
    "AwaitMachine",
    "DeleteMachine",
    "DeleteVolume",
    "GetApp",
    "DeleteApp",
    "GetApp",
    "ReleaseFinalizer",
]
"""Seven calls to Fly: deleting the volume confirms that its machine is gone, the app tells that it is empty."""


def fresh(**fields: Any) -> Story:
    return Story(agent(**fields))


def runs(story: Story) -> bool:
    """One started machine on one volume."""
    cloud = story.life.cloud
    return [m.state for m in cloud.my_machines()] == ["started"] and len(cloud.my_volumes(ADA.volume)) == 1


def ready(story: Story) -> bool:
    return said(story, "Ready") == "True"


def said(story: Story, kind: str) -> str:
    return next(c["status"] for c in story.life.status["conditions"] if c["type"] == kind)


def reason(story: Story, kind: str) -> str:
    return next(c["reason"] for c in story.life.status["conditions"] if c["type"] == kind)


def without_repeats(calls: list[str]) -> list[str]:
    return [call for n, call in enumerate(calls) if n == 0 or calls[n - 1] != call]


def everything_gone(story: Story) -> bool:
    cloud = story.life.cloud.at(story.life.now + 10)
    return story.life.released and not cloud.my_machines() and not cloud.my_volumes(ADA.volume) and not cloud.apps


# --- Made --------------------------------------------------------------------------------------------------------


def test_an_agent_is_made_in_six_calls_and_then_costs_none() -> None:
    story = fresh()
    assert story.run() == Settled(Phase.RUNNING, Reason.RUNNING, 121.0)
    assert story.calls == MAKE
    assert runs(story)
    assert ready(story)
    story.quiet(looks=5)


def test_its_machine_is_on_its_volume_in_the_volumes_region() -> None:
    story = fresh()
    story.run()
    [volume] = story.life.cloud.volumes
    [machine] = story.life.cloud.machines
    assert (machine.volume, machine.region) == (volume.id, volume.region)
    assert machine.name == ADA.machine(volume.id)
    assert volume.name == ADA.volume


def test_a_heartbeat_is_proof_that_the_machine_has_started() -> None:
    story = fresh().until("AwaitMachine")
    story.life = replace(story.life, now=story.life.now + 5, cloud=story.life.cloud.at(story.life.now + 5))
    assert isinstance(story.run(), Settled)
    assert "AwaitMachine" not in story.calls


@pytest.mark.parametrize("fate", [Fate.LOST, Fate.VAIN, Fate.RATE_LIMITED, Fate.NOT_YET])
@pytest.mark.parametrize("call", MAKE)
def test_whatever_happens_to_a_call_it_is_made_once(call: str, fate: Fate) -> None:
    story = fresh().when(call, fate)
    assert isinstance(story.run(), Settled)
    assert runs(story)
    assert (len(story.life.cloud.machines), len(story.life.cloud.volumes)) == (1, 1)
    assert story.calls.count("CreateVolume") == (2 if call == "CreateVolume" and fate is not Fate.LOST else 1)


@pytest.mark.parametrize("keep_status", [True, False])
@pytest.mark.parametrize("calls", range(1, len(MAKE) + 1))
def test_whenever_the_operator_crashes_it_is_made_once(calls: int, keep_status: bool) -> None:
    story = fresh()
    for _ in range(calls):
        story.step()
    story.life = crash(story.life, keep_status=keep_status)
    assert isinstance(story.run(), Settled)
    assert runs(story)
    assert (len(story.life.cloud.machines), len(story.life.cloud.volumes)) == (1, 1)


def test_after_a_lost_answer_absence_is_believed_only_90_s_and_two_looks_later() -> None:
    story = fresh().when("CreateVolume", Fate.VAIN)
    story.until("CreateVolume").step()
    lost_at = story.life.now
    story.until("CreateVolume")
    looks = [c for c in story.calls if c == "ListVolumes"]
    assert story.life.now - lost_at >= ABSENCE + 4
    assert len(looks) == 3  # at once, when a lost create must show, and once more
    story.run()
    assert runs(story)


def test_an_empty_list_by_mistake_makes_no_second_volume() -> None:
    story = fresh().when("CreateVolume", Fate.LATE).until("CreateVolume")
    story.when("ListVolumes", Fate.EMPTY, 2)
    assert isinstance(story.run(), Settled)
    assert story.calls.count("CreateVolume") == 1
    assert runs(story)


def test_a_machine_of_its_name_that_was_not_heard_of_is_adopted() -> None:
    story = fresh().when("CreateMachine", Fate.LOST).when("ListMachines", Fate.EMPTY)
    assert isinstance(story.run(), Settled)
    assert story.calls.count("CreateMachine") == 2  # the second is refused: the name is taken
    assert runs(story)


def test_a_name_that_is_taken_by_nobody_is_looked_for_in_the_list() -> None:
    """Fly has said that a name is taken and left out by whom."""
    story = fresh().when("CreateMachine", Fate.LOST).when("ListMachines", Fate.EMPTY)
    story.when("CreateMachine", Fate.CONFLICT, *range(2, 30))
    assert isinstance(story.run(), Settled)
    assert story.calls.count("CreateMachine") == 2
    assert runs(story)


def test_the_app_of_an_earlier_life_is_taken_over() -> None:
    story = Story(replace(agent(), cloud=Cloud(apps=(FlyApp(ADA.app, ORG, True, 0.0),))))
    assert isinstance(story.run(), Settled)
    assert without_repeats(story.calls[:5]) == ["StoreFinalizer", "CreateApp", "GetApp", "ListMachines", "ListVolumes"]
    assert story.calls.count("ListVolumes") == 2
    assert runs(story)


def test_the_app_of_somebody_else_is_left_alone_and_said() -> None:
    story = Story(replace(agent(), cloud=Cloud(apps=(FlyApp(ADA.app, "others", False, 0.0),))))
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.FOREIGN_APP
    assert said(story, "Stalled") == "True"
    story.life = delete(story.life)
    story.run()
    assert story.life.released
    assert story.calls == ["StoreFinalizer", "CreateApp", "GetApp", "ReleaseFinalizer"]


def test_deleted_before_it_is_known_whose_app_it_is_nothing_of_it_is_touched() -> None:
    """The name is taken, the credential sees the other org: only a look tells that the app isn't ours."""
    story = Story(replace(agent(), cloud=Cloud(apps=(FlyApp(ADA.app, "others", False, 0.0),)))).until("GetApp")
    story.life = delete(story.life)
    story.run()
    assert story.calls[-2:] == ["GetApp", "ReleaseFinalizer"]


def test_after_a_crash_a_403_is_no_proof_that_the_app_is_somebody_elses() -> None:
    """Made, and everything we knew of it lost: its name is taken by ourselves, and the token is at fault."""
    story = fresh().until("AwaitMachine")
    story.life = crash(story.life, keep_status=False)
    story.when("GetApp", Fate.FORBIDDEN).until("GetApp").step()
    story.life = delete(story.life)
    assert isinstance(unsure := story.run(), Stuck)
    assert f"roost.dev/forget={ADA.app}" in unsure.say
    story.run()
    assert everything_gone(story)


def test_a_machine_of_its_name_that_is_not_ours_is_left_alone_and_said() -> None:
    story = settled()
    [machine] = story.life.cloud.machines
    story.life = crash(replace(story.life, cloud=story.life.cloud.put(replace(machine, metadata=()))))
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.FOREIGN_MACHINE
    assert story.calls == ["GetMachine"]


def test_a_young_app_that_is_not_known_everywhere_is_no_missing_app() -> None:
    story = fresh().when("CreateVolume", Fate.UNKNOWN, 1, 2, 3)
    assert isinstance(story.run(), Settled)
    assert not any(isinstance(r, Stuck) for r in story.rests)
    assert runs(story)


def test_a_young_app_that_answers_401_is_no_bad_token() -> None:
    story = fresh().when("CreateVolume", Fate.UNAUTHORIZED, 1, 2)
    assert isinstance(story.run(), Settled)
    assert [type(r) for r in story.rests] == [Wait, Wait, Settled]


def test_an_app_whose_create_was_lost_and_that_is_too_young_to_be_seen_is_waited_for() -> None:
    story = fresh().when("CreateApp", Fate.LOST).when("GetApp", Fate.UNKNOWN, 1, 2, 3)
    assert isinstance(story.run(), Settled)
    assert story.calls.count("CreateApp") == 2
    assert runs(story)


def test_after_a_crash_a_young_app_is_no_lost_app() -> None:
    """The status names the app; that it was made a moment ago is known to nobody any more."""
    story = fresh().when("CreateVolume", Fate.RATE_LIMITED)
    story.until("CreateVolume").step()
    assert "app" in story.life.status
    story.life = crash(story.life)
    story.when("ListVolumes", Fate.UNKNOWN, 1, 2)
    assert isinstance(story.run(), Settled)
    assert not any(isinstance(r, Stuck) for r in story.rests)


def test_a_young_machine_that_is_not_known_everywhere_is_not_made_again() -> None:
    story = fresh().when("AwaitMachine", Fate.UNKNOWN).when("GetMachine", Fate.UNKNOWN, 1, 2)
    assert isinstance(story.run(), Settled)
    assert story.calls.count("CreateMachine") == 1


# --- Secrets -----------------------------------------------------------------------------------------------------

MISSING = Resolution(known=True, missing=('secrets.roost.dev "llm" not found',), missing_reason=Reason.SECRET_MISSING)


def test_a_new_agent_waits_for_its_secrets_before_anything_is_made() -> None:
    story = Story(replace(agent(), secrets=MISSING, revision=None))
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.SECRET_MISSING
    assert story.calls == ["StoreFinalizer"]
    story.life = replace(story.life, secrets=world.RESOLVED, revision="revision-1")
    assert isinstance(story.run(), Settled)


def test_an_agent_that_runs_goes_on_when_a_secret_is_missing() -> None:
    story = settled()
    story.life = replace(story.life, secrets=MISSING, revision=None)
    assert isinstance(story.run(), Settled)
    assert story.calls == []


# --- Refused -----------------------------------------------------------------------------------------------------


def test_when_a_region_is_full_the_next_is_tried() -> None:
    story = Story(replace(agent(), regions=("iad", "ord"))).when("CreateVolume", Fate.CAPACITY)
    assert isinstance(story.run(), Settled)
    assert [a.region for a in story.actions if isinstance(a, CreateVolume)] == ["iad", "ord"]


def test_when_all_regions_are_full_it_says_so_and_tries_them_all_again_slowly() -> None:
    story = Story(replace(agent(), regions=("iad", "ord"))).when("CreateVolume", Fate.CAPACITY, 1, 2, 3, 4, 5)
    for _ in range(2):
        stuck = story.run()
        assert isinstance(stuck, Stuck)
        assert stuck.reason is Reason.CAPACITY_EXHAUSTED
        assert '"iad, ord" (spec.placement.regions)' in stuck.say
    assert isinstance(story.run(), Settled)
    tried = [a.region for a in story.actions if isinstance(a, CreateVolume)]
    assert tried == ["iad", "ord", "iad", "ord", "iad", "ord"]


@pytest.mark.parametrize(
    ("fate", "why"), [(Fate.QUOTA, Reason.QUOTA_EXCEEDED), (Fate.INVALID, Reason.FLY_INVALID)], ids=str
)
def test_what_a_person_must_heal_is_said_and_heals(fate: Fate, why: Reason) -> None:
    story = fresh().when("CreateMachine", fate)
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is why
    assert said(story, "Stalled") == "True"
    assert isinstance(story.run(), Settled)
    assert ready(story)
    assert said(story, "Stalled") == "False"


def test_a_bad_token_is_said_and_heals() -> None:
    story = fresh().when("CreateApp", Fate.UNAUTHORIZED)
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.FLY_UNAUTHORIZED
    assert isinstance(story.run(), Settled)


def test_a_machine_of_another_version_by_now_is_looked_at_and_updated_after_a_rest() -> None:
    story = settled()
    story.life = edit(story.life, machine={"memory_mb": 2048})
    story.when("UpdateMachine", Fate.CONFLICT)
    assert isinstance(story.run(), Settled)
    assert story.calls == ["UpdateMachine", "GetMachine", "UpdateMachine", "AwaitMachine"]
    assert [type(r) for r in story.rests] == [Wait, Settled]


# --- Changed -----------------------------------------------------------------------------------------------------


def test_more_memory_is_an_update_of_the_version_that_was_seen_on_the_same_volume() -> None:
    story = settled()
    [machine] = story.life.cloud.machines
    story.life = edit(story.life, machine={"memory_mb": 2048})
    assert isinstance(story.run(), Settled)
    assert story.actions[0] == UpdateMachine(machine.id, "v1", str(machine.volume))
    assert story.calls == ["UpdateMachine", "AwaitMachine"]
    story.quiet()


def test_a_change_that_is_for_the_agent_inside_makes_no_call() -> None:
    story = settled()
    story.life = edit(story.life, env=({"name": "TZ", "value": "UTC"},))
    story.life = replace(story.life, revision="revision-2")
    assert isinstance(story.run(), Settled)
    assert story.calls == []


def test_a_larger_volume_is_extended() -> None:
    story = settled()
    story.life = edit(story.life, volume={"size_gb": 5})
    assert isinstance(story.run(), Settled)
    assert story.calls == ["ExtendVolume"]
    assert story.life.cloud.volumes[0].size_gb == 5


def test_a_raised_token_epoch_is_set_at_the_app_and_then_reaches_the_machine() -> None:
    story = settled()
    story.life = edit(story.life, identity={"token_epoch": 1})
    assert isinstance(story.run(), Settled)
    assert story.calls == ["SetToken", "UpdateMachine", "AwaitMachine"]
    story.quiet()


def test_stopped_and_started_again() -> None:
    story = settled()
    story.life = edit(story.life, desired_state="Stopped")
    assert story.run() == Settled(Phase.STOPPED, Reason.STOPPED, 600.0)
    assert story.calls == ["StopMachine", "AwaitMachine"]
    assert ready(story)
    story.quiet()
    story.life = edit(story.life, desired_state="Running")
    story.run()
    assert story.calls[2:] == ["StartMachine", "AwaitMachine"]
    assert runs(story)


@pytest.mark.parametrize("how", ["spec", "annotation"])
def test_the_kill_switch_stops_the_machine(how: str) -> None:
    story = settled()
    d = story.life.declared
    story.life = (
        edit(story.life, revoked=True)
        if how == "spec"
        else replace(story.life, declared=replace(d, annotations={"roost.dev/revoked": "true"}))
    )
    done = story.run()
    assert isinstance(done, Settled)
    assert (done.phase, done.reason) == (Phase.REVOKED, Reason.REVOKED)
    assert story.calls == ["StopMachine", "AwaitMachine"]


def test_the_kill_switch_does_not_wait_for_a_volume_that_can_not_grow() -> None:
    story = settled()
    story.life = edit(story.life, volume={"size_gb": 400}, revoked=True)
    story.when("ExtendVolume", Fate.INVALID, *range(1, 50))
    story.run()
    assert story.calls == ["StopMachine", "AwaitMachine"]


def test_the_kill_switch_finds_a_machine_whose_volume_and_status_are_lost() -> None:
    story = settled()
    [volume] = story.life.cloud.volumes
    story.life = crash(replace(story.life, cloud=story.life.cloud.put(replace(volume, gone_at=0.0))), keep_status=False)
    story.life = edit(story.life, revoked=True)
    done = story.run()
    assert isinstance(done, Settled)
    assert [m.state for m in story.life.cloud.machines] == ["stopped"]


def test_paused_nothing_is_touched_and_the_generation_goes_on() -> None:
    story = settled()
    story.life = edit(story.life, paused=True, machine={"memory_mb": 2048}, desired_state="Stopped")
    done = story.run()
    assert isinstance(done, Settled)
    assert done.reason is Reason.PAUSED
    assert story.calls == []
    assert story.life.status["observedGeneration"] == 2
    assert story.life.status["phase"] == "Running"


def test_the_kill_switch_stops_the_machine_of_a_paused_agent() -> None:
    story = settled()
    story.life = edit(story.life, paused=True, revoked=True)
    done = story.run()
    assert isinstance(done, Settled)
    assert done.reason is Reason.REVOKED
    assert [m.state for m in story.life.cloud.machines] == ["stopped"]


def test_paused_across_a_restart_it_forgets_nothing() -> None:
    story = settled()
    known = {k: story.life.status[k] for k in ("app", "machine", "volume")}
    story.life = crash(edit(story.life, paused=True))
    story.run()
    assert {k: story.life.status[k] for k in ("app", "machine", "volume")} == known


def test_stopped_from_the_start_it_needs_nothing() -> None:
    story = fresh(desired_state="Stopped")
    assert isinstance(story.run(), Settled)
    story.life = delete(story.life)
    story.run()
    assert story.calls == ["StoreFinalizer", "ReleaseFinalizer"]


# --- What happens at Fly -----------------------------------------------------------------------------------------


def test_a_machine_that_stops_by_itself_is_started_again() -> None:
    story = settled()
    story.life = replace(story.life, now=story.life.now + 600)
    story.life = sweep(machine_stops(story.life))
    assert isinstance(story.run(), Settled)
    assert story.calls == ["GetMachine", "StartMachine", "AwaitMachine"]


def test_a_machine_that_stops_again_at_once_is_given_a_pause() -> None:
    story = settled()
    for _ in range(2):
        story.life = sweep(machine_stops(story.life))
        story.until("StartMachine").step()
    first, second = (at for call, at in zip(story.calls, story.began, strict=True) if call == "StartMachine")
    assert any(isinstance(r, Wait) and r.reason is Reason.MACHINE_STOPPED for r in story.rests)
    assert second - first >= 30


@pytest.mark.parametrize("listed", [True, False], ids=["told by the list", "after a restart"])
def test_a_machine_destroyed_behind_our_back_is_made_again_on_the_same_volume(listed: bool) -> None:
    story = settled()
    [volume] = story.life.cloud.volumes
    story.life = machine_destroyed(replace(story.life, now=story.life.now + 600))
    story.life = sweep(story.life) if listed else crash(story.life)
    assert isinstance(story.run(), Settled)
    made = [a for a in story.actions if isinstance(a, CreateMachine)]
    assert {m.volume_id for m in made} == {volume.id}
    assert runs(story)
    assert len(story.life.cloud.volumes) == 1


def test_a_list_that_leaves_the_machine_out_costs_one_look_and_no_machine() -> None:
    story = settled()
    hidden = replace(story.life, cloud=replace(story.life.cloud, machines=()))
    story.life = replace(sweep(hidden), cloud=story.life.cloud)
    assert isinstance(story.run(), Settled)
    assert story.calls == ["GetMachine"]


@pytest.mark.parametrize("crashes", [False, True])
def test_a_lost_volume_is_said_and_never_replaced_by_an_empty_one(crashes: bool) -> None:
    story = settled()
    story.life = sweep(volume_lost(story.life))
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.VOLUME_LOST
    for _ in range(5):
        if crashes:
            story.life = crash(story.life)
        stuck = story.run()
        assert isinstance(stuck, Stuck)
        assert stuck.reason is Reason.VOLUME_LOST
        assert said(story, "VolumeReady") == "False"
        assert story.life.status["volume"]["id"]
    assert "CreateVolume" not in story.calls
    story.life = delete(story.life)
    story.run()
    assert everything_gone(story)


def test_a_lost_volume_that_fly_has_forgotten_is_looked_for_slowly() -> None:
    story = settled()
    story.life = sweep(machine_destroyed(replace(story.life, now=story.life.now + 600)))
    story.life = replace(story.life, cloud=replace(story.life.cloud, volumes=()))
    for _ in range(3):
        stuck = story.run()
        assert isinstance(stuck, Stuck)
        assert stuck.reason is Reason.VOLUME_LOST
    assert story.calls.count("CreateMachine") == 1
    assert story.calls.count("GetVolume") <= 4


def test_a_volume_that_was_only_out_of_sight_heals_by_itself() -> None:
    story = settled()
    [volume] = story.life.cloud.volumes
    story.life = sweep(volume_lost(story.life))
    assert isinstance(story.run(), Stuck)
    story.life = replace(story.life, cloud=story.life.cloud.put(volume))
    assert isinstance(story.run(), Settled)
    assert runs(story)


def test_an_app_deleted_by_hand_is_said_and_a_new_one_is_not_made() -> None:
    story = settled()
    story.life = replace(story.life, now=story.life.now + 600, cloud=Cloud(made=9))
    story.life = sweep(story.life)
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.APP_NOT_FOUND
    assert "CreateApp" not in story.calls
    story.life = delete(story.life)
    story.run()
    assert story.life.released


def test_an_app_that_was_found_on_its_way_out_is_made_again() -> None:
    """Deleted and applied again at once: the app of before is still shown, and gone a moment later."""
    story = fresh()
    story.life = replace(story.life, cloud=Cloud(apps=(FlyApp(ADA.app, ORG, True, 0.0, gone_at=story.life.now + 3.0),)))
    story.run()
    assert runs(story)
    assert story.life.now > 1003.0


def test_a_re_created_agent_takes_over_the_machine_it_finds_as_it_is() -> None:
    """The finalizer was removed by hand, so the machine lived on: same machine, same data, same tokens."""
    story = settled()
    life = replace(story.life, released=True, now=story.life.now + 600)
    [before] = life.cloud.my_machines()
    story.life = apply_again(life, "uid-2")
    assert isinstance(story.run(), Settled)
    changes = [c for c in story.calls if not c.startswith(("List", "Get"))]
    assert changes == ["StoreFinalizer", "CreateApp", "StampMachine"]
    [machine] = story.life.cloud.my_machines()
    assert (machine.id, machine.version, machine.volume) == (before.id, before.version, before.volume)
    told = dict(machine.metadata)
    assert (told["roost_uid"], told["roost_incarnation"]) == ("uid-2", "uid-1")
    assert story.life.status["app"]["incarnation"] == "uid-1"
    story.quiet()


# --- Shared apps -------------------------------------------------------------------------------------------------


def test_in_a_shared_app_it_is_made_beside_the_others_and_goes_without_a_trace() -> None:
    story = Story(shared())
    assert isinstance(story.run(), Settled)
    assert story.calls == [
        "StoreFinalizer",
        "GetApp",
        "ListMachines",
        "ListVolumes",
        "ListVolumes",
        "CreateVolume",
        "SetToken",
        "CreateMachine",
        "AwaitMachine",
    ]
    assert len(story.life.cloud.secrets) == 1
    story.quiet()
    story.calls.clear()
    story.life = delete(story.life)
    story.run()
    before, cloud = everyone(), story.life.cloud
    assert without_repeats(story.calls) == [
        *DESTROY[:4],
        "ListMachines",
        "ListVolumes",
        "ForgetToken",
        "ReleaseFinalizer",
    ]
    assert cloud.apps == before.apps
    assert cloud.secrets == frozenset()
    assert [m for m in cloud.machines if m.alive] == list(before.machines)
    assert [v for v in cloud.volumes if v.gone_at == inf] == list(before.volumes)


def test_a_shared_app_that_is_missing_is_never_made_and_found_once_it_is_there() -> None:
    story = Story(replace(shared(), cloud=Cloud()))
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.APP_NOT_FOUND
    assert SHARED_APP in stuck.say
    story.life = replace(story.life, cloud=everyone())
    assert isinstance(story.run(seconds=900), Settled)
    assert "CreateApp" not in story.calls


@pytest.mark.parametrize("life", [shared(), agent(deletion_policy="Retain")], ids=["shared app", "retained"])
def test_a_machine_on_an_unreachable_host_holds_the_deletion(life: Life) -> None:
    """Whose it is can't be known; letting go would leave it running when its host comes back."""
    story = settled(life)
    [mine] = story.life.cloud.my_machines()
    story.life = crash(replace(story.life, cloud=story.life.cloud.put(replace(mine, reachable=False))))
    story.life = delete(story.life)
    for _ in range(30):
        story.step()
        assert not story.life.released
    story.life = crash(replace(story.life, cloud=story.life.cloud.put(replace(mine, reachable=True))))
    story.run()
    assert story.life.released
    assert story.life.cloud.my_machines() == []


# --- Deleted -----------------------------------------------------------------------------------------------------


def leaving(**fields: Any) -> Story:
    story = settled(agent(**fields))
    story.life = delete(story.life)
    return story


def test_it_leaves_machine_first_then_volume_then_app_each_confirmed() -> None:
    story = leaving()
    story.run()
    assert without_repeats(story.calls) == DESTROY
    assert everything_gone(story)


def test_an_old_list_that_shows_the_dead_costs_a_look_at_them() -> None:
    story = settled(shared())
    story.life = delete(story.life)
    story.when("ListMachines", Fate.OLD)
    story.run()
    assert story.calls.count("StopMachine") == 1
    assert story.calls[story.calls.index("ListMachines") + 1] == "GetMachine"
    assert story.life.released
    assert not story.life.cloud.my_machines()


@pytest.mark.parametrize("fate", [Fate.LOST, Fate.VAIN, Fate.RATE_LIMITED, Fate.NOT_YET, Fate.UNAUTHORIZED])
@pytest.mark.parametrize("nth", range(len(DESTROY) - 1))
def test_whatever_happens_to_a_call_it_leaves_nothing(nth: int, fate: Fate) -> None:
    """The order of the destruction is judged by `world`."""
    story = leaving().when(DESTROY[nth], fate, Counter(DESTROY[: nth + 1])[DESTROY[nth]])
    while not story.life.released:
        story.run()
    assert everything_gone(story)


@pytest.mark.parametrize("keep_status", [True, False])
@pytest.mark.parametrize("calls", range(12))
def test_whenever_the_operator_crashes_it_leaves_nothing(calls: int, keep_status: bool) -> None:
    story = leaving()
    while len(story.calls) < calls:
        story.step()
    story.life = crash(story.life, keep_status=keep_status)
    while not story.life.released:
        story.run()
    assert everything_gone(story)


@pytest.mark.parametrize("made", range(len(MAKE) + 1))
def test_deleted_in_the_middle_of_being_made_it_leaves_nothing(made: int) -> None:
    story = fresh()
    for _ in range(made):
        story.step()
    story.life = delete(story.life)
    while not story.life.released:
        story.run()
    assert everything_gone(story)


def test_paused_it_can_be_deleted() -> None:
    story = settled()
    story.life = delete(edit(story.life, paused=True))
    story.run()
    assert everything_gone(story)


def test_an_agent_that_ignores_its_stop_is_destroyed_by_force_in_time() -> None:
    story = leaving().when("StopMachine", Fate.VAIN, *range(1, 200))
    began = story.life.now
    story.until("DeleteMachine")
    assert 40 <= story.life.now - began < 120
    story.run()
    assert everything_gone(story)


def test_a_stop_of_long_ago_does_not_take_the_time_to_end_away() -> None:
    story = settled()
    for state in ("Stopped", "Running"):
        story.life = edit(story.life, desired_state=state)
        story.run()
    story.life = delete(replace(story.life, now=story.life.now + 86_400))
    story.calls.clear()
    story.run()
    assert story.calls[:3] == ["StopMachine", "AwaitMachine", "DeleteMachine"]


def test_retained_the_machine_goes_and_the_next_of_its_name_finds_the_volume() -> None:
    story = leaving(deletion_policy="Retain")
    story.run()
    assert story.life.released
    assert story.calls == [*DESTROY[:3], "AwaitMachine", "MarkRetained", "ReleaseFinalizer"]
    assert (ADA.app, "ROOST_RETAINED") in story.life.cloud.secrets
    [volume] = story.life.cloud.my_volumes(ADA.volume)
    story.life = apply_again(story.life, "uid-2")
    assert isinstance(story.run(), Settled)
    assert runs(story)
    assert story.life.cloud.machines[-1].volume == volume.id
    assert len(story.life.cloud.volumes) == 1
    assert (ADA.app, "ROOST_RETAINED") not in story.life.cloud.secrets


def test_retained_after_a_crash_one_empty_list_is_no_proof_that_the_machine_is_gone() -> None:
    story = settled(agent(deletion_policy="Retain"))
    story.life = delete(crash(story.life, keep_status=False))
    story.when("ListMachines", Fate.EMPTY)
    story.run()
    assert story.life.released
    assert story.life.cloud.my_machines() == []


def test_the_volume_tells_of_a_machine_that_no_list_has_shown() -> None:
    story = settled()
    story.life = delete(crash(story.life, keep_status=False))
    story.when("ListMachines", Fate.EMPTY)
    story.run()
    assert everything_gone(story)
    assert story.calls.index("DeleteVolume") < story.calls.index("GetMachine") < story.calls.index("DeleteMachine")


def test_what_is_not_ours_blocks_the_deletion_of_the_app_until_it_is_gone() -> None:
    story = leaving()
    theirs = (
        FlyMachine("theirs", ADA.app, "x", "iad", "started", 1, (("roost_owner", "somebody"),), None, 0.0),
        FlyVolume("vol_theirs", ADA.app, "x", "iad", 1, 0.0),
    )
    cloud = story.life.cloud.put(theirs[0]).put(theirs[1])
    story.life = replace(story.life, cloud=cloud)
    for _ in range(3):
        stuck = story.run()
        assert isinstance(stuck, Stuck)
        assert stuck.reason is Reason.DESTROY_BLOCKED
        assert "theirs" in stuck.say
        assert "vol_theirs" in stuck.say
    cloud = story.life.cloud
    story.life = replace(
        story.life,
        cloud=replace(cloud, machines=tuple(m for m in cloud.machines if m.mine)).put(
            replace(theirs[1], gone_at=story.life.now)
        ),
    )
    story.run()
    assert everything_gone(story)


def test_one_empty_list_does_not_unblock_the_deletion_of_an_app_with_others_in_it() -> None:
    story = leaving()
    theirs = FlyMachine("theirs", ADA.app, "x", "iad", "started", 1, (("roost_owner", "somebody"),), None, 0.0)
    volume = FlyVolume("vol_theirs", ADA.app, "x", "iad", 1, 0.0)
    story.life = replace(story.life, cloud=story.life.cloud.put(theirs).put(volume))
    assert isinstance(story.run(), Stuck)
    story.when("ListMachines", Fate.EMPTY).when("ListVolumes", Fate.EMPTY)
    stuck = story.run()
    assert isinstance(stuck, Stuck)
    assert stuck.reason is Reason.DESTROY_BLOCKED
    assert story.calls[-4:] == ["ListMachines", "ListVolumes", "GetMachine", "GetVolume"]


def test_an_app_that_will_not_go_is_looked_at_more_and_more_slowly_and_asked_again() -> None:
    story = leaving().until("DeleteApp")
    story.step()
    [app] = story.life.cloud.apps
    story.life = replace(story.life, cloud=story.life.cloud.put(replace(app, gone_at=inf)))
    asked = story.life.now
    story.calls.clear()
    story.until("DeleteApp")
    assert story.life.now - asked >= 300
    assert story.calls.count("GetApp") < 15
    story.run()
    assert everything_gone(story)


def test_a_destroy_that_takes_too_long_says_what_is_left() -> None:
    story = leaving().when("DeleteMachine", Fate.VAIN, *range(1, 1000))
    until = story.life.now + 1500
    while story.life.now < until:
        story.step()
    assert said(story, "DestroyStuck") == "True"
    assert story.life.status["destroy"]["machineIds"] == [story.life.cloud.machines[0].id]
    assert story.life.status["destroy"]["lastError"]["op"] == "delete_machine"


def test_a_young_app_that_answers_404_to_its_deletion_is_not_believed_to_be_gone() -> None:
    story = fresh().until("CreateVolume")
    story.life = delete(story.life)
    story.when("DeleteApp", Fate.UNKNOWN)
    story.run()
    assert everything_gone(story)


def test_an_app_deleted_by_hand_while_it_leaves_lets_it_go() -> None:
    story = leaving()
    story.life = replace(story.life, now=story.life.now + 600, cloud=Cloud(made=9))
    story.run()
    assert story.life.released


def test_the_status_keeps_the_machines_id_until_it_is_confirmed_gone() -> None:
    """The only look after a restart fails for a while; nobody may forget what to look for."""
    story = settled(agent(deletion_policy="Retain"))
    story.life = delete(crash(story.life))
    story.when("GetMachine", Fate.VAIN, *range(1, 9))
    while story.calls.count("GetMachine") < 8:
        story.step()
        assert not story.life.status or story.life.status["machine"]["id"] == story.life.cloud.machines[0].id
    story.run()
    assert story.life.released
    assert story.life.cloud.my_machines() == []


def test_our_mark_is_on_everything_we_own() -> None:
    story = settled()
    [machine] = story.life.cloud.machines
    assert dict(machine.metadata)["roost_owner"] == OWNER


def test_a_turn_that_lasts_is_told_as_it_is() -> None:
    story = fresh().when("CreateMachine", Fate.RATE_LIMITED).until("CreateMachine")
    story.step()
    assert (said(story, "Reconciling"), said(story, "Stalled"), said(story, "Ready")) == ("True", "False", "False")
    assert reason(story, "Ready") == "FlyRateLimited"


def test_thinking_twice_gives_the_same() -> None:
    life = agent()
    for _ in range(len(MAKE) + 1):
        step = think(life)
        assert think(life) == step
        life = rest(life, step) if isinstance(step, Settled) else world.act(life, step)[0]  # type: ignore[arg-type]


def test_after_a_restart_it_waits_a_moment_for_the_list_of_the_orgs_machines() -> None:
    """One list tells of ten thousand machines; each would cost a call of its own."""
    seen = view(crash(settled().life))
    unheard = plan.step(replace(seen, swept=False))
    assert isinstance(unheard, Wait)
    assert unheard.reason is Reason.UNHEARD
    looks = plan.step(seen)
    assert isinstance(looks, Act)
    assert looks.action == GetMachine(str(seen.remembered.machine_id))


def test_asked_to_come_back_at_once_it_rests_all_the_same() -> None:
    seen = view(agent())
    hasty = Failure("create_app", Reason.FLY_RATE_LIMITED, "slow down", 429, 1, stuck=False, retry_after=0.0)
    rests = plan.after_failure(replace(seen, world=replace(seen.world, failure=hasty)))
    assert isinstance(rests, Wait)
    assert rests.after is None  # by growing back-off


def test_others_machines_in_a_shared_app_are_never_taken_for_its_own() -> None:
    """Or its own would be told that it is superseded, and end."""
    story = Story(shared()).until("CreateMachine")
    assert [m.id for m in story.life.world.machines or ()] == ["theirs"]
    assert plan.machine_of(view(story.life)) is None
    story.run()
    current = plan.machine_of(view(story.life))
    assert current is not None
    assert current.id == story.life.cloud.my_machines()[0].id
