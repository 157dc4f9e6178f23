"""Tokens that are derived, never stored, and the seal of the last good bundle.

Compare tokens with `hmac.compare_digest` only.
"""

import base64
import hmac
import os
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["BadSeal", "derive", "seal", "seed_gateway_token", "unseal"]

_SEAL = b"roost-seal-1\n"
_NONCE_BYTES = 12
_SEPARATOR = b"\x1f"


class BadSeal(Exception):
    """These bytes were not sealed with this token, or not whole any more."""


def derive(root: bytes, purpose: Literal["heartbeat", "gateway"], identity: str, epoch: int) -> str:
    """The token of one agent: base64url of HMAC-SHA256(root, purpose 0x1f identity 0x1f epoch), without padding.

    Args:
        root: The token root, at least 32 random bytes.
        purpose: What the token is for; one never opens what the other does.
        identity: `owner/namespace/name/incarnation`, none of which may contain 0x1f.
        epoch: Raised to rotate.
    """
    message = _SEPARATOR.join((purpose.encode(), identity.encode(), str(epoch).encode()))
    return base64.urlsafe_b64encode(hmac.digest(root, message, "sha256")).rstrip(b"=").decode()


def seed_gateway_token(secret: str, sandbox_id: str) -> str:
    """The gateway token of an agent of the seed systems: hex HMAC-SHA256(secret, sandbox id), both as UTF-8."""
    return hmac.digest(secret.encode(), sandbox_id.encode(), "sha256").hex()


def seal(token: str, plain: bytes) -> bytes:
    """Encrypts (AES-256-GCM) under a key derived from the token, so that a copy of the volume gives nothing away."""
    nonce = os.urandom(_NONCE_BYTES)
    return _SEAL + nonce + AESGCM(_key(token)).encrypt(nonce, plain, _SEAL)


def unseal(token: str, sealed: bytes) -> bytes:
    """The plain bytes again.

    Raises:
        BadSeal: sealed with another token, cut short, changed, or not a seal at all.
    """
    nonce, text = sealed[len(_SEAL) :][:_NONCE_BYTES], sealed[len(_SEAL) + _NONCE_BYTES :]
    if not sealed.startswith(_SEAL) or len(nonce) < _NONCE_BYTES:
        raise BadSeal("not a sealed bundle")
    try:
        return AESGCM(_key(token)).decrypt(nonce, text, _SEAL)
    except InvalidTag:
        raise BadSeal("sealed with another token, or damaged") from None


def _key(token: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_SEAL).derive(token.encode())
