"""Secrets on the real API server, with the operator under its ServiceAccount and agents that are real processes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from roost.local import binaries
from roost.local.stack import Stack
from roost.local.story import Stage

RUN = ["sh", "-c", 'date +%s.%N >> starts.txt; printf %s "$KEY" > key.txt; exec sleep 1000']
DOCS = Path(__file__).parents[2] / "docs/how-to/secrets.md"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stack(tmp_path_factory.mktemp("roost-secrets"), say=print) as stack:
        yield Stage(stack, binaries.find(say=print).kubectl, print)


def agent(stage: Stage, name: str, secret: str | None, **ref: str) -> None:
    """Applies an Agent that uses key `api` of a Secret, or none."""
    value = {"valueFrom": {"name": secret, "key": "api"} | ref} if secret else {"value": "none"}
    spec = {
        "runtime": {"kind": "Command", "command": RUN},
        "heartbeat": {"intervalSeconds": 5},
        "env": [{"name": "KEY"} | value],
    }
    body = {"apiVersion": "roost.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": spec}
    stage.kubectl("apply", "-f", "-", given=body)


def declare(stage: Stage, name: str, source: str, *, fails: bool = False, **spec: Any) -> str:
    body = {"apiVersion": "roost.dev/v1alpha1", "kind": "Secret", "metadata": {"name": name}}
    return stage.kubectl(
        "apply", "-f", "-", given=body | {"spec": {"source": {"secretRef": {"name": source}}} | spec}, fails=fails
    )


def core(stage: Stage, name: str, value: str) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"api": value}}
    stage.kubectl("apply", "-f", "-", given=body)


def status(stage: Stage, name: str) -> dict[str, Any]:
    found: dict[str, Any] = stage.get("secrets.roost.dev", name).get("status", {})
    return found


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in found.get("conditions", ()) if c["type"] == kind), {})


def runs_with(stage: Stage, name: str) -> str:
    """The value with which the agent's process runs now."""
    return "".join(stage.machine(name).wrote("key.txt"))


def starts(stage: Stage, name: str) -> list[float]:
    return [float(line) for line in stage.machine(name).wrote("starts.txt")]


def test_without_the_right_to_watch_a_core_secret_is_read_in_turns(stage: Stage) -> None:
    core(stage, "polled-1", "one")
    declare(stage, "polled", "polled-1")
    agent(stage, "polly", "polled")
    stage.ready("agents", "polly")
    stage.until("it should be polled", lambda: status(stage, "polled").get("looked") == "Polled")
    assert status(stage, "polled")["pollSeconds"] == 15
    core(stage, "polled-1", "two")
    stage.until("the process should have the new value", lambda: runs_with(stage, "polly") == "two")
    stage.until("nobody should be behind", lambda: status(stage, "polled")["usedBy"].get("pending") == 0)
    assert status(stage, "polled")["usedBy"] == {"agents": 1, "pending": 0, "names": ["polly"]}
    assert len(starts(stage, "polly")) == 2


def test_with_the_role_that_the_docs_describe_it_is_watched_and_a_change_is_there_at_once(stage: Stage) -> None:
    page = DOCS.read_text()
    text = next(block for block in page.split("```yaml\n") if "kind: ClusterRole\n" in block).partition("```")[0]
    for body in yaml.safe_load_all(text):
        stage.kubectl("apply", "-f", "-", given=body)
    stage.stack.restart("operator")
    core(stage, "watched-1", "one")
    declare(stage, "watched", "watched-1")
    agent(stage, "wanda", "watched")
    agent(stage, "bystander", None)
    for name in ("wanda", "bystander"):
        stage.ready("agents", name)
    stage.until("it should be watched", lambda: status(stage, "watched").get("looked") == "Watched")
    stage.until("so should the one from before", lambda: status(stage, "polled").get("looked") == "Watched")
    stage.until("a heartbeat should be held", lambda: stage.is_ready("agents", "wanda"))
    began = time.time()
    core(stage, "watched-1", "two")
    stage.until("the process should have the new value", lambda: runs_with(stage, "wanda") == "two", 10)
    took = starts(stage, "wanda")[-1] - began
    print(f"from kubectl apply to the process with the new value: {took * 1000:.0f} ms")
    assert took < 5, "that is no watch"
    assert (len(starts(stage, "wanda")), len(starts(stage, "bystander")), len(starts(stage, "polly"))) == (2, 1, 2)
    assert "watched-1" not in "".join(
        line for line in stage.stack.log_path("operator").read_text().splitlines() if "a watch ended" in line
    )


def test_a_pattern_is_checked_and_one_that_could_take_for_ever_is_refused_at_apply(stage: Stage) -> None:
    said = declare(stage, "pattern", "pattern-1", keys=[{"name": "api", "pattern": "^(a+)+$"}], fails=True)
    assert "must be a plain regular expression" in said
    core(stage, "pattern-1", "hunter2-marker")
    declare(stage, "pattern", "pattern-1", keys=[{"name": "api", "pattern": "^sk-ant-[a-z]{4,}"}])
    agent(stage, "pat", "pattern")
    ready = stage.until(
        "it should be refused",
        lambda: (c := condition(status(stage, "pattern"), "Ready")).get("status") == "False" and c,
    )
    assert ready["reason"] == "SecretKeyInvalid"
    assert "hunter2" not in stage.kubectl("get", "secrets.roost.dev,agents,events", "-A", "-o", "json")
    core(stage, "pattern-1", "sk-ant-good")
    stage.ready("agents", "pat")
    assert runs_with(stage, "pat") == "sk-ant-good"


