"""When an agent counts as busy, and when a machine counts as having slept: decided here without a supervisor."""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from endpoint import DID, TOKEN

from roost_agent.activity import Activity, Signs, Socket, from_elsewhere
from roost_agent.contract import Command, Heartbeat, HeartbeatAnswer
from roost_agent.contract.paths import ACTIVITY_FILE
from roost_agent.heartbeat import Heart, overslept
from roost_agent.settings import read
from roost_agent.vitals import Vitals

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
OWN = {ip_address("10.0.0.5"), ip_address("fdaa:0:1::5")}


def listens(port: int, address: str = "0.0.0.0") -> Socket:
    return Socket(ip_address(address), port)


def connected(caller: str, to: str, port: int = 8080) -> Socket:
    return Socket(ip_address(to), port, (ip_address(caller), 40001))


@pytest.mark.parametrize(
    ("visit", "counts"),
    [
        (connected("172.19.0.9", "10.0.0.5"), True),
        (connected("fdaa:0:1::9", "fdaa:0:1::5"), True),
        (connected("127.0.0.1", "127.0.0.1"), False),  # the readiness look
        (connected("::1", "::1"), False),
        (connected("10.0.0.5", "10.0.0.5"), False),  # the machine to itself
        (connected("fdaa:0:1::5", "fdaa:0:1::5"), False),
        (connected("172.19.0.9", "10.0.0.5", 50123), False),  # the runtime's own call to somebody
    ],
)
def test_a_visit_comes_from_elsewhere_to_a_port_that_listens(visit: Socket, counts: bool) -> None:
    assert from_elsewhere({listens(8080), visit}, None, OWN) == counts


@pytest.mark.parametrize(
    ("visit", "counts"),
    [
        (connected("127.0.0.1", "127.90.1.1"), True),
        (connected("127.90.1.2", "127.90.1.1"), True),
        (connected("127.90.1.1", "127.90.1.1"), False),
        (connected("127.90.1.2", "127.0.0.1"), False),  # not to this machine's address
    ],
)
def test_machines_that_share_a_network_are_told_apart_by_address(visit: Socket, counts: bool) -> None:
    assert from_elsewhere({listens(8080), visit}, ip_address("127.90.1.1"), OWN) == counts


def test_what_the_runtime_says_to_itself_is_no_visit() -> None:
    """A worker calls the runtime's own port; on loopback the system gives it an address that is not the machine's."""
    worker = Socket(ip_address("127.0.0.1"), 40001, (ip_address("127.90.1.1"), 8080))
    server = connected("127.0.0.1", "127.90.1.1")
    assert from_elsewhere({listens(8080), server, worker}, ip_address("127.90.1.1"), set()) == 0
    assert from_elsewhere({listens(8080), server}, ip_address("127.90.1.1"), set()) == 1


def said(folder: Path, **what: Any) -> None:
    (folder / ACTIVITY_FILE).write_text(json.dumps(what))


def at_noon(folder: Path) -> Activity:
    return Activity(folder, None, lambda: NOON)


async def test_nothing_said_is_nothing_known(tmp_path: Path) -> None:
    assert await at_noon(tmp_path).look() == Signs(connections=0)
    said(tmp_path)
    assert await at_noon(tmp_path).look() == Signs(connections=0)


