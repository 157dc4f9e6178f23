"""Callers of the machine's servers, down to single bytes, and a gateway of the tests behind its proxy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

TOKEN = "gateway-token-of-this-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SECONDS = 5.0
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Answered:
    """A whole answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def asked(port: int, what: bytes) -> Answered:
    """One request as these bytes, and its answer, which must be whole."""
    reader, writer = await connected(port)
    writer.write(what)
    try:
        async with asyncio.timeout(SECONDS):
            return await answer(reader, head_only=what.startswith(b"HEAD "))
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answered:
    status, headers = await head(reader)
    if head_only or status in (101, 204, 304):
        body = b""
    elif headers.get("transfer-encoding") == "chunked":
        body = b"".join([piece async for piece in chunks(reader)])
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return Answered(status, headers, body)


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in pairs}


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The pieces of a chunked body; IncompleteReadError when it breaks off."""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


def request(line: str, *headers: str, body: bytes = b"", token: str | None = TOKEN) -> bytes:
    """A request of HTTP/1.1, with the token as bearer unless it is left out."""
    shown = [] if token is None else [f"Authorization: Bearer {token}"]
    return "\r\n".join([f"{line} HTTP/1.1", "Host: agent.test", *shown, *headers, "", ""]).encode("latin-1") + body


@dataclass
class Gateway:
    """What the gateway of the tests has seen: the raw head of each request."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    open: int = 0


@asynccontextmanager
async def gateway(script: Script) -> AsyncIterator[Gateway]:
    """A gateway that reads a head and then goes on as the script says."""
    seen = Gateway()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.open += 1
        try:
            seen.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            seen.open -= 1
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()


def says(text: bytes) -> Script:
    """A gateway that answers this, whatever it is asked."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()

    return script


def json_request(path: str, body: bytes, *headers: str, **more: Any) -> bytes:
    return request(f"POST {path}", f"Content-Length: {len(body)}", *headers, body=body, **more)


class Passed:
    """True once so many seconds have passed."""

    def __init__(self, seconds: float) -> None:
        self._until = asyncio.get_running_loop().time() + seconds

    def __call__(self) -> bool:
        return asyncio.get_running_loop().time() >= self._until
