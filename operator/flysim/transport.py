"""The simulator as an httpx transport: the same calls without a socket, on virtual time too."""

import asyncio
from urllib.parse import parse_qs

import httpx

from flysim.call import Answer
from flysim.sim import Sim


class SimTransport(httpx.AsyncBaseTransport):
    """Takes a client's requests to a `Sim` in the same loop; host and scheme of the URL do not matter.

    As over a socket, a caller that gives up changes nothing about what its call does, the client's read timeout holds,
    and a cut answer is `httpx.RemoteProtocolError`.
    """

    def __init__(self, sim: Sim) -> None:
        self._sim = sim
        self._calls: set[asyncio.Task[Answer]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.ReadTimeout and httpx.RemoteProtocolError."""
        body = await request.aread()
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        headers = {name.lower(): value for name, value in request.headers.items()}
        values = parse_qs(query, keep_blank_values=True)
        call = asyncio.create_task(self._sim.handle(request.method.upper(), path, values, headers, body))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        await asyncio.wait({call}, timeout=request.extensions.get("timeout", {}).get("read"))
        if not call.done():
            raise httpx.ReadTimeout("the simulator has not answered in time", request=request)
        if (answer := call.result()).cut:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.body, request=request)

    async def aclose(self) -> None:
        """Calls that still wait are cut."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
