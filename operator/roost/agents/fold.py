"""How the world we know changes with each answer: fold(world, action, answer) -> world. Pure.

An answer says what it says and no more: a list that leaves something out makes it suspect, not gone; only a look at
the thing itself (404 or `destroyed`) does. A create whose outcome is unknown starts the clock that absence is
measured by.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from roost.agents import recovery
from roost.agents.absence import DOUBT_AFTER
from roost.agents.machine_config import fingerprint
from roost.agents.view import (
    NO_TOKEN,
    UNTOLD_ORG,
    Action,
    AskRoom,
    AssignAddress,
    Attempts,
    AwaitMachine,
    CreateApp,
    CreateMachine,
    CreateSnapshot,
    CreateVolume,
    DeleteApp,
    DeleteMachine,
    DeleteVolume,
    ExtendVolume,
    Failure,
    ForgetToken,
    GetApp,
    GetMachine,
    GetVolume,
    KeepSnapshots,
    Late,
    ListMachines,
    ListSnapshots,
    ListVolumes,
    MachineSight,
    MarkRetained,
    Remembered,
    RestartMachine,
    SetToken,
    Snapshots,
    SnapshotSight,
    StampMachine,
    StartMachine,
    StopMachine,
    SuspendMachine,
    UpdateMachine,
    VolumeSight,
    World,
)
from roost.api.conditions import Reason, reason
from roost.fly import errors
from roost.fly.types import App, Extended, Machine, MachineRow, Snapshot, Volume, WaitResult

YOUNG_SECONDS = 90.0
"""For so long after it was made, an app may still be unknown to parts of Fly (404 or 401)."""

QUICK_LOOKS = 3
"""So many looks by back-off find what is only late by seconds; the next is the one that proves."""

_PROOFS = (GetMachine, ListMachines, ListVolumes)
_CANT_FORK = (errors.Invalid, errors.NotFound, errors.VolumeMissing)
_TAKEN = frozenset({"created", "complete", ""})
"""What Fly calls a snapshot that can be restored; it documents `created`."""
_RUNS = frozenset({"started", "starting"})
_RESTS = frozenset({"stopped", "suspended", "stopping", "suspending"})

Answer = (
    App
    | Machine
    | Volume
    | Extended
    | list[Machine]
    | list[Volume]
    | list[Snapshot]
    | WaitResult
    | dict[str, int]
    | int
    | None
)


def machine_sight(machine: Machine, now: float, known: MachineSight | None = None) -> MachineSight:
    """A machine whose host can't be reached tells no config: what was known of it before still stands."""
    host_ok = machine.config is not None or machine.state == "destroyed"
    metadata = machine.metadata if host_ok or known is None else known.metadata
    since = known.unreachable_since if known is not None else None
    config = fingerprint(machine.config) if machine.config is not None else known.config if known else None
    return MachineSight(
        id=machine.id,
        name=machine.name,
        state=machine.state,
        version=machine.version,
        region=machine.region,
        private_ip=machine.private_ip,
        image=machine.image,
        metadata=metadata,
        updated_at=machine.updated_at,
        seen_at=now,
        volume_id=machine.volume_id if host_ok or known is None else known.volume_id,
        exit_note=machine.exit_note,
        host_ok=host_ok,
        image_digest=machine.image_digest,
        config=config,
        up_since=_up_since(known, machine.state, now),
        unreachable_since=None if host_ok else now if since is None else since,
    )


def _up_since(known: MachineSight | None, state: str, now: float) -> float | None:
    """A machine that rested and is up was woken: by us, by traffic or by hand."""
    if known is None:
        return None
    return now if known.state in _RESTS and state in _RUNS else known.up_since


def row_sight(row: MachineRow, now: float) -> MachineSight:
    return MachineSight(
        id=row.id,
        name=row.name,
        state=row.state,
        version=row.version,
        region=row.region,
        private_ip=row.private_ip,
        image=row.image,
        metadata=row.metadata,
        updated_at=row.updated_at,
        seen_at=now,
    )


