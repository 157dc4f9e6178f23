"""Where references lead, who is told of what, and when a rotation moves: tables and pure functions, no loop."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.api.conditions import Reason
from roost.kube.records import Cache, Key, Record, record
from roost.secrets import rotation
from roost.secrets.lookup import Found, Lookup, Missing, Stage, stage_of
from roost.secrets.rotation import Offers
from roost.secrets.state import Ref, Resolution, SourceState, fingerprint
from roost.secrets.table import SecretTable

ROOT, HOME, TEAM = b"r" * 32, "roost-system", "team-a"
ADA, BOB, EVE = (Key("Agent", TEAM, name) for name in ("ada", "bob", "eve"))
API_KEY = Ref("anthropic", "api-key")
OLD, NEW, NEVER = "anthropic-v1", "anthropic-v2", "anthropic-v3"
NOW, LATER = "2026-11-21T10:00:00Z", "2026-11-21T10:05:01Z"


class Room:
    """A table with objects as the API server would tell of them, and what it woke."""

    def __init__(self) -> None:
        self.cache, self.woken, self._version = Cache(), list[Key](), 0
        self.table = SecretTable(Lookup(self.cache, HOME), self.woken.append)

    def put(self, key: Key, spec: Mapping[str, Any], status: Mapping[str, Any] | None = None, **meta: Any) -> Record:
        self._version += 1
        plain = {
            "namespace": key.namespace,
            "name": key.name,
            "uid": f"uid-{key.namespace}-{key.name}",
            "resourceVersion": str(self._version),
            "generation": self._version,
            "creationTimestamp": NOW,
        }
        found = record({"kind": key.kind, "metadata": plain | meta, "spec": spec, "status": status or {}})
        self.cache.put(found)
        return found

    def secret(
        self, name: str = "anthropic", namespace: str = TEAM, source: str = OLD, *, status: Any = None, **spec: Any
    ) -> Key:
        key = Key("Secret", namespace, name)
        told = {"activeVersion": 1} if status is None else status
        self.put(key, {"source": {"secretRef": {"name": source}}} | spec, told)
        return key

    def agent(self, key: Key, *refs: Ref, bots: tuple[Ref, ...] = (), created: str = NOW, **labels: str) -> None:
        self.put(key, {}, labels=labels, creationTimestamp=created)
        self.table.uses(key, [*refs, *bots], bots)

    def seen(self, name: str, namespace: str = TEAM, **values: str) -> None:
        prints = {k.replace("_", "-"): fingerprint(ROOT, v) for k, v in values.items()}
        self.table.sources[Key("CoreSecret", namespace, name)] = SourceState(prints)

    def source(self, agent: Key = ADA, ref: Ref = API_KEY) -> str | None:
        found = self.table.lookup.find(agent, ref)
        return f"{found.source.namespace}/{found.source.name}" if isinstance(found, Found) else None

    def missing(self, agent: Key = ADA, ref: Ref = API_KEY) -> Missing:
        found = self.table.lookup.find(agent, ref)
        assert isinstance(found, Missing)
        return found


@pytest.fixture
def room() -> Room:
    return Room()


# --- The order ------------------------------------------------------------------------------------------------------


def test_the_agents_own_comes_first_then_the_namespaces_then_the_one_that_is_offered_from_home(room: Room) -> None:
    room.agent(ADA, API_KEY)
    assert room.source() is None
    room.secret(namespace=HOME, source="home", availableTo={"namespaces": [TEAM]})
    assert room.source() == "roost-system/home"
    room.secret(source="here")
    assert room.source() == "team-a/here"
    room.secret("anthropic.ada", source="own")
    assert room.source() == "team-a/own"
    assert room.source(BOB) == "team-a/here"


def test_at_home_nothing_needs_to_be_offered(room: Room) -> None:
    room.secret(namespace=HOME, source="home")
    assert room.source(Key("Agent", HOME, "ada")) == "roost-system/home"
    assert room.source() is None


def test_a_secret_beside_a_stranger_is_offered_by_nobody(room: Room) -> None:
    room.secret(namespace="team-b", source="theirs", availableTo={"namespaces": ["*"]})
    assert room.source() is None


def test_one_that_is_not_offered_to_the_agent_is_passed_by(room: Room) -> None:
    room.secret("anthropic.ada", source="own", availableTo={"agentSelector": {"matchLabels": {"tier": "gold"}}})
    room.secret(source="here")
    room.agent(ADA, API_KEY, tier="silver")
    assert room.source() == "team-a/here"
    room.agent(ADA, API_KEY, tier="gold")
    assert room.source() == "team-a/own"


def test_one_that_is_going_is_not_there(room: Room) -> None:
    room.secret()
    found = room.cache.get(Key("Secret", TEAM, "anthropic"))
    assert found is not None
    room.put(found.key, found.spec, found.status, deletionTimestamp=NOW, finalizers=["theirs"])
    assert room.missing().reason is Reason.SECRET_MISSING


def test_a_secret_that_is_not_declared_is_missing_with_the_command_that_makes_it(room: Room) -> None:
    lack = room.missing()
    assert lack.reason is Reason.SECRET_MISSING
    assert 'secrets.roost.dev "anthropic" not found in namespace "team-a"' in lack.message
    assert "kubectl -n team-a create secret generic anthropic --from-literal=api-key=VALUE" in lack.message


def test_a_stranger_learns_of_a_secret_at_home_only_that_it_is_not_for_him(room: Room) -> None:
    offer = {"namespaces": ["team-b"], "agentSelector": {"matchLabels": {"tier": "gold"}}}
    room.secret(namespace=HOME, source="very-private", availableTo=offer)
    lack = room.missing()
    assert lack.reason is Reason.SECRET_NOT_OFFERED
    assert "not offered to this namespace" in lack.message
    for hidden in ("very-private", "team-b", "gold", "tier", HOME):
        assert hidden not in lack.message


def test_a_spec_that_this_version_can_not_read_is_said(room: Room) -> None:
    room.put(Key("Secret", TEAM, "anthropic"), {"source": {"vaultRef": {}}})
    assert room.missing().reason is Reason.SPEC_INVALID


# --- What an Agent's references resolve to --------------------------------------------------------------------------


def test_before_a_look_nothing_is_known_and_a_look_is_asked_for(room: Room) -> None:
    room.secret()
    room.agent(ADA, API_KEY)
    room.woken.clear()
    assert room.table.resolve(ADA) == Resolution(known=False)
    assert Key("CoreSecret", TEAM, OLD) in room.woken
    assert room.table.asked == {Key("CoreSecret", TEAM, OLD)}


def test_before_its_version_was_counted_nothing_is_known(room: Room) -> None:
    room.secret(status={})
    room.seen(OLD, api_key="x")
    room.agent(ADA, API_KEY)
    assert room.table.resolve(ADA) == Resolution(known=False)


def test_an_agent_without_references_needs_nothing(room: Room) -> None:
    assert room.table.resolve(ADA) == Resolution(known=True)


def test_what_is_found_comes_with_its_version_and_fingerprint(room: Room) -> None:
    room.secret(status={"activeVersion": 3})
    room.seen(OLD, api_key="x")
    room.seen("raw", a="y")
    direct = Ref("raw", "a", "CoreSecret")
    room.agent(ADA, API_KEY, API_KEY, direct)
    assert room.table.resolve(ADA) == Resolution(
        known=True,
        versions=(("anthropic", 3),),
        fingerprints=((direct, fingerprint(ROOT, "y")), (API_KEY, fingerprint(ROOT, "x"))),
    )


def test_a_key_that_is_not_on_offer_is_missing_and_those_on_offer_are_named(room: Room) -> None:
    room.secret()
    room.seen(OLD, token="t", user="u")
    room.agent(ADA, API_KEY)
    answer = room.table.resolve(ADA)
    assert answer.missing_reason is Reason.SECRET_KEY_MISSING
    assert 'has no key "api-key" (it has: token, user)' in answer.missing[0]


def test_the_secrets_own_trouble_is_told_once_however_many_keys_are_wanted(room: Room) -> None:
    room.secret()
    room.table.sources[Key("CoreSecret", TEAM, OLD)] = SourceState(absent=True)
    room.agent(ADA, API_KEY, Ref("anthropic", "other"))
    answer = room.table.resolve(ADA)
    assert len(answer.missing) == 1
    assert answer.missing_reason is Reason.SECRET_MISSING


# --- Who is told ----------------------------------------------------------------------------------------------------


def test_those_who_look_for_a_secret_are_known_until_they_refer_to_it_no_more(room: Room) -> None:
    here, own = Key("Secret", TEAM, "anthropic"), Key("Secret", TEAM, "anthropic.ada")
    home, theirs = Key("Secret", HOME, "anthropic"), Key("Secret", "team-b", "anthropic")
    room.agent(ADA, API_KEY, Ref("telegram", "token"))
    room.agent(BOB, API_KEY)
    assert room.table.looking_for(here) == room.table.looking_for(home) == {ADA, BOB}
    assert room.table.looking_for(own) == {ADA}
    assert room.table.looking_for(theirs) == set()
    room.agent(ADA, Ref("telegram", "token"))
    assert room.table.looking_for(here) == {BOB}
    assert room.table.looking_for(own) == set()


def test_a_secret_is_woken_when_somebody_begins_or_ends_to_refer_to_it(room: Room) -> None:
    here = room.secret()
    room.agent(ADA, API_KEY)
    assert room.woken == [here]
    room.woken.clear()
    room.agent(ADA, API_KEY)
    assert room.woken == []
    room.table.uses(ADA, ())
    assert room.woken == [here]


def test_users_are_those_who_find_it_first(room: Room) -> None:
    here, own = room.secret(), room.secret("anthropic.bob", source="own")
    home = room.secret(namespace=HOME, source="home", availableTo={"namespaces": ["*"]})
    stranger = Key("Agent", "team-b", "zoe")
    for agent in (EVE, BOB, ADA, stranger):
        room.agent(agent, API_KEY)
    assert room.table.users_of(here) == [ADA, EVE]
    assert room.table.users_of(own) == [BOB]
    assert room.table.users_of(home) == [stranger]


NAMES = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(st.sampled_from([ADA, BOB]), st.sets(NAMES))))
def test_users_are_always_exactly_those_whose_last_references_name_it(history: list[tuple[Key, set[str]]]) -> None:
    room, last = Room(), dict[Key, set[str]]()
    for agent, names in history:
        room.agent(agent, *(Ref(name, "key") for name in names))
        last[agent] = names
    for name in "abc":
        expected = {agent for agent, names in last.items() if name in names}
        assert room.table.looking_for(Key("Secret", TEAM, name)) == expected
        assert room.table.looking_for(Key("Secret", HOME, name)) == expected
    room.table.uses(ADA, ())
    room.table.uses(BOB, ())
    assert room.table._users == room.table._uses == room.table._refs == {}


# --- One bot, one Agent ---------------------------------------------------------------------------------------------

BOT = Ref("bot", "token", "CoreSecret")


def test_the_younger_of_two_with_the_same_bot_is_refused_whichever_is_looked_at_first(room: Room) -> None:
    room.seen("bot", token="123:x")
    room.agent(BOB, bots=(BOT,), created="2026-11-21T09:00:00Z")
    room.agent(ADA, bots=(BOT,), created="2026-11-21T10:00:00Z")
    room.table.resolve(ADA)
    room.woken.clear()
    assert room.table.resolve(BOB).missing == ()
    assert room.woken == [ADA]
    answer = room.table.resolve(ADA)
    assert answer.missing_reason is Reason.BOT_TOKEN_TAKEN
    assert 'in use by Agent "bob"' in answer.missing[0]
    assert answer.fingerprints == ()
    room.table.uses(BOB, ())
    assert room.table.resolve(ADA).missing == ()


def test_of_two_of_the_same_second_the_name_decides_and_abroad_no_name_is_told(room: Room) -> None:
    theirs = Key("Agent", "team-0", "zoe")
    room.seen("bot", token="123:x")
    room.seen("bot", "team-0", token="123:x")
    for agent in (ADA, theirs):
        room.agent(agent, bots=(BOT,))
        room.table.resolve(agent)
    assert room.table.resolve(theirs).missing == ()
    assert "zoe" not in room.table.resolve(ADA).missing[0]


def test_a_key_that_is_no_bots_token_may_be_shared(room: Room) -> None:
    room.seen("bot", token="123:x")
    for agent in (ADA, BOB):
        room.agent(agent, BOT)
        assert room.table.resolve(agent).missing == ()


def test_after_a_restart_one_that_was_refused_waits_until_the_older_was_looked_at(room: Room) -> None:
    room.seen("bot", token="123:x")
    room.agent(BOB, bots=(BOT,), created="2026-11-21T09:00:00Z")
    room.agent(ADA, bots=(BOT,))
    refused = {"conditions": [{"type": "SecretsResolved", "status": "False", "reason": "BotTokenTaken"}]}
    room.put(ADA, {}, refused)
    assert room.table.resolve(ADA) == Resolution(known=False)
    room.table.resolve(BOB)
    assert room.table.resolve(ADA).missing_reason is Reason.BOT_TOKEN_TAKEN


# --- Staged rotation ------------------------------------------------------------------------------------------------


def moving(at: str, source: str = NEW, **spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spec and the status of a Secret whose rotation is at an Agent of the team."""
    status = {"activeRef": NEW, "previousRef": OLD, "activeVersion": 2, "rotatedFrom": 1}
    status |= {"rotation": {"at": f"{TEAM}/{at}", "since": NOW}}
    return {"source": {"secretRef": {"name": source}}, "rotation": {"strategy": "Staged"}} | spec, status


