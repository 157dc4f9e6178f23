"""Machines: which call is allowed when, and in which words it is refused."""

import asyncio
import re
from typing import Any

import pytest
from flysim_client import Client, Make


async def states(fly: Client, machine: str) -> list[str]:
    """All (type, status) of its events, oldest first."""
    events = await fly.get(f"{machine}/events", limit=50)
    return [f"{event['type']}:{event['status']}" for event in reversed(events)]


async def test_a_new_machine_is_created_then_started(fly: Client) -> None:
    app = await fly.app()
    made = await fly.create(app, name="ada-1", region="ams", config={"env": {"A": "b"}, "metadata": {"k": "v"}})
    assert made.status == 200
    row = made.json
    assert (row["state"], row["name"], row["region"]) == ("created", "ada-1", "ams")
    assert re.fullmatch(r"[0-9a-f]{14}", row["id"])
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", row["version"])
    assert row["instance_id"] == row["version"]
    assert row["config"]["init"] == {} == row["config"]["dns"], "Fly echoes what nobody sent"
    assert row["config"]["guest"] == {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
    assert (row["config"]["env"], row["config"]["metadata"]) == ({"A": "b"}, {"k": "v"})
    machine = f"{app}/machines/{row['id']}"
    told = await fly.wait(machine, "started")
    assert (told["ok"], told["state"], told["version"]) == (True, "started", row["version"])
    assert await states(fly, machine) == ["launch:created", "start:started"]
    assert (await fly.get(app))["status"] == "deployed"
    assert (await fly.get(machine))["state"] == "started"


async def test_unknown_fields_and_nulls_vanish_and_autostop_comes_back_as_a_boolean(fly: Client) -> None:
    service = {"internal_port": 80, "protocol": "tcp", "autostop": "stop"}
    config = {"env": None, "typo": 1, "auto_destroy": None, "services": [service, service | {"autostop": "off"}]}
    path, body = f"{await fly.app()}/machines", {"config": {"image": "sleeper"} | config}
    shown = (await fly.call("POST", path, body, departs="in unknown fields and nulls")).json["config"]
    assert {"env", "typo", "auto_destroy"}.isdisjoint(shown)
    assert [s["autostop"] for s in shown["services"]] == [True, False]


async def test_a_machine_that_is_being_prepared_cannot_start(make: Make) -> None:
    fly = await make(prepare=60)
    machine = await fly.machine(await fly.app(), until="created")
    refused = await fly.call("POST", f"{machine}/start")
    assert refused.error == (412, "failed_precondition: unable to start machine from current state: 'created'")
    assert (await fly.call("POST", f"{machine}/stop")).status == 412
    assert (await fly.call("DELETE", machine)).json == {"ok": True}
    await fly.wait(machine, "destroyed")


async def test_a_machine_made_without_launch_ends_up_stopped(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), skip_launch=True, until="stopped")
    assert (await fly.inside(machine))["pid"] is None
    assert (await fly.call("POST", f"{machine}/start")).json["previous_state"] == "stopped"
    await fly.wait(machine, "started")


async def test_names_are_unique_among_machines_that_exist(fly: Client) -> None:
    app = await fly.app()
    first = await fly.machine(app, name="ada-1")
    identity = first.rsplit("/", 1)[1]
    text = f'already_exists: unique machine name violation, machine ID {identity} already exists with name "ada-1"'
    assert (await fly.create(app, name="ada-1")).error == (409, text)
    assert (await fly.create(await fly.app("bob"), name="ada-1")).status == 200, "names are unique in an app only"
    await fly.call("DELETE", first, force="true")
    await fly.wait(first, "destroyed")
    assert (await fly.create(app, name="ada-1")).status == 200


