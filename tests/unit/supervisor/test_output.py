"""What the runtime prints: which of it leaves the machine, and that its reader is never held up."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roost_agent import log
from roost_agent.output import Counts, Line, Output
from roost_agent.redact import MARK

SECRET = 'q"uite/a secret+value'
REAL = [
    '{"time":"2026-11-21T23:27:15.530+00:00","level":"info","subsystem":"channels/telegram",'
    '"message":"[default] starting provider (@fake_bot)"}',
    '{"enabled":false,"time":"2026-11-21T23:27:16.816+00:00","level":"info","subsystem":"gateway/heartbeat",'
    '"message":"heartbeat: disabled"}',
    '{"time":"2026-11-21T23:28:23.472+00:00","level":"warn","subsystem":"gateway/reload","message":"config reload '
    'skipped (invalid config): agents.defaults: Unrecognized key: \\"nonsense\\""}',
    '{"async":false,"database":"/data/openclaw.sqlite","elapsedMs":148.736154000002,"pid":29643,"thresholdMs":100,'
    '"time":"2026-11-21T23:32:46.825+00:00","level":"warn","subsystem":"sqlite/transaction",'
    '"message":"slow SQLite coordinator lock wait"}',
]
"""As OpenClaw 2026.9.6 prints them."""
TOLD = ("warning", "runtime lines dropped")
ANSWER = '{"time":"2026-11-21T23:30:57.789+00:00","level":"info","message":"It is in the second drawer, Ann."}'
"""The same, of an answer to a turn over HTTP."""


class Log:
    """Remembers what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **given: self.lines.append((level, event, given))


class World:
    """A runtime's output with a clock that stands still until it is moved."""

    def __init__(self, logged: Log) -> None:
        self.log, self.now, self.room, self.secrets = logged, 1000.0, True, [SECRET]
        self.output = Output(lambda: self.secrets, clock=lambda: self.now, room=lambda: self.room)

    def says(self, *lines: str | bytes) -> None:
        for line in lines:
            self.output.line(line if isinstance(line, bytes) else line.encode())

    def says_of(self, subsystem: Any = "gateway", message: Any = "well", level: Any = "info", **other: Any) -> None:
        self.says(json.dumps({"subsystem": subsystem, "message": message, "level": level} | other))

    @property
    def messages(self) -> list[str]:
        return [given["message"] for _, event, given in self.log.lines if event == "runtime"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    logged = Log()
    monkeypatch.setattr("roost_agent.output._log", logged)
    return World(logged)


def test_lines_of_its_log_are_passed_on_with_level_subsystem_and_message_only(world: World) -> None:
    world.says(*REAL)
    assert world.log.lines == [
        ("info", "runtime", {"subsystem": "channels/telegram", "message": "[default] starting provider (@fake_bot)"}),
        ("info", "runtime", {"subsystem": "gateway/heartbeat", "message": "heartbeat: disabled"}),
        (
            "warning",
            "runtime",
            {
                "subsystem": "gateway/reload",
                "message": 'config reload skipped (invalid config): agents.defaults: Unrecognized key: "nonsense"',
            },
        ),
        ("warning", "runtime", {"subsystem": "sqlite/transaction", "message": "slow SQLite coordinator lock wait"}),
    ]
    assert world.output.counts == Counts(passed=4)


@pytest.mark.parametrize(
    "line",
    [
        ANSWER,
        ANSWER.replace('"level"', '"subsystem":"","level"'),
        ANSWER.replace('"level"', '"subsystem":null,"level"'),
        ANSWER.replace('"level"', '"subsystem":["gateway"],"level"'),
        "It is in the second drawer, Ann.",
        '"subsystem"',
        '[{"subsystem":"gateway","message":"x"}]',
        '{"subsystem":"gateway","message":{"answer":"in the drawer"}}',
        '{"subsystem":"gateway"}',
        '{"subsystem":"gateway","message":"cut o',
        ' {"subsystem":"gateway","message":"indented"}',
        "",
        "{",
        '{"subsystem":' + "[" * 30_000,
        '{"subsystem":"gateway","message":"x","n":' + "9" * 5000 + "}",
        b'\xff\xfe{"subsystem":"gateway","message":"x"}',
    ],
)
def test_an_answer_and_whatever_is_not_understood_stays_in_the_machine(world: World, line: str | bytes) -> None:
    world.says(line)
    assert world.log.lines == []
    assert world.output.tail(10) == []
    assert world.output.counts == Counts(withheld=1)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: ("{" + t).encode()))
