"""The access log: one structured line an answer, that can be kept and shown to anybody.

Promises: no header, no body, no token, no value of a query, and no name before it was proved. Refusals and failures at
level info, so many a second at most; the next line says how many were left out. Successes at level debug.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

if TYPE_CHECKING:
    from roost.endpoint.connection import Connection

log = structlog.get_logger(__name__)
LINES_A_SECOND = 10.0
BURST = 50.0


class AccessLog:
    """Where answers are told.

    Args:
        clock: seconds, monotonic.
        successes: whether level debug is on.
    """

    def __init__(self, clock: Callable[[], float], *, successes: bool) -> None:
        self._clock, self._successes = clock, successes
        self._allowance, self._at, self._left_out = BURST, clock(), 0

    def tell(
        self, request: web.BaseRequest, answer: web.StreamResponse, connection: "Connection", seconds: float
    ) -> None:
        """One answer, on its way or taken."""
        problem = answer.status >= 400
        if not (problem and self._room()) and not (self._successes and not problem):
            return
        caller, peer = connection.caller, connection.peername
        fields: dict[str, object] = {
            "method": request.method if request.method in _METHODS else "other",
            "route": connection.route,
            "status": answer.status,
            "peer": peer[0] if isinstance(peer, tuple) else "",
            "duration_ms": round(seconds * 1000, 1),
            "bytes": answer.body_length if answer.prepared else 0,
        }
        if caller is not None:
            fields |= {"did": caller.did, "namespace": caller.key.namespace, "name": caller.key.name}
        if problem:
            if self._left_out:
                fields["left_out"], self._left_out = self._left_out, 0
            log.info("refused" if answer.status < 500 else "failed", **fields)
        else:
            log.debug("answered", **fields)

    def _room(self) -> bool:
        now = self._clock()
        self._allowance = min(BURST, self._allowance + (now - self._at) * LINES_A_SECOND)
        self._at = now
        if self._allowance < 1:
            self._left_out += 1
            return False
        self._allowance -= 1
        return True


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are a caller's own words."""
