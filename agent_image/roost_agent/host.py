"""The machine's own figures: traffic, load, disk. What is read from the kernel is parsed apart, without touching it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roost_agent.contract.heartbeat import Disk

__all__ = ["Traffic", "disk", "filled", "load5", "parsed", "region", "since", "traffic"]

_NET_DEV = Path("/proc/net/dev")
_REGION = re.compile(r"[a-z0-9-]{1,16}")
_SENT = 8
"""Of the sixteen figures of an interface the ninth is the bytes sent, the first those received (proc_net(5))."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes received and sent since the kernel began to count."""

    received: int
    sent: int


class Blocks(Protocol):
    """What is used here of statvfs(3)."""

    @property
    def f_frsize(self) -> int: ...
    @property
    def f_blocks(self) -> int: ...
    @property
    def f_bavail(self) -> int: ...


def traffic() -> Traffic | None:
    """What went through the network; None when the kernel does not tell."""
    try:
        return parsed(_NET_DEV.read_text())
    except OSError:
        return None


def parsed(net_dev: str) -> Traffic:
    """The traffic in the text of /proc/net/dev: that of eth0, or without one of all interfaces but lo."""
    found = {}
    for line in net_dev.splitlines():
        name, colon, rest = line.partition(":")
        figures = rest.split()
        if colon and len(figures) > _SENT and figures[0].isdecimal() and figures[_SENT].isdecimal():
            found[name.strip()] = Traffic(int(figures[0]), int(figures[_SENT]))
    if "eth0" in found:
        return found["eth0"]
    others = [seen for name, seen in found.items() if name != "lo"]
    return Traffic(sum(seen.received for seen in others), sum(seen.sent for seen in others))


def since(before: int, now: int) -> int:
    """By how much a counter has grown, never less than nothing: one that is smaller than before began anew."""
    return now - before if now >= before else now


def load5() -> float:
    """The load average over five minutes; 0 when the kernel does not tell."""
    try:
        return os.getloadavg()[1]
    except OSError:
        return 0.0


def region(environ: Mapping[str, str]) -> str | None:
    """Fly's code of where this machine runs; None anywhere else."""
    found = _REGION.fullmatch(environ.get("FLY_REGION", ""))
    return found and found[0]


def disk(directory: Path) -> Disk | None:
    """How full the file system is that holds the directory; None when that can't be told."""
    try:
        return filled(os.statvfs(directory))
    except OSError:
        return None


def filled(blocks: Blocks) -> Disk:
    """What is not available counts as used, also what the file system keeps back for root: the agent can't have it."""
    total, available = blocks.f_blocks * blocks.f_frsize, blocks.f_bavail * blocks.f_frsize
    return Disk(used_bytes=max(0, total - available), total_bytes=total)
