"""What must never be, read from two records alone: Fly's ledger, and the API server's record of every version.

The operator's own metrics and opinions are never asked. Doubles, orphans, overlaps and the order of a destroy are
counted as `roost.local.verify_figures` does for a real stack; the rest is what a double of the API server makes cheap
to know. Every Agent is judged, a Fleet's members too.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roost.local import verify_figures
from roost.local.evidence import Key, Ledger, Write, ledger_of

OURS = "roost/"
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
        verdict.found["overlaps"] += report.overlaps
        verdict.found["order"] += report.order_violations
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


def unguarded(ledger: Ledger, writes: Sequence[Write]) -> list[str]:
    """Changes at Fly while the Agent that they are about did not hold our finalizer (or, of whom nobody can tell,
    while no Agent did)."""
    owners = verify_figures._Owners(ledger, writes, verify_figures.OPERATOR)
    held = _held(writes)
    everyone = [span for spans in held.values() for span in spans]
    found = []
    for call in ledger.calls:
        if call.changed and call.agent.startswith(OURS):
            key = owners.of_call(call)
            if not any(a <= call.at <= b for a, b in (everyone if key is None else held.get(key, ()))):
                found.append(f"{call.op} at {call.at:.1f} while {owners.subject(call)} had no finalizer")
    return found


def _held(writes: Iterable[Write]) -> dict[Key, list[tuple[float, float]]]:
    """From when until when each Agent held our finalizer."""
    held: dict[Key, list[tuple[float, float]]] = {}
    since: dict[Key, float] = {}
    for write in writes:
        finalizers = (write.body.get("metadata") or {}).get("finalizers")
        if finalizers is None:
            continue
        if verify_figures.FINALIZER in finalizers:
            since.setdefault(write.key, write.received)
        elif (began := since.pop(write.key, None)) is not None:
            held.setdefault(write.key, []).append((began, write.received))
    for key, began in since.items():
        held.setdefault(key, []).append((began, float("inf")))
    return held


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
