"""The stand-ins for a model's provider and for Telegram, spoken to as OpenClaw speaks to them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from roost.local.fakes.model import FakeModel
from roost.local.fakes.telegram import FakeTelegram

TOKEN = "123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
SYSTEM = "You run inside OpenClaw.\n## /data/workspace/SOUL.md\n\nYou are Ada.\nYou answer briefly.\n"
FIRST = '[Sat] Conversation info: ⟦openclaw:ctx⟧\n```json\n{"sender":{}}\n```\n\none\n\nRuntime: agent=main | host=vm'
OWN = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nConversation data"


@pytest.fixture
async def model() -> AsyncIterator[FakeModel]:
    fake = FakeModel()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    fake = FakeTelegram()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def web() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def talk(*said: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in said]


async def test_a_model_tells_what_reached_it(model: FakeModel, web: aiohttp.ClientSession) -> None:
    body = {"model": "m-1", "messages": [{"role": "system", "content": SYSTEM}, *talk(FIRST, "two", OWN)]}
    headers = {"Authorization": "Bearer k-1"}
    async with web.post(f"{model.url}/chat/completions", json=body, headers=headers) as answer:
        said = (await answer.json())["choices"][0]["message"]["content"]
    assert said == "m-1, key k-1, as «You are Ada.», message 2: two"
    assert model.asked[0].said == ("one", "two")


async def test_a_model_answers_both_protocols_as_a_stream(model: FakeModel, web: aiohttp.ClientSession) -> None:
    body = {"model": "m-1", "stream": True, "messages": talk("hello")}
    async with web.post(f"{model.url}/chat/completions", json=body) as answer:
        chat = await answer.text()
    body |= {"system": [{"type": "text", "text": SYSTEM}]}
    async with web.post(f"{model.url}/messages", json=body, headers={"x-api-key": "k-2"}) as answer:
        messages = await answer.text()
    assert "m-1, key , as «», message 1: hello" in chat
    assert chat.endswith("data: [DONE]\n\n")
    assert "m-1, key k-2, as «You are Ada.», message 1: hello" in messages
    assert messages.count("event: ") == 6


async def test_a_model_refuses_as_often_as_it_is_told(model: FakeModel, web: aiohttp.ClientSession) -> None:
    async with web.post(f"{model.url.removesuffix('/v1')}/ctl/next", json={"status": 401, "times": 2}):
        pass
    seen = []
    for _ in range(3):
        async with web.post(f"{model.url}/messages", json={"model": "m-1", "messages": talk("x")}) as answer:
            seen.append(answer.status)
    assert seen == [401, 401, 200]


async def test_a_bot_that_polls_hears_what_is_said_and_is_heard(
    telegram: FakeTelegram, web: aiohttp.ClientSession
) -> None:
    bot = telegram.bot(TOKEN)
    asked = asyncio.create_task(_updates(web, telegram, offset=0, timeout=20))
    await web.post(f"{telegram.url}/ctl/123456/say", json={"text": "/start now", "person": 7})
    (update,) = await asked
    assert (update["message"]["text"], update["message"]["from"]["id"]) == ("/start now", 7)
    assert update["message"]["entities"][0]["length"] == len("/start")
    assert await _updates(web, telegram, offset=update["update_id"] + 1, timeout=0) == []

    message = {"chat_id": 7, "text": "hello <b>you</b> &amp; all", "parse_mode": "HTML"}
    await web.post(f"{telegram.url}/bot{TOKEN}/sendMessage", json=message)
    assert (await bot.hears(containing="hell")).person == 7
    async with web.get(f"{telegram.url}/ctl/123456/heard?wait=9") as answer:
        assert [each["text"] for each in await answer.json()] == ["hello you & all"]


async def test_a_token_of_no_bot_is_refused(telegram: FakeTelegram, web: aiohttp.ClientSession) -> None:
    telegram.bot(TOKEN)
    async with web.get(f"{telegram.url}/bot{TOKEN}x/getMe") as answer:
        assert (answer.status, (await answer.json())["description"]) == (401, "Unauthorized")
    assert telegram.refused == 1


async def _updates(web: aiohttp.ClientSession, telegram: FakeTelegram, **said: int) -> list[dict[str, Any]]:
    async with web.post(f"{telegram.url}/bot{TOKEN}/getUpdates", data=said) as answer:
        found: list[dict[str, Any]] = (await answer.json())["result"]
        return found
