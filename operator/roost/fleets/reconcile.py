"""The reconcile of a Fleet: gathers its members from the cache, does what the planner says, writes its status."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from roost.api.conditions import Reason
from roost.engine.engine import GONE, Again, News
from roost.fleets.plan import (
    FINALIZER,
    Action,
    ApplyMember,
    CreateRevision,
    DeleteMember,
    DeleteRevision,
    FleetView,
    ListRevisions,
    Member,
    ReleaseFinalizer,
    Rest,
    StoreFinalizer,
    desired,
    member_body,
    step,
)
from roost.kube.client import Conflict, Gone, Kube, Refused, collection
from roost.kube.events import Recorder
from roost.kube.objects import MESSAGE_LENGTH, Objects, condition, new_condition, regarding, wall
from roost.kube.records import Cache, Key, Record, record
from roost.telemetry.metrics import Metrics
from roost_agent.contract.bundle import canonical

log = structlog.get_logger(__name__)
MANAGER = "roost-fleet"
CALLS_PER_TURN = 2048
REFUSED_SECONDS = 60.0
SETTLED_SECONDS = 600.0
MEMBERS_TOLD = 100


@dataclass(slots=True)
class _Memory:
    uid: str
    revisions: tuple[str, ...] | None = None
    highest: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    refused_in: int = -1
    """The generation in which they were refused."""
    refused_until: float = 0.0
    """Loop time from which they are tried again: a quota or a webhook heals without a new generation."""


class Fleets:
    """Reconciles Fleets."""

    def __init__(
        self,
        kube: Kube,
        objects: Objects,
        cache: Cache,
        recorder: Recorder,
        metrics: Metrics,
        wake: Callable[[Key], None],
    ) -> None:
        self._kube, self._objects, self._cache = kube, objects, cache
        self._recorder, self._metrics, self._wake = recorder, metrics, wake
        self._memories: dict[Key, _Memory] = {}

    async def reconcile(self, key: Key, news: News) -> Again:
        """One look at one Fleet."""
        for _ in range(CALLS_PER_TURN):
            found = self._cache.get(key)
            if found is None:
                self._memories.pop(key, None)
                return GONE
            memory = self._memory(found)
            view = self._view(found, memory)
            move = step(view)
            if isinstance(move, Rest):
                return await self._rest(found, view, move)
            if news.last_call:
                return Again(after=0.0)
            if not await self._act(move, found, memory):
                break
        return Again(backoff=True)

    # --- Looking -----------------------------------------------------------------------------------------------

    def _memory(self, found: Record) -> _Memory:
        memory = self._memories.get(found.key)
        if memory is None or memory.uid != found.uid:
            memory = self._memories[found.key] = _Memory(found.uid)
        if memory.refused_in != found.generation or asyncio.get_running_loop().time() >= memory.refused_until:
            memory.refused_in, memory.refused = found.generation, {}
        return memory

    def _view(self, found: Record, memory: _Memory) -> FleetView:
        key, template = found.key, found.spec["template"]
        members = [m for r in self._cache.owned_by(found.uid) if (m := _member(r, key.name)) is not None]
        ours = {m.name for m in members}
        view = FleetView(
            name=key.name,
            deleting=found.deleting,
            finalizers=found.finalizers,
            replicas=found.spec.get("replicas"),
            revision=f"{key.name}-{hashlib.sha256(canonical(template)).hexdigest()[:10]}",
            revisions=memory.revisions,
            members=tuple(sorted(members, key=lambda m: m.ordinal)),
            taken=frozenset(),
            refused=dict(memory.refused),
        )
        names = {f"{key.name}-{i}" for i in range(desired(view))} - ours
        taken = {n for n in names if self._cache.get(Key("Agent", key.namespace, n)) is not None}
        return replace(view, taken=frozenset(taken))

    # --- Acting ------------------------------------------------------------------------------------------------

    async def _act(self, action: Action, found: Record, memory: _Memory) -> bool:
        """Does one thing; False when it did not come about and the same thing would be tried again."""
        namespace = found.key.namespace
        revisions = f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions"
        match action:
            case StoreFinalizer() | ReleaseFinalizer():
                return await self._objects.finalizer(found, FINALIZER, held=isinstance(action, StoreFinalizer))
            case ListRevisions():
                answer = await self._kube.get(revisions, labelSelector=f"roost.dev/fleet={found.key.name}")
                items = sorted(answer["items"], key=lambda r: r["revision"])
                memory.revisions = tuple(r["metadata"]["name"] for r in items)
                memory.highest = max((r["revision"] for r in items), default=0)
            case CreateRevision(name=name):
                return await self._create_revision(revisions, name, found, memory)
            case DeleteRevision(name=name):
                await self._delete_revision(f"{revisions}/{name}")
                memory.revisions = tuple(r for r in memory.revisions or () if r != name)
            case ApplyMember():
                await self._apply(action, found, memory)
            case DeleteMember():
                await self._delete(action, namespace)
        return True

    async def _create_revision(self, path: str, name: str, found: Record, memory: _Memory) -> bool:
        memory.highest += 1
        body = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "labels": {"roost.dev/fleet": found.key.name},
                "ownerReferences": [_owner(found)],
            },
            "revision": memory.highest,
            "data": found.spec["template"],
        }
        try:
            await self._kube.create(path, body)
        except Conflict:
            # It exists, or a quota was being counted: the list tells.
            log.info("the revision could not be made", fleet=str(found.key), revision=name)
            memory.revisions = None
            return False
        memory.revisions = (*(memory.revisions or ()), name)
        return True

    async def _delete_revision(self, path: str) -> None:
        try:
            body = await self._kube.get(path)
            await self._kube.delete(path, uid=body["metadata"]["uid"])
        except Gone:
            pass

    async def _apply(self, action: ApplyMember, found: Record, memory: _Memory) -> None:
        key, view = found.key, self._view(found, memory)
        labels = {
            "roost.dev/fleet": key.name,
            "roost.dev/ordinal": str(action.ordinal),
            "roost.dev/revision": view.revision,
        }
        body = member_body(found.spec["template"], action.name, labels, _owner(found))
        try:
            answer = await self._kube.apply(f"{collection('Agent', key.namespace)}/{action.name}", body, MANAGER)
        except (Refused, Conflict) as error:
            memory.refused[action.name] = error.message[:200]
            memory.refused_until = asyncio.get_running_loop().time() + REFUSED_SECONDS
            return
        # Its echo will not be newer than what the cache has now, so nobody else would wake it.
        self._cache.put(record(answer))
        self._wake(Key("Agent", key.namespace, action.name))
        log.info("member applied", fleet=str(key), member=action.name, revision=view.revision)

    async def _delete(self, action: DeleteMember, namespace: str) -> None:
        key = Key("Agent", namespace, action.name)
        try:
            await self._kube.delete(
                f"{collection('Agent', namespace)}/{action.name}", uid=action.uid, resource_version=action.version
            )
        except (Gone, Conflict):
            pass
        # The answer of a delete is the object before or a Status: what is there now decides what comes next.
        if await self._objects.look_again(key, action.uid):
            self._wake(key)  # else the watch was quicker, and a second call would cut its first wait short
        log.info("member deleted", fleet_member=str(key))

    # --- Resting -----------------------------------------------------------------------------------------------

    async def _rest(self, found: Record, view: FleetView, rest: Rest) -> Again:
        if not (found.deleting and FINALIZER not in found.finalizers):
            status = _status(found, view, rest)
            if status != found.status and await self._objects.write_status(found, status):
                self._announce(found, rest)
        return Again(after=REFUSED_SECONDS if rest.stalled else SETTLED_SECONDS)

    def _announce(self, found: Record, rest: Rest) -> None:
        if rest.stalled and condition(found.status, "Stalled").get("message") != rest.say[:MESSAGE_LENGTH]:
            self._metrics.terminal_errors.labels("Fleet").inc()
            self._recorder.record(regarding(found), "Warning", rest.reason.value, "Reconcile", rest.say)


def _member(found: Record, fleet: str) -> Member | None:
    # The name says which one it is, the owner whose: labels can be taken away by anybody's hand.
    ordinal = found.key.name.removeprefix(f"{fleet}-")
    if found.key.kind != "Agent" or not ordinal.isdigit() or found.key.name != f"{fleet}-{int(ordinal)}":
        return None
    conditions = {c["type"]: c for c in found.status.get("conditions", ())}
    ready, stalled = conditions.get("Ready", {}), conditions.get("Stalled", {})
    current = found.status.get("observedGeneration") == found.generation
    return Member(
        name=found.key.name,
        ordinal=int(ordinal),
        uid=found.uid,
        version=str(found.version),
        revision=found.labels.get("roost.dev/revision", ""),
        phase=found.status.get("phase", "Pending"),
        ready=current and ready.get("status") == "True" and not found.deleting,
        stalled=stalled.get("message", "") if current and stalled.get("status") == "True" else "",
        deleting=found.deleting,
    )


def _owner(found: Record) -> dict[str, Any]:
    return {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "Fleet",
        "name": found.key.name,
        "uid": found.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _status(found: Record, view: FleetView, rest: Rest) -> dict[str, Any]:
    now, members = wall(), view.members
    ready = sum(m.ready for m in members)
    updated = sum(m.revision == view.revision for m in members)
    worst = sorted(members, key=lambda m: (m.ready, m.ordinal))[:MEMBERS_TOLD]
    moving = "True" if rest.progressing and not rest.stalled else "False"
    verdicts = {
        "Ready": ("False" if rest.progressing else "True", rest.reason, rest.say),
        "Progressing": (moving, rest.reason, rest.say),
        "Reconciling": (moving, rest.reason, ""),
        "Stalled": ("True", rest.reason, rest.say) if rest.stalled else ("False", Reason.AS_EXPECTED, ""),
    }
    status = {
        "observedGeneration": found.generation,
        "replicas": len(members),
        "readyReplicas": ready,
        "updatedReplicas": updated,
        "unavailableReplicas": max(0, desired(view) - ready),
        "selector": f"roost.dev/fleet={view.name}",
        "currentRevision": view.revision if updated == len(members) else found.status.get("currentRevision"),
        "updateRevision": view.revision,
        "members": [{"name": m.name, "phase": m.phase, "revision": m.revision, "ready": m.ready} for m in worst],
        "lastHandledReconcileAt": found.annotations.get("roost.dev/reconcile-at"),
        "conditions": [new_condition(found.status, k, v, found.generation, now) for k, v in verdicts.items()],
    }
    return {k: v for k, v in status.items() if v is not None}
