"""Every story with every fault at every call, then pairs and triples: `python -m faults.sweep`, or `make faults`.

A story runs once, undisturbed. At each of its calls the process forks for each fault that fits: what is disturbed runs
on in the child, and shares all that came before. Nothing in a run depends on real time or chance, so that a run can be
made again by its name, `story/call/fault` (with `+call/fault` for further ones), without any fork.

    make faults                                     the whole of it
    make faults REPLAY=destroy/7/fly-silent-after   one run again, with its ledger and the status at its end
    make verify-figures                             judges the kept records of the last sweep again, from them alone
"""

import argparse
import asyncio
import functools
import gc
import gzip
import json
import logging
import os
import pickle
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import structlog

from faults.catalogue import CATALOGUE, EXHAUSTIVE, STORM_SECONDS, possible, swept
from faults.leap import LeapLoop
from faults.oracles import Version, judge
from faults.planner_schedules import Counts, planner_schedules
from faults.stories import STORIES, Story, Was
from faults.wire import BY_CLOCK, Seen, Wire
from operator_world import EPOCH, LISTS, World, operator_world
from roost.agents import orgs as orgs_room
from roost.fly import client as client_room
from roost.kube.objects import condition

MOST_RATIO = 3.0
QUIET_SECONDS = 40.0
"""More than two periods of the refresher."""
MOST_HITS = 20
"""Calls that may meet one storm, for each object that is worked on."""
CALLS_PER_PART = 40
"""A story's calls are dealt to so many parts that all cores have work to the end."""
SEEDS = 4
KEEP = ""


@dataclass(slots=True)
class Run:
    """What came of one run. `calls`: until it was at rest, lists and polls apart; `seconds`: virtual, until then."""

    name: str
    converged: bool = False
    calls: int = 0
    hits: int = 0
    seconds: float = 0.0
    base: int = 0
    wrong: list[str] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    seen: int = 0

    @property
    def story(self) -> str:
        return self.name.partition("/")[0]

    @property
    def ratio(self) -> float:
        """Of the calls that met no storm to those of the undisturbed run."""
        return (self.calls - max(0, self.hits - 1)) / self.base if self.base else 0.0


class Broke(Exception):
    """Something that must not be, seen at once."""


_address = functools.lru_cache(4096)(httpx._urls.urlparse)


@contextmanager
def deterministic() -> Iterator[list[str]]:
    """Jitter from seeds, and a log that holds only what nobody foresaw."""
    complaints: list[str] = []

    def keep(_: Any, __: str, event: dict[str, Any]) -> Any:
        error = sys.exc_info()[1]
        said = f"{event.get('event')}: {error!r}" if error is not None else str(event)
        if error is not None:
            said += "\n" + "".join(traceback.format_exception(error)[-3:])
        complaints.append(said)
        raise structlog.DropEvent

    structlog.configure(
        processors=[keep],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        cache_logger_on_first_use=False,
    )
    dice = SimpleNamespace(Random=lambda: random.Random(7))
    with (
        patch.object(orgs_room, "random", dice),
        patch.object(client_room, "random", dice),
        # A sixth of a run's time: the same few addresses taken apart, and cookies that Fly never sets.
        patch.object(httpx._urls, "urlparse", _address),
        patch.object(httpx._urlparse, "urlparse", _address),
        patch.object(httpx.Cookies, "extract_cookies", lambda *_: None),
    ):
        yield complaints
    structlog.reset_defaults()


