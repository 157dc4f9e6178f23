"""The supervisor's figures: `make bench-supervisor` (PARTS=… ROUNDS=… OPENCLAW=1 or 0).

What is measured and how is in docs/reference/supervisor-figures.md. Progress goes to standard error; then come a table
of goals and one line of JSON: for each figure its goal, what was got, and whether that is enough. The exit code is 1
when a goal is missed, or a part could not be measured.
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import openclaw_image
import psutil
from endpoint import OperatorDouble
from machine import Machine, eventually, python
from openclaw_world import World

from roost.local import openclaw

_LIVES = Path(__file__).parents[2] / "image" / "supervisor_lives.py"
_numbers = itertools.count(1)
_VERSION = "2026.9.6"
_SLEEPS = {"kind": "Command", "version": "1.0", "command": ["sleep", "100000"]}
_STARTED = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it. Of a time, and of an idle share, the best of some rounds is told: others may want the cores."""

    rounds: int = 5
    idle_seconds: float = 60.0
    idle_rounds: int = 2
    beats: int = 120
    """Heartbeats that are told one after the other: an hour has so many, one in 30 s."""
    updates: int = 200
    lives: int = 1_000


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, what it is, and the most that it may be."""

    figure: str
    what: str
    most: float


Figures = dict[str, float]
Part = Callable[[Size], Figures]


def say(text: str) -> None:
    load = os.getloadavg()[0]
    print(f"{time.strftime('%H:%M:%S')} (load {load:.1f}) {text}", file=sys.stderr, flush=True)


# --- One machine, with a runtime that sleeps or the stand-in for OpenClaw --------------------------------------------


@asynccontextmanager
async def machine(*, stub: bool = False) -> AsyncIterator[Machine]:
    """A machine that has not been started; nothing outlives it."""
    operator = OperatorDouble()
    await operator.start()
    number = next(_numbers)
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        made = Machine(operator, Path(folder), f"127.{200 + os.getpid() // 250 % 20}.{os.getpid() % 250 + 1}.{number}")
        if stub:
            made.environment |= openclaw_image.make(Path(folder) / "image", {_VERSION: {}})
            openclaw_image.want(operator, _VERSION, heartbeat={"intervalSeconds": 30})
            operator.next_seconds = 30
        else:
            operator.change(runtime=_SLEEPS)
        try:
            yield made
        finally:
            made.kill()
            await operator.stop()


def rss(process: psutil.Process) -> float:
    """Its resident set, MB."""
    return process.memory_info().rss / 1e6


async def cpu(process: psutil.Process, seconds: float) -> float:
    """How much of a core it needs, in percent."""

    def used() -> float:
        times = process.cpu_times()
        return times.user + times.system

    before, began = used(), time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (used() - before) / (time.monotonic() - began)


async def booted(one: Machine) -> float:
    """Starts it; seconds until the first heartbeat that tells the bundle's revision."""
    began = time.monotonic()
    one.start()
    wanted = one.operator.bundle["revision"]
    await one.heard(lambda beat: beat["bundleRevision"] == wanted, "the bundle", _STARTED)
    return next(beat.at for beat in one.operator.beats if beat.body["bundleRevision"] == wanted) - began


async def beaten(one: Machine, count: int) -> None:
    """Has it tell so many heartbeats, as fast as it will: one for each end of a held one."""
    operator = one.operator
    before = len(operator.beats)
    operator.holds, operator.next_seconds = False, 1
    operator.wake()
    await eventually(lambda: len(operator.beats) >= before + count, f"{count} heartbeats", 3.0 * count)
    operator.holds, operator.next_seconds = True, 30


# --- Parts -----------------------------------------------------------------------------------------------------------


async def boot(size: Size) -> Figures:
    """From exec to a bundle in effect, for both kinds of runtime, with nothing to install."""
    found: dict[str, list[float]] = {"boot_s": [], "boot_openclaw_s": []}
    for _ in range(size.rounds):
        for figure, stub in (("boot_s", False), ("boot_openclaw_s", True)):
            async with machine(stub=stub) as one:
                found[figure].append(await booted(one))
    say(f"boot: {found}")
    return {figure: min(each) for figure, each in found.items()}


async def memory(size: Size) -> Figures:
    """After the boot, after an hour's heartbeats, after many changes of the configuration."""
    async with machine() as one:
        await booted(one)
        await one.ready()
        process = psutil.Process(one.pid)
        found = {"rss_boot_mb": rss(process)}
        await beaten(one, size.beats)
        found["rss_beats_mb"] = rss(process)
    async with machine(stub=True) as one:
        await booted(one)
        await one.ready()
        process = psutil.Process(one.pid)
        found["rss_openclaw_boot_mb"] = rss(process)
        started, files = rss(process), process.num_fds()
        for number in range(size.updates):
            model = {"default": f"anthropic/claude-sonnet-{number % 2}"}
            openclaw_image.want(one.operator, _VERSION, soul=f"You are {number}.\n", model=model)
            await one.ready()
            if number == size.updates // 5:
                started, files = rss(process), process.num_fds()
        found["rss_openclaw_mb"] = rss(process)
        found["updates_grown_mb"] = rss(process) - started
        found["updates_files_left"] = process.num_fds() - files
    return found


