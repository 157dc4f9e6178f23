"""IP addresses of apps: assigned, shown, released, and gone with the app."""

import ipaddress

import pytest
from flysim_client import Client


async def test_addresses_are_assigned_shown_and_released(fly: Client) -> None:
    app = await fly.app()
    made = {}
    for kind, version in (("v4", 4), ("v6", 6), ("shared_v4", 4), ("private_v6", 6)):
        reply = await fly.call("POST", f"{app}/ip_assignments", {"type": kind})
        assert reply.status == 200
        made[kind] = reply.json["ip"]
        assert ipaddress.ip_address(made[kind]).version == version
        assert reply.json["shared"] is (kind == "shared_v4")
    assert not any(ipaddress.ip_address(ip).is_global for ip in made.values()), "nobody real is ever meant"
    assert [row["ip"] for row in (await fly.get(f"{app}/ip_assignments"))["ips"]] == list(made.values())
    assert (await fly.call("DELETE", f"{app}/ip_assignments/{made['v6']}")).status == 204
    assert (await fly.call("DELETE", f"{app}/ip_assignments/{made['v6']}")).error == (404, "IP address not found")
    assert len((await fly.get(f"{app}/ip_assignments"))["ips"]) == 3
    told = [(line["event"], line["detail"]["type"]) for line in await fly.ledger() if "ip" in line.get("event", "")]
    assert told == [("ip_assigned", kind) for kind in made] + [("ip_released", "v6")]


@pytest.mark.parametrize("kind", ["shared_v4", "v6", "private_v6"])
async def test_an_app_has_one_of_each_of_these(fly: Client, kind: str) -> None:
    app = await fly.app()
    await fly.call("POST", f"{app}/ip_assignments", {"type": kind})
    again = await fly.call("POST", f"{app}/ip_assignments", {"type": kind})
    assert again.error == (422, f"Validation failed: app already has an address of type {kind}")
    assert len((await fly.get(f"{app}/ip_assignments"))["ips"]) == 1


async def test_dedicated_v4_and_other_networks_may_be_had_again(fly: Client) -> None:
    app = await fly.app()
    for body in ({"type": "v4"}, {"type": "v4"}, {"type": "private_v6"}, {"type": "private_v6", "network": "other"}):
        assert (await fly.call("POST", f"{app}/ip_assignments", body)).status == 200


@pytest.mark.parametrize(
    ("body", "status"), [({"type": "v5"}, 400), ({}, 400), ({"type": 4}, 400), ({"type": "egress_v4"}, 501)]
)
async def test_what_can_t_be_assigned(fly: Client, body: dict[str, object], status: int) -> None:
    assert (await fly.call("POST", f"{await fly.app()}/ip_assignments", body)).status == status


async def test_addresses_go_with_the_app(fly: Client) -> None:
    app = await fly.app()
    await fly.call("POST", f"{app}/ip_assignments", {"type": "shared_v4"})
    await fly.call("DELETE", app)
    assert (await fly.call("GET", f"{app}/ip_assignments")).status == 404
    await fly.app()
    assert await fly.get(f"{app}/ip_assignments") == {"ips": []}