class Play:
    """One story on a fresh world."""

    def __init__(self, story: Story, world: World, complaints: list[str]) -> None:
        self.story, self.world, self.complaints = story, world, complaints
        self.wire = Wire(world)
        self.name = ""
        self.was: Was = {}
        self.mark = self.first = 0
        self.began = 0.0

    async def begin(self) -> None:
        world = self.world
        world.start()
        self.was = await self.story.before(world)
        self.mark = len(world.ledger())
        self.began = world.loop.time()
        self.wire.on = True

    async def end(self) -> Run:
        """From the disturbed part to the rest that must follow. The name may change until then."""
        world, run = self.world, Run("")
        try:
            await self.story.part(world, self.was)
            await self._settle()
            run.converged = True
            run.seconds = round(world.loop.time() - self.began - QUIET_SECONDS, 1)
            run.calls, run.hits = self.calls(), self.wire.hits
            self.wire.on = False
            await self._rest()
        except (Broke, AssertionError) as error:
            run.wrong.append(str(error))
            run.calls = run.calls or self.calls()
        run.name, run.seen = self.name, self.first
        run.wrong += [*self.complaints, *self.wire.broke]
        lines, versions = world.ledger(), self.versions()
        if KEEP and self.name:
            keep(run, lines, versions)
        verdict = judge(lines, versions)
        for kind, sentences in verdict.found.items():
            run.found[kind] = len(sentences)
            run.wrong += [f"{kind}: {s}" for s in sentences]
        return run

    async def _settle(self) -> None:
        """Until the goal is reached, and nothing happens any more."""
        world, wire = self.world, self.wire
        began = world.loop.time()
        while True:
            while not self.story.goal(world, self.was) or world.loop.time() < wire.over:
                left = max(began, wire.over) + self.story.seconds - world.loop.time()
                if left < 0:
                    raise Broke(f"not there within {self.story.seconds:g} s: {self.told()}")
                await asyncio.sleep(0.5 if left > self.story.seconds - 10 else 2.0)
            wire.at, self.first = None, self.first or len(wire.seen)
            before = self.changes()
            await asyncio.sleep(QUIET_SECONDS)
            if self.changes() == before and self.story.goal(world, self.was) and world.loop.time() >= wire.over:
                return

    async def _rest(self) -> None:
        """Stable over a restart and a whole sweep: no change at Fly, and no write."""
        world = self.world
        await world.crash()
        world.start()
        before = self.changes()
        await asyncio.sleep(QUIET_SECONDS)
        if (now := self.changes()) != before:
            raise Broke(f"not at rest after a restart: {self.changed(before)}, {now[1] - before[1]} writes")
        if not self.story.goal(world, self.was):
            raise Broke(f"the goal is left after a restart: {self.told()}")

    def changes(self) -> tuple[int, int]:
        return len(self._effective()), len(self.world.store.writes)

    def changed(self, before: tuple[int, int]) -> list[str]:
        return [line["op"] for line in self._effective()[before[0] :]]

    def _effective(self) -> list[Any]:
        return [
            c for c in self.world.ledger() if c["kind"] == "call" and c["effect"] and c["agent"].startswith("roost/")
        ]

    def calls(self) -> int:
        """Since the story began, of Fly and Kubernetes together."""
        return sum(s.kind not in ("event", "watch") and s.op not in BY_CLOCK for s in self.wire.seen)

    def told(self) -> str:
        return "; ".join(self._told(name) for name in self.world.inmates)

    def _told(self, name: str) -> str:
        world = self.world
        machines, volumes = [(m.id, m.state) for m in world.machines(name)], [v.id for v in world.volumes(name)]
        if (found := world.store.find("Agent", name)) is None:
            return f"{name}: there is no Agent; {machines} {volumes}"
        status = found.get("status", {})
        ready = condition(status, "Ready")
        said = tuple(ready.get(key) for key in ("status", "reason", "message"))
        return f"{name}: {status.get('phase')} {status.get('nextAction')} Ready={said} {machines} {volumes}"

    def versions(self) -> list[Version]:
        return [Version(*entry) for entry in self.world.store._history]


# --- Runs ---------------------------------------------------------------------------------------------------------


