"""The reconcile of an Agent: look, think, do one thing, fold the answer, think again; then write down what is true.

All decisions are the planner's. Here is what it needs done: the view is gathered, actions are performed, errors are
folded, the status is written when it differs, and the next look is set. One reconcile of an Agent runs at a time.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from roost.agents import bundle, credentials, fold, machine_config, plan, recovery
from roost.agents.actions import perform
from roost.agents.crowd import Rolls, RoomTable, Silence, Tidings
from roost.agents.memory import Installation, Memories, Memory
from roost.agents.names import heartbeat_token, root_mark
from roost.agents.orgs import Orgs
from roost.agents.status import Status, render
from roost.agents.view import (
    FINALIZER,
    SLOW_SECONDS,
    Act,
    Action,
    AgentView,
    AskRoom,
    Attempts,
    AwaitMachine,
    Declared,
    GetApp,
    GetMachine,
    GetVolume,
    IdleRest,
    ListMachines,
    ListSnapshots,
    ListVolumes,
    MachineSight,
    Place,
    ReleaseFinalizer,
    Remembered,
    Settled,
    Source,
    Step,
    StoreFinalizer,
    Stuck,
    UpdateMachine,
    Wait,
    World,
)
from roost.api.agent import Phase
from roost.api.block import BadResource
from roost.api.conditions import Reason
from roost.engine.engine import GONE, Again, Engine, News
from roost.engine.queue import Lane
from roost.fly import errors
from roost.fly.refresher import State, Sweep, VolumeSweep
from roost.fly.types import Volume
from roost.kube.events import Recorder
from roost.kube.objects import MESSAGE_LENGTH, Objects, condition, new_condition, regarding, wall
from roost.kube.records import Cache, Key, Record
from roost.secrets.state import Resolution
from roost.secrets.table import SecretTable
from roost.settings import Settings
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

CALLS_PER_TURN = 24
OPENCLAW_MEMORY_MB = 2048
"""Its process holds 1.1 GB after a few turns, and two helpers beside it 0.2 GB."""
TELL_AFTER_SECONDS = 1.0
"""A step that lasts longer is told in the status, so that people who watch see it."""
TELL_LEAVING_AFTER_SECONDS = 10.0
TELL_APART_SECONDS = 10.0
TICK_SECONDS = 0.001
"""Less is no time to wait for: what is left of a sum of fractions."""
_ORDINARY = frozenset(
    {Reason.WAITING_FOR_FLY, Reason.WAITING_FOR_AGENT, Reason.VOLUME_CREATING, Reason.CONFIG_PENDING, Reason.RESOLVING}
)


_LOOKS = (AskRoom, AwaitMachine, GetApp, GetMachine, GetVolume, ListMachines, ListSnapshots, ListVolumes)
_ALARMING = frozenset({Reason.HOST_LOST, Reason.AGENT_SILENT, Reason.ENDPOINT_UNREACHABLE, Reason.DUPLICATE_MACHINES})
"""Told as an event: nobody has to do anything yet, and everybody wants to know."""


class Agents:
    """Reconciles Agents."""

    def __init__(
        self,
        objects: Objects,
        cache: Cache,
        secrets: SecretTable,
        memories: Memories,
        settings: Settings,
        here: Installation,
        recorder: Recorder,
        metrics: Metrics,
        clock: Callable[[], float],
        authority: Callable[[], str] = lambda: "",
    ) -> None:
        self._authority = authority
        self._objects, self._cache, self._secrets, self._memories = objects, cache, secrets, memories
        self._settings, self._here, self._recorder = settings, here, recorder
        self._metrics, self._clock = metrics, clock
        self._silence, self._rolls, self._room, self._tidings = Silence(), Rolls(), RoomTable(), Tidings()
        metrics.agents_silent.set_function(lambda: float(len(self._silence)))
        metrics.previous_token_root.set_function(self._on_previous_root)
        metrics.endpoint_unreachable.set_function(lambda: float(self._silence.mass))
        self._engine: Engine
        self._orgs: Orgs

    def connect(self, engine: Engine, orgs: Orgs) -> None:
        """Names the queue that wakes Agents and the orgs they live in; once, before the first reconcile."""
        self._engine, self._orgs = engine, orgs

    async def reconcile(self, key: Key, news: News) -> Again:
        """One look at one Agent, with as many calls as it takes to come to a rest."""
        phase, say, done = Phase.PENDING, "", set[Action]()
        for _ in range(CALLS_PER_TURN):
            news.heed()
            found = self._cache.get(key)
            if found is None:
                return self._forget(key)
            try:
                memory = self._memories.of(found, self._clock())
            except BadResource as error:
                return await self._unreadable(found, str(error))
            view = self._view(found, memory)
            changes = 0 if view.place.credential_problem else self._orgs.token_changes(view.place.credential)
            memory.pace.caused_by(_cause(view, changes))
            step = plan.step(view)
            if isinstance(step, Settled):
                memory.pace.rests(view.now, runs=step.phase in (Phase.RUNNING, Phase.DEGRADED))
            else:
                memory.pace.moves(view.now)
            if not isinstance(step, Act):
                return await self._rest(key, step)
            if news.last_call:
                return Again(after=0.0)
            phase, say = step.phase, step.say
            if memory.moving_since is None:
                memory.moving_since = self._clock()
            if isinstance(step.action, StoreFinalizer | ReleaseFinalizer):
                await self._finalizer(step.action, found, memory)
                continue
            if not done and memory.pace.pause(self._clock()) > 0:
                return await self._later(view, key, step, memory)
            if memory.pace.slow(self._clock()) and step.action in done:
                break
            done.add(step.action)
            if (rest := await self._act(step, view, key, news)) is not None:
                return await self._rest(key, rest)
        return await self._rest(key, Wait(phase, Reason.WAITING_FOR_FLY, say))

    def swept(self, credential: str, org: str, sweep: Sweep) -> None:
        """News from an org's list of machines: whatever differs from what is in mind gets a look."""
        now, seen = self._clock(), set()
        for row in sweep.rows:
            seen.add(row.id)
            meta = row.metadata
            if meta.get("roost_owner") != self._here.roots.owner_id:
                continue
            key = Key("Agent", meta.get("roost_namespace", ""), meta.get("roost_name", ""))
            found = self._cache.get(key)
            if found is not None:
                self._doubt(key, partial(fold.row_seen, row=row, now=now), found)
        if sweep.full:
            self._missing(credential, org, seen, sweep)

    def volumes_swept(self, credential: str, org: str, sweep: VolumeSweep) -> None:
        """News from an org's list of volumes: sizes, attachments, hosts; and whose volume a full list leaves out."""
        now, by_app = self._clock(), dict[str, list[Volume]]()
        for volume in sweep.rows:
            by_app.setdefault(volume.app, []).append(volume)
        for key, found, place in self._living_in(credential, org, sweep.apps):
            seen = by_app.get(place.app, ())
            if seen or sweep.full:
                known = _remembered(found.status, now, now)
                self._doubt(
                    key,
                    partial(
                        fold.volumes_seen,
                        volumes=seen,
                        full=sweep.full,
                        unread=sweep.error_regions,
                        known=known,
                        now=now,
                    ),
                    found,
                )

    def apps(self, credential: str, org: str) -> Iterable[str]:
        """The apps that Agents of this credential and org live in, for when the org can't be listed."""
        return {place.app for _, _, place in self._living_in(credential, org, None)}

    def _living_in(self, credential: str, org: str, apps: frozenset[str] | None) -> Iterable[tuple[Key, Record, Place]]:
        for key, memory in self._memories.items():
            found = self._cache.get(key)
            if found is None:
                continue
            place = self._place(memory, found.status)
            if (place.credential, place.org) == (credential, org) and (apps is None or place.app in apps):
                yield key, found, place

    # --- Looking -----------------------------------------------------------------------------------------------

    def _view(self, found: Record, memory: Memory) -> AgentView:
        now, wall_now, declared, status = self._clock(), time.time(), memory.declared, found.status
        place, remembered = self._place(memory, status), _remembered(status, now, wall_now)
        if not place.credential_problem:
            self._orgs.watch(place.credential, place.org)
        secrets = self._resolved(memory, self._secrets.resolve(found.key))
        heard = memory.heard
        beat = heard.seen(now) if heard is not None else None
        if heard is not None and beat is not None:
            memory.world = fold.heard(memory.world, beat.machine_id, heard.at, now)
        view = AgentView(
            now=now,
            wall=wall_now,
            declared=declared,
            remembered=remembered,
            names=memory.names,
            place=place,
            owner_id=self._here.roots.owner_id,
            cluster=self._here.cluster,
            token_root=root_mark(self._here.roots.token),
            token_root_changed=self._here.roots.token_before is not None,
            world=memory.world,
            secrets=secrets,
            bundle_revision=memory.revision,
            beat=beat,
            listening_since=self._here.started_at,
            swept=not place.credential_problem and self._orgs.swept(place.credential, place.org),
            absence_seconds=self._settings.fly.absence_seconds,
            room=self._room.of(_asked(place, declared), now),
            source=self._source(declared),
            adopt_from=self._settings.adopt_from_cluster,
            may_roll=self._rolls.may(found.key, len(self._memories)),
            endpoint_suspect=False,
            nudged_at=self._nudged_at(found.key, memory, status, now),
            listing_note="" if place.credential_problem else self._listing_note(place),
        )
        machine = plan.machine_of(view)
        memory.incarnation, memory.machine_id = view.incarnation, machine.id if machine is not None else None
        return replace(view, endpoint_suspect=self._hush(found.key, view, machine))

    def _nudged_at(self, key: Key, memory: Memory, status: Mapping[str, Any], now: float) -> float:
        """When a person last asked for a look; what was acted on before does not count again after a restart."""
        value = memory.declared.annotations.get("roost.dev/reconcile-at", "")
        if value != memory.nudge[0]:
            fresh = status.get("lastHandledReconcileAt") != value
            memory.nudge = (value, now if fresh else float("-inf"))
            if fresh:
                self._secrets.look_for(key)
        return memory.nudge[1]

    def _hush(self, key: Key, view: AgentView, machine: MachineSight | None) -> bool:
        """Tells whether this agent is silent, and asks whether so many are that it is our fault."""
        up = machine is not None and machine.state == "started"
        expected = view.declared.wants_running and not view.declared.deleting and up
        heard_at = view.listening_since if view.beat is None else view.now - view.beat.age
        since = max(heard_at, (machine and view.started_at(machine)) or 0.0)
        silent = since + view.silence_window if view.now - since > view.silence_window else None
        self._silence.told(key, expected=expected, silent_since=silent)
        return silent is not None and self._silence.suspect(silent, view.now, view.silence_window)

    def _listing_note(self, place: Place) -> str:
        listing = self._orgs.listing(place.credential, place.org)
        return listing.message if listing.state is State.CANNOT_LIST_ORG else ""

    def _source(self, declared: Declared) -> Source | None:
        """The volume of the Agent that volume.restoreFrom names."""
        wanted = declared.spec.volume.restore_from
        if wanted is None or wanted.agent is None:
            return None
        found = self._cache.get(Key("Agent", declared.namespace, wanted.agent))
        app, volume = (found.status.get(k) or {} for k in ("app", "volume")) if found is not None else ({}, {})
        if not app.get("name") or not volume.get("id"):
            return None
        return Source(app["name"], volume["id"], volume.get("sizeGb") or 0)

    def _place(self, memory: Memory, status: Mapping[str, Any]) -> Place:
        spec, pinned, settings = memory.declared.spec, status.get("app") or {}, self._settings
        credential = credentials.name_of(spec, settings.fly)
        org = pinned.get("org") or spec.fly.org or settings.fly.org
        problem = credentials.problem(spec, memory.declared.namespace, org, settings.fly)
        if memory.declared.deleting and credential in settings.fly.credentials:
            problem = ""  # what it may not have made any more, it must still take away
        app = pinned.get("name") or spec.fly.app or memory.names.app
        shared = spec.fly.app_strategy == "Shared"
        return Place(
            app=app,
            org=org,
            network=None if shared else pinned.get("network") or spec.fly.network or app,
            regions=spec.placement.regions or settings.defaults.regions,
            image=spec.machine.image or settings.defaults.image,
            endpoint_url=settings.endpoint.public_url,
            endpoint_authority=self._authority(),
            credential=credential,
            credential_problem=problem,
        )

    def _resolved(self, memory: Memory, secrets: Resolution) -> Resolution:
        """What its references resolve to, once the bundle's revision is in mind; one that can't be made is missing."""
        if not secrets.known or secrets.missing:
            memory.revision = None
            return secrets
        d = memory.declared
        made_of = (d.generation, d.revoked, tuple(d.labels.items()), secrets.fingerprints)
        try:
            if memory.revision is None or memory.revision_of != made_of:
                root, print_of = self._here.roots.fingerprint, dict(secrets.fingerprints).__getitem__
                memory.revision = bundle.revision(root, d, memory.names.did, print_of)
                memory.revision_of = made_of
            if memory.refused is not None and memory.refused[0] == made_of:
                raise bundle.Unrenderable(memory.refused[1])
        except bundle.Unrenderable as error:
            memory.revision = None
            return replace(secrets, missing=(str(error),), missing_reason=Reason.SPEC_INVALID)
        return secrets

    def _doubt(self, key: Key, change: Callable[[World], World], found: Record) -> None:
        try:
            memory = self._memories.of(found, self._clock())
        except BadResource:
            return  # one that can't be read must not keep the news from all others
        world = change(memory.world)
        if world is not memory.world:
            memory.world = world
            self._engine.add(key, Lane.BACKGROUND)

    def _missing(self, credential: str, org: str, seen: set[str], sweep: Sweep) -> None:
        for key, found, _ in self._living_in(credential, org, sweep.apps):
            memory = self._memories.get(key)
            if memory is None:
                continue
            for machine in memory.world.machines or ():
                if machine.id not in seen and machine.region not in sweep.error_regions:
                    self._doubt(key, partial(fold.row_missing, machine_id=machine.id), found)
            if memory.world.machines is None and found.status.get("machine"):
                self._engine.add(key, Lane.BACKGROUND)  # after a restart it waits for this list

    # --- Acting ------------------------------------------------------------------------------------------------

    async def _act(self, act: Act, view: AgentView, key: Key, news: News) -> Wait | Stuck | Settled | None:
        """Performs one action and folds its answer; a rest when the turn is to end here."""
        fly = self._orgs.flies[view.place.credential]
        d, roots = view.declared, self._here.roots
        token = heartbeat_token(
            roots.token, roots.owner_id, d.namespace, d.name, view.incarnation, d.spec.identity.token_epoch
        )
        call = perform(fly, view, act.action, token)
        memory = self._memories.get(key)
        assert memory is not None
        called = partial(memory.pace.called, None if isinstance(act.action, _LOOKS) else type(act.action))
        if isinstance(act.action, UpdateMachine) and act.action.rolls:
            self._rolls.begin(key)
        waiting = Wait(act.phase, Reason.WAITING_FOR_FLY, act.say, after=1.0)
        try:
            if isinstance(act.action, AwaitMachine):
                tell = partial(self._tell, key, waiting)
                answer = await news.cut_short(call, meanwhile=tell, after=TELL_AFTER_SECONDS)
                if answer is None:
                    called(self._clock(), failed=False)
                    return waiting  # what has arrived meanwhile is looked at in a turn of its own, at once
            else:
                answer = await call
            called(self._clock(), failed=False)
        except errors.FlyError as error:
            called(self._clock(), failed=True)
            if isinstance(act.action, AskRoom):
                self._room.put(_asked(view.place, d), act.action.region, None, self._clock())
                return None
            if isinstance(error, errors.Unauthorized):
                name, settings = view.place.credential, self._settings
                self._orgs.doubt(name)
                error.advice = credentials.advice(name, settings.fly.credentials[name], settings.namespace)
            memory.world = fold.failed(memory.world, act.action, error, self._clock())
            if memory.world.failure is None:
                return None
            say = log.info if memory.world.failure.count == 1 else log.debug
            say("fly did not do it", key=str(key), action=type(act.action).__name__, error=str(error))
            found = self._cache.get(key)
            return plan.after_failure(self._view(found, memory)) if found is not None else waiting
        if isinstance(act.action, AskRoom) and isinstance(answer, dict):
            best = tuple(sorted((region for region, n in answer.items() if n > 0), key=lambda r: -answer[r]))
            self._room.put(_asked(view.place, d), act.action.region, best, self._clock())
        memory.world = fold.answered(memory.world, act.action, answer, self._clock(), recovery.attempts(view))
        log.info("done", key=str(key), action=type(act.action).__name__, generation=d.generation)
        if act.tell is Reason.RECOVERING:
            self._metrics.recoveries.inc()
        if act.tell is not None and (found := self._cache.get(key)) is not None:
            self._recorder.record(regarding(found), "Warning", act.tell, "Reconcile", act.say)
        return None

    async def _finalizer(self, action: StoreFinalizer | ReleaseFinalizer, found: Record, memory: Memory) -> None:
        held = isinstance(action, StoreFinalizer)
        stored = await self._objects.finalizer(found, FINALIZER, held=held)
        if stored and held and not found.status.get("app"):
            # Nothing is created before this is stored: for this Agent no lost create can be on its way.
            memory.world = replace(memory.world, quiet_since=None)

    # --- Resting -----------------------------------------------------------------------------------------------

    async def _rest(self, key: Key, end: Wait | Stuck | Settled) -> Again:
        """Writes down what is true, when it is time to, and sets the next look."""
        found = self._cache.get(key)
        if found is None:
            return self._forget(key)
        memory = self._memories.of(found, self._clock())
        memory.ring()
        if isinstance(end, Settled):
            self._rolls.end(key)
        due = await self._tell(key, end)
        self._counted(key, memory)
        if end.after is None:
            return Again(after=due, backoff=True)
        return Again(after=end.after if due is None else min(end.after, due))

    async def _later(self, view: AgentView, key: Key, step: Act, memory: Memory) -> Again:
        """For one that has failed for long, and whose next try is still to come: no longer said to be ready if down."""
        pause, found, due = memory.pace.pause(self._clock()), self._cache.get(key), None
        machine = plan.machine_of(view)
        runs = machine is not None and machine.state == "started" and not machine.suspect
        if not runs and found is not None and condition(found.status, "Ready").get("status") == "True":
            due = await self._tell(key, Wait(step.phase, Reason.WAITING_FOR_FLY, step.say))
        return Again(after=pause if due is None else min(pause, due))

    async def _tell(self, key: Key, end: Step) -> float | None:
        """Writes the status if it is time to; otherwise answers in how many seconds it will be (None: nothing new)."""
        found = self._cache.get(key)
        if found is None or (found.deleting and FINALIZER not in found.finalizers):
            return None
        memory = self._memories.of(found, self._clock())
        if isinstance(end, Wait | Stuck) and memory.pace.period:
            end = _slowly(end, memory.pace.period)
        status = render(self._view(found, memory), end, found.status, wall())
        same = status == found.status
        if same:
            memory.tidings, memory.tidings_due = _said(memory), None
        told = memory.told, memory.told_at
        due = self._due(memory, end, status, same=same, leaving=found.deleting)
        if condition(status, "DestroyStuck") and not condition(found.status, "DestroyStuck"):
            due = 0.0
        if due == 0.0 and not found.deleting and (due := self._heard_before(memory, end, found)) > 0:
            memory.told, memory.told_at = told  # put off: what has not been written has not been told
        if due is None or due > 0:
            return due
        if await self._objects.write_status(found, status):
            self._announce(found, status)
        return None

    def _heard_before(self, memory: Memory, end: Step, found: Record) -> float:
        """In how many seconds a status may be written that an agent's own word has changed: not with each of them.

        Progress towards Ready is told by the clock, and what a person or Fly has changed at once.
        """
        said = _said(memory)
        was_ready = condition(found.status, "Ready").get("status") == "True"
        if said == memory.tidings or not (isinstance(end, Settled) or was_ready):
            return 0.0
        now = self._clock()
        if (left := memory.tidings_at + TELL_APART_SECONDS - now) > TICK_SECONDS:
            return left
        if memory.tidings_due is None:
            memory.tidings_due = self._tidings.book(now)
        if (left := memory.tidings_due - now) > TICK_SECONDS:
            return left
        memory.tidings, memory.tidings_at, memory.tidings_due = said, now, None
        return 0.0

    def _due(self, memory: Memory, end: Step, status: Mapping[str, Any], *, same: bool, leaving: bool) -> float | None:
        """When a status is to be written. What is reached or stuck: now. What moves: once a spec, when it lasts."""
        now = self._clock()
        if isinstance(end, Settled):
            memory.moving_since = memory.told = None
        if same:
            return None
        if not isinstance(end, Wait) or end.noted:
            return 0.0
        if memory.moving_since is None:
            memory.moving_since = now
        failing = memory.world.failure is not None or end.reason not in _ORDINARY
        restarts = memory.heard.seen(now).restarts if memory.heard is not None else 0
        word = f"{end.reason} {restarts}" if failing and (restarts or end.reason is not Reason.AGENT_NOT_READY) else ""
        word += f" {memory.pace.period:.0f}" if memory.pace.period else ""
        if (applied := condition(status, "ConfigApplied")).get("reason") == Reason.CONFIG_FAILED:
            word += f" {applied.get('message')}"  # it will not go by itself
        told = (memory.declared.generation, word)
        if memory.told == told:
            return None
        at = memory.moving_since + (TELL_LEAVING_AFTER_SECONDS if leaving and not word else TELL_AFTER_SECONDS)
        if memory.told is not None:
            at = max(at, memory.told_at + TELL_APART_SECONDS)
        if at - now > TICK_SECONDS:
            return at - now
        memory.told, memory.told_at = told, now
        return 0.0

    async def _unreadable(self, found: Record, why: str) -> Again:
        """A spec that this version can't read, as after a step back from a newer one: said, and left as it is."""
        say = f"this version of the operator can't read the spec: {why}; run the version that wrote it"
        verdicts = {
            "Ready": ("False", Reason.SPEC_INVALID, say),
            "Reconciling": ("False", Reason.SPEC_INVALID, ""),
            "Stalled": ("True", Reason.SPEC_INVALID, say),
        }
        kept = [c for c in found.status.get("conditions", ()) if c["type"] not in verdicts]
        new = [new_condition(found.status, k, v, found.generation, wall()) for k, v in verdicts.items()]
        phase = found.status.get("phase", Phase.FAILED.value)
        said = {"phase": phase, "observedGeneration": found.generation, "conditions": [*new, *kept]}
        status = dict(found.status) | said
        if status != found.status and await self._objects.write_status(found, status):
            self._announce(found, status)
        return Again(after=SLOW_SECONDS)

    def _announce(self, found: Record, status: Status) -> None:
        """One log line, one event and the metrics of a transition."""
        self._secrets.told(found.key)
        phase, before = status.get("phase"), found.status
        log.info("status", key=str(found.key), generation=found.generation, phase=phase, next=status.get("nextAction"))
        about = regarding(found)
        ready, was = condition(status, "Ready"), condition(before, "Ready")
        if ready["status"] == "True" and was.get("status") != "True":
            self._recorder.record(about, "Normal", ready["reason"], "Reconcile", f"Agent is {phase}")
            if found.generation == 1 and "agent" not in before:
                made = datetime.fromisoformat(found.created_at)
                self._metrics.time_to_ready.observe((datetime.now(UTC) - made).total_seconds())
        if ready["reason"] in _ALARMING and was.get("reason") != ready["reason"]:
            self._recorder.record(about, "Warning", ready["reason"], "Reconcile", ready["message"])
        memory = self._memories.get(found.key)
        readable = memory is not None and memory.version == found.version
        spec = memory.declared.spec if memory is not None and readable else None
        short = spec is not None and spec.runtime.kind == "OpenClaw" and spec.machine.memory_mb < OPENCLAW_MEMORY_MB
        if spec is not None and short and before.get("observedGeneration") != found.generation:
            note = (
                f"spec.machine.memoryMb {spec.machine.memory_mb} is little for OpenClaw: give it {OPENCLAW_MEMORY_MB}"
            )
            self._recorder.record(about, "Warning", Reason.LOW_MEMORY, "Reconcile", note)
        stalled, stood = condition(status, "Stalled"), condition(before, "Stalled")
        if stalled["status"] == "True" and stood.get("message") != stalled["message"]:
            self._metrics.terminal_errors.labels("Agent").inc()
            self._recorder.record(about, "Warning", stalled["reason"], "Reconcile", stalled["message"])

    def _on_previous_root(self) -> float:
        """How many machines have yet to take a token of the root as it is now."""
        if self._here.roots.token_before is None:
            return 0.0
        mark, worlds = root_mark(self._here.roots.token), (m.world for _, m in self._memories.items())
        told = (s.metadata for w in worlds for s in w.machines or () if not machine_config.without_token(s.metadata))
        return float(sum(metadata.get("roost_token_root") != mark for metadata in told))

    def _counted(self, key: Key, memory: Memory) -> None:
        """Keeps the gauge of Agents by phase."""
        found = self._cache.get(key)
        phase = found.status.get("phase", "") if found is not None else ""
        if phase != memory.phase:
            for name, by in ((memory.phase, -1), (phase, 1)):
                if name:
                    self._metrics.agents.labels(name).inc(by)
            memory.phase = phase

    def _forget(self, key: Key) -> Again:
        memory = self._memories.forget(key)
        self._rolls.end(key)
        self._silence.told(key, expected=False, silent_since=None)
        if memory is not None and memory.phase:
            self._metrics.agents.labels(memory.phase).dec()
        return GONE


