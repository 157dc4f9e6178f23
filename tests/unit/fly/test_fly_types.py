"""Answers are read as Fly gives them, and never as something that they do not say."""

from typing import Any

import pytest
from fly_samples import CONFIG, MACHINE, ROW, VOLUME
from hypothesis import given
from hypothesis import strategies as st

from roost.fly import types


def test_a_machine() -> None:
    machine = types.parse_machine("ag-1", MACHINE)

    assert (machine.app, machine.id, machine.state) == ("ag-1", "3d8d413b29d089", "started")
    assert (machine.image, machine.image_digest) == ("roost/agent:0.1.0", "sha256:ab")
    assert (machine.host_status, machine.volume_id, machine.config) == ("ok", "vol_1", CONFIG)
    assert machine.metadata["roost_name"] == "ada"
    assert machine.last_exit == types.Exit(code=2, signal=None, oom_killed=False, requested=False, at="2026-11-01")
    assert machine.exit_note == "exited with code 2"


def test_a_machine_whose_host_is_lost_has_no_config_to_send_back() -> None:
    lost = {**MACHINE, "host_status": "unreachable", "incomplete_config": CONFIG, "events": []}
    del lost["config"]

    machine = types.parse_machine("ag-1", lost)

    assert (machine.host_status, machine.config) == ("unreachable", None)
    assert (machine.volume_id, machine.metadata["roost_name"]) == ("vol_1", "ada")
    assert machine.exit_note == ""


def test_checks_and_cordon_without_what_fly_adds_for_itself() -> None:
    checks = [
        {"name": "servicecheck-00-tcp-8080", "status": "critical", "output": "refused", "updated_at": "x"},
        {"name": "bg_deployments_compat-1", "status": "passing"},
    ]
    machine = types.parse_machine("a", {**MACHINE, "checks": checks, "cordoned": True})
    assert machine.checks == (types.Check("servicecheck-00-tcp-8080", "critical", "refused"),)
    assert machine.cordoned
    assert (types.parse_machine("a", MACHINE).checks, types.parse_machine("a", MACHINE).cordoned) == ((), False)


def test_what_a_volume_does_not_tell_is_unknown() -> None:
    bare, told = types.parse_volume("a", VOLUME), {"snapshot_retention": 7, "bytes_used": 5, "bytes_total": 9}
    assert (bare.snapshot_retention, bare.bytes_used, bare.bytes_total, bare.host_ok) == (None, None, None, True)
    full = types.parse_volume("a", {**VOLUME, **told, "host_status": "unreachable"})
    assert (full.snapshot_retention, full.bytes_used, full.bytes_total, full.host_ok) == (7, 5, 9, False)


def test_a_machine_as_a_row_is_the_row_that_the_org_tells() -> None:
    assert types.row_of(types.parse_machine("ag-1", MACHINE)).id == ROW["id"]
    assert (
        types.row_of(types.parse_machine("ag-1", {**MACHINE, "config": ROW["config"]}))
        == (types.parse_machines_page({"machines": [ROW]}).rows[0])
    )


def test_an_old_machine_without_version_or_config() -> None:
    machine = types.parse_machine("a", {"id": "1", "state": "destroyed", "instance_id": "01J", "events": None})
    assert (machine.version, machine.host_status, machine.metadata, machine.volume_id) == ("01J", "unknown", {}, None)


@pytest.mark.parametrize(
    ("event", "note"),
    [
        ({"exit_event": {}}, "exited with code 0"),
        ({"exit_event": {"signal": 9}}, "killed by signal 9"),
        ({"exit_event": {"oom_killed": True, "signal": 9}}, "killed: out of memory"),
        ({"MonitorEvent": {"exit_event": {"exit_code": 3}}}, "exited with code 3"),
        ({"exit_event": {"exit_code": "many", "signal": True}}, "exited with code 0"),
        (None, ""),
        ("?", ""),
        ({"MonitorEvent": 5}, ""),
    ],
)
def test_how_a_process_ended(event: Any, note: str) -> None:
    machine = types.parse_machine("a", {**MACHINE, "events": [{"type": "exit", "request": event}]})
    assert machine.exit_note == note


