"""What a person or a script must say before anything is deleted, and how arguments are refused."""

from argparse import Namespace
from datetime import timedelta

import pytest

from roost.cli import main
from roost.housekeeping import cli
from roost.housekeeping.findings import Finding, Verdict


def orphan(org: str, kind: str = "app") -> Finding:
    return Finding(kind, f"{kind}-{org}", "roost-ada", org, "default", ("team-a", "ada"), Verdict.ORPHAN)


def asked(
    *doomed: Finding, json: bool = False, yes_i_mean: str | None = None, marked: list[Finding] | None = None
) -> str:
    return cli.refusal(Namespace(json=json, yes_i_mean=yes_i_mean), list(doomed), marked or [])


@pytest.mark.parametrize("typed", ["2", "personal", " personal "])
def test_the_number_of_things_or_the_orgs_name_confirms(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    prompts: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: prompts.append(prompt) or typed)
    assert asked(orphan("personal"), orphan("personal", "volume")) == ""
    assert prompts == [
        "This deletes 1 volume and 1 app in org personal, with all data in it, for ever.\nType 2 or personal to go on: "
    ]


@pytest.mark.parametrize("typed", ["", "y", "yes", "1", "Personal"])
def test_nothing_else_does(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr("builtins.input", lambda _: typed)
    assert asked(orphan("personal"), orphan("personal", "volume")) == "Nothing was deleted."


def test_of_several_orgs_no_name_confirms_but_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "personal")
    assert asked(orphan("personal"), orphan("team")) == "Nothing was deleted."
    monkeypatch.setattr("builtins.input", lambda _: "2")
    assert asked(orphan("personal"), orphan("team")) == ""
    assert "it is about org personal and team" in asked(orphan("personal"), orphan("team"), yes_i_mean="team")


def test_a_script_confirms_by_the_org_and_is_never_asked() -> None:
    assert asked(orphan("personal"), yes_i_mean="personal") == ""
    assert "--yes-i-mean other" in asked(orphan("personal"), yes_i_mean="other")
    assert "--yes-i-mean ORG" in asked(orphan("personal"), json=True)


def test_without_a_terminal_nothing_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    assert asked(orphan("personal")) == "Nothing was deleted."


@pytest.mark.parametrize(
    ("text", "time"), [("0", timedelta()), ("7d", timedelta(days=7)), ("90m", timedelta(minutes=90))]
)
def test_a_grace_is_a_length_of_time(text: str, time: timedelta) -> None:
    assert cli.grace(text) == time


def test_what_is_no_length_of_time_is_refused_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cleanup", "--grace", "a week"])
    assert "'a week' is no length of time; write for example 7d, 12h, 30m or 0" in capsys.readouterr().err


def test_settings_that_can_not_be_read_are_no_empty_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["orphans", "--config", "/nowhere/operator.yaml"]) == 2
    assert "settings file /nowhere/operator.yaml" in capsys.readouterr().err
