"""How an Agent leaves: machine, then volumes, then the app, each confirmed gone before the next; then our finalizer.

It slows down and never gives up; only a person's annotation with the id of what is in the way lets go, and then what
was let go of stays, and the app around it. What isn't ours is never taken along: since deleting an app takes everything
in it, the app is looked at once more right before. Shared apps are never deleted, only our secret in them. With
deletionPolicy Retain the machine goes, volume and app stay with a mark and are found again by name. Pure.
"""

from roost.agents import absence
from roost.agents.view import (
    FINALIZER,
    NO_TOKEN,
    SLOW_SECONDS,
    UNTOLD_ORG,
    WAIT_SECONDS,
    Act,
    AgentView,
    AwaitMachine,
    DeleteApp,
    DeleteMachine,
    DeleteVolume,
    Failure,
    ForgetToken,
    GetApp,
    GetMachine,
    GetVolume,
    ListMachines,
    ListVolumes,
    MachineSight,
    MarkRetained,
    ReleaseFinalizer,
    Settled,
    Step,
    StopMachine,
    Stuck,
    VolumeSight,
    Wait,
)
from roost.api.agent import Phase
from roost.api.conditions import Reason

LEAVING = Phase.TERMINATING
GRACE_BEYOND_STOP_SECONDS = 10.0
PAUSE_SECONDS = 0.2
"""Between two looks at an app that goes; less than the shortest back-off."""
LAST_LOOK_SECONDS = 30.0
"""An older look is no last look."""
QUICK_TRIES = 8
"""So many failures of a step grow its back-off to minutes; from then on it doubles up to an hour, without end."""
LONGEST_PAUSE_SECONDS = 3600.0


def step(view: AgentView) -> Step:
    """The next thing to do for an Agent that is being deleted."""
    if FINALIZER not in view.declared.finalizers:
        return Settled(LEAVING, Reason.TERMINATING, SLOW_SECONDS)
    if _never_made(view):
        return _release("nothing was made")
    if view.place.credential_problem:
        return Stuck(LEAVING, Reason.FLY_INVALID, view.place.credential_problem)
    if view.world.app_present is False:
        return _app_gone(view)
    if view.place.app in view.forgotten:
        return _release(f"app {view.place.app} is let go of, as roost.dev/forget says, with all that is in it")
    if view.world.app_org is None and not view.remembered.app:
        return Act(GetApp(), LEAVING, f"looking whether app {view.place.app} exists")
    if (unsure := _untold(view)) is not None:
        return unsure
    if _foreign_app(view):
        return _release("the app is not ours and nothing was made in it")
    for phase in (_machines, _late_machines, _volumes, _last_look):
        if (move := phase(view)) is not None:
            return move
    return _app(view)


def after_failure(failure: Failure) -> Wait:
    """Quick at first, then more and more slowly, and never not at all: what is left at Fly is paid for."""
    after = failure.retry_after
    if after is None and (failure.stuck or failure.count > QUICK_TRIES):
        after = min(SLOW_SECONDS * 2.0 ** max(0, failure.count - QUICK_TRIES - 1), LONGEST_PAUSE_SECONDS)
    return Wait(LEAVING, failure.reason, failure.message, after)


def _never_made(view: AgentView) -> bool:
    world = view.world
    return world.app_present is None and world.quiet_since is None and not view.remembered.app


def _untold(view: AgentView) -> Step | None:
    """A 403 is no proof that the app is somebody else's, where a process before this one may have made it."""
    world, app = view.world, view.place.app
    if world.app_org != UNTOLD_ORG or world.quiet_since is None or view.remembered.app or world.born:
        return None
    if absence.look_due(view, world.app_looked_at):
        return Act(GetApp(), LEAVING, f"looking whose app {app} is")
    say = (
        f'Fly does not tell whose app "{app}" is: check the Fly credential; if the app is not yours, let go of it with '
        f"the annotation roost.dev/forget={app}"
    )
    return Stuck(LEAVING, Reason.FOREIGN_APP, say)


