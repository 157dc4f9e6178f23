"""Every operation is judged by Fly's OpenAPI document, and the judge itself can say no."""

import json

import pytest
from flysim_client import Client
from flysim_openapi import check

from flysim.routes import INSIDE, OPERATIONS, PUBLIC, match

JSON = "application/json; charset=utf-8"


async def test_every_operation_answers_as_the_document_says(fly: Client) -> None:
    """One success of each; the stories judge their refusals on the way."""
    app = await fly.app()
    volume = await fly.volume(app)
    spare = f"{app}/volumes/{(await fly.volume(app))['id']}"
    mounts = [{"volume": volume["id"], "path": "/data"}]
    config = {"mounts": mounts, "metadata": {"a": "1"}, "stop_config": {"timeout": "50ms"}}
    await fly.call("POST", f"{app}/secrets", {"values": {"A": "x"}})
    await fly.call("POST", f"{app}/secrets/B", {"value": "x"})
    machine = await fly.machine(app, "stubborn", config=config)
    await fly.log(machine)
    lease = f"{machine}/lease"
    nonce = (await fly.call("POST", lease, {"ttl": 60})).json["data"]["nonce"]
    calls = [
        ("GET", "/v1/apps?org_slug=personal", None),
        ("GET", app, None),
        ("GET", f"{app}/machines?include_leases=true", None),
        ("GET", machine, None),
        ("GET", f"{machine}/events", None),
        ("GET", lease, None),
        ("GET", f"{machine}/metadata", None),
        ("GET", f"{machine}/metadata/a", None),
        ("PATCH", f"{machine}/metadata", {"metadata": {"b": "2"}}),
        ("POST", f"{machine}/metadata/c", {"value": "3"}),
        ("DELETE", f"{machine}/metadata/c", None),
        ("POST", f"{machine}/signal", {"signal": "SIGTERM"}),
        ("GET", f"{machine}/wait?state=started", None),
        ("POST", f"{machine}/start", None),
        ("POST", f"{machine}/restart", None),
        ("GET", f"{machine}/wait", None),
        ("POST", machine, {"config": config | {"image": "sleeper"}}),
        ("GET", f"{machine}/wait", None),
        ("POST", f"{machine}/cordon", None),
        ("POST", f"{machine}/uncordon", None),
        ("POST", f"{machine}/suspend", None),
        ("GET", f"{machine}/wait?state=suspended", None),
        ("POST", f"{machine}/stop", {}),
        ("DELETE", lease, None),
        ("DELETE", f"{machine}?force=true", None),
        ("POST", f"{app}/ip_assignments", {"type": "shared_v4"}),
        ("GET", f"{app}/ip_assignments", None),
        ("DELETE", f"{app}/ip_assignments/192.0.2.1", None),
        ("GET", f"{app}/volumes", None),
        ("GET", spare, None),
        ("PUT", spare, {"snapshot_retention": 6}),
        ("PUT", f"{spare}/extend", {"size_gb": 2}),
        ("POST", f"{spare}/snapshots", None),
        ("GET", f"{spare}/snapshots", None),
        ("DELETE", spare, None),
        ("GET", f"{app}/secrets", None),
        ("DELETE", f"{app}/secrets/A", None),
        ("GET", "/v1/orgs/personal/machines?include_deleted=true", None),
        ("GET", "/v1/orgs/personal/volumes?include_deleted=true", None),
        ("GET", "/v1/platform/regions", None),
        ("POST", "/v1/platform/placements", {"org_slug": "personal", "compute": {"cpus": 2}}),
        ("DELETE", app, None),
    ]
    for method, target, body in calls:
        path, _, query = target.partition("?")
        pairs = dict(pair.split("=") for pair in query.split("&") if pair)
        reply = await fly.call(method, path, body, nonce=nonce, **pairs)
        assert reply.status < 300, (method, target, reply.body)
        if target.endswith("/restart") or (method == "POST" and target == machine):
            await fly.wait(machine, "started")
    done = {line["op"] for line in await fly.ledger() if line["kind"] == "call" and line["status"] < 300}
    assert done == OPERATIONS - INSIDE - PUBLIC, "those are judged in their own stories"


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/v1/apps/ada", 200, {"id": 5}),
        ("GET", "/v1/apps/ada", 200, {"colour": "red"}),
        ("GET", "/v1/apps/ada", 404, {"message": "gone"}),
        ("GET", "/v1/apps/ada/machines", 200, [{"config": {"image": 5}}]),
        ("GET", "/v1/apps/ada/machines/m", 200, {"events": [{"colour": "red"}]}),
        ("POST", "/v1/apps/ada/machines/m/lease", 201, {"nonce": "flat"}),
        ("POST", "/v1/apps/ada/machines", 201, {}),
        ("GET", "/v1/apps/ada/secrets", 422, {"error": "x", "status": "unheard_of"}),
    ],
)
def test_the_judge_says_no(method: str, path: str, status: int, body: object) -> None:
    with pytest.raises(AssertionError):
        check(method, path, status, JSON, json.dumps(body).encode())


def test_routes_are_told_apart() -> None:
    assert match("GET", "/v1/apps/a%2Fb/machines/m") == ("get_machine", {"app": "a/b", "machine": "m"})
    assert match("POST", "/v1/apps/a/machines/m/lease") == ("acquire_lease", {"app": "a", "machine": "m"})
    assert match("PATCH", "/v1/apps/a") is None
    assert match("GET", "/v1/apps/a/") is None
