"""Who has asked for leave to write to the agent, and the answer to them.

OpenClaw answers a stranger with a code of eight characters, good for an hour. Its RPC lists the requests without their
codes, so a code is looked up in its database (see codes.py) and the request is then approved as any other. An unknown
code is answered as a wrong one is: after the same work, in the same words.
"""

import hmac
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roost_agent.runtime import Run, User
from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway, GatewayError

__all__ = ["NoSuchPairing", "NotReady", "Pairing", "Pairings"]

_PROGRAM = Path(__file__).with_name("codes.py")
_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_CODE = re.compile(r"[A-Za-z0-9]{1,32}")
_MOST = 100
_LONGEST = 256
_READ_SECONDS = 10.0
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class NotReady(Exception):
    """OpenClaw can't be asked now; try again."""


class NoSuchPairing(Exception):
    """Nobody waits under this code or id, or not any more."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Somebody who waits for leave. `code` is what they were told, None when that can't be found out.

    `id` and `sender` are opaque; `name` is what they call themselves, and may be anything. Times are RFC 3339.
    """

    channel: str
    account: str
    id: str
    sender: str
    code: str | None
    name: str | None
    created_at: str | None
    expires_at: str | None


class Pairings:
    """The pairing requests of one gateway.

    Args:
        state: OpenClaw's state directory.
        user: As whom its database is read: the agent's user.
    """

    def __init__(self, gateway: Gateway, state: Path, run: Run, user: User | None) -> None:
        self._gateway = gateway
        self._database = state / "state" / "openclaw.sqlite"
        self._run = run
        self._user = user
        self._codes: dict[str, str | None] = {}
        """Of each request that is pending: a database is read once for each, not at every look."""

    async def list(self) -> Sequence[Pairing]:
        """All who wait.

        Raises:
            NotReady
        """
        pending = await self._pending()
        if any(found.id not in self._codes for found in pending):
            await self._look_up(pending)
        self._codes = {found.id: self._codes.get(found.id) for found in pending}
        return [replace(found, code=self._codes[found.id]) for found in pending]

    async def approve(self, channel: str, *, id: str | None = None, code: str | None = None) -> Pairing:  # noqa: A002
        """Lets one in, by id or by code.

        Raises:
            NotReady, NoSuchPairing
        """
        found = await self._by_code(channel, code) if code is not None else await self._by_id(channel, id or "")
        await self._decide("channels.pairing.approve", found)
        return found

    async def dismiss(self, channel: str, *, id: str) -> Pairing:  # noqa: A002
        """Turns one away.

        Raises:
            NotReady, NoSuchPairing
        """
        found = await self._by_id(channel, id)
        await self._decide("channels.pairing.dismiss", found)
        return found

    async def _by_id(self, channel: str, id_: str) -> Pairing:
        for found in await self._pending():
            if found.channel == channel and found.id == id_:
                return found
        raise _nobody()

    async def _by_code(self, channel: str, code: str) -> Pairing:
        pending = await self._pending()
        # Read afresh, whatever is known already, and compared with every one: the time taken tells nothing.
        await self._look_up(pending)
        wanted = code.upper().encode() if _CODE.fullmatch(code) else b""
        matching = [
            found
            for found in pending
            if hmac.compare_digest((self._codes.get(found.id) or "").encode(), wanted) and found.channel == channel
        ]
        if not wanted or len(matching) != 1:
            raise _nobody()
        return replace(matching[0], code=code.upper())

    async def _pending(self) -> Sequence[Pairing]:
        rows = (await self._call("channels.pairing.list", {})).get("requests")
        found = (_pairing(row) for row in (rows if isinstance(rows, list) else [])[:_MOST])
        return [pairing for pairing in found if pairing is not None]

    async def _decide(self, method: str, one: Pairing) -> None:
        await self._call(method, {"channel": one.channel, "accountId": one.account, "requestId": one.id})

    async def _call(self, method: str, params: Mapping[str, str]) -> dict[str, Any]:
        try:
            return await self._gateway.call(method, params)
        except GatewayAway as error:
            raise NotReady(str(error)) from None
        except GatewayError as error:
            if error.retry_after is None and method != "channels.pairing.list":
                raise _nobody() from None
            raise NotReady(error.text) from None

    async def _look_up(self, pending: Sequence[Pairing]) -> None:
        codes = await self._read()
        for found in pending:
            self._codes[found.id] = codes.get((found.channel, found.account, found.sender))

    async def _read(self) -> Mapping[tuple[str, str, str], str]:
        """The codes by channel, account and sender; none when the database can't be read."""
        argv = [sys.executable, "-I", "-S", str(_PROGRAM), str(self._database)]
        try:
            ran = await self._run(argv, env={}, cwd=Path(os.sep), user=self._user, seconds=_READ_SECONDS)
            rows = json.loads(ran.stdout)  # empty when it failed
            return {
                (channel, account, sender): code for channel, account, sender, code in rows if _CODE.fullmatch(code)
            }
        except (OSError, TimeoutError, ValueError, TypeError, RecursionError):
            return {}


def _nobody() -> NoSuchPairing:
    return NoSuchPairing("nobody waits under this code or id: it may be mistyped, used, or older than an hour")


def _pairing(row: object) -> Pairing | None:
    """One request as the RPC tells it; None for what makes no sense."""
    if not isinstance(row, dict):
        return None
    channel, account, id_, sender = (_short(row.get(key)) for key in ("channel", "accountId", "requestId", "senderId"))
    if not (channel and account and id_ and sender and _CHANNEL.fullmatch(channel)):
        return None
    about = row.get("metadata")
    names = [about.get(key) for key in ("username", "firstName", "name")] if isinstance(about, dict) else []
    name = next((_UNPRINTABLE.sub(" ", text)[:_LONGEST] for text in names if isinstance(text, str) and text), None)
    return Pairing(
        channel, account, id_, sender, None, name, _short(row.get("createdAt")), _short(row.get("expiresAt"))
    )


def _short(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST and not _UNPRINTABLE.search(value) else None
