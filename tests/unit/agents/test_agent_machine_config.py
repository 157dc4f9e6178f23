"""What a machine is told to be: a config that Fly takes, and a hash that moves when, and only when, it must be sent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import SHARED_APP, Life, agent, declared, edit, shared, spec, view

from roost.agents.machine_config import config_hash, render, token_secret
from roost.agents.view import AgentView
from roost.api.agent import AgentSpec, Machine, Volume
from roost_agent.contract import canonical

DATA = Path(__file__).parent / "data"


def known_only(schema: Any) -> Any:
    """The schema, with every field that it does not name refused: Fly ignores such a field, so it would be a slip."""
    if isinstance(schema, list):
        return [known_only(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {k: known_only(v) for k, v in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


DOCUMENT = known_only(json.loads((DATA / "fly-machine-config.json").read_text()))
CONFIG = jsonschema.Draft4Validator(DOCUMENT | {"$ref": "#/components/schemas/fly.MachineConfig"})


def changed(of: AgentView, **fields: Any) -> AgentView:
    """The view with fields of its declared object changed."""
    return replace(of, declared=replace(of.declared, **fields))


@pytest.mark.parametrize("life", [agent(), shared()], ids=["own app", "shared app"])
def test_fly_takes_the_config(life: Life) -> None:
    CONFIG.validate(render(view(life), "vol_1"))


@given(
    wanted=st.builds(
        spec,
        machine=st.builds(
            Machine,
            cpus=st.sampled_from([1, 2, 4, 6, 8]),
            memory_mb=st.integers(4, 64).map(lambda n: 256 * n),
            stop_timeout_seconds=st.integers(1, 300),
            restart=st.sampled_from(["Always", "OnFailure", "Never"]),
        ),
        volume=st.builds(Volume, mount_path=st.sampled_from(["/data", "/a/b"])),
        identity=st.fixed_dictionaries({"token_epoch": st.integers(0, 10**9)}),
        fly=st.sampled_from([{}, {"app_strategy": "Shared", "app": SHARED_APP}]),
    )
)
@settings(max_examples=50, deadline=None)
def test_fly_takes_the_config_of_any_spec(wanted: AgentSpec) -> None:
    CONFIG.validate(render(view(Life(declared(wanted))), "vol_1"))


def test_the_check_would_see_a_slip() -> None:
    config = render(view(agent()), "vol_1")
    for wrong in ({"gust": {}}, {"guest": {"cpus": "2"}}, {"restart": {"policy": "OnFailure"}}):
        assert list(CONFIG.iter_errors(config | wrong))


def test_the_whole_config() -> None:
    config = render(view(agent(machine={"cpus": 2, "memory_mb": 2048})), "vol_1")
    metadata = config.pop("metadata")
    assert config == {
        "image": "image",
        "guest": {"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048},
        "env": {
            "AGENT_DID": view(agent()).names.did,
            "AGENTSHIELD_API_URL": "https://roost",
            "DATA_DIR": "/data",
            "ROOST_MEMORY_MB": "2048",
            "ROOST_STOP_GRACE_SECONDS": "28",
        },
        "mounts": [{"volume": "vol_1", "path": "/data"}],
        "restart": {"policy": "on-failure"},
        "stop_config": {"signal": "SIGTERM", "timeout": "30s"},
    }
    assert metadata == {
        "roost_owner": "owner-1",
        "roost_cluster": "cluster-1",
        "roost_namespace": "team",
        "roost_name": "ada",
        "roost_uid": "uid-1",
        "roost_incarnation": "uid-1",
        "roost_generation": "1",
        "roost_token_epoch": "0",
        "roost_token_root": "root-1",
        "roost_image": "image",
        "roost_edge": "none",
        "roost_extra": "",
        "roost_config_hash": config_hash(view(agent(machine={"cpus": 2, "memory_mb": 2048})), "vol_1"),
    }


def test_in_a_shared_app_a_machine_is_given_its_own_token_only() -> None:
    config = render(view(shared()), "vol_1")
    [process] = config["processes"]
    assert process["ignore_app_secrets"] is True
    [secret] = process["secrets"]
    assert secret == {"env_var": "AS_HEARTBEAT_TOKEN", "name": token_secret(view(shared()))}
    assert token_secret(view(shared())) != token_secret(
        view(replace(shared(), declared=declared(shared().declared.spec, "bob")))
    )


CHANGES = {
    "image": {"machine": {"image": None}},
    "cpus": {"machine": {"cpus": 2}},
    "memory": {"machine": {"memory_mb": 2048}},
    "stop timeout": {"machine": {"stop_timeout_seconds": 60}},
    "restart policy": {"machine": {"restart": "Always"}},
    "mount path": {"volume": {"mount_path": "/other"}},
    "token epoch": {"identity": {"token_epoch": 1}},
    "own token only": {"fly": {"app_strategy": "Shared", "app": SHARED_APP}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_hash_moves_with_what_the_machine_must_be_told(what: str) -> None:
    before, after = view(agent()), view(edit(agent(), **CHANGES[what]))
    if what == "image":
        after = replace(after, place=replace(after.place, image="another"))
    assert config_hash(before, "vol_1") != config_hash(after, "vol_1")


def test_the_hash_moves_with_the_volume_the_did_and_the_endpoint() -> None:
    ada = view(agent())
    hashes = {
        config_hash(ada, "vol_1"),
        config_hash(ada, "vol_2"),
        config_hash(replace(ada, place=replace(ada.place, endpoint_url="https://other")), "vol_1"),
        config_hash(view(Life(declared(name="bob"))), "vol_1"),
    }
    assert len(hashes) == 4


def test_a_private_authority_rides_in_the_config_and_its_change_is_one_of_defaults() -> None:
    """It changes for everybody at once, as the endpoint's address does, so machines take it up a few at a time."""
    ada = view(agent())
    before, after = (replace(ada, place=replace(ada.place, endpoint_authority=pem)) for pem in ("old\n", "new\n"))
    config = render(after, "vol_1")
    CONFIG.validate(config)
    assert config["files"] == [{"guest_path": "/etc/roost/ca.crt", "raw_value": "bmV3Cg=="}]
    assert config["env"]["ROOST_CA_FILE"] == "/etc/roost/ca.crt"
    for one, other in ((before, after), (ada, after), (after, ada)):
        (version, declared_as, whole), (_, same, another) = (config_hash(v, "vol_1").split(":") for v in (one, other))
        assert (version, declared_as) == ("2", same)
        assert whole != another


