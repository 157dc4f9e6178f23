"""Agents to whom nothing was given: real processes that prove themselves to the real operator, on a real API server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import pytest
from test_agents import _bundle, _token, agent, applied, calls

from roost.local import binaries
from roost.local.stack import Stack
from roost.local.story import Machine, Stage
from roost_agent.contract import token_path

PROVES = {"identity": {"bootstrap": "FlyOidc"}}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stack(tmp_path_factory.mktemp("oidc"), say=print) as stack:
        yield Stage(stack, binaries.find(say=print).kubectl, print)


def secrets(stage: Stage, app: str) -> list[str]:
    return [s["name"] for s in stage.fly("GET", f"/v1/apps/{app}/secrets")["secrets"]]


def exchanges(stage: Stage) -> int:
    return len(calls(stage, kind="call", op="oidc_token", status=200))


def running(stage: Stage, name: str, machine: Machine) -> Machine:
    """The same machine, Ready as it is declared now."""
    stage.ready("agents", name)
    now = stage.machine(name)
    assert now.id == machine.id
    return now


async def proof(machine: Machine, audience: str) -> str:
    """The token that Fly makes of this machine: for whoever stands inside of it."""
    socket = str(machine.log.parent / "api")
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as fly,
        fly.post("http://localhost/v1/tokens/oidc", json={"aud": audience}) as answer,
    ):
        assert answer.status == 200
        return await answer.text()


def ask(stage: Stage, did: str, token: str, **headers: str) -> httpx.Response:
    return httpx.post(
        stage.stack.endpoint_url + token_path(did), headers={"Authorization": f"Bearer {token}"} | headers
    )


async def test_from_apply_to_ready_without_a_secret_anywhere(stage: Stage) -> None:
    machine = applied(stage, agent("hedy", **PROVES))
    status, token = stage.get("agents", "hedy")["status"], _token(stage, "hedy")
    assert _bundle(stage, status["did"], token).status_code == 200, "it is the token that it runs with"
    assert secrets(stage, machine.app) == []
    assert calls(stage, kind="call", op="set_secrets", app=machine.app) == []
    assert exchanges(stage) == 1

    row = stage.fly("GET", f"/v1/apps/{machine.app}/machines/{machine.id}")
    assert row["config"]["env"]["ROOST_BOOTSTRAP"] == "FlyOidc"
    assert machine.pid is not None
    family = [psutil.Process(machine.pid), *psutil.Process(machine.pid).children(recursive=True)]
    environments = "".join(_environment(p.pid) for p in family)
    texts = [json.dumps(row), environments, machine.log.read_text(), "\n".join(machine.wrote("env.txt"))]
    texts += [stage.stack.ledger_path.read_text(), stage.stack.log_path("operator").read_text(), str(status)]
    texts += [" ".join(p.cmdline()) for p in family]
    assert [text for text in texts if token in text] == []
    assert machine.volume is not None
    assert not [p for p in machine.volume.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]

    said = await proof(machine, stage.stack.endpoint_url)
    assert ask(stage, status["did"], said).json() == {"token": token, "epoch": 0}
    assert ask(stage, status["did"], await proof(machine, "https://somebody.else")).status_code == 403
    assert ask(stage, status["did"], said, **{"X-Machine-Id": "another"}).status_code == 403
    assert ask(stage, "did:key:z6MkNobody", said).status_code == 403
    assert said.split(".")[2] not in stage.stack.log_path("operator").read_text()


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text()
    except PermissionError:
        return ""


async def test_one_agents_machine_is_a_stranger_to_another_agent(stage: Stage) -> None:
    machine = applied(stage, agent("mallory", **PROVES))
    applied(stage, agent("alice", **PROVES))
    alice = stage.get("agents", "alice")["status"]["did"]
    assert ask(stage, alice, await proof(machine, stage.stack.endpoint_url)).status_code == 403


def test_it_starts_again_under_new_keys_and_waits_while_the_issuer_is_away(stage: Stage) -> None:
    machine = applied(stage, agent("grace", **PROVES))
    starts = len(machine.wrote("starts.txt"))
    stage.fly("POST", "/_sim/faults", {"op": "oidc_keys", "status": 503})
    stage.fly("POST", "/_sim/oidc/rotate", {"overlap_seconds": 0})
    stage.fly("POST", f"/_sim/machines/{machine.id}/kill", {"signal": 9})
    stage.until("it should be asked to come again", lambda: "busy (503)" in machine.log.read_text())
    assert len(machine.wrote("starts.txt")) == starts, "not even the last good configuration: that is sealed"
    stage.fly("DELETE", "/_sim/faults")
    stage.until("it should run again", lambda: len(stage.machine("grace").wrote("starts.txt")) > starts)
    running(stage, "grace", machine)
    assert secrets(stage, machine.app) == []


def test_a_raised_epoch_costs_no_call_to_fly_and_leaves_the_machine_up(stage: Stage) -> None:
    machine = applied(stage, agent("epoch", **PROVES))
    did, old, new = stage.get("agents", "epoch")["status"]["did"], _token(stage, "epoch", 0), _token(stage, "epoch", 1)
    before = exchanges(stage)
    version = stage.fly("GET", f"/v1/apps/{machine.app}/machines/{machine.id}")["version"]
    stage.patch("agents", "epoch", {"spec": {"identity": {"tokenEpoch": 1}}})
    stage.until("the old token should end", lambda: _bundle(stage, did, old).status_code == 403)
    assert _bundle(stage, did, new).status_code == 200
    stage.until("it should have another token", lambda: exchanges(stage) > before)
    stage.patch("agents", "epoch", {"spec": {"env": [{"name": "LATER", "value": "1"}]}})
    after = running(stage, "epoch", machine)
    assert "LATER=1" in after.wrote("env.txt"), "it can call again"
    assert len(after.wrote("starts.txt")) == 2, "for the change of its environment alone"
    assert stage.fly("GET", f"/v1/apps/{machine.app}/machines/{machine.id}")["version"] == version
    assert exchanges(stage) == before + 1


def test_a_token_is_given_up_and_taken_again_while_it_runs(stage: Stage) -> None:
    machine = applied(stage, agent("switch"))
    assert secrets(stage, machine.app) == ["AS_HEARTBEAT_TOKEN"]
    stage.patch("agents", "switch", {"spec": PROVES})
    machine = running(stage, "switch", machine)
    assert secrets(stage, machine.app) == []
    stage.patch("agents", "switch", {"spec": {"identity": {"bootstrap": "Token"}}})
    machine = running(stage, "switch", machine)
    assert secrets(stage, machine.app) == ["AS_HEARTBEAT_TOKEN"]


def test_in_a_shared_app_nothing_is_stored_and_nothing_of_others_is_seen(stage: Stage) -> None:
    stage.fly("POST", "/v1/apps", {"app_name": "shared-oidc", "org_slug": "personal"})
    stage.fly("POST", "/v1/apps/shared-oidc/secrets", {"values": {"THEIRS": "not for agents"}})
    fly: dict[str, Any] = {"appStrategy": "Shared", "app": "shared-oidc"}
    for name in ("left", "right"):
        stage.kubectl("apply", "-f", "-", given=agent(name, fly=fly, **PROVES))
    for name in ("left", "right"):
        own = stage.ready("agents", name)["status"]["machine"]["id"]
        [machine] = [m for m in stage.machines() if m.id == own]
        assert machine.wrote("env.txt")
        assert not [line for line in machine.wrote("env.txt") if "THEIRS" in line]
    assert secrets(stage, "shared-oidc") == ["THEIRS"]
    stage.kubectl("delete", "agents", "left", "right", "--timeout=90s")
    assert secrets(stage, "shared-oidc") == ["THEIRS"]
