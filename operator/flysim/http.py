"""The simulator on a socket: turns HTTP requests into calls and answers into responses, and nothing else."""

from aiohttp import web

from flysim.inside import respond
from flysim.sim import Sim


class Server:
    """An HTTP server in front of a `Sim`."""

    def __init__(self, sim: Sim) -> None:
        self._sim = sim
        # Calls that wait (up to a minute) must not hold up the end.
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=0.1)

    async def start(self, host: str, port: int) -> str:
        """Listens, and returns the base URL; port 0 takes a free one. Raises OSError."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024).start()
        address = self._runner.addresses[0]
        self._sim.oidc.url = f"http://{address[0]}:{address[1]}"
        return self._sim.oidc.url

    async def close(self) -> None:
        """Stops listening; calls that still wait are cut."""
        await self._runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        return await respond(request, self._sim.handle)
