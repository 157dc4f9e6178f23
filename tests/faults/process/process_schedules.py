"""Schedules of process faults: what is done to operators, the API server and the clock while Agents live and change.

Each function tells what it did to `Account`, and raises Broken when an Agent did not become what it was asked to be.
Whether anything was lost, doubled or overlapped is not asked here but computed by `verify_figures` from Fly's ledger
and the API server's audit log alone. A process is killed where a *strike* says:

- before   the n-th call has arrived at Fly and has had no effect yet; it has it after `hold`, when the caller is dead
- after    it has had its effect, and its answer is held back
- reply    it was answered a moment ago
- write    the n-th write on an Agent was answered by the API server a moment ago

The seed decides what is done; when exactly a process is hit also depends on the machine.
"""

import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from process_bed import IMAGE, OTHER, PATIENCE_SECONDS, Bed, Broken, Tail, Wanted, writes

from roost.local.verify_figures import OPERATOR_AGENT

SHORT_LEASE: Final = {"leaseSeconds": 1, "renewSeconds": 0.7, "retrySeconds": 0.2}
"""A killed operator's successor waits this long, so it bounds how many schedules there are in a minute."""
HOLD_SECONDS: Final = 0.3
LATE_SECONDS: Final = 2.5
"""Longer than the Lease: the call has its effect when another operator is at work already."""
POINTS: Final = ("before", "after", "reply", "write")
WRONGS: Final = ("orphans", "doubles", "overlaps", "order_violations")
_LOOK_SECONDS: Final = 0.2


@dataclass(slots=True)
class Account:
    """What was done so far. `failover` is in seconds, one for each time that a replica took over."""

    say: Callable[[str], None]
    schedules: int = 0
    converged: int = 0
    failover: list[float] = field(default_factory=list)
    wrong: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in WRONGS})

    @contextmanager
    def schedule(self, what: str) -> Iterator[None]:
        """One schedule: it counts as converged when its block ends."""
        self.schedules += 1
        began = time.monotonic()
        try:
            yield
        except Broken as broken:
            raise Broken(f"{what}: {broken}") from None
        self.converged += 1
        self.say(f"{self.schedules:>4}  {time.monotonic() - began:5.1f} s  {what}")

    def judge(self, bed: Bed) -> None:
        """Takes over what the records say went wrong. Raises Broken when they say so."""
        if (report := bed.report()) is not None:
            for kind in WRONGS:
                self.wrong[kind] += getattr(report, kind)
            if not report.sound:
                raise Broken(f"the records tell: {self.wrong}")


# --- Kills at a call ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strike:
    """Where a process is hit: at the call (or write) after `skip` matching ones. `op`, `app`: shell patterns."""

    point: str
    skip: int = 0
    op: str = "*"
    app: str = "roost-*"
    hold: float = HOLD_SECONDS

    def __str__(self) -> str:
        return f"{self.point} {'write' if self.point == 'write' else self.op} {self.skip} ({self.hold:g} s)"


class Trap:
    """Waits for a strike's moment. Set before what makes the calls, to be closed."""

    def __init__(self, bed: Bed, strike: Strike) -> None:
        self._bed, self._strike, self._seen = bed, strike, 0
        self._tail: Tail = bed.audit() if strike.point == "write" else bed.tail()
        self._fault: str | None = None
        if strike.point in ("before", "after"):
            wait = {"delay" if strike.point == "before" else "hold": strike.hold}
            match = {"app": strike.app, "agent": f"{OPERATOR_AGENT}*"}
            order = {"op": strike.op, "skip": strike.skip, "times": 1, "match": match, **wait}
            self._fault = bed.sim("POST", "faults", order)["id"]

    def close(self) -> None:
        self._tail.close()
        if self._fault is not None:
            self._bed.sim("DELETE", f"faults/{self._fault}")

    def sprung(self) -> str | None:
        """The operation at which the moment came, if it did."""
        match self._strike.point:
            case "before" | "after":
                kind = "begin" if self._strike.point == "before" else "held"
                return next((line["op"] for line in self._tail.lines() if line["kind"] == kind), None)
            case "reply":
                lines = (line for line in self._tail.lines() if line["kind"] == "call" and line["app"])
                return self._count(line["op"] for line in lines if line["agent"].startswith(OPERATOR_AGENT))
            case _:
                return self._count(f"{line['verb']} of an Agent" for line in writes(self._tail.lines()))

    def _count(self, found: Iterable[str]) -> str | None:
        for what in found:
            self._seen += 1
            if self._seen > self._strike.skip:
                return what
        return None

    def hit(self, do: Callable[[], object]) -> str | None:
        """Does it when the moment comes; None when all is as asked before that."""
        deadline, look = time.monotonic() + PATIENCE_SECONDS, 0.0
        while (op := self.sprung()) is None:
            now = time.monotonic()
            if now > deadline:
                raise Broken(f"neither the goal nor {self._strike} was reached\n{self._bed.scene()}")
            if now > look:
                look = now + _LOOK_SECONDS
                self._bed.keep()
                if not self._bed.lacking():
                    return None
            time.sleep(0.003)
        do()
        return op