@example(b'{"subsystem":"\\ud800","message":"\\ud800"}')
def test_no_line_is_too_odd(line: bytes) -> None:
    output = Output(lambda: [SECRET])
    output.line(line)
    counts = output.counts
    assert counts.passed + counts.withheld == 1


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("trace", "debug"),
        ("debug", "debug"),
        ("info", "info"),
        ("warn", "warning"),
        ("error", "error"),
        ("fatal", "critical"),
        ("loud", "info"),
        (None, "info"),
        (["error"], "info"),
    ],
)
def test_levels_have_our_names(world: World, said: Any, logged: str) -> None:
    world.says_of(level=said)
    assert [level for level, _, _ in world.log.lines] == [logged]


def test_secrets_are_gone_before_anything_is_kept_or_cut(world: World) -> None:
    """A message that is cut first would end with the first half of one."""
    world.says_of(
        subsystem=f"of {SECRET}", message="x" * 2040 + SECRET + " and sk-ant-api03-AbCdEf0123456789", time=SECRET
    )
    world.says_of(message=json.dumps({"key": SECRET}))
    first, second = world.output.tail(2)
    assert (first.subsystem, first.time) == (f"of {MARK}", MARK)
    assert first.message == "x" * 2040 + f"{MARK} and "[:8]
    assert second.message == f'{{"key": "{MARK}"}}'
    assert world.messages == [first.message, second.message]


def test_another_bundles_secrets_count_at_once(world: World) -> None:
    world.secrets = ["the-key-from-now-on"]
    world.says_of(message=f"the-key-from-now-on {SECRET}")
    world.says_of(message="and the-key-from-now-on")
    assert world.messages[1] == f"and {MARK}"


@pytest.mark.parametrize("unit", ["x", "é", "\x01", "\U0001f511", '"', "\\"])
def test_a_message_has_an_end(world: World, unit: str) -> None:
    world.says_of(subsystem=unit * 5000, message=unit * 5000)
    [line] = world.output.tail(1)
    written = len(json.dumps(line.message)) - 2
    assert 2048 - 12 <= written <= 2048
    assert len(json.dumps(line.subsystem)) - 2 <= 128
    assert len(json.dumps({"subsystem": line.subsystem, "message": line.message})) < 4096 - 1024, (
        "fits into a pipe at once"
    )


def test_the_last_two_thousand_lines_are_kept(world: World) -> None:
    for number in range(2100):
        world.says_of(message=str(number))
        world.says(ANSWER)
        world.now += 1
    assert [line.message for line in world.output.tail(3)] == ["2097", "2098", "2099"]
    assert len(world.output.tail(10_000)) == 2000
    assert world.output.tail(0) == world.output.tail(-1) == []
    assert world.output.tail(1) == [Line("", "info", "gateway", "2099")]


def dropped(world: World) -> list[int]:
    """The numbers of dropped lines as they were told."""
    return [given["count"] for level, event, given in world.log.lines if (level, event) == TOLD]


def test_a_flood_is_dropped_unseen_and_told_once_it_ebbs(world: World) -> None:
    world.says(*REAL[:1] * 10_000)
    counts = world.output.counts
    assert 1000 < counts.passed < 1500
    assert counts.passed + counts.dropped == 10_000
    assert len(world.log.lines) == counts.passed, "nothing is said of it while there is no budget for a line"
    # when: it ebbs, and a minute later there is more
    world.now += 1
    world.says(*REAL[:2])
    assert dropped(world) == [counts.dropped]
    world.says(*REAL[:1] * 10_000)
    world.now += 9
    world.says(REAL[0])
    assert dropped(world) == [counts.dropped], "not sooner than 10 s later"
    world.now += 2
    world.says(REAL[0])
    assert len(dropped(world)) == 2
    assert sum(dropped(world)) == world.output.counts.dropped


