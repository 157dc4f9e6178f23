"""A person reaches a real OpenClaw through Telegram; what is declared anew shows in the next answer.

One machine for all of it, one story after the other: each begins where the one before ended.
"""

import asyncio
import time
from collections.abc import Callable

import psutil
import pytest
from machine import eventually
from openclaw_world import ANN, BEN, BOT, World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
Record = Callable[[str, object], None]


async def test_a_stranger_gets_a_code_is_approved_by_it_and_answered_by_the_model(
    world: World, record_property: Record
) -> None:
    # Given an agent that has just been declared
    world.declare()
    began = time.monotonic()
    world.machine.start()
    await world.ready()
    record_property("boot_to_applied_s", world.applied_at - began)
    record_property("boot_to_ready_s", time.monotonic() - began)

    # When a stranger writes, then the model hears nothing of it, and the stranger gets a code
    await world.bot.say("hello", ANN)
    told = await world.bot.hears(containing="Pairing code")
    request = await world.request(ANN)
    assert request["code"] in told.text
    assert world.model.asked == []
    await world.heard(lambda b: b["pendingPairings"] == 1, "one who waits")

    # And without the token nobody is approved
    assert (await world.pairing("GET", "/v1/pairings", token=None))[0] == 401
    assert (await world.pairing("POST", "/v1/pairings/approve", token="another"))[0] == 401

    # When the code is approved, then the next message goes to the model and its answer to Telegram
    wrong = await world.pairing("POST", "/v1/pairings/approve", channel="telegram", code="AAAAAAAA")
    assert wrong[0] == 404
    right = await world.pairing("POST", "/v1/pairings/approve", channel="telegram", code=request["code"])
    assert (right[0], right[1]["pairing"]["name"]) == (200, "ann")
    asked = await world.turn("how are you?")
    assert (asked.model, asked.key, asked.soul) == ("one", "k-one", "You are Ada.")
    await world.heard(lambda b: b["pendingPairings"] == 0, "nobody who waits")
    assert world.starts == 1


async def test_another_soul_answers_the_next_message(world: World, record_property: Record) -> None:
    world.declare(soul="You are Grace.")
    began = time.monotonic()
    await world.ready()
    record_property("hot_change_visible_s", world.applied_at - began)
    asked = await world.turn("who are you?")
    assert asked.soul == "You are Grace."
    assert asked.said[0] == "how are you?", "it is the same conversation"
    assert world.starts == 1


async def test_another_model_is_asked_for_the_next_answer(world: World, record_property: Record) -> None:
    world.declare(soul="You are Grace.", model="fake/two")
    began = time.monotonic()
    await world.ready()
    record_property("hot_change_visible_s", world.applied_at - began)
    assert (await world.turn("and now?")).model == "two"
    assert world.starts == 1


async def test_another_key_proves_the_next_call_after_one_restart(world: World) -> None:
    world.declare(soul="You are Grace.", model="fake/two", key="k-two")
    await world.ready()
    asked = await world.turn("still there?")
    assert asked.key == "k-two"
    assert asked.said[0] == "how are you?", "the conversation outlives the process"
    assert world.starts == 2


@pytest.mark.openclaw_full
async def test_what_is_declared_again_restarts_nothing(world: World) -> None:
    before = world.config.stat()
    world.declare(soul="You are Grace.", model="fake/two", key="k-two", telemetry={"intervalSeconds": 60})
    await world.ready()
    assert (world.config.stat().st_ino, world.config.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert world.starts == 2


@pytest.mark.openclaw_full
async def test_a_wrong_bot_token_is_told_and_restarts_nothing_by_itself(world: World) -> None:
    # Given a token that Telegram does not know; the variable is another, so one restart is needed for it
    world.declare(soul="You are Grace.", model="fake/two", key="k-two", bot=f"{BOT}x")
    await world.ready()
    await world.troubled("telegram")
    await world.heard(lambda b: b["channels"]["telegram"]["lastError"], "what Telegram said")
    assert world.starts == 3
    refused = world.telegram.refused

    # Then it is not restarted for that: it is ready, only not reached
    await world.heard(lambda b: b["uptimeSeconds"] >= world.operator.last["uptimeSeconds"], "another heartbeat")
    assert refused > 0
    assert world.starts == 3

    # When the token is right again, then it hears what was said to it meanwhile
    await world.bot.say("did you hear me?")
    world.declare(soul="You are Grace.", model="fake/two", key="k-two")
    await world.ready()
    await world.bot.hears(containing=": did you hear me?", seconds=60)
    await world.well()
    assert world.starts == 4


@pytest.mark.openclaw_full
async def test_a_second_stranger_is_dismissed(world: World) -> None:
    since = len(world.bot.heard)
    await world.bot.say("let me in", BEN)
    await world.bot.hears(since, containing="Pairing code")
    request = await world.request(BEN)
    status, said = await world.pairing("POST", "/v1/pairings/dismiss", channel="telegram", id=request["id"])
    assert status == 200, said
    asked = len(world.model.asked)
    await eventually(lambda: world.operator.last["pendingPairings"] == 0, "nobody who waits")
    assert len(world.model.asked) == asked


@pytest.mark.openclaw_full
async def test_a_supervisor_that_has_nothing_to_do_costs_next_to_nothing(world: World, record_property: Record) -> None:
    # Given heartbeats as they usually are
    world.operator.next_seconds = 30
    world.declare(soul="You are Grace.", model="fake/two", key="k-two", heartbeat={"intervalSeconds": 30})
    await world.ready()
    supervisor = psutil.Process(world.machine.pid)
    before, began = supervisor.cpu_times(), time.monotonic()
    await asyncio.sleep(60)  # it is a time that is measured, and nothing is waited for
    after, took = supervisor.cpu_times(), time.monotonic() - began
    used = after.user + after.system - before.user - before.system
    record_property("supervisor_idle_cpu_percent", 100 * used / took)
    record_property("supervisor_rss_mb", supervisor.memory_info().rss / 2**20)
    record_property("openclaw_rss_mb", world.gateway.memory_info().rss / 2**20)
