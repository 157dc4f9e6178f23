"""Kubernetes Events: what `kubectl describe` shows. Only on transitions, at most a few an object, never in the way.

`events.k8s.io/v1` wants a non-empty action, a type of Normal or Warning, and a note of at most 1 kB.
"""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import structlog

from roost.kube.client import Body, Kube, KubeError, NotLeading

log = structlog.get_logger(__name__)
_BURST = 10
_REFILL_SECONDS = 60.0
_FEW = 4096
_NOTE_BYTES = 1000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Recorder:
    """Posts events in the background; each object has a token bucket (10, one more a minute), the rest is dropped."""

    def __init__(self, kube: Kube, clock: Callable[[], float], instance: str) -> None:
        self._kube, self._clock, self._instance = kube, clock, instance
        self._buckets: dict[str, _Bucket] = {}
        self._many = _FEW
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, regarding: Body, kind: Literal["Normal", "Warning"], reason: str, action: str, note: str) -> None:
        """Says once what became true of an object ({kind, namespace, name, uid}); never waits, never raises."""
        if not self._allowed(str(regarding["uid"])):
            return
        task = asyncio.create_task(self._post(regarding, kind, reason, action, note))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Waits for what was recorded to be posted or lost."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _allowed(self, uid: str) -> bool:
        now = self._clock()
        if len(self._buckets) >= self._many:  # a bucket that is full again by now remembers nothing
            used = {u: b for u, b in self._buckets.items() if b.tokens + (now - b.at) / _REFILL_SECONDS < _BURST}
            self._buckets, self._many = used, max(_FEW, 2 * len(used))
        bucket = self._buckets.setdefault(uid, _Bucket(_BURST, now))
        bucket.tokens = min(_BURST, bucket.tokens + (now - bucket.at) / _REFILL_SECONDS)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    async def _post(self, regarding: Body, kind: str, reason: str, action: str, note: str) -> None:
        namespace = regarding["namespace"]
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{regarding['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": "roost.dev/operator",
            "reportingInstance": self._instance,
            "type": kind,
            "reason": reason,
            "action": action,
            "note": note.encode()[:_NOTE_BYTES].decode(errors="ignore"),  # the limit counts bytes
            "regarding": {"apiVersion": "roost.dev/v1alpha1"} | regarding,
        }
        try:
            await self._kube.create(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)
        except (KubeError, NotLeading) as error:
            log.info("event not posted", reason=reason, error=str(error))
