"""The Agent's volume: found, made, grown, moved, restored; and never replaced by an empty one. Pure.

Each volume that takes the place of another has a name with a higher number, so the current one is known from the
app's volumes alone: the highest that is there. The one before is kept for seven days. What it takes to give a volume
up is stated here and nowhere else: that no machine was ever made on it, that it is provably gone, or that its host is.
"""

from datetime import datetime

from roost.agents import absence, placement
from roost.agents.machine_config import restored_from, value_of
from roost.agents.view import (
    UP,
    WAIT_SECONDS,
    Act,
    AgentView,
    AwaitMachine,
    CreateSnapshot,
    CreateVolume,
    DeleteVolume,
    ExtendVolume,
    Failure,
    GetMachine,
    GetVolume,
    KeepSnapshots,
    ListSnapshots,
    ListVolumes,
    MachineSight,
    Snapshots,
    Step,
    StopMachine,
    Stuck,
    VolumeSight,
    Wait,
)
from roost.api.agent import Phase, RestoreFrom
from roost.api.conditions import Reason

KEPT_SECONDS = 7 * 86_400.0
"""How long a volume is kept after another has taken its place."""
HOST_PATIENCE_SECONDS = 300.0
"""How long a host may be out of reach before its volume counts as lost to it."""
FORK_TRIES = 2
NOTED_SECONDS = 0.1
SNAPSHOT_PAUSE_SECONDS = 5.0
ORDER_PAUSE_SECONDS = 30.0
"""Between looks for a snapshot whose order may have been lost."""
COMING = frozenset({"creating", "restoring", "doubted"})
"""States of a volume that no machine can be made on yet. (A hydrating fork can be mounted.)"""


def step(view: AgentView) -> Step | None:
    """The next thing to do about the volume; None when it is as declared, or is only to be known."""
    if view.remembered.volume_id is None and view.world.volumes is None:
        return Act(ListVolumes(), Phase.PROVISIONING, "looking for its volume")
    if not view.declared.wants_running:
        return None
    volume, known = current(view), view.remembered.volume_id
    if volume is None:
        gone = lost(view)
        return _first(view) if gone is None else _successor_of_lost(view, gone)
    if volume.state in COMING:
        return _coming(view, volume)
    for old in _before(view, volume):
        if old.id == known and old.state == "doubted":
            return Act(GetVolume(old.id), Phase.RECOVERING, f"looking whether volume {old.id} is still there")
    if _unreachable(view, volume):
        return _host_lost(view, volume)
    if _crowded(view, volume):
        return _relocate(view, volume)
    if (volume.fresh or known is not None) and _serial(view, volume) > 1 and known != volume.id:
        say = f"volume {volume.id} takes the place of {view.remembered.volume_id}"
        return Wait(Phase.RECOVERING, Reason.RELOCATING, say, NOTED_SECONDS, noted=True)
    return _as_declared(view, volume)


def keep(view: AgentView) -> Act | None:
    """What may go once the Agent runs: a volume whose time is over, and an unused twin that a lost answer left."""
    volume = current(view)
    if volume is None:
        return None
    for old in _before(view, volume):
        empty = old.fresh == "empty"
        if (empty or view.now >= _made_at(view, volume) + KEPT_SECONDS) and not _on(view, old):
            why = "never used" if empty else "kept for seven days"
            return Act(DeleteVolume(old.id), Phase.UPDATING, f"deleting volume {old.id}, {why}")
    r = view.remembered
    if view.world.volumes is None and r.previous_id is not None and view.now >= r.previous_expires_at:
        return Act(ListVolumes(), Phase.UPDATING, f"looking at volume {r.previous_id}, whose seven days are over")
    if not view.world.lost_volume or volume.attached_to is None:
        return None
    for twin in _named(view):
        if twin.id != volume.id and _serial(view, twin) == _serial(view, volume) and twin.attached_to is None:
            return Act(DeleteVolume(twin.id), Phase.UPDATING, f"deleting volume {twin.id}, a twin that was never used")
    return None


