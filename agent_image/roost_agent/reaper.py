"""Starts processes and takes in the dead: what a PID 1 owes to everything below it.

There is one place that waits for children, so an exit code is never stolen and no zombie is left, whoever the parent
was. Therefore nothing else in this process may wait for a child: no `asyncio.subprocess`, no `Popen.wait`.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from roost_agent.contract.heartbeat import LastExit
from roost_agent.lines import Lines
from roost_agent.runtime import Launch, Ran, User

__all__ = ["Process", "Reaper"]

_MOST_OUTPUT = 4 * 2**20
"""Bytes of what a short program prints that are kept."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that leads its own session and group. `exited` is done once it has been reaped."""

    pid: int
    exited: asyncio.Future[LastExit]

    def signal(self, number: signal.Signals, *, group: bool) -> None:
        """Signals the process, or it and all that it left in its group; nothing of what is gone."""
        try:
            if group:
                os.killpg(self.pid, number)
            elif not self.exited.done():
                os.kill(self.pid, number)
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
        self._runs: set[int] = set()
        """The short programs that are under way."""
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def spawn(self, launch: Launch) -> Process:
        """Starts a process in a session of its own, with nothing on its standard input.

        Raises:
            OSError: the program is not there, can't be executed, or not as that user.
        """
        if (tell := launch.output) is None:
            return self._spawn(launch.argv, launch.env, launch.cwd, launch.user)
        lines = Lines(tell)
        try:
            process = self._spawn(
                launch.argv, launch.env, launch.cwd, launch.user, stdout=lines.write_end, stderr=lines.write_end
            )
        except OSError:
            lines.started()
            lines.close()
            raise
        lines.started()
        process.exited.add_done_callback(lambda _: lines.close())
        return process

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, user: User | None, seconds: float
    ) -> Ran:
        """Runs a short program to its end; see `roost_agent.runtime.Run`."""
        printed: list[bytearray] = [bytearray(), bytearray()]

        def keep(to: bytearray) -> Callable[[bytes], None]:
            def line(text: bytes) -> None:
                if len(to) < _MOST_OUTPUT:
                    to.extend(text + b"\n")

            return line

        out, err = Lines(keep(printed[0])), Lines(keep(printed[1]))
        try:
            process = self._spawn(argv, env, cwd, user, stdout=out.write_end, stderr=err.write_end)
        except OSError:
            for each in (out, err):
                each.started()
                each.close()
            raise
        out.started()
        err.started()
        self._runs.add(process.pid)
        try:
            async with asyncio.timeout(seconds):
                ended = await asyncio.shield(process.exited)
        finally:
            self._runs.discard(process.pid)
            process.signal(signal.SIGKILL, group=True)
            out.close()
            err.close()
        code = -ended.signal if ended.signal is not None else ended.code or 0
        return Ran(code, bytes(printed[0]), bytes(printed[1]))

    def _spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        user: User | None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Process:
        started = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else [],
            umask=-1 if user is None else 0o077,
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
        """Ends whatever is left below this process but short programs, also what moved to a session of its own."""
        for child in psutil.Process().children():
            if child.pid in self._runs:
                continue
            for left in (*_below(child), child):
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


def _below(process: psutil.Process) -> Sequence[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return ()
