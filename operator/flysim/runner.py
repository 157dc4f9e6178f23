"""The seam between the rules of the API and what a machine really is.

The simulator's core knows this protocol alone. `flysim.process` runs machines as processes; anything else that keeps
these promises can take its place.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flysim.call import Answer
from flysim.requests import Query

Api = Callable[[str, str, Query, Mapping[str, str], bytes], Awaitable[Answer]]
"""Answers method, path, query, headers (names in lower case) and body of a request. Never raises."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One boot of one machine.

    `command` replaces what the image would run, `arguments` are added to it. `address` is the machine's own IPv4
    loopback address; `environment` holds secret values and must not be written down anywhere. `api` answers what is
    asked from inside the machine. `files` are put in before it boots, by absolute path.
    """

    machine: str
    image: str
    command: Sequence[str] | None
    arguments: Sequence[str]
    environment: Mapping[str, str]
    volume: str | None
    address: str
    api: Api
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a machine's main process ended: an exit code, or the number of the signal that killed it."""

    code: int | None = None
    signal: int | None = None


class BootError(Exception):
    """The machine can't boot: its image can't be had, or its program can't be run. The message says which."""


class Instance(Protocol):
    """A booted machine, until it has ended. Signals to one that has ended are lost, and that is no error."""

    @property
    def pid(self) -> int | None:
        """The main process, where there is one."""

    def signal(self, number: int) -> None:
        """Sends a signal to the main process alone, as a kernel does inside a machine."""

    def kill(self) -> None:
        """Cuts the power: everything in the machine ends."""

    def freeze(self) -> None:
        """Everything in the machine stands still until it is thawed; only `kill` still ends it."""

    def thaw(self) -> None:
        """Everything in the machine goes on where it stood."""

    def on_exit(self, exited: Callable[[Exit], None]) -> None:
        """Asks to be told, once, when the main process has ended and nothing that it started is left."""


class Runner(Protocol):
    """Where machines run and volumes lie."""

    async def start(self, launch: Launch) -> Instance:
        """Boots a machine. Raises BootError."""

    def make_volume(self, volume_id: str) -> None: ...

    async def drop_volume(self, volume_id: str) -> None:
        """The volume's data is gone afterwards."""

    async def copy_volume(self, source_id: str, target_id: str) -> None:
        """Makes `target_id` with the data of `source_id` as it is now; either may be a snapshot of a volume.

        Raises:
            OSError: the data can't be read or written.
        """

    async def used_bytes(self, volume_id: str) -> int | None:
        """How much the volume's (or the snapshot's) files hold; None where there are no files."""

    def log_path(self, machine_id: str) -> Path | None:
        """Where the machine's output goes."""

    def volume_path(self, volume_id: str) -> Path | None:
        """Where the volume's files are."""
