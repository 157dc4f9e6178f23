"""Every way a life can go: from each moment, every fate of the call that the planner wants, and what people do.

A depth-first walk over `Life` values with at most so many faults on a way; moments that are alike are walked once. The
rules are judged by `world`: what breaks one raises `Broken`, here with the way that led to it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from world import REFRESH, Broken, Fate, Life, act, crash, judge_settled, rest, sweep, think

from roost.agents.reconcile import _remembered
from roost.agents.view import (
    Act,
    AskRoom,
    AwaitMachine,
    CreateApp,
    CreateMachine,
    CreateVolume,
    DeleteVolume,
    ExtendVolume,
    GetApp,
    GetMachine,
    ListMachines,
    ListSnapshots,
    ListVolumes,
    ReleaseFinalizer,
    Settled,
    StampMachine,
    StartMachine,
    Step,
    StoreFinalizer,
    Stuck,
    UpdateMachine,
)

Event = Callable[[Life], Life]
Next = tuple[Life, int, frozenset[int], str]

_READ = (Fate.VAIN, Fate.RATE_LIMITED)
_CHANGE = (Fate.LOST, Fate.VAIN, Fate.RATE_LIMITED, Fate.NOT_YET)


LIED = -1
"""One list that is empty by mistake on a way; two of them, apart, are what the planner takes for proof."""


def fates(action: object) -> tuple[Fate, ...]:  # noqa: C901 - one case per kind of call
    """How a call of this kind may fail."""
    match action:
        case StoreFinalizer() | ReleaseFinalizer():
            return (Fate.LOST, Fate.VAIN)
        case ListMachines() | ListVolumes():
            return (*_READ, Fate.EMPTY, Fate.OLD, Fate.UNKNOWN)
        case GetApp() | GetMachine():
            return (*_READ, Fate.UNKNOWN, Fate.UNAUTHORIZED)
        case AwaitMachine():
            return (*_READ, Fate.NOT_YET, Fate.UNKNOWN)
        case AskRoom():
            return (*_READ, Fate.CAPACITY)
        case ListSnapshots():
            return _READ
        case CreateMachine():
            return (*_CHANGE, Fate.LATE, Fate.CAPACITY, Fate.HOST_FULL, Fate.UNKNOWN)
        case CreateApp() | CreateVolume():
            return (*_CHANGE, Fate.LATE, Fate.CAPACITY, Fate.UNKNOWN)
        case UpdateMachine():
            return (*_CHANGE, Fate.CONFLICT, Fate.HOST_FULL)
        case StartMachine():
            return (*_CHANGE, Fate.HOST_FULL)
        case StampMachine():
            return (*_CHANGE, Fate.CONFLICT)
        case ExtendVolume() | DeleteVolume():
            return (*_CHANGE, Fate.UNAUTHORIZED)
        case _:
            return (*_CHANGE, Fate.UNKNOWN)


@dataclass
class Walk:
    """One exploration. `faults` and `events` bound what may happen on one way; `depth` bounds its length."""

    faults: int
    events: tuple[Event, ...] = ()
    forgets: bool = True
    """A crash may take the status along."""
    depth: int = 120
    seen: int = 0
    ends: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    """Each broken rule, with the first way that led to it."""

    def run(self, start: Life) -> None:
        known: dict[object, int] = {}
        stack: list[tuple[Life, int, frozenset[int], int, tuple]] = [(start, self.faults, frozenset(), 0, ())]
        while stack:
            life, faults, done, depth, way = stack.pop()
            key = (_key(life), done)
            if known.get(key, -1) >= faults:
                continue  # walked before, with as many faults to come
            known[key] = faults
            if depth > self.depth:
                self.broken.setdefault("it never comes to an end", _told(way))
                continue
            following = self._all_following(life, faults, done, way)
            self.ends += not following
            for after, left, happened, what in reversed(following):
                stack.append((after, left, happened, depth + 1, (way, what)))
        self.seen += len(known)

    def _all_following(self, life: Life, faults: int, done: frozenset[int], way: tuple) -> list[Next]:
        try:
            return list(self._following(life, faults, done, way))
        except Broken as broken:
            self.broken.setdefault(str(broken), _told(way))
            return []

    def _following(self, life: Life, faults: int, done: frozenset[int], way: tuple) -> Iterator[Next]:
        if life.released:
            return
        for n, event in enumerate(self.events):
            if n not in done:
                yield event(life), faults, done | {n}, event.__name__
        step = think(life)
        if isinstance(step, Act):
            yield from self._calls(life, step, faults, done, way)
        elif isinstance(step, Settled):
            yield from self._settled(life, step, faults, done)
        elif not _stays(life, step):
            yield _slept(life, step), faults, done, f"rest({step.reason})"

    def _settled(self, life: Life, step: Settled, faults: int, done: frozenset[int]) -> Iterator[Next]:
        """An end, unless the list of machines tells something new."""
        told = sweep(rest(life, step))
        if think(told) != step:
            yield told, faults, done, "rest"
            return
        judge_settled(told, step)

    def _calls(self, life: Life, step: Act, faults: int, done: frozenset[int], way: tuple) -> Iterator[Next]:
        name = type(step.action).__name__
        for fate in (Fate.OK, *(fates(step.action) if faults else ())):
            if fate is Fate.EMPTY and LIED in done:
                continue
            told = name if fate is Fate.OK else f"{name}!{fate.name}"
            try:
                after, ended = act(life, step, fate)
                if ended is not None and not after.released:
                    after = _slept(after, ended)
            except Broken as broken:
                self.broken.setdefault(str(broken), _told((way, told)))
                continue
            lied = {LIED} if fate is Fate.EMPTY else set()
            yield after, faults - (fate is not Fate.OK), done | lied, told
            if faults and fate is Fate.OK and not after.released:
                yield crash(after), faults - 1, done, f"{told}, crash"
                if self.forgets:
                    yield crash(after, keep_status=False), faults - 1, done, f"{told}, crash, status lost"


def _slept(life: Life, step: Step) -> Life:
    """After a rest; the org's machines were listed meanwhile when it was long enough."""
    after = rest(life, step)
    return sweep(after) if after.now - life.now >= REFRESH else after


def _stays(life: Life, step: Step) -> bool:
    """Stuck on what it sees, not on a call that failed, and told so before: looking again tells the same again."""
    return isinstance(step, Stuck) and life.world.failure is None and life.status.get("nextAction") == step.say


def _key(life: Life) -> object:
    d = life.declared
    return (
        repr(
            (
                life.now,
                life.cloud,
                life.world,
                _remembered(life.status, 0.0, 0.0),
                life.turn,
                life.room,
                life.started_at,
            )
        ),
        d.generation,
        d.finalizers,
        d.deleting,
        life.released,
    )


def _told(way: tuple) -> str:
    steps = []
    while way:
        way, what = way
        steps.append(what)
    return " → ".join(reversed(steps))
