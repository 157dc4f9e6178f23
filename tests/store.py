"""A double of the API server behind the methods of `roost.kube.client.Kube`: objects in memory, on the loop's clock.

Answers what the API server would: versions, generations, uids, conflicts, the status subresource, finalizers,
preconditions, the CRD's defaults, server-side apply, label selectors; owned objects go after their owners. It neither
prunes nor validates, and a list is one page. Core Secrets and ConfigMaps can be watched where a test grants it.
`faults/mirror.py` is a store that asks the real API server as well, and compares.

What is done to it, and what it records:

    store.calls, store.writes, store.events             # the operator's calls in order, its writes, its Events
    store.apply / annotate / delete / wipe_status / …   # what people do; the operator's watch is told

Faults. `meddle` is called with "before" and with "after" each call of the operator's has had its effect (a refused
call has no "after"). What it raises is what the operator gets; seconds that it answers are waited there; and it may
change the world itself:

    def meddle(where: Where, call: Call) -> float | None:
        if call.number == 7 and where == "after":
            raise Unreachable(f"{call.verb} {call.path}", 504, "no answer")     # done, but nobody hears of it
        if call.verb == "merge" and where == "before":
            store.annotate("ada", {"somebody": "else"})                         # a conflict
        return 2.0 if call.verb == "list" else None                             # a slow one
    store.meddle = meddle

`deliver` says for each event of the watch after how many seconds each it is told, so none, late, twice, or in another
order; `relist` tells all objects again, if asked as they were some time ago (what a restarted watch does; it does not
tell of deletions that were missed):

    store.deliver = lambda kind, new: ()                    # lost
    store.deliver = lambda kind, new: (5.0,)                # late; for a single event, later ones pass it
    store.deliver = lambda kind, new: (0.02, 3.0)           # twice
    store.relist(as_of=store.now() - 10)                    # from an API server that is 10 s behind
"""

import asyncio
import base64
import copy
import functools
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from flysim.clock import Clock
from roost.api.agent import AGENT
from roost.api.crd import crd
from roost.api.fleet import FLEET
from roost.api.secret import SECRET
from roost.kube.client import (
    FIELD_MANAGER,
    Body,
    Conflict,
    Gone,
    Refused,
    Unreachable,
    collection,
    core_object,
    core_secret,
)
from roost.kube.records import Key, Record, record

NAMESPACE = "team"
WATCH_SECONDS = 0.02
"""From a change in the store to the operator's knowing of it."""
COLLECT_SECONDS = 0.5
"""From the end of an owner to the deletion of what it owned."""

Where = Literal["before", "after"]
Verb = Literal["get", "list", "create", "merge", "apply", "update", "delete"]
WriteKind = Literal["finalizer", "status", "create", "apply", "update", "delete"]
OURS = "/apis/roost.dev/"
_PATH = re.compile(
    r"(?P<root>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(/(?P<name>[^/]+))?(/status)?"
)
_METHODS = {"get": "GET", "update": "PUT", "delete": "DELETE"}
_EMPTY = ("finalizers", "labels", "annotations", "ownerReferences")
"""Parts of the metadata that are left out when they are empty."""
Leaf = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the operator's, the first has number 1. Of a deletion, `body` are the preconditions."""

    number: int
    verb: Verb
    path: str
    body: Body | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One write of the operator's, answered with success; Events are not among them."""

    at: float
    kind: WriteKind
    path: str


