"""Events: a few for each object, never in anybody's way. What an API server says to them is seen against a real one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.kube.client import Kube
from roost.kube.cluster import Cluster
from roost.kube.events import Recorder
from roost.telemetry.metrics import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Nowhere:
    """A recorder whose API server is away; it counts what was tried."""

    def __init__(self, kube: Kube, metrics: Metrics) -> None:
        self.clock, self._metrics = Clock(), metrics
        self.recorder = Recorder(kube, self.clock, "test")

    async def tried_after(self, times: int, uid: str = "u") -> int:
        before = self._tried()
        for _ in range(times):
            about = {"kind": "Agent", "namespace": "n", "name": "ada", "uid": uid}
            self.recorder.record(about, "Normal", "Running", "Reconcile", "it runs")
        await self.recorder.flush()
        return self._tried() - before

    def _tried(self) -> int:
        labels = {"code": "<error>", "method": "POST"}
        return int(self._metrics.registry.get_sample_value("rest_client_requests_total", labels) or 0)


@pytest.fixture
async def nowhere():
    metrics = Metrics()
    async with Kube(Cluster("http://127.0.0.1:9", None), metrics) as kube:  # the discard port: nobody listens
        yield Nowhere(kube, metrics)


async def test_an_event_that_can_not_be_posted_is_lost_without_a_word_to_the_caller(nowhere: Nowhere) -> None:
    assert await nowhere.tried_after(1) == 1


async def test_each_object_has_ten_events_and_then_one_a_minute(nowhere: Nowhere) -> None:
    assert await nowhere.tried_after(30) == 10
    nowhere.clock.now += 59
    assert await nowhere.tried_after(5) == 0
    nowhere.clock.now += 1
    assert await nowhere.tried_after(5) == 1
    nowhere.clock.now += 3600
    assert await nowhere.tried_after(30) == 10


async def test_one_noisy_object_takes_nothing_from_another(nowhere: Nowhere) -> None:
    await nowhere.tried_after(30, "noisy")
    assert await nowhere.tried_after(3, "quiet") == 3


def test_what_it_keeps_in_mind_does_not_grow_with_every_object_there_ever_was() -> None:
    clock = Clock()
    recorder = Recorder(Kube(Cluster("http://127.0.0.1:9", None), Metrics()), clock, "test")
    for n in range(20_000):
        clock.now += 61  # by then the bucket of the one before is full again
        assert recorder._allowed(f"u{n}")
    assert len(recorder._buckets) <= 4096


def test_among_many_thousand_objects_a_noisy_one_is_still_held_back() -> None:
    recorder = Recorder(Kube(Cluster("http://127.0.0.1:9", None), Metrics()), Clock(), "test")
    for n in range(20_000):
        recorder._allowed(f"u{n}")
    for uid in ("u0", "u19999", "another"):
        allowed = sum(recorder._allowed(uid) for _ in range(30))
        assert allowed == (10 if uid == "another" else 9)


@given(st.lists(st.floats(0, 500), max_size=60))
def test_no_object_ever_has_more_than_its_burst_and_its_rate(pauses: list[float]) -> None:
    clock = Clock()
    recorder = Recorder(Kube(Cluster("http://127.0.0.1:9", None), Metrics()), clock, "test")
    allowed = 0
    for pause in pauses:
        clock.now += pause
        allowed += recorder._allowed("u")
    assert allowed <= 10 + clock.now / 60
