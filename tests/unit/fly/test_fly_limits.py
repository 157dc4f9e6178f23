"""Token buckets: the documented limits, in the order of asking, with bounded waits and bounded memory."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.fly.limits import COMMON, DELETE_APP, GET_MACHINE, Bucket, Limit, Limits, WaitTooLong

FOREVER = 1e9
ONE = Limit(1.0, 3)


def turns(bucket: Bucket, now: float, count: int) -> list[float]:
    return [round(bucket.reserve(now, FOREVER).at(), 3) for _ in range(count)]


def test_a_burst_then_the_rate() -> None:
    assert turns(Bucket(ONE), 100.0, 6) == [100, 100, 100, 101, 102, 103]
    assert turns(Bucket(Limit(5.0, 10)), 0.0, 12) == [0] * 10 + [0.2, 0.4]


def test_it_fills_up_again_but_never_more_than_a_burst() -> None:
    bucket = Bucket(ONE)
    turns(bucket, 0.0, 3)
    assert turns(bucket, 2.0, 3) == [2, 2, 3]
    assert turns(bucket, 1000.0, 4) == [1000, 1000, 1000, 1001]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.0, 0.3, 1.0]), st.floats(0, 0.1)), max_size=80))
@pytest.mark.parametrize(
    ("ours", "per_second", "burst"),
    [(COMMON, 1.0, 3.0), (GET_MACHINE, 5.0, 10.0), (DELETE_APP, 100 / 60, 100.0)],
    ids=["common", "get_machine", "delete_app"],
)
def test_fly_never_has_to_refuse(
    ours: Limit, per_second: float, burst: float, calls: list[tuple[float, float]]
) -> None:
    """The documented limits as a token bucket at Fly's end, met by our calls after up to 0.1 s on their way."""
    bucket, now, arrivals = Bucket(ours), 0.0, []
    for gap, latency in calls:
        now += gap
        arrivals.append(bucket.reserve(now, FOREVER).at() + latency)

    tokens, last = burst, 0.0
    for arrival in sorted(arrivals):
        tokens = min(burst, tokens + (arrival - last) * per_second) - 1
        last = arrival
        assert tokens >= -1e-9


@given(
    st.lists(st.floats(0, 3) | st.sampled_from([0.0, 0.0, 0.5]), max_size=60),
    st.sampled_from([ONE, GET_MACHINE, Limit(0.5, 1)]),
)
def test_no_window_ever_holds_more_than_burst_and_rate_allow(gaps: list[float], limit: Limit) -> None:
    bucket, now, times = Bucket(limit), 0.0, []
    for gap in gaps:
        now += gap
        times.append(bucket.reserve(now, FOREVER).at())
        assert times[-1] >= now

    assert times == sorted(times)
    for i, start in enumerate(times):
        for j in range(i, len(times)):
            assert j - i + 1 <= limit.burst + (times[j] - start) * limit.per_second + 1e-6


def test_a_turn_that_is_too_far_away_is_not_taken() -> None:
    bucket = Bucket(ONE)
    turns(bucket, 0.0, 5)
    with pytest.raises(WaitTooLong) as refused:
        bucket.reserve(0.0, 2.5)
    assert refused.value.seconds == 3.0
    assert turns(bucket, 0.0, 1) == [3.0]


def test_closing_puts_off_those_who_wait_and_those_who_come_in_their_order() -> None:
    bucket = Bucket(ONE)
    turns(bucket, 0.0, 3)
    waiting = [bucket.reserve(0.0, FOREVER) for _ in range(2)]
    bucket.close(0.5, 10.0)
    bucket.close(0.6, 9.0)  # another answer of the same burst says nothing new
    late = bucket.reserve(0.7, FOREVER)

    assert [turn.at() for turn in (*waiting, late)] == [11.0, 12.0, 13.0]


def test_an_idle_bucket_that_is_closed_gives_no_burst_when_it_opens() -> None:
    bucket = Bucket(ONE)
    bucket.close(0.0, 5.0)
    assert turns(bucket, 1.0, 3) == [5, 6, 7]


def loop_clock() -> Callable[[], float]:
    return asyncio.get_running_loop().time


@pytest.mark.looptime
async def test_callers_are_served_in_the_order_of_asking() -> None:
    limits, clock, served = Limits(loop_clock()), loop_clock(), []

    async def call(name: int) -> None:
        waited = await limits.take("stop", ONE, 60.0)
        served.append((name, round(clock(), 3), round(waited, 3)))

    await asyncio.gather(*(call(n) for n in range(6)))

    assert served == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 1, 1), (4, 2, 2), (5, 3, 3)]


@pytest.mark.looptime
async def test_one_machine_does_not_hold_up_another() -> None:
    limits, clock = Limits(loop_clock()), loop_clock()
    for _ in range(3):
        await limits.take(("stop", "one"), ONE, 60.0)
    await limits.take(("stop", "two"), ONE, 60.0)
    await limits.take(("start", "one"), ONE, 60.0)
    assert clock() == 0.0


@pytest.mark.looptime
async def test_a_bucket_closed_during_the_wait_makes_it_longer_or_ends_it() -> None:
    limits, clock = Limits(loop_clock()), loop_clock()
    for _ in range(3):
        await limits.take("x", ONE, 10.0)
    patient = asyncio.create_task(limits.take("x", ONE, 10.0))
    hasty = asyncio.create_task(limits.take("x", ONE, 6.0))
    await asyncio.sleep(0.5)
    limits.close("x", ONE, 5.0)

    assert await patient == 6.0
    with pytest.raises(WaitTooLong):
        await hasty
    assert clock() <= 6.0


@pytest.mark.looptime
async def test_a_cancelled_caller_holds_nobody_up_for_long() -> None:
    limits, clock = Limits(loop_clock()), loop_clock()
    for _ in range(3):
        await limits.take("x", ONE, 10.0)
    cancelled = asyncio.create_task(limits.take("x", ONE, 10.0))
    await asyncio.sleep(0)
    cancelled.cancel()
    await limits.take("x", ONE, 10.0)
    assert clock() == 2.0


def test_memory_follows_the_calls_of_the_last_seconds_not_the_number_of_machines() -> None:
    now = [0.0]
    limits = Limits(lambda: now[0])

    async def many() -> None:
        for n in range(50_000):
            now[0] += 0.001
            await limits.take(("get", n), ONE, 0.0)

    asyncio.run(many())

    assert len(limits) <= 2 * 1100  # a thousand were used in the last second


def test_a_bucket_in_use_is_not_dropped() -> None:
    now = [0.0]
    limits = Limits(lambda: now[0])

    async def many() -> None:
        limits.close("hot", ONE, 1e6)
        for n in range(5_000):
            now[0] += 2.0
            await limits.take(n, ONE, 0.0)
        with pytest.raises(WaitTooLong):
            await limits.take("hot", ONE, 0.0)

    asyncio.run(many())
