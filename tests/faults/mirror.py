"""The store double and the real API server, asked the same and compared at every step.

A `Mirror` is a `Store` whose every change is made on a real API server too, in a namespace of its own, by blocking
calls while virtual time stands still. Who uses it gets the double's answers; what the real one answered otherwise is
kept in `differences`. Compared are the outcome (class and code of the error) and the object: generation, finalizers,
deletion, labels, annotations, owners, the whole spec and status, and whether a new version was made. Warnings of the
real one (a field that the CRD does not have) are differences. Versions and uids are translated; times that the API
server sets are not compared.

    world = operator_world(make_store=mirrors)             # a fixture: see test_mirror.py
    assert world.store.differences == []
"""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import httpx

from flysim.clock import Clock
from roost.kube.client import _CONTENT_TYPES, Body, KubeError, _as_go_writes, _error
from store import Store, Verb

COLLECTED_SECONDS = 60.0
"""The real garbage collector learns of new kinds every 30 s."""
_HTTP = {"get": "GET", "list": "GET", "create": "POST", "merge": "PATCH", "apply": "PATCH", "update": "PUT"}
_SET_BY_SERVER = ("creationTimestamp", "deletionTimestamp", "generation")
Outcome = Body | KubeError


class Mirror(Store):
    """A store that the real API server is held against. `namespaces` are ours to theirs."""

    def __init__(self, clock: Clock, admin: httpx.Client, namespaces: Mapping[str, str]) -> None:
        super().__init__(clock)
        self._admin, self._namespaces = admin, namespaces
        self._theirs: dict[str, str] = {}
        """Versions and uids, ours to theirs."""
        self._versions: set[str] = set()
        """All that the real one has shown."""
        self._garbage = False
        self.differences: list[str] = []
        self.compared = 0

    def answer(
        self,
        verb: Verb,
        path: str,
        body: Body | None = None,
        *,
        manager: str = "somebody",
        params: Mapping[str, str] | None = None,
    ) -> Body:
        step = f"{verb} {path} {json.dumps(body)}"
        theirs = self._ask(verb, path, body, manager, params or {}, step)
        ours: Outcome
        try:
            ours = super().answer(verb, path, body, manager=manager, params=params)
        except KubeError as error:
            ours = error
        self._compare(step, ours, theirs)
        while self._garbage:
            self._garbage = False
            self._collect_both(step)
        if isinstance(ours, KubeError):
            raise ours
        return ours

    def clear(self) -> None:
        """Removes from the real API server all that was made, without waiting for anybody."""
        for path in sorted({path for _, path, _ in self._history}):
            at = self._there(path)
            if self._admin.get(at).status_code == 200:
                self._admin.patch(
                    at,
                    content=b'{"metadata":{"finalizers":null}}',
                    headers={"Content-Type": _CONTENT_TYPES["merge"]},
                )
                self._admin.delete(at)

    def _collect_soon(self) -> None:
        self._garbage = True  # at once, as soon as this answer has been compared

    def _collect_both(self, step: str) -> None:
        """The double's collector, and then the real one's, which is waited for."""
        before = len(self._history)
        self._collect()
        for path in {path for _, path, _ in self._history[before:]}:
            deadline = time.monotonic() + COLLECTED_SECONDS
            ours = self._objects.get(path)
            while True:
                theirs = self._ask("get", path, None, "", {}, step)
                if not self._unlike(ours, None if isinstance(theirs, KubeError) else theirs):
                    break
                if time.monotonic() > deadline:
                    self.differences.append(f"after {step}: the real collector left {path} as {theirs}, not {ours}")
                    return
                time.sleep(0.05)
            if ours is not None and not isinstance(theirs, KubeError):
                self._learn(ours, theirs)

    # The real one

    def _ask(
        self, verb: Verb, path: str, body: Body | None, manager: str, params: Mapping[str, str], step: str
    ) -> Outcome:
        at, query = self._there(path), dict(params)
        content, headers = None, {}
        if verb == "delete":
            options: Body = {"propagationPolicy": query.pop("propagationPolicy", "Background")}
            content = _as_go_writes(options | ({"preconditions": self._translated(body)} if body else {}))
            headers["Content-Type"] = _CONTENT_TYPES["json"]
        elif body is not None:
            content = _as_go_writes(self._translated(body))
            headers["Content-Type"] = _CONTENT_TYPES.get(verb, _CONTENT_TYPES["json"])
            query["fieldManager"] = manager
            if verb == "apply":
                query["force"] = "true"
        found = self._admin.request(_HTTP.get(verb, "DELETE"), at, params=query, content=content, headers=headers)
        for warning in found.headers.get_list("warning"):
            self.differences.append(f"{step}: warned: {warning}")
        answer: Body = found.json()
        if found.status_code >= 300:
            return _error(step, found.status_code, str(answer.get("message", "")))
        return answer

    def _there(self, path: str) -> str:
        for ours, theirs in self._namespaces.items():
            path = path.replace(f"/namespaces/{ours}/", f"/namespaces/{theirs}/")
        return path

    def _translated(self, value: Any) -> Any:
        """Versions, uids and namespaces as the real one has them; without what it sets itself."""
        if isinstance(value, list):
            return [self._translated(item) for item in value]
        if not isinstance(value, dict):
            return value
        new = {}
        for key, item in value.items():
            if key in ("spec", "status", "data"):
                new[key] = item
            elif key in ("resourceVersion", "uid"):
                new[key] = self._theirs.get(item, item)
            elif key == "namespace":
                new[key] = self._namespaces.get(item, item)
            elif key not in _SET_BY_SERVER:
                new[key] = self._translated(item)
        return new

    # Comparing

    def _compare(self, step: str, ours: Outcome, theirs: Outcome) -> None:
        self.compared += 1
        if isinstance(ours, KubeError) or isinstance(theirs, KubeError):
            if _class(ours) != _class(theirs):
                self.differences.append(f"{step}: ours {ours}, theirs {theirs}")
            return
        pairs: Sequence[tuple[Body | None, Body | None]] = [(ours, theirs)]
        if "items" in ours:
            pairs = list(zip_longest(_by_name(ours), _by_name(theirs)))
        for mine, real in pairs:
            unlike = self._unlike(mine, real)
            if not unlike and mine is not None and real is not None and "uid" in mine.get("metadata", {}):
                unlike = self._learn(mine, real)
            if unlike:
                self.differences.append(f"{step}: {unlike}")

    def _unlike(self, ours: Body | None, theirs: Body | None) -> str:
        """In which the two differ; empty when in nothing."""
        if ours is None or theirs is None:
            return "" if ours is theirs else f"ours is {ours}, theirs is {theirs}"
        if not all("uid" in body.get("metadata", {}) for body in (ours, theirs)):  # a Status, or an Event
            return "" if ours.get("kind") == theirs.get("kind") else f"ours is {ours}, theirs is {theirs}"
        mine, real = self._shown(ours, self._theirs), self._shown(theirs, {})
        parts = [key for key in mine if mine[key] != real[key]]
        return "; ".join(f"{key}: ours {mine[key]}, theirs {real[key]}" for key in parts)

    @staticmethod
    def _shown(body: Body, uids: Mapping[str, str]) -> dict[str, Any]:
        meta = body["metadata"]
        owners = [owner | {"uid": uids.get(owner["uid"], owner["uid"])} for owner in meta.get("ownerReferences", ())]
        return {
            "name": meta["name"],
            "generation": meta.get("generation"),
            "finalizers": meta.get("finalizers", []),
            "deleting": "deletionTimestamp" in meta,
            "labels": meta.get("labels", {}),
            "annotations": meta.get("annotations", {}),
            "owners": owners,
            "status": body.get("status"),
            "spec": body.get("spec"),
            "data": body.get("data"),
            "revision": body.get("revision"),
        }

    def _learn(self, ours: Body, theirs: Body) -> str:
        """Keeps which version and uid are which; a sentence when one of the two made a new version, and one did not."""
        meta, real = ours["metadata"], theirs["metadata"]
        if self._theirs.setdefault(meta["uid"], real["uid"]) != real["uid"]:
            return "one of the two is another object under the same name"
        if "deletionTimestamp" in meta and "finalizers" not in meta:
            return ""  # gone with this answer, whose version nobody will see again
        mine, version = meta["resourceVersion"], real["resourceVersion"]
        news = mine not in self._theirs, version not in self._versions
        self._versions.add(version)
        if news[0] != news[1] or self._theirs.setdefault(mine, version) != version:
            return f"made a new version: ours {news[0]}, theirs {news[1]}"
        return ""


def _class(outcome: Outcome) -> tuple[str, int]:
    return (type(outcome).__name__, outcome.status) if isinstance(outcome, KubeError) else ("done", 200)


def _by_name(page: Body) -> list[Body]:
    return sorted(page["items"], key=lambda item: str(item["metadata"]["name"]))
