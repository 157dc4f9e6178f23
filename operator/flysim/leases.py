"""Leases: a short claim on a machine, against which other callers' changes are refused."""

import hashlib
import math

from flysim import errors, requests
from flysim.call import Answer, Call, answer
from flysim.records import Lease, Machine, lease_json
from flysim.requests import AcquireLease
from flysim.world import World

NONCE = "fly-machine-lease-nonce"
_DEFAULT_TTL = 30


class Leases:
    """The calls on `…/machines/{machine}/lease`, and the guard of all calls that a lease holds off."""

    def __init__(self, world: World) -> None:
        self._world = world

    def held(self, machine: Machine) -> Lease | None:
        """The machine's lease, unless it has run out."""
        lease = machine.lease
        return lease if lease is not None and self._world.clock.now() < lease.expires_at else None

    def guard(self, machine: Machine, call: Call) -> None:
        """Lets only the holder of a lease pass. Raises Refusal (409)."""
        lease = self.held(machine)
        if lease is not None and call.headers.get(NONCE) != lease.nonce:
            raise errors.leased(machine.id, lease.owner, lease.expires_at)

    def grant(self, machine: Machine, call: Call, ttl: int, description: str = "") -> Lease:
        """Gives the caller a new lease of `ttl` seconds, whoever held one before."""
        lease = Lease(self._world.ids.nonce(), self._expiry(ttl), _owner(call), description, machine.version)
        machine.lease = lease
        return lease

    async def acquire_lease(self, call: Call) -> Answer:
        """With the nonce of the lease in force, that lease is prolonged."""
        machine = self._world.living_machine(call.params["app"], call.params["machine"])
        body = requests.read(AcquireLease, call.body)
        ttl = body.ttl if body.ttl is not None else requests.number(call.query, "ttl")
        ttl = _DEFAULT_TTL if ttl is None else ttl
        if ttl < 1:
            raise errors.invalid("ttl: value must be greater than 0")
        lease, nonce = self.held(machine), call.headers.get(NONCE)
        if lease is not None and nonce != lease.nonce:
            raise errors.lease_held(machine.id, lease.owner, lease.expires_at)
        if lease is None and nonce is not None:
            raise errors.lease_not_found()
        if lease is None:
            lease, call.effect = self.grant(machine, call, ttl, body.description), "lease acquired"
        else:
            description = body.description or lease.description
            lease = Lease(lease.nonce, self._expiry(ttl), lease.owner, description, machine.version)
            machine.lease, call.effect = lease, "lease refreshed"
        return answer(201, {"status": "success", "data": lease_json(lease)})

    async def get_lease(self, call: Call) -> Answer:
        lease = self.held(self._world.machine(call.params["app"], call.params["machine"]))
        if lease is None:
            raise errors.lease_not_found()
        return answer(200, {"status": "success", "data": lease_json(lease)})

    async def release_lease(self, call: Call) -> Answer:
        machine = self._world.machine(call.params["app"], call.params["machine"])
        if (lease := self.held(machine)) is None:
            raise errors.lease_not_found()
        if call.headers.get(NONCE) != lease.nonce:
            raise errors.lease_held(machine.id, lease.owner, lease.expires_at)
        machine.lease, call.effect = None, "lease released"
        return answer(200, {"status": "success", "data": {"ok": True}})

    def _expiry(self, ttl: int) -> int:
        return math.ceil(self._world.clock.now() + ttl)


def _owner(call: Call) -> str:
    """Who the caller is to others: told from other tokens, without telling the token."""
    return f"{hashlib.sha256(call.token.encode()).hexdigest()[:12]}@tokens.fly.io"
