"""How the world we know changes with each answer: fold(world, action, answer) -> world. Pure.

An answer says what it says and no more: a list that leaves something out makes it suspect, not gone; only a look at
the thing itself (404 or `destroyed`) does. A create whose outcome is unknown starts the clock that absence is
measured by.
"""

from collections.abc import Iterable
from dataclasses import replace

from roost.agents.view import (
    Action,
    AwaitMachine,
    CreateApp,
    CreateMachine,
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
    ListMachines,
    ListVolumes,
    MachineSight,
    SetToken,
    StartMachine,
    StopMachine,
    UpdateMachine,
    VolumeSight,
    World,
)
from roost.api.conditions import Reason, reason
from roost.fly import errors
from roost.fly.types import App, Machine, MachineRow, Volume, WaitResult

YOUNG_SECONDS = 90.0
"""For so long after it was made, an app may still be unknown to parts of Fly (404 or 401)."""

DOUBT_AFTER = 4
"""A volume stays bound for a while after its machine is gone; so many refusals later, the machine is looked at."""

Answer = App | Machine | Volume | list[Machine] | list[Volume] | WaitResult | int | None


def machine_sight(machine: Machine, now: float, known: MachineSight | None = None) -> MachineSight:
    """A machine whose host can't be reached tells no config: what was known of it before still stands."""
    host_ok = machine.config is not None or machine.state == "destroyed"
    metadata = machine.metadata if host_ok or known is None else known.metadata
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
        volume_id=machine.volume_id,
        exit_note=machine.exit_note,
        host_ok=host_ok,
    )


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


def volume_sight(volume: Volume, now: float) -> VolumeSight:
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
    return _put_machine(world, replace(known, suspect=True))


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
    world: World, action: Action, answer: Answer, volume_name: str, now: float
) -> World:
    """The world after a call that succeeded."""
    world = replace(world, failure=None)
    match action, answer:
        case CreateApp(), App():
            return replace(
                world,
                born=True,
                app_present=True,
                app_org=answer.org,
                app_looked_at=now,
                machines=(),
                volumes=(),
                touched_at=now,
            )
        case GetApp(), App():
            return replace(world, app_present=True, app_org=answer.org, app_looked_at=now)
        case DeleteApp(), _:
            return replace(world, app_delete_accepted=True, touched_at=now)
        case SetToken(epoch=epoch), int():
            return replace(world, token_epoch=epoch, secrets_version=answer, touched_at=now)
        case ForgetToken(), _:
            return replace(world, token_epoch=-1)
        case ListMachines(), list():
            return _machines_listed(
                world, [machine_sight(m, now, _machine(world, m.id)) for m in answer if isinstance(m, Machine)], now
            )
        case (GetMachine(), Machine()):
            return _put_machine(world, machine_sight(answer, now, _machine(world, answer.id)))
        case ((CreateMachine() | UpdateMachine()), Machine()):
            alive = tuple(m for m in world.machines or () if not m.gone)
            world = replace(world, machines=alive, start_asked_at=now, stop_asked_at=None, touched_at=now)
            return _put_machine(world, machine_sight(answer, now))
        case ListVolumes(), list():
            sights = [volume_sight(v, now) for v in answer if isinstance(v, Volume)]
            return _volumes_listed(world, sights, volume_name, now)
        case ((CreateVolume() | ExtendVolume()), Volume()):
            return replace(_put_volume(world, volume_sight(answer, now)), touched_at=now)
        case GetVolume(), Volume():
            return _put_volume(world, volume_sight(answer, now))
        case DeleteVolume(id=volume_id), _:
            return replace(_volume_gone(world, volume_id, now), touched_at=now)
        case AwaitMachine(id=machine_id, state=state), WaitResult():
            reached = answer.state == state
            return _state(world, machine_id, state, now) if reached else _suspect(world, machine_id)
        case _:
            return _moved(world, action, now)


