"""What the supervisor decides without touching anything: waits, pauses, settings, words."""

import asyncio
import itertools
import math
from pathlib import Path

import pytest
from endpoint import DID, TOKEN
from hypothesis import given
from hypothesis import strategies as st

import roost_agent
from roost_agent.backoff import CALLS, REFUSED, RESTARTS, Backoff
from roost_agent.contract import Command, HeartbeatAnswer
from roost_agent.endpoint import Busy, NotAllowed, NotUnderstood, Superseded, Unreachable, pause, raise_for
from roost_agent.heartbeat import gap
from roost_agent.policy import Life, Next, steady
from roost_agent.readiness import follow
from roost_agent.settings import BadEnvironment, read
from roost_agent.vitals import Vitals


def test_the_waits_between_starts() -> None:
    assert [RESTARTS.seconds(n) for n in range(1, 12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert RESTARTS.seconds(10**9) == 300


def test_half_a_minute_of_health_clears_the_record() -> None:
    ill, well = Life(0, 29.9, 1), Life(0, 30, 1)
    assert steady([ill] * 8, lambda: 0.5) == Next(128)
    assert steady([ill] * 7 + [well], lambda: 0.5) == Next(1)
    assert steady([well, ill], lambda: 0.5) == Next(2)


@given(st.floats(0.01, 10), st.floats(10, 1000), st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_the_wait(start: float, cap: float, attempt: int, luck: float) -> None:
    policy = Backoff(start, cap)
    assert 0 <= policy.jittered(attempt, lambda: luck) <= policy.seconds(attempt) <= cap
    assert policy.seconds(attempt) <= policy.seconds(attempt + 1)


@pytest.mark.parametrize(
    ("status", "retry_after", "meaning"),
    [
        (401, None, NotAllowed),
        (403, None, NotAllowed),
        (400, None, NotUnderstood),
        (413, None, NotUnderstood),
        (409, None, Superseded),
        (429, "7", Busy),
        (503, "7", Busy),
        (500, None, Unreachable),
        (404, None, Unreachable),
        (302, None, Unreachable),
        (204, None, Unreachable),
    ],
)
def test_what_each_status_means(status: int, retry_after: str | None, meaning: type[Exception]) -> None:
    with pytest.raises(meaning, match=str(status) if meaning is not Superseded else "superseded"):
        raise_for(status, retry_after)
    raise_for(200, None)
    raise_for(304, None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0", 1), ("999999", 300), (None, 5), ("Sat, 21 Nov 2026 10:00:00 GMT", 5), ("²", 5)],
)
def test_how_retry_after_is_read(header: str | None, seconds: float) -> None:
    with pytest.raises(Busy) as caught:
        raise_for(429, header)
    assert caught.value.retry_after == seconds


def test_how_long_each_failure_is_waited_out() -> None:
    almost = math.nextafter(1, 0)
    assert pause(Unreachable("x"), 100, lambda: almost) == pytest.approx(CALLS.cap) == 30
    assert pause(NotAllowed("x"), 100, lambda: almost) == pytest.approx(REFUSED.cap) == 60
    assert pause(NotUnderstood("x"), 1, lambda: almost) == pytest.approx(1)
    assert pause(Busy("x", 17), 100, lambda: almost) == 17


@pytest.mark.parametrize(
    ("elapsed", "interval", "asked", "expected"),
    [
        (25.0, 30, 30, 0.0),  # held: the next long poll at once
        (25.0, 30, None, 0.0),
        (0.01, 30, 30, 29.99),  # not held: the interval
        (0.01, 30, None, 29.99),
        (0.01, 30, 1, 0.99),
        (25.0, 30, 300, 275.0),  # asked for patience
        (0.0, 30, 10**9, 300.0),
        (0.0, 30, -5, 1.0),
        (25.0, 3600, 3600, 0.0),
    ],
)
def test_from_an_answer_to_the_next_heartbeat(
    elapsed: float, interval: int, asked: int | None, expected: float
) -> None:
    answer = HeartbeatAnswer(next_heartbeat_seconds=asked)
    assert gap(answer, elapsed=elapsed, wait=25, interval=interval) == pytest.approx(expected)


@given(st.floats(0, 60), st.floats(1, 3600), st.none() | st.integers(), st.booleans())
def test_no_answer_makes_a_hot_loop(elapsed: float, interval: float, asked: int | None, command: bool) -> None:
    commands = [Command(id="restart:x", type="restart")] if command else []
    wait = max(1, int(min(25, interval)))
    answer = HeartbeatAnswer(commands=commands, next_heartbeat_seconds=asked)
    rest = gap(answer, elapsed=elapsed, wait=wait, interval=interval)
    assert 0 <= rest <= 3600
    assert elapsed + rest >= min(1.0, wait / 2)
    assert not command or rest >= 1.0


@pytest.mark.looptime
async def test_readiness_is_lost_with_three_misses_and_found_with_one_answer() -> None:
    began = asyncio.get_running_loop().time()
    answers = iter([False] * 3 + [True] * 2 + [False, True] + [False] * 4 + [True])
    told: list[tuple[float, bool]] = []
    over = asyncio.Event()

    async def look() -> bool:
        if (answer := next(answers, None)) is None:
            over.set()
            await asyncio.Event().wait()
        return bool(answer)

    def tell(ready: bool) -> None:
        told.append((round(asyncio.get_running_loop().time() - began, 1), ready))

    following = asyncio.create_task(follow(look, 60, tell))
    await over.wait()
    following.cancel()
    changes = [told[0], *(b for a, b in itertools.pairwise(told) if a[1] != b[1])]
    assert changes == [(0.3, True), (30.3, False), (40.3, True)]


@pytest.mark.looptime
async def test_readiness_has_a_first_deadline() -> None:
    began = asyncio.get_running_loop().time()

    async def never() -> bool:
        await asyncio.sleep(0.05)
        return False

    await follow(never, 7, lambda ready: pytest.fail("it was never ready"))
    assert asyncio.get_running_loop().time() - began == pytest.approx(7)


GOOD = {
    "AGENT_DID": DID,
    "AGENTSHIELD_API_URL": "https://roost.example.com/",
    "AS_HEARTBEAT_TOKEN": TOKEN,
}


def test_a_plain_environment(tmp_path: Path) -> None:
    settings = read(GOOD | {"DATA_DIR": str(tmp_path / "made")})
    assert settings.endpoint == "https://roost.example.com"
    assert (settings.interval, settings.grace, settings.health_port, settings.bind_address) == (30, 10, 18792, None)
    assert settings.data_dir.is_dir()
    assert settings.machine_id
    assert settings.base_env["ROOST_BIND_ADDRESS"] == "::"
    assert TOKEN not in repr(settings)
    assert TOKEN not in settings.base_env.values()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1",
        "http://127.9.9.9",
        "http://[::1]:1",
        "http://localhost:1",
        "http://[fdaa:0:1::2]",
        "http://roost.internal:80",
    ],
)
def test_plain_http_where_nobody_listens(tmp_path: Path, url: str) -> None:
    assert read(GOOD | {"DATA_DIR": str(tmp_path), "AGENTSHIELD_API_URL": url}).endpoint == url


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("AGENT_DID", " ", "AGENT_DID is not set: set it to the agent's did:key"),
        ("AGENT_DID", "did:web:x", "AGENT_DID does not look right"),
        ("AGENTSHIELD_API_URL", "roost.example.com", "no URL"),
        ("AGENTSHIELD_API_URL", "http://10.0.0.1", "unencrypted"),
        ("AGENTSHIELD_API_URL", "http://notlocalhost", "unencrypted"),
        ("AGENTSHIELD_API_URL", "https://user:pw@roost.example.com", "without credentials"),
        ("AS_HEARTBEAT_TOKEN", "two words", "AS_HEARTBEAT_TOKEN does not look right"),
        ("DATA_DIR", "data", "absolute path"),
        ("DATA_DIR", "/dev/null/data", "mount a volume there"),
        ("HEALTH_PORT", "0", "a number from 1 to 65535"),
        ("HEALTH_PORT", "http", "a number from 1 to 65535"),
        ("HEARTBEAT_INTERVAL_MS", "nan", "a number from 1000 to 3600000"),
        ("ROOST_STOP_GRACE_SECONDS", "-1", "a number from 0 to 3600"),
        ("ROOST_BIND_ADDRESS", "eth0", "an IP address"),
        ("ROOST_CA_FILE", "/nowhere/ca.pem", "a readable file of PEM certificates"),
        ("FLY_MACHINE_ID", "a b", "leave it as Fly sets it"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, name: str, value: str, sentence: str) -> None:
    with pytest.raises(BadEnvironment, match=sentence) as caught:
        read(GOOD | {"DATA_DIR": str(tmp_path), name: value})
    assert name in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "pw" not in str(caught.value)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=300), st.text(max_size=300)), max_size=40))
def test_whatever_is_wrong_a_heartbeat_can_say_it(troubles: list[tuple[str, str]]) -> None:
    settings = read(GOOD | {"DATA_DIR": "/", "FLY_MACHINE_ID": "m"})
    vitals = Vitals(settings, began=0, clock=lambda: 5.5)
    for topic, text in troubles:
        vitals.trouble(topic, text)
    assert len(vitals.heartbeat().degraded) == min(16, len({topic for topic, _ in troubles}))
    assert vitals.heartbeat().uptime_seconds == 5
    vitals.heartbeat().write()


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert roost_agent.__version__ == version("roost")
