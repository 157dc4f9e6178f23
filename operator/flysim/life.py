"""How machines live: the one place that changes a machine's state.

A caller's order changes the state at once and leaves the rest to a task; a machine has one such task at a time, and a
new order takes over from the one before, after the process that it may be starting is there (so none is ever lost).
Orders are not checked here: who may give which order when is the API's business (`flysim.machines`).
"""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from flysim import requests
from flysim.checks import Checks
from flysim.clock import rfc3339
from flysim.ledger import Origin, because, origin, within
from flysim.records import SETTLED, Boot, Event, Machine, Volume, Waiter
from flysim.runner import Api, BootError, Exit, Launch, Runner
from flysim.world import World

_log = logging.getLogger(__name__)
_RETRY_WINDOW = 300.0
"""Seconds within which Fly counts a restart policy's retries."""
_SIGKILL = 9
_BOOTING = frozenset({"starting", "restarting", "replacing"})
_RUNNING = frozenset({"started", "suspending", "suspended"})


class Life:
    """Carries out orders on machines, and reacts to what machines do by themselves.

    `inside` gives what answers the calls that a machine makes over its own socket.
    """

    def __init__(self, world: World, runner: Runner, inside: Callable[[Machine], Api]) -> None:
        self._world = world
        self._runner = runner
        self._inside = inside
        self._checks = Checks(world)
        self._detaching: set[asyncio.TimerHandle] = set()
        self._closed = False

    # Orders. Each sets the state before it returns.

    def create(self, machine: Machine, *, launch: bool) -> None:
        """A new machine: prepared, then started (or stopped, without launch)."""
        self._event(machine, "launch", "created", "user")
        self._tell("machine_created", machine, {"name": machine.name, "region": machine.region})
        self._begin(machine, partial(self._prepare, machine, launch=launch))

    def start(self, machine: Machine) -> None:
        """A suspended machine goes on where it stood, any other one boots."""
        machine.restarts.clear()
        resuming = machine.state == "suspended"
        self._set(machine, "starting")
        self._begin(machine, partial(self._resume if resuming else self._boot, machine))

    def suspend(self, machine: Machine) -> None:
        self._set(machine, "suspending")
        self._begin(machine, partial(self._suspend, machine))

    def cordon(self, machine: Machine, *, cordoned: bool) -> None:
        """Keeps the edge away from the machine, or lets it come again."""
        machine.cordoned = cordoned
        self._event(machine, "cordon" if cordoned else "uncordon", machine.state, "user")
        self._world.touch(machine)

    def stop(self, machine: Machine, signal: int, timeout: float) -> None:
        self._set(machine, "stopping")
        self._begin(machine, partial(self._stop, machine, signal, timeout))

    def restart(self, machine: Machine, signal: int, timeout: float) -> None:
        machine.restarts.clear()
        self._event(machine, "restart", "restarting", "user")
        self._set(machine, "restarting")
        self._begin(machine, partial(self._restart, machine, signal, timeout))

    def replace(self, machine: Machine, signal: int, timeout: float, *, launch: bool) -> None:
        """The machine has a new version already; its old process ends, and the new one starts if `launch`."""
        machine.restarts.clear()
        self._event(machine, "update", "replacing", "user")
        self._set(machine, "replacing")
        self._tell("machine_updated", machine, {"version": machine.version})
        self._begin(machine, partial(self._replace, machine, signal, timeout, launch=launch))

    def destroy(self, machine: Machine, *, gracefully: bool = False) -> None:
        """Ends the machine for good: at once, or after its own stop signal and timeout."""
        self._event(machine, "destroy", "destroying", "user")
        self._set(machine, "destroying")
        if machine.host.up:  # a dead one hears of it when it is back
            self._begin(machine, partial(self._destroy, machine, gracefully=gracefully))

    def lose(self, machine: Machine) -> None:
        """Its host has died: whatever runs in it ends at once, and nobody learns of it."""
        machine.ending = "lost"
        self._checks.end(machine)
        if machine.boot is not None:
            machine.boot.instance.kill()
        self._begin(machine, partial(self._lose, machine))

    def come_back(self, machine: Machine) -> None:
        """Its host is there again: what ran boots again, what was deleted meanwhile is destroyed."""
        self._begin(machine, partial(self._come_back, machine))

    def signal(self, machine: Machine, number: int) -> None:
        """Sends a signal to the main process, if there is one."""
        if machine.boot is not None:
            machine.boot.instance.signal(number)

    async def until(
        self,
        machine: Machine,
        states: frozenset[str],
        version: str | None = None,
        after_event: str = "",
        *,
        timeout: float | None = None,
    ) -> str | None:
        """The state, once the machine is or comes in one of these; a short stay in one is not missed.

        Returns as well when the machine gets another version than the one that is asked about, and None after
        `timeout` seconds.
        """
        if _satisfied(machine, states, version, after_event):
            return machine.state
        waiter = Waiter(states, version, after_event, asyncio.get_running_loop().create_future())
        machine.waiters.append(waiter)
        try:
            return await asyncio.wait_for(waiter.found, timeout)
        except TimeoutError:
            return None
        finally:
            machine.waiters.remove(waiter)

    async def gone(self, machines: Iterable[Machine]) -> None:
        """Returns when all of these machines are destroyed."""
        await asyncio.gather(*(self.until(machine, frozenset({"destroyed"})) for machine in machines))

    async def close(self) -> None:
        """Ends every machine's process, each with its stop signal and a short grace, and starts nothing any more."""
        self._closed = True
        for handle in self._detaching:
            handle.cancel()
        machines = list(self._world.machines.values())
        works = {work for machine in machines for work in (machine.work,) if work is not None and not work.done()}
        for work in works:
            work.cancel()
        if works:
            await asyncio.wait(works)
        await asyncio.gather(*(self._power_off(machine) for machine in machines if machine.state != "destroyed"))
        await self._checks.close()

    async def _power_off(self, machine: Machine) -> None:
        if machine.booting is not None:
            await asyncio.wait({machine.booting})
        machine.ending, machine.origin = "stop", Origin(cause="end of the simulator")
        signal, timeout = stop_of(machine)
        await self._end(machine, signal, min(timeout, self._world.timing.grace))

    # What tasks do. After every wait the machine is still theirs: whoever takes over cancels them first.

    def _begin(self, machine: Machine, work: Callable[[], Awaitable[None]]) -> None:
        if self._closed:
            return
        machine.origin = origin()
        machine.work = asyncio.create_task(self._take_over(machine, machine.work, work), name=f"life of {machine.id}")
        machine.work.add_done_callback(_report)

    async def _take_over(
        self, machine: Machine, before: "asyncio.Task[None] | None", work: Callable[[], Awaitable[None]]
    ) -> None:
        if before is not None and not before.done():
            before.cancel()
            await asyncio.wait({before})
        if machine.booting is not None:
            await asyncio.wait({machine.booting})
        if machine.ending == "lost":
            await self._lose(machine)
        await work()

    async def _prepare(self, machine: Machine, *, launch: bool) -> None:
        await asyncio.sleep(self._world.timing.prepare)
        if launch:
            self._set(machine, "starting")
            await self._boot(machine)
        else:
            self._set(machine, "stopped")

    async def _boot(self, machine: Machine, *, again: bool = False) -> None:
        machine.booting = asyncio.create_task(self._start_process(machine, again=again))
        await asyncio.shield(machine.booting)

    async def _start_process(self, machine: Machine, *, again: bool) -> None:
        """Never cancelled, so that no process is ever lost; a newer order may have changed the state meanwhile."""
        machine.ending = None
        try:
            if machine.volume is not None and machine.volume.id not in self._world.volumes:
                raise BootError(f"volume {machine.volume.id} is lost")
            instance = await self._runner.start(_launch(machine, self._inside(machine)))
        except BootError as error:
            if not machine.host.up:
                return
            self._event(machine, "exit", "failed", "flyd")
            self._tell("machine_failed", machine, {"error": str(error)})
            if machine.state in _BOOTING:
                self._set(machine, "failed")
            return
        finally:
            machine.booting = None
        machine.boot = Boot(instance, self._world.clock.now())
        if machine.host.up:
            self._booted(machine, again=again)
        instance.on_exit(partial(self._exited, machine, machine.boot))

    def _booted(self, machine: Machine, *, again: bool) -> None:
        assert machine.boot is not None
        self._event(machine, "start", "started", "flyd")
        self._tell("machine_started", machine, {"version": machine.version, "pid": machine.boot.instance.pid})
        if again:
            self._tell("machine_restarted", machine)
        if machine.state in _BOOTING:
            self._set(machine, "started")

    async def _suspend(self, machine: Machine) -> None:
        await asyncio.sleep(self._world.timing.suspend)
        if machine.boot is None:  # it has ended meanwhile
            return
        machine.boot.instance.freeze()
        machine.boot.frozen = True
        self._event(machine, "suspend", "suspended", "flyd")
        self._set(machine, "suspended")
        self._tell("machine_suspended", machine)

    async def _resume(self, machine: Machine) -> None:
        if (boot := machine.boot) is None:  # its frozen process was killed meanwhile
            await self._boot(machine)
            return
        boot.instance.thaw()
        boot.frozen, boot.since = False, self._world.clock.now()
        self._event(machine, "start", "started", "flyd")
        detail = {"version": machine.version, "pid": boot.instance.pid, "resumed": True}
        self._tell("machine_started", machine, detail)
        self._set(machine, "started")

    async def _stop(self, machine: Machine, signal: int, timeout: float) -> None:
        machine.ending = "stop"
        await self._end(machine, signal, timeout)
        self._set(machine, "stopped")
        self._tell("machine_stopped", machine)

    async def _restart(self, machine: Machine, signal: int, timeout: float) -> None:
        machine.ending = "restart"
        await self._end(machine, signal, timeout)
        await self._boot(machine, again=True)

    async def _replace(self, machine: Machine, signal: int, timeout: float, *, launch: bool) -> None:
        machine.ending = "replace"
        await self._end(machine, signal, timeout)
        self._let_go(machine)
        await asyncio.sleep(self._world.timing.replace)
        if launch:
            await self._boot(machine)
        else:
            self._set(machine, "stopped")
            self._tell("machine_stopped", machine)

    async def _destroy(self, machine: Machine, *, gracefully: bool) -> None:
        machine.ending = "destroy"
        signal, timeout = stop_of(machine) if gracefully else (_SIGKILL, 0.0)
        await self._end(machine, signal, timeout)
        machine.lease = None
        self._event(machine, "destroy", "destroyed", "flyd")
        machine.host.machines.pop(machine.id, None)
        self._set(machine, "destroyed")
        self._tell("machine_destroyed", machine)
        if machine.volume is not None:
            self._detach_later(machine, machine.volume)

    async def _lose(self, machine: Machine) -> None:
        """Returns when nothing is left. Once more, for what was still booting when the host died."""
        machine.ending = "lost"
        if machine.boot is not None:
            machine.boot.instance.kill()
            await machine.boot.ended.wait()

    async def _come_back(self, machine: Machine) -> None:
        await self._lose(machine)
        match machine.state:
            case "destroying":
                await self._destroy(machine, gracefully=False)
            case "stopping" | "suspending":
                self._set(machine, "stopped")
                self._tell("machine_stopped", machine)
            case "created" | "starting" | "started" | "restarting" | "replacing":
                self._let_go(machine)
                self._set(machine, "starting")
                await self._boot(machine)

    def _let_go(self, machine: Machine) -> None:
        """Of a volume that the config does not mount any more."""
        if machine.volume is not None and not machine.config.mounts:
            self._detach_later(machine, machine.volume)
            machine.volume = None

    async def _restart_by_policy(self, machine: Machine) -> None:
        await asyncio.sleep(self._world.timing.restart)
        await self._boot(machine, again=True)

    async def _end(self, machine: Machine, signal: int, timeout: float) -> None:
        """Returns when nothing of the processes is left; `timeout` seconds after the signal comes the kill.

        What is frozen can't obey a signal and is killed at once: its snapshot is thrown away.
        """
        boot = machine.boot
        if boot is None:
            return
        if timeout > 0 and not boot.frozen:
            boot.instance.signal(signal)
            try:
                async with asyncio.timeout(timeout):
                    await boot.ended.wait()
            except TimeoutError:
                pass
        if not boot.ended.is_set():
            boot.instance.kill()
            await boot.ended.wait()

    # What machines do

    def _exited(self, machine: Machine, boot: Boot, exit_: Exit) -> None:
        """The main process has ended, and nothing that it started is left."""
        now = self._world.clock.now()
        machine.boot = None
        if machine.ending == "lost" or not machine.host.up:
            boot.ended.set()
            return
        machine.active_until = now + self._world.timing.active
        unasked = machine.ending is None and machine.state in _RUNNING and not self._closed
        policy = unasked and machine.state == "started" and self._comes_back(machine, exit_)
        with because("exit") if unasked else within(machine.origin):
            self._exit_event(machine, exit_, restarting=policy or machine.ending == "restart")
        boot.ended.set()
        if not unasked:
            return
        if policy:
            with because("restart policy"):
                machine.restarts.append(now)
                self._set(machine, "restarting")
                self._begin(machine, partial(self._restart_by_policy, machine))
        elif machine.config.auto_destroy:
            with because("auto_destroy"):
                self.destroy(machine)
        else:
            with because("exit"):
                self._set(machine, "stopped")
                self._tell("machine_stopped", machine)

    def _comes_back(self, machine: Machine, exit_: Exit) -> bool:
        """Whether the restart policy starts the machine again after an end that nobody asked for."""
        since = self._world.clock.now() - _RETRY_WINDOW
        machine.restarts[:] = [moment for moment in machine.restarts if moment > since]
        match machine.config.restart.policy:
            case "always":
                return True
            case "on-failure" | "":
                return exit_.code != 0 and len(machine.restarts) < machine.config.restart.max_retries
            case _:
                return False

    def _exit_event(self, machine: Machine, exit_: Exit, *, restarting: bool) -> None:
        code = exit_.code if exit_.signal is None else 128 + exit_.signal
        told: dict[str, Any] = {"exit_code": code} if code else {}
        number = -1 if exit_.signal is None else exit_.signal
        # A replaced machine's exit says `requested_stop: false` at Fly too; it looks like a crash and is none.
        requested = machine.ending in ("stop", "restart", "destroy")
        told |= {
            "guest_exit_code": code or 0,
            "guest_signal": number,
            "signal": number,
            "oom_killed": False,
            "requested_stop": requested,
            "restarting": restarting,
            "exited_at": rfc3339(self._world.clock.now()),
        }
        count = len(machine.restarts)
        self._event(machine, "exit", "stopped", "flyd", {"exit_event": told, "restart_count": count})
        detail = {"code": exit_.code, "signal": exit_.signal, "ending": machine.ending, "restarting": restarting}
        self._tell("machine_exited", machine, detail)

    # State, events, volumes

    def _set(self, machine: Machine, state: str) -> None:
        machine.state = state
        self._world.touch(machine)
        if state == "started":
            self._checks.begin(machine)
        else:
            self._checks.end(machine)
        for waiter in machine.waiters:
            if not waiter.found.done() and _satisfied(machine, waiter.states, waiter.version, waiter.after_event):
                waiter.found.set_result(state)

    def _event(
        self, machine: Machine, kind: str, status: str, source: str, request: dict[str, Any] | None = None
    ) -> None:
        moment = int(self._world.clock.now() * 1000)
        machine.events.append(Event(self._world.ids.ulid(), kind, status, source, moment, request))

    def _tell(self, event: str, machine: Machine, detail: dict[str, Any] | None = None) -> None:
        volume = machine.volume.id if machine.volume is not None else None
        metadata = machine.shown.get("metadata") or {}
        ours = {key: value for key, value in metadata.items() if key.startswith("roost_")}
        whole = (detail or {}) | ({"metadata": ours} if ours else {})
        self._world.ledger.event(event, app=machine.app.name, machine=machine.id, volume=volume, detail=whole)

    def attach(self, machine: Machine, volume: Volume) -> None:
        """The volume is the machine's from now on."""
        machine.volume = volume
        volume.machine_id = machine.id
        self._world.touch(volume)

    def _detach_later(self, machine: Machine, volume: Volume) -> None:
        def detach() -> None:
            self._detaching.discard(handle)
            if volume.machine_id == machine.id:
                volume.machine_id = None
                self._world.touch(volume)

        handle = asyncio.get_running_loop().call_later(self._world.timing.unbind, detach)
        self._detaching.add(handle)


