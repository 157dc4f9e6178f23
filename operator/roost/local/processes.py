"""Child processes that outlive their starter: started, recorded, recognised and ended.

Promises: a child runs only after its pid is on record, so a starter killed at any moment leaves nothing unknown behind;
a pid counts only together with its start time, so nothing foreign is ever ended; ending is SIGTERM, a bounded wait,
SIGKILL. Never ends by name.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# Waits for one line, so that the pid can be put on record first; end of file instead (the starter died) ends it.
_GATE = 'read -r _ && exec "$@" </dev/null'

_STARTED_TOLERANCE = 0.5
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.01
_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Child:
    """A process on record.

    `started` is in seconds after boot (it stays true when the wall clock is set), `since` in epoch seconds, `patience`
    in seconds between SIGTERM and SIGKILL.
    """

    name: str
    pid: int
    started: float
    since: float
    address: str
    log: str
    patience: float


class StillRunningError(Exception):
    """A process that survived SIGKILL (it hangs in the kernel); the message names it."""


def started_after_boot(pid: int) -> float:
    """When a process began, in seconds after boot. Raises psutil.NoSuchProcess.

    psutil adds the boot time, in whole seconds, and the kernel may tell another one when the clock is being adjusted.
    """
    while True:
        booted = psutil.boot_time()
        created = psutil.Process(pid).create_time()
        if psutil.boot_time() == booted:
            return created - booted


def spawn(
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    address: str,
    patience: float,
    record: Callable[[Child], None],
) -> tuple[Child, "subprocess.Popen[bytes]"]:
    """Starts `argv` in its own session with its output appended to `log`, once `record` has stored it."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GATE, "sh", *argv],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        started = started_after_boot(process.pid)
        child = Child(name, process.pid, started, time.time(), address, str(log), patience)
        record(child)
    except BaseException:
        process.stdin.close()
        process.wait()
        raise
    with contextlib.suppress(BrokenPipeError):  # it is gone already: the readiness check tells
        process.stdin.write(b"\n")
        process.stdin.close()
    return child, process


def find(pid: int, started: float) -> psutil.Process | None:
    """The live process with this pid and start time (seconds after boot), if there is one; a zombie is not alive."""
    try:
        process = psutil.Process(pid)
        if abs(started_after_boot(pid) - started) > _STARTED_TOLERANCE or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def end(pid: int, started: float, *, patience: float, reap: Callable[[], object] = lambda: None) -> bool:
    """Ends one process: SIGTERM, up to `patience` seconds, SIGKILL. True when there was something to end.

    `reap` is called while waiting: a parent passes its `Popen.poll`. Raises StillRunningError.
    """
    process = find(pid, started)
    if process is None:
        reap()
        return False
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, _KILL_SECONDS)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        if wait_gone(pid, started, seconds=seconds, reap=reap):
            return True
    raise StillRunningError(f"process {pid} does not end, not even with SIGKILL")


def wait_gone(pid: int, started: float, *, seconds: float, reap: Callable[[], object] = lambda: None) -> bool:
    """Waits until the process is gone; False when it is still there after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        reap()
        if find(pid, started) is None:
            reap()  # it may have ended between the two
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log file (of its last 64 KiB), without line ends."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
