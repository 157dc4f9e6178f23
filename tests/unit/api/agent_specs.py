"""Agents as hypothesis imagines them: any spec that the models allow."""

from typing import Any, TypeVar

from hypothesis import strategies as st

from roost.api import agent
from roost.api.agent import AgentSpec
from roost.api.block import Block

B = TypeVar("B", bound=Block)


def made(block: type[B], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[B]:
    """A block of these fields. (`st.builds` would also fill in every alias by itself.)"""
    return st.fixed_dictionaries(fields).map(lambda given: block(**given))


def either(block: type[B], plain: str, by_reference: str, **rest: st.SearchStrategy[Any]) -> st.SearchStrategy[B]:
    """A block with exactly one of two fields."""
    return made(block, **rest, **{plain: TEXT}) | made(block, **rest, **{by_reference: REFERENCE})


WORD = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PATH = st.from_regex(r"[.]?[A-Za-z0-9_-]{1,9}(/[.]{0,2}[a-z ]{1,4}[.]?){0,3}", fullmatch=True).filter(
    lambda path: path.split("/")[0] != ".roost"
)
REFERENCE = made(
    agent.SecretRef,
    name=st.from_regex(r"[a-z0-9]([-a-z0-9]{0,9}[a-z0-9])?", fullmatch=True),
    key=st.from_regex(r"[-._a-zA-Z0-9]{1,9}", fullmatch=True),
)


READINESS = made(
    agent.Readiness,
    http_get=made(agent.HttpGet, path=WORD.map(lambda w: f"/{w}"), port=st.integers(1, 65535)),
    initial_deadline_seconds=st.integers(1, 86_400),
)
MACHINE = st.sampled_from([1, 2, 4, 6, 8]).flatmap(
    lambda cpus: made(
        agent.Machine,
        image=st.none() | st.just("registry.fly.io/agent@sha256:0123"),
        cpus=st.just(cpus),
        memory_mb=st.integers(max(4, cpus), 8 * cpus).map(lambda n: 256 * n),
        stop_timeout_seconds=st.integers(1, 300),
        restart=st.sampled_from(["Always", "OnFailure", "Never"]),
    )
)
SPECS: st.SearchStrategy[AgentSpec] = made(
    AgentSpec,
    desired_state=st.sampled_from(["Running", "Stopped"]),
    revoked=st.booleans(),
    paused=st.booleans(),
    deletion_policy=st.sampled_from(["Delete", "Retain"]),
    restarted_at=st.none() | st.just("2026-11-21T10:00:00Z"),
    identity=made(agent.Identity, display_name=st.none() | TEXT, token_epoch=st.integers(0, 1_000_000_000)),
    fly=made(
        agent.Fly,
        credential=st.none() | WORD,
        org=st.none() | WORD,
        app_strategy=st.sampled_from(["PerAgent", "Shared"]),
        app=WORD,
        network=st.none() | WORD,
    ),
    placement=made(
        agent.Placement, regions=st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), max_size=16).map(tuple)
    ),
    machine=MACHINE,
    volume=made(agent.Volume, size_gb=st.integers(1, 500), mount_path=WORD.map(lambda w: f"/{w}")),
    runtime=made(
        agent.Runtime,
        kind=st.just("Command"),
        version=st.none() | WORD,
        command=st.lists(TEXT.filter(bool), min_size=1, max_size=8).map(tuple),
        readiness=st.none() | READINESS,
    ),
    env=st.lists(
        either(agent.EnvVar, "value", "value_from", name=st.from_regex(r"[A-C_][A-Z_]{0,9}", fullmatch=True)),
        max_size=8,
        unique_by=lambda e: e.name,
    ).map(tuple),
    files=st.lists(
        either(
            agent.File,
            "content",
            "content_from",
            path=PATH,
            mode=st.from_regex(r"0[0-7]{3}", fullmatch=True),
        ),
        max_size=8,
        unique_by=lambda f: f.path,
    ).map(tuple),
    heartbeat=made(agent.Heartbeat, interval_seconds=st.integers(5, 3600), missed_before_unhealthy=st.integers(1, 100)),
)
