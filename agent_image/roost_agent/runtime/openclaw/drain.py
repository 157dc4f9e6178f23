"""Lets a gateway finish what it has begun, before it is stopped or its state is copied.

This is OpenClaw's cooperative suspension (docs/gateway/external-apps.md): admission is closed, cron stands still, what
was admitted runs to its end. /healthz stays well meanwhile. The lease lasts two minutes and is renewed by asking again
with the same request id; without that admission opens again by itself, so a drain that is forgotten mends itself.
"""

import asyncio

from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway, GatewayError

__all__ = ["drain", "resume"]

_REQUEST = {"requestId": "roost", "drain": True, "terminalPolicy": "terminate"}
"""Terminals that are open do not count: they end with the process. The id is one for all lives of the supervisor."""
_LOOK_SECONDS = 0.5


async def drain(gateway: Gateway, seconds: float) -> bool:
    """Takes on nothing new from now on; True once nothing is under way, False if that was not so in time. Never raises.

    It stays closed for two minutes, unless `resume` opens it.
    """
    try:
        async with asyncio.timeout(seconds):
            while (await _prepare(gateway)).get("status") != "ready":  # noqa: ASYNC110 - told by nobody
                await asyncio.sleep(_LOOK_SECONDS)
    except (TimeoutError, GatewayAway, GatewayError):
        return False
    return True


async def resume(gateway: Gateway) -> None:
    """Opens it again, whether it is drained or not.

    Raises:
        GatewayAway, GatewayError: that did not succeed; it opens by itself after two minutes.
    """
    # Asked again with the same id it names the lease that there is.
    held = await _prepare(gateway)
    if "suspensionId" in held:
        await gateway.call("gateway.suspend.resume", {"suspensionId": held["suspensionId"]})


async def _prepare(gateway: Gateway) -> dict[str, object]:
    while True:
        try:
            return await gateway.call("gateway.suspend.prepare", _REQUEST)
        except GatewayError as error:
            if error.retry_after is None:
                raise
            await asyncio.sleep(min(error.retry_after, _LOOK_SECONDS))
