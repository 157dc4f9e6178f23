"""The whole story, as `make demo ONCE=1` plays it, and the figures that it must keep."""

from pathlib import Path

from roost.local import binaries
from roost.local.stack import Stack
from roost.local.story import Stage, tell


def test_an_agent_is_made_changed_broken_healed_stopped_scaled_and_gone_without_a_trace(tmp_path: Path) -> None:
    with Stack(tmp_path / "stack", say=print) as stack:
        figures = tell(Stage(stack, binaries.find(say=print).kubectl, print))
    print(figures)
    assert figures["k8s_writes_converge"] <= 3
    assert figures["k8s_writes_life"] <= 4
    assert figures["fly_calls_converge"] <= 5
    assert figures["fly_calls_destroy"] <= 7
    assert figures["idle_writes"] == 0
    assert figures["idle_fly_calls"] == 0
    assert (figures["orphans"], figures["doubles"], figures["order_violations"]) == (0, 0, 0)
