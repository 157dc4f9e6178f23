"""What Kubernetes told us: the newest wins, another uid is another object, owners find what is theirs."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roost.kube.objects import merge_patch, new_condition
from roost.kube.records import Cache, Key, Record, record

ADA = Key("Agent", "team-a", "ada")


def body(name: str = "ada", *, uid: str = "u1", version: int = 5, **metadata: Any) -> dict[str, Any]:
    plain = {
        "namespace": "team-a",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "creationTimestamp": "2026-11-21T10:00:00Z",
    }
    return {"kind": "Agent", "metadata": plain | metadata, "spec": {"a": 1}, "status": {"b": 2}}


def seen(name: str = "ada", *, uid: str = "u1", version: int = 5, owner: str | None = None) -> Record:
    owners = [{"uid": "another", "kind": "X"}, {"uid": owner, "kind": "Fleet", "controller": True}] if owner else []
    return record(body(name, uid=uid, version=version, ownerReferences=owners))


# --- Records --------------------------------------------------------------------------------------------------------


def test_a_record_has_what_reconciling_needs_and_no_more() -> None:
    found = record(
        body(
            generation=3,
            finalizers=["roost.dev/machine"],
            labels={"roost.dev/fleet": "support", "app": "x"},
            annotations={"roost.dev/revoked": "true", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            managedFields=[{"manager": "kubectl"}],
        )
    )
    assert found.key == ADA
    assert (found.uid, found.version, found.generation, found.deleting) == ("u1", 5, 3, False)
    assert found.finalizers == ("roost.dev/machine",)
    assert found.labels == {"roost.dev/fleet": "support", "app": "x"}
    assert found.annotations == {"roost.dev/revoked": "true"}
    assert (found.spec, found.status, found.owner_uid) == ({"a": 1}, {"b": 2}, None)
    assert "managedFields" not in repr(found)


def test_only_the_controller_is_the_owner() -> None:
    assert record(body(ownerReferences=[{"uid": "somebody", "kind": "X"}])).owner_uid is None
    assert seen(owner="fleet").owner_uid == "fleet"


def test_an_object_that_is_going_says_so() -> None:
    assert record(body(deletionTimestamp="2026-11-21T10:00:00Z")).deleting


def test_a_key_reads_as_people_write_it() -> None:
    assert str(ADA) == "Agent/team-a/ada"


# --- The cache ------------------------------------------------------------------------------------------------------


def test_an_older_one_does_not_replace_a_newer_one() -> None:
    cache, newer = Cache(), seen(version=10)
    cache.put(newer)
    assert cache.put(seen(version=9)) is newer
    assert cache.get(ADA) is newer


def test_versions_are_compared_as_numbers_not_as_text() -> None:
    cache = Cache()
    cache.put(seen(version=9))
    cache.put(seen(version=10))
    found = cache.get(ADA)
    assert found is not None
    assert found.version == 10


def test_an_object_made_again_under_its_name_replaces_the_one_before_whatever_the_versions_say() -> None:
    cache = Cache()
    cache.put(seen(uid="first", version=10))
    cache.put(seen(uid="second", version=3))
    found = cache.get(ADA)
    assert found is not None
    assert found.uid == "second"


def test_news_that_the_one_before_is_gone_do_not_drop_its_successor() -> None:
    cache = Cache()
    cache.put(seen(uid="second"))
    assert cache.drop(ADA, "first") is None
    assert cache.get(ADA) is not None
    assert cache.drop(ADA, "second") is not None
    assert cache.get(ADA) is None


def test_one_whose_end_was_told_does_not_come_back_with_an_old_list() -> None:
    cache = Cache()
    cache.put(seen(uid="first", version=5))
    cache.bury(ADA, "first")
    assert cache.put(seen(uid="first", version=4)) is None
    assert cache.get(ADA) is None
    cache.put(seen(uid="second", version=3))
    cache.put(seen(uid="first", version=9))
    found = cache.get(ADA)
    assert found is not None
    assert found.uid == "second"


def test_one_that_only_did_not_answer_comes_back() -> None:
    cache = Cache()
    cache.put(seen(uid="first"))
    cache.drop(ADA, "first")
    cache.put(seen(uid="first"))
    assert cache.get(ADA) is not None


def test_an_owner_finds_what_is_its_own_until_it_is_so_no_more() -> None:
    cache = Cache()
    cache.put(seen("ada", owner="fleet"))
    cache.put(seen("grace", uid="u2", owner="fleet"))
    cache.put(seen("joan", uid="u3"))
    assert {r.key.name for r in cache.owned_by("fleet")} == {"ada", "grace"}
    cache.put(seen("ada", version=6))  # set free
    assert {r.key.name for r in cache.owned_by("fleet")} == {"grace"}
    cache.put(seen("ada", version=7, owner="other"))
    cache.drop(Key("Agent", "team-a", "grace"), "u2")
    assert cache.owned_by("fleet") == []
    assert [r.key.name for r in cache.owned_by("other")] == ["ada"]


NAMES = st.sampled_from(["ada", "grace"])
UIDS = st.sampled_from(["u1", "u2"])
OWNERS = st.sampled_from([None, "f1", "f2"])


class AnyNews(RuleBasedStateMachine):
    """The cache beside one plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache()
        self.model: dict[Key, Record] = {}

    @rule(name=NAMES, uid=UIDS, version=st.integers(1, 5), owner=OWNERS)
    def told(self, name: str, uid: str, version: int, owner: str | None) -> None:
        new = seen(name, uid=uid, version=version, owner=owner)
        old = self.model.get(new.key)
        assert self.cache.put(new) == old
        if old is None or old.uid != uid or old.version <= version:
            self.model[new.key] = new

    @rule(name=NAMES, uid=UIDS)
    def gone(self, name: str, uid: str) -> None:
        key = Key("Agent", "team-a", name)
        old = self.model.get(key)
        expected = old if old is not None and old.uid == uid else None
        assert self.cache.drop(key, uid) == expected
        if expected is not None:
            del self.model[key]

    @invariant()
    def the_same(self) -> None:
        assert {r.key: r for r in self.cache.of_kind("Agent")} == self.model
        for owner in ("f1", "f2"):
            owned = sorted(r.key for r in self.cache.owned_by(owner))
            assert owned == sorted(k for k, r in self.model.items() if r.owner_uid == owner)