def test_an_agents_own_secret_takes_its_place_and_gives_way_again(stage: Stage) -> None:
    core(stage, "order-1", "everybody")
    core(stage, "order-2", "ona")
    declare(stage, "order", "order-1")
    agent(stage, "ona", "order")
    stage.ready("agents", "ona")
    declare(stage, "order.ona", "order-2")
    stage.until("its own should be there", lambda: runs_with(stage, "ona") == "ona")
    stage.kubectl("delete", "secrets.roost.dev", "order.ona")
    stage.until("everybody's should be back", lambda: runs_with(stage, "ona") == "everybody")


def test_a_secret_at_home_is_offered_to_a_namespace(stage: Stage) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "home-1", "namespace": "roost-system"}}
    stage.kubectl("apply", "-f", "-", given=body | {"stringData": {"api": "from-home"}})
    body = {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "Secret",
        "metadata": {"name": "home", "namespace": "roost-system"},
    }
    spec = {"source": {"secretRef": {"name": "home-1"}}}
    stage.kubectl("apply", "-f", "-", given=body | {"spec": spec})
    agent(stage, "hugo", "home")
    said = stage.until(
        "it should be told", lambda: condition(stage.get("agents", "hugo").get("status", {}), "SecretsResolved")
    )
    assert said["reason"] == "SecretNotOffered"
    stage.kubectl("apply", "-f", "-", given=body | {"spec": spec | {"availableTo": {"namespaces": ["default"]}}})
    stage.ready("agents", "hugo")
    assert runs_with(stage, "hugo") == "from-home"
    assert status_at_home(stage)["usedBy"]["names"] == ["default/hugo"]


def status_at_home(stage: Stage) -> dict[str, Any]:
    def told() -> dict[str, Any] | None:
        text = stage.kubectl("-n", "roost-system", "get", "secrets.roost.dev", "home", "-o", "json")
        found: dict[str, Any] = json.loads(text)["status"]
        return found if found.get("usedBy", {}).get("agents") else None

    return stage.until("its users should be counted", told)


def test_a_core_secret_and_a_config_map_are_found_by_name(stage: Stage) -> None:
    agent(stage, "cora", "raw", kind="CoreSecret")
    said = stage.until(
        "it should be told", lambda: condition(stage.get("agents", "cora").get("status", {}), "SecretsResolved")
    )
    stage.kubectl(*said["message"].partition("kubectl ")[2].split())
    stage.ready("agents", "cora")
    assert runs_with(stage, "cora") == "VALUE"


def test_a_staged_rotation_restarts_exactly_those_that_use_it_one_after_the_other(stage: Stage) -> None:
    core(stage, "staged-1", "old")
    core(stage, "staged-2", "new")
    staged = {"rotation": {"strategy": "Staged"}}
    declare(stage, "staged", "staged-1", **staged)
    names = ("s-1", "s-2", "s-3")
    for name in names:
        agent(stage, name, "staged")
    for name in names:
        stage.ready("agents", name)
    others = {name: len(starts(stage, name)) for name in ("wanda", "bystander", "polly")}
    declare(stage, "staged", "staged-2", **staged)
    stage.until(
        "it should be over",
        lambda: (s := status(stage, "staged")).get("activeVersion") == 2 and "rotation" not in s,
        120,
    )
    assert [runs_with(stage, name) for name in names] == ["new"] * 3
    second = [starts(stage, name) for name in names]
    assert [len(times) for times in second] == [2, 2, 2]
    assert [times[1] for times in second] == sorted(times[1] for times in second)
    assert {name: len(starts(stage, name)) for name in others} == others
    found = status(stage, "staged")
    assert (found["activeRef"], found["rotatedFrom"], "previousRef" in found) == ("staged-2", 1, False)


def test_the_sample_rotates_by_the_command_that_stands_in_it(stage: Stage) -> None:
    sample = DOCS.parents[2] / "manifests/samples/secret-rotation.yaml"
    stage.kubectl("apply", "-f", str(sample))
    stage.ready("agents", "otto")
    stage.patch("secrets.roost.dev", "openai", {"spec": {"source": {"secretRef": {"name": "openai-v2"}}}})
    stage.until(
        "it should be over",
        lambda: (s := status(stage, "openai")).get("activeRef") == "openai-v2" and "rotation" not in s,
    )
    assert status(stage, "openai")["activeVersion"] == 2


def test_a_rotation_that_fails_stops_and_the_command_it_tells_brings_the_old_values_back(stage: Stage) -> None:
    core(stage, "staged-3", "broken")
    script = 'date +%s.%N >> starts.txt; printf %s "$KEY" > key.txt; [ "$KEY" != broken ] || exit 3; exec sleep 1000'
    stage.patch("agents", "s-1", {"spec": {"runtime": {"command": ["sh", "-c", script]}}})
    stage.ready("agents", "s-1")
    declare(stage, "staged", "staged-3", rotation={"strategy": "Staged"})
    stage.until("the first should have it", lambda: runs_with(stage, "s-1") == "broken")
    assert status(stage, "staged")["rotation"]["at"] == "default/s-1"
    assert status(stage, "staged")["previousRef"] == "staged-2"
    assert [runs_with(stage, name) for name in ("s-2", "s-3")] == ["new", "new"]
    stage.patch("secrets.roost.dev", "staged", {"spec": {"source": {"secretRef": {"name": "staged-2"}}}})
    stage.until("the old value should be back", lambda: runs_with(stage, "s-1") == "new")
    stage.ready("agents", "s-1")
    assert [len(starts(stage, name)) for name in ("s-2", "s-3")] == [2, 2]
