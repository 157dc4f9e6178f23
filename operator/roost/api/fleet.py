"""The Fleet: a number of Agents of one template, with stable names and volumes, as a StatefulSet has Pods."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from roost.api.agent import NAME_LIMIT, AgentSpec
from roost.api.block import Block, Column, Conditions, Kind, Rule, Sized, Word, keyed, never_null, parse

REPLICAS_LIMIT = 1000
FLEET_NAME_LIMIT = NAME_LIMIT - len(f"-{REPLICAS_LIMIT - 1}")
"""Characters of a Fleet's name: room is kept for the largest ordinal, so that scaling never fails for the name."""

_OWN = "!self.{0}.exists(k, k.startsWith('roost.dev/'))"
_QUALIFIED = "self.{0}.all(k, !format.qualifiedName().validate(k).hasValue())"


class TemplateMetadata(Block):
    """Labels and annotations that every member gets."""

    labels: dict[str, Annotated[str, Field(max_length=63, description="A label's value.")]] = Field(
        {}, max_length=32, description="Labels of each member, beside those that say which Fleet it belongs to."
    )
    annotations: dict[str, Annotated[str, Field(max_length=16_384, description="An annotation's value.")]] = Field(
        {}, max_length=32, description="Annotations of each member."
    )

    RULES = (
        Rule(_QUALIFIED.format("labels"), "a label's key is not valid: use [prefix/]name", field="labels"),
        Rule(
            "self.labels.all(k, !format.labelValue().validate(self.labels[k]).hasValue())",
            "a label's value is not valid: use at most 63 letters, digits, dashes, dots and underscores",
            field="labels",
        ),
        Rule(
            _OWN.format("labels"),
            "labels of roost.dev/ are set by the Fleet itself: use another prefix",
            field="labels",
        ),
        Rule(
            _QUALIFIED.format("annotations"), "an annotation's key is not valid: use [prefix/]name", field="annotations"
        ),
        Rule(
            _OWN.format("annotations"),
            "annotations of roost.dev/ act on one Agent: set them on the member with kubectl annotate agents",
            field="annotations",
        ),
    )


class Template(Block):
    """What each member is made of."""

    metadata: TemplateMetadata = TemplateMetadata()
    spec: AgentSpec = Field(description="The spec of each member.")

    RULES = (
        Rule(
            "self.spec.fly.appStrategy == 'Shared' || !has(self.spec.fly.app)",
            "fly.app {self.spec.fly.app} can't be the own app of every member: leave app out, "
            "or use appStrategy Shared",
            field="spec.fly.app",
        ),
        Rule(
            "self.spec.desiredState == 'Running'",
            "desiredState belongs to one Agent: stop a member with kubectl patch agents, or set replicas to 0",
            field="spec.desiredState",
        ),
        Rule(
            "!self.spec.revoked",
            "revoked belongs to one Agent: kubectl annotate agents -l roost.dev/fleet=NAME roost.dev/revoked=true",
            field="spec.revoked",
        ),
        Rule(
            "!self.spec.paused",
            "paused belongs to one Agent: pause a member with kubectl patch agents",
            field="spec.paused",
        ),
        Rule(
            "!has(self.spec.restartedAt)",
            "restartedAt belongs to one Agent: restart a member with kubectl patch agents",
            field="spec.restartedAt",
        ),
        Rule(
            "!has(self.spec.volume.restoreFrom) || !has(self.spec.volume.restoreFrom.snapshot)",
            "volume.restoreFrom.snapshot is of one Agent's volume and can't fill every member's: restore a member with "
            "kubectl patch agents, or name an Agent in restoreFrom.agent",
            field="spec.volume.restoreFrom.snapshot",
        ),
    )


class FleetSpec(Block):
    """What is declared."""

    replicas: int | None = Field(
        None,
        ge=0,
        le=REPLICAS_LIMIT,
        description="How many members; left out, those that exist stay and a new Fleet has 1. Members with the "
        "highest ordinals go first.",
        json_schema_extra=never_null(),
    )
    template: Template


class Member(Block):
    """One member."""

    name: Word = Field(description="The Agent's name.")
    phase: Word | None = Field(None, description="The Agent's phase.")
    revision: Word | None = Field(None, description="The revision of the template that it has.")
    ready: bool | None = Field(None, description="Whether it is Ready.")


class FleetStatus(Block):
    """What the operator saw and did; written by it alone."""

    observed_generation: int = Field(-1, description="The generation of the spec that this speaks of; -1: none yet.")
    replicas: int | None = Field(None, description="Members that exist.")
    ready_replicas: int | None = Field(None, description="Members that are Ready.")
    updated_replicas: int | None = Field(None, description="Members that have the current template.")
    unavailable_replicas: int | None = Field(None, description="Members that are missing or not Ready.")
    selector: Annotated[str, Sized(512)] | None = Field(
        None, description="The label selector of the members, for autoscalers."
    )
    current_revision: Word | None = Field(None, description="The revision that all members had last.")
    update_revision: Word | None = Field(None, description="The revision of the template as it is now.")
    members: tuple[Member, ...] | None = Field(
        None,
        max_length=100,
        description="The members, those in trouble first; 100 at most.",
        json_schema_extra=keyed("name"),
    )
    conditions: Conditions = ()
    last_handled_reconcile_at: Word | None = Field(
        None, description="The last value of the annotation roost.dev/reconcile-at that was acted on."
    )


FLEET = Kind(
    kind="Fleet",
    plural="fleets",
    short="fl",
    about="A Fleet keeps a number of Agents of one template, with stable names and volumes.",
    spec=FleetSpec,
    status=FleetStatus,
    columns=(
        Column("Desired", ".spec.replicas", type="integer"),
        Column("Replicas", ".status.replicas", type="integer"),
        Column("Ready", ".status.readyReplicas", type="integer"),
        Column("Updated", ".status.updatedReplicas", type="integer"),
        Column("Revision", ".status.updateRevision", wide=True),
        Column("Age", ".metadata.creationTimestamp", type="date"),
    ),
    rules=(
        Rule(
            f"size(self.metadata.name) <= {FLEET_NAME_LIMIT}",
            f"metadata.name {{self.metadata.name}} is too long: use at most {FLEET_NAME_LIMIT} characters, "
            "so that a member's number fits behind it",
        ),
        Rule(
            "!self.metadata.name.contains('.')",
            "metadata.name {self.metadata.name} has a dot: use lower-case letters, digits and dashes only",
        ),
    ),
    scaled=True,
)


def parse_fleet_spec(obj: Mapping[str, Any]) -> FleetSpec:
    """The spec of a stored Fleet (the whole object).

    Raises:
        BadResource: it holds what this version does not know.
    """
    return parse(FleetSpec, obj.get("spec") or {})


def parse_fleet_status(obj: Mapping[str, Any]) -> FleetStatus:
    """What a Fleet's status remembers; an object without one has the defaults."""
    return parse(FleetStatus, obj.get("status") or {})
