"""The whole life of an Agent, as one pure function: what is the next thing to do?

    step(view) -> Act | Wait | Stuck | Settled

Read it top to bottom as the life goes: our finalizer, the secrets it needs, its app, whose machine it is, its volume,
its machine, the agent inside. Nothing is made before the finalizer is stored; a create whose answer was lost is never
sent again before looking; an empty list alone never proves absence; data is never replaced by an empty volume.

The volume's own rules are in `storage` and `placement`, rest for idleness in `rest`, silence in `recovery`, deletion in
`destroy`. No I/O, no clock, no randomness: the same view gives the same step.
"""

from roost.agents import absence, destroy, machine_config, recovery, rest, storage
from roost.agents.view import (
    FINALIZER,
    NO_TOKEN,
    SLOW_SECONDS,
    UP,
    WAIT_SECONDS,
    Act,
    AgentView,
    AssignAddress,
    AwaitMachine,
    Beat,
    CreateApp,
    CreateMachine,
    DeleteMachine,
    ForgetToken,
    GetApp,
    GetMachine,
    GetVolume,
    IdleRest,
    ListMachines,
    ListVolumes,
    MachineSight,
    RestartMachine,
    Settled,
    SetToken,
    StampMachine,
    StartMachine,
    Step,
    StopMachine,
    StoreFinalizer,
    Stuck,
    SuspendMachine,
    UpdateMachine,
    VolumeSight,
    Wait,
)
from roost.api.agent import Phase
from roost.api.conditions import Reason

RESTART_PAUSE_SECONDS = 30.0
BOOT_SECONDS = 300.0
"""How long an agent may take from the start of its machine to its first heartbeat, unless readiness says longer."""

MOVING = UP - {"started"}
RESTING = frozenset({"stopped", "suspended"})
_BEST = ("started", "starting", "stopped", "suspended", "created", "stopping", "replacing")
"""Of several machines that say they are ours the first is kept (the rule of systems that have met this)."""


def step(view: AgentView) -> Step:
    """The next thing to do for one Agent. Pure: the same view gives the same step.

    Order is the order of the conditions: nothing is created before the finalizer is stored, nothing is destroyed
    before its successor is confirmed, and a deleted Agent only ever goes down.
    """
    return absence.patient(view, destroy.step(view) if view.declared.deleting else _living(view))


def _living(view: AgentView) -> Step:
    if view.declared.paused:
        return Settled(Phase.PENDING, Reason.PAUSED, SLOW_SECONDS)
    for phase in (_finalizer, _place, _secrets, _nothing_wanted, _app, _look, _claim, storage.step, _left_behind):
        if (move := phase(view)) is not None:
            return move
    return _informed(view, _machine(view) or _runtime(view))


def _informed(view: AgentView, move: Step) -> Step:
    """Nothing is started before the volumes were seen: the one in the status may have been followed by another."""
    if not isinstance(move, Act) or not isinstance(move.action, CreateMachine | StartMachine | UpdateMachine):
        return move
    volume, looks = storage.current(view), view.world.volume_looks
    if view.world.volumes is not None and (volume is None or volume.listed):
        return storage.held_by_unknown(view) or move
    if not looks or view.now - looks[-1] >= absence.LOOKS_APART_SECONDS:
        return Act(ListVolumes(), Phase.PROVISIONING, "looking at its volumes before its machine is started")
    left = looks[-1] + absence.LOOKS_APART_SECONDS - view.now
    return Wait(Phase.PROVISIONING, Reason.WAITING_FOR_FLY, "waiting for the list of volumes to show its volume", left)


def after_failure(view: AgentView) -> Wait | Stuck | Settled:
    """How to rest after a call that did not succeed: by growing back-off, or slowly when only a person can heal it.

    As ever, when the failure holds nothing up.
    """
    failure = view.world.failure
    assert failure is not None
    up = machine_of(view) is not None
    phase = Phase.TERMINATING if view.declared.deleting else Phase.UPDATING if up else Phase.PROVISIONING
    if view.declared.deleting:
        return destroy.after_failure(failure)
    if isinstance(calm := step(view), Settled):
        return calm
    if storage.knows_better(view, failure):
        return Wait(phase, failure.reason, failure.message, 0.2)  # to another place at once, if there is one
    if failure.stuck:
        return Stuck(phase if up else Phase.FAILED, failure.reason, failure.message)
    return Wait(phase, failure.reason, failure.message, failure.retry_after or None)


