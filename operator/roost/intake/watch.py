"""kopf in its own thread and event loop: it takes in what Kubernetes says, and hands it over. It decides nothing.

Only `on.event` handlers are registered, kopf stores nothing in objects and posts nothing. Its loop cancels every task
that was made after its start, so nothing of ours lives there: events are handed over with `call_soon_threadsafe`. When
its watchers die (a 410 on a page, a truncated line) it is started again; engine and endpoint live on.
"""

import asyncio
import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import kopf
import structlog

from roost.kube.cluster import Cluster
from roost.kube.records import Record, record

log = structlog.get_logger(__name__)
GROUP, VERSION = "roost.dev", "v1alpha1"
PLURALS = {"agents": "Agent", "fleets": "Fleet", "secrets": "Secret"}
RESTART_SECONDS = 1.0

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

    def __init__(self, cluster: Cluster, on_event: OnEvent) -> None:
        self._cluster, self._on_event = cluster, on_event
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._stop_flag: asyncio.Event | None = None
        self._kopf_loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Ends kopf; returns when its thread has ended (well under a second, at most five)."""
        self._stopping.set()
        loop, flag = self._kopf_loop, self._stop_flag
        if loop is not None and flag is not None and not loop.is_closed():
            loop.call_soon_threadsafe(flag.set)
        await asyncio.to_thread(self._thread.join, 5.0)

    # --- In kopf's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._operate())
            except Exception as error:
                log.warning("kopf ended and is started again", error=f"{type(error).__name__}: {error}"[:300])
            self._stopping.wait(RESTART_SECONDS)

    async def _operate(self) -> None:
        self._kopf_loop, self._stop_flag = asyncio.get_running_loop(), asyncio.Event()
        if self._stopping.is_set():
            return
        await kopf.operator(
            registry=self._registry(self._stop_flag),
            settings=_settings(),
            standalone=True,
            clusterwide=True,
            stop_flag=self._stop_flag,
        )

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
    return settings
