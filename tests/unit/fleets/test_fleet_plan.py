"""A Fleet's planner: state in, the one next thing out; then any start state until it comes to rest."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from roost.api.conditions import Reason
from roost.fleets.plan import (
    FINALIZER,
    REVISIONS_KEPT,
    Action,
    ApplyMember,
    CreateRevision,
    DeleteMember,
    DeleteRevision,
    FleetView,
    ListRevisions,
    Member,
    ReleaseFinalizer,
    Rest,
    StoreFinalizer,
    desired,
    member_body,
    step,
)

OLD, NEW = "support-aaaaaaaaaa", "support-bbbbbbbbbb"


def member(ordinal: int, **other: Any) -> Member:
    """A member that is ready on the template as it is now."""
    plain: dict[str, Any] = {
        "name": f"support-{ordinal}",
        "ordinal": ordinal,
        "uid": f"uid-{ordinal}",
        "version": "7",
        "revision": NEW,
        "phase": "Running",
        "ready": True,
        "stalled": "",
        "deleting": False,
    }
    return Member(**(plain | other))


def fleet(*members: Member, replicas: int | None = 3, **other: Any) -> FleetView:
    """A Fleet that is being kept, its finalizer and revision stored."""
    plain: dict[str, Any] = {
        "name": "support",
        "deleting": False,
        "finalizers": (FINALIZER,),
        "replicas": replicas,
        "revision": NEW,
        "revisions": (OLD, NEW),
        "members": members,
        "taken": frozenset(),
        "refused": {},
    }
    return FleetView(**(plain | other))


def leaving(*members: Member, **other: Any) -> FleetView:
    return fleet(*members, **({"deleting": True} | other))


def rest(view: FleetView) -> Rest:
    move = step(view)
    assert isinstance(move, Rest), move
    return move


# --- Beginning ------------------------------------------------------------------------------------------------------


def test_nothing_is_made_before_the_finalizer_is_stored() -> None:
    assert step(fleet(finalizers=())) == StoreFinalizer()
    assert step(fleet(finalizers=("somebody/else",))) == StoreFinalizer()


def test_the_revision_is_stored_before_the_first_member_has_it() -> None:
    assert step(fleet(revisions=None)) == ListRevisions()
    assert step(fleet(revisions=())) == CreateRevision(NEW)
    assert step(fleet(revisions=(NEW,))) == ApplyMember("support-0", 0)


def test_members_are_made_together_without_waiting_for_one_another() -> None:
    making = [member(0, ready=False, phase="Provisioning")]
    assert step(fleet(*making)) == ApplyMember("support-1", 1)


def test_a_gap_is_filled_with_the_same_ordinal() -> None:
    assert step(fleet(member(0), member(2))) == ApplyMember("support-1", 1)


def test_a_member_that_is_being_deleted_by_hand_is_made_again_when_it_is_gone() -> None:
    assert rest(fleet(member(0), member(1, deleting=True, ready=False), member(2))).progressing
    assert step(fleet(member(0), member(2))) == ApplyMember("support-1", 1)


def test_a_fleet_that_is_as_declared_rests() -> None:
    assert step(fleet(member(0), member(1), member(2))) == Rest(False, Reason.ALL_READY, "")


def test_a_fleet_of_none_rests() -> None:
    assert step(fleet(replicas=0)) == Rest(False, Reason.ALL_READY, "")


def test_members_that_are_not_ready_are_named_the_first_three_of_them() -> None:
    slow = [member(n, ready=False) for n in range(5)]
    said = rest(fleet(*slow, replicas=5))
    assert said == Rest(
        True, Reason.MEMBERS_NOT_READY, "waiting for support-0, support-1, support-2 and 2 more to be ready"
    )


# --- How many -------------------------------------------------------------------------------------------------------


def test_without_replicas_a_new_fleet_has_one_member() -> None:
    assert desired(fleet(replicas=None)) == 1


def test_without_replicas_the_members_that_are_there_stay() -> None:
    """Somebody took `replicas` out of a manifest, for an autoscaler to hold it."""
    five = [member(n) for n in range(5)]
    assert step(fleet(*five, replicas=None)) == Rest(False, Reason.ALL_READY, "")


def test_scale_down_removes_the_highest_ordinal_and_only_that() -> None:
    assert step(fleet(*[member(n) for n in range(5)], replicas=3)) == DeleteMember("support-4", "uid-4", "7")


def test_scale_down_waits_until_the_one_before_is_gone() -> None:
    going = [*[member(n) for n in range(4)], member(4, deleting=True, ready=False)]
    assert rest(fleet(*going, replicas=3)).say == "waiting for support-4 to be gone"


def test_a_scale_down_that_a_person_must_help_says_so() -> None:
    stuck = member(3, deleting=True, ready=False, stalled="Fly refuses the token")
    said = rest(fleet(*[member(n) for n in range(3)], stuck))
    assert said == Rest(True, Reason.MEMBER_FAILED, "support-3: Fly refuses the token", stalled=True)


def test_scale_down_comes_before_a_rollout_so_that_nothing_is_updated_that_goes_anyway() -> None:
    assert step(fleet(*[member(n, revision=OLD) for n in range(5)])) == DeleteMember("support-4", "uid-4", "7")


# --- What isn't ours ------------------------------------------------------------------------------------------------


def test_an_agent_of_that_name_which_is_not_ours_is_left_alone_and_said() -> None:
    said = rest(fleet(member(0), member(2), taken=frozenset({"support-1"})))
    assert said.stalled
    assert said.reason is Reason.MEMBER_NOT_OURS
    assert said.say == (
        'Agent "support-1" exists and does not belong to this Fleet; delete it or apply it under another name'
    )


def test_a_foreign_agent_in_the_way_of_one_member_holds_up_no_other() -> None:
    view = fleet(*[member(n) for n in (0, 3, 4)], taken=frozenset({"support-1"}))
    assert step(view) == ApplyMember("support-2", 2)
    assert step(fleet(*[member(n) for n in (0, 2, 3)], taken=view.taken)) == DeleteMember("support-3", "uid-3", "7")
    outdated = [member(0), member(2, revision=OLD)]
    assert step(fleet(*outdated, taken=view.taken)) == ApplyMember("support-2", 2)


def test_a_fleet_that_leaves_does_not_touch_what_is_not_its_own() -> None:
    assert step(leaving(taken=frozenset({"support-0"}), revisions=())) == ReleaseFinalizer()


# --- Rollout --------------------------------------------------------------------------------------------------------


def test_a_change_of_the_template_reaches_the_highest_ordinal_first() -> None:
    assert step(fleet(*[member(n, revision=OLD) for n in range(3)])) == ApplyMember("support-2", 2)


def test_the_next_is_changed_only_when_the_one_before_is_ready() -> None:
    updating = [member(0, revision=OLD), member(1, revision=OLD), member(2, ready=False)]
    assert rest(fleet(*updating)) == Rest(True, Reason.ROLLING_OUT, "waiting for support-2 to be ready")
    updated = [member(0, revision=OLD), member(1, revision=OLD), member(2)]
    assert step(fleet(*updated)) == ApplyMember("support-1", 1)


def test_a_member_that_is_down_anyway_goes_first() -> None:
    members = [member(0, revision=OLD, ready=False), member(1, revision=OLD), member(2, revision=OLD)]
    assert step(fleet(*members)) == ApplyMember("support-0", 0)


def test_a_template_that_heals_reaches_every_broken_member_without_waiting_for_another() -> None:
    """All are down by the old template: nobody is worse off, and nobody's repair waits for a repair."""
    broken = [member(n, revision=OLD, ready=False, stalled="image not found") for n in range(3)]
    assert step(fleet(*broken)) == ApplyMember("support-2", 2)


