"""A caller of the edge: by host name, from outside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from flysim_client import Client, Reply

from flysim.edge import Edge


class Outside:
    """`get` asks `ada.fly.dev`."""

    def __init__(self, url: str, edge: Edge) -> None:
        self.url, self.edge = url, edge
        self.http = httpx.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=30)

    async def get(self, path: str = "/", host: str = "ada.fly.dev", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.http.get(path, headers={"host": host} | named)
        return Reply(answer.status_code, answer.headers, answer.content)


def service(**fields: Any) -> dict[str, Any]:
    """A service on 443 and 80 whose program listens at 8080."""
    ports = [{"port": 443, "handlers": ["tls", "http"]}, {"port": 80, "handlers": ["http"]}]
    return {"protocol": "tcp", "internal_port": 8080, "ports": ports} | fields


async def public_app(fly: Client, name: str = "ada") -> str:
    app = await fly.app(name)
    assert (await fly.call("POST", f"{app}/ip_assignments", {"type": "shared_v4"})).status == 200
    return app


@asynccontextmanager
async def edge_of(fly: Client, patience: float = 10.0) -> AsyncIterator[Outside]:
    """The edge of this simulator."""
    assert fly.core is not None
    edge = Edge(fly.core, patience=patience)
    outside = Outside(await edge.start("127.0.0.1", 0), edge)
    try:
        yield outside
    finally:
        await outside.http.aclose()
        await edge.close()
