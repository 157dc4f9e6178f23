"""Watches core Secrets and ConfigMaps, as metadata only and only where RBAC grants it; what changed is looked at.

A right on all namespaces makes one watch; else there is one for each namespace of which something is referred to, up
to a number. What is not watched, or no longer, is read in turns: nothing depends on a watch but how soon a change is
noticed. An event wakes exactly the sources that it names. A value is never asked for.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from roost.kube.client import Gone, Kube, KubeError, Refused, core_collection, may
from roost.kube.records import Key
from roost.secrets.table import SOURCES, SecretTable

log = structlog.get_logger(__name__)
ASK_AGAIN_SECONDS = 600.0
"""A right may be granted or taken later."""
MOST_WATCHES = 32
"""Each holds a connection; further namespaces are polled."""
PAGE = "500"
LEAST_PAUSE, MOST_PAUSE = 1.0, 60.0
PATIENCE_SECONDS = 30.0
"""How long a watch may be down before what it covered is polled."""

Scope = tuple[str, str]
"""A kind, and a namespace or "" for all."""


@dataclass(slots=True)
class _Line:
    """Where a watch is: the version it goes on from, and whether it is believed to be up as soon as it is begun."""

    version: str = ""
    trusted: bool = True


class Watches:
    """Keeps what may be watched under watch until cancelled; `clock` in seconds."""

    def __init__(self, kube: Kube, table: SecretTable, clock: Callable[[], float]) -> None:
        self._kube, self._table, self._clock = kube, table, clock
        self._verdicts: dict[Scope, tuple[bool, float]] = {}
        self._running: dict[Scope, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            while True:
                self._table.grown.clear()
                await self._set_up()
                try:
                    async with asyncio.timeout(ASK_AGAIN_SECONDS):
                        await self._table.grown.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _set_up(self) -> None:
        wanted = set[Scope]()
        for kind in SOURCES:
            spaces = sorted(self._table.spaces(kind))
            if spaces and await self._may(kind, ""):
                wanted.add((kind, ""))
            else:
                granted = [(kind, space) for space in spaces if await self._may(kind, space)]
                wanted |= set(granted[: MOST_WATCHES // len(SOURCES)])
        for scope in self._running.keys() - wanted:
            self._running.pop(scope).cancel()
            self._down(scope)
        for scope in wanted:
            if scope not in self._running or self._running[scope].done():
                self._running[scope] = asyncio.create_task(self._keep(scope), name=f"watch {scope}")
        if not wanted and self._table.spaces(SOURCES[0]):
            self._table.watched = set()

    async def _may(self, kind: str, namespace: str) -> bool:
        now = self._clock()
        verdict, at = self._verdicts.get((kind, namespace), (False, float("-inf")))
        if now - at >= ASK_AGAIN_SECONDS:
            resource = core_collection(kind, "").rpartition("/")[2]
            try:
                verdict = await may(self._kube, "", resource, "watch", namespace) and await may(
                    self._kube, "", resource, "list", namespace
                )
            except KubeError as error:
                log.info("not known whether it may be watched", kind=kind, namespace=namespace, error=str(error))
                verdict = False
            self._verdicts[kind, namespace] = (verdict, now)
        return verdict

    async def _keep(self, scope: Scope) -> None:
        """One watch, begun anew whenever it ends; returns when it is refused."""
        line, pause, down_since = _Line(), LEAST_PAUSE, self._clock()
        while True:
            began, failure = self._clock(), ""
            try:
                await self._follow(scope, line)
            except Refused as error:
                log.warning("a watch is refused; polling instead", scope=scope, error=str(error))
                self._verdicts.pop(scope, None)
                self._down(scope)
                return
            except KubeError as error:
                failure = str(error)
                log.info("a watch ended", scope=scope, error=failure)
                if isinstance(error, Gone):
                    line.version = ""
            now = self._clock()
            if now - began > MOST_PAUSE or not failure:
                pause, down_since, line.trusted = LEAST_PAUSE, now, True
                self._up(scope)
            elif now - down_since > PATIENCE_SECONDS:
                line.version, line.trusted = "", False
                self._down(scope)
            if failure or now - began < LEAST_PAUSE:
                await asyncio.sleep(pause)
                pause = min(MOST_PAUSE, pause * 2)

    async def _follow(self, scope: Scope, line: "_Line") -> None:
        """One watch until it ends; what was missed before it is found by a list."""
        if not line.version:
            line.version = await self._list(scope)
            if line.trusted:
                self._up(scope)
        async for event, body in self._kube.watch(core_collection(*scope), resourceVersion=line.version):
            line.version = body["metadata"]["resourceVersion"]
            if event != "BOOKMARK":
                self._seen(scope, body)

    async def _list(self, scope: Scope) -> str:
        """Has looked at what is not as it was when it was looked at; answers where a watch begins."""
        path, there, params = core_collection(*scope), set[Key](), {"limit": PAGE}
        while True:
            page = await self._kube.metadata(path, **params)
            for body in page["items"]:
                there.add(self._seen(scope, body))
            if not (more := page["metadata"].get("continue")):
                break
            params["continue"] = more
        for source, state in tuple(self._table.sources.items()):
            if _within(source, scope) and source not in there and not state.absent:
                self._table.look(source)
        return str(page["metadata"]["resourceVersion"])

    def _seen(self, scope: Scope, body: dict[str, dict[str, str]]) -> Key:
        """Has an object looked at, if somebody refers to it and it is another than the one that was looked at."""
        meta = body["metadata"]
        source = Key(scope[0], meta["namespace"], meta["name"])
        state = self._table.sources.get(source)
        same = state is not None and not state.absent and str(state.version) == meta["resourceVersion"]
        if not same and self._table.users(source):
            self._table.look(source)
        return source

    def _up(self, scope: Scope) -> None:
        self._mark(scope, (self._table.watched or set()) | {scope})

    def _down(self, scope: Scope) -> None:
        self._mark(scope, (self._table.watched or set()) - {scope})

    def _mark(self, scope: Scope, watched: set[Scope]) -> None:
        """When it is news, the sources set their alarms anew, and Roost Secrets say how they are looked at."""
        if watched == self._table.watched:
            return
        self._table.watched = watched
        for source in [s for s in self._table.sources if _within(s, scope)]:
            self._table.wake(source)
            for user in self._table.users(source):
                if user.kind == "Secret":
                    self._table.wake(user)


def _within(source: Key, scope: Scope) -> bool:
    return source.kind == scope[0] and scope[1] in ("", source.namespace)