def test_a_page_of_an_org() -> None:
    page = types.parse_machines_page({"machines": [ROW], "next_cursor": "", "error_regions": ["ams"]})
    row = page.rows[0]
    assert (row.app, row.id, row.image, row.metadata) == (
        "ag-1",
        MACHINE["id"],
        "roost/agent:0.1.0",
        {"roost_name": "ada"},
    )
    assert (page.error_regions, page.last_updated_at) == (("ams",), "")
    assert types.parse_machines_page({"machines": None}).rows == ()


def test_volumes() -> None:
    assert types.parse_volume("a", VOLUME).attached_machine_id is None
    assert types.parse_volume("a", {**VOLUME, "attached_machine_id": "e1"}).attached_machine_id == "e1"
    page = types.parse_volumes_page({"volumes": [{**VOLUME, "app_name": "ag-1"}], "next_cursor": "c"})
    assert (page.volumes[0].app, page.next_cursor) == ("ag-1", "c")


@pytest.mark.parametrize(
    ("state", "deleted"),
    [
        ("created", False),
        ("creating", False),
        ("hydrating", False),
        ("extending", False),
        ("scheduling_destroy", True),
        ("pending_destroy", True),
        ("destroying", True),
        ("destroyed", True),
        ("waiting_for_detach", True),
        ("fork_cleanup", True),
    ],
)
def test_a_volume_on_its_way_out_is_still_listed(state: str, deleted: bool) -> None:
    assert types.parse_volume("a", {**VOLUME, "state": state}).deleted is deleted


def test_the_version_of_secrets_under_both_names() -> None:
    assert types.parse_secrets_version({"version": 3, "Version": 2}) == 3
    assert types.parse_secrets_version({"Version": 2}) == 2


def test_a_wait_for_one_state_needs_no_state_in_the_answer() -> None:
    assert types.parse_wait({"ok": True}, ("started",)).state == "started"
    assert types.parse_wait({"ok": True}, ("started", "failed")).state == ""
    assert types.parse_wait({"state": "failed", "version": "01J"}, ("started", "failed")) == types.WaitResult(
        "failed", "01J"
    )


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: types.parse_machines_page({}),
        lambda: types.parse_machines_page({"error": "?"}),
        lambda: types.parse_machines_page([]),
        lambda: types.parse_volumes_page({"machines": []}),
        lambda: types.parse_machines("a", {}),
        lambda: types.parse_machines("a", "[]"),
        lambda: types.parse_machine("a", {**MACHINE, "id": ""}),
        lambda: types.parse_machine("a", {**MACHINE, "state": None}),
        lambda: types.parse_machine("a", {**MACHINE, "region": 5}),
        lambda: types.parse_machine("a", {**MACHINE, "config": {**CONFIG, "metadata": {"roost_name": 5}}}),
        lambda: types.parse_volume("a", {**VOLUME, "size_gb": "10"}),
        lambda: types.parse_volume("a", {**VOLUME, "size_gb": True}),
        lambda: types.parse_app({"name": "x"}),
        lambda: types.parse_app({"name": "x", "organization": {}}),
        lambda: types.parse_extended("a", VOLUME),
        lambda: types.parse_secrets_version({"version": "3"}),
    ],
)
def test_what_lacks_what_it_must_have_is_not_read_as_empty(attempt: Any) -> None:
    with pytest.raises(types.Malformed):
        attempt()


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from([*MACHINE, *VOLUME, *CONFIG, "machines"]), x),
)


@given(st.dictionaries(st.sampled_from([*ROW, *MACHINE, *VOLUME]), JSONS), JSONS)
def test_any_json_is_read_or_malformed(changes: dict[str, Any], other: Any) -> None:
    for parse, sample in (
        (lambda data: types.parse_machine("a", data), MACHINE),
        (lambda data: types.parse_volume("a", data), VOLUME),
        (lambda data: types.parse_machines_page({"machines": [data]}), ROW),
        (types.parse_machines_page, {"machines": []}),
        (types.parse_app, {"name": "x", "organization": {"slug": "y"}}),
        (types.parse_secrets_version, {"version": 1}),
        (lambda data: types.parse_wait(data, ("started",)), {}),
    ):
        for data in (sample | changes, other):
            try:
                parse(data)
            except types.Malformed:
                continue
