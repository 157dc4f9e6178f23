"""The harness of the endpoint's figures still works: each part that needs no cluster, small, for its counts alone."""

import json

import endpoint_bench as bench
import pytest

SMALL = bench.Size(
    longpolls=20,
    known=20,
    callers=4,
    seconds=0.3,
    round_seconds=0.5,
    fleet=0,
    changes=0,
    healthy=20,
    attack=0.02,
    attack_seconds=1.0,
)


def test_held_heartbeats_are_held_and_none_is_refused() -> None:
    found = bench.run(["longpoll"], SMALL)
    assert (found["longpolls"], found["longpoll_lost"]) == (20, 0)
    assert found["longpoll_rss_mb_over_base"] is not None


def test_held_heartbeats_are_held_over_tls() -> None:
    found = bench.run(["tls"], SMALL)
    assert (found["longpolls_tls"], found["longpoll_tls_lost"]) == (20, 0)


def test_heartbeats_and_unchanged_bundles_are_counted_and_none_is_refused() -> None:
    found = bench.run(["calls"], SMALL)
    assert found["heartbeats_per_s"] > 0
    assert found["bundle_304_per_s"] > 0
    assert (found["heartbeats_refused"], found["bare_refused"], found["bundle_304_refused"]) == (0, 0, 0)


def test_healthy_agents_beat_beside_every_way_of_attack() -> None:
    found = bench.run(["hostile"], SMALL)
    assert found["lost"] == 0
    assert found["hostile_beats"] >= 20
    assert len(found["hostile_attacks"]) == 8
    assert set(found["hostile_refused"]) == {"403"}


def test_the_last_line_begins_with_what_is_asked_of_it_and_tells_a_missed_goal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(figure: float) -> int:
        part = bench.Part(lambda _size, _core: {"change_p99_ms": figure}, bench.PARTS["change"].goals)
        monkeypatch.setattr(bench, "PARTS", {"change": part})
        monkeypatch.setattr("sys.argv", ["endpoint_bench.py", "--parts", "change"])
        return bench.main()

    assert measured(299.0) == 0
    assert "held" in capsys.readouterr().out
    assert measured(301.0) == 1
    *_, row, line = capsys.readouterr().out.splitlines()
    assert "MISSED" in row
    assert tuple(json.loads(line)) == bench.LAST
    assert json.loads(line)["change_p99_ms"] == 301.0


def test_a_part_that_fails_is_a_missed_goal_and_spares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_size: bench.Size, _core: int) -> bench.Figures:
        raise RuntimeError("no server")

    goals = bench.PARTS["change"].goals
    parts = {"change": bench.Part(fails, goals), "calls": bench.Part(lambda *_: {"bundle_304_per_s": 1.0}, ())}
    monkeypatch.setattr(bench, "PARTS", parts)
    found = bench.run(["change", "calls"], SMALL)
    assert found["bundle_304_per_s"] == 1.0
    assert not goals[0].held(found)
