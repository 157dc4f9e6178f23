"""The whole life of Secrets on virtual time: looked at, watched, rotated, taken away; with Agents that run on them."""

import json
from collections.abc import Mapping
from itertools import groupby, pairwise
from typing import Any

import pytest

from operator_world import ROOTS, World, in_a_world, operator_world
from roost.api.conditions import Reason
from roost.kube.client import Unreachable, core_secret
from roost.kube.objects import condition
from roost.kube.records import Key
from roost.secrets.state import Ref, fingerprint
from store import NAMESPACE, Call, Where, path_of

pytestmark = pytest.mark.looptime
HOME = "roost-system"


def env(name: str, key: str = "api", **other: str) -> list[dict[str, Any]]:
    """The block `env` of an Agent that uses one key."""
    return [{"name": "KEY", "valueFrom": {"name": name, "key": key, **other}}]


def secret(world: World, name: str = "llm") -> dict[str, Any]:
    found = world.store.find("Secret", name)
    status: dict[str, Any] = (found or {}).get("status", {})
    return status


def said(world: World, kind: str, name: str = "llm") -> tuple[str, str, str]:
    found = condition(secret(world, name), kind)
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def declare(world: World, name: str = "llm", source: str = "llm-1", **spec: Any) -> None:
    world.store.apply("Secret", name, {"source": {"secretRef": {"name": source}}} | spec)


def reads(world: World, name: str, since: int = 0) -> int:
    return sum(1 for c in world.store.calls[since:] if c.path == core_secret(NAMESPACE, name))


def looked(world: World) -> float:
    """How often core Secrets were reconciled, read or not."""
    assert world.operator is not None
    name, labels = "controller_runtime_reconcile_time_seconds_count", {"controller": "CoreSecret"}
    return world.operator.metrics.registry.get_sample_value(name, labels) or 0.0


def commands(world: World, name: str) -> int:
    """How often the agent was told to take other configuration."""
    return sum(1 for told in world.inmates[name].told if told.startswith("update_config"))


def version_of(world: World, name: str) -> Any:
    return {s["name"]: s["version"] for s in world.status(name).get("secrets", ())}


async def value(world: World, name: str, secret_name: str = "llm", key: str = "api") -> str:
    """What the agent's bundle has of it."""
    assert world.operator is not None
    ref = Ref(secret_name, key)
    return (await world.operator.values.of(Key("Agent", NAMESPACE, name), [ref]))[ref]


@in_a_world
async def test_a_change_of_a_core_secret_reaches_the_agents_that_use_it_and_no_other(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    await world.apply("ada", env=env("llm"))
    await world.apply("bob")
    for name in ("ada", "bob"):
        await world.until_phase(name, "Running")
    assert (secret(world)["activeVersion"], secret(world)["usedBy"]["names"]) == (1, ["ada"])
    before = commands(world, "bob")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "two"})
    await world.until(lambda: secret(world)["activeVersion"] == 2, 20)
    await world.until(
        lambda: version_of(world, "ada") == {"llm": 2} and world.condition("ada", "Ready")[0] == "True", 40
    )
    assert await value(world, "ada") == "two"
    assert commands(world, "bob") == before


# --- How a change is noticed ----------------------------------------------------------------------------------------


@in_a_world
async def test_where_it_may_be_watched_a_change_is_noticed_at_once_and_nothing_is_read_in_between(world: World) -> None:
    world.store.grant("secrets")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    await world.until(lambda: secret(world).get("looked") == "Watched", 5)
    assert secret(world)["pollSeconds"] == 600
    before = len(world.store.calls)
    await world.settle(300)
    assert reads(world, "llm-1", before) == 0
    looks = looked(world)
    world.store.put_core_secret(NAMESPACE, "another", {"api": "x"})
    await world.settle(5)
    assert looked(world) == looks, "nobody refers to it"
    began = world.loop.time()
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "two"})
    await world.until(lambda: secret(world)["activeVersion"] == 2, 1)
    assert world.loop.time() - began < 0.2
    assert reads(world, "llm-1", before) == 1


