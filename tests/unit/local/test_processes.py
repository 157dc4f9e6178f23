"""Children are recorded before they run, recognised by pid and start time, and always ended."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from roost.local import processes
from roost.local.processes import Child


@pytest.fixture
def children() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that are ended whatever the test did."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def spawn(tmp_path: Path, children: list["subprocess.Popen[bytes]"], *argv: str) -> Child:
    child, process = processes.spawn(
        "victim",
        argv,
        env={"PATH": os.environ["PATH"], "ONLY": "this"},
        log=tmp_path / "log",
        address="-",
        patience=0.2,
        record=lambda _: None,
    )
    children.append(process)
    return child


def test_nothing_runs_before_it_is_on_record(tmp_path: Path) -> None:
    seen: list[Child] = []

    def fail(child: Child) -> None:
        seen.append(child)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        processes.spawn(
            "x", ["touch", str(tmp_path / "ran")], env={}, log=tmp_path / "log", address="-", patience=1, record=fail
        )
    assert not psutil.pid_exists(seen[0].pid)
    assert not (tmp_path / "ran").exists()


def test_a_child_has_its_own_session_and_environment_and_log(
    tmp_path: Path, children: list["subprocess.Popen[bytes]"]
) -> None:
    code = "import os; print(os.getpid() == os.getsid(0), sorted(os.environ), os.read(0, 1))"
    child = spawn(tmp_path, children, sys.executable, "-c", code)
    assert children[0].wait(30) == 0
    (line,) = processes.last_lines(tmp_path / "log", 5)
    assert line.startswith("True ")
    assert "'ONLY'" in line
    assert "HOME" not in line
    assert line.endswith("b''")
    assert processes.find(child.pid, child.started) is None


def test_a_pid_alone_is_not_enough(tmp_path: Path, children: list["subprocess.Popen[bytes]"]) -> None:
    child = spawn(tmp_path, children, "tail", "-f", "/dev/null")
    assert processes.find(child.pid, child.started) is not None
    assert processes.find(child.pid, child.started - 2) is None
    assert not processes.end(child.pid, child.started - 2, patience=0)
    assert children[0].poll() is None


def test_a_zombie_is_not_alive(tmp_path: Path, children: list["subprocess.Popen[bytes]"]) -> None:
    child = spawn(tmp_path, children, "true")
    assert processes.wait_gone(child.pid, child.started, seconds=30)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE


def test_end_asks_first_and_insists_afterwards(tmp_path: Path, children: list["subprocess.Popen[bytes]"]) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('heard', flush=True));"
        "print('ready', flush=True)\nwhile True: signal.pause()"
    )
    polite = spawn(tmp_path, children, "tail", "-f", "/dev/null")
    stubborn = spawn(tmp_path, children, sys.executable, "-c", deaf)
    wait_for_line(tmp_path / "log", "ready")
    for child, popen in zip((polite, stubborn), children, strict=True):
        assert processes.end(child.pid, child.started, patience=child.patience, reap=popen.poll)
        assert not processes.end(child.pid, child.started, patience=child.patience)
    assert [popen.returncode for popen in children] == [-signal.SIGTERM, -signal.SIGKILL]
    assert "heard" in processes.last_lines(tmp_path / "log", 5)


def wait_for_line(log: Path, line: str) -> None:
    """Waits until a log has a line, with a deadline."""
    patience = threading.Event()
    for _ in range(1500):
        if line in processes.last_lines(log, 5):
            return
        patience.wait(0.02)
    raise AssertionError(f"{log} never said {line!r}: {processes.last_lines(log, 20)}")
