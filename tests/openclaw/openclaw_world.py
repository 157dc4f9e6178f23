"""The world of one real OpenClaw: the real supervisor below which it runs, a model, Telegram, and an operator's double.

A test declares what the agent is to be (`declare`), talks to it as a person would (`turn`), and judges by what arrives
outside: at the model, in Telegram, in the heartbeats, and by how many processes were started.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from endpoint import OperatorDouble
from machine import Machine, eventually

from roost.local.fakes.model import Asked, FakeModel
from roost.local.fakes.telegram import FakeTelegram
from roost_agent.contract import PORTS

BOT = "123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
GATEWAY_TOKEN = "gateway-token-of-the-agent-3Fq8"
ANN, BEN = 777001, 777002
START_SECONDS = 300.0
"""A gateway is up within 10 s of a core; here several things may want the cores at once."""
TURN_SECONDS = 60.0
INTERVAL_SECONDS = 2
"""Between two heartbeats."""
GRACE_SECONDS = 10
"""From SIGTERM to SIGKILL; 0.3 to 1.2 s are enough for an OpenClaw that hears, when the cores are free."""


class Talks(OperatorDouble):
    """As the operator does, it asks for another version by a command of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.next_seconds = INTERVAL_SECONDS

    def due(self, beat: dict[str, Any]) -> list[dict[str, Any]]:
        commands = super().due(beat)
        version = (self.bundle["runtime"] or {}).get("version")
        command = {"id": f"update_version:{version}", "type": "update_version", "reason": "", "version": version}
        if beat["openclawVersion"] in (None, version) or beat["lastCommandId"] == command["id"]:
            return commands
        return [*commands, command]


