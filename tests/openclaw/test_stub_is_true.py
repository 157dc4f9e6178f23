"""The same story, told of the stand-in and of the real OpenClaw: what the supervisor relies on is true of both.

Whatever is asserted here of the stand-in's behaviour the tests below tests/unit may take for that of the real one.
"""

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from machine import eventually

from roost.local import openclaw
from roost.local.fakes.telegram import FakeTelegram
from roost_agent.contract.heartbeat import ChannelState
from roost_agent.runtime import Ran, Refused, Sight, User
from roost_agent.runtime.openclaw.drain import drain, resume
from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway, GatewayError
from roost_agent.runtime.openclaw.pairing import NoSuchPairing, Pairings
from roost_agent.runtime.openclaw.probe import follow
from roost_agent.runtime.openclaw.reload import reloaded
from roost_agent.runtime.openclaw.sight import Observer

TOKEN = "token-of-this-gateway-7Kd2"
BOT = "123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
PORT = 3001
STRANGER = 777001
START_SECONDS = 150.0
STUB = Path(__file__).parents[1] / "image" / "stub_gateway.py"


class Subject:
    """A gateway as a process: the stand-in, or the real one."""

    def __init__(self, folder: Path, host: str, telegram: FakeTelegram, program: list[str], *, real: bool) -> None:
        self.folder = folder
        self.host = host
        self.real = real
        self.program = program
        self.telegram = telegram
        self.bot = telegram.bot(BOT)
        self.state = folder / "openclaw"
        self.gateway = Gateway(host, PORT, lambda: TOKEN)
        self.pairings = Pairings(self.gateway, self.state, run, None)
        self.process: subprocess.Popen[bytes] | None = None
        self.state.mkdir()

    def config(self, **also: Any) -> dict[str, Any]:
        auth = {"mode": "token", "token": "${OPENCLAW_GATEWAY_TOKEN}"}
        here = {"mode": "local", "port": PORT, "bind": "custom", "customBindHost": self.host, "auth": auth}
        telegram = {"enabled": True, "botToken": "${TELEGRAM_BOT_TOKEN}", "apiRoot": self.telegram.url}
        network = {"dangerouslyAllowPrivateNetwork": True}
        model = {"primary": "fake/one"}
        return {
            "gateway": here | {"controlUi": {"enabled": False}, "terminal": {"enabled": False}},
            "agents": {"defaults": {"workspace": str(self.folder / "workspace"), "model": model}},
            "channels": {"telegram": telegram | {"network": network, "dmPolicy": "pairing"}},
            "commands": {"ownerAllowFrom": ["telegram:1"]},
            "models": {"catalogRefresh": {"enabled": False}},
            "logging": {"file": str(self.folder / "log.jsonl")},
            "update": {"checkOnStart": False},
            "telemetry": {"enabled": False},
            "discovery": {"mdns": {"mode": "off"}},
        } | also

    def write(self, config: Mapping[str, Any]) -> None:
        beside = self.state / "openclaw.json.new"
        beside.write_text(json.dumps(config))
        beside.chmod(0o600)
        beside.replace(self.state / "openclaw.json")

    def start(self) -> None:
        environment = {
            "PATH": f"{Path(self.program[0]).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "OPENCLAW_STATE_DIR": str(self.state),
            "OPENCLAW_GATEWAY_TOKEN": TOKEN,
            "TELEGRAM_BOT_TOKEN": BOT,
            "OPENCLAW_SUPERVISOR_MODE": "external",
            "OPENCLAW_CONFIG_READONLY": "1",
            "OPENCLAW_NO_AUTO_UPDATE": "1",
            "OPENCLAW_DISABLE_BONJOUR": "1",
        }
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [*self.program, "gateway", "run"], env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    async def ended(self, seconds: float = START_SECONDS) -> int:
        process = self.process
        assert process is not None
        await eventually(lambda: process.poll() is not None, "its end", seconds)
        return int(process.returncode)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def stranger(self) -> str:
        """Somebody writes who may not; returns the code that they are told."""
        if self.real:
            await self.bot.say("hello", STRANGER)
            told = await self.bot.hears(containing="Pairing code", seconds=60)
            return next(iter(re.findall(r"\b[A-Z2-9]{8}\b", told.text)))
        said = {"requests": [{"senderId": str(STRANGER), "code": "MP73QBCH"}]}
        async with aiohttp.ClientSession() as web, web.post(f"http://{self.host}:{PORT}/stub", json=said) as answer:
            assert answer.status == 200
        return "MP73QBCH"

    def after_bad_starts(self) -> None:
        """As if it had ended uncleanly three times within the last minutes."""
        if not self.real:
            (self.state / "stub.json").write_text(json.dumps({"suppressed": ["telegram"]}))
            return
        now = int(time.time() * 1000)
        database = sqlite3.connect(self.state / "state" / "openclaw.sqlite")
        rows = [(str(uuid.uuid4()), 1, now - 30_000 * (n + 1)) for n in range(3)]
        database.executemany("INSERT INTO gateway_boot_lifecycle (boot_id, pid, started_at_ms) VALUES (?,?,?)", rows)
        database.commit()
        database.close()

    @asynccontextmanager
    async def life(self) -> AsyncIterator[tuple[Callable[[], Sight], asyncio.Task[str]]]:
        """One life, followed as the supervisor does; gives what is seen of it, once it is ready."""
        ready = asyncio.Event()
        observer = Observer(
            self.gateway, changed=lambda: None, clean=str, look_seconds=0.2, settled_seconds=1 if self.real else 0.1
        )
        self.start()
        task = asyncio.create_task(
            follow(
                lambda now: ready.set() if now else None,
                self.gateway,
                deadline=START_SECONDS,
                while_ready=observer.run,
                look_seconds=0.2,
            )
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
            assert ready.is_set(), task.result()
            yield lambda: observer.sight, task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def run(argv: Any, *, env: Mapping[str, str], cwd: Path, user: User | None, seconds: float) -> Ran:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, env=env, cwd=cwd, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), seconds)
    return Ran(process.returncode or 0, out, err)


