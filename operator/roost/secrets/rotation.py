"""How a staged rotation goes from Agent to Agent. Pure.

All that it needs to know stands in the Secret's status, so that the next process goes on where this one ended.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from roost.api.conditions import Reason
from roost.kube.objects import condition
from roost.kube.records import Key, Record
from roost.secrets.lookup import Stage

LEAST_SECONDS = 300.0
"""How long an Agent may take at least, from its turn until it is Ready with the new values."""


@dataclass(frozen=True, slots=True)
class Offers:
    """What can be had of each core Secret: a digest of its values by name; None when they can't serve."""

    declared: str
    digests: Mapping[str, str | None]


def rests(agent: Record) -> bool:
    """Whether an Agent is down or left alone on purpose: it takes the new values when it comes back."""
    spec = agent.spec
    return (
        agent.deleting
        or bool(spec.get("paused") or spec.get("revoked"))
        or agent.annotations.get("roost.dev/revoked", "false").lower() not in ("false", "")
        or spec.get("desiredState", "Running") != "Running"
        or condition(agent.status, "ConfigApplied").get("reason") == Reason.NOT_NEEDED
    )


def runs(agent: Record, secret: str, version: int) -> bool:
    """Whether an Agent runs this version of a Secret."""
    told = {"name": secret, "version": version} in agent.status.get("secrets", ())
    return told and condition(agent.status, "ConfigApplied").get("status") == "True"


def passed(agent: Record, secret: str, version: int) -> bool:
    """Whether an Agent is Ready with this version."""
    current = agent.status.get("observedGeneration") == agent.generation
    return current and runs(agent, secret, version) and condition(agent.status, "Ready").get("status") == "True"


def begin(before: Stage, offers: Offers, turns: Callable[[], Sequence[Key]], now: str) -> Stage | None:
    """The stage when the declared core Secret is another than the active one; None when all is to stay as it is.

    Back to the one before, or from one that is gone: at once. To one that can't serve: not yet.
    """
    declared, digests = offers.declared, offers.digests
    if before.active is None or declared == before.previous:
        return Stage(declared)
    # From a rotation that is under way, those that had moved go back first: what they had is not known to be good.
    base = before.previous or before.active
    if digests.get(declared) is None:
        return None
    if digests.get(base) in (None, digests[declared]):
        return Stage(declared)
    first = next(iter(turns()), None)
    return Stage(declared) if first is None else Stage(declared, base, first[1:], now)


def advance(before: Stage, done: Callable[[Key], bool], turns: Callable[[], Sequence[Key]], now: str) -> Stage:
    """The stage after those whose turn is over: the one at the mark, if it is `done`; `turns` are who takes part."""
    assert before.at is not None
    here = Key("Agent", *before.at)
    if not done(here):
        return before
    later = next((agent for agent in turns() if agent > here), None)
    return Stage(before.active) if later is None else replace(before, at=later[1:], since=now)


def deadline(agent: Record | None, since: str) -> datetime:
    """Until when the Agent at the mark is waited for."""
    runtime: Mapping[str, Any] = (agent.spec.get("runtime") or {}) if agent is not None else {}
    allowed = float((runtime.get("readiness") or {}).get("initialDeadlineSeconds") or 0)
    return datetime.fromisoformat(since) + timedelta(seconds=max(allowed, LEAST_SECONDS))