def current(view: AgentView) -> VolumeSight | None:
    """The Agent's volume: of those that are there the one that took the place of all others."""
    known = _known(view)
    seen = {v.id: v for v in view.world.volumes or ()}
    if known is not None and known not in seen:
        r, state = view.remembered, "created" if view.world.volumes is None else "doubted"
        return VolumeSight(
            known, r.volume_name, state, r.volume_region or "", r.volume_size_gb or 0, None, "", view.now
        )
    least = 0
    if known is not None:
        least = _serial(view, seen[known]) + (1 if seen[known].deleted else 0)
    candidates = [v for v in _named(view) if _serial(view, v) >= least]
    if known is not None and not seen[known].deleted and any(m.state in UP for m in _on(view, seen[known])):
        # It runs: a copy that an earlier process made and nobody ever used does not take its place.
        old = seen[known]
        candidates = [v for v in candidates if v.id == known or v.fresh or _on(view, v) or _goes_on_as(view, old, v)]
    return min(
        candidates,
        key=lambda v: (-_serial(view, v), v.id != known, v.attached_to is None, v.created_at, v.id),
        default=None,
    )


def held_by_unknown(view: AgentView) -> Act | None:
    """A volume of ours may tell of a machine that no list has shown."""
    known = {m.id for m in view.world.machines or ()}
    for volume in _named(view):
        if volume.attached_to is not None and volume.attached_to not in known:
            say = f"looking at machine {volume.attached_to}, which holds volume {volume.id}"
            return Act(GetMachine(volume.attached_to), Phase.PROVISIONING, say)
    return None


def others(view: AgentView) -> list[VolumeSight]:
    """Volumes of ours beside the current one that nothing explains: told to people, touched only with the Agent."""
    volume = current(view)
    if volume is None or view.world.lost_volume:
        return []
    serial = _serial(view, volume)
    return [v for v in _named(view) if v.id != volume.id and _serial(view, v) >= serial]


def lost(view: AgentView) -> VolumeSight | None:
    """The volume that the Agent had and that is gone at Fly."""
    known = _known(view)
    return next((v for v in view.world.volumes or () if v.id == known and v.deleted), None)


def previous(view: AgentView) -> tuple[str, float] | None:
    """The id of the volume before the current one, and when its time is over (clock seconds)."""
    volume, r = current(view), view.remembered
    if view.world.volumes is None:
        return (r.previous_id, r.previous_expires_at) if r.previous_id else None
    if volume is None:
        return None
    before = [v for v in _before(view, volume) if v.fresh != "empty"]
    if not before:
        return None
    return max(before, key=lambda v: _serial(view, v)).id, _made_at(view, volume) + KEPT_SECONDS


def _before(view: AgentView, volume: VolumeSight) -> list[VolumeSight]:
    return [v for v in _named(view) if _serial(view, v) < _serial(view, volume)]


def superseded(view: AgentView, machine: MachineSight) -> bool:
    """Whether the volume that a machine is on has been followed by another: its name says on which volume it is."""
    volume = current(view)
    if volume is None or machine.name == view.names.machine(volume.id):
        return False
    older = (v for v in view.world.volumes or () if view.names.serial(v.name) is not None)
    return any(view.names.machine(v.id) == machine.name and _serial(view, v) < _serial(view, volume) for v in older)


def copy(view: AgentView, volume: VolumeSight, region: str, phase: Phase) -> Act:
    """The volume once more on another host, as the one that takes its place."""
    action = CreateVolume(region, _serial(view, volume) + 1, fork=volume.id)
    say = f"copying volume {volume.id} to another host in {region}"
    return Act(action, phase, say, Reason.RELOCATING)


# --- The first volume. -------------------------------------------------------------------------------------------


def _first(view: AgentView) -> Step | None:
    if view.world.volumes is None:
        return Act(ListVolumes(), Phase.PROVISIONING, "looking for its volume")
    for machine in view.ours():
        if machine.config is None and machine.host_ok:
            return Act(GetMachine(machine.id), Phase.PROVISIONING, f"looking which volume machine {machine.id} has")
    if (look := _prove_absent(view)) is not None:
        return look
    wanted = view.declared.spec.volume.restore_from
    if wanted is not None and restored_from(view) != value_of(wanted):
        return _restore(view, wanted, 1)
    region = placement.choose(view, Phase.PROVISIONING)
    if not isinstance(region, str):
        return region or _no_room(view)
    return Act(CreateVolume(region), Phase.PROVISIONING, f"creating its volume in {region}")


