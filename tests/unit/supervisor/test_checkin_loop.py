"""Check-ins on virtual time: when they are made, what they say, and what becomes of those that fail."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from image.endpoint import DID, TOKEN, bundle
from roost_agent import __version__, host
from roost_agent.checkin import CheckinLoop, built_from
from roost_agent.contract import Checkin, ConfigBundle, LastExit, ProcessState, RuntimeState
from roost_agent.endpoint import Busy, CallFailed, NotAllowed, Superseded, Unreachable
from roost_agent.host import Traffic
from roost_agent.settings import read
from roost_agent.vitals import Vitals

pytestmark = pytest.mark.looptime

SEED = json.loads((Path(__file__).parents[1] / "contract/data/controller-checkin.json").read_text())
GATEWAY = "gateway-token-of-the-agent"
MIDDLE = 0.5
"""With this luck an interval is as long as it says."""


def in_force(**telemetry: int) -> ConfigBundle:
    """A bundle with a gateway token and a pace."""
    whole = bundle(secretEnv={"OPENCLAW_GATEWAY_TOKEN": GATEWAY}, telemetry=telemetry)
    return ConfigBundle.read(json.dumps(whole))


class Operator:
    """Takes check-ins; a test scripts which fail, and how long they take."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, Checkin, str]] = []
        self.fails: list[CallFailed | Superseded | None] = []
        self.takes = 0.0
        self.open = self.most_open = 0

    async def checkin(self, body: Checkin, gateway_token: str) -> None:
        body.write()
        self.heard.append((asyncio.get_running_loop().time(), body, gateway_token))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.open -= 1
        if self.fails and (error := self.fails.pop(0)) is not None:
            raise error

    @property
    def times(self) -> list[float]:
        return [round(at, 3) for at, _, _ in self.heard]

    @property
    def last(self) -> Checkin:
        return self.heard[-1][1]


@dataclass
class Runtime:
    """What can be seen of a runtime's process."""

    restarts: int = 0
    state_word: ProcessState = ProcessState.RUNNING
    last_exit: LastExit | None = None
    ready: bool = True

    @property
    def state(self) -> RuntimeState:
        return RuntimeState(state=self.state_word, restarts=self.restarts, last_exit=self.last_exit)


@dataclass
class World:
    """One supervisor whose host, runtime and operator are scripted."""

    operator: Operator
    vitals: Vitals
    runtime: Runtime
    task: asyncio.Task[None]
    bundle: ConfigBundle | None
    traffic: Traffic | None
    version: Any = ("2026.9.6", "eb377ac")
    luck: float = MIDDLE

    def applied(self, new: ConfigBundle | None) -> None:
        self.bundle = new
        self.vitals.changed()


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    environ = {"AGENT_DID": DID, "AGENTSHIELD_API_URL": "https://roost.example.com", "AS_HEARTBEAT_TOKEN": TOKEN}
    environ |= {"DATA_DIR": str(tmp_path), "FLY_MACHINE_ID": "m-1", "FLY_REGION": "iad"}

    @asynccontextmanager
    async def made(first: ConfigBundle | None) -> AsyncIterator[World]:
        loop = asyncio.get_running_loop()
        vitals = Vitals(settings := read(environ), began=0, clock=loop.time)
        idle = loop.create_future()
        world = World(Operator(), vitals, Runtime(), idle, first, Traffic(1000, 2000))
        vitals.runtime = world.runtime
        monkeypatch.setattr(host, "traffic", lambda: world.traffic)
        monkeypatch.setattr(host, "load5", lambda: 0.31)

        async def probe() -> Any:
            if isinstance(world.version, Exception):
                raise world.version
            return world.version

        operator: Any = world.operator
        made = CheckinLoop(
            settings,
            operator,
            vitals,
            bundle=lambda: world.bundle,
            probe=probe,
            began=0,
            clock=loop.time,
            random=lambda: world.luck,
        )
        world.task = asyncio.create_task(made.run())
        yield world
        world.task.cancel()
        await asyncio.gather(world.task, return_exceptions=True)

    return made


