"""What people do to Agents without meaning harm, or with it, on a real API server with the real operator.

What the operator did is read from the audit log and from Fly's ledger, never from the operator.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.local import binaries
from roost.local.evidence import Write, read_audit
from roost.local.stack import Stack, manifests_dir
from roost.local.story import Broken, Stage
from roost.local.verify_figures import FINALIZER, GROUP, OPERATOR

QUIET_SECONDS = 1.5
"""So long nothing must happen for it to be quiet: more than a first write is put off."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stack of its own: these tests count every write and every call."""
    with Stack(tmp_path_factory.mktemp("roost-chaos"), say=print) as stack:
        yield Stage(stack, binaries.find(say=print).kubectl, print)


def agent(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    runtime = {"kind": "Command", "command": ["sh", "-c", "exec sleep 1000"]}
    return {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"runtime": runtime, "heartbeat": {"intervalSeconds": 5}} | spec,
    }


def applied(stage: Stage, name: str) -> dict[str, Any]:
    """An Agent that is Ready, with nothing under way any more; as it is declared."""
    stage.kubectl("apply", "-f", "-", given=agent(name))
    stage.ready("agents", name)
    until_quiet(stage, name)
    return stage.get("agents", name)


def writes(stage: Stage, name: str, since: float) -> list[Write]:
    """What the operator wrote to an Agent."""
    found = read_audit([stage.stack.audit_path])
    return [w for w in found if (w.user, w.group, w.name) == (OPERATOR, GROUP, name) and w.received >= since]


def ledger(stage: Stage, since: float = 0.0) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in stage.stack.ledger_path.read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line["at"] >= since]


def calls(stage: Stage, name: str, since: float) -> list[str]:
    """What the operator asked of Fly about an Agent."""
    app = stage.get("agents", name)["status"]["app"]["name"]
    found = [line for line in ledger(stage, since) if line["kind"] == "call" and line["app"] == app]
    return [line["op"] for line in found if line["agent"].startswith("roost/")]


def until_quiet(stage: Stage, name: str) -> float:
    """Waits until nothing is written to an Agent, nor asked about it; answers since when."""

    def quiet() -> bool:
        since = time.time() - QUIET_SECONDS
        return not writes(stage, name, since) and not calls(stage, name, since)

    stage.until("the operator should be quiet", quiet)
    return time.time()


def left(stage: Stage, app: str) -> list[str]:
    """What there is of an app at Fly."""
    state = stage.fly("GET", "/_sim/state")
    machines = [m["id"] for m in state["machines"] if m["app"] == app and m["state"] != "destroyed"]
    volumes = [v["id"] for v in state["volumes"] if v["app_name"] == app and "destroy" not in v["state"]]
    return machines + volumes + [a["name"] for a in state["apps"] if a["name"] == app]


def machines_made(stage: Stage, app: str) -> int:
    return sum(line.get("event") == "machine_created" and line.get("app") == app for line in ledger(stage))


class GitOps:
    """Applies one manifest every second, as Argo CD and Flux do: server-side, by its own field manager, by force."""

    APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=gitops", "-f", "-")

    def __init__(self, stage: Stage) -> None:
        self._stage, self._end = stage, threading.Event()
        self._manifest = agent("synced", env=[{"name": "A", "value": "1"}])
        self._thread = threading.Thread(target=self._run)
        self.turns = 0
        stage.kubectl(*self.APPLY, given=self._manifest)
        stage.ready("agents", "synced")
        self.since = until_quiet(stage, "synced")
        self.before = stage.get("agents", "synced")
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(1.0):
            self._stage.kubectl(*self.APPLY, given=self._manifest)
            # Flux stamps what it was asked to do, which makes each apply a new version of the object.
            stamp = f"example.org/synced-at={self.turns}"
            self._stage.kubectl("annotate", "agents", "synced", "--overwrite", stamp)
            self.turns += 1

    def end(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def gitops(stage: Stage) -> Iterator[GitOps]:
    """At work from the first test to the last."""
    working = GitOps(stage)
    yield working
    working.end()


@pytest.mark.usefixtures("gitops")
def test_a_namespace_that_is_deleted_ends_and_takes_all_its_agents_with_it(stage: Stage) -> None:
    stage.kubectl("create", "namespace", "short")
    names = [f"inmate{number}" for number in range(4)]
    for name in names:
        stage.kubectl("apply", "-f", "-", given=agent(name, "short"))
    stage.kubectl("-n", "short", "wait", "--for=condition=Ready", *(f"agents/{n}" for n in names[:3]), "--timeout=60s")
    found = json.loads(stage.kubectl("-n", "short", "get", "agents", "-o", "json"))["items"]
    apps = [body["status"]["app"]["name"] for body in found if body.get("status", {}).get("app")]
    assert len(apps) >= 3
    stage.kubectl("delete", "namespace", "short", "--timeout=60s")
    assert [thing for app in apps for thing in left(stage, app)] == []


def test_crds_applied_again_and_touched_cause_no_write_no_call_and_no_restart(stage: Stage) -> None:
    applied(stage, "calm")
    before = next(row for row in stage.stack.status() if row.name == "operator").pid
    since = time.time()
    crds: list[Path] = sorted((manifests_dir().parents[1] / "crds").glob("roost.dev_*.yaml"))
    assert len(crds) == 3
    for crd in crds:
        stage.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd))
    stage.kubectl("annotate", "crd", "agents.roost.dev", "example.org/touched=yes")
    stage.kubectl("label", "crd", "agents.roost.dev", "touched=yes")
    # The watch goes on: a change of an Agent is seen, and costs what it always costs.
    stage.kubectl("apply", "-f", "-", given=agent("witness"))
    stage.ready("agents", "witness")
    assert writes(stage, "calm", since) == []
    assert calls(stage, "calm", since) == []
    assert next(row for row in stage.stack.status() if row.name == "operator").pid == before


