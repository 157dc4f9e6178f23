"""What is an orphan and what is not: one story for each guard, and what must hold for any input."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.agents.names import Names, derive
from roost.fly.types import App, MachineRow, Volume
from roost.housekeeping.findings import MARK, Finding, Here, Key, Living, Sight, Verdict, find, missing, span

HERE = Here("owner1", b"i" * 32, "cluster-1")
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
WEEK = timedelta(days=7)
LONG_AGO, YESTERDAY = "2026-10-01T10:00:00Z", "2026-11-20T12:00:00.123456789Z"
ADA: Key = ("team-a", "ada")
BOB: Key = ("team-a", "bob")


def names(key: Key) -> Names:
    return derive(HERE.identity, HERE.owner_id, *key)


def machine(key: Key = ADA, *, app: str | None = None, **fields: Any) -> MachineRow:
    """A stopped machine of an Agent, as an org's list tells it; `says` changes its metadata."""
    metadata = {
        "roost_owner": HERE.owner_id,
        "roost_cluster": HERE.cluster,
        "roost_namespace": key[0],
        "roost_name": key[1],
        "roost_uid": "uid-1",
    } | fields.pop("says", {})
    row = MachineRow(
        app=names(key).app if app is None else app,
        id="m1",
        name=names(key).machine("vol_1"),
        state="stopped",
        region="iad",
        version="v1",
        private_ip="",
        image="roost/agent",
        metadata=metadata,
        created_at=LONG_AGO,
        updated_at=LONG_AGO,
    )
    return replace(row, **fields)


def volume(key: Key = ADA, *, app: str | None = None, **fields: Any) -> Volume:
    row = Volume(
        app=names(key).app if app is None else app,
        id="vol_1",
        name=names(key).volume,
        state="created",
        region="iad",
        size_gb=10,
        attached_machine_id=None,
        host_status="ok",
        created_at=LONG_AGO,
    )
    return replace(row, **fields)


def app(name: str | None = None, **fields: Any) -> App:
    return App(names(ADA).app if name is None else name, "personal", "", "deployed", **fields)


def living(key: Key, **fields: Any) -> Living:
    nothing: dict[str, Any] = {"deleting": False, "app": None, "machine": None, "volume": None}
    return Living(
        **{"key": key, "credential": "default", "org": "personal", "mentions": frozenset()} | nothing | fields
    )


def found(
    *things: App | MachineRow | Volume,
    agents: tuple[Living, ...] = (),
    namespaces: tuple[str, ...] = ("team-a",),
    secrets: dict[str, frozenset[str]] | None = None,
    problems: tuple[str, ...] = (),
    grace: timedelta = WEEK,
) -> dict[str, Finding]:
    """What is found of these things, by id; the secrets of all apps were read and there are none, unless said."""
    seen = sight(*things, problems=problems)
    read = {thing.name if isinstance(thing, App) else thing.app: frozenset[str]() for thing in things}
    told = find(HERE, agents, namespaces, [seen], read if secrets is None else secrets, now=NOW, grace=grace)
    return {f.id: f for f in told}


def sight(*things: App | MachineRow | Volume, problems: tuple[str, ...] = ()) -> Sight:
    return Sight(
        "default",
        "personal",
        tuple(t for t in things if isinstance(t, App)),
        tuple(t for t in things if isinstance(t, MachineRow)),
        tuple(t for t in things if isinstance(t, Volume)),
        problems,
    )


def verdicts(told: dict[str, Finding]) -> dict[str, str]:
    return {key: str(f.verdict) for key, f in told.items()}


# --- What is an orphan ----------------------------------------------------------------------------------------------


def test_a_machine_its_volume_and_its_app_whose_agent_is_gone_are_orphans_in_the_order_of_deletion() -> None:
    told = found(app(), volume(attached_machine_id="m1"), machine(), agents=(living(BOB),))
    assert list(verdicts(told).items()) == [("m1", "orphan"), ("vol_1", "orphan"), (names(ADA).app, "orphan")]
    assert {f.agent for f in told.values()} == {ADA}


