"""Knows when a runtime is ready: by what it answers, or, when it was not said how to ask, by staying alive."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from roost_agent.contract.bundle import HttpGet

__all__ = ["TIMEOUT", "Look", "by_http", "follow", "settle"]

Look = Callable[[], Awaitable[bool]]
"""One look: is it ready now?"""

TIMEOUT = aiohttp.ClientTimeout(total=3)
_SETTLED_SECONDS = 1.0
_FIRST_LOOK_SECONDS = 0.1
_LOOK_SECONDS = 5.0
_MISSES = 3


def by_http(web: aiohttp.ClientSession, address: str, get: HttpGet) -> Look:
    """Ready is what answers with 200 to 399, as Kubernetes reads an httpGet probe."""
    url = f"http://[{address}]:{get.port}{get.path}" if ":" in address else f"http://{address}:{get.port}{get.path}"

    async def look() -> bool:
        try:
            async with web.get(url, allow_redirects=False) as answer:
                return 200 <= answer.status < 400
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    return look


async def settle(tell: Callable[[bool], None]) -> None:
    """Ready after a second: a process that dies at once never counts as ready, however often it is started."""
    await asyncio.sleep(_SETTLED_SECONDS)
    tell(True)
    await asyncio.Event().wait()  # nothing more to look at, until it is cancelled


async def follow(look: Look, deadline: float, tell: Callable[[bool], None]) -> None:
    """Tells whenever it becomes ready, or is no longer (three misses in a row, 5 s apart).

    Returns only when it was not ready within its first deadline, in seconds; else it goes on until cancelled.
    """
    try:
        async with asyncio.timeout(deadline):
            while not await look():  # noqa: ASYNC110 - the state of another process, told by nobody
                await asyncio.sleep(_FIRST_LOOK_SECONDS)
    except TimeoutError:
        return
    tell(True)
    misses = 0
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        misses = 0 if await look() else misses + 1
        tell(misses < _MISSES)