# --- The phases, in order. Each answers the next step, or None when there is nothing left to do in it. ----------


def _finalizer(view: AgentView) -> Step | None:
    if FINALIZER in view.declared.finalizers:
        return None
    return Act(StoreFinalizer(), Phase.PENDING, "storing the finalizer")


def _place(view: AgentView) -> Step | None:
    if view.place.credential_problem:
        return Stuck(Phase.FAILED, Reason.FLY_INVALID, view.place.credential_problem)
    return None


def _secrets(view: AgentView) -> Step | None:
    """A new Agent waits for its secrets; one that already has a machine goes on with its last good bundle."""
    if machine_known(view) or not view.declared.wants_running:
        return None
    if not view.secrets.known:
        return Wait(Phase.PENDING, Reason.RESOLVING, "reading the secrets it refers to", 5.0)
    if view.secrets.missing:
        reason = view.secrets.missing_reason or Reason.SECRET_MISSING
        return Stuck(Phase.PENDING, reason, " · ".join(view.secrets.missing))
    return None


def _nothing_wanted(view: AgentView) -> Step | None:
    """An Agent that was never started and is not to run needs nothing at Fly."""
    if view.declared.wants_running or machine_known(view) or view.remembered.app or view.world.app_present:
        return None
    if view.world.quiet_since is None:
        return _at_rest(view)
    return None  # an earlier process may have made something: look, by the ordinary path


def _app(view: AgentView) -> Step | None:
    world, place = view.world, view.place
    shared = view.declared.spec.fly.app_strategy == "Shared"
    if world.app_present is False and (shared or view.remembered.app) and absence.look_due(view, world.app_looked_at):
        return Act(GetApp(), Phase.PROVISIONING, f"looking whether app {place.app} exists by now")
    if world.app_present is False and view.remembered.app and not _never_used(view):
        return Stuck(
            Phase.FAILED,
            Reason.APP_NOT_FOUND,
            f'app "{place.app}" is gone at Fly, and its volume with it; to start over without the data, delete this '
            "Agent and apply it again",
        )
    if (view.remembered.app and world.app_present is not False) or world.born:
        return None
    if world.app_present and world.app_org == place.org:
        return _found_app(view)
    if world.app_present is False and shared:
        return Stuck(
            Phase.FAILED,
            Reason.APP_NOT_FOUND,
            f'spec.fly.app: shared app "{place.app}" does not exist in org "{place.org}": create it '
            f"(fly apps create {place.app} --org {place.org}) or name another",
        )
    if world.app_present and world.app_org is not None and not absence.look_due(view, world.app_looked_at):
        return _foreign_app(f'app "{place.app}" belongs to org "{world.app_org}", not to "{place.org}"')
    if shared or world.app_present:
        return Act(GetApp(), Phase.PROVISIONING, f"looking at app {place.app}")
    if not view.declared.wants_running and world.app_present is False:
        return _at_rest(view)
    if not view.declared.wants_running:
        return Act(GetApp(), Phase.PROVISIONING, f"looking whether app {place.app} exists")
    return Act(CreateApp(), Phase.PROVISIONING, f"creating app {place.app}")


def _never_used(view: AgentView) -> bool:
    """Nothing was in the app when it was looked through: it may be made again, as one that was still on its way out."""
    known, world = view.remembered, view.world
    return known.volume_id is None and known.machine_id is None and world.volumes == () and not world.machines


def _found_app(view: AgentView) -> Step | None:
    """An app that was there before is ours by its derived name.

    By a name that anybody could have given it, only if something in it is ours, or if an earlier process of ours may
    have made it.
    """
    spec, world = view.declared.spec.fly, view.world
    if spec.app_strategy == "Shared" or spec.app is None or world.quiet_since is not None or view.ours():
        return None
    if world.volumes is None:
        return Act(ListVolumes(), Phase.PROVISIONING, f"looking whether app {spec.app} is ours")
    if any(view.names.serial(v.name) is not None for v in world.volumes):
        return None
    if world.machines is None:
        return Act(ListMachines(), Phase.PROVISIONING, f"looking whether app {spec.app} is ours")
    if absence.look_due(view, world.app_looked_at):
        return Act(GetApp(), Phase.PROVISIONING, f"looking whether app {spec.app} is still there")
    return _foreign_app(f'app "{spec.app}" was there before, and nothing in it is this Agent\'s')


