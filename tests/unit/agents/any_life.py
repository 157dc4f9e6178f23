"""Any life: what people, Fly, faults and time may do to one Agent, in any order; and what must come of it.

`Course` is one such life. What happens next, and how, is chosen by whoever drives it: hypothesis, which finds short
courses, or a seeded generator, which runs through many of them. Each call and each state is judged as in `explore`;
when all is quiet, it must converge.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import world
from explore import all_fates
from world import Broken, Fate, act, delete, edit, judge, judge_settled, reached, rest, shared, sweep, think

from roost.agents.view import Act, Settled, Step, Stuck
from roost.api.agent import Phase
from roost.api.conditions import Reason

T = TypeVar("T")


class Choose(Protocol):
    """Picks one of several."""

    def __call__(self, options: Sequence[T], /) -> T: ...


LIES = (Fate.EMPTY, Fate.OLD)
CHANGES: tuple[dict[str, Any], ...] = (
    {"machine": {"memory_mb": 2048}},
    {"machine": {"cpus": 2}},
    {"machine": {"image": "other"}},
    {"volume": {"size_gb": 3}},
    {"identity": {"token_epoch": 1}},
    {"identity": {"bootstrap": "FlyOidc"}},
    {"identity": {"bootstrap": "Token"}},
    {"desired_state": "Stopped"},
    {"desired_state": "Running"},
    {"revoked": True},
    {"revoked": False},
    {"paused": True},
    {"paused": False},
    {"deletion_policy": "Retain"},
    {"restarted_at": "now"},
    {"desired_state": "Suspended"},
    {"machine": {"public": "Gateway", "autostart": True}},
    {"machine": {"public": "None", "autostart": False}},
    {"volume": {"snapshot_retention_days": 9}},
    {"placement": {"relocate": "Never"}},
    {"placement": {"relocate": "OnFailure"}},
    {"recovery": {"on_unhealthy": "Relocate"}},
    {"idle": {"after_seconds": 60, "action": "Stop", "allow_deaf": True}},
    {"idle": {"after_seconds": 0, "action": "None"}},
)
PATIENCE = 600
"""So many steps without a fault are enough to get anywhere."""


class Course:
    """`lied` since the operator began: two lists that lie in a row are more than the planner claims to bear."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.lied = self.lost = False
        kind = choose(("own app", "shared app", "retained"))
        kept = {"deletion_policy": "Retain"} if kind == "retained" else {}
        life = shared() if kind == "shared app" else world.agent(**kept)
        self.life = replace(life, regions=("iad", "ord"), says={"active_sessions": 0, "connections": 0})
        self._start, self._uids = self.life, 1

    def happens(self, what: Callable[["Course"], None]) -> None:
        """One of `HAPPENINGS`, and a look at what it has led to."""
        what(self)
        judge(self.life, self._start)

    def converges(self) -> None:
        """When nothing fails any more, it comes to where it is declared to be, and stays there without a call."""
        if self.life.declared.spec.paused and not self.life.declared.deleting:
            self.life = edit(self.life, paused=False)
        self.life = replace(world.host_returns(self.life), hushed_at=None)
        for _ in range(PATIENCE):
            judge(self.life, self._start)
            if self.life.released:
                return
            step = think(self.life)
            if isinstance(step, Settled) and self._stays_settled(step):
                return
            if self.lost and isinstance(step, Stuck) and step.reason is Reason.VOLUME_LOST:
                return
            self._on(step)
        raise Broken("GOAL", f"it does not converge: {think(self.life)}")

    # The operator.

    def goes_on(self) -> None:
        """One step, with any fate."""
        step = think(self.life)
        if not isinstance(step, Act):
            self.life = rest(self.life, step, told=self.choose((True, False)))
            return
        fate = self.choose((Fate.OK, *all_fates(step.action)))
        if fate in LIES:
            fate = Fate.OK if self.lied else fate
            self.lied = True
        self._calls(step, fate)

    def goes_well_for_a_while(self) -> None:
        for _ in range(self.choose(range(1, 13))):
            if not self.life.released:
                self._on(think(self.life))

    def operator_crashes(self) -> None:
        """Only the status knows that a volume was lost: it is not lost as well."""
        self.life = world.crash(self.life, keep_status=self.choose((True, False)) or self.lost)
        self.lied = False

    def machines_are_listed(self) -> None:
        self.life = sweep(self.life, full=self.choose((True, False)), lag=self.choose((0.0, world.LAG)))

    def time_passes(self) -> None:
        now = self.life.now + self.choose((0.5, 10.0, 95.0, 400.0))
        self.life = replace(self.life, now=now, cloud=self.life.cloud.at(now), turn=())

    # People.

    def spec_is_edited(self) -> None:
        self.life = edit(self.life, **self.choose(CHANGES))

    def it_is_deleted(self) -> None:
        self.life = delete(self.life)

    def it_is_applied_again(self) -> None:
        self._uids += 1
        self.life = world.apply_again(self.life, f"uid-{self._uids}", self.life.declared.spec)
        self.lied = self.lost = False

    # Fly.

    def its_machine_stops(self) -> None:
        self.life = world.machine_stops(self.life)

    def its_machine_is_destroyed(self) -> None:
        self.life = world.machine_destroyed(self.life)

    def its_machine_is_forgotten(self) -> None:
        self.life = world.machine_forgotten(self.life)

    def its_host_is_lost(self) -> None:
        self.lost = bool(self.life.cloud.my_volumes(world.names_of("ada").volume)) or self.lost
        self.life = world.volume_lost(self.life)

    def its_host_goes_out_of_reach(self) -> None:
        self.life = world.host_dies(self.life)

    def its_host_comes_back(self) -> None:
        self.life = world.host_returns(self.life)

    def a_snapshot_is_taken(self) -> None:
        self.life = world.snapshot(self.life)

    # The agent.

    def it_falls_silent(self) -> None:
        if self.life.hushed_at is None:
            self.life = replace(self.life, hushed_at=self.life.now)

    def it_is_heard_again(self) -> None:
        self.life = replace(self.life, hushed_at=None)

    # How.

    def _on(self, step: Step) -> None:
        if isinstance(step, Act):
            self._calls(step, Fate.OK)
        else:
            before = self.life.now
            self.life = rest(self.life, step)
            if self.life.now - before >= world.REFRESH:
                self.life = sweep(self.life)

    def _calls(self, step: Act, fate: Fate) -> None:
        self.life, ended = act(self.life, step, fate)
        if ended is not None and not self.life.released:
            self.life = rest(self.life, ended)

    def _stays_settled(self, step: Settled) -> bool:
        for _ in range(3):
            self.life = sweep(rest(self.life, step))
            if think(self.life) != step:
                return False
        if step.phase is not Phase.TERMINATING:
            judge_settled(self.life, step)
        if not reached(self.life, step):
            raise Broken("GOAL", f"it settles at {step}")
        return True


