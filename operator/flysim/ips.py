"""IP addresses of apps, by which the public reaches them. Nothing listens there; the edge asks whether there is one.

All addresses come from the ranges that are set aside for benchmarks and documentation (RFC 2544, 3849, 5737) or, for
private ones, from Fly's own private range.
"""

from flysim import errors, requests
from flysim.call import Answer, Call, answer
from flysim.records import IpAssignment, ip_json
from flysim.requests import AssignIp
from flysim.world import World

_TYPES = frozenset({"v4", "v6", "shared_v4", "private_v6"})
_EGRESS = frozenset({"egress_v4", "egress_v6", "egress_pair"})
_SHARED = "192.0.2.1"


class Ips:
    """The calls on `/v1/apps/{app}/ip_assignments`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def list_ips(self, call: Call) -> Answer:
        return answer(200, {"ips": [ip_json(entry) for entry in self._world.app(call.params["app"]).ips]})

    async def assign_ip(self, call: Call) -> Answer:
        """An app may have several v4 addresses, and one of each other type (of private_v6: one in each network)."""
        app = self._world.living_app(call.params["app"])
        body = requests.read(AssignIp, call.body)
        if body.type in _EGRESS:
            raise errors.not_simulated("egress addresses")
        if body.type not in _TYPES:
            raise errors.invalid(f"type: {body.type!r} is not one of {', '.join(sorted(_TYPES | _EGRESS))}")
        if body.type != "v4" and any((ip.type, ip.network) == (body.type, body.network) for ip in app.ips):
            raise errors.ip_taken(body.type)
        ip = IpAssignment(
            ip=self._ip(body.type),
            type=body.type,
            region=body.region or "global",
            service_name=body.service_name,
            network=body.network,
            created_at=self._world.clock.now(),
        )
        app.ips.append(ip)
        call.effect = "ip assigned"
        self._world.ledger.event("ip_assigned", app=app.name, detail={"ip": ip.ip, "type": ip.type})
        return answer(200, ip_json(ip))

    async def release_ip(self, call: Call) -> Answer:
        app = self._world.living_app(call.params["app"])
        for ip in app.ips:
            if ip.ip == call.params["ip"]:
                app.ips.remove(ip)
                call.effect = "ip released"
                self._world.ledger.event("ip_released", app=app.name, detail={"ip": ip.ip, "type": ip.type})
                return answer(204)
        raise errors.ip_not_found()

    def _ip(self, kind: str) -> str:
        ids = self._world.ids
        match kind:
            case "shared_v4":
                return _SHARED
            case "v4":
                return f"198.18.{ids.byte()}.{ids.byte()}"
            case "v6":
                return f"2001:db8::{ids.zone()}:{ids.zone()}"
            case _:
                return ids.private_ip()