@pytest.mark.parametrize("query", [{"force": "true"}, {"kill": "true"}, {"kill": "1"}])
async def test_a_running_machine_is_destroyed_only_by_force(fly: Client, query: dict[str, str]) -> None:
    app = await fly.app()
    machine = await fly.machine(app)
    text = "failed_precondition: unable to destroy machine, not currently stopped, suspended, failed or created"
    assert (await fly.call("DELETE", machine)).error == (412, text)
    assert (await fly.call("DELETE", machine, force="false")).error == (412, text)
    assert (await fly.call("DELETE", machine, **query)).json == {"ok": True}
    await fly.wait(machine, "destroyed")
    assert (await fly.get(machine))["state"] == "destroyed", "it can still be read"
    assert await fly.get(f"{app}/machines") == []
    assert [row["state"] for row in await fly.get(f"{app}/machines", include_deleted="true")] == ["destroyed"]
    for method, path in (("DELETE", machine), ("POST", f"{machine}/start"), ("POST", machine)):
        assert (await fly.call(method, path, {})).error == (404, "machine not found")
    assert (await fly.call("GET", f"{machine}/wait", state="stopped")).status == 404
    assert await states(fly, machine) == [
        "launch:created",
        "start:started",
        "destroy:destroying",
        "exit:stopped",
        "destroy:destroyed",
    ]


async def test_stop_and_start(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    assert (await fly.call("POST", f"{machine}/start")).json["previous_state"] == "started"
    assert (await fly.call("POST", f"{machine}/stop", {})).json == {"ok": True}
    await fly.wait(machine, "stopped")
    assert (await fly.call("POST", f"{machine}/stop", {})).json == {"ok": True}
    async with asyncio.timeout(10):
        while (started := await fly.call("POST", f"{machine}/start")).status == 412:
            pass
    assert started.json == {"previous_state": "stopped", "migrated": False, "new_host": ""}
    await fly.wait(machine, "started")
    assert await states(fly, machine) == ["launch:created", "start:started", "exit:stopped", "start:started"]


async def test_a_stop_body_must_be_an_object(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    refused = await fly.call("POST", f"{machine}/stop", [])
    assert refused.error == (400, "json: cannot unmarshal array into Go value of type main.stopRequest")
    assert (await fly.call("POST", f"{machine}/stop", {"signal": "SIGWINCH"})).status == 400
    assert (await fly.call("POST", f"{machine}/stop", {"timeout": "soon"})).status == 400
    assert (await fly.get(machine))["state"] == "started"


async def test_restart_keeps_the_version_and_changes_the_process(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    before, pid = await fly.get(machine), (await fly.inside(machine))["pid"]
    assert (await fly.call("POST", f"{machine}/restart", timeout="3s", force_stop="false")).json == {"ok": True}
    await fly.wait(machine, "started")
    assert (await fly.inside(machine))["pid"] != pid
    assert (await fly.get(machine))["version"] == before["version"]
    assert await states(fly, machine) == [
        "launch:created",
        "start:started",
        "restart:restarting",
        "exit:stopped",
        "start:started",
    ]
    assert len(await fly.happened("machine_restarted")) == 1


async def test_a_machine_that_is_being_replaced_takes_no_other_order(make: Make) -> None:
    fly = await make(replace=60)
    machine = await fly.machine(await fly.app())
    await fly.call("POST", machine, {"config": {"image": "sleeper"}})
    refused = await fly.call("POST", f"{machine}/start")
    assert refused.error == (412, "failed_precondition: machine getting replaced, refusing to start")
    concurrent = await fly.call("POST", machine, {"config": {"image": "sleeper"}})
    assert concurrent.error == (409, "aborted: machine update failed due to concurrent update")
    assert (await fly.call("POST", f"{machine}/stop", {})).status == 412
    assert (await fly.call("POST", f"{machine}/restart")).status == 412
    assert (await fly.call("DELETE", machine)).status == 412
    assert (await fly.call("DELETE", machine, force="true")).status == 200


async def test_an_update_replaces_the_whole_config_under_a_new_version(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), config={"env": {"A": "1"}, "metadata": {"k": "v"}})
    before = await fly.get(machine)
    body = {"config": {"image": "tells"}, "current_version": before["version"]}
    after = (await fly.call("POST", machine, body)).json
    assert (after["state"], after["config"]["image"]) == ("replacing", "tells")
    assert {"env", "metadata"}.isdisjoint(after["config"]), "nothing is merged"
    assert after["version"] > before["version"]
    await fly.wait(machine, "started")
    stale = await fly.call("POST", machine, body)
    assert stale.status == 409
    assert "current_version" in stale.json["error"]
    old = await fly.get(machine, version=before["version"])
    assert (old["state"], old["version"], old["config"]["env"]) == ("replaced", before["version"], {"A": "1"})
    assert await states(fly, machine) == [
        "launch:created",
        "start:started",
        "update:replacing",
        "exit:stopped",
        "start:started",
    ]
    exits = [event for event in await fly.get(f"{machine}/events") if event["type"] == "exit"]
    assert exits[0]["request"]["exit_event"]["requested_stop"] is False, "at Fly it looks like a crash"


async def test_an_update_starts_a_stopped_machine_unless_told_otherwise(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), skip_launch=True, until="stopped")
    config = {"config": {"image": "sleeper"}}
    version = (await fly.call("POST", machine, config | {"skip_launch": True})).json["version"]
    told = await fly.get(f"{machine}/wait", state="stopped", version=version)
    assert told["version"] == version
    assert (await fly.inside(machine))["pid"] is None
    await fly.call("POST", machine, config)
    await fly.wait(machine, "started")


async def test_what_an_update_cannot_change(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), name="ada-1", region="ams")
    config = {"image": "sleeper"}
    for change in ({"name": "ada-2"}, {"region": "ord"}):
        assert (await fly.call("POST", machine, {"config": config} | change)).status == 400
    assert (await fly.call("POST", machine, {"config": {}})).status == 400
    assert (await fly.call("POST", machine, {"config": config, "name": "ada-1", "region": "eu"})).status == 200


