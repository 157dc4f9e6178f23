"""App secrets: versions, who sees which value, and that nobody else does."""

from pathlib import Path
from typing import Any

import pytest
from flysim_client import Client, eventually, text

VALUE = "v3ry-s3cret"


async def environment(fly: Client, machine: str) -> dict[str, str]:
    """The environment of its latest boot."""
    boots = len([line for line in await fly.happened("machine_started") if machine.endswith(line["machine"])])
    log = (await fly.inside(machine))["log"]
    await eventually(lambda: text(log).count("args:") == boots)
    latest = text(log).split("args:")[-2]
    return dict(line.split("=", 1) for line in latest.splitlines() if "=" in line)


async def test_every_change_is_a_new_version(fly: Client) -> None:
    app = await fly.app()
    first = await fly.call("POST", f"{app}/secrets", {"values": {"A": VALUE, "B": "x"}})
    assert (first.status, first.json["version"]) == (200, 1)
    one = await fly.call("POST", f"{app}/secrets/C", {"value": VALUE})
    assert (one.status, one.json["version"], one.json["name"]) == (201, 2, "C")
    changed = await fly.call("POST", f"{app}/secrets", {"values": {"B": None, "D": "y"}})
    assert (changed.json["version"], [s["name"] for s in changed.json["secrets"]]) == (3, ["D"])
    assert (await fly.call("DELETE", f"{app}/secrets/D")).json == {"version": 4}
    assert (await fly.call("DELETE", f"{app}/secrets/D")).status == 404
    listed = (await fly.get(f"{app}/secrets"))["secrets"]
    assert [s["name"] for s in listed] == ["A", "C"]
    assert listed[0]["digest"] == listed[1]["digest"], "equal values"
    assert "value" not in listed[0]
    assert (await fly.call("GET", f"{app}/secrets", min_version=5)).status == 412
    assert (await fly.call("POST", f"{app}/secrets", {"values": {"no-good": "x"}})).status == 400


@pytest.mark.parametrize("how", ["create", "update"])
async def test_a_version_that_is_not_there_yet_is_refused(fly: Client, how: str) -> None:
    app = await fly.app()
    path = await fly.machine(app) if how == "update" else f"{app}/machines"
    body: dict[str, Any] = {"config": {"image": "sleeper"}, "min_secrets_version": 1}
    refused = (412, "failed_precondition: min_secrets_version not yet available")
    assert (await fly.call("POST", path, body)).error == refused
    await fly.call("POST", f"{app}/secrets", {"values": {"A": "x"}})
    assert (await fly.call("POST", path, body)).status == 200


async def test_secrets_reach_a_machine_with_its_next_version(fly: Client) -> None:
    app = await fly.app()
    await fly.call("POST", f"{app}/secrets/A", {"value": "old"})
    machine = await fly.machine(app, "tells")
    assert (await environment(fly, machine))["A"] == "old"
    await fly.call("POST", f"{app}/secrets/A", {"value": "new"})
    await fly.call("POST", f"{machine}/restart")
    await fly.wait(machine, "started")
    assert (await environment(fly, machine))["A"] == "old", "a restart boots the same version"
    await fly.call("POST", machine, {"config": {"image": "tells"}, "min_secrets_version": 2})
    await fly.wait(machine, "started")
    assert (await environment(fly, machine))["A"] == "new"
    await fly.call("POST", machine, {"config": {"image": "tells"}, "skip_secrets": True})
    await fly.wait(machine, "started")
    assert "A" not in await environment(fly, machine)


async def test_a_process_can_be_given_its_own_secrets_only(fly: Client) -> None:
    app = await fly.app()
    await fly.call("POST", f"{app}/secrets", {"values": {"TOKEN_1": "one", "TOKEN_2": "two"}})
    mine = {"secrets": [{"env_var": "TOKEN", "name": "TOKEN_2"}, {"env_var": "NOT_THERE"}], "env": {"P": "p"}}
    alone = await fly.machine(app, "tells", config={"processes": [mine | {"ignore_app_secrets": True}]})
    seen = await environment(fly, alone)
    assert (seen["TOKEN"], seen["P"]) == ("two", "p")
    assert {"TOKEN_1", "TOKEN_2", "NOT_THERE"}.isdisjoint(seen)
    both = await environment(fly, await fly.machine(app, "tells", config={"processes": [mine]}))
    assert (both["TOKEN"], both["TOKEN_1"]) == ("two", "one")


async def test_values_stay_between_fly_and_the_machine(fly: Client, tmp_path: Path) -> None:
    app = await fly.app()
    await fly.call("POST", f"{app}/secrets", {"values": {"A": VALUE}})
    machine = await fly.machine(app)
    told = [
        (await fly.call("GET", f"{app}/secrets", show_secrets="true")).body.decode(),
        str(await fly.get(machine)),
        str(await fly.sim("GET", "state")),
        str(await fly.ledger()),
    ]
    assert not [text for text in told if VALUE in text]
    written = {path.name: path.read_bytes() for path in files_below(tmp_path)}
    assert {"process.json", "ledger.jsonl"} <= written.keys()
    assert not [name for name, content in written.items() if VALUE.encode() in content]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
