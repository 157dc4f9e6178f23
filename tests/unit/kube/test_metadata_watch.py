"""A watch of metadata, against a server that ends, cuts, stutters and refuses as API servers and proxies do."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from roost.kube import client
from roost.kube.client import Gone, Kube, KubeError, Refused, Unreachable
from roost.kube.cluster import Cluster
from roost.run import _serve
from roost.telemetry.metrics import Metrics

PATH = "/api/v1/secrets"


def event(kind: str, version: int, **more: Any) -> bytes:
    body = {"metadata": {"name": "a", "namespace": "team", "resourceVersion": str(version)}} | more
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


@asynccontextmanager
async def answering(
    write: Callable[[web.StreamResponse], Awaitable[None]], asked: list[web.Request] | None = None
) -> AsyncIterator[Kube]:
    async def handle(request: web.Request) -> web.StreamResponse:
        if asked is not None:
            asked.append(request)
        answer = web.StreamResponse()
        await answer.prepare(request)
        await write(answer)
        return answer

    app = web.Application()
    app.router.add_get(PATH, handle)
    site = await _serve(app, "127.0.0.1:0")
    try:
        async with Kube(Cluster(f"http://127.0.0.1:{site.addresses[0][1]}", None), Metrics()) as kube:
            yield kube
    finally:
        await site.cleanup()


async def seen(kube: Kube) -> tuple[list[tuple[str, str]], KubeError | None]:
    """What was told, and how it ended."""
    told: list[tuple[str, str]] = []
    try:
        async for kind, body in kube.watch(PATH, resourceVersion="1"):
            told.append((kind, body["metadata"]["resourceVersion"]))
    except KubeError as error:
        return told, error
    return told, None


async def test_events_are_told_one_by_one_however_they_are_cut_and_values_are_never_asked_for() -> None:
    async def write(answer: web.StreamResponse) -> None:
        stream = event("ADDED", 2) + event("MODIFIED", 3) + event("BOOKMARK", 9)
        for at in range(0, len(stream), 7):
            await answer.write(stream[at : at + 7])

    asked: list[web.Request] = []
    async with answering(write, asked) as kube:
        assert await seen(kube) == ([("ADDED", "2"), ("MODIFIED", "3"), ("BOOKMARK", "9")], None)
    assert asked[0].headers["Accept"] == "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    assert asked[0].query["watch"] == asked[0].query["allowWatchBookmarks"] == "true"


@pytest.mark.parametrize(("code", "kind"), [(410, Gone), (500, Unreachable), (403, Refused)])
async def test_an_error_in_the_stream_is_one_of_ours(code: int, kind: type[KubeError]) -> None:
    async def write(answer: web.StreamResponse) -> None:
        await answer.write(event("ADDED", 2))
        await answer.write(json.dumps({"type": "ERROR", "object": {"code": code, "message": "no"}}).encode() + b"\n")

    async with answering(write) as kube:
        told, error = await seen(kube)
    assert told == [("ADDED", "2")]
    assert type(error) is kind


@pytest.mark.parametrize("rest", [b'{"type": "ADD', b"<html>login</html>\n", b"[]\n"])
async def test_a_line_that_is_cut_or_none_of_ours_is_no_event(rest: bytes) -> None:
    async def write(answer: web.StreamResponse) -> None:
        await answer.write(event("ADDED", 2) + rest)

    async with answering(write) as kube:
        told, error = await seen(kube)
    assert told == [("ADDED", "2")]
    assert isinstance(error, Unreachable)


async def test_a_watch_that_falls_silent_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_WATCH_TIMEOUT", aiohttp.ClientTimeout(total=10, sock_read=0.2))
    closing = asyncio.Event()

    async def write(answer: web.StreamResponse) -> None:
        await answer.write(event("ADDED", 2))
        await closing.wait()

    async with answering(write) as kube:
        told, error = await seen(kube)
        closing.set()
    assert told == [("ADDED", "2")]
    assert isinstance(error, Unreachable)


async def test_a_line_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LONGEST_LINE", 1000)

    async def write(answer: web.StreamResponse) -> None:
        await answer.write(b"x" * 5000)

    async with answering(write) as kube:
        _, error = await seen(kube)
    assert isinstance(error, Unreachable)
    assert "no end" in str(error)
