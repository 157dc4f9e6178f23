"""The whole life of an Agent, as one pure function: what is the next thing to do?

    step(view) -> Act | Wait | Stuck | Settled

Read it top to bottom as the life goes: our finalizer, the secrets it needs, its app, its volume, its machine, the
agent inside. Nothing is made before the finalizer is stored; a create whose answer was lost is never sent again
before looking; an empty list alone never proves absence; data is never replaced by an empty volume. Deletion is in
`destroy`. No I/O, no clock, no randomness: the same view gives the same step.
"""

from roost.agents import absence, destroy, machine_config
from roost.agents.view import (
    FINALIZER,
    SLOW_SECONDS,
    WAIT_SECONDS,
    Act,
    AgentView,
    AwaitMachine,
    Beat,
    CreateApp,
    CreateMachine,
    CreateVolume,
    Declared,
    ExtendVolume,
    GetApp,
    GetMachine,
    GetVolume,
    ListMachines,
    ListVolumes,
    MachineSight,
    Settled,
    SetToken,
    StartMachine,
    Step,
    StopMachine,
    StoreFinalizer,
    Stuck,
    UpdateMachine,
    VolumeSight,
    Wait,
    World,
)
from roost.api.agent import Phase
from roost.api.conditions import Reason

RESTART_PAUSE_SECONDS = 30.0

MOVING = frozenset({"created", "creating", "starting", "restarting", "updating", "replacing", "migrating"})
RESTING = frozenset({"stopped", "suspended"})


def step(view: AgentView) -> Step:
    """The next thing to do for one Agent. Pure: the same view gives the same step.

    Order is the order of the conditions: nothing is created before the finalizer is stored, nothing is destroyed
    before its successor is confirmed, and a deleted Agent only ever goes down.
    """
    if view.declared.deleting:
        return destroy.step(view)
    if view.declared.paused:
        return Settled(Phase.PENDING, Reason.PAUSED, SLOW_SECONDS)
    for phase in (_finalizer, _place, _secrets, _nothing_wanted, _app, _volume, _machine):
        if (move := phase(view)) is not None:
            return move
    return _runtime(view)


def after_failure(view: AgentView) -> Wait | Stuck:
    """How to rest after a call that did not succeed: by growing back-off, or slowly when only a person can heal it."""
    failure = view.world.failure
    assert failure is not None
    up = machine_of(view) is not None
    phase = Phase.TERMINATING if view.declared.deleting else Phase.UPDATING if up else Phase.PROVISIONING
    if failure.stuck:
        return Stuck(phase if up or view.declared.deleting else Phase.FAILED, failure.reason, failure.message)
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
    if world.app_present is False and view.remembered.app:
        return Stuck(
            Phase.FAILED,
            Reason.APP_NOT_FOUND,
            f'app "{place.app}" is gone at Fly, and its volume with it; to start over without the data, delete this '
            "Agent and apply it again",
        )
    if view.remembered.app or (world.app_present and world.app_org == place.org):
        return None
    if world.app_present is False and shared:
        return Stuck(
            Phase.FAILED,
            Reason.APP_NOT_FOUND,
            f'spec.fly.app: shared app "{place.app}" does not exist in org "{place.org}": create it '
            f"(fly apps create {place.app} --org {place.org}) or name another",
        )
    if world.app_present and world.app_org is not None and not absence.look_due(view, world.app_looked_at):
        return Stuck(
            Phase.FAILED,
            Reason.FOREIGN_APP,
            f'app "{place.app}" belongs to org "{world.app_org}", not to "{place.org}": '
            "set spec.fly.app to a name of your own on a new Agent",
        )
    if shared or world.app_present:
        return Act(GetApp(), Phase.PROVISIONING, f"looking at app {place.app}")
    if not view.declared.wants_running and world.app_present is False:
        return _at_rest(view)
    if not view.declared.wants_running:
        return Act(GetApp(), Phase.PROVISIONING, f"looking whether app {place.app} exists")
    return Act(CreateApp(), Phase.PROVISIONING, f"creating app {place.app}")


