"""Tokens with which machines prove what they are: who gets one, what it says, and by which keys it is checked."""

import json
import time
from typing import Any

import aiohttp
import jwt
import pytest
from flysim_client import Client, Make, eventually
from flysim_openapi import check_request
from flysim_world import make_world, passing

from flysim.oidc import LIVES_SECONDS

AUDIENCE = "https://roost.example"


async def ask(socket: str, path: str = "/v1/tokens/oidc", body: Any = None, method: str = "POST") -> tuple[int, str]:
    """A call from inside a machine, and the text of its answer."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session,
        session.request(method, f"http://localhost{path}", json=body) as answer,
    ):
        return answer.status, await answer.text()


async def token(fly: Client, machine: str, audience: str | None = AUDIENCE) -> str:
    body = {"aud": audience} if audience is not None else None
    if body is not None:
        check_request("POST", "/v1/tokens/oidc", json.dumps(body).encode())
    status, text = await ask(await socket_of(fly, machine), body=body)
    assert status == 200, text
    return text


async def socket_of(fly: Client, machine: str) -> str:
    """What the machine's environment says of it."""
    output = await fly.log(machine, "FLY_API_SOCKET=")
    return next(line for line in output.splitlines() if line.startswith("FLY_API_SOCKET=")).partition("=")[2]


async def keys(fly: Client, org: str = "personal") -> dict[str, jwt.PyJWK]:
    """The key set, found as anybody finds it: by the issuer's discovery document, without a token."""
    issuer = f"/oidc/{org}"
    document = (await fly.raw("GET", f"{issuer}/.well-known/openid-configuration")).json
    assert document["issuer"] == fly.url + issuer
    listed = (await fly.raw("GET", document["jwks_uri"].removeprefix(fly.url))).json
    assert all("d" not in key for key in listed["keys"]), "no private part"
    return {key.key_id: key for key in jwt.PyJWKSet.from_dict(listed).keys if key.key_id}


async def verified(fly: Client, text: str, audience: str = AUDIENCE) -> dict[str, Any]:
    known = await keys(fly)
    key = known[jwt.get_unverified_header(text)["kid"]]
    return jwt.decode(text, key.key, algorithms=["RS256"], audience=audience, issuer=f"{fly.url}/oidc/personal")


async def tells(fly: Client, **fields: Any) -> str:
    """A machine whose output is its environment."""
    config = {"init": {"exec": ["/bin/sh", "-c", "env; exec sleep 1000"]}}
    return await fly.machine(await fly.app(), "tells", **{"config": config} | fields)


async def test_a_machine_gets_a_token_that_says_what_it_is(fly: Client) -> None:
    machine = await tells(fly, name="ada-1")
    row = await fly.get(machine)
    before = int(time.time())
    claims = await verified(fly, await token(fly, machine))
    issued = claims["iat"]
    assert before - 1 <= issued <= time.time() + 1
    assert claims["exp"] - issued == LIVES_SECONDS == 600
    assert {k: v for k, v in claims.items() if k not in ("iat", "nbf", "exp", "jti", "org_id", "app_id")} == {
        "iss": f"{fly.url}/oidc/personal",
        "sub": "personal:ada:ada-1",
        "aud": AUDIENCE,
        "org_name": "personal",
        "app_name": "ada",
        "machine_id": row["id"],
        "machine_name": "ada-1",
        "machine_version": row["version"],
        "image": "library/tells:latest",
        "image_digest": row["image_ref"]["digest"],
        "region": row["region"],
    }
    assert claims["app_id"].isdecimal()
    assert claims["org_id"].isdecimal()


async def test_without_an_audience_the_token_is_for_fly_itself(fly: Client) -> None:
    machine = await tells(fly)
    claims = await verified(fly, await token(fly, machine, None), "https://fly.io/personal")
    assert claims["app_name"] == "ada"


async def test_no_two_tokens_are_the_same(fly: Client) -> None:
    machine = await tells(fly)
    assert await token(fly, machine) != await token(fly, machine)


async def test_nobody_outside_a_machine_gets_a_token_of_one(fly: Client) -> None:
    reply = await fly.raw("POST", "/v1/tokens/oidc", b'{"aud": "x"}', authorization="Bearer fm2_good")
    assert reply.error == (501, "flysim does not simulate a token of a machine for a caller outside of it")
    assert (await fly.raw("POST", "/v1/tokens/oidc")).status == 401


