"""The store double answers what the real API server answers: step by step, and in whole stories."""

import asyncio
import math
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mirror import Mirror

from faults import sweep
from faults.catalogue import swept
from faults.stories import STORIES
from flysim.clock import Clock
from operator_world import COMMAND, EPOCH, Inmate, World, operator_world
from roost.kube.client import Conflict, Gone, KubeError, Unreachable, collection, core_secret
from store import NAMESPACE, Call, Where, path_of

REVISIONS = f"/apis/apps/v1/namespaces/{NAMESPACE}/controllerrevisions"
MakeMirror = Callable[[Clock], Mirror]
MIRRORED_SHARE = 0.05
"""Of each story's faults."""
Story = Callable[[World], Awaitable[None]]


@pytest.fixture(scope="module")
def namespaces(admin: httpx.Client) -> Iterator[dict[str, str]]:
    """Two namespaces of the real API server, which stand for the store's."""
    there = {ours: f"mirror-{secrets.token_hex(4)}" for ours in (NAMESPACE, "roost-system")}
    for name in there.values():
        admin.post("/api/v1/namespaces", json={"metadata": {"name": name}}).raise_for_status()
    yield there
    for name in there.values():
        admin.delete(f"/api/v1/namespaces/{name}").raise_for_status()


@pytest.fixture
def mirrors(admin: httpx.Client, namespaces: dict[str, str]) -> Iterator[MakeMirror]:
    """Makes stores that are held against the real API server; what they left there is removed afterwards."""
    made: list[Mirror] = []

    def make(clock: Clock) -> Mirror:
        if made:
            made[-1].clear()  # its world is over
        made.append(Mirror(clock, admin, namespaces))
        return made[-1]

    yield make
    made[-1].clear()
    assert [difference for mirror in made for difference in mirror.differences[:3]] == []


# --- Whole stories -----------------------------------------------------------------------------------------------


async def life(world: World) -> None:
    """Made, stopped, its status wiped, started, its finalizer torn off, deleted."""
    await world.apply("ada", machine={"public": "Gateway"})
    await world.until_phase("ada", "Running", 900)
    await world.edit("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped", 900)
    world.store.wipe_status("ada")
    await world.edit("ada", desiredState="Running")
    await world.until_phase("ada", "Running", 900)
    world.store.change("Agent", "ada", {"finalizers": None})
    await world.annotate("ada", reconcile_at="1")
    await world.settle(5)
    await world.delete("ada")
    await world.until_gone("ada", 900)


async def losses(world: World) -> None:
    """What it says of itself changes; its machine is lost; another is made from its snapshot."""
    await world.apply("ada", idle={"afterSeconds": 120, "action": "Stop", "allowDeaf": True})
    await world.until_phase("ada", "Running", 900)
    world.inmates["ada"].degraded = ("gateway",)
    await world.settle(60)
    world.inmates["ada"].degraded = ()
    await world.until_phase("ada", "Running", 900)
    await world.admin("DELETE", f"machines/{world.machine('ada').id}")
    await world.settle(60)
    await world.until_phase("ada", "Running", 900)
    await world.apply("bob", volume={"restoreFrom": {"agent": "ada"}})
    await world.until_phase("bob", "Running", 900)
    world.store.apply("Agent", "bob", world.body("bob")["spec"] | {"desiredState": "Suspended"})
    await world.settle(300)


async def crew(world: World) -> None:
    """A Fleet is made, changed, scaled, set free."""
    world.inmates.update({f"crew-{ordinal}": Inmate() for ordinal in range(3)})
    spec: dict[str, Any] = {"runtime": COMMAND | {"command": ["sh", "-c", "cd / && exec run <&- >log"]}}

    def declare(replicas: int, **more: Any) -> None:
        world.store.apply("Fleet", "crew", {"replicas": replicas, "template": {"spec": spec | more}})

    async def ready(count: int) -> None:
        def holds() -> bool:
            body = world.store.find("Fleet", "crew") or {}
            seen = body["status"]["observedGeneration"] == body["metadata"]["generation"]
            return seen and (body["status"]["replicas"], body["status"]["readyReplicas"]) == (count, count)

        await world.until(holds, 900)

    declare(2, paused=False)
    await ready(2)
    declare(2, machine={"memoryMb": 2048})
    await ready(2)
    declare(2)
    await ready(2)
    declare(1)
    await ready(1)
    world.store.delete("Fleet", "crew", orphan=True)
    await world.until(lambda: world.store.find("Fleet", "crew") is None, 900)
    await world.delete("crew-0")
    await world.until_gone("crew-0", 900)


