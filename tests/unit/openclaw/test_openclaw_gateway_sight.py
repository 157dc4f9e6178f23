"""What is said of a running gateway, and the start of messengers that it holds back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openclaw_stub import Running, eventually, running

from roost_agent.contract.heartbeat import ChannelState, Heartbeat, Status
from roost_agent.runtime import Sight
from roost_agent.runtime.openclaw.sight import Observer, Seen, Tries, sight

CONNECTED, FAILED = ChannelState.CONNECTED, ChannelState.FAILED
TOKEN = "123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"


def seen(*accounts: dict[str, Any], **also: Any) -> Seen:
    return Seen(ready={"failing": []} | also, channels={"channelAccounts": {"telegram": list(accounts)}})


def plain(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("account", "state"),
    [
        # As 2026.9.6 says it: while it starts, when all is well, after a wrong token, switched off, held back.
        ({"enabled": True, "running": True, "connected": False, "lifecycle": "starting"}, ChannelState.CONNECTING),
        ({"enabled": True, "running": True, "connected": True, "lifecycle": "ready"}, CONNECTED),
        ({"enabled": True, "running": True, "lifecycle": "ready"}, CONNECTED),
        ({"enabled": True, "running": False, "lifecycle": "blocked", "terminalDisconnect": True}, FAILED),
        ({"enabled": False, "running": False, "lifecycle": "stopped"}, ChannelState.DISABLED),
        ({"enabled": True, "running": False, "lifecycle": "stopped"}, ChannelState.STOPPED),
        ({"enabled": True, "running": False, "lifecycle": "stopped", "restartPending": True}, ChannelState.CONNECTING),
        ({"enabled": True, "running": False, "configured": False}, FAILED),
        ({"enabled": True, "running": False, "lastError": "channel exited"}, FAILED),
    ],
)
def test_the_state_of_a_messenger_in_one_word(account: dict[str, Any], state: ChannelState) -> None:
    assert sight(seen(account), {}, plain).channels["telegram"].state is state


def test_a_messenger_is_as_well_as_its_worst_account() -> None:
    well = {"running": True, "connected": True}
    said = sight(seen(well, {"running": False, "lastError": "401"}, well), {}, plain)
    assert (said.channels["telegram"].state, said.channels["telegram"].last_error) == (FAILED, "401")
    assert said.troubles == {"telegram": "401"}


def test_one_that_is_held_back_says_what_has_been_done_about_it() -> None:
    held = seen({"running": False, "lifecycle": "stopped", "lastError": "breaker tripped"}, suppressed=["telegram"])
    assert sight(held, {}, plain).channels["telegram"].state is ChannelState.SUPPRESSED
    assert sight(held, {}, plain).troubles == {"telegram": "held back by OpenClaw after bad starts"}
    tried = sight(held, {"telegram": Tries(2, 9.0, "start-in-progress")}, plain)
    assert tried.troubles["telegram"].endswith("started 2 times in vain (start-in-progress)")


def test_no_secret_and_no_second_line_gets_through() -> None:
    error = f"getMe failed\nforged: https://api.telegram.org/bot{TOKEN}/getMe"
    said = sight(seen({"running": False, "lastError": error}), {}, lambda text: text.replace(TOKEN, "***"))
    assert said.troubles["telegram"] == "getMe failed forged: https://api.telegram.org/bot***/getMe"


def test_a_messenger_of_a_strange_name_does_not_pass_for_a_topic_of_the_supervisors_own() -> None:
    accounts = {"volume": [{"running": False, "lastError": "x"}], "a b": [{}], "telegram\n": [{}]}
    said = sight(Seen(channels={"channelAccounts": accounts}), {}, plain)
    assert said.troubles == {"channel volume": "x"}
    assert set(said.channels) == {"volume"}


def test_no_more_messengers_are_told_of_than_a_heartbeat_holds() -> None:
    many = {f"m{number}": [{"running": True}] for number in range(99)}
    assert len(sight(Seen(channels={"channelAccounts": many}), {}, plain).channels) == 16


def test_what_else_it_is_not_ready_for_is_said() -> None:
    failing = ["telegram", "agent-database:main", "gateway-draining"]
    said = sight(seen({"running": True, "connected": True}, failing=failing), {}, plain)
    assert said.troubles == {"openclaw": "not ready: agent-database:main"}


def test_what_nobody_knows_is_not_zero() -> None:
    assert sight(Seen(), {}, plain) == Sight()


def test_activity() -> None:
    rows = [{"hasActiveRun": True, "lastActivityAt": 1795303857779}, {"hasActiveRun": False, "lastActivityAt": 1000}]
    said = sight(
        Seen(sessions={"sessions": rows}, cron={"nextWakeAtMs": 1795316400000}, pairings={"requests": [{}, {}]}),
        {},
        plain,
    )
    assert (said.active_sessions, said.pending_pairings) == (1, 2)
    assert said.last_activity_at == "2026-11-21T23:30:57.779+00:00"
    assert said.next_scheduled_run_at == "2026-11-22T03:00:00.000+00:00"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.just("telegram"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["telegram", "slack"]), inner),
    max_leaves=12,
)
ACCOUNT = st.dictionaries(
    st.sampled_from(["enabled", "running", "connected", "lifecycle", "lastError", "configured", "accountId"]), JSON
)


LOOKS = st.builds(
    Seen,
    ready=st.dictionaries(st.sampled_from(["failing", "suppressed"]), JSON) | JSON,
    channels=st.dictionaries(
        st.just("channelAccounts"),
        st.dictionaries(st.sampled_from(["telegram", "x"]) | st.text(), st.lists(ACCOUNT) | JSON) | JSON,
    )
    | JSON,
    pairings=st.dictionaries(st.just("requests"), JSON) | JSON,
    sessions=st.dictionaries(
        st.just("sessions"), st.lists(st.dictionaries(st.just("lastActivityAt"), JSON) | JSON) | JSON
    )
    | JSON,
    cron=st.dictionaries(st.just("nextWakeAtMs"), JSON) | JSON,
)


@settings(max_examples=50)
@given(LOOKS)
def test_whatever_is_seen_fits_into_a_heartbeat(seen: Seen) -> None:
    said = sight(seen, {}, plain)
    Heartbeat(
        status=Status.RUNNING,
        machine_id="m",
        uptime_seconds=1,
        memory_mb=1,
        compute_version="1",
        channels=dict(said.channels),
        degraded=[f"{topic}: {text}" for topic, text in said.troubles.items()][:16],
        pending_pairings=said.pending_pairings,
        active_sessions=said.active_sessions,
        last_activity_at=said.last_activity_at,
        next_scheduled_run_at=said.next_scheduled_run_at,
    ).write()


class Observing:
    """An observer beside a stand-in, and every sight that it told of."""

    def __init__(self, world: Running, settled_seconds: float = 0.0) -> None:
        self.told: list[Sight] = []
        self.observer = Observer(
            world.gateway,
            changed=lambda: self.told.append(self.observer.sight),
            clean=plain,
            look_seconds=0.01,
            settled_seconds=settled_seconds,
        )

    @property
    def telegram(self) -> ChannelState | None:
        report = self.observer.sight.channels.get("telegram")
        return report and ChannelState(report.state)


async def test_it_tells_of_changes_and_of_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected():
        seeing = Observing(world)
        task = asyncio.create_task(seeing.observer.run())
        await eventually(lambda: world.stub.calls["cron.status"] > 5, "several looks")
        assert [s.channels["telegram"].state for s in seeing.told] == [CONNECTED]
        # When somebody asks for leave to write
        world.stub.tell({"requests": [{"senderId": "777", "code": "MP73QBCH"}]})
        await eventually(lambda: seeing.observer.sight.pending_pairings == 1, "one who waits")
        assert len(seeing.told) == 2
        # And when the life ends, nothing is said of it any more
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert seeing.told[-1] == Sight()


async def test_a_wrong_token_is_said(tmp_path: Path) -> None:
    error = "Telegram bot token unauthorized"
    account = {"running": False, "lifecycle": "blocked", "terminalDisconnect": True, "lastError": error}
    async with running(tmp_path) as world, world.connected():
        seeing = Observing(world)
        task = asyncio.create_task(seeing.observer.run())
        world.stub.tell({"channels": {"telegram": account}})
        await eventually(lambda: seeing.observer.sight.troubles == {"telegram": error}, "its trouble")
        assert seeing.telegram is FAILED
        assert world.stub.calls["channels.start"] == 0
        task.cancel()


async def test_what_is_held_back_is_started_only_once_the_gateway_has_held(tmp_path: Path) -> None:
    async with running(tmp_path, suppressed=["telegram"]) as world, world.connected():
        seeing = Observing(world, settled_seconds=0.3)
        began = asyncio.get_running_loop().time()
        task = asyncio.create_task(seeing.observer.run())
        await eventually(lambda: seeing.telegram is ChannelState.SUPPRESSED, "held back")
        await eventually(lambda: seeing.telegram is CONNECTED, "connected")
        assert asyncio.get_running_loop().time() - began >= 0.3
        assert world.stub.calls["channels.start"] == 1
        assert seeing.observer.sight.troubles == {}
        # When it is held back once more, as after a change of its configuration, then it is started once more
        world.stub.tell({"suppressed": ["telegram"]})
        await eventually(lambda: world.stub.calls["channels.start"] == 2, "started once more")
        await eventually(lambda: seeing.telegram is CONNECTED, "connected")
        task.cancel()


async def test_a_start_in_vain_is_counted_and_not_repeated_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, suppressed=["telegram"], startFails=1000) as world, world.connected():
        seeing = Observing(world)
        task = asyncio.create_task(seeing.observer.run())
        await eventually(lambda: "1 times in vain" in seeing.observer.sight.troubles.get("telegram", ""), "in vain")
        looks = world.stub.calls["channels.status"]
        await eventually(lambda: world.stub.calls["channels.status"] > looks + 1, "more looks")
        assert world.stub.calls["channels.start"] == 1
        task.cancel()


async def test_while_it_drains_the_last_sight_holds(tmp_path: Path) -> None:
    async with running(tmp_path, turns=1) as world, world.connected() as gateway:
        seeing = Observing(world)
        task = asyncio.create_task(seeing.observer.run())
        await eventually(lambda: seeing.observer.sight.active_sessions == 1, "one at work")
        await gateway.call("gateway.suspend.prepare", {"requestId": "x", "drain": True})
        calls = world.stub.calls["channels.status"]
        await eventually(lambda: world.stub.calls["channels.status"] > calls + 5, "looks that are refused")
        assert len(seeing.told) == 1
        task.cancel()


async def test_one_that_answers_no_calls_any_more_is_said_to(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected():
        seeing = Observing(world)
        task = asyncio.create_task(seeing.observer.run())
        await eventually(lambda: seeing.telegram is CONNECTED, "connected")
        await world.stub.close()
        await eventually(lambda: "openclaw" in seeing.observer.sight.troubles, "that it does not answer")
        assert seeing.observer.sight.channels == {}
        task.cancel()