def test_the_hash_stays_with_what_only_the_agent_inside_must_know() -> None:
    ada = view(agent())
    same = (
        view(edit(agent(), restarted_at="now", env=({"name": "A", "value": "b"},))),
        view(edit(agent(), heartbeat={"interval_seconds": 60}, volume={"size_gb": 9})),
        view(edit(agent(), revoked=True)),
        changed(ada, generation=7, uid="uid-2", annotations={"roost.dev/x": "y"}, labels={"a": "b"}),
        replace(ada, cluster="another", bundle_revision="another", now=5.0),
    )
    assert {config_hash(v, "vol_1") for v in same} == {config_hash(ada, "vol_1")}


def test_the_hash_stays_what_it_is() -> None:
    """A change of the hash updates, and so restarts, every machine there is: raise HASH_VERSION and roll slowly."""
    assert config_hash(view(agent()), "vol_1") == "2:7ddffb712050:505f058131e6"


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=6))
def test_the_order_of_keys_says_nothing(content: dict[str, Any]) -> None:
    assert canonical(content) == canonical(dict(reversed(content.items())))


def test_ours_is_what_says_our_owner_namespace_and_name() -> None:
    ada = view(agent())
    mine = render(ada, "vol_1")["metadata"]
    assert ada.is_ours(mine)
    assert ada.is_ours(mine | {"roost_uid": "another", "roost_cluster": "another"})
    for key in ("roost_owner", "roost_namespace", "roost_name"):
        assert not ada.is_ours(mine | {key: "another"})
        assert not ada.is_ours({k: v for k, v in mine.items() if k != key})
    assert not ada.is_ours({})


def test_no_token_is_in_the_config() -> None:
    """The tests' token is `the-token`; the config names the secret and never holds it."""
    for life in (agent(), shared()):
        assert "the-token" not in json.dumps(render(view(life), "vol_1"))
