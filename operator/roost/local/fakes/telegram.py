"""Telegram's Bot API, as much of it as a bot that polls needs, and people who write to that bot.

A token that is not of a known bot gets 401, as at Telegram. Every method that is not known here succeeds.

    POST /ctl/<bot>/say  {"text": "hello", "person": 777001}    a person writes to the bot, which is named by its number
    GET  /ctl/<bot>/heard?since=0&wait=30                       what the bot wrote, from there on; waits for something
"""

import asyncio
import json
import re
import time
from dataclasses import asdict, dataclass, field
from html import unescape
from typing import Any

from aiohttp import web

__all__ = ["Bot", "FakeTelegram", "Heard"]

_LONGEST_POLL_SECONDS = 30.0
_PERSON = 777001
_SENDS = frozenset({"sendMessage", "editMessageText", "sendRichMessage", "sendMessageDraft"})

_TAG = re.compile(r"</?[a-z][^>]*>")

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a bot wrote to somebody; `at` is `time.monotonic()`."""

    at: float
    person: int
    text: str
    method: str


@dataclass(slots=True)
class Bot:
    """A bot and the people it talks to. `calls` counts the calls of each method that it made."""

    token: str
    heard: list[Heard] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    _updates: list[JSON] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def number(self) -> int:
        return int(self.token.partition(":")[0])

    async def say(self, text: str, person: int = _PERSON) -> None:
        """A person writes to the bot."""
        count = len(self._updates) + 1
        who = {"id": person, "first_name": "Ann", "username": "ann"}
        message: JSON = {
            "message_id": count,
            "date": int(time.time()),
            "text": text,
            "chat": who | {"type": "private"},
            "from": who | {"is_bot": False, "language_code": "en"},
        }
        if text.startswith("/"):
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": len(text.split(maxsplit=1)[0])}]
        async with self._news:
            self._updates.append({"update_id": 1000 + count, "message": message})
            self._news.notify_all()

    async def hears(self, since: int = 0, *, containing: str = "", seconds: float = 30) -> Heard:
        """Waits for what the bot writes after the first so many, with these words in it.

        Raises:
            TimeoutError
        """
        async with asyncio.timeout(seconds), self._news:
            while True:
                for each in self.heard[since:]:
                    if containing in each.text:
                        return each
                await self._news.wait()

    async def poll(self, offset: int, seconds: float) -> list[JSON]:
        """The updates from that number on; none when there was none in so many seconds."""
        if offset < 0:
            return self._updates[offset:]
        try:
            async with asyncio.timeout(min(seconds, _LONGEST_POLL_SECONDS)), self._news:
                while not (found := [u for u in self._updates if u["update_id"] >= offset]):
                    await self._news.wait()
                return found
        except TimeoutError:
            return []

    async def wrote(self, method: str, said: JSON) -> JSON:
        """Takes a message of the bot's; returns it as Telegram would show it."""
        text, chat = _shown(said), int(said.get("chat_id", 0))
        async with self._news:
            self.heard.append(Heard(time.monotonic(), chat, text, method))
            self._news.notify_all()
            return {
                "message_id": 100_000 + len(self.heard),
                "date": int(time.time()),
                "chat": {"id": chat, "type": "private"},
                "text": text,
            }


@dataclass(slots=True)
class FakeTelegram:
    """The server; `url` is what a bot takes for api.telegram.org once it is started."""

    bots: dict[str, Bot] = field(default_factory=dict)
    """By token."""
    refused: int = 0
    """How many calls had a token of no bot."""
    url: str = ""
    _runner: web.AppRunner | None = None

    def bot(self, token: str) -> Bot:
        """The bot with this token, which from now on there is."""
        return self.bots.setdefault(token, Bot(token))

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Opens the port; 0 takes a free one."""
        app = web.Application()
        app.router.add_post("/ctl/{bot}/say", self._say)
        app.router.add_get("/ctl/{bot}/heard", self._heard)
        app.router.add_route("*", "/bot{token}/{method}", self._called)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- the people's side

    def _named(self, request: web.Request) -> Bot:
        for bot in self.bots.values():
            if str(bot.number) == request.match_info["bot"]:
                return bot
        raise web.HTTPNotFound(text=f"no bot {request.match_info['bot']}")

    async def _say(self, request: web.Request) -> web.Response:
        said = await request.json()
        await self._named(request).say(str(said["text"]), int(said.get("person", _PERSON)))
        return web.json_response({})

    async def _heard(self, request: web.Request) -> web.Response:
        bot, since = self._named(request), int(request.query.get("since", "0"))
        try:
            await bot.hears(since, seconds=float(request.query.get("wait", "0")))
        except TimeoutError:
            pass
        return web.json_response([asdict(each) for each in bot.heard[since:]])

    # --- the bot's side

    async def _called(self, request: web.Request) -> web.Response:
        bot = self.bots.get(request.match_info["token"])
        if bot is None:
            self.refused += 1
            return web.json_response({"ok": False, "error_code": 401, "description": "Unauthorized"}, status=401)
        method = request.match_info["method"]
        bot.calls[method] = bot.calls.get(method, 0) + 1
        return web.json_response({"ok": True, "result": await _result(bot, method, await _parameters(request))})


def _shown(said: JSON) -> str:
    """A text as people see it."""
    text = str(said.get("text", ""))
    return unescape(_TAG.sub("", text)) if said.get("parse_mode") == "HTML" else text


async def _parameters(request: web.Request) -> JSON:
    """From the query and the body, whatever form that has."""
    body: JSON
    if request.content_type == "application/json":
        body = json.loads(await request.read() or b"{}")
    else:
        body = dict(await request.post())
    return {**request.query, **body}


async def _result(bot: Bot, method: str, said: JSON) -> Any:
    match method:
        case "getMe":
            return {
                "id": bot.number,
                "is_bot": True,
                "first_name": "Bot",
                "username": "fake_bot",
                "can_join_groups": True,
                "can_read_all_group_messages": False,
                "supports_inline_queries": False,
            }
        case "getUpdates":
            return await bot.poll(int(said.get("offset") or 0), float(said.get("timeout") or 0))
        case "getWebhookInfo":
            return {"url": "", "has_custom_certificate": False, "pending_update_count": 0}
        case _ if method in _SENDS:
            return await bot.wrote(method, said)
        case _:
            return True
