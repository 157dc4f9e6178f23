"""Simulators on real sockets with real processes, one per test."""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from flysim_client import TOKEN, Client, Make
from flysim_images import IMAGES

from flysim.clock import Clock
from flysim.http import Server
from flysim.process import Catalogue, ProcessRunner, StateDirectory
from flysim.sim import Sim
from flysim.world import Timing

FAST = {"prepare": 0.03, "replace": 0.03, "active": 0.05, "unbind": 0.05, "restart": 0.02, "grace": 1.0}


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes simulators; keyword arguments are timings, `orgs`, `rate_limits` and `seed`."""
    ends: list[Callable[[], Awaitable[None]]] = []

    async def make_one(**options: Any) -> Client:
        orgs = options.pop("orgs", ("personal",))
        limits = options.pop("rate_limits", False)
        seed = options.pop("seed", None)
        state = StateDirectory(tmp_path / f"state-{len(ends)}")
        sim = Sim(
            ProcessRunner(state, Catalogue.model_validate(IMAGES)),
            Clock(time.time()),
            random.Random(seed),
            tokens=[TOKEN, "fm2_other"],
            orgs=orgs,
            timing=Timing(**{**FAST, **options}),
            rate_limits=limits,
            ledger=state.ledger,
        )
        server = Server(sim)
        client = Client(await server.start("127.0.0.1", 0), sim)

        async def end() -> None:
            await client.close()
            await server.close()
            await sim.close()
            state.release()

        ends.append(end)
        return client

    yield make_one
    for end in ends:
        await end()


@pytest.fixture
async def fly(make: Make) -> Client:
    """A simulator in which everything goes fast."""
    return await make()