def test_a_rollout_stops_at_the_first_member_that_a_person_must_help_and_says_so() -> None:
    bad = member(2, ready=False, stalled="Fly can't pull the image")
    said = rest(fleet(member(0, revision=OLD), member(1, revision=OLD), bad))
    assert said == Rest(True, Reason.MEMBER_FAILED, "support-2: Fly can't pull the image", stalled=True)


def test_a_rollout_that_the_api_server_refuses_to_a_member_that_is_down_says_so() -> None:
    members = [member(0, revision=OLD), member(1, revision=OLD), member(2, revision=OLD, ready=False)]
    said = rest(fleet(*members, refused={"support-2": "volume.sizeGb can't shrink"}))
    assert said == Rest(True, Reason.MEMBER_REFUSED, "support-2 was refused: volume.sizeGb can't shrink", stalled=True)


def test_a_member_that_the_api_server_refuses_is_not_tried_again_at_once() -> None:
    said = rest(fleet(member(0), member(1), refused={"support-2": "quota exceeded"}))
    assert said == Rest(True, Reason.MEMBER_REFUSED, "support-2 was refused: quota exceeded", stalled=True)


def test_ten_old_revisions_are_kept_and_never_one_that_a_member_has() -> None:
    old = tuple(f"support-{n:010}" for n in range(REVISIONS_KEPT + 1))
    everyone = [member(0), member(1), member(2)]
    assert isinstance(step(fleet(*everyone, revisions=(*old[:-1], NEW))), Rest)
    assert step(fleet(*everyone, revisions=(*old, NEW))) == DeleteRevision(old[0])
    held_back = [member(0, revision=old[0], ready=False), member(1, ready=False), member(2)]
    assert isinstance(step(fleet(*held_back, revisions=(*old, NEW))), Rest)