def played(story: Story, act: Callable[[Play], Any]) -> Any:
    """Tells a story on a virtual clock of its own."""

    async def within(complaints: list[str]) -> Any:
        async with operator_world(story.settings, started=False) as world:
            world.store.meddle = lambda *_: None  # what breaks is read from the log
            return await act(Play(story, world, complaints))

    with deterministic() as complaints, asyncio.Runner(loop_factory=LeapLoop) as runner:
        return runner.run(within(complaints))


def replay(name: str, show: Callable[[Play], None] = lambda _: None) -> Run:
    """A run by its name; a story's name alone is the undisturbed one."""
    first, _, rest = name.partition("/")
    steps = [step.partition("/") for step in rest.split("+")] if rest else []
    faults = {int(number): CATALOGUE[what] for number, _, what in steps}

    async def act(play: Play) -> Run:
        def at(seen: Seen) -> None:
            if seen.n in faults and faults[seen.n].at(seen):
                play.wire.plan[seen.n] = faults.pop(seen.n).do

        await play.begin()
        play.wire.at, play.name = at, name
        run = await play.end()
        run.wrong += [f"{fault.name} can't happen at call {n} (any more)" for n, fault in faults.items()]
        show(play)
        return run

    run: Run = played(STORIES[first], act)
    return run


class Forks:
    """Forks the running process for each run that begins as this one does, and gathers what the children say."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self.runs: list[Run] = []
        self._out = -1

    def branch(self, name: str) -> bool:
        """True in the child, which goes on under this name. The parent waits for its end."""
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read)
            asyncio._set_running_loop(self._play.world.loop)  # asyncio thinks that a child has none
            self._play.name, self._out = name, write
            return True
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        self.runs.append(pickle.loads(said) if said else Run(name, wrong=["the run died"]))
        return False

    async def finish(self) -> list[Run]:
        """The rest of the story. Children end here."""
        play = self._play
        try:
            run = await play.end()
        except BaseException:
            if not play.name:
                raise
            run = Run(play.name, wrong=[traceback.format_exc()])
        if play.name:
            with os.fdopen(self._out, "wb") as pipe:
                pickle.dump(run, pipe)
            os._exit(0)
        return self.runs


def singles(name: str, part: int, parts: int, base: Mapping[str, int]) -> list[Run]:
    """A story with each single fault at each of its calls that is dealt to this part."""

    async def act(play: Play) -> list[Run]:
        forks = Forks(play)

        def at(seen: Seen) -> None:
            if seen.n % parts != part:
                return
            every = 1 if of_fleet(seen) else STORIES[name].member_every
            for nth, fault in enumerate(swept(seen)):
                if (seen.n // parts + nth) % every == 0 and forks.branch(f"{name}/{seen.n}/{fault.name}"):
                    play.wire.at = None
                    play.wire.plan[seen.n] = fault.do
                    return

        await play.begin()
        play.wire.at = at
        return await forks.finish()

    runs: list[Run] = played(STORIES[name], act)
    return [weighed(run, base) for run in runs]


def of_fleet(seen: Seen) -> bool:
    """Whether a Fleet makes the call, or hears the event."""
    made = {"apply_agents", "delete_agents"}
    return seen.op in made or "fleet" in seen.op or "controllerrevisions" in seen.op or seen.about.startswith("Fleet ")


def several(name: str, seeds: Iterable[int], base: Mapping[str, int], length: int) -> list[Run]:
    """A story with two or three faults that a seed chooses, of all that the catalogue holds."""

    async def act(play: Play) -> list[Run]:
        forks = Forks(play)

        def first(seen: Seen) -> None:
            play.wire.at = None
            for seed in seeds:
                if forks.branch(name):
                    play.wire.at = chosen(play, random.Random(f"{name} {seed}"), length)
                    play.wire.at(seen)
                    return

        await play.begin()
        play.wire.at = first
        return await forks.finish()

    runs: list[Run] = played(STORIES[name], act)
    return [weighed(run, base) for run in runs]


def chosen(play: Play, dice: random.Random, length: int) -> Callable[[Seen], None]:
    """Faults at two or three of the first calls; the run's name tells which."""
    numbers = set(dice.sample(range(1, length + 4), dice.choice((2, 2, 3))))

    def at(seen: Seen) -> None:
        if seen.n in numbers and (fit := possible(seen)):
            fault = dice.choice(fit)
            play.name += f"{'+' if '/' in play.name else '/'}{seen.n}/{fault.name}"
            play.wire.plan[seen.n] = fault.do

    return at


