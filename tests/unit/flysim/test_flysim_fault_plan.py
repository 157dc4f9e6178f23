"""The fault plan: the same through code, the admin side and the command line; skips, chances, names."""

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from flysim_client import TOKEN, Client

from flysim.faults import Faults, Order, read_orders


def hits(order: Order, calls: int, seed: int = 1, **facts: str) -> list[bool]:
    faults = Faults(random.Random(seed))
    faults.add(order)
    return [faults.take("get_app", facts) is not None for _ in range(calls)]


# Which calls


def test_a_fault_can_begin_with_a_later_call() -> None:
    assert hits(Order(status=500, skip=2, times=1), 5) == [False, False, True, False, False]


def test_a_skipped_call_is_another_fault_s() -> None:
    faults = Faults(random.Random(1))
    first, second = faults.add(Order(status=500, skip=1, times=1)), faults.add(Order(status=503))
    assert [faults.take("get_app", {}) for _ in range(3)] == [second, first, second]
    assert (first.seen, first.used, second.seen, second.used) == (2, 1, 2, 2)


def test_a_chance_is_about_right_and_the_same_with_the_same_seed() -> None:
    lucky = hits(Order(status=500, chance=0.3), 2000)
    assert 500 < sum(lucky) < 700
    assert lucky == hits(Order(status=500, chance=0.3), 2000)
    assert lucky != hits(Order(status=500, chance=0.3), 2000, seed=2)


def test_what_a_call_lacks_matches_nothing() -> None:
    assert hits(Order(status=500, match={"name": "ada-*"}), 1, name="ada-1") == [True]
    assert hits(Order(status=500, match={"name": "ada-*"}), 1, app="ada") == [False]


async def test_a_machine_is_meant_by_name_before_it_is_made_and_after(fly: Client) -> None:
    app = await fly.app()
    order = {"op": "*_machine", "where": "before", "status": 503, "match": {"name": "ada-1"}}
    fault = await fly.sim("POST", "faults", order)
    assert (await fly.create(app, name="ada-1")).status == 503
    assert (await fly.create(app, name="bob-1")).status == 200
    assert (await fly.call("POST", f"{app}/volumes", {"name": "data"})).status == 200
    await fly.sim("DELETE", f"faults/{fault['id']}")
    made = await fly.create(app, name="ada-1")
    await fly.sim("POST", "faults", order)
    assert (await fly.call("GET", f"{app}/machines/{made.json['id']}")).status == 503
    await fly.sim("POST", "faults", {"op": "*_volume", "status": 503, "match": {"name": "dat*"}})
    assert (await fly.call("POST", f"{app}/volumes", {"name": "data"})).status == 503
    assert (await fly.call("POST", f"{app}/volumes", {"name": "other"})).status == 200


# Bad input

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"op": "creat_machine", "status": 500}, "op: no operation is called so; there are: acquire_lease,"),
    ({"status": 500, "chance": 2}, "chance: Input should be less than or equal to 1 (got 2)"),
    ({"status": 500, "chance": 0}, "chance: Input should be greater than 0 (got 0)"),
    ({"status": 500, "skip": -1}, "skip: Input should be greater than or equal to 0 (got -1)"),
    ({"where": "never", "status": 500}, "where: Input should be 'before', 'after' or 'reply' (got 'never')"),
    ({"op": "get_app"}, "a fault before the effect needs a status, a delay or a hold, else it does nothing"),
    ({"op": "get_app", "status": 500, "hold": 1}, "has no effect after which it could be held; leave hold out"),
    ({"status": 500, "colour": 1}, "colour: Extra inputs are not permitted (got 1)"),
    (
        {"status": 500, "match": {"color": "x"}},
        "match.color: Input should be 'org', 'app', 'machine', 'volume', 'name',",
    ),
]


@pytest.mark.parametrize(("order", "text"), WRONG)
async def test_a_bad_fault_says_field_value_and_remedy(fly: Client, order: dict[str, Any], text: str) -> None:
    reply = await fly.raw("POST", "/_sim/faults", json.dumps(order).encode())
    assert reply.status == 400
    assert text in reply.json["error"]
    assert "pydantic" not in reply.json["error"]
    with pytest.raises(ValueError, match="fault 2 of 2: ") as refused:
        read_orders(json.dumps([{"status": 500}, order]).encode())
    assert text in str(refused.value)


@pytest.mark.parametrize("plan", [b"{}", b"[", b'"x"'])
def test_a_plan_is_a_list(plan: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON list|Expecting"):
        read_orders(plan)


# On the command line


async def flysim(*arguments: str) -> tuple[int | None, list[Any], str]:
    """Exit code, printed JSON lines and complaints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flysim.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, [json.loads(line) for line in out.splitlines()], errors.decode().strip()


async def test_faults_on_the_command_line(fly: Client) -> None:
    url = ("--url", fly.url)
    order = {"op": "get_app", "status": 503, "times": 3}
    code, (added,), _ = await flysim("fault", "add", json.dumps(order), *url)
    assert (code, added) == (0, {"id": "fault-1"})
    assert (await fly.call("GET", "/v1/apps/ada")).status == 503
    code, (listed,), _ = await flysim("fault", "list", *url)
    assert (code, listed["id"], listed["op"], listed["seen"], listed["used"], listed["spent"]) == (
        0,
        "fault-1",
        "get_app",
        1,
        1,
        False,
    )
    assert (await flysim("fault", "clear", "fault-7", *url))[0::2] == (1, "flysim: there is no fault fault-7")
    assert (await flysim("fault", "clear", "fault-1", *url))[:2] == (0, [{"ok": True}])
    assert (await flysim("fault", "clear", *url))[:2] == (0, [{"ok": True}])
    assert (await flysim("fault", "list", *url))[:2] == (0, [])


async def test_bad_faults_on_the_command_line(fly: Client) -> None:
    code, _, errors = await flysim("fault", "add", '{"status": 5}', "--url", fly.url)
    assert (code, errors) == (1, "flysim: status: Input should be greater than or equal to 200 (got 5)")
    code, _, errors = await flysim("fault", "list", "--url", "http://127.0.0.1:1")
    assert (code, "http://127.0.0.1:1 can't be asked" in errors, "Traceback" in errors) == (1, True, False)


async def test_a_simulator_can_begin_with_faults(tmp_path: Path) -> None:
    plan = tmp_path / "faults.json"
    plan.write_text('[{"op": "list_apps", "status": 503, "times": 1}, {"op": "nothing", "status": 500}]')
    serve = ("serve", "--virtual", "--state", str(tmp_path / "fly"), "--token", TOKEN, "--listen", "127.0.0.1:0")
    code, _, errors = await flysim(*serve, "--faults", str(plan))
    assert code == 2
    assert errors.startswith("flysim: fault 2 of 2: op: no operation is called so")
    assert not (tmp_path / "fly").exists()
    plan.write_text('[{"op": "list_apps", "status": 503, "times": 1}]')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flysim.cli", *serve, "--faults", str(plan)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    fly = Client((await asyncio.wait_for(process.stdout.readline(), 20)).decode().split()[-1])
    try:
        statuses = [(await fly.call("GET", "/v1/apps", org_slug="personal")).status for _ in range(2)]
        assert statuses == [503, 200]
    finally:
        await fly.close()
        process.terminate()
        await process.wait()