def volume_sight(volume: Volume, now: float, known: VolumeSight | None = None, *, listed: bool = True) -> VolumeSight:
    since = known.unreachable_since if known is not None else None
    return VolumeSight(
        id=volume.id,
        name=volume.name,
        state=volume.state,
        region=volume.region,
        size_gb=volume.size_gb,
        attached_to=volume.attached_machine_id,
        created_at=volume.created_at,
        seen_at=now,
        deleted=volume.deleted,
        host_ok=volume.host_ok,
        unreachable_since=None if volume.host_ok else now if since is None else since,
        retention_days=volume.snapshot_retention,
        fresh=known.fresh if known is not None else "",
        listed=listed or (known is not None and known.listed),
    )


def row_seen(world: World, row: MachineRow, now: float) -> World:
    """News from the org's list: a first sight is taken as it is; a difference only makes the machine suspect."""
    known = _machine(world, row.id)
    if known is None:
        if row.state == "destroyed" and world.machines is None:
            return world
        return _put_machine(world, row_sight(row, now))
    same = (row.state, row.version) == (known.state, known.version)
    if same or known.gone or row.updated_at < known.updated_at:
        return world
    failure = world.failure
    if failure is not None and failure.late is not None and failure.late.look == GetMachine(row.id):
        world = replace(world, failure=replace(failure, late=None))  # it shows by now: worth a look before its time
    return _put_machine(world, replace(known, suspect=True))


def volumes_seen(
    world: World, volumes: Iterable[Volume], *, full: bool, unread: frozenset[str], known: Remembered, now: float
) -> World:
    """News from the org's list of volumes. A full list that leaves the current one out only puts it in doubt."""
    volumes = tuple(volumes)
    for volume in volumes:
        sight = _volume(world, volume.id)
        if world.volumes is None or (sight is not None and sight.deleted):
            continue
        if sight is None:
            # A call of an earlier process has arrived late; but what is deleted may be of an earlier life of this name.
            if not volume.deleted or volume.id == known.volume_id:
                world = _put_volume(world, volume_sight(volume, now))
            continue
        seen = volume_sight(volume, now, sight)
        if replace(seen, seen_at=sight.seen_at) != sight:
            world = _put_volume(world, seen)
    if not full:
        return world
    if world.volumes is None and known.volume_id is not None:
        world = replace(world, volumes=tuple(volume_sight(v, now) for v in volumes))
    listed = {v.id for v in volumes}
    mine = _volume(world, known.volume_id or "") or VolumeSight(
        known.volume_id or "", known.volume_name, "created", known.volume_region or "", 0, None, "", now
    )
    if known.volume_id is None or known.volume_id in listed or mine.region in unread or mine.deleted:
        return world
    return _put_volume(world, replace(mine, state="doubted", size_gb=mine.size_gb or known.volume_size_gb or 0))


def heard(world: World, machine_id: str, heard_at: float, now: float) -> World:
    """A heartbeat is proof that its machine has started: no look at Fly is needed for that."""
    known, asked = _machine(world, machine_id), world.start_asked_at
    if known is None or known.state not in ("created", "starting") or asked is None or heard_at < asked:
        return world
    return _state(world, machine_id, "started", now)


def row_missing(world: World, machine_id: str) -> World:
    """A full list left the machine out: no proof of anything, but worth a look."""
    known = _machine(world, machine_id)
    if known is None or known.gone:
        return world
    return _put_machine(world, replace(known, suspect=True))