# --- Leaving --------------------------------------------------------------------------------------------------------


def test_a_fleet_that_is_deleted_removes_its_members_from_the_highest_down_one_at_a_time() -> None:
    assert step(leaving(member(0), member(1), member(2))) == DeleteMember("support-2", "uid-2", "7")
    going = [member(0), member(1), member(2, deleting=True, ready=False)]
    assert rest(leaving(*going)).say == "waiting for support-2 to be gone"


def test_its_revisions_follow_its_members_and_the_finalizer_comes_last() -> None:
    assert step(leaving(revisions=None)) == ListRevisions()
    assert step(leaving(revisions=(OLD, NEW))) == DeleteRevision(OLD)
    assert step(leaving(revisions=())) == ReleaseFinalizer()


def test_orphan_deletion_lets_the_members_live() -> None:
    """`kubectl delete --cascade=orphan`: the garbage collector sets them free, then its finalizer goes."""
    both = (FINALIZER, "orphan")
    said = rest(leaving(member(0), member(1), finalizers=both))
    assert said.say == "its members are being set free (--cascade=orphan)"
    assert step(leaving(revisions=())) == ReleaseFinalizer()


def test_after_our_finalizer_is_gone_nothing_is_done_any_more() -> None:
    assert rest(leaving(member(0), finalizers=("somebody/else",))).reason is Reason.TERMINATING


# --- The member's manifest ------------------------------------------------------------------------------------------

TEMPLATE: Mapping[str, Any] = {
    "metadata": {"labels": {"team": "support"}, "annotations": {"note": "hello"}},
    "spec": {
        "desiredState": "Stopped",
        "revoked": True,
        "paused": True,
        "restartedAt": "now",
        "runtime": {"kind": "Command", "command": ["true"]},
    },
}
OWNER = {"kind": "Fleet", "name": "support", "uid": "f"}


def test_what_a_persons_hand_sets_on_one_member_is_left_out() -> None:
    """A field that is not applied is not owned: whoever set it keeps it."""
    body = member_body(TEMPLATE, "support-0", {}, OWNER)
    assert body["spec"] == {"runtime": {"kind": "Command", "command": ["true"]}}
    assert TEMPLATE["spec"]["paused"] is True, "the template itself was changed"


