"""Who is a member of a Fleet: what the reconcile reads from the cache before the planner thinks. No call is made."""

import asyncio
from typing import Any

import pytest

from roost.engine.engine import GONE, News
from roost.engine.queue import Turn
from roost.fleets.plan import FleetView
from roost.fleets.reconcile import Fleets
from roost.kube.client import Kube
from roost.kube.cluster import Cluster
from roost.kube.events import Recorder
from roost.kube.objects import Objects
from roost.kube.records import Cache, Key, Record, record
from roost.telemetry.metrics import Metrics

FLEET_UID = "fleet-uid"


def stored(kind: str, name: str, uid: str, **other: Any) -> Record:
    """An object as the API server holds it."""
    metadata = {
        "namespace": "team-a",
        "name": name,
        "uid": uid,
        "resourceVersion": "5",
        "generation": 1,
        "creationTimestamp": "2026-11-21T10:00:00Z",
    }
    body: dict[str, Any] = {"kind": kind, "metadata": metadata | other.pop("metadata", {}), "spec": {}, "status": {}}
    return record(body | other)


def a_fleet(**spec: Any) -> Record:
    template = {"spec": {"runtime": {"kind": "Command", "command": ["true"]}}}
    return stored("Fleet", "support", FLEET_UID, spec={"template": template} | spec)


def a_member(ordinal: int, *, ready: bool = True, **metadata: Any) -> Record:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    owner = {"kind": "Fleet", "name": "support", "uid": FLEET_UID, "controller": True}
    labels = {"roost.dev/fleet": "support", "roost.dev/ordinal": str(ordinal), "roost.dev/revision": "support-x"}
    return stored(
        "Agent",
        f"support-{ordinal}",
        f"uid-{ordinal}",
        metadata={"ownerReferences": [owner], "labels": labels} | metadata,
        status={"observedGeneration": 1, "phase": "Running", "conditions": conditions},
    )


def a_strangers_agent(name: str) -> Record:
    return stored("Agent", name, f"stranger-{name}")


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def fleets(cache: Cache) -> Fleets:
    metrics = Metrics()
    kube = Kube(Cluster("http://127.0.0.1:9", None), metrics)
    recorder = Recorder(kube, lambda: 0.0, "test")
    return Fleets(kube, Objects(kube, cache, metrics), cache, recorder, metrics, lambda _key: None)


async def view_of(fleets: Fleets, found: Record) -> FleetView:
    return fleets._view(found, fleets._memory(found))


async def test_its_members_are_those_it_controls_in_the_order_of_their_ordinals(fleets: Fleets, cache: Cache) -> None:
    for ordinal in (10, 2, 0):
        cache.put(a_member(ordinal))
    view = await view_of(fleets, a_fleet(replicas=3))
    assert [m.name for m in view.members] == ["support-0", "support-2", "support-10"]
    assert all(m.ready and m.revision == "support-x" and m.version == "5" for m in view.members)


async def test_a_member_keeps_its_place_when_somebody_takes_its_labels_away(fleets: Fleets, cache: Cache) -> None:
    """Otherwise it would be neither counted, nor updated, nor removed, and stand in its own way."""
    cache.put(a_member(0, labels={}))
    view = await view_of(fleets, a_fleet(replicas=1))
    assert [(m.name, m.ordinal, m.revision) for m in view.members] == [("support-0", 0, "")]
    assert view.taken == frozenset()


@pytest.mark.parametrize("name", ["support-x", "support-", "support-01", "support-٣", "other-0", "support-1-0"])
async def test_what_it_owns_under_another_kind_of_name_is_no_member(fleets: Fleets, cache: Cache, name: str) -> None:
    owner = {"kind": "Fleet", "name": "support", "uid": FLEET_UID, "controller": True}
    labels = {"roost.dev/ordinal": name.removeprefix("support-")}
    cache.put(stored("Agent", name, "odd", metadata={"ownerReferences": [owner], "labels": labels}))
    assert (await view_of(fleets, a_fleet(replicas=1))).members == ()


async def test_an_agent_of_a_members_name_that_it_does_not_control_is_taken(fleets: Fleets, cache: Cache) -> None:
    cache.put(a_strangers_agent("support-1"))
    cache.put(a_strangers_agent("support-7"))
    view = await view_of(fleets, a_fleet(replicas=3))
    assert view.members == ()
    assert view.taken == {"support-1"}


async def test_without_replicas_too_a_strangers_agent_in_a_gap_is_taken(fleets: Fleets, cache: Cache) -> None:
    """Taken for free it would be applied by force, and become a member with its owner's spec overwritten."""
    for found in (a_member(0), a_strangers_agent("support-1"), a_member(2)):
        cache.put(found)
    assert (await view_of(fleets, a_fleet())).taken == {"support-1"}


async def test_ready_of_an_older_generation_is_not_ready(fleets: Fleets, cache: Cache) -> None:
    cache.put(a_member(0, generation=2))
    assert not (await view_of(fleets, a_fleet(replicas=1))).members[0].ready


async def test_a_member_on_its_way_out_is_not_ready_whatever_its_status_says(fleets: Fleets, cache: Cache) -> None:
    cache.put(a_member(0, deletionTimestamp="2026-11-21T10:00:00Z"))
    found = (await view_of(fleets, a_fleet(replicas=1))).members[0]
    assert found.deleting
    assert not found.ready


async def test_the_revision_follows_the_template_and_nothing_else(fleets: Fleets) -> None:
    one, scaled = await view_of(fleets, a_fleet(replicas=1)), await view_of(fleets, a_fleet(replicas=5))
    other = await view_of(fleets, a_fleet(replicas=1, template={"spec": {"runtime": {"kind": "Command"}}}))
    assert one.revision == scaled.revision
    assert one.revision != other.revision


async def test_a_fleet_made_again_under_its_name_has_none_of_its_predecessors_members(
    fleets: Fleets, cache: Cache
) -> None:
    cache.put(a_member(0))
    again = stored("Fleet", "support", "another-uid", spec=dict(a_fleet(replicas=1).spec))
    view = await view_of(fleets, again)
    assert view.members == ()
    assert view.taken == {"support-0"}


async def test_a_fleet_that_is_gone_is_forgotten(fleets: Fleets) -> None:
    key = Key("Fleet", "team-a", "support")
    await view_of(fleets, a_fleet())
    assert fleets._memories

    assert await fleets.reconcile(key, News(Turn(key, 0.0), asyncio.Event())) == GONE
    assert not fleets._memories