def _foreign_app(view: AgentView) -> bool:
    """An app of another org; or one that was there before us, by a name of the user's, with nothing of ours in it."""
    world, spec = view.world, view.declared.spec.fly
    if view.remembered.app or world.born:
        return False
    if world.app_org is not None and world.app_org != view.place.org:
        return True
    if spec.app_strategy == "Shared" or spec.app is None or world.quiet_since is not None:
        return False
    seen = world.machines is not None and world.volumes is not None
    return seen and not view.ours() and not any(_ours(view, v) for v in world.volumes or ())


def _release(why: str) -> Act:
    return Act(ReleaseFinalizer(), LEAVING, f"{why}: letting go")


def _app_gone(view: AgentView) -> Step:
    """404 is believed when no lost create or delete of it can still be on its way, a process' before us included."""
    world = view.world
    quiet, looked = world.quiet_since, world.app_looked_at
    if quiet is None or (looked is not None and looked >= quiet + view.absence_seconds):
        return _release("nothing is left at Fly")
    due = quiet + view.absence_seconds
    if view.now < due:
        say = "making sure that no app of an earlier attempt appears"
        return Wait(LEAVING, Reason.WAITING_FOR_FLY, say, due - view.now)
    return Act(GetApp(), LEAVING, f"looking once more for app {view.place.app}")


def _machines(view: AgentView) -> Step | None:
    known = view.remembered.machine_id
    seen = view.world.machines
    if known is not None and known not in view.forgotten and all(m.id != known for m in seen or ()):
        return Act(GetMachine(known), LEAVING, f"looking at machine {known}")
    if seen is None:
        return Act(ListMachines(), LEAVING, "looking for its machine")
    if _unsure(view):
        return Act(ListMachines(), LEAVING, "looking for its machine: the one in its status is gone")
    for machine in seen:
        if machine.gone or machine.id in view.forgotten or _confirmed(view, machine) is True:
            continue
        if view.is_ours(machine.metadata):
            return _anothers(view, machine) or _machine(view, machine)
        hidden = not machine.host_ok and (machine.id == known or view.names.is_machine(machine.name))
        if machine.state == "unknown" or (hidden and absence.back_due(view, machine)):
            return Act(GetMachine(machine.id), LEAVING, f"looking at machine {machine.id}")
        if hidden:
            say = f"the host of machine {machine.id} can't be reached, so it can't be known whose it is"
            return Wait(LEAVING, Reason.HOST_LOST, say, absence.HOST_PAUSE_SECONDS)
    return None


def _unsure(view: AgentView) -> bool:
    """The machine of the status is gone, though not by us: another may have been made in its place."""
    world = view.world
    if world.quiet_since is None or world.took_down or view.ours():
        return False
    return not world.machine_looks or world.machine_looks[-1] < world.quiet_since


def _anothers(view: AgentView, machine: MachineSight) -> Act | None:
    """The same Roost in another cluster has it: deleting the Agent here, as in a drill, destroys nothing there."""
    cluster = machine.metadata.get("roost_cluster", "")
    if cluster in ("", view.cluster, view.adopt_from):
        return None
    return _release(f"machine {machine.id} belongs to the same Roost in cluster {cluster}, which keeps it")


def _late_machines(view: AgentView) -> Step | None:
    """Where the volume or the app outlives the Agent, a machine that is still on its way would too: look once more."""
    world, spec = view.world, view.declared.spec
    if spec.deletion_policy == "Delete" and spec.fly.app_strategy == "PerAgent":
        return None
    if world.quiet_since is None or absence.proven(view, world.machine_looks):
        return None
    due = absence.next_look(view, world.machine_looks)
    if view.now < due:
        say = "making sure that no machine of an earlier attempt appears"
        return Wait(LEAVING, Reason.WAITING_FOR_FLY, say, due - view.now)
    return Act(ListMachines(), LEAVING, "listing the app's machines once more")