def _volume(view: AgentView) -> Step | None:
    """Its volume, as declared; one that isn't to run needs it only to be found by."""
    world, up = view.world, view.declared.wants_running
    if view.remembered.volume_id is None and world.volumes is None:
        return Act(ListVolumes(), Phase.PROVISIONING, "looking for its volume")
    volume = volume_of(view)
    if not up:
        return None
    if volume is None:
        return _lost_volume(view) if view.remembered.volume_id else _new_volume(view)
    if volume.state in ("creating", "doubted"):
        if volume.state == "creating" and view.now - volume.seen_at < 1.0:
            return Wait(Phase.PROVISIONING, Reason.VOLUME_CREATING, f"waiting for volume {volume.id}", 1.0)
        return Act(GetVolume(volume.id), Phase.PROVISIONING, f"looking at volume {volume.id}")
    wanted = view.declared.spec.volume.size_gb
    if volume.size_gb and volume.size_gb < wanted:
        return Act(ExtendVolume(volume.id, wanted), Phase.UPDATING, f"extending volume {volume.id} to {wanted} GB")
    return None


def _lost_volume(view: AgentView) -> Step:
    lost = view.remembered.volume_id
    seen_at = next((v.seen_at for v in view.world.volumes or () if v.id == lost), None)
    if lost is not None and absence.look_due(view, seen_at):
        return Act(GetVolume(lost), Phase.FAILED, f"looking whether volume {lost} is back")
    return Stuck(
        Phase.FAILED,
        Reason.VOLUME_LOST,
        f"volume {lost} is gone at Fly and its data with it; nothing empty is put in its place. "
        "To start over without the data, delete this Agent and apply it again",
    )


def _new_volume(view: AgentView) -> Step | None:
    if not volumes_proven_absent(view):
        due = absence.next_look(view, view.world.empty_looks)
        if view.now < due:
            say = "making sure that no volume of an earlier attempt exists"
            return Wait(Phase.PROVISIONING, Reason.WAITING_FOR_FLY, say, due - view.now)
        return Act(ListVolumes(), Phase.PROVISIONING, "looking for its volume")
    region = min(view.place.regions, key=view.world.refused_regions.count)
    return Act(CreateVolume(region), Phase.PROVISIONING, f"creating its volume in {region}")


def _machine(view: AgentView) -> Step | None:
    volume = volume_of(view)
    if view.world.machines is None:
        return _look_for_machine(view)
    machine = machine_of(view) or _stray(view)
    if machine is None:
        return _at_rest(view) if volume is None or not view.declared.wants_running else _new_machine(view, volume)
    if machine.suspect:
        return Act(GetMachine(machine.id), Phase.STARTING, f"looking at machine {machine.id}")
    if not machine.host_ok:
        say = f"the host of machine {machine.id} can't be reached; Fly brings it back or moves the machine"
        return Wait(Phase.DEGRADED, Reason.WAITING_FOR_FLY, say)
    if not machine_config.is_ours(view, machine.metadata):
        return Stuck(
            Phase.FAILED,
            Reason.FOREIGN_MACHINE,
            f'machine {machine.id} has the name "{machine.name}" but is not ours; remove it at Fly by hand, '
            "nothing that isn't ours is ever touched",
        )
    if volume is None or not view.declared.wants_running:
        return _wanted_down(view, machine)
    return _wanted_up(view, machine, volume)


def _look_for_machine(view: AgentView) -> Step:
    known = view.remembered.machine_id
    if known is None:
        return Act(ListMachines(), Phase.PROVISIONING, "looking for its machine")
    if not view.swept:
        return Wait(Phase.PENDING, Reason.UNHEARD, "waiting for the list of the org's machines", 3.0)
    return Act(GetMachine(known), Phase.PROVISIONING, f"looking at machine {known}")


def _new_machine(view: AgentView, volume: VolumeSight) -> Step | None:
    if (move := _token(view)) is not None:
        return move
    failure = view.world.failure
    if failure is not None and (failure.op, failure.reason) == ("create_machine", Reason.FLY_CONFLICT):
        return Act(ListMachines(), Phase.PROVISIONING, "looking for the machine that has its name")
    action = CreateMachine(view.names.machine(volume.id), volume.region, volume.id)
    return Act(action, Phase.PROVISIONING, f"creating its machine in {volume.region}")


