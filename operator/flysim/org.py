"""What an org has, over all its apps: what is behind the truth, and leaves out regions that can't be read."""

from flysim import errors, paging, requests
from flysim.call import Answer, Call, answer
from flysim.clock import parse_rfc3339, rfc3339_fine
from flysim.machines import matches
from flysim.records import org_machine_json, org_volume_json
from flysim.world import World

_PAGE = 1000


class Org:
    """The calls on `/v1/orgs/{org}`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def org_machines(self, call: Call) -> Answer:
        """In the order of their last change, so that a row that changes between pages comes twice and is never lost."""
        slug = call.params["org"]
        self._world.require_org(slug)
        since = _updated_after(call)
        machines = [
            machine
            for machine in self._world.lists.readable(self._world.machines.values())
            if machine.app.org == slug and machine.updated_at > since and matches(machine, call.query)
        ]
        shown, cursor = paging.page(
            machines,
            lambda m: (m.updated_at, m.id),
            call.query,
            now=self._world.clock.now(),
            most=_PAGE,
            always=True,
        )
        summary = requests.flag(call.query, "summary")
        last = shown[-1] if shown else None
        return answer(
            200,
            {
                "machines": [org_machine_json(machine, summary=summary) for machine in shown],
                "next_cursor": cursor,
                "last_machine_id": last.id if last is not None else "",
                "last_updated_at": rfc3339_fine(last.updated_at) if last is not None else "",
                "error_regions": self._world.lists.error_regions,
            },
        )

    async def org_volumes(self, call: Call) -> Answer:
        """Deleted ones only when they are asked for."""
        slug = call.params["org"]
        self._world.require_org(slug)
        since, deleted = _updated_after(call), requests.flag(call.query, "include_deleted")
        places, states = requests.words(call.query, "region"), requests.words(call.query, "state")
        volumes = [
            volume
            for volume in self._world.lists.readable(self._world.volumes.values())
            if volume.app.org == slug
            and volume.updated_at > since
            and (volume.deleted_at is None or deleted)
            and (not places or volume.region in places)
            and (not states or volume.state in states)
        ]
        shown, cursor = paging.page(
            volumes,
            lambda v: (v.updated_at, v.id),
            call.query,
            now=self._world.clock.now(),
            most=_PAGE,
            always=True,
        )
        last = shown[-1] if shown else None
        return answer(
            200,
            {
                "volumes": [org_volume_json(volume) for volume in shown],
                "next_cursor": cursor,
                "last_volume_id": last.id if last is not None else "",
                "last_updated_at": rfc3339_fine(last.updated_at) if last is not None else "",
                "error_regions": self._world.lists.error_regions,
            },
        )


def _updated_after(call: Call) -> float:
    if not (text := requests.last(call.query, "updated_after")):
        return float("-inf")
    if (moment := parse_rfc3339(text)) is None:
        raise errors.invalid(f"updated_after: {text!r} is not an RFC 3339 time")
    return moment
