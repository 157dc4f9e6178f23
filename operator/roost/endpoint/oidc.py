"""Checks the OIDC tokens of Fly machines (https://fly.io/docs/security/openid-connect).

Promises: only RS256 under a key that the pinned issuer shows now; issuer, audience and times hold. A key set is fetched
once for all who wait for it, kept while the issuer is away, and fetched anew for an unknown key at most every few
seconds, so that nobody can make us ask the issuer without end. Never logs a token. Decides nothing about Agents.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt
import orjson
import structlog

log = structlog.get_logger(__name__)
LONGEST_TOKEN = 8192
REFETCH_SECONDS = 10.0
"""How often at most an unknown key makes us ask the issuer."""
KEEP_SECONDS = 3600.0
"""After so long a key set is fetched anew, so that a key that was withdrawn is not trusted for ever."""
LEEWAY_SECONDS = 30
"""How far Fly's clock and ours may be apart."""
_LONGEST_SET = 65_536
_SECONDS = 5.0
_MOST_KEYS = 32
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Three parts in base64url without padding (RFC 7515 section 7.1); a decoder forgives more than that."""
_ALGORITHM = "RS256"
_CLAIMS = ("exp", "iat", "nbf", "iss", "aud", "sub")


class NotProved(Exception):
    """The token is no proof for us; the text says why, and is for the log alone."""


class IssuerAway(Exception):
    """Whether the token is good can't be told now."""


class _KeySet:
    """The keys of one issuer, as they were last fetched. Times are clock seconds."""

    def __init__(self) -> None:
        self.keys: Mapping[str, jwt.PyJWK] | None = None
        self.fetched_at = self.tried_at = float("-inf")
        self.fetching: asyncio.Task[None] | None = None


class Verifier:
    """Checks tokens. `web` asks the issuers, `clock` gives seconds, monotonic."""

    def __init__(self, web: aiohttp.ClientSession, clock: Callable[[], float]) -> None:
        self._web, self._clock = web, clock
        self._sets: dict[str, _KeySet] = {}

    async def claims(self, token: str, issuer: str, audience: str) -> Mapping[str, Any]:
        """What a token says, when it is good.

        Args:
            token: As it came; anything.
            issuer: The only one whose keys count. Never taken from the token.
            audience: For whom it must be.

        Raises:
            NotProved: it is not good.
            IssuerAway: it may be good, and its key can't be had now.
        """
        if not _COMPACT.fullmatch(token):
            raise NotProved("malformed")
        key = await self._key(issuer, _kid(token))
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                issuer=issuer,
                audience=audience,
                leeway=LEEWAY_SECONDS,
                options={"require": list(_CLAIMS), "strict_aud": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise NotProved(type(error).__name__) from None
        return claims

    async def _key(self, issuer: str, kid: str) -> jwt.PyJWK:
        known = self._sets.setdefault(issuer, _KeySet())
        found = (known.keys or {}).get(kid)
        now = self._clock()
        if found is not None and now - known.fetched_at < KEEP_SECONDS:
            return found
        if known.fetching is not None or now - known.tried_at >= REFETCH_SECONDS:
            await self._fetched(issuer, known)
            found = (known.keys or {}).get(kid)
        if found is not None:
            return found
        if known.keys is None or known.fetched_at < known.tried_at:
            raise IssuerAway(f"the keys of {issuer} can't be had")
        raise NotProved("unknown key")

    async def _fetched(self, issuer: str, known: _KeySet) -> None:
        """Returns when the key set was asked for, by whomever. A caller who goes away takes nothing from the others."""
        if known.fetching is None:
            known.tried_at = self._clock()
            known.fetching = asyncio.create_task(self._fetch(issuer, known), name=f"keys of {issuer}")
        await asyncio.shield(known.fetching)

    async def _fetch(self, issuer: str, known: _KeySet) -> None:
        try:
            document = await self._json(f"{issuer}/.well-known/openid-configuration")
            where = document.get("jwks_uri")
            if document.get("issuer") != issuer or not isinstance(where, str):
                raise ValueError("its discovery document is another's")
            if urlsplit(where).scheme != urlsplit(issuer).scheme:
                raise ValueError("its keys are not behind the same protocol")
            known.keys = _usable(await self._json(where))
            known.fetched_at = known.tried_at
            log.info("oidc keys fetched", issuer=issuer, keys=len(known.keys))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.warning("oidc keys not fetched", issuer=issuer, why=str(error) or type(error).__name__)
        finally:
            known.fetching = None

    async def _json(self, url: str) -> Mapping[str, Any]:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        async with self._web.get(url, timeout=timeout, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            content = bytearray()
            async for chunk in answer.content.iter_chunked(_LONGEST_SET):
                content += chunk
                if len(content) > _LONGEST_SET:
                    raise ValueError("too large")
        found = orjson.loads(content)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found


def _kid(token: str) -> str:
    """Which key a token says it is signed with.

    Raises:
        NotProved: it is no token, or none that Fly would make.
    """
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise NotProved("no token")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise NotProved(type(error).__name__) from None
    kid = header.get("kid")
    if header.get("alg") != _ALGORITHM or not isinstance(kid, str):
        raise NotProved("another algorithm, or no key named")
    return kid


def _usable(document: Mapping[str, Any]) -> Mapping[str, jwt.PyJWK]:
    """The keys of a set that can sign with RS256, by id.

    Raises:
        ValueError: there is none.
    """
    listed, found = document.get("keys"), dict[str, jwt.PyJWK]()
    for row in listed[:_MOST_KEYS] if isinstance(listed, list) else ():
        if not isinstance(row, dict) or row.get("kty") != "RSA" or row.get("use", "sig") != "sig":
            continue
        if row.get("alg", _ALGORITHM) != _ALGORITHM or not isinstance(row.get("kid"), str):
            continue
        try:
            found[row["kid"]] = jwt.PyJWK({k: row[k] for k in ("kty", "n", "e", "kid") if k in row}, _ALGORITHM)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.warning("oidc key not understood", kid=str(row["kid"])[:64], why=type(error).__name__)
    if not found:
        raise ValueError("its key set holds no key for RS256")
    return found