def test_a_volume_alone_in_its_app_is_an_orphan_whatever_its_serial() -> None:
    restored = volume(id="vol_3", name=names(ADA).volume_of(3, "agent/bob"))
    told = found(app(), volume(), volume(id="vol_2", name=names(ADA).volume_of(2)), restored)
    assert verdicts(told) == {"vol_1": "orphan", "vol_2": "orphan", "vol_3": "orphan", names(ADA).app: "orphan"}


@pytest.mark.parametrize("namespaces", [("team-a",), ("default", "team-a", "z")])
def test_an_app_alone_is_an_orphan_when_a_namespace_gives_exactly_its_name(namespaces: tuple[str, ...]) -> None:
    assert verdicts(found(app(), namespaces=namespaces)) == {names(ADA).app: "orphan"}


def test_an_app_alone_of_a_namespace_that_nobody_knows_can_not_be_proven_and_is_not_listed() -> None:
    assert found(app(), namespaces=("default",)) == {}


def test_a_machine_tells_the_namespace_of_an_empty_app() -> None:
    other = app(names(BOB).app)
    told = found(machine(), app(), other, namespaces=())
    assert verdicts(told)[names(BOB).app] == "orphan"


def test_a_destroyed_machine_still_tells_whose_volume_it_was_in_a_shared_app() -> None:
    told = found(app("ours"), machine(app="ours", state="destroyed"), volume(app="ours"))
    assert verdicts(told) == {"vol_1": "orphan"}


def test_of_a_shared_app_only_our_machine_and_our_volume_go() -> None:
    told = found(app("ours"), machine(app="ours"), volume(app="ours"), volume(id="vol_x", app="ours", name="data"))
    assert verdicts(told) == {"m1": "orphan", "vol_1": "orphan"}


# --- What is not ----------------------------------------------------------------------------------------------------


def test_what_has_an_agent_is_not_listed() -> None:
    assert found(app(), machine(), volume(), agents=(living(ADA),)) == {}


def test_what_an_agents_status_mentions_is_not_listed_whoever_it_says_it_belongs_to() -> None:
    bob = living(BOB, mentions=frozenset({"m1", "vol_1", names(ADA).app}))
    assert found(app(), machine(), volume(), agents=(bob,)) == {}


@pytest.mark.parametrize(
    "stranger",
    [
        machine(says={"roost_owner": "owner2"}),
        machine(says={"roost_owner": ""}),
        machine(says={"roost_name": "../ada"}),
        volume(app="theirs"),
        app("roost-ada-0123456789ab"),
        app("theirs"),
    ],
)
def test_what_is_not_ours_is_never_listed(stranger: App | MachineRow | Volume) -> None:
    assert found(stranger) == {}


def test_a_machine_that_only_says_it_is_ours_is_unproven() -> None:
    told = found(app("theirs"), machine(app="theirs", name="web"))
    assert verdicts(told) == {"m1": "unproven"}


def test_a_volume_of_another_name_in_our_app_is_not_ours_and_the_app_waits_for_it() -> None:
    told = found(app(), machine(), volume(name="data"))
    assert verdicts(told) == {"m1": "orphan", names(ADA).app: "waits"}
    assert "holds what is not ours: vol_1" in told[names(ADA).app].why


def test_a_foreign_machine_in_our_app_keeps_the_app() -> None:
    told = found(app(), machine(), machine(id="m2", says={"roost_owner": "somebody"}))
    assert verdicts(told) == {"m1": "orphan", names(ADA).app: "waits"}


def test_an_unproven_machine_does_not_make_its_app_ours() -> None:
    told = found(app(names(BOB).app), machine(app=names(BOB).app, name="web"), namespaces=())
    assert verdicts(told) == {"m1": "unproven"}


def test_a_retained_app_is_listed_as_retained_with_all_that_is_in_it() -> None:
    told = found(app(), machine(), volume(), secrets={names(ADA).app: frozenset({"OTHER", "ROOST_RETAINED"})})
    assert set(verdicts(told).values()) == {"retained"}
    assert len(told) == 3


def test_what_another_cluster_with_our_owner_id_has_is_listed_as_its() -> None:
    told = found(app(), machine(says={"roost_cluster": "cluster-2"}), volume())
    assert set(verdicts(told).values()) == {"other cluster"}
    assert len(told) == 3


