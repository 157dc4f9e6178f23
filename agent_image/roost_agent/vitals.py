"""What is true of this machine now: read by the heartbeat and the health port, written by everybody else.

Every change that the operator should hear of sets `news`.
"""

import asyncio
import re
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import psutil

from roost_agent import __version__, host
from roost_agent.activity import Signs
from roost_agent.contract.heartbeat import (
    BootPhase,
    Heartbeat,
    ProcessState,
    RuntimeState,
    Status,
)
from roost_agent.contract.wire import instant
from roost_agent.runtime import Sight
from roost_agent.settings import Settings

__all__ = ["RuntimeSight", "TrafficSight", "Vitals", "printable"]

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MOST_TROUBLES = 16
_DRAIN_SECONDS = 600.0
"""For how long at most a runtime is waited for that was asked to finish."""


class RuntimeSight(Protocol):
    """What can be seen of the runtime's process from outside."""

    @property
    def state(self) -> RuntimeState: ...
    @property
    def ready(self) -> bool: ...


class TrafficSight(Protocol):
    """What can be seen of those who come through the supervisor to the runtime."""

    @property
    def connections(self) -> int: ...
    @property
    def last_at(self) -> datetime | None: ...


class Vitals:
    """One per process.

    Args:
        began: When the process began, in seconds of `clock`.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, settings: Settings, *, began: float, clock: Callable[[], float]) -> None:
        self.news = asyncio.Event()
        self.phase = BootPhase.ENVIRONMENT
        self.stopping = False
        self.interval = settings.interval
        """Seconds between heartbeats; a bundle may say otherwise."""
        self.revision: str | None = None
        self.runtime_version: str | None = None
        self.restarted_at: str | None = None
        self.last_command: str | None = None
        self.runtime: RuntimeSight | None = None
        self.sight: Callable[[], Sight] = Sight
        """What the runtime says of itself."""
        self.traffic: TrafficSight | None = None
        self.activity = Signs()
        self._listeners: list[Callable[[], None]] = []
        self._drain = ("", float("-inf"))
        """The last command to drain, and until when its effect lasts at most, by the clock."""
        self._troubles: dict[str, str] = {}
        self._settings = settings
        self._began = began
        self._clock = clock

    def changed(self) -> None:
        """There is news: the operator hears it at once, and so does everybody who listens."""
        self.news.set()
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls it at every change; it must neither block nor raise. Returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def trouble(self, topic: str, text: str | None) -> bool:
        """Says what is wrong with a topic, or (None) that it is well again; True when that is new."""
        line = None if text is None else _line(topic, text)
        if self._troubles.get(topic) == line:
            return False
        if line is None:
            del self._troubles[topic]
        else:
            self._troubles[topic] = line
        self.changed()
        return True

    def drain(self, command: str) -> bool:
        """From now on the status says draining while there is something to finish; a repetition puts off no end."""
        if command != self._drain[0]:
            self._drain = (command, self._clock() + _DRAIN_SECONDS)
        return True

    @property
    def _active_sessions(self) -> int | None:
        said = self.activity.active_sessions
        return self.sight().active_sessions if said is None else said

    @property
    def ready(self) -> bool:
        return self.runtime is not None and self.runtime.ready and not self.stopping

    @property
    def status(self) -> Status:
        """The whole in one word, the worst first."""
        if self.stopping:
            return Status.STOPPING
        crashed = self.runtime is not None and self.runtime.state.state is ProcessState.CRASHED
        if self._active_sessions and not crashed and self._clock() < self._drain[1]:
            return Status.DRAINING
        if self.degraded or crashed:
            return Status.DEGRADED
        return Status.RUNNING if self.ready else Status.STARTING

    @property
    def degraded(self) -> list[str]:
        """What is wrong, each with its topic: as the supervisor sees it, then as the runtime says."""
        said = [_line(topic, text) for topic, text in self.sight().troubles.items()]
        return [*self._troubles.values(), *said][:_MOST_TROUBLES]

    def heartbeat(self) -> Heartbeat:
        sight, signs, traffic = self.sight(), self.activity, self.traffic
        passed = None if traffic is None or traffic.last_at is None else traffic.last_at.isoformat("T", "milliseconds")
        said = [at for at in (sight.last_activity_at, signs.last_activity_at, passed) if at is not None]
        through = 0 if traffic is None else traffic.connections
        return Heartbeat(
            status=self.status,
            openclaw_version=self.runtime_version,
            machine_id=self._settings.machine_id,
            machine_version=self._settings.machine_version,
            uptime_seconds=int(self._clock() - self._began),
            memory_mb=psutil.Process().memory_info().rss >> 20,
            compute_version=__version__,
            bundle_revision=self.revision,
            boot_phase=self.phase,
            ready=self.ready,
            degraded=self.degraded,
            runtime=self.runtime.state if self.runtime else None,
            restarted_at=self.restarted_at,
            disk=host.disk(self._settings.data_dir),
            last_command_id=self.last_command,
            channels=dict(sight.channels),
            pending_pairings=sight.pending_pairings,
            active_sessions=self._active_sessions,
            last_activity_at=max(said, key=instant, default=None),
            next_scheduled_run_at=signs.next_scheduled_run_at or sight.next_scheduled_run_at,
            connections=None if signs.connections is None else signs.connections + through,
        )


def printable(text: str) -> str:
    """The text as one line, of any length: what may not stand in a `Line` is a space."""
    return _UNPRINTABLE.sub(" ", text)


def _line(topic: str, text: str) -> str:
    return printable(f"{topic}: {text}")[:200]