def test_those_up_to_the_mark_have_the_new_values_and_those_behind_it_the_old(room: Room) -> None:
    room.put(Key("Secret", TEAM, "anthropic"), *moving("bob"))
    assert [room.source(agent) for agent in (ADA, BOB, EVE)] == [f"team-a/{s}" for s in (NEW, NEW, OLD)]
    found = [room.table.lookup.find(agent, API_KEY) for agent in (BOB, EVE)]
    assert [f.version for f in found if isinstance(f, Found)] == [2, 1]


def test_back_to_the_one_before_is_back_for_everybody_before_anybody_wrote_anything(room: Room) -> None:
    room.put(Key("Secret", TEAM, "anthropic"), *moving("bob", source=OLD))
    assert {room.source(agent) for agent in (ADA, BOB, EVE)} == {f"team-a/{OLD}"}


def test_a_switch_moves_nobody_before_the_operator_has_begun_it(room: Room) -> None:
    room.put(Key("Secret", TEAM, "anthropic"), *moving("bob", source=NEVER))
    assert [room.source(agent) for agent in (ADA, EVE)] == [f"team-a/{s}" for s in (NEW, OLD)]
    room.secret(source=NEW, status={"activeRef": OLD, "activeVersion": 1}, rotation={"strategy": "Staged"})
    assert room.source() == f"team-a/{OLD}"
    room.secret(source=NEW, status={"activeRef": OLD, "activeVersion": 1})
    assert room.source() == f"team-a/{NEW}", "Immediate waits for nobody"


