"""How every message of the contract is read and written.

Forgiving on reading: unknown fields are kept, an unknown word of a closed list becomes `unknown`, so that an older side
understands a newer one. Strict on writing: types, bounds, and no field that this version does not know. A validation
error never shows the value that was refused: it may be a secret.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

JSON = Mapping[str, "JSON"] | Sequence["JSON"] | str | int | float | bool | None


def instant(text: str) -> datetime:
    """The moment that an RFC 3339 time names, in UTC.

    Raises:
        ValueError: there is no such day, hour or offset, or the moment is outside of the years 1 to 9999.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError:
        raise ValueError("outside of the years 1 to 9999") from None


def _is_instant(text: str) -> str:
    instant(text)
    return text


Name = Annotated[str, Field(max_length=253)]
Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
"""One printable line for people: never a control character that could forge a second log line."""
Time = Annotated[
    str,
    Field(max_length=40, pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$"),
    AfterValidator(_is_instant),
]
"""RFC 3339, and a moment that there is: `instant` reads whatever was taken."""
Version = Annotated[str, Field(max_length=64, pattern=r"^[\x21-\x7e]*$")]
RestartedAt = Annotated[str, Field(max_length=64, pattern=r"^[\x20-\x7e]*$")]
"""Any text; only whether it is another counts."""
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""What JSON numbers carry without loss (RFC 8259 section 6)."""


class Wire(BaseModel):
    """Base of all messages: camelCase on the wire, snake_case here, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        extra="allow",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    @classmethod
    def read(cls, body: bytes | str) -> Self:
        """The message in a JSON body.

        Raises:
            pydantic.ValidationError: not JSON, a field is missing, of another type or out of its bounds. Its text names
                fields, never their values.
        """
        return cls.model_validate_json(body)

    def write(self) -> bytes:
        """The canonical JSON of the message.

        Raises:
            ValueError: it carries a field that this version does not know, which when writing can only be a slip.
        """
        if unknown := list(_unknown_fields(self)):
            raise ValueError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return canonical(self.model_dump(mode="json"))


class Word(StrEnum):
    """A closed list of words. Reading any other gives its member `unknown`, which is never written."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return cls("unknown") if isinstance(value, str) and value != "unknown" else None


def canonical(value: JSON) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN or infinity (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def refused(error: ValidationError) -> str:
    """Which fields were refused, and why; never with what value."""
    found = [
        f"{'.'.join(map(str, e['loc']))}: {e['type']}" for e in error.errors(include_input=False, include_url=False)
    ]
    return "; ".join(found[:3])


def _unknown_fields(model: BaseModel) -> list[str]:
    found = list(model.model_extra or ())
    for value in dict(model).values():
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, BaseModel):
                found += _unknown_fields(item)
    return found
