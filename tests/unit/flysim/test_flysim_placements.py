"""The question where machines would go, without making any."""

from typing import Any

import pytest
from flysim_client import Client

from flysim.hosts import PLENTY

BIG = {"cpu_kind": "shared", "cpus": 4, "memory_mb": 4096}


async def placements(fly: Client, **fields: Any) -> list[tuple[str, int]]:
    reply = await fly.call("POST", "/v1/platform/placements", {"org_slug": "personal"} | fields)
    assert reply.status == 200, reply.body
    return [(row["Region"], row["Count"]) for row in reply.json["Regions"]]


async def test_placements_tell_what_would_fit(fly: Client) -> None:
    await fly.sim("POST", "hosts", {"region": "ams", "hosts": [{"cpus": 8, "memory_mb": 8192}, {"slots": 1}]})
    await fly.sim("POST", "hosts", {"region": "ord", "hosts": []})
    await fly.sim("POST", "quotas", {"org": "personal", "memory_mb": {"fra": 12288}})
    assert await placements(fly, region="ord,ams,fra", compute=BIG) == [("ams", 3), ("fra", 3)]
    assert await placements(fly, region="ams,fra", compute=BIG, count=4) == [("ams", 3), ("fra", 1)]
    await fly.sim("POST", "hosts/ams-1", {"status": "dead"})
    assert await placements(fly, region="ams", compute=BIG) == [("ams", 1)]
    everywhere = await placements(fly)
    assert everywhere[0] == ("iad", PLENTY), "the caller's own region first"
    assert len(everywhere) == 17
    assert await fly.happened("machine_created") == []


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"org_slug": ""}, 400),
        ({"org_slug": "abroad"}, 404),
        ({"region": "xyz"}, 400),
        ({"count": -1}, 400),
        ({"compute": {"cpus": 3}}, 422),
    ],
)
async def test_bad_questions_for_placements(fly: Client, fields: dict[str, Any], status: int) -> None:
    reply = await fly.call("POST", "/v1/platform/placements", {"org_slug": "personal"} | fields)
    assert reply.status == status
