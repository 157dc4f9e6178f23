"""When a gateway that ended unasked is started again: by its exit code, and by how its last lives went."""

from hypothesis import given
from hypothesis import strategies as st

from roost_agent.policy import LIVES, Life, Next, gateway


def middle() -> float:
    return 0.5


def test_a_gateway_that_refuses_its_configuration_is_not_started_again() -> None:
    verdict = gateway([Life(0, 0, 1), Life(10, 0, 78)], middle)
    assert verdict.seconds is None
    assert "78" in (verdict.trouble or "")


def test_one_that_asks_to_be_started_again_is_at_once_but_not_for_ever() -> None:
    lives = [Life(at, 5, 0) for at in range(5)]
    assert gateway(lives[:1], middle) == Next(0.0)
    assert gateway(lives, middle).seconds == 0.0
    looping = gateway([*lives, Life(6, 5, 0)], middle)
    assert (looping.seconds or 0) >= 16
    assert looping.trouble == "it ended 6 times in 10 minutes"


def test_ten_minutes_later_it_may_ask_again() -> None:
    lives = [Life(at, 5, 0) for at in range(6)]
    assert gateway([*lives, Life(620, 600, 0)], middle) == Next(0.0)


def test_the_first_crash_is_followed_by_a_start_within_a_second_and_further_ones_wait_longer() -> None:
    lives = [Life(at * 1000.0, 20, 1) for at in range(12)]
    waits = [gateway(lives[: n + 1], lambda: 0.0).seconds for n in range(12)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert gateway(lives[:1], lambda: 0.999).seconds > 0.79  # type: ignore[operator]
    assert gateway([*lives, Life(20_000, 600, 1)], lambda: 0.0) == Next(1)


def test_five_crashes_in_ten_minutes_are_told() -> None:
    assert gateway([Life(at, 20, 1) for at in range(0, 400, 100)], middle).trouble is None
    assert gateway([Life(at, 20, 1) for at in range(0, 500, 100)], middle).trouble == "it ended 5 times in 10 minutes"


def test_what_had_to_be_killed_is_spaced_so_that_no_third_kill_falls_into_five_minutes() -> None:
    first, second = Life(100, 700, None, killed=True), Life(160, 700, None, killed=True)
    assert gateway([first], lambda: 0.0) == Next(1)
    assert gateway([first, second], lambda: 0.0) == Next(240)
    assert gateway([first, Life(500, 700, None, killed=True)], lambda: 0.0) == Next(1)


ends = st.builds(
    Life,
    ended=st.floats(0, 10_000),
    healthy=st.floats(0, 2_000),
    code=st.sampled_from([None, 0, 1, 78, 137]),
    killed=st.booleans(),
)


@given(st.lists(ends, min_size=1, max_size=LIVES), st.floats(0, 1, exclude_max=True))
def test_whatever_its_lives_were_it_is_slowed_down_and_only_78_gives_it_up(lives: list[Life], luck: float) -> None:
    lives.sort(key=lambda life: life.ended)
    verdict = gateway(lives, lambda: luck)
    assert (verdict.seconds is None) == (lives[-1].code == 78)
    assert verdict.seconds is None or 0 <= verdict.seconds <= 300
