"""The endpoint's figures on a machine with two cores: `make bench-endpoint` (PARTS=… AGENTS=… CHANGES=…).

The server has one core for itself, all who call it share the others. What is measured and how is in
docs/reference/endpoint-figures.md. Progress goes to standard error; then come a table of goals and one line of JSON.
The exit code is 1 when a goal is missed, or a part that was asked for could not be measured.
"""

import argparse
import datetime
import gc
import json
import os
import resource
import ssl
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from bench_change import measure
from bench_client import Caller
from bench_hostile import hostile
from bench_parts import Rate, hold, rate, server

from roost.local import credentials

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it. `longpolls` and `known` are Agents in memory, `fleet` those of the real stack."""

    longpolls: int = 10_000
    known: int = 10_000
    callers: int = 200
    seconds: float = 10.0
    round_seconds: float = 30.0
    """For how long held heartbeats are looked at: more than one wait."""
    fleet: int = 1_000
    changes: int = 200
    healthy: int = 1_000
    attack: float = 1.0
    attack_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and the bound it must not pass; None: it is only told."""

    figure: str
    what: str
    bound: float | None = None
    at_least: bool = False

    def row(self, figures: Figures) -> tuple[str, str, str, str]:
        value = figures.get(self.figure)
        sign = "" if self.bound is None else "≥ " if self.at_least else "≤ "
        bound = "" if self.bound is None else f"{sign}{self.bound:,g}"
        verdict = "" if self.bound is None else "held" if self.held(figures) else "MISSED"
        return self.what, "not measured" if value is None else f"{value:,.1f}", bound, verdict

    def held(self, figures: Figures) -> bool:
        value = figures.get(self.figure)
        if self.bound is None:
            return True
        return value is not None and (value >= self.bound if self.at_least else value <= self.bound)


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement, and what is demanded of it."""

    run: Callable[[Size, int], Figures]
    goals: tuple[Goal, ...]


# --- Parts -------------------------------------------------------------------------------------------------------


async def longpoll(size: Size, core: int) -> Figures:
    with server(size.longpolls, core) as one:
        bare = await hold(one, size.round_seconds / 6, say, bare=True)
    with server(size.longpolls, core) as one:
        held = await hold(one, size.round_seconds, say)
    return {
        "longpolls": size.longpolls,
        "longpoll_rss_mb_over_base": held.mb,
        "longpoll_heard_mb": held.heard_mb,
        "longpoll_kb_each": held.kb_each,
        "longpoll_bare_kb_each": bare.kb_each,
        "longpoll_lost": held.lost,
    }


async def longpoll_tls(size: Size, core: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        made = credentials.make(Path(folder) / "tls", now=datetime.datetime.now(datetime.UTC))
        trust = ssl.create_default_context(cafile=str(made.ca_file))
        pair = (f"--certificate={made.serving_certificate}", f"--key={made.serving_key}")
        with server(size.longpolls, core, *pair) as one:
            held = await hold(one, size.round_seconds, say, tls=trust)
    return {
        "longpolls_tls": size.longpolls,
        "longpoll_tls_rss_mb_over_base": held.mb,
        "longpoll_tls_kb_each": held.kb_each,
        "longpoll_tls_connect_s": held.seconds_to_connect,
        "longpoll_tls_lost": held.lost,
    }


async def calls(size: Size, core: int) -> Figures:
    with server(size.known, core, "--unlimited") as one:
        bare = await rate(one, one.bare, Caller.beat, 200, size.callers, size.seconds)
        beats = await rate(one, one.address, Caller.beat, 200, size.callers, size.seconds)
        bundles = await rate(one, one.address, Caller.fetch, 304, size.callers, size.seconds)
    for what, found in (("bare answers", bare), ("heartbeats", beats), ("unchanged bundles", bundles)):
        say(f"calls: {found.per_second:,.0f} {what} a second, {found.cpu_us:.0f} µs CPU each")
    return {
        **_rate("heartbeat", "heartbeats", beats),
        **_rate("bundle_304", "bundle_304", bundles),
        **_rate("bare", "bare", bare),
        "heartbeat_of_bare": beats.cpu_us / bare.cpu_us,
    }


def change(size: Size, core: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        return measure(Path(folder) / "stack", size.fleet, size.changes, core, say)


async def attack(size: Size, core: int) -> Figures:
    with server(size.healthy + 1, core) as one:
        return await hostile(one, size.attack, size.attack_seconds, say)


def _rate(each: str, many: str, found: Rate) -> Figures:
    return {
        f"{many}_per_s": found.per_second,
        f"{many}_per_cpu_s": found.per_cpu_second,
        f"{many}_core_share": found.per_second / found.per_cpu_second,
        f"{each}_cpu_us": found.cpu_us,
        f"{many}_refused": found.refused,
    }


def _looped(part: Callable[[Size, int], Coroutine[Any, Any, Figures]]) -> Callable[[Size, int], Figures]:
    return lambda size, core: uvloop.run(part(size, core))


PARTS = {
    "longpoll": Part(_looped(longpoll), (Goal("longpoll_rss_mb_over_base", "memory of held heartbeats, MB", 170),)),
    "tls": Part(
        _looped(longpoll_tls), (Goal("longpoll_tls_rss_mb_over_base", "memory of held heartbeats over TLS, MB"),)
    ),
    "calls": Part(
        _looped(calls),
        (
            Goal("heartbeats_per_s", "heartbeats a second", 5_000, at_least=True),
            Goal("bundle_304_per_s", "unchanged bundles a second", 5_000, at_least=True),
        ),
    ),
    "change": Part(change, (Goal("change_p99_ms", "from a change to the new bundle, ms, p99", 300),)),
    "hostile": Part(
        _looped(attack),
        (
            Goal("hostile_p99_ms", "heartbeat beside hostile load, ms, p99", 100),
            Goal("lost", "heartbeats lost beside hostile load", 0),
            Goal("hostile_rss_max_mb", "memory under hostile load, MB (the Deployment's limit)", 536),
        ),
    ),
}
LAST = (
    "longpolls",
    "longpoll_rss_mb_over_base",
    "heartbeats_per_s",
    "bundle_304_per_s",
    "change_p99_ms",
    "hostile_p99_ms",
    "lost",
)
"""These come first in the last line, None when not measured."""


# --- All of it ---------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(parts: Sequence[str], size: Size) -> Figures:
    """The figures of these parts; one that fails is told and left out."""
    figures: Figures = dict.fromkeys(LAST)
    with _cores() as core:
        for name in parts:
            say(f"{name} …")
            try:
                figures |= PARTS[name].run(size, core)
            except Exception:  # the others are worth measuring all the same
                traceback.print_exc()
    return {k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}


@contextmanager
def _cores() -> Iterator[int]:
    """The server's core; meanwhile this process, and all it starts, leave it alone.

    It may open as many files as the system lets it, and collects no garbage: that would be told as the server's delay.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])
    else:
        say("one core only: the callers take from the server what it needs")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.disable()
    try:
        yield cores[0]
    finally:
        gc.enable()
        os.sched_setaffinity(0, cores)


def main() -> int:
    usual = Size()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="default %(default)s")
    parser.add_argument("--agents", type=int, default=usual.longpolls, help="in memory, default %(default)s")
    parser.add_argument("--changes", type=int, default=usual.changes, help="default %(default)s")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"--parts: there is no {unknown[0]!r}; there are {', '.join(PARTS)}")
    figures = run(parts, Size(longpolls=options.agents, known=options.agents, changes=options.changes))
    goals = [goal for name in parts for goal in PARTS[name].goals]
    for what, value, bound, verdict in [goal.row(figures) for goal in goals]:
        print(f"{what:<58} {value:>14} {bound:>9}  {verdict}")
    print(json.dumps(figures))
    return 0 if all(goal.held(figures) for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