# --- When -------------------------------------------------------------------------------------------------------------


async def test_the_first_comes_after_two_minutes_and_then_one_every_five(supervisor: Any) -> None:
    async with supervisor(in_force()) as world:
        await asyncio.sleep(119)
        assert not world.operator.heard
        await asyncio.sleep(700)
        assert world.operator.times == [120, 420, 720]


@pytest.mark.parametrize(("luck", "expected"), [(0.0, 270), (0.999999, 330)])
async def test_intervals_differ_by_a_tenth_at_most(supervisor: Any, luck: float, expected: float) -> None:
    async with supervisor(in_force()) as world:
        world.luck = luck
        await asyncio.sleep(500)
        first, second = world.operator.times
        assert (first, second - first) == (120, pytest.approx(expected, abs=0.01))


async def test_the_pace_is_the_bundles_and_another_counts_at_once(supervisor: Any) -> None:
    async with supervisor(in_force(initialDelaySeconds=10, intervalSeconds=86_400)) as world:
        await asyncio.sleep(100)
        assert world.operator.times == [10]
        # when: a new bundle asks for more, and the next would have been due long ago
        world.applied(in_force(initialDelaySeconds=10, intervalSeconds=60))
        await asyncio.sleep(70)
        assert world.operator.times == [10, 100, 160]
        # when: another asks for less, in the middle of a wait
        world.applied(in_force(initialDelaySeconds=10, intervalSeconds=1000))
        await asyncio.sleep(1000)
        assert world.operator.times == [10, 100, 160, 1160]


async def test_news_of_anything_else_brings_no_check_in(supervisor: Any) -> None:
    async with supervisor(in_force()) as world:
        for _ in range(600):
            await asyncio.sleep(1)
            world.vitals.changed()
        assert world.operator.times == [120, 420]


@pytest.mark.parametrize("gateway", [None, "", "two\nlines", "schlüssel"])
async def test_without_a_gateway_token_that_can_be_sent_there_is_none(supervisor: Any, gateway: str | None) -> None:
    secrets = {} if gateway is None else {"OPENCLAW_GATEWAY_TOKEN": gateway}
    without = ConfigBundle.read(json.dumps(bundle(secretEnv=secrets)))
    async with supervisor(None) as world:
        await asyncio.sleep(200)
        world.applied(without)
        await asyncio.sleep(1000)
        assert not world.operator.heard
        assert not world.task.done()
        # when: a bundle brings one, it goes with a check-in that was due
        world.applied(in_force())
        await asyncio.sleep(1)
        assert [(at, token) for at, _, token in world.operator.heard] == [(1200, GATEWAY)]


async def test_never_two_are_in_flight(supervisor: Any) -> None:
    async with supervisor(in_force(initialDelaySeconds=0, intervalSeconds=1)) as world:
        world.operator.takes = 9.5
        for _ in range(100):
            await asyncio.sleep(1)
            world.vitals.changed()
        assert world.operator.most_open == 1
        assert 10 <= len(world.operator.heard) <= 11


# --- What it says -----------------------------------------------------------------------------------------------------


async def test_every_field_comes_from_where_it_is_true(supervisor: Any, tmp_path: Path) -> None:
    async with supervisor(in_force()) as world:
        world.runtime.restarts = 7
        world.runtime.last_exit = LastExit(signal=9, at="2026-11-21T10:00:00Z")
        world.traffic = Traffic(1500, 2600)
        await asyncio.sleep(121)
        _, body, token = world.operator.heard[0]
    disk = host.disk(tmp_path)
    assert disk is not None
    said = json.loads(body.write())
    assert said.pop("diskUsedBytes") == pytest.approx(disk.used_bytes, rel=0.1)
    assert said == {
        "sandboxId": DID,
        "machineId": "m-1",
        "controllerVersion": __version__,
        "controllerCommit": "unknown",
        "openclawVersion": "2026.9.6",
        "openclawCommit": "eb377ac",
        "supervisorState": "running",
        "totalRestarts": 7,
        "restartsSinceLastCheckin": 7,
        "uptimeSeconds": 120,
        "loadAvg5m": 0.31,
        "bandwidthBytesIn": 500,
        "bandwidthBytesOut": 600,
        "lastExitReason": "signal:SIGKILL",
        "diskTotalBytes": disk.total_bytes,
        "productTelemetry": None,
        "failedCheckins": 0,
        "region": "iad",
    }
    assert set(said) >= set(SEED["valid_body"])
    assert token == GATEWAY


