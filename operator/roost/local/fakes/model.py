"""A model's provider: OpenAI's chat completions and Anthropic's messages, whole and as a stream.

It thinks nothing. Its answer says which model was asked, with which key, as whom and what, so that who reads the answer
knows what reached the provider. What it was asked is kept; it can be told to refuse and to take its time.

    GET  /ctl/asked                            what it was asked so far
    POST /ctl/next {"status": 401, "times": 1, "seconds": 0}    refuse the next calls, or hold them
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web

__all__ = ["Asked", "FakeModel"]

_LARGEST = 32 * 2**20
_OWN_MESSAGE = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>"
_OWN_PARAGRAPH = re.compile(r"\[.*\] Conversation info:|Runtime: ")
"""What OpenClaw adds to a conversation in the user's name."""
_SOUL = re.compile(r"^#+ (?:\S*/)?SOUL\.md\s*(?P<text>\S.*?)\s*$", re.MULTILINE)
_USED = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, as it arrived; `at` is `time.monotonic()`, `system` all that stands before the conversation."""

    at: float
    path: str
    model: str
    key: str
    """What the caller proved itself with; keys that arrive here are nobody's."""
    system: str
    said: tuple[str, ...]
    """What the user has said in this conversation, the newest last."""

    @property
    def soul(self) -> str:
        """The first line of the soul; empty when there is none."""
        found = _SOUL.search(self.system)
        return found["text"] if found else ""

    @property
    def answer(self) -> str:
        """What it is answered with."""
        last = self.said[-1] if self.said else ""
        return f"{self.model}, key {self.key}, as «{self.soul}», message {len(self.said)}: {last}"


@dataclass(slots=True)
class _Next:
    status: int = 200
    times: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class FakeModel:
    """The provider; `url` is its base URL in OpenAI's way, with `/v1`, once it is started."""

    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    _next: _Next = field(default_factory=_Next)
    _runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Opens the port; 0 takes a free one."""
        app = web.Application(client_max_size=_LARGEST)
        app.router.add_get("/ctl/asked", self._told)
        app.router.add_post("/ctl/next", self._instructed)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/messages", self._messages)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = "http://{}:{}/v1".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def refuse(self, status: int, times: int = 1) -> None:
        """Answers the next calls with this status."""
        self._next = _Next(status, times)

    def hold(self, seconds: float, times: int = 1) -> None:
        """Answers the next calls so much later."""
        self._next = _Next(200, times, seconds)

    # --- what it serves

    async def _told(self, _: web.Request) -> web.Response:
        return web.json_response([asdict(each) | {"soul": each.soul} for each in self.asked])

    async def _instructed(self, request: web.Request) -> web.Response:
        said = await request.json()
        self._next = _Next(int(said.get("status", 200)), int(said.get("times", 1)), float(said.get("seconds", 0)))
        return web.json_response({})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body, asked = await self._heard(request)
        if refusal := await self._refusal():
            return refusal
        common = {"id": "chat-1", "created": int(time.time()), "model": asked.model}
        if body.get("stream"):
            return await _stream(request, _chat_events(common, asked.answer))
        message = {"role": "assistant", "content": asked.answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**common, "object": "chat.completion", "choices": [choice], "usage": _USED})

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body, asked = await self._heard(request)
        if refusal := await self._refusal():
            return refusal
        message: JSON = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": asked.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 100, "output_tokens": 1},
        }
        if body.get("stream"):
            return await _stream(request, _message_events(message, asked.answer))
        whole = {"content": [{"type": "text", "text": asked.answer}], "stop_reason": "end_turn"}
        return web.json_response(message | whole)

    async def _heard(self, request: web.Request) -> tuple[JSON, Asked]:
        body: JSON = await request.json()
        asked = Asked(
            at=time.monotonic(),
            path=request.path,
            model=str(body.get("model")),
            key=_key(request.headers),
            system=_system(body),
            said=_said(body),
        )
        self.asked.append(asked)
        return body, asked

    async def _refusal(self) -> web.Response | None:
        told = self._next
        if told.times < 1:
            return None
        told.times -= 1
        await asyncio.sleep(told.seconds)
        if told.status == web.HTTPOk.status_code:
            return None
        return web.json_response({"error": {"message": "refused as told", "type": "scripted"}}, status=told.status)


def _key(headers: Mapping[str, str]) -> str:
    return headers.get("x-api-key") or headers.get("Authorization", "").removeprefix("Bearer ")


def _text(content: Any) -> str:
    """The words of a message, which are plain or come in parts."""
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _system(body: JSON) -> str:
    own = [_text(m.get("content")) for m in body.get("messages", ()) if m.get("role") in ("system", "developer")]
    return "\n".join([_text(body.get("system")), *own])


def _said(body: JSON) -> tuple[str, ...]:
    """What a person said: neither a tool's result nor what OpenClaw adds of its own."""
    texts = [_text(m.get("content")) for m in body.get("messages", ()) if m.get("role") == "user"]
    people = [_meant(text) for text in texts if not text.startswith(_OWN_MESSAGE)]
    return tuple(text for text in people if text)


def _meant(text: str) -> str:
    own = [part for part in text.split("\n\n") if not _OWN_PARAGRAPH.match(part)]
    return "\n\n".join(own).strip()


async def _stream(request: web.Request, events: Iterator[str]) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for event in events:
        await answer.write(event.encode())
    await answer.write_eof()
    return answer


def _chat_events(common: JSON, text: str) -> Iterator[str]:
    def chunk(delta: JSON, end: str | None = None) -> JSON:
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        return {**common, "object": "chat.completion.chunk", "choices": [choice]}

    chunks = [chunk({"role": "assistant", "content": ""}), chunk({"content": text}), chunk({}, "stop")]
    used = chunk({}) | {"choices": [], "usage": _USED}
    yield from (f"data: {json.dumps(each, ensure_ascii=False)}\n\n" for each in (*chunks, used))
    yield "data: [DONE]\n\n"


def _message_events(message: JSON, text: str) -> Iterator[str]:
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events: tuple[tuple[str, JSON], ...] = (
        ("message_start", {"message": message}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}}),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": end, "usage": {"output_tokens": 7}}),
        ("message_stop", {}),
    )
    return (
        f"event: {kind}\ndata: {json.dumps({'type': kind, **rest}, ensure_ascii=False)}\n\n" for kind, rest in events
    )