def test_a_steady_stream_is_never_dropped(world: World) -> None:
    for _ in range(10_000):
        world.says(REAL[0])
        world.now += 0.01
    assert world.output.counts == Counts(passed=10_000)


def test_nobody_waits_for_whoever_reads_our_lines(world: World) -> None:
    world.room = False
    world.says(*REAL)
    assert (world.output.counts, world.log.lines) == (Counts(dropped=4), [])
    world.room = True
    world.says(REAL[0])
    assert world.output.counts == Counts(passed=1, dropped=4)


FLOOD = """
import sys
from roost_agent import log
from roost_agent.output import Output
log.set_up()
output = Output(lambda: [])
for n in range(1000):
    output.line(sys.argv[1].encode())
counts = output.counts
print(counts.passed, counts.dropped, file=sys.stderr)
"""


def test_a_reader_that_has_stopped_does_not_stop_us() -> None:
    """Over a real pipe, which holds 64 kB."""
    line = json.dumps({"subsystem": "gateway", "message": "é" * 1000})
    stuck = subprocess.Popen(
        [sys.executable, "-c", FLOOD, line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert stuck.stderr is not None
    assert stuck.stdout is not None
    passed, dropped = map(int, stuck.stderr.readline().split())
    assert 10 < passed < 60
    assert passed + dropped == 1000
    lines = stuck.stdout.read().splitlines()
    assert len(lines) == passed
    assert all(json.loads(each)["event"] == "runtime" for each in lines)
    stuck.wait()
    stuck.stderr.close()
    stuck.stdout.close()


OWN = """
import structlog, pathlib
from roost_agent import log
log.set_up()
logger = structlog.get_logger()
logger.info("before", key="hidden-value")
secrets = ["hidden-value"]
log.hide(lambda: secrets)
structlog.contextvars.bind_contextvars(agent="team/hidden-value")
logger.warning("after hidden-value", number=12345678, none=None, truth=True, path=pathlib.Path("/data/hidden-value"),
               deep={"a": ["hidden-value", {"b": ("x", "sk-ant-api03-AbCdEf0123456789")}]})
secrets[:] = ["another-value"]
logger.info("another-value", error=ValueError("another-value"))
"""


def test_our_own_lines_show_no_secret_either() -> None:
    printed = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, check=True).stdout
    before, after, last = map(json.loads, printed.splitlines())
    assert before["key"] == "hidden-value", "nobody knew then"
    stamp = after.pop("timestamp")
    assert stamp.startswith("20")
    assert after == {
        "event": f"after {MARK}",
        "level": "warning",
        "agent": f"team/{MARK}",
        "number": 12345678,
        "none": None,
        "truth": True,
        "path": f"PosixPath('/data/{MARK}')",
        "deep": {"a": [MARK, {"b": ["x", MARK]}]},
    }
    assert (last["event"], last["error"], last["agent"]) == (MARK, f"ValueError('{MARK}')", f"team/{MARK}")


def test_a_standard_output_that_is_closed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = (tmp_path / "gone").open("w")
    gone.close()
    monkeypatch.setattr(sys, "stdout", gone)
    assert log.room()


def test_lines_are_looked_at_fast_enough(world: World) -> None:
    """A thousand of them take some 30 ms; ten times that is a defect."""
    world.secrets = [f"{n}-of-twenty-secrets-{n * 7919}" for n in range(20)]
    world.says(REAL[0])
    began = time.process_time()
    world.says(*REAL * 250)
    assert time.process_time() - began < 0.3
    assert world.output.counts.passed == 1001
