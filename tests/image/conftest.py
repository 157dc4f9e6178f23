"""One operator and one machine for each test; nothing outlives it."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from endpoint import OperatorDouble
from machine import Machine

_numbers = itertools.count(1)


@pytest.fixture
async def operator() -> AsyncIterator[OperatorDouble]:
    double = OperatorDouble()
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
def machine(operator: OperatorDouble, tmp_path: Path) -> Iterator[Machine]:
    # Of this process and this test alone: another run beside it has other addresses.
    host = os.getpid() % 250 * 250 + next(_numbers) % 250
    made = Machine(operator, tmp_path, f"127.{90 + os.getpid() // 250 % 60}.{host // 250 + 1}.{host % 250 + 1}")
    yield made
    made.kill()