def test_a_member_says_whose_it_is_and_has_the_templates_labels_and_annotations() -> None:
    body = member_body(TEMPLATE, "support-0", {"roost.dev/fleet": "support", "team": "x"}, OWNER)
    assert body["metadata"] == {
        "name": "support-0",
        "labels": {"team": "x", "roost.dev/fleet": "support"},  # ours win: they say where it belongs
        "annotations": {"note": "hello"},
        "ownerReferences": [OWNER],
    }


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": {}}, {"metadata": {"labels": None}}])
def test_a_template_without_metadata_is_a_template(metadata: dict[str, Any]) -> None:
    body = member_body(metadata | {"spec": {}}, "support-0", {"a": "b"}, OWNER)
    assert body["metadata"]["labels"] == {"a": "b"}


# --- Any start state ------------------------------------------------------------------------------------------------

MEMBERS = st.dictionaries(
    st.integers(0, 7),
    st.tuples(
        st.sampled_from([OLD, NEW]),
        st.sampled_from(["ready", "starting", "deleting", "stalled"]),
    ),
    max_size=6,
)


def imagined(members: dict[int, tuple[str, str]]) -> tuple[Member, ...]:
    return tuple(
        member(
            ordinal,
            revision=revision,
            ready=state == "ready",
            deleting=state == "deleting",
            stalled="image not found" if state == "stalled" else "",
        )
        for ordinal, (revision, state) in sorted(members.items())
    )


def performed(view: FleetView, action: Action) -> FleetView:
    """What the API server holds after an action."""
    match action:
        case StoreFinalizer():
            return replace(view, finalizers=(*view.finalizers, FINALIZER))
        case ReleaseFinalizer():
            return replace(view, finalizers=tuple(f for f in view.finalizers if f != FINALIZER))
        case ListRevisions():
            return replace(view, revisions=(OLD,))
        case CreateRevision(name=name):
            return replace(view, revisions=(*(view.revisions or ()), name))
        case DeleteRevision(name=name):
            return replace(view, revisions=tuple(r for r in view.revisions or () if r != name))
        case ApplyMember(ordinal=ordinal):
            others = [m for m in view.members if m.ordinal != ordinal]
            new = member(ordinal, revision=view.revision, ready=False, phase="Updating")
            return replace(view, members=tuple(sorted([*others, new], key=lambda m: m.ordinal)))
        case DeleteMember(uid=uid):
            return replace(
                view,
                members=tuple(replace(m, deleting=True, ready=False) if m.uid == uid else m for m in view.members),
            )


def check(view: FleetView, action: Action) -> None:
    """What may never be done, whatever the state."""
    if isinstance(action, ApplyMember):
        assert not view.deleting
        assert FINALIZER in view.finalizers
        assert view.revision in (view.revisions or ())
        assert action.name == f"support-{action.ordinal}"
        assert action.name not in view.taken
        assert action.ordinal < desired(view)
        present = next((m for m in view.members if m.ordinal == action.ordinal), None)
        assert present is None or (present.revision != view.revision and not present.deleting)
        if present is not None and present.ready:
            assert all(m.ready for m in view.members), "a working member was taken down while another was down"
    if isinstance(action, DeleteMember):
        going = [m for m in view.members if view.deleting or m.ordinal >= desired(view)]
        assert not any(m.deleting for m in going if m.ordinal >= int(action.name.removeprefix("support-")))
        highest = max(going, key=lambda m: m.ordinal)
        assert (action.name, action.uid, action.version) == (highest.name, highest.uid, highest.version)
    if isinstance(action, ReleaseFinalizer):
        assert view.deleting
        assert not view.members
        assert view.revisions == ()


