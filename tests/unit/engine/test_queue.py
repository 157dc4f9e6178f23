"""The work queue on a clock of its own: which key is next, and when it comes back."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roost.engine.queue import BACKOFF_BASE, BACKOFF_CAP, Lane, Turn, WorkQueue, backoff
from roost.kube.records import Key

ADA, GRACE, JOAN = (Key("Agent", "default", name) for name in ("ada", "grace", "joan"))
FLEET = Key("Fleet", "default", "support")


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock, random.Random(1))


def next_turn(queue: WorkQueue) -> Turn:
    popped = queue.pop()
    assert popped is not None
    return popped[0]


def test_a_key_added_twice_runs_once(queue: WorkQueue) -> None:
    queue.add(ADA, Lane.BACKGROUND)
    queue.add(ADA, Lane.BACKGROUND)
    queue.done(next_turn(queue))
    assert queue.pop() is None


def test_a_key_is_never_worked_on_twice_at_once(queue: WorkQueue) -> None:
    queue.add(ADA, Lane.USER)
    next_turn(queue)
    queue.add(ADA, Lane.USER)
    assert queue.pop() is None


def test_a_key_added_while_it_is_worked_on_runs_once_more_afterwards(queue: WorkQueue) -> None:
    queue.add(ADA, Lane.USER)
    turn = next_turn(queue)
    for _ in range(3):
        queue.add(ADA, Lane.BACKGROUND)
    queue.done(turn)
    queue.done(next_turn(queue))
    assert queue.pop() is None


def test_a_person_who_waits_is_told_to_the_turn_that_it_concerns_and_to_no_other(queue: WorkQueue) -> None:
    told = []
    for key in (ADA, GRACE):
        queue.add(key, Lane.USER)
        turn = next_turn(queue)
        turn.on_news = lambda key=key: told.append(key)
    queue.add(GRACE, Lane.USER)
    assert told == [GRACE]


def test_housekeeping_disturbs_no_turn_and_is_done_after_it(queue: WorkQueue) -> None:
    told = []
    queue.add(ADA, Lane.USER)
    turn = next_turn(queue)
    turn.on_news = lambda: told.append(ADA)
    queue.add(ADA, Lane.BACKGROUND)
    queue.done(turn)
    assert told == []
    assert next_turn(queue).key == ADA


def test_people_go_before_housekeeping(queue: WorkQueue) -> None:
    queue.add(ADA, Lane.BACKGROUND)
    queue.add(GRACE, Lane.BACKGROUND)
    queue.add(JOAN, Lane.USER)
    assert [next_turn(queue).key for _ in range(3)] == [JOAN, ADA, GRACE]


def test_a_persons_change_lifts_a_key_that_waits_as_housekeeping(queue: WorkQueue, clock: Clock) -> None:
    queue.add(ADA, Lane.BACKGROUND)
    queue.add(GRACE, Lane.BACKGROUND)
    clock.now += 3
    queue.add(GRACE, Lane.USER)
    popped = queue.pop()
    assert popped is not None
    turn, waited = popped
    assert (turn.key, waited) == (GRACE, 3)  # it is not punished for having been in line before
    queue.done(turn)
    queue.done(next_turn(queue))
    assert queue.pop() is None


def test_housekeeping_never_lowers_a_persons_change(queue: WorkQueue) -> None:
    queue.add(ADA, Lane.USER)
    queue.add(GRACE, Lane.USER)
    queue.add(ADA, Lane.BACKGROUND)
    assert [next_turn(queue).key for _ in range(2)] == [ADA, GRACE]


def test_the_lane_of_news_during_a_turn_is_kept(queue: WorkQueue) -> None:
    queue.add(ADA, Lane.BACKGROUND)
    turn = next_turn(queue)
    queue.add(ADA, Lane.USER)
    queue.add(ADA, Lane.BACKGROUND)
    queue.add(GRACE, Lane.BACKGROUND)
    queue.done(turn)
    assert next_turn(queue).key == ADA


def test_an_alarm_brings_a_key_back_at_its_time_and_not_before(queue: WorkQueue, clock: Clock) -> None:
    queue.alarm(ADA, clock.now + 60)
    assert queue.next_alarm() == clock.now + 60
    clock.now += 59.9
    assert queue.pop() is None
    clock.now += 0.1
    assert next_turn(queue).key == ADA
    assert queue.next_alarm() is None


@pytest.mark.parametrize("delays", [(10, 60), (60, 10)])
def test_the_earliest_alarm_wins_and_rings_once(queue: WorkQueue, clock: Clock, delays: tuple[int, int]) -> None:
    for delay in delays:
        queue.alarm(ADA, clock.now + delay)
    clock.now += 10
    queue.done(next_turn(queue))
    clock.now += 600
    assert queue.pop() is None


def test_a_look_makes_the_alarm_before_it_pointless(queue: WorkQueue, clock: Clock) -> None:
    queue.alarm(ADA, clock.now + 10)
    queue.add(ADA, Lane.USER)
    queue.done(next_turn(queue))
    clock.now += 10
    assert queue.pop() is None
    assert not queue.holds(ADA)


def test_an_alarm_that_rings_during_a_turn_is_answered_after_it(queue: WorkQueue, clock: Clock) -> None:
    queue.add(ADA, Lane.USER)
    turn = next_turn(queue)
    queue.alarm(ADA, clock.now + 5)
    clock.now += 5
    assert queue.pop() is None
    queue.done(turn)
    assert next_turn(queue).key == ADA


def test_what_is_gone_is_forgotten_with_alarm_and_back_off(queue: WorkQueue, clock: Clock) -> None:
    for _ in range(5):
        queue.failed(ADA)
    queue.forget(ADA)
    assert not queue.holds(ADA)
    assert queue.next_alarm() is None
    assert queue.failed(ADA) <= BACKOFF_BASE


def test_back_off_grows_from_half_a_second_to_five_minutes_and_starts_anew_after_a_success(
    queue: WorkQueue, clock: Clock
) -> None:
    delays = []
    for _ in range(14):
        delays.append(queue.failed(ADA))
        clock.now += delays[-1]
        queue.done(next_turn(queue))
    ceilings = [min(0.5 * 2**n, 300) for n in range(14)]
    assert ceilings[0] == 0.5
    assert ceilings[-1] == 300
    for delay, ceiling in zip(delays, ceilings, strict=True):
        assert ceiling / 2 <= delay <= ceiling
    queue.succeeded(ADA)
    assert queue.failed(ADA) <= 0.5


@given(failures=st.integers(0, 10**9), seed=st.integers())
def test_a_back_off_is_never_short_enough_to_spin_nor_longer_than_five_minutes(failures: int, seed: int) -> None:
    delay = backoff(failures, random.Random(seed))
    assert BACKOFF_BASE / 2 <= delay <= BACKOFF_CAP


def test_two_keys_that_fail_together_come_back_apart() -> None:
    rng = random.Random(7)
    assert len({backoff(3, rng) for _ in range(100)}) == 100


KEYS = st.sampled_from([ADA, GRACE, JOAN, FLEET])
LANES = st.sampled_from(list(Lane))


class AnyHistory(RuleBasedStateMachine):
    """The queue beside a model so plain that it can be read: two lists, three dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = WorkQueue(self.clock, random.Random(0))
        self.lines: tuple[list[Key], list[Key]] = ([], [])
        self.since: dict[Key, float] = {}
        self.turns: dict[Key, Turn] = {}
        self.dirty: dict[Key, Lane] = {}
        self.alarms: dict[Key, float] = {}
        self.failures: dict[Key, int] = {}
        self.news: dict[Key, int] = {}
        self.expected_news: dict[Key, int] = {}

    @rule(key=KEYS, lane=LANES)
    def something_happens(self, key: Key, lane: Lane) -> None:
        self.queue.add(key, lane)
        self._model_add(key, lane)

    @rule(key=KEYS, seconds=st.sampled_from([0, 1, 5, 60, 600]))
    def an_alarm_is_set(self, key: Key, seconds: int) -> None:
        self.queue.alarm(key, self.clock.now + seconds)
        self._model_alarm(key, self.clock.now + seconds)

    @rule(seconds=st.sampled_from([0.5, 1, 5, 60, 600]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def a_turn_begins(self) -> None:
        for key, at in sorted(self.alarms.items(), key=lambda item: (item[1], item[0])):
            if at <= self.clock.now:
                del self.alarms[key]
                self._model_add(key, Lane.BACKGROUND)
        line = next((line for line in self.lines if line), None)
        popped = self.queue.pop()
        if line is None:
            assert popped is None
            return
        key = line.pop(0)
        self.alarms.pop(key, None)
        assert popped is not None
        turn, waited = popped
        assert turn.key == key
        assert waited == self.clock.now - self.since.pop(key)
        assert key not in self.turns
        self.turns[key] = turn
        self.news[key] = self.expected_news[key] = 0
        turn.on_news = lambda: self.news.update({key: self.news[key] + 1})

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), ending=st.sampled_from(["settled", "failed", "gone"]))
    def a_turn_ends(self, data: st.DataObject, ending: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.turns)))
        turn = self.turns.pop(key)
        match ending:
            case "settled":
                self.queue.succeeded(key)
                self.failures.pop(key, None)
                self.queue.alarm(key, self.clock.now + 30)
                self._model_alarm(key, self.clock.now + 30)
            case "failed":
                ceiling = min(0.5 * 2 ** self.failures.get(key, 0), 300)
                delay = self.queue.failed(key)
                assert ceiling / 2 <= delay <= ceiling
                self.failures[key] = self.failures.get(key, 0) + 1
                self._model_alarm(key, self.clock.now + delay)
            case "gone":
                self.queue.forget(key)
                self.alarms.pop(key, None)
                self.failures.pop(key, None)
        self.queue.done(turn)
        assert self.news[key] == self.expected_news[key]
        if (lane := self.dirty.pop(key, None)) is not None:
            self._model_add(key, lane)

    @invariant()
    def nothing_waits_for_luck(self) -> None:
        for key in (ADA, GRACE, JOAN, FLEET):
            expected = key in self.turns or key in self.alarms or any(key in line for line in self.lines)
            assert self.queue.holds(key) == expected
            assert self.queue.failures(key) == self.failures.get(key, 0)

    @invariant()
    def the_next_alarm_is_the_earliest(self) -> None:
        assert self.queue.next_alarm() == min(self.alarms.values(), default=None)

    @invariant()
    def what_is_counted_is_there(self) -> None:
        assert self.queue.depth() == sum(map(len, self.lines))
        assert {t.key for t in self.queue.turns()} == set(self.turns)

    def _model_add(self, key: Key, lane: Lane) -> None:
        user, background = self.lines
        if key in self.turns:
            self.dirty[key] = min(lane, self.dirty.get(key, lane))
            self.expected_news[key] += lane is Lane.USER
        elif key in background and lane is Lane.USER:
            background.remove(key)
            user.append(key)
        elif key not in user and key not in background:
            self.lines[lane].append(key)
            self.since[key] = self.clock.now

    def _model_alarm(self, key: Key, at: float) -> None:
        self.alarms[key] = min(at, self.alarms.get(key, at))


AnyHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