def test_namespaces_are_ordered_as_names_not_as_text_with_a_slash(room: Room) -> None:
    first, second = Key("Agent", "a", "zoe"), Key("Agent", "a-b", "ada")
    assert first < second
    spec, status = moving("x", availableTo={"namespaces": ["*"]})
    status["rotation"]["at"] = "a/zoe"
    room.put(Key("Secret", HOME, "anthropic"), spec, status)
    assert [room.source(agent) for agent in (first, second)] == [f"{HOME}/{NEW}", f"{HOME}/{OLD}"]


def began(before: Stage, declared: str, **digests: str | None) -> Stage | None:
    named = {{"old": OLD, "new": NEW, "never": NEVER}[k]: v for k, v in digests.items()}
    return rotation.begin(before, Offers(declared, named), lambda: [ADA, BOB], LATER)


def test_a_rotation_begins_with_the_first_agent() -> None:
    assert began(Stage(OLD), NEW, old="1", new="2") == Stage(NEW, OLD, ("team-a", "ada"), LATER)


def test_there_is_nothing_to_stage_at_first_for_the_same_values_for_nobody_and_from_what_is_gone() -> None:
    assert began(Stage(None), NEW, new="2") == Stage(NEW)
    assert began(Stage(OLD), NEW, old="1", new="1") == Stage(NEW)
    assert began(Stage(OLD), NEW, old=None, new="2") == Stage(NEW)
    assert rotation.begin(Stage(OLD), Offers(NEW, {OLD: "1", NEW: "2"}), list, LATER) == Stage(NEW)