def _prove_absent(view: AgentView, serial: int = 1) -> Step | None:
    """Looks until it is proved that no volume of this number is on its way: a second, empty one would hide the data."""
    world = view.world
    if world.born and serial == 1:
        return None
    if serial > 1 and (world.quiet_since is None or any(_serial(view, v) == serial for v in _named(view))):
        return None
    if absence.proven(view, world.volume_looks):
        return None
    if not world.volume_looks:
        return Act(ListVolumes(), Phase.PROVISIONING, "looking for its volume")
    due = absence.next_look(view, world.volume_looks)
    if view.now < due:
        say = "making sure that no volume of an earlier attempt exists"
        return Wait(Phase.PROVISIONING, Reason.WAITING_FOR_FLY, say, due - view.now)
    return Act(ListVolumes(), Phase.PROVISIONING, "looking for its volume")


def refusal(view: AgentView) -> str:
    """Why volume.restoreFrom is not followed though the volume is there; empty when there is nothing to say."""
    wanted = view.declared.spec.volume.restore_from
    if wanted is None or restored_from(view) == value_of(wanted) or current(view) is None:
        return ""
    return (
        f'volume.restoreFrom names "{value_of(wanted)}", and the agent has a volume in use: it is never replaced; '
        "apply the Agent under another name to restore"
    )


def _restore(view: AgentView, wanted: RestoreFrom, serial: int) -> Step:
    """A volume from a snapshot: one of its own, or the newest of another Agent's volume."""
    size = view.declared.spec.volume.size_gb
    if wanted.snapshot is not None:
        own = [v for v in view.world.volumes or () if view.names.serial(v.name) is not None]
        for volume in own:
            known = _snapshots(view, volume.id)
            if known is None:
                return _list_snapshots(view.place.app, volume.id)
            if any(s.id == wanted.snapshot for s in known.found):
                at_least = max(size, volume.size_gb)
                return _from_snapshot(view, wanted.snapshot, serial, at_least, volume.region, value_of(wanted))
        return _refused(
            f'volume.restoreFrom.snapshot: "{wanted.snapshot}" is not a snapshot of a volume of this Agent; name one '
            "of its own, or another Agent of this namespace with volume.restoreFrom.agent"
        )
    source = view.source
    if source is None:
        return _refused(
            f'volume.restoreFrom.agent: Agent "{wanted.agent}" of this namespace has no volume; name one that has'
        )
    known = _snapshots(view, source.volume_id)
    if known is None:
        return _list_snapshots(source.app, source.volume_id)
    if (newest := _newest(known)) is not None:
        return _from_snapshot(view, newest, serial, max(size, source.size_gb), None, value_of(wanted))
    lost = None if known.ordered_at is None else known.ordered_at + view.absence_seconds
    if not known.found and (lost is None or view.now >= lost):
        action = CreateSnapshot(source.app, source.volume_id)
        return Act(action, Phase.RESTORING, f"taking a snapshot of volume {source.volume_id}")
    pause = known.seen_at + (SNAPSHOT_PAUSE_SECONDS if known.found else ORDER_PAUSE_SECONDS) - view.now
    if pause > 0:
        say = f"waiting for a snapshot of volume {source.volume_id}"
        return Wait(Phase.RESTORING, Reason.RESTORING, say, pause)
    return _list_snapshots(source.app, source.volume_id)


def _refused(say: str) -> Stuck:
    return Stuck(Phase.FAILED, Reason.RESTORE_REFUSED, say)


# --- A volume that can't be used where it is. --------------------------------------------------------------------


