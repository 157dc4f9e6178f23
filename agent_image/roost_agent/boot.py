"""The life of the supervisor: an ordered boot, then heartbeat, commands and the runtime until something ends it.

Each step of the boot is named, timed and logged. The own port comes first, so that a machine that boots slowly is seen
to live; the kill switch comes before anything is installed or written. Signals are heeded from the first moment,
because a PID 1 without a handler does not hear them at all. Whatever ends it, the runtime is stopped first.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from random import SystemRandom
from typing import TypeVar

import structlog

from roost_agent import health, log
from roost_agent.activity import Activity
from roost_agent.backoff import Random
from roost_agent.checkin import CheckinLoop
from roost_agent.contract.bundle import RuntimeKind
from roost_agent.contract.exits import Exit
from roost_agent.contract.heartbeat import BootPhase
from roost_agent.control import Control, Meant, Revoked
from roost_agent.doors import CONTROL, GATEWAY, PAIRING, Doors
from roost_agent.endpoint import CallFailed, Ended, Endpoint, Fetched, Superseded, pause, understood
from roost_agent.heartbeat import Heart
from roost_agent.reaper import Reaper
from roost_agent.runtime.command import CommandRuntime
from roost_agent.runtime.openclaw.binding import OpenClawRuntime
from roost_agent.servers.proxy import Traffic
from roost_agent.settings import Settings
from roost_agent.snapshot import NotRestored, Snapshots
from roost_agent.supervisor import Supervisor
from roost_agent.update import Update
from roost_agent.vitals import Vitals
from roost_agent.volume import Volume

__all__ = ["live"]

_PATIENCE_SECONDS = 10.0
_PATIENCE_ATTEMPTS = 4
"""How long, and how often at most, the endpoint is asked before the last good bundle from the volume is used."""
_LOOPBACK = "127.0.0.1"
_T = TypeVar("_T")
_log = structlog.get_logger()


def _wall() -> datetime:
    return datetime.now(UTC)


class _PortTaken(Exception):
    """Our own port can't be opened."""


async def live(settings: Settings, began: float, *, clock: Callable[[], float] = time.monotonic) -> Exit:
    """Boots, keeps the agent alive, and returns with what code to exit.

    Args:
        settings: The checked environment.
        began: When the process began, by `clock`.
        clock: A monotonic clock, in seconds.
    """
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(Endpoint(settings))
        return await _Life(settings, endpoint, stack, began, clock, SystemRandom().random).run()