def _anytime(course: Course) -> bool:
    return True


def _there(course: Course) -> bool:
    return not course.life.released


def _staying(course: Course) -> bool:
    return not course.life.released and not course.life.declared.deleting


HAPPENINGS: dict[Callable[[Course], None], Callable[[Course], bool]] = {
    Course.goes_on: _there,
    Course.goes_well_for_a_while: _there,
    Course.operator_crashes: _there,
    Course.machines_are_listed: _anytime,
    Course.time_passes: _anytime,
    Course.spec_is_edited: _staying,
    Course.it_is_deleted: _staying,
    Course.it_is_applied_again: lambda course: course.life.released,
    Course.its_machine_stops: _anytime,
    Course.its_machine_is_destroyed: _anytime,
    Course.its_machine_is_forgotten: _anytime,
    Course.its_host_is_lost: lambda course: "volume" in course.life.status and not course.life.declared.deleting,
    Course.its_host_goes_out_of_reach: _anytime,
    Course.its_host_comes_back: _anytime,
    Course.a_snapshot_is_taken: _anytime,
    Course.it_falls_silent: _anytime,
    Course.it_is_heard_again: _anytime,
}
"""All that may happen, each with when it may."""


def possible(course: Course) -> list[Callable[[Course], None]]:
    return [what for what, may in HAPPENINGS.items() if may(course)]