@pytest.mark.parametrize(
    ("guest", "accepted"),
    [
        ({"cpu_kind": "shared", "cpus": 2, "memory_mb": 4096}, True),
        ({"cpu_kind": "shared", "cpus": 2, "memory_mb": 256}, False),
        ({"cpu_kind": "shared", "cpus": 1, "memory_mb": 2304}, False),
        ({"cpu_kind": "shared", "cpus": 1, "memory_mb": 300}, False),
        ({"cpu_kind": "shared", "cpus": 3, "memory_mb": 1024}, False),
        ({"cpu_kind": "performance", "cpus": 1, "memory_mb": 2048}, True),
        ({"cpu_kind": "performance", "cpus": 1, "memory_mb": 1024}, False),
        ({"cpu_kind": "performance", "cpus": 16, "memory_mb": 131072}, True),
        ({"cpu_kind": "quantum", "cpus": 1, "memory_mb": 256}, False),
    ],
)
async def test_memory_must_fit_the_cpus(fly: Client, guest: dict[str, Any], accepted: bool) -> None:
    made = await fly.create(await fly.app(), config={"guest": guest})
    assert made.status == (200 if accepted else 422), made.body
    if accepted:
        assert made.json["config"]["guest"] == guest


async def test_a_size_stands_for_a_guest(fly: Client) -> None:
    app = await fly.app()
    made = await fly.create(app, config={"size": "shared-cpu-2x"})
    assert made.json["config"]["guest"] == {"cpu_kind": "shared", "cpus": 2, "memory_mb": 512}
    assert (await fly.create(app, config={"size": "huge"})).status == 422


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("ams", "ams"), ("eu", "ams"), ("ord,eu", "ord"), ("us", "iad"), ("sa,any", "gru"), ("apac", "bom")],
)
async def test_the_answer_names_one_region_for_a_list_with_aliases(fly: Client, wanted: str, given: str) -> None:
    assert (await fly.create(await fly.app(), region=wanted)).json["region"] == given


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"config": {}}, 400),
        ({"config": {"image": "sleeper"}, "region": "atlantis"}, 400),
        ({"config": {"image": "sleeper", "env": {"A": 1}}}, 400),
        ({"config": {"image": "sleeper", "metadata": {"a": True}}}, 400),
        ({"config": {"image": "sleeper", "restart": {"policy": "on-fail"}}}, 400),
        ({"config": {"image": "sleeper", "stop_config": {"timeout": "soon"}}}, 400),
        ({"config": {"image": "sleeper", "mounts": [{"volume": "vol_a", "path": "/a"}] * 2}}, 400),
        ({"config": {"image": "sleeper", "processes": [{}, {}]}}, 501),
        ({"config": {"image": "sleeper", "schedule": "daily"}}, 501),
        ({"config": "sleeper"}, 400),
        ([], 400),
    ],
)
async def test_bad_machines_are_refused(fly: Client, body: Any, status: int) -> None:
    app = await fly.app()
    assert (await fly.call("POST", f"{app}/machines", body)).status == status
    assert await fly.get(f"{app}/machines", include_deleted="true") == []


