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
    """A block with exactly one of two fields: a text, or a key of a Secret."""
    return made(block, **rest, **{plain: TEXT}) | made(block, **rest, **{by_reference: REFERENCE})


def text_of(block: type[B], **rest: st.SearchStrategy[Any]) -> st.SearchStrategy[B]:
    """A block with a text, or a key of a ConfigMap."""
    return made(block, **rest, content=TEXT) | made(block, **rest, config_map_ref=CONFIG_MAP_REF)


def messengers(block: type[B], **tokens: st.SearchStrategy[Any]) -> st.SearchStrategy[B | None]:
    """A messenger that hears somebody, or nobody on purpose."""
    sender = st.sampled_from(["*", "123456789", "+15550100", "discord:12", "@ada"])
    named = st.lists(sender, min_size=1, max_size=4)
    lists = {
        "Pairing": st.lists(sender, max_size=4),
        "Allowlist": named,
        "Open": named.map(lambda senders: [*senders, "*"]),
        "Disabled": st.lists(sender, max_size=4),
    }
    return st.none() | st.sampled_from(sorted(lists)).flatmap(
        lambda policy: made(block, **tokens, dm_policy=st.just(policy), allow_from=lists[policy].map(tuple))
    )


WORD = st.text("abcxyz", min_size=1, max_size=9)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PATH = st.from_regex(r"[.]?[A-Za-z0-9_-]{1,9}(/[.]{0,2}[a-z ]{1,4}[.]?){0,3}", fullmatch=True).filter(
    lambda path: path.split("/")[0] != ".roost"
)
# One draw each: there are many of them in a spec, and what they say matters little.
REFERENCE = st.sampled_from(
    [
        agent.SecretRef(name=name, key=key, kind=kind)
        for name in ("s", "a.b-1", "n" * 253)
        for key in ("k", "._-", "API_KEY")
        for kind in ("Secret", "CoreSecret")
    ]
)
CONFIG_MAP_REF = st.sampled_from([agent.ConfigMapKeyRef(name=n, key=k) for n in ("m", "a.b-1") for k in ("k", "A.md")])
MODEL_NAME = st.sampled_from(["a/b", "anthropic/claude-sonnet-4-6", "openrouter/x/y-1.2:free@z"])
URL = st.sampled_from(["http://a", "https://models.example.com:8443/v1", "https://[fdaa::3]/?a=@"])


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


JSON: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-(2**31), 2**31) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=4,
)
RUNTIME = made(
    agent.Runtime,
    kind=st.just("Command"),
    version=st.none() | WORD,
    command=st.lists(TEXT.filter(bool), min_size=1, max_size=4).map(tuple),
    readiness=st.none() | READINESS,
) | made(
    agent.Runtime,
    kind=st.just("OpenClaw"),
    version=st.just("2026.9.6"),
    readiness=st.none() | READINESS,
    rollback=st.booleans(),
    config=st.dictionaries(WORD, JSON, max_size=2),
)
KEY_OR_URL: list[dict[str, st.SearchStrategy[Any]]] = [
    {"api_key_from": REFERENCE},
    {"base_url": URL},
    {"api_key_from": REFERENCE, "base_url": URL},
]
PROVIDER = st.sampled_from(KEY_OR_URL).flatmap(
    lambda given: made(agent.Provider, id=WORD, api=st.none() | WORD, **given)
)
SKILL = made(
    agent.Skill,
    name=st.sampled_from(["weather", "0_", "s-" * 64]),
    version=st.sampled_from(["0.1.0", "1.2.3-rc.1", "10.20.30+b-1"]),
    config_map_ref=made(agent.ConfigMapRef, name=WORD),
    sha256=st.sampled_from([None, "0123456789abcdef" * 4]),
)
BRIDGE = made(
    agent.Bridge,
    enabled=st.booleans(),
    base_url=URL,
    service_id=WORD,
    app_key=st.none() | WORD,
    service_key_from=REFERENCE,
    base_url_map_from=st.none() | REFERENCE,
    linking_secret_from=st.none() | REFERENCE,
)
SOUL_AND_WORKSPACE = st.tuples(
    st.none() | text_of(agent.Soul),
    st.lists(
        text_of(
            agent.WorkspaceFile,
            path=st.just("SOUL.md") | PATH.filter(lambda path: path.split("/")[0] != "skills"),
            policy=st.sampled_from(["Seed", "Overwrite"]),
        ),
        max_size=3,
        unique_by=lambda f: f.path,
    ).map(tuple),
).map(lambda both: (None, both[1]) if any(file.path == "SOUL.md" for file in both[1]) else both)