@pytest.mark.parametrize("version", [None, OSError("gone"), TimeoutError(), ("", ""), ("2026 9", "x" * 65)])
async def test_what_is_not_known_of_the_runtime_is_left_open(supervisor: Any, version: Any) -> None:
    """As of a Command, which has no version of ours to ask for."""
    async with supervisor(in_force()) as world:
        world.version = version
        await asyncio.sleep(121)
        assert (world.operator.last.openclaw_version, world.operator.last.openclaw_commit) == (None, None)


@pytest.mark.parametrize("state", set(ProcessState) - {ProcessState.UNKNOWN})
async def test_the_state_is_the_processs_in_the_seeds_words(supervisor: Any, state: ProcessState) -> None:
    async with supervisor(in_force()) as world:
        world.runtime.state_word = state
        await asyncio.sleep(121)
        assert world.operator.last.supervisor_state == state.value
        assert state.value in {"stopped", "starting", "running", "stopping", "crashed"}


async def test_a_supervisor_that_ends_says_so_and_one_without_a_runtime_too(supervisor: Any) -> None:
    async with supervisor(in_force(intervalSeconds=10)) as world:
        world.vitals.runtime = None
        await asyncio.sleep(121)
        assert (world.operator.last.supervisor_state, world.operator.last.total_restarts) == ("stopped", 0)
        world.vitals.stopping = True
        await asyncio.sleep(10)
        assert world.operator.last.supervisor_state == "shutting_down"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (None, ""),
        (LastExit(at="2026-11-21T10:00:00Z"), ""),
        (LastExit(code=137, at="2026-11-21T10:00:00Z"), "code:137"),
        (LastExit(code=0, at="2026-11-21T10:00:00Z"), "code:0"),
        (LastExit(signal=15, at="2026-11-21T10:00:00Z"), "signal:SIGTERM"),
        (LastExit(signal=33, at="2026-11-21T10:00:00Z"), "signal:33"),
    ],
)
async def test_how_the_runtime_ended_last(supervisor: Any, last: LastExit | None, said: str) -> None:
    async with supervisor(in_force()) as world:
        world.runtime.last_exit = last
        await asyncio.sleep(121)
        assert world.operator.last.last_exit_reason == said


@pytest.mark.parametrize(
    ("text", "commit"),
    [
        ('{"version": "0.1.0", "commit": "0f1e2d3"}', "0f1e2d3"),
        (json.dumps({"commit": "a" * 40}), "a" * 40),
        (None, "unknown"),
        ("", "unknown"),
        ("[]", "unknown"),
        ('"commit"', "unknown"),
        ("{}", "unknown"),
        ('{"commit": null}', "unknown"),
        ('{"commit": ""}', "unknown"),
        ('{"commit": "two words"}', "unknown"),
        (json.dumps({"commit": "a" * 65}), "unknown"),
    ],
)
def test_the_commit_is_what_the_build_says(tmp_path: Path, text: str | None, commit: str) -> None:
    if text is not None:
        (tmp_path / "build.json").write_text(text)
    assert built_from(tmp_path / "build.json") == commit


# --- What becomes of it -----------------------------------------------------------------------------------------------


