"""The generated CRDs: what the API server takes, complete, deterministic, and the same as the models say."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from pydantic import Field

from agent_specs import SPECS
from roost.api import crd, generate
from roost.api.agent import AGENT, AgentSpec
from roost.api.block import Block, Column, Kind, immutable, keyed, never_falls, says
from roost.api.crd import KINDS, NotStructural

NEVER = {
    "$ref",
    "$defs",
    "anyOf",
    "oneOf",
    "allOf",
    "const",
    "title",
    "uniqueItems",
    "propertyNames",
    "exclusiveMinimum",
}
# An enum can't be null, whatever nullable says (in a status a merge patch removes it), and the scale subresource wants
# a number.
NEVER_NULL = {"Agent.status.phase", "Fleet.spec.replicas", "Secret.status.looked"}
Schema = dict[str, Any]


def schema_of(kind: Kind) -> Schema:
    schema: Schema = crd.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def places(schema: Schema, at: str) -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema, with where it is."""
    yield at, schema
    for name, field in schema.get("properties", {}).items():
        yield from places(field, f"{at}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from places(schema[inner], f"{at}[]")


def of_ours(kind: Kind) -> Iterator[tuple[str, Schema]]:
    """All places but metadata, which the API server describes itself."""
    return (p for p in places(schema_of(kind), kind.kind) if p[0] != f"{kind.kind}.metadata")


each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


@each_kind
def test_every_place_is_described_in_keywords_that_a_crd_knows(kind: Kind) -> None:
    for at, schema in of_ours(kind):
        assert not schema.keys() & NEVER, at
        assert schema["description"].strip(), at
        assert "\n" not in schema["description"], at


@each_kind
def test_every_string_list_and_map_is_bounded(kind: Kind) -> None:
    for at, schema in of_ours(kind):
        match schema["type"]:
            case "string":
                assert "maxLength" in schema or "enum" in schema or at.count(".") == 1, at
            case "array":
                assert "maxItems" in schema, at
                assert schema["x-kubernetes-list-type"] in ("atomic", "map"), at
                assert set(schema.get("x-kubernetes-list-map-keys", ())) <= set(schema["items"].get("required", ())), at
            case "object":
                assert "properties" in schema or "maxProperties" in schema, at


@each_kind
def test_a_field_is_required_or_defaulted_or_nullable(kind: Kind) -> None:
    """Null, which server-side apply sends for an empty field, is accepted wherever the field may be left out."""
    for at, schema in of_ours(kind):
        for name, field in schema.get("properties", {}).items() if at != kind.kind else ():
            ways = [name in schema.get("required", ()), "default" in field, field.get("nullable", False)]
            assert sum(ways) == (0 if f"{at}.{name}" in NEVER_NULL else 1), f"{at}.{name}"


@each_kind
def test_a_block_with_rules_over_time_is_never_away(kind: Kind) -> None:
    """Else leaving it out and setting it again would escape the rule."""
    for at, schema in of_ours(kind):
        for name, field in schema.get("properties", {}).items():
            if any("oldSelf" in rule["rule"] for rule in field.get("x-kubernetes-validations", ())):
                assert "default" in field, f"{at}.{name}"


def test_every_message_is_one_line_and_names_a_field_that_exists() -> None:
    for kind in KINDS:
        for at, schema in places(schema_of(kind), kind.kind):
            for rule in schema.get("x-kubernetes-validations", ()):
                text = rule.get("message") or rule["messageExpression"]
                assert "\n" not in text, at
                assert "\n" not in rule["rule"], at
                inside = schema
                for step in rule.get("fieldPath", "").split(".")[1:]:
                    inside = inside["properties"][step]


def test_the_generated_files_are_those_in_the_checkout() -> None:
    for path, text in generate.files().items():
        assert (generate.CHECKOUT / path).read_text(encoding="utf-8") == text, f"{path} is old: run `make generate`"


@pytest.mark.parametrize("message", generate.MESSAGES)
def test_the_schemas_of_the_contract_are_whole(message: str) -> None:
    schema = generate.schema(message)
    jsonschema.Draft202012Validator.check_schema(schema)
    names = {f.alias or n for n, f in generate.MESSAGES[message].model_fields.items()}
    assert schema["properties"].keys() == names
    assert f"crds/contract/{message}.schema.json" in generate.files()


def test_only_objects_lie_beside_the_kinds() -> None:
    """`kubectl apply -f crds` would take a schema for one."""
    beside = [Path(path) for path in generate.files() if Path(path).parent == Path("crds")]
    assert all(path.suffix == ".yaml" for path in beside)
    assert {path.suffix for path in (generate.CHECKOUT / "crds").iterdir()} == {".yaml", ""}


def test_the_same_models_give_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "roost.api.generate", str(tmp_path / seed)], check=True, env=environment)
    for path, text in generate.files().items():
        assert {(tmp_path / seed / path).read_text(encoding="utf-8") for seed in ("1", "2")} == {text}


