"""A double of the API server behind the methods of `roost.kube.client.Kube`: objects in memory, on the loop's clock.

Answers what the API server would: versions, generations, uids, conflicts, the status subresource, finalizers.
"""

import asyncio
import base64
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from flysim.clock import Clock
from roost.kube.client import Body, Conflict, Gone, Refused, collection, core_secret
from roost.kube.records import Record, record

NAMESPACE = "team"
WATCH_SECONDS = 0.02
"""From a change in the store to the operator's knowing of it."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write of the operator's, answered with success."""

    at: float
    kind: Literal["finalizer", "status"]
    path: str


class Store:
    """Objects by their path, changed as the API server changes them; bodies are never changed in place.

    `writes` and `events` are the operator's. `meddle`, when set, is called with "before" and "after" and the path of
    each write of the operator's: what it raises is what the operator gets. `told` is the operator's watch; what happens
    while nobody watches is seen by the next one's first list.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._loop = clock, asyncio.get_running_loop()
        self._objects: dict[str, Body] = {}
        self._version = self._born = 0
        self.writes: list[Write] = []
        self.events: list[Body] = []
        self.meddle: Callable[[Literal["before", "after"], str], None] | None = None
        self.told: Callable[[str, Record], None] | None = None

    # What the operator calls, as of `Kube`

    async def get(self, path: str, **_: str) -> Body:
        await asyncio.sleep(0)
        return self._found("GET", path)

    async def create(self, path: str, body: Body) -> Body:
        await asyncio.sleep(0)
        assert path.endswith("/events"), f"nothing of the Agents' room creates {path}"
        self.events.append(body)
        return body

    async def merge(self, path: str, body: Body) -> Body:
        """A merge patch, of the object or of its status alone.

        Raises:
            Gone, Conflict, Refused: as the API server says 404, 409 and 422.
        """
        await asyncio.sleep(0)
        if self.meddle is not None:
            self.meddle("before", path)
        found = self._found("PATCH", at := path.removesuffix("/status"))
        meta = dict(body.get("metadata", {}))
        if (seen := meta.pop("resourceVersion", None)) is not None and seen != found["metadata"]["resourceVersion"]:
            raise Conflict(f"PATCH {path}", 409, "the object has been modified")
        if path != at:
            new = found | {"status": merged(found.get("status", {}), body["status"])}
        else:
            assert set(body) == {"metadata"}, "the spec is the user's"
            before = found["metadata"].get("finalizers", [])
            if "deletionTimestamp" in found["metadata"] and set(meta["finalizers"]) - set(before):
                raise Refused(f"PATCH {path}", 422, "no new finalizers can be added if the object is being deleted")
            new = found | {"metadata": merged(found["metadata"], meta)}
        self.writes.append(Write(self._clock.now(), "status" if path != at else "finalizer", at))
        new = self._put(at, new)
        if self.meddle is not None:
            self.meddle("after", path)
        return new

    # What people do

    def apply(self, kind: str, name: str, spec: Mapping[str, Any]) -> Body:
        """Makes an object, or gives it this spec."""
        path = path_of(kind, name)
        found = self._objects.get(path)
        if found is not None:
            return self._put(path, found | {"spec": copy.deepcopy(dict(spec))})
        self._born += 1
        meta = {
            "namespace": NAMESPACE,
            "name": name,
            "uid": f"00000000-0000-4000-8000-{self._born:012d}",
            "creationTimestamp": date(self._clock.now()),
        }
        return self._put(path, {"kind": kind, "metadata": meta, "spec": copy.deepcopy(dict(spec))})

    def annotate(self, name: str, values: Mapping[str, str | None]) -> None:
        path = path_of("Agent", name)
        found = self._objects[path]
        self._put(path, found | {"metadata": merged(found["metadata"], {"annotations": values})})

    def delete(self, kind: str, name: str, *, force: bool = False) -> None:
        """Asks for the deletion; by `force`, the finalizers are torn off first and nobody is waited for."""
        path = path_of(kind, name)
        meta = dict(self._objects[path]["metadata"])
        if force:
            meta.pop("finalizers", None)
        meta.setdefault("deletionTimestamp", date(self._clock.now()))
        self._put(path, self._objects[path] | {"metadata": meta})

    def wipe_status(self, name: str) -> None:
        path = path_of("Agent", name)
        self._put(path, {key: value for key, value in self._objects[path].items() if key != "status"})

    def put_core_secret(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        """A core Secret, whole; nobody watches those."""
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self._objects[core_secret(namespace, name)] = {"data": data}

    def find(self, kind: str, name: str) -> Body | None:
        return self._objects.get(path_of(kind, name))

    def records(self) -> list[Record]:
        """All objects of ours, as a list of them would tell."""
        return [record(body) for body in self._objects.values() if "kind" in body]

    def _found(self, method: str, path: str) -> Body:
        if (found := self._objects.get(path)) is None:
            raise Gone(f"{method} {path}", 404, "not found")
        return found

    def _put(self, path: str, new: Body) -> Body:
        old = self._objects.get(path, {})
        meta, before = new["metadata"], old.get("metadata", {})
        if (new | {"metadata": {}}, meta) == (old | {"metadata": {}}, before):
            return old  # a patch that changes nothing makes no new version
        self._version += 1
        begun = new.get("spec") != old.get("spec") or ("deletionTimestamp" in meta) != ("deletionTimestamp" in before)
        generation = before.get("generation", 0) + begun
        new = new | {"metadata": meta | {"resourceVersion": str(self._version), "generation": generation}}
        gone = "deletionTimestamp" in meta and not meta.get("finalizers")
        if gone:
            del self._objects[path]
        else:
            self._objects[path] = new
        if self.told is not None:
            kind = "DELETED" if gone else "ADDED" if not old else "MODIFIED"
            self._loop.call_later(WATCH_SECONDS, self._tell, self.told, kind, record(new))
        return new

    def _tell(self, watch: Callable[[str, Record], None], kind: str, new: Record) -> None:
        if watch == self.told:  # else that process is gone
            watch(kind, new)


def path_of(kind: str, name: str) -> str:
    return f"{collection(kind, NAMESPACE)}/{name}"


def merged(value: Any, change: Any) -> Any:
    """An RFC 7386 merge patch, applied."""
    if not isinstance(change, Mapping):
        return change
    result = dict(value) if isinstance(value, Mapping) else {}
    for key, item in change.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), item)
    return result


def date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
