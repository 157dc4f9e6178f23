"""Follows one life of a gateway: knows when it is ready, and when it can no longer be helped but by a new start.

Ready is what answers /healthz, then says "started" on /startupz, then takes the supervisor for its operator. From then
on only /healthz counts: one whose listener is closed while its process lives on answers nothing, and is wedged. What
/readyz says is never a reason to start anew: it stays 503 for as long as one messenger's token is wrong.
"""

import asyncio
from collections.abc import Awaitable, Callable

from roost_agent.runtime import Tell
from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway

__all__ = ["follow"]

_FIRST_LOOK_SECONDS = 0.1
_LOOK_SECONDS = 10.0
_ANSWER_SECONDS = 5.0
_MISSES = 3


async def follow(
    tell: Tell,
    gateway: Gateway,
    *,
    deadline: float,
    while_ready: Callable[[], Awaitable[None]],
    look_seconds: float = _LOOK_SECONDS,
    answer_seconds: float = _ANSWER_SECONDS,
) -> str:
    """Returns, with the reason, when the process must be started anew; to be cancelled when it ends.

    Args:
        tell: Hears True once it is ready, False in the end.
        gateway: Connected here, for as long as the process lives.
        deadline: In so many seconds it must be ready.
        while_ready: Runs from the moment when it is ready; cancelled in the end.
        look_seconds: Between two looks at it, once it is ready.
        answer_seconds: For how long an answer is waited for.
    """
    missing = "/healthz does not answer"
    async with gateway.life():
        try:
            async with asyncio.timeout(deadline) as limit:
                await _until(lambda: _healthy(gateway, answer_seconds))
                missing = "/startupz does not say started"
                await _until(lambda: _started(gateway, answer_seconds))
                missing = ""
                async with gateway.connected():
                    await gateway.hello()
                    limit.reschedule(None)
                    tell(True)
                    beside = asyncio.ensure_future(while_ready())
                    try:
                        return await _wedged(gateway, beside, look_seconds, answer_seconds)
                    finally:
                        beside.cancel()
                        tell(False)
        except TimeoutError:
            if not limit.expired():
                raise
            return f"not ready in {deadline:g} s: {missing or gateway.why}"


async def _wedged(gateway: Gateway, beside: asyncio.Future[None], look_seconds: float, answer_seconds: float) -> str:
    """Waits until it does not answer any more."""
    misses = 0
    while misses < _MISSES:
        await asyncio.wait({beside}, timeout=look_seconds)
        if beside.done():
            beside.result()  # it ends by a defect only, and that must not pass for a quiet gateway
            raise AssertionError("what runs while it is ready runs until it is cancelled")
        misses = 0 if await _healthy(gateway, answer_seconds) else misses + 1
    return f"/healthz did not answer {_MISSES} times"


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    while not await look():  # noqa: ASYNC110 - the state of another process, told by nobody
        await asyncio.sleep(_FIRST_LOOK_SECONDS)


async def _healthy(gateway: Gateway, seconds: float) -> bool:
    try:
        status, _ = await gateway.get("/healthz", seconds)
    except GatewayAway:
        return False
    return status == 200


async def _started(gateway: Gateway, seconds: float) -> bool:
    """It says so itself: versions before 2026.8 answer every path with a page and the status 200."""
    try:
        status, said = await gateway.get("/startupz", seconds)
    except GatewayAway:
        return False
    return status == 200 and isinstance(said, dict) and said.get("status") == "started"
