"""Thousands of seeded lives of one Agent against the planner alone: no orphan, no double, and each of them converges.

    python tests/faults/planner_schedules.py [--count 10000] [--seed 1]
    python tests/faults/planner_schedules.py --seed 1 --only 4711     # one life again, told step by step

A life is a course of `any_life`: calls that are lost, late or refused, lists that lie, crashes with and without the
status, people who edit, delete and apply again, machines and hosts that go. Life n of seed s is the same everywhere.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "unit" / "agents")]

from any_life import Course, possible  # noqa: E402 - found by the path above
from world import Broken  # noqa: E402

WEIGHTS = {Course.goes_on: 10.0, Course.goes_well_for_a_while: 2.0, Course.time_passes: 2.0}
"""The operator is at work most of the time; everything else weighs one."""
MOST_EVENTS = 30


@dataclass(slots=True)
class Counts:
    """What came of so many lives. `orphans` are breaches of S2, `doubles` of S1, `broken` of any other rule."""

    planner_schedules: int = 0
    converged: int = 0
    orphans: int = 0
    doubles: int = 0
    broken: int = 0
    seconds: float = 0.0
    failures: tuple[str, ...] = ()
    """Each as `<seed>/<n>: <rule>: <what>`."""


def one_life(seed: int, n: int, tell: Callable[[str], object] = lambda said: None) -> str:
    """Lives the n-th life of a seed; answers which rule it broke, and how, or nothing."""
    rng = random.Random(f"{seed}/{n}")
    try:
        course = Course(rng.choice)
        for _ in range(rng.randint(1, MOST_EVENTS)):
            may = possible(course)
            [what] = rng.choices(may, [WEIGHTS.get(each, 1.0) for each in may])
            tell(f"{course.life.now:8.1f} {what.__name__}")
            course.happens(what)
        tell(f"{course.life.now:8.1f} nothing fails any more")
        course.converges()
    except Broken as broken:
        return str(broken)
    return ""


def _some(seed: int, lives: range) -> list[str]:
    return [f"{seed}/{n}: {said}" for n in lives if (said := one_life(seed, n))]


def planner_schedules(count: int = 10_000, seed: int = 1, processes: int = 2) -> Counts:
    """So many seeded lives, on so many processes."""
    began, pieces = time.monotonic(), [range(at, min(at + 100, count)) for at in range(0, count, 100)]
    with ProcessPoolExecutor(processes) as pool:
        failures = [said for found in pool.map(partial(_some, seed), pieces) for said in found]
    rules = [said.split(": ")[1] for said in failures]
    return Counts(
        planner_schedules=count,
        converged=count - len(failures),
        orphans=rules.count("S2"),
        doubles=rules.count("S1"),
        broken=sum(rule not in ("S1", "S2") for rule in rules),
        seconds=round(time.monotonic() - began, 1),
        failures=tuple(failures),
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--only", type=int, help="live only the n-th life, and tell each step")
    given = options.parse_args()
    if given.only is not None:
        said = one_life(given.seed, given.only, print)
        print(said or "converged")
        return bool(said)
    counts = planner_schedules(given.count, given.seed, given.processes)
    for said in counts.failures[:20]:
        print(said)
    print(json.dumps({k: v for k, v in asdict(counts).items() if k != "failures"}))
    return counts.converged < counts.planner_schedules


if __name__ == "__main__":
    sys.exit(main())
