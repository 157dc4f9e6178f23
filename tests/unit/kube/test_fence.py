"""Who may not write, may read: the fence before each write to Kubernetes."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from roost.kube.client import Kube
from roost.kube.cluster import Cluster
from roost.run import _serve
from roost.telemetry.metrics import Metrics


class Closed(Exception): ...


@pytest.fixture
async def asked() -> AsyncIterator[tuple[str, list[str]]]:
    methods: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        methods.append(request.method)
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    site = await _serve(app, "127.0.0.1:0")
    yield f"http://127.0.0.1:{site.addresses[0][1]}", methods
    await site.cleanup()


async def test_behind_a_closed_fence_everything_is_read_and_nothing_written(asked: tuple[str, list[str]]) -> None:
    url, methods = asked

    def fence() -> None:
        raise Closed

    async with Kube(Cluster(url, None), Metrics()) as kube:
        writer = kube.fenced(fence)
        for write in (
            writer.create("/x", {}),
            writer.merge("/x", {}),
            writer.apply("/x", {}, "roost"),
            writer.update("/x", {}),
            writer.delete("/x", uid="u"),
        ):
            with pytest.raises(Closed):
                await write
        await writer.get("/x")
        assert methods == ["GET"]
        await kube.create("/x", {})  # the fence is its holder's alone: the Lease itself is written without
        assert methods == ["GET", "POST"]
