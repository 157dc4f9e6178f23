"""The Secret of roost.dev: names and demands the keys of a core Secret that Agents may use.

It holds no value itself: values stay in the core Secret, which people or External Secrets, SOPS and the like fill.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from roost.api.block import Block, Column, Conditions, Kind, ObjectName, SecretKey, Time, Word, keyed, parse


class CoreSecretRef(Block):
    """A core Secret (v1) in the same namespace."""

    name: ObjectName = Field(description="Its name.")


class Source(Block):
    """Where the values come from."""

    secret_ref: CoreSecretRef


class Key(Block):
    """A key that Agents may refer to."""

    name: SecretKey = Field(description="The name by which Agents refer to it.")
    source_key: SecretKey | None = Field(
        None, alias="from", description="The key in the core Secret; left out, the same name."
    )
    required: bool = Field(
        True, description="Whether the Secret is not Ready without it, and Agents that refer to it wait."
    )

    @property
    def in_source(self) -> str:
        """The key in the core Secret."""
        return self.source_key or self.name


class SecretSpec(Block):
    """What is declared."""

    source: Source
    keys: tuple[Key, ...] = Field(
        (),
        max_length=64,
        description="The keys on offer. Empty: every key of the core Secret under its own name.",
        json_schema_extra=keyed("name"),
    )


class KeyStatus(Block):
    """Whether a key is there."""

    name: Word = Field(description="The name by which Agents refer to it.")
    present: bool = Field(description="Whether the core Secret has it.")


class SecretStatus(Block):
    """What the operator saw; written by it alone. It never holds a value."""

    observed_generation: int = Field(-1, description="The generation of the spec that this speaks of; -1: none yet.")
    fingerprint: Word | None = Field(None, description="A keyed digest of the values; it changes when they do.")
    active_version: int | None = Field(None, description="Counts the changes of the values.")
    keys: tuple[KeyStatus, ...] | None = Field(
        None,
        max_length=256,
        description="The keys on offer, 256 at most.",
        json_schema_extra=keyed("name"),
    )
    last_rotated_at: Time | None = Field(None, description="When the values last changed.")
    conditions: Conditions = ()
    last_handled_reconcile_at: Word | None = Field(
        None, description="The last value of the annotation roost.dev/reconcile-at that was acted on."
    )


SECRET = Kind(
    kind="Secret",
    plural="secrets",
    short="rsec",
    about="A Secret of roost.dev offers keys of a core Secret to Agents, and counts the versions of their values.",
    spec=SecretSpec,
    status=SecretStatus,
    columns=(
        Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        Column("Version", ".status.activeVersion", type="integer"),
        Column("Source", ".spec.source.secretRef.name"),
        Column("Age", ".metadata.creationTimestamp", type="date"),
    ),
)


def parse_secret_spec(obj: Mapping[str, Any]) -> SecretSpec:
    """The spec of a stored Secret of roost.dev (the whole object).

    Raises:
        BadResource: it holds what this version does not know.
    """
    return parse(SecretSpec, obj.get("spec") or {})


def parse_secret_status(obj: Mapping[str, Any]) -> SecretStatus:
    """What a Secret's status remembers; an object without one has the defaults."""
    return parse(SecretStatus, obj.get("status") or {})
