"""The status that people and tools read: whole from the first visit on, honest, quiet, and never a secret in it."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
import world
from hypothesis import given, settings
from hypothesis import strategies as st
from world import Fate, Life, Story, agent, crash, delete, edit, machine_destroyed, settled, view, wall

from roost.agents.status import render
from roost.agents.view import AgentView, Beat, Failure, Settled, Step, Stuck, Wait
from roost.api.agent import AgentStatus, Phase, parse_agent_status
from roost.api.conditions import AGENT_CONDITIONS, ConditionType, Reason
from roost.kube.objects import condition, merge_patch
from roost.secrets.state import Ref, Resolution

ALWAYS = {c.value for c in AGENT_CONDITIONS} - {ConditionType.DESTROY_STUCK.value}
JSON = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=3),
    lambda of: st.lists(of, max_size=2) | st.dictionaries(st.sampled_from("abc"), of, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


def statuses(status: Mapping[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


def at_a_moment(n: int, life: Life | None = None) -> Life:
    """The life after its n-th call."""
    story = Story(life or agent())
    for _ in range(n):
        story.step()
    return story.life


# --- Written as a merge patch ------------------------------------------------------------------------------------


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(before=OBJECTS, after=OBJECTS)
def test_a_merge_patch_turns_any_status_into_any_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merged(before, merge_patch(before, after)) == after


@given(OBJECTS)
def test_nothing_is_written_when_nothing_differs(status: dict[str, Any]) -> None:
    assert merge_patch(status, status) == {}


# --- Whole and honest --------------------------------------------------------------------------------------------

RESTS: tuple[Step, ...] = (
    Wait(Phase.PENDING, Reason.RESOLVING, "reading"),
    Wait(Phase.PENDING, Reason.UNHEARD, "waiting"),
    Wait(Phase.PROVISIONING, Reason.WAITING_FOR_FLY, "x" * 500),
    Stuck(Phase.FAILED, Reason.FLY_INVALID, "y" * 500),
    Stuck(Phase.FAILED, Reason.VOLUME_LOST, "gone"),
    Settled(Phase.RUNNING, Reason.RUNNING, 60.0),
    Settled(Phase.STOPPED, Reason.STOPPED, 60.0),
    Settled(Phase.DEGRADED, Reason.DEGRADED, 60.0),
    Settled(Phase.PENDING, Reason.PAUSED, 60.0),
)
LIVES = {
    **{f"after {n} calls": (lambda n=n: at_a_moment(n)) for n in range(7)},
    "revoked": lambda: edit(settled().life, revoked=True),
    "stopped": lambda: edit(settled().life, desired_state="Stopped"),
    "paused": lambda: edit(settled().life, paused=True),
    "silent": lambda: replace(settled().life, talks=False),
    "crashed": lambda: crash(settled().life),
    "deleted": lambda: delete(settled().life),
    "deleted long ago": lambda: replace(delete(settled().life), now=9999.0),
}


@pytest.mark.parametrize("rests", RESTS, ids=lambda r: f"{type(r).__name__}-{r.reason}")
@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())
def test_every_status_is_whole_and_fits_the_crd(life: Any, rests: Step) -> None:
    now = life()
    for previous in ({}, now.status):
        status = render(view(now), rests, previous, wall(now.now))
        said = statuses(status)
        assert set(said) >= ALWAYS
        assert not (said["Reconciling"] == said["Stalled"] == "True")
        assert status["observedGeneration"] <= now.declared.generation
        assert all(len(c["message"]) <= 300 for c in status["conditions"])
        assert all(c["reason"] in Reason._value2member_map_ for c in status["conditions"])
        assert len(status.get("nextAction", "")) <= 300
        assert None not in status.values()
        _known_to_the_crd(status, AgentStatus)
        parse_agent_status({"status": status})


def _known_to_the_crd(status: Any, model: Any) -> None:
    """What the CRD does not know, the API server drops: every field that is written must be one of the model's."""
    if isinstance(status, list):
        for item in status:
            _known_to_the_crd(item, model)
    if not isinstance(status, Mapping):
        return
    fields = {f.alias: f for f in model.model_fields.values()}
    assert set(status) <= set(fields)
    for key, value in status.items():
        for inner in _models(fields[key].annotation):
            _known_to_the_crd(value, inner)


def _models(annotation: Any) -> list[Any]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models(arg)]