class Store:
    """Objects by their path, changed as the API server changes them; bodies are never changed in place.

    `kube` are the methods of `roost.kube.client.Kube`. `told` is the operator's watch; what happens while nobody
    watches is seen by the next one's first list.
    """

    collect_seconds: float = COLLECT_SECONDS

    def __init__(self, clock: Clock) -> None:
        self._clock, self._loop = clock, asyncio.get_running_loop()
        self._objects: dict[str, Body] = {}
        self._history: list[tuple[float, str, Body | None]] = []
        self._setters: dict[str, dict[str, set[Leaf]]] = {}
        """Who set which field, of objects that were ever applied server-side."""
        self._bare: set[str] = set()
        """Objects without a stored status: its default is shown, and stored with the first write, whatever that is."""
        self._version = self._born = 0
        self.kube = Port(self)
        self.calls: list[Call] = []
        self.writes: list[Write] = []
        self.events: list[Body] = []
        self.meddle: Callable[[Where, Call], float | None] | None = None
        self.deliver: Callable[[str, Record], Iterable[float]] = lambda _kind, _new: (WATCH_SECONDS,)
        self.told: Callable[[str | None, Record], None] | None = None
        self.granted: set[tuple[str, str]] = set()
        self._watches: list[tuple[str, asyncio.Queue[tuple[str, Body] | int | None]]] = []

    def now(self) -> float:
        """Epoch seconds."""
        return self._clock.now()

    # What people do

    def apply(self, kind: str, name: str, spec: Mapping[str, Any]) -> Body:
        """Makes an object, or gives it this spec."""
        found, spec = self.find(kind, name), copy.deepcopy(dict(spec))
        if found is not None:
            return self.answer("update", path_of(kind, name), found | {"spec": spec})
        body = {"apiVersion": "roost.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        return self.answer("create", collection(kind, NAMESPACE), body)

    def annotate(self, name: str, values: Mapping[str, str | None], kind: str = "Agent") -> None:
        self.change(kind, name, {"annotations": values})

    def label(self, name: str, values: Mapping[str, str | None], kind: str = "Agent") -> None:
        self.change(kind, name, {"labels": values})

    def change(self, kind: str, name: str, metadata: Mapping[str, Any]) -> None:
        """A merge patch of the metadata."""
        self.answer("merge", path_of(kind, name), {"metadata": dict(metadata)})

    def delete(self, kind: str, name: str, *, force: bool = False, orphan: bool = False) -> None:
        """Asks for the deletion; by `force`, the finalizers are torn off first and nobody is waited for; `orphan` is
        --cascade=orphan."""
        if force:
            self.change(kind, name, {"finalizers": None})
        if not force or self.find(kind, name) is not None:
            self.answer("delete", path_of(kind, name), {}, params={"propagationPolicy": "Orphan"} if orphan else {})

    def wipe_status(self, name: str, kind: str = "Agent") -> None:
        self.answer("merge", f"{path_of(kind, name)}/status", {"status": None})

    def edit_status(self, name: str, change: Mapping[str, Any], kind: str = "Agent") -> None:
        """A merge patch of the status, by somebody's hand."""
        self.answer("merge", f"{path_of(kind, name)}/status", {"status": dict(change)})

    def put_core_secret(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        """A core Secret, whole; watched where that is granted."""
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
        path = core_secret(namespace, name)
        if path in self._objects:
            self.answer("update", path, self._objects[path] | {"data": data})
        else:
            self.answer("create", path.removesuffix(f"/{name}"), body)

    def drop_core_secret(self, namespace: str, name: str) -> None:
        self.answer("delete", core_secret(namespace, name), {})

    def put_config_map(self, namespace: str, name: str, data: Mapping[str, str]) -> None:
        """A ConfigMap, whole."""
        path = core_object(Key("ConfigMap", namespace, name))
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(data)}
        if path in self._objects:
            self.answer("update", path, self._objects[path] | {"data": dict(data)})
        else:
            self.answer("create", path.removesuffix(f"/{name}"), body)

    def grant(self, resource: str, namespace: str = "") -> None:
        """From now on the operator may list and watch `secrets` or `configmaps`; nobody may at first."""
        self.granted.add((resource, namespace))

    def cut_watches(self, code: int | None = None) -> None:
        """Ends all watches of the core API, as by an error of this code; None: in good order."""
        for _, events in self._watches:
            events.put_nowait(code)

    def find(self, kind: str, name: str) -> Body | None:
        return self._objects.get(path_of(kind, name))

    def of(self, path: str) -> list[Body]:
        """All objects in a collection, `/apis/apps/v1/namespaces/team/controllerrevisions`; or of the whole cluster."""
        return [body for at, body in self._objects.items() if _in(at, path)]

    # The watch

    def records(self, as_of: float | None = None) -> list[Record]:
        """All objects of ours, as a list of them would tell; as they were at an epoch time, if one is given."""
        there = self._objects
        if as_of is not None:
            there = {}
            for at, path, body in self._history:
                if at <= as_of:
                    there.pop(path, None)
                    if body is not None:
                        there[path] = body
        return [record(body) for path, body in there.items() if path.startswith(OURS)]

    def relist(self, as_of: float | None = None) -> None:
        """The watch breaks and begins anew with a list, of what was at an epoch time if one is given."""
        if self.told is not None:
            for found in self.records(as_of):
                self.told(None, found)

    def _tell(self, watch: Callable[[str | None, Record], None], kind: str, new: Record) -> None:
        if watch == self.told:  # else that process is gone
            watch(kind, new)

    # The API server

    def answer(
        self,
        verb: Verb,
        path: str,
        body: Body | None = None,
        *,
        manager: str = "somebody",
        params: Mapping[str, str] | None = None,
    ) -> Body:
        """What the API server answers, and the change it makes; of a deletion, `body` are the preconditions.

        Raises:
            Gone, Conflict, Refused: as the API server says 404, 409, and 400 or 422.
        """
        params = params or {}
        if path.endswith("/events"):
            self.events.append(body or {})
            return body or {}
        match verb:
            case "get":
                return self._found(verb, path)
            case "list":
                items = [b for b in self.of(path) if _selected(b, params.get("labelSelector", ""))]
                return {"items": items, "metadata": {"resourceVersion": str(self._version)}}
            case "create":
                return self._create(path, body or {})
            case "apply":
                return self._apply(path, body or {}, manager)
            case "delete":
                return self._delete(path, body or {}, orphan=params.get("propagationPolicy") == "Orphan")
            case "merge" | "update":
                return self._change(verb, path, body or {}, manager)

    def _create(self, collection: str, body: Body) -> Body:
        namespace = _match(collection)["namespace"]
        path = f"{collection}/{body['metadata']['name']}"
        if path in self._objects:
            raise Conflict(f"POST {collection}", 409, "already exists")
        self._born += 1
        meta = {key: body["metadata"][key] for key in ("name", *_EMPTY) if key in body["metadata"]}
        meta |= {
            "namespace": namespace,
            "uid": f"00000000-0000-4000-8000-{self._born:012d}",
            "creationTimestamp": date(self.now()),
        }
        return self._put(path, copy.deepcopy({k: v for k, v in body.items() if k != "status"}) | {"metadata": meta})

    def _change(self, verb: Verb, path: str, body: Body, manager: str) -> Body:
        """A merge patch or a whole object, of the object or of its status alone."""
        call = f"{_METHODS.get(verb, 'PATCH')} {path}"
        at = path.removesuffix("/status")
        found = self._found(verb, at)
        was, meta = found["metadata"], dict(body.get("metadata", {}))
        seen = meta.pop("resourceVersion", None)
        if verb == "update" and seen is None:
            raise Refused(call, 422, "metadata.resourceVersion: must be specified for an update")
        if (seen or was["resourceVersion"]) != was["resourceVersion"] or meta.get("uid", was["uid"]) != was["uid"]:
            raise Conflict(call, 409, "the object has been modified")
        new = body if verb == "update" else merged(found, body)
        if path != at:
            return self._put(at, found | {"status": new.get("status") or {}})
        # Who the object is stays as it was; of the metadata, these are what people can change.
        meta = was | {key: new["metadata"].get(key) for key in _EMPTY}
        if "deletionTimestamp" in was and set(meta["finalizers"] or ()) - set(was.get("finalizers", ())):
            raise Refused(call, 422, "no new finalizers can be added if the object is being deleted")
        kept = {key: found[key] for key in ("status",) if key in found}
        new = {k: v for k, v in new.items() if k != "status"} | kept | {"metadata": meta}
        return self._put(at, copy.deepcopy(new), manager)

    def _apply(self, path: str, body: Body, manager: str) -> Body:
        """Server-side apply, forced: what the manager no longer names goes, unless somebody else has set it."""
        found, wanted = self._objects.get(path), _leaves(body)
        setters = self._setters.get(path, {"somebody": set(_leaves(found))} if found is not None else {})
        others = {who: set(leaves) for who, leaves in setters.items() if who != manager}
        dropped = setters.get(manager, set()) - wanted.keys()
        dropped = {leaf for leaf in dropped if not any(leaf in leaves for leaves in others.values())}
        if found is None:
            self._setters[path] = {manager: set(wanted)}
            return self._create(path.rpartition("/")[0], body)
        was = _leaves(found)
        for leaves in others.values():
            leaves.difference_update(leaf for leaf, value in wanted.items() if was.get(leaf) != value)
        now = {who: leaves for who, leaves in (others | {manager: set(wanted)}).items() if leaves}
        self._setters[path] = now
        new = _with(found, wanted, dropped)
        return self._put(path, new, touched=now != setters)

    def _delete(self, path: str, seen: Body, *, orphan: bool) -> Body:
        found = self._found("delete", path)
        meta = dict(found["metadata"])
        asked = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]} | seen
        if any(asked[key] != meta[key] for key in asked):
            raise Conflict(f"DELETE {path}", 409, "the object is not the one that was seen")
        if orphan and "deletionTimestamp" not in meta:
            meta["finalizers"] = [*meta.get("finalizers", ()), "orphan"]
        meta.setdefault("deletionTimestamp", date(self.now()))
        new = self._put(path, found | {"metadata": meta})
        return new if path in self._objects else {"kind": "Status", "status": "Success"}

    def _found(self, verb: Verb, path: str) -> Body:
        if (found := self._objects.get(path)) is None:
            raise Gone(f"{_METHODS.get(verb, 'PATCH')} {path}", 404, "not found")
        return found

    def _put(self, path: str, new: Body, manager: str | None = None, *, touched: bool = False) -> Body:
        old = self._objects.get(path, {})
        meta = {k: v for k, v in new["metadata"].items() if v or k not in _EMPTY}
        before = old.get("metadata", {})
        if path.startswith(OURS):
            new = _defaulted(_schema(new["kind"]), new)
        plain = {k: v for k, v in new.items() if k not in ("metadata", "status")}
        begun = plain != {k: v for k, v in old.items() if k not in ("metadata", "status")}
        same = not begun and meta == before and new.get("status") == old.get("status")
        if same and not touched and path not in self._bare:
            return old  # a write that changes nothing makes no new version
        if path.startswith(OURS):
            (self._bare.discard if old else self._bare.add)(path)
        self._version += 1
        meta["resourceVersion"] = str(self._version)
        if path.startswith(OURS):
            begun = begun or ("deletionTimestamp" in meta) != ("deletionTimestamp" in before)
            meta["generation"] = before.get("generation", 0) + begun
        new = new | {"metadata": meta}
        gone = "deletionTimestamp" in meta and not meta.get("finalizers")
        self._history.append((self.now(), path, None if gone else new))
        if gone:
            del self._objects[path]
            self._setters.pop(path, None)
        else:
            self._objects[path] = new
            if manager is not None and path in self._setters:
                self._set_by(manager, path, _leaves(old), _leaves(new))
        if path.startswith(OURS) and self.told is not None:
            kind = "DELETED" if gone else "ADDED" if not old else "MODIFIED"
            said = record(new)
            for seconds in self.deliver(kind, said):
                self._loop.call_later(seconds, self._tell, self.told, kind, said)
        event = "DELETED" if gone else "MODIFIED" if old else "ADDED"
        for watched, events in self._watches:
            if _in(path, watched):
                self._loop.call_later(WATCH_SECONDS, events.put_nowait, (event, {"metadata": meta}))
        owned = meta.get("ownerReferences") != before.get("ownerReferences")
        if gone or owned or "orphan" in meta.get("finalizers", ()):
            self._collect_soon()
        return new

    def _set_by(self, manager: str, path: str, old: Mapping[Leaf, Any], new: Mapping[Leaf, Any]) -> None:
        changed = {leaf for leaf in old.keys() | new.keys() if old.get(leaf) != new.get(leaf)}
        setters = self._setters[path]
        for leaves in setters.values():
            leaves.difference_update(changed)
        setters.setdefault(manager, set()).update(changed & new.keys())

    # The garbage collector

    def _collect_soon(self) -> None:
        self._loop.call_later(self.collect_seconds, self._collect)

    def _collect(self) -> None:
        """Sets free what a deleted owner leaves behind by wish, and deletes what has no owner any more.

        In this store only, whatever a subclass does elsewhere with the answers.
        """
        living = {body["metadata"]["uid"] for body in self._objects.values()}
        owned = [p for p, body in self._objects.items() if "ownerReferences" in body["metadata"]]
        freed = {
            body["metadata"]["uid"]: path
            for path, body in self._objects.items()
            if "deletionTimestamp" in body["metadata"] and "orphan" in body["metadata"].get("finalizers", ())
        }
        for path in owned:
            meta = self._objects[path]["metadata"]
            kept = [owner for owner in meta["ownerReferences"] if owner["uid"] not in freed]
            if kept != meta["ownerReferences"]:
                Store.answer(self, "merge", path, {"metadata": {"ownerReferences": kept or None}})
            elif not any(owner["uid"] in living for owner in kept) and "deletionTimestamp" not in meta:
                Store.answer(self, "delete", path, {"uid": meta["uid"]})
        for path in freed.values():
            finalizers = [f for f in self._objects[path]["metadata"]["finalizers"] if f != "orphan"]
            Store.answer(self, "merge", path, {"metadata": {"finalizers": finalizers or None}})


