"""The Secret of roost.dev: names and demands the keys of a core Secret that Agents may use.

It holds no value itself: values stay in the core Secret, which people or External Secrets, SOPS and the like fill.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from roost.api.block import (
    Block,
    Column,
    Conditions,
    Kind,
    ObjectName,
    SecretKey,
    Sized,
    Time,
    Word,
    keyed,
    parse,
    says,
)

_ONE = r"(?:[^\\\[\](){}*+?|^$.]|\\[^A-Za-z0-9\s]|\\[dws]|\.|\[\^?(?:[^\\\[\]]|\\[^A-Za-z0-9\s]|\\[dws])+\])"
_VARIES = rf"(?:{_ONE}(?:[*+?]|\{{[0-9]{{1,3}},(?:[0-9]{{1,3}})?\}})|\((?:[^\\\[\](){{}}*+?|^$.]|\|)+\))"
_FIXED = rf"(?:{_ONE}(?:\{{[0-9]{{1,3}}\}})?)"
_PATTERN = rf"^(?:\^{_FIXED}*(?:{_VARIES}{_FIXED}*){{1,2}}|\^?{_FIXED}*)\$?$"
"""A subset of regular expressions that Python's `re` decides in little time, whatever the value: no part is repeated
that holds another, and at most two parts vary in length, behind a fixed beginning."""


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

    pattern: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=_PATTERN,
        description="What the value must look like, as Python's re.search sees it, such as ^sk-ant-. A value that does "
        "not, or has more than 4096 characters, counts as missing. Checked when it is looked at; never shown.",
        json_schema_extra=says(
            "a plain regular expression: characters, classes, dots, each with *, +, ? or a count in braces, and groups "
            "of words such as (sk|pk); at most two parts may vary in length or be groups, and then it starts with ^"
        ),
    )

    @property
    def in_source(self) -> str:
        """The key in the core Secret."""
        return self.source_key or self.name


class Labels(Block):
    """Which Agents, by their labels."""

    match_labels: dict[str, Annotated[str, Field(max_length=63, description="The label's value.")]] = Field(
        {}, max_length=16, description="Labels that an Agent must have, all of them. Empty: every Agent."
    )


NamespaceName = Annotated[
    str,
    Field(
        max_length=63,
        pattern=r"^([*]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$",
        description="A namespace, or * for all.",
        json_schema_extra=says("the name of a namespace, or * for all"),
    ),
]


class AvailableTo(Block):
    """Who may use it. An Agent that it is not offered to looks on, and says so when it finds no other."""

    agent_selector: Labels = Labels()
    namespaces: tuple[NamespaceName, ...] = Field(
        (),
        max_length=256,
        description="Other namespaces whose Agents may use it; * is all. Counts only in the operator's own namespace.",
    )


class Rotation(Block):
    """How a change of the values reaches the Agents."""

    strategy: Literal["Immediate", "Staged"] = Field(
        "Immediate",
        description="Immediate: all at once. Staged: when secretRef changes to another core Secret, one Agent after "
        "the other, by namespace and name, each when the one before is Ready with it; a failure stops it. A core "
        "Secret that is edited in place is Immediate.",
    )
    max_age_days: int | None = Field(
        None, ge=1, le=3650, description="Warns, once and in the condition Ready, when the values are older than this."
    )


class SecretSpec(Block):
    """What is declared."""

    source: Source
    keys: tuple[Key, ...] = Field(
        (),
        max_length=64,
        description="The keys on offer. Empty: every key of the core Secret under its own name.",
        json_schema_extra=keyed("name"),
    )
    available_to: AvailableTo = AvailableTo()
    rotation: Rotation = Rotation()


class KeyStatus(Block):
    """Whether a key is there."""

    name: Word = Field(description="The name by which Agents refer to it.")
    present: bool = Field(description="Whether the core Secret has it, as a text that matches the pattern.")


class Stage(Block):
    """How far a staged rotation is."""

    at: Word = Field(description="The Agent that takes the new values now, namespace/name; those before it have them.")
    since: Time = Field(description="Since when it is that one's turn.")


class UsedBy(Block):
    """Who uses it."""

    agents: int = Field(description="How many Agents.")
    pending: int = Field(description="How many of them do not run the active version yet, those at rest left out.")
    names: tuple[Annotated[str, Sized(317, description="A name.")], ...] = Field(
        (), max_length=50, description="Their names, 50 at most; abroad, namespace/name."
    )


class SecretStatus(Block):
    """What the operator saw; written by it alone. It never holds a value."""

    observed_generation: int = Field(-1, description="The generation of the spec that this speaks of; -1: none yet.")
    fingerprint: Word | None = Field(None, description="A keyed digest of the values; it changes when they do.")
    active_version: int | None = Field(None, description="Counts the changes of the values.")
    rotated_from: int | None = Field(None, description="The version before the active one.")
    active_ref: Word | None = Field(None, description="The core Secret that the active version is from.")
    previous_ref: Word | None = Field(
        None, description="The core Secret whose values are still used by those whose turn in a rotation is to come."
    )
    rotation: Stage | None = None
    looked: Literal["Watched", "Polled"] | None = Field(
        None, description="How a change of the core Secret is noticed: by a watch, at once, or by reading it in turns."
    )
    poll_seconds: int | None = Field(
        None, description="How often the core Secret is read, unless it is watched, about; more core Secrets, seldomer."
    )
    used_by: UsedBy | None = None
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
        Column("Agents", ".status.usedBy.agents", type="integer"),
        Column("Pending", ".status.usedBy.pending", type="integer"),
        Column("Rotating", '.status.conditions[?(@.type=="Rotating")].status', wide=True),
        Column("Looked", ".status.looked", wide=True),
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
