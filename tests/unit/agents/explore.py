"""Every way a life can go: from each state, every fate of the call that the planner wants, and what people do.

A depth-first walk over `Life` values with at most so many faults on a way; states that are alike are walked once. Each
call is judged as it is made, and each state that it leads to (S1 to S5: `world.judge`). From each state, the way on
which nothing fails any more must get to the goal (`world.reached`). What breaks a rule is kept with the way to it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from world import (
    REFRESH,
    Broken,
    Fate,
    Life,
    act,
    crash,
    judge,
    judge_settled,
    reached,
    rest,
    sweep,
    think,
)

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
    GetVolume,
    ListMachines,
    ListSnapshots,
    ListVolumes,
    ReleaseFinalizer,
    RestartMachine,
    Settled,
    StampMachine,
    StartMachine,
    Step,
    StoreFinalizer,
    Stuck,
    UpdateMachine,
)
from roost.api.conditions import Reason

Event = Callable[[Life], Life]
Next = tuple[Life, int, frozenset[int], str, bool]
"""A state that may follow: with so many faults left, what has happened, told in a word; and whether all went well."""

_READ = (Fate.VAIN, Fate.RATE_LIMITED)
_CHANGE = (Fate.LOST, Fate.VAIN, Fate.RATE_LIMITED, Fate.NOT_YET)


_ANY = (Fate.UNAUTHORIZED, Fate.FORBIDDEN, Fate.INVALID, Fate.RATE_LIMITED, Fate.VAIN, Fate.UNKNOWN)
_ANY_CHANGE = (*_ANY, Fate.LOST, Fate.NOT_YET, Fate.CONFLICT)
_ANY_PLACE = (Fate.CAPACITY, Fate.HOST_FULL, Fate.QUOTA)

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


def all_fates(action: object) -> tuple[Fate, ...]:
    """Every way in which Fly has been seen to refuse or to fail, for every kind of call."""
    match action:
        case StoreFinalizer() | ReleaseFinalizer():
            return fates(action)
        case ListMachines() | ListVolumes():
            return (*_ANY, Fate.EMPTY, Fate.OLD)
        case GetApp() | GetMachine() | GetVolume() | ListSnapshots():
            return _ANY
        case AwaitMachine():
            return (*_ANY, Fate.NOT_YET)
        case AskRoom():
            return (*_ANY, Fate.CAPACITY)
        case CreateApp() | CreateVolume() | CreateMachine():
            return (*_ANY_CHANGE, *_ANY_PLACE, Fate.LATE)
        case UpdateMachine() | StartMachine() | RestartMachine():
            return (*_ANY_CHANGE, *_ANY_PLACE)
        case _:
            return _ANY_CHANGE


@dataclass
class Walk:
    """One exploration. `faults` and `events` bound what may happen on one way; `depth` bounds its length."""

    faults: int
    events: tuple[Event, ...] = ()
    forgets: bool = True
    """A crash may take the status along."""
    fates: Callable[[object], tuple[Fate, ...]] = fates
    helpless: frozenset[Reason] = frozenset()
    """Reasons for which only a person can help: stuck for one of them counts as the goal."""
    depth: int = 120
    states: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """How often each phase, or reason to be stuck, was an end."""
    broken: dict[str, str] = field(default_factory=dict)
    """Each broken rule, with the first way that led to it."""

    def run(self, start: Life) -> None:
        walked: dict[tuple[bytes, frozenset[int]], int] = {}
        self._calm: dict[bytes, bytes] = {}
        self._goals: dict[bytes, bool] = {}
        self._ways: dict[bytes, tuple] = {}
        stack: list[tuple[Life, bytes, int, frozenset[int], int, tuple]] = [
            (start, _key(start), self.faults, frozenset(), 0, ())
        ]
        while stack:
            life, key, faults, done, depth, way = stack.pop()
            if walked.get((key, done), -1) >= faults:
                continue  # walked before, with as many faults to come
            walked[key, done] = faults
            if key not in self._ways:
                self._ways[key] = way
                self._judged(life, start, way)
            if depth > self.depth:
                continue  # no way to the goal is known from here
            for after, left, happened, what, well in reversed(self._all_following(life, key, faults, done, way)):
                then = _key(after)
                if well:
                    self._calm[key] = then
                stack.append((after, then, left, happened, depth + 1, (way, what)))
        self.states += len(self._ways)
        self._judge_goal()

    def _judged(self, life: Life, start: Life, way: tuple) -> None:
        try:
            judge(life, start)
        except Broken as broken:
            self.broken.setdefault(str(broken), _told(way))

    def _judge_goal(self) -> None:
        """GOAL, of every state that was seen: where the calm way from it ends. Each state is decided once."""
        for seen in self._ways:
            state, way = seen, []
            while state not in self._goals and state in self._calm:
                way.append(state)
                self._goals[state] = False  # until it is known better: a way that comes back to itself has no goal
                state = self._calm[state]
            good = self._goals.get(state, False)
            self._goals.update(dict.fromkeys(way, good))
            if not good:
                self.broken.setdefault(
                    "GOAL: when nothing fails any more, it does not get there", _told(self._ways[seen])
                )

    def _all_following(self, life: Life, key: bytes, faults: int, done: frozenset[int], way: tuple) -> list[Next]:
        try:
            return list(self._following(life, key, faults, done, way))
        except Broken as broken:
            self.broken.setdefault(str(broken), _told(way))
            return []

    def _following(self, life: Life, key: bytes, faults: int, done: frozenset[int], way: tuple) -> Iterator[Next]:
        if life.released:
            self._end(key, "released", good=reached(life, None))
            return
        for n, event in enumerate(self.events):
            if n not in done:
                yield event(life), faults, done | {n}, event.__name__, False
        step = think(life)
        if isinstance(step, Act):
            yield from self._calls(life, step, faults, done, way)
        elif isinstance(step, Settled):
            yield from self._settled(life, key, step, faults, done)
        elif _stays(life, step):
            self._end(key, step.reason, good=step.reason in self.helpless)
        else:
            yield _slept(life, step), faults, done, f"rest({step.reason})", True

    def _settled(self, life: Life, key: bytes, step: Settled, faults: int, done: frozenset[int]) -> Iterator[Next]:
        """An end, unless the list of machines tells something new."""
        told = sweep(rest(life, step))
        if think(told) != step:
            yield told, faults, done, "rest", True
            return
        judge_settled(told, step)
        self._end(key, step.phase, good=reached(life, step))

    def _end(self, key: bytes, told: str, *, good: bool) -> None:
        self.ends[told] += 1
        self._goals[key] = good

    def _calls(self, life: Life, step: Act, faults: int, done: frozenset[int], way: tuple) -> Iterator[Next]:
        name = type(step.action).__name__
        for fate in (Fate.OK, *(self.fates(step.action) if faults else ())):
            if fate is Fate.EMPTY and LIED in done:
                continue
            well = fate is Fate.OK
            told = name if well else f"{name}!{fate.name}"
            try:
                after, ended = act(life, step, fate)
                if ended is not None and not after.released:
                    after = _slept(after, ended)
                if after.declared.spec is not life.declared.spec:
                    raise Broken("S5", "the spec was written")
            except Broken as broken:
                self.broken.setdefault(str(broken), _told((way, told)))
                continue
            lied = {LIED} if fate is Fate.EMPTY else set()
            yield after, faults - (not well), done | lied, told, well
            if faults and well and not after.released:
                yield crash(after), faults - 1, done, f"{told}, crash", False
                if self.forgets:
                    yield crash(after, keep_status=False), faults - 1, done, f"{told}, crash, status lost", False


def _slept(life: Life, step: Step) -> Life:
    """After a rest; the org's machines were listed meanwhile when it was long enough."""
    after = rest(life, step)
    return sweep(after) if after.now - life.now >= REFRESH else after


def _stays(life: Life, step: Step) -> bool:
    """Stuck on what it sees, not on a call that failed, and told so before; looking again tells the same again."""
    if not isinstance(step, Stuck) or life.world.failure is not None or life.status.get("nextAction") != step.say:
        return False
    life = _slept(life, step)
    while isinstance(again := think(life), Act):
        life, ended = act(life, again)
        if ended is not None:
            return False
    return again == step


def _key(life: Life) -> bytes:
    """A digest of all that decides how a life goes on."""
    d, told = life.declared, _remembered(life.status, 0.0, 0.0)
    meta = (d.generation, d.finalizers, d.deleting, life.released, life.started_at)
    whole = (life.now, life.cloud, life.world, told, life.turn, life.room, meta)
    return hashlib.blake2b(repr(whole).encode(), digest_size=16).digest()


def _told(way: tuple) -> str:
    steps = []
    while way:
        way, what = way
        steps.append(what)
    return " → ".join(reversed(steps))
