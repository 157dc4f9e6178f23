"""The engine on virtual time: what runs, what comes back, what is cut short, what a stop does."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import structlog

from roost.engine.engine import GONE, Again, Engine, News
from roost.engine.queue import Lane
from roost.kube.client import Conflict, NotLeading, Unreachable
from roost.kube.records import Key
from roost.telemetry.metrics import Metrics

pytestmark = pytest.mark.looptime

Look = Callable[[Key, News], Awaitable[Again]]


def agent(name: str) -> Key:
    return Key("Agent", "default", name)


ADA, GRACE = agent("ada"), agent("grace")
SOON = Again(after=0.0)


def seconds() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def working(look: Look, *, in_flight: int = 64, metrics: Metrics | None = None) -> AsyncIterator[Engine]:
    """An engine that looks at Agents this way, stopped at the end."""
    engine = Engine({"Agent": look}, metrics or Metrics(), random.Random(3), in_flight=in_flight)
    running = asyncio.create_task(engine.run())
    try:
        yield engine
    except BaseException:
        running.cancel()
        await asyncio.wait({running}, timeout=1)  # a test that fails may have left looks inside for ever
        running.cancel()
        raise
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Diary:
    """Looks that write down when they were made; `wait` returns when there are so many."""

    def __init__(self, *answers: Again | Exception) -> None:
        self.entries: list[tuple[Key, float]] = []
        self._answers = list(answers)
        self._written = asyncio.Condition()

    async def __call__(self, key: Key, _news: News) -> Again:
        async with self._written:
            self.entries.append((key, seconds()))
            self._written.notify_all()
        answer = self._answers.pop(0) if self._answers else GONE
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait(self, count: int) -> None:
        async with self._written:
            await self._written.wait_for(lambda: len(self.entries) >= count)

    def times(self) -> list[float]:
        return [at for _, at in self.entries]


class Gate:
    """Looks that stay inside until they are let out; knows who is in."""

    def __init__(self) -> None:
        self.inside: list[Key] = []
        self.visits: list[Key] = []
        self.most = 0
        self._out: dict[Key, asyncio.Event] = {}
        self._moved = asyncio.Condition()

    async def __call__(self, key: Key, _news: News) -> Again:
        assert key not in self.inside, "two looks at one key at once"
        out = self._out[key] = asyncio.Event()
        await self._change(lambda: self.inside.append(key))
        self.visits.append(key)
        self.most = max(self.most, len(self.inside))
        try:
            await out.wait()
        finally:
            await self._change(lambda: self.inside.remove(key))
        return GONE

    async def _change(self, change: Callable[[], None]) -> None:
        async with self._moved:
            change()
            self._moved.notify_all()

    def let_out(self, key: Key) -> None:
        self._out[key].set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._moved:
            await self._moved.wait_for(condition)


# --- Coming back ----------------------------------------------------------------------------------------------------


async def test_a_settled_key_comes_back_at_its_time_with_a_tenth_of_jitter() -> None:
    diary = Diary(*[Again(after=100.0)] * 20)
    async with working(diary) as engine:
        engine.add(ADA)
        await diary.wait(21)
    gaps = [b - a for a, b in zip(diary.times(), diary.times()[1:], strict=False)]
    assert all(90 <= gap <= 110.01 for gap in gaps)
    assert len(set(gaps)) > 10


@pytest.mark.parametrize("error", [ValueError("nobody foresaw this"), Unreachable("PATCH /x", 503, "away")])
async def test_a_look_that_fails_comes_back_more_and_more_slowly(error: Exception) -> None:
    diary, metrics = Diary(*[error] * 4), Metrics()
    async with working(diary, metrics=metrics) as engine:
        with structlog.testing.capture_logs() as logs:
            engine.add(ADA)
            await diary.wait(5)
        assert not engine.queue.failures(ADA) or engine.queue.turns()
    gaps = [b - a for a, b in zip(diary.times(), diary.times()[1:], strict=False)]
    for n, gap in enumerate(gaps):
        assert 0.25 * 2**n <= gap <= 0.5 * 2**n + 0.01
    assert metrics.registry.get_sample_value("controller_runtime_reconcile_errors_total", {"controller": "Agent"}) == 4
    assert [entry["key"] for entry in logs] == [str(ADA)] * 4


async def test_a_look_that_asks_for_back_off_gets_it_and_a_success_resets_it() -> None:
    diary = Diary(Again(backoff=True), Again(backoff=True), Again(backoff=True), SOON, Again(backoff=True))
    async with working(diary) as engine:
        engine.add(ADA)
        await diary.wait(6)
    gaps = [b - a for a, b in zip(diary.times(), diary.times()[1:], strict=False)]
    assert 1.0 <= gaps[2] <= 2.01
    assert 0.25 <= gaps[4] <= 0.51


async def test_a_conflict_is_news_and_no_error() -> None:
    """Somebody else was faster: looked at again at once, and with growing pauses when it happens again and again."""
    conflict, metrics = Conflict("PATCH /x", 409, "moved on"), Metrics()
    diary = Diary(conflict, conflict, conflict)
    async with working(diary, metrics=metrics) as engine:
        with structlog.testing.capture_logs() as logs:
            engine.add(ADA)
            await diary.wait(4)
    gaps = [b - a for a, b in zip(diary.times(), diary.times()[1:], strict=False)]
    assert gaps[0] < 0.01
    assert 0.5 <= gaps[1] <= 1.01
    assert 1.0 <= gaps[2] <= 2.01
    assert logs == []
    assert not metrics.registry.get_sample_value("controller_runtime_reconcile_errors_total", {"controller": "Agent"})


async def test_what_the_fence_keeps_back_is_no_error_and_not_forgotten() -> None:
    metrics = Metrics()
    diary = Diary(NotLeading("the Lease is too old"))
    async with working(diary, metrics=metrics) as engine:
        engine.add(ADA)
        await diary.wait(2)
    assert not metrics.registry.get_sample_value("controller_runtime_reconcile_errors_total", {"controller": "Agent"})


@pytest.mark.parametrize(("after", "expected"), [(0.1, 0.1), (60.0, 0.5)])
async def test_a_back_off_with_a_time_takes_whichever_is_sooner(after: float, expected: float) -> None:
    diary = Diary(Again(after=after, backoff=True), GONE)
    async with working(diary) as engine:
        engine.add(ADA)
        await diary.wait(2)
    assert expected / 2 <= diary.times()[1] <= expected + 0.01


async def test_news_bring_a_key_back_before_its_alarm() -> None:
    diary = Diary(Again(after=600.0), GONE)
    async with working(diary) as engine:
        engine.add(ADA)
        await diary.wait(1)
        engine.add(ADA, Lane.USER)
        await diary.wait(2)
    assert diary.times()[1] < 0.01


async def test_what_is_gone_is_not_looked_at_again() -> None:
    diary = Diary(Again(backoff=True), GONE)
    async with working(diary) as engine:
        engine.add(ADA)
        await diary.wait(2)
        engine.add(GRACE)
        await diary.wait(3)
        assert not engine.queue.holds(ADA)
        assert engine.queue.failures(ADA) == 0
        assert engine.queue.next_alarm() is None


async def test_an_alarm_rings_even_while_every_place_is_taken() -> None:
    """A full engine does not sleep through its alarms: the first free place is for what is due."""
    gate = Gate()
    async with working(gate, in_flight=1) as engine:
        engine.add(ADA)
        await gate.until(lambda: gate.inside == [ADA])
        engine.queue.alarm(GRACE, seconds() + 5)
        asyncio.get_running_loop().call_later(60, gate.let_out, ADA)
        await gate.until(lambda: gate.inside == [GRACE])
        assert 60 <= seconds() < 60.1
        gate.let_out(GRACE)


# --- How many at once -----------------------------------------------------------------------------------------------


async def test_no_more_looks_at_once_than_allowed_and_all_get_their_turn() -> None:
    gate, keys = Gate(), [agent(f"a-{n}") for n in range(10)]
    async with working(gate, in_flight=3) as engine:
        for key in keys:
            engine.add(key)
        for key in keys:
            await gate.until(lambda key=key: key in gate.inside)
            gate.let_out(key)
        await gate.until(lambda: not gate.inside)
    assert gate.most == 3
    assert gate.visits == keys


async def test_a_person_does_not_wait_behind_a_thousand_listings() -> None:
    gate = Gate()
    async with working(gate, in_flight=1) as engine:
        for n in range(1000):
            engine.add(agent(f"a-{n}"))
        await gate.until(lambda: len(gate.inside) == 1)
        engine.add(ADA, Lane.USER)
        gate.let_out(agent("a-0"))
        await gate.until(lambda: gate.inside == [ADA])
        gate.let_out(ADA)


async def test_news_during_a_look_give_one_more_look_and_never_two_at_once() -> None:
    gate = Gate()
    async with working(gate) as engine:
        engine.add(ADA)
        await gate.until(lambda: gate.inside == [ADA])
        for _ in range(5):
            engine.add(ADA)
        gate.let_out(ADA)
        await gate.until(lambda: len(gate.visits) == 2)
        gate.let_out(ADA)
        await gate.until(lambda: not gate.inside)
        engine.add(GRACE)
        await gate.until(lambda: gate.inside == [GRACE])
        gate.let_out(GRACE)
    assert gate.visits == [ADA, ADA, GRACE]


# --- Stopping -------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_in_flight_end_and_starts_nothing_new() -> None:
    gate = Gate()
    engine = Engine({"Agent": gate}, Metrics(), random.Random(3), in_flight=1)
    running = asyncio.create_task(engine.run())
    engine.add(ADA)
    engine.add(GRACE)
    await gate.until(lambda: gate.inside == [ADA])
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=60)
    assert not done, "the stop did not wait for the look in flight"
    gate.let_out(ADA)
    done, _ = await asyncio.wait({running}, timeout=60)
    assert done
    assert gate.visits == [ADA]
    assert not gate.inside


async def test_a_stop_ends_mere_waits_at_once_and_tells_the_looks_that_it_is_the_last_call() -> None:
    waiter, last_calls = Waiter(lasts=600.0), []

    async def look(key: Key, news: News) -> Again:
        last_calls.append(news.last_call)
        again = await waiter(key, news)
        last_calls.append(news.last_call)
        return again

    engine = Engine({"Agent": look}, Metrics(), random.Random(3))
    running = asyncio.create_task(engine.run())
    engine.add(ADA)
    asyncio.get_running_loop().call_later(5, running.cancel)
    await asyncio.wait({running}, timeout=60)
    assert [(answer, round(at)) for answer, at in waiter.answers] == [(None, 5)]
    assert last_calls == [False, True]
    assert waiter.cancelled == 1


# --- Waits that news cut short --------------------------------------------------------------------------------------


class Waiter:
    """A look that waits for something at Fly, the way a wait for a machine does."""

    def __init__(self, lasts: float, after: float = 1.0) -> None:
        self.lasts, self.after = lasts, after
        self.answers: list[tuple[str | None, float]] = []
        self.told: list[float] = []
        self.cancelled = 0
        self.done = asyncio.Event()

    async def __call__(self, _key: Key, news: News) -> Again:
        answer = await news.cut_short(self._call(), meanwhile=self._tell, after=self.after)
        self.answers.append((answer, seconds()))
        self.done.set()
        return GONE

    async def _call(self) -> str:
        try:
            await asyncio.get_running_loop().create_future() if self.lasts < 0 else await asyncio.sleep(self.lasts)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "started"

    async def _tell(self) -> None:
        self.told.append(seconds())


async def test_a_wait_that_ends_by_itself_gives_its_answer_and_tells_nobody_when_it_was_quick() -> None:
    waiter = Waiter(lasts=0.5)
    async with working(waiter) as engine:
        engine.add(ADA)
        await waiter.done.wait()
    assert [answer for answer, _ in waiter.answers] == ["started"]
    assert waiter.told == []
    assert waiter.cancelled == 0


async def test_a_long_wait_tells_once_meanwhile() -> None:
    waiter = Waiter(lasts=30.0)
    async with working(waiter) as engine:
        engine.add(ADA)
        await waiter.done.wait()
    assert [answer for answer, _ in waiter.answers] == ["started"]
    assert [round(at) for at in waiter.told] == [1]


@pytest.mark.parametrize("arrives_after", [0.5, 20.0])
async def test_news_cut_a_wait_short_and_its_call_is_cancelled(arrives_after: float) -> None:
    waiter = Waiter(lasts=60.0)
    async with working(waiter) as engine:
        engine.add(ADA)
        asyncio.get_running_loop().call_later(arrives_after, engine.add, ADA, Lane.USER)
        await waiter.done.wait()
        answer, at = waiter.answers[0]
        assert answer is None
        assert arrives_after <= at < arrives_after + 0.1
        assert waiter.cancelled == 1
        assert len(waiter.told) == (1 if arrives_after > 1 else 0)


async def test_a_wait_that_is_cut_short_is_followed_by_a_look_of_its_own() -> None:
    waiter = Waiter(lasts=60.0)
    async with working(waiter) as engine:
        engine.add(ADA)
        asyncio.get_running_loop().call_later(1.5, engine.add, ADA, Lane.USER)
        await waiter.done.wait()
        waiter.done.clear()
        await waiter.done.wait()
    assert [answer for answer, _ in waiter.answers] == [None, "started"]


async def test_housekeeping_cuts_no_wait_short_and_gets_its_look_afterwards() -> None:
    waiter = Waiter(lasts=60.0)
    async with working(waiter) as engine:
        engine.add(ADA)
        asyncio.get_running_loop().call_later(1.5, engine.add, ADA, Lane.BACKGROUND)
        await waiter.done.wait()
        waiter.done.clear()
        await waiter.done.wait()
    assert [(answer, round(at)) for answer, at in waiter.answers] == [("started", 60), ("started", 120)]


async def test_an_error_of_the_waited_for_call_is_the_looks_own() -> None:
    raised: list[str] = []

    async def broken() -> None:
        raise ValueError("Fly says no")

    async def nothing() -> None:
        return None

    over = asyncio.Event()

    async def look(_key: Key, news: News) -> Again:
        try:
            await news.cut_short(broken(), meanwhile=nothing, after=1.0)
        except ValueError as error:
            raised.append(str(error))
        over.set()
        return GONE

    async with working(look) as engine:
        engine.add(ADA)
        await over.wait()
    assert raised == ["Fly says no"]


async def test_a_cut_or_finished_wait_leaves_no_task_behind() -> None:
    waiter = Waiter(lasts=60.0)
    before = len(asyncio.all_tasks())
    async with working(waiter) as engine:
        engine.add(ADA)
        asyncio.get_running_loop().call_later(1.5, engine.add, ADA, Lane.USER)
        await waiter.done.wait()
        waiter.done.clear()
        await waiter.done.wait()
    assert len(asyncio.all_tasks()) == before


# --- What it counts -------------------------------------------------------------------------------------------------


async def test_the_metrics_tell_depth_work_and_results() -> None:
    gate, metrics = Gate(), Metrics()

    def value(name: str, /, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    async with working(gate, in_flight=1, metrics=metrics) as engine:
        engine.add(ADA)
        engine.add(GRACE)
        await gate.until(lambda: gate.inside == [ADA])
        assert value("workqueue_depth", name="roost") == 1
        assert value("controller_runtime_active_workers", name="roost") == 1
        assert value("workqueue_adds_total", name="roost") == 2
        gate.let_out(ADA)
        await gate.until(lambda: gate.inside == [GRACE])
        gate.let_out(GRACE)
        await gate.until(lambda: not gate.inside)
    assert value("controller_runtime_reconcile_total", controller="Agent", result="success") == 2


async def test_a_stop_that_comes_at_the_very_moment_of_a_wake_up_is_a_stop() -> None:
    diary = Diary(Again(after=60))
    engine = Engine({"Agent": diary}, Metrics(), random.Random(3))
    running = asyncio.create_task(engine.run())
    engine.add(GRACE)
    await diary.wait(1)  # an alarm is set: the engine waits for that, too
    await asyncio.sleep(1)
    engine.add(ADA)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running}, timeout=1)
    assert running.cancelled()
