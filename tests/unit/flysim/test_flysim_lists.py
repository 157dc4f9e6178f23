"""Lists: what is in them, in pages and since when; and what the platform offers."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flysim_client import Client, Make

ORG = "/v1/orgs/personal/machines"


async def pages(fly: Client, path: str, **query: Any) -> list[list[str]]:
    """The ids of all pages of an org's list."""
    found: list[list[str]] = []
    cursor: dict[str, str] = {}
    key = path.rsplit("/", 1)[1]
    while True:
        page = await fly.get(path, **query, **cursor)
        found.append([row["id"] for row in page[key]])
        if not page["next_cursor"]:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def test_an_app_lists_its_own_machines_by_filter(fly: Client) -> None:
    app = await fly.app()
    one = await fly.machine(app, region="ams", config={"metadata": {"k": "1", "x": "y"}})
    two = await fly.machine(
        app, region="ord", config={"metadata": {"k": "2", "x": "y"}}, skip_launch=True, until="stopped"
    )
    await fly.machine(await fly.app("bob"))
    ids = {path.rsplit("/", 1)[1]: name for name, path in (("one", one), ("two", two))}

    async def listed(**query: Any) -> list[str]:
        return [ids[row["id"]] for row in await fly.get(f"{app}/machines", **query)]

    assert await listed() == ["one", "two"]
    assert await listed(region="ord") == ["two"]
    assert await listed(state="started,suspended") == ["one"]
    assert await listed(**{"metadata.x": "y"}) == ["one", "two"]
    assert await listed(**{"metadata.x": "y", "metadata.k": "2"}) == ["two"]
    (short, _) = await fly.get(f"{app}/machines", summary="true")
    assert {"config", "checks", "events", "host_status", "nonce"}.isdisjoint(short)


async def test_a_list_comes_in_pages_when_asked(fly: Client) -> None:
    app = await fly.app()
    made = [(await fly.create(app, skip_launch=True)).json["id"] for _ in range(5)]
    found: list[list[str]] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        reply = await fly.call("GET", f"{app}/machines", **query)
        found.append([row["id"] for row in reply.json])
        if "fly-next-cursor" not in reply.headers:
            break
        query = {"limit": 2, "cursor": reply.headers["fly-next-cursor"]}
    assert [len(page) for page in found] == [2, 2, 1]
    assert sorted(row for page in found for row in page) == sorted(made)
    assert "fly-next-cursor" not in (await fly.call("GET", f"{app}/machines")).headers
    for bad in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"cursor": "nonsense"}):
        assert (await fly.call("GET", f"{app}/machines", **bad)).status == 400


async def test_an_org_lists_the_machines_of_all_its_apps(make: Make) -> None:
    fly = await make(orgs=("personal", "other"))
    metadata = {"roost_name": "ada"}
    one = await fly.machine(await fly.app("ada"), config={"metadata": metadata, "env": {"A": "b"}})
    two = await fly.machine(await fly.app("bob"))
    await fly.machine(await fly.app("eve", "other"))
    answer = await fly.get(ORG)
    rows = {row["app_name"]: row for row in answer["machines"]}
    assert rows.keys() == {"ada", "bob"}
    assert rows["ada"]["config"] == {
        "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
        "image": "sleeper",
        "metadata": metadata,
    }
    assert rows["bob"]["id"] == two.rsplit("/", 1)[1] == answer["last_machine_id"]
    assert (answer["error_regions"], answer["next_cursor"]) == ([], "")
    assert "config" not in (await fly.get(ORG, summary="true"))["machines"][0]

    await fly.call("DELETE", one, force="true")
    await fly.wait(one, "destroyed")
    assert [row["app_name"] for row in (await fly.get(ORG))["machines"]] == ["bob"]
    everything = (await fly.get(ORG, include_deleted="true"))["machines"]
    assert [(row["app_name"], row["state"]) for row in everything] == [("bob", "started"), ("ada", "destroyed")]
    assert (await fly.call("GET", "/v1/orgs/abroad/machines")).status == 404