def settle(view: FleetView, data: st.DataObject) -> FleetView:
    """Acts until the planner rests and nothing in the world moves any more; members change in any order."""
    for _ in range(400):
        move = step(view)
        if not isinstance(move, Rest):
            check(view, move)
            view = performed(view, move)
            continue
        movable = [m for m in view.members if m.deleting or (not m.ready and not m.stalled)]
        if not movable:
            return view
        chosen = data.draw(st.sampled_from(movable))
        others = tuple(m for m in view.members if m is not chosen)
        back = () if chosen.deleting else (replace(chosen, ready=True, phase="Running"),)
        view = replace(view, members=tuple(sorted((*others, *back), key=lambda m: m.ordinal)))
    raise AssertionError(f"it never comes to rest: {view}")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    members=MEMBERS, replicas=st.none() | st.integers(0, 6), revisions=st.none() | st.just((OLD, NEW)), data=st.data()
)
def test_any_fleet_comes_to_what_is_declared_and_breaks_no_rule_on_the_way(
    members: dict[int, tuple[str, str]],
    replicas: int | None,
    revisions: tuple[str, ...] | None,
    data: st.DataObject,
) -> None:
    view = fleet(*imagined(members), replicas=replicas, revisions=revisions, finalizers=())
    # A member that a person must help is healed by the template alone, and here the template is good.
    assume(not any(state == "stalled" and revision == NEW for revision, state in members.values()))
    end = settle(view, data)
    assert [m.ordinal for m in end.members] == list(range(desired(end)))
    assert all(m.ready and m.revision == NEW for m in end.members)
    assert rest(end) == Rest(False, Reason.ALL_READY, "")
    if replicas is not None:
        assert desired(end) == replicas


@settings(max_examples=200, deadline=None)
@given(members=MEMBERS, revisions=st.none() | st.just((OLD, NEW)), data=st.data())
def test_any_fleet_that_is_deleted_takes_all_its_members_along(
    members: dict[int, tuple[str, str]], revisions: tuple[str, ...] | None, data: st.DataObject
) -> None:
    end = settle(leaving(*imagined(members), revisions=revisions), data)
    assert end.members == ()
    assert end.finalizers == ()


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 7), data=st.data())
def test_a_rollout_over_ready_members_never_takes_more_than_one_away(count: int, data: st.DataObject) -> None:
    view, order = fleet(*[member(n, revision=OLD) for n in range(count)], replicas=count), []
    for _ in range(100):
        assert sum(not m.ready for m in view.members) <= 1
        move = step(view)
        if isinstance(move, ApplyMember):
            order.append(move.ordinal)
            view = performed(view, move)
        elif move == Rest(False, Reason.ALL_READY, ""):
            break
        else:
            view = replace(view, members=tuple(replace(m, ready=True) for m in view.members))
    assert order == list(reversed(range(count)))


@settings(max_examples=200, deadline=None)
@given(
    members=MEMBERS,
    taken=st.sets(st.integers(0, 7)),
    refused=st.sets(st.integers(0, 7)),
    replicas=st.none() | st.integers(0, 6),
    deleting=st.booleans(),
    data=st.data(),
)
def test_whatever_is_taken_or_refused_nothing_foreign_is_touched_and_a_person_is_told(
    members: dict[int, tuple[str, str]],
    taken: set[int],
    refused: set[int],
    replicas: int | None,
    deleting: bool,
    data: st.DataObject,
) -> None:
    foreign = frozenset(f"support-{n}" for n in taken if n not in members)
    words = {f"support-{n}": "no" for n in refused}
    view = fleet(*imagined(members), replicas=replicas, taken=foreign, refused=words, deleting=deleting)
    end = settle(view, data)  # checks every action
    if deleting:
        assert end.finalizers == ()
        return
    said = rest(end)
    lacking = {f"support-{n}" for n in range(desired(end))} - {m.name for m in end.members}
    if lacking or any(m.stalled for m in end.members):
        assert said.stalled
        assert said.say
