"""What this machine proves itself with: the OIDC token that Fly makes of it, had over the machine's own socket.

Whoever can open that socket can have one, so it proves the machine and not a process in it. It is never kept.
"""

import re
from pathlib import Path

import aiohttp

__all__ = ["SOCKET", "NoProof", "fly_token"]

SOCKET = Path("/.fly/api")
"""Where Fly puts it (https://fly.io/docs/security/openid-connect)."""
_SECONDS = 5.0
_LONGEST = 7500
"""Characters: it travels in one header."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class NoProof(Exception):
    """Fly gives no token now; the text says why."""


async def fly_token(socket: Path, audience: str) -> str:
    """A token about this machine, good for some minutes.

    Args:
        socket: The machine's own socket.
        audience: For whom the token is; nobody else takes it.

    Raises:
        NoProof: nobody answers there, or not with a token.
    """
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), timeout=timeout) as session,
            session.post("http://localhost/v1/tokens/oidc", json={"aud": audience}, allow_redirects=False) as answer,
        ):
            status, body = answer.status, await answer.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NoProof(f"Fly's socket {socket} does not answer ({type(error).__name__})") from None
    token = body.decode("ascii", errors="replace").strip()
    if status != 200 or len(token) > _LONGEST or not _TOKEN.fullmatch(token):
        raise NoProof(f"Fly's socket {socket} gives no token (status {status})")
    return token
