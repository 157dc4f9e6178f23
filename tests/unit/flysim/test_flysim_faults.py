"""Faults and the ledger: failures to order, and the record that tells what really happened."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from flysim_client import Client, eventually, text


async def calls(fly: Client, op: str) -> list[dict[str, Any]]:
    return [line for line in await fly.ledger() if line["kind"] == "call" and line["op"] == op]


async def test_a_call_can_be_refused_without_effect(fly: Client) -> None:
    app = await fly.app()
    body = {"error": "could not find a candidate host", "status": "insufficient_capacity"}
    order = {"op": "create_machine", "where": "before", "status": 422, "body": body, "times": 1}
    fault = await fly.sim("POST", "faults", order)
    refused = await fly.create(app)
    assert (refused.status, refused.json) == (422, body)
    assert await fly.get(f"{app}/machines") == []
    assert (await fly.create(app)).status == 200, "once only"
    first, second = await calls(fly, "create_machine")
    assert (first["status"], first["effect"], first["fault"]) == (422, None, {"id": fault["id"], "where": "before"})
    assert (second["status"], second["effect"], second["fault"]) == (200, "machine created", None)
    (told,) = await fly.sim("GET", "faults")
    assert (told["used"], told["spent"]) == (1, True)


async def test_a_call_can_fail_although_it_took_effect(fly: Client) -> None:
    app = await fly.app()
    await fly.sim("POST", "faults", {"op": "create_machine", "where": "after", "status": 500})
    assert (await fly.create(app, name="ada-1")).error == (500, "internal")
    assert [row["name"] for row in await fly.get(f"{app}/machines")] == ["ada-1"]
    (line,) = await calls(fly, "create_machine")
    (made,) = await fly.happened("machine_created")
    assert (line["status"], line["effect"], line["machine"]) == (500, "machine created", made["machine"])


async def test_the_answer_can_be_lost(fly: Client) -> None:
    app = await fly.app()
    await fly.sim("POST", "faults", {"op": "create_volume", "where": "reply", "times": 1})
    with pytest.raises(httpx.RemoteProtocolError):
        await fly.volume(app)
    (volume,) = await fly.get(f"{app}/volumes")
    (line,) = await calls(fly, "create_volume")
    assert (line["effect"], line["volume"], line["fault"]["where"]) == ("volume created", volume["id"], "reply")


async def test_a_call_can_be_held_back(fly: Client) -> None:
    app = await fly.app()
    await fly.sim("POST", "faults", {"op": "create_machine", "delay": 0.1, "times": 1})
    assert (await fly.create(app)).status == 200
    (begin,) = [line for line in await fly.ledger() if line["kind"] == "begin"]
    (call,) = await calls(fly, "create_machine")
    (made,) = await fly.happened("machine_created")
    assert (begin["op"], begin["request_id"]) == ("create_machine", call["request_id"])
    assert begin["n"] < made["n"] < call["n"]
    assert call["seconds"] >= 0.1


async def test_an_answer_can_be_held_back_after_the_effect(fly: Client) -> None:
    app = await fly.app()
    await fly.sim("POST", "faults", {"op": "create_machine", "hold": 0.1, "times": 1})
    assert (await fly.create(app)).status == 200
    (held,) = [line for line in await fly.ledger() if line["kind"] == "held"]
    (call,) = await calls(fly, "create_machine")
    (made,) = await fly.happened("machine_created")
    assert (held["op"], held["request_id"]) == ("create_machine", call["request_id"])
    assert made["n"] < held["n"] < call["n"]
    assert call["seconds"] >= 0.1


async def test_a_caller_that_hangs_up_changes_nothing_about_the_effect(fly: Client) -> None:
    app = await fly.app()
    await fly.sim("POST", "faults", {"op": "create_machine", "delay": 0.2, "times": 1})
    making = asyncio.create_task(fly.create(app))

    async def begun() -> bool:
        return any(line["kind"] == "begin" for line in await fly.ledger())

    await eventually(begun)
    making.cancel()
    await asyncio.wait({making})

    async def made() -> bool:
        return len(await calls(fly, "create_machine")) == 1

    await eventually(made)
    assert len(await fly.happened("machine_created")) == 1


async def test_faults_choose_their_calls(fly: Client) -> None:
    ada, bob = await fly.app("ada"), await fly.app("bob")
    await fly.sim("POST", "faults", {"op": "delete_*", "status": 503, "match": {"app": "ad?"}})
    assert (await fly.call("DELETE", ada)).status == 503
    assert (await fly.call("GET", ada)).status == 200
    assert (await fly.call("DELETE", bob)).status == 202
    await fly.sim("DELETE", "faults")
    assert (await fly.call("DELETE", ada)).status == 202
    await fly.sim("POST", "faults", {"op": "*", "status": 408, "match": {"app": "eve", "method": "POST"}})
    assert (await fly.call("POST", "/v1/apps", {"name": "eve", "org_slug": "personal"})).status == 408
    await fly.app("joe")
    (fault,) = await fly.sim("GET", "faults")
    await fly.sim("DELETE", f"faults/{fault['id']}")
    await fly.app("eve")


@pytest.mark.parametrize(
    "order",
    [
        {"op": "get_app"},
        {"where": "after"},
        {"where": "sometimes", "status": 500},
        {"status": 42},
        {"status": 500, "times": 0},
        {"status": 500, "match": {"colour": "red"}},
        {"status": 500, "unknown": 1},
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(fly: Client, order: dict[str, Any]) -> None:
    assert (await fly.raw("POST", "/_sim/faults", json.dumps(order).encode())).status == 400
    assert await fly.sim("GET", "faults") == []


async def test_a_plain_text_answer_can_be_ordered(fly: Client) -> None:
    await fly.sim("POST", "faults", {"op": "get_app", "status": 502, "body": "bad gateway"})
    reply = await fly.raw("GET", "/v1/apps/ada")
    assert (reply.status, reply.body) == (502, b"bad gateway")


# The ledger


async def test_the_ledger_tells_calls_and_what_became_true(fly: Client, tmp_path: Path) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    config = {
        "mounts": [{"volume": volume["id"], "path": "/data"}],
        "metadata": {"roost_name": "ada", "other": "x"},
    }
    machine = await fly.machine(app, name="ada-1", config=config)
    identity = machine.rsplit("/", 1)[1]
    await fly.call("DELETE", machine, force="true")
    await fly.wait(machine, "destroyed")
    lines = await fly.ledger()
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert [(line["kind"], line.get("event") or line["op"]) for line in lines if line.get("op") != "wait_machine"] == [
        ("event", "app_created"),
        ("call", "create_app"),
        ("event", "volume_created"),
        ("call", "create_volume"),
        ("event", "machine_created"),
        ("call", "create_machine"),
        ("event", "machine_started"),
        ("call", "delete_machine"),
        ("event", "machine_exited"),
        ("event", "machine_destroyed"),
    ]
    (call,) = await calls(fly, "create_machine")
    assert call | {"at": 0, "seconds": 0, "n": 0, "request_id": "", "agent": ""} == {
        "n": 0,
        "kind": "call",
        "at": 0,
        "seconds": 0,
        "op": "create_machine",
        "method": "POST",
        "path": f"{app}/machines",
        "query": {},
        "org": "personal",
        "app": "ada",
        "machine": identity,
        "volume": volume["id"],
        "status": 200,
        "request_id": "",
        "agent": "",
        "cause": None,
        "fault": None,
        "effect": "machine created",
        "metadata": {"roost_name": "ada"},
    }
    assert call["agent"].startswith("python-httpx/")
    (born,) = await fly.happened("machine_created")
    assert (born["app"], born["machine"], born["volume"]) == ("ada", identity, volume["id"])
    assert born["detail"] == {"name": "ada-1", "region": "ams", "metadata": {"roost_name": "ada"}}
    (waited, *_) = await calls(fly, "wait_machine")
    assert waited["query"] == {"state": "started", "timeout": "10"}
    assert await fly.ledger(since=len(lines) - 1) == lines[-1:] + (await fly.ledger(since=len(lines)))
    assert [json.loads(line) for line in text(tmp_path / "state-0" / "ledger.jsonl").splitlines()] == await fly.ledger()


async def test_refused_calls_are_recorded_too(fly: Client) -> None:
    await fly.raw("GET", "/v1/apps/ada")
    await fly.raw("POST", "/nowhere")
    first, second = await fly.ledger()
    assert (first["op"], first["status"], first["app"]) == ("get_app", 401, "ada")
    assert (second["op"], second["status"], second["path"]) == (None, 404, "/nowhere")


# The simulator's own side


async def test_tokens_can_be_replaced(fly: Client) -> None:
    await fly.sim("POST", "tokens", {"tokens": ["fm2_new"]})
    assert (await fly.call("GET", "/v1/platform/regions")).status == 401
    assert (await fly.call("GET", "/v1/platform/regions", token="fm2_new")).status == 200


async def test_looking_behind_the_api(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    machine = await fly.machine(app, name="ada-1", config={"mounts": [{"volume": volume["id"], "path": "/data"}]})
    inside = await fly.inside(machine)
    assert inside.keys() == {"id", "app", "name", "state", "pid", "address", "log", "volume_dir"}
    assert (inside["app"], inside["name"], inside["state"]) == ("ada", "ada-1", "started")
    assert inside["address"].startswith("127.")
    assert inside["volume_dir"].endswith(volume["id"])
    state = await fly.sim("GET", "state")
    assert [app["name"] for app in state["apps"]] == ["ada"]
    assert [row["id"] for row in state["machines"]] == [inside["id"]]
    assert [row["id"] for row in state["volumes"]] == [volume["id"]]
    await fly.call("DELETE", machine, force="true")
    await fly.wait(machine, "destroyed")
    assert await fly.sim("GET", "machines") == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "nothing", 404),
        ("DELETE", "faults/fault-9", 404),
        ("POST", "machines/0/kill", 404),
        ("POST", "tokens", 400),
        ("GET", "ledger?since=x", 400),
    ],
)
async def test_what_the_own_side_does_not_know(fly: Client, method: str, path: str, status: int) -> None:
    reply = await fly.raw(method, f"/_sim/{path}")
    assert (reply.status, list(reply.json)) == (status, ["error"])
