"""The reconcile of a Roost Secret: counts versions, moves a staged rotation on, says who uses it, wakes those who do.

It reads nothing but the cache and what `Sources` has seen; its one call is the write of its status. The status is
written before anybody is woken: from it, every replica knows who gets which values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from roost.api.conditions import Reason
from roost.api.secret import SecretSpec
from roost.engine.engine import GONE, Again, News
from roost.kube.events import Recorder
from roost.kube.objects import Objects, condition, new_condition, regarding, wall
from roost.kube.records import Cache, Key, Record
from roost.secrets import rotation
from roost.secrets.lookup import Stage, stage_of
from roost.secrets.sources import Sources
from roost.secrets.state import SourceState, checked, digest, offered, problem_of
from roost.secrets.table import SecretTable
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
SLOW_SECONDS = 600.0
COUNT_APART_SECONDS = 10.0
"""How often, at most, a status is written for nothing but the count of those who use it."""
SETTLED_SECONDS = 60.0
"""For so long the number of sources may still grow after a start: how often each is read is not told anew."""
KEYS_TOLD, NAMES_TOLD = 256, 50
_COUNTED = ("usedBy",)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One Roost Secret as this look finds it. `digests`: of what each core Secret offers, by its name."""

    found: Record
    spec: SecretSpec
    stage: Stage
    version: int
    digests: dict[str, str | None]
    problem: tuple[Reason, str] | None
    stopped: str = ""
    rotated_from: int | None = None
    rotated: bool = False


