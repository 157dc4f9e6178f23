"""POST check-in: the figures of an agent, who proves itself twice, by its heartbeat token and by its gateway token.

Promises: whoever fails either proof, names an agent that does not exist, or another in the body than in the path, gets
the same 403, after equal work. Figures that can't be kept are no reason to refuse a call. A standby passes a check-in
on to the leader. Never logs a token or a body.
"""

import asyncio
import base64
import hmac
import re
from collections.abc import Callable

import structlog
from aiohttp import web

from roost.agents.sessions import Sessions
from roost.endpoint.relay import Relay
from roost.endpoint.walls import Problem, Route, Walls, bearer, body, connection, stranger, text, understood
from roost.kube.client import Gone, Kube, KubeError, core_secret
from roost.settings import GatewaySecret
from roost.telemetry.metrics import Metrics
from roost_agent.contract import (
    CHECKIN_ROUTES,
    GATEWAY_TOKEN_HEADERS,
    MACHINE_ID_HEADER,
    Checkin,
    seed_gateway_token,
)

log = structlog.get_logger(__name__)
_SEED_FORM = re.compile("[0-9a-f]{64}")
_SETTING = "endpoint.gatewaySecret"
_LIFE_SECONDS, _RETRY_SECONDS = 30.0, 5.0


class SeedSecret:
    """The secret from which the seed systems make gateway tokens; read by name, kept for half a minute.

    Args:
        named: which core Secret and key hold it; None when no agents of the seed systems are expected.
        clock: seconds, monotonic.
    """

    def __init__(self, kube: Kube, namespace: str, named: GatewaySecret | None, clock: Callable[[], float]) -> None:
        self._kube, self._namespace, self._named, self._clock = kube, namespace, named, clock
        self._value: str | None = None
        self._read_again_at = float("-inf")
        self._lock = asyncio.Lock()

    async def __call__(self) -> str:
        """The secret as it is now; an old one while Kubernetes is away.

        Raises:
            Problem: 503; none is set, or it can't be had.
        """
        if self._named is None:
            why = f"the gateway token is of another system, and {_SETTING} is not set"
            raise Problem(503, "no_gateway_secret", why, retry_after=60)
        async with self._lock:
            if self._clock() >= self._read_again_at:
                await self._read(self._named)
            if self._value is None:
                raise Problem(503, "no_gateway_secret", f"what {_SETTING} names can't be read", retry_after=5)
            return self._value

    async def _read(self, named: GatewaySecret) -> None:
        where = f"{self._namespace}/{named.secret_name}"
        try:
            data = (await self._kube.get(core_secret(self._namespace, named.secret_name))).get("data") or {}
            self._value = base64.b64decode(data.get(named.secret_key, "")).decode().strip() or None
            if self._value is None:
                log.warning("no gateway secret", secret=where, key=named.secret_key, why="no such key, or it is empty")
        except Gone:
            self._value = None
            log.warning("no gateway secret", secret=where, why="no such Secret")
        except ValueError:
            self._value = None
            log.warning("no gateway secret", secret=where, key=named.secret_key, why="its value is no text")
        except KubeError as error:
            log.warning("the gateway secret can't be read", secret=where, error=str(error))
        self._read_again_at = self._clock() + (_LIFE_SECONDS if self._value else _RETRY_SECONDS)


def routes(walls: Walls, sessions: Sessions, relay: Relay, seed_secret: SeedSecret, metrics: Metrics) -> list[Route]:
    """The check-in under its own and its older path."""

    async def checkin(request: web.BaseRequest, did: str) -> web.Response:
        walls.opened()
        token, gateway = bearer(request), _gateway_token(request)
        if not token or not gateway:
            needed = f"send Authorization: Bearer and {GATEWAY_TOKEN_HEADERS[0]}"
            raise Problem(401, "unauthorized", needed)
        content = await body(request)
        said = understood(Checkin, content)
        secret = await seed_secret() if _SEED_FORM.fullmatch(gateway) else None
        session = sessions.authenticate(said.sandbox_id, token)
        if secret is None:
            second = sessions.authenticate(said.sandbox_id, gateway, "gateway") is not None
        else:
            second = hmac.compare_digest(seed_gateway_token(secret, said.sandbox_id), gateway)
        if session is None or not second or did not in ("", said.sandbox_id):
            raise stranger()
        connection(request).caller = session
        walls.pace(said.sandbox_id)
        if relay.needed:
            return await relay.pass_on(request, content)
        walls.current(session, request.headers.get(MACHINE_ID_HEADER), said.machine_id)
        try:
            sessions.check_in(session, said)
        except Exception as error:  # whatever it is, the agent can't do anything about it
            log.error("figures lost", namespace=session.key.namespace, agent=session.key.name, why=type(error).__name__)
        return web.Response(status=204)

    return [Route("POST", CHECKIN_ROUTES, checkin, metrics.checkins)]


def _gateway_token(request: web.BaseRequest) -> str:
    given = (request.headers.get(name) for name in GATEWAY_TOKEN_HEADERS)
    return text(next(filter(None, given), "").strip())
