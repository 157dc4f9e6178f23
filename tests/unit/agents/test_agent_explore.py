"""Every way that an Agent's life can go, with so many faults on it: the rules of the house hold on all of them.

The rules are judged by the simulated Fly of `world`, and each walk must come to an end: settled, stuck, or gone.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from explore import Walk
from world import (
    Fate,
    Life,
    agent,
    apply_again,
    crash,
    delete,
    edit,
    machine_destroyed,
    machine_forgotten,
    machine_stops,
    settled,
    shared,
    snapshot,
    sweep,
    volume_lost,
)


def revoke(life: Life) -> Life:
    return edit(life, revoked=True)


def stop(life: Life) -> Life:
    return edit(life, desired_state="Stopped")


def rotate(life: Life) -> Life:
    return edit(life, identity={"token_epoch": life.declared.spec.identity.token_epoch + 1})


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
    "machine destroyed and Agent deleted at any moment": (runs, (machine_destroyed, delete)),
    "moved from a full host, deleted at any moment": (crowded, (delete,)),
    "restored, deleted at any moment": (restorable, (delete,)),
}
"""Ways on which any one call may fail, and people and Fly act at any moment."""


def test_a_lost_volume_is_never_replaced_by_an_empty_one() -> None:
    """As long as the status is there, which is what knows that there was one."""
    walks = (
        (Walk(faults=2, forgets=False), seen(volume_lost)),
        (Walk(faults=1, forgets=False, events=(volume_lost, revoke)), runs()),
    )
    for walk, start in walks:
        walk.run(start)
        assert walk.broken == {}
        assert walk.ends > 0


@pytest.mark.parametrize("start", PAIRS.values(), ids=PAIRS.keys())
def test_no_two_faults_break_a_rule(start: Callable[[], Life]) -> None:
    walk = Walk(faults=2)
    walk.run(start())
    assert walk.broken == {}
    assert walk.ends > 0


@pytest.mark.parametrize(("start", "events"), SINGLES.values(), ids=SINGLES.keys())
def test_no_fault_at_any_moment_breaks_a_rule(start: Callable[[], Life], events: tuple) -> None:
    walk = Walk(faults=1, events=events)
    walk.run(start())
    assert walk.broken == {}
    assert walk.ends > 0
