"""Tokens and seals, addresses and ports."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_agent.contract import (
    BUNDLE_ROUTES,
    HEARTBEAT_ROUTES,
    PORTS,
    BadSeal,
    bundle_path,
    derive,
    heartbeat_path,
    seal,
    unseal,
)

tokens = st.text(st.sampled_from("abcXYZ019_-"), min_size=1, max_size=64)


def test_a_token_is_what_the_contract_says() -> None:
    message = b"heartbeat\x1fowner/team-a/ada/uid-1\x1f3"
    expected = base64.urlsafe_b64encode(hmac.new(b"r" * 32, message, hashlib.sha256).digest()).decode().rstrip("=")
    assert derive(b"r" * 32, "heartbeat", "owner/team-a/ada/uid-1", 3) == expected
    assert len(expected) == 43


@given(st.binary(min_size=32, max_size=32), tokens, st.integers(0, 1000))
def test_every_input_makes_another_token(root: bytes, identity: str, epoch: int) -> None:
    made = {
        derive(root, "heartbeat", identity, epoch),
        derive(root, "gateway", identity, epoch),
        derive(root, "heartbeat", identity + "x", epoch),
        derive(root, "heartbeat", identity, epoch + 1),
        derive(root[::-1] + b"x", "heartbeat", identity, epoch),
    }
    assert len(made) == 5
    assert derive(root, "heartbeat", identity, epoch) in made


@given(tokens, st.binary(max_size=200))
def test_a_seal_opens_with_its_token_alone(token: str, plain: bytes) -> None:
    sealed = seal(token, plain)
    assert unseal(token, sealed) == plain
    assert seal(token, plain) != sealed
    with pytest.raises(BadSeal):
        unseal(token + "x", sealed)


@given(st.binary(max_size=40), st.data())
def test_a_changed_or_cut_seal_does_not_open(plain: bytes, data: st.DataObject) -> None:
    sealed = seal("token", plain)
    at = data.draw(st.integers(0, len(sealed) - 1))
    changed = sealed[:at] + bytes([sealed[at] ^ data.draw(st.integers(1, 255))]) + sealed[at + 1 :]
    for spoilt in (changed, sealed[:at]):
        with pytest.raises(BadSeal):
            unseal("token", spoilt)


@given(st.binary(max_size=100))
def test_what_is_no_seal_does_not_open(text: bytes) -> None:
    with pytest.raises(BadSeal):
        unseal("token", text)


def test_addresses() -> None:
    assert bundle_path("did:key:z6Mk") == "/v1/agents/did:key:z6Mk/config-bundle"
    assert heartbeat_path("did:key:z6Mk") == "/v1/agents/did:key:z6Mk/heartbeat"
    assert BUNDLE_ROUTES[1] == "/api/v1/molti/deployments/{did}/config-bundle"
    assert HEARTBEAT_ROUTES[1] == "/api/v1/molti/agents/{did}/heartbeat"
    assert dict(PORTS) == {"gateway": 18789, "control": 18790, "pairing": 18791, "health": 18792}
