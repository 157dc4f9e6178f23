"""Cleanup against the simulator, on virtual time: the order, the last looks, and what it does when something fails."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flysim.clock import Clock
from flysim.sim import Sim
from flysim.transport import SimTransport
from flysim.virtual import VirtualRunner
from flysim.world import Timing
from roost.agents.names import Names, derive
from roost.fly.client import Fly
from roost.housekeeping.cleanup import Cleanup, Outcome
from roost.housekeeping.findings import Finding, Here, Key, find
from roost.housekeeping.scan import look

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]
EPOCH = 1_800_000_000.0
TOKEN = "fm2_test"
HERE = Here("owner1", b"i" * 32, "cluster-1")
ADA: Key = ("team-a", "ada")
BOB: Key = ("team-a", "bob")


def names(key: Key) -> Names:
    return derive(HERE.identity, HERE.owner_id, *key)


@dataclass
class Place:
    """A simulated Fly, and a cluster in which nothing but `agents` exists."""

    sim: Sim
    fly: Fly
    agents: set[Key] = field(default_factory=set)
    said: list[Outcome] = field(default_factory=list)

    async def call(self, method: str, path: str, body: Any = None, query: dict[str, list[str]] | None = None) -> Any:
        content = json.dumps(body).encode() if body is not None else b""
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = await self.sim.handle(method, path, query or {}, headers, content)
        assert answer.status < 300, answer.body
        return json.loads(answer.body) if answer.body else None

    async def leaves(self, key: Key = ADA, *, running: bool = True) -> str:
        """What an Agent leaves when nobody takes it away: app, volume and machine; the machine's id."""
        mine = names(key)
        await self.call("POST", "/v1/apps", {"name": mine.app, "org_slug": "personal"})
        made = {"name": mine.volume, "region": "iad", "size_gb": 1}
        volume = await self.call("POST", f"/v1/apps/{mine.app}/volumes", made)
        machine: str = (await self.machine(key, volume["id"]))["id"]
        if not running:
            await self.call("POST", f"/v1/apps/{mine.app}/machines/{machine}/stop", {})
            await asyncio.sleep(5)
        return machine

    async def machine(self, key: Key, volume: str | None, **says: str) -> Any:
        metadata = {
            "roost_owner": HERE.owner_id,
            "roost_cluster": HERE.cluster,
            "roost_namespace": key[0],
            "roost_name": key[1],
            "roost_uid": "uid-1",
        } | says
        mounts = [{"volume": volume, "path": "/data"}] if volume else []
        config = {"image": "any", "metadata": metadata, "mounts": mounts}
        made = await self.call(
            "POST", f"/v1/apps/{names(key).app}/machines", {"name": names(key).machine(volume or ""), "config": config}
        )
        await asyncio.sleep(5)
        return made

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.sim.world.clock.now(), UTC)

    async def found(self, grace: timedelta = timedelta()) -> list[Finding]:
        sight = await look({"default": self.fly}, ("default", "personal"))
        assert not sight.problems
        secrets = {app.name: frozenset(await self.fly.list_secret_names(app.name)) for app in sight.apps}
        return find(HERE, [], ["team-a"], [sight], secrets, now=self.now(), grace=grace)

    async def cleans(self, findings: list[Finding] | None = None) -> dict[str, tuple[str, str]]:
        """What became of each kind of thing, and why; of the last one when there are several."""
        self.said.clear()

        async def exists(key: Key) -> bool:
            return key in self.agents

        wanted = await self.found() if findings is None else findings
        done = await Cleanup({"default": self.fly}, exists, self.said.append, self.now()).run(wanted)
        assert done == self.said, "each outcome is told as it comes"
        return {o.finding.kind: (o.outcome, o.message) for o in done}

    def happened(self) -> list[str]:
        gone = [line.get("event") or line.get("op") for line in self.sim.world.ledger.since(0)]
        return [word for word in gone if word in ("stop_machine", "delete_machine") or word.endswith("_destroyed")]

    async def left(self) -> tuple[int, int, int]:
        """How many apps, machines and volumes there are."""
        state = await self.call("GET", "/_sim/state")
        machines = [m for m in state["machines"] if m["state"] != "destroyed"]
        volumes = [v for v in state["volumes"] if "destroy" not in v["state"]]
        return len(state["apps"]), len(machines), len(volumes)

    async def fault(self, **order: Any) -> None:
        await self.call("POST", "/_sim/faults", order)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    sim = Sim(
        VirtualRunner(), Clock(EPOCH), random.Random(1), tokens=[TOKEN], timing=Timing(unbind=45), rate_limits=True
    )

    async def token() -> str:
        return TOKEN

    clock = asyncio.get_running_loop().time
    fly = Fly(token, lambda *_: None, base_url="http://fly", clock=clock, transport=SimTransport(sim))
    async with fly:
        yield Place(sim, fly)
    await sim.close()


async def test_all_of_it_goes_in_order_and_a_running_machine_is_stopped_first(place: Place) -> None:
    await place.leaves()
    assert set((await place.cleans()).values()) == {("deleted", "")}
    order = ["stop_machine", "machine_destroyed", "volume_destroyed", "app_destroyed"]
    assert [word for word in place.happened() if word != "delete_machine"] == order
    assert await place.left() == (0, 0, 0)


async def test_a_second_run_finds_nothing(place: Place) -> None:
    await place.leaves()
    await place.cleans()
    assert await place.cleans() == {}


async def test_an_agent_that_has_come_back_keeps_everything(place: Place) -> None:
    await place.leaves()
    listed = await place.found()
    place.agents.add(ADA)
    told = await place.cleans(listed)
    assert told["machine"] == ("failed", "Agent team-a/ada is there now")
    assert (told["volume"][0], told["app"][0]) == ("left", "left")
    assert (await place.left(), place.happened()) == ((1, 1, 1), [])


