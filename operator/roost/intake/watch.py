"""kopf in its own thread and event loop: it takes in what Kubernetes says, and hands it over. It decides nothing.

Only `on.event` handlers are registered, kopf stores nothing in objects and posts nothing. Its loop cancels every task
that was made after its start, so nothing of ours lives there: events are handed over with `call_soon_threadsafe`. When
its watchers die (a 410 on a page, a truncated line) it is started again; engine and endpoint live on. However it ends,
it has ended within seconds: what it leaves behind is cancelled, and its loop closed.
"""

import asyncio
import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import kopf
import structlog

from roost.kube.cluster import Cluster
from roost.kube.records import Record, record
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
GROUP, VERSION = "roost.dev", "v1alpha1"
PLURALS = {"agents": "Agent", "fleets": "Fleet", "secrets": "Secret"}
RESTART_SECONDS = 1.0, 15.0
"""Pause before kopf is started again: at first, and at most while it ends again and again. Each start lists it all."""
STEADY_SECONDS = 60.0
"""A run that lasted so long was none of those."""
END_SECONDS = 1.0
"""How long kopf may take to end by itself; it takes 0.2 s, or five when one of three watchers died."""
BEAT_SECONDS = 1.0
HUNG_SECONDS = 60.0
"""A kopf whose loop has not turned for so long does not come back; only a new process helps."""

OnEvent = Callable[[str | None, Record], None]
"""(type, record): type None for an item of a listing, ADDED, MODIFIED or DELETED else. Called in our own loop."""


class _Endless:
    """Back-offs without an end: a watcher that gives up would take the whole intake along. Iterable again and again."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.2, 0.5, 1.0, 2.0)
        while True:
            yield 4.0 + random.random() * 2  # noqa: S311 - jitter


class _NullProgress(kopf.ProgressStorage):
    """kopf stores no progress: we have no handlers that need it."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


class _NullDiffBase(kopf.DiffBaseStorage):
    """kopf stores no last-seen copy: it would double the size of every object."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


@dataclass(slots=True)
class _Login:
    """The token that kopf was last given, and when."""

    token: str = ""
    at: float = float("-inf")


class Intake:
    """Runs kopf until stopped. `on_event` is called in the loop that made this."""

    def __init__(self, cluster: Cluster, on_event: OnEvent, metrics: Metrics) -> None:
        self._cluster, self._on_event, self._metrics = cluster, on_event, metrics
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._stop_flag: asyncio.Event | None = None
        self._kopf_loop: asyncio.AbstractEventLoop | None = None
        self._beat_at = time.monotonic()
        self._asked = False
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        metrics.intake_age.set_function(self.age)

    def start(self) -> None:
        self._thread.start()

    def restart(self) -> None:
        """Ends kopf's present run; the next one begins with a fresh listing, which tells what was missed."""
        self._asked = True
        loop, flag = self._kopf_loop, self._stop_flag
        if loop is not None and flag is not None:
            with suppress(RuntimeError):  # that loop is closed: it has ended already
                loop.call_soon_threadsafe(flag.set)

    def age(self) -> float:
        """Seconds since kopf's loop last turned; up to `RESTART_SECONDS` and a few more around a restart."""
        return time.monotonic() - self._beat_at

    async def stop(self) -> None:
        """Ends kopf; returns when its thread has ended (well under a second, at most five)."""
        self._stopping.set()
        self.restart()
        await asyncio.to_thread(self._thread.join, 5.0)

    # --- In kopf's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause, longest = RESTART_SECONDS
        while not self._stopping.is_set():
            began, reason, self._asked = time.monotonic(), "", False
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(self._operate())
                loop.run_until_complete(loop.shutdown_asyncgens())
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:300]
            finally:
                loop.close()  # not asyncio.run, which waits for every task for as long as it likes
            if self._stopping.is_set():
                return
            if time.monotonic() - began > STEADY_SECONDS:
                pause = RESTART_SECONDS[0]
            reason = reason or ("it was asked to" if self._asked else "a watcher failed")
            log.warning("kopf ended and is started again", reason=reason, seconds=pause)
            self._metrics.intake_restarts.inc()
            self._stopping.wait(pause)
            pause = min(2 * pause, longest)

    async def _operate(self) -> None:
        """One run of kopf.

        Raises:
            Exception: what a watcher of kopf died of.
        """
        self._kopf_loop, flag = asyncio.get_running_loop(), asyncio.Event()
        self._stop_flag = flag
        self._beat()
        if self._stopping.is_set():
            return
        ending = asyncio.create_task(flag.wait())
        run = asyncio.create_task(
            kopf.operator(
                registry=self._registry(flag), settings=_settings(), standalone=True, clusterwide=True, stop_flag=flag
            )
        )
        await asyncio.wait({run, ending}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({run}, timeout=END_SECONDS)
        # kopf leaves the other watchers running when one dies, and cancels them once: a watcher that is just connecting
        # swallows that and goes on, kopf waits for it for ever. The second time it listens.
        for _ in range(3):
            if left := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=END_SECONDS)
        if run.done() and not run.cancelled():
            run.result()

    def _beat(self) -> None:
        # A timer and not a task: kopf cancels tasks that it did not make.
        self._beat_at = time.monotonic()
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _registry(self, stop_flag: asyncio.Event) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        cluster, last = self._cluster, _Login()

        @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY, retries=None, backoff=1)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            token = cluster.token(fresh=True) or ""
            # kopf never takes back credentials that were refused; asked again at once, the file is not rotated yet.
            if token == last.token and time.monotonic() - last.at < 3:
                raise kopf.TemporaryError("the token was refused and has not been rotated yet", delay=2)
            last.token, last.at = token, time.monotonic()
            cert, key = cluster.client_cert or (None, None)
            return kopf.ConnectionInfo(
                server=cluster.server,
                ca_path=cluster.ca_path,
                token=token or None,
                certificate_path=cert,
                private_key_path=key,
                expiration=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1),
            )

        @kopf.on.cleanup(registry=registry)
        async def cleanup(**_: Any) -> None:
            stop_flag.set()  # otherwise kopf's own waiter for this flag holds the shutdown up for 5 s

        for plural in PLURALS:
            kopf.on.event(GROUP, VERSION, plural, registry=registry, id=plural)(self._told)
        return registry

    async def _told(self, event: Mapping[str, Any], **_: Any) -> None:
        """Hands one event over; never raises, never waits."""
        try:
            new = record(event["object"])
        except (KeyError, ValueError, TypeError) as error:
            log.error("an event that is no object of ours", error=repr(error))
            return
        self._loop.call_soon_threadsafe(self._on_event, event.get("type"), new)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.progress_storage = _NullProgress()
    settings.persistence.diffbase_storage = _NullDiffBase()
    settings.persistence.finalizer = "roost.dev/never-used"
    settings.posting.enabled = False
    settings.queueing.idle_timeout = 0.05
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = random.randint(270, 310)  # noqa: S311 - jitter; must be a whole number
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = _Endless()
    settings.process.ultimate_exiting_timeout = None  # else a shutdown that hangs ends in SIGKILL for all of us
    return settings
