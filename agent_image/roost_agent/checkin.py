"""Tells the operator the machine's figures now and then, for dashboards and alerts; nothing depends on them.

One call at a time, and none is made again: what it would have told comes with the next one, since deltas count from the
last check-in that was seen to be taken. A failure is logged when it begins and when it is over.
"""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from roost_agent import __version__, host
from roost_agent.backoff import Random
from roost_agent.contract.bundle import ConfigBundle
from roost_agent.contract.checkin import Checkin
from roost_agent.contract.heartbeat import Disk, Heartbeat, LastExit, Status
from roost_agent.endpoint import Busy, CallFailed, Endpoint
from roost_agent.host import Traffic
from roost_agent.settings import Settings
from roost_agent.vitals import Vitals

__all__ = ["BUILD", "CheckinLoop", "Counted", "Probe", "built_from", "figures"]

BUILD = Path(__file__).parents[1] / "build.json"
"""Written beside this package when an image is made; it names the commit."""
_SPREAD = 0.1
"""By what part of it an interval is longer or shorter, so that a crowd that started together does not call together."""
_UNKNOWN = "unknown"
_LONGEST_VERSION = 64
_log = structlog.get_logger()

Probe = Callable[[], Awaitable[tuple[str, str] | None]]
"""Version and commit of the runtime; None: it has none. OSError or TimeoutError: they can't be had now."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Counters at one moment: starts of the runtime after an end nobody asked for, and what went over the network."""

    restarts: int
    traffic: Traffic


class CheckinLoop:
    """Checks in until it is cancelled, while the bundle in force brings a gateway token. Traffic counts from here on.

    Args:
        bundle: The bundle in force. Another pace counts at once, if `vitals` tells of a change afterwards.
        probe: Asked before each check-in.
        began: When the supervisor began, in seconds of `clock`.
        clock: A monotonic clock, in seconds.
        random: Numbers from 0 up to 1, for the jitter.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        vitals: Vitals,
        *,
        bundle: Callable[[], ConfigBundle | None],
        probe: Probe,
        began: float,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._vitals = vitals
        self._bundle = bundle
        self._probe = probe
        self._began = began
        self._clock = clock
        self._random = random
        self._commit = built_from(BUILD)
        self._before = Counted(0, host.traffic() or Traffic(0, 0))
        """As last taken by the operator."""
        self._last: float | None = None
        """When the last check-in began."""
        self._spread = 1.0
        self._patience = 0.0
        """For how many seconds the operator asked to be left alone after it."""
        self._failures = 0
        self._mood: type[CallFailed] | None = None

    async def run(self) -> None:
        """Checks in, for ever.

        Raises:
            Superseded: another machine is the agent's now.
        """
        changed = asyncio.Event()
        deaf = self._vitals.listen(changed.set)
        try:
            while True:
                token, seconds = self._due()
                if token is not None and seconds <= 0:
                    await self._check_in(token)
                    continue
                changed.clear()
                try:
                    async with asyncio.timeout(None if token is None else seconds):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            deaf()

    def _due(self) -> tuple[str | None, float]:
        """The gateway token, None when there is none that could be sent, and seconds until the next check-in."""
        if (bundle := self._bundle()) is None:
            return None, 0.0
        token = bundle.secret_env.get(bundle.gateway.token_env, "")
        pace = bundle.telemetry
        if self._last is None:
            at = self._began + pace.initial_delay_seconds
        else:
            at = self._last + max(pace.interval_seconds * self._spread, self._patience)
        return token if token.isascii() and token.isprintable() and token else None, at - self._clock()

    async def _check_in(self, token: str) -> None:
        self._last, self._patience = self._clock(), 0.0
        self._spread = 1 + _SPREAD * (2 * self._random() - 1)
        runtime = await self._runtime()
        beat = self._vitals.heartbeat()
        now = Counted(
            restarts=0 if beat.runtime is None else beat.runtime.restarts,
            traffic=host.traffic() or self._before.traffic,
        )
        body = figures(
            self._settings.did,
            beat,
            self._before,
            now,
            commit=self._commit,
            runtime=runtime,
            load5=host.load5(),
            disk=host.disk(self._settings.data_dir),
            region=host.region(self._settings.base_env),
            failed=self._failures,
        )
        try:
            await self._endpoint.checkin(body, token)
        except CallFailed as error:
            self._failed(error)
        else:
            self._taken(now)

    async def _runtime(self) -> tuple[str, str] | None:
        try:
            return await self._probe()
        except (OSError, TimeoutError):
            return None

    def _failed(self, error: CallFailed) -> None:
        self._failures += 1
        if isinstance(error, Busy):
            self._patience = error.retry_after
        if type(error) is not self._mood:
            self._mood = type(error)
            _log.warning("check-in not taken", why=str(error))

    def _taken(self, now: Counted) -> None:
        if self._mood is not None:
            _log.info("check-in taken again", failures=self._failures)
        self._before, self._failures, self._mood = now, 0, None


def figures(
    did: str,
    beat: Heartbeat,
    before: Counted,
    now: Counted,
    *,
    commit: str,
    runtime: tuple[str, str] | None,
    load5: float,
    disk: Disk | None,
    region: str | None,
    failed: int,
) -> Checkin:
    """The check-in of a machine whose heartbeat would be `beat`, with what has come about between two counts.

    `commit` is the supervisor's, `runtime` the version and the commit of what it runs, as far as they are known.
    """
    version, version_commit = runtime or ("", "")
    return Checkin(
        sandbox_id=did,
        machine_id=beat.machine_id,
        controller_version=__version__,
        controller_commit=commit,
        openclaw_version=_version(version),
        openclaw_commit=_version(version_commit),
        supervisor_state=_state(beat),
        total_restarts=now.restarts,
        restarts_since_last_checkin=host.since(before.restarts, now.restarts),
        uptime_seconds=beat.uptime_seconds,
        load_avg5m=load5,
        bandwidth_bytes_in=host.since(before.traffic.received, now.traffic.received),
        bandwidth_bytes_out=host.since(before.traffic.sent, now.traffic.sent),
        last_exit_reason="" if beat.runtime is None else _reason(beat.runtime.last_exit),
        disk_used_bytes=None if disk is None else disk.used_bytes,
        disk_total_bytes=None if disk is None else disk.total_bytes,
        failed_checkins=failed,
        region=region,
    )


def built_from(file: Path) -> str:
    """The commit that a build names; `unknown` without one, as when it runs from a source tree."""
    try:
        commit = json.loads(file.read_bytes())["commit"]
    except (OSError, ValueError, LookupError, TypeError):
        return _UNKNOWN
    return _version(commit) or _UNKNOWN if isinstance(commit, str) else _UNKNOWN


def _version(text: str) -> str | None:
    """A word that the contract takes for a version; None for any other."""
    fits = text.isascii() and text.isprintable() and " " not in text and len(text) <= _LONGEST_VERSION
    return text if text and fits else None


def _state(beat: Heartbeat) -> str:
    """In the words of the seed systems, which are ours but for one."""
    if beat.status is Status.STOPPING:
        return "shutting_down"
    return "stopped" if beat.runtime is None else beat.runtime.state.value


def _reason(last: LastExit | None) -> str:
    if last is None or last.signal is None:
        return "" if last is None or last.code is None else f"code:{last.code}"
    try:
        return f"signal:{signal.Signals(last.signal).name}"
    except ValueError:
        return f"signal:{last.signal}"
