"""An issuer of tokens on 127.0.0.1 that obeys a test: its keys, its faults, and whatever it is to sign."""

import asyncio
import time
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import RSAAlgorithm

AUDIENCE = "https://roost.example"
KEYS = {name: generate_private_key(public_exponent=65537, key_size=2048) for name in ("one", "two", "stranger")}


def jwk(name: str) -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True) | {"kid": name, "alg": "RS256", "use": "sig"}


class Issuer:
    """Serves discovery and keys of the org `acme`; `asked` counts calls for the keys."""

    def __init__(self) -> None:
        self.names = ["one"]
        self.asked = 0
        self.away = False
        self.held: asyncio.Event | None = None
        self.document: Any = None
        self.keys: Any = None
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/oidc/acme"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/oidc/acme/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/oidc/acme/keys", self._keys)
        app.router.add_get("/elsewhere", self._elsewhere)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _discovery(self, _: web.Request) -> web.StreamResponse:
        if self.held is not None:
            await self.held.wait()
        if self.away:
            return web.Response(status=503)
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} if self.document is None else self.document
        return document if isinstance(document, web.Response) else web.json_response(document)

    async def _keys(self, _: web.Request) -> web.StreamResponse:
        self.asked += 1
        return web.json_response({"keys": [jwk(n) for n in self.names]} if self.keys is None else self.keys)

    async def _elsewhere(self, _: web.Request) -> web.StreamResponse:
        self.asked += 1
        return web.json_response({"keys": [jwk("stranger")]})

    def claims(self, **other: Any) -> dict[str, Any]:
        """What Fly says of a machine; None leaves a claim out."""
        now = int(time.time())
        plain = {
            "iss": self.url,
            "sub": "acme:ada-app:ada-machine",
            "aud": AUDIENCE,
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "jti": "01J",
            "org_name": "acme",
            "app_name": "ada-app",
            "machine_id": "m-1",
            "machine_name": "ada-machine",
            "machine_version": "v1",
            "image_digest": "sha256:aa",
        }
        return {k: v for k, v in (plain | other).items() if v is not None}

    def token(self, key: str = "one", headers: dict[str, Any] | None = None, **other: Any) -> str:
        private: RSAPrivateKey = KEYS[key]
        return jwt.encode(self.claims(**other), private, algorithm="RS256", headers={"kid": key} | (headers or {}))
