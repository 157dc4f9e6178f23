"""Reading what the API server stores, and the closed lists of what a status may say."""

import re
from typing import Any

import pytest
from hypothesis import given
from pydantic import ValidationError

from agent_specs import SPECS
from roost.api.agent import AGENT, AgentSpec, RestoreFrom, parse_agent_spec, parse_agent_status
from roost.api.block import BadResource, Block
from roost.api.conditions import AGENT_CONDITIONS, FLEET_CONDITIONS, SECRET_CONDITIONS, ConditionType, Reason
from roost.api.fleet import FLEET, parse_fleet_spec, parse_fleet_status
from roost.api.secret import SECRET, parse_secret_spec, parse_secret_status

RUNTIME = {"kind": "Command", "command": ["sh"]}


def stored(model: Block) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


@given(SPECS)
def test_what_is_written_is_read_back_the_same(spec: AgentSpec) -> None:
    assert parse_agent_spec({"spec": stored(spec)}) == spec


def test_null_counts_as_left_out_at_any_depth() -> None:
    nulls = {
        "desiredState": None,
        "fly": {"app": None, "appStrategy": None},
        "volume": None,
        "machine": {"cpuKind": None, "public": None, "autostart": None, "metadata": None},
        "idle": None,
        "recovery": {"onUnhealthy": None},
        "runtime": RUNTIME | {"readiness": {"httpGet": {"port": 80, "path": None}}},
        "env": [{"name": "A", "value": None, "valueFrom": {"name": "s", "key": "k"}}],
    }
    left_out = {
        "runtime": RUNTIME | {"readiness": {"httpGet": {"port": 80}}},
        "env": [{"name": "A", "valueFrom": {"name": "s", "key": "k"}}],
    }
    assert parse_agent_spec({"spec": nulls}) == parse_agent_spec({"spec": left_out})


def test_null_in_place_of_an_optional_block_leaves_it_out() -> None:
    volume = {"autoExtend": None, "restoreFrom": {"agent": "ada", "snapshot": None}}
    read = parse_agent_spec({"spec": {"runtime": RUNTIME, "volume": volume}}).volume
    assert read.auto_extend is None
    assert read.restore_from == RestoreFrom(agent="ada")


def test_null_in_a_free_form_config_counts_as_left_out_too() -> None:
    """As `kubectl apply` does with it before anything is stored; lists keep theirs."""
    config = {"gone": None, "kept": {"gone": None, "a": [None, {"gone": None}]}}
    runtime = {"kind": "OpenClaw", "version": "2026.9.6", "config": config}
    assert parse_agent_spec({"spec": {"runtime": runtime}}).runtime.config == {"kept": {"a": [None, {}]}}


def test_what_an_agent_without_a_word_of_it_has() -> None:
    spec = parse_agent_spec({"spec": {"runtime": RUNTIME}})
    assert (spec.model, spec.soul, spec.bridge) == (None, None, None)
    assert (spec.providers, spec.workspace, spec.skills.items, spec.runtime.config) == ((), (), (), {})
    assert {getattr(spec.channels, name) for name in ("telegram", "discord", "slack", "whatsapp")} == {None}
    assert (spec.identity.bootstrap, spec.runtime.rollback) == ("Token", True)
    assert (spec.telemetry.interval_seconds, spec.telemetry.initial_delay_seconds) == (300, 120)


def test_a_reference_is_to_a_secret_of_roost_unless_it_says_otherwise() -> None:
    providers = [
        {"id": "a", "apiKeyFrom": {"name": "s", "key": "k"}},
        {"id": "b", "apiKeyFrom": {"name": "s", "key": "k", "kind": "CoreSecret"}},
    ]
    read = parse_agent_spec({"spec": {"runtime": RUNTIME, "providers": providers}}).providers
    assert [p.api_key_from.kind for p in read if p.api_key_from] == ["Secret", "CoreSecret"]


def test_fields_of_a_newer_version_are_ignored() -> None:
    newer = {"runtime": RUNTIME | {"sandbox": True}, "tools": {"default": "m"}, "placement": {"spread": 5}}
    assert parse_agent_spec({"spec": newer}) == parse_agent_spec({"spec": {"runtime": RUNTIME}})


def test_a_value_of_a_newer_version_is_named() -> None:
    with pytest.raises(BadResource, match=r"desiredState: .*'Running', 'Stopped' or 'Suspended', not 'Frozen'"):
        parse_agent_spec({"spec": {"runtime": RUNTIME, "desiredState": "Frozen"}})


def test_a_refusal_never_shows_a_whole_block() -> None:
    with pytest.raises(BadResource) as refused:
        parse_agent_spec({"spec": {"env": [{"name": "KEY", "value": "s3cret"}], "runtime": {"command": ["s3cret"]}}})
    assert str(refused.value) == "runtime.kind: Field required"


def test_specs_are_values() -> None:
    spec = parse_agent_spec({"spec": {"runtime": RUNTIME}})
    assert spec == parse_agent_spec({"spec": {"runtime": RUNTIME}})
    with pytest.raises(ValidationError, match="frozen"):
        spec.paused = True  # type: ignore[misc]


def test_a_new_object_has_a_status_that_nobody_wrote() -> None:
    for parse in (parse_agent_status, parse_fleet_status, parse_secret_status):
        assert parse({"status": {"observedGeneration": -1}}) == parse({})
        assert parse({}).observed_generation == -1
        assert parse({}).conditions == ()


def test_a_status_is_read_even_when_a_newer_version_wrote_it() -> None:
    status = parse_agent_status({"status": {"phase": "Frozen", "machine": {"id": "m" * 300}, "pool": {}}})
    assert status.phase == "Frozen"
    assert status.machine is not None
    assert status.machine.id == "m" * 300


def test_a_fleet_and_a_secret_are_read() -> None:
    fleet = parse_fleet_spec({"spec": {"replicas": 0, "template": {"spec": {"runtime": RUNTIME}}}})
    assert fleet.replicas == 0
    assert fleet.template.spec == parse_agent_spec({"spec": {"runtime": RUNTIME}})
    assert parse_fleet_spec({"spec": {"template": {"spec": {"runtime": RUNTIME}}}}).replicas is None
    keys = [{"name": "api-key", "from": "API_KEY"}, {"name": "same", "required": False}]
    secret = parse_secret_spec({"spec": {"source": {"secretRef": {"name": "core"}}, "keys": keys}})
    assert [(k.name, k.in_source, k.required) for k in secret.keys] == [
        ("api-key", "API_KEY", True),
        ("same", "same", False),
    ]


def test_words_are_what_their_names_say() -> None:
    for word in (*ConditionType, *Reason):
        assert word.name == re.sub(r"(?<!^)(?=[A-Z])", "_", word.value).upper()
        assert re.fullmatch(r"[A-Z][A-Za-z]{1,40}", word.value)
        assert re.fullmatch(r"[A-Z][^.]+(\.[a-z][^.]*)*\.", word.doc), f"{word} needs one sentence, not {word.doc!r}"


def test_every_condition_belongs_to_a_kind() -> None:
    assert {*AGENT_CONDITIONS, *FLEET_CONDITIONS, *SECRET_CONDITIONS} == {*ConditionType}


def test_kinds_are_named_apart() -> None:
    names = [name for kind in (AGENT, FLEET, SECRET) for name in (kind.kind, kind.plural, kind.short, kind.singular)]
    assert len(set(names)) == len(names)