async def test_an_org_list_can_start_at_a_moment(fly: Client) -> None:
    app = await fly.app()
    await fly.machine(app)
    last = (await fly.get(ORG))["last_updated_at"]
    after = (datetime.fromisoformat(last) + timedelta(milliseconds=1)).isoformat()
    assert (await fly.get(ORG, updated_after=after))["machines"] == []
    volume = await fly.volume(app)
    two = await fly.machine(app)
    await fly.call("PATCH", f"{two}/metadata", {"metadata": {"a": "1"}})
    changed = await fly.get(ORG, updated_after=after)
    assert [row["id"] for row in changed["machines"]] == [two.rsplit("/", 1)[1]]
    assert [row["id"] for row in (await fly.get("/v1/orgs/personal/volumes", updated_after=after))["volumes"]] == [
        volume["id"]
    ]
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert len((await fly.get(ORG, updated_after=past))["machines"]) == 2
    assert (await fly.call("GET", ORG, updated_after="yesterday")).status == 400


async def test_an_org_list_loses_nothing_that_changes_between_pages(fly: Client) -> None:
    app = await fly.app()
    made = [(await fly.create(app, skip_launch=True)).json["id"] for _ in range(4)]
    for identity in made:
        await fly.wait(f"{app}/machines/{identity}", "stopped")
    first = await fly.get(ORG, limit=2)
    moved = first["machines"][0]["id"]
    await fly.call("PATCH", f"{app}/machines/{moved}/metadata", {"metadata": {"a": "1"}})
    seen = [row["id"] for row in first["machines"]]
    page = first
    while page["next_cursor"]:
        page = await fly.get(ORG, limit=2, cursor=page["next_cursor"])
        seen += [row["id"] for row in page["machines"]]
    assert set(seen) == set(made)
    assert seen.count(moved) == 2


async def test_an_org_lists_its_volumes(fly: Client) -> None:
    one = await fly.volume(await fly.app("ada"), region="ams")
    two = await fly.volume(await fly.app("bob"), region="ord")
    answer = await fly.get("/v1/orgs/personal/volumes")
    assert [(row["app_name"], row["id"]) for row in answer["volumes"]] == [("ada", one["id"]), ("bob", two["id"])]
    assert answer["last_volume_id"] == two["id"]
    assert await pages(fly, "/v1/orgs/personal/volumes", limit=1) == [[one["id"]], [two["id"]]]
    assert await pages(fly, "/v1/orgs/personal/volumes", region="ord") == [[two["id"]]]
    assert await pages(fly, "/v1/orgs/personal/volumes", state="extending") == [[]]


async def test_regions_answer_in_pascal_case(fly: Client) -> None:
    answer = await fly.get("/v1/platform/regions")
    assert answer["Nearest"] == "iad"
    assert len(answer["Regions"]) == 18
    assert {"code": "ams", "deprecated": False}.items() <= answer["Regions"][0].items()


# Doors


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic fm2_good", "fm2_good"])
async def test_a_call_needs_a_good_token(fly: Client, header: str | None) -> None:
    reply = await fly.raw("GET", "/v1/apps/ada", **({"authorization": header} if header is not None else {}))
    assert (reply.status, reply.json) == (401, {"error": "Authenticate: token validation error"})


@pytest.mark.parametrize("scheme", ["Bearer", "FlyV1", "flyv1"])
async def test_both_schemes_are_taken(fly: Client, scheme: str) -> None:
    assert (await fly.raw("GET", "/v1/platform/regions", authorization=f"{scheme} fm2_good")).status == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/apps/ada/nothing", "/v1/apps//machines", "/v2/apps", "/v1/apps/a/machines/b/exec"]
)
async def test_an_unknown_route_is_told_in_plain_text(fly: Client, path: str) -> None:
    reply = await fly.raw("GET", path, authorization="Bearer fm2_good")
    assert (reply.status, reply.body) == (404, b"404 page not found")
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.headers["fly-request-id"]