async def keys(world: World) -> None:
    """A Secret is missing, comes, changes, goes."""
    world.store.apply("Secret", "keys", {"source": {"secretRef": {"name": "keys"}}})
    await world.apply("ada", env=[{"name": "KEY", "valueFrom": {"name": "keys", "key": "api"}}])
    await world.settle(60)
    for value in ("1", "2"):
        world.store.put_core_secret(NAMESPACE, "keys", {"api": value})
        await world.settle(60)
    world.store.drop_core_secret(NAMESPACE, "keys")
    await world.settle(120)
    world.store.delete("Secret", "keys")
    await world.delete("ada")
    await world.settle(60)


OWN = (life, losses, crew, keys)


@pytest.mark.looptime
@pytest.mark.parametrize("story", OWN, ids=lambda story: story.__name__)
async def test_a_story_is_the_same_on_both(mirrors: MakeMirror, story: Story) -> None:
    async with operator_world(make_store=mirrors) as world:
        await story(world)


@pytest.mark.looptime
@pytest.mark.parametrize("seed", range(8))
async def test_a_story_with_faults_at_the_port_is_the_same_on_both(mirrors: MakeMirror, seed: int) -> None:
    """Lost answers, lost calls, conflicts, and news that come late, twice, or with the next list only."""
    async with operator_world(make_store=mirrors) as world:
        dice = random.Random(seed)

        def meddle(where: Where, call: Call) -> float | None:
            roll = dice.random()
            if roll < 0.08:
                raise Unreachable(f"{call.verb} {call.path}", 504, f"no answer, lost {where} its effect")
            if roll < 0.12 and where == "before" and world.store.find("Agent", "ada") is not None:
                world.store.annotate("ada", {"example.com/seen": str(call.number)})
            return 2.0 if roll > 0.95 else None

        world.store.meddle = meddle

        def deliver(_kind: str, _new: Any) -> tuple[float, ...]:
            delays: tuple[float, ...] = dice.choice([(0.02,), (0.02,), (2.0,), (0.02, 3.0), ()])
            if not delays:
                world.loop.call_later(10.0, world.store.relist)
            return delays

        world.store.deliver = deliver
        await life(world)


