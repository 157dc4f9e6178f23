"""What an agent is told: the same for the same heartbeat, repeated until it shows, nothing while paused."""

from dataclasses import replace
from typing import Any

import pytest
from world import declared, spec

from roost.agents.commands import commands
from roost.agents.view import Declared
from roost_agent.contract import Heartbeat

REVISION = "a" * 64


def beat(**fields: Any) -> Heartbeat:
    whole = {
        "status": "running",
        "machineId": "m1",
        "uptimeSeconds": 60,
        "memoryMb": 80,
        "computeVersion": "0.1.0",
        "bundleRevision": REVISION,
        "ready": True,
    }
    return Heartbeat.model_validate(whole | fields)


def told(of: Declared, heartbeat: Heartbeat, revision: str | None = REVISION) -> list[tuple[str, str]]:
    return [(c.type, c.id) for c in commands(of, revision, heartbeat)]


def wanted(**fields: Any) -> Declared:
    return declared(spec(**fields))


def test_an_agent_that_is_as_declared_is_told_nothing() -> None:
    assert told(wanted(), beat()) == []


def test_a_new_configuration_is_told_until_it_is_applied() -> None:
    for _ in range(3):
        assert told(wanted(), beat(bundleRevision="old")) == [("update_config", f"update_config:{REVISION}")]
    assert told(wanted(), beat(bundleRevision=None)) == [("update_config", f"update_config:{REVISION}")]
    assert told(wanted(), beat()) == []


def test_without_its_secrets_no_configuration_is_told() -> None:
    assert told(wanted(), beat(bundleRevision="old"), revision=None) == []


def test_a_restart_is_told_until_it_is_in_effect() -> None:
    again = wanted(restarted_at="2026-11-21T10:00:00Z")
    for before in (None, "2026-11-20T10:00:00Z"):
        [command] = commands(again, REVISION, beat(restartedAt=before))
        assert (command.type, command.id) == ("restart", "restart:2026-11-21T10:00:00Z")
        assert command.restarted_at == "2026-11-21T10:00:00Z"
    assert told(again, beat(restartedAt="2026-11-21T10:00:00Z")) == []


def test_a_configuration_goes_before_a_restart() -> None:
    again = wanted(restarted_at="now")
    assert [t for t, _ in told(again, beat(bundleRevision="old"))] == ["update_config", "restart"]


@pytest.mark.parametrize(
    ("of", "cause"),
    [
        (wanted(desired_state="Stopped"), "desiredState"),
        (wanted(revoked=True), "revoked"),
        (replace(wanted(), annotations={"roost.dev/revoked": "yes"}), "revoked"),
        (replace(wanted(), deleting=True), "deleted"),
        (replace(wanted(revoked=True, desired_state="Stopped"), deleting=True), "deleted"),
    ],
)
def test_a_stop_is_all_that_is_told(of: Declared, cause: str) -> None:
    assert told(of, beat(bundleRevision="old")) == [("stop", f"stop:{cause}")]


OPENCLAW = {"runtime": {"kind": "OpenClaw", "version": "2026.9.6"}}


def test_a_new_version_is_told_until_it_runs_or_was_tried() -> None:
    of, command = wanted(**OPENCLAW), ("update_version", "update_version:2026.9.6")
    assert told(of, beat(openclawVersion="2026.9.5")) == [command]
    assert told(of, beat(openclawVersion="2026.9.6")) == []
    assert told(of, beat(openclawVersion="2026.9.5", lastCommandId=command[1])) == []  # it went back, and says so
    assert told(of, beat()) == []  # nothing is installed yet
    [update] = commands(of, REVISION, beat(openclawVersion="2026.9.5"))
    assert update.version == "2026.9.6"


def test_the_version_of_a_command_comes_with_its_configuration() -> None:
    of = wanted(runtime={"kind": "Command", "command": ("agent",), "version": "2"})
    assert told(of, beat(openclawVersion="1")) == []


@pytest.mark.parametrize("shows", [{"status": "draining"}, {"lastCommandId": "drain:now"}], ids=str)
def test_a_drain_is_told_until_it_shows(shows: dict[str, Any]) -> None:
    of = replace(wanted(), annotations={"roost.dev/drain": "now"})
    assert told(of, beat()) == [("drain", "drain:now")]
    assert told(of, beat(**shows)) == []
    for off in ("", "false"):
        assert told(replace(of, annotations={"roost.dev/drain": off}), beat()) == []


def test_an_agent_that_is_stopping_is_told_nothing_more() -> None:
    assert told(wanted(revoked=True), beat(status="stopping")) == []


@pytest.mark.parametrize("fields", [{}, {"desired_state": "Stopped"}, {"restarted_at": "now"}], ids=str)
def test_while_paused_nothing_is_told(fields: dict[str, Any]) -> None:
    assert told(wanted(paused=True, **fields), beat(bundleRevision="old")) == []


def test_the_kill_switch_is_stronger_than_a_pause() -> None:
    assert told(wanted(paused=True, revoked=True), beat()) == [("stop", "stop:revoked")]


def test_paused_and_deleted_it_is_told_to_stop() -> None:
    assert told(replace(wanted(paused=True), deleting=True), beat()) == [("stop", "stop:deleted")]


def test_the_annotation_false_is_no_kill_switch() -> None:
    assert told(replace(wanted(), annotations={"roost.dev/revoked": "False"}), beat()) == []
    assert told(replace(wanted(), annotations={"roost.dev/revoked": ""}), beat()) == []


def test_the_longest_cause_fits_the_wire() -> None:
    """Commands are read back by the agent as they are written."""
    long = {"roost.dev/drain": "~" * 5000}
    of = replace(wanted(restarted_at="~" * 64, runtime={"kind": "OpenClaw", "version": "9" * 64}), annotations=long)
    due = commands(of, REVISION, beat(bundleRevision="old", openclawVersion="1"))
    assert [c.type for c in due] == ["update_config", "update_version", "restart", "drain"]
    for command in due:
        assert type(command).read(command.write()) == command