def test_a_finalizer_removed_from_a_living_agent_is_put_back(stage: Stage) -> None:
    applied(stage, "exposed")
    since = time.time()
    stage.patch("agents", "exposed", {"metadata": {"finalizers": None}})
    stage.until(
        "the finalizer should be back",
        lambda: FINALIZER in stage.get("agents", "exposed")["metadata"].get("finalizers", []),
    )
    until_quiet(stage, "exposed")
    assert [w.subresource for w in writes(stage, "exposed", since)] == [""]
    assert calls(stage, "exposed", since) == []


def test_deleted_and_applied_again_at_once_it_is_another_with_nothing_of_the_first(stage: Stage) -> None:
    first = applied(stage, "again")
    app = first["status"]["app"]["name"]
    stage.kubectl("delete", "agents", "again", "--wait=false")

    def accepted() -> bool:
        try:
            stage.kubectl("create", "-f", "-", given=agent("again"))
        except Broken:
            return False  # the first is still on its way out
        return True

    stage.until("the API server should take the second", accepted)
    second = stage.ready("agents", "again")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["status"]["machine"]["id"] != first["status"]["machine"]["id"]
    assert second["status"]["volume"]["id"] != first["status"]["volume"]["id"]
    assert machines_made(stage, app) == 2
    assert len(left(stage, app)) == 3


@pytest.mark.parametrize("op", ["create_app", "create_volume", "create_machine"])
def test_deleted_while_it_is_made_it_leaves_nothing(stage: Stage, op: str) -> None:
    name = f"brief-{op.removeprefix('create_')}"
    stage.fly("POST", "/_sim/faults", {"op": op, "where": "before", "delay": 1.0, "times": 1})
    since = time.time()
    stage.kubectl("apply", "-f", "-", given=agent(name))

    def begun() -> bool:
        return any(line["kind"] == "begin" and line["op"] == op for line in ledger(stage, since))

    stage.until("its making should have begun", begun)
    stage.kubectl("delete", "agents", name, "--timeout=60s")
    apps = {line["app"] for line in ledger(stage, since) if line.get("event") == "app_created"}
    assert [thing for app in apps for thing in left(stage, app)] == []


# --- Last, by now what takes its time has had it -----------------------------------------------------------------


def test_a_status_edited_by_hand_is_put_right_at_once_by_one_write_and_no_call(stage: Stage) -> None:
    body, since = applied(stage, "edited"), time.time()
    lie = {"status": {"phase": "Failed", "nextAction": "nonsense", "agent": {"restarts": 99}}}
    stage.kubectl("patch", "agents", "edited", "--subresource=status", "--type=merge", "-p", json.dumps(lie))
    stage.until("the status should be put right", lambda: stage.get("agents", "edited")["status"] == body["status"], 5)
    until_quiet(stage, "edited")
    assert [(w.subresource, w.code) for w in writes(stage, "edited", since)] == [("status", 200)]
    assert calls(stage, "edited", since) == []


def test_gitops_that_applies_again_every_second_costs_neither_writes_nor_calls(stage: Stage, gitops: GitOps) -> None:
    stage.until("it should have applied twenty times", lambda: gitops.turns >= 20)
    gitops.end()
    until_quiet(stage, "synced")
    assert writes(stage, "synced", gitops.since) == []
    assert calls(stage, "synced", gitops.since) == []
    after = stage.get("agents", "synced")
    assert (after["metadata"]["generation"], after["status"]) == (1, gitops.before["status"])
