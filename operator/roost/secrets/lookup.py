"""Which object a reference of an Agent leads to: by the cache alone, so that every replica finds the same. Pure.

A Roost Secret of the name `<name>.<agent>` beside the Agent comes first, then `<name>` beside it, then `<name>` in the
operator's namespace if it is offered. While a staged rotation is on its way, the Secret's status says from which core
Secret which Agent takes the values.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from roost.api import secret as api
from roost.api.block import BadResource, parse
from roost.api.conditions import Reason
from roost.kube.records import Cache, Key, Record
from roost.secrets.state import Ref

MOST_SPECS = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """Key `key`, one of `keys` (if there are any), of the object `source`.

    By way of a Roost Secret, if `secret` is one: in its `version`, which is None while nobody has looked at it.
    """

    source: Key
    keys: tuple[api.Key, ...]
    key: str
    secret: Key | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """There is none: why, and what to do."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the values come from: `active`; while a rotation is under way, `previous` for those behind `at`."""

    active: str | None
    previous: str | None = None
    at: tuple[str, str] | None = None
    since: str = ""


def stage_of(found: Record) -> Stage:
    """What a Secret's status says of its rotation."""
    status, rotation = found.status, found.status.get("rotation")
    if not rotation or not status.get("previousRef"):
        return Stage(status.get("activeRef"))
    namespace, _, name = rotation["at"].partition("/")
    return Stage(status.get("activeRef"), status["previousRef"], (namespace, name), rotation["since"])


class Lookup:
    """Finds what references lead to. `home` is the operator's own namespace."""

    def __init__(self, cache: Cache, home: str) -> None:
        self.cache, self.home = cache, home
        self._specs: dict[tuple[str, int], api.SecretSpec | None] = {}

    def spec(self, found: Record) -> api.SecretSpec | None:
        """The spec of a Roost Secret; None when this version can't read it."""
        at = found.uid, found.generation
        if at not in self._specs:
            if len(self._specs) >= MOST_SPECS:
                self._specs.clear()
            try:
                self._specs[at] = parse(api.SecretSpec, found.spec)
            except BadResource:
                self._specs[at] = None
        return self._specs[at]

    def candidates(self, agent: Key, name: str) -> Iterator[Key]:
        """Where a reference is looked for, in order."""
        yield Key("Secret", agent.namespace, f"{name}.{agent.name}")
        yield Key("Secret", agent.namespace, name)
        if agent.namespace != self.home:
            yield Key("Secret", self.home, name)

    def find(self, agent: Key, ref: Ref) -> Found | Missing:
        """What a reference of an Agent leads to."""
        if ref.kind != "Secret":
            keys = (api.Key.model_validate({"name": ref.key}),) if ref.key else ()
            return Found(Key(ref.kind, agent.namespace, ref.name), keys, ref.key)
        withheld: list[Key] = []
        for key in self.candidates(agent, ref.name):
            found = self.cache.get(key)
            if found is None or found.deleting:
                continue
            spec = self.spec(found)
            if spec is None:
                return Missing(
                    Reason.SPEC_INVALID, f'this version of the operator can\'t read secrets.roost.dev "{key.name}"'
                )
            if not self._offers(key, spec, agent):
                withheld.append(key)
                continue
            source, version = _place(found, spec, agent)
            return Found(Key("CoreSecret", key.namespace, source), spec.keys, ref.key, key, version)
        return self._missing(agent, ref, withheld)

    def _offers(self, key: Key, spec: api.SecretSpec, agent: Key) -> bool:
        offer = spec.available_to
        if key.namespace != agent.namespace and not {"*", agent.namespace} & set(offer.namespaces):
            return False
        wanted = offer.agent_selector.match_labels
        return not wanted or ((found := self.cache.get(agent)) is not None and wanted.items() <= found.labels.items())

    def _missing(self, agent: Key, ref: Ref, withheld: list[Key]) -> Missing:
        namespace = agent.namespace
        for key in withheld:
            if key.namespace == namespace and (found := self.cache.get(key)) is not None:
                spec = self.spec(found)
                wanted = spec.available_to.agent_selector.match_labels if spec is not None else {}
                labels = " ".join(f"{k}={v}" for k, v in wanted.items())
                return Missing(
                    Reason.SECRET_NOT_OFFERED,
                    f'secrets.roost.dev "{key.name}" in namespace "{namespace}" is offered to Agents of these labels: '
                    f"kubectl -n {namespace} label agents {agent.name} {labels}",
                )
        abroad = " (the one of the operator's namespace is not offered to this namespace)" if withheld else ""
        return Missing(
            Reason.SECRET_NOT_OFFERED if withheld else Reason.SECRET_MISSING,
            f'secrets.roost.dev "{ref.name}" not found in namespace "{namespace}"{abroad}; create a core Secret and '
            f"the Roost Secret that offers it: kubectl -n {namespace} create secret generic {ref.name} "
            f"--from-literal={ref.key}=VALUE",
        )


def _place(found: Record, spec: api.SecretSpec, agent: Key) -> tuple[str, int | None]:
    """The core Secret from which an Agent takes its values now, and the version that they are."""
    declared, stage, status = spec.source.secret_ref.name, stage_of(found), found.status
    version = status.get("activeVersion")
    if spec.rotation.strategy != "Staged" or stage.active is None or declared == stage.previous:
        return declared, version
    if stage.at is not None and stage.previous is not None and (agent.namespace, agent.name) > stage.at:
        return stage.previous, status.get("rotatedFrom")
    return stage.active, version
