"""`flysim serve` as a program: how it starts, how it ends, and what becomes of what a killed one left."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from flysim_client import TOKEN, Client, alive, text
from flysim_images import IMAGES

Serve = Callable[..., Awaitable["Program"]]


class Program:
    """A running `flysim serve`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process, self.url, self.fly = process, url, Client(url)

    async def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)


async def run(tmp_path: Path, *arguments: str) -> asyncio.subprocess.Process:
    images = tmp_path / "images.json"
    images.write_text(json.dumps(IMAGES))
    usual = ("--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"), "--images", str(images), "--token", TOKEN)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flysim.cli", "serve", *usual, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    programs: list[Program] = []

    async def start(*arguments: str) -> Program:
        process = await run(tmp_path, "--prepare-seconds", "0", *arguments)
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert line.startswith("flysim: listening on http://127.0.0.1:"), line
        programs.append(Program(process, line.split()[-1]))
        return programs[-1]

    yield start
    for program in programs:
        await program.fly.close()
        if program.process.returncode is None:
            await program.end()


async def family(fly: Client) -> list[int]:
    """The pids of a machine with children in and outside its group."""
    machine = await fly.machine(await fly.app(), "family")
    output = await fly.log(machine)
    pids = [int(line.split()[1]) for line in output.splitlines() if line.startswith("pid")]
    return [(await fly.inside(machine))["pid"], *pids]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_its_machines_and_then_itself(serve: Serve, number: int) -> None:
    program = await serve()
    pids = await family(program.fly)
    waiting = asyncio.create_task(program.fly.machine("/v1/apps/ada", "nobody/knows", until="started"))
    assert await program.end(number) == 0
    assert [pid for pid in pids if alive(pid)] == []
    with pytest.raises(Exception):  # noqa: B017, PT011 - a wait of its caller is cut, in whatever way
        await waiting


async def test_what_a_killed_one_left_ends_with_the_next(serve: Serve) -> None:
    first = await serve()
    pids = await family(first.fly)
    assert await first.end(signal.SIGKILL) == -signal.SIGKILL
    assert all(alive(pid) for pid in pids)
    second = await serve()
    assert [pid for pid in pids[:3] if alive(pid)] == []
    assert await second.fly.get("/v1/apps", org_slug="personal") == {"total_apps": 0, "apps": []}
    assert await second.fly.ledger() == [line for line in await second.fly.ledger() if line["op"] == "list_apps"]
    os.kill(pids[3], signal.SIGKILL)


async def test_a_recorded_pid_that_is_somebody_else_s_now_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    first = await serve()
    machine = await first.fly.machine(await first.fly.app())
    pid = (await first.fly.inside(machine))["pid"]
    await first.end(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    bystander = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    record = tmp_path / "state" / "machines" / machine.rsplit("/", 1)[1] / "process.json"
    told = json.loads(text(record))
    assert told.keys() == {"machine", "pid", "started"}
    record.write_text(json.dumps(told | {"pid": bystander.pid, "started": told["started"] - 60}))
    await serve()
    assert alive(bystander.pid)
    bystander.kill()
    await bystander.wait()


async def test_no_zombies(serve: Serve) -> None:
    program = await serve("--restart-seconds", "0")
    app = await program.fly.app()
    config = {"restart": {"policy": "on-failure", "max_retries": 5}}
    for _ in range(3):
        await program.fly.machine(app, "crashes", until="stopped", config=config)
    assert psutil.Process(program.process.pid).children() == []
    assert len(await program.fly.happened("machine_exited")) == 18


async def test_several_tokens_and_orgs(serve: Serve) -> None:
    program = await serve("--token", "fm2_second", "--org", "one", "--org", "two")
    for org in ("one", "two"):
        assert (await program.fly.call("GET", "/v1/apps", token="fm2_second", org_slug=org)).status == 200
    assert (await program.fly.call("GET", "/v1/apps", org_slug="personal")).status == 404


async def test_a_second_one_on_the_same_directory_does_not_start(serve: Serve, tmp_path: Path) -> None:
    first = await serve()
    pid = (await first.fly.inside(await first.fly.machine(await first.fly.app())))["pid"]
    second = await run(tmp_path)
    _, errors = await asyncio.wait_for(second.communicate(), 20)
    assert (second.returncode, errors.decode().strip()) == (2, f"flysim: another flysim uses {tmp_path / 'state'}")
    assert alive(pid)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--images", "/nowhere.json"), "/nowhere.json"),
        (("--prepare-seconds", "-1"), "-1"),
        (("--listen", "4280"), "4280"),
    ],
)
async def test_it_says_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    process = await run(tmp_path, *arguments)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert word in errors.decode()
    assert "Traceback" not in errors.decode()
