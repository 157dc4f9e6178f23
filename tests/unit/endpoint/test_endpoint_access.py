"""The access log: what is told of each answer, and what never is."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from endpoint_world import EndpointWorld, endpoint_world

from roost.endpoint import access
from roost_agent.contract import heartbeat_path

Lines = list[dict[str, Any]]


@pytest.fixture
async def world() -> AsyncIterator[EndpointWorld]:
    async with endpoint_world() as made:
        yield made


@pytest.fixture
def lines(world: EndpointWorld) -> Iterator[Lines]:
    with structlog.testing.capture_logs() as caught:
        yield caught


def told(lines: Lines) -> Lines:
    return [line for line in lines if "route" in line]


async def test_a_success_is_told_at_debug_with_who_it_was(world: EndpointWorld, lines: Lines) -> None:
    ada = world.agent("ada")
    given = await ada.say()
    [line] = told(lines)
    assert line.pop("duration_ms") >= 0
    assert line == {
        "event": "answered",
        "log_level": "debug",
        "method": "POST",
        "route": "/v1/agents/{did}/heartbeat",
        "status": 200,
        "peer": "127.0.0.1",
        "bytes": line["bytes"],
        "did": ada.did,
        "namespace": "team-a",
        "name": "ada",
    }
    assert line["bytes"] >= len(given.content)


async def test_without_debug_a_success_is_not_told_at_all(world: EndpointWorld, lines: Lines) -> None:
    world.access._successes = False
    ada = world.agent("ada")
    await ada.say()
    assert not told(lines)
    await ada.say(b"{")
    assert [line["status"] for line in told(lines)] == [400]


async def test_a_stranger_is_told_without_a_name(world: EndpointWorld, lines: Lines) -> None:
    await world.agent("ada").say(X_Heartbeat_Token="wrong")
    [line] = told(lines)
    assert (line["event"], line["log_level"], line["status"]) == ("refused", "info", 403)
    assert not {"did", "namespace", "name"} & line.keys()


async def test_who_called_before_on_this_connection_is_forgotten(world: EndpointWorld, lines: Lines) -> None:
    ada = world.agent("ada")
    await ada.say()
    await ada.say(X_Heartbeat_Token="wrong")
    assert ["did" in line for line in told(lines)] == [True, False]


async def test_nothing_that_a_caller_wrote_is_ever_told(
    world: EndpointWorld, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ada = world.agent("ada")
    mine = "words-of-mine"
    await ada.say(path=f"{heartbeat_path(ada.did)}?wait={mine}")
    await ada.say(path=f"{heartbeat_path(ada.did)}?token={mine}")
    await ada.say(ada.beat(degraded=[mine]))
    await ada.fetch(path=f"/v1/agents/{mine}/config-bundle")
    await ada.fetch(path=f"/{mine}")
    await ada.fetch(X_Heartbeat_Token=mine, User_Agent=mine, Referer=mine, Cookie=mine)
    async with world.http.request("PROPFIND", f"/{mine}") as answer:
        assert answer.status == 404
    assert len(told(lines)) == 7
    assert {line["method"] for line in told(lines)} == {"GET", "POST", "other"}
    everything = json.dumps(lines) + caplog.text + repr([r.__dict__ for r in caplog.records])
    for hidden in (mine, ada.token):
        assert hidden not in everything


async def test_many_refusals_are_counted_and_not_told(world: EndpointWorld, lines: Lines) -> None:
    clock = iter(float(n) * 0.001 for n in range(10_000))
    world.access._clock, world.access._at = lambda: next(clock), 0.0
    ada, refused = world.agent("ada"), 100
    for _ in range(refused):
        await ada.say(X_Heartbeat_Token="wrong")
    few = len(told(lines))
    assert access.BURST <= few <= access.BURST + access.LINES_A_SECOND
    world.access._clock = lambda: 1000.0
    await ada.say(X_Heartbeat_Token="wrong")
    assert told(lines)[-1]["left_out"] == refused - few
    await ada.say(X_Heartbeat_Token="wrong")
    assert "left_out" not in told(lines)[-1]


async def test_what_is_no_http_is_told_without_a_word_of_it(world: EndpointWorld, lines: Lines) -> None:
    from test_hostile_callers import sent

    assert await sent(world, b"words-of-mine\r\n\r\n") == 400
    [line] = told(lines)
    assert (line["method"], line["route"], line["status"]) == ("other", "", 400)