def app_is_ours(view: AgentView) -> bool:
    """Whether the app is known to be this Agent's, or the shared one that it lives in."""
    world = view.world
    if view.remembered.app or world.born:
        return True
    return bool(world.app_present) and world.app_org == view.place.org and _found_app(view) is None


def _foreign_app(why: str) -> Stuck:
    return Stuck(Phase.FAILED, Reason.FOREIGN_APP, f"{why}: set spec.fly.app to a name of your own on a new Agent")


def _look(view: AgentView) -> Step | None:
    """Its machine is seen before anything of it is changed."""
    known = view.remembered.machine_id
    if view.world.machines is not None:
        return None
    if known is None:
        return Act(ListMachines(), Phase.PROVISIONING, "looking for its machine")
    if not view.swept:
        return Wait(Phase.PENDING, Reason.UNHEARD, "waiting for the list of the org's machines", 3.0)
    return Act(GetMachine(known), Phase.PROVISIONING, f"looking at machine {known}")


def _claim(view: AgentView) -> Step | None:
    """The same Roost in another cluster only reads, until a person says that this one takes over."""
    for machine in view.ours():
        cluster = machine.metadata.get("roost_cluster", "")
        if cluster not in ("", view.cluster, view.adopt_from):
            return Stuck(
                Phase.PENDING,
                Reason.CLUSTER_MOVED,
                f"machine {machine.id} belongs to the same Roost in cluster {cluster}: nothing is changed from here. "
                f"If that cluster is gone for good, set adoptFromCluster: {cluster} in the operator's settings",
            )
    return None


def _left_behind(view: AgentView) -> Step | None:
    """Machines on volumes that were followed by others go before the successor starts.

    Those on a dead host go when it returns: Fly takes the order before. That it does not take it holds nothing up.
    """
    for machine in view.ours():
        if not storage.superseded(view, machine):
            continue
        going = machine.state == "destroying" and not machine.suspect
        if going and (not machine.host_ok or machine_of(view) is not None):
            continue  # nothing waits for it: the host is dead, or the successor is there
        due = not machine.host_ok and absence.look_due(view, machine.seen_at)
        if machine.refused and not due:
            continue
        if machine.suspect or due:
            return Act(GetMachine(machine.id), Phase.RECOVERING, f"looking at machine {machine.id}")
        say = f"destroying machine {machine.id}: its volume was followed by another"
        return _destroying(machine, Phase.RECOVERING) or Act(DeleteMachine(machine.id), Phase.RECOVERING, say)
    return None


def _machine(view: AgentView) -> Step | None:
    volume, machine = storage.current(view), machine_of(view) or _stray(view)
    if machine is None:
        return _at_rest(view) if volume is None or not view.declared.wants_running else _new_machine(view, volume)
    if machine.suspect or absence.back_due(view, machine):
        return Act(GetMachine(machine.id), Phase.STARTING, f"looking at machine {machine.id}")
    if not machine.host_ok:
        say = f"the host of machine {machine.id} can't be reached; Fly brings it back or moves the machine"
        return Wait(Phase.DEGRADED, Reason.HOST_LOST, say, absence.HOST_PAUSE_SECONDS)
    if not view.is_ours(machine.metadata):
        return Stuck(
            Phase.FAILED,
            Reason.FOREIGN_MACHINE,
            f'machine {machine.id} has the name "{machine.name}" but is not ours; remove it at Fly by hand, '
            "nothing that isn't ours is ever touched",
        )
    if changes := machine_config.restamp(view, machine):
        action = StampMachine(machine.id, machine.version, changes)
        return Act(action, Phase.UPDATING, f"writing the metadata of machine {machine.id}")
    if volume is None or not view.declared.wants_running:
        return _wanted_down(view, machine, volume)
    return _wanted_up(view, machine, volume)


def _new_machine(view: AgentView, volume: VolumeSight) -> Step | None:
    if machine_config.proves_itself(view) and view.world.token_epoch != NO_TOKEN:
        return Act(ForgetToken(), Phase.PROVISIONING, f"making sure that app {view.place.app} holds no token")
    if (move := _before_config(view, token=True)) is not None:
        return move
    failure = view.world.failure
    if failure is not None and (failure.op, failure.reason) == ("create_machine", Reason.FLY_CONFLICT):
        return Act(ListMachines(), Phase.PROVISIONING, "looking for the machine that has its name")
    action = CreateMachine(view.names.machine(volume.id), volume.region, volume.id)
    return Act(action, Phase.PROVISIONING, f"creating its machine in {volume.region}")


