"""What is true of this machine now: read by the heartbeat and the health port, written by everybody else.

Every change that the operator should hear of sets `news`.
"""

import asyncio
import re
import shutil
from collections.abc import Callable
from typing import Protocol

import psutil

from roost_agent import __version__
from roost_agent.activity import Signs
from roost_agent.contract.heartbeat import (
    BootPhase,
    Disk,
    Heartbeat,
    ProcessState,
    RuntimeState,
    Status,
)
from roost_agent.settings import Settings

__all__ = ["RuntimeSight", "Vitals"]

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
        self.activity = Signs()
        self._drain = ("", float("-inf"))
        """The last command to drain, and until when its effect lasts at most, by the clock."""
        self._troubles: dict[str, str] = {}
        self._settings = settings
        self._began = began
        self._clock = clock

    def changed(self) -> None:
        """There is news: the operator hears it at once."""
        self.news.set()

    def trouble(self, topic: str, text: str | None) -> bool:
        """Says what is wrong with a topic, or (None) that it is well again; True when that is new."""
        line = None if text is None else _UNPRINTABLE.sub(" ", f"{topic}: {text}")[:200]
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
    def ready(self) -> bool:
        return self.runtime is not None and self.runtime.ready and not self.stopping

    @property
    def status(self) -> Status:
        """The whole in one word, the worst first."""
        if self.stopping:
            return Status.STOPPING
        crashed = self.runtime is not None and self.runtime.state.state is ProcessState.CRASHED
        if self.activity.active_sessions and not crashed and self._clock() < self._drain[1]:
            return Status.DRAINING
        if self._troubles or crashed:
            return Status.DEGRADED
        return Status.RUNNING if self.ready else Status.STARTING

    def heartbeat(self) -> Heartbeat:
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
            degraded=list(self._troubles.values())[:_MOST_TROUBLES],
            runtime=self.runtime.state if self.runtime else None,
            restarted_at=self.restarted_at,
            disk=self._disk(),
            last_command_id=self.last_command,
            active_sessions=self.activity.active_sessions,
            last_activity_at=self.activity.last_activity_at,
            next_scheduled_run_at=self.activity.next_scheduled_run_at,
            connections=self.activity.connections,
        )

    def _disk(self) -> Disk | None:
        try:
            usage = shutil.disk_usage(self._settings.data_dir)
        except OSError:
            return None
        return Disk(used_bytes=usage.used, total_bytes=usage.total)
