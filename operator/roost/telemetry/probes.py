"""The operator's own pages: /metrics and /metrics/agents for Prometheus, /healthz and /readyz for the kubelet."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from roost.telemetry.metrics import Metrics


def probes(metrics: Metrics, alive: Callable[[], bool], ready: Callable[[], bool]) -> web.Application:
    """The web application; a probe that fails answers 503."""

    async def scrape(_: web.Request) -> web.Response:
        return page(generate_latest(metrics.registry))

    async def scrape_agents(_: web.Request) -> web.Response:
        # In a thread: for thousands of agents it takes longer than a heartbeat may wait.
        return page(await asyncio.to_thread(generate_latest, metrics.agent_figures))

    def page(text: bytes) -> web.Response:
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def probe(holds: Callable[[], bool]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(text="ok") if holds() else web.Response(text="not ok", status=503)

        return answer

    app = web.Application()
    app.router.add_get("/metrics", scrape)
    app.router.add_get("/metrics/agents", scrape_agents)
    app.router.add_get("/healthz", probe(alive))
    app.router.add_get("/readyz", probe(ready))
    return app
