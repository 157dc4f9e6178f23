"""Who may come in: whoever shows the agent's gateway token in a header. Nothing in a URL is ever looked at.

Promises: as long as no token is known nobody comes in; the time that a comparison takes tells nothing; the right token
never waits, whatever others try, and nothing is remembered of those who try.
"""

import asyncio
import hmac
from collections.abc import Iterator

from aiohttp import web

from roost_agent.contract.paths import GATEWAY_TOKEN_HEADERS
from roost_agent.servers.site import Problem, later

__all__ = ["PROXY_TOKEN_HEADERS", "admit"]

PROXY_TOKEN_HEADERS = ("X-Roost-Proxy-Token", "X-KiloClaw-Proxy-Token")
"""Open the proxy alone, canonical name first: for callers whose `Authorization` is meant for the gateway."""
_WRONG_SECONDS = 0.25
"""How long a wrong token waits for its answer, and its connection is closed: each connection is one guess."""


async def admit(request: web.BaseRequest, token: str | None, *others: str) -> None:
    """Returns for a caller who shows the token as bearer, in a gateway token's header, or in one of the others.

    Raises:
        Problem: 401 for everybody else, 503 while there is no token.
    """
    if not token:
        raise later("not_ready", "this machine does not know its token yet: try again")
    shown = [*_bearer(request), *(v for name in (*GATEWAY_TOKEN_HEADERS, *others) for v in _values(request, name))]
    # Every one is compared, whichever is right.
    right = sum(hmac.compare_digest(each, token.encode()) for each in shown)
    if right:
        return
    if shown:
        await asyncio.sleep(_WRONG_SECONDS)
    bearer = {"WWW-Authenticate": "Bearer"}
    raise Problem(401, "unauthorized", "show the agent's gateway token: Authorization: Bearer <token>", headers=bearer)


def _values(request: web.BaseRequest, name: str) -> Iterator[bytes]:
    for value in request.headers.getall(name, ()):
        yield value.encode(errors="surrogateescape")


def _bearer(request: web.BaseRequest) -> Iterator[bytes]:
    """The one bearer token; with several, it would not be certain which of them the gateway takes."""
    given = list(_values(request, "Authorization"))
    if len(given) == 1:
        scheme, _, value = given[0].partition(b" ")
        if scheme.lower() == b"bearer":
            yield value.strip()
