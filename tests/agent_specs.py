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
METADATA = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", fullmatch=True).filter(
        lambda key: not key.startswith(("roost_", "fly_", "fly-")) and key != "process_group"
    ),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=20),
    max_size=4,
)


def machines(kind: str, cpus: int, public: str) -> st.SearchStrategy[agent.Machine]:
    each_least, each_most = (256, 2048) if kind == "shared" else (2048, 8192)
    least, most = max(1024, each_least * cpus), each_most * cpus
    return made(
        agent.Machine,
        image=st.none() | st.just("registry.fly.io/agent@sha256:0123"),
        cpu_kind=st.just(kind),
        cpus=st.just(cpus),
        memory_mb=st.just(least) | st.integers(least // 256, most // 256).map(lambda n: 256 * n),
        stop_timeout_seconds=st.integers(1, 300),
        restart=st.sampled_from(["Always", "OnFailure", "Never"]),
        public=st.just(public),
        autostart=st.booleans() if public != "None" else st.just(False),
        metadata=METADATA,
    )


MACHINE = st.tuples(
    st.tuples(st.just("shared"), st.sampled_from([1, 2, 4, 6, 8]))
    | st.tuples(st.just("performance"), st.sampled_from([1, 2, 4, 6, 8, 10, 12, 14, 16])),
    st.sampled_from(["None", "Gateway", "All"]),
).flatmap(lambda drawn: machines(*drawn[0], drawn[1]))
VOLUME = st.integers(1, 499).flatmap(
    lambda size: made(
        agent.Volume,
        size_gb=st.just(size),
        mount_path=WORD.map(lambda w: f"/{w}"),
        snapshot_retention_days=st.integers(1, 60),
        auto_extend=st.none()
        | made(
            agent.AutoExtend,
            at_percent=st.integers(50, 99),
            by_gb=st.integers(1, 100),
            limit_gb=st.integers(size + 1, 500),
        ),
        on_loss=st.sampled_from(["Restore", "Fail", "Recreate"]),
        restore_from=st.none()
        | made(agent.RestoreFrom, snapshot=WORD.map(lambda w: f"vs_{w}"))
        | made(agent.RestoreFrom, agent=WORD),
    )
)
PLACEMENT_AND_RECOVERY = st.tuples(
    made(
        agent.Placement,
        regions=st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), max_size=16).map(tuple),
        relocate=st.sampled_from(["Never", "OnCapacity", "OnFailure"]),
    ),
    made(
        agent.Recovery,
        on_unhealthy=st.sampled_from(["None", "RestartMachine", "Relocate"]),
        max_per_hour=st.integers(1, 60),
    ),
).filter(lambda both: (both[0].relocate, both[1].on_unhealthy) != ("Never", "Relocate"))


def rests(machine: agent.Machine) -> st.SearchStrategy[agent.Idle]:
    """How an agent on this machine may rest."""
    resting = made(
        agent.Idle,
        after_seconds=st.integers(60, 604_800),
        action=st.sampled_from(["Stop", "Suspend"] if machine.memory_mb <= 2048 else ["Stop"]),
        allow_deaf=st.booleans() if machine.autostart else st.just(True),
    )
    return resting | st.just(agent.Idle())


ELSE: dict[str, st.SearchStrategy[Any]] = {
    "revoked": st.booleans(),
    "paused": st.booleans(),
    "deletion_policy": st.sampled_from(["Delete", "Retain"]),
    "restarted_at": st.none() | st.just("2026-11-21T10:00:00Z"),
    "identity": made(agent.Identity, display_name=st.none() | TEXT, token_epoch=st.integers(0, 1_000_000_000)),
    "volume": VOLUME,
    "runtime": made(
        agent.Runtime,
        kind=st.just("Command"),
        version=st.none() | WORD,
        command=st.lists(TEXT.filter(bool), min_size=1, max_size=8).map(tuple),
        readiness=st.none() | READINESS,
    ),
    "env": st.lists(
        either(agent.EnvVar, "value", "value_from", name=st.from_regex(r"[A-C_][A-Z_]{0,9}", fullmatch=True)),
        max_size=8,
        unique_by=lambda e: e.name,
    ).map(tuple),
    "files": st.lists(
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
    "heartbeat": made(
        agent.Heartbeat, interval_seconds=st.integers(5, 3600), missed_before_unhealthy=st.integers(1, 100)
    ),
}


def specs(machine: agent.Machine, placement: agent.Placement, recovery: agent.Recovery) -> st.SearchStrategy[AgentSpec]:
    return made(
        AgentSpec,
        desired_state=st.sampled_from(["Running", "Stopped", *["Suspended"] * (machine.memory_mb <= 2048)]),
        machine=st.just(machine),
        placement=st.just(placement),
        recovery=st.just(recovery),
        idle=rests(machine),
        fly=made(
            agent.Fly,
            credential=st.none() | WORD,
            org=st.none() | WORD,
            app_strategy=st.sampled_from(["PerAgent", *["Shared"] * (machine.public == "None")]),
            app=WORD,
            network=st.none() | WORD,
        ),
        **ELSE,
    )


SPECS: st.SearchStrategy[AgentSpec] = st.tuples(MACHINE, PLACEMENT_AND_RECOVERY).flatmap(
    lambda drawn: specs(drawn[0], *drawn[1])
)