async def test_an_app_that_was_retained_meanwhile_is_kept(place: Place) -> None:
    await place.leaves()
    listed = await place.found()
    await place.call("POST", f"/v1/apps/{names(ADA).app}/secrets/ROOST_RETAINED", {"value": "true"})
    assert (await place.cleans(listed))["machine"] == ("failed", "its app is retained now")
    assert await place.left() == (1, 1, 1)


@pytest.mark.parametrize("change", ["started", "metadata"])
async def test_a_machine_that_has_changed_since_it_was_listed_is_left_alone(place: Place, change: str) -> None:
    machine = await place.leaves(running=False)
    listed = await place.found()
    path = f"/v1/apps/{names(ADA).app}/machines/{machine}"
    if change == "started":
        await place.call("POST", f"{path}/start")
        await asyncio.sleep(5)
    else:
        await place.call("POST", f"{path}/metadata/roost_cluster", {"value": "cluster-2"})
    assert "it has changed since it was listed" in (await place.cleans(listed))["machine"][1]
    assert await place.left() == (1, 1, 1)


async def test_a_volume_that_another_machine_holds_now_is_left_alone(place: Place) -> None:
    mine = names(ADA)
    await place.call("POST", "/v1/apps", {"name": mine.app, "org_slug": "personal"})
    made = {"name": mine.volume, "region": "iad", "size_gb": 1}
    volume = await place.call("POST", f"/v1/apps/{mine.app}/volumes", made)
    listed = await place.found()
    await place.machine(ADA, volume["id"])
    assert "holds it now" in (await place.cleans(listed))["volume"][1]
    assert await place.left() == (1, 1, 1)


async def test_what_fails_is_told_and_the_next_app_is_cleaned_all_the_same(place: Place) -> None:
    await place.leaves(ADA)
    await place.leaves(BOB)
    await place.fault(op="delete_machine", status=500, match={"app": names(ADA).app})
    await place.cleans()
    told = {(o.finding.agent[1], o.finding.kind): o.outcome for o in place.said}
    assert told == {
        ("ada", "machine"): "failed",
        ("ada", "volume"): "left",
        ("ada", "app"): "left",
        ("bob", "machine"): "deleted",
        ("bob", "volume"): "deleted",
        ("bob", "app"): "deleted",
    }
    assert await place.left() == (1, 1, 1)


@pytest.mark.parametrize("op", ["stop_machine", "delete_machine", "delete_volume", "delete_app"])
@pytest.mark.parametrize("where", ["after", "reply"])
async def test_a_lost_answer_is_followed_by_a_look(place: Place, op: str, where: str) -> None:
    await place.leaves()
    await place.fault(op=op, where=where, times=1, **({"status": 504} if where == "after" else {}))
    assert {outcome for outcome, _ in (await place.cleans()).values()} == {"deleted"}
    assert await place.left() == (0, 0, 0)


async def test_what_came_into_the_app_after_it_was_listed_keeps_the_app(place: Place) -> None:
    """A create that was still on its way when the machines were listed."""
    await place.leaves()
    listed = await place.found()
    late = await place.machine(ADA, None, roost_owner="somebody")
    told = await place.cleans(listed)
    assert (told["machine"][0], told["volume"][0]) == ("deleted", "deleted")
    assert told["app"] == ("failed", f"it holds {late['id']}, which would go with it")
    assert await place.left() == (1, 1, 0)


@pytest.mark.parametrize("holds", ["machine", "volume"])
async def test_lists_that_are_empty_by_mistake_do_not_delete_an_app(place: Place, holds: str) -> None:
    mine = names(ADA)
    await place.call("POST", "/v1/apps", {"name": mine.app, "org_slug": "personal"})
    (app,) = await place.found()
    if holds == "machine":
        await place.machine(ADA, None)
    else:
        await place.call("POST", f"/v1/apps/{mine.app}/volumes", {"name": "data", "region": "iad", "size_gb": 1})
    await place.call("POST", "/_sim/lists", {"empty": True})
    told = await place.cleans([app])
    assert told["app"] == ("failed", "Fly still counts machines or volumes in it; try again later")
    assert (await place.left())[0] == 1


async def test_a_machine_on_a_host_that_can_not_be_reached_is_left_alone(place: Place) -> None:
    await place.leaves()
    listed = await place.found()
    for host in await place.call("GET", "/_sim/hosts"):
        await place.call("POST", f"/_sim/hosts/{host['id']}", {"status": "dead"})
    assert (await place.cleans(listed))["machine"] == ("failed", "its host can't be reached; try again later")
    assert "delete_machine" not in place.happened()


async def test_a_running_machine_is_marked_left_and_gone_after_the_grace(place: Place) -> None:
    await place.leaves()
    week = timedelta(days=7)
    assert await place.cleans(await place.found(week)) == {"machine": ("marked", "")}
    assert await place.left() == (1, 1, 1)
    await asyncio.sleep(6 * 86400)
    assert await place.cleans(await place.found(week)) == {}, "it was marked, and its time has not come"
    await asyncio.sleep(2 * 86400)
    assert {outcome for outcome, _ in (await place.cleans(await place.found(week))).values()} == {"deleted"}
    assert await place.left() == (0, 0, 0)


async def test_things_that_are_gone_by_themselves_count_as_deleted(place: Place) -> None:
    await place.leaves()
    listed = await place.found()
    await place.call("DELETE", f"/v1/apps/{names(ADA).app}", query={"force": ["true"]})
    await asyncio.sleep(5)
    assert {outcome for outcome, _ in (await place.cleans(listed)).values()} == {"deleted"}