def stop_of(machine: Machine) -> tuple[int, float]:
    """The signal and the seconds that the machine's own config gives it to end."""
    config = machine.config.stop_config
    return (
        requests.stop_signal(config.signal, requests.DEFAULT_STOP_SIGNAL),
        requests.seconds(config.timeout, requests.DEFAULT_STOP_TIMEOUT),
    )


def _satisfied(machine: Machine, states: frozenset[str], version: str | None, after_event: str) -> bool:
    if version is not None and version != machine.version:
        return True
    if after_event and not (machine.events and machine.events[-1].id > after_event):
        return False
    return machine.state in states or ("settled" in states and machine.state in SETTLED)


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s broke", task.get_name(), exc_info=error)


def _launch(machine: Machine, api: Api) -> Launch:
    """What a boot of this machine runs, in which environment. Secrets win over `env`, Fly's own over both."""
    config, process = machine.config, machine.config.process
    command = process.exec or config.init.exec or process.entrypoint or config.init.entrypoint or None
    arguments = [] if process.exec or config.init.exec else process.cmd or config.init.cmd
    fly = {
        "FLY_APP_NAME": machine.app.name,
        "FLY_MACHINE_ID": machine.id,
        "FLY_ALLOC_ID": machine.id,
        "FLY_REGION": machine.region,
        "FLY_PRIVATE_IP": machine.private_ip,
        "FLY_IMAGE_REF": config.image,
        "FLY_MACHINE_VERSION": machine.version,
        "FLY_VM_MEMORY_MB": str(config.guest.memory_mb),
    }
    if group := config.metadata.get("fly_process_group"):
        fly["FLY_PROCESS_GROUP"] = group
    return Launch(
        machine=machine.id,
        image=machine.runs,
        command=command,
        arguments=arguments,
        environment=config.env | dict(machine.secrets) | process.env | fly,
        volume=machine.volume.id if machine.volume is not None else None,
        address=machine.address,
        api=api,
        files={file.guest_path: base64.b64decode(file.raw_value) for file in config.files},
    )