def test_to_what_can_not_serve_nothing_moves() -> None:
    assert began(Stage(OLD), NEW, old="1", new=None) is None


def test_a_third_one_begins_anew_from_the_last_that_was_good_for_all() -> None:
    before = Stage(NEW, OLD, ("team-a", "bob"), NOW)
    assert began(before, NEVER, old="1", new="2", never="3") == Stage(NEVER, OLD, ("team-a", "ada"), LATER)


@pytest.mark.parametrize("there", ["1", None])
def test_back_to_the_one_before_is_back_at_once_whether_it_can_serve_or_not(there: str | None) -> None:
    before = Stage(NEW, OLD, ("team-a", "bob"), NOW)
    assert began(before, OLD, old=there, new="2") == Stage(OLD)


def test_the_mark_moves_on_when_that_agent_is_done_and_the_rotation_ends_behind_the_last() -> None:
    at_ada = Stage(NEW, OLD, ("team-a", "ada"), NOW)
    at_bob = Stage(NEW, OLD, ("team-a", "bob"), LATER)
    assert rotation.advance(at_ada, lambda _: False, lambda: [ADA, BOB], LATER) == at_ada
    assert rotation.advance(at_ada, lambda _: True, lambda: [ADA, BOB], LATER) == at_bob
    assert rotation.advance(at_bob, lambda _: True, lambda: [ADA, BOB], LATER) == Stage(NEW)