@in_a_world
async def test_what_may_be_watched_in_one_namespace_is_watched_there(world: World) -> None:
    world.store.grant("secrets", NAMESPACE)
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    await world.until(lambda: secret(world).get("looked") == "Watched", 5)


@in_a_world
async def test_without_the_right_it_is_read_in_turns(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    await world.until(lambda: secret(world).get("looked") == "Polled", 5)
    assert secret(world)["pollSeconds"] == 15
    before = len(world.store.calls)
    await world.settle(150)
    assert 8 <= reads(world, "llm-1", before) <= 12
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "two"})
    await world.until(lambda: secret(world)["activeVersion"] == 2, 20)


@pytest.mark.parametrize("code", [None, 410, 500])
async def test_what_changes_while_a_watch_is_down_is_found_when_it_is_up_again(code: int | None) -> None:
    async with operator_world() as world:
        world.store.grant("secrets")
        world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
        declare(world)
        await world.until(lambda: secret(world).get("looked") == "Watched", 5)
        writes, before = len(world.store.writes), len(world.store.calls)
        for turn in range(3):
            world.store.cut_watches(code)
            await world.settle(100)
            assert len(world.store._watches) == 1
            world.store.put_core_secret(NAMESPACE, "llm-1", {"api": f"turn {turn}"})
            await world.until(lambda: secret(world)["activeVersion"] == 2 + turn, 1)  # noqa: B023
        assert len(world.store.writes) == writes + 3, "how it is looked at churns"
        assert reads(world, "llm-1", before) == 3, "what is as it was is read again"


@in_a_world
async def test_a_change_in_the_gap_of_a_watch_whose_version_is_too_old_is_found_by_the_list(world: World) -> None:
    world.store.grant("secrets")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    await world.until(lambda: secret(world).get("looked") == "Watched", 5)
    world.store.cut_watches(410)
    await world.settle(0.5)
    assert not world.store._watches
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "two"})
    await world.until(lambda: secret(world)["activeVersion"] == 2, 5)


@in_a_world
async def test_a_right_that_is_taken_away_leads_back_to_polling_and_one_that_is_given_to_watching(world: World) -> None:
    world.store.grant("secrets")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    await world.until(lambda: secret(world).get("looked") == "Watched", 5)
    world.store.granted.clear()
    world.store.cut_watches(403)
    await world.until(lambda: secret(world)["looked"] == "Polled", 30)
    before = len(world.store.calls)
    await world.settle(120)
    assert 6 <= reads(world, "llm-1", before) <= 12
    world.store.grant("secrets")
    await world.until(lambda: secret(world)["looked"] == "Watched", 700)


@in_a_world
async def test_hundreds_of_sources_are_read_at_five_a_second_at_most_after_the_first_look(world: World) -> None:
    for n in range(200):
        world.store.put_core_secret(NAMESPACE, f"s-{n}", {"api": "x"})
        declare(world, f"s-{n}", f"s-{n}")
    await world.until(lambda: all(secret(world, f"s-{n}").get("activeVersion") for n in range(200)), 10)
    await world.settle(30)
    before, counts = len(world.store.calls), []
    for _ in range(30):
        await world.settle(10)
        counts.append(sum(1 for c in world.store.calls[before:] if "/secrets/s-" in c.path and c.verb == "get"))
        before = len(world.store.calls)
    assert max(counts) <= 60
    assert sum(counts) >= 200 * 4, "each is read about once a minute"
    world.store.annotate("s-7", {"roost.dev/reconcile-at": "1"}, kind="Secret")
    await world.settle(11)
    assert secret(world, "s-7")["pollSeconds"] == 60