def test_where_another_cluster_has_our_owner_id_what_no_machine_dates_to_this_one_is_unproven() -> None:
    theirs = machine(BOB, id="m2", says={"roost_cluster": "cluster-2"})
    told = found(app(), volume(), theirs)
    assert verdicts(told) == {"vol_1": "unproven", names(ADA).app: "unproven", "m2": "other cluster"}


# --- What waits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["starting", "stopping", "replacing", "destroying", "migrating", "brand-new"])
def test_a_machine_that_moves_is_left_until_it_rests_and_so_is_what_it_holds(state: str) -> None:
    told = found(app(), machine(state=state), volume())
    assert set(verdicts(told).values()) == {"waits"}
    assert told["m1"].why == f"it is {state}"


def test_what_has_changed_within_the_grace_waits_and_with_it_what_it_holds() -> None:
    told = found(app(), machine(updated_at=YESTERDAY), volume())
    assert set(verdicts(told).values()) == {"waits"}
    assert told["m1"].why == "for less than 7d"
    assert set(verdicts(found(app(), machine(updated_at=YESTERDAY), grace=timedelta(hours=20))).values()) == {"orphan"}


@pytest.mark.parametrize("time", ["", "yesterday", "2026-10-01T10:00:00", "2027-01-01T00:00:00Z"])
def test_a_time_that_can_not_be_read_or_is_still_to_come_proves_no_age(time: str) -> None:
    assert verdicts(found(machine(updated_at=time)))["m1"] == "waits"


def test_a_running_machine_is_marked_first_and_goes_when_it_has_been_without_an_agent_for_the_grace() -> None:
    running = machine(state="started")
    first = found(running)["m1"]
    assert (first.verdict, first.to_mark) == ("waits", True)
    for since, verdict in ((YESTERDAY, "waits"), (LONG_AGO, "orphan")):
        marked = found(replace(running, metadata=dict(running.metadata) | {MARK: f"uid-1 {since}"}))["m1"]
        assert (marked.verdict, marked.to_mark) == (verdict, False)


def test_a_mark_from_before_another_agent_took_the_machine_over_does_not_count() -> None:
    again = found(machine(state="started", says={MARK: f"uid-0 {LONG_AGO}"}))["m1"]
    assert (again.verdict, again.to_mark) == ("waits", True)


def test_without_grace_a_running_machine_goes_at_once() -> None:
    told = found(app(), machine(state="started", updated_at=""), volume(), grace=timedelta())
    assert set(verdicts(told).values()) == {"orphan"}
    assert not told["m1"].to_mark


def test_a_volume_that_a_machine_holds_waits() -> None:
    told = found(app(), volume(attached_machine_id="m9"))
    assert verdicts(told) == {"vol_1": "waits", names(ADA).app: "waits"}


def test_a_volume_that_is_being_filled_waits() -> None:
    assert verdicts(found(app(), volume(state="restoring")))["vol_1"] == "waits"


def test_a_young_volume_waits_and_its_app_with_it() -> None:
    told = found(app(), machine(), volume(created_at=YESTERDAY))
    assert verdicts(told) == {"m1": "orphan", "vol_1": "waits", names(ADA).app: "waits"}


def test_an_empty_app_in_which_something_was_destroyed_a_short_while_ago_waits() -> None:
    gone = machine(state="destroyed", updated_at=YESTERDAY)
    assert verdicts(found(app(), gone)) == {names(ADA).app: "waits"}


# --- What is unknown ------------------------------------------------------------------------------------------------


def test_where_anything_could_not_be_read_all_is_unknown() -> None:
    told = found(app(), machine(), volume(), problems=("no machines of ams",))
    assert set(verdicts(told).values()) == {"unknown"}


def test_what_is_in_an_app_whose_secrets_were_not_read_is_unknown() -> None:
    assert set(verdicts(found(app(), machine(), volume(), secrets={})).values()) == {"unknown"}


