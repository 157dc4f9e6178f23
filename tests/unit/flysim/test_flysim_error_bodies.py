"""The published refusals of the live API, word by word: each is provoked, or it says why it can only be ordered."""

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from flysim_client import Client, Make, Reply, on

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "fly-error-bodies.json").read_bytes())[
    "cases"
]
OTHER_PLACE = "only in the tests of Fly's own client; the simulator's region is full with 422"
OTHER_CLIENT = "an older wording of the same refusal; the newer one is provoked"
GUESSED = "a guess in its source; another status or wording is documented or chosen"

ORDERED_ONLY = {
    "insufficient resources to create new machine with existing volume '": OTHER_CLIENT,
    "out of capacity": OTHER_PLACE,
    "request timeout": GUESSED,
    "machine is already being updated": OTHER_CLIENT,
    "machine_version mismatch: current_version": GUESSED,
    "unauthorized": GUESSED,
    "uniqueness constraint violated": "a race inside Fly's database",
    "The GraphQL API no longer": "another API",
}
ORDERED_ONLY_FROM = {("updateMachine", "volume not found"): GUESSED, ("createVolume", "no capacity"): OTHER_CLIENT}


async def created(fly: Client) -> Reply:
    machine = await fly.machine(await fly.app(), until="created")
    return await fly.call("POST", f"{machine}/start")


async def still_active(fly: Client) -> Reply:
    machine = await fly.machine(await fly.app())
    await fly.call("POST", f"{machine}/stop", {})
    await fly.wait(machine, "stopped")
    return await fly.call("POST", f"{machine}/start")


async def claimed(fly: Client) -> Reply:
    app = await fly.app()
    volume = await fly.volume(app)
    await fly.machine(app, config=on(volume))
    return await fly.create(app, config=on(volume))


async def bound(fly: Client) -> Reply:
    app = await fly.app()
    volume = await fly.volume(app)
    await fly.machine(app, config=on(volume))
    return await fly.call("DELETE", f"{app}/volumes/{volume['id']}")


async def secrets_not_yet(fly: Client) -> Reply:
    return await fly.create(await fly.app(), min_secrets_version=1)


async def no_volume_to_mount(fly: Client) -> Reply:
    return await fly.create(await fly.app(), config=on({"id": "vol_0"}))


async def no_volume(fly: Client) -> Reply:
    return await fly.call("GET", f"{await fly.app()}/volumes/vol_0")


async def same_name(fly: Client) -> Reply:
    app = await fly.app()
    await fly.create(app, name="ag-demo-0001")
    return await fly.create(app, name="ag-demo-0001")


async def running(fly: Client) -> Reply:
    return await fly.call("DELETE", await fly.machine(await fly.app()))


async def concurrent(fly: Client) -> Reply:
    machine = await fly.machine(await fly.app())
    body = {"config": {"image": "sleeper"}}
    await fly.call("POST", machine, body)
    return await fly.call("POST", machine, body)


async def taken(fly: Client) -> Reply:
    await fly.app("ada")
    return await fly.call("POST", "/v1/apps", {"name": "ada", "org_slug": "personal"})


async def bad_name(fly: Client) -> Reply:
    return await fly.call("POST", "/v1/apps", {"name": "Ada!", "org_slug": "personal"})


async def no_org(fly: Client) -> Reply:
    return await fly.call("POST", "/v1/apps", {"name": "ada"})


async def array(fly: Client) -> Reply:
    return await fly.call("POST", f"{await fly.machine(await fly.app())}/stop", [])


async def late(fly: Client) -> Reply:
    machine = await fly.machine(await fly.app(), until="created")
    return await fly.call("GET", f"{machine}/wait", timeout=1)


async def no_machine(fly: Client) -> Reply:
    return await fly.call("DELETE", f"{await fly.app()}/machines/0")


async def too_many(fly: Client) -> Reply:
    app = await fly.app()
    while (reply := await fly.call("GET", app)).status == 200:
        pass
    return reply


async def broken(fly: Client) -> Reply:
    await fly.sim("POST", "faults", {"op": "get_app", "status": 500})
    return await fly.call("GET", "/v1/apps/ada")


async def no_host(fly: Client) -> Reply:
    await fly.sim("POST", "hosts", {"region": "iad", "hosts": []})
    return await fly.create(await fly.app(), region="iad")


async def no_room_for_a_volume(fly: Client) -> Reply:
    await fly.sim("POST", "hosts", {"region": "ams", "hosts": []})
    return await fly.call("POST", f"{await fly.app()}/volumes", {"name": "data", "region": "ams"})


async def no_room_beside_the_volume(fly: Client) -> Reply:
    app = await fly.app()
    await fly.sim("POST", "hosts", {"region": "ams", "hosts": [{"slots": 1}]})
    volume = await fly.volume(app)
    await fly.create(app, region="ams")
    return await fly.create(app, config=on(volume))


