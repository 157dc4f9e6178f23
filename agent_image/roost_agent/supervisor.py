"""Keeps one runtime alive: starts it, knows when it is ready, starts it again when it ends, ends it with its group.

It promises that never two processes of it run at once, that an end nobody asked for is followed by another start
(1 s later, then doubling to 300 s, afresh after 30 s of being ready; exit 0 is no exception), and that stopping takes
the grace and not longer. It never reads what the runtime prints, and never judges by anything but exit and readiness.
"""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import structlog

from roost_agent import readiness
from roost_agent.backoff import RESTARTS, deaths
from roost_agent.contract.bundle import Readiness
from roost_agent.contract.heartbeat import LastExit, ProcessState, RuntimeState
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
        address: Where the readiness check looks, and from where.
        before_start: Called before every start, in a thread.
        changed: Called after every change of what can be seen.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        grace: float,
        address: str,
        before_start: Callable[[], None],
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._reaper = reaper
        self._grace = grace
        self._address = address
        self._before_start = before_start
        self._changed = changed
        self._clock = clock
        self._state = ProcessState.STOPPED
        self._ready = False
        self._pid: int | None = None
        self._restarts = 0
        self._last_exit: LastExit | None = None
        self._wanted: Launch | None = None
        self._turn = asyncio.Event()
        self._tried = asyncio.Event()
        self._stopped = False
        self._ready_since: float | None = None

    @property
    def state(self) -> RuntimeState:
        """What a heartbeat says of the process."""
        return RuntimeState(state=self._state, pid=self._pid, restarts=self._restarts, last_exit=self._last_exit)

    @property
    def ready(self) -> bool:
        return self._ready

    async def run(self, launch: Launch | None) -> None:
        """Keeps it alive until `stop`; to be run once, as a task that is not cancelled. None: `restart` brings it."""
        self._wanted, died = launch, 0
        # From the machine's own address, so that a look is never taken for somebody's visit.
        connector = aiohttp.TCPConnector(local_addr=(self._address, 0))
        async with aiohttp.ClientSession(connector=connector, timeout=readiness.TIMEOUT) as web:
            while not self._stopped:
                if self._wanted is None:
                    await self._turn.wait()
                    continue
                self._turn.clear()
                healthy = await self._live(self._wanted, web)
                if healthy is None:
                    died = 0
                    continue
                died = deaths(died, healthy)
                await self._wait_for_next_start(RESTARTS.seconds(died))
        self._show(ProcessState.STOPPED)

    async def restart(self, launch: Launch) -> None:
        """Ends the process, if there is one, and starts this one without delay. Returns once that has been tried."""
        if self._stopped:
            return
        self._wanted = launch
        self._tried.clear()
        self._turn.set()
        await self._tried.wait()

    def stop(self) -> None:
        """Ends the process for good; `run` returns when nothing of it is left."""
        self._stopped = True
        self._turn.set()
        self._tried.set()

    async def _live(self, launch: Launch, web: aiohttp.ClientSession) -> float | None:
        """One life. Returns for how many seconds it was ready when it ended unasked, None when it was asked to end."""
        await asyncio.to_thread(self._before_start)
        try:
            process = self._reaper.spawn(launch)
        except OSError as error:
            self._never_started(error)
            return 0.0
        finally:
            self._tried.set()
        _log.info("runtime started", pid=process.pid)
        self._ready_since = None
        self._show(ProcessState.STARTING, process.pid)
        late = asyncio.create_task(self._follow(launch.readiness, web))
        turn = asyncio.create_task(self._turn.wait())
        until: set[asyncio.Future[Any]] = {process.exited, late, turn}
        await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
        if late.done():
            late.result()  # a defect of the check must not pass for a late runtime
        late.cancel()
        turn.cancel()
        asked = self._turn.is_set() and not process.exited.done()
        healthy = 0.0 if self._ready_since is None else self._clock() - self._ready_since
        how = await self._end(process)
        _log.info("runtime ended", pid=process.pid, asked=asked, code=how.code, signal=how.signal)
        self._show(ProcessState.STOPPED if asked else ProcessState.CRASHED, last_exit=how)
        return None if asked else healthy

    async def _end(self, process: Process) -> LastExit:
        """Leaves nothing of the group, nor of what escaped from it, whether its leader still lives or not."""
        if not process.exited.done():
            self._show(ProcessState.STOPPING, process.pid)
            process.signal_group(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._grace):
                    await self._reaper.group_gone(process)
            except TimeoutError:
                _log.warning("runtime outlived its grace", pid=process.pid, seconds=self._grace)
        process.signal_group(signal.SIGKILL)
        self._reaper.kill_descendants()
        return await process.exited

    async def _wait_for_next_start(self, seconds: float) -> None:
        _log.info("runtime starts again", seconds=seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._turn.wait()
        except TimeoutError:
            self._restarts += 1

    def _never_started(self, error: OSError) -> None:
        _log.error("runtime can't be started", why=error.strerror)
        code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        self._show(ProcessState.CRASHED, last_exit=self._reaper.exit_of(code))

    async def _follow(self, said: Readiness, web: aiohttp.ClientSession) -> None:
        """Returns when the runtime was not ready in time."""
        get, deadline = said.http_get, said.initial_deadline_seconds
        if get is None:
            await readiness.settle(self._set_ready)
        else:
            await readiness.follow(readiness.by_http(web, self._address, get), deadline, self._set_ready)
        _log.warning("runtime not ready in time", seconds=deadline)

    def _set_ready(self, ready: bool) -> None:
        if ready == self._ready:
            return
        _log.info("runtime ready" if ready else "runtime no longer ready", pid=self._pid)
        self._ready, self._state = ready, ProcessState.RUNNING
        if self._ready_since is None:
            self._ready_since = self._clock()
        self._changed()

    def _show(self, state: ProcessState, pid: int | None = None, last_exit: LastExit | None = None) -> None:
        self._state, self._pid, self._ready = state, pid, False
        self._last_exit = last_exit or self._last_exit
        self._changed()
