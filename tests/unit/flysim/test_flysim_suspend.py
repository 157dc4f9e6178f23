"""Suspend and resume: everything in a machine stands still, and goes on where it stood. Cordons."""

import os
import signal
import sys
from typing import Any

import psutil
import pytest
from flysim_client import Client, Make, alive, eventually, on, text

COUNTING = """
import itertools, time
for number in itertools.count(1):
    print(number, flush=True)
    time.sleep(0.005)
"""
COUNTS = {"init": {"exec": [sys.executable, "-S", "-c", COUNTING]}}


async def suspended(fly: Client, machine: str) -> None:
    assert (await fly.call("POST", f"{machine}/suspend")).json == {"ok": True}
    assert (await fly.wait(machine, "suspended"))["state"] == "suspended"


def stands_still(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def test_a_suspended_machine_goes_on_where_it_stood(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), config=COUNTS)
    await fly.log(machine, "3\n")
    before, version = await fly.inside(machine), (await fly.get(machine))["version"]
    await suspended(fly, machine)
    await eventually(lambda: stands_still(before["pid"]))
    count = text(before["log"])
    assert (await fly.get(machine))["state"] == "suspended"
    started = await fly.call("POST", f"{machine}/start")
    assert started.json["previous_state"] == "suspended"
    await fly.wait(machine, "started")
    log = await fly.log(machine, f"\n{int(count.split()[-1]) + 2}\n")
    assert log.startswith(count)
    assert log.split() == [str(i + 1) for i in range(len(log.split()))], "it never began again"
    after = await fly.inside(machine)
    assert (after["pid"], (await fly.get(machine))["version"]) == (before["pid"], version)
    types = [event["type"] for event in await fly.get(f"{machine}/events")]
    assert types == ["start", "suspend", "start", "launch"]
    told = await fly.happened("machine_started")
    assert [line["detail"].get("resumed", False) for line in told] == [False, True]
    assert len(await fly.happened("machine_suspended")) == 1


async def test_everything_in_the_machine_stands_still(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), "family")
    output = await fly.log(machine)
    pids = [int(line.split()[1]) for line in output.splitlines() if line.startswith("pid")]
    await suspended(fly, machine)
    await eventually(lambda: all(stands_still(pid) for pid in pids))
    await fly.call("POST", f"{machine}/start")
    await fly.wait(machine, "started")
    await eventually(lambda: not any(stands_still(pid) for pid in pids))


@pytest.mark.parametrize("how", ["stop", "update", "delete", "app"])
async def test_a_suspended_machine_can_be_ended_in_every_way_and_never_obeys(make: Make, how: str) -> None:
    fly = await make(active=0)
    app = await fly.app()
    volume = await fly.volume(app)
    config: dict[str, Any] = on(volume) | {"stop_config": {"timeout": "60s"}}
    machine = await fly.machine(app, "polite", config=config)
    pid = (await fly.inside(machine))["pid"]
    await fly.log(machine)
    await suspended(fly, machine)
    match how:
        case "stop":
            assert (await fly.call("POST", f"{machine}/stop")).status == 200
            await fly.wait(machine, "stopped")
            await fly.call("POST", f"{machine}/start")
            await fly.wait(machine, "started")
            assert (await fly.inside(machine))["pid"] != pid, "its snapshot was thrown away"
        case "update":
            version = (await fly.call("POST", machine, {"config": {"image": "sleeper"} | on(volume)})).json["version"]
            await fly.get(f"{machine}/wait", version=version)
        case "delete":
            assert (await fly.call("DELETE", machine)).status == 200, "no force is needed"
            await fly.wait(machine, "destroyed")
        case _:
            await fly.call("DELETE", app, force="true")
            await eventually(lambda: not alive(pid))
    assert not alive(pid)

    async def told_of_it() -> bool:
        return len(await fly.happened("machine_exited")) == 1

    await eventually(told_of_it)
    (told,) = await fly.happened("machine_exited")
    assert told["detail"]["signal"] == int(signal.SIGKILL), "what stands still can't end in order"


async def test_only_some_machines_can_be_suspended(fly: Client) -> None:
    app = await fly.app()
    stopped = await fly.machine(app, skip_launch=True, until="stopped")
    big = await fly.machine(app, config={"guest": {"cpus": 2, "memory_mb": 4096}})
    swapping = await fly.machine(app, config={"init": {"swap_size_mb": 512}})
    for machine, text_ in (
        (stopped, "unable to suspend machine from current state: 'stopped'"),
        (big, "unable to suspend machine: it has 4096 MB of memory, more than 2048 MB"),
        (swapping, "unable to suspend machine: it has swap"),
    ):
        refused = await fly.call("POST", f"{machine}/suspend")
        assert refused.error == (412, f"failed_precondition: {text_}")
    assert await fly.happened("machine_suspended") == []


async def test_a_suspended_machine_takes_few_orders(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    await suspended(fly, machine)
    for order in ("suspend", "restart", "signal"):
        body = {"signal": "SIGTERM"} if order == "signal" else None
        assert (await fly.call("POST", f"{machine}/{order}", body)).status == 412, order
    nonce = (await fly.call("POST", f"{machine}/lease", {"ttl": 30})).json["data"]["nonce"]
    assert (await fly.call("POST", f"{machine}/start")).status == 409
    assert (await fly.call("POST", f"{machine}/start", nonce=nonce)).status == 200


async def test_a_suspended_machine_whose_process_is_killed_is_stopped(make: Make) -> None:
    fly = await make(active=0)
    machine = await fly.machine(await fly.app(), config={"restart": {"policy": "always"}})
    await suspended(fly, machine)
    os.kill((await fly.inside(machine))["pid"], signal.SIGKILL)
    await fly.wait(machine, "stopped")
    await fly.call("POST", f"{machine}/start")
    await fly.wait(machine, "started")


async def test_a_resumed_machine_ends_in_order(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), "polite")
    await fly.log(machine)
    await suspended(fly, machine)
    await fly.call("POST", f"{machine}/start")
    await fly.wait(machine, "started")
    await fly.call("POST", f"{machine}/stop")
    await fly.wait(machine, "stopped")
    (told,) = await fly.happened("machine_exited")
    assert told["detail"]["code"] == 0


async def test_a_cordoned_machine_says_so(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    for order, cordoned in (("cordon", True), ("cordon", True), ("uncordon", False)):
        assert (await fly.call("POST", f"{machine}/{order}")).json == {"ok": True}
        assert (await fly.get(machine))["cordoned"] is cordoned
    types = [event["type"] for event in await fly.get(f"{machine}/events")]
    assert types == ["uncordon", "cordon", "start", "launch"]
    assert (await fly.get(machine))["state"] == "started"


async def test_a_machine_that_was_resumed_obeys_again(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), "polite")
    await fly.log(machine)
    await suspended(fly, machine)
    await fly.call("POST", f"{machine}/start")
    await fly.wait(machine, "started")
    assert (await fly.call("POST", f"{machine}/signal", {"signal": "SIGTERM"})).status == 200
    await fly.wait(machine, "stopped")
    (told,) = await fly.happened("machine_exited")
    assert (told["detail"]["code"], told["cause"]) == (0, "exit")
    assert [line["cause"] for line in await fly.happened("machine_stopped")] == ["exit"]