def test_the_kustomization_names_every_crd() -> None:
    texts = crd.manifests()
    assert yaml.safe_load(texts["kustomization.yaml"])["resources"] == [n for n in texts if n != "kustomization.yaml"]


# --- Models and schema say the same. ----------------------------------------------------------------------------


def defaulted(value: Any, schema: Schema) -> Any:
    """What the API server stores: defaults filled in from the outside to the inside."""
    if isinstance(value, dict) and "properties" in schema:
        filled = {n: deepcopy(f["default"]) for n, f in schema["properties"].items() if "default" in f} | value
        return {n: defaulted(v, schema["properties"].get(n, {})) for n, v in filled.items()}
    if isinstance(value, list) and "items" in schema:
        return [defaulted(v, schema["items"]) for v in value]
    return value


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (KINDS[0], {"runtime": {"kind": "Command", "command": ["sh"]}}),
        (KINDS[0], {"runtime": {"kind": "Command", "readiness": {"httpGet": {"port": 80}}}, "fly": {"org": "a"}}),
        (KINDS[0], {"runtime": {"kind": "Command"}, "files": [{"path": "a", "content": ""}], "volume": {}}),
        (KINDS[0], {"runtime": {"kind": "Command"}, "machine": {}, "placement": {}, "idle": {}, "recovery": {}}),
        (KINDS[0], {"runtime": {"kind": "Command"}, "volume": {"restoreFrom": {"agent": "ada"}}}),
        (KINDS[0], {"runtime": {"kind": "OpenClaw"}, "channels": {"whatsapp": {}}, "skills": {}, "bridge": {}}),
        (
            KINDS[0],
            {"runtime": {"kind": "OpenClaw"}, "providers": [{"id": "a", "apiKeyFrom": {"name": "s", "key": "k"}}]},
        ),
        (KINDS[0], {"runtime": {"kind": "OpenClaw"}, "model": {"default": "a/b"}, "workspace": [{"path": "a"}]}),
        (KINDS[1], {"template": {"spec": {"runtime": {"kind": "Command", "command": ["sh"]}}}}),
        (KINDS[2], {"source": {"secretRef": {"name": "a"}}, "keys": [{"name": "b"}]}),
    ],
)
def test_defaults_are_the_same_in_model_and_crd(kind: Kind, least: Schema) -> None:
    by_model = kind.spec.model_validate(least).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert defaulted(least, schema_of(kind)["properties"]["spec"]) == by_model


