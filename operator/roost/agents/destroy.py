"""How an Agent leaves: machine, then volumes, then the app, each confirmed gone before the next; then our finalizer.

It slows down and never gives up. What isn't ours is never taken along: since deleting an app takes everything in it,
machines and volumes are listed once more right before. Shared apps are never deleted, only our secret in them. With
deletionPolicy Retain the machine goes, volume and app stay and are found again by name. Pure.
"""

from roost.agents import absence, machine_config
from roost.agents.view import (
    FINALIZER,
    SLOW_SECONDS,
    WAIT_SECONDS,
    Act,
    AgentView,
    AwaitMachine,
    DeleteApp,
    DeleteMachine,
    DeleteVolume,
    ForgetToken,
    GetApp,
    GetMachine,
    GetVolume,
    ListMachines,
    ListVolumes,
    MachineSight,
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
"""An older list is no last look."""


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
    if view.world.app_org is None and not view.remembered.app:
        return Act(GetApp(), LEAVING, f"looking whether app {view.place.app} exists")
    if _foreign_app(view):
        return _release("the app is not ours and nothing was made in it")
    for phase in (_machines, _late_machines, _volumes, _last_look):
        if (move := phase(view)) is not None:
            return move
    return _app(view)


def _never_made(view: AgentView) -> bool:
    world = view.world
    return world.app_present is None and world.quiet_since is None and not view.remembered.app


def _foreign_app(view: AgentView) -> bool:
    org = view.world.app_org
    return not view.remembered.app and org is not None and org != view.place.org


def _release(why: str) -> Act:
    return Act(ReleaseFinalizer(), LEAVING, f"{why}: letting go")


def _app_gone(view: AgentView) -> Step:
    """404 is believed when we deleted the app ourselves, or when no lost create can still be on its way."""
    world = view.world
    quiet, looked = world.quiet_since, world.app_looked_at
    if world.app_delete_accepted or quiet is None or (looked is not None and looked >= quiet + view.absence_seconds):
        return _release("nothing is left at Fly")
    due = quiet + view.absence_seconds
    if view.now < due:
        say = "making sure that no app of an earlier attempt appears"
        return Wait(LEAVING, Reason.WAITING_FOR_FLY, say, due - view.now)
    return Act(GetApp(), LEAVING, f"looking once more for app {view.place.app}")


def _machines(view: AgentView) -> Step | None:
    known = view.remembered.machine_id
    seen = view.world.machines
    if known is not None and all(m.id != known for m in seen or ()):
        return Act(GetMachine(known), LEAVING, f"looking at machine {known}")
    if seen is None:
        return Act(ListMachines(), LEAVING, "looking for its machine")
    for machine in seen:
        if machine.gone:
            continue
        if machine_config.is_ours(view, machine.metadata):
            return _machine(view, machine)
        if machine.state == "unknown":
            return Act(GetMachine(machine.id), LEAVING, f"looking at machine {machine.id}")
        if not machine.host_ok and machine.id == known:
            say = f"the host of machine {known} can't be reached, so it can't be known whose it is"
            return Wait(LEAVING, Reason.WAITING_FOR_FLY, say)
    return None


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


def _machine(view: AgentView, machine: MachineSight) -> Step:
    """Stopped first, so that the agent can finish; by force when it doesn't in its time."""
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


def _volumes(view: AgentView) -> Step | None:
    if view.declared.spec.deletion_policy == "Retain":
        return _release("its machine is gone, volume and app are kept (deletionPolicy: Retain)")
    known, seen = view.remembered.volume_id, view.world.volumes
    if known is not None and all(v.id != known for v in seen or ()):
        return Act(DeleteVolume(known), LEAVING, f"deleting volume {known}")
    if seen is None:
        return Act(ListVolumes(), LEAVING, "looking for its volumes")
    for volume in seen:
        if _ours(view, volume) and not volume.deleted:
            return Act(DeleteVolume(volume.id), LEAVING, f"deleting volume {volume.id}")
    return None


def _last_look(view: AgentView) -> Step | None:
    """Everything in the app once more, listed after our last change; and late enough for lost creates to show."""
    world = view.world
    if _going(view):
        return None
    since = max(world.touched_at, view.now - LAST_LOOK_SECONDS)
    if not world.machine_looks or world.machine_looks[-1] < since:
        return Act(ListMachines(), LEAVING, "listing the app's machines once more")
    if world.volumes_listed_at is None or world.volumes_listed_at < since:
        return Act(ListVolumes(), LEAVING, "listing the app's volumes once more")
    if view.declared.spec.fly.app_strategy == "Shared":
        return _late_volumes(view)
    return _strangers(view)


def _late_volumes(view: AgentView) -> Step | None:
    """As with machines: in an app that stays, what is still on its way must have shown."""
    looks = view.world.empty_looks
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
    machines = [m for m in world.machines or () if not m.gone and not machine_config.is_ours(view, m.metadata)]
    volumes = [v for v in world.volumes or () if not v.deleted and not _ours(view, v)]
    for machine in machines:
        if machine.suspect:
            return Act(GetMachine(machine.id), LEAVING, f"looking whether machine {machine.id} is still there")
    for volume in volumes:
        if volume.seen_at < (world.volumes_listed_at or 0.0):
            return Act(GetVolume(volume.id), LEAVING, f"looking whether volume {volume.id} is still there")
    strangers = [m.id for m in machines] + [v.id for v in volumes]
    if not strangers:
        return None
    return Stuck(
        LEAVING,
        Reason.DESTROY_BLOCKED,
        f"app {view.place.app} holds what is not ours ({', '.join(strangers[:5])}), and deleting the app "
        "would delete that too; remove it at Fly by hand",
    )


def _app(view: AgentView) -> Step:
    if view.declared.spec.fly.app_strategy == "Shared":
        if view.world.token_epoch == -1:
            return _release("nothing of it is left in the shared app")
        return Act(ForgetToken(), LEAVING, "taking its token out of the shared app")
    say = f"making sure that app {view.place.app} is gone"
    if not _going(view):
        return Act(DeleteApp(), LEAVING, f"deleting app {view.place.app}")
    looked = view.world.app_looked_at
    if looked is not None and looked >= view.world.touched_at and view.now - looked < PAUSE_SECONDS:
        return Wait(LEAVING, Reason.WAITING_FOR_FLY, say)
    return Act(GetApp(), LEAVING, say)


def _going(view: AgentView) -> bool:
    """The app's deletion was accepted; after too long a time it is looked through, and asked for, once more."""
    return view.world.app_delete_accepted and view.now - view.world.touched_at < SLOW_SECONDS


def _ours(view: AgentView, volume: VolumeSight) -> bool:
    return volume.name == view.names.volume or volume.id == view.remembered.volume_id
