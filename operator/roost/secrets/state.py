"""What is known of every Roost Secret: versions and fingerprints, never values. Pure but for the table itself.

A version is a keyed fingerprint of the values (HMAC with the fingerprint root): it tells a change, and tells a
stranger nothing.
"""

import base64
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from roost.api.conditions import Reason
from roost.api.secret import SecretSpec
from roost.kube.records import Key


class NotAText(Exception):
    """A value of the core Secret is not UTF-8 text, or holds a NUL, which no variable and no argument can carry."""


@dataclass(frozen=True, slots=True)
class SecretState:
    """One Roost Secret as last looked at. `problem` says what is missing and the command that fixes it."""

    version: int
    fingerprints: Mapping[str, str]
    problem: str = ""
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference of an Agent: key `key` of Roost Secret `name` in its own namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """The Agent's references to Secrets: what is missing, and the versions found. `known` is False before a look."""

    known: bool
    missing: tuple[str, ...] = ()
    missing_reason: Reason | None = None
    versions: tuple[tuple[str, int], ...] = ()
    fingerprints: tuple[tuple[str, str], ...] = ()


def fingerprint(root: bytes, value: str) -> str:
    """What a value is known by outside the bundle: 128 bits, keyed."""
    return hmac.digest(root, b"value\x1f" + value.encode(), "sha256").hex()[:32]


def values_of(spec: SecretSpec, data: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The values a Roost Secret offers, from the base64 `data` of its core Secret, and the required keys it lacks.

    Raises:
        NotAText: a value is not UTF-8, or has a NUL.
    """
    wanted = {k.name: k.in_source for k in spec.keys} if spec.keys else {k: k for k in data}
    values = {}
    for name, source in wanted.items():
        if source in data:
            try:
                values[name] = base64.b64decode(data[source]).decode()
            except ValueError as error:
                raise NotAText(source) from error
            if "\0" in values[name]:
                raise NotAText(source)
    required = [k.in_source for k in spec.keys if k.required]
    return values, [source for source in required if source not in data]


@dataclass(slots=True)
class SecretTable:
    """All Secrets' states, and who uses them. Changed by the Secret reconcile only."""

    states: dict[tuple[str, str], SecretState] = field(default_factory=dict)
    users: dict[tuple[str, str], set[Key]] = field(default_factory=dict)
    _uses: dict[Key, frozenset[tuple[str, str]]] = field(default_factory=dict)

    def uses(self, agent: Key, refs: Iterable[Ref]) -> None:
        """Notes which Secrets an Agent refers to, so that their changes wake it; none when it is gone."""
        names = frozenset((agent.namespace, r.name) for r in refs)
        before = self._uses.get(agent, frozenset())
        for name in before - names:
            self.users[name].discard(agent)
            if not self.users[name]:
                del self.users[name]
        for name in names - before:
            self.users.setdefault(name, set()).add(agent)
        if names:
            self._uses[agent] = names
        else:
            self._uses.pop(agent, None)

    def resolve(self, namespace: str, refs: Iterable[Ref], exists: set[str]) -> Resolution:
        """What an Agent's references resolve to. `exists`: names of Roost Secrets declared in the namespace."""
        missing: list[str] = []
        reasons: list[Reason] = []
        versions: dict[str, int] = {}
        prints: list[tuple[str, str]] = []
        for ref in sorted(set(refs), key=lambda r: (r.name, r.key)):
            state = self.states.get((namespace, ref.name))
            if ref.name not in exists:
                reasons.append(Reason.SECRET_MISSING)
                missing.append(
                    f'secrets.roost.dev "{ref.name}" not found in namespace "{namespace}"; create a core Secret and '
                    f"the Roost Secret that offers it: kubectl -n {namespace} create secret generic {ref.name} "
                    f"--from-literal={ref.key}=VALUE"
                )
            elif state is None:
                return Resolution(known=False)
            elif state.problem and ref.key not in state.fingerprints:
                reasons.append(state.reason or Reason.SECRET_MISSING)
                missing.append(state.problem)
            elif ref.key not in state.fingerprints:
                reasons.append(Reason.SECRET_KEY_MISSING)
                missing.append(
                    f'secrets.roost.dev "{ref.name}" in namespace "{namespace}" has no key "{ref.key}" (it has: '
                    f"{', '.join(sorted(state.fingerprints)) or 'none'}); add it to the core Secret or to spec.keys"
                )
            else:
                versions[ref.name] = state.version
                prints.append((f"{ref.name}/{ref.key}", state.fingerprints[ref.key]))
        return Resolution(
            known=True,
            missing=tuple(dict.fromkeys(missing)),
            missing_reason=reasons[0] if reasons else None,
            versions=tuple(versions.items()),
            fingerprints=tuple(prints),
        )
