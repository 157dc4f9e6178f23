"""From the models to CustomResourceDefinitions that the API server takes whole.

Pydantic's JSON Schema becomes a structural schema: references in place, null as `nullable`, every block's default
written out, so that no rule is escaped by leaving a block out, and every marker of `block` turned into CEL. A keyword
that the API server would drop without a word is an error here. The same models give the same bytes.
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import yaml

from roost.api.agent import AGENT
from roost.api.block import Block, Kind, Rule
from roost.api.fleet import FLEET
from roost.api.secret import SECRET

GROUP = "roost.dev"
VERSION = "v1alpha1"
KINDS = (AGENT, FLEET, SECRET)

Schema = dict[str, Any]

# All that a structural schema may say, in the order in which it is written.
_KEYWORDS = (
    *("type", "format", "description", "default", "nullable", "enum", "pattern", "minLength", "maxLength"),
    *("minimum", "maximum", "multipleOf", "minItems", "maxItems", "maxProperties"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations"),
    *("required", "properties", "items", "additionalProperties", "x-kubernetes-preserve-unknown-fields"),
)


class NotStructural(Exception):
    """A model says something that no CRD can hold; the message names the field."""


def manifests() -> dict[str, str]:
    """File name to YAML text: one file a kind, and the kustomization that names them."""
    crds = {f"{GROUP}_{kind.plural}.yaml": _yaml(crd(kind)) for kind in KINDS}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(crds),
    }
    return crds | {"kustomization.yaml": _yaml(kustomization)}


def crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/name": "roost"}},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
                "categories": ["roost"],
            },
            "scope": "Namespaced",
            "versions": [_version(kind)],
        },
    }


def resolved(block: type[Block]) -> Schema:
    """A block's schema with references in place and null said as `nullable`; our markers still in it."""
    whole = block.model_json_schema(by_alias=True)
    return _resolve(whole, whole.get("$defs", {}))


def rules(schema: Schema) -> Iterator[Rule]:
    """All rules at one place of a resolved schema: the block's own, then those that its fields' markers mean."""
    for rule in schema.get("x-roost-rules", ()):
        yield Rule(**rule)
    if "x-roost-says" in schema:
        yield Rule(f"self.matches({_raw(schema['pattern'])})", f"must be {schema['x-roost-says']}")
    for field, leaf in schema.get("properties", {}).items():
        if remedy := leaf.get("x-roost-immutable"):
            yield _immutable(field, remedy, optional="default" not in leaf)
        if remedy := leaf.get("x-roost-never-falls"):
            yield Rule(
                f"self.{field} >= oldSelf.{field}",
                f"{field} can't go from {{oldSelf.{field}}} down to {{self.{field}}}: {remedy}",
                field,
            )


def _immutable(field: str, remedy: str, *, optional: bool) -> Rule:
    if not optional:
        says = f"{field} can't change from {{oldSelf.{field}}} to {{self.{field}}}: {remedy}"
        return Rule(f"self.{field} == oldSelf.{field}", says, field)
    # On the block and not on the field: a rule on the field itself does not run when the field is taken away.
    same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    old, new = (f"{{has({at}.{field}) ? {at}.{field} : 'unset'}}" for at in ("oldSelf", "self"))
    return Rule(same, f"{field} can't change from {old} to {new}: {remedy}", field)


def _version(kind: Kind) -> Schema:
    spec, status = (_structural(resolved(block), at) for block, at in ((kind.spec, "spec"), (kind.status, "status")))
    # An object that nobody has seen yet must not look finished to tools that compare generations.
    status["default"] = {"observedGeneration": -1}
    root: Schema = {
        "type": "object",
        "description": kind.about,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": kind.kind},
            "metadata": {"type": "object"},  # described by the API server itself
            "spec": spec,
            "status": status,
        },
    }
    if kind.rules:
        root["x-kubernetes-validations"] = [_rendered(rule) for rule in kind.rules]
    subresources: Schema = {"status": {}}
    if kind.scaled:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "subresources": subresources,
        "additionalPrinterColumns": [
            {"name": c.title, "type": c.type, "jsonPath": c.path} | ({"priority": 1} if c.wide else {})
            for c in kind.columns
        ],
    }