async def idle(size: Size) -> Figures:
    """Ready, with the heartbeats that are usual and nothing to do; both kinds at once."""
    return dict(
        await asyncio.gather(_idle(size, "idle_percent", stub=False), _idle(size, "idle_openclaw_percent", stub=True))
    )


async def _idle(size: Size, figure: str, *, stub: bool) -> tuple[str, float]:
    async with machine(stub=stub) as one:
        await booted(one)
        await one.ready()
        rounds = [await cpu(psutil.Process(one.pid), size.idle_seconds) for _ in range(size.idle_rounds)]
        say(f"idle: {figure} {rounds}")
        return figure, min(rounds)


async def respawn(size: Size) -> Figures:
    """From the kill of a runtime that is ready to its successor's first act, each time the first crash of a boot."""
    found = []
    for _ in range(size.rounds):
        async with machine() as one:
            note = one.data / "begun"
            program = f"import time; open({str(note)!r}, 'a').write(f'{{time.monotonic()}}\\n'); time.sleep(100000)"
            one.operator.change(runtime={**_SLEEPS, "command": list(python(program))})
            one.start()
            pid = await one.ready()
            killed = time.monotonic()
            psutil.Process(pid).kill()
            lines = await eventually(lambda at=note: _second_line(at), "its successor")
            found.append(float(lines) - killed)
    say(f"respawn: {found}")
    return {"respawn_s": min(found)}


def _second_line(note: Path) -> str | None:
    lines = note.read_text().splitlines(keepends=True) if note.exists() else []
    return lines[1].strip() if len(lines) > 1 and lines[1].endswith("\n") else None


async def change(size: Size) -> Figures:
    """From another bundle at the endpoint until the stand-in has it in effect, and until that has been told."""
    applied, told = [], []
    async with machine(stub=True) as one:
        await booted(one)
        await one.ready()
        for number in range(size.rounds):
            began = time.monotonic()
            openclaw_image.want(one.operator, _VERSION, model={"default": f"anthropic/claude-{number}"})
            file = one.data / "openclaw" / "openclaw.json"
            await eventually(lambda f=file, n=number: f"anthropic/claude-{n}" in f.read_text(), "the file")
            applied.append(time.monotonic() - began)
            await one.ready()
            told.append(time.monotonic() - began)
    say(f"change: file {applied}, told in effect {told}")
    return {"change_written_s": min(applied), "change_s": min(told)}


def lives(size: Size) -> Figures:
    """A thousand restarts of a trivial runtime; see tests/image/supervisor_lives.py."""
    argv = [sys.executable, str(_LIVES), f"ended={size.lives}"]
    ran = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=300)
    said = json.loads(ran.stdout.splitlines()[-1])["ended"]
    before, after = said["before"], said["after"]
    names = {"children": "zombies", "descriptors": "files", "tasks": "tasks"}
    return {f"lives_{name}_left": float(after[what] - before[what]) for what, name in names.items()} | {
        "lives_kb_left": (after["bytes"] - before["bytes"]) / 1024,
        "lives_ms_each": 1000 * said["seconds"] / size.lives,
    }


async def real(size: Size) -> Figures:
    """The same of the real OpenClaw: boot, memory and idle share of its supervisor, a change until a turn shows it."""
    boots = []
    for _ in range(size.rounds):
        async with _world() as world:
            world.declare()
            boots.append(await booted(world.machine))
    say(f"real: boot {boots}")
    async with _world() as world:
        return {"real_boot_s": min(boots)} | await _real(world, size)


@asynccontextmanager
async def _world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        address = f"127.{200 + os.getpid() // 250 % 20}.{os.getpid() % 250 + 1}.{next(_numbers)}"
        world = World(Path(folder), address, openclaw.find(say, (_VERSION,)))
        await world.open()
        try:
            yield world
        finally:
            await world.close()


async def _real(world: World, size: Size) -> Figures:
    usual = {"heartbeat": {"intervalSeconds": 30}}
    world.operator.next_seconds = 30
    world.declare(**usual)
    await booted(world.machine)
    await world.ready()
    process = psutil.Process(world.machine.pid)
    found = {"real_rss_mb": rss(process)}
    await world.pair()
    written, changes, turns, plain = [], [], [], []
    for number in range(size.rounds):
        began = time.monotonic()
        await world.turn(f"still there {number}")
        plain.append(world.model.asked[-1].at - began)
        began = time.monotonic()
        world.declare(model=f"fake/{number}", **usual)
        await eventually(lambda n=number: f"fake/{n}" in world.config.read_text(), "the file")
        written.append(time.monotonic() - began)
        await world.ready()
        changes.append(time.monotonic() - began)
        await world.turn(f"which model are you {number}")
        asked = world.model.asked[-1]
        assert asked.model == str(number), "the next turn is the new model's"
        turns.append(asked.at - began)
    say(f"real: written {written}, in effect {changes}, new model asked {turns}, a turn without a change {plain}")
    assert world.starts == 1, "each of them was taken up while it ran"
    found |= {
        "real_change_written_s": min(written),
        "real_change_s": min(changes),
        "real_change_model_asked_s": min(turns),
        "real_turn_model_asked_s": min(plain),
    }
    rounds = [await cpu(process, size.idle_seconds) for _ in range(size.idle_rounds)]
    say(f"real: idle {rounds}")
    return found | {"real_idle_percent": min(rounds), "real_rss_after_mb": rss(process)}