@pytest.fixture(params=["stub", *(pytest.param(each, marks=pytest.mark.openclaw_full) for each in openclaw.VERSIONS)])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    real = request.param != "stub"
    program = [sys.executable, str(STUB)]
    if real:
        opt = request.getfixturevalue("opt")
        package = opt / "openclaw" / request.param / "node_modules" / "openclaw" / "openclaw.mjs"
        program = [str(opt / "node" / "bin" / "node"), str(package)]
    telegram = FakeTelegram()
    await telegram.start()
    host = f"127.{150 + os.getpid() // 250 % 10}.{os.getpid() % 250 + 1}.{request.param_index + 1}"
    made = Subject(tmp_path, host, telegram, program, real=real)
    yield made
    made.kill()
    await telegram.stop()


def telegram_is(seen: Callable[[], Sight], state: ChannelState) -> Callable[[], bool]:
    return lambda: "telegram" in seen().channels and seen().channels["telegram"].state is state


async def test_a_life_as_the_supervisor_sees_it(subject: Subject) -> None:
    # Given a configuration that is none, then it does not start, and says so by its exit code
    subject.write(subject.config(nonsense=1))
    subject.start()
    assert await subject.ended() == 78

    # Given a good one, then it becomes ready, and its messenger is connected
    subject.write(config := subject.config())
    async with subject.life() as (seen, followed):
        await eventually(telegram_is(seen, ChannelState.CONNECTED), "connected", START_SECONDS)
        assert (seen().pending_pairings, seen().active_sessions, seen().troubles) == (0, 0, {})
        gateway = subject.gateway
        with pytest.raises(GatewayError, match="unknown method: nonsense"):
            await gateway.call("nonsense")
        stranger = Gateway(subject.host, PORT, lambda: "another token")
        async with stranger.life(), stranger.connected():
            with pytest.raises(GatewayAway, match="token mismatch"):
                await stranger.call("channels.status", seconds=1.5)

        # When a stranger writes, then they are listed with the code they were told, and let in by it alone
        code = await subject.stranger()
        await eventually(lambda: seen().pending_pairings == 1, "one who waits")
        (one,) = await subject.pairings.list()
        assert (one.channel, one.sender, one.code, one.name) == ("telegram", str(STRANGER), code, "ann")
        with pytest.raises(NoSuchPairing):
            await subject.pairings.approve("telegram", code="AAAAAAAA")
        assert (await subject.pairings.approve("telegram", code=code)).sender == str(STRANGER)
        with pytest.raises(NoSuchPairing):
            await subject.pairings.approve("telegram", id=one.id)

        # When the configuration changes, then it is taken up while it runs, and a bad one is passed over
        changed = subject.config(session={"dmScope": "per-channel-peer"})
        subject.write(changed)
        await reloaded(gateway, changed, 20)
        subject.write(bad := subject.config(nonsense=1))
        with pytest.raises(Refused, match='Unrecognized key: "nonsense"'):
            await reloaded(gateway, bad, 20)
        subject.write(config)
        await reloaded(gateway, config, 20)

        # When it drains, then it answers no call but says that it lives, and goes on when it is told to
        assert await drain(gateway, 20) is True
        assert (await gateway.get("/startupz", 5))[1]["status"] == "draining"
        assert (await gateway.get("/healthz", 5))[0] == 200
        with pytest.raises(GatewayError) as closed:
            await gateway.call("channels.status")
        assert (closed.value.code, closed.value.reason) == ("UNAVAILABLE", "gateway-suspending")
        await resume(gateway)
        assert await gateway.call("channels.status")

        # When a change needs another process, then it ends by itself, and asks by its exit code for one
        subject.write(subject.config(env={"vars": {"OTHER": "1"}}))
        assert await subject.ended() == 0
        assert await followed == "/healthz did not answer 3 times"

    # Given that it ended uncleanly three times, then it holds its messenger back until it is told to start it
    subject.write(config)
    subject.after_bad_starts()
    async with subject.life() as (seen, _):
        await eventually(telegram_is(seen, ChannelState.SUPPRESSED), "held back")
        assert seen().troubles["telegram"].startswith("held back by OpenClaw")
        await eventually(telegram_is(seen, ChannelState.CONNECTED), "connected", START_SECONDS)
        # And a SIGTERM ends it
        assert subject.process is not None
        subject.process.terminate()
        assert await subject.ended(60) == 0