class World:
    """One agent. `said` in `declare` counts from the last declaration on, whatever it leaves out stays as it was."""

    def __init__(self, folder: Path, address: str, opt: Path) -> None:
        self.operator = Talks()
        self.model = FakeModel()
        self.telegram = FakeTelegram()
        self.bot = self.telegram.bot(BOT)
        self.opt = opt
        self._folder = folder
        self._address = address
        self._declared: dict[str, Any] = {}
        self.machine: Machine

    async def open(self) -> None:
        await self.operator.start()
        await self.model.start()
        await self.telegram.start()
        self.machine = Machine(self.operator, self._folder, self._address)
        self.machine.environment |= {
            "ROOST_OPENCLAW_DIR": str(self.opt / "openclaw"),
            "ROOST_NODE": str(self.opt / "node" / "bin" / "node"),
            "ROOST_STOP_GRACE_SECONDS": str(GRACE_SECONDS),
        }

    async def close(self) -> None:
        self.machine.kill()
        await self.telegram.stop()
        await self.model.stop()
        await self.operator.stop()

    # --- the operator's side

    def declare(
        self,
        *,
        version: str = "2026.9.6",
        model: str = "fake/one",
        key: str = "k-one",
        soul: str = "You are Ada.",
        bot: str = BOT,
        overlay: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> str:
        """The agent is to be so from now on; everything that is not said has its usual value. Returns the revision."""
        telegram = {"apiRoot": self.telegram.url, "network": {"dangerouslyAllowPrivateNetwork": True}}
        whole: dict[str, Any] = {
            "runtime": {"kind": "OpenClaw", "version": version},
            "model": {"default": model},
            "providers": [
                {"id": "fake", "baseUrl": self.model.url, "api": "openai-completions", "apiKeyEnv": "FAKE_API_KEY"}
            ],
            "channels": {"telegram": {"tokenEnv": "TELEGRAM_BOT_TOKEN"}},
            "secretEnv": {"FAKE_API_KEY": key, "TELEGRAM_BOT_TOKEN": bot, "OPENCLAW_GATEWAY_TOKEN": GATEWAY_TOKEN},
            "soul": f"{soul}\n",
            "heartbeat": {"intervalSeconds": INTERVAL_SECONDS},
            "openclaw": {"overlay": {"channels": {"telegram": telegram}} | dict(overlay or {})},
        }
        return self.operator.change(**(whole | given))

    async def ready(self, seconds: float = START_SECONDS) -> int:
        """Waits until the agent is ready with what was declared; returns OpenClaw's pid."""
        return await self.heard(
            lambda b: b["ready"] and b["bundleRevision"] == self.operator.bundle["revision"],
            "ready with what was declared",
            seconds,
        )

    async def heard(self, condition: Callable[[dict[str, Any]], Any], what: str, seconds: float = START_SECONDS) -> int:
        """Waits until a heartbeat says so; returns OpenClaw's pid, 0 when it has none."""
        try:
            return await self.machine.heard(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.scene()}") from None

    async def troubled(self, topic: str, *words: str, seconds: float = START_SECONDS) -> str:
        """Waits until a heartbeat says that something is wrong with a topic, in these words; returns the line."""

        def found(beat: dict[str, Any]) -> list[str]:
            return [d for d in beat["degraded"] if d.startswith(f"{topic}: ") and all(w in d for w in words)]

        await self.heard(found, f"{topic} degraded, because of {words}", seconds)
        return found(self.operator.last)[0]

    async def well(self, seconds: float = START_SECONDS) -> None:
        """Waits until nothing is wrong any more."""
        await self.heard(lambda b: b["ready"] and not b["degraded"], "nothing degraded", seconds)

    # --- the people's side

    async def turn(self, text: str, person: int = ANN, seconds: float = TURN_SECONDS) -> Asked:
        """A person says something and is answered; returns what the model was asked for that."""
        since = len(self.bot.heard)
        await self.bot.say(text, person)
        try:
            heard = await self.bot.hears(since, containing=f": {text}", seconds=seconds)
        except TimeoutError:
            wrote = [each.text for each in self.bot.heard[since:]]
            raise AssertionError(f"no answer to {text!r} in {seconds} s, only {wrote}\n{self.scene()}") from None
        assert heard.person == person
        return next(asked for asked in reversed(self.model.asked) if asked.answer == heard.text)

    async def pair(self, person: int = ANN) -> str:
        """A stranger writes, gets a code, and is approved by it; returns the code."""
        since = len(self.bot.heard)
        await self.bot.say("hello", person)
        await self.bot.hears(since, containing="Pairing code", seconds=TURN_SECONDS)
        request = await self.request(person)
        status, answer = await self.pairing("POST", "/v1/pairings/approve", channel="telegram", code=request["code"])
        assert status == 200, answer
        return str(request["code"])

    async def request(self, person: int = ANN) -> dict[str, Any]:
        """The open pairing request of this person, as :18791 lists it."""
        status, found = await self.pairing("GET", "/v1/pairings")
        assert status == 200, found
        waiting = {each["sender"]: each for each in found["pairings"]}
        assert str(person) in waiting, waiting
        return dict(waiting[str(person)])

    async def pairing(self, method: str, path: str, token: str | None = GATEWAY_TOKEN, **body: Any) -> tuple[int, Any]:
        """A call to the machine's own pairing port."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"http://{self.machine.address}:{PORTS['pairing']}{path}"
        async with (
            aiohttp.ClientSession() as web,
            web.request(method, url, headers=headers, json=body or None) as answer,
        ):
            text = await answer.text()
            return answer.status, await answer.json() if answer.content_type == "application/json" else text

    # --- what can be seen of the machine

    @property
    def applied_at(self) -> float:
        """When a heartbeat first told that what is declared now is in effect."""
        wanted = self.operator.bundle["revision"]
        return next(beat.at for beat in self.operator.beats if beat.body["bundleRevision"] == wanted)

    @property
    def starts(self) -> int:
        """How many times OpenClaw was started."""
        return len(self.machine.lines("runtime started"))

    @property
    def gateway(self) -> psutil.Process:
        """OpenClaw's process."""
        pid = self.operator.last["runtime"]["pid"]
        assert pid, f"OpenClaw does not run\n{self.scene()}"
        return psutil.Process(pid)

    @property
    def config(self) -> Path:
        return self.machine.data / "openclaw" / "openclaw.json"

    def scene(self) -> str:
        """What one would look at when something is wrong."""
        log = self.machine.log.read_text().splitlines()[-40:] if self.machine.log.exists() else []
        return "\n".join([f"last heartbeat: {self.operator.last}", *log])


async def shot(world: World, number: signal.Signals = signal.SIGKILL) -> tuple[int, float]:
    """Sends OpenClaw a signal; returns its pid and the moment."""
    pid = world.gateway.pid
    os.kill(pid, number)
    return pid, time.monotonic()


async def another(world: World, pid: int, seconds: float = START_SECONDS) -> float:
    """Waits until another process of OpenClaw than this one has been started; returns the moment."""
    await eventually(lambda: any(line["pid"] != pid for line in _since(world, pid)), "another process", seconds)
    return time.monotonic()


def _since(world: World, pid: int) -> list[dict[str, Any]]:
    """The starts after that of this process."""
    starts = world.machine.lines("runtime started")
    place = next(i for i, line in enumerate(starts) if line["pid"] == pid)
    return starts[place + 1 :]


async def stays(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """It is so now, and for as long as this."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert condition(), what
        await asyncio.sleep(0.1)
