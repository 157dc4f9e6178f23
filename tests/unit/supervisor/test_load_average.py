"""Of the three load averages that a machine has, the one in the middle is reported."""

import os

import pytest

from roost_agent.host import load5


def test_the_load_is_that_over_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.01, 0.31, 4.0))
    assert load5() == 0.31
