"""What is written to our own objects, and nothing else ever is: one finalizer, and the status.

Every answer goes into the cache at once, so that nobody acts on something older than our own last write.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from roost.kube.client import Conflict, Gone, Kube, Refused, collection, set_finalizers
from roost.kube.records import Cache, Key, Record, record
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
MESSAGE_LENGTH = 300


class Objects:
    """Writes to Agents, Fleets and Secrets of ours, and keeps the cache in step."""

    def __init__(self, kube: Kube, cache: Cache, metrics: Metrics) -> None:
        self._kube, self._cache, self._metrics = kube, cache, metrics

    async def finalizer(self, found: Record, name: str, *, held: bool) -> bool:
        """Sets or releases a finalizer of ours, theirs kept; False when the object moved on: look, decide again.

        Raises:
            Unreachable: whether it was stored is unknown.
        """
        theirs = [f for f in found.finalizers if f != name]
        wanted = [*theirs, name] if held else theirs
        try:
            new = record(await set_finalizers(self._kube, _path(found.key), str(found.version), wanted))
        except Gone:
            self._cache.drop(found.key, found.uid)
            return True
        except (Conflict, Refused):
            await self.look_again(found.key, found.uid)
            return False
        if new.deleting and not new.finalizers:
            self._cache.drop(found.key, found.uid)
        else:
            self._cache.put(new)
        return True

    async def look_again(self, key: Key, uid: str) -> bool:
        """Reads an object by name into the cache, drops it there when it is gone; True when that was news to it."""
        try:
            new = record(await self._kube.get(_path(key)))
        except Gone:
            return self._cache.drop(key, uid) is not None
        old = self._cache.put(new)
        return old is None or old.uid != new.uid or old.version < new.version

    async def write_status(self, found: Record, status: Mapping[str, Any]) -> bool:
        """One merge patch of what differs; False when the object is gone.

        Guarded by the version that was seen: the answer of an unguarded patch could bring a deletion or a new spec into
        the cache before the watch tells of it, which then would be no news, and nobody would look.

        Raises:
            Conflict: somebody else changed the object meanwhile; it was read anew and is to be looked at again.
        """
        patch = {
            "metadata": {"resourceVersion": str(found.version)},
            "status": merge_patch(found.status, status),
        }
        try:
            body = await self._kube.merge(f"{_path(found.key)}/status", patch)
        except Gone:
            self._cache.drop(found.key, found.uid)
            return False
        except Conflict:
            await self.look_again(found.key, found.uid)
            raise
        self._cache.put(record(body))
        self._metrics.status_writes.labels(found.key.kind).inc()
        return True


def merge_patch(previous: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest merge patch that turns one status into the other: `null` removes, lists are replaced whole."""
    patch: dict[str, Any] = {k: None for k in previous if k not in status}
    for key, value in status.items():
        before = previous.get(key)
        if before != value:
            both = isinstance(value, Mapping) and isinstance(before, Mapping)
            patch[key] = merge_patch(before, value) if both else value  # type: ignore[arg-type]
    return patch


def condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """One condition of a status; empty when it was never set."""
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


def new_condition(
    previous: Mapping[str, Any], kind: str, verdict: tuple[str, str, str], generation: int, wall: str
) -> dict[str, Any]:
    """A metav1.Condition of (status, reason, message); its time moves only when the status flips."""
    state, reason, message = verdict
    before = condition(previous, kind)
    return {
        "type": kind,
        "status": state,
        "reason": str(reason),
        "message": message[:MESSAGE_LENGTH],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == state else wall,
    }


def regarding(found: Record) -> dict[str, str]:
    """What an event is about."""
    return {"kind": found.key.kind, "namespace": found.key.namespace, "name": found.key.name, "uid": found.uid}


def wall() -> str:
    """The time now, RFC 3339, in whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _path(key: Key) -> str:
    return f"{collection(key.kind, key.namespace)}/{key.name}"
