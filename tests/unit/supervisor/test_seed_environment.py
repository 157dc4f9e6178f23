"""A machine that was set up for the seed's supervisor is set up for this one: the same names, the same defaults."""

from pathlib import Path

import pytest

from roost.api.agent import RESERVED_ENV, RESERVED_ENV_PREFIXES
from roost_agent import settings
from roost_agent.settings import Settings, read

NEEDED = {
    "AGENT_DID": "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
    "AGENTSHIELD_API_URL": "https://roost.example.com",
    "AS_HEARTBEAT_TOKEN": "token-of-the-agent",
}
DIDCOMM = {
    "DIDCOMM_ROLE": "coordinator",
    "DIDCOMM_HUB_ENDPOINT": "wss://hub.example.com",
    "DIDCOMM_HUB_PORT": "18821",
    "DIDCOMM_AGENT_NAME": "ada",
    "DIDCOMM_PEERS": "did:key:z6MkA,did:key:z6MkB",
    "FLEET_MCP_PORT": "3002",
}


def values(of: Settings) -> dict[str, object]:
    return {name: getattr(of, name) for name in Settings.__slots__ if name != "tls"}


def test_with_the_three_that_the_seed_needs_all_else_is_as_the_seed_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.DATA_DIRECTORY == "/data"
    monkeypatch.setattr(settings, "DATA_DIRECTORY", str(tmp_path))
    found = read(NEEDED)
    assert (found.did, found.endpoint, found.token) == tuple(NEEDED.values())
    assert found.data_dir == tmp_path
    assert (found.gateway_port, found.control_port, found.pairing_port) == (18789, 18790, 18791)
    assert found.interval == 30


def test_what_the_seed_lets_one_choose_is_chosen(tmp_path: Path) -> None:
    chosen = {"CONTROL_PORT": "28790", "PAIRING_PORT": "28791", "HEARTBEAT_INTERVAL_MS": "5000"}
    found = read(NEEDED | chosen | {"DATA_DIR": str(tmp_path / "elsewhere"), "FLY_MACHINE_ID": "m-7"})
    assert (found.control_port, found.pairing_port, found.interval) == (28790, 28791, 5)
    assert (found.data_dir, found.machine_id) == (tmp_path / "elsewhere", "m-7")


def test_what_the_seed_says_of_a_fleet_stands_in_nobodys_way_and_reaches_nobody(tmp_path: Path) -> None:
    environment = NEEDED | {"DATA_DIR": str(tmp_path)}
    assert values(read(environment | DIDCOMM)) == values(read(environment))


def test_whoever_declares_an_agent_can_not_take_one_of_these_names_for_something_else() -> None:
    ours = {"DATA_DIR", "CONTROL_PORT", "PAIRING_PORT", "HEARTBEAT_INTERVAL_MS"} | NEEDED.keys() | DIDCOMM.keys()
    assert {name for name in ours if not name.startswith(RESERVED_ENV_PREFIXES)} <= set(RESERVED_ENV)