async def test_counters_move_only_when_it_was_taken(supervisor: Any) -> None:
    async with supervisor(in_force(initialDelaySeconds=0, intervalSeconds=60)) as world:
        world.operator.fails = [None, Unreachable("no answer (TimeoutError)"), NotAllowed("refused with 403"), None]
        told, failed = [], []
        seen = [(0, 1100, 2000), (2, 1200, 2010), (2, 1500, 2020), (3, 1600, 2020), (3, 1601, 2020)]
        for restarts, received, sent in seen:
            world.runtime.restarts, world.traffic = restarts, Traffic(received, sent)
            await asyncio.sleep(60)
            said = world.operator.last
            told.append((said.restarts_since_last_checkin, said.bandwidth_bytes_in, said.bandwidth_bytes_out))
            failed.append(said.failed_checkins)
        # taken: since the start; two that fail and the one after them: since that first; then afresh
        assert told == [(0, 100, 0), (2, 100, 10), (2, 400, 20), (3, 500, 20), (0, 1, 0)]
        assert world.operator.last.total_restarts == 3
        assert failed == [0, 0, 1, 2, 0]


async def test_a_counter_that_began_anew_is_never_negative(supervisor: Any) -> None:
    async with supervisor(in_force(initialDelaySeconds=0, intervalSeconds=60)) as world:
        world.traffic = Traffic(10, 20)
        await asyncio.sleep(1)
        assert (world.operator.last.bandwidth_bytes_in, world.operator.last.bandwidth_bytes_out) == (10, 20)


async def test_traffic_that_can_not_be_told_once_is_not_told_twice(supervisor: Any) -> None:
    async with supervisor(in_force(initialDelaySeconds=0, intervalSeconds=60)) as world:
        world.traffic = None
        await asyncio.sleep(1)
        assert world.operator.last.bandwidth_bytes_in == 0
        world.traffic = Traffic(1500, 2000)
        await asyncio.sleep(60)
        assert world.operator.last.bandwidth_bytes_in == 500


async def test_the_operators_patience_counts_when_it_is_longer_than_the_interval(supervisor: Any) -> None:
    async with supervisor(in_force(initialDelaySeconds=0, intervalSeconds=30)) as world:
        world.operator.fails = [Busy("busy (503)", 100.0), Busy("busy (429)", 5.0)]
        await asyncio.sleep(165)
        assert world.operator.times == [0, 100, 130, 160]


async def test_failures_are_logged_when_they_begin_change_and_end(
    supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def warning(self, event: str, **given: Any) -> None:
            lines.append((event, given))

        info = warning

    monkeypatch.setattr("roost_agent.checkin._log", Log())
    async with supervisor(in_force(initialDelaySeconds=0, intervalSeconds=10)) as world:
        away, refused = Unreachable("no answer (TimeoutError)"), NotAllowed("refused with 403")
        world.operator.fails = [None, away, away, away, refused, refused, None, None]
        await asyncio.sleep(75)
    assert lines == [
        ("check-in not taken", {"why": "no answer (TimeoutError)"}),
        ("check-in not taken", {"why": "refused with 403"}),
        ("check-in taken again", {"failures": 5}),
    ]


async def test_a_machine_that_was_superseded_learns_it_here_too(supervisor: Any) -> None:
    async with supervisor(in_force()) as world:
        world.operator.fails = [Superseded("superseded by another machine")]
        await asyncio.wait({world.task}, timeout=200)
        assert isinstance(world.task.exception(), Superseded)


@pytest.mark.parametrize("seconds", [0, 60, 125, 300])
async def test_nothing_is_left_of_it_when_it_is_cancelled(supervisor: Any, seconds: float) -> None:
    """Before it began, before the first, during one, between two."""
    loop: Any = asyncio.get_running_loop()
    async with supervisor(in_force()) as world:
        world.operator.takes = 9
        await asyncio.sleep(seconds)
        world.task.cancel()
        await asyncio.wait({world.task})
        assert world.task.cancelled()
        assert world.operator.open == 0
        assert world.vitals._listeners == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not [timer for timer in loop._scheduled if not timer.cancelled()]
