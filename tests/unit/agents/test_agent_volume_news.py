"""What news of volumes mean to an Agent that has not seen them before."""

import pytest

from roost.agents.fold import volumes_seen
from roost.agents.view import Remembered, World
from roost.fly.types import Volume


def volume(state: str) -> Volume:
    return Volume("app", "vol_1", "roost_1", state, "iad", 1, None, "ok", "2026-11-21T10:00:00Z")


def ids(state: str, known: Remembered) -> list[str]:
    """The ids in mind after a list of the org has shown a volume in this state, to one who knew of none."""
    news = (volume(state),)
    world = volumes_seen(World(quiet_since=0.0, volumes=()), news, full=False, unread=frozenset(), known=known, now=1.0)
    return [sight.id for sight in world.volumes or ()]


def test_a_volume_that_an_earlier_process_asked_for_is_taken_up() -> None:
    assert ids("created", Remembered()) == ["vol_1"]


@pytest.mark.parametrize("state", ["pending_destroy", "destroyed"])
def test_the_deleted_volume_of_an_earlier_agent_of_this_name_is_not_taken_for_a_lost_one_of_its_own(state: str) -> None:
    assert ids(state, Remembered()) == []
    assert ids(state, Remembered(volume_id="vol_1")) == ["vol_1"]