def test_an_app_in_which_fly_counts_more_than_it_lists_is_unknown() -> None:
    assert verdicts(found(app(machine_count=1, volume_count=0))) == {names(ADA).app: "unknown"}
    assert verdicts(found(app(machine_count=0, volume_count=1))) == {names(ADA).app: "unknown"}


def test_a_problem_of_one_credential_makes_the_org_unknown_for_the_other_too() -> None:
    whole = sight(app(), machine())
    part = Sight("second", "personal", problems=("no",))
    told = find(HERE, [], ["team-a"], [whole, part], {names(ADA).app: frozenset()}, now=NOW, grace=WEEK)
    assert {f.verdict for f in told} == {Verdict.UNKNOWN}


def test_two_credentials_that_see_the_same_find_it_once() -> None:
    whole = sight(app(), machine())
    again = replace(whole, credential="second")
    told = find(HERE, [], ["team-a"], [whole, again], {names(ADA).app: frozenset()}, now=NOW, grace=WEEK)
    assert [f.id for f in told] == ["m1", names(ADA).app]


# --- The other way round --------------------------------------------------------------------------------------------


def ada_at_fly() -> Living:
    return living(ADA, app=names(ADA).app, machine="m1", volume="vol_1")


def test_an_agent_whose_things_are_all_there_misses_nothing() -> None:
    assert missing([ada_at_fly()], [sight(app(), machine(), volume())]) == []


def test_an_agent_whose_machine_or_volume_is_gone_misses_it() -> None:
    told = missing([ada_at_fly()], [sight(app(), machine(state="destroyed"), volume(state="pending_destroy"))])
    assert [(f.kind, f.id, f.verdict) for f in told] == [("machine", "m1", "missing"), ("volume", "vol_1", "missing")]


def test_an_agent_whose_app_is_gone_misses_the_app() -> None:
    told = missing([ada_at_fly()], [sight(machine(), volume())])
    assert [(f.kind, f.id) for f in told] == [("app", names(ADA).app)]


def test_where_the_list_is_not_whole_nothing_is_missing_but_unknown() -> None:
    told = missing([ada_at_fly()], [sight(app(), volume(), problems=("no machines of ams",))])
    assert [(f.kind, f.verdict) for f in told] == [("machine", "unknown")]


def test_an_agent_that_leaves_or_has_nothing_yet_or_is_elsewhere_misses_nothing() -> None:
    others = [
        replace(ada_at_fly(), deleting=True),
        living(BOB),
        replace(ada_at_fly(), org="other"),
    ]
    assert missing(others, [sight()]) == []


# --- Whatever there is ----------------------------------------------------------------------------------------------

KEYS = [(namespace, name) for namespace in ("a", "b") for name in ("ada", "bob")]
APPS = ["theirs", *(names(key).app for key in KEYS)]
TIMES = st.sampled_from([LONG_AGO, YESTERDAY, "", "2030-01-01T00:00:00Z"])
OWNERS = st.sampled_from([HERE.owner_id, HERE.owner_id, "owner2", ""])
MACHINE_NAMES = st.sampled_from(["web", *(names(key).machine("vol_1") for key in KEYS)])
VOLUME_NAMES = st.sampled_from(["data", *(names(key).volume_of(n) for key in KEYS for n in (1, 2))])
ANY_MACHINES = st.builds(
    lambda key, owner, cluster, **fields: machine(key, says={"roost_owner": owner, "roost_cluster": cluster}, **fields),
    st.sampled_from(KEYS),
    OWNERS,
    st.sampled_from([HERE.cluster, HERE.cluster, "cluster-2"]),
    id=st.sampled_from(["m1", "m2", "m3"]),
    app=st.sampled_from(APPS),
    name=MACHINE_NAMES,
    state=st.sampled_from(["started", "stopped", "starting", "destroyed"]),
    updated_at=TIMES,
)
ANY_VOLUMES = st.builds(
    volume,
    id=st.sampled_from(["vol_1", "vol_2", "vol_3"]),
    app=st.sampled_from(APPS),
    name=VOLUME_NAMES,
    created_at=TIMES,
    state=st.sampled_from(["created", "pending_destroy", "restoring"]),
    attached_machine_id=st.sampled_from([None, "m1", "m2"]),
)
# Beside what is put together at random, what an Agent leaves: otherwise hardly anything would ever be an orphan.
MACHINES = ANY_MACHINES | st.builds(
    lambda key, owner, name: machine(key, id=name, says={"roost_owner": owner}),
    st.sampled_from(KEYS),
    OWNERS,
    st.sampled_from(["m1", "m2", "m3"]),
)
VOLUMES = ANY_VOLUMES | st.builds(
    volume,
    st.sampled_from(KEYS),
    id=st.sampled_from(["vol_1", "vol_2", "vol_3"]),
    attached_machine_id=st.sampled_from([None, "m1", "m2"]),
)
SIGHTS = st.builds(
    lambda apps, machines, volumes: sight(*map(app, apps), *machines, *volumes),
    st.sets(st.sampled_from(APPS), min_size=3),
    st.lists(MACHINES, max_size=3, unique_by=lambda m: m.id),
    st.lists(VOLUMES, max_size=3, unique_by=lambda v: v.id),
)
AGENTS = st.lists(
    st.builds(
        lambda key, mentions: living(key, mentions=frozenset(mentions)),
        st.sampled_from(KEYS),
        st.sets(st.sampled_from(["m1", "vol_1", *APPS]), max_size=2),
    ),
    max_size=3,
)
NAMES_OF_SECRETS = st.sampled_from([frozenset[str](), frozenset({"OTHER"}), frozenset({"ROOST_RETAINED"})])
SECRETS = st.dictionaries(st.sampled_from(APPS), NAMES_OF_SECRETS, min_size=4)