def _before_config(view: AgentView, *, token: bool) -> Step | None:
    """What a machine's config refers to and must be there first: its token, and addresses for its ports."""
    epoch = view.declared.spec.identity.token_epoch
    if token and view.world.token_epoch != epoch and not machine_config.proves_itself(view):
        return Act(SetToken(epoch), Phase.PROVISIONING, "giving the machine its token")
    if machine_config.edge(view) == "none":
        return None
    for kind in machine_config.ADDRESSES:
        if kind not in view.world.addresses:
            return Act(AssignAddress(kind), Phase.PROVISIONING, f"assigning a {kind} address to app {view.place.app}")
    return None


def _wanted_up(view: AgentView, machine: MachineSight, volume: VolumeSight) -> Step | None:
    if machine.state in MOVING:
        action = AwaitMachine(machine.id, "started", machine.version, WAIT_SECONDS)
        return Act(action, Phase.STARTING, f"waiting for machine {machine.id} to start")
    if (going := _coming_down(machine, Phase.STARTING) or _destroying(machine, Phase.STARTING)) is not None:
        return going
    if machine.volume_id not in (None, volume.id):
        return _replace(view, machine)
    if machine.state in RESTING and (idle := rest.in_force(view, machine)) is not None:
        return _idle(view, machine, idle.wake_at)
    if machine.config is None and machine_config.foreign_version(view, machine):
        return Act(GetMachine(machine.id), Phase.UPDATING, f"looking what has changed in machine {machine.id}")
    token, drift = machine_config.token(view, machine), machine_config.drift(view, machine, volume.id)
    if "declared" in (token, drift) or ((token or drift) and view.may_roll):
        if (move := _before_config(view, token=bool(token))) is not None:
            return move
        update = UpdateMachine(machine.id, machine.version, volume.id, rolls="declared" not in (token, drift))
        return Act(update, Phase.UPDATING, f"updating machine {machine.id}")
    if machine.state == "failed" and volume.seen_at < machine.seen_at:
        return Act(GetVolume(volume.id), Phase.STARTING, f"looking whether failed machine {machine.id} has its volume")
    if machine.state != "started":
        return _start_again(view, machine)
    if machine_config.token_left(view, machine):
        return Act(ForgetToken(), Phase.UPDATING, f"taking its token out of app {view.place.app}: it proves itself now")
    if view.world.restart_needed:
        return Act(RestartMachine(machine.id), Phase.UPDATING, f"restarting machine {machine.id}: its volume has grown")
    return None


def _replace(view: AgentView, machine: MachineSight) -> Step:
    """A machine on another volume: Fly can't exchange a mount, so it goes, and another comes on the right one.

    The volume in the status may have been followed by the one that the machine is on: the volumes tell.
    """
    if view.world.volumes is None:
        return Act(ListVolumes(), Phase.UPDATING, f"looking whether volume {machine.volume_id} is the Agent's by now")
    say = f"machine {machine.id} is on volume {machine.volume_id}, which is not the Agent's"
    if machine.state == "started":
        return Act(StopMachine(machine.id), Phase.UPDATING, f"stopping it: {say}")
    return Act(DeleteMachine(machine.id), Phase.UPDATING, f"destroying it: {say}")


def _start_again(view: AgentView, machine: MachineSight) -> Step:
    """A machine that came to rest by itself: started again, with a pause when that was tried a moment ago."""
    asked = view.world.start_asked_at
    if machine.state == "failed" and view.now - max(asked or 0.0, machine.seen_at) < absence.LOOK_AGAIN_SECONDS:
        note = machine.exit_note or "Fly could not start it"
        return Stuck(
            Phase.FAILED,
            Reason.MACHINE_FAILED,
            f'machine {machine.id} failed: {note}; check spec.machine.image ("{view.place.image}")',
        )
    by_itself = asked is not None and asked > (view.world.stop_asked_at or 0.0)
    if asked is not None and by_itself and view.now - asked < RESTART_PAUSE_SECONDS:
        say = f"machine {machine.id} stopped again soon after its start ({machine.exit_note or 'no reason given'})"
        return Wait(Phase.STARTING, Reason.MACHINE_STOPPED, say, asked + RESTART_PAUSE_SECONDS - view.now)
    return Act(StartMachine(machine.id), Phase.STARTING, f"starting machine {machine.id}")