def answered(  # noqa: C901 - one case per kind of answer
    world: World, action: Action, answer: Answer, now: float, tried: Attempts | None = None
) -> World:
    """The world after a call that succeeded; `tried` are the attempts at recovery before it."""
    if isinstance(action, AskRoom):
        return world  # no Agent's own affair: what failed before still stands
    world = replace(world, failure=None)
    match action, answer:
        case CreateApp(), App():
            return replace(
                world,
                born=True,
                app_present=True,
                app_org=answer.org,
                app_looked_at=now,
                token_epoch=NO_TOKEN,
                machines=(),
                volumes=(),
                touched_at=now,
            )
        case GetApp(), App():
            counts = (answer.machine_count, answer.volume_count)
            things = None if None in counts else sum(n for n in counts if n is not None)
            return replace(world, app_present=True, app_org=answer.org, app_looked_at=now, app_things=things)
        case DeleteApp(), _:
            return replace(world, app_delete_accepted=True, touched_at=now)
        case SetToken(epoch=epoch), int():
            return replace(world, token_epoch=epoch, secrets_version=answer, touched_at=now)
        case ForgetToken(), _:
            return replace(world, token_epoch=NO_TOKEN)
        case MarkRetained(), _:
            return replace(world, marked=True)
        case AssignAddress(kind=kind), _:
            return replace(world, addresses=world.addresses | {kind})
        case ListMachines(), list():
            return _machines_listed(
                world, [machine_sight(m, now, _machine(world, m.id)) for m in answer if isinstance(m, Machine)], now
            )
        case (GetMachine(), Machine()):
            before = _machine(world, answer.id)
            if before is not None and before.state in ("stopped", "suspended") and answer.state in _RUNS:
                world = replace(world, stop_asked_at=None)  # woken: its next stop begins with patience again
            return _put_machine(world, machine_sight(answer, now, before))
        case ((CreateMachine() | UpdateMachine()), Machine()):
            return _launched(world, action, answer, now)
        case StampMachine(id=machine_id), _:
            known = _machine(world, machine_id)
            changes = dict(action.metadata)
            kept = {k: v for k, v in (known.metadata if known else {}).items() if k not in changes}
            said = kept | {k: v for k, v in changes.items() if v is not None}
            return world if known is None else _put_machine(world, replace(known, metadata=said))
        case ListVolumes(), list():
            return _volumes_listed(world, [v for v in answer if isinstance(v, Volume)], now)
        case CreateVolume(), Volume():
            fresh: Literal["copy", "empty"] = "copy" if action.fork or action.snapshot else "empty"
            world = _put_volume(world, replace(volume_sight(answer, now), fresh=fresh))
            world = replace(world, restored=action.restores or world.restored)
            if action.fork is not None and tried is not None:
                world = recovery.counted(world, tried, "its volume was copied to another host", now)
            return replace(world, crowded=None, touched_at=now)
        case ExtendVolume(), Extended():
            world = _put_volume(world, volume_sight(answer.volume, now, _volume(world, answer.volume.id)))
            return replace(world, restart_needed=answer.needs_restart, touched_at=now)
        case KeepSnapshots(id=volume_id, days=days), _:
            kept_volume = _volume(world, volume_id)
            return _put_volume(world, replace(kept_volume, retention_days=days)) if kept_volume else world
        case GetVolume(), Volume():
            return _put_volume(world, volume_sight(answer, now, _volume(world, answer.id), listed=False))
        case ListSnapshots(volume_id=volume_id), list():
            found = tuple(
                SnapshotSight(s.id, s.created_at, ready=s.id != "" and s.status in _TAKEN)
                for s in answer
                if isinstance(s, Snapshot)
            )
            before_it = next((s for s in world.snapshots if s.volume_id == volume_id), None)
            ordered_at = before_it.ordered_at if before_it is not None else None
            return _put_snapshots(world, Snapshots(volume_id, now, found, ordered_at))
        case CreateSnapshot(volume_id=volume_id), _:
            return _put_snapshots(world, _pending_snapshot(volume_id, now))
        case DeleteVolume(id=volume_id), _:
            there = _volume(world, volume_id) or VolumeSight(volume_id, "", "", "", 0, None, "", now)
            gone = replace(there, state="pending_destroy", deleted=True, seen_at=now, missed_at=None)
            world = replace(_put_volume(world, gone), touched_at=now)
            for machine in world.machines or ():  # Fly refuses to delete a volume that a machine holds
                if machine.volume_id == volume_id and machine.state == "destroying":
                    world = _gone(world, machine.id, now)
            return world
        case AwaitMachine(id=machine_id, state=state), WaitResult():
            reached = answer.state == state
            return _state(world, machine_id, state, now) if reached else _suspect(world, machine_id)
        case RestartMachine(because=because), _ if because:
            return recovery.counted(_moved(world, action, now), tried, because, now)
        case _:
            return _moved(world, action, now)