def _machine(view: AgentView, machine: MachineSight) -> Step | None:
    """Stopped first, so that the agent can finish; by force when it doesn't in its time.

    One that was stopped and goes by our own order is gone at once: that it is, the volume and the last look confirm,
    since Fly refuses to delete a volume that a machine holds.
    """
    if _confirmed(view, machine) is False:
        return None
    if machine.suspect:
        return Act(GetMachine(machine.id), LEAVING, f"looking at machine {machine.id}")
    if machine.state == "destroying":
        action = AwaitMachine(machine.id, "destroyed", None, WAIT_SECONDS)
        return Act(action, LEAVING, f"waiting for machine {machine.id} to be gone")
    patience = view.declared.spec.machine.stop_timeout_seconds + GRACE_BEYOND_STOP_SECONDS
    asked = view.world.stop_asked_at
    if machine.state in ("started", "starting", "restarting") and (asked is None or view.now - asked < patience):
        return Act(StopMachine(machine.id), LEAVING, f"stopping machine {machine.id}")
    if machine.state == "stopping" and asked is not None and view.now - asked < patience:
        left = max(1, min(WAIT_SECONDS, int(patience - (view.now - asked))))
        action = AwaitMachine(machine.id, "stopped", machine.version, left)
        return Act(action, LEAVING, f"waiting for machine {machine.id} to stop")
    return Act(DeleteMachine(machine.id), LEAVING, f"destroying machine {machine.id}")


def _confirmed(view: AgentView, machine: MachineSight) -> bool | None:
    """Whether the deletion of its volume has confirmed that a machine is gone; None when it won't: wait and see."""
    if machine.state != "destroying" or not machine.host_ok or view.declared.spec.deletion_policy == "Retain":
        return None
    held = next((v for v in view.world.volumes or () if view.names.machine(v.id) == machine.name), None)
    failure = view.world.failure
    if held is None or held.id in view.forgotten or (failure is not None and failure.count >= absence.DOUBT_AFTER):
        return None
    return held.deleted if held.missed_at is None else None


def _volumes(view: AgentView) -> Step | None:
    if view.declared.spec.deletion_policy == "Retain":
        if not view.world.marked and view.declared.spec.fly.app_strategy == "PerAgent":
            return Act(MarkRetained(), LEAVING, f"marking app {view.place.app} as kept")
        return _release("its machine is gone, volume and app are kept (deletionPolicy: Retain)")
    known, seen = view.remembered.volume_id, view.world.volumes
    if known is not None and known not in view.forgotten and all(v.id != known for v in seen or ()):
        return Act(DeleteVolume(known), LEAVING, f"deleting volume {known}")
    if seen is None:
        return Act(ListVolumes(), LEAVING, "looking for its volumes")
    going = {m.name for m in view.world.machines or () if m.state == "destroying"}
    for volume in sorted(seen, key=lambda v: view.names.machine(v.id) not in going):  # first what confirms a machine
        if _ours(view, volume) and not volume.deleted and volume.id not in view.forgotten:
            return Act(DeleteVolume(volume.id), LEAVING, f"deleting volume {volume.id}")
    return None


def _last_look(view: AgentView) -> Step | None:
    """Everything in the app once more, after our last change; and late enough for lost creates to show.

    The app itself tells how many machines and volumes are in it. Only when it tells of some, or does not tell, they
    are listed.
    """
    world = view.world
    if _going(view):
        return None
    since = max(world.touched_at, view.now - LAST_LOOK_SECONDS)
    alone = view.declared.spec.fly.app_strategy == "PerAgent"
    if alone and not _listed(view, since):
        looked = world.app_looked_at
        if looked is None or looked < since:
            return Act(GetApp(), LEAVING, f"looking whether anything is left in app {view.place.app}")
        if world.app_things == 0:
            return None
    if not world.machine_looks or world.machine_looks[-1] < since:
        return Act(ListMachines(), LEAVING, "listing the app's machines once more")
    if not world.volume_looks or world.volume_looks[-1] < since:
        return Act(ListVolumes(), LEAVING, "listing the app's volumes once more")
    return _strangers(view) if alone else _late_volumes(view)


