"""Apps: one space of names for everybody, and a deletion that takes everything along."""

import asyncio

from flysim_client import Client, Make, alive, eventually


async def test_an_app_is_made_seen_listed_and_deleted(fly: Client) -> None:
    made = await fly.call("POST", "/v1/apps", {"name": "ada", "org_slug": "personal", "network": "ada-net"})
    assert made.status == 201
    assert len(made.json["id"]) == 16
    seen = await fly.get("/v1/apps/ada")
    assert (seen["name"], seen["status"], seen["network"]) == ("ada", "pending", "ada-net")
    assert seen["organization"]["slug"] == "personal"
    listed = await fly.get("/v1/apps", org_slug="personal")
    assert (listed["total_apps"], [app["name"] for app in listed["apps"]]) == (1, ["ada"])

    gone = await fly.call("DELETE", "/v1/apps/ada")
    assert (gone.status, gone.body) == (202, b"")
    assert (await fly.call("GET", "/v1/apps/ada")).error == (404, 'Could not find App "ada"')
    assert (await fly.call("DELETE", "/v1/apps/ada")).status == 404
    await fly.app("ada")


async def test_the_name_may_come_under_the_older_key(fly: Client) -> None:
    assert (await fly.call("POST", "/v1/apps", {"app_name": "ada", "org_slug": "personal"})).status == 201
    assert (await fly.get("/v1/apps/ada"))["name"] == "ada"


async def test_names_are_one_space_over_all_orgs(make: Make) -> None:
    fly = await make(orgs=("personal", "other"))
    await fly.app("ada", "personal")
    taken = await fly.call("POST", "/v1/apps", {"name": "ada", "org_slug": "other"})
    assert taken.json == {"error": "Validation failed: Name has already been taken", "status": "name_taken"}
    assert taken.status == 422
    assert [app["name"] for app in (await fly.get("/v1/apps", org_slug="other"))["apps"]] == []


async def test_bad_apps_are_refused(fly: Client) -> None:
    rule = "Validation failed: Name under 63 chars using numbers, lowercase letters and dashes"
    for name in ("Ada", "a_b", "a" * 63):
        assert (await fly.call("POST", "/v1/apps", {"name": name, "org_slug": "personal"})).error == (422, rule)
    no_org = await fly.call("POST", "/v1/apps", {"name": "ada"})
    assert no_org.error == (400, "authorization: request doesn't contain org_slug")
    assert (await fly.call("POST", "/v1/apps", {"name": "ada", "org_slug": "abroad"})).status == 404
    assert (await fly.call("GET", "/v1/apps", org_slug="abroad")).status == 404


async def test_an_idempotency_key_makes_one_app(fly: Client) -> None:
    body = {"name": "ada", "org_slug": "personal", "idempotency_key": "k1"}
    first, second = await fly.call("POST", "/v1/apps", body), await fly.call("POST", "/v1/apps", body)
    assert (second.status, second.json) == (201, first.json)
    assert (await fly.call("POST", "/v1/apps", body | {"name": "bob"})).status == 422
    assert len(await fly.happened("app_created")) == 1


async def test_a_deletion_lets_machines_end_and_takes_volumes_along(fly: Client) -> None:
    app = await fly.app()
    volume = await fly.volume(app)
    spare = await fly.volume(app)
    mounts = [{"volume": volume["id"], "path": "/data"}]
    machine = await fly.machine(app, "polite", config={"mounts": mounts, "stop_config": {"signal": "SIGTERM"}})
    await fly.log(machine)
    pid = (await fly.inside(machine))["pid"]
    assert (await fly.call("DELETE", app)).status == 202
    async with asyncio.timeout(10):
        while (await fly.call("GET", app)).status != 404:
            pass
    assert not alive(pid)
    (exited,) = await fly.happened("machine_exited")
    assert (exited["detail"]["code"], exited["detail"]["signal"]) == (0, None)
    order = [line["event"] for line in await fly.ledger() if line["kind"] == "event"]
    assert order[-4:] == ["machine_destroyed", "volume_destroyed", "volume_destroyed", "app_destroyed"]
    assert {line["volume"] for line in await fly.happened("volume_destroyed")} == {volume["id"], spare["id"]}


async def test_a_forced_deletion_asks_no_machine(fly: Client) -> None:
    app = await fly.app()
    machine = await fly.machine(app, "stubborn", config={"stop_config": {"timeout": "60s"}})
    await fly.log(machine)
    pid = (await fly.inside(machine))["pid"]
    assert (await fly.call("DELETE", app, force="true")).status == 202
    assert (await fly.call("GET", app)).status == 404
    await eventually(lambda: not alive(pid))
    await fly.app()


async def test_force_hurries_a_deletion_that_waits(fly: Client) -> None:
    app = await fly.app()
    machine = await fly.machine(app, "stubborn", config={"stop_config": {"timeout": "60s"}})
    await fly.log(machine)
    pid = (await fly.inside(machine))["pid"]
    await fly.call("DELETE", app)
    assert (await fly.create(app)).status == 404, "nothing new in an app that is going"
    assert alive(pid)
    await fly.call("DELETE", app, force="true")
    await eventually(lambda: not alive(pid))
    assert len(await fly.happened("app_destroyed")) == 1