def _wanted_down(view: AgentView, machine: MachineSight, volume: VolumeSight | None) -> Step:
    """Down first, then closed: a machine that is to stay down must not be woken by traffic."""
    to_sleep = view.declared.spec.desired_state == "Suspended" and not view.declared.revoked
    phase = Phase.SUSPENDING if to_sleep else Phase.STOPPING
    if (move := _coming_down(machine, phase) or _destroying(machine, phase)) is not None:
        return move
    if machine.state in MOVING and machine.state != "starting":
        # An update that does not launch it ends at rest.
        to_rest = (view.world.stop_asked_at or 0.0) > (view.world.start_asked_at or 0.0)
        state = "stopped" if to_rest else "started"
        wait = AwaitMachine(machine.id, state, machine.version, WAIT_SECONDS)
        return Act(wait, phase, f"waiting for machine {machine.id} before it goes down")
    is_open = machine.metadata.get("roost_edge", "none")
    closing = volume is not None and (is_open == "autostart" or (view.declared.revoked and is_open != "none"))
    if machine.state in ("started", "starting") or (machine.state == "suspended" and (closing or not to_sleep)):
        if to_sleep and machine.state == "started" and not closing:
            return Act(SuspendMachine(machine.id), phase, f"suspending machine {machine.id}")
        if not (to_sleep and closing):
            return Act(StopMachine(machine.id), phase, f"stopping machine {machine.id}")
    if closing and volume is not None:
        action = UpdateMachine(machine.id, machine.version, volume.id, launch=to_sleep)
        return Act(action, phase, f"closing machine {machine.id} to traffic")
    return _at_rest(view, machine)


def _coming_down(machine: MachineSight, phase: Phase) -> Act | None:
    if machine.state not in ("stopping", "suspending"):
        return None
    state = {"stopping": "stopped", "suspending": "suspended"}[machine.state]
    action = AwaitMachine(machine.id, state, machine.version, WAIT_SECONDS)
    return Act(action, phase, f"waiting for machine {machine.id} to be {state}")


def _destroying(machine: MachineSight, phase: Phase) -> Act | None:
    if machine.state != "destroying":
        return None
    action = AwaitMachine(machine.id, "destroyed", None, WAIT_SECONDS)
    return Act(action, phase, f"waiting for machine {machine.id} to be gone")


def _runtime(view: AgentView) -> Step:
    """The machine is up and as declared; the rest is for the agent inside to say."""
    machine, volume, window = machine_of(view), storage.current(view), view.silence_window
    assert machine is not None
    assert volume is not None
    if (housework := storage.keep(view)) is not None:
        return housework
    for twin in _twins(view, machine):
        if twin.suspect:
            return Act(GetMachine(twin.id), Phase.DEGRADED, f"looking whether machine {twin.id} is still there")
    beat = beat_of(view, machine)
    if beat is None:
        return _unheard(view, machine, volume)
    if beat.age > window:
        return recovery.step(view, machine, volume, beat.age - window)
    left = window - beat.age + 1.0
    if not beat.ready:
        say = f"the agent is not ready (boot phase {beat.boot_phase})"
        phase = Phase.DEGRADED if beat.restarts else Phase.STARTING
        return Wait(
            phase, Reason.AGENT_NOT_READY, say + (f", last exit: {beat.last_exit}" if beat.last_exit else ""), left
        )
    if view.bundle_revision is not None and beat.bundle_revision != view.bundle_revision:
        return Wait(Phase.UPDATING, Reason.CONFIG_PENDING, "waiting for the agent to apply its new configuration", left)
    resting = rest.due(view, machine, beat)
    beginning = resting if isinstance(resting, IdleRest) else None
    if beginning is not None and rest.noted(view, machine, beginning):
        kind = SuspendMachine if view.declared.spec.idle.action == "Suspend" else StopMachine
        return Act(kind(machine.id, beginning), Phase.STOPPING, f"resting machine {machine.id}: nothing to do")
    after = min(left, resting or left) if not isinstance(resting, IdleRest) else storage.NOTED_SECONDS
    if beat.degraded:
        return Settled(Phase.DEGRADED, Reason.DEGRADED, after, rest=beginning)
    if note := _remarks(view, machine):
        return Settled(Phase.DEGRADED, note[0], after, note[1], beginning)
    return Settled(Phase.RUNNING, Reason.RUNNING, after, rest=beginning)


