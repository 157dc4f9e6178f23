"""Whose tokens are believed, and what is asked of the issuer for that."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oidc_issuer import AUDIENCE, KEYS, Issuer, jwk

from roost.endpoint.oidc import KEEP_SECONDS, LONGEST_TOKEN, REFETCH_SECONDS, IssuerAway, NotProved, Verifier


class World:
    def __init__(self, issuer: Issuer, web: aiohttp.ClientSession) -> None:
        self.issuer, self.now = issuer, 1000.0
        self.verifier = Verifier(web, lambda: self.now)

    async def says(self, token: str, audience: str = AUDIENCE) -> Any:
        return await self.verifier.claims(token, self.issuer.url, audience)

    async def refuses(self, token: str) -> bool:
        try:
            await self.says(token)
        except NotProved:
            return True
        return False


@pytest.fixture
async def world() -> AsyncIterator[World]:
    issuer = Issuer()
    await issuer.start()
    async with aiohttp.ClientSession() as web:
        yield World(issuer, web)
    await issuer.stop()


def sealed(header: Any, claims: Any, signature: bytes = b"x") -> str:
    """A token put together by hand."""

    def part(value: Any) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    return f"{part(header)}.{part(claims)}.{part(signature)}"


# --- Whose word counts ------------------------------------------------------------------------------------------


async def test_a_good_token_says_what_the_machine_is(world: World) -> None:
    assert (await world.says(world.issuer.token()))["machine_id"] == "m-1"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://oidc.fly.io/acme"},
        {"iss": None},
        {"aud": "https://fly.io/acme"},
        {"aud": AUDIENCE + "/"},
        {"aud": [AUDIENCE, "https://other"]},
        {"aud": None},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1e400},
        {"nbf": None},
        {"iat": None},
        {"sub": None},
        {"sub": 5},
    ],
)
async def test_what_is_not_for_us_or_not_for_now_is_no_proof(world: World, claims: dict[str, Any]) -> None:
    assert await world.refuses(world.issuer.token(**claims))
    assert await world.says(world.issuer.token()), "and that was the reason"


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -60), ("nbf", 120), ("iat", 120)])
async def test_what_is_over_or_yet_to_come_is_no_proof(world: World, claim: str, seconds: int) -> None:
    assert await world.refuses(world.issuer.token(**{claim: int(time.time()) + seconds}))


async def test_clocks_may_be_some_seconds_apart(world: World) -> None:
    now = int(time.time())
    assert await world.says(world.issuer.token(exp=now - 10))
    assert await world.says(world.issuer.token(nbf=now + 20, iat=now + 20))


async def test_another_key_under_the_name_of_a_good_one_is_no_proof(world: World) -> None:
    assert await world.refuses(world.issuer.token("stranger", {"kid": "one"}))
    good = world.issuer.token()
    assert await world.refuses(good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"))


async def test_only_rs256_counts_whatever_the_token_says(world: World) -> None:
    claims, public = world.issuer.claims(), KEYS["one"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "HS256", "kid": "one", "typ": "JWT"}
    unsigned = sealed(header, claims).rpartition(".")[0]
    confused = sealed(header, claims, hmac.digest(pem, unsigned.encode(), hashlib.sha256))
    assert jwt.get_unverified_header(confused)["alg"] == "HS256"
    tokens = [
        confused,
        sealed({"alg": "none", "kid": "one"}, claims, b""),
        sealed({"alg": "none", "kid": "one"}, claims, b"").rpartition(".")[0] + ".",
        jwt.encode(claims, KEYS["one"], algorithm="RS512", headers={"kid": "one"}),
        jwt.encode(claims, KEYS["one"], algorithm="PS256", headers={"kid": "one"}),
        jwt.encode(claims, KEYS["stranger"], algorithm="RS256", headers={"kid": "one", "jwk": jwk("stranger")}),
        jwt.encode(claims, KEYS["one"], algorithm="RS256"),
        jwt.encode(claims, KEYS["one"], algorithm="RS256", headers={"kid": "one", "crit": ["x"], "x": 1}),
    ]
    for token in tokens:
        assert await world.refuses(token), jwt.get_unverified_header(token)


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b.c", "é.é.é", "x" * (LONGEST_TOKEN + 1), "=" * 300, "\x00.\x00.\x00"]
)
async def test_what_is_no_token_costs_no_call(world: World, token: str) -> None:
    assert await world.refuses(token)
    assert world.issuer.asked == 0


async def test_a_token_longer_than_any_of_fly_is_no_token(world: World) -> None:
    assert await world.says(world.issuer.token(more="x" * 2000))
    assert await world.refuses(world.issuer.token(more="x" * LONGEST_TOKEN))


async def test_a_token_nested_without_end_is_no_token(world: World) -> None:
    assert await world.refuses(sealed(b"[" * 3000, b"{}"))
    assert await world.refuses(sealed({"alg": "RS256", "kid": "one"}, b"[" * 3000))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(header={}, claims={}, signed=True, mangle="pad")
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jku", "x5u", "cty"]), json_values),
    claims=st.dictionaries(st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "jti"]), json_values),
    signed=st.booleans(),
    mangle=st.sampled_from(["", "cut", "swap", "pad", "dot"]),
)
def test_no_mangled_token_is_believed_or_breaks_anything(
    header: dict[str, Any], claims: dict[str, Any], signed: bool, mangle: str
) -> None:
    """Signed ones have some claim or header that no token of Fly has."""

    async def judge() -> None:
        issuer = Issuer()
        await issuer.start()
        try:
            async with aiohttp.ClientSession() as web:
                await _mangled(World(issuer, web), header, claims, signed, mangle)
        finally:
            await issuer.stop()

    asyncio.run(judge())


async def _mangled(world: World, header: dict[str, Any], claims: dict[str, Any], signed: bool, mangle: str) -> None:
    whole = json.dumps(world.issuer.claims() | claims).encode()
    named = {"alg": "RS256", "kid": "one", "typ": "JWT"} | header
    try:
        raw = jwt.api_jws.encode(whole, KEYS["one"], algorithm="RS256", headers={"kid": "one"})
        signature = raw.rpartition(".")[2]
    except (TypeError, ValueError):
        signature = "x"
    token = sealed(named, whole).rpartition(".")[0] + "." + signature if not signed or header else raw
    match mangle:
        case "cut":
            token = token[: len(token) // 2]
        case "swap":
            token = token.swapcase()
        case "pad":
            token += "=="
        case "dot":
            token = token.replace(".", "..", 1)
    if not header and not claims and not mangle:
        return
    try:
        said = await world.says(token)
    except NotProved:
        return
    assert signed
    assert not mangle
    assert not header
    assert said["iss"] == world.issuer.url
    assert said["aud"] == AUDIENCE
    assert said["exp"] > time.time() - 60


# --- What the issuer is asked ------------------------------------------------------------------------------------


async def test_the_keys_are_asked_for_once_for_all_who_wait(world: World) -> None:
    world.issuer.held = asyncio.Event()
    calls = [asyncio.create_task(world.says(world.issuer.token())) for _ in range(20)]
    gone = calls.pop(0)
    await asyncio.sleep(0)
    gone.cancel()  # whoever began it goes away, and the others have their answer all the same
    world.issuer.held.set()
    assert {said["machine_id"] for said in await asyncio.gather(*calls)} == {"m-1"}
    assert world.issuer.asked == 1
    await world.says(world.issuer.token())
    assert world.issuer.asked == 1


async def test_a_new_key_is_found_and_a_stranger_can_not_make_us_ask_without_end(world: World) -> None:
    await world.says(world.issuer.token())
    world.issuer.names = ["one", "two"]
    world.now += REFETCH_SECONDS
    assert await world.says(world.issuer.token("two"))
    assert await world.says(world.issuer.token("one"))
    assert world.issuer.asked == 2
    for _ in range(50):
        assert await world.refuses(world.issuer.token("stranger"))
    assert world.issuer.asked == 2
    world.now += REFETCH_SECONDS
    assert await world.refuses(world.issuer.token("stranger"))
    assert world.issuer.asked == 3


async def test_while_the_issuer_is_away_known_keys_count_and_unknown_ones_are_not_called_bad(world: World) -> None:
    with_one, with_two = world.issuer.token("one"), world.issuer.token("two")
    world.issuer.away = True
    with pytest.raises(IssuerAway):
        await world.says(with_one)
    with pytest.raises(IssuerAway):
        await world.says(with_one)
    world.issuer.away = False
    world.now += REFETCH_SECONDS
    assert await world.says(with_one)
    world.issuer.away = True
    world.now += KEEP_SECONDS
    assert await world.says(with_one), "the old set is kept"
    with pytest.raises(IssuerAway):
        await world.says(with_two)


async def test_a_key_that_was_withdrawn_is_believed_an_hour_at_most(world: World) -> None:
    await world.says(world.issuer.token())
    world.issuer.names = ["two"]
    assert await world.says(world.issuer.token())
    world.now += KEEP_SECONDS
    assert await world.refuses(world.issuer.token())


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ({"issuer": "https://another", "jwks_uri": "{url}/keys"}, None),
        ({"issuer": "{url}", "jwks_uri": 5}, None),
        ({"issuer": "{url}"}, None),
        ({"issuer": "{url}", "jwks_uri": "file:///etc/passwd"}, None),
        ({"issuer": "{url}", "jwks_uri": "https://127.0.0.1:1/keys"}, None),
        ([], None),
        ("nonsense", None),
        (None, {"keys": []}),
        (None, {"keys": 5}),
        (None, {"keys": [5, {"kty": "RSA"}, {"kty": "oct", "k": "eA", "kid": "one", "alg": "HS256"}]}),
        (None, {"keys": [{"kty": "RSA", "n": "!", "e": "AQAB", "kid": "one"}]}),
        (None, {"keys": [jwk("one") | {"use": "enc"}]}),
        (None, {"keys": [jwk("one") | {"alg": "RS512"}]}),
        (None, []),
        (None, {"keys": [jwk("one")], "more": "x" * 70_000}),
    ],
)
async def test_nonsense_of_the_issuer_is_as_if_it_were_away(world: World, document: Any, keys: Any) -> None:
    if isinstance(document, dict):
        document = {k: v.format(url=world.issuer.url) if isinstance(v, str) else v for k, v in document.items()}
    world.issuer.document, world.issuer.keys = document, keys
    with pytest.raises(IssuerAway):
        await world.says(world.issuer.token())


async def test_keys_of_an_https_issuer_are_not_had_over_plain_http(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def answers(_: Verifier, url: str) -> dict[str, Any]:
        asked.append(url)
        return {"issuer": "https://oidc.fly.io/acme", "jwks_uri": "http://oidc.fly.io/acme/keys", "keys": [jwk("one")]}

    monkeypatch.setattr(Verifier, "_json", answers)
    with pytest.raises(IssuerAway):
        await world.verifier.claims(world.issuer.token(), "https://oidc.fly.io/acme", AUDIENCE)
    assert asked == ["https://oidc.fly.io/acme/.well-known/openid-configuration"]


async def test_a_redirect_is_not_followed(world: World) -> None:
    base = world.issuer.url.removesuffix("/oidc/acme")
    world.issuer.document = web.Response(status=302, headers={"Location": f"{base}/elsewhere"})
    with pytest.raises(IssuerAway):
        await world.says(world.issuer.token("stranger"))
    assert world.issuer.asked == 0


async def test_good_keys_beside_unknown_ones_count(world: World) -> None:
    ec = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "ec"}
    world.issuer.keys = {"keys": [ec, jwk("one"), {"kty": "RSA", "n": "AA", "kid": "half"}], "more": 1}
    assert await world.says(world.issuer.token())
