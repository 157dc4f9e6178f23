"""What Kubernetes told us, kept small: one record an object, the newest wins.

A record holds what reconciling needs and no more: `managedFields` and foreign annotations are dropped, and so are
foreign labels but those of Agents, by which Secrets select. Only the event loop's own thread touches the cache.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

PREFIX = "roost.dev/"
MOST_BURIED = 10_000


class Key(NamedTuple):
    """One object: its kind, namespace and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Record:
    """One object as the API server holds it."""

    key: Key
    uid: str
    version: int
    generation: int
    created_at: str
    deleting: bool
    finalizers: tuple[str, ...]
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    owner_uid: str | None
    spec: Mapping[str, Any]
    status: Mapping[str, Any]


def record(body: Mapping[str, Any]) -> Record:
    """The record of an object as it comes from the API server.

    resourceVersions of one kind may be compared as numbers (KEP-5504, Kubernetes 1.35).
    """
    meta = body["metadata"]
    owner = next((o["uid"] for o in meta.get("ownerReferences", ()) if o.get("controller")), None)
    kind = sys.intern(body["kind"])
    return Record(
        key=Key(kind, sys.intern(meta["namespace"]), meta["name"]),
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        generation=meta.get("generation", 0),
        created_at=meta["creationTimestamp"],
        deleting="deletionTimestamp" in meta,
        finalizers=tuple(meta.get("finalizers", ())),
        annotations={k: v for k, v in meta.get("annotations", {}).items() if k.startswith(PREFIX)},
        labels={sys.intern(k): v for k, v in meta.get("labels", {}).items() if kind == "Agent" or k.startswith(PREFIX)},
        owner_uid=owner,
        spec=body.get("spec", {}),
        status=body.get("status", {}),
    )


class Cache:
    """The newest record of every object of ours. `put`, `drop` and `bury` answer what changed."""

    def __init__(self) -> None:
        self._records: dict[Key, Record] = {}
        self._buried: dict[str, None] = {}
        self._by_owner: dict[str, set[Key]] = {}

    def get(self, key: Key) -> Record | None:
        return self._records.get(key)

    def put(self, new: Record) -> Record | None:
        """Keeps a record unless it is older than what we have; answers the one it replaced.

        Another uid under the same name is another object, whatever the versions say; one that was buried is not kept.
        """
        old = self._records.get(new.key)
        if new.uid in self._buried:
            return old
        if old is not None and old.uid == new.uid and old.version > new.version:
            return old
        self._records[new.key] = new
        if old is not None and old.owner_uid != new.owner_uid:
            self._unown(old)
        if new.owner_uid is not None:
            self._by_owner.setdefault(new.owner_uid, set()).add(new.key)
        return old

    def drop(self, key: Key, uid: str) -> Record | None:
        """Forgets an object that is gone; one that was re-created meanwhile stays."""
        old = self._records.get(key)
        if old is None or old.uid != uid:
            return None
        del self._records[key]
        self._unown(old)
        return old

    def bury(self, key: Key, uid: str) -> Record | None:
        """Forgets an object whose end was told: what is told of it later, by a list that lags behind, is old."""
        self._buried[uid] = None
        if len(self._buried) > MOST_BURIED:
            del self._buried[next(iter(self._buried))]
        return self.drop(key, uid)

    def owned_by(self, uid: str) -> list[Record]:
        """The objects whose controller has this uid."""
        return [self._records[k] for k in self._by_owner.get(uid, ())]

    def of_kind(self, kind: str) -> Iterator[Record]:
        return (r for k, r in list(self._records.items()) if k.kind == kind)

    def _unown(self, old: Record) -> None:
        if old.owner_uid is not None and (keys := self._by_owner.get(old.owner_uid)) is not None:
            keys.discard(old.key)
            if not keys:
                del self._by_owner[old.owner_uid]