def _resolve(schema: Schema, defs: dict[str, Schema]) -> Schema:
    """References replaced by what they mean; what stands beside a reference wins over what stands in it."""
    here = {k: v for k, v in schema.items() if k not in ("$ref", "$defs", "anyOf", "title")}
    if ref := schema.get("$ref"):
        here = _resolve(defs[ref.rsplit("/", 1)[-1]], defs) | here
    if choices := schema.get("anyOf"):
        one, *null = choices
        if null != [{"type": "null"}]:
            raise NotStructural(f"only `X | None` can be said in a CRD, not {choices}")
        here = _resolve(one, defs) | here
        here.setdefault("nullable", True)
    if "const" in here:
        here["enum"] = [here.pop("const")]
    if here.get("default", ...) is None:
        del here["default"]
    if here.pop("x-roost-stays-absent", False):
        here.pop("default", None)
        here["nullable"] = True
    if here.get("additionalProperties") is True:  # a free-form object; else the API server would empty it
        del here["additionalProperties"]
        here["x-kubernetes-preserve-unknown-fields"] = True
    if "properties" in here:
        here["properties"] = {name: _resolve(field, defs) for name, field in here["properties"].items()}
    for inner in ("items", "additionalProperties"):
        if isinstance(here.get(inner), dict):
            here[inner] = _resolve(here[inner], defs)
    return here


def _structural(schema: Schema, at: str) -> Schema:
    """The final schema of one place: markers become rules, defaults are whole, descriptions complete."""
    validations = [_rendered(rule) for rule in rules(schema)]
    out = {k: v for k, v in schema.items() if not k.startswith("x-roost-")}
    if "x-roost-says" in schema:
        del out["pattern"]
    if validations:
        out["x-kubernetes-validations"] = validations
    if "enum" in out or not out.get("nullable"):
        out.pop("nullable", None)  # null is never one of an enum's values, whatever nullable says
    if out.get("type") == "array":
        out.setdefault("x-kubernetes-list-type", "atomic")
    if "properties" in out:
        out["properties"] = {name: _structural(field, f"{at}.{name}") for name, field in out["properties"].items()}
        if "default" in out:
            out["default"] = {k: deepcopy(f["default"]) for k, f in out["properties"].items() if "default" in f}
    for inner in ("items", "additionalProperties"):
        if inner in out:
            out[inner] = _structural(out[inner], f"{at}[]")
    out["description"] = _description(out, at)
    if unknown := out.keys() - set(_KEYWORDS):
        raise NotStructural(f"{at}: the API server would drop {sorted(unknown)}")
    return {k: out[k] for k in _KEYWORDS if k in out}


def _description(schema: Schema, at: str) -> str:
    text = " ".join(schema.get("description", "").split())
    if not text:
        raise NotStructural(f"{at}: has no description")
    default = schema.get("default")
    return text if default is None or isinstance(default, dict | list) else f"{text} Default: {plain(default)}."


def plain(value: Any) -> str:
    """A value as it is written in YAML."""
    return yaml.safe_dump(value).removesuffix("...\n").strip()


def _rendered(rule: Rule) -> Schema:
    """A rule as `x-kubernetes-validations` has it; braces in its sentence become arguments of a format."""
    entry: Schema = {"rule": rule.cel}
    parts = re.split(r"\{([^{}]*)\}", rule.says)
    if len(parts) > 1:
        text = "%s".join(p.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") for p in parts[::2])
        entry["messageExpression"] = f'"{text}".format([{", ".join(parts[1::2])}])'
    else:
        entry["message"] = rule.says
    if rule.field:
        entry["fieldPath"] = f".{rule.field}"
    return entry


def _raw(pattern: str) -> str:
    """A regular expression as a raw CEL string."""
    if "'" in pattern:
        raise NotStructural(f"a pattern can't hold a quote: {pattern}")
    return f"r'{pattern}'"


class _Dumper(yaml.SafeDumper):
    """Lists stand in from their key, and nothing is written as an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _yaml(document: Schema) -> str:
    head = "# Generated from operator/roost/api by `make generate`; change the models, not this file.\n"
    return head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=True)
