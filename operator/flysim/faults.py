"""Failures to order: which calls fail, how, and how often.

A fault never changes the world itself; it only says what becomes of a call that matches it. Where several match, the
oldest one that hits applies: one that is used up, skips this call or is not in luck leaves it to the next.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flysim.routes import OPERATIONS

Where = Literal["before", "after", "reply"]
Fact = Literal["org", "app", "machine", "volume", "name", "method", "agent"]


class Order(BaseModel):
    """A fault as it is ordered.

    `status` None with `before` only delays; `delay` passes before the effect, `hold` between it and the answer (in
    seconds); `skip` matching calls go by unharmed first; each later one is hit with this `chance`, until it has hit
    `times` calls (None: for ever).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str = "*"
    where: Where = "before"
    status: int | None = Field(default=None, ge=200, le=599)
    body: Any = None
    delay: float = Field(default=0.0, ge=0)
    hold: float = Field(default=0.0, ge=0)
    times: int | None = Field(default=None, ge=1)
    skip: int = Field(default=0, ge=0)
    chance: float = Field(default=1.0, gt=0, le=1)
    match: dict[Fact, str] = {}

    @field_validator("op")
    @classmethod
    def _names_an_operation(cls, op: str) -> str:
        if not any(fnmatchcase(name, op) for name in OPERATIONS):
            raise ValueError(f"no operation is called so; there are: {', '.join(sorted(OPERATIONS))}")
        return op

    @model_validator(mode="after")
    def _does_something(self) -> "Order":
        if self.where == "before" and self.status is None and not self.delay and not self.hold:
            raise ValueError("a fault before the effect needs a status, a delay or a hold, else it does nothing")
        if self.where == "before" and self.status is not None and self.hold:
            raise ValueError("a call that is refused has no effect after which it could be held; leave hold out")
        if self.where == "after" and self.status is None:
            raise ValueError("a fault after the effect needs a status")
        return self


@dataclass(slots=True)
class Fault:
    """An order with its use so far: how many matching calls it saw, and how many of them it hit."""

    id: str
    order: Order
    seen: int = 0
    used: int = 0

    @property
    def spent(self) -> bool:
        return self.order.times is not None and self.used >= self.order.times

    def matches(self, op: str, facts: Mapping[str, str | None]) -> bool:
        """Patterns are shell-like (`delete_*`); a fact that the call lacks matches nothing."""
        order = self.order
        if self.spent or not fnmatchcase(op, order.op):
            return False
        return all(
            (fact := facts.get(name)) is not None and fnmatchcase(fact, pattern)
            for name, pattern in order.match.items()
        )


@dataclass(slots=True)
class Faults:
    """The faults in force, oldest first. `random` decides for those that have a chance."""

    random: Random
    _faults: dict[str, Fault] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def add(self, order: Order) -> Fault:
        fault = Fault(f"fault-{next(self._numbers)}", order)
        self._faults[fault.id] = fault
        return fault

    def remove(self, fault_id: str | None) -> bool:
        """Takes one fault away, or all of them for None; False when there is no such fault."""
        if fault_id is None:
            self._faults.clear()
            return True
        return self._faults.pop(fault_id, None) is not None

    def all(self) -> list[Fault]:
        return list(self._faults.values())

    def take(self, op: str, facts: Mapping[str, str | None]) -> Fault | None:
        """The fault that applies to this call, counted as used."""
        for fault in self._faults.values():
            if fault.matches(op, facts) and self._hits(fault):
                fault.used += 1
                return fault
        return None

    def _hits(self, fault: Fault) -> bool:
        fault.seen += 1
        if fault.seen <= fault.order.skip:
            return False
        return fault.order.chance == 1 or self.random.random() < fault.order.chance


def read_orders(text: bytes) -> list[Order]:
    """A plan: a JSON list of orders. Raises ValueError, which says what is wrong where."""
    plan = json.loads(text)
    if not isinstance(plan, list):
        raise ValueError("a fault plan is a JSON list of faults, [{…}, …]")
    orders = []
    for index, order in enumerate(plan):
        try:
            orders.append(Order.model_validate(order))
        except ValidationError as error:
            raise ValueError(f"fault {index + 1} of {len(plan)}: {wrong(error)}") from error
    return orders


def wrong(error: ValidationError) -> str:
    """What a person needs to know about input that was refused: fields, values, remedies, in one line."""
    said = []
    for entry in error.errors():
        field = ".".join(str(part) for part in entry["loc"] if part != "[key]")
        value = "" if not field or entry["type"] == "missing" else f" (got {entry['input']!r:.80})"
        said.append(f"{field + ': ' if field else ''}{entry['msg'].removeprefix('Value error, ')}{value}")
    return "; ".join(said)
