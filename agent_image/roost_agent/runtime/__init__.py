"""What a kind of runtime must say to be run: how it is installed, configured, started, followed and drained."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from roost_agent.contract.bundle import BundleFile, ConfigBundle
from roost_agent.contract.heartbeat import ChannelReport
from roost_agent.policy import Policy

__all__ = [
    "Follow",
    "Launch",
    "Layout",
    "Ran",
    "Refused",
    "Run",
    "RuntimeBinding",
    "Sight",
    "Tell",
    "User",
]

Tell = Callable[[bool], None]
"""Hears whether the runtime is ready, whenever that changes."""
Follow = Callable[[Tell], Awaitable[str]]
"""Follows one life of a process; returns, with the reason, when it must be ended and started anew."""


@dataclass(frozen=True, slots=True)
class User:
    """As whom a process runs, and to whom its files belong."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Ran:
    """How a short program ended: its exit code (negative: a signal's number), and what it printed."""

    code: int
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)


class Run(Protocol):
    """Runs a short program to its end, its output bounded."""

    async def __call__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, user: User | None, seconds: float
    ) -> Ran:
        """Runs it in `cwd` as that user.

        Raises:
            OSError: it can't be started.
            TimeoutError: it did not end within so many seconds, and was killed with its group.
        """


class Refused(Exception):
    """This bundle can't be applied, and nothing was changed: names field, value (never a secret) and remedy."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One way of starting a process. The environment is whole: nothing is inherited.

    `output` hears each line that it prints, without the newline; None: it prints where the supervisor does. With
    `term_group` its whole group is asked to end, else only the process itself, which then ends its own helpers.
    """

    argv: Sequence[str] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    follow: Follow
    policy: Policy
    output: Callable[[bytes], None] | None = None
    user: User | None = None
    term_group: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """What a bundle puts below the data directory, by relative paths.

    `files` always stand there as given, `seeds` are written only where nothing is. In the directories of `closed`
    everything else is removed. `directories` are made.
    """

    files: Sequence[BundleFile]
    seeds: Sequence[BundleFile] = ()
    closed: Sequence[str] = ()
    directories: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """What a runtime says of itself while it runs; None is what nobody knows. `troubles`: topic and what is wrong."""

    channels: Mapping[str, ChannelReport] = field(default_factory=dict)
    pending_pairings: int | None = None
    active_sessions: int | None = None
    last_activity_at: str | None = None
    next_scheduled_run_at: str | None = None
    troubles: Mapping[str, str] = field(default_factory=dict)


class RuntimeBinding(Protocol):
    """One kind of runtime. What outlives a process is in the bundle and on the volume, not here."""

    @property
    def state(self) -> Sequence[str]:
        """The directories below the data directory whose content belongs to a version: a snapshot before an update."""

    @property
    def sight(self) -> Sight:
        """What is known of the process that runs."""

    async def install(self, bundle: ConfigBundle) -> None:
        """Brings the version that the bundle names to the machine, unless it is there.

        Raises:
            Refused: there is no such version, or it can't run here.
            OSError: it can't be had now; the text says why.
        """

    async def check(self, bundle: ConfigBundle) -> Layout:
        """What the bundle puts on the volume, once it is certain that the version takes it.

        Raises:
            Refused: it does not.
            OSError: that can't be found out now.
        """

    def inputs(self, bundle: ConfigBundle) -> bytes:
        """All that a process depends on for its life: equal bytes mean that no restart is needed."""

    def launch(self, bundle: ConfigBundle) -> Launch:
        """How it is started, once the version is installed; equal for bundles of equal `inputs`."""

    async def reloaded(self, bundle: ConfigBundle) -> None:
        """Returns when the running process has taken up the files that `check` gave for this bundle.

        Raises:
            Refused: it goes on with what it had.
        """

    async def drain(self, seconds: float) -> None:
        """Lets it finish what it has begun, for so long at most. Never raises."""

    async def preflight(self, bundle: ConfigBundle) -> None:
        """Whether this bundle's version, installed but not running, takes the state as it lies on the volume.

        Raises:
            Refused: it does not.
        """

    async def forget_others(self, versions: Collection[str]) -> None:
        """Removes what was installed on the volume for other versions. Raises OSError."""
