"""Performs the planner's actions: each is one call at one boundary, and its answer is handed to `fold` as it is."""

from roost.agents import machine_config
from roost.agents.fold import Answer
from roost.agents.view import (
    Action,
    AgentView,
    AwaitMachine,
    CreateApp,
    CreateMachine,
    CreateVolume,
    DeleteApp,
    DeleteMachine,
    DeleteVolume,
    ExtendVolume,
    ForgetToken,
    GetApp,
    GetMachine,
    GetVolume,
    ListMachines,
    ListVolumes,
    ReleaseFinalizer,
    SetToken,
    StartMachine,
    StopMachine,
    StoreFinalizer,
    UpdateMachine,
)
from roost.fly.client import Fly


async def perform(fly: Fly, view: AgentView, action: Action, token: str) -> Answer:  # noqa: C901 - one case per action
    """One call to Fly for this Agent.

    Raises:
        FlyError: the call did not succeed; its `effect` says whether it may have done something all the same.
    """
    app, place = view.place.app, view.place
    match action:
        case CreateApp():
            return await fly.create_app(app, place.org, place.network)
        case GetApp():
            return await fly.get_app(app)
        case DeleteApp():
            await fly.delete_app(app)
        case SetToken():
            return await fly.set_secrets(app, {machine_config.token_secret(view): token})
        case ForgetToken():
            await fly.set_secrets(app, {machine_config.token_secret(view): None})
        case ListMachines():
            return await fly.list_machines(app)
        case GetMachine(id=machine):
            return await fly.get_machine(app, machine)
        case CreateMachine(name=name, region=region, volume_id=volume):
            config = machine_config.render(view, volume)
            return await fly.create_machine(app, name, region, config, min_secrets_version=view.world.secrets_version)
        case UpdateMachine(id=machine, version=version, volume_id=volume):
            config = machine_config.render(view, volume)
            return await fly.update_machine(
                app, machine, config, version, min_secrets_version=view.world.secrets_version
            )
        case StartMachine(id=machine):
            await fly.start_machine(app, machine)
        case StopMachine(id=machine):
            seconds = view.declared.spec.machine.stop_timeout_seconds
            await fly.stop_machine(app, machine, signal="SIGTERM", timeout_seconds=seconds)
        case DeleteMachine(id=machine):
            await fly.delete_machine(app, machine, force=True)
        case AwaitMachine(id=machine, state=state, version=wanted, seconds=seconds):
            states = (state, "failed") if state == "started" else (state,)
            return await fly.wait_machine(app, machine, states, version=wanted, timeout_seconds=seconds)
        case ListVolumes():
            return await fly.list_volumes(app)
        case GetVolume(id=volume):
            return await fly.get_volume(app, volume)
        case CreateVolume(region=region):
            return await fly.create_volume(app, view.names.volume, region, view.declared.spec.volume.size_gb)
        case ExtendVolume(id=volume, size_gb=size):
            return await fly.extend_volume(app, volume, size)
        case DeleteVolume(id=volume):
            await fly.delete_volume(app, volume)
        case StoreFinalizer() | ReleaseFinalizer():
            raise AssertionError("finalizers are not Fly's")
    return None