class Port:
    """What the operator has of a store: the methods of `Kube`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, path: str, **params: str) -> Body:
        return await self._call("list" if _match(path)["name"] is None else "get", path, params=params)

    async def metadata(self, path: str, **params: str) -> Body:
        answer = await self._call("list", path, params={})
        self._refuse(path)
        return answer | {"items": [{"metadata": body["metadata"]} for body in answer["items"]]}

    async def watch(self, path: str, **params: str) -> AsyncIterator[tuple[str, Body]]:
        self._refuse(path)
        events: asyncio.Queue[tuple[str, Body] | int | None] = asyncio.Queue()
        line = (path, events)
        self._store._watches.append(line)
        try:
            while isinstance(event := await events.get(), tuple):
                yield event
            if event is not None:
                raise {403: Refused, 410: Gone}.get(event, Unreachable)(f"WATCH {path}", event, "the watch is over")
        finally:
            self._store._watches.remove(line)

    def _refuse(self, path: str) -> None:
        found = _match(path)
        if not {(found["plural"], ""), (found["plural"], found["namespace"] or "")} & self._store.granted:
            raise Refused(f"WATCH {path}", 403, "forbidden")

    async def create(self, path: str, body: Body) -> Body:
        if path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            scopes = {(asked["resource"], ""), (asked["resource"], asked.get("namespace", ""))}
            return {"status": {"allowed": bool(scopes & self._store.granted)}}
        return await self._call("create", path, body, "create")

    async def merge(self, path: str, body: Body) -> Body:
        of_status = path.endswith("/status")
        assert of_status or set(body) == {"metadata"}, "the spec is the user's"
        return await self._call("merge", path, body, "status" if of_status else "finalizer")

    async def apply(self, path: str, body: Body, manager: str) -> Body:
        return await self._call("apply", path, body, "apply", manager)

    async def update(self, path: str, body: Body) -> Body:
        return await self._call("update", path, body, "update")

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> Body:
        seen = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
        return await self._call("delete", path, seen, "delete")

    async def _call(
        self,
        verb: Verb,
        path: str,
        body: Body | None = None,
        kind: WriteKind | None = None,
        manager: str = FIELD_MANAGER,
        params: Mapping[str, str] | None = None,
    ) -> Body:
        await asyncio.sleep(0)
        store = self._store
        call = Call(len(store.calls) + 1, verb, path, body)
        store.calls.append(call)
        await self._meddle("before", call)
        answer = store.answer(verb, path, body, manager=manager, params=params)
        if kind is not None and not path.endswith("/events"):
            store.writes.append(Write(store.now(), kind, _object(path, answer)))
        await self._meddle("after", call)
        return answer

    async def _meddle(self, where: Where, call: Call) -> None:
        if self._store.meddle is not None and (seconds := self._store.meddle(where, call)) is not None:
            await asyncio.sleep(seconds)


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


def _match(path: str) -> re.Match[str]:
    found = _PATH.fullmatch(path)
    assert found is not None, f"{path} is no path of the API server's"
    return found


def _object(path: str, answer: Body) -> str:
    """The path of the object that a write was about."""
    return path.removesuffix("/status") if _match(path)["name"] else f"{path}/{answer['metadata']['name']}"


def _in(path: str, collection: str) -> bool:
    item, asked = _match(path), _match(collection)
    same = (item["root"], item["plural"]) == (asked["root"], asked["plural"])
    return same and asked["namespace"] in (None, item["namespace"])


def _selected(body: Body, selector: str) -> bool:
    labels = body["metadata"].get("labels", {})
    wanted = (part.partition("=") for part in selector.split(",") if part)
    return all(labels.get(key) == value for key, _, value in wanted)


@functools.cache
def _schema(name: str) -> Mapping[str, Any]:
    (kind,) = (kind for kind in (AGENT, FLEET, SECRET) if kind.kind == name)
    schema: Mapping[str, Any] = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _defaulted(schema: Mapping[str, Any], value: Any) -> Any:
    """The value with the defaults of its schema, as they are filled in when an object is stored."""
    if isinstance(value, list):
        return [_defaulted(schema.get("items", {}), item) for item in value]
    if not isinstance(value, Mapping):
        return value
    new = dict(value)
    for key, part in schema.get("properties", {}).items():
        if "default" in part:
            new.setdefault(key, part["default"])
        if key in new:
            new[key] = _defaulted(part, new[key])
    return new


def _leaves(body: Mapping[str, Any]) -> dict[Leaf, Any]:
    """The fields that people and managers set, each by its way; a list is one field, but owners go by their uid."""
    meta = body["metadata"]
    owners = {owner["uid"]: (owner,) for owner in meta.get("ownerReferences", ())}
    parts = {"labels": meta.get("labels"), "annotations": meta.get("annotations"), "ownerReferences": owners}
    return dict(_ways({"metadata": parts} | {k: v for k, v in body.items() if k not in ("metadata", "status")}))


def _ways(value: Any, way: Leaf = ()) -> Iterable[tuple[Leaf, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _ways(item, (*way, key))
    elif value is not None:
        yield way, value


def _with(body: Body, wanted: Mapping[Leaf, Any], dropped: Iterable[Leaf]) -> Body:
    """The object with these fields changed; parts that become empty go."""
    new = copy.deepcopy(body)
    owners = new["metadata"].get("ownerReferences", ())
    new["metadata"]["ownerReferences"] = {owner["uid"]: (owner,) for owner in owners}
    for way, value in [*((w, None) for w in dropped), *wanted.items()]:
        change: Any = value
        for key in reversed(way):
            change = {key: change}
        new = merged(new, change)
    new["metadata"]["ownerReferences"] = [owner for (owner,) in new["metadata"]["ownerReferences"].values()]
    return new