async def grown(fly: Client, size: dict[str, int], guest: dict[str, Any]) -> Reply:
    """A machine on a host of this size is made as large as this."""
    await fly.sim("POST", "hosts", {"region": "iad", "hosts": [size]})
    machine = await fly.machine(await fly.app(), region="iad")
    return await fly.call("POST", machine, {"config": {"image": "sleeper", "guest": guest}})


async def too_few_cpus(fly: Client) -> Reply:
    return await grown(fly, {"cpus": 1}, {"cpus": 2})


async def too_little_memory(fly: Client) -> Reply:
    return await grown(fly, {"memory_mb": 256}, {"memory_mb": 512})


async def over_quota(fly: Client) -> Reply:
    await fly.sim("POST", "quotas", {"org": "Kilo", "memory_mb": {"dfw": 255}})
    return await fly.create(await fly.app(org="Kilo"), region="dfw")


async def no_payment(fly: Client) -> Reply:
    await fly.sim("POST", "quotas", {"machines_per_app": 1})
    app = await fly.app()
    await fly.create(app)
    return await fly.create(app)


SLOW, STRICT = {"prepare": 60, "replace": 60, "active": 60}, {"rate_limits": True}
Provoke = Callable[[Client], Awaitable[Reply]]
PROVOKED: dict[tuple[str, str], tuple[Provoke, dict[str, Any]]] = {
    ("startMachine", "current state: 'created'"): (created, SLOW),
    ("startMachine", "machine still active"): (still_active, {"active": 60}),
    ("createMachine", "volume already claimed"): (claimed, {}),
    ("deleteVolume", "volume is currently bound"): (bound, {}),
    ("createMachine", "min_secrets_version"): (secrets_not_yet, {}),
    ("createMachine", "volume not found"): (no_volume_to_mount, {}),
    ("getVolume", "volume not found"): (no_volume, {}),
    ("createMachine", "unique machine name"): (same_name, {}),
    ("deleteMachine", "unable to destroy machine"): (running, {}),
    ("updateMachine", "concurrent update"): (concurrent, {"replace": 60}),
    ("createApp", "already been taken"): (taken, {}),
    ("createApp", "Name under 63 chars"): (bad_name, {}),
    ("createApp", "request doesn't contain org_slug"): (no_org, {}),
    ("stopMachine", "cannot unmarshal array"): (array, {}),
    ("waitMachine", "failed to reach desired state"): (late, SLOW),
    ("deleteMachine", "machine not found"): (no_machine, {}),
    ("createMachine", "could not find a candidate host"): (no_host, {}),
    ("createVolume", "aborted: no capacity"): (no_room_for_a_volume, {}),
    ("createMachine", "with existing volume id"): (no_room_beside_the_volume, {}),
    ("updateMachine", "insufficient CPUs"): (too_few_cpus, {}),
    ("updateMachine", "insufficient memory"): (too_little_memory, {}),
    ("createMachine", "over the allowed quota"): (over_quota, {"orgs": ("Kilo",)}),
    ("createMachine", "add a payment method"): (no_payment, {}),
    ("any", "rate limit exceeded"): (too_many, STRICT),
    ("any", "internal"): (broken, {}),
}


def provoked(case: dict[str, Any]) -> tuple[Provoke, dict[str, Any]] | None:
    for (op, text), way in PROVOKED.items():
        if case["op"] == op and text in case["body"]["error"]:
            return way
    return None


def ordered(case: dict[str, Any]) -> bool:
    known = any(text in case["body"]["error"] for text in ORDERED_ONLY)
    return known or (case["op"], case["body"]["error"]) in ORDERED_ONLY_FROM


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one time to the next: ids, amounts, and the state in which a wait gave up."""
    text = re.sub(r"\b(vol_[0-9a-z]+|[0-9a-z]*\d[0-9a-z]{8,})\b", "ID", body["error"])
    text = re.sub(r"using \d+ MB", "using N MB", text)
    return body | {"error": re.sub(r"currently \w+$", "currently STATE", text)}


def test_every_published_refusal_is_provoked_or_explained() -> None:
    ways = [provoked(case) for case in CASES]
    assert [
        case["body"]["error"] for case, way in zip(CASES, ways, strict=True) if (way is None) != ordered(case)
    ] == []
    assert len([way for way in ways if way is not None]) == len(PROVOKED)


@pytest.mark.parametrize(
    "case", [case for case in CASES if provoked(case)], ids=lambda case: case["body"]["error"][:50]
)
async def test_it_is_refused_in_these_words(make: Make, case: dict[str, Any]) -> None:
    way = provoked(case)
    assert way is not None
    provoke, options = way
    reply = await provoke(await make(**options))
    assert (reply.status, plain(reply.json)) == (case["status"], plain(case["body"]))


@pytest.mark.parametrize(
    "case", [case for case in CASES if not provoked(case)], ids=lambda case: case["body"]["error"][:50]
)
async def test_what_cannot_be_provoked_can_be_ordered(fly: Client, case: dict[str, Any]) -> None:
    await fly.sim("POST", "faults", {"op": "get_app", "status": case["status"], "body": case["body"]})
    reply = await fly.call("GET", "/v1/apps/ada")
    assert (reply.status, reply.json) == (case["status"], case["body"])