def test_on_the_first_visit_every_condition_is_set() -> None:
    life = agent()
    status = render(view(life), Wait(Phase.PENDING, Reason.RESOLVING, "reading"), {}, wall(0))
    assert set(statuses(status)) == ALWAYS
    assert statuses(status)["Ready"] == "False"
    assert statuses(status)["Reconciling"] == "True"


def test_a_working_agent() -> None:
    story = settled()
    assert statuses(story.life.status) == {
        "Ready": "True",
        "SecretsResolved": "True",
        "VolumeReady": "True",
        "MachineReady": "True",
        "ConfigApplied": "True",
        "AgentHealthy": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }
    status = story.life.status
    [machine], [volume] = story.life.cloud.machines, story.life.cloud.volumes
    assert status["phase"] == "Running"
    assert status["app"] == {
        "name": world.names_of("ada").app,
        "org": world.ORG,
        "network": world.names_of("ada").app,
        "incarnation": "uid-1",
    }
    assert (status["machine"]["id"], status["volume"]["id"]) == (machine.id, volume.id)
    assert status["bundle"] == {"desired": "revision-1", "applied": "revision-1"}
    assert "nextAction" not in status
    assert "destroy" not in status


def test_a_settled_status_does_not_move() -> None:
    story = settled()
    before = story.life.status
    story.quiet(looks=5)
    assert story.life.status == before


def test_the_time_of_a_condition_moves_when_it_flips_and_only_then() -> None:
    story = settled()
    before = {c["type"]: c for c in story.life.status["conditions"]}
    story.life = edit(story.life, machine={"memory_mb": 2048})
    story.when("UpdateMachine", Fate.RATE_LIMITED, 1, 2, 3)
    while story.calls.count("UpdateMachine") < 3:
        story.step()
    moving = {c["type"]: c for c in story.life.status["conditions"]}
    for kind, now in moving.items():
        flipped = now["status"] != before[kind]["status"]
        assert (now["lastTransitionTime"] != before[kind]["lastTransitionTime"]) == flipped, kind
    first = condition(story.life.status, "Ready")["lastTransitionTime"]
    story.step()
    assert condition(story.life.status, "Ready")["lastTransitionTime"] == first
    story.run()
    assert condition(story.life.status, "Ready")["status"] == "True"
    assert condition(story.life.status, "Ready")["lastTransitionTime"] > first


def test_paused_it_speaks_of_the_new_generation_and_keeps_what_was_said() -> None:
    story = settled()
    ready = condition(story.life.status, "Ready")
    story.life = edit(story.life, paused=True)
    story.run()
    status = story.life.status
    assert status["observedGeneration"] == 2
    assert status["phase"] == "Running"
    assert condition(status, "Ready") == {**ready, "observedGeneration": 2}
    assert condition(status, "Reconciling")["reason"] == "Paused"


def test_paused_before_it_was_ever_seen() -> None:
    story = Story(agent(paused=True))
    story.run()
    assert story.calls == []
    assert statuses(story.life.status)["Ready"] == "Unknown"


def test_after_a_restart_silence_means_nothing_before_one_window_has_passed() -> None:
    story = settled()
    before = story.life.status
    story.life = crash(replace(story.life, talks=False))
    while story.life.now < story.life.started_at + 100:
        story.step()
        assert story.life.status == before
    while story.life.now < story.life.started_at + 140:
        story.step()
    assert statuses(story.life.status)["AgentHealthy"] == "False"
    assert story.life.status["phase"] == "Degraded"


def test_the_status_keeps_a_machine_that_was_not_seen_yet() -> None:
    story = settled()
    before = story.life.status["machine"]
    story.life = edit(crash(story.life), machine={"memory_mb": 2048})
    story.when("GetMachine", Fate.VAIN)
    story.step()
    assert story.life.status["observedGeneration"] == 2
    assert story.life.status["machine"] == before


def test_the_status_lets_go_of_a_machine_that_is_gone() -> None:
    story = settled()
    story.life = crash(machine_destroyed(replace(story.life, now=story.life.now + 600)))
    story.when("CreateMachine", Fate.CAPACITY)
    story.until("CreateMachine").step()
    assert "machine" not in story.life.status


# --- Hostile input -----------------------------------------------------------------------------------------------