def checkable(schema: Schema) -> Schema:
    """A schema with the rules on plain strings said as patterns again."""
    patterns = [
        m[1]
        for rule in schema.get("x-kubernetes-validations", ())
        if (m := re.fullmatch(r"self\.matches\(r'(.*)'\)", rule["rule"]))
    ]
    out = schema | ({"pattern": patterns[0]} if patterns else {})
    if "properties" in out:
        out["properties"] = {name: checkable(field) for name, field in out["properties"].items()}
        out["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(out.get(inner), dict):
            out[inner] = checkable(out[inner])
    return out


AGENT_SPEC = jsonschema.Draft4Validator(checkable(schema_of(AGENT)["properties"]["spec"]))


@given(SPECS)
def test_what_the_models_allow_fits_the_schema(spec: AgentSpec) -> None:
    AGENT_SPEC.validate(spec.model_dump(mode="json", by_alias=True, exclude_none=True))


# --- The generator, on models of its own. -----------------------------------------------------------------------


class Disk(Block):
    """A disk."""

    size: int = Field(2, ge=1, description="Its size.", json_schema_extra=never_falls("keep it"))
    path: str = Field("/a", max_length=9, pattern="^/", description="Its path.", json_schema_extra=immutable("stay"))
    label: str | None = Field(
        None, max_length=9, description="Its label.", json_schema_extra=immutable('it\'s "so", 100 %')
    )


class Thing(Block):
    """A thing."""

    disk: Disk = Disk()
    disks: tuple[Disk, ...] = Field((), max_length=3, description="More disks.", json_schema_extra=keyed("path"))


def structural(block: type[Block]) -> Schema:
    kind = Kind("Thing", "things", "th", "A thing.", spec=block, status=Thing, columns=(Column("Age", ".a"),))
    spec: Schema = schema_of(kind)["properties"]["spec"]
    return spec


def test_a_marker_on_a_field_becomes_a_rule_on_its_block() -> None:
    disk = structural(Thing)["properties"]["disk"]
    assert disk["default"] == {"size": 2, "path": "/a"}
    assert disk["x-kubernetes-validations"] == [
        {
            "rule": "self.size >= oldSelf.size",
            "messageExpression": '"size can\'t go from %s down to %s: keep it".format([oldSelf.size, self.size])',
            "fieldPath": ".size",
        },
        {
            "rule": "self.path == oldSelf.path",
            "messageExpression": '"path can\'t change from %s to %s: stay".format([oldSelf.path, self.path])',
            "fieldPath": ".path",
        },
        {
            "rule": "has(self.label) == has(oldSelf.label) && (!has(self.label) || self.label == oldSelf.label)",
            "messageExpression": '"label can\'t change from %s to %s: it\'s \\"so\\", 100 %%".format('
            "[has(oldSelf.label) ? oldSelf.label : 'unset', has(self.label) ? self.label : 'unset'])",
            "fieldPath": ".label",
        },
    ]


def test_a_free_form_object_is_kept_and_its_keys_are_counted() -> None:
    class Loose(Block):
        """Loose."""

        more: dict[str, Any] = Field({}, max_length=3, description="Anything.")

    assert structural(Loose)["properties"]["more"] == {
        "type": "object",
        "description": "Anything.",
        "default": {},
        "maxProperties": 3,
        "x-kubernetes-preserve-unknown-fields": True,
    }


def test_defaults_are_told_by_the_description() -> None:
    assert structural(Thing)["properties"]["disk"]["properties"]["size"]["description"] == "Its size. Default: 2."


def bad(annotation: Any, **field: Any) -> type[Block]:
    return type("Bad", (Block,), {"__doc__": "Bad.", "__annotations__": {"it": annotation}, "it": Field(**field)})


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (bad(int | str, description="Either."), "only `X | None`"),
        (
            bad(set[Annotated[str, Field(description="One.")]], description="A set."),
            r"spec\.it: the API server would drop \['uniqueItems'\]",
        ),
        (bad(int, gt=1, description="A number."), r"spec\.it: the API server would drop \['exclusiveMinimum'\]"),
        (bad(str, max_length=3), r"spec\.it: has no description"),
        (bad(tuple[str, ...], description="Words."), r"spec\.it\[\]: has no description"),
        (bad(str, pattern="it's", description="It.", json_schema_extra=says("it")), "can't hold a quote"),
    ],
)
def test_what_a_crd_cannot_hold_is_refused_by_name(block: type[Block], told: str) -> None:
    with pytest.raises(NotStructural, match=told):
        structural(block)
