"""Starts processes and takes in the dead: what a PID 1 owes to everything below it.

There is one place that waits for children, so an exit code is never stolen and no zombie is left, whoever the parent
was. Therefore nothing else in this process may wait for a child: no `asyncio.subprocess`, no `Popen.wait`.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from roost_agent.contract.heartbeat import LastExit
from roost_agent.runtime import Launch

__all__ = ["Process", "Reaper"]


@dataclass(frozen=True, slots=True)
class Process:
    """A process that leads its own session and group. `exited` is done once it has been reaped."""

    pid: int
    exited: asyncio.Future[LastExit]

    def signal_group(self, number: signal.Signals) -> None:
        """Signals the process and all that it left in its group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    @property
    def group_lives(self) -> bool:
        """Something of the group is still there. The kernel gives the number to nobody else as long as it is."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class Reaper:
    """Must be made inside the running loop; takes over SIGCHLD of the process."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._started: dict[int, tuple[subprocess.Popen[bytes], asyncio.Future[LastExit]]] = {}
        self._deaths = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def spawn(self, launch: Launch) -> Process:
        """Starts a process in a session of its own, with nothing on its standard input.

        Raises:
            OSError: the program is not there or can't be executed.
        """
        started = subprocess.Popen(
            launch.argv, env=launch.env, cwd=launch.cwd, stdin=subprocess.DEVNULL, start_new_session=True
        )
        exited: asyncio.Future[LastExit] = self._loop.create_future()
        # Reaping happens in this same thread, so it can't be missed between the start and this line.
        self._started[started.pid] = (started, exited)
        return Process(started.pid, exited)

    async def group_gone(self, process: Process) -> None:
        """Waits until nothing of the group is left. Orphans of it are ours, so the last death wakes us."""
        while process.group_lives:
            self._deaths.clear()
            await self._deaths.wait()

    def kill_descendants(self) -> None:
        """Ends whatever is left below this process, also what has moved to a session of its own."""
        for left in psutil.Process().children(recursive=True):
            try:
                left.kill()
            except psutil.NoSuchProcess:
                pass

    def _reap(self) -> None:
        """Takes in every dead child. SIGCHLDs merge, so one signal may stand for many deaths."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._started:
                started, exited = self._started.pop(pid)
                started.returncode = os.waitstatus_to_exitcode(status)  # else Popen would wait for this number itself
                exited.set_result(self.exit_of(started.returncode))
        self._deaths.set()

    def exit_of(self, code: int) -> LastExit:
        """An end at this moment: an exit code, or the negative number of a signal."""
        at = self._now().isoformat(timespec="milliseconds")
        return LastExit(signal=-code, at=at) if code < 0 else LastExit(code=code, at=at)
