"""Virtual machines: a scripted life without processes, many of them at little cost, and as a program."""

import asyncio
import json
import sys
from pathlib import Path

import httpx
import pytest
from flysim_client import TOKEN, Client
from flysim_edge import service
from flysim_world import make_world, passing


@pytest.mark.looptime
async def test_a_machine_lives_as_its_script_says() -> None:
    world = await make_world()
    machine = await world.machine(config={"image": "puppet", "init": {"cmd": ["mortal"]}})
    await world.json("GET", f"{machine}/wait")
    before = world.clock.now()
    await world.json("POST", f"{machine}/suspend")
    await world.json("GET", f"{machine}/wait", state="suspended")
    await passing(1000)
    await world.json("POST", f"{machine}/start")
    await passing(50)
    assert (await world.json("GET", machine))["state"] == "started", "its time stood still"
    await world.json("GET", f"{machine}/wait", state="stopped", timeout=60)
    assert world.clock.now() - before == pytest.approx(1100, abs=1)
    (told,) = [line for line in world.sim.world.ledger.since(0) if line.get("event") == "machine_exited"]
    assert told["detail"]["code"] == 0
    await world.sim.close()


@pytest.mark.looptime
async def test_an_image_that_can_t_be_had_fails() -> None:
    world = await make_world()
    machine = await world.machine(config={"image": "unheard/of"})
    await world.json("GET", f"{machine}/wait", state="failed")
    await world.sim.close()


@pytest.mark.looptime
async def test_a_thousand_machines_cost_little() -> None:
    """The time limit of the test is the point; figures are in the reference."""
    world = await make_world()
    machines = [await world.machine() for _ in range(1000)]
    for machine in machines:
        await world.json("GET", f"{machine}/wait")
    assert len(await world.json("GET", "/v1/apps/ada/machines", state="started")) == 1000
    await world.sim.close()


async def test_it_serves_virtual_machines_and_an_edge(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flysim.cli", "serve", "--virtual", "--boot-seconds", "0.01", "--idle-seconds", "0.05"),
        *("--listen", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--state", str(tmp_path / "fly"), "--token", TOKEN),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    api, edge = [(await asyncio.wait_for(process.stdout.readline(), 20)).decode().split() for _ in range(2)]
    assert (api[:3], edge[:3]) == (["flysim:", "listening", "on"], ["flysim:", "edge", "on"])
    fly = Client(api[-1])
    try:
        app = await fly.app()
        machine = await fly.machine(app, "any/image", config={"services": [service(autostop="stop")]})
        assert (await fly.inside(machine))["pid"] is None
        await fly.wait(machine, "stopped")
        assert [line["cause"] for line in await fly.happened("machine_stopped")] == ["autostop"]
        async with httpx.AsyncClient(trust_env=False, verify=False) as outside:
            reply = await outside.get(edge[-1], headers={"host": "ada.fly.dev"})
        assert (reply.status_code, "no public IP" in reply.text) == (503, True)
    finally:
        await fly.close()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    lines = (tmp_path / "fly" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == list(range(1, len(lines) + 1))