TestAnyNews = AnyNews.TestCase


# --- Status patches -------------------------------------------------------------------------------------------------

STATUSES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=10,
).filter(lambda value: isinstance(value, dict))


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, as it stands there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def without_nulls(value: Any) -> Any:
    """As the API server stores it: a status never has a null."""
    return {k: without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@given(before=STATUSES.map(without_nulls), after=STATUSES.map(without_nulls))
def test_a_patch_makes_of_any_status_any_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merged(before, merge_patch(before, after)) == after


@given(STATUSES)
def test_nothing_is_written_of_what_is_already_so(status: dict[str, Any]) -> None:
    assert merge_patch(status, status) == {}


def test_a_patch_has_only_what_differs() -> None:
    before = {"phase": "Running", "machine": {"id": "m", "state": "started"}, "secrets": [1], "nextAction": "wait"}
    after = {"phase": "Running", "machine": {"id": "m", "state": "stopped"}, "secrets": [1, 2]}
    assert merge_patch(before, after) == {
        "machine": {"state": "stopped"},
        "secrets": [1, 2],
        "nextAction": None,
    }


def test_a_conditions_time_moves_only_when_it_flips() -> None:
    first = new_condition({}, "Ready", ("False", "Pending", "x"), 1, "T1")
    again = new_condition({"conditions": [first]}, "Ready", ("False", "Starting", "y"), 2, "T2")
    flipped = new_condition({"conditions": [again]}, "Ready", ("True", "Running", ""), 2, "T3")
    assert [c["lastTransitionTime"] for c in (first, again, flipped)] == ["T1", "T1", "T3"]
    assert (again["reason"], again["message"], again["observedGeneration"]) == ("Starting", "y", 2)


def test_a_message_is_never_longer_than_people_read() -> None:
    assert len(new_condition({}, "Ready", ("False", "Pending", "x" * 999), 1, "T")["message"]) == 300
