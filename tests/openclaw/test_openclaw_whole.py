"""The whole path, as `make demo OPENCLAW=1 ONCE=1` plays it: from `kubectl apply` to the answer in Telegram."""

from collections.abc import Callable
from pathlib import Path

import pytest

from roost.local import binaries
from roost.local.fakes.background import Background
from roost.local.openclaw_story import Cast, tell
from roost.local.stack import Stack
from roost.local.story import Stage

pytestmark = [pytest.mark.openclaw_full, pytest.mark.timeout(600)]


def test_an_openclaw_is_applied_reached_changed_killed_and_gone(
    opt: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with Stack(tmp_path / "stack", openclaw=opt, say=print) as stack, Background() as fakes:
        figures = tell(Cast(Stage(stack, binaries.find(say=print).kubectl, print), fakes))
    print(figures)
    for name in ("apply_to_ready_s", "apply_to_answer_s", "supervisor_rss_mb"):
        record_property(name, figures[name])
    assert (figures["orphans"], figures["doubles"], figures["order_violations"]) == (0, 0, 0)
