"""The soak's own judges can fail: growth of the operator's process, and writes to a spec."""

import random

import pytest
from soak import FDS_GROWTH, JUDGED_SECONDS, RSS_GROWTH_MB, WARM_UP_SECONDS, Life, growth, spec_writes

from roost.local.evidence import Write
from roost.local.verify_figures import OPERATOR

LONG = WARM_UP_SECONDS + JUDGED_SECONDS + 100


def life(
    mb_per_second: float = 0.0, files_per_second: float = 0.0, *, seconds: float = LONG, warm: float = 0.0
) -> Life:
    """A process that has samples every two seconds, with noise; `warm` MB come while it warms up."""
    rng, found = random.Random(1), Life(7, 0.0)
    for second in range(0, int(seconds), 2):
        grown = warm * min(1.0, second / WARM_UP_SECONDS) + mb_per_second * second
        files = 40 + round(files_per_second * second) + rng.randrange(-5, 5)
        found.samples.append((float(second), 90 + grown + rng.uniform(-2, 2), files))
    return found


def test_a_process_that_stays_as_it_is_after_its_warm_up_is_flat() -> None:
    assert growth([life(warm=60.0)]) == []
    start, end = life(warm=60.0).line(1) or (0.0, 0.0)
    assert (round(start), round(end)) == (150, 150)


def test_a_leak_of_memory_is_told() -> None:
    (told,) = growth([life(), life(mb_per_second=1.5 * RSS_GROWTH_MB / (LONG - WARM_UP_SECONDS))])
    assert "MB of memory" in told


def test_a_leak_of_sockets_is_told() -> None:
    (told,) = growth([life(files_per_second=1.5 * FDS_GROWTH / (LONG - WARM_UP_SECONDS))])
    assert "open files" in told


def test_a_life_too_short_to_tell_is_not_judged() -> None:
    assert growth([life(mb_per_second=1.0, seconds=WARM_UP_SECONDS + JUDGED_SECONDS / 2)]) == []


def write(user: str = OPERATOR, resource: str = "agents", name: str = "ada", sub: str = "", code: int = 200) -> Write:
    body = {"spec": {"paused": True}}
    return Write(0.0, 0.0, user, "patch", "roost.dev", resource, sub, "default", name, code, body, False)


@pytest.mark.parametrize("resource", ["agents", "fleets", "secrets"])
def test_a_spec_that_the_operator_writes_is_told(resource: str) -> None:
    assert spec_writes([write(resource=resource)], "crew") == [f"the operator wrote the spec of {resource} default/ada"]


@pytest.mark.parametrize(
    "innocent", [write(user="admin"), write(name="crew-0"), write(sub="status"), write(code=409)], ids=str
)
def test_what_others_write_a_fleets_members_and_refused_writes_are_no_violation(innocent: Write) -> None:
    assert spec_writes([innocent], "crew") == []