def _listed(view: AgentView, since: float) -> bool:
    """Whether a full listing is under way or done: then it decides, and not the app's own count."""
    looks = (*view.world.machine_looks[-1:], *view.world.volume_looks[-1:])
    return any(at >= since for at in looks)


def _late_volumes(view: AgentView) -> Step | None:
    """As with machines: in an app that stays, what is still on its way must have shown."""
    looks = view.world.volume_looks
    if view.world.quiet_since is None or absence.proven(view, looks):
        return None
    due = absence.next_look(view, looks)
    if view.now < due:
        say = "making sure that no volume of an earlier attempt appears"
        return Wait(LEAVING, Reason.WAITING_FOR_FLY, say, due - view.now)
    return Act(ListVolumes(), LEAVING, "listing the app's volumes once more")


def _strangers(view: AgentView) -> Step | None:
    """What isn't ours blocks, as long as it is there: at what the list no longer shows, a look tells."""
    world = view.world
    machines = [m for m in world.machines or () if not m.gone and not view.is_ours(m.metadata)]
    volumes = [v for v in world.volumes or () if not v.deleted and not _ours(view, v)]
    machines = [m for m in machines if m.id not in view.forgotten]
    volumes = [v for v in volumes if v.id not in view.forgotten]
    for machine in machines:
        if machine.suspect:
            return Act(GetMachine(machine.id), LEAVING, f"looking whether machine {machine.id} is still there")
    for volume in volumes:
        if volume.seen_at < world.volume_looks[-1]:
            return Act(GetVolume(volume.id), LEAVING, f"looking whether volume {volume.id} is still there")
    strangers = [m.id for m in machines] + [v.id for v in volumes]
    if not strangers:
        return None
    return Stuck(
        LEAVING,
        Reason.DESTROY_BLOCKED,
        f"app {view.place.app} holds what is not ours ({', '.join(strangers[:5])}), and deleting the app "
        "would delete that too; remove it at Fly by hand, or let go of it and the app with the annotation "
        "roost.dev/forget and these ids",
    )


def _app(view: AgentView) -> Step:
    if view.declared.spec.fly.app_strategy == "Shared":
        if view.world.token_epoch == NO_TOKEN:
            return _release("nothing of it is left in the shared app")
        return Act(ForgetToken(), LEAVING, "taking its token out of the shared app")
    if left := _left(view):
        return _release(f"{', '.join(left)} and app {view.place.app} stay at Fly, as roost.dev/forget says")
    say = f"making sure that app {view.place.app} is gone"
    if not _going(view):
        return Act(DeleteApp(), LEAVING, f"deleting app {view.place.app}")
    looked = view.world.app_looked_at
    if looked is not None and looked >= view.world.touched_at and view.now - looked < PAUSE_SECONDS:
        return Wait(LEAVING, Reason.WAITING_FOR_FLY, say)
    return Act(GetApp(), LEAVING, say)


def _left(view: AgentView) -> list[str]:
    """What was let go of and may still be there."""
    world = view.world
    things = [m.id for m in world.machines or () if not m.gone] + [v.id for v in world.volumes or () if not v.deleted]
    known = [i for i in (view.remembered.machine_id, view.remembered.volume_id) if i is not None]
    seen = {m.id for m in world.machines or ()} | {v.id for v in world.volumes or ()}
    return [i for i in (*things, *(i for i in known if i not in seen)) if i in view.forgotten]


def _going(view: AgentView) -> bool:
    """The app's deletion was accepted; after too long a time it is looked through, and asked for, once more."""
    return view.world.app_delete_accepted and view.now - view.world.touched_at < SLOW_SECONDS


def _ours(view: AgentView, volume: VolumeSight) -> bool:
    return view.names.serial(volume.name) is not None or volume.id == view.remembered.volume_id
