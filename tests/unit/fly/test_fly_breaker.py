"""The breaker: opens when Fly answers nobody, lets a probe through now and then, closes at the first answer."""

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.fly.breaker import FIRST_PERIOD_SECONDS, MAX_PERIOD_SECONDS, OPENS_AFTER, WINDOW_SECONDS, Breaker


@dataclass
class World:
    """A breaker and the clock it goes by."""

    now: float = 1000.0
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker(lambda: self.now, random.Random(7))

    def lose(self, thing: str, seconds: float = 0.1) -> bool:
        """One call that is sent and has no answer after so long."""
        sent_at = self.breaker.sent()
        self.now += seconds
        return self.breaker.failed(thing, sent_at)

    def outage(self) -> None:
        for n in range(OPENS_AFTER):
            self.lose(f"m{n}")
        assert self.breaker.is_open


@pytest.fixture
def world() -> World:
    return World()


def test_it_opens_at_the_fifth_call_in_a_row_without_an_answer(world: World) -> None:
    assert [world.lose(f"m{n}") for n in range(OPENS_AFTER)] == [False, False, False, False, True]
    assert world.breaker.is_open
    assert 0.5 <= world.breaker.wait() <= FIRST_PERIOD_SECONDS


def test_one_thing_alone_never_opens_it(world: World) -> None:
    assert not any(world.lose("m1") for _ in range(50))


def test_an_answer_in_between_starts_the_count_again(world: World) -> None:
    for n in range(50):
        assert not world.lose(f"m{n}")
        if n % 4 == 3:
            world.breaker.answered()


def test_calls_that_hang_at_a_dead_host_do_not_open_it_when_fly_answered_others_meanwhile(world: World) -> None:
    sent = [(f"m{n}", world.breaker.sent()) for n in range(20)]
    world.now += 30
    world.breaker.answered()
    world.now += 30
    assert not any(world.breaker.failed(thing, at) for thing, at in sent)


def test_failures_far_apart_do_not_open_it(world: World) -> None:
    assert not any(world.lose(f"m{n}", WINDOW_SECONDS / (OPENS_AFTER - 2)) for n in range(50))


def test_while_open_there_is_one_probe_a_period_and_the_period_grows_to_half_a_minute(world: World) -> None:
    world.outage()
    waits = []
    for _ in range(8):
        waits.append(world.breaker.wait())
        world.now += waits[-1]
        assert world.breaker.wait() == 0.0
        world.breaker.sent()
        assert world.breaker.wait() > 0.0  # nobody else, though the probe has not come back yet
    for n, wait in enumerate(waits):
        period = min(2.0**n * FIRST_PERIOD_SECONDS, MAX_PERIOD_SECONDS)
        assert period / 2 <= wait <= period


def test_the_first_answer_closes_it_and_patience_starts_anew(world: World) -> None:
    world.outage()
    for _ in range(6):
        world.now += world.breaker.wait()
        world.lose("probe")
    world.breaker.answered()
    assert (world.breaker.is_open, world.breaker.wait()) == (False, 0.0)
    world.outage()
    assert world.breaker.wait() <= FIRST_PERIOD_SECONDS


# An event: seconds since the last, what happens, about which thing, and how long ago the failed call was sent.
EVENTS = st.lists(
    st.tuples(
        st.floats(0, 40), st.sampled_from(["failed", "failed", "failed", "answered"]), st.sampled_from("abc"),
        st.floats(0, 60),
    ),
    max_size=60,
)  # fmt: skip


@given(EVENTS)
def test_whatever_happens_it_is_open_only_after_enough_recent_failures_of_several_things(
    events: list[tuple[float, str, str, float]],
) -> None:
    world, answered_at = World(), float("-inf")
    since: list[tuple[float, str]] = []  # failures of calls that were sent after the last answer
    for seconds, what, thing, ago in events:
        world.now += seconds
        if what == "answered":
            world.breaker.answered()
            answered_at, since = world.now, []
            assert not world.breaker.is_open
            continue
        was_open = world.breaker.is_open
        if not was_open and world.now - ago >= answered_at:
            since.append((world.now, thing))
        opened = world.breaker.failed(thing, world.now - ago)
        last = [t for at, t in since[-OPENS_AFTER:] if world.now - at <= WINDOW_SECONDS]
        assert opened == (not was_open and len(last) == OPENS_AFTER and len(set(last)) > 1 and since[-1][0] == world.now
                          and world.now - ago >= answered_at)  # fmt: skip
        assert world.breaker.is_open == (was_open or opened)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=300))
def test_however_many_want_to_call_only_a_few_do(gaps: list[float]) -> None:
    world = World()
    world.outage()
    started, sent = world.now, []
    for gap in gaps:
        world.now += gap
        if world.breaker.wait() == 0.0:
            sent.append(world.now)
            world.breaker.sent()
    for n, (one, other) in enumerate(itertools.pairwise(sent)):
        assert other - one >= min(2.0 ** (n + 1), MAX_PERIOD_SECONDS) / 2
    assert len(sent) <= 6 + (world.now - started) / (MAX_PERIOD_SECONDS / 2)