async def test_what_the_runtime_says_is_passed_on(tmp_path: Path) -> None:
    run = "2026-11-21T14:30:00+01:00"
    said(tmp_path, activeSessions=0, lastActivityAt="2026-11-21T11:59:00Z", nextScheduledRunAt=run)
    assert await at_noon(tmp_path).look() == Signs(0, "2026-11-21T11:59:00.000+00:00", run, 0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not understood (: json_invalid)"),
        (b"\xff\xfe", "json_invalid"),
        (b"[" * 4096, "json_invalid"),
        (b"[]", "not understood"),
        (b'{"activeSession": 0}', "activeSession: extra_forbidden"),
        (b'{"activeSessions": -1}', "activeSessions: greater_than_equal"),
        (b'{"activeSessions": 1e999}', "activeSessions: "),
        (b'{"activeSessions": "0"}', "activeSessions: int_type"),
        (b'{"activeSessions": true}', "activeSessions: int_type"),
        (b'{"lastActivityAt": 1795262400}', "lastActivityAt: string_type"),
        (b'{"lastActivityAt": "2026-02-30T00:00:00Z"}', "lastActivityAt: value_error"),
        (b'{"lastActivityAt": "2026-11-21T12:02:00Z"}', "lastActivityAt is in the future"),
        (b'{"nextScheduledRunAt": "tomorrow"}', "nextScheduledRunAt: string_pattern_mismatch"),
        (b'{"\\ud800": 1}', "json_invalid"),
        (b'{"' + b"x" * 3000 + b'": 1}', "x" * 100),
        (b'{"activeSessions": 0}' + b" " * 4096, "no regular file, or too large"),
    ],
)
async def test_a_file_that_is_wrong_counts_for_nothing(tmp_path: Path, content: bytes, why: str) -> None:
    activity = at_noon(tmp_path)
    said(tmp_path, activeSessions=0, nextScheduledRunAt="2026-11-21T13:00:00Z")
    assert (await activity.look()).active_sessions == 0

    (tmp_path / ACTIVITY_FILE).write_bytes(content)
    signs = await activity.look()
    assert (signs.active_sessions, signs.last_activity_at, signs.next_scheduled_run_at) == (None, None, None)
    assert signs.wrong is not None
    assert why in signs.wrong
    assert len(signs.wrong) < 200


def elsewhere(folder: Path) -> Path:
    """A file that would be understood, if it were the runtime's."""
    (other := folder / "elsewhere.json").write_text('{"activeSessions": 0}')
    return other


@pytest.mark.parametrize(
    "plant",
    [
        lambda path: path.symlink_to(elsewhere(path.parent)),
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
    ],
    ids=["link", "directory", "pipe", "device"],
)
async def test_what_is_planted_instead_of_a_file_holds_nothing_up(
    tmp_path: Path, plant: Callable[[Path], object]
) -> None:
    plant(tmp_path / ACTIVITY_FILE)
    activity = at_noon(tmp_path)
    assert (await activity.look()).wrong
    opened = psutil.Process().num_fds()
    for _ in range(5):
        assert (await activity.look()).wrong
    assert psutil.Process().num_fds() == opened


async def test_the_last_activity_moves_with_activity_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, visits = NOON, 0
    monkeypatch.setattr("roost_agent.activity.from_elsewhere", lambda *_: visits)
    activity = Activity(tmp_path, None, lambda: now)

    async def last() -> str | None:
        return (await activity.look()).last_activity_at

    assert await last() is None
    said(tmp_path, lastActivityAt="2026-11-21T11:00:00Z")
    assert await last() == "2026-11-21T11:00:00.000+00:00"
    visits = 1
    assert await last() == "2026-11-21T12:00:00.000+00:00"
    visits, now = 0, NOON + timedelta(hours=1)
    assert await last() == "2026-11-21T12:00:00.000+00:00"
    said(tmp_path, lastActivityAt="2026-11-21T12:30:00Z")
    assert await last() == "2026-11-21T12:30:00.000+00:00"
    said(tmp_path, lastActivityAt="2026-11-21T10:00:00Z")  # it can't be undone
    assert await last() == "2026-11-21T12:30:00.000+00:00"
    activity.forget()
    assert await last() == "2026-11-21T12:30:00.000+00:00"


async def test_what_can_not_be_counted_in_full_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hide(process: psutil.Process, kind: str) -> list[Any]:
        raise psutil.AccessDenied(process.pid)

    child = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        assert (await at_noon(tmp_path).look()).connections == 0
        monkeypatch.setattr(psutil.Process, "net_connections", hide)
        assert (await at_noon(tmp_path).look()).connections is None
        monkeypatch.setattr(psutil.Process, "status", lambda _: psutil.STATUS_ZOMBIE)  # dead and not yet reaped
        assert (await at_noon(tmp_path).look()).connections == 0
        monkeypatch.setattr("roost_agent.activity._MOST_PROCESSES", 0)  # too many to look at
        assert (await at_noon(tmp_path).look()).connections is None
    finally:
        child.kill()
        await child.wait()


