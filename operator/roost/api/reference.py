"""The reference pages: every field of the kinds with type, default and effect, and every condition with its reasons.

Made from the models, so that a page never says what the code does not do.
"""

import re
from collections.abc import Iterator

from roost.api.agent import AGENT
from roost.api.block import Kind, Rule
from roost.api.conditions import AGENT_CONDITIONS, FLEET_CONDITIONS, SECRET_CONDITIONS, Reason
from roost.api.crd import GROUP, KINDS, VERSION, Schema, plain, resolved, rules
from roost.api.fleet import FLEET
from roost.api.secret import SECRET

_HEAD = "<!-- Generated from operator/roost/api by `make generate`; change the models, not this file. -->\n"
_SAMPLES = {
    "Agent": (
        "agent.yaml",
        "agent-secret.yaml",
        "agent-shared.yaml",
        "agent-idle.yaml",
        "agent-oidc.yaml",
        "agent-openclaw.yaml",
    ),
    "Fleet": ("fleet.yaml",),
    "Secret": ("agent-secret.yaml", "secret-rotation.yaml"),
}
_CONDITIONS = ((AGENT, AGENT_CONDITIONS), (FLEET, FLEET_CONDITIONS), (SECRET, SECRET_CONDITIONS))


def pages() -> dict[str, str]:
    """File name to Markdown."""
    return {f"{kind.singular}.md": page(kind) for kind in KINDS} | {"conditions.md": conditions_page()}


def page(kind: Kind) -> str:
    """The page of one kind."""
    lines = [
        f"# {kind.kind}",
        "",
        kind.about,
        "",
        f"`apiVersion: {GROUP}/{VERSION}`, `kind: {kind.kind}`; "
        f"with kubectl `{kind.plural}.{GROUP}` or `{kind.short}`, and `kubectl get roost` shows all kinds.",
        "",
        "Examples: " + ", ".join(f"[{name}](../../manifests/samples/{name})" for name in _SAMPLES[kind.kind]) + ".",
        "",
    ]
    if kind.rules:
        lines += ["Refused at apply:", "", *map(_refusal, kind.rules), ""]
    lines += ["## spec", "", *_block(resolved(kind.spec), "spec")]
    lines += ["## Annotations", "", "| annotation | effect |", "|---|---|"]
    lines += [f"| `{name}` | {effect} |" for name, effect in kind.annotations]
    lines += ["", "## status", "", *_block(resolved(kind.status), "status")]
    lines += ["What the conditions say, and why: [conditions](conditions.md).", ""]
    return _HEAD + "\n".join(lines)


def conditions_page() -> str:
    """The page of condition types and reasons."""
    lines = [
        "# Conditions and reasons",
        "",
        "Both lists are closed: nothing else appears in a status. Reasons are also the reasons of events.",
        "",
    ]
    for kind, types in _CONDITIONS:
        lines += [f"## {kind.kind}", "", "| condition | True means |", "|---|---|"]
        lines += [f"| `{c}` | {c.doc} |" for c in types]
        lines.append("")
    lines += ["## Reasons", "", "| reason | meaning |", "|---|---|", *(f"| `{r}` | {r.doc} |" for r in Reason), ""]
    return _HEAD + "\n".join(lines)


def _block(schema: Schema, at: str) -> Iterator[str]:
    """The sections of a block and of the blocks in it."""
    if at.count("."):
        yield from (f"### {at}", "")
    yield from (_line(schema["description"]), "")
    yield from ("| field | type | default | effect |", "|---|---|---|---|")
    inner: list[tuple[Schema, str]] = []
    for name, field in schema["properties"].items():
        where = f"{at}.{name}"
        effect = _line(field["description"])
        if below := _inner(field):
            inner.append((below, where + ("[]" if field["type"] == "array" else "")))
            effect += f" [Fields](#{_anchor(inner[-1][1])})."
        required = name in schema.get("required", ())
        yield f"| `{name}` | {_type(field)} | {'required' if required else _default(field)} | {effect} |"
    yield ""
    if refusals := list(_refusals(schema)):
        yield from ("Refused at apply:", "", *refusals, "")
    for below, where in inner:
        if where.endswith("template.spec"):
            yield from (f"### {where}", "", "The fields of an [Agent's spec](agent.md#spec).", "")
        else:
            yield from _block(below, where)


def _refusals(schema: Schema) -> Iterator[str]:
    """What a person reads who breaks a rule of this block or of a plain field in it."""
    for rule in rules(schema):
        yield _refusal(rule)
    for name, field in schema["properties"].items():
        leaf = field.get("items") or field.get("additionalProperties") or field
        if "properties" not in leaf:
            told = f"a value of `{name}` " if "additionalProperties" in field else f"`{name}` "
            for rule in rules(leaf):
                yield _refusal(rule, told)


def _refusal(rule: Rule, name: str = "") -> str:
    return f"- {name}{_escape(re.sub(r'{[^{}]*}', '…', rule.says))}"


def _inner(field: Schema) -> Schema | None:
    item = field.get("items", field)
    return item if "properties" in item else None


def _type(field: Schema) -> str:
    if "enum" in field:
        return " or ".join(f"`{v}`" for v in field["enum"])
    match field["type"]:
        case "array":
            key = field.get("x-kubernetes-list-map-keys")
            item = field["items"]
            of = "blocks" if "properties" in item else f"{item['type']}s"
            return f"list of at most {field['maxItems']} {of}" + (f", each `{key[0]}` once" if key else "")
        case "object" if "properties" in field:
            return "block"
        case "object" if "additionalProperties" not in field:
            return f"free-form object of at most {field['maxProperties']} keys"
        case "object":
            return f"map of at most {field['maxProperties']} strings"
        case "string":
            return "time" if field.get("format") == "date-time" else f"string, at most {field['maxLength']} characters"
        case "integer":
            return "integer" + _range(field)
        case other:
            return str(other)


def _range(field: Schema) -> str:
    low, high, step = field.get("minimum"), field.get("maximum"), field.get("multipleOf")
    text = f", {low} to {high}" if high is not None else f", at least {low}" if low is not None else ""
    return text + (f", multiples of {step}" if step else "")


def _default(field: Schema) -> str:
    default = field.get("default")
    if default is None or "properties" in field:
        return ""
    if default in ([], {}):
        return "none"
    return f"`{plain(default)}`"


def _line(text: str) -> str:
    return _escape(" ".join(text.split()))


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(where: str) -> str:
    """The anchor that a heading gets: lower case, without dots and brackets."""
    return re.sub(r"[^a-z0-9 _-]", "", where.lower())
