"""One request and its answer, independent of the door through which it came."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flysim.requests import Query

if TYPE_CHECKING:
    from flysim.records import Machine


@dataclass(slots=True)
class Call:
    """A request on its way through the simulator.

    `headers` are in lower case, `at` is epoch seconds. The handlers fill in what the call turns out to be about (for
    the ledger; `name` is the machine's or volume's), and `effect` when it changes something. `inside` is the machine
    that asks, over its own socket.
    """

    method: str
    path: str
    query: Query
    headers: Mapping[str, str]
    body: bytes
    at: float
    op: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    token: str = field(default="", repr=False)
    org: str | None = None
    app: str | None = None
    machine: str | None = None
    volume: str | None = None
    name: str | None = None
    effect: str | None = None
    inside: "Machine | None" = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets; `cut` means that the connection ends before a single byte of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool = False


def answer(status: int, value: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with a JSON body, plain text for a str, or no body for None."""
    if value is None:
        return Answer(status, dict(headers or {}), b"")
    if isinstance(value, str):
        kind, body = "text/plain; charset=utf-8", value.encode()
    else:
        kind, body = "application/json; charset=utf-8", json.dumps(value, separators=(",", ":")).encode()
    return Answer(status, {"content-type": kind, **(headers or {})}, body)
