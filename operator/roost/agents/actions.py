"""Performs the planner's actions: each is one call at one boundary, and its answer is handed to `fold` as it is."""

from roost.agents import machine_config
from roost.agents.fold import Answer
from roost.agents.view import (
    Action,
    AgentView,
    AskRoom,
    AssignAddress,
    AwaitMachine,
    CreateApp,
    CreateMachine,
    CreateSnapshot,
    CreateVolume,
    DeleteApp,
    DeleteMachine,
    DeleteVolume,
    ExtendVolume,
    ForgetToken,
    GetApp,
    GetMachine,
    GetVolume,
    KeepSnapshots,
    ListMachines,
    ListSnapshots,
    ListVolumes,
    MarkRetained,
    ReleaseFinalizer,
    RestartMachine,
    SetToken,
    StampMachine,
    StartMachine,
    StopMachine,
    StoreFinalizer,
    SuspendMachine,
    UpdateMachine,
)
from roost.fly.client import Fly


async def perform(fly: Fly, view: AgentView, action: Action, token: str) -> Answer:  # noqa: C901 - one case per action
    """One call to Fly for this Agent.

    Raises:
        FlyError: the call did not succeed; its `effect` says whether it may have done something all the same.
    """
    app, place, spec = view.place.app, view.place, view.declared.spec
    secrets = view.world.secrets_version
    match action:
        case CreateApp():
            return await fly.create_app(app, place.org, place.network)
        case GetApp():
            return await fly.get_app(app)
        case DeleteApp():
            await fly.delete_app(app)
        case SetToken():
            values: dict[str, str | None] = {machine_config.token_secret(view): token}
            if not view.world.born:  # it may be one that was kept
                values[machine_config.RETAINED] = None
            return await fly.set_secrets(app, values)
        case ForgetToken():
            gone = [machine_config.token_secret(view)]
            if spec.fly.app_strategy == "PerAgent":  # it may be one that was kept
                gone.append(machine_config.RETAINED)
            await fly.set_secrets(app, dict.fromkeys(gone))
        case MarkRetained():
            await fly.set_secrets(app, {machine_config.RETAINED: "true"})
        case AssignAddress(kind=kind):
            await fly.assign_ip(app, kind)
        case AskRoom(region=region):
            return await fly.placements(place.org, [region], machine_config.guest(view))
        case ListMachines():
            return await fly.list_machines(app)
        case GetMachine(id=machine):
            return await fly.get_machine(app, machine)
        case CreateMachine(name=name, region=region, volume_id=volume):
            config = machine_config.render(view, volume)
            return await fly.create_machine(app, name, region, config, min_secrets_version=secrets)
        case UpdateMachine(id=machine, version=version, volume_id=volume, launch=launch):
            config = machine_config.render(view, volume)
            return await fly.update_machine(
                app, machine, config, version, min_secrets_version=secrets, skip_launch=not launch
            )
        case StampMachine(id=machine, version=version, metadata=metadata):
            await fly.patch_metadata(app, machine, dict(metadata), machine_version=version)
        case StartMachine(id=machine):
            await fly.start_machine(app, machine)
        case StopMachine(id=machine):
            seconds = spec.machine.stop_timeout_seconds
            await fly.stop_machine(app, machine, signal="SIGTERM", timeout_seconds=seconds)
        case SuspendMachine(id=machine):
            await fly.suspend_machine(app, machine)
        case RestartMachine(id=machine):
            seconds = spec.machine.stop_timeout_seconds
            await fly.restart_machine(app, machine, timeout_seconds=seconds)
        case DeleteMachine(id=machine):
            await fly.delete_machine(app, machine, force=True)
        case AwaitMachine(id=machine, state=state, version=wanted, seconds=seconds):
            states = (state, "failed") if state == "started" else (state,)
            return await fly.wait_machine(app, machine, states, version=wanted, timeout_seconds=seconds)
        case ListVolumes():
            return await fly.list_volumes(app)
        case GetVolume(id=volume):
            return await fly.get_volume(app, volume)
        case CreateVolume(region=region, serial=serial, snapshot=snapshot, fork=fork, size_gb=size, restores=restores):
            return await fly.create_volume(
                app,
                view.names.volume_of(serial, restores),
                region,
                None if fork else size or spec.volume.size_gb,
                snapshot_retention_days=spec.volume.snapshot_retention_days,
                snapshot_id=snapshot,
                source_volume_id=fork,
                compute=machine_config.guest(view),
            )
        case ExtendVolume(id=volume, size_gb=size):
            return await fly.extend_volume(app, volume, size)
        case KeepSnapshots(id=volume, days=days):
            await fly.update_volume(app, volume, snapshot_retention_days=days)
        case DeleteVolume(id=volume):
            await fly.delete_volume(app, volume)
        case ListSnapshots(app=its_app, volume_id=volume):
            return await fly.list_snapshots(its_app, volume)
        case CreateSnapshot(app=its_app, volume_id=volume):
            await fly.create_snapshot(its_app, volume)
        case StoreFinalizer() | ReleaseFinalizer():
            raise AssertionError("finalizers are not Fly's")
    return None
