"""What the kinds are made of: blocks whose fields carry type, bounds, default, meaning and rules in one place.

A field is added by writing it once in its block; the CRD, the reference pages and the parser follow. Rules are CEL and
are enforced by the API server at apply; the parser does not repeat them. Nothing here knows a kind or does I/O.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

Marker = dict[str, Any]
"""What a field says beyond JSON Schema: goes into `Field(json_schema_extra=…)`, several are joined by `|`."""

B = TypeVar("B", bound="Block")


class BadResource(ValueError):
    """A stored object that this version can't read; the message names each field, its value and what is wrong."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule over one block: CEL that must be true, else `says` is what the person at kubectl reads.

    `says` is plain text with CEL in braces: `memoryMb {self.memoryMb} is odd`. `field` names the culprit.
    """

    cel: str
    says: str
    field: str | None = None


class Block(BaseModel):
    """An object in a manifest. Reading takes what it knows and ignores the rest (a newer CRD may hold more)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        if cls.RULES:
            handler.resolve_ref_schema(schema)["x-roost-rules"] = [asdict(r) for r in cls.RULES]
        return schema


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; a wide one is shown with `-o wide` only."""

    title: str
    path: str
    type: str = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One of our resources: how it is named, shown and made of a spec and a status."""

    kind: str
    plural: str
    short: str
    about: str
    spec: type[Block]
    status: type[Block]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    """Rules over the whole object; of metadata, CEL sees only the name."""
    annotations: tuple[tuple[str, str], ...] = (
        ("roost.dev/reconcile-at", "Any new value has it looked at now; the status echoes it."),
    )
    """What a person may write on the object, and what it does."""
    scaled: bool = False
    """Has the scale subresource: spec.replicas, status.replicas, status.selector."""

    @property
    def singular(self) -> str:
        return self.kind.lower()


# --- Markers: what a field may say about itself. ----------------------------------------------------------------


def immutable(remedy: str) -> Marker:
    """Never changes after creation: neither set later nor taken away."""
    return {"x-roost-immutable": remedy}


def never_falls(remedy: str) -> Marker:
    """A number that may only grow."""
    return {"x-roost-never-falls": remedy}


def keyed(by: str) -> Marker:
    """A list whose items are told apart by this field; two of the same are refused, appliers share it."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [by]}


def says(must: str) -> Marker:
    """The sentence in place of a regular expression when the field's pattern is not met: `… must be <must>`."""
    return {"x-roost-says": must}


def stays_absent() -> Marker:
    """The default is for readers of the model only; nothing is stored when the field is left out."""
    return {"x-roost-stays-absent": True}


def never_null() -> Marker:
    """May be left out, and null is refused: for what the API server itself reads as a number."""
    return {"nullable": False}


class Sized:
    """Bounds a string in the schema alone: what we wrote ourselves is never refused on reading."""

    def __init__(self, max_length: int, **schema: Any) -> None:
        self.schema: Marker = {"maxLength": max_length} | schema

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(core) | self.schema


# --- Types that several kinds use. ------------------------------------------------------------------------------

Word = Annotated[str, Sized(253)]
"""An id, a name or a state, written by the operator."""
Line = Annotated[str, Sized(1024)]
"""One line for people, written by the operator."""
Time = Annotated[str, Sized(64, format="date-time")]
"""RFC 3339, UTC, written by the operator."""

ObjectName = Annotated[
    str,
    Field(
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        json_schema_extra=says("the name of an object: lower-case letters, digits, dashes and dots"),
    ),
]
SecretKey = Annotated[
    str,
    Field(
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        json_schema_extra=says("a key of a Secret: letters, digits, dashes, dots and underscores"),
    ),
]


class Condition(Block):
    """One thing that is true, false or not known of the object, as every Kubernetes tool reads it."""

    type: Annotated[str, Sized(316, pattern=r"^[A-Za-z][A-Za-z0-9_.\-/]*$")] = Field(description="What is said.")
    status: Annotated[str, Sized(7, enum=["True", "False", "Unknown"])] = Field(
        description="Whether it is so: True, False or Unknown."
    )
    reason: Annotated[str, Sized(1024, minLength=1, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")] = Field(
        description="Why, in one word of the documented list."
    )
    message: Annotated[str, Sized(32768)] = Field(description="Why, in a sentence; may be empty.")
    last_transition_time: Time = Field(description="When the status last changed from one value to another.")
    observed_generation: int | None = Field(
        None, ge=0, description="The generation of the spec that this was said about."
    )


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=32,
        description="What is true of the object now, one entry a type.",
        json_schema_extra=keyed("type") | stays_absent(),
    ),
]

# --- Reading. ---------------------------------------------------------------------------------------------------


def parse(block: type[B], stored: Any) -> B:
    """Reads a block as the API server stores it; null counts as left out, unknown fields are ignored.

    Raises:
        BadResource: a field is missing or holds what this version does not know.
    """
    try:
        return block.model_validate(_without_nulls(stored))
    except ValidationError as error:
        raise BadResource("; ".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: ErrorDetails) -> str:
    """Where, what, and the value if it is a short one: never a whole block, in which anything may stand."""
    where, value = ".".join(map(str, error["loc"])), error["input"]
    shown = f", not {value!r}" if isinstance(value, str | int) and len(str(value)) <= 64 else ""
    return f"{where or 'the spec'}: {error['msg']}{shown}"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value
