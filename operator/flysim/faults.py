"""Failures to order: which calls fail, how, and how often.

A fault never changes the world itself; it only says what becomes of a call that matches it. Where several match, the
oldest one that is not used up applies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Where = Literal["before", "after", "reply"]


class Order(BaseModel):
    """A fault as it is ordered. `status` None with `before` only delays; `times` None means for ever."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str = "*"
    where: Where = "before"
    status: int | None = Field(default=None, ge=200, le=599)
    body: Any = None
    delay: float = Field(default=0.0, ge=0)
    times: int | None = Field(default=None, ge=1)
    match: dict[Literal["org", "app", "machine", "volume", "method", "agent"], str] = {}

    @model_validator(mode="after")
    def _does_something(self) -> "Order":
        if self.where == "before" and self.status is None and not self.delay:
            raise ValueError("a fault before the effect needs a status or a delay, else it does nothing")
        if self.where == "after" and self.status is None:
            raise ValueError("a fault after the effect needs a status")
        return self


@dataclass(slots=True)
class Fault:
    """An order with its use so far."""

    id: str
    order: Order
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
    """The faults in force, oldest first."""

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
            if fault.matches(op, facts):
                fault.used += 1
                return fault
        return None
