"""Makes the machine be as its bundle says, and carries out commands: one at a time, each once.

A configuration is applied in full or not at all. The runtime is started anew only when something that its process
depends on has changed. When something fails, or the configuration is of a kind of runtime that this image has no
binding for, what ran before keeps running, the heartbeat says what is wrong, and the same command is not tried again
sooner than 30 s. Another version of the runtime comes with a net: `update.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from roost_agent import log
from roost_agent.backoff import Random
from roost_agent.contract.bundle import ConfigBundle, RuntimeKind
from roost_agent.contract.heartbeat import Command, CommandType
from roost_agent.endpoint import CallFailed, Ended, Endpoint, Fetched, pause
from roost_agent.runtime import Launch, Layout, Refused, RuntimeBinding
from roost_agent.settings import Settings
from roost_agent.supervisor import Supervisor
from roost_agent.update import Update, rejection
from roost_agent.vitals import Vitals
from roost_agent.volume import Memory, Rejected, Trial, Volume

__all__ = ["Control", "Meant", "Revoked"]

_AGAIN_SECONDS = 30.0
_KNOWN = frozenset(CommandType) - {CommandType.STOP, CommandType.UNKNOWN}
_CONFIGURING = frozenset({CommandType.UPDATE_CONFIG, CommandType.UPDATE_VERSION})
"""Commands that are carried out by fetching the bundle and applying it."""
_log = structlog.get_logger()

Job = Callable[[], Awaitable[object]]
"""Something that has to be done between two commands, never beside one."""


class Revoked(Ended):
    """The kill switch."""


@dataclass(frozen=True, slots=True)
class Meant:
    """What is to run of a fetched bundle. `short`: in what the bundle falls short of what was fetched, if it does."""

    fetched: Fetched
    bundle: ConfigBundle
    binding: RuntimeBinding
    short: str | None = None


class Control:
    """Holds the configuration in force.

    Args:
        bindings: The kinds of runtime that this image can run.
        serve: Called with a bundle that has taken effect: opens and closes what the machine offers with it.
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
        update: Update,
        *,
        serve: Callable[[ConfigBundle], Awaitable[None]],
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
        self._update = update
        self._serve = serve
        self._end = end
        self._clock = clock
        self._random = random
        self.bundle: ConfigBundle | None = None
        """The bundle in force."""
        self._launch: Launch | None = None
        self._inputs: bytes | None = None
        """What the process was started with; None while it lacks something that it should have."""
        self._proven: Fetched | None = None
        """The last bundle with which the runtime became ready."""
        self._fetched: Fetched | None = None
        """The bundle in force, as it came."""
        self._layout: Layout | None = None
        """What lies on the volume of it."""
        self._refused = False
        """The last bundle that was fetched could not be applied in full."""
        self._in_vain: bytes | None = None
        """A bundle with which the runtime did not start; it is not tried again."""
        self._holding = False
        self._proving: asyncio.Task[str | None] | None = None
        self._queue: asyncio.Queue[Command | Job] = asyncio.Queue()
        self._pending: set[str] = set()
        self._unknown: set[str] = set()
        self._carried: dict[CommandType, tuple[str, float, object]] = {}
        self._failures = 0
        self._fetch_at: float | None = None
        """When the bundle is fetched again of our own accord, by the clock."""
        vitals.listen(self._look)

    @property
    def gateway_token(self) -> str | None:
        """What opens the machine's ports, and half of the proof of a check-in."""
        return None if self.bundle is None else self.bundle.secret_env.get(self.bundle.gateway.token_env)

    @property
    def secrets(self) -> Sequence[str]:
        """Every value that must appear nowhere."""
        token = self._endpoint.token
        return [*(self.bundle.secret_env.values() if self.bundle else ()), *([token] if token else ())]

    @property
    def binding(self) -> RuntimeBinding | None:
        """That of the bundle in force."""
        return None if self.bundle is None else self._bindings[self.bundle.to_run.kind]

    # --- what the boot does once, and every new bundle again

    def runs(self, bundle: ConfigBundle) -> bool:
        """Whether this image can run the bundle's kind of runtime; when it can't, the heartbeat says so."""
        lacking = (
            "this image can't run a newer runtime.kind: set machine.image to one that can, or runtime.kind to Command"
        )
        why = None if bundle.to_run.kind in self._bindings else lacking
        if self._vitals.trouble("runtime", why) and why:
            _log.warning("degraded", topic="runtime", why=why)
        return why is None

    async def meant(self, fetched: Fetched) -> Meant:
        """What is to run of a bundle: its version, unless that one was taken back and nobody has asked again."""
        bundle, memory = fetched.bundle, await self._memory()
        assert bundle is not None, "a revoked agent has been seen to before"
        binding = self._bindings[bundle.to_run.kind]
        rejected = memory.rejected if binding.state else None
        asked = Rejected(version=bundle.to_run.version, restarted_at=bundle.to_run.restarted_at, why="")
        if rejected is None or memory.version is None or rejected.model_copy(update={"why": ""}) != asked:
            return Meant(fetched, bundle, binding)
        return Meant(fetched, _with_version(bundle, memory.version), binding, rejected.why)

    async def install(self, meant: Meant) -> bool:
        """Brings the runtime's version to the machine; False, and said in the heartbeat, when it can't be had."""
        try:
            await meant.binding.install(meant.bundle)
        except (OSError, Refused) as error:
            return self._trouble("install", error)
        self._vitals.trouble("install", None)
        return True

    async def configure(self, meant: Meant) -> bool:
        """Puts the files in place and keeps the bundle; False, and all as before, when that can't be."""
        try:
            layout = await meant.binding.check(meant.bundle)
            await self._step_back(meant)
            if updating := await self._updates(meant):
                await self._update.begin(meant.binding, meant.bundle, updating)
            await asyncio.to_thread(self._volume.put, layout)
        except (OSError, Refused) as error:
            return self._trouble("configure", error)
        self._layout = layout
        self._vitals.trouble("configure", meant.short)
        if meant.short is None:
            await self._keeping(lambda: self._volume.keep(meant.fetched.raw))
        return True

    async def first(self, meant: Meant, *, whole: bool, fresh: bool) -> Launch:
        """What to start at boot.

        Args:
            meant: The first bundle that this image can run, its version installed.
            whole: It was configured without trouble; one whose state belongs to a version must be.
            fresh: It came from the endpoint, not from the volume: then a restart asked for before is in effect.
        """
        if (trial := (await self._memory()).trial) is not None:
            await self._keeping(lambda: self._update.boot(trial))
        launch = self._to_be_run(meant, whole=whole)
        self._in_effect(meant, started=True, whole=whole and meant.short is None)
        self._refused = meant.short is not None
        if not fresh and (remembered := (await self._memory()).restarted_at):
            self._vitals.restarted_at = remembered
        await self._started(meant)
        return launch

    def remembers(self, kept: Fetched | None) -> None:
        """This bundle is known to be good."""
        self._proven = kept

    def fetch_soon(self) -> None:
        """Fetches the bundle until the endpoint has answered: what runs came from the volume."""
        self._fetch_at = self._clock()

    async def _memory(self) -> Memory:
        return await asyncio.to_thread(lambda: self._volume.memory)

    async def _updates(self, meant: Meant) -> str | None:
        """The version that this one follows with a net; None when it does not, or has begun to already."""
        memory = await self._memory()
        version = meant.bundle.to_run.version
        if not meant.binding.state or memory.version in (None, version) or memory.trial is not None:
            return None
        return memory.version

    async def _step_back(self, meant: Meant) -> None:
        """Ends a trial of a version that is no longer wanted, or that takes the machine down with it.

        Raises:
            Refused: that can't be, or the bundle's own version has just been rejected.
            OSError: not now.
        """
        trial = (await self._memory()).trial
        if trial is None:
            return
        booting = self.bundle is None
        if trial.version != meant.bundle.to_run.version or not meant.binding.state:
            await self._take_back(trial, None)
        elif booting and (worn := self._update.worn(trial)) is not None and meant.bundle.to_run.rollback:
            rejected = rejection(trial, worn, meant.bundle.to_run.restarted_at)
            await self._take_back(trial, rejected)
            raise Refused(rejected.why)

    async def _take_back(self, trial: Trial, rejected: Rejected | None) -> None:
        await self._update.take_back(trial, rejected)
        # What ran is not to run on the state that is there now, whatever becomes of the next step.
        self._launch, self._vitals.revision = None, None

    async def _started(self, meant: Meant) -> None:
        """A process of this bundle has been started: one that is on trial is watched."""
        memory, version = await self._memory(), meant.bundle.to_run.version
        if memory.trial is not None and memory.trial.version == version:
            self._watch(memory.trial)
        elif meant.binding.state and memory.version is None:
            await self._keeping(lambda: self._volume.remember(version=version))

    def _watch(self, trial: Trial) -> None:
        """Proves the version on trial beside everything else; what follows from it waits its turn."""
        if self._proving is not None:
            self._proving.cancel()
        proving = self._proving = asyncio.create_task(self._update.prove())

        async def settle() -> None:
            if proving is self._proving and not proving.cancelled():  # else it has been started anew meanwhile
                await self._settle(trial, proving.result())

        proving.add_done_callback(lambda _: self._queue.put_nowait(settle))

    async def _settle(self, trial: Trial, why: str | None) -> None:
        fetched = self._fetched
        if (await self._memory()).trial != trial or fetched is None:
            return  # another bundle has overtaken it
        bundle = fetched.bundle
        assert bundle is not None, "a revoked agent is never started"
        try:
            if why is not None and bundle.to_run.rollback:
                await self._take_back(trial, rejection(trial, why, bundle.to_run.restarted_at))
                await self._apply(fetched)
                return
            await asyncio.to_thread(self._update.keep, trial)
        except Refused as error:
            self._trouble("update", error)
            await self._go_on()
            return
        except OSError as error:
            self._trouble("volume", error)
            again = partial(self._settle, trial, why)
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._queue.put_nowait, again)
            return
        self._vitals.trouble("volume", None)
        await self._forget_others(trial)
        if why is not None:
            self._vitals.trouble("update", f"version {trial.version} {why}, and runtime.rollback is false")

    async def _forget_others(self, trial: Trial) -> None:
        try:
            if self.binding is not None:
                await self.binding.forget_others({trial.version, trial.before})
        except OSError as error:
            _log.warning("other versions not removed", why=error.strerror)

    # --- commands

    def offer(self, commands: Sequence[Command]) -> None:
        """Takes the commands of an answer, those that are new or may be tried again. Never waits."""
        # A new configuration goes first: it may bring the restart with it.
        for command in sorted(commands, key=lambda c: c.type is not CommandType.UPDATE_CONFIG):
            if command.type is CommandType.STOP:
                self._end(Ended(f"asked by {command.id}"))
            elif command.type in _KNOWN and command.id not in self._pending and self._due(command):
                self._pending.add(command.id)
                self._queue.put_nowait(command)
        unknown = {command.id for command in commands if command.type not in _KNOWN}
        for each in sorted(unknown - self._unknown):
            _log.warning("command not known to this version", id=each)
        self._unknown = unknown or self._unknown  # they come again and again, and are told once
        asked = any(command.type in _CONFIGURING for command in commands)
        if self._refused and not asked and self._fetch_at is None and self._queue.empty():
            self._queue.put_nowait(self._fetch)  # what could not be applied is wanted no more: so it is wrong no more

    async def run(self) -> None:
        """Carries out what was offered, for ever.

        Raises:
            Ended: the new bundle is revoked, or another machine is the agent's now.
        """
        while True:
            item = await self._next()
            if not isinstance(item, Command):
                await item()
                continue
            _log.info("command", id=item.id, type=item.type)
            match item.type:
                case CommandType.RESTART:
                    done = await self._restart(item)
                case CommandType.DRAIN:
                    done = self._vitals.drain(item.id)
                case _:
                    done = await self._fetch()
            self._carried[item.type] = (item.id, self._clock(), self._effects())
            self._pending.discard(item.id)
            if done:
                self._vitals.last_command = item.id
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

    async def _next(self) -> Command | Job:
        """The next thing to do; to fetch the bundle, when it is time for that."""
        seconds = None if self._fetch_at is None else self._fetch_at - self._clock()
        try:
            async with asyncio.timeout(seconds):
                return await self._queue.get()
        except TimeoutError:
            return self._fetch

    async def _restart(self, command: Command) -> bool:
        if command.restarted_at is not None and command.restarted_at == self._vitals.restarted_at:
            return True  # an update before it in the queue brought it about
        if self._launch is None:
            return False  # there is nothing to run yet, and why has been said
        await self._supervisor.restart(self._launch)
        if command.restarted_at is not None:
            self._vitals.restarted_at = command.restarted_at
            await self._keeping_restart()
        if (trial := (await self._memory()).trial) is not None:
            self._watch(trial)
        return True

    async def _fetch(self) -> bool:
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
        """Makes the machine be as the bundle says; False, and said in the heartbeat, when that is not so in full."""
        if fetched.bundle is None:
            raise Revoked("revoked")
        if fetched.raw == self._in_vain:
            return False
        self._in_vain = None
        whole = self.runs(fetched.bundle) and await self._made(fetched)
        self._refused = not whole
        return whole

    async def _made(self, fetched: Fetched) -> bool:
        before, meant = self._layout, await self.meant(fetched)
        if not await self.install(meant):
            return False
        if not await self.configure(meant):
            if self._launch is None and await self.meant(fetched) != meant:
                return await self._made(fetched)  # rejected just now, and there is nothing to go on with
            await self._go_on()
            return False
        bundle = meant.bundle
        restart = self._supervisor.idle or meant.binding.inputs(bundle) != self._inputs
        _log.info("bundle applied", revision=bundle.revision, generation=bundle.generation, restart=restart)
        if restart:
            await self._supervisor.restart(self._to_be_run(meant, whole=True))
        elif not await self._reloaded(meant, before):
            return False
        self._in_effect(meant, started=restart, whole=meant.short is None)
        await self._serve(bundle)
        if restart:
            await self._keeping_restart()
            await self._started(meant)
        return meant.short is None

    async def _go_on(self) -> None:
        """Starts again what was ended for something that then could not be."""
        if self._launch is not None and self._supervisor.idle and not self._supervisor.held:
            await self._supervisor.restart(self._launch)

    async def _reloaded(self, meant: Meant, before: Layout | None) -> bool:
        """The process has taken up its new files; if it does not want them, it gets those from before again."""
        try:
            if self._supervisor.ready:
                await meant.binding.reloaded(meant.bundle)
        except Refused as error:
            if before is not None:
                await self._keeping(lambda: self._volume.put(before))
            self._layout = before
            if (last := self._fetched) is not None:
                await self._keeping(lambda: self._volume.keep(last.raw))
            return self._trouble("configure", error)
        except OSError as error:
            return self._trouble("configure", error)  # it may take it up yet, so it stays
        return True

    def _look(self) -> None:
        """Sees whether the runtime is well with what it was given, or will not have it at all."""
        if self._supervisor.ready:
            self._vitals.trouble("update", None)
            if not self._refused:
                self._proven = self._fetched
        if self._supervisor.held and not self._holding:
            self._queue.put_nowait(self._turned_down)
        self._holding = self._supervisor.held

    async def _turned_down(self) -> None:
        """The runtime does not start with what it was given: the last configuration with which it did is put back."""
        good, bad = self._proven, self._fetched
        on_trial = (await self._memory()).trial is not None
        if not self._supervisor.held or on_trial or good is None or bad is None or good.raw == bad.raw:
            return  # what it says of itself stands in the heartbeat, and another bundle or a restart may help
        if not await self._made(good):
            return
        self._refused, self._in_vain = True, bad.raw
        self._vitals.trouble("configure", "the runtime does not start with it (exit 78): the one before is back")

    def _to_be_run(self, meant: Meant, *, whole: bool) -> Launch:
        self._inputs = meant.binding.inputs(meant.bundle) if whole else None
        self._launch = meant.binding.launch(meant.bundle)
        return self._launch

    def _in_effect(self, meant: Meant, *, started: bool, whole: bool = True) -> None:
        """What the heartbeat may say of this bundle: only once the process that runs is the one it describes."""
        bundle = self.bundle = meant.bundle
        self._fetched = meant.fetched
        self._vitals.sight = lambda: meant.binding.sight
        self._vitals.revision = bundle.revision if whole else None
        given = "interval_seconds" in bundle.heartbeat.model_fields_set
        self._vitals.interval = bundle.heartbeat.interval_seconds if given else self._settings.interval
        if started and bundle.runtime is not None:
            self._vitals.runtime_version = bundle.to_run.version
            self._vitals.restarted_at = bundle.to_run.restarted_at
        self._vitals.changed()

    async def _keeping_restart(self) -> None:
        await self._keeping(lambda: self._volume.remember(restarted_at=self._vitals.restarted_at))

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
        why = log.reason(error)
        if self._vitals.trouble(topic, why):
            _log.warning("degraded", topic=topic, why=why)
        return False


def _with_version(bundle: ConfigBundle, version: str) -> ConfigBundle:
    return bundle.model_copy(update={"runtime": bundle.to_run.model_copy(update={"version": version})})
