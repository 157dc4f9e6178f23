"""Keeps one runtime alive: starts it, knows when it is ready, starts it again when it ends, ends it with its group.

It promises that never two processes of it run at once, that an end nobody asked for is followed by what the runtime's
policy says, and that stopping takes the grace and not longer. It never reads what the runtime prints, and never judges
by anything but how it ended and what follows its life.
"""

import asyncio
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from roost_agent.backoff import Random
from roost_agent.contract.heartbeat import LastExit, ProcessState, RuntimeState
from roost_agent.policy import LIVES, Life
from roost_agent.reaper import Process, Reaper
from roost_agent.runtime import Launch

__all__ = ["Supervisor"]

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
"""What a shell would have said of a program that can't be started."""
_log = structlog.get_logger()


class Supervisor:
    """One runtime, in one task of its own.

    Args:
        grace: Seconds from SIGTERM to SIGKILL.
        before_start: Called before every start, in a thread.
        changed: Called after every change of what can be seen.
        trouble: Hears what the policy says of the runtime, None when that is no longer true.
        clock: A monotonic clock, in seconds.
        random: Numbers from 0 up to 1, for the jitter.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        grace: float,
        before_start: Callable[[], None],
        changed: Callable[[], None],
        trouble: Callable[[str | None], object],
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._reaper = reaper
        self._grace = grace
        self._before_start = before_start
        self._changed = changed
        self._trouble = trouble
        self._clock = clock
        self._random = random
        self._state = ProcessState.STOPPED
        self._ready = False
        self._pid: int | None = None
        self._restarts = 0
        self._last_exit: LastExit | None = None
        self._wanted: Launch | None = None
        self._lives: deque[Life] = deque(maxlen=LIVES)
        self._turn = asyncio.Event()
        self._tried = asyncio.Event()
        self._moved = asyncio.Event()
        self._busy = False
        """A process lives, or is about to."""
        self._stopped = False
        self._ready_since: float | None = None
        self.ends = 0
        """How many lives have ended that nobody asked to end, since the last `restart`."""

    @property
    def state(self) -> RuntimeState:
        """What a heartbeat says of the process."""
        return RuntimeState(state=self._state, pid=self._pid, restarts=self._restarts, last_exit=self._last_exit)

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def idle(self) -> bool:
        """Nothing runs, and nothing will before `restart`."""
        return self._wanted is None

    @property
    def held(self) -> bool:
        """It ended, and by its policy another start would be in vain."""
        return self._wanted is None and self._state is ProcessState.CRASHED

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition, of what can be seen here, has come true."""
        while not condition():
            await self._moved.wait()

    async def run(self, launch: Launch | None) -> None:
        """Keeps it alive until `stop`; to be run once, as a task that is not cancelled. None: `restart` brings it."""
        self._wanted = launch
        while not self._stopped:
            self._turn.clear()
            if (wanted := self._wanted) is None:
                await self._turn.wait()
                continue
            self._busy = True
            life = await self._live(wanted)
            self._busy = False
            self._tell()
            if life is None or self._turn.is_set():
                continue  # something else is wanted by now
            self._lives.append(life)
            self.ends += 1
            then = wanted.policy(self._lives, self._random)
            self._trouble(then.trouble)
            if then.seconds is None:
                self._wanted = None
                self._tell()
            else:
                await self._wait_for_next_start(then.seconds)
        self._show(ProcessState.STOPPED)

    async def restart(self, launch: Launch) -> None:
        """Ends the process, if there is one, and starts this one without delay. Returns once that has been tried."""
        if self._stopped:
            return
        self._wanted = launch
        self._lives.clear()
        self.ends = 0
        self._trouble(None)
        self._tried.clear()
        self._turn.set()
        await self._tried.wait()

    async def halt(self) -> None:
        """Ends the process, if there is one, and starts none until `restart`. Returns when nothing of it is left."""
        self._wanted = None
        self._turn.set()
        await self.until(lambda: not self._busy or self._stopped)
        if not self._stopped:
            self._show(ProcessState.STOPPED)  # also what had crashed: now it was asked for

    def stop(self, grace: float | None = None) -> None:
        """Ends the process for good; `run` returns when nothing of it is left. Another grace counts from now on."""
        self._grace = self._grace if grace is None else grace
        self._stopped = True
        self._turn.set()
        self._tried.set()
        self._tell()

    async def _live(self, launch: Launch) -> Life | None:
        """One life. Returns how it ended unasked, None when it was asked to end."""
        await asyncio.to_thread(self._before_start)
        if self._turn.is_set():
            return None
        try:
            process = self._reaper.spawn(launch)
        except OSError as error:
            return self._never_started(error)
        finally:
            self._tried.set()
        _log.info("runtime started", pid=process.pid)
        self._ready_since = None
        self._show(ProcessState.STARTING, process.pid)
        follow = asyncio.ensure_future(launch.follow(self._set_ready))
        turn = asyncio.create_task(self._turn.wait())
        until: set[asyncio.Future[Any]] = {process.exited, follow, turn}
        await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
        asked = self._turn.is_set() and not process.exited.done()
        if follow.done():
            _log.warning("runtime is given up", pid=process.pid, why=follow.result())  # a defect must not pass for one
        turn.cancel()
        follow.cancel()
        await asyncio.gather(turn, follow, return_exceptions=True)
        healthy = 0.0 if self._ready_since is None else self._clock() - self._ready_since
        outlived, how = await self._end(process, launch)
        _log.info("runtime ended", pid=process.pid, asked=asked, code=how.code, signal=how.signal)
        self._show(ProcessState.STOPPED if asked else ProcessState.CRASHED, last_exit=how)
        return None if asked else Life(self._clock(), healthy, how.code, killed=outlived)

    async def _end(self, process: Process, launch: Launch) -> tuple[bool, LastExit]:
        """Leaves nothing of the group, nor of what escaped from it, whether its leader still lives or not.

        Returns whether it had to be killed, and how it ended.
        """
        outlived = False
        if not process.exited.done():
            self._show(ProcessState.STOPPING, process.pid)
            process.signal(signal.SIGTERM, group=launch.term_group)
            try:
                async with asyncio.timeout(self._grace):
                    await self._reaper.group_gone(process)
            except TimeoutError:
                outlived = not process.exited.done()
                _log.warning("runtime outlived its grace", pid=process.pid, seconds=self._grace)
        process.signal(signal.SIGKILL, group=True)
        self._reaper.kill_descendants()
        return outlived, await process.exited

    async def _wait_for_next_start(self, seconds: float) -> None:
        _log.info("runtime starts again", seconds=round(seconds, 1))
        try:
            async with asyncio.timeout(seconds):
                await self._turn.wait()
        except TimeoutError:
            self._restarts += 1

    def _never_started(self, error: OSError) -> Life:
        _log.error("runtime can't be started", why=error.strerror)
        code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        self._show(ProcessState.CRASHED, last_exit=self._reaper.exit_of(code))
        return Life(self._clock(), 0.0, code)

    def _set_ready(self, ready: bool) -> None:
        if ready == self._ready:
            return
        _log.info("runtime ready" if ready else "runtime no longer ready", pid=self._pid)
        self._ready, self._state = ready, ProcessState.RUNNING
        if self._ready_since is None:
            self._ready_since = self._clock()
        self._tell()

    def _show(self, state: ProcessState, pid: int | None = None, last_exit: LastExit | None = None) -> None:
        self._state, self._pid, self._ready = state, pid, False
        self._last_exit = last_exit or self._last_exit
        self._tell()

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
        self._changed()
