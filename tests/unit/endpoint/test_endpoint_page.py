"""The page about the endpoint, held to the contract and to what the endpoint answers."""

import re
from pathlib import Path

import pytest
from endpoint_world import endpoint_world

from roost.agents.sessions import OVERLAP_SECONDS
from roost_agent.contract import (
    BUNDLE_ROUTES,
    CHECKIN_ROUTES,
    GATEWAY_TOKEN_HEADERS,
    HEARTBEAT_ROUTES,
    MACHINE_ID_HEADER,
    MAX_WAIT_SECONDS,
    TOKEN_HEADER,
)

PAGE = (Path(__file__).parents[3] / "docs/reference/endpoint.md").read_text()


def test_it_has_the_addresses_headers_and_times_of_the_contract() -> None:
    for method, (path, older) in (("GET", BUNDLE_ROUTES), ("POST", HEARTBEAT_ROUTES), ("POST", CHECKIN_ROUTES)):
        assert f"| `{method} {path}` | `{older}` |" in PAGE
    for header in (TOKEN_HEADER, MACHINE_ID_HEADER, GATEWAY_TOKEN_HEADERS[0]):
        assert f"| `{header}` |" in PAGE
    assert f"`?wait=SECONDS` on a heartbeat ({MAX_WAIT_SECONDS} at most)" in PAGE
    assert f"at most {OVERLAP_SECONDS / 60:.0f} minutes" in PAGE


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "bad_request"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (409, "superseded"),
        (413, "too_large"),
        (503, "not_ready"),
        (503, "not_now"),
    ],
)
async def test_each_problem_is_answered_as_the_page_says(status: int, error: str) -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert any(str(status) in codes and f"`{error}`" in words for codes, words in rows)
    async with endpoint_world() as world:
        ada = world.agent("ada")
        match error:
            case "bad_request":
                answer = await ada.say(b"{")
            case "unauthorized":
                answer = await ada.fetch(X_Heartbeat_Token=None)
            case "forbidden":
                answer = await ada.fetch(X_Heartbeat_Token="wrong")
            case "not_found":
                answer = await ada.fetch(path="/v2/agents")
            case "method_not_allowed":
                answer = await ada.fetch(path=HEARTBEAT_ROUTES[0].format(did=ada.did))
            case "superseded":
                world.remembers_machine("ada", "another")
                answer = await ada.say()
            case "too_large":
                answer = await ada.say(b" " * 100_000)
            case "not_ready":
                world.ready = False
                answer = await ada.say()
            case _:
                ada = world.agent("ada", env=[{"name": "A", "valueFrom": {"name": "gone", "key": "k"}}])
                answer = await ada.fetch()
        assert (answer.status, answer.json["error"]) == (status, error)


async def test_each_command_has_the_id_that_the_page_says() -> None:
    async with endpoint_world() as world:
        ids = []
        for change in (
            {"desiredState": "Stopped"},
            {"revoked": True},
            {"restartedAt": "VALUE"},
            {"metadata": {"annotations": {"roost.dev/drain": "CAUSE"}}},
            {"metadata": {"deletionTimestamp": "2026-11-21T10:00:00Z"}},
        ):
            ada = world.agent("ada", **change)
            ids += (await ada.say()).commands
            world.forget("ada")
        ada = world.agent("ada")
        [update] = (await ada.say(ada.beat(bundleRevision="another"))).commands
        ids.append(update.replace(ada.memory.revision or "", "REVISION"))
    assert len(ids) == 6
    for command in ids:
        assert f"`{command}`" in PAGE