def weighed(run: Run, base: Mapping[str, int]) -> Run:
    """Compares its calls with those of the undisturbed run, and of the stories that its faults are by themselves."""
    faults = [CATALOGUE[step.partition("/")[2]] for step in run.name.partition("/")[2].split("+") if step]
    run.base = base[run.story] + sum(base[fault.like] for fault in faults if fault.like)
    if run.ratio > MOST_RATIO * max(1, len(faults)):
        run.wrong.append(f"{run.calls} calls instead of {run.base}")
    if run.hits > MOST_HITS * STORIES[run.story].objects * max(1, len(faults)):
        run.wrong.append(f"{run.hits} calls in a storm of {STORM_SECONDS:g} s")
    return run


def undisturbed(name: str) -> Run:
    return replay(name)


# --- The whole ----------------------------------------------------------------------------------------------------


def sweep(
    names: Sequence[str], seconds: float, seed: int, progress: Callable[[str], None]
) -> tuple[list[Run], list[Run]]:
    """All single faults, then several at once for so many (real) seconds. Returns the runs of both."""
    gc.collect()
    gc.freeze()  # so that a child copies little
    alone, together = list[Run](), list[Run]()
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        needed = {*names, *(fault.like for fault in EXHAUSTIVE if fault.like)}
        plain = {run.name: run for run in pool.map(undisturbed, sorted(needed))}
        base = {name: run.calls for name, run in plain.items()}
        alone += told([weighed(plain[name], base) for name in names])
        work = sorted(names, key=lambda name: -plain[name].seen)
        parts = {name: 1 + plain[name].seen // CALLS_PER_PART for name in work}
        tasks = [pool.submit(singles, name, part, parts[name], base) for name in work for part in range(parts[name])]
        for n, task in enumerate(as_completed(tasks), 1):
            alone += told(task.result())
            progress(f"{n}/{len(tasks)} parts, {len(alone)} runs, {sum(bool(run.wrong) for run in alone)} wrong")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            seeds = range(seed, seed + SEEDS)
            batch = [pool.submit(several, name, seeds, base, plain[name].seen) for name in work]
            for task in as_completed(batch):
                together += told(task.result()) if time.monotonic() < until + 5 or not task.cancel() else []
            seed += SEEDS
            progress(f"{len(together)} runs with several faults, {sum(bool(run.wrong) for run in together)} wrong")
    return sorted(alone, key=lambda run: run.name), sorted(together, key=lambda run: run.name)


def told(runs: list[Run]) -> list[Run]:
    """Prints at once how each run that went wrong can be had again."""
    for run in runs:
        if run.wrong:
            print(
                f"make faults REPLAY='{run.name}'",
                *(f"    {said[:600]}" for said in run.wrong[:4]),
                sep="\n",
                flush=True,
            )
    return runs


def table(runs: Iterable[Run]) -> str:
    """By story: runs, how many converged, the calls beyond the undisturbed run, the worst ratio, the slowest."""
    by_story: dict[str, list[Run]] = {}
    for run in runs:
        by_story.setdefault(run.story, []).append(run)
    lines = [f"{'STORY':<18}{'RUNS':>6}{'CONVERGED':>11}{'EXTRA CALLS':>13}{'WORST RATIO':>13}{'SLOWEST':>10}"]
    for name, of_story in by_story.items():
        extra = sum(max(0, run.calls - run.base) for run in of_story)
        lines.append(
            f"{name:<18}{len(of_story):>6}{sum(run.converged for run in of_story):>11}{extra:>13}"
            f"{max(run.ratio for run in of_story):>13.2f}{max(run.seconds for run in of_story):>9.0f}s"
        )
    return "\n".join(lines)


def cpu_seconds() -> float:
    """Of this process and of all that have ended below it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def figures(alone: Sequence[Run], together: Sequence[Run], planner: Counts, seconds: float) -> dict[str, Any]:
    runs = [*alone, *together]
    found: Counter[str] = Counter(orphans=planner.orphans, doubles=planner.doubles)
    for run in runs:
        found.update(run.found)
    return {
        "runs": len(runs),
        "converged": sum(run.converged for run in runs),
        **{name: found[name] for name in ("orphans", "doubles", "overlaps")},
        "max_call_ratio": round(max((run.ratio for run in alone), default=0.0), 2),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds(), 1),
        "planner_schedules": planner.planner_schedules,
    }


def keep(run: Run, lines: Sequence[Any], versions: Sequence[Version]) -> None:
    """The records of a run in a file, for `faults.recount`."""
    path = Path(KEEP) / f"{run.name.replace('/', '_')}.json.gz"
    whole = {"name": run.name, "ledger": lines, "versions": [(v.at, v.path, v.body) for v in versions]}
    path.write_bytes(gzip.compress(json.dumps(whole).encode(), 1, mtime=0))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0 all is well, 1 something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m faults.sweep", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replay", metavar="RUN", default="", help="one run by its name: story/call/fault")
    parser.add_argument("--stories", default=",".join(STORIES), help="only these, with commas between")
    parser.add_argument("--seconds", type=float, default=3.0, help="for runs with several faults; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="the first one; default %(default)s")
    parser.add_argument("--keep", default="", metavar="DIR", help="the records of all runs go there; those there go")
    arguments = parser.parse_args(argv)
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "faults.sweep", *(argv if argv is not None else sys.argv[1:])])
    global KEEP
    if arguments.keep:
        Path(arguments.keep).mkdir(parents=True, exist_ok=True)
        KEEP = arguments.keep
    if arguments.replay:
        return again(arguments.replay)
    for old in Path(KEEP).glob("*.json.gz") if KEEP else ():
        old.unlink()
    began = time.monotonic()

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)

    gc.disable()
    alone, together = sweep(arguments.stories.split(","), arguments.seconds, arguments.seed, progress)
    gc.enable()
    progress("the planner alone")
    planner = planner_schedules() if arguments.stories == ",".join(STORIES) else Counts()
    progress("")
    wrong = any(run.wrong for run in (*alone, *together))
    print(
        table(alone), f"several faults: {len(together)} runs, {sum(r.converged for r in together)} converged", sep="\n"
    )
    for said in planner.failures:
        print(f"tests/faults/planner_schedules.py: {said}")
    print(json.dumps(figures(alone, together, planner, time.monotonic() - began)))
    return 1 if wrong or planner.failures else 0


def again(name: str) -> int:
    """One run, with what Fly and the API server have on record of it."""

    def show(play: Play) -> None:
        for line in play.world.ledger(play.mark):
            if line.get("op") not in LISTS:
                what, about = line.get("op") or line.get("event") or "", line.get("machine") or line.get("volume") or ""
                end = f"{line.get('status', '')} {line.get('effect') or ''}"
                print(f"{line['at'] - EPOCH:9.2f} {line['kind']:<6} {what:<18} {about:<22} {end}")
        print(*(f"    {seen}" for seen in play.wire.seen[: play.first or None]), sep="\n")
        for name in play.world.inmates:
            print(name, json.dumps((play.world.store.find("Agent", name) or {}).get("status"), indent=1))

    run = replay(name, show)
    print(f"{name}: {'converged' if run.converged else 'NOT converged'}, {run.calls} calls, {run.seconds} s")
    print(*run.wrong, sep="\n")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
