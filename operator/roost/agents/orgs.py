"""Fly as the operator sees it from above: one client per credential, one refresher per credential and org.

Tells what machines and volumes the lists show, and that a credential became good again. Never concludes absence.
"""

import asyncio
import base64
import random
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import httpx
import structlog

from roost import __version__
from roost.fly.client import Fly
from roost.fly.refresher import Health, Refresher, State, Sweep, VolumeSweep
from roost.kube.client import Gone, Kube, KubeError, core_secret
from roost.settings import Credential, Settings
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
TOKEN_LIFE_SECONDS = 30.0
TOKEN_RETRY_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
"""An org whose first list takes longer is worked on without it: each machine is then looked at by itself."""


class FlyToken:
    """The token of one credential, read by name from the operator's namespace; kept for half a minute."""

    def __init__(self, kube: Kube, namespace: str, credential: Credential, on_change: Callable[[], None]) -> None:
        self._kube, self._path = kube, core_secret(namespace, credential.secret_name)
        self._key, self._on_change = credential.secret_key, on_change
        self._value: str | None = None
        self._read_at: float | None = None
        self._lock = asyncio.Lock()
        self.changes = 0

    async def __call__(self) -> str | None:
        """The token as it is now; None when the Secret or its key is missing. An old one while Kubernetes is away."""
        async with self._lock:
            life = TOKEN_LIFE_SECONDS if self._value else TOKEN_RETRY_SECONDS
            if self._read_at is None or time.monotonic() - self._read_at > life:
                await self._read()
            return self._value

    def doubt(self) -> None:
        """The token was refused: read it again soon."""
        if self._read_at is not None:
            self._read_at = min(self._read_at, time.monotonic() - TOKEN_LIFE_SECONDS + TOKEN_RETRY_SECONDS)

    async def watch(self) -> None:
        """Looks for a new token as long as it runs, so that Agents go on as soon as it is right."""
        while True:
            await asyncio.sleep(TOKEN_RETRY_SECONDS)
            await self()

    async def _read(self) -> None:
        before = self._value
        try:
            data = (await self._kube.get(self._path)).get("data") or {}
            text = base64.b64decode(data.get(self._key, "")).decode(errors="replace").strip()
            self._value = text or None
        except Gone:
            self._value = None
        except KubeError as error:
            log.warning("the Fly token can't be read", error=str(error))
            return
        finally:
            first, self._read_at = self._read_at is None, time.monotonic()
        if self._value != before and not first:
            log.info("the Fly token has changed")
            self.changes += 1
            self._on_change()


class Orgs:
    """All credentials and orgs in use.

    Args:
        settings: the operator's.
        tokens: one for each credential.
        metrics: told of calls, sweeps and silence.
        tasks: where listing runs.
        on_sweep: called with credential, org and each list of machines.
        on_volumes: called with credential, org and each list of volumes.
        apps: the names of the apps that Agents of this credential and org live in, for when the org can't be listed.
        transport: in place of the network, for a simulator in the same process.
    """

    def __init__(
        self,
        settings: Settings,
        tokens: Mapping[str, FlyToken],
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        on_sweep: Callable[[str, str, Sweep], None],
        on_volumes: Callable[[str, str, VolumeSweep], None],
        apps: Callable[[str, str], Iterable[str]],
        transport: httpx.AsyncBaseTransport | None = None,
        fence: Callable[[], None] = lambda: None,
        user_agent: str = f"roost/{__version__}",
    ) -> None:
        self._settings, self._metrics, self._tasks = settings, metrics, tasks
        self._on_sweep, self._on_volumes, self._apps = on_sweep, on_volumes, apps
        self._tokens = tokens
        self._running = [tasks.create_task(t.watch(), name=f"token {name}") for name, t in tokens.items()]
        clock, url = asyncio.get_running_loop().time, settings.fly.base_url
        self.flies = {
            name: Fly(
                token,
                metrics.fly_called,
                base_url=url,
                clock=clock,
                transport=transport,
                fence=fence,
                user_agent=user_agent,
            )
            for name, token in tokens.items()
        }
        metrics.fly_breaker_open.set_function(lambda: float(sum(fly.silent for fly in self.flies.values())))
        self._refreshers: dict[tuple[str, str], tuple[Refresher, float]] = {}
        self._full: set[tuple[str, str]] = set()

    def stop(self) -> None:
        """Ends listing and the watch for tokens."""
        for task in self._running:
            task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fly in self.flies.values():
            await fly.__aexit__(kind, error, trace)

    def doubt(self, credential: str) -> None:
        """A token was refused: look soon whether there is another."""
        self._tokens[credential].doubt()

    def token_changes(self, credential: str) -> int:
        """How often the token of a credential has changed."""
        return self._tokens[credential].changes

    def watch(self, credential: str, org: str) -> None:
        """Begins to list an org's machines and volumes, once."""
        if (credential, org) in self._refreshers:
            return
        loop = asyncio.get_running_loop()
        refresher = Refresher(
            self.flies[credential],
            org,
            clock=loop.time,
            rng=random.Random(),  # noqa: S311 - jitter
            period=self._settings.fly.refresh_seconds,
            volume_period=self._settings.fly.volume_refresh_seconds,
            full_every=self._settings.fly.full_sweep_seconds,
            apps=lambda: self._apps(credential, org),
            on_rows=lambda sweep: self._swept(credential, org, sweep),
            on_volumes=lambda sweep: self._on_volumes(credential, org, sweep),
        )
        self._refreshers[credential, org] = (refresher, loop.time())
        self._running.append(self._tasks.create_task(refresher.run(), name=f"refresher {credential}/{org}"))

    def swept(self, credential: str, org: str) -> bool:
        """Whether the org was listed in full, or can't be, or takes so long that nobody should wait for it."""
        if (credential, org) in self._full or self.listing(credential, org).state is State.CANNOT_LIST_ORG:
            return True
        known = self._refreshers.get((credential, org))
        return known is not None and asyncio.get_running_loop().time() - known[1] > PATIENCE_SECONDS

    def listing(self, credential: str, org: str) -> Health:
        """Whether an org's machines can be listed, with a sentence for a person when not."""
        known = self._refreshers.get((credential, org))
        return known[0].health if known is not None else Health(State.STARTING, asyncio.get_running_loop().time())

    def _swept(self, credential: str, org: str, sweep: Sweep) -> None:
        if sweep.full and sweep.apps is None:
            self._full.add((credential, org))
        self._metrics.sweep_last.labels(org).set(time.time())
        self._on_sweep(credential, org, sweep)
