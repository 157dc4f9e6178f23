"""Who refers to what, and what of it was found: the leader's picture of all references. Holds no value."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from roost.api.conditions import Reason
from roost.kube.records import Key, Record
from roost.secrets.lookup import Found, Lookup, Missing
from roost.secrets.state import Ref, Resolution, SourceState, checked, offered, print_of, problem_of

_TELLING = ("Ready", "ConfigApplied", "Stalled")
T = TypeVar("T", bound=Collection[object])
SOURCES = ("CoreSecret", "ConfigMap")
"""The kinds that are not ours: keys of them are looked at as long as somebody refers to them."""


@dataclass(slots=True)
class SecretTable:
    """All sources' states, and who uses them. `wake` has a key worked on now."""

    lookup: Lookup
    wake: Callable[[Key], None]
    sources: dict[Key, SourceState] = field(default_factory=dict)
    asked: set[Key] = field(default_factory=set)
    """Sources that are to be looked at now, whenever their turn would be."""
    watched: set[tuple[str, str]] | None = None
    """What is watched, by kind and namespace ("" is all); None while that is not known."""
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody refers to a source that nobody referred to before."""
    _users: dict[Key, set[Key]] = field(default_factory=dict)
    _uses: dict[Key, frozenset[Key]] = field(default_factory=dict)
    _refs: dict[Key, tuple[Ref, ...]] = field(default_factory=dict)
    _bots: dict[Key, frozenset[Ref]] = field(default_factory=dict)
    _told: dict[Key, int] = field(default_factory=dict)
    _claims: dict[str, set[Key]] = field(default_factory=dict)
    _claimed: dict[Key, frozenset[str]] = field(default_factory=dict)

    # --- Who refers to what ----------------------------------------------------------------------------------------

    def uses(self, agent: Key, refs: Iterable[Ref], bots: Iterable[Ref] = ()) -> None:
        """Notes what an Agent refers to, and which of that are bots' tokens; nothing when it is gone."""
        new, before = tuple(dict.fromkeys(refs)), self._refs.get(agent, ())
        names, home = set[Key](), self.lookup.home
        for ref in new:
            if ref.kind != "Secret":
                names.add(Key(ref.kind, agent.namespace, ref.name))
                continue
            names.add(Key("Secret", agent.namespace, ref.name))
            if agent.namespace != home:
                names.add(Key("Secret", "", ref.name))  # for one at home that is offered
        self.depend(agent, names)
        _keep(self._refs, agent, new)
        if not new:
            self._told.pop(agent, None)
        _keep(self._bots, agent, frozenset(bots))
        if agent in self._claimed and agent not in self._bots:
            self._claim(agent, frozenset())
            self._claimed.pop(agent, None)
        if new != before:
            for name in {r.name for r in set(new) ^ set(before) if r.kind == "Secret"}:
                for secret in self.lookup.candidates(agent, name):
                    if self.lookup.cache.get(secret) is not None:
                        self.wake(secret)

    def depend(self, user: Key, names: Iterable[Key]) -> None:
        """Notes on what an object depends: a change of these wakes it."""
        new, before = frozenset(names), self._uses.get(user, frozenset())
        for name in before - new:
            self._users[name].discard(user)
            if not self._users[name]:
                del self._users[name]
        for name in new - before:
            if name not in self._users and name.kind in SOURCES:
                self.grown.set()
            self._users.setdefault(name, set()).add(user)
        _keep(self._uses, user, new)

    def users(self, name: Key) -> Iterable[Key]:
        """Who depends on exactly this."""
        return tuple(self._users.get(name, ()))

    def spaces(self, kind: str) -> set[str]:
        """The namespaces in which sources of a kind are referred to."""
        return {name.namespace for name in self._users if name.kind == kind}

    def looking_for(self, secret: Key) -> set[Key]:
        """The Agents that would find this Roost Secret, unless they find another before."""
        found = set(self.users(secret))
        name, dot, agent = secret.name.rpartition(".")
        if dot and (own := Key("Agent", secret.namespace, agent)) in self._users.get(secret._replace(name=name), ()):
            found.add(own)
        return found.union(self.users(secret._replace(namespace=""))) if secret.namespace == self.lookup.home else found

    def users_of(self, secret: Key) -> list[Key]:
        """The Agents that find this Roost Secret for one of their references, by namespace and name."""

        def finds(agent: Key) -> bool:
            names = (secret.name, secret.name.removesuffix(f".{agent.name}"))
            refs = (r for r in self._refs.get(agent, ()) if r.kind == "Secret" and r.name in names)
            return any(isinstance(f := self.lookup.find(agent, r), Found) and f.secret == secret for r in refs)

        return sorted(agent for agent in self.looking_for(secret) if finds(agent))

    def secrets_of(self, agent: Key) -> set[Key]:
        """The Roost Secrets that an Agent finds."""
        found = (self.lookup.find(agent, ref) for ref in self._refs.get(agent, ()))
        return {f.secret for f in found if isinstance(f, Found) and f.secret is not None}

    # --- Looking ---------------------------------------------------------------------------------------------------

    def look(self, source: Key) -> None:
        """Has a source looked at now."""
        self.asked.add(source)
        self.wake(source)

    def need(self, source: Key) -> None:
        """Has a source looked at that was not yet; one whose look has failed comes by itself, more and more slowly."""
        if source not in self.asked:
            self.look(source)

    def look_for(self, agent: Key) -> None:
        """Has all that an Agent refers to looked at now."""
        for ref in self._refs.get(agent, ()):
            if isinstance(found := self.lookup.find(agent, ref), Found):
                self.look(found.source)

    def told(self, agent: Key) -> None:
        """When an Agent's status says something new of what it runs, the Secrets that it uses count anew."""
        found = self.lookup.cache.get(agent)
        if found is None or agent not in self._refs:
            return
        said = [(c["type"], c["status"]) for c in found.status.get("conditions", ()) if c["type"] in _TELLING]
        now = hash((found.generation, *said, *((s["name"], s["version"]) for s in found.status.get("secrets", ()))))
        if self._told.get(agent) != now:
            self._told[agent] = now
            for secret in self.secrets_of(agent):
                self.wake(secret)

    def patterns(self, source: Key) -> Iterator[tuple[str, str]]:
        """What Roost Secrets ask of the values of a source, by key."""
        for user in self.users(source):
            found = self.lookup.cache.get(user) if user.kind == "Secret" else None
            spec = self.lookup.spec(found) if found is not None else None
            if spec is not None:
                yield from ((k.in_source, k.pattern) for k in spec.keys if k.pattern)

    # --- What is found ---------------------------------------------------------------------------------------------

    def resolve(self, agent: Key) -> Resolution:
        """What the references of an Agent resolve to, as `uses` noted them."""
        self.told(agent)  # also if its status was written without our hearing of it
        bad: list[tuple[Reason, str]] = []
        versions: dict[str, int] = {}
        prints: dict[Ref, str] = {}
        known = True
        for ref in sorted(self._refs.get(agent, ()), key=lambda r: (r.kind, r.name, r.key)):
            found = self.lookup.find(agent, ref)
            if isinstance(found, Missing):
                bad.append((found.reason, found.message))
                continue
            state = self.sources.get(found.source)
            if state is None or not checked(found.keys, state):
                self.need(found.source)
                known = False
                continue
            value = print_of(found.keys, state, found.key)
            if value is None:
                bad.append(problem_of(found.source, found.keys, state) or _no_key(ref, found, state))
            elif found.secret is not None and found.version is None:
                known = False  # its own look, which counts the version, comes next
            else:
                prints[ref] = value
                if found.secret is not None and found.version is not None:
                    versions[found.secret.name] = found.version
        if not known:
            return Resolution(known=False)
        bots = self._bots.get(agent, frozenset())
        for ref, elder in self._taken(agent, {r: p for r, p in prints.items() if r in bots}):
            bad.append((Reason.BOT_TOKEN_TAKEN, _taken(agent, ref, elder)))
            del prints[ref]
        if not bad and bots and self._was_refused(agent) and any(other not in self._claimed for other in self._bots):
            return Resolution(known=False)  # the one that had the token before may not have been looked at yet
        return Resolution(
            known=True,
            missing=tuple(dict.fromkeys(message for _, message in bad)),
            missing_reason=bad[0][0] if bad else None,
            versions=tuple(versions.items()),
            fingerprints=tuple(prints.items()),
        )

    # --- Bots: one token, one Agent --------------------------------------------------------------------------------

    def _taken(self, agent: Key, tokens: dict[Ref, str]) -> list[tuple[Ref, Key]]:
        """Which bots' tokens an older Agent has."""
        if agent in self._bots:
            self._claim(agent, frozenset(tokens.values()))
        eldest = ((ref, min(self._claims[token], key=self._age)) for ref, token in tokens.items())
        return [(ref, elder) for ref, elder in eldest if elder != agent]

    def _claim(self, agent: Key, tokens: frozenset[str]) -> None:
        before = self._claimed.get(agent, frozenset())
        self._claimed[agent] = tokens
        for token in before ^ tokens:
            claims = self._claims.setdefault(token, set())
            (claims.add if token in tokens else claims.discard)(agent)
            for other in claims - {agent}:
                self.wake(other)
            if not claims:
                del self._claims[token]

    def _age(self, agent: Key) -> tuple[str, Key]:
        found = self.lookup.cache.get(agent)
        return (found.created_at if found is not None else "~", agent)

    def _was_refused(self, agent: Key) -> bool:
        found = self.lookup.cache.get(agent)
        return found is not None and refused_a_bot(found)