def _moved(world: World, action: Action, now: float) -> World:
    """A call that moves a machine from one state to the next."""
    match action:
        case StartMachine(id=machine_id):
            world = replace(world, start_asked_at=now, stop_asked_at=None, touched_at=now)
            return _state(world, machine_id, "starting", now)
        case StopMachine(id=machine_id):
            return replace(_state(_stop_asked(world, now), machine_id, "stopping", now), touched_at=now)
        case DeleteMachine(id=machine_id):
            return replace(_state(world, machine_id, "destroying", now), touched_at=now)
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
    stuck = stuck or (isinstance(error, errors.Capacity) and error.scope == "quota")
    failure = Failure(
        op=error.op,
        reason=Reason.WAITING_FOR_FLY if not_yet else reason(error.reason),
        message=_sentence(error),
        status=error.status,
        count=count,
        stuck=stuck,
        retry_after=error.retry_after if isinstance(error, errors.RateLimited) else None,
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
        case GetMachine() | AwaitMachine() | UpdateMachine() | StartMachine() | StopMachine() | DeleteMachine():
            since = (world.start_asked_at, world.quiet_since)
        case GetVolume():
            since = (world.touched_at or None,)
        case ExtendVolume() | DeleteVolume():
            since = ()
    return any(t is not None and now - t < YOUNG_SECONDS for t in since)


def _understood(world: World, action: Action, error: errors.FlyError, now: float) -> World | None:
    """Errors that are answers: they tell how the world is, so the planner can go on at once."""
    if _young(world, action, error, now):
        return None
    match action, error:
        case CreateApp(), errors.NameTaken():
            return replace(world, app_present=True, app_org=None, app_looked_at=now)
        case GetApp(), errors.Unauthorized(status=403) if world.app_present:
            return replace(world, app_org="another org", app_looked_at=now)
        case GetApp(), errors.NotFound():
            return replace(world, app_present=False, app_looked_at=now)
        case (
            (
                ListMachines()
                | ListVolumes()
                | DeleteApp()
                | ForgetToken()
                | SetToken()
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
        case ((GetMachine() | UpdateMachine() | StartMachine() | StopMachine() | DeleteMachine()), errors.NotFound()):
            return _gone(world, action.id, now)
        case AwaitMachine(id=machine_id), errors.NotFound():
            return _gone(world, machine_id, now)
        case AwaitMachine(id=machine_id), errors.NotYet():
            return _suspect(world, machine_id)
        case ((GetVolume(id=volume_id) | DeleteVolume(id=volume_id)), (errors.NotFound() | errors.VolumeMissing())):
            return _volume_gone(world, volume_id, now)
        case _:
            return None


def _doubted(world: World, action: Action, error: errors.FlyError, now: float) -> World:
    """What an error that is no answer leaves in doubt, so that the next turn looks before it acts."""
    unknown = error.effect == "unknown"
    match action:
        case CreateApp() if unknown:
            return replace(world, quiet_since=now)
        case CreateVolume() if unknown:
            return replace(world, born=False, volumes=None, empty_looks=(), quiet_since=now)
        case CreateVolume(region=region) if isinstance(error, errors.Capacity) and error.scope != "quota":
            return replace(world, refused_regions=(*world.refused_regions, region))
        case CreateMachine() if unknown:
            return replace(world, machines=None, quiet_since=now)
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
        case UpdateMachine() | StartMachine() | DeleteMachine() | AwaitMachine():
            return _suspect(world, action.id)
        case DeleteApp() if unknown:
            return replace(world, touched_at=now)
        case SetToken() if unknown:
            return replace(world, token_epoch=None)
        case _:
            return world


def _sentence(error: errors.FlyError) -> str:
    advice = f" {error.advice}" if error.advice else ""
    return f"Fly answered {error.op} with {error.status or 'no answer'}: {error.message}.{advice}"[:290]


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
    return _put_volume(world, replace(known, state="destroyed", deleted=True, seen_at=now))


def _machines_listed(world: World, seen: Iterable[MachineSight], now: float) -> World:
    """What the list leaves out isn't gone for that, what it shows of the dead may be old: each is looked at."""
    dead = {m.id for m in world.machines or () if m.gone}
    sights = {m.id: replace(m, suspect=m.id in dead and not m.gone) for m in seen}
    kept = [m if m.gone else replace(m, suspect=True) for m in world.machines or () if m.id not in sights]
    looks = (*world.machine_looks[-1:], now)
    machines = (*kept, *sights.values())
    return replace(world, app_present=True, machines=machines, machine_looks=looks)


def _volumes_listed(world: World, seen: Iterable[VolumeSight], volume_name: str, now: float) -> World:
    """A volume that is deleted stays so, whatever an old list shows."""
    deleted = {v.id for v in world.volumes or () if v.deleted}
    sights = {v.id: v for v in seen if v.id not in deleted}
    kept = [v for v in world.volumes or () if v.id not in sights]
    empty = all(v.name != volume_name or v.deleted for v in (*kept, *sights.values()))
    looks = (*world.empty_looks[-1:], now) if empty else ()
    return replace(world, app_present=True, volumes=(*kept, *sights.values()), volumes_listed_at=now, empty_looks=looks)