async def test_a_machine_may_ask_nothing_else_over_its_socket(fly: Client) -> None:
    socket = await socket_of(fly, await tells(fly))
    assert (await ask(socket, "/v1/apps/ada", method="GET"))[0] == 501
    assert (await ask(socket, "/v1/apps/ada/secrets", {"values": {}}))[0] == 501
    assert (await ask(socket, "/v1/nothing", method="GET")) == (404, "404 page not found")
    assert (await ask(socket, body={"aud": 5}))[0] == 400
    assert (await ask(socket, body={"aws_principal_tags": True}))[0] == 501


async def test_the_socket_goes_with_the_boot_and_comes_with_the_next(fly: Client) -> None:
    machine = await tells(fly)
    socket = await socket_of(fly, machine)
    await fly.call("POST", f"{machine}/stop", {"signal": "SIGKILL"})
    await fly.wait(machine, "stopped")
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(socket)

    async def starts() -> bool:
        return (await fly.call("POST", f"{machine}/start")).status == 200

    await eventually(starts)
    await fly.wait(machine, "started")
    assert (await verified(fly, await token(fly, machine)))["app_name"] == "ada"


async def test_a_name_too_long_for_a_socket_leaves_the_machine_without_one(
    fly: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flysim.inside._LONGEST_PATH", 5)
    machine = await tells(fly)
    assert "FLY_API_SOCKET" not in await fly.log(machine, "FLY_MACHINE_ID=")
    assert "is too long for a socket" in caplog.text


async def test_a_rotated_key_is_followed_and_the_one_before_leaves_in_time(fly: Client) -> None:
    machine = await tells(fly)
    old = await token(fly, machine)
    kid = (await fly.sim("POST", "oidc/rotate", {"overlap_seconds": 600}))["kid"]
    new = await token(fly, machine)
    assert jwt.get_unverified_header(new)["kid"] == kid != jwt.get_unverified_header(old)["kid"]
    assert (await verified(fly, old))["jti"] != (await verified(fly, new))["jti"]
    await fly.sim("POST", "oidc/rotate", {"overlap_seconds": 0})
    assert kid not in await keys(fly), "it was given no time"
    assert len(await keys(fly)) == 2, "the first still has some"


@pytest.mark.looptime
async def test_the_key_before_is_in_the_set_until_its_time_is_over() -> None:
    world = await make_world()
    try:
        first = await _kids(world)
        world.sim.oidc.rotate(300)
        assert len(await _kids(world)) == 2
        await passing(299)
        assert len(await _kids(world)) == 2
        await passing(2)
        assert len(await _kids(world)) == 1
        assert (await _kids(world)).isdisjoint(first)
    finally:
        await world.sim.close()


async def _kids(world: Any) -> set[str]:
    answer = await world.sim.handle("GET", "/oidc/personal/.well-known/jwks", {}, {}, b"")
    return {key["kid"] for key in json.loads(answer.body)["keys"]}


async def test_an_org_that_is_not_there_has_no_issuer(make: Make) -> None:
    fly = await make(orgs=("personal", "acme"))
    assert (await keys(fly, "acme")).keys() == (await keys(fly)).keys(), "one key set for all"
    assert (await fly.raw("GET", "/oidc/nobody/.well-known/jwks")).status == 404


async def test_issuer_and_token_call_fail_as_ordered(fly: Client) -> None:
    socket = await socket_of(fly, await tells(fly))
    await fly.sim("POST", "faults", {"op": "oidc_keys", "status": 503, "times": 1})
    await fly.sim("POST", "faults", {"op": "oidc_discovery", "status": 200, "body": {"issuer": 5}, "times": 1})
    await fly.sim("POST", "faults", {"op": "oidc_token", "status": 500, "times": 1, "match": {"app": "ada"}})
    assert (await fly.raw("GET", "/oidc/personal/.well-known/jwks")).status == 503
    assert (await fly.raw("GET", "/oidc/personal/.well-known/openid-configuration")).json == {"issuer": 5}
    assert (await ask(socket))[0] == 500
    assert (await ask(socket))[0] == 200


async def test_the_ledger_tells_that_a_token_was_issued_and_never_the_token(fly: Client) -> None:
    machine = await tells(fly)
    text = await token(fly, machine)
    (line,) = [line for line in await fly.ledger() if line.get("op") == "oidc_token"]
    assert (line["status"], line["effect"], line["app"]) == (200, "token issued", "ada")
    assert machine.endswith(line["machine"])
    assert text.split(".")[2] not in json.dumps(await fly.ledger())
