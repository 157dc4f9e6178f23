"""The config bundle of one Agent: rendered purely from the Agent and the values of its secrets.

The revision is keyed and made over the bundle with every secret value replaced by its fingerprint: it can be known,
compared and published without holding a value.
"""

from collections.abc import Callable, Iterator

from roost.agents.view import Declared
from roost.secrets.state import Ref
from roost_agent.contract import bundle as wire

ValueOf = Callable[[Ref], str]


def refs_of(declared: Declared) -> Iterator[Ref]:
    """Every reference to a Secret's key in an Agent."""
    for env in declared.spec.env:
        if env.value_from is not None:
            yield Ref(env.value_from.name, env.value_from.key)
    for file in declared.spec.files:
        if file.content_from is not None:
            yield Ref(file.content_from.name, file.content_from.key)


def render(declared: Declared, did: str, value_of: ValueOf, revision: str) -> wire.ConfigBundle:
    """The bundle as it goes over the wire; a revoked agent's has neither secrets nor files nor anything to run."""
    spec = declared.spec
    ordinal = declared.labels.get("roost.dev/ordinal", "")  # a label: anybody may write anything
    agent = wire.BundleAgent(
        did=did,
        namespace=declared.namespace,
        name=declared.name,
        uid=declared.uid,
        fleet=declared.labels.get("roost.dev/fleet"),
        ordinal=int(ordinal) if ordinal.isdecimal() and len(ordinal) < 10 else None,
    )
    heartbeat = wire.BundleHeartbeat(interval_seconds=spec.heartbeat.interval_seconds)
    if declared.revoked:
        return wire.ConfigBundle(
            revision=revision,
            generation=declared.generation,
            agent=agent,
            revoked=True,
            runtime=None,
            env={},
            secret_env={},
            files=[],
            heartbeat=heartbeat,
        )
    readiness = None
    if spec.runtime.readiness is not None:
        get = spec.runtime.readiness.http_get
        readiness = wire.Readiness(
            http_get=wire.HttpGet(path=get.path, port=get.port) if get else None,
            initial_deadline_seconds=spec.runtime.readiness.initial_deadline_seconds,
        )
    return wire.ConfigBundle(
        revision=revision,
        generation=declared.generation,
        agent=agent,
        revoked=False,
        runtime=wire.BundleRuntime(
            kind="Command",
            version=spec.runtime.version or "",
            command=list(spec.runtime.command),
            readiness=readiness,
            restarted_at=spec.restarted_at,
        ),
        env={e.name: e.value for e in spec.env if e.value_from is None and e.value is not None},
        secret_env={
            e.name: value_of(Ref(e.value_from.name, e.value_from.key)) for e in spec.env if e.value_from is not None
        },
        files=[
            wire.BundleFile(
                path=f.path,
                mode=f.mode,
                content=value_of(Ref(f.content_from.name, f.content_from.key)) if f.content_from else f.content or "",
            )
            for f in spec.files
        ],
        heartbeat=heartbeat,
    )


def revision(root: bytes, declared: Declared, did: str, print_of: ValueOf) -> str:
    """The bundle's revision; `print_of` gives the fingerprint of a referenced value."""
    content = render(declared, did, print_of, "").model_dump(mode="json", by_alias=True)
    return wire.revision(root, content)
