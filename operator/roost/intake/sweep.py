"""Looks now and then whether the watch told us everything: what is in the cache against what a listing shows.

Two things a watch does not tell. A deletion that fell into a gap of it (kopf reports none after a fresh listing): what
is in the cache and not in the list is read by name, and only a 404 is believed, since a list may be old. And that it
has gone deaf, open but silent, or has lost events: what the list shows newer than the cache, and still does a few
seconds later, was missed; then kopf is restarted, and its fresh listing tells.
"""

import asyncio
from collections.abc import Callable

import structlog

from roost.intake import listing
from roost.kube.client import Gone, Kube, KubeError, collection
from roost.kube.records import Cache, Key, Record
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
SWEEP_SECONDS = 300.0
GRACE_SECONDS = 5.0
"""How far the watch may be behind a listing."""
DEAF_SWEEPS = 3
"""After so many sweeps in a row that found intake deaf, in spite of its restarts, only a new process helps."""


class Sweep:
    """Compares cache and listings until cancelled. `gone` gets each record whose deletion was missed."""

    def __init__(
        self, kube: Kube, cache: Cache, gone: Callable[[Record], None], restart: Callable[[], None], metrics: Metrics
    ) -> None:
        self._kube, self._cache, self._gone, self._restart, self._metrics = kube, cache, gone, restart, metrics
        self.deaf = 0
        """Sweeps in a row that found changes of which the watch had not told."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.once()

    async def once(self) -> None:
        """One sweep. Never raises: what can't be listed now is listed next time."""
        whole, newer = True, dict[Key, int]()
        for kind in listing.KINDS:
            try:
                newer |= await self._compare(kind)
            except KubeError as error:
                log.info("sweep put off", kind=kind, error=str(error))
                whole = False
        missed = await self._first_missed(newer)
        if missed is not None:
            self.deaf += 1
            log.warning("the watch did not tell of a change; it is started anew", object=str(missed), sweeps=self.deaf)
            self._restart()
        elif whole:
            self.deaf = 0
        self._metrics.intake_deaf.set(self.deaf)

    async def _compare(self, kind: str) -> dict[Key, int]:
        """Tells of missed deletions; the objects that the list shows newer than the cache, with their versions."""
        before = {r.key: r.uid for r in self._cache.of_kind(kind)}
        there, newer = set[Key](), dict[Key, int]()
        async for body in listing.objects(self._kube, kind):
            meta = body["metadata"]
            key, version = Key(kind, meta["namespace"], meta["name"]), int(meta["resourceVersion"])
            there.add(key)
            found = self._cache.get(key)
            if found is None or found.version < version:
                newer[key] = version
        for key in before.keys() - there:
            if await self._exists(key):
                continue
            found = self._cache.get(key)
            # One that was made again under its name meanwhile has another uid.
            if found is not None and found.uid == before[key]:
                self._gone(found)
        return newer

    async def _first_missed(self, newer: dict[Key, int]) -> Key | None:
        if newer:
            await asyncio.sleep(GRACE_SECONDS)
        for key, version in newer.items():
            found = self._cache.get(key)
            if found is not None:
                if found.version < version:
                    return key
            # Not in the cache: missed, or made and deleted in these seconds, and told of both.
            elif await self._exists(key):
                return key
        return None

    async def _exists(self, key: Key) -> bool:
        """Whether it is there, as the API server itself says; True too when it does not say."""
        try:
            await self._kube.get(f"{collection(key.kind, key.namespace)}/{key.name}")
        except Gone:
            return False
        except KubeError as error:
            log.info("sweep put off", object=str(key), error=str(error))
        return True
