"""Tokens with which machines prove to others what they are, and the key sets that these are checked by.

Tokens have the claims of https://fly.io/docs/security/openid-connect. Only a machine gets one, over
its own socket, and only about itself. All orgs share one key set here: it is the issuer's name that tells them apart.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from flysim import errors, requests
from flysim.call import Answer, Call, answer
from flysim.records import Machine, image_ref
from flysim.requests import CreateOidcToken
from flysim.world import World

LIVES_SECONDS = 600
"""How long a token is good."""
_ALGORITHM = "RS256"


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    private: RSAPrivateKey
    jwk: dict[str, Any]
    until: float | None = None
    """When it leaves the key set, in epoch seconds; None for the one that signs."""


class Oidc:
    """The token call of machines, and each org's issuer. `url` is where this simulator is reached."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._keys: list[_Key] = []
        self.url = "http://127.0.0.1:4280"

    def issuer(self, org: str) -> str:
        """The issuer of an org's machines: the value of `iss`, and where its discovery document lies."""
        return f"{self.url}/oidc/{org}"

    def rotate(self, overlap: float) -> str:
        """Signs with a new key from now on; the one before stays in the key set for so many seconds. Returns its id."""
        until = self._world.clock.now() + overlap
        self._keys = [_Key(key.id, key.private, key.jwk, key.until or until) for key in self._shown()]
        self._keys.append(_new_key())
        return self._keys[-1].id

    async def oidc_token(self, call: Call) -> Answer:
        """A token about the machine that asks."""
        if call.inside is None:
            raise errors.not_simulated("a token of a machine for a caller outside of it")
        body = requests.read(CreateOidcToken, call.body)
        if body.aws_principal_tags:
            raise errors.not_simulated("aws_principal_tags")
        machine = call.inside
        call.effect = "token issued"
        claims = self._claims(machine, body.aud or f"https://fly.io/{machine.app.org}")
        key = self._signing()
        return answer(200, jwt.encode(claims, key.private, algorithm=_ALGORITHM, headers={"kid": key.id}))

    async def oidc_discovery(self, call: Call) -> Answer:
        issuer = self._known_issuer(call)
        document = {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/.well-known/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [_ALGORITHM],
        }
        return answer(200, document)

    async def oidc_keys(self, call: Call) -> Answer:
        self._known_issuer(call)
        self._signing()
        return answer(200, {"keys": [key.jwk for key in self._shown()]})

    def _known_issuer(self, call: Call) -> str:
        self._world.require_org(call.params["org"])
        return self.issuer(call.params["org"])

    def _claims(self, machine: Machine, audience: str) -> dict[str, Any]:
        app, now = machine.app, int(self._world.clock.now())
        image = image_ref(machine.config.image, machine.digests[machine.version])
        return {
            "iss": self.issuer(app.org),
            "sub": f"{app.org}:{app.name}:{machine.name}",
            "aud": audience,
            "iat": now,
            "nbf": now,
            "exp": now + LIVES_SECONDS,
            "jti": self._world.ids.ulid(),
            "org_id": self._number(app.org),
            "org_name": app.org,
            "app_id": str(app.number),
            "app_name": app.name,
            "machine_id": machine.id,
            "machine_name": machine.name,
            "machine_version": machine.version,
            "image": f"{image['repository']}:{image['tag']}" if image["tag"] else image["repository"],
            "image_digest": image["digest"],
            "region": machine.region,
        }

    def _number(self, org: str) -> str:
        """An org's id, the same for as long as the simulator runs."""
        return str(int(self._world.digest(org)[:6], 16))

    def _signing(self) -> _Key:
        """The key that signs; made when the first is needed, since that takes a moment."""
        if not self._keys:
            self._keys = [_new_key()]
        return self._keys[-1]

    def _shown(self) -> list[_Key]:
        now = self._world.clock.now()
        return [key for key in self._keys if key.until is None or now < key.until]


def _new_key() -> _Key:
    private = generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key()
    name = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16]
    jwk = RSAAlgorithm.to_jwk(public, as_dict=True) | {"kid": name, "alg": _ALGORITHM, "use": "sig"}
    return _Key(name, private, jwk)