@in_a_world
async def test_an_annotation_has_it_looked_at_now(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    await world.apply("ada", env=env("llm") + env("direct", kind="CoreSecret")[:0])
    await world.until_phase("ada", "Running")
    for turn, (kind, name) in enumerate((("Secret", "llm"), ("Agent", "ada"))):
        await world.settle(20)
        before = len(world.store.calls)
        world.store.put_core_secret(NAMESPACE, "llm-1", {"api": f"turn {turn}"})
        world.store.annotate(name, {"roost.dev/reconcile-at": "now"}, kind=kind)
        await world.until(lambda: secret(world)["activeVersion"] == 2 + turn, 0.5)  # noqa: B023
        assert reads(world, "llm-1", before) <= 2
    assert secret(world)["lastHandledReconcileAt"] == world.status("ada")["lastHandledReconcileAt"] == "now"


@in_a_world
async def test_in_an_hour_in_which_nothing_happens_nothing_is_written(world: World) -> None:
    world.store.grant("secrets")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world, rotation={"strategy": "Staged", "maxAgeDays": 90})
    await world.apply("ada", env=env("llm"))
    await world.until_phase("ada", "Running")
    await world.settle(120)
    writes, before = len(world.store.writes), len(world.store.calls)
    await world.settle(3600)
    assert len(world.store.writes) == writes
    assert reads(world, "llm-1", before) <= 8
    await world.restart()
    await world.settle(900)
    assert len(world.store.writes) == writes, "a new process writes what is known already"


# --- Where a reference leads ----------------------------------------------------------------------------------------


@in_a_world
async def test_a_more_specific_secret_wins_as_soon_as_it_is_there_and_gives_way_when_it_goes(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "everybody's"})
    world.store.put_core_secret(NAMESPACE, "own", {"api": "ada's own"})
    declare(world)
    for name in ("ada", "bob"):
        await world.apply(name, env=env("llm"))
        await world.until_phase(name, "Running")
    assert await value(world, "ada") == "everybody's"
    declare(world, "llm.ada", "own")
    await world.until(lambda: version_of(world, "ada") == {"llm.ada": 1}, 10)
    assert (await value(world, "ada"), await value(world, "bob")) == ("ada's own", "everybody's")
    await world.until(lambda: secret(world)["usedBy"]["names"] == ["bob"], 20)
    assert secret(world, "llm.ada")["usedBy"]["names"] == ["ada"]
    world.store.delete("Secret", "llm.ada")
    await world.until(lambda: version_of(world, "ada") == {"llm": 1}, 10)
    assert await value(world, "ada") == "everybody's"


def at_home(world: World, name: str, source: str, **offer: Any) -> None:
    spec = {"source": {"secretRef": {"name": source}}, "availableTo": offer}
    path = f"/apis/roost.dev/v1alpha1/namespaces/{HOME}/secrets"
    body = {"apiVersion": "roost.dev/v1alpha1", "kind": "Secret", "metadata": {"name": name}, "spec": spec}
    found = world.store._objects.get(f"{path}/{name}")
    if found is None:
        world.store.answer("create", path, body)
    else:
        world.store.answer("update", f"{path}/{name}", found | {"spec": spec})


@pytest.mark.parametrize("namespaces", [[NAMESPACE], ["*"]])
async def test_the_operators_own_secret_serves_where_it_is_offered_and_one_beside_the_agent_is_stronger(
    namespaces: list[str],
) -> None:
    async with operator_world() as world:
        world.store.put_core_secret(HOME, "shared", {"api": "the house's"})
        at_home(world, "llm", "shared", namespaces=["elsewhere"])
        await world.apply("ada", env=env("llm"))
        await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "False", 5)
        _, reason, message = world.condition("ada", "SecretsResolved")
        assert reason == Reason.SECRET_NOT_OFFERED
        assert "not offered to this namespace" in message
        assert "shared" not in message
        assert "elsewhere" not in message
        at_home(world, "llm", "shared", namespaces=namespaces)
        await world.until_phase("ada", "Running")
        assert await value(world, "ada") == "the house's"
        world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "our own"})
        declare(world)
        await world.until(lambda: world.store._objects[path_of("Agent", "ada")]["status"]["bundle"] != {}, 5)
        await world.settle(15)
        assert await value(world, "ada") == "our own"
        world.store.delete("Secret", "llm")
        await world.settle(15)
        assert await value(world, "ada") == "the house's"
        assert world.condition("ada", "Ready")[0] == "True"