@settings(max_examples=500)
@given(AGENTS, SIGHTS, SECRETS, st.sampled_from([WEEK, timedelta()]))
def test_whatever_there_is_nothing_of_a_living_agent_and_nothing_foreign_is_ever_deleted(
    agents: list[Living], seen: Sight, secrets: dict[str, frozenset[str]], grace: timedelta
) -> None:
    told = find(HERE, agents, ["a", "b"], [seen], secrets, now=NOW, grace=grace)
    doomed = {f.id: f for f in told if f.verdict is Verdict.ORPHAN}
    touched = doomed | {f.id: f for f in told if f.to_mark}
    live = {agent.key for agent in agents}
    mentioned = {word for agent in agents for word in agent.mentions}
    assert not touched.keys() & mentioned
    for f in touched.values():
        assert f.agent not in live
        assert "ROOST_RETAINED" not in secrets[f.app]
        match f.thing:
            case MachineRow() as row:
                assert row.metadata["roost_owner"] == HERE.owner_id
                assert row.metadata["roost_cluster"] == HERE.cluster
                assert (row.metadata["roost_namespace"], row.metadata["roost_name"]) == f.agent
                assert row.app == names(f.agent).app or row.name == names(f.agent).machine("vol_1")
            case Volume() as one:
                assert one.name in {names(f.agent).volume_of(n) for n in (1, 2)}
                assert one.attached_machine_id is None or one.attached_machine_id in doomed
            case App() as one:
                assert one.name == names(f.agent).app
                assert one.name not in {names(key).app for key in live}
                inside = [m.id for m in seen.machines if m.app == one.name and m.state != "destroyed"]
                inside += [v.id for v in seen.volumes if v.app == one.name and not v.deleted]
                assert set(inside) <= doomed.keys(), "an app takes everything in it along"


@given(AGENTS, SIGHTS)
def test_whatever_there_is_nothing_is_deleted_where_something_could_not_be_read(
    agents: list[Living], seen: Sight
) -> None:
    secrets = dict.fromkeys(APPS, frozenset[str]())
    partly = replace(seen, problems=("machines of ams",))
    told = find(HERE, agents, ["a", "b"], [partly], secrets, now=NOW, grace=timedelta())
    assert not [f for f in told if f.verdict is Verdict.ORPHAN or f.to_mark]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5s"), (90, "90s"), (7200, "2h"), (36 * 3600, "36h"), (7 * 86400, "7d")]
)
def test_a_length_of_time_is_told_in_the_largest_unit_of_which_it_has_two(seconds: int, text: str) -> None:
    assert span(seconds) == text
