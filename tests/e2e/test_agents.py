"""What people and clouds do to Agents, on a real API server, with real processes as machines; asked from outside."""

import base64
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from roost.agents.names import heartbeat_token
from roost.local import binaries
from roost.local.stack import Stack
from roost.local.story import Machine, Stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stack of its own with the operator running under its ServiceAccount."""
    with Stack(tmp_path_factory.mktemp("roost-agents"), say=print) as stack:
        yield Stage(stack, binaries.find(say=print).kubectl, print)


def agent(name: str, **spec: Any) -> dict[str, Any]:
    runtime = {"kind": "Command", "command": ["sh", "-c", "env > env.txt; echo start >> starts.txt; exec sleep 1000"]}
    defaults = {"runtime": runtime, "heartbeat": {"intervalSeconds": 5}}
    return {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name, "namespace": "default"},
        "spec": defaults | spec,
    }


def applied(stage: Stage, body: dict[str, Any]) -> Machine:
    stage.kubectl("apply", "-f", "-", given=body)
    stage.ready("agents", body["metadata"]["name"])
    return stage.machine(body["metadata"]["name"])


def condition(stage: Stage, name: str, kind: str) -> dict[str, Any]:
    found = stage.get("agents", name).get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == kind), {})


def calls(stage: Stage, since: float = 0.0, **wanted: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in stage.stack.ledger_path.read_text().splitlines()]
    return [c for c in lines if c.get("at", 0) >= since and all(c.get(k) == v for k, v in wanted.items())]


def volumes(stage: Stage, app: str) -> list[dict[str, Any]]:
    return [v for v in stage.fly("GET", f"/v1/apps/{app}/volumes") if "destroy" not in v["state"]]


def test_while_fly_refuses_every_delete_the_resource_stays_and_afterwards_nothing_does(stage: Stage) -> None:
    machine = applied(stage, agent("stay"))
    stage.fly("POST", "/_sim/faults", {"op": "delete_*", "where": "before", "status": 500})
    since = time.time()
    stage.kubectl("delete", "agents", "stay", "--wait=false")
    stage.until("three deletes should have failed", lambda: len(calls(stage, since, op="delete_machine")) >= 3)
    status = stage.until(
        "the status should say what it hangs on",
        lambda: (s := stage.get("agents", "stay")["status"]).get("destroy", {}).get("lastError") and s,
    )
    assert status["phase"] == "Terminating"
    assert status["destroy"]["lastError"]["op"] == "delete_machine"
    assert "roost.dev/machine" in stage.get("agents", "stay")["metadata"]["finalizers"]
    stage.fly("DELETE", "/_sim/faults")
    stage.until("it should be gone", lambda: not stage.get("agents", "stay"))
    gone = [e["event"] for e in calls(stage, since, kind="event", app=machine.app) if e["event"].endswith("_destroyed")]
    assert gone == ["machine_destroyed", "volume_destroyed", "app_destroyed"]


def test_a_missing_secret_is_named_with_its_remedy_and_heals_by_itself(stage: Stage) -> None:
    env = [{"name": "KEY", "valueFrom": {"name": "absent", "key": "api-key"}}]
    stage.kubectl("apply", "-f", "-", given=agent("needy", env=env))
    said = stage.until("it should say what is missing", lambda: condition(stage, "needy", "SecretsResolved"))
    assert (said["status"], said["reason"]) == ("False", "SecretMissing")
    assert "kubectl -n default create secret generic absent" in said["message"]
    assert condition(stage, "needy", "Stalled")["status"] == "True"
    source = {"source": {"secretRef": {"name": "absent-v1"}}}
    body = {"apiVersion": "roost.dev/v1alpha1", "kind": "Secret", "metadata": {"name": "absent"}, "spec": source}
    stage.kubectl("apply", "-f", "-", given=body)
    stage.until(
        "the core Secret should be named",
        lambda: "create secret generic absent-v1" in condition(stage, "needy", "SecretsResolved")["message"],
    )
    stage.kubectl("create", "secret", "generic", "absent-v1", "--from-literal=other=1")
    stage.until(
        "the key should be named",
        lambda: condition(stage, "needy", "SecretsResolved")["reason"] == "SecretKeyMissing",
    )
    stage.patch("secret", "absent-v1", {"stringData": {"api-key": "s3cr3t-marker"}})
    stage.ready("agents", "needy")
    assert "KEY=s3cr3t-marker" in stage.machine("needy").wrote("env.txt")
    assert "s3cr3t-marker" not in stage.kubectl("get", "agents,secrets.roost.dev,events", "-A", "-o", "yaml")
    assert "s3cr3t-marker" not in stage.stack.log_path("operator").read_text()
    assert "s3cr3t-marker" not in stage.stack.ledger_path.read_text()


def test_a_refused_fly_token_is_said_with_its_remedy_and_works_as_soon_as_it_is_right(stage: Stage) -> None:
    token = stage.stack.fly_token
    stage.fly("POST", "/_sim/tokens", {"tokens": ["another-token"]})
    stage.kubectl("apply", "-f", "-", given=agent("waiting"))
    said = stage.until(
        "it should be stalled", lambda: (c := condition(stage, "waiting", "Stalled")).get("status") == "True" and c
    )
    assert said["reason"] == "FlyUnauthorized"
    assert "create secret generic roost-fly" in said["message"]
    stage.kubectl(
        "-n", "roost-system", "patch", "secret", "roost-fly", "-p", '{"stringData":{"token":"another-token"}}'
    )
    stage.ready("agents", "waiting")
    stage.fly("POST", "/_sim/tokens", {"tokens": [token]})
    _give_token(stage, token)


def test_a_missing_fly_token_is_said_with_the_command_that_makes_it(stage: Stage) -> None:
    stage.kubectl("-n", "roost-system", "delete", "secret", "roost-fly")
    stage.stack.restart("operator")
    stage.kubectl("apply", "-f", "-", given=agent("broke"))
    said = stage.until(
        "it should be stalled", lambda: (c := condition(stage, "broke", "Stalled")).get("status") == "True" and c
    )
    assert said["reason"] == "FlyTokenMissing"
    assert "kubectl -n roost-system create secret generic roost-fly --from-literal=token=" in said["message"]
    command = ["-n", "roost-system", "create", "secret", "generic", "roost-fly"]
    stage.kubectl(*command, f"--from-literal=token={stage.stack.fly_token}")
    stage.ready("agents", "broke")


def test_what_is_declared_of_fly_and_the_machine_reaches_fly(stage: Stage) -> None:
    machine = {"cpus": 2, "memoryMb": 2048, "stopTimeoutSeconds": 7, "restart": "Always"}
    fly = {"app": "roost-by-hand", "network": "by-hand", "org": "personal", "credential": "default"}
    spec = agent("declared", machine=machine, fly=fly, placement={"regions": ["ams", "iad"]})
    spec["spec"]["runtime"]["version"] = "v7"
    spec["spec"]["volume"] = {"mountPath": "/var/agent", "sizeGb": 2}
    made = applied(stage, spec)
    seen = stage.fly("GET", f"/v1/apps/roost-by-hand/machines/{made.id}")
    config = seen["config"]
    assert config["guest"] == {"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048}
    assert (config["stop_config"]["timeout"], config["restart"]["policy"]) == ("7s", "always")
    assert (config["mounts"][0]["path"], config["env"]["DATA_DIR"]) == ("/var/agent", "/var/agent")
    assert (seen["region"], volumes(stage, made.app)[0]["size_gb"]) == ("ams", 2)
    assert stage.fly("GET", "/v1/apps/roost-by-hand")["network"] == "by-hand"
    status = stage.get("agents", "declared")["status"]
    assert (status["agent"]["runtimeVersion"], status["app"]["network"]) == ("v7", "by-hand")


def test_a_credential_that_the_settings_do_not_have_is_said(stage: Stage) -> None:
    stage.kubectl("apply", "-f", "-", given=agent("elsewhere", fly={"credential": "theirs"}))
    said = stage.until(
        "it should be stalled", lambda: (c := condition(stage, "elsewhere", "Stalled")).get("status") == "True" and c
    )
    assert 'spec.fly.credential: "theirs" is not in the operator\'s settings; use one of: default' in said["message"]
    stage.kubectl("delete", "agents", "elsewhere", "--timeout=30s")


def test_an_agent_that_falls_silent_is_said_and_is_well_when_it_speaks_again(stage: Stage) -> None:
    heartbeat = {"intervalSeconds": 5, "missedBeforeUnhealthy": 1}
    machine = applied(stage, agent("mute", heartbeat=heartbeat))
    assert machine.pid is not None
    stage.fly("POST", f"/_sim/machines/{machine.id}/kill", {"signal": int(signal.SIGSTOP)})
    stage.until(
        "its silence should be said", lambda: condition(stage, "mute", "AgentHealthy").get("reason") == "AgentSilent"
    )
    assert condition(stage, "mute", "Ready")["status"] == "False"
    stage.fly("POST", f"/_sim/machines/{machine.id}/kill", {"signal": int(signal.SIGCONT)})
    stage.ready("agents", "mute")
    assert stage.machine("mute").pid == machine.pid


def test_a_restart_of_the_operator_changes_nothing_and_costs_nothing(stage: Stage) -> None:
    applied(stage, agent("calm"))
    app, before = stage.machine("calm").app, stage.get("agents", "calm")
    since = time.time()
    stage.stack.restart("operator")
    stage.until("its machines should have been listed", lambda: calls(stage, since, op="org_machines"))
    stage.until("the agent should be heard", lambda: _metric(stage, "roost_heartbeats_total") > 0)
    assert [c["op"] for c in calls(stage, since, kind="call", app=app)] == []
    after = stage.get("agents", "calm")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_a_raised_token_epoch_updates_the_machine_and_ends_the_token_before(stage: Stage) -> None:
    machine = applied(stage, agent("epoch"))
    did = stage.get("agents", "epoch")["status"]["did"]
    old, new = _token(stage, "epoch", 0), _token(stage, "epoch", 1)
    assert (_bundle(stage, did, old).status_code, _bundle(stage, did, new).status_code) == (200, 403)
    stage.patch("agents", "epoch", {"spec": {"identity": {"tokenEpoch": 1}}})
    stage.ready("agents", "epoch")
    stage.until("the machine should have proved the new token", lambda: _bundle(stage, did, old).status_code == 403)
    assert _bundle(stage, did, new).status_code == 200
    assert stage.machine("epoch").id == machine.id


def test_revoked_stops_the_machine_and_is_ready_for_what_it_is(stage: Stage) -> None:
    applied(stage, agent("rogue"))
    stage.kubectl("annotate", "agents", "rogue", "roost.dev/revoked=true")
    stage.until("it should be revoked", lambda: stage.get("agents", "rogue")["status"]["phase"] == "Revoked")
    assert stage.machine("rogue").state == "stopped"
    assert condition(stage, "rogue", "Ready")["status"] == "True"
    stage.kubectl("annotate", "agents", "rogue", "roost.dev/revoked-")
    stage.until("it should run again", lambda: stage.get("agents", "rogue")["status"]["phase"] == "Running")


def test_a_new_restarted_at_restarts_the_runtime_once_and_nothing_else(stage: Stage) -> None:
    machine = applied(stage, agent("again"))
    stage.patch("agents", "again", {"spec": {"restartedAt": "2026-11-21T10:00:00Z"}})
    stage.until("it should start again", lambda: stage.machine("again").wrote("starts.txt") == ["start", "start"])
    stage.ready("agents", "again")
    after = stage.machine("again")
    assert (after.id, after.pid, after.wrote("starts.txt")) == (machine.id, machine.pid, ["start", "start"])


def test_paused_leaves_everything_as_it_is_and_still_observes(stage: Stage) -> None:
    applied(stage, agent("still"))
    stage.patch("agents", "still", {"spec": {"paused": True, "desiredState": "Stopped"}})
    stage.until(
        "the generation should be observed",
        lambda: (a := stage.get("agents", "still"))["status"]["observedGeneration"] == a["metadata"]["generation"],
    )
    assert condition(stage, "still", "Reconciling")["reason"] == "Paused"
    assert stage.machine("still").state == "started"
    stage.patch("agents", "still", {"spec": {"paused": False}})
    stage.until("it should stop", lambda: stage.machine("still").state == "stopped")


def test_a_volume_grows_in_place(stage: Stage) -> None:
    machine = applied(stage, agent("grow"))
    stage.patch("agents", "grow", {"spec": {"volume": {"sizeGb": 3}}})
    stage.until("Fly should have extended it", lambda: volumes(stage, machine.app)[0]["size_gb"] == 3)
    grown = stage.ready("agents", "grow")
    assert grown["status"]["volume"]["sizeGb"] == 3
    assert stage.machine("grow").id == machine.id


def test_retain_keeps_volume_and_app_and_the_next_agent_of_that_name_finds_its_data(stage: Stage) -> None:
    machine = applied(stage, agent("keep", deletionPolicy="Retain"))
    volume = volumes(stage, machine.app)[0]["id"]
    stage.kubectl("delete", "agents", "keep", "--timeout=60s")
    assert [v["id"] for v in volumes(stage, machine.app)] == [volume]
    assert not [m for m in stage.machines() if m.app == machine.app]
    again = applied(stage, agent("keep"))
    assert volumes(stage, again.app)[0]["id"] == volume
    assert again.wrote("starts.txt") == ["start", "start"]


def test_in_a_shared_app_each_machine_has_its_own_token_and_the_app_outlives_them(stage: Stage) -> None:
    stage.fly("POST", "/v1/apps", {"app_name": "shared-app", "org_slug": "personal"})
    fly = {"appStrategy": "Shared", "app": "shared-app"}
    for name in ("left", "right"):
        stage.kubectl("apply", "-f", "-", given=agent(name, fly=fly))
    for name in ("left", "right"):
        stage.ready("agents", name)
    assert len({s["digest"] for s in stage.fly("GET", "/v1/apps/shared-app/secrets")["secrets"]}) == 2
    stage.kubectl("delete", "agents", "left", "right", "--timeout=90s")
    assert not [m for m in stage.machines() if m.app == "shared-app"]
    assert volumes(stage, "shared-app") == []
    assert stage.fly("GET", "/v1/apps/shared-app/secrets")["secrets"] == []
    assert stage.fly("GET", "/v1/apps/shared-app")["name"] == "shared-app"


def test_an_image_that_can_not_be_pulled_is_said_and_heals_with_the_spec(stage: Stage) -> None:
    stage.kubectl("apply", "-f", "-", given=agent("typo", machine={"image": "roost/no-such-image:1"}))
    said = stage.until(
        "it should be stalled", lambda: (c := condition(stage, "typo", "Stalled")).get("status") == "True" and c
    )
    assert said["reason"] == "MachineFailed"
    assert "roost/no-such-image:1" in said["message"]
    stage.patch("agents", "typo", {"spec": {"machine": {"image": None}}})
    stage.ready("agents", "typo")


def test_strangers_get_one_answer_and_bodies_are_bounded(stage: Stage) -> None:
    applied(stage, agent("door"))
    did = stage.get("agents", "door")["status"]["did"]
    url = f"{stage.stack.endpoint_url}/v1/agents/{did}/heartbeat"
    unknown = url.replace(did, "did:key:z6MkunknownUnknownUnknownUnknownUnknownUnknown12")
    assert httpx.post(url).status_code == 401
    wrong, nobody = (httpx.post(u, headers={"X-Heartbeat-Token": "wrong"}) for u in (url, unknown))
    assert (wrong.status_code, wrong.content) == (403, nobody.content)
    assert nobody.status_code == 403
    token = {"X-Heartbeat-Token": _token(stage, "door")}
    assert httpx.post(url, headers=token, content=b"x" * 2_000_000).status_code == 413
    assert httpx.post(url, headers=token, content=b"{").status_code == 400
    old = httpx.get(
        f"{stage.stack.endpoint_url}/v1/agents/{did}/config-bundle", headers=token | {"X-Machine-Id": "old"}
    )
    assert (old.status_code, old.json()["error"]) == (409, "superseded")


def test_what_an_agent_says_of_itself_can_be_scraped_until_it_is_gone(stage: Stage) -> None:
    machine = applied(stage, agent("teller"))
    did, token = stage.get("agents", "teller")["status"]["did"], _token(stage, "teller")
    gateway = _bundle(stage, did, token).json()["secretEnv"]["OPENCLAW_GATEWAY_TOKEN"]
    body = {
        "sandboxId": did,
        "controllerVersion": "0.1.0",
        "controllerCommit": "0f1e2d3",
        "supervisorState": "running",
        "totalRestarts": 0,
        "restartsSinceLastCheckin": 0,
        "uptimeSeconds": 120,
        "loadAvg5m": 0.5,
        "bandwidthBytesIn": 71234,
        "bandwidthBytesOut": 1,
    }
    url = f"{stage.stack.endpoint_url}/api/controller/checkin"
    proofs = {"Authorization": f"Bearer {token}", "X-KiloClaw-Gateway-Token": gateway}
    assert httpx.post(url, headers=proofs, json=body).status_code == 204
    assert httpx.post(url, headers=proofs | {"X-KiloClaw-Gateway-Token": token}, json=body).status_code == 403
    told = [line for line in _agents_page(stage) if 'agent="teller"' in line]
    assert any(
        line.startswith("roost_agent_network_receive_bytes_total{") and line.endswith(" 71234.0") for line in told
    )
    assert any(line.startswith("roost_agent_up{") and line.endswith(" 1.0") for line in told)
    region = stage.get("agents", "teller")["status"]["machine"]["region"]
    [info] = [line for line in told if line.startswith("roost_agent_info{")]
    assert f'region="{region}"' in info
    assert f'machine_id="{machine.id}"' in info
    stage.kubectl("delete", "agents", "teller")
    stage.until(
        "nothing should be left of it", lambda: not any('agent="teller"' in line for line in _agents_page(stage))
    )


def _agents_page(stage: Stage) -> list[str]:
    return httpx.get(f"{stage.stack.metrics_url}/metrics/agents").text.splitlines()


def _give_token(stage: Stage, token: str) -> None:
    patch = json.dumps({"stringData": {"token": token}})
    stage.kubectl("-n", "roost-system", "patch", "secret", "roost-fly", "-p", patch)


def _bundle(stage: Stage, did: str, token: str) -> httpx.Response:
    url = f"{stage.stack.endpoint_url}/api/v1/molti/deployments/{did}/config-bundle"
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"})


def _token(stage: Stage, name: str, epoch: int = 0) -> str:
    """The token of an Agent, derived from the roots; the machine itself shows it to nobody."""
    secret = json.loads(stage.kubectl("-n", "roost-system", "get", "secret", "roost-roots", "-o", "json"))
    roots = {k: base64.b64decode(v) for k, v in secret["data"].items()}
    incarnation = stage.get("agents", name)["status"]["app"]["incarnation"]
    return heartbeat_token(roots["token"], roots["ownerId"].decode(), "default", name, incarnation, epoch)


def _metric(stage: Stage, name: str) -> float:
    text = httpx.get(f"{stage.stack.metrics_url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