@in_a_world
async def test_an_agent_without_the_labels_is_told_which_and_has_it_with_them(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world, availableTo={"agentSelector": {"matchLabels": {"team.example/tier": "gold"}}})
    await world.apply("ada", env=env("llm"))
    await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "False", 5)
    _, reason, message = world.condition("ada", "SecretsResolved")
    assert reason == Reason.SECRET_NOT_OFFERED
    assert f"kubectl -n {NAMESPACE} label agents ada team.example/tier=gold" in message
    world.store.label("ada", {"team.example/tier": "gold"})
    await world.until_phase("ada", "Running")
    world.store.label("ada", {"team.example/tier": None})
    await world.until(lambda: world.condition("ada", "SecretsResolved")[1] == Reason.SECRET_NOT_OFFERED, 5)
    assert len(world.machines("ada")) == 1


@in_a_world
async def test_a_core_secret_and_a_config_map_are_named_directly_and_their_lack_heals_by_the_command_told(
    world: World,
) -> None:
    soul = {"configMapRef": {"name": "souls", "key": "ada.md"}}
    await world.apply("ada", env=env("raw", kind="CoreSecret"), soul=soul)
    await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "False", 5)
    message = world.condition("ada", "SecretsResolved")[2]
    assert f"kubectl -n {NAMESPACE} create configmap souls --from-file=ada.md=FILE" in message
    assert f"kubectl -n {NAMESPACE} create secret generic raw --from-literal=api=VALUE" in message
    world.store.put_core_secret(NAMESPACE, "raw", {"api": "x"})
    world.store.put_config_map(NAMESPACE, "souls", {"bob.md": "x"})
    await world.until(lambda: "lacks ada.md" in world.condition("ada", "SecretsResolved")[2], 40)
    message = world.condition("ada", "SecretsResolved")[2]
    given = json.dumps({"data": {"ada.md": "VALUE"}}, separators=(",", ":"))
    assert f"kubectl -n {NAMESPACE} patch configmap souls -p '{given}'" in message
    world.store.put_config_map(NAMESPACE, "souls", {"ada.md": "You are Ada."})
    await world.until_phase("ada", "Running")
    assert world.operator is not None
    ref, whole = Ref("souls", "ada.md", "ConfigMap"), Ref("souls", "", "ConfigMap")
    values = await world.operator.values.of(Key("Agent", NAMESPACE, "ada"), [ref, whole])
    assert values == {ref: "You are Ada.", whole: '{"ada.md":"You are Ada."}'}


@in_a_world
async def test_a_value_that_does_not_match_its_pattern_counts_as_missing_and_is_never_shown(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "not-a-key"})
    declare(world, keys=[{"name": "api", "pattern": "^sk-ant-"}])
    await world.apply("ada", env=env("llm"))
    await world.until(lambda: world.condition("ada", "SecretsResolved")[1] == Reason.SECRET_KEY_INVALID, 5)
    assert said(world, "Ready")[:2] == ("False", Reason.SECRET_KEY_INVALID)
    assert "does not match the pattern ^sk-ant-" in said(world, "Ready")[2]
    assert secret(world)["keys"] == [{"name": "api", "present": False}]
    assert "not-a-key" not in json.dumps([secret(world), world.status("ada"), world.store.events])
    declare(world, keys=[{"name": "api", "pattern": "^not-"}])
    await world.until_phase("ada", "Running")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "another"})
    await world.until(lambda: world.condition("ada", "SecretsResolved")[1] == Reason.SECRET_KEY_INVALID, 20)
    assert len(world.machines("ada")) == 1


# --- Rotation -------------------------------------------------------------------------------------------------------

AGENTS = ("ada", "bob", "eve")


async def three_on(world: World, **spec: Any) -> None:
    """Three Agents that run on version 1 of a Secret that rotates by stages; two core Secrets to choose from."""
    world.store.grant("secrets")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "old"})
    world.store.put_core_secret(NAMESPACE, "llm-2", {"api": "new"})
    declare(world, rotation={"strategy": "Staged"}, **spec)
    for name in AGENTS:
        await world.apply(name, env=env("llm"))
        await world.until_phase(name, "Running")
    await world.settle(20)