def _said(memory: Memory) -> tuple[object, ...]:
    return memory.heard.tidings if memory.heard is not None else ()


def _cause(view: AgentView, token_changes: int) -> tuple[object, ...]:
    """All that a person can change about an Agent: with any of it, what has failed for long is worth a try at once."""
    d = view.declared
    wishes = tuple(sorted((k, v) for k, v in d.annotations.items() if k.startswith("roost.dev/")))
    return (d.generation, wishes, view.secrets.missing, view.secrets.fingerprints, token_changes)


def _slowly(end: Wait | Stuck, period: float) -> Wait | Stuck:
    """Tells how long the next try may take to come; not when, which would be written again with each."""
    minutes = f"{period / 60:.0f} min"
    how = f"; failing for long: one try in {minutes} at most, or at once after a change or roost.dev/reconcile-at"
    return replace(end, say=end.say[: MESSAGE_LENGTH - len(how)] + how)


def _remembered(status: Mapping[str, Any], now: float, wall_now: float) -> Remembered:
    app, machine, volume = (status.get(k) or {} for k in ("app", "machine", "volume"))
    previous, idle, recovered = (status.get(k) or {} for k in ("previousVolume", "idle", "recovery"))

    def clock(date: str) -> float:
        return now + (datetime.fromisoformat(date).timestamp() - wall_now)

    def past(date: str) -> float:
        return min(clock(date), now)  # the wall clock may have been set back since it was written

    return Remembered(
        app=app.get("name"),
        incarnation=app.get("incarnation"),
        machine_id=machine.get("id"),
        machine_version=machine.get("version"),
        image=machine.get("image", ""),
        volume_id=volume.get("id"),
        volume_name=volume.get("name", ""),
        volume_region=volume.get("region"),
        volume_size_gb=volume.get("sizeGb"),
        previous_id=previous.get("id"),
        previous_expires_at=clock(previous["expiresAt"]) if previous else 0.0,
        restored_from=volume.get("restoredFrom"),
        idle=IdleRest(
            past(idle["since"]),
            clock(idle["wakeAt"]) if "wakeAt" in idle else None,
            idle["generation"],
            idle.get("wake", ""),
        )
        if idle
        else None,
        attempts=Attempts(recovered["count"], past(recovered["windowStart"]), recovered["lastReason"])
        if recovered
        else None,
    )


def _asked(place: Place, declared: Declared) -> tuple[object, ...]:
    """What an answer about room is good for."""
    spec = declared.spec.machine
    return (place.credential, place.org, spec.cpu_kind, spec.cpus, spec.memory_mb)
