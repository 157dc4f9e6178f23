"""The simulator's own side (`/_sim/…`): looking behind the API, breaking things on purpose, ordering failures.

No token is asked for; whoever reaches the door may do everything, so the door belongs on loopback. No secret's value
is shown.
"""

import signal as signals
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flysim import requests
from flysim.call import Answer, answer
from flysim.errors import Refusal
from flysim.faults import Fault, Faults, Order, wrong
from flysim.hardware import Hardware, NoSuchThingError, read
from flysim.life import Life
from flysim.oidc import Oidc
from flysim.records import JSON, App, Machine, app_json, machine_json, org_volume_json, secret_json
from flysim.requests import Query
from flysim.runner import Runner
from flysim.world import World


class _Kill(BaseModel):
    model_config = ConfigDict(extra="forbid")
    signal: int = Field(default=int(signals.SIGKILL), ge=1, lt=int(signals.NSIG))


class _Tokens(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tokens: list[str]


class _Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    overlap_seconds: float = Field(default=600.0, ge=0)


class Admin:
    """Answers what comes to `/_sim/…`."""

    def __init__(
        self,
        world: World,
        life: Life,
        runner: Runner,
        faults: Faults,
        replace_tokens: Callable[[Iterable[str]], None],
        oidc: Oidc,
        hardware: Hardware,
    ) -> None:
        self._world = world
        self._life = life
        self._runner = runner
        self._faults = faults
        self._replace_tokens = replace_tokens
        self._oidc = oidc
        self._hardware = hardware

    async def handle(self, method: str, path: str, query: Query, body: bytes) -> Answer:
        """Never raises; what it does not know is 404, what it does not understand 400."""
        try:
            return answer(200, await self._handle(method, path.removeprefix("/_sim/").split("/"), query, body))
        except NoSuchThingError as error:
            return answer(404, {"error": str(error)})
        except ValidationError as error:
            return answer(400, {"error": wrong(error)})
        except (ValueError, OSError, Refusal) as error:
            return answer(400, {"error": str(error)})

    async def _handle(self, method: str, parts: list[str], query: Query, body: bytes) -> Any:
        match method, parts:
            case "GET", ["machines"]:
                return [self._machine(m) for m in self._world.machines.values() if m.state != "destroyed"]
            case "POST", ["machines", machine_id, "kill"]:
                return self._kill(machine_id, read(_Kill, body))
            case "GET", ["state"]:
                return self._state()
            case "GET", ["ledger"]:
                return self._world.ledger.since(requests.number(query, "since") or 0)
            case "GET", ["faults"]:
                return [_fault(fault) for fault in self._faults.all()]
            case "POST", ["faults"]:
                return {"id": self._faults.add(read(Order, body)).id}
            case "DELETE", ["faults", *rest] if len(rest) < 2:
                return self._remove_fault(rest[0] if rest else None)
            case "POST", ["tokens"]:
                tokens = read(_Tokens, body).tokens
                self._replace_tokens(tokens)
                return {"tokens": len(set(tokens))}
            case "POST", ["oidc", "rotate"]:
                return {"kid": self._oidc.rotate(read(_Rotation, body).overlap_seconds)}
            case _:
                return await self._hardware.handle(method, parts, body)

    def _kill(self, machine_id: str, order: _Kill) -> JSON:
        machine = self._world.machines.get(machine_id)
        if machine is None or machine.boot is None:
            raise NoSuchThingError(f"machine {machine_id} does not run")
        pid = machine.boot.instance.pid
        self._life.signal(machine, order.signal)
        return {"pid": pid, "signal": order.signal}

    def _remove_fault(self, fault_id: str | None) -> JSON:
        if not self._faults.remove(fault_id):
            raise NoSuchThingError(f"there is no fault {fault_id}")
        return {"ok": True}

    def _machine(self, machine: Machine) -> JSON:
        volume = self._runner.volume_path(machine.volume.id) if machine.volume is not None else None
        log = self._runner.log_path(machine.id)
        return {
            "id": machine.id,
            "app": machine.app.name,
            "name": machine.name,
            "state": machine.state,
            "pid": machine.boot.instance.pid if machine.boot is not None else None,
            "address": machine.address,
            "log": str(log) if log is not None else None,
            "volume_dir": str(volume) if volume is not None else None,
        }

    def _state(self) -> JSON:
        world = self._world
        return {
            "now": world.clock.now(),
            "orgs": list(world.orgs),
            "apps": [_app(app) for app in world.apps.values()],
            "machines": [machine_json(m) | self._machine(m) for m in world.machines.values()],
            "volumes": [org_volume_json(volume) for volume in world.volumes.values()],
            "faults": [_fault(fault) for fault in self._faults.all()],
        }


def _app(app: App) -> JSON:
    names = [secret_json(app.secrets[name]) for name in sorted(app.secrets)]
    return app_json(app) | {"deleting": app.deleting, "secrets_version": app.secrets_version, "secrets": names}


def _fault(fault: Fault) -> JSON:
    return {"id": fault.id, "seen": fault.seen, "used": fault.used, "spent": fault.spent} | fault.order.model_dump()