LINES = st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=200)
BEATS = st.builds(
    Beat,
    machine_id=st.just("m1"),
    machine_version=st.none() | st.just("v1"),
    age=st.floats(0, 500),
    ready=st.booleans(),
    status=st.sampled_from(["starting", "running", "degraded", "stopping", "unknown"]),
    boot_phase=st.sampled_from(["environment", "bundle", "done", "unknown"]),
    bundle_revision=st.none() | st.just("revision-1") | LINES,
    restarts=st.integers(0, 2**53 - 1),
    supervisor_version=LINES,
    runtime_version=st.none() | LINES,
    last_exit=LINES,
    degraded=st.lists(LINES, max_size=16).map(tuple),
)


@functools.cache
def running() -> Life:
    return settled().life


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("configure: openclaw.json: bogus: is not known to this version", "ConfigFailed"),
        ("install: OpenClaw 2026.9.7 can't be fetched now: no registry", "ConfigFailed"),
        ("bundle: the bundle makes no sense (files.0.path: value_error)", "ConfigFailed"),
        ("telegram: Unauthorized", "ConfigPending"),
    ],
)
def test_why_a_configuration_is_not_in_force_is_said_in_the_agents_own_words(said: str, reason: str) -> None:
    life = running()
    now = view(life)
    assert now.beat is not None
    beat = replace(now.beat, bundle_revision="the one before", degraded=("disk: nearly full", said))
    status = render(replace(now, beat=beat), RESTS[-1], life.status, wall(life.now))
    applied = condition(status, "ConfigApplied")
    assert (applied["status"], applied["reason"]) == ("False", reason)
    assert applied["message"] == (said if reason == "ConfigFailed" else "")


@given(beat=BEATS, rests=st.sampled_from(RESTS))
@settings(max_examples=60, deadline=None)
def test_whatever_an_agent_says_the_status_stays_within_bounds(beat: Beat, rests: Step) -> None:
    life = running()
    seen = replace(view(life), beat=replace(beat, machine_id=life.cloud.machines[0].id))
    status = render(seen, rests, life.status, wall(life.now))
    assert all(len(c["message"]) <= 300 for c in status["conditions"])
    assert len(json.dumps(status)) < 16_000
    _known_to_the_crd(status, AgentStatus)


def test_no_secret_value_reaches_a_status() -> None:
    """The planner is given fingerprints and versions, never values; of the token it knows the epoch alone."""
    secrets = Resolution(known=True, versions=(("llm", 3),), fingerprints=((Ref("llm", "key"), "f" * 32),))
    life = replace(agent(env=({"name": "KEY", "valueFrom": {"name": "llm", "key": "key"}},), files=()), secrets=secrets)
    story = Story(life).when("SetToken", Fate.UNAUTHORIZED).when("CreateMachine", Fate.VAIN)
    told = []
    while not isinstance(story.step(), Settled):
        told.append(json.dumps(story.life.status))
    told.append(json.dumps(story.life.status))
    assert story.life.status["secrets"] == [{"name": "llm", "version": 3}]
    for status in told:
        assert "the-token" not in status
        assert "f" * 32 not in status


# --- Leaving -----------------------------------------------------------------------------------------------------


def failing(of: AgentView) -> AgentView:
    failure = Failure("delete_volume", Reason.WAITING_FOR_FLY, "bound", 412, 9, stuck=False)
    return replace(of, world=replace(of.world, failure=failure))


def test_a_destroy_that_fails_for_long_says_so_once_and_keeps_its_time() -> None:
    life = delete(settled().life)
    waits = Wait(Phase.TERMINATING, Reason.WAITING_FOR_FLY, "deleting volume")
    first = render(failing(view(life)), waits, life.status, wall(life.now))
    assert first["destroy"]["startedAt"] == wall(life.now)
    assert condition(first, "DestroyStuck") == {}
    later = render(failing(view(life)), waits, first, wall(life.now + 901))
    assert condition(later, "DestroyStuck")["status"] == "True"
    assert condition(later, "DestroyStuck")["message"] == "bound"
    assert later["destroy"] == first["destroy"]


def test_a_destroy_that_waits_for_long_without_a_failure_says_so_too() -> None:
    life = delete(settled().life)
    waits = Wait(Phase.TERMINATING, Reason.WAITING_FOR_FLY, "waiting for machine m1 to be gone")
    first = render(view(life), waits, life.status, wall(life.now))
    later = render(view(life), waits, first, wall(life.now + 901))
    assert condition(later, "DestroyStuck")["message"] == waits.say