class Clocks:
    """A wall clock that can move while the loop's own stands still, as those of a suspended machine do."""

    def __init__(self) -> None:
        self.asleep = timedelta()

    def wall(self) -> datetime:
        return NOON + timedelta(seconds=asyncio.get_running_loop().time()) + self.asleep

    def sleep(self, seconds: float) -> None:
        self.asleep += timedelta(seconds=seconds)


@pytest.mark.looptime
async def test_a_sleep_is_told_from_the_passing_of_time() -> None:
    clocks = Clocks()
    watching = asyncio.create_task(overslept(clocks.wall, lambda: 60.0))
    await asyncio.sleep(1800)
    assert not watching.done()
    for seconds in (59, -7200):  # not long enough; the clock set back
        clocks.sleep(seconds)
        await asyncio.sleep(5)
        assert not watching.done()
    clocks.sleep(3600)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(60):
        assert await watching == pytest.approx(3600)
    assert asyncio.get_running_loop().time() - began <= 1


class Operator:
    """Holds each heartbeat open until its time is over. Says when it was told of one, and given fresh connections."""

    def __init__(self, *, deaf: bool) -> None:
        self.told: list[tuple[str, float]] = []
        self._deaf = deaf
        self._loop = asyncio.get_running_loop()

    async def beat(self, heartbeat: Heartbeat, wait: int) -> HeartbeatAnswer:
        self.told.append(("beat", self._loop.time()))
        await asyncio.sleep(wait if not self._deaf else 10**6)
        return HeartbeatAnswer()

    async def renew(self) -> None:
        self.told.append(("renew", self._loop.time()))


class Wavering:
    """A runtime whose file is right and wrong by turns, whenever it is looked at."""

    def __init__(self) -> None:
        self.looks = 0

    async def look(self) -> Signs:
        self.looks += 1
        await asyncio.sleep(0.01)
        return Signs(wrong="half of it" if self.looks % 2 else None)


def no_commands(commands: Sequence[Command]) -> None:
    assert not commands


async def heard_for(seconds: float, folder: Path, operator: Operator, activity: Wavering, clocks: Clocks) -> None:
    """A supervisor's heart beats, with an interval of 30 s, for so many seconds."""
    environ = {"AGENT_DID": DID, "AGENTSHIELD_API_URL": "https://roost.example.com", "AS_HEARTBEAT_TOKEN": TOKEN}
    loop = asyncio.get_running_loop()
    vitals = Vitals(read(environ | {"DATA_DIR": str(folder)}), began=0, clock=loop.time)
    neighbours: tuple[Any, ...] = (operator, vitals, activity)
    heart = Heart(*neighbours, offer=no_commands, clock=loop.time, wall=clocks.wall, random=lambda: 0.5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await heart.run()


@pytest.mark.looptime
async def test_a_file_right_and_wrong_by_turns_makes_no_heartbeat_of_its_own(tmp_path: Path) -> None:
    operator, activity = Operator(deaf=False), Wavering()
    await heard_for(120, tmp_path, operator, activity, Clocks())
    assert len(operator.told) == activity.looks == 5


@pytest.mark.looptime
async def test_a_machine_that_wakes_gives_up_its_dead_connection_and_is_heard_at_once(tmp_path: Path) -> None:
    operator, clocks, loop = Operator(deaf=True), Clocks(), asyncio.get_running_loop()
    loop.call_later(10, clocks.sleep, 62)
    woke = loop.time() + 10
    await heard_for(20, tmp_path, operator, Wavering(), clocks)
    assert [what for what, _ in operator.told] == ["beat", "renew", "beat"]
    assert 0 <= operator.told[-1][1] - woke <= 1.1