ELSE: dict[str, st.SearchStrategy[Any]] = {
    "revoked": st.booleans(),
    "paused": st.booleans(),
    "deletion_policy": st.sampled_from(["Delete", "Retain"]),
    "restarted_at": st.none() | st.just("2026-11-21T10:00:00Z"),
    "identity": made(
        agent.Identity,
        display_name=st.none() | TEXT,
        token_epoch=st.integers(0, 1_000_000_000),
        bootstrap=st.sampled_from(["Token", "FlyOidc"]),
    ),
    "volume": VOLUME,
    "runtime": RUNTIME,
    "model": st.none()
    | made(
        agent.Model,
        default=MODEL_NAME,
        fallbacks=st.lists(MODEL_NAME, max_size=3).map(tuple),
        thinking=st.sampled_from([None, "off", "low", "ultra"]),
    ),
    "providers": st.lists(PROVIDER, max_size=4, unique_by=lambda p: p.id).map(tuple),
    "channels": made(
        agent.Channels,
        telegram=messengers(agent.Bot, token_from=REFERENCE),
        discord=messengers(agent.Bot, token_from=REFERENCE),
        slack=messengers(agent.Slack, bot_token_from=REFERENCE, app_token_from=REFERENCE),
        whatsapp=messengers(agent.DirectMessages),
    ),
    "skills": made(
        agent.Skills,
        policy=st.sampled_from(["AllowlistOnly", "Merge"]),
        items=st.lists(SKILL, max_size=2, unique_by=lambda s: s.name).map(tuple),
    ),
    "bridge": st.none() | BRIDGE,
    "env": st.lists(
        either(agent.EnvVar, "value", "value_from", name=st.text("ABC_", min_size=1, max_size=9)),
        max_size=4,
        unique_by=lambda e: e.name,
    ).map(tuple),
    "files": st.lists(
        either(
            agent.File,
            "content",
            "content_from",
            path=PATH,
            mode=st.sampled_from(["0600", "0400", "0777", "0000"]),
        ),
        max_size=4,
        unique_by=lambda f: f.path,
    ).map(tuple),
    "heartbeat": made(
        agent.Heartbeat, interval_seconds=st.integers(5, 3600), missed_before_unhealthy=st.integers(1, 100)
    ),
    "telemetry": made(
        agent.Telemetry, interval_seconds=st.integers(30, 86_400), initial_delay_seconds=st.integers(0, 86_400)
    ),
}


def specs(
    machine: agent.Machine,
    placement: agent.Placement,
    recovery: agent.Recovery,
    soul: agent.Soul | None,
    workspace: tuple[agent.WorkspaceFile, ...],
) -> st.SearchStrategy[AgentSpec]:
    return made(
        AgentSpec,
        desired_state=st.sampled_from(["Running", "Stopped", *["Suspended"] * (machine.memory_mb <= 2048)]),
        machine=st.just(machine),
        placement=st.just(placement),
        recovery=st.just(recovery),
        idle=rests(machine),
        soul=st.just(soul),
        workspace=st.just(workspace),
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


SPECS: st.SearchStrategy[AgentSpec] = st.tuples(MACHINE, PLACEMENT_AND_RECOVERY, SOUL_AND_WORKSPACE).flatmap(
    lambda drawn: specs(drawn[0], *drawn[1], *drawn[2])
)
