"""Machine metadata: part of the config, but changed without a new version, a restart or a lease."""

from collections.abc import Mapping

from flysim import errors, requests
from flysim.call import Answer, Call, answer
from flysim.records import Machine
from flysim.requests import PatchMetadata, SetValue
from flysim.world import World


class Metadata:
    """The calls on `…/machines/{machine}/metadata`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def get_metadata(self, call: Call) -> Answer:
        machine = self._world.machine(call.params["app"], call.params["machine"])
        metadata = _of(machine)
        if (key := call.params.get("key")) is None:
            return answer(200, metadata)
        if key not in metadata:
            raise errors.metadata_not_found()
        return answer(200, {"value": metadata[key]})

    async def patch_metadata(self, call: Call) -> Answer:
        """Null and "" delete a key; keys that are not named stay."""
        machine = self._world.living_machine(call.params["app"], call.params["machine"])
        body = requests.read(PatchMetadata, call.body)
        if body.machine_version and body.machine_version != machine.version:
            raise errors.metadata_version_mismatch()
        self._change(machine, body.metadata, call)
        return answer(204)

    async def set_metadata(self, call: Call) -> Answer:
        machine = self._world.living_machine(call.params["app"], call.params["machine"])
        self._change(machine, {call.params["key"]: requests.read(SetValue, call.body).value}, call)
        return answer(204)

    async def delete_metadata(self, call: Call) -> Answer:
        machine = self._world.living_machine(call.params["app"], call.params["machine"])
        self._change(machine, {call.params["key"]: None}, call)
        return answer(204)

    def _change(self, machine: Machine, values: Mapping[str, str | None], call: Call) -> None:
        metadata = _of(machine) | {key: value for key, value in values.items() if value}
        for key, value in values.items():
            if not value:
                metadata.pop(key, None)
        machine.shown = machine.shown | {"metadata": metadata}
        machine.config = machine.config.model_copy(update={"metadata": metadata})
        self._world.touch(machine)
        call.effect = "metadata set"
        detail = {"metadata": metadata}
        self._world.ledger.event("metadata_set", app=machine.app.name, machine=machine.id, detail=detail)


def _of(machine: Machine) -> dict[str, str]:
    return dict(machine.config.metadata)