@pytest.mark.parametrize("name", STORIES)
def test_a_story_of_the_sweep_is_the_same_on_both(
    mirrors: MakeMirror, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undisturbed, and with as many of its faults as time allows, which a seed has chosen."""
    monkeypatch.setattr(sweep, "operator_world", partial(operator_world, make_store=mirrors))
    faults: list[str] = []

    def note(play: sweep.Play) -> None:
        for number, seen in enumerate(play.wire.seen[: play.first], 1):
            faults.extend(f"{name}/{number}/{fault.name}" for fault in swept(seen))

    assert sweep.replay(name, note).converged
    for fault in random.Random(name).sample(faults, math.ceil(len(faults) * MIRRORED_SHARE)):
        sweep.replay(fault)


# --- Single operations, by hand ----------------------------------------------------------------------------------


def in_a_loop(test: Callable[[Mirror], None], make: MakeMirror) -> Mirror:
    async def within() -> Mirror:
        store = make(Clock(EPOCH))
        test(store)
        return store

    return asyncio.run(within())


def test_a_status_that_the_crd_does_not_have_is_a_difference(admin: httpx.Client, namespaces: dict[str, str]) -> None:
    def someone(store: Mirror) -> None:
        store.apply("Agent", "ada", {"runtime": COMMAND})
        store.edit_status("ada", {"colour": "green"})
        assert "unknown field" in store.differences[0]
        assert "colour" in store.differences[1]
        store.differences.clear()
        store.edit_status("ada", {"phase": "Dancing"})
        assert "Unsupported value" in store.differences[0], store.differences
        store.clear()

    in_a_loop(someone, lambda clock: Mirror(clock, admin, namespaces))


def test_owned_objects_go_after_their_owner_or_are_set_free(mirrors: MakeMirror) -> None:
    def someone(store: Mirror) -> None:
        template = {"spec": {"runtime": COMMAND}}
        for fleet, orphan in (("crew", False), ("band", True)):
            owner = store.apply("Fleet", fleet, {"template": template})["metadata"]["uid"]
            labels = {"roost.dev/fleet": fleet}
            refs = [{"apiVersion": "roost.dev/v1alpha1", "kind": "Fleet", "name": fleet, "uid": owner}]
            meta = {"name": f"{fleet}-1", "labels": labels, "ownerReferences": refs}
            revision = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1, "data": template}
            store.answer("create", REVISIONS, revision | {"metadata": meta})
            with pytest.raises(Conflict):
                store.answer("create", REVISIONS, revision | {"metadata": meta})
            assert len(store.answer("list", REVISIONS, params={"labelSelector": f"roost.dev/fleet={fleet}"})["items"])
            body = {"apiVersion": "roost.dev/v1alpha1", "kind": "Agent", "metadata": meta | {"name": f"{fleet}-0"}}
            store.answer("apply", path_of("Agent", f"{fleet}-0"), body | template, manager="roost-fleet")
            store.delete("Fleet", fleet, orphan=orphan)
            assert store.find("Fleet", fleet) is None
            assert (store.find("Agent", f"{fleet}-0") is not None) == orphan

    in_a_loop(someone, mirrors)


def test_a_core_secret_is_made_changed_and_removed(mirrors: MakeMirror) -> None:
    def someone(store: Mirror) -> None:
        for value in ("1", "1", "2"):
            store.put_core_secret(NAMESPACE, "key", {"token": value})
        store.drop_core_secret(NAMESPACE, "key")
        with pytest.raises(Gone):
            store.answer("get", core_secret(NAMESPACE, "key"))

    in_a_loop(someone, mirrors)


# --- Sequences of single operations ------------------------------------------------------------------------------

VERSIONS = st.sampled_from([None, "right", "stale"])
NAMES = st.sampled_from(["a", "b"])
LISTS = st.sampled_from([[], ["x.dev/1"], ["x.dev/1", "x.dev/2"], ["x.dev/2"]])
SPECS = st.sampled_from(
    [
        {},
        {"paused": True},
        {"desiredState": "Stopped"},
        {"heartbeat": {"intervalSeconds": 20}},
        {"heartbeat": {"intervalSeconds": 40}},
    ]
)
STATUSES = st.sampled_from([{"phase": "Running"}, {"phase": None}, {"did": "did:key:z"}, {}, None])
VALUES = st.sampled_from([{"x.dev/k": "1"}, {"x.dev/k": "2"}, {"x.dev/k": None}, {"x.dev/other": "1"}, {}])
UIDS = st.sampled_from([None, "right", "wrong"])
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), NAMES, LISTS, SPECS),
    st.tuples(st.just("spec"), NAMES, VERSIONS, SPECS),
    st.tuples(st.just("status"), NAMES, VERSIONS, STATUSES),
    st.tuples(st.just("finalizers"), NAMES, VERSIONS, LISTS),
    st.tuples(st.sampled_from(["annotations", "labels"]), NAMES, VERSIONS, VALUES),
    st.tuples(st.just("put"), NAMES, VERSIONS, SPECS),
    st.tuples(st.just("put_status"), NAMES, VERSIONS, STATUSES),
    st.tuples(st.just("apply"), NAMES, st.sampled_from(["m1", "m2"]), SPECS, VALUES),
    st.tuples(st.just("delete"), NAMES, VERSIONS, UIDS),
    st.tuples(st.just("get"), NAMES),
    st.tuples(st.just("list"), st.sampled_from(["", "x.dev/k=1"])),
)


def perform(store: Mirror, operation: tuple[Any, ...]) -> None:
    """One operation on both; that it is refused is an answer as well."""
    verb, name, *rest = operation
    agents, path = collection("Agent", NAMESPACE), path_of("Agent", name)
    found = store.find("Agent", name)
    meta: dict[str, Any] = found["metadata"] if found is not None else {"uid": "none", "resourceVersion": "1"}
    first = next((body for _, at, body in store._history if at == path and body is not None), None)
    stale = first["metadata"]["resourceVersion"] if first is not None else meta["resourceVersion"]
    versions: dict[str | None, dict[str, str]] = {
        None: {},
        "right": {"resourceVersion": meta["resourceVersion"]},
        "stale": {"resourceVersion": stale},
    }
    spec: dict[str, Any] = {"runtime": COMMAND}
    body: dict[str, Any] = {"apiVersion": "roost.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}}
    match verb, rest:
        case "create", [finalizers, more]:
            body["metadata"]["finalizers"] = finalizers
            store.answer("create", agents, body | {"spec": spec | more, "status": {"phase": "Failed"}})
        case "spec", [seen, more]:
            store.answer("merge", path, {"metadata": versions[seen], "spec": more, "status": {"phase": "Failed"}})
        case "status", [seen, status]:
            store.answer("merge", f"{path}/status", {"metadata": versions[seen], "status": status})
        case "finalizers" | "annotations" | "labels", [seen, value]:
            store.answer("merge", path, {"metadata": versions[seen] | {verb: value}})
        case "put", [seen, more]:
            body["metadata"] |= versions[seen]
            store.answer("update", path, body | {"spec": spec | more, "status": {"phase": "Failed"}})
        case "put_status", [seen, status]:
            body["metadata"] |= versions[seen] | {"labels": {"x.dev/ignored": "1"}}
            status = {} if status is None else {key: value for key, value in status.items() if value is not None}
            store.answer("update", f"{path}/status", body | {"spec": spec, "status": status})
        case "apply", [manager, more, labels]:
            # Not an empty map: that is stored as such, unseen, and makes one more version with the next write.
            body["metadata"] |= {"labels": set_} if (set_ := {k: v for k, v in labels.items() if v}) else {}
            store.answer("apply", path, body | {"spec": spec | more}, manager=manager)
        case "delete", [seen, uid]:
            uids = {None: {}, "right": {"uid": meta["uid"]}, "wrong": {"uid": "another"}}[uid]
            store.answer("delete", path, versions[seen] | uids)
        case "get", _:
            store.answer("get", path)
        case "list", _:
            store.answer("list", agents, params={"labelSelector": name} if name else {})
        case _:
            raise AssertionError(operation)


@pytest.mark.parametrize("deleting", [False, True])
@settings(max_examples=20, deadline=None, phases=[Phase.generate])  # nothing is made smaller: each step costs a call
@given(operations=st.lists(OPERATIONS, min_size=10, max_size=20))
def test_any_sequence_of_operations(
    admin: httpx.Client, namespaces: dict[str, str], operations: list[tuple[Any, ...]], *, deleting: bool
) -> None:
    begin: list[tuple[Any, ...]] = [("create", "a", ["x.dev/1"], {})]
    if deleting:
        begin += [("delete", "a", None, None), ("finalizers", "a", "right", ["x.dev/1", "x.dev/2"])]

    async def both() -> None:
        store = Mirror(Clock(EPOCH), admin, namespaces)
        try:
            for operation in [*begin, *operations]:
                try:
                    perform(store, operation)
                except KubeError:
                    pass
                assert store.differences == []
        finally:
            store.clear()

    asyncio.run(both())
