"""A simulator without sockets and processes, for stories on virtual time."""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

from flysim_client import TOKEN
from flysim_openapi import check, check_request

from flysim.call import Answer
from flysim.clock import Clock
from flysim.runner import BootError, Launch
from flysim.sim import Sim
from flysim.virtual import Script, VirtualMachine, VirtualRunner

EPOCH = 1_800_000_000.0
MANNERS = {
    "": Script(),
    "mortal": Script(lives=100),
    "slow": Script(boot=5),
    "brief": Script(lives=0),
    "stubborn": Script(obeys=False),
}


def manner(launch: Launch) -> Script:
    """What a machine does is in its arguments."""
    if launch.image != "puppet":
        raise BootError("no such image")
    return MANNERS["".join(launch.arguments)]


async def passing(seconds: float) -> None:
    """Lets virtual time pass."""
    await asyncio.sleep(seconds)


@dataclass
class World:
    sim: Sim
    runner: VirtualRunner
    clock: Clock

    async def call(self, method: str, path: str, body: Any = None, nonce: str = "", **query: Any) -> Answer:
        headers = {"authorization": f"Bearer {TOKEN}"} | ({"fly-machine-lease-nonce": nonce} if nonce else {})
        content = json.dumps(body).encode() if body is not None else b""
        answer = await self.sim.handle(method, path, {k: [str(v)] for k, v in query.items()}, headers, content)
        if answer.status < 400:
            check_request(method, path, content)
        check(method, path, answer.status, answer.headers.get("content-type", ""), answer.body)
        return answer

    async def json(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        answer = await self.call(method, path, body, **query)
        assert answer.status < 300, answer.body
        return json.loads(answer.body)

    @property
    def puppet(self) -> VirtualMachine:
        """What the only machine is now."""
        (machine,) = self.runner.machines.values()
        return machine

    async def machine(self, **fields: Any) -> str:
        made = await self.json("POST", "/v1/apps/ada/machines", {"config": {"image": "puppet"}} | fields)
        return f"/v1/apps/ada/machines/{made['id']}"


async def make_world(**options: Any) -> World:
    """A simulator with the app `ada`; keyword arguments are `Sim`'s."""
    clock, runner = Clock(EPOCH), VirtualRunner(manner)
    sim = Sim(runner, clock, random.Random(1), tokens=[TOKEN], **options)
    world = World(sim, runner, clock)
    await world.json("POST", "/v1/apps", {"name": "ada", "org_slug": "personal"})
    return world
