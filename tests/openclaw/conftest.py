"""One world for each module: a start of OpenClaw costs ten seconds of a core, so its stories share a machine."""

import itertools
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.append(str(Path(__file__).parents[1] / "image"))  # the machine and the operator's double are the same there

from openclaw_world import World

from roost.local import openclaw

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def opt() -> Path:
    """Where the real OpenClaw and its Node are; installed on first use."""
    return openclaw.find()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(opt: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    number = next(_numbers)
    made = World(
        tmp_path_factory.mktemp("world"), f"127.{160 + os.getpid() // 250 % 60}.{os.getpid() % 250 + 1}.{number}", opt
    )
    await made.open()
    yield made
    await made.close()