def _successor_of_lost(view: AgentView, gone: VolumeSight) -> Step:
    """A volume that is gone: from its newest snapshot, or empty if a person has accepted that; else nothing."""
    spec, serial = view.declared.spec.volume, _serial(view, gone) + 1
    if gone.missed_at is not None and gone.seen_at - gone.missed_at < absence.LOOKS_APART_SECONDS:
        due = gone.missed_at + absence.LOOKS_APART_SECONDS - view.now
        if due > 0:
            say = f"volume {gone.id} is not found; looking again to be sure"
            return Wait(Phase.DEGRADED, Reason.WAITING_FOR_FLY, say, due)
        return Act(GetVolume(gone.id), Phase.DEGRADED, f"looking whether volume {gone.id} is really gone")
    if view.world.volumes is not None and (look := _prove_absent(view, serial)) is not None:
        return look
    wanted = spec.restore_from
    if wanted is not None and wanted.snapshot is not None and restored_from(view) != value_of(wanted):
        return _restore(view, wanted, serial)  # the user names which of its own it is to be
    if spec.on_loss == "Recreate" and view.declared.annotations.get("roost.dev/allow-data-loss") == gone.id:
        region = placement.choose(view, Phase.RESTORING, near=gone.region or None)
        if not isinstance(region, str):
            return region or _no_room(view)
        say = f"DATA LOST: an empty volume in {region} takes the place of {gone.id}, as roost.dev/allow-data-loss says"
        return Act(CreateVolume(region, serial), Phase.RESTORING, say, Reason.VOLUME_LOST)
    if spec.on_loss == "Restore":
        known = _snapshots(view, gone.id)
        if known is None:
            return _list_snapshots(view.place.app, gone.id)
        if (newest := _newest(known)) is not None:
            size = max(spec.size_gb, gone.size_gb, view.remembered.volume_size_gb or 0)
            return _from_snapshot(view, newest, serial, size, gone.region or view.remembered.volume_region)
    if absence.look_due(view, gone.seen_at):
        return Act(GetVolume(gone.id), Phase.FAILED, f"looking whether volume {gone.id} is back")
    remedy = {
        "Restore": "it has no snapshot to restore from",
        "Fail": "volume.onLoss is Fail; set it to Restore to have the newest snapshot",
        "Recreate": f"to go on with an empty one, annotate the Agent: roost.dev/allow-data-loss={gone.id}",
    }[spec.on_loss]
    if spec.on_loss == "Restore":
        remedy += f"; to go on with an empty one, set volume.onLoss: Recreate and roost.dev/allow-data-loss={gone.id}"
    return Stuck(Phase.FAILED, Reason.VOLUME_LOST, f"volume {gone.id} is gone at Fly and its data with it; {remedy}")


def _unreachable(view: AgentView, volume: VolumeSight) -> bool:
    return not volume.host_ok or any(not m.host_ok for m in _on(view, volume))


def _host_lost(view: AgentView, volume: VolumeSight) -> Step:
    """A host that can't be reached: Fly brings it back; or the newest snapshot goes on elsewhere, if it may."""
    say = f"the host of volume {volume.id} can't be reached; Fly brings it back or moves the machine"
    if (again := _look_again(view, volume)) is not None:
        return again
    if view.declared.spec.placement.relocate != "OnFailure":
        say += "; with placement.relocate: OnFailure it would go on elsewhere from a snapshot"
        return Wait(Phase.DEGRADED, Reason.HOST_LOST, say, absence.HOST_PAUSE_SECONDS)
    if (patience := _patience(view, volume)) > 0:
        return Wait(Phase.DEGRADED, Reason.HOST_LOST, say, min(patience, absence.HOST_PAUSE_SECONDS))
    if (look := _prove_absent(view, _serial(view, volume) + 1)) is not None:
        return look
    known = _snapshots(view, volume.id)
    if known is None:
        return _list_snapshots(view.place.app, volume.id)
    if (newest := _newest(known)) is None:
        say += "; there is no snapshot to go on from elsewhere"
        return Wait(Phase.DEGRADED, Reason.HOST_LOST, say, absence.HOST_PAUSE_SECONDS)
    size = max(volume.size_gb, view.declared.spec.volume.size_gb)
    return _from_snapshot(view, newest, _serial(view, volume) + 1, size, volume.region)


def _patience(view: AgentView, volume: VolumeSight) -> float:
    """For how many more seconds its host may be out of reach before its volume counts as lost to it."""
    times = [volume.unreachable_since, *(m.unreachable_since for m in _on(view, volume))]
    since = min((t for t in times if t is not None), default=view.now)
    return since + HOST_PATIENCE_SECONDS - view.now


def _goes_on_as(view: AgentView, old: VolumeSight, copy: VolumeSight) -> bool:
    """Whether a volume that an earlier process made takes the place of one on a lost host, as ours would.

    None of the lost one's snapshots is younger than it, so another restore would hold no more.
    """
    lost = _unreachable(view, old) and _patience(view, old) <= 0
    if not lost or not copy.host_ok or view.declared.spec.placement.relocate != "OnFailure":
        return False
    known = _snapshots(view, old.id)
    ready = [s for s in known.found if s.ready] if known is not None else []
    made, at = [_epoch(s.created_at) for s in ready], _epoch(copy.created_at)
    return bool(ready) and at is not None and all(m is not None and m <= at for m in made)