def leave(bed: Bed) -> None:
    """All Agents are deleted and gone."""
    for name in list(bed.made):
        bed.delete(name)
    bed.until_reached()


def kill(bed: Bed, name: str = "a") -> None:
    bed.operators[name].end(signal.SIGKILL)


CREATED, UPDATED, GROWN = Wanted(), Wanted(OTHER), Wanted(OTHER, 2)
LIFE: Final = (("create", CREATED), ("update", UPDATED), ("grow", GROWN), ("destroy", None))
CHANGES: Final = {
    "create": ("create_app", "create_volume", "set_secrets", "create_machine"),
    "update": ("update_machine",),
    "grow": ("extend_volume",),
    "destroy": ("delete_machine", "delete_volume", "delete_app"),
}


def ask(bed: Bed, name: str, wanted: Wanted | None) -> None:
    if wanted is None:
        bed.delete(name)
    else:
        bed.apply(name, wanted)


def killed_at_each_call(bed: Bed, account: Account, points: Iterable[str] = POINTS) -> None:
    """The operator is killed at every call, and after every write, of a create, an update, a growth and a destroy."""
    for point in points:
        for skip in count():
            name, hits = f"{point}-{skip}", 0
            for step, wanted in LIFE:
                with closing(Trap(bed, Strike(point, skip, app=f"roost-{name}-*"))) as trap:
                    ask(bed, name, wanted)
                    op = trap.hit(lambda: kill(bed))
                if op is not None:
                    hits += 1
                    with account.schedule(f"killed {point} call {skip} of {step}: {op}"):
                        bed.until_reached()
            if not hits:
                break


def killed_at_each_change(bed: Bed, account: Account, points: Iterable[str] = ("before", "after")) -> None:
    """The short form: killed at each call that changes something, in as few lives as there are points."""
    for point in points:
        for number in range(max(map(len, CHANGES.values()))):
            name = f"{point}-change-{number}"
            for step, wanted in LIFE:
                if number >= len(CHANGES[step]):
                    ask(bed, name, wanted)
                    bed.until_reached()
                    continue
                with account.schedule(f"killed {point} {CHANGES[step][number]}"):
                    strike = Strike(point, op=CHANGES[step][number], app=f"roost-{name}-*")
                    with closing(Trap(bed, strike)) as trap:
                        ask(bed, name, wanted)
                        if trap.hit(lambda: kill(bed)) is None:
                            raise Broken(f"{step} did without {CHANGES[step][number]}")
                    bed.until_reached()


# --- Random schedules ---------------------------------------------------------------------------------------------

_OPS: Final = ("*", "*", "create_*", "delete_*", "*_machine", "*_volume", "set_secrets", "get_*", "wait_machine")


class Assassin:
    """Does to a lone operator what a random life orders."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed

    def hit(self, rng: random.Random) -> str:
        """Answers in a word what was done."""
        kill(self._bed)
        return "killed"

    def relieve(self) -> None:
        """What was only stopped goes on."""


def random_life(bed: Bed, account: Account, seed: str, assassin: Assassin) -> None:
    """Four Agents from nothing to nothing: in each act random operations, and hits at random calls, until all is well.

    One act is one schedule, however often an operator was hit in it. Some calls are held for longer than the Lease.
    """
    rng = random.Random(seed)
    names = [f"r{seed.rpartition('/')[2]}-{letter}" for letter in "abcd"]
    for act in ("begin", "change", "change", "end"):
        hits: list[str] = []
        operations = [] if act == "end" else [(n, _any(rng, bed.made.get(n))) for n in names if rng.random() < 0.8]
        if act == "end":
            operations = [(n, None) for n in names if n in bed.made]
        strikes = [_any_strike(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        for number, strike in enumerate(strikes):
            with closing(Trap(bed, strike)) as trap:
                if number == 0:
                    for name, wanted in operations:
                        if wanted is not None or name in bed.made:
                            ask(bed, name, wanted)
                done: list[str] = []
                if (op := trap.hit(lambda: done.append(assassin.hit(rng)))) is None:  # noqa: B023 - called here
                    break
                hits.append(f"{done[0]} {strike.point} {op}")
            bed.keep()
        assassin.relieve()
        if hits:
            with account.schedule(f"{seed} {act}: {', '.join(hits)}"):
                bed.until_reached()
        else:
            bed.until_reached()


def _any(rng: random.Random, now: Wanted | None) -> Wanted | None:
    """An operation on one Agent: what it shall be next; None for gone."""
    if now is None:
        return Wanted(rng.choice((IMAGE, OTHER)))
    match rng.randrange(5):
        case 0:
            return replace(now, image=OTHER if now.image == IMAGE else IMAGE)
        case 1:
            return replace(now, size_gb=now.size_gb + 1)
        case 2:
            return replace(now, state="Stopped" if now.state == "Running" else "Running")
        case 3:
            return Wanted(rng.choice((IMAGE, OTHER)), now.size_gb + 1, rng.choice(("Running", "Stopped")))
        case _:
            return None


def _any_strike(rng: random.Random) -> Strike:
    hold = LATE_SECONDS if rng.random() < 0.2 else HOLD_SECONDS
    return Strike(rng.choice(POINTS), rng.randrange(5), rng.choice(_OPS), hold=hold)
