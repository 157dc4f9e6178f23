"""Passes a heartbeat that came to a standby on to the leader, whose address stands in the Lease.

Promises: the leader's answer arrives as it is; without one the agent is asked to come again (503). A heartbeat is
passed on once at most, whatever the replicas believe of each other. Where the endpoint has a certificate, only whoever
holds its key is told a token. Never logs a token or a body.
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from roost.endpoint.problems import Problem
from roost.endpoint.tls import Certificate
from roost_agent.contract import GATEWAY_TOKEN_HEADERS, MACHINE_ID_HEADER, MAX_WAIT_SECONDS, TOKEN_HEADER

PASSED_ON_HEADER = "X-Roost-Passed-On"
_CONNECT_SECONDS = 2.0
_MARGIN_SECONDS = 10.0
_THEIRS = ("Authorization", TOKEN_HEADER, *GATEWAY_TOKEN_HEADERS, MACHINE_ID_HEADER, "Content-Type")
_BACK = ("Cache-Control", "Content-Type", "Retry-After")


class NoLeader(Problem):
    """Nobody takes heartbeats just now; the message says why."""

    def __init__(self, why: str) -> None:
        super().__init__(503, "no_leader", why, retry_after=2)


class Relay:
    """The way to the leader. Use as an async context manager.

    Args:
        leads: whether this replica is the leader, so that nothing is to be passed on.
        address: the leader's endpoint, scheme, host and port; None while nobody is known to lead.
        certificate: the endpoint's, which the leader must show; None where replicas speak plain HTTP.
    """

    def __init__(
        self,
        leads: Callable[[], bool],
        address: Callable[[], str | None],
        certificate: Certificate | None = None,
    ) -> None:
        self._leads, self._address, self._certificate = leads, address, certificate

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=MAX_WAIT_SECONDS + _MARGIN_SECONDS, connect=_CONNECT_SECONDS)
        # Each heartbeat that is held has a connection of its own: the endpoint bounds how many there are.
        self._session = aiohttp.ClientSession(
            timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=0)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @property
    def needed(self) -> bool:
        """Whether heartbeats are another replica's business."""
        return not self._leads()

    async def pass_on(self, request: web.BaseRequest, body: bytes) -> web.Response:
        """The leader's answer.

        Raises:
            NoLeader: there is none that answers.
        """
        address, certificate = self._address(), self._certificate
        if address is None or PASSED_ON_HEADER in request.headers:
            raise NoLeader("no replica of the operator is known to lead")
        if certificate is not None and not address.startswith("https://"):
            raise NoLeader("the leader has no certificate yet")
        headers = {name: request.headers[name] for name in _THEIRS if name in request.headers} | {PASSED_ON_HEADER: "1"}
        url = f"{address}{request.rel_url}"
        try:
            try:
                return await self._ask(url, body, headers)
            except aiohttp.ClientConnectorCertificateError:
                if certificate is None or not await certificate.doubt():
                    raise
                return await self._ask(url, body, headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoLeader("the leader does not answer") from error

    async def _ask(self, url: str, body: bytes, headers: Mapping[str, str]) -> web.Response:
        trusted = self._certificate.peers if self._certificate is not None else True
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False, ssl=trusted) as answer:
            content = await answer.read()
        back = {name: answer.headers[name] for name in _BACK if name in answer.headers}
        return web.Response(status=answer.status, body=content, headers=back)