def _launched(world: World, action: CreateMachine | UpdateMachine, machine: Machine, now: float) -> World:
    """A machine that we made, or made anew: everything about it is known."""
    alive = tuple(m for m in world.machines or () if not m.gone)
    launched = not isinstance(action, UpdateMachine) or action.launch
    world = replace(
        world,
        machines=alive,
        start_asked_at=now if launched else world.start_asked_at,
        stop_asked_at=None if launched else now,
        restart_needed=False,
        own_version=machine.version,
        touched_at=now,
    )
    used = _volume(world, action.volume_id)
    if used is not None:
        world = _put_volume(world, replace(used, fresh="", attached_to=machine.id))
    return _put_machine(world, machine_sight(machine, now))


def _moved(world: World, action: Action, now: float) -> World:
    """A call that moves a machine from one state to the next."""
    match action:
        case StartMachine(id=machine_id):
            world = replace(world, start_asked_at=now, stop_asked_at=None, touched_at=now)
            return _state(world, machine_id, "starting", now)
        case RestartMachine(id=machine_id):
            world = replace(world, start_asked_at=now, restart_needed=False, touched_at=now)
            return _state(world, machine_id, "restarting", now)
        case StopMachine(id=machine_id, idle=idle):
            world = replace(_stop_asked(world, now), touched_at=now, idle=idle or world.idle)
            return _state(world, machine_id, "stopping", now)
        case SuspendMachine(id=machine_id, idle=idle):
            world = replace(_stop_asked(world, now), touched_at=now, idle=idle or world.idle)
            return _state(world, machine_id, "suspending", now)
        case DeleteMachine(id=machine_id):
            return replace(_state(world, machine_id, "destroying", now), touched_at=now, took_down=True)
        case _:
            return world


def failed(world: World, action: Action, error: errors.FlyError, now: float) -> World:
    """The world after a call that did not succeed. `failure` stays unset when the error itself was the answer."""
    known = _understood(world, action, error, now)
    if known is not None:
        return replace(known, failure=None)
    before = world.failure
    count = before.count + 1 if before is not None and before.op == error.op else 1
    not_yet = _young(world, action, error, now)
    stuck = isinstance(error, (errors.Invalid, errors.Unauthorized)) and not not_yet
    if isinstance(action, CreateVolume) and action.fork and not _times_unforked(world, action.fork):
        stuck = False  # one refusal is no reason to go on with the older data of a snapshot
    stuck = stuck or isinstance(error, errors.Capacity)
    failure = Failure(
        op=error.op,
        reason=Reason.WAITING_FOR_FLY if not_yet else reason(error.reason),
        message=_sentence(error),
        status=error.status,
        count=count,
        stuck=stuck,
        capacity=isinstance(error, errors.Capacity),
        retry_after=error.retry_after if isinstance(error, errors.RateLimited | errors.Unavailable) else None,
        late=_late(world, action, error, now) if not_yet and count >= QUICK_LOOKS else None,
    )
    return replace(_doubted(world, action, error, now), failure=failure)