class _Life:
    """Everything that belongs to one supervisor, put together."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        stack: AsyncExitStack,
        began: float,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._stack = stack
        self._began = began
        self._clock = clock
        self._random = random
        self._running: asyncio.Task[None] | None = None
        self._controlling: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._checking_in: asyncio.Task[None] | None = None
        self._kept: Fetched | None = None
        """The last good bundle, as the volume had it."""
        self._ending: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._vitals = Vitals(settings, began=began, clock=clock)
        self._volume = Volume(settings.data_dir, lambda: endpoint.token, settings.user)
        self._activity = Activity(settings.data_dir, settings.bind_address, _wall)
        self._reaper = Reaper()
        self._supervisor = Supervisor(
            self._reaper,
            grace=settings.grace,
            before_start=self._activity.forget,
            changed=self._vitals.changed,
            trouble=lambda why: self._vitals.trouble("process", why),
            clock=clock,
            random=random,
        )
        self._vitals.runtime = self._supervisor
        address = settings.bind_address or _LOOPBACK
        openclaw = OpenClawRuntime(
            settings,
            self._reaper.run,
            token=lambda: self._control.gateway_token,
            hidden=lambda: self._control.secrets,
            changed=self._vitals.changed,
        )
        traffic = self._vitals.traffic = Traffic(_wall)
        self._doors = Doors(
            settings,
            self._vitals,
            openclaw.pairings,
            traffic,
            openclaw.address,
            offer=lambda commands: self._control.offer(commands),  # noqa: PLW0108 - it is made below
            token=lambda: self._control.gateway_token,
        )
        snapshots = Snapshots(
            settings.data_dir,
            settings.did,
            live=lambda: self._supervisor.state.pid is not None,
            now=_wall,
            owner=settings.user,
        )
        self._update = Update(self._volume, snapshots, self._supervisor, now=_wall)
        self._control = Control(
            settings,
            endpoint,
            self._volume,
            {
                RuntimeKind.COMMAND: CommandRuntime(settings.base_env, settings.data_dir, address, settings.user),
                RuntimeKind.OPENCLAW: openclaw,
            },
            self._supervisor,
            self._vitals,
            self._update,
            serve=self._doors.suit,
            end=self._end,
            clock=clock,
            random=random,
        )
        log.hide(lambda: self._control.secrets)
        self._checkin = CheckinLoop(
            settings,
            endpoint,
            self._vitals,
            bundle=lambda: self._control.bundle,
            probe=self._probed,
            began=began,
            clock=clock,
            random=random,
        )
        self._openclaw = openclaw
        self._heart = Heart(
            endpoint, self._vitals, self._activity, offer=self._control.offer, clock=clock, wall=_wall, random=random
        )

    async def run(self) -> Exit:
        """Until a signal, a command, the kill switch, a successor or a defect ends it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, Ended(f"signal {number.name}"))
        boot = self._begin(self._boot())
        cause = await self._ending
        self._vitals.stopping = True
        self._vitals.changed()
        if isinstance(cause, Revoked | Superseded):
            await self._forget()
        await _cancelled(boot, self._controlling, self._checking_in)
        await self._drained()
        if self._running is not None:
            await asyncio.wait({self._running})
        self._reaper.kill_descendants()
        await self._doors.close()
        await _cancelled(self._beating)
        if self._beating is not None and not isinstance(cause, Superseded):
            await self._heart.last()
        return _verdict(cause)

    async def _drained(self) -> None:
        """Lets the runtime finish its turns within half of the grace; what is left of that is for its end."""
        began, grace = self._clock(), self._settings.grace
        if (binding := self._control.binding) is not None and self._supervisor.ready:
            await binding.drain(grace / 2)
        self._supervisor.stop(max(0.0, grace - (self._clock() - began)))

    async def _boot(self) -> None:
        settings, vitals = self._settings, self._vitals
        _log.info("boot step", phase=BootPhase.ENVIRONMENT, seconds=round(self._clock() - self._began, 3))
        with self._step(BootPhase.HEALTH):
            await self._open_port()
        with self._step(BootPhase.BUNDLE):
            fetched, fresh = await self._first_bundle()
        with self._step(BootPhase.KILL_SWITCH):
            if (bundle := fetched.bundle) is None:
                raise Revoked("revoked")
        structlog.contextvars.bind_contextvars(agent=f"{bundle.agent.namespace}/{bundle.agent.name}")
        runs = self._control.runs(bundle)
        meant = await self._control.meant(fetched) if runs else None
        with self._step(BootPhase.INSTALL):
            await self._settle()
            installed = meant is not None and await self._control.install(meant)
        with self._step(BootPhase.CONFIGURE):
            whole = meant is not None and installed and await self._control.configure(meant)
            if meant is not None and not whole and (good := await self._instead(fetched, meant)) is not None:
                meant, installed, whole, fresh = good, True, True, fresh and good.fetched is fetched
        with self._step(BootPhase.START):
            launch = None
            if meant is not None and installed and (whole or not meant.binding.state):
                launch = await self._control.first(meant, whole=whole, fresh=fresh)
            self._running = self._begin(self._supervisor.run(launch))
        with self._step(BootPhase.HEARTBEAT):
            if not fresh:
                self._control.fetch_soon()
            self._controlling = self._begin(self._control.run())
            self._beating = self._begin(self._heart.run())
            self._checking_in = self._begin(self._checkin.run())
        with self._step(BootPhase.CONTROL):
            await self._doors.suit(self._control.bundle or bundle, GATEWAY, CONTROL)
        with self._step(BootPhase.PAIRING):
            await self._doors.suit(self._control.bundle or bundle, PAIRING)
        vitals.phase = BootPhase.DONE
        vitals.changed()
        _log.info(
            "booted",
            did=settings.did,
            revision=bundle.revision,
            fresh=fresh,
            seconds=round(self._clock() - self._began, 3),
        )

    async def _open_port(self) -> None:
        port = self._settings.health_port
        try:
            runner = await health.serve(self._vitals, self._settings.bind_address, port)
        except OSError as error:
            raise _PortTaken(f"HEALTH_PORT {port} can't be opened ({error.strerror}): does another run here?") from None
        self._stack.push_async_callback(runner.cleanup)

    async def _probed(self) -> tuple[str, str] | None:
        """Version and commit of the runtime; None for one that has none."""
        bundle = self._control.bundle
        return await self._openclaw.probe(bundle) if bundle is not None and bundle.has_gateway else None

    async def _settle(self) -> None:
        """Makes the volume ready. One that can't be written to is told, and stops nothing."""
        for what in (self._volume.settle, self._update.recover):
            try:
                await asyncio.to_thread(what)
            except (OSError, NotRestored) as error:
                why = log.reason(error)
                self._vitals.trouble("volume", why)
                _log.warning("degraded", topic="volume", why=why)

    async def _first_bundle(self) -> tuple[Fetched, bool]:
        """The bundle to start with, and whether it is the endpoint's.

        Without a last good copy the endpoint is asked for ever: there is nothing else that could run. With one, a
        bundle that this image can't run changes nothing.
        """
        await self._until("token", self._endpoint.prove)  # without one, nothing could be unsealed
        kept = self._kept = await self._last_good()
        self._control.remembers(kept)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS if kept else None):
                fetched = await self._fetched(_PATIENCE_ATTEMPTS if kept else None)
            if kept is not None and fetched.bundle is not None and not self._control.runs(fetched.bundle):
                return kept, False
            return fetched, True
        except (TimeoutError, CallFailed) as error:
            assert kept is not None, "only with a copy in hand does the asking end"
            why = str(error) or "no answer in time"
            _log.warning("starting with the last good bundle", why=why)
            self._vitals.trouble("bundle", f"running with the last good copy: {why}")
            return kept, False

    async def _instead(self, fetched: Fetched, failed: Meant) -> Meant | None:
        """What is ready to be started when that can't be applied: the version before it, or the last good bundle."""
        for candidate in (fetched, self._kept):
            if candidate is None or candidate.bundle is None or not self._control.runs(candidate.bundle):
                continue
            meant = await self._control.meant(candidate)
            if meant != failed and await self._control.install(meant) and await self._control.configure(meant):
                return meant
        return None

    async def _fetched(self, attempts: int | None) -> Fetched:
        """The bundle, when there is one; the last of so many failures is raised."""
        fetched = await self._until("bundle", self._endpoint.bundle, attempts)
        assert fetched is not None, "an unconditional GET is never answered with 304"
        return fetched

    async def _until(self, what: str, call: Callable[[], Awaitable[_T]], attempts: int | None = None) -> _T:
        """Asks until there is an answer, backing off; the last of so many failures is raised."""
        failed, mood = 0, None
        while True:
            try:
                return await call()
            except CallFailed as error:
                failed += 1
                if type(error) is not mood:
                    mood = type(error)
                    _log.warning(f"no {what} yet", why=str(error))
                if failed == attempts:
                    raise
                await asyncio.sleep(pause(error, failed, self._random))

    async def _last_good(self) -> Fetched | None:
        raw = await asyncio.to_thread(self._volume.last_good)
        try:
            return None if raw is None else understood(raw)
        except CallFailed as error:
            _log.warning("last good bundle ignored", why=str(error))
            return None

    async def _forget(self) -> None:
        try:
            await asyncio.to_thread(self._volume.forget)
        except OSError as error:
            _log.warning("last good bundle not removed", why=error.strerror)

    @contextmanager
    def _step(self, phase: BootPhase) -> Iterator[None]:
        """Names a step while it lasts, and logs how long it took."""
        self._vitals.phase = phase
        self._vitals.changed()
        began = self._clock()
        yield
        _log.info("boot step", phase=phase, seconds=round(self._clock() - began, 3))

    def _begin(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """A task whose failure ends the life."""
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, cause: BaseException) -> None:
        if not self._ending.done():
            self._ending.set_result(cause)


async def _cancelled(*tasks: asyncio.Task[None] | None) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _verdict(cause: BaseException) -> Exit:
    if isinstance(cause, Ended):
        _log.info("ended", why=str(cause))
        return Exit.ASKED
    if isinstance(cause, _PortTaken):
        _log.error("ended", why=str(cause))
        return Exit.PORT_TAKEN
    _log.critical("ended by a defect", where=log.where(cause))
    return Exit.BROKEN
