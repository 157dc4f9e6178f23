"""Leases and metadata: two ways of writing on a machine, one guarded and one not."""

import re
import time

import pytest
from flysim_client import Client


async def test_a_lease_has_its_own_envelope(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    assert (await fly.call("GET", f"{machine}/lease")).json["message"] == "lease not found"
    taken = await fly.call("POST", f"{machine}/lease", {"ttl": 30, "description": "mine"})
    assert (taken.status, taken.json["status"]) == (201, "success")
    lease = taken.json["data"]
    assert lease["expires_at"] == pytest.approx(time.time() + 30, abs=2)
    assert (lease["description"], lease["version"]) == ("mine", (await fly.get(machine))["version"])
    assert lease["owner"].endswith("@tokens.fly.io")
    assert (await fly.get(f"{machine}/lease"))["data"] == lease

    again = await fly.call("POST", f"{machine}/lease", {"ttl": 30}, token="fm2_other")
    assert (again.status, again.json["status"], again.json["code"]) == (409, "error", "invalid")
    held = rf"machine ID {machine[-14:]} lease currently held by \S+@tokens.fly.io, expires at \S+Z"
    assert re.fullmatch(held, again.json["message"])
    refreshed = await fly.call("POST", f"{machine}/lease", nonce=lease["nonce"], ttl=60)
    assert refreshed.json["data"]["nonce"] == lease["nonce"]
    assert refreshed.json["data"]["expires_at"] > lease["expires_at"]

    assert (await fly.call("DELETE", f"{machine}/lease", nonce="wrong")).status == 409
    released = await fly.call("DELETE", f"{machine}/lease", nonce=lease["nonce"])
    assert released.json == {"status": "success", "data": {"ok": True}}
    assert (await fly.call("DELETE", f"{machine}/lease", nonce=lease["nonce"])).status == 404
    assert (await fly.call("POST", f"{machine}/lease", nonce=lease["nonce"], ttl=5)).status == 404
    assert (await fly.call("POST", f"{machine}/lease", {"ttl": 0})).status == 400


async def test_a_lease_holds_off_everybody_without_its_nonce(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    nonce = (await fly.call("POST", f"{machine}/lease", {"ttl": 60})).json["data"]["nonce"]
    update = {"config": {"image": "sleeper"}}
    calls = (
        ("POST", machine, update),
        ("POST", f"{machine}/start", None),
        ("POST", f"{machine}/stop", {}),
        ("POST", f"{machine}/restart", None),
        ("POST", f"{machine}/signal", {"signal": "SIGHUP"}),
        ("DELETE", machine, None),
    )
    for method, path, body in calls:
        for wrong in (None, "wrong"):
            status, text = (await fly.call(method, path, body, nonce=wrong)).error
            assert status == 409
            assert text.startswith(f"aborted: machine ID {machine[-14:]} lease currently held by ")
    patched = await fly.call("PATCH", f"{machine}/metadata", {"metadata": {"a": "1"}})
    assert patched.status == 204, "metadata is not guarded"
    assert (await fly.get(machine))["state"] == "started"
    assert (await fly.call("POST", machine, update, nonce=nonce)).status == 200
    await fly.wait(machine, "started")
    assert (await fly.call("DELETE", machine, nonce=nonce, force="true")).status == 200


async def test_a_machine_can_be_born_leased(fly: Client) -> None:
    app = await fly.app()
    made = (await fly.create(app, lease_ttl=30)).json
    machine = f"{app}/machines/{made['id']}"
    await fly.wait(machine, "started")
    assert (await fly.call("POST", f"{machine}/stop", {})).status == 409
    assert (await fly.call("POST", f"{machine}/stop", {}, nonce=made["nonce"])).status == 200
    row = await fly.get(machine, include_leases="true")
    assert "nonce" not in row
    assert "nonce" not in row["lease"]


# Metadata


async def test_metadata_changes_without_a_new_version(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), config={"metadata": {"a": "1", "b": "2", "c": "3"}})
    before = await fly.get(machine)
    patch = {"metadata": {"a": "x", "b": None, "c": "", "d/e": "5"}, "machine_version": before["version"]}
    assert (await fly.call("PATCH", f"{machine}/metadata", patch)).status == 204
    assert await fly.get(f"{machine}/metadata") == {"a": "x", "d/e": "5"}
    assert (await fly.call("POST", f"{machine}/metadata/f", {"value": "6"})).status == 204
    assert await fly.get(f"{machine}/metadata/f") == {"value": "6"}
    assert await fly.get(f"{machine}/metadata/d%2Fe") == {"value": "5"}
    assert (await fly.call("DELETE", f"{machine}/metadata/f")).status == 204
    assert (await fly.call("GET", f"{machine}/metadata/f")).status == 404
    after = await fly.get(machine)
    assert (after["version"], after["config"]["metadata"]) == (before["version"], {"a": "x", "d/e": "5"})
    assert await fly.happened("machine_exited") == []


async def test_metadata_against_an_older_version_is_refused(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    old = (await fly.get(machine))["version"]
    await fly.call("POST", machine, {"config": {"image": "sleeper"}})
    patch = {"metadata": {"a": "x"}, "machine_version": old}
    assert (await fly.call("PATCH", f"{machine}/metadata", patch)).status == 412
    assert await fly.get(f"{machine}/metadata") == {}


async def test_the_older_way_to_patch_does_not_replace_either(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), config={"metadata": {"a": "1"}})
    assert (await fly.call("PUT", f"{machine}/metadata", {"metadata": {"b": "2"}})).status == 204
    assert await fly.get(f"{machine}/metadata") == {"a": "1", "b": "2"}
