"""What the platform offers, and what it would have room for. Answers are in PascalCase, as Fly's are."""

from flysim import errors, machine_config, regions, requests
from flysim.call import Answer, Call, answer
from flysim.requests import GetPlacements, Guest
from flysim.world import World

_USUAL = {"cpu_kind": "performance"}
"""The guest that is placed when the call names none."""


class Platform:
    """The calls on `/v1/platform`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def platform_regions(self, call: Call) -> Answer:  # noqa: ARG002 - handlers have one form
        return answer(200, {"Regions": regions.rows(), "Nearest": regions.NEAREST})

    async def platform_placements(self, call: Call) -> Answer:
        """Where so many machines would go, from the first region on; without a count, how many each region takes."""
        body = requests.read(GetPlacements, call.body)
        if not body.org_slug:
            raise errors.org_missing()
        self._world.require_org(body.org_slug)
        if body.count < 0:
            raise errors.invalid("count: value must be greater than or equal to 0")
        guest = machine_config.guest(body.compute or _USUAL)
        rows = []
        left = body.count
        for region in regions.resolve(body.region or f"{regions.NEAREST},any"):
            room = self._room(body.org_slug, region, guest)
            placed = min(room, left) if body.count else room
            left -= placed
            if placed:
                rows.append({"Region": region, "Count": placed, "Concurrency": placed})
        return answer(200, {"Regions": rows})

    def _room(self, org: str, region: str, guest: Guest) -> int:
        room = self._world.hosts.room(region, guest)
        quota = self._world.quotas.memory_mb.get((org, region))
        if quota is None:
            return room
        return max(0, min(room, (quota - self._world.memory_used(org, region)) // guest.memory_mb))
