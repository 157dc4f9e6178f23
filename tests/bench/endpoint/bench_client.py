"""Agents as the endpoint sees them: keep-alive connections that say what they are told to, on raw sockets.

What they cost is of no interest, so they cost little: no HTTP library, one buffer, one request at a time. They come
from several loopback addresses, so that ports last, and end by a reset, so that none stays in TIME_WAIT.
"""

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from roost_agent.contract import MACHINE_ID_HEADER, TOKEN_HEADER, bundle_path, heartbeat_path

ADDRESSES = 8
"""Loopback addresses that agents come from: 127.0.1.1 and up."""
_BIND_ADDRESS_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT of <linux/in.h>: the port is chosen at connect, so that addresses share ports."""


class Lost(Exception):
    """The connection ended before its answer was there."""


class Answer(NamedTuple):
    """What came back, and when it was whole (`time.monotonic()`: uvloop's own clock stands still within a turn)."""

    status: int
    body: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Caller:
    """An agent: who it is, how it proves that, and what it runs."""

    did: str
    token: str
    machine: str
    revision: str | None = None

    def beat(self, wait: int = 0) -> bytes:
        """The request of a heartbeat that says all there is to say, as the supervisor's does."""
        query = f"?wait={wait}" if wait else ""
        return self._request("POST", f"{heartbeat_path(self.did)}{query}", json.dumps(self._said()).encode())

    def fetch(self) -> bytes:
        """The request of the bundle, unless it is still the one at hand."""
        known = f'If-None-Match: "{self.revision}"\r\n' if self.revision else ""
        return self._request("GET", bundle_path(self.did), b"", known)

    def runs(self, revision: str) -> "Caller":
        """The same agent with another bundle."""
        return replace(self, revision=revision)

    def _said(self) -> dict[str, Any]:
        return {
            "status": "running",
            "openclawVersion": "2026.9.6",
            "machineId": self.machine,
            "uptimeSeconds": 86_400,
            "memoryMb": 41,
            "computeVersion": "0.1.0",
            "bundleRevision": self.revision,
            "bootPhase": "done",
            "ready": True,
            "degraded": [],
            "runtime": {"state": "running", "pid": 117, "restarts": 0, "lastExit": None},
            "disk": {"usedBytes": 734_003_200, "totalBytes": 10_737_418_240},
            "channels": {"telegram": {"state": "connected", "lastError": None}},
            "pendingPairings": 0,
            "activeSessions": 1,
            "lastActivityAt": "2026-11-21T12:00:00Z",
            "connections": 2,
        }

    def _request(self, method: str, path: str, body: bytes, more: str = "") -> bytes:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: roost-endpoint.roost-system.svc:8081\r\n"
            f"{TOKEN_HEADER}: {self.token}\r\n{MACHINE_ID_HEADER}: {self.machine}\r\n"
            f"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nUser-Agent: roost-agent/0.1.0\r\n{more}"
        )
        sent = f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n" if body else ""
        return f"{head}{sent}\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One connection to the endpoint; made by `connected`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._answer: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast("asyncio.Transport", transport), True  # uvloop's are none by class

    def connection_lost(self, _: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Lost("the server ended the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if (end := self._buffer.find(b"\r\n\r\n")) < 0:
            return
        head = self._buffer[:end].lower()
        _, _, length = head.partition(b"\r\ncontent-length:")
        whole = end + 4 + (int(length.partition(b"\r\n")[0]) if length else 0)
        if len(self._buffer) < whole:
            return
        answer = Answer(int(head[9:12]), self._buffer[end + 4 : whole], time.monotonic())
        self._buffer = self._buffer[whole:]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    async def ask(self, request: bytes) -> Answer:
        """The answer to a request.

        Raises:
            Lost: there is none.
        """
        if not self.open:
            raise Lost("the connection is closed")
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.abort()


async def connected(address: tuple[str, int], number: int, tls: ssl.SSLContext | None = None) -> Connection:
    """A new connection; its number chooses the address from which it comes.

    Raises:
        OSError: the server does not take it.
    """
    loop = asyncio.get_running_loop()
    caller = socket.socket()
    try:
        caller.setblocking(False)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        caller.bind((f"127.0.1.{1 + number % ADDRESSES}", 0))
        await loop.sock_connect(caller, address)
        _, connection = await loop.create_connection(
            Connection, sock=caller, ssl=tls, server_hostname="localhost" if tls else None
        )
    except BaseException:
        caller.close()
        raise
    return connection


async def connect_all(address: tuple[str, int], count: int, tls: ssl.SSLContext | None = None) -> list[Connection]:
    """So many connections, all at once."""
    return await asyncio.gather(*(connected(address, number, tls) for number in range(count)))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all is not above; of none, infinity."""
    if not values:
        return float("inf")
    return sorted(values)[max(0, -(-len(values) * int(share * 1000) // 1000) - 1)]
