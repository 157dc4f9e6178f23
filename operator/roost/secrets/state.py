"""What is known of core Secrets and ConfigMaps: fingerprints, never values; and what of it can be used. Pure.

A version is a keyed fingerprint of the values (HMAC with the fingerprint root): it tells a change, and tells a
stranger nothing.
"""

import base64
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from roost.api import secret as api
from roost.api.conditions import Reason
from roost.kube.records import Key

MOST_MATCHED = 4096
"""Characters. With the patterns that are allowed, a longer value could cost seconds."""


class NotAText(Exception):
    """A value is not UTF-8 text, or holds a NUL, which no variable and no argument can carry."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference of an Agent: key `key` of the object `name`; of a ConfigMap, no key means all of its `data`.

    The value of a whole ConfigMap is the canonical JSON of that.
    """

    name: str
    key: str
    kind: Literal["Secret", "CoreSecret", "ConfigMap"] = "Secret"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The Agent's references: what is missing, and the versions found. `known` is False before a look."""

    known: bool
    missing: tuple[str, ...] = ()
    missing_reason: Reason | None = None
    versions: tuple[tuple[str, int], ...] = ()
    fingerprints: tuple[tuple[Ref, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SourceState:
    """A core Secret or a ConfigMap as last looked at.

    `prints` are the fingerprints of its values, `unreadable` the keys whose value is no text, `matches` what was asked
    of values: by key and pattern, whether it is so.
    """

    prints: Mapping[str, str] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()
    matches: Mapping[tuple[str, str], bool] = field(default_factory=dict)
    absent: bool = False
    refused: str = ""
    version: int = field(default=0, compare=False)
    """The resourceVersion that was looked at."""


def fingerprint(root: bytes, value: str) -> str:
    """What a value is known by outside the bundle: 128 bits, keyed."""
    return hmac.digest(root, b"value\x1f" + value.encode(), "sha256").hex()[:32]


def digest(root: bytes, prints: Mapping[str, str]) -> str:
    """What all values of a Secret together are known by."""
    return hmac.digest(root, repr(sorted(prints.items())).encode(), "sha256").hex()[:32]


def text_of(source: Key, body: Mapping[str, Any], key: str) -> str | None:
    """The value of a key in a core Secret or a ConfigMap, None when it lacks it; no key: the whole ConfigMap.

    Raises:
        NotAText: it is not UTF-8, or has a NUL.
    """
    data = body.get("data") or {}
    if source.kind == "ConfigMap":
        if not key:
            return orjson.dumps(data, option=orjson.OPT_SORT_KEYS).decode()
        if key in (body.get("binaryData") or {}):
            raise NotAText(key)
        text = data.get(key)
    else:
        try:
            text = base64.b64decode(data[key]).decode() if key in data else None
        except ValueError as error:
            raise NotAText(key) from error
    if text is not None and "\0" in text:
        raise NotAText(key)
    return text


def matches(pattern: str, value: str) -> bool:
    """Whether a value is what a key's pattern asks for; nothing is what a pattern asks that is none, such as [z-a]."""
    try:
        return len(value) <= MOST_MATCHED and re.search(pattern, value) is not None
    except re.error:
        return False


def looked_at(root: bytes, source: Key, body: Mapping[str, Any], patterns: Iterable[tuple[str, str]]) -> SourceState:
    """What is kept of a core Secret or a ConfigMap; `patterns` are asked of its values, each with its key."""
    asked = set(patterns)
    prints, unreadable = dict[str, str](), set[str]()
    verdicts = dict.fromkeys(asked, False)
    for key in ({""} if source.kind == "ConfigMap" else set()).union(
        body.get("data") or (), body.get("binaryData") or ()
    ):
        try:
            value = text_of(source, body, key)
        except NotAText:
            unreadable.add(key)
            continue
        if value is not None:
            prints[key] = fingerprint(root, value)
            verdicts |= {(k, pattern): matches(pattern, value) for k, pattern in asked if k == key}
    version = int(body["metadata"]["resourceVersion"]) if "metadata" in body else 0
    return SourceState(prints, frozenset(unreadable), verdicts, version=version)


def checked(keys: Sequence[api.Key], state: SourceState) -> bool:
    """Whether all was asked of the values that these keys demand."""
    return (
        state.absent or bool(state.refused) or all((k.in_source, k.pattern) in state.matches for k in keys if k.pattern)
    )


def print_of(keys: Sequence[api.Key], state: SourceState, name: str) -> str | None:
    """The fingerprint of what is offered under a name; None when nothing usable is."""
    if not keys:
        return state.prints.get(name)
    key = next((k for k in keys if k.name == name), None)
    if key is None or (key.pattern and not state.matches.get((key.in_source, key.pattern))):
        return None
    return state.prints.get(key.in_source)


def offered(keys: Sequence[api.Key], state: SourceState) -> dict[str, str]:
    """The fingerprints of all that is offered, by name."""
    names = [k.name for k in keys] if keys else [name for name in state.prints if name]
    found = ((name, print_of(keys, state, name)) for name in names)
    return {name: value for name, value in found if value is not None}


def problem_of(source: Key, keys: Sequence[api.Key], state: SourceState) -> tuple[Reason, str] | None:
    """What is wrong with a source for these keys, with the command that heals it where there is one."""
    name, namespace = source.name, source.namespace
    is_map = source.kind == "ConfigMap"
    what = f'{"ConfigMap" if is_map else "core Secret"} "{name}"'
    required = [k.in_source for k in keys if k.required]
    if state.absent:
        made = "configmap" if is_map else "secret generic"
        pairs = " ".join(f"--from-file={k}=FILE" if is_map else f"--from-literal={k}=VALUE" for k in required)
        pairs = pairs or ("--from-file=DIRECTORY" if is_map else "--from-literal=KEY=VALUE")
        said = f'{what} not found in namespace "{namespace}": kubectl -n {namespace} create {made} {name} {pairs}'
        return Reason.CONFIG_MAP_MISSING if is_map else Reason.SECRET_MISSING, said
    if state.refused:
        right = "configmaps" if is_map else "secrets"
        return Reason.SECRET_FORBIDDEN, f"{what} can not be read: {state.refused}; grant the operator get on {right}"
    there = state.prints.keys() | state.unreadable
    if lacking := [k for k in required if k not in there]:
        # A patch: applying an object of these keys alone could take away those that an apply before brought.
        data = {"data" if is_map else "stringData": dict.fromkeys(lacking, "VALUE")}
        given = json.dumps(data, separators=(",", ":"))
        kind = "configmap" if is_map else "secret"
        said = (
            f'{what} in namespace "{namespace}" lacks {", ".join(lacking)}: '
            f"kubectl -n {namespace} patch {kind} {name} -p '{given}'"
        )
        return Reason.CONFIG_MAP_MISSING if is_map else Reason.SECRET_KEY_MISSING, said
    wanted = {k.in_source for k in keys} if keys else set() if is_map else state.unreadable
    if bad := sorted(state.unreadable & wanted):
        said = f'key "{bad[0]}" of {what} is not UTF-8 text; store text (base64 it if it is binary)'
        return Reason.SECRET_KEY_INVALID, said
    for key in keys:
        if key.pattern and key.in_source in state.prints and not state.matches.get((key.in_source, key.pattern)):
            said = (
                f'key "{key.in_source}" of {what} in namespace "{namespace}" does not match the pattern {key.pattern}: '
                "correct the value there, or the pattern in spec.keys"
            )
            return Reason.SECRET_KEY_INVALID, said
    return None
