"""Names make identity: everything of an Agent at Fly is found again by names that only its owner could derive.

App, machine and volume names are a keyed derivation of (owner id, namespace, name), so that nothing needs to be written
down before it is made. The machine's name also carries its volume, so that a machine on a dead host never blocks its
successor on another volume. Pure.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from roost_agent.contract import tokens

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Names:
    """What one Agent's things are called: the app (when derived), the volume, and its DID."""

    app: str
    volume: str
    digest: str
    name: str
    did: str

    def volume_of(self, serial: int, restores: str = "") -> str:
        """The name of the Agent's n-th volume: each takes the place of the one before, so the highest is current.

        One that follows volume.restoreFrom (`restores`, its value) is marked with it: no crash can make that unknown.
        """
        if restores:
            return f"{self._marked_stem}{_mark(restores)}_{serial}"
        return self.volume if serial == 1 else f"{self.volume}_{serial}"

    def serial(self, volume: str) -> int | None:
        """Which of the Agent's volumes has this name; None when it is none of them."""
        if volume == self.volume:
            return 1
        base, _, number = volume.rpartition("_")
        marked = base.startswith(self._marked_stem) and re.fullmatch("[0-9a-f]{3}", base[len(self._marked_stem) :])
        ours = base == self.volume or marked
        return int(number) if ours and re.fullmatch("[1-9][0-9]*", number) else None

    def restores(self, volume: str, value: str) -> bool:
        """Whether the Agent's volume of this name was made to follow this value of volume.restoreFrom."""
        return self.serial(volume) is not None and volume.startswith(f"{self._marked_stem}{_mark(value)}_")

    def machine(self, volume_id: str) -> str:
        """The name of the machine on this volume, unique in its app."""
        return self._machine_stem + hashlib.sha256(volume_id.encode()).hexdigest()[:6]

    def is_machine(self, name: str) -> bool:
        """Whether a machine's name is one that only this Agent's can have, on whichever volume."""
        return name.startswith(self._machine_stem)

    @property
    def _marked_stem(self) -> str:
        return f"{self.volume[:22]}r"  # shorter by as much as the mark needs: Fly allows 30 characters

    @property
    def _machine_stem(self) -> str:
        return f"{self.name[:36].rstrip('-')}-{self.digest[:8]}-"


def derive(identity_root: bytes, owner_id: str, namespace: str, name: str) -> Names:
    """The names of an Agent.

    Fly app names are one global space, under 63 characters of lower-case letters, digits and dashes; volume names
    are at most 30 of lower-case letters, digits and underscores and not unique.
    """
    digest = _keyed(identity_root, "names", owner_id, namespace, name).hex()
    seed = _keyed(identity_root, "did", owner_id, namespace, name)
    return Names(
        app=f"roost-{name[:40].rstrip('-')}-{digest[:12]}",
        volume=f"roost_{digest[:20]}",
        digest=digest,
        name=name,
        did=did_key(seed),
    )


def did_key(seed: bytes) -> str:
    """`did:key` of the Ed25519 key with this 32-byte seed (multicodec 0xed01, base58btc: W3C CCG did:key method)."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    number, text = int.from_bytes(b"\xed\x01" + public, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return f"did:key:z{text}"


def heartbeat_token(token_root: bytes, owner_id: str, namespace: str, name: str, incarnation: str, epoch: int) -> str:
    """The token with which this incarnation of the Agent calls us; nothing of it is stored anywhere but at Fly."""
    return tokens.derive(token_root, "heartbeat", f"{owner_id}/{namespace}/{name}/{incarnation}", epoch)


def gateway_token(token_root: bytes, owner_id: str, namespace: str, name: str, incarnation: str, epoch: int) -> str:
    """The token that opens the agent's gateway, and the second proof of its check-in; it travels in the bundle."""
    return tokens.derive(token_root, "gateway", f"{owner_id}/{namespace}/{name}/{incarnation}", epoch)


def root_mark(token_root: bytes) -> str:
    """What tells a token root from another without telling anything of it; it stands in a machine's metadata."""
    return _keyed(token_root, "mark").hex()[:8]


def _mark(restores: str) -> str:
    return hashlib.sha256(restores.encode()).hexdigest()[:3]


def _keyed(root: bytes, purpose: str, *parts: str) -> bytes:
    return hmac.digest(root, "\x1f".join((purpose, *parts)).encode(), "sha256")