def _epoch(date: str) -> float | None:
    try:
        return datetime.fromisoformat(date).timestamp()
    except ValueError:
        return None


def knows_better(view: AgentView, failure: Failure) -> bool:
    """Whether after this failure there is another place or another way to try at once."""
    volume = current(view)
    if failure.op == "create_volume":
        unseen = volume is not None and unforkable(view, volume) and _snapshots(view, volume.id) is None
        return failure.capacity or unseen
    return failure.capacity and (may_move(view) or (volume is not None and volume.fresh == "empty"))


def _look_again(view: AgentView, volume: VolumeSight) -> Act | None:
    """No list tells that a host has come back: what is on it is looked at."""
    if absence.back_due(view, volume):
        return Act(GetVolume(volume.id), Phase.DEGRADED, f"looking whether volume {volume.id} is back")
    for machine in _on(view, volume):
        if absence.back_due(view, machine) or (machine.suspect and not machine.host_ok):
            return Act(GetMachine(machine.id), Phase.DEGRADED, f"looking whether machine {machine.id} is back")
    return None


def may_move(view: AgentView) -> bool:
    """Whether the agent may go to another host when its own is full."""
    return view.declared.spec.placement.relocate != "Never"


def _crowded(view: AgentView, volume: VolumeSight) -> bool:
    crowded = view.world.crowded
    if crowded is None or not (may_move(view) or volume.fresh == "empty"):
        return False
    return crowded[0] == volume.id and view.now - crowded[1] < placement.REFUSED_SECONDS


def _relocate(view: AgentView, volume: VolumeSight) -> Step:
    """The volume's host has no room for its machine: on to another, with the data; a volume never used is let go."""
    if (look := held_by_unknown(view)) is not None:
        return look
    region = placement.choose(view, Phase.RECOVERING, near=volume.region, sure=True)
    if not isinstance(region, str):
        return region or _no_room(view)
    for machine in _on(view, volume):
        if machine.state == "stopping":
            action = AwaitMachine(machine.id, "stopped", machine.version, WAIT_SECONDS)
            return Act(action, Phase.RECOVERING, f"waiting for machine {machine.id} to stop, to copy its volume")
        if machine.state in UP:
            return Act(StopMachine(machine.id), Phase.RECOVERING, f"stopping machine {machine.id} to copy its volume")
    if (proof := _prove_absent(view, _serial(view, volume) + 1)) is not None:
        return proof
    if volume.fresh == "empty":
        say = f"no room for the machine beside volume {volume.id}, which is empty: another in {region}"
        return Act(CreateVolume(region, _serial(view, volume) + 1), Phase.PROVISIONING, say)
    if not unforkable(view, volume):
        return copy(view, volume, region, Phase.RECOVERING)
    known = _snapshots(view, volume.id)
    if known is None:
        return _list_snapshots(view.place.app, volume.id)
    if (newest := _newest(known)) is not None:
        size = max(volume.size_gb, view.declared.spec.volume.size_gb)
        return _from_snapshot(view, newest, _serial(view, volume) + 1, size, region)
    return Stuck(
        Phase.FAILED,
        Reason.CAPACITY_EXHAUSTED,
        f"the host of volume {volume.id} has no room for its machine, Fly does not copy it and it has no snapshot; "
        "nothing empty is put in its place",
    )


def unforkable(view: AgentView, volume: VolumeSight) -> bool:
    """Whether Fly has refused to copy it, and again when it was asked again; after a while it is asked once more."""
    told = view.world.unforked
    if told is None or told[0] != volume.id:
        return False
    return told[1] >= FORK_TRIES and view.now - told[2] < placement.REFUSED_SECONDS


def _no_room(view: AgentView) -> Step:
    if placement.unknown(view):
        return Wait(Phase.PROVISIONING, Reason.FLY_UNAVAILABLE, "Fly could not tell where there is room", 30.0)
    failure, regions = view.world.failure, ", ".join(view.place.regions)
    reason = failure.reason if failure is not None and failure.stuck else Reason.CAPACITY_EXHAUSTED
    say = f'no room in "{regions}" (spec.placement.regions) for {_guest(view)}: add regions, take less, or wait'
    return Stuck(Phase.FAILED, reason, f"{say} ({failure.message})"[:300] if failure is not None else say)