class Secrets:
    """Reconciles Secrets of roost.dev; `clock` in seconds."""

    def __init__(
        self,
        objects: Objects,
        cache: Cache,
        table: SecretTable,
        sources: Sources,
        root: bytes,
        recorder: Recorder,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._objects, self._cache, self._table, self._sources = objects, cache, table, sources
        self._root, self._recorder, self._metrics, self._clock = root, recorder, metrics, clock
        self._began = clock()
        self._told: dict[Key, tuple[Record, tuple[object, ...]]] = {}
        self._counted_at: dict[Key, float] = {}

    async def reconcile(self, key: Key, _news: News) -> Again:
        """One look at one Secret."""
        found = self._cache.get(key)
        if found is None or found.deleting:
            return self._gone(key)
        spec = self._table.lookup.spec(found)
        if spec is None:
            return await self._unreadable(found)
        states = self._look_up(found, spec)
        if states is None:
            return Again(after=SLOW_SECONDS)
        seen = self._see(found, spec, states)
        status, again = self._status(seen, states)
        if status != found.status and not await self._objects.write_status(found, status):
            return self._gone(key)
        self._announce(found, status)
        self._wake(seen)
        return Again(after=again)

    def _gone(self, key: Key) -> Again:
        """Allowed, and loud: those who use it keep their last good bundle."""
        self._table.depend(key, ())
        self._counted_at.pop(key, None)
        told = self._told.pop(key, None)
        if told is not None:
            record = told[0]
            if users := (record.status.get("usedBy") or {}).get("agents"):
                note = f"deleted while {users} Agents use it; they keep what they have: apply it again"
                self._recorder.record(regarding(record), "Warning", Reason.SECRET_DELETED, "Reconcile", note)
        for agent in self._table.looking_for(key):
            self._table.wake(agent)
        return GONE

    async def _unreadable(self, found: Record) -> Again:
        say = "this version of the operator can't read the spec; run the version that wrote it"
        verdicts = {"Ready": ("False", Reason.SPEC_INVALID, say), "Stalled": ("True", Reason.SPEC_INVALID, say)}
        kept = [c for c in found.status.get("conditions", ()) if c["type"] not in verdicts]
        new = [new_condition(found.status, k, v, found.generation, wall()) for k, v in verdicts.items()]
        status = dict(found.status) | {"observedGeneration": found.generation, "conditions": [*new, *kept]}
        if status != found.status:
            await self._objects.write_status(found, status)
        return Again(after=SLOW_SECONDS)

    # --- Looking -----------------------------------------------------------------------------------------------

    def _look_up(self, found: Record, spec: SecretSpec) -> dict[str, SourceState] | None:
        """The core Secrets that count, by name; None when one is to be looked at first, which wakes us again."""
        stage, declared = stage_of(found), spec.source.secret_ref.name
        names = {declared} if spec.rotation.strategy == "Immediate" else {declared, stage.active, stage.previous}
        sources = {n: Key("CoreSecret", found.key.namespace, n) for n in names if n is not None}
        self._table.depend(found.key, sources.values())
        if found.annotations.get("roost.dev/reconcile-at") != found.status.get("lastHandledReconcileAt"):
            for source in sources.values():
                self._table.look(source)
        states = {n: state for n, s in sources.items() if (state := self._table.sources.get(s)) is not None}
        unknown = [s for n, s in sources.items() if n not in states or not checked(spec.keys, states[n])]
        for source in unknown:
            self._table.need(source)
        return None if unknown else states

    def _see(self, found: Record, spec: SecretSpec, states: dict[str, SourceState]) -> _Seen:
        """What is true now: which stage, which version."""
        declared, before, status = spec.source.secret_ref.name, stage_of(found), found.status
        prints = {name: offered(spec.keys, state) for name, state in states.items()}
        digests = {name: digest(self._root, p) if p else None for name, p in prints.items()}
        problem = problem_of(Key("CoreSecret", found.key.namespace, declared), spec.keys, states[declared])
        stage, version = before, int(status.get("activeVersion") or 0)
        if spec.rotation.strategy != "Staged":
            stage = Stage(declared)
        elif declared != before.active:
            usable = digests | ({declared: None} if problem else {})
            turns = rotation.begin(before, rotation.Offers(declared, usable), lambda: self._turns(found.key), wall())
            stage = before if turns is None else turns
        whole = digests.get(stage.active or "")
        rotated = whole is not None and whole != status.get("fingerprint")
        came_from = status.get("rotatedFrom")
        if rotated and version and (before.at is None or stage.at is None):
            came_from = version
        version += rotated
        stopped = ""
        if stage.at is not None and stage == before and declared == stage.active:
            stage = rotation.advance(
                stage, lambda agent: self._is_over(agent, found.key, version), lambda: self._turns(found.key), wall()
            )
            stopped = self._stopped(stage, found.key) if stage == before else ""
        return _Seen(found, spec, stage, version, digests, problem, stopped, came_from, rotated)

    def _turns(self, secret: Key) -> list[Key]:
        """The Agents that take part in a rotation, in order."""
        users = ((a, self._cache.get(a)) for a in self._table.users_of(secret))
        return [agent for agent, record in users if record is not None and not rotation.rests(record)]

    def _is_over(self, agent: Key, secret: Key, version: int) -> bool:
        record = self._cache.get(agent)
        if record is None or rotation.rests(record) or secret not in self._table.secrets_of(agent):
            return True
        return rotation.passed(record, secret.name, version)

    def _stopped(self, stage: Stage, secret: Key) -> str:
        """Why a rotation does not go on; empty while it may."""
        assert stage.at is not None
        agent = Key("Agent", *stage.at)
        record = self._cache.get(agent)
        stalled = record is not None and condition(record.status, "Stalled").get("status") == "True"
        if not stalled and datetime.fromisoformat(wall()) < rotation.deadline(record, stage.since):
            return ""
        back = f'{{"spec":{{"source":{{"secretRef":{{"name":"{stage.previous}"}}}}}}}}'
        return (
            f"Agent {agent.namespace}/{agent.name} is not Ready with the new values: go back by kubectl -n "
            f"{secret.namespace} patch secrets.roost.dev {secret.name} --type=merge -p '{back}', or mend it; it "
            "goes on by itself then"
        )

    # --- Telling -----------------------------------------------------------------------------------------------

    def _status(self, seen: _Seen, states: dict[str, SourceState]) -> tuple[dict[str, Any], float]:
        """The status, and in how many seconds there may be another."""
        found, spec, stage, before = seen.found, seen.spec, seen.stage, seen.found.status
        declared = Key("CoreSecret", found.key.namespace, spec.source.secret_ref.name)
        there = offered(spec.keys, states[stage.active] if stage.active in states else states[declared.name])
        names = [k.name for k in spec.keys] or sorted(there)
        now = wall()
        rotated_at = now if seen.rotated else before.get("lastRotatedAt")
        old_at = _old_at(spec, rotated_at)
        old = old_at is not None and old_at <= datetime.fromisoformat(now)
        watched = self._sources.watched(declared)
        verdicts = _verdicts(seen, old=old)
        status = {
            "observedGeneration": found.generation,
            "fingerprint": seen.digests.get(stage.active or "") or before.get("fingerprint"),
            "activeVersion": seen.version or None,
            "rotatedFrom": seen.rotated_from,
            "activeRef": stage.active,
            "previousRef": stage.previous,
            "rotation": None if stage.at is None else {"at": "/".join(stage.at), "since": stage.since},
            "lastRotatedAt": rotated_at,
            "looked": before.get("looked") if watched is None else "Watched" if watched else "Polled",
            "pollSeconds": self._poll_seconds(declared, before.get("pollSeconds")),
            "keys": [{"name": name, "present": name in there} for name in names[:KEYS_TOLD]],
            "lastHandledReconcileAt": found.annotations.get("roost.dev/reconcile-at"),
            "conditions": [new_condition(before, k, v, found.generation, now) for k, v in verdicts.items()],
        }
        status = {k: v for k, v in status.items() if v is not None}
        pause = self._counted_at.get(found.key, float("-inf")) + COUNT_APART_SECONDS - self._clock()
        if pause <= 0 or status != {k: v for k, v in before.items() if k not in _COUNTED}:
            status["usedBy"] = self._used_by(seen)
            self._counted_at[found.key] = self._clock()
            pause = SLOW_SECONDS
        elif "usedBy" in before:
            status["usedBy"] = before["usedBy"]
        ends = [rotation.deadline(self._cache.get(Key("Agent", *stage.at)), stage.since)] if stage.at else []
        ends += [old_at] if old_at is not None else []
        left = [(end - datetime.fromisoformat(now)).total_seconds() for end in ends]
        return status, min(pause, SLOW_SECONDS, *(max(1.0, s) for s in left if s > 0))

    def _poll_seconds(self, source: Key, before: int | None) -> int:
        if before is not None and self._clock() - self._began < SETTLED_SECONDS:
            return before
        return round(self._sources.interval(source))

    def _used_by(self, seen: _Seen) -> dict[str, Any]:
        secret, users = seen.found.key, self._table.users_of(seen.found.key)
        records = (self._cache.get(agent) for agent in users)
        awake = [r for r in records if r is not None and not rotation.rests(r)]
        return {
            "agents": len(users),
            "pending": sum(1 for r in awake if not rotation.runs(r, secret.name, seen.version)),
            "names": [
                a.name if a.namespace == secret.namespace else f"{a.namespace}/{a.name}" for a in users[:NAMES_TOLD]
            ],
        }

    def _announce(self, found: Record, status: dict[str, Any]) -> None:
        """One event and the metrics of a transition."""
        users = (status.get("usedBy") or {}).get("agents", 0)
        stalled, stood = condition(status, "Stalled"), condition(found.status, "Stalled")
        if stalled["status"] == "True" and stood.get("message") != stalled["message"]:
            self._metrics.terminal_errors.labels("Secret").inc()
            note = f"{stalled['message']} ({users} Agents use it)"
            self._recorder.record(regarding(found), "Warning", stalled["reason"], "Reconcile", note)
        ready, was = condition(status, "Ready"), condition(found.status, "Ready")
        if ready["reason"] == Reason.SECRET_OLD and was.get("reason") != Reason.SECRET_OLD:
            self._recorder.record(regarding(found), "Warning", Reason.SECRET_OLD, "Reconcile", ready["message"])

    def _wake(self, seen: _Seen) -> None:
        """Those for whom something changed since they were last woken."""
        found, stage = seen.found, seen.stage
        key = found.key
        what = (found.uid, found.generation, seen.version, stage.active, stage.previous, seen.problem, *_pairs(seen))
        record, before = self._told.get(key, (None, ()))
        now = self._cache.get(key) or found
        self._told[key] = (now, (stage.at, *what))
        if record is None or before[1:] != what:
            log.info("secret looked at", key=str(key), version=seen.version, problem=seen.problem and seen.problem[1])
            for agent in self._table.looking_for(key):
                self._table.wake(agent)
        elif before[0] != stage.at:
            log.info("secret moves on", key=str(key), version=seen.version, at=stage.at)
            for agent in self._table.looking_for(key):
                if _ahead(agent, before[0]) != _ahead(agent, stage.at):
                    self._table.wake(agent)


def _pairs(seen: _Seen) -> tuple[tuple[str, str | None], ...]:
    return tuple(sorted(seen.digests.items()))


def _ahead(agent: Key, at: object) -> bool:
    return at is None or agent[1:] <= at  # type: ignore[operator]


def _old_at(spec: SecretSpec, rotated_at: str | None) -> datetime | None:
    days = spec.rotation.max_age_days
    return None if days is None or rotated_at is None else datetime.fromisoformat(rotated_at) + timedelta(days=days)


def _verdicts(seen: _Seen, *, old: bool) -> dict[str, tuple[str, str, str]]:
    spec, stage = seen.spec, seen.stage
    ready: tuple[str, str, str] = ("True", Reason.RESOLVED, "")
    if seen.problem is not None:
        ready = ("False", *seen.problem)
    elif old:
        name = spec.source.secret_ref.name
        age = f"older than spec.rotation.maxAgeDays ({spec.rotation.max_age_days})"
        ready = ("True", Reason.SECRET_OLD, f'{age}: put new values into core Secret "{name}", or name another')
    calm = ("False", Reason.AS_EXPECTED, "")
    rotating: tuple[str, str, str] = calm
    if stage.at is not None:
        here = f"Agent {'/'.join(stage.at)} takes version {seen.version}"
        rotating = ("True", Reason.SECRET_ROTATING, f'{here}; those after it keep core Secret "{stage.previous}"')
        if seen.stopped:
            rotating = ("False", Reason.ROTATION_STOPPED, seen.stopped)
    trouble = ready[1:] if seen.problem is not None else (Reason.ROTATION_STOPPED, seen.stopped)
    stalled = ("True", *trouble) if seen.problem is not None or seen.stopped else calm
    moves = rotating[0] == "True" and stalled is calm
    return {
        "Ready": ready,
        "Rotating": rotating,
        "Reconciling": ("True", Reason.SECRET_ROTATING, "") if moves else calm,
        "Stalled": stalled,
    }
