"""The way from a machine's inside to the simulator: its own unix socket, `/.fly/api` in a machine at Fly."""

import logging
import os
from pathlib import Path
from urllib.parse import parse_qs

from aiohttp import web

from flysim.runner import Api

_log = logging.getLogger(__name__)
_LONGEST_PATH = 103
"""Bytes: what every system takes as the name of a unix socket."""


async def respond(request: web.BaseRequest, api: Api) -> web.Response:
    """Turns an HTTP request into a call and its answer into a response."""
    path, _, query = request.raw_path.partition("?")
    headers = {name.lower(): value for name, value in request.headers.items()}
    answer = await api(request.method, path, parse_qs(query, keep_blank_values=True), headers, await request.read())
    if answer.cut and request.transport is not None:
        request.transport.abort()
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


class MachineSocket:
    """The socket of one boot of one machine: whoever opens it is that machine, and needs no token."""

    def __init__(self, api: Api) -> None:
        async def serve(request: web.BaseRequest) -> web.StreamResponse:
            return await respond(request, api)

        self._runner = web.ServerRunner(web.Server(serve, access_log=None), shutdown_timeout=0.1)

    async def open(self, path: Path) -> bool:
        """Listens; False, and said in the log, where the path is too long for a socket. Raises OSError."""
        if len(os.fsencode(path)) > _LONGEST_PATH:
            _log.warning("%s is too long for a socket, so this machine has none: use a shorter --state", path)
            return False
        await self._runner.setup()
        await web.UnixSite(self._runner, path).start()
        return True

    async def close(self) -> None:
        """Stops listening; calls that still wait are cut."""
        await self._runner.cleanup()
