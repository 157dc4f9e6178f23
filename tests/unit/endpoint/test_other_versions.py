"""Supervisors of earlier and later versions at this operator: raw JSON, as they would send and read it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from endpoint_world import Caller, EndpointWorld, endpoint_world

FIRST: dict[str, Any] = {
    "status": "running",
    "openclawVersion": "1.0",
    "machineVersion": "01JV",
    "uptimeSeconds": 3600,
    "memoryMb": 61,
    "computeVersion": "0.1.0",
    "bootPhase": "done",
    "ready": True,
    "degraded": [],
    "runtime": {"state": "running", "pid": 42, "restarts": 0, "lastExit": None},
    "restartedAt": None,
    "disk": {"usedBytes": 1, "totalBytes": 2},
    "lastCommandId": None,
    "activeSessions": 0,
    "lastActivityAt": None,
    "nextScheduledRunAt": None,
    "connections": 0,
}
"""Everything that the first version of the supervisor sends, and nothing else."""
SEED: dict[str, Any] = {
    "status": "running",
    "openclawVersion": "2026.2.26",
    "uptimeSeconds": 3600,
    "memoryMb": 512,
    "computeVersion": "0.1.0",
}
LATER: dict[str, Any] = FIRST | {
    "status": "hibernating",
    "bootPhase": "attest",
    "runtime": {"state": "forking", "pid": 42, "restarts": 0, "lastExit": None, "threads": 3},
    "channels": {"telegram": {"state": "rateLimited", "lastError": None, "since": "2026-11-21T10:00:00Z"}},
    "gpu": [{"name": "a100"}],
}


@pytest.fixture
async def world() -> AsyncIterator[EndpointWorld]:
    async with endpoint_world() as made:
        yield made


@pytest.mark.parametrize("sent", [SEED, FIRST, LATER], ids=["of the seed", "first", "later"])
async def test_a_heartbeat_of_another_version_is_heard(world: EndpointWorld, sent: dict[str, Any]) -> None:
    ada = world.agent("ada")
    answer = await ada.say(sent | {"machineId": ada.machine})
    assert answer.commands == [f"update_config:{ada.memory.revision}"]
    assert (await ada.say(sent | {"machineId": ada.machine, "bundleRevision": ada.memory.revision})).commands == []
    assert ada.memory.heard is not None
    assert ada.memory.heard.beat.pending_pairings is None


async def test_the_first_supervisor_is_told_what_it_understands(world: EndpointWorld) -> None:
    """It knows three commands, and leaves others alone; its answer has two fields, each command four."""
    ada = world.agent("ada", restartedAt="now", metadata={"annotations": {"roost.dev/drain": "scaleDown"}})
    answer = await ada.say(FIRST | {"machineId": ada.machine})
    assert isinstance(answer.json["nextHeartbeatSeconds"], int)
    commands = {c["type"]: c for c in answer.json["commands"]}
    assert commands.keys() == {"update_config", "restart", "drain"}  # no version: the kind Command has none
    assert commands["restart"]["restartedAt"] == "now"
    assert all(isinstance(c[k], str) for c in commands.values() for k in ("id", "type", "reason"))


async def test_the_first_supervisor_finds_its_bundle_in_the_new_one(world: EndpointWorld) -> None:
    """Every field that it needs is there, of the type that it was; it keeps the rest without looking at it."""
    world.secret("anthropic", {"api-key": "sk-1"})
    ada: Caller = world.agent(
        "ada",
        env=[{"name": "TZ", "value": "UTC"}, {"name": "KEY", "valueFrom": {"name": "anthropic", "key": "api-key"}}],
        files=[{"path": "a", "content": "x"}],
    )
    bundle = (await ada.fetch()).json
    assert {k: type(bundle[k]) for k in ("revision", "generation", "revoked", "env", "secretEnv", "files")} == {
        "revision": str,
        "generation": int,
        "revoked": bool,
        "env": dict,
        "secretEnv": dict,
        "files": list,
    }
    assert (bundle["apiVersion"], bundle["kind"]) == ("roost.dev/v1alpha1", "ConfigBundle")
    assert bundle["agent"].keys() >= {"did", "namespace", "name", "uid"}
    assert bundle["runtime"]["kind"] == "Command"
    assert bundle["runtime"]["command"] == ["sleep", "infinity"]
    assert isinstance(bundle["runtime"]["version"], str)
    assert bundle["secretEnv"]["KEY"] == "sk-1"
    assert bundle["files"] == [{"path": "a", "mode": "0600", "content": "x"}]
    assert bundle["heartbeat"] == {"intervalSeconds": 30}