def _wanted_up(view: AgentView, machine: MachineSight, volume: VolumeSight) -> Step | None:
    if machine.state in MOVING:
        action = AwaitMachine(machine.id, "started", machine.version, WAIT_SECONDS)
        return Act(action, Phase.STARTING, f"waiting for machine {machine.id} to start")
    if machine.state == "stopping":
        action = AwaitMachine(machine.id, "stopped", machine.version, WAIT_SECONDS)
        return Act(action, Phase.STARTING, f"waiting for machine {machine.id} to stop before it starts again")
    if machine.state == "destroying":
        action = AwaitMachine(machine.id, "destroyed", None, WAIT_SECONDS)
        return Act(action, Phase.STARTING, f"waiting for machine {machine.id} to be gone")
    told = (machine.metadata.get("roost_token_epoch"), machine.metadata.get("roost_incarnation"))
    other_token = told != (_epoch(view), view.incarnation)
    if other_token or machine.metadata.get("roost_config_hash") != machine_config.config_hash(view, volume.id):
        if other_token and (move := _token(view)) is not None:
            return move
        return Act(
            UpdateMachine(machine.id, machine.version, volume.id), Phase.UPDATING, f"updating machine {machine.id}"
        )
    return None if machine.state == "started" else _start_again(view, machine)


def _start_again(view: AgentView, machine: MachineSight) -> Step:
    """A machine that came to rest by itself: started again, with a pause when that was tried a moment ago."""
    asked = view.world.start_asked_at
    if machine.state == "failed" and view.now - max(asked or 0.0, machine.seen_at) < SLOW_SECONDS:
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


def _wanted_down(view: AgentView, machine: MachineSight) -> Step:
    if machine.state in RESTING or machine.state == "failed":
        return _at_rest(view)
    if machine.state == "stopping":
        action = AwaitMachine(machine.id, "stopped", machine.version, WAIT_SECONDS)
        return Act(action, Phase.STOPPING, f"waiting for machine {machine.id} to stop")
    if machine.state == "destroying":
        action = AwaitMachine(machine.id, "destroyed", None, WAIT_SECONDS)
        return Act(action, Phase.STOPPING, f"waiting for machine {machine.id} to be gone")
    if machine.state in MOVING and machine.state != "starting":
        action = AwaitMachine(machine.id, "started", machine.version, WAIT_SECONDS)
        return Act(action, Phase.STOPPING, f"waiting for machine {machine.id} before it is stopped")
    return Act(StopMachine(machine.id), Phase.STOPPING, f"stopping machine {machine.id}")


def _runtime(view: AgentView) -> Step:
    """The machine is up and as declared; the rest is for the agent inside to say."""
    machine, window = machine_of(view), view.silence_window
    assert machine is not None
    beat = beat_of(view, machine)
    if beat is None:
        listened = view.now - view.listening_since
        if listened < window and view.remembered.machine_id == machine.id:
            return Wait(Phase.RUNNING, Reason.UNHEARD, "waiting for its first heartbeat to us", window - listened)
        if view.remembered.machine_id == machine.id and listened >= window:
            return Wait(Phase.DEGRADED, Reason.AGENT_SILENT, _silent(machine, window), window)
        return Wait(
            Phase.STARTING, Reason.WAITING_FOR_AGENT, f"machine {machine.id} is up, the agent in it boots", window
        )
    if beat.age > window:
        return Wait(Phase.DEGRADED, Reason.AGENT_SILENT, _silent(machine, window), window)
    left = window - beat.age + 1.0
    if not beat.ready:
        say = f"the agent is not ready (boot phase {beat.boot_phase})"
        phase = Phase.DEGRADED if beat.restarts else Phase.STARTING
        return Wait(
            phase, Reason.AGENT_NOT_READY, say + (f", last exit: {beat.last_exit}" if beat.last_exit else ""), left
        )
    if view.bundle_revision is not None and beat.bundle_revision != view.bundle_revision:
        return Wait(Phase.UPDATING, Reason.CONFIG_PENDING, "waiting for the agent to apply its new configuration", left)
    if beat.degraded:
        return Settled(Phase.DEGRADED, Reason.DEGRADED, left)
    return Settled(Phase.RUNNING, Reason.RUNNING, left)


