"""Names make identity: they never change, fit Fly's rules for any name, and no two Agents share one."""

import string

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.agents.names import derive, did_key, heartbeat_token
from roost.api.agent import NAME_LIMIT

ROOT = bytes(range(32))
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
OBJECT_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?", fullmatch=True)
NAMESPACES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
LOWER = set(string.ascii_lowercase + string.digits)


def test_names_stay_what_they_are() -> None:
    """Agents out there are found by these: a change of one loses them all."""
    ada = derive(ROOT, "owner-1", "team-a", "ada")
    assert ada.app == "roost-ada-0070f422604f"
    assert ada.volume == "roost_0070f422604fd7e2aa76"
    assert ada.machine("vol_1") == "ada-0070f422-10c407"
    assert ada.machine("vol_2") == "ada-0070f422-7c2be2"
    assert ada.did == "did:key:z6Mkeb8FyKqFadEcwsmrpGYDtgceRDa8h2afMNo33tqFP6f3"
    longest = derive(ROOT, "owner-1", "team-a", "a" * NAME_LIMIT)
    assert longest.app == f"roost-{'a' * 40}-ff1281068f1e"
    assert longest.machine("vol_1") == f"{'a' * 36}-ff128106-10c407"


def test_volumes_are_numbered_and_tell_what_they_restore() -> None:
    ada = derive(ROOT, "owner-1", "team-a", "ada")
    names = [ada.volume_of(1), ada.volume_of(12), ada.volume_of(1, "agent/bob"), ada.volume_of(999, "vs_9")]
    assert names == [ada.volume, f"{ada.volume}_12", "roost_0070f422604fd7e2r825_1", "roost_0070f422604fd7e2r500_999"]
    assert [ada.serial(name) for name in names] == [1, 12, 1, 999]
    assert [ada.restores(name, "agent/bob") for name in names] == [False, False, True, False]
    for stranger in (f"{ada.volume}_0", f"{ada.volume}_", f"{ada.volume}2", "roost_0070f422604fd7e2r825", "data"):
        assert ada.serial(stranger) is None
        assert not ada.restores(stranger, "agent/bob")


def test_tokens_stay_what_they_are() -> None:
    told = [heartbeat_token(ROOT, "owner-1", "team-a", "ada", "uid-1", epoch) for epoch in (0, 1)]
    assert told == ["h2DscbSeyT4wx7bQseOzcdVWvgVE-76TeJOXkbmBt-s", "G1w3ApcsE_8dkpbrNNPqs710v4sKiy8ftLmoj0NSZtI"]
    assert heartbeat_token(ROOT, "owner-1", "team-a", "ada", "uid-2", 0) not in told


@given(name=OBJECT_NAMES, namespace=NAMESPACES)
def test_any_name_of_kubernetes_fits_the_rules_of_fly(name: str, namespace: str) -> None:
    names = derive(ROOT, "owner-1", namespace, name)
    assert len(names.app) < 63
    assert set(names.app) <= LOWER | {"-"}
    assert names.app[0] in LOWER
    assert names.app[-1] in LOWER
    assert "--" not in names.app or "--" in name
    assert len(names.volume) <= 30
    assert set(names.volume) <= LOWER | {"_"}
    restored = names.volume_of(999, f"agent/{name}")
    assert len(restored) <= 30
    assert set(restored) <= LOWER | {"_"}
    machine = names.machine("vol_4x8z9m2k1p7q6w5e")
    assert len(machine) <= 63
    assert set(machine) <= LOWER | {"-"}
    assert machine[0] in LOWER


@settings(deadline=None)
@given(st.lists(st.tuples(NAMESPACES, OBJECT_NAMES), min_size=2, max_size=8, unique=True))
def test_no_two_agents_share_a_name(agents: list[tuple[str, str]]) -> None:
    made = [derive(ROOT, "owner-1", *agent) for agent in agents]
    for of in (
        lambda n: n.app,
        lambda n: n.volume,
        lambda n: n.volume_of(1, "vs_1"),
        lambda n: n.did,
        lambda n: n.machine("vol_1"),
    ):
        assert len({of(n) for n in made}) == len(agents)


def test_another_owner_or_root_has_other_names() -> None:
    ada = derive(ROOT, "owner-1", "team-a", "ada")
    for other in (derive(ROOT, "owner-2", "team-a", "ada"), derive(bytes(32), "owner-1", "team-a", "ada")):
        assert not {other.app, other.volume, other.did} & {ada.app, ada.volume, ada.did}


def test_a_did_is_the_ed25519_key_of_its_seed() -> None:
    """RFC 8032, section 7.1, test 1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    did = did_key(seed)
    assert did == "did:key:z6MktwupdmLXVVqTzCw4i46r4uGyosGXRnR3XjN4Zq7oMMsw"
    assert _decoded(did) == b"\xed\x01" + public
    Ed25519PublicKey.from_public_bytes(_decoded(did)[2:]).verify(signature, b"")


@given(st.binary(min_size=32, max_size=32))
def test_every_did_decodes_to_a_key(seed: bytes) -> None:
    decoded = _decoded(did_key(seed))
    assert decoded[:2] == b"\xed\x01"
    assert len(decoded) == 34


def _decoded(did: str) -> bytes:
    number = 0
    for digit in did.removeprefix("did:key:z"):
        number = number * 58 + BASE58.index(digit)
    return number.to_bytes(34, "big")
