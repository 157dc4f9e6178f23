"""A Fleet as one pure function: which one thing is to be done next to its members?

Members are Agents `<fleet>-<ordinal>`, made together, removed one at a time from the highest ordinal down, changed to
a new template one at a time and only while all others are ready. A Fleet that is deleted removes its members in the
same order and lets go when the last is gone; `--cascade=orphan` lets them live. Never touches an Agent whose
controller it is not. No I/O.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from roost.api.conditions import Reason

FINALIZER = "roost.dev/members"
REVISIONS_KEPT = 10


@dataclass(frozen=True, slots=True)
class Member:
    """An Agent of this Fleet as the API server holds it."""

    name: str
    ordinal: int
    uid: str
    version: str
    revision: str
    phase: str
    ready: bool
    stalled: str
    """Why it can't go on without a person; empty when it can."""
    deleting: bool


@dataclass(frozen=True, slots=True)
class FleetView:
    """Everything the planner may know about one Fleet."""

    name: str
    deleting: bool
    finalizers: tuple[str, ...]
    replicas: int | None
    revision: str
    """Of the template as it is now."""
    revisions: tuple[str, ...] | None
    """Names of the stored revisions, oldest first; None before a look."""
    members: tuple[Member, ...]
    taken: frozenset[str]
    """Names of Agents that exist and are not this Fleet's."""
    refused: Mapping[str, str]
    """Members that the API server refused in this generation, with its words."""


@dataclass(frozen=True, slots=True)
class StoreFinalizer:
    pass


@dataclass(frozen=True, slots=True)
class ReleaseFinalizer:
    pass


@dataclass(frozen=True, slots=True)
class ListRevisions:
    pass


@dataclass(frozen=True, slots=True)
class CreateRevision:
    name: str


@dataclass(frozen=True, slots=True)
class DeleteRevision:
    name: str


@dataclass(frozen=True, slots=True)
class ApplyMember:
    """Makes the member, or changes it to the template as it is now."""

    name: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class DeleteMember:
    """Deletes exactly the member that was seen."""

    name: str
    uid: str
    version: str


Action = (
    StoreFinalizer | ReleaseFinalizer | ListRevisions | CreateRevision | DeleteRevision | ApplyMember | DeleteMember
)


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do until a member changes; `progressing` while the members are not what is declared."""

    progressing: bool
    reason: Reason
    say: str
    stalled: bool = False


def step(view: FleetView) -> Action | Rest:
    """The next thing to do for one Fleet."""
    if view.deleting:
        return _leave(view)
    if FINALIZER not in view.finalizers:
        return StoreFinalizer()
    if view.revisions is None:
        return ListRevisions()
    if view.revision not in view.revisions:
        return CreateRevision(view.revision)
    for phase in (_missing, _surplus, _outdated):
        if (move := phase(view)) is not None:
            return move
    if (old := _unneeded_revision(view)) is not None:
        return DeleteRevision(old)
    return _verdict(view)


def desired(view: FleetView) -> int:
    """How many members there should be; left out, those that are there stay, and a new Fleet has one."""
    if view.replicas is not None:
        return view.replicas
    return max((m.ordinal + 1 for m in view.members if not m.deleting), default=1)


def _leave(view: FleetView) -> Action | Rest:
    if FINALIZER not in view.finalizers:
        return Rest(True, Reason.TERMINATING, "waiting for others to let go")
    if "orphan" in view.finalizers:
        return Rest(True, Reason.TERMINATING, "its members are being set free (--cascade=orphan)")
    if (move := _remove_highest(view.members)) is not None:
        return move
    if view.revisions is None:
        return ListRevisions()
    if view.revisions:
        return DeleteRevision(view.revisions[0])
    return ReleaseFinalizer()


def _remove_highest(members: Iterable[Member]) -> Action | Rest | None:
    """One at a time: the next is deleted when the one before is gone, machine and all."""
    highest = max(members, key=lambda m: m.ordinal, default=None)
    if highest is None:
        return None
    if highest.deleting and highest.stalled:
        return Rest(True, Reason.MEMBER_FAILED, f"{highest.name}: {highest.stalled}", stalled=True)
    if highest.deleting:
        return Rest(True, Reason.SCALING, f"waiting for {highest.name} to be gone")
    return DeleteMember(highest.name, highest.uid, highest.version)


def _missing(view: FleetView) -> Action | Rest | None:
    there = {m.ordinal for m in view.members}
    for ordinal in range(desired(view)):
        name = f"{view.name}-{ordinal}"
        if ordinal not in there and name not in view.refused and name not in view.taken:
            return ApplyMember(name, ordinal)
    return None


def _surplus(view: FleetView) -> Action | Rest | None:
    count = desired(view)
    return _remove_highest(m for m in view.members if m.ordinal >= count)


def _outdated(view: FleetView) -> Action | Rest | None:
    """One at a time, highest ordinal first; a member that isn't ready anyway goes before those that work."""
    old = [m for m in view.members if m.revision != view.revision and not m.deleting and m.name not in view.refused]
    if not old:
        return None
    broken = [m for m in view.members if not m.ready]
    worst = [m for m in old if not m.ready]
    if any(m not in worst for m in broken):
        waited = next(m for m in broken if m not in worst)
        if waited.stalled or waited.name in view.refused:
            return None  # it waits for a person: the verdict says for what
        return Rest(True, Reason.ROLLING_OUT, f"waiting for {waited.name} to be ready")
    chosen = max(worst or old, key=lambda m: m.ordinal)
    return ApplyMember(chosen.name, chosen.ordinal)


def _unneeded_revision(view: FleetView) -> str | None:
    used = {m.revision for m in view.members} | {view.revision}
    spare = [r for r in view.revisions or () if r not in used]
    return spare[0] if len(spare) > REVISIONS_KEPT else None


def _verdict(view: FleetView) -> Rest:
    foreign = [name for i in range(desired(view)) if (name := f"{view.name}-{i}") in view.taken]
    if foreign:
        say = f'Agent "{foreign[0]}" exists and does not belong to this Fleet; delete it or apply it under another name'
        return Rest(True, Reason.MEMBER_NOT_OURS, say, stalled=True)
    if view.refused:
        name, why = next(iter(sorted(view.refused.items())))
        return Rest(True, Reason.MEMBER_REFUSED, f"{name} was refused: {why}", stalled=True)
    stalled = [m for m in view.members if m.stalled]
    if stalled:
        return Rest(True, Reason.MEMBER_FAILED, f"{stalled[0].name}: {stalled[0].stalled}", stalled=True)
    waiting = [m.name for m in view.members if not m.ready or m.deleting]
    if waiting:
        more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
        return Rest(True, Reason.MEMBERS_NOT_READY, f"waiting for {', '.join(sorted(waiting)[:3])}{more} to be ready")
    return Rest(False, Reason.ALL_READY, "")


def member_body(template: Mapping[str, Any], name: str, labels: Mapping[str, str], owner: Mapping[str, Any]) -> Any:
    """The member as it is applied. What a person's hand sets on one member (paused, restartedAt …) is left out."""
    metadata, spec = template.get("metadata") or {}, dict(template["spec"])
    for by_hand in ("desiredState", "revoked", "paused", "restartedAt"):
        spec.pop(by_hand, None)
    # An empty map would be stored, unseen, by a version of its own.
    annotations = {"annotations": metadata["annotations"]} if metadata.get("annotations") else {}
    return {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {
            "name": name,
            "labels": {**(metadata.get("labels") or {}), **labels},
            "ownerReferences": [owner],
            **annotations,
        },
        "spec": spec,
    }