# --- What the phases ask of the view. ----------------------------------------------------------------------------


def machine_of(view: AgentView) -> MachineSight | None:
    """The Agent's current machine, when it was seen and is not gone: by its name, else by the id in status."""
    alive = [m for m in view.world.machines or () if not m.gone]
    volume = volume_of(view)
    name = view.names.machine(volume.id) if volume else None
    return next((m for m in alive if m.name == name), None) or next(
        (m for m in alive if m.id == view.remembered.machine_id), None
    )


def _stray(view: AgentView) -> MachineSight | None:
    """For one that isn't to run: any machine that says it is ours, under whatever name."""
    if view.declared.wants_running:
        return None
    ours = (m for m in view.world.machines or () if not m.gone and machine_config.is_ours(view, m.metadata))
    return next(ours, None)


def machine_of_world(world: World, of: Declared) -> str | None:
    """The id of the Agent's one machine that was seen and is not gone; None when there is none or more than one.

    In a shared app the world holds others' machines too.
    """
    alive, name = [m for m in world.machines or () if not m.gone], (of.namespace, of.name)
    if of.spec.fly.app_strategy == "Shared":
        alive = [m for m in alive if (m.metadata.get("roost_namespace"), m.metadata.get("roost_name")) == name]
    return alive[0].id if len(alive) == 1 else None


def beat_of(view: AgentView, machine: MachineSight) -> Beat | None:
    """The last heartbeat, when it comes from this machine as it is now: not from before its last start or update."""
    beat, asked = view.beat, view.world.start_asked_at
    if beat is None or beat.machine_id != machine.id or (asked is not None and view.now - beat.age < asked):
        return None
    if beat.machine_version and machine.version and beat.machine_version != machine.version:
        return None
    return beat


def machine_known(view: AgentView) -> bool:
    """A machine of this Agent exists or may exist."""
    return machine_of(view) is not None or (view.world.machines is None and view.remembered.machine_id is not None)


def volume_of(view: AgentView) -> VolumeSight | None:
    """The current volume: the one in status, else ours by name (attached before unattached, then the oldest)."""
    known, seen = view.remembered.volume_id, view.world.volumes or ()
    if known is not None:
        sight = next((v for v in seen if v.id == known), None)
        if sight is not None:
            return None if sight.deleted else sight
        r = view.remembered
        return VolumeSight(
            known, view.names.volume, "created", r.volume_region or "", r.volume_size_gb or 0, None, "", view.now
        )
    ours = [v for v in seen if v.name == view.names.volume and not v.deleted]
    return min(ours, key=lambda v: (v.attached_to is None, v.created_at, v.id), default=None)


def volumes_proven_absent(view: AgentView) -> bool:
    """No volume of ours exists in the app, for certain: a list alone never says so, since lists lag and lie."""
    world = view.world
    return world.born or absence.proven(view, world.empty_looks)


def _token(view: AgentView) -> Step | None:
    epoch = view.declared.spec.identity.token_epoch
    if view.world.token_epoch == epoch:
        return None
    return Act(SetToken(epoch), Phase.PROVISIONING, "giving the machine its token")


def _epoch(view: AgentView) -> str:
    return str(view.declared.spec.identity.token_epoch)


def _at_rest(view: AgentView) -> Settled:
    revoked = view.declared.revoked
    return Settled(
        Phase.REVOKED if revoked else Phase.STOPPED, Reason.REVOKED if revoked else Reason.STOPPED, SLOW_SECONDS * 2
    )


def _silent(machine: MachineSight, window: float) -> str:
    return f"no heartbeat from machine {machine.id} for more than {window:.0f} s; kubectl describe shows its last state"
