"""Those who mean harm, all at once, against an endpoint, until standard input ends: a process of its own.

    python bench_attackers.py --port 8081 --callers FILE --share 1.0

The last agent of the file is a rogue: its token is good. All others are known by their DID alone, as anybody may know
it. Whoever is thrown out comes again at once. At the end one JSON line tells how often each way was begun anew, and
what was answered to those who listen.
"""

import argparse
import asyncio
import json
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import uvloop
from bench_client import Caller, Lost, connected

from roost_agent.contract import TOKEN_HEADER, heartbeat_path

HUGE = 1 << 30
CHUNK = bytes(64 * 1024)
FLOOD_PAUSE_SECONDS = 0.008
"""Between chunks: all who flood together send up to 130 MB a second, as much as fits through a gigabit network."""
DRIP_SECONDS = 1.0
SMALL_BUFFER = 4096


class Attack:
    """All ways; `ways` says how many connections each has at full strength."""

    def __init__(self, address: tuple[str, int], callers: list[Caller]) -> None:
        self._address, self._victims, self._rogue = address, callers[:-1], callers[-1]
        self._loop = asyncio.get_running_loop()
        self.begun: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()
        self.ways: dict[Callable[[int], Awaitable[None]], int] = {
            self._wrong_tokens: 64,
            self._short_calls: 8,
            self._huge_body: 8,
            self._endless_chunks: 8,
            self._slow_head: 300,
            self._slow_body: 300,
            self._silent: 300,
            self._never_reads: 100,
        }

    async def run(self, share: float) -> None:
        """Until cancelled, with this share of full strength."""
        async with asyncio.TaskGroup() as tasks:
            for way, strength in self.ways.items():
                for number in range(max(1, round(strength * share))):
                    tasks.create_task(self._again(way, number))

    async def _again(self, way: Callable[[int], Awaitable[None]], number: int) -> None:
        while True:
            self.begun[way.__name__.strip("_")] += 1
            with suppress(OSError, Lost):
                await way(number)
            await asyncio.sleep(0.01)

    # --- Ways ------------------------------------------------------------------------------------------------------

    async def _wrong_tokens(self, number: int) -> None:
        """As fast as it is refused, on one connection: for agents there are, and for agents there are none."""
        requests = [self._forged(number, known=known) for known in (True, False)]
        connection = await connected(self._address, number)
        try:
            while True:
                for request in requests:
                    self.answers[(await connection.ask(request)).status] += 1
        finally:
            connection.close()

    async def _short_calls(self, number: int) -> None:
        """A connection for each wrong token."""
        connection = await connected(self._address, number)
        try:
            self.answers[(await connection.ask(self._forged(number, known=True))).status] += 1
        finally:
            connection.close()

    async def _huge_body(self, number: int) -> None:
        """A gigabyte, and it says so."""
        await self._flood(self._head(f"Content-Length: {HUGE}\r\n"), CHUNK)

    async def _endless_chunks(self, number: int) -> None:
        """It does not say how much it will be."""
        chunk = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
        await self._flood(self._head("Transfer-Encoding: chunked\r\n"), chunk)

    async def _flood(self, head: bytes, more: bytes) -> None:
        with await self._opened() as connection:
            await self._loop.sock_sendall(connection, head)
            while True:
                await self._loop.sock_sendall(connection, more)
                await asyncio.sleep(FLOOD_PAUSE_SECONDS)

    async def _slow_head(self, number: int) -> None:
        await self._drip(self._head("X-Slow: ").removesuffix(b"\r\n"))

    async def _slow_body(self, number: int) -> None:
        await self._drip(self._head("Content-Length: 10000\r\n"))

    async def _drip(self, begin: bytes) -> None:
        with await self._opened() as connection:
            await self._loop.sock_sendall(connection, begin)
            while True:
                await asyncio.sleep(DRIP_SECONDS)
                await self._loop.sock_sendall(connection, b"x")

    async def _silent(self, number: int) -> None:
        """Half open: nothing is ever sent, and it is not told that anybody goes."""
        with await self._opened() as connection:
            await self._loop.sock_recv(connection, 1)

    async def _never_reads(self, number: int) -> None:
        """Asks and asks, and takes no answer."""
        forged = self._forged(number, known=True)
        with await self._opened() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            while True:
                await self._loop.sock_sendall(connection, forged)
                await asyncio.sleep(0)  # a send that need not wait lets nobody else in

    # --- What they have --------------------------------------------------------------------------------------------

    def _forged(self, number: int, *, known: bool) -> bytes:
        victim = self._victims[number % len(self._victims)]
        did = victim.did if known else victim.did[:-6] + "zzzzzz"
        return Caller(did, "A" * len(victim.token), victim.machine).beat()

    def _head(self, more: str) -> bytes:
        who = f"Host: x\r\n{TOKEN_HEADER}: {self._rogue.token}\r\n"
        return f"POST {heartbeat_path(self._rogue.did)} HTTP/1.1\r\n{who}{more}\r\n".encode()

    async def _opened(self) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            await self._loop.sock_connect(connection, self._address)
        except BaseException:
            connection.close()
            raise
        return connection


async def attack(address: tuple[str, int], callers: list[Caller], share: float) -> Attack:
    """Attacks until standard input ends."""
    attack = Attack(address, callers)
    attacking = asyncio.create_task(attack.run(share))
    told = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({attacking, told}, return_when=asyncio.FIRST_COMPLETED)
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)
    return attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--callers", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    os.nice(5)  # who measures comes first
    callers = [Caller(*json.loads(line)) for line in options.callers.read_text().splitlines()]
    made = uvloop.run(attack(("127.0.0.1", options.port), callers, options.share))
    print(json.dumps({"begun": made.begun, "answers": made.answers}))


if __name__ == "__main__":
    main()
