"""Health checks: really made, named as Fly names them, and shown as they turn out."""

import asyncio
from typing import Any

import pytest
from flysim_client import Client, eventually
from flysim_edge import service
from flysim_world import World, make_world

OFTEN = {"interval": "20ms", "timeout": "5s"}


async def checks(fly: Client, machine: str) -> dict[str, str]:
    return {check["name"]: check["status"] for check in (await fly.get(machine))["checks"]}


async def until(fly: Client, machine: str, wanted: dict[str, str]) -> None:
    async def so() -> bool:
        return await checks(fly, machine) == wanted

    await eventually(so)


async def test_checks_are_made_and_shown(fly: Client) -> None:
    config = {
        "services": [
            service(checks=[{"type": "tcp"} | OFTEN, {"type": "http", "path": "/health", "port": 8080} | OFTEN]),
            service(internal_port=9999, checks=[{"type": "tcp"} | OFTEN]),
        ],
        "checks": {"mine": {"type": "http", "port": 8080, "path": "forbidden"} | OFTEN},
    }
    machine = await fly.machine(await fly.app(), "web", config=config)
    await fly.log(machine)
    await until(
        fly,
        machine,
        {
            "servicecheck-00-tcp-8080": "passing",
            "servicecheck-01-http-8080": "passing",
            "servicecheck-02-tcp-9999": "critical",
            "mine": "critical",
        },
    )
    said = [check["output"] for check in (await fly.get(machine))["checks"]]
    address = (await fly.inside(machine))["address"]
    assert said[0] == f"TCP connect {address}:8080: Success"
    assert said[1] == f"HTTP GET http://{address}:8080/health: 200 OK"
    assert said[3] == f"http://{address}:8080/forbidden: 403 Forbidden"
    assert (await fly.get(f"{machine.rsplit('/', 1)[0]}", summary="true"))[0].get("checks") is None


async def test_a_check_turns_when_its_program_does(fly: Client) -> None:
    config = {"checks": {"health": {"type": "http", "port": 8080, "path": "/health"} | OFTEN}}
    machine = await fly.machine(await fly.app(), "web", config=config)
    await until(fly, machine, {"health": "passing"})
    address = (await fly.inside(machine))["address"]
    await fly.raw("GET", f"http://{address}:8080/sick")
    await until(fly, machine, {"health": "critical"})


async def test_in_the_grace_period_nothing_bad_is_told(fly: Client) -> None:
    at_once, late = {"type": "tcp", "port": 8080} | OFTEN, {"type": "tcp", "port": 8080, "grace_period": "1h"} | OFTEN
    machine = await fly.machine(await fly.app(), config={"checks": {"late": late, "at_once": at_once}})
    await until(fly, machine, {"late": "warning", "at_once": "critical"})
    (first, _) = (await fly.get(machine))["checks"]
    assert first["output"] == "waiting for status update"
    well = await fly.machine("/v1/apps/ada", "web", config={"checks": {"late": late}})
    await until(fly, well, {"late": "passing"})


async def test_a_check_that_gets_no_answer_fails(fly: Client) -> None:
    check = {"type": "http", "port": 18790, "interval": "20ms", "timeout": "50ms"}
    silent = "import os, socket, time; s = socket.create_server((os.environ['BIND'], 18790)); time.sleep(1000)"
    config = {"checks": {"slow": check}, "init": {"exec": ["python3", "-c", silent]}}
    machine = await fly.machine(await fly.app(), "tells", config=config)
    await until(fly, machine, {"slow": "critical"})

    async def timed_out() -> bool:
        return "no answer within 0.05 s" in (await fly.get(machine))["checks"][0]["output"]

    await eventually(timed_out)


async def test_checks_are_made_while_it_is_started_and_begin_afresh(fly: Client) -> None:
    config = {"checks": {"health": {"type": "tcp", "port": 8080} | OFTEN}}
    machine = await fly.machine(await fly.app(), "web", config=config)
    await until(fly, machine, {"health": "passing"})
    await fly.call("POST", f"{machine}/suspend")
    await fly.wait(machine, "suspended")
    before = (await fly.get(machine))["checks"]
    await fly.call("POST", f"{machine}/start")
    await fly.wait(machine, "started")
    await until(fly, machine, {"health": "passing"})
    assert before[0]["status"] == "passing"
    await fly.call("POST", machine, {"config": {"image": "sleeper"}})
    assert await checks(fly, machine) in ({"health": "passing"}, {})
    await until(fly, machine, {})


async def test_nothing_is_checked_while_it_is_stopped(fly: Client) -> None:
    def under_way() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == f"check of {identity}"]

    config = {"checks": {"health": {"type": "tcp", "port": 8080} | OFTEN}}
    machine = await fly.machine(await fly.app(), config=config)
    identity = machine.rsplit("/", 1)[1]
    assert len(under_way()) == 1
    await fly.call("POST", f"{machine}/stop")
    await fly.wait(machine, "stopped")
    await eventually(lambda: under_way() == [])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"checks": {"a": {"type": "udp", "port": 1}}}, "config.checks.a: type 'udp' is not one of tcp, http"),
        ({"checks": {"a": {"type": "tcp"}}}, "config.checks.a: port 0 is not between 1 and 65535"),
        (
            {"services": [service(checks=[{"type": "http", "protocol": "gopher"}])]},
            "config.services[0].checks: protocol 'gopher' is not one of http, https",
        ),
        (
            {"checks": {"a": {"type": "tcp", "port": 1, "interval": "often"}}},
            "config.checks.a: interval: 'often' is not a duration",
        ),
        (
            {"services": [service(autostop="maybe")]},
            "config.services: autostop 'maybe' is not one of off, stop, suspend",
        ),
    ],
)
async def test_a_check_that_makes_no_sense_is_refused(fly: Client, config: dict[str, Any], text: str) -> None:
    assert (await fly.create(await fly.app(), config=config)).error == (400, f"invalid_argument: {text}")


@pytest.mark.looptime
async def test_a_machine_without_a_process_passes_at_once() -> None:
    world: World = await make_world()
    machine = await world.machine(config={"image": "puppet", "checks": {"a": {"type": "tcp", "port": 1}}})
    await world.json("GET", f"{machine}/wait")
    (check,) = (await world.json("GET", machine))["checks"]
    assert (check["status"], check["output"]) == ("passing", "not made, the machine is no process")
    await world.sim.close()
