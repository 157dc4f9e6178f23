"""The supervisor as a real PID 1, in a root directory that the image's own script has made."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint import OperatorDouble, refuse
from machine import eventually
from pid1_root import FirstProcess, root_directory, why_not

from roost_agent.contract import Exit

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

ORPHANS = 50
LEAVES_ORPHANS = """
import os, pathlib, signal, time
for i in range(int(ORPHANS)):
    if os.fork() == 0:
        if i % 2:
            os.setsid()
        if os.fork() == 0:
            while not pathlib.Path("go").exists():
                time.sleep(0.05)
            os._exit(i)
        os._exit(0)
    os.wait()
pathlib.Path("forked").touch()
signal.pause()
"""
ENDS_AS_TOLD = """
import os, pathlib, signal, time
while not (told := pathlib.Path("end")).exists():
    time.sleep(0.02)
how = int(told.read_text())
if how < 0:
    os.kill(os.getpid(), -how)
os._exit(how)
"""
DEAF = """
import pathlib, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("deaf").touch()
while True:
    signal.pause()
"""

TRIES_TO_WRITE = """
import os, pathlib, signal
said = []
for path in ("/opt/roost/build.json", "/opt/roost/roost_agent/py.typed", "/etc/passwd", "/new"):
    try:
        with open(path, "a") as file:
            file.write("x")
        said.append(path)
    except OSError as error:
        said.append(error.strerror)
pathlib.Path("saying").write_text("\\n".join(said))
os.rename("saying", "said")
signal.pause()
"""


@pytest.fixture(scope="session")
def root() -> Path:
    return root_directory()


@pytest.fixture
async def operator() -> Iterator[OperatorDouble]:
    double = OperatorDouble()
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
def machine(operator: OperatorDouble, tmp_path: Path, root: Path) -> Iterator[FirstProcess]:
    address = f"127.{150 + os.getpid() // 62500 % 9}.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"
    made = FirstProcess(operator, tmp_path, address, root)
    yield made
    made.kill()


def runs(program: str) -> dict[str, object]:
    return {"kind": "Command", "version": "1.0", "command": ["/usr/bin/python3", "-I", "-S", "-c", program]}


async def test_orphans_are_taken_in_and_no_zombie_is_left(machine: FirstProcess, operator: OperatorDouble) -> None:
    operator.change(runtime=runs(LEAVES_ORPHANS.replace("ORPHANS", str(ORPHANS))))
    machine.enter()
    await machine.ready()
    await eventually(machine.at("forked").exists, "the orphans")
    # Given that it is the first process, and that orphans of both kinds have become its children
    assert machine.nspid(machine.first) == 1
    assert len(machine.inside()) == ORPHANS + 1
    assert len(machine.first.children()) == ORPHANS + 1
    # When they end
    machine.at("go").touch()
    # Then nothing of them is left, and the runtime is still the one that was started
    pid = operator.last["runtime"]["pid"]
    await eventually(lambda: set(machine.inside()) == {pid}, "no zombie, no orphan")
    assert await machine.stopped(signal.SIGTERM) == Exit.ASKED


@pytest.mark.parametrize(("how", "told"), [(0, (0, None)), (78, (78, None)), (-9, (None, 9)), (-11, (None, 11))])
async def test_how_the_runtime_ended_is_told_as_it_was(
    machine: FirstProcess, operator: OperatorDouble, how: int, told: tuple[int | None, int | None]
) -> None:
    operator.change(runtime=runs(ENDS_AS_TOLD))
    machine.enter()
    await machine.ready()
    machine.at("end").write_text(str(how))
    await machine.heard(lambda b: b["runtime"]["lastExit"], "how it ended")
    last = operator.last["runtime"]["lastExit"]
    assert (last["code"], last["signal"]) == told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_process_heeds_the_signal_to_stop(
    machine: FirstProcess, operator: OperatorDouble, number: signal.Signals
) -> None:
    machine.enter()
    await machine.ready()
    below = list(machine.inside().values())
    assert await machine.stopped(number) == Exit.ASKED
    assert not any(each.is_running() for each in below)
    assert operator.last["status"] == "stopping"


async def test_a_runtime_that_does_not_heed_it_is_ended_within_the_grace(
    machine: FirstProcess, operator: OperatorDouble
) -> None:
    operator.change(runtime=runs(DEAF))
    machine.enter(ROOST_STOP_GRACE_SECONDS="0.5")
    await machine.ready()
    await eventually(machine.at("deaf").exists, "a deaf runtime")
    assert await machine.stopped(signal.SIGTERM) == Exit.ASKED


async def test_the_signal_is_heeded_while_it_boots(machine: FirstProcess, operator: OperatorDouble) -> None:
    operator.bundle_answer = refuse(500)
    machine.enter()
    await eventually(lambda: operator.bundle_calls, "the first call")
    assert await machine.stopped(signal.SIGTERM) == Exit.ASKED


async def test_it_refuses_a_data_directory_that_should_be_a_mount_and_is_not(
    machine: FirstProcess, operator: OperatorDouble
) -> None:
    machine.enter(mounted=False)
    assert await machine.ended() == Exit.BAD_ENVIRONMENT
    assert "DATA_DIR /data is no mount" in machine.log.read_text()
    assert operator.bundle_calls == []
    assert list((machine.root / "data").iterdir()) == []


async def test_the_same_machine_without_that_demand_starts_on_any_directory(
    machine: FirstProcess, operator: OperatorDouble
) -> None:
    machine.environment.pop("ROOST_REQUIRE_MOUNT")
    machine.enter(mounted=False, DATA_DIR="/tmp/data")
    await machine.ready()
    assert await machine.stopped(signal.SIGTERM) == Exit.ASKED


async def test_nothing_of_the_image_can_be_written_to(machine: FirstProcess, operator: OperatorDouble) -> None:
    operator.change(runtime=runs(TRIES_TO_WRITE))
    machine.enter()
    await machine.ready()
    await eventually(machine.at("said").exists, "what it was answered")
    assert machine.at("said").read_text().split("\n") == ["Read-only file system"] * 4
    assert (machine.code / "py.typed").stat().st_size == 0