def rotate(world: World, to: str = "llm-2") -> None:
    declare(world, source=to, rotation={"strategy": "Staged"})


def mark(world: World) -> str:
    return str(secret(world).get("rotation", {}).get("at", "")).removeprefix(f"{NAMESPACE}/")


async def values(world: World) -> list[str]:
    return [await value(world, name) for name in AGENTS]


@in_a_world
async def test_a_staged_rotation_goes_from_agent_to_agent_each_when_the_one_before_is_ready(world: World) -> None:
    await three_on(world)
    for name in AGENTS:
        world.inmates[name].told.clear()
    rotate(world)
    seen: list[tuple[str, list[str]]] = []

    def over() -> bool:
        now = (mark(world), [n for n in AGENTS if commands(world, n)])
        if not seen or seen[-1] != now:
            seen.append(now)
        return "rotation" not in secret(world) and secret(world)["activeVersion"] == 2

    await world.until(over, 200)
    assert [at for at, _ in groupby(at for at, _ in seen)][-4:] == ["ada", "bob", "eve", ""]
    for at, told in seen:  # nobody behind the mark was told to take anything
        assert told == list(AGENTS[: AGENTS.index(at) + 1 if at else 3])[: len(told)]
    assert await values(world) == ["new"] * 3
    assert "previousRef" not in secret(world)
    assert (secret(world)["activeVersion"], secret(world)["rotatedFrom"], secret(world)["activeRef"]) == (2, 1, "llm-2")
    await world.until(lambda: secret(world)["usedBy"]["pending"] == 0, 30)
    assert said(world, "Rotating")[0] == said(world, "Reconciling")[0] == said(world, "Stalled")[0] == "False"


@in_a_world
async def test_an_agent_that_does_not_come_up_with_the_new_values_stops_it_and_both_ways_out_work(world: World) -> None:
    await three_on(world)
    world.inmates["ada"].ready = False
    rotate(world)
    await world.until(lambda: said(world, "Rotating")[0] == "True", 10)
    assert await values(world) == ["new", "old", "old"]
    await world.until(lambda: said(world, "Stalled")[1] == Reason.ROTATION_STOPPED, 400)
    status, reason, message = said(world, "Rotating")
    assert (status, reason) == ("False", Reason.ROTATION_STOPPED)
    assert f"Agent {NAMESPACE}/ada" in message
    assert f"kubectl -n {NAMESPACE} patch secrets.roost.dev llm --type=merge -p " in message
    assert '"name":"llm-1"' in message
    assert "mend it" in message
    assert said(world, "Ready")[0] == "True"
    await world.settle(1200)
    assert await values(world) == ["new", "old", "old"], "it must not go on"
    world.inmates["ada"].ready = True  # mended: it goes on by itself
    await world.until(lambda: "rotation" not in secret(world), 200)
    assert await values(world) == ["new"] * 3
    world.store.put_core_secret(NAMESPACE, "llm-3", {"api": "bad"})
    world.inmates["ada"].ready = False
    rotate(world, "llm-3")
    await world.until(lambda: mark(world) == "ada", 10)
    rotate(world, "llm-2")  # back: at once, and for everybody
    await world.until(lambda: "rotation" not in secret(world), 2)
    assert await values(world) == ["new"] * 3
    assert said(world, "Stalled")[0] == "False"


@in_a_world
async def test_a_new_process_goes_on_with_a_rotation_where_the_one_before_ended(world: World) -> None:
    await three_on(world)
    world.inmates["bob"].ready = False
    rotate(world)
    await world.until(lambda: mark(world) == "bob", 100)
    since = secret(world)["rotation"]["since"]
    await world.crash()
    world.start()
    await world.settle(60)
    assert (mark(world), secret(world)["rotation"]["since"]) == ("bob", since)
    assert await values(world) == ["new", "new", "old"]
    world.inmates["bob"].ready = True
    await world.until(lambda: "rotation" not in secret(world), 200)


