"""The sweep of all faults, as `make faults` runs it, and that its runs can be had again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.catalogue import CATALOGUE
from faults.oracles import Version, judge
from faults.recount import recount
from faults.stories import STORIES
from faults.sweep import replay

TESTS = Path(__file__).parents[1]


def sweep(*arguments: str) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "faults.sweep", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_under_every_single_fault_every_story_comes_to_its_end_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    done = sweep("--seconds", "5", "--keep", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["converged"] == told["runs"] > 3000
    assert (told["orphans"], told["doubles"], told["overlaps"]) == (0, 0, 0)
    assert told["max_call_ratio"] <= 3
    again = recount(tmp_path)
    assert again.pop("runs") > 3000
    assert not any(again.values())


@pytest.mark.parametrize("name", ["create/10/late-40", "fickle/7/kill-after+12/fly-429"])
def test_a_run_is_the_same_whenever_and_wherever_it_is_made(name: str) -> None:
    once, again = sweep("--replay", name), sweep("--replay", name)
    assert once.stdout == again.stdout
    assert f"{name}: converged" in once.stdout
    assert once.returncode == 0


def test_a_run_whose_fault_has_no_such_call_any_more_is_no_proof() -> None:
    assert replay("fickle/1/kill-after").wrong == ["kill-after can't happen at call 1 (any more)"]


def test_a_run_in_a_fork_is_the_run_that_is_made_again_by_its_name(tmp_path: Path) -> None:
    """To the last line of the ledger, and the last version of each object."""
    sweep("--stories", "stop", "--seconds", "0", "--keep", str(tmp_path / "forked"))
    kept = min((tmp_path / "forked").glob("*_fly-silent-after.json.gz"))
    name = kept.name.removesuffix(".json.gz").replace("_", "/")
    done = sweep("--replay", name, "--keep", str(tmp_path / "alone"))
    assert done.returncode == 0, done.stdout
    assert kept.read_bytes() == (tmp_path / "alone" / kept.name).read_bytes()


def test_every_fault_can_happen_somewhere_and_says_what_it_does() -> None:
    assert all(fault.does for fault in CATALOGUE.values())
    assert all(not fault.like or fault.like in STORIES for fault in CATALOGUE.values())


# --- Runs that have found something --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lesson"),
    [
        ("fleet-rollout/2/kube-409", "a 409 to the create of a revision need not mean that it exists"),
        ("create/8/kill-before", "SIGTERM and a wake-up at the same moment: the process must end"),
        ("create/10/late-80", "a volume that a late call has made beside the one in use is told of"),
        ("stop", "a new process writes nothing about an agent at rest"),
        ("idle", "nor about one that idles"),
        ("host-lost", "nor waits for a machine on a dead host whose successor runs"),
        ("host-lost/63/fly-422", "a machine on a dead host is ordered to go once more before its successor is made"),
        ("host-lost/59/kube-404", "by whoever comes next too: after a look, not only before"),
        ("host-lost/58/kill-after", "what was restored from a dead host and never used is gone on with"),
        ("lost-volume/12/kill-before", "a volume that is in doubt is looked at before it is told of as the one before"),
        ("re-create/8/late-40", "the app is believed to be gone only when no earlier call can bring it back, or down"),
        ("delete-in-create/4/late-5", "the same, for the app's create"),
        ("delete-in-create/4/fly-slow", "the same, for a create that this process has given up"),
        ("re-create/8/late-80", "the same, at the end of the time that a call may take"),
        ("restore-from/10/fly-slow", "what a volume was restored from is known though the answer was lost"),
        ("restore-from/10/kill-after", "and after a crash before anything else has recorded it"),
        ("restore-from/5/fly-slow", "a snapshot whose order was lost is looked for until it can't come any more"),
        ("host-full/4/fly-422", "one refused copy of a volume is asked for again"),
    ],
)
def test_what_once_was_wrong(name: str, lesson: str) -> None:
    run = replay(name)
    assert run.converged, (lesson, run.wrong)
    assert not run.wrong, lesson


# --- That the oracles can tell -------------------------------------------------------------------------------------

AGENT = "/apis/roost.dev/v1alpha1/namespaces/team/agents/ada"
HELD = {"finalizers": ["roost.dev/machine"], "generation": 1, "uid": "u", "name": "ada", "namespace": "team"}


def call(op: str, at: float, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    line = {"kind": "call", "op": op, "at": at, "seconds": seconds, "status": 200, "effect": "done", "app": "a"}
    return line | {"agent": "roost/1", "machine": None, "volume": None, "metadata": {}} | more


def body(**more: Any) -> dict[str, Any]:
    return {"kind": "Agent", "metadata": dict(HELD), "spec": {}, "status": {"app": {"name": "a"}}} | more


def test_two_changes_at_the_same_time_are_an_overlap_and_one_after_the_other_are_none() -> None:
    versions = [Version(0.0, AGENT, body(metadata=HELD | {"finalizers": []}, status={})), Version(1.0, AGENT, body())]
    assert judge([call("stop_machine", 2, 5.0), call("update_machine", 4)], versions).found["overlaps"]
    assert judge([call("stop_machine", 2, 1.0), call("update_machine", 4)], versions).sound


def test_a_change_that_is_carried_out_and_whose_answer_alone_is_held_back_overlaps_nothing() -> None:
    versions = [Version(0.0, AGENT, body(metadata=HELD | {"finalizers": []}, status={})), Version(1.0, AGENT, body())]
    held = {"kind": "held", "op": "stop_machine", "at": 3.0, "request_id": "r"}
    assert judge([held, call("stop_machine", 2, 5.0, request_id="r"), call("update_machine", 4)], versions).sound


def test_a_change_before_the_finalizer_is_found() -> None:
    versions = [Version(0.0, AGENT, body(metadata=HELD | {"finalizers": []}, status={})), Version(5.0, AGENT, body())]
    assert judge([call("create_volume", 2)], versions).found["finalizer"]


def test_the_finalizer_of_another_agent_does_not_count() -> None:
    other = HELD | {"uid": "v", "name": "bob"}
    bob = [
        Version(0.0, AGENT.replace("ada", "bob"), body(metadata=other | {"finalizers": []}, status={})),
        Version(1.0, AGENT.replace("ada", "bob"), body(metadata=other, status={"app": {"name": "b"}})),
    ]
    ada = [Version(0.0, AGENT, body(metadata=HELD | {"finalizers": []}, status={})), Version(5.0, AGENT, body())]
    assert judge([call("create_volume", 2)], [*bob, *ada]).found["finalizer"]
    assert judge([call("create_volume", 2, app="b")], [*bob, *ada]).sound


def test_a_generation_that_goes_back_or_ahead_is_found() -> None:
    ahead = [Version(0.0, AGENT, body(status={"observedGeneration": 2}))]
    assert judge([], ahead).found["generation"]
    newer = body(metadata=HELD | {"generation": 3}, status={"observedGeneration": 3})
    older = body(metadata=HELD | {"generation": 3}, status={"observedGeneration": 2})
    assert judge([], [Version(0.0, AGENT, newer), Version(1.0, AGENT, older)]).found["generation"]


def test_what_is_left_behind_and_what_is_doubled_is_found() -> None:
    def event(what: str, at: float, machine: str) -> dict[str, Any]:
        detail = {"metadata": {"roost_namespace": "team", "roost_name": "ada"}}
        return {"kind": "event", "event": what, "at": at, "app": "a", "machine": machine, "detail": detail}

    born = Version(0.0, AGENT, body(metadata=HELD | {"finalizers": []}, status={}))
    two = [event("machine_created", 2, "m1"), event("machine_created", 3, "m2")]
    assert judge(two, [born, Version(1.0, AGENT, body())]).found["doubles"]
    assert judge(two[:1], [born, Version(1.0, AGENT, body()), Version(9.0, AGENT, None)]).found["orphans"]
