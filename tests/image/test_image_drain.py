"""For how long a machine says that it drains, decided here without a supervisor."""

from pathlib import Path

import pytest
from endpoint import DID, TOKEN

from roost_agent.activity import Signs
from roost_agent.contract import ProcessState, RuntimeState, Status
from roost_agent.settings import read
from roost_agent.vitals import Vitals


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Runtime:
    """A runtime as it is seen from outside."""

    ready = True
    state = RuntimeState(state=ProcessState.RUNNING, pid=7)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(tmp_path: Path, clock: Clock) -> Vitals:
    environment = {
        "AGENT_DID": DID,
        "AGENTSHIELD_API_URL": "http://127.0.0.1:1",
        "AS_HEARTBEAT_TOKEN": TOKEN,
        "DATA_DIR": str(tmp_path),
        "FLY_MACHINE_ID": "m-1",
    }
    made = Vitals(read(environment), began=0.0, clock=clock)
    made.runtime = Runtime()
    made.activity = Signs(active_sessions=2)
    return made


def test_it_drains_while_there_are_sessions(vitals: Vitals) -> None:
    assert vitals.status is Status.RUNNING
    vitals.drain("drain:1")
    assert vitals.status is Status.DRAINING
    vitals.activity = Signs(active_sessions=0)
    assert vitals.status is Status.RUNNING


def test_nothing_known_of_sessions_is_nothing_to_wait_for(vitals: Vitals) -> None:
    vitals.activity = Signs()
    vitals.drain("drain:1")
    assert vitals.status is Status.RUNNING


def test_it_does_not_drain_for_ever_however_often_it_is_told(vitals: Vitals, clock: Clock) -> None:
    for _ in range(19):
        vitals.drain("drain:1")
        assert vitals.status is Status.DRAINING
        clock.now += 30
    clock.now += 30
    assert vitals.status is Status.RUNNING
    vitals.drain("drain:1")
    assert vitals.status is Status.RUNNING
    vitals.drain("drain:2")  # another cause, another ten minutes
    assert vitals.status is Status.DRAINING


def test_what_is_wrong_is_told_beside_it(vitals: Vitals) -> None:
    vitals.drain("drain:1")
    vitals.trouble("volume", "No space left on device")
    beat = vitals.heartbeat()
    assert (beat.status, beat.degraded) == (Status.DRAINING, ["volume: No space left on device"])


def test_a_runtime_that_has_crashed_finishes_nothing(vitals: Vitals) -> None:
    vitals.drain("drain:1")
    assert vitals.runtime is not None
    vitals.runtime.state = RuntimeState(state=ProcessState.CRASHED)  # type: ignore[misc]
    assert vitals.status is Status.DEGRADED
    vitals.stopping = True
    assert vitals.status is Status.STOPPING