def _young(world: World, action: Action, error: errors.FlyError, now: float) -> bool:
    """Whether a 404 or 401 may mean no more than that Fly has not heard everywhere of what was made a moment ago.

    What an earlier process made, it made before `quiet_since`.
    """
    unknown = isinstance(error, errors.NotFound) or (isinstance(error, errors.Unauthorized) and error.status == 401)
    if world.app_delete_accepted or not unknown:
        return False
    app = world.app_looked_at if world.app_present else None
    since: tuple[float | None, ...] = (app, world.quiet_since)
    match action:
        case GetApp():
            since = (app,)
        case _ if isinstance(error, errors.Unauthorized):
            since = (app if world.born else None,)
        case (
            GetMachine()
            | AwaitMachine()
            | UpdateMachine()
            | StampMachine()
            | StartMachine()
            | StopMachine()
            | SuspendMachine()
            | RestartMachine()
            | DeleteMachine()
        ):
            since = (world.start_asked_at, world.quiet_since)
        case GetVolume():
            since = (world.touched_at or None,)
        case ExtendVolume() | KeepSnapshots() | DeleteVolume() | ListSnapshots() | CreateSnapshot():
            since = ()
    return any(t is not None and now - t < YOUNG_SECONDS for t in since)


def _late(world: World, action: Action, error: errors.FlyError, now: float) -> Late | None:
    """For a look that finds nothing of what only an earlier process may have made.

    What we made ourselves shows within seconds, and is looked for by back-off.
    """
    own = replace(world, quiet_since=None)
    if world.quiet_since is None or not isinstance(action, _PROOFS) or _young(own, action, error, now):
        return None
    return Late(action, now, world.quiet_since + YOUNG_SECONDS)


def _understood(  # noqa: C901 - one case per kind of answer
    world: World, action: Action, error: errors.FlyError, now: float
) -> World | None:
    """Errors that are answers: they tell how the world is, so the planner can go on at once."""
    if _young(world, action, error, now):
        return None
    match action, error:
        case CreateApp(), errors.NameTaken():
            return replace(world, app_present=True, app_org=None, app_looked_at=now)
        case GetApp(), errors.Unauthorized(status=403) if world.app_present:
            return replace(world, app_org=UNTOLD_ORG, app_looked_at=now)
        case GetApp(), errors.NotFound():
            return replace(world, app_present=False, app_looked_at=now)
        case (
            (
                ListMachines()
                | ListVolumes()
                | DeleteApp()
                | ForgetToken()
                | SetToken()
                | MarkRetained()
                | AssignAddress()
                | CreateVolume()
                | CreateMachine()
            ),
            errors.NotFound(),
        ):
            return replace(world, born=False, app_present=False, app_looked_at=now)
        case CreateMachine(), errors.AlreadyExists(machine_id=machine_id) if (
            machine_id and _machine(world, machine_id) is None
        ):
            return _put_machine(world, _unseen(machine_id, action.name, now))
        case (
            (
                GetMachine()
                | UpdateMachine()
                | StampMachine()
                | StartMachine()
                | StopMachine()
                | SuspendMachine()
                | RestartMachine()
                | DeleteMachine()
            ),
            errors.NotFound(),
        ):
            return _gone(world, action.id, now)
        case ListSnapshots(volume_id=volume_id), errors.NotFound():
            return _put_snapshots(world, Snapshots(volume_id, now, ()))
        case CreateSnapshot(volume_id=volume_id), errors.NotYet():
            return _put_snapshots(world, _pending_snapshot(volume_id, now))
        case AwaitMachine(id=machine_id), errors.NotFound():
            return _gone(world, machine_id, now)
        case AwaitMachine(id=machine_id), errors.NotYet():
            return _suspect(world, machine_id)
        case ((GetVolume(id=volume_id) | DeleteVolume(id=volume_id)), (errors.NotFound() | errors.VolumeMissing())):
            return _volume_gone(world, volume_id, now)
        case _:
            return None