@in_a_world
async def test_those_who_are_down_or_left_alone_on_purpose_hold_up_nothing(world: World) -> None:
    await three_on(world)
    await world.edit("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped")
    await world.edit("bob", paused=True)
    await world.settle(10)
    rotate(world)
    await world.until(lambda: secret(world)["activeVersion"] == 2 and "rotation" not in secret(world), 120)
    await world.edit("ada", desiredState="Running")
    await world.until_phase("ada", "Running")
    assert version_of(world, "ada") == {"llm": 2}


@in_a_world
async def test_an_agent_that_is_deleted_while_it_is_its_turn_is_passed_by(world: World) -> None:
    await three_on(world)
    world.inmates["ada"].ready = False
    rotate(world)
    await world.until(lambda: mark(world) == "ada", 10)
    await world.delete("ada")
    await world.until(lambda: "rotation" not in secret(world), 200)
    assert [await value(world, name) for name in ("bob", "eve")] == ["new", "new"]


@in_a_world
async def test_an_edit_in_place_reaches_all_at_once_and_so_does_a_switch_that_changes_no_value(world: World) -> None:
    await three_on(world)
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "edited"})
    await world.until(lambda: all(version_of(world, n) == {"llm": 2} for n in AGENTS), 30)
    world.store.put_core_secret(NAMESPACE, "copy", {"api": "edited"})
    rotate(world, "copy")
    await world.until(lambda: secret(world)["activeRef"] == "copy", 5)
    assert ("rotation" in secret(world), secret(world)["activeVersion"]) == (False, 2)


@in_a_world
async def test_a_switch_to_a_secret_that_can_not_serve_moves_nobody_until_it_can(world: World) -> None:
    await three_on(world)
    rotate(world, "absent")
    await world.until(lambda: said(world, "Ready")[1] == Reason.SECRET_MISSING, 5)
    assert await values(world) == ["old"] * 3
    assert all(world.condition(n, "SecretsResolved")[0] == "True" for n in AGENTS)
    world.store.put_core_secret(NAMESPACE, "absent", {"api": "new"})
    await world.until(lambda: mark(world) == "ada", 5)
    await world.until(lambda: "rotation" not in secret(world), 200)
    assert await values(world) == ["new"] * 3


@in_a_world
async def test_a_switch_to_a_secret_that_lacks_a_part_moves_nobody(world: World) -> None:
    keys = [{"name": "api"}, {"name": "org"}]
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "old", "org": "o"})
    world.store.put_core_secret(NAMESPACE, "llm-2", {"api": "new"})
    declare(world, keys=keys, rotation={"strategy": "Staged"})
    await world.apply("ada", env=env("llm"))
    await world.until_phase("ada", "Running")
    declare(world, source="llm-2", keys=keys, rotation={"strategy": "Staged"})
    await world.until(lambda: said(world, "Ready")[1] == Reason.SECRET_KEY_MISSING, 5)
    assert await value(world, "ada") == "old"


@in_a_world
async def test_a_third_secret_in_the_midst_of_a_rotation_begins_anew_from_the_last_good_one(world: World) -> None:
    await three_on(world)
    world.inmates["bob"].ready = False
    rotate(world)
    await world.until(lambda: mark(world) == "bob", 100)
    world.store.put_core_secret(NAMESPACE, "llm-3", {"api": "third"})
    rotate(world, "llm-3")
    await world.until(lambda: mark(world) == "ada", 5)
    assert await values(world) == ["third", "old", "old"]
    assert secret(world)["previousRef"] == "llm-1"
    world.inmates["bob"].ready = True
    await world.until(lambda: "rotation" not in secret(world), 200)
    assert await values(world) == ["third"] * 3


@in_a_world
async def test_a_rotation_stands_still_while_a_third_secret_that_can_not_serve_is_wanted(world: World) -> None:
    await three_on(world)
    world.inmates["bob"].ready = False
    rotate(world)
    await world.until(lambda: mark(world) == "bob", 100)
    rotate(world, "absent")
    world.inmates["bob"].ready = True
    await world.settle(120)
    assert (mark(world), said(world, "Ready")[1]) == ("bob", Reason.SECRET_MISSING)
    assert await values(world) == ["new", "new", "old"]
    rotate(world, "llm-1")
    await world.until(lambda: "rotation" not in secret(world), 5)
    assert await values(world) == ["old"] * 3


