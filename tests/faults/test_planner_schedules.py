"""A few of the planner's thousands of seeded lives (`make faults` runs them all), and that they would tell."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]

import planner_schedules as schedules  # noqa: E402 - found by the path above

from roost.agents import plan  # noqa: E402
from roost.agents.view import Act, AgentView, ReleaseFinalizer, Step  # noqa: E402
from roost.api.agent import Phase  # noqa: E402


def test_whatever_happens_nothing_is_left_or_doubled_and_all_converge() -> None:
    counts = schedules.planner_schedules(300, seed=7)
    assert counts.failures == ()
    assert (counts.planner_schedules, counts.converged, counts.orphans, counts.doubles) == (300, 300, 0, 0)


def test_a_life_is_the_same_whenever_it_is_lived() -> None:
    def told() -> list[str]:
        said: list[str] = []
        schedules.one_life(1, 42, said.append)
        return said

    assert told() == told()
    assert len(told()) > 1


def test_a_planner_that_lets_go_at_once_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = plan.step

    def lets_go(view: AgentView) -> Step:
        return Act(ReleaseFinalizer(), Phase.TERMINATING, "") if view.declared.deleting else real(view)

    monkeypatch.setattr(plan, "step", lets_go)
    assert any(schedules.one_life(1, n).startswith("S2: the finalizer is released") for n in range(50))
