"""The supervisor's own port: a machine that boots slowly or limps can be told from one that is dead.

`/healthz` answers 200 for as long as the supervisor lives, also while the runtime does not: the platform must not kill
a machine that can still be repaired from afar. `/readyz` says whether the runtime is ready. Neither tells a secret.
"""

from aiohttp import web

from roost_agent.vitals import Vitals

__all__ = ["serve"]


async def serve(vitals: Vitals, address: str | None, port: int) -> web.AppRunner:
    """Opens the port; the caller ends it with `cleanup()`.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """

    def body() -> dict[str, str]:
        return {"status": vitals.status, "phase": vitals.phase}

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response(body())

    async def readyz(_: web.Request) -> web.Response:
        return web.json_response(body(), status=200 if vitals.ready else 503)

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