@in_a_world
async def test_without_anybody_who_uses_it_there_is_nothing_to_stage(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "old"})
    world.store.put_core_secret(NAMESPACE, "llm-2", {"api": "new"})
    declare(world, rotation={"strategy": "Staged"})
    await world.until(lambda: secret(world).get("activeVersion") == 1, 5)
    rotate(world)
    await world.until(lambda: secret(world).get("activeVersion") == 2, 5)
    assert "rotation" not in secret(world)


# --- Who uses it, how old it is, and its end ------------------------------------------------------------------------


@in_a_world
async def test_the_count_of_users_is_written_every_ten_seconds_at_most(world: World) -> None:
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world)
    for n in range(30):
        await world.apply(f"a-{n:02}", env=env("llm"))
    await world.until(lambda: all(world.phase(f"a-{n:02}") == "Running" for n in range(30)), 300)
    await world.settle(30)
    assert secret(world)["usedBy"] == {"agents": 30, "pending": 0, "names": [f"a-{n:02}" for n in range(30)]}
    times = [w.at for w in world.store.writes if w.path == path_of("Secret", "llm")]
    assert all(later - before >= 9.9 for before, later in pairwise(times[1:]))
    world.inmates["a-07"].silent = True
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "two"})
    await world.settle(60)
    assert secret(world)["usedBy"]["pending"] == 1


@in_a_world
async def test_values_that_grow_old_are_told_once(world: World) -> None:
    world.store.grant("secrets")
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    declare(world, rotation={"maxAgeDays": 1})
    await world.settle(86_000)
    assert said(world, "Ready")[:2] == ("True", Reason.RESOLVED)
    await world.settle(1_200)
    assert said(world, "Ready")[:2] == ("True", Reason.SECRET_OLD)
    writes = len(world.store.writes)
    await world.settle(86_400)
    assert len(world.store.writes) == writes
    assert [e["reason"] for e in world.store.events] == [Reason.SECRET_OLD]
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "two"})
    await world.until(lambda: said(world, "Ready")[:2] == ("True", Reason.RESOLVED), 5)


@pytest.mark.parametrize("kind", ["Secret", "core Secret"])
async def test_the_deletion_of_a_secret_in_use_is_loud_and_touches_no_machine(kind: str) -> None:
    async with operator_world() as world:
        world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
        declare(world)
        await world.apply("ada", env=env("llm"))
        await world.until_phase("ada", "Running")
        await world.settle(20)
        machine, calls = world.machine("ada").id, world.mark()
        if kind == "Secret":
            world.store.delete("Secret", "llm")
        else:
            world.store.drop_core_secret(NAMESPACE, "llm-1")
        await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "False", 40)
        remedy = f"kubectl -n {NAMESPACE} create secret generic {'llm' if kind == 'Secret' else 'llm-1'}"
        assert remedy in world.condition("ada", "SecretsResolved")[2]
        await world.settle(120)
        assert (world.machine("ada").id, world.calls("ada", calls)) == (machine, [])
        told = [e for e in world.store.events if e["regarding"]["kind"] == "Secret" and e["type"] == "Warning"]
        assert [e["reason"] for e in told] == [Reason.SECRET_DELETED if kind == "Secret" else Reason.SECRET_MISSING]
        assert "1 Agents" in told[0]["note"]
        world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
        declare(world)
        await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "True", 40)


# --- One bot, one Agent ---------------------------------------------------------------------------------------------


def telegram(name: str) -> Mapping[str, Any]:
    return {"telegram": {"tokenFrom": {"name": name, "key": "token"}}}


