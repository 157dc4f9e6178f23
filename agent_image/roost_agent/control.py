"""Makes the machine be as its bundle says, and carries out commands: one at a time, each once.

A configuration is applied in full or not at all. The runtime is started anew only when something that its process
depends on has changed. When something fails, or the configuration is of a kind of runtime that this image has no
binding for, what ran before keeps running, the heartbeat says what is wrong, and the same command is not tried again
sooner than 30 s.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from roost_agent.backoff import Random
from roost_agent.contract.bundle import ConfigBundle, RuntimeKind
from roost_agent.contract.heartbeat import Command, CommandType
from roost_agent.endpoint import CallFailed, Ended, Endpoint, Fetched, pause
from roost_agent.runtime import Launch, RuntimeBinding
from roost_agent.settings import Settings
from roost_agent.supervisor import Supervisor
from roost_agent.vitals import Vitals
from roost_agent.volume import Volume

__all__ = ["Control", "Revoked"]

_AGAIN_SECONDS = 30.0
_KNOWN = frozenset({CommandType.STOP, CommandType.RESTART, CommandType.UPDATE_CONFIG, CommandType.DRAIN})
_log = structlog.get_logger()


class Revoked(Ended):
    """The kill switch."""


class Control:
    """Holds the configuration in force.

    Args:
        bindings: The kinds of runtime that this image can run.
        end: Called when a command asks the supervisor to stop.
        clock: A monotonic clock, in seconds.
        random: Numbers from 0 up to 1, for the jitter.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        volume: Volume,
        bindings: Mapping[RuntimeKind, RuntimeBinding],
        supervisor: Supervisor,
        vitals: Vitals,
        *,
        end: Callable[[Ended], None],
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._volume = volume
        self._bindings = bindings
        self._supervisor = supervisor
        self._vitals = vitals
        self._end = end
        self._clock = clock
        self._random = random
        self._launch: Launch | None = None
        self._inputs: bytes | None = None
        """What the process was started with; None while it lacks something that it should have."""
        self._refused = False
        """The last bundle that was fetched could not be applied."""
        self._commands: asyncio.Queue[Command | None] = asyncio.Queue()
        """None: fetch the bundle unasked."""
        self._pending: set[str] = set()
        self._unknown: set[str] = set()
        self._carried: dict[CommandType, tuple[str, float, object]] = {}
        self._failures = 0
        self._fetch_at: float | None = None
        """When the bundle is fetched again of our own accord, by the clock."""

    # --- the boot's steps

    def runs(self, bundle: ConfigBundle) -> bool:
        """Whether this image can run the bundle's kind of runtime; when it can't, the heartbeat says so."""
        kind = _kind(bundle)
        what = "a newer runtime.kind" if kind is RuntimeKind.UNKNOWN else f"runtime.kind {kind}"
        lacking = f"this image can't run {what}: set machine.image to one that can, or runtime.kind to Command"
        why = None if kind in self._bindings else lacking
        if self._vitals.trouble("runtime", why) and why:
            _log.warning("degraded", topic="runtime", why=why)
        return why is None

    async def install(self, bundle: ConfigBundle) -> bool:
        """Brings the runtime's version to the machine; False, and said in the heartbeat, when it can't be had."""
        try:
            await self._bindings[_kind(bundle)].install(bundle)
        except OSError as error:
            return self._trouble("install", error)
        self._vitals.trouble("install", None)
        return True

    async def configure(self, bundle: ConfigBundle, raw: bytes) -> bool:
        """Puts the files in place and keeps the bundle; False, and all as before, when a file can't be written."""
        try:
            await asyncio.to_thread(self._volume.put, self._bindings[_kind(bundle)].files(bundle))
        except OSError as error:
            return self._trouble("configure", error)
        self._vitals.trouble("configure", None)
        await self._keeping(lambda: self._volume.keep(raw))
        return True

    async def first(self, bundle: ConfigBundle, *, whole: bool, fresh: bool) -> Launch:
        """What to start at boot.

        Args:
            bundle: The first bundle that this image can run.
            whole: It was installed and configured without trouble.
            fresh: It came from the endpoint, not from the volume: then a restart asked for before is in effect.
        """
        launch = self._to_be_run(bundle, whole=whole)
        self._in_effect(bundle, started=True, whole=whole)
        if not fresh and (remembered := await asyncio.to_thread(lambda: self._volume.restarted_at)):
            self._vitals.restarted_at = remembered
        return launch

    def fetch_soon(self) -> None:
        """Fetches the bundle until the endpoint has answered: what runs came from the volume."""
        self._fetch_at = self._clock()

    # --- commands

    def offer(self, commands: Sequence[Command]) -> None:
        """Takes the commands of an answer, those that are new or may be tried again. Never waits."""
        # A new configuration goes first: it may bring the restart with it.
        for command in sorted(commands, key=lambda c: c.type is not CommandType.UPDATE_CONFIG):
            if command.type is CommandType.STOP:
                self._end(Ended(f"asked by {command.id}"))
            elif command.type in _KNOWN and command.id not in self._pending and self._due(command):
                self._pending.add(command.id)
                self._commands.put_nowait(command)
        unknown = {command.id for command in commands if command.type not in _KNOWN}
        for each in sorted(unknown - self._unknown):
            _log.warning("command not known to this version", id=each)
        self._unknown = unknown or self._unknown  # they come again and again, and are told once
        asked = any(command.type is CommandType.UPDATE_CONFIG for command in commands)
        if self._refused and not asked and self._fetch_at is None and self._commands.empty():
            self._commands.put_nowait(None)  # what could not be applied is wanted no more: so it is wrong no more

    async def run(self) -> None:
        """Carries out what was offered, for ever.

        Raises:
            Ended: the new bundle is revoked, or another machine is the agent's now.
        """
        while True:
            if (command := await self._next()) is None:
                await self._update()
                continue
            _log.info("command", id=command.id, type=command.type)
            match command.type:
                case CommandType.UPDATE_CONFIG:
                    done = await self._update()
                case CommandType.RESTART:
                    done = await self._restart(command)
                case _:
                    done = self._vitals.drain(command.id)
            self._carried[command.type] = (command.id, self._clock(), self._effects())
            self._pending.discard(command.id)
            if done:
                self._vitals.last_command = command.id
                self._vitals.changed()

    def _due(self, command: Command) -> bool:
        """False when it is in effect or on its way already, or has just been tried in vain."""
        last, at, effects = self._carried.get(command.type, ("", 0.0, None))
        if command.type is CommandType.RESTART:
            done = command.restarted_at is not None and command.restarted_at == self._vitals.restarted_at
            return not done and command.id != last
        if command.type is CommandType.DRAIN:
            return command.id != self._vitals.last_command
        if self._fetch_at is not None:
            return False  # the next fetch is set already, as late as the endpoint asked for
        return command.id != last or effects != self._effects() or self._clock() - at >= _AGAIN_SECONDS

    def _effects(self) -> object:
        return self._vitals.revision, self._vitals.restarted_at

    async def _next(self) -> Command | None:
        """The next command; None when it is time to fetch the bundle unasked."""
        seconds = None if self._fetch_at is None else self._fetch_at - self._clock()
        try:
            async with asyncio.timeout(seconds):
                return await self._commands.get()
        except TimeoutError:
            return None

    async def _restart(self, command: Command) -> bool:
        if command.restarted_at is not None and command.restarted_at == self._vitals.restarted_at:
            return True  # an update before it in the queue brought it about
        if self._launch is None:
            return False  # there is nothing to run yet, and why has been said
        await self._supervisor.restart(self._launch)
        if command.restarted_at is not None:
            self._vitals.restarted_at = command.restarted_at
            await self._keep_restart()
        return True

    async def _update(self) -> bool:
        """Fetches the bundle and applies it if it is another. A fetch that fails is tried again, backing off."""
        try:
            fetched = await self._endpoint.bundle(None if self._refused else self._vitals.revision)
        except CallFailed as error:
            self._failures += 1
            self._fetch_at = self._clock() + pause(error, self._failures, self._random)
            return self._trouble("bundle", error)
        self._failures, self._fetch_at = 0, None
        self._vitals.trouble("bundle", None)
        return fetched is None or await self._apply(fetched)

    async def _apply(self, fetched: Fetched) -> bool:
        if (bundle := fetched.bundle) is None:
            raise Revoked("revoked")
        whole = self.runs(bundle) and await self.install(bundle) and await self.configure(bundle, fetched.raw)
        self._refused = not whole
        if not whole:
            return False
        restart = bundle.runtime_inputs() != self._inputs
        _log.info("bundle applied", revision=bundle.revision, generation=bundle.generation, restart=restart)
        if restart:
            await self._supervisor.restart(self._to_be_run(bundle, whole=True))
        self._in_effect(bundle, started=restart)
        if restart:
            await self._keep_restart()
        return True

    def _to_be_run(self, bundle: ConfigBundle, *, whole: bool) -> Launch:
        self._inputs = bundle.runtime_inputs() if whole else None
        self._launch = self._bindings[_kind(bundle)].launch(bundle, self._settings.base_env, self._settings.data_dir)
        return self._launch

    def _in_effect(self, bundle: ConfigBundle, *, started: bool, whole: bool = True) -> None:
        """What the heartbeat may say of this bundle: only once the process that runs is the one it describes."""
        if whole:
            self._vitals.revision = bundle.revision
        given = "interval_seconds" in bundle.heartbeat.model_fields_set
        self._vitals.interval = bundle.heartbeat.interval_seconds if given else self._settings.interval
        if started and bundle.runtime is not None:
            self._vitals.runtime_version = bundle.runtime.version
            self._vitals.restarted_at = bundle.runtime.restarted_at
        self._vitals.changed()

    async def _keep_restart(self) -> None:
        await self._keeping(lambda: self._volume.remember_restart(self._vitals.restarted_at))

    async def _keeping(self, write: Callable[[], None]) -> None:
        """Writes what the next boot would like to know. A volume that can't be written to stops nothing."""
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            self._trouble("volume", error)
        else:
            self._vitals.trouble("volume", None)

    def _trouble(self, topic: str, error: Exception) -> bool:
        """Says what went wrong, once per change; False, for the caller to hand on."""
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if self._vitals.trouble(topic, why):
            _log.warning("degraded", topic=topic, why=why)
        return False


def _kind(bundle: ConfigBundle) -> RuntimeKind:
    assert bundle.runtime is not None, "only a revoked agent has no runtime, and that one is never started"
    return bundle.runtime.kind
