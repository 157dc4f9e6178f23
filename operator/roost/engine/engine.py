"""The engine: takes keys from the queue, runs one reconcile each, sets the next alarm.

Promises: at most `in_flight` reconciles at once and one per key; a reconcile that fails comes back with a growing
delay, for ever; stopping starts nothing new and lets what is in flight end. Knows keys, not agents.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from roost.engine.queue import Lane, Turn, WorkQueue
from roost.kube.client import Conflict, KubeError, NotLeading
from roost.kube.records import Key
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Again:
    """When the key is looked at next: in so many seconds, after its growing back-off (what is sooner), or never.

    Never means that neither is set.
    """

    after: float | None = None
    backoff: bool = False


GONE = Again()
"""Nothing is left to look at: the object is gone."""


class News:
    """Tells a reconcile that somebody waits for its key meanwhile, so that a mere wait can be cut short."""

    def __init__(self, turn: Turn, stopping: asyncio.Event) -> None:
        self._arrived, self._stopping = asyncio.Event(), stopping
        turn.on_news = self._arrived.set

    def heed(self) -> None:
        """What has arrived until now is looked at now: it cuts nothing short any more."""
        self._arrived.clear()

    @property
    def last_call(self) -> bool:
        """The engine stops: end the turn, begin nothing that changes anything."""
        return self._stopping.is_set()

    @property
    def arrived(self) -> bool:
        return self._arrived.is_set()

    async def cut_short(
        self, call: Coroutine[Any, Any, T], *, meanwhile: Callable[[], Awaitable[object]], after: float
    ) -> T | None:
        """Awaits the call; cancels it and answers None when news arrive first. Only for calls that change nothing.

        `meanwhile` is awaited once when the call has taken `after` seconds: people who watch want to see why.
        """
        waiting = asyncio.ensure_future(call)
        news = asyncio.ensure_future(self._arrived.wait())
        try:
            both = {waiting, news}
            done, _ = await asyncio.wait(both, timeout=after, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                await meanwhile()
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            for task in (waiting, news):
                task.cancel()
            await asyncio.gather(waiting, news, return_exceptions=True)


class Reconcile(Protocol):
    """One look at one key. Returns when to look again; raises only on what nobody foresaw."""

    async def __call__(self, key: Key, news: News, /) -> Again: ...


class Engine:
    """Drives reconciles of several kinds from one queue, on the running event loop."""

    def __init__(
        self, reconciles: Mapping[str, Reconcile], metrics: Metrics, rng: random.Random, *, in_flight: int = 64
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.queue = WorkQueue(self._loop.time, rng)
        self._reconciles = reconciles
        self._metrics = metrics
        self._rng = rng
        self._in_flight = in_flight
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake, self._stopping = asyncio.Event(), asyncio.Event()
        metrics.watch_queue(self.queue, self._loop.time)

    def add(self, key: Key, lane: Lane = Lane.BACKGROUND) -> None:
        """Marks a key as due now. For the engine's own loop only: others use `call_soon_threadsafe`."""
        self.queue.add(key, lane)
        self._wake.set()

    def works_on(self, key: Key) -> bool:
        """Whether a look at the key is under way."""
        return self.queue.works_on(key)

    async def run(self) -> None:
        """Works until cancelled; then starts nothing new and lets what is in flight end."""
        try:
            while True:
                self._wake.clear()
                self._start_due()
                await self._until_due()
        finally:
            self._stopping.set()
            for turn in self.queue.turns():
                if turn.on_news is not None:
                    turn.on_news()  # nobody waits for a machine any more
            if self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_due(self) -> None:
        # The key is popped before its task is made: one task per key, never a crowd of idle workers.
        while len(self._tasks) < self._in_flight and (due := self.queue.pop()) is not None:
            turn, waited = due
            self._metrics.queue_duration.labels(turn.key.kind).observe(waited)
            task = asyncio.create_task(self._turn(turn), name=str(turn.key))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()

    async def _until_due(self) -> None:
        at = self.queue.next_alarm()
        full = len(self._tasks) >= self._in_flight
        delay = None if at is None or full else max(0.0, at - self._loop.time())
        try:
            async with asyncio.timeout(delay):  # `wait_for` of 3.11 loses a cancellation that comes with the wake
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _turn(self, turn: Turn) -> None:
        key, result = turn.key, "error"
        try:
            again = await self._reconciles[key.kind](key, News(turn, self._stopping))
            result = self._arm(key, again)
        except Conflict:
            # Somebody else changed the object: news, not an error. Looked at once more now, then with growing pauses.
            result = "requeue_after"
            self.queue.failed(key)
            if self.queue.failures(key) == 1:
                self.queue.add(key, Lane.USER)
        except KubeError as error:
            delay = self.queue.failed(key)
            self._metrics.reconcile_errors.labels(key.kind).inc()
            log.warning("Kubernetes did not take it", key=str(key), error=str(error), retry_in=round(delay, 2))
        except NotLeading as error:
            self.queue.failed(key)
            log.info("left to the next leader", key=str(key), why=str(error))
        except Exception:
            # Nobody foresaw it: the key must come back all the same.
            delay = self.queue.failed(key)
            self._metrics.reconcile_errors.labels(key.kind).inc()
            log.exception("reconcile failed", key=str(key), retry_in=round(delay, 2))
        finally:
            self._metrics.reconciled(key.kind, result, self._loop.time() - turn.started)
            self.queue.done(turn)

    def _arm(self, key: Key, again: Again) -> str:
        if again.backoff:
            self.queue.failed(key)
            if again.after is not None:
                self.queue.alarm(key, self._loop.time() + again.after)
            return "requeue_after"
        if again.after is None:
            self.queue.forget(key)
            return "success"
        self.queue.succeeded(key)
        self.queue.alarm(key, self._loop.time() + again.after * (0.9 + 0.2 * self._rng.random()))
        return "requeue_after" if again.after < 5 else "success"