@in_a_world
async def test_one_bots_token_is_refused_to_the_younger_of_two_agents_until_the_older_is_gone(world: World) -> None:
    for name in ("one", "two"):
        world.secret(name, token="123:the-same")
    await world.apply("old", channels=telegram("one"))
    await world.until_phase("old", "Running")
    await world.apply("ada", channels=telegram("two"))
    await world.until(lambda: world.condition("ada", "SecretsResolved")[1] == Reason.BOT_TOKEN_TAKEN, 10)
    assert 'in use by Agent "old"' in world.condition("ada", "SecretsResolved")[2]
    assert world.condition("ada", "Stalled")[0] == "True"
    assert not world.machines("ada")
    assert world.operator is not None
    with pytest.raises(Exception, match="in use by an older agent"):
        await value(world, "ada", "two", "token")
    await world.restart()
    await world.settle(30)
    assert world.condition("ada", "SecretsResolved")[1] == Reason.BOT_TOKEN_TAKEN
    assert not world.machines("ada")
    await world.delete("old")
    await world.until_gone("old")
    await world.until_phase("ada", "Running")


@in_a_world
async def test_another_token_heals_the_younger_and_a_rotation_into_the_same_refuses_it_again(world: World) -> None:
    world.store.grant("secrets")
    world.secret("one", token="123:a")
    world.secret("two", token="123:b")
    await world.apply("old", channels=telegram("one"))
    await world.until_phase("old", "Running")
    await world.apply("ada", channels=telegram("two"))
    await world.until_phase("ada", "Running")
    world.store.put_core_secret(NAMESPACE, "one", {"token": "123:b"})
    await world.until(lambda: world.condition("ada", "SecretsResolved")[1] == Reason.BOT_TOKEN_TAKEN, 5)
    assert len(world.machines("ada")) == 1
    world.store.put_core_secret(NAMESPACE, "two", {"token": "123:c"})
    await world.until(lambda: world.condition("ada", "SecretsResolved")[0] == "True", 5)


@in_a_world
async def test_a_change_while_the_first_look_is_under_way_is_looked_at_too(world: World) -> None:
    world.store.grant("secrets")
    for name in ("other", "llm-1"):
        world.store.put_core_secret(NAMESPACE, name, {"api": "one"})
    declare(world, "other", "other")
    await world.until(lambda: secret(world, "other").get("looked") == "Watched", 5)

    def slow_answers(where: Where, call: Call) -> float | None:
        return 2.0 if where == "after" and call.path == core_secret(NAMESPACE, "llm-1") else None

    world.store.meddle = slow_answers
    declare(world)
    await world.settle(1)
    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "two"})
    await world.settle(10)
    assert world.operator is not None
    state = world.operator.table.sources[Key("CoreSecret", NAMESPACE, "llm-1")]
    assert state.prints == {"api": fingerprint(ROOTS.fingerprint, "two")}


@in_a_world
async def test_a_rotation_goes_on_though_the_answer_to_the_write_that_says_ready_was_lost(world: World) -> None:
    await three_on(world)

    def lost(where: Where, call: Call) -> None:
        if where == "after" and call.path == f"{path_of('Agent', 'ada')}/status":
            raise Unreachable(f"PATCH {call.path}", 0, "no answer")

    world.store.meddle = lost
    rotate(world)
    await world.until(lambda: "rotation" not in secret(world) and secret(world)["activeVersion"] == 2, 120)


@in_a_world
async def test_while_kubernetes_does_not_answer_all_who_wait_for_a_look_cost_no_more_than_one(world: World) -> None:
    def down(where: Where, call: Call) -> None:
        if where == "before" and call.path == core_secret(NAMESPACE, "llm-1"):
            raise Unreachable(f"GET {call.path}", 503, "no answer")

    world.store.put_core_secret(NAMESPACE, "llm-1", {"api": "one"})
    world.store.meddle = down
    declare(world)
    for n in range(20):
        await world.apply(f"a-{n}", env=env("llm"))
    await world.settle(60)
    assert 5 <= reads(world, "llm-1") <= 12
    world.store.meddle = lambda where, call: None
    await world.until(lambda: all(world.phase(f"a-{n}") == "Running" for n in range(20)), 200)
