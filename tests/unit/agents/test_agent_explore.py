"""Every way that an Agent's life can go, with so many faults on it: S1 to S5 hold in each state of all of them.

And from each of those states it gets to where it is declared to be, once nothing fails any more. The rules stand in
`world.RULES`; that each of them can be broken is shown at the end.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from explore import Walk, all_fates
from world import (
    RULES,
    Broken,
    Fate,
    FlyVolume,
    Life,
    act,
    agent,
    apply_again,
    crash,
    delete,
    edit,
    judge,
    machine_destroyed,
    machine_forgotten,
    machine_stops,
    reached,
    rest,
    settled,
    shared,
    snapshot,
    sweep,
    think,
    volume_lost,
)

from roost.agents.view import (
    Act,
    CreateMachine,
    DeleteApp,
    DeleteMachine,
    DeleteVolume,
    ReleaseFinalizer,
    Settled,
    Stuck,
)
from roost.api.agent import Phase
from roost.api.conditions import Reason


def revoke(life: Life) -> Life:
    return edit(life, revoked=True)


def stop(life: Life) -> Life:
    return edit(life, desired_state="Stopped")


def rotate(life: Life) -> Life:
    return edit(life, identity={"token_epoch": life.declared.spec.identity.token_epoch + 1})


def prove(life: Life) -> Life:
    return edit(life, identity={"bootstrap": "FlyOidc"})


def unprove(life: Life) -> Life:
    return edit(life, identity={"bootstrap": "Token"})


def proving() -> Life:
    """It runs, and was given no token."""
    return settled(prove(fresh())).life


def enlarge(life: Life) -> Life:
    return edit(life, machine={"memory_mb": 2048}, volume={"size_gb": 5})


def fresh() -> Life:
    return agent()


def retained() -> Life:
    return agent(deletion_policy="Retain")


def runs() -> Life:
    return settled().life


def stopped() -> Life:
    story = settled()
    story.life = stop(story.life)
    story.run()
    return story.life


def seen(happens: Callable[[Life], Life]) -> Life:
    """Something happened at Fly to an Agent that runs, and the list of machines tells of it."""
    return sweep(happens(runs()))


def sleep(life: Life) -> Life:
    return edit(life, desired_state="Suspended")


def two_regions() -> Life:
    return replace(agent(), regions=("iad", "ord"))


def crowded() -> Life:
    """A stopped Agent whose host has filled up is to run again."""
    story = settled(two_regions())
    story.life = stop(story.life)
    story.run()
    story.life = edit(story.life, desired_state="Running")
    return story.when("StartMachine", Fate.HOST_FULL).until("CreateVolume").life


def restorable() -> Life:
    """Its volume is lost, and there is a snapshot of it."""
    story = settled()
    return sweep(volume_lost(snapshot(story.life)))


def public() -> Life:
    return agent(machine={"public": "Gateway", "autostart": True})


def reborn() -> Life:
    """Applied again under another uid, its machine still running."""
    return apply_again(replace(runs(), released=True), "uid-2")


PAIRS = {
    "made": fresh,
    "made in a shared app": shared,
    "deleted": lambda: delete(runs()),
    "deleted after a crash": lambda: delete(crash(runs())),
    "deleted with its status lost": lambda: delete(crash(runs(), keep_status=False)),
    "deleted in a shared app": lambda: delete(settled(shared()).life),
    "retained": lambda: delete(settled(retained()).life),
    "token rotated": lambda: rotate(runs()),
    "made without a token": lambda: prove(fresh()),
    "made in a shared app without a token": lambda: prove(shared()),
    "token given up": lambda: prove(runs()),
    "token given up in a shared app": lambda: prove(settled(shared()).life),
    "token taken again": lambda: unprove(proving()),
    "deleted without a token in a shared app": lambda: delete(settled(prove(shared())).life),
    "enlarged": lambda: enlarge(runs()),
    "stopped": lambda: stop(runs()),
    "revoked": lambda: revoke(runs()),
    "suspended": lambda: sleep(runs()),
    "made in one of two regions": two_regions,
    "made public": public,
    "a public one stopped": lambda: stop(settled(public()).life),
    "moved from a full host": crowded,
    "restored": restorable,
    "adopted under another uid": reborn,
    "started again": lambda: edit(stopped(), desired_state="Running"),
    "machine stopped by itself": lambda: seen(machine_stops),
    "machine destroyed by hand": lambda: seen(machine_destroyed),
    "machine forgotten by Fly": lambda: seen(machine_forgotten),
}
"""Ways on which any two calls may fail, and the operator may crash."""

SINGLES = {
    "made, deleted at any moment": (fresh, (delete,)),
    "made in a shared app, deleted at any moment": (shared, (delete,)),
    "retained, deleted at any moment": (retained, (delete,)),
    "made, revoked at any moment": (fresh, (revoke,)),
    "revoked and deleted at any moment": (runs, (revoke, delete)),
    "enlarged and rotated at any moment": (runs, (enlarge, rotate)),
    "token given up and taken again at any moment": (runs, (prove, unprove)),
    "token taken again and given up at any moment": (proving, (unprove, prove)),
    "token given up in a shared app, deleted at any moment": (lambda: settled(shared()).life, (prove, delete)),
    "machine destroyed and Agent deleted at any moment": (runs, (machine_destroyed, delete)),
    "moved from a full host, deleted at any moment": (crowded, (delete,)),
    "restored, deleted at any moment": (restorable, (delete,)),
    "found again without its status, deleted at any moment": (lambda: crash(runs(), keep_status=False), (delete,)),
}
"""Ways on which any one call may fail or be refused in any way, and people and Fly act at any moment."""


def test_a_lost_volume_is_never_replaced_by_an_empty_one() -> None:
    """As long as the status is there, which is what knows that there was one."""
    needs_a_person = frozenset({Reason.VOLUME_LOST})
    walks = (
        (Walk(faults=2, forgets=False, helpless=needs_a_person), seen(volume_lost)),
        (Walk(faults=1, forgets=False, helpless=needs_a_person, events=(volume_lost, revoke)), runs()),
    )
    for walk, start in walks:
        walk.run(start)
        assert walk.broken == {}
        assert walk.ends[Reason.VOLUME_LOST]


@pytest.mark.parametrize("start", PAIRS.values(), ids=PAIRS.keys())
def test_no_two_faults_break_a_rule(start: Callable[[], Life]) -> None:
    walk = Walk(faults=2)
    walk.run(start())
    assert walk.broken == {}
    assert walk.ends


@pytest.mark.parametrize("start", PAIRS.values(), ids=PAIRS.keys())
def test_no_refusal_that_fly_knows_breaks_a_rule(start: Callable[[], Life]) -> None:
    walk = Walk(faults=1, fates=all_fates)
    walk.run(start())
    assert walk.broken == {}
    assert walk.ends


@pytest.mark.parametrize(("start", "events"), SINGLES.values(), ids=SINGLES.keys())
def test_no_fault_at_any_moment_breaks_a_rule(start: Callable[[], Life], events: tuple) -> None:
    walk = Walk(faults=1, fates=all_fates, events=events)
    walk.run(start())
    assert walk.broken == {}
    assert walk.ends


# --- The rules can be broken: what has no limit proves nothing -----------------------------------------------------


def does(life: Life, action: object) -> Life:
    """A planner that wants this, whatever it should want."""
    return act(life, Act(action, Phase.RUNNING, ""))[0]  # type: ignore[arg-type]


def unfinalized() -> Life:
    life = runs()
    return replace(life, declared=replace(life.declared, finalizers=()))


def leaving(**fields: str) -> Life:
    return delete(settled(agent(**fields)).life)


def ids(life: Life) -> tuple[str, str, str]:
    """Of its machine, its volume and its app."""
    return life.cloud.my_machines()[0].id, life.cloud.volumes[-1].id, life.cloud.apps[-1].name


def a_second_machine() -> None:
    life = runs()
    other = FlyVolume("vol_b", ids(life)[2], "b", "iad", 1, life.now)
    does(replace(life, cloud=life.cloud.put(other)), CreateMachine("b", "iad", "vol_b"))


def two_machines() -> None:
    life = runs()
    twin = replace(life.cloud.my_machines()[0], id="twin")
    judge(replace(life, cloud=life.cloud.put(twin)), life)


def two_volumes() -> None:
    life = runs()
    judge(replace(life, cloud=life.cloud.put(replace(life.cloud.volumes[0], id="twin"))), life)


def the_data_of_a_living_agent() -> None:
    life = machine_destroyed(runs())
    later = life.now + 60.0  # nothing holds the volume any more
    does(replace(life, now=later), DeleteVolume(life.cloud.volumes[0].id))


def a_volume_beside_the_machine() -> None:
    life = leaving()
    other = replace(life.cloud.volumes[0], id="vol_b", name=f"{life.cloud.volumes[0].name}_2")
    does(replace(life, cloud=life.cloud.put(other)), DeleteVolume("vol_b"))


def stranger_destroyed() -> None:
    start = settled(shared()).life
    theirs = next(m for m in start.cloud.machines if not m.mine)
    judge(replace(start, cloud=start.cloud.put(replace(theirs, state="destroyed"))), start)


def volume_before_machine() -> None:
    life = leaving()
    volume = life.cloud.volumes[0]
    judge(replace(life, cloud=life.cloud.put(replace(volume, gone_at=life.now))), life)


def retained_taken() -> None:
    start = leaving(deletion_policy="Retain")
    judge(replace(start, cloud=replace(start.cloud, volumes=(), machines=())), start)


def changed_without_finalizer() -> None:
    life = agent()
    judge(replace(life, cloud=replace(life.cloud, moves=1)), life)


def ready_unseen() -> None:
    life = runs()
    silent = replace(life, talks=False)
    rest(silent, Settled(Phase.RUNNING, Reason.RUNNING, 60.0))


def generation_ahead() -> None:
    life = runs()
    judge(replace(life, status={**life.status, "observedGeneration": 99}), life)


BROKEN = {
    "S1 by a call": a_second_machine,
    "S1 in a state": two_machines,
    "S1 by volumes": two_volumes,
    "S2 by a call": lambda: does(unfinalized(), DeleteMachine("m2")),
    "S2 in a state": changed_without_finalizer,
    "S2 by letting go": lambda: does(leaving(), ReleaseFinalizer()),
    "S3 by the machine that it needs": lambda: does(runs(), DeleteMachine(ids(runs())[0])),
    "S3 by the volume that it needs": the_data_of_a_living_agent,
    "S3 by somebody's machine": lambda: does(settled(shared()).life, DeleteMachine("theirs")),
    "S3 in a state": stranger_destroyed,
    "S4 by a call": lambda: does(leaving(), DeleteApp()),
    "S4 by the volume first": a_volume_beside_the_machine,
    "S4 in a state": volume_before_machine,
    "S4 by a retained volume": lambda: does(
        leaving(deletion_policy="Retain"), DeleteVolume(ids(leaving(deletion_policy="Retain"))[1])
    ),
    "S4 by what is retained": retained_taken,
    "S5 by what is written": ready_unseen,
    "S5 in a state": generation_ahead,
}
"""What breaks a rule, as a call or as a state."""


@pytest.mark.parametrize(("rule", "happens"), BROKEN.items(), ids=BROKEN.keys())
def test_what_breaks_a_rule_is_seen(rule: str, happens: Callable[[], None]) -> None:
    with pytest.raises(Broken) as broken:
        happens()
    assert broken.value.rule == rule[:2]
    assert broken.value.rule in RULES


def test_a_planner_that_gives_up_does_not_reach_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash it is stuck for no reason: every rule holds, and the goal is out of reach."""
    begins = fresh()

    def gives_up(life: Life) -> object:
        crashed = life.started_at > begins.started_at
        return Stuck(Phase.FAILED, Reason.FLY_INVALID, "enough") if crashed else think(life)

    monkeypatch.setattr("explore.think", gives_up)
    walk = Walk(faults=1)
    walk.run(begins)
    assert list(walk.broken) == ["GOAL: when nothing fails any more, it does not get there"]


def test_a_planner_that_goes_in_circles_does_not_reach_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It always finds something to do and rests in between: no hot loop, and no end."""

    def again(life: Life) -> object:
        step = think(life)
        return replace(step, after=60.0) if isinstance(step, Settled) else step

    monkeypatch.setattr("explore.think", again)
    monkeypatch.setattr(
        "explore.Walk._settled",
        lambda self, life, key, step, faults, done: iter([(rest(life, step), faults, done, "rest", True)]),
    )
    walk = Walk(faults=0)
    walk.run(fresh())
    assert [said.partition(":")[0] for said in walk.broken] == ["GOAL"]


def test_settled_at_the_wrong_place_is_no_goal() -> None:
    assert reached(runs(), think(runs()))
    assert not reached(stop(runs()), think(runs()))
    assert not reached(delete(runs()), think(runs()))
    assert not reached(runs(), Stuck(Phase.FAILED, Reason.FLY_INVALID, ""))