def _keep(known: dict[Key, T], key: Key, value: T) -> None:
    """Empty ones are not kept."""
    if value:
        known[key] = value
    else:
        known.pop(key, None)


def refused_a_bot(found: Record) -> bool:
    """Whether an Agent's status says that an older one has its bot's token."""
    conditions = found.status.get("conditions", ())
    return any(c["type"] == "SecretsResolved" and c["reason"] == Reason.BOT_TOKEN_TAKEN for c in conditions)


def _no_key(ref: Ref, found: Found, state: SourceState) -> tuple[Reason, str]:
    there = ", ".join(sorted(offered(found.keys, state))) or "none"
    secret = found.secret or found.source
    return Reason.SECRET_KEY_MISSING, (
        f'secrets.roost.dev "{secret.name}" in namespace "{secret.namespace}" has no key "{ref.key}" (it has: {there})'
        "; add it to the core Secret or to spec.keys"
    )


def _taken(agent: Key, ref: Ref, elder: Key) -> str:
    who = f'Agent "{elder.name}"' if elder.namespace == agent.namespace else "an older Agent of another namespace"
    return (
        f'the bot token of {ref.kind} "{ref.name}", key "{ref.key}", is in use by {who}, and a bot answers to one: '
        f'make another bot and give its token to this Agent, as in a Secret "{ref.name}.{agent.name}"'
    )