def _unheard(view: AgentView, machine: MachineSight, volume: VolumeSight) -> Step:
    """No heartbeat of the machine as it is now: it boots, or we have only begun to listen, or it is silent."""
    window, started = view.silence_window, view.started_at(machine)
    readiness = view.declared.spec.runtime.readiness
    patience = max(window, readiness.initial_deadline_seconds if readiness else BOOT_SECONDS)
    if started is not None and started >= view.listening_since:
        left = started + patience - view.now
        if left > 0:
            say = f"machine {machine.id} is up, the agent in it boots"
            return Wait(Phase.STARTING, Reason.WAITING_FOR_AGENT, say, left)
        return recovery.step(view, machine, volume, -left)
    left = view.listening_since + window - view.now
    if left > 0:
        return Wait(Phase.RUNNING, Reason.UNHEARD, "waiting for its first heartbeat to us", left)
    return recovery.step(view, machine, volume, -left)


def _remarks(view: AgentView, machine: MachineSight) -> tuple[Reason, str] | None:
    """What does not keep the agent from running and a person should know all the same."""
    if twins := [m.id for m in _twins(view, machine)]:
        return Reason.DUPLICATE_MACHINES, (
            f"machines {', '.join(twins[:5])} say that they are this Agent's too; machine {machine.id} is kept. "
            "Remove the others at Fly by hand when you know that nothing in them is needed"
        )
    if strays := [v.id for v in storage.others(view)]:
        return Reason.DUPLICATE_VOLUMES, (
            f"volumes {', '.join(strays[:5])} carry this Agent's volume name too; remove them at Fly by hand when you "
            "know that nothing in them is needed"
        )
    if refused := storage.refusal(view):
        return Reason.RESTORE_REFUSED, refused
    return None


def _twins(view: AgentView, machine: MachineSight) -> list[MachineSight]:
    """Machines beside the kept one that say they are this Agent's."""
    return [m for m in view.ours() if m.id != machine.id and not storage.superseded(view, m)]


# --- What the phases ask of the view. ----------------------------------------------------------------------------


def machine_of(view: AgentView) -> MachineSight | None:
    """The Agent's current machine, when it was seen and is not gone.

    By its name, else by the id in status, else the best of those that say they are ours.
    """
    alive = [m for m in view.world.machines or () if not m.gone]
    volume = storage.current(view)
    name = view.names.machine(volume.id) if volume else None
    found = next((m for m in alive if m.name == name), None) or next(
        (m for m in alive if m.id == view.remembered.machine_id and not storage.superseded(view, m)), None
    )
    if found is not None:
        return found
    ours = [m for m in view.ours() if m.state in _BEST and not storage.superseded(view, m)]
    return max(ours, key=lambda m: (-_BEST.index(m.state), m.updated_at, m.id), default=None)


def _stray(view: AgentView) -> MachineSight | None:
    """For one that isn't to run: any machine that says it is ours, under whatever name."""
    if view.declared.wants_running:
        return None
    return next(iter(view.ours()), None)


def beat_of(view: AgentView, machine: MachineSight) -> Beat | None:
    """The last heartbeat, when it comes from this machine as it is now: not from before its last start or update."""
    beat = view.beat
    if beat is None or beat.machine_id != machine.id or view.now - beat.age < (view.started_at(machine) or 0.0):
        return None
    if beat.machine_version and machine.version and beat.machine_version != machine.version:
        return None
    return beat


def machine_known(view: AgentView) -> bool:
    """A machine of this Agent exists or may exist."""
    return machine_of(view) is not None or (view.world.machines is None and view.remembered.machine_id is not None)


def _at_rest(view: AgentView, machine: MachineSight | None = None) -> Settled:
    if view.declared.revoked:
        return Settled(Phase.REVOKED, Reason.REVOKED, SLOW_SECONDS * 2)
    if machine is not None and machine.state == "suspended":
        return Settled(Phase.SUSPENDED, Reason.SUSPENDED, SLOW_SECONDS * 2)
    return Settled(Phase.STOPPED, Reason.STOPPED, SLOW_SECONDS * 2)


def _idle(view: AgentView, machine: MachineSight, wake_at: float | None) -> Settled:
    phase = Phase.SUSPENDED if machine.state == "suspended" else Phase.STOPPED
    after = SLOW_SECONDS * 2 if wake_at is None else min(SLOW_SECONDS * 2, max(wake_at - view.now, 0.1))
    return Settled(phase, Reason.IDLE, after)