def _guest(view: AgentView) -> str:
    spec = view.declared.spec.machine
    return f"{spec.cpus} {spec.cpu_kind} CPUs with {spec.memory_mb} MiB"


# --- A volume that is there. -------------------------------------------------------------------------------------


def _coming(view: AgentView, volume: VolumeSight) -> Step:
    if volume.state != "doubted" and view.now - volume.seen_at < 1.0:
        return Wait(Phase.PROVISIONING, Reason.VOLUME_CREATING, f"waiting for volume {volume.id}", 1.0)
    return Act(GetVolume(volume.id), Phase.PROVISIONING, f"looking at volume {volume.id}")


def _as_declared(view: AgentView, volume: VolumeSight) -> Step | None:
    """Larger than declared is no drift: it may have grown by itself."""
    spec = view.declared.spec.volume
    if volume.size_gb and volume.size_gb < spec.size_gb:
        action = ExtendVolume(volume.id, spec.size_gb)
        return Act(action, Phase.UPDATING, f"extending volume {volume.id} to {spec.size_gb} GB")
    if volume.retention_days is not None and volume.retention_days != spec.snapshot_retention_days:
        days = spec.snapshot_retention_days
        return Act(KeepSnapshots(volume.id, days), Phase.UPDATING, f"keeping its volume's snapshots for {days} days")
    return None


# --- Small pieces. -----------------------------------------------------------------------------------------------


def _known(view: AgentView) -> str | None:
    """The volume that the Agent had last: by its status; where that was lost, by its machine; or as one that is gone.

    In an app of its own, a deleted volume that Fly still shows was the Agent's. In a shared one, it may be of one of
    the same name that was deleted.
    """
    if view.remembered.volume_id is not None:
        return view.remembered.volume_id
    machines = [m for m in view.ours() if m.state != "destroying"]
    if len(machines) == 1 and machines[0].volume_id is not None:
        return machines[0].volume_id
    if _named(view) or view.declared.spec.fly.app_strategy == "Shared":
        return None
    gone = [v for v in view.world.volumes or () if v.deleted and view.names.serial(v.name) is not None]
    return max(gone, key=lambda v: (_serial(view, v), v.created_at)).id if gone else None


def _named(view: AgentView) -> list[VolumeSight]:
    """Volumes that are there and ours by name, or by the status."""
    return [
        v
        for v in view.world.volumes or ()
        if not v.deleted and (view.names.serial(v.name) is not None or v.id == view.remembered.volume_id)
    ]


def _serial(view: AgentView, volume: VolumeSight) -> int:
    name = volume.name
    if not name and volume.id == view.remembered.volume_id:
        name = view.remembered.volume_name
    return view.names.serial(name) or 1


def _on(view: AgentView, volume: VolumeSight) -> list[MachineSight]:
    return [m for m in view.ours() if m.name == view.names.machine(volume.id)]


def _made_at(view: AgentView, volume: VolumeSight) -> float:
    """When a volume was made, in clock seconds; now, when Fly does not say."""
    made = _epoch(volume.created_at)
    return view.now if made is None else view.now - (view.wall - made)


def _snapshots(view: AgentView, volume_id: str) -> Snapshots | None:
    """What is known of a volume's snapshots; None when they were not listed lately."""
    found = next((s for s in view.world.snapshots if s.volume_id == volume_id), None)
    return None if found is None or absence.look_due(view, found.seen_at) else found


def _newest(snapshots: Snapshots) -> str | None:
    ready = [s for s in snapshots.found if s.ready]
    return max(ready, key=lambda s: (s.created_at, s.id)).id if ready else None


def _list_snapshots(app: str, volume_id: str) -> Act:
    return Act(ListSnapshots(app, volume_id), Phase.RESTORING, f"looking for snapshots of volume {volume_id}")


def _from_snapshot(
    view: AgentView, snapshot: str, serial: int, size_gb: int, near: str | None, restores: str = ""
) -> Step:
    region = placement.choose(view, Phase.RESTORING, near=near)
    if not isinstance(region, str):
        return region or _no_room(view)
    action = CreateVolume(region, serial, snapshot=snapshot, size_gb=size_gb, restores=restores)
    say = f"restoring its volume from snapshot {snapshot} in {region}"
    return Act(action, Phase.RESTORING, say, Reason.RESTORING)