def test_the_stage_is_read_back_as_it_was_written(room: Room) -> None:
    found = room.put(Key("Secret", TEAM, "anthropic"), *moving("bob"))
    assert stage_of(found) == Stage(NEW, OLD, ("team-a", "bob"), NOW)


def running(version: int = 2, **other: Any) -> dict[str, Any]:
    conditions = [{"type": kind, "status": "True", "reason": "X"} for kind in ("Ready", "ConfigApplied")]
    return {
        "observedGeneration": 1,
        "secrets": [{"name": "anthropic", "version": version}],
        "conditions": conditions,
    } | other


@pytest.mark.parametrize(
    ("status", "over"),
    [
        (running(), True),
        (running(1), False),
        (running(observedGeneration=0), False),
        (running(conditions=[{"type": "ConfigApplied", "status": "True", "reason": "X"}]), False),
        (running(conditions=[{"type": "Ready", "status": "True", "reason": "X"}]), False),
        ({}, False),
    ],
)
def test_an_agents_turn_is_over_when_it_is_ready_with_the_version_as_it_is_declared_now(
    room: Room, status: dict[str, Any], over: bool
) -> None:
    agent = room.put(ADA, {}, status, generation=1)
    assert rotation.passed(agent, "anthropic", 2) is over


@pytest.mark.parametrize(
    ("spec", "meta", "status"),
    [
        ({"desiredState": "Stopped"}, {}, {}),
        ({"desiredState": "Suspended"}, {}, {}),
        ({"paused": True}, {}, {}),
        ({"revoked": True}, {}, {}),
        ({}, {"annotations": {"roost.dev/revoked": "yes"}}, {}),
        ({}, {"deletionTimestamp": NOW}, {}),
        ({}, {}, {"conditions": [{"type": "ConfigApplied", "status": "Unknown", "reason": "NotNeeded"}]}),
    ],
)
def test_who_is_down_on_purpose_takes_no_part(
    room: Room, spec: dict[str, Any], meta: dict[str, Any], status: dict[str, Any]
) -> None:
    assert rotation.rests(room.put(ADA, spec, status, **meta))
    assert not rotation.rests(room.put(BOB, {"desiredState": "Running"}, running()))


def test_an_agent_is_waited_for_as_long_as_it_may_take_to_be_ready_and_for_five_minutes_at_least(room: Room) -> None:
    quick = room.put(ADA, {"runtime": {"readiness": {"initialDeadlineSeconds": 10}}})
    slow = room.put(BOB, {"runtime": {"readiness": {"initialDeadlineSeconds": 900}}})
    assert (
        rotation.deadline(quick, NOW).isoformat()
        == rotation.deadline(None, NOW).isoformat()
        == "2026-11-21T10:05:00+00:00"
    )
    assert rotation.deadline(slow, NOW).isoformat() == "2026-11-21T10:15:00+00:00"
