"""The machine's own figures, held to samples of what kernels print."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roost_agent import host
from roost_agent.host import Traffic, disk, filled, load5, parsed, since, traffic

SAMPLES = json.loads((Path(__file__).parent / "data/host-metrics-samples.json").read_text())
HEAD, _ = SAMPLES["net_dev"][0]["text"].split("    lo:")


@pytest.mark.parametrize("sample", SAMPLES["net_dev"], ids=lambda s: s["name"])
def test_traffic_is_that_of_eth0_or_of_all_but_lo(sample: dict[str, Any]) -> None:
    assert parsed(sample["text"]) == Traffic(sample["in"], sample["out"])


@pytest.mark.parametrize("sample", SAMPLES["deltas"])
def test_a_counter_that_began_anew_counts_from_nothing(sample: dict[str, Any]) -> None:
    assert [since(*pair) for pair in zip(sample["prev"], sample["cur"], strict=True)] == sample["delta"]


@settings(deadline=None)
@given(st.integers(0, 2**64), st.integers(0, 2**64))
@example(7, 7)
def test_no_delta_is_negative(before: int, now: int) -> None:
    assert 0 <= since(before, now) <= now


def test_a_line_that_makes_no_sense_is_passed_over() -> None:
    good = "  ens5:    4100 1 0 0 0 0 0 0     5200 1 0 0 0 0 0 0\n"
    for odd in ("eth0:", "eth0: 1 2 3", "eth0: x 1 0 0 0 0 0 0 5200", "eth0 52100", ":::", "eth0: 1 1 0 0 0 0 0 0 -5"):
        assert parsed(f"{HEAD}{odd}\n{good}") == Traffic(4100, 5200)


def test_a_figure_may_touch_its_interfaces_name() -> None:
    """As older kernels print it when the figure is long."""
    assert parsed(f"{HEAD}  eth0:52100 1 0 0 0 0 0 0 61200 1 0 0 0 0 0 0\n") == Traffic(52100, 61200)


@settings(deadline=None)
@given(st.text())
def test_any_text_has_some_meaning(text: str) -> None:
    assert parsed(text).received >= 0


@pytest.mark.parametrize("sample", SAMPLES["df"])
def test_what_the_agent_can_not_have_is_used(sample: dict[str, Any]) -> None:
    available, size = map(int, sample["text"].splitlines()[1].split())
    # given: the same file system as statvfs describes it, with blocks that only root may have
    seen = filled(SimpleNamespace(f_frsize=4096, f_blocks=size // 4096, f_bavail=available // 4096))
    assert (seen.used_bytes, seen.total_bytes) == (sample["used"], sample["total"])


def test_a_file_system_that_promises_more_than_it_has_is_empty() -> None:
    assert filled(SimpleNamespace(f_frsize=1, f_blocks=10, f_bavail=11)).used_bytes == 0


def test_this_machine_has_figures(tmp_path: Path) -> None:
    seen, full = traffic(), disk(tmp_path)
    assert seen is not None
    assert full is not None
    assert 0 < full.used_bytes <= full.total_bytes
    assert load5() == pytest.approx(os.getloadavg()[1], abs=1)


def test_what_can_not_be_told_is_not_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unobtainable() -> None:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr(os, "getloadavg", unobtainable)
    monkeypatch.setattr(host, "_NET_DEV", tmp_path / "absent")
    assert (traffic(), disk(tmp_path / "absent"), load5()) == (None, None, 0.0)
