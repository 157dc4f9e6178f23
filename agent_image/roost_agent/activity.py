"""Whether the agent is busy, by signs that are true: what the runtime itself says, and who is connected to it.

The runtime may say what it knows in a small file, whose name it finds in ROOST_ACTIVITY_FILE. It may be wrong or
hostile: a file that is not understood in full counts for nothing, not even with what it said before, since an old "no
sessions" would put a busy agent to sleep. Connections are counted when a heartbeat is due and never otherwise. One that
begins and ends between two heartbeats is not seen; a runtime that lives of such must write the file.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6

import psutil
from pydantic import ConfigDict, ValidationError

from roost_agent.contract.paths import ACTIVITY_FILE
from roost_agent.contract.wire import Count, Time, Wire, instant, refused
from roost_agent.tree import Tree

__all__ = ["Activity", "Signs", "Socket", "from_elsewhere"]

_LARGEST = 4096
_SKEW = timedelta(minutes=1)
"""How far ahead a time of activity may be: a clock that is set between writing and reading does no harm."""
_MOST_PROCESSES = 128
"""Of each one the files are looked through; more would keep a heartbeat waiting."""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Signs:
    """What a heartbeat says of activity; None is what nobody knows. `wrong` says why the file counts for nothing."""

    active_sessions: int | None = None
    last_activity_at: str | None = None
    next_scheduled_run_at: str | None = None
    connections: int | None = None
    wrong: str | None = None


class _Said(Wire):
    """The runtime's file. A field that is not known is a slip of the pen, and saying so is kinder than ignoring it."""

    model_config = ConfigDict(extra="forbid")

    active_sessions: Count | None = None
    last_activity_at: Time | None = None
    next_scheduled_run_at: Time | None = None


@dataclass(frozen=True, slots=True)
class Socket:
    """One end of a TCP connection; without a remote end it listens."""

    address: Address
    port: int
    remote: tuple[Address, int] | None = None


class Activity:
    """One per process.

    Args:
        root: The data directory.
        address: The machine's own address; None when every address that it has is its own.
        now: The wall clock.
    """

    def __init__(self, root: Path, address: str | None, now: Callable[[], datetime]) -> None:
        self._tree = Tree(root)
        self._address = None if address is None else ip_address(address)
        self._now = now
        self._last: datetime | None = None

    def forget(self) -> None:
        """Removes what the runtime said in an earlier life: its sessions ended with it. Blocks on the disk."""
        try:
            self._tree.remove(ACTIVITY_FILE)
        except OSError:
            pass  # whatever keeps it from being removed is told when it is read, or by whoever writes to the volume

    async def look(self) -> Signs:
        """What is known now. The last activity stands still until there is another. Never raises."""
        said, wrong, connections = await asyncio.to_thread(self._see)
        moments = [] if self._last is None else [self._last]
        if said.last_activity_at is not None:
            moments.append(instant(said.last_activity_at))
        if connections:
            moments.append(self._now())
        self._last = max(moments, default=None)
        return Signs(
            active_sessions=said.active_sessions,
            last_activity_at=None if self._last is None else self._last.isoformat(timespec="milliseconds"),
            next_scheduled_run_at=said.next_scheduled_run_at,
            connections=connections,
            wrong=wrong,
        )

    def _see(self) -> tuple[_Said, str | None, int | None]:
        return *self._said(), self._connections()

    def _said(self) -> tuple[_Said, str | None]:
        """What the runtime says, and what is wrong with it."""
        try:
            said = _Said.read(self._tree.read(ACTIVITY_FILE, most=_LARGEST))
        except FileNotFoundError:
            return _Said(), None
        except OSError as error:
            return _Said(), error.strerror or type(error).__name__
        except ValidationError as error:
            return _Said(), f"{ACTIVITY_FILE} is not understood ({refused(error)[:120]})"
        if said.last_activity_at and instant(said.last_activity_at) > self._now() + _SKEW:
            return _Said(), f"{ACTIVITY_FILE} is not understood (lastActivityAt is in the future)"
        return said, None

    def _connections(self) -> int | None:
        try:
            below = psutil.Process().children(recursive=True)
            if len(below) > _MOST_PROCESSES:
                return None
            sockets = {socket for process in below for socket in _sockets(process)}
            return from_elsewhere(sockets, self._address, _addresses())
        except (psutil.Error, OSError, RuntimeError):
            return None  # a process that hides what it has open; half a count would be a lie


def from_elsewhere(runtime: set[Socket], address: Address | None, own: set[Address]) -> int:
    """How many connections others have to the ports on which the runtime listens.

    Args:
        runtime: Every socket of the runtime's processes.
        address: The machine's only address, where it has but one: what arrives at others is not for it.
        own: The addresses that are the machine's where `address` is None.
    """
    ports = {socket.port for socket in runtime if socket.remote is None}
    near = {(socket.address, socket.port) for socket in runtime}

    def counts(socket: Socket) -> bool:
        if socket.remote is None or socket.port not in ports or socket.remote in near:
            return False
        caller = socket.remote[0]
        if address is not None:
            return socket.address == address != caller
        return not caller.is_loopback and caller not in own

    return sum(map(counts, runtime))


def _sockets(process: psutil.Process) -> set[Socket]:
    """Its listening and connected TCP sockets; nothing of one that has ended.

    Raises:
        psutil.AccessDenied: it hides them (prctl(2), PR_SET_DUMPABLE).
    """
    try:
        seen = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    except psutil.AccessDenied:
        if _ended(process):
            return set()
        raise
    return {
        Socket(_address(s.laddr.ip), s.laddr.port, (_address(s.raddr.ip), s.raddr.port) if s.raddr else None)
        for s in seen
        if s.status in (psutil.CONN_LISTEN, psutil.CONN_ESTABLISHED)
    }


def _ended(process: psutil.Process) -> bool:
    """It is gone, or waits to be reaped: only root may then look at what it had open."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _addresses() -> set[Address]:
    """Every IP address of this machine."""
    every = [address for addresses in psutil.net_if_addrs().values() for address in addresses]
    return {_address(address.address) for address in every if address.family in (AF_INET, AF_INET6)}


def _address(text: str) -> Address:
    """Without its zone; an IPv4 address that an IPv6 socket shows is one (RFC 4291 section 2.5.5.2)."""
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