def _doubted(  # noqa: C901 - one case per action
    world: World, action: Action, error: errors.FlyError, now: float
) -> World:
    """What an error that is no answer leaves in doubt, so that the next turn looks before it acts."""
    unknown = error.effect == "unknown"
    match action:
        case CreateApp() | DeleteApp() if unknown:
            return replace(world, quiet_since=now)
        case CreateVolume() if unknown:
            return replace(world, born=False, volume_looks=(), quiet_since=now, lost_volume=True)
        case CreateVolume(region=region, fork=fork):
            if isinstance(error, errors.Capacity):
                return _refused(world, region, now)
            if fork is None or not isinstance(error, _CANT_FORK):
                return world
            return replace(world, unforked=(fork, _times_unforked(world, fork) + 1, now))
        case CreateMachine(region=region, volume_id=volume_id) if isinstance(error, errors.Capacity):
            made = _volume(world, volume_id)
            elsewhere = error.scope != "host" or (made is not None and bool(made.fresh))
            world = replace(world, crowded=(volume_id, now))
            return _refused(world, region, now) if elsewhere else world
        case UpdateMachine() | StartMachine() | RestartMachine() if isinstance(error, errors.Capacity):
            known_machine = _machine(world, action.id)
            on = known_machine.volume_id if known_machine is not None else None
            return _suspect(world if on is None else replace(world, crowded=(on, now)), action.id)
        case CreateMachine(volume_id=volume_id) if unknown:
            tried_on = _volume(world, volume_id)
            if tried_on is not None:
                world = _put_volume(world, replace(tried_on, fresh=""))
            return replace(world, machines=None, quiet_since=now, took_down=False)
        case CreateMachine(volume_id=volume_id) if isinstance(error, errors.VolumeMissing):
            doubt = VolumeSight(volume_id, "", "doubted", "", 0, None, "", now)
            return _put_volume(world, replace(_volume(world, volume_id) or doubt, state="doubted"))
        case ExtendVolume(id=volume_id) if isinstance(error, errors.NotFound):
            known = _volume(world, volume_id)
            return world if known is None else _put_volume(world, replace(known, state="doubted"))
        case DeleteVolume() if isinstance(error, errors.VolumeBound) and error.machine_id:
            return _held(world, error.machine_id, now)
        case StopMachine():
            return _suspect(_stop_asked(world, now), action.id)
        case DeleteMachine(id=machine_id) if (dead := _machine(world, machine_id)) is not None and not dead.host_ok:
            return _put_machine(world, replace(dead, refused=True, suspect=True))
        case (
            UpdateMachine()
            | StampMachine()
            | StartMachine()
            | SuspendMachine()
            | RestartMachine()
            | DeleteMachine()
            | AwaitMachine()
        ):
            return _suspect(world, action.id)
        case DeleteApp() if unknown:
            return replace(world, touched_at=now)
        case CreateSnapshot(volume_id=volume_id) if unknown:
            return _put_snapshots(world, replace(_pending_snapshot(volume_id, now), ordered_at=now))
        case SetToken() | ForgetToken() if unknown:
            return replace(world, token_epoch=None)
        case _:
            return world


def _sentence(error: errors.FlyError) -> str:
    advice = f" {error.advice}" if error.advice else ""
    return f"Fly answered {error.op} with {error.status or 'no answer'}: {error.message.rstrip('.')}.{advice}"[:290]


# --- Small pieces ------------------------------------------------------------------------------------------------


def _machine(world: World, machine_id: str) -> MachineSight | None:
    return next((m for m in world.machines or () if m.id == machine_id), None)


def _volume(world: World, volume_id: str) -> VolumeSight | None:
    return next((v for v in world.volumes or () if v.id == volume_id), None)


def _put_machine(world: World, sight: MachineSight) -> World:
    rest = tuple(m for m in world.machines or () if m.id != sight.id)
    return replace(world, machines=(*rest, sight))