@pytest.mark.parametrize(("image", "word"), [("nobody/knows:1", "catalogue"), ("missing", "can't be run")])
async def test_a_machine_that_cannot_boot_fails(fly: Client, image: str, word: str) -> None:
    machine = await fly.machine(await fly.app(), image, until="failed")
    (line,) = await fly.happened("machine_failed")
    assert word in line["detail"]["error"]
    assert (await fly.call("POST", machine, {"config": {"image": "sleeper"}})).status == 200
    await fly.wait(machine, "started")


# wait


@pytest.mark.parametrize("timeout", [0, 61, -1, "soon"])
async def test_a_wait_lasts_one_to_sixty_seconds(fly: Client, timeout: Any) -> None:
    machine = await fly.machine(await fly.app())
    refused = await fly.call("GET", f"{machine}/wait", timeout=timeout)
    assert refused.status == 400
    if timeout != "soon":
        text = "invalid WaitMachineRequest.Timeout: value must be inside range [1s, 1m0s]"
        assert refused.json["error"] == f"invalid_argument: {text}"


@pytest.mark.parametrize("query", ["state=stopped&state=failed", "state=stopped,failed", "state=settled"])
async def test_a_wait_takes_several_states(fly: Client, query: str) -> None:
    machine = await fly.machine(await fly.app(), "nobody/knows:1", until="created")
    reply = await fly.call("GET", f"{machine}/wait", **_query(query))
    assert reply.json["state"] == "failed"


def _query(text: str) -> dict[str, list[str]]:
    pairs = [pair.split("=") for pair in text.split("&")]
    return {name: [value for key, value in pairs if key == name] for name, _ in pairs}


async def test_a_wait_for_a_version(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    first = (await fly.get(machine))["version"]
    waiting = asyncio.create_task(fly.call("GET", f"{machine}/wait", state="stopped", version=first))
    second = (await fly.call("POST", machine, {"config": {"image": "sleeper"}})).json["version"]
    assert (await waiting).error[0] == 408
    assert "currently replaced" in (await waiting).json["error"]
    assert (await fly.get(f"{machine}/wait", instance_id=second))["version"] == second
    assert (await fly.call("GET", f"{machine}/wait", version="01J00000000000000000000000")).status == 404


async def test_a_wait_from_an_event_on(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    last = (await fly.get(f"{machine}/events"))[0]["id"]
    waiting = asyncio.create_task(fly.get(f"{machine}/wait", from_event_id=last))
    await fly.call("POST", f"{machine}/restart")
    assert (await waiting)["event_id"] > last


async def test_a_wait_for_an_unknown_state_is_refused(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    assert (await fly.call("GET", f"{machine}/wait", state="running")).status == 400


async def test_events_come_newest_first_and_in_numbers_asked_for(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    events = await fly.get(f"{machine}/events")
    assert [event["type"] for event in events] == ["start", "launch"]
    assert events[0]["id"] > events[1]["id"]
    assert [event["type"] for event in await fly.get(f"{machine}/events", limit=1)] == ["start"]
    assert (await fly.call("GET", f"{machine}/events", limit=51)).status == 400


async def test_what_is_not_there(fly: Client) -> None:
    app = await fly.app()
    assert (await fly.call("GET", f"{app}/machines/{'0' * 14}")).error == (404, "machine not found")
    assert (await fly.call("GET", "/v1/apps/nobody/machines")).error == (404, 'Could not find App "nobody"')
    other = await fly.machine(await fly.app("bob"))
    assert (await fly.call("GET", f"{app}/machines/{other.rsplit('/', 1)[1]}")).status == 404
