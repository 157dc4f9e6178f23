"""Machines that are nothing but a script: no process, no files, no address that anybody listens at.

For tests on virtual time, and for ten thousand machines at once. A virtual machine boots, obeys (or does not) and ends
as its script says; everything else about it is the simulator's usual rules.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from flysim.runner import Exit, Launch


@dataclass(frozen=True, slots=True)
class Script:
    """One boot's life: seconds until it is up, seconds until it ends by itself (None: never), and whether it obeys."""

    boot: float = 0.0
    lives: float | None = None
    obeys: bool = True


@dataclass(slots=True, eq=False)
class VirtualMachine:
    """A `flysim.runner.Instance`. `end` ends it as a test wishes; `ended` says how it ended."""

    script: Script
    pid: None = None
    frozen: bool = False
    ended: Exit | None = None
    _exited: Callable[[Exit], None] | None = field(default=None, repr=False)
    _timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    _left: float = 0.0

    def signal(self, number: int) -> None:
        if self.script.obeys and not self.frozen:
            self.end(Exit(signal=number))

    def kill(self) -> None:
        self.end(Exit(signal=9))

    def freeze(self) -> None:
        self.frozen = True
        if self._timer is not None:
            self._left = self._timer.when() - asyncio.get_running_loop().time()
            self._timer.cancel()

    def thaw(self) -> None:
        self.frozen = False
        if self._timer is not None:
            self._end_after(self._left)

    def on_exit(self, exited: Callable[[Exit], None]) -> None:
        self._exited = exited
        if self.script.lives is not None:
            self._end_after(self.script.lives)

    def end(self, exit_: Exit) -> None:
        """The machine ends; what has ended stays so."""
        if self._timer is not None:
            self._timer.cancel()
        if self.ended is None and self._exited is not None:
            self.ended = exit_
            self._exited(exit_)

    def _end_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end, Exit(code=0))


def _usual(_: Launch) -> Script:
    return Script()


class VirtualRunner:
    """A `flysim.runner.Runner`. `machines` holds the last boot of each machine by id.

    Args:
        script: the life of each boot; may raise BootError.
    """

    def __init__(self, script: Callable[[Launch], Script] = _usual) -> None:
        self._script = script
        self.machines: dict[str, VirtualMachine] = {}

    async def start(self, launch: Launch) -> VirtualMachine:
        machine = VirtualMachine(self._script(launch))
        self.machines[launch.machine] = machine
        if machine.script.boot:
            await asyncio.sleep(machine.script.boot)
        return machine

    def make_volume(self, volume_id: str) -> None: ...

    async def drop_volume(self, volume_id: str) -> None: ...

    async def copy_volume(self, source_id: str, target_id: str) -> None: ...

    async def used_bytes(self, volume_id: str) -> None: ...

    def log_path(self, machine_id: str) -> None: ...

    def volume_path(self, volume_id: str) -> None: ...
