"""The harness of the supervisor's figures still works: each part but the real OpenClaw, small."""

import json

import pytest
import supervisor_bench as bench

SMALL = bench.Size(rounds=1, idle_seconds=0.5, idle_rounds=1, beats=1, updates=5, lives=20)
PARTS = [name for name in bench.PARTS if name != "real"]


@pytest.mark.parametrize("part", PARTS)
def test_each_part_measures_what_it_has_goals_for(part: str) -> None:
    found = bench.run([part], SMALL)
    assert {goal.figure for goal in bench.PARTS[part][1]} <= found.keys()


def test_the_last_line_tells_each_goal_and_a_missed_one_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(seconds: float) -> int:
        part = (lambda _size: {"respawn_s": seconds, "other": 7.0}, bench.PARTS["respawn"][1])
        monkeypatch.setattr(bench, "PARTS", {"respawn": part})
        monkeypatch.setattr("sys.argv", ["supervisor_bench.py", "--parts", "respawn"])
        return bench.main()

    assert measured(1.09) == 0
    assert "held" in capsys.readouterr().out
    assert measured(1.11) == 1
    *_, row, line = capsys.readouterr().out.splitlines()
    assert "MISSED" in row
    assert json.loads(line) == [
        {"figure": "respawn_s", "goal": 1.1, "got": 1.11, "met": False},
        {"figure": "other", "goal": None, "got": 7.0, "met": None},
    ]


def test_a_part_that_fails_is_a_missed_goal_and_spares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_size: bench.Size) -> bench.Figures:
        raise RuntimeError("no machine")

    goals = bench.PARTS["respawn"][1]
    monkeypatch.setattr(bench, "PARTS", {"respawn": (fails, goals), "boot": (lambda _: {"boot_s": 1.0}, ())})
    rows = bench.verdicts(["respawn", "boot"], bench.run(["respawn", "boot"], SMALL))
    assert [(row["figure"], row["got"], row["met"]) for row in rows] == [
        ("respawn_s", None, False),
        ("boot_s", 1.0, None),
    ]