def _put_volume(world: World, sight: VolumeSight) -> World:
    rest = tuple(v for v in world.volumes or () if v.id != sight.id)
    return replace(world, volumes=(*rest, sight))


def _unseen(machine_id: str, name: str, now: float) -> MachineSight:
    """A machine we were only told of: to be looked at before anything else."""
    return MachineSight(machine_id, name, "unknown", "", "", "", "", {}, "", now, suspect=True)


def _state(world: World, machine_id: str, state: str, now: float) -> World:
    known = _machine(world, machine_id)
    if known is None:
        return world
    return _put_machine(world, replace(known, state=state, seen_at=now, suspect=False))


def _gone(world: World, machine_id: str, now: float) -> World:
    return _put_machine(world, replace(_machine(world, machine_id) or _unseen(machine_id, "", now), state="destroyed"))


def _held(world: World, machine_id: str, now: float) -> World:
    """A machine holds our volume: one we did not know of, or one that isn't as gone as we believed."""
    holder, before = _machine(world, machine_id), world.failure
    if holder is not None and (before is None or before.count < DOUBT_AFTER):
        return world
    return _put_machine(world, replace(holder or _unseen(machine_id, "", now), state="unknown", suspect=True))


def _stop_asked(world: World, now: float) -> World:
    """A stop was asked for, whatever came of it: from the first time on, patience with the machine runs out."""
    return world if world.stop_asked_at is not None else replace(world, stop_asked_at=now)


def _suspect(world: World, machine_id: str) -> World:
    known = _machine(world, machine_id)
    return world if known is None else _put_machine(world, replace(known, suspect=True))


def _volume_gone(world: World, volume_id: str, now: float) -> World:
    known = _volume(world, volume_id) or VolumeSight(volume_id, "", "destroyed", "", 0, None, "", now)
    missed = now if known.missed_at is None else known.missed_at
    return _put_volume(world, replace(known, state="destroyed", deleted=True, seen_at=now, missed_at=missed))


def _put_snapshots(world: World, seen: Snapshots) -> World:
    rest = tuple(s for s in world.snapshots if s.volume_id != seen.volume_id)
    return replace(world, snapshots=(*rest, seen))


def _pending_snapshot(volume_id: str, now: float) -> Snapshots:
    return Snapshots(volume_id, now, (SnapshotSight("", "", ready=False),))


def _times_unforked(world: World, volume_id: str) -> int:
    return world.unforked[1] if world.unforked is not None and world.unforked[0] == volume_id else 0


def _refused(world: World, region: str, now: float) -> World:
    rest = tuple((code, at) for code, at in world.refused if code != region)
    return replace(world, refused=(*rest, (region, now)))


def _machines_listed(world: World, seen: Iterable[MachineSight], now: float) -> World:
    """What the list leaves out isn't gone for that, what it shows of the dead may be old: each is looked at."""
    dead = {m.id for m in world.machines or () if m.gone}
    sights = {m.id: replace(m, suspect=m.id in dead and not m.gone) for m in seen}
    kept = [m if m.gone else replace(m, suspect=True) for m in world.machines or () if m.id not in sights]
    looks = (*world.machine_looks[-1:], now)
    machines = (*kept, *sights.values())
    return replace(world, app_present=True, machines=machines, machine_looks=looks)


def _volumes_listed(world: World, seen: Iterable[Volume], now: float) -> World:
    """A volume that is deleted stays so, whatever an old list shows."""
    deleted = {v.id for v in world.volumes or () if v.deleted}
    sights = {v.id: volume_sight(v, now, _volume(world, v.id)) for v in seen if v.id not in deleted}
    kept = [v for v in world.volumes or () if v.id not in sights]
    looks = (*world.volume_looks[-1:], now)
    return replace(world, app_present=True, volumes=(*kept, *sights.values()), volume_looks=looks)