def _looped(part: Callable[[Size], Coroutine[None, None, Figures]]) -> Part:
    return lambda size: asyncio.run(part(size))


PARTS: dict[str, tuple[Part, tuple[Goal, ...]]] = {
    "boot": (
        _looped(boot),
        (
            Goal("boot_s", "boot to bundle applied, s", 1.5),
            Goal("boot_openclaw_s", "boot to bundle applied, OpenClaw's binding, s", 1.5),
        ),
    ),
    "memory": (
        _looped(memory),
        (
            Goal("rss_boot_mb", "memory after the boot, MB", 75),
            Goal("rss_beats_mb", "memory after an hour's heartbeats, MB", 75),
            Goal("rss_openclaw_boot_mb", "memory after the boot, OpenClaw's binding, MB", 75),
            Goal("rss_openclaw_mb", "memory after the changes, OpenClaw's binding, MB", 75),
            Goal("updates_grown_mb", "memory grown in the last four fifths of the changes, MB", 2),
            Goal("updates_files_left", "files left open by changes", 0),
        ),
    ),
    "idle": (
        _looped(idle),
        (
            Goal("idle_percent", "idle, percent of a core", 0.5),
            Goal("idle_openclaw_percent", "idle, OpenClaw's binding, percent of a core", 0.5),
        ),
    ),
    "respawn": (_looped(respawn), (Goal("respawn_s", "from a first crash to the next process, s", 1.1),)),
    "change": (_looped(change), (Goal("change_s", "from a hot change to its effect, s", 2.0),)),
    "lives": (
        lives,
        (
            Goal("lives_zombies_left", "children left of 1,000 restarts", 0),
            Goal("lives_files_left", "files left of 1,000 restarts", 0),
            Goal("lives_tasks_left", "tasks left of 1,000 restarts", 0),
            Goal("lives_kb_left", "memory left of 1,000 restarts, kB", 72),
        ),
    ),
    "real": (
        _looped(real),
        (
            Goal("real_boot_s", "real OpenClaw: boot to bundle applied, s", 1.5),
            Goal("real_rss_mb", "real OpenClaw: the supervisor's memory, MB", 75),
            Goal("real_rss_after_mb", "real OpenClaw: its memory after turns and changes, MB", 75),
            Goal("real_idle_percent", "real OpenClaw: the supervisor idle, percent of a core", 0.5),
            Goal("real_change_s", "real OpenClaw: from a hot change to its effect, s", 2.0),
        ),
    ),
}


# --- All of it -------------------------------------------------------------------------------------------------------


def run(parts: Sequence[str], size: Size) -> Figures:
    """The figures of these parts; one that fails is told and left out."""
    figures: Figures = {}
    for name in parts:
        say(f"{name} …")
        try:
            figures |= PARTS[name][0](size)
        except Exception:  # the others are worth measuring all the same
            traceback.print_exc()
    return {figure: round(value, 3) for figure, value in figures.items()}


def verdicts(parts: Sequence[str], figures: Figures) -> list[dict[str, object]]:
    """Each goal of these parts with what was got; what has no goal comes last."""
    goals = [goal for name in parts for goal in PARTS[name][1]]
    rows: list[dict[str, object]] = [
        {
            "figure": goal.figure,
            "goal": goal.most,
            "got": figures.get(goal.figure),
            "met": figures.get(goal.figure, float("inf")) <= goal.most,
        }
        for goal in goals
    ]
    others = figures.keys() - {goal.figure for goal in goals}
    return rows + [{"figure": f, "goal": None, "got": figures[f], "met": None} for f in sorted(others)]


def main() -> int:
    usual = Size()
    there = (openclaw.cache_dir(os.environ) / "opt" / "openclaw" / _VERSION).exists()
    real_too = os.environ.get("OPENCLAW", "1" if there else "0") != "0"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(p for p in PARTS if p != "real" or real_too), help="%(default)s")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="default %(default)s")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"--parts: there is no {unknown[0]!r}; there are {', '.join(PARTS)}")
    rows = verdicts(parts, run(parts, Size(rounds=options.rounds)))
    whats = {goal.figure: goal.what for name in parts for goal in PARTS[name][1]}
    for row in rows:
        if row["goal"] is not None:
            got = "not measured" if row["got"] is None else f"{row['got']:,.2f}"
            verdict = "held" if row["met"] else "MISSED"
            print(f"{whats[str(row['figure'])]:<62} {got:>12}  ≤ {row['goal']:>5,g}  {verdict}")
    print(json.dumps(rows))
    return 0 if all(row["met"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
