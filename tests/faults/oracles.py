"""What must never be, read from two records alone: Fly's ledger, and the API server's record of every version.

The operator's own metrics and opinions are never asked. Doubles, orphans and the order of a destroy are counted as
`roost.local.verify_figures` does for a real stack; the rest is what a double of the API server makes cheap to know.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roost.local import verify_figures
from roost.local.evidence import Call, Ledger, Write, ledger_of

OURS = "roost/"
PATIENCE_SECONDS = 60.0
NAMES = ("orphans", "doubles", "overlaps", "order", "finalizer", "foreign", "generation", "secrets")


@dataclass(frozen=True, slots=True)
class Version:
    """An object from this moment on (epoch seconds); None: it is gone."""

    at: float
    path: str
    body: Mapping[str, Any] | None


@dataclass(slots=True)
class Verdict:
    """What was found, in sentences; empty lists when all is well."""

    found: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in NAMES})

    @property
    def sound(self) -> bool:
        return not any(self.found.values())


def judge(lines: Sequence[Mapping[str, Any]], versions: Sequence[Version], secret: str = "sesame") -> Verdict:
    """All that the two records prove wrong."""
    verdict = Verdict()
    writes = audit(versions)
    ledger = ledger_of((f"line {n}", line) for n, line in enumerate(lines, 1))
    if writes:
        report = verify_figures.verify(ledger, writes)
        verdict.found["orphans"] += report.orphans
        verdict.found["doubles"] += [s for s in report.doubles if not _on_a_dead_host(s, lines)]
        verdict.found["order"] += report.order_violations
    verdict.found["overlaps"] += overlaps(ledger.calls)
    verdict.found["finalizer"] += unguarded(ledger, writes)
    verdict.found["foreign"] += foreign(ledger)
    verdict.found["generation"] += generations(versions)
    if any(secret in json.dumps(v.body.get("status")) for v in versions if v.body and v.body.get("status")):
        verdict.found["secrets"].append("a status holds a secret's value")
    return verdict


def audit(versions: Iterable[Version]) -> list[Write]:
    """The writes that made these versions. What only our operator writes is its; all else is people's."""
    found: list[Write] = []
    last: dict[str, Mapping[str, Any]] = {}
    for version in versions:
        if "/apis/roost.dev/" not in version.path or "/agents/" not in version.path:
            continue
        old, new = last.get(version.path), version.body
        if new is None:
            if old is not None:
                found += _writes(version, old, {**old, "metadata": {**old["metadata"], "finalizers": []}})
            last.pop(version.path, None)
        else:
            found += _writes(version, old, new)
            last[version.path] = new
    return found


def _writes(version: Version, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Iterable[Write]:
    namespace, name = version.path.split("/")[-3], version.path.split("/")[-1]

    def write(user: str, verb: str, body: Mapping[str, Any], subresource: str = "") -> Write:
        at = version.at
        return Write(at, at, user, verb, "roost.dev", "agents", subresource, namespace, name, 200, body, False)

    if old is None:
        yield write("people", "create", {"spec": new["spec"]})
        return
    meta, before = new["metadata"], old["metadata"]
    if new["spec"] != old["spec"] or meta.get("annotations") != before.get("annotations"):
        yield write("people", "patch", {"spec": new["spec"]})
    if "deletionTimestamp" in meta and "deletionTimestamp" not in before:
        yield write("people", "delete", {})
    if meta.get("finalizers", []) != before.get("finalizers", []):
        yield write(verify_figures.OPERATOR, "patch", {"metadata": {"finalizers": meta.get("finalizers", [])}})
    if new.get("status") != old.get("status"):
        yield write(verify_figures.OPERATOR, "patch", {"status": new.get("status") or {}}, "status")


def overlaps(calls: Iterable[Call]) -> list[str]:
    """Two changes of one app that took effect, the second begun before the first was answered or given up.

    The operator gives a change up after a minute: what Fly does with it later is a late arrival, and no more under way.
    """
    by_app: dict[str | None, list[Call]] = {}
    for call in calls:
        if call.changed and call.agent.startswith(OURS):
            by_app.setdefault(call.app, []).append(call)
    found = []
    for app, of_app in by_app.items():
        ordered = sorted(of_app, key=lambda c: c.at)
        until = ordered[0]
        for call in ordered[1:]:
            if call.at < _until(until):
                found.append(f"{call.op} of {app} began while {until.op} was under way")
            until = max(until, call, key=_until)
    return found


def _until(call: Call) -> float:
    return min(call.answered, call.at + PATIENCE_SECONDS)


def unguarded(ledger: Ledger, writes: Sequence[Write]) -> list[str]:
    """Changes at Fly while no Agent held our finalizer."""
    held: list[tuple[float, float]] = []
    since: float | None = None
    for write in writes:
        finalizers = (write.body.get("metadata") or {}).get("finalizers")
        if finalizers is None:
            continue
        if verify_figures.FINALIZER in finalizers:
            since = write.received if since is None else since
        elif since is not None:
            held.append((since, write.received))
            since = None
    if since is not None:
        held.append((since, float("inf")))
    return [
        f"{call.op} at {call.at:.1f} while nobody held the finalizer"
        for call in ledger.calls
        if call.changed and call.agent.startswith(OURS) and not any(a <= call.at <= b for a, b in held)
    ]


def foreign(ledger: Ledger) -> list[str]:
    """What somebody else made, and our operator destroyed."""
    return [
        f"{thing} is somebody else's and was destroyed"
        for thing in (*ledger.machines, *ledger.volumes, *ledger.apps)
        if thing.maker is not None and not thing.maker.startswith(OURS) and thing.destroyed is not None
    ]


def generations(versions: Iterable[Version]) -> list[str]:
    """observedGeneration goes neither back nor beyond the generation."""
    found: list[str] = []
    last: dict[str, int] = {}
    for version in versions:
        if version.body is None or "generation" not in (meta := version.body.get("metadata", {})):
            continue
        seen = (version.body.get("status") or {}).get("observedGeneration", -1)
        if seen == -1:  # wiped by somebody: it begins anew
            last.pop(meta["uid"], None)
        if seen > meta["generation"]:
            found.append(f"{meta['name']}: observedGeneration {seen} is beyond generation {meta['generation']}")
        if seen < last.get(meta["uid"], -1):
            found.append(f"{meta['name']}: observedGeneration went back from {last[meta['uid']]} to {seen}")
        last[meta["uid"]] = seen
    return found


def _on_a_dead_host(sentence: str, lines: Iterable[Mapping[str, Any]]) -> bool:
    """A machine or volume whose host is dead can't be destroyed; its successor is no double."""
    dead = [line["detail"] for line in lines if line.get("event") == "host_died"]
    return any(thing in sentence for detail in dead for thing in (*detail["machines"], *detail["volumes"]))
