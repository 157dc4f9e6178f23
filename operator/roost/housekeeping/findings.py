"""What Fly holds and what the cluster declares, compared both ways. Pure: what was listed in, findings out.

Promises: nothing of an Agent that lives is ever an ORPHAN, nor anything that is not provably ours; what could not be
read in full is UNKNOWN and never absent. Only an ORPHAN is ever deleted.

Proof of ownership. A machine: its metadata says our owner id and an Agent, and its app or its own name is the one that
our identity root derives for that Agent. An app: its name is derived for an Agent of a namespace that is known. A
volume: its name is derived for the Agent of such an app, or for one that a machine in the same app names.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from roost.agents.machine_config import RETAINED
from roost.agents.names import Names, derive
from roost.fly.types import App, MachineRow, Volume

MARK = "roost_orphan_since"
"""Machine metadata: `<uid of its last Agent> <time>`, when cleanup first met it running without that Agent."""
_STABLE = frozenset({"created", "started", "stopped", "suspended", "failed"})
_APP = re.compile(r"roost-(.+)-[0-9a-f]{12}")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CHANGING = re.compile(r"(create|extend|restor|recover|hydrat)ing")

Key = tuple[str, str]
"""Namespace and name of an Agent."""


@dataclass(frozen=True, slots=True)
class Here:
    """This installation: its owner id and identity root, and the cluster (the uid of kube-system) that we are in."""

    owner_id: str
    identity: bytes = field(repr=False)
    cluster: str


@dataclass(frozen=True, slots=True)
class Living:
    """An Agent of this cluster, in whatever phase; `mentions` are all the words of its status, and its spec.fly.app."""

    key: Key
    credential: str
    org: str
    deleting: bool
    app: str | None
    machine: str | None
    volume: str | None
    mentions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sight:
    """What one credential shows of one org, destroyed machines and deleted volumes too; whole when without problems."""

    credential: str
    org: str
    apps: tuple[App, ...] = ()
    machines: tuple[MachineRow, ...] = ()
    volumes: tuple[Volume, ...] = ()
    problems: tuple[str, ...] = ()


class Verdict(StrEnum):
    """What a thing is."""

    ORPHAN = "orphan"
    WAITS = "waits"
    """An orphan that is not deleted yet; the finding says why."""
    RETAINED = "retained"
    OTHER_CLUSTER = "other cluster"
    UNPROVEN = "unproven"
    """It says that it is ours, and our identity root does not confirm it."""
    MISSING = "missing"
    """An Agent has it in its status, and Fly has it no more."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One app, machine or volume (`kind`), the Agent it belongs to, and what it is."""

    kind: str
    id: str
    app: str
    org: str
    credential: str
    agent: Key
    verdict: Verdict
    why: str = ""
    detail: str = ""
    """A machine's state, a volume's size."""
    since: datetime | None = None
    """Since when it is as it is; None when Fly does not tell."""
    thing: App | MachineRow | Volume | None = field(default=None, repr=False)
    to_mark: bool = False
    """It runs, and the time that its Agent has been away for is not written down yet."""


def find(
    here: Here,
    agents: Sequence[Living],
    namespaces: Iterable[str],
    sights: Sequence[Sight],
    secrets: Mapping[str, frozenset[str]],
    *,
    now: datetime,
    grace: timedelta,
) -> list[Finding]:
    """What is at Fly, is ours, and has no Agent; by app, in the order in which it would be deleted.

    Args:
        here: this installation.
        agents: all Agents of the cluster.
        namespaces: where an app without machines may have had its Agent.
        sights: what Fly shows.
        secrets: names of an app's secrets, by app. What is in an app whose secrets were not read is UNKNOWN.
        now: the time, with its zone.
        grace: what changed more recently than this WAITS.
    """
    return list(_Search(here, agents, namespaces, sights, secrets, now, grace).run())


def missing(agents: Iterable[Living], sights: Iterable[Sight]) -> list[Finding]:
    """What Agents have in their status and Fly does not show. A list may lag: only a look by id makes it certain."""
    by_scope = {(s.credential, s.org): s for s in sights}
    shelves = _shelves(by_scope.values())
    machines = {m.id for s in shelves.values() for m in s.machines.values() if m.state != "destroyed"}
    volumes = {v.id for s in shelves.values() for v in s.volumes.values() if not v.deleted}
    found = []
    for agent in agents:
        sight = by_scope.get((agent.credential, agent.org))
        if sight is None or agent.deleting or agent.app is None:
            continue
        lost = [("machine", agent.machine, machines), ("volume", agent.volume, volumes)]
        if agent.app not in shelves or shelves[agent.app].row is None:
            lost = [("app", agent.app, set())]
        verdict = Verdict.UNKNOWN if sight.problems else Verdict.MISSING
        found += [
            Finding(kind, thing, agent.app, agent.org, agent.credential, agent.key, verdict)
            for kind, thing, there in lost
            if thing is not None and thing not in there
        ]
    return found


def claim(here: Here, metadata: Mapping[str, str]) -> Key | None:
    """The Agent that a machine says it belongs to, when it says our owner id too."""
    key = metadata.get("roost_namespace", ""), metadata.get("roost_name", "")
    ours = metadata.get("roost_owner") == here.owner_id
    return key if ours and all(_LABEL.fullmatch(word) for word in key) else None


def span(seconds: float) -> str:
    """A length of time for people, in the largest unit of which it has two."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


@dataclass(slots=True)
class _Shelf:
    """One app and what is in it, as all sights of its org together show it."""

    name: str
    org: str
    credential: str
    row: App | None = None
    machines: dict[str, MachineRow] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    unread: bool = False


def _shelves(sights: Iterable[Sight]) -> dict[str, _Shelf]:
    """By the app's name, which is unique in all of Fly."""
    shelves: dict[str, _Shelf] = {}
    unread = {s.org for s in sights if s.problems}
    for sight in sights:

        def shelf(name: str, sight: Sight = sight) -> _Shelf:
            return shelves.setdefault(name, _Shelf(name, sight.org, sight.credential, unread=sight.org in unread))

        for app in sight.apps:
            shelf(app.name).row = app
        for machine in sight.machines:
            known = shelf(machine.app).machines
            if machine.id not in known or known[machine.id].updated_at < machine.updated_at:
                known[machine.id] = machine
        for volume in sight.volumes:
            shelf(volume.app).volumes[volume.id] = volume
    return dict(sorted(shelves.items()))


class _Search:
    """One comparison; all that it looks things up in."""

    def __init__(
        self,
        here: Here,
        agents: Sequence[Living],
        namespaces: Iterable[str],
        sights: Sequence[Sight],
        secrets: Mapping[str, frozenset[str]],
        now: datetime,
        grace: timedelta,
    ) -> None:
        self._here, self._secrets, self._now, self._grace = here, secrets, now, grace
        self._names = functools.cache(self._derive)
        self._shelves = _shelves(sights)
        self._live = {agent.key for agent in agents}
        self._mentioned = frozenset[str]().union(*(agent.mentions for agent in agents))
        self._live_apps = {self._names(key).app for key in self._live} | self._mentioned
        self._clusters: dict[Key, set[str]] = {}
        for shelf in self._shelves.values():
            for machine in shelf.machines.values():
                if (key := claim(here, machine.metadata)) and self._confirms(key, shelf, machine):
                    self._clusters.setdefault(key, set()).add(machine.metadata.get("roost_cluster", ""))
        self._namespaces = sorted({*namespaces, *(namespace for namespace, _ in self._clusters)})
        self._alone = all(told == {here.cluster} for told in self._clusters.values())

    def run(self) -> Iterator[Finding]:
        for shelf in self._shelves.values():
            owner = self._owner(shelf)
            machines = [f for m in shelf.machines.values() if (f := self._machine(shelf, m))]
            volumes = [f for v in shelf.volumes.values() if (f := self._volume(shelf, v, owner, machines))]
            yield from machines
            yield from volumes
            if owner is not None and (found := self._app(shelf, owner, machines + volumes)):
                yield found

    # --- Whose is it --------------------------------------------------------------------------------------------

    def _derive(self, key: Key) -> Names:
        return derive(self._here.identity, self._here.owner_id, *key)

    def _confirms(self, key: Key, shelf: _Shelf, machine: MachineRow) -> bool:
        names = self._names(key)
        return shelf.name == names.app or names.is_machine(machine.name)

    def _owner(self, shelf: _Shelf) -> Key | None:
        """The Agent whose derived app this is."""
        told = [claim(self._here, m.metadata) for m in shelf.machines.values()]
        if (match := _APP.fullmatch(shelf.name)) and _LABEL.fullmatch(match[1]):
            told += [(namespace, match[1]) for namespace in self._namespaces]
        return next((key for key in told if key and self._names(key).app == shelf.name), None)

    def _volume_owner(self, shelf: _Shelf, volume: Volume, owner: Key | None) -> Key | None:
        keys = {owner, *(claim(self._here, m.metadata) for m in shelf.machines.values())}
        return next((key for key in keys if key and self._names(key).serial(volume.name) is not None), None)

    # --- What is it ---------------------------------------------------------------------------------------------

    def _machine(self, shelf: _Shelf, machine: MachineRow) -> Finding | None:
        key = claim(self._here, machine.metadata)
        if key is None or key in self._live or machine.id in self._mentioned or machine.state == "destroyed":
            return None
        since, to_mark = self._away(machine)
        if not self._confirms(key, shelf, machine):
            verdict, why = Verdict.UNPROVEN, "it names an Agent, but neither its app nor its name are that Agent's"
        else:
            verdict, why = self._place(shelf, key) or self._quiet(machine, since, to_mark)
        to_mark = to_mark and verdict is Verdict.WAITS
        return self._finding("machine", machine, shelf, key, verdict, why, machine.state, since, to_mark=to_mark)

    def _away(self, machine: MachineRow) -> tuple[datetime | None, bool]:
        """Since when it does without an Agent, as far as is known, and whether that is to be written down.

        A machine at rest has not changed since; of one that runs only our own mark tells, as long as no Agent has taken
        it over meanwhile, which would have written another uid into it.
        """
        uid, _, marked = machine.metadata.get(MARK, "").partition(" ")
        if (since := _time(marked)) and uid == machine.metadata.get("roost_uid"):
            return since, False
        if machine.state == "started":
            return None, bool(self._grace)
        return _time(machine.updated_at), False

    def _quiet(self, machine: MachineRow, since: datetime | None, to_mark: bool) -> tuple[Verdict, str]:
        if machine.state not in _STABLE:
            return Verdict.WAITS, f"it is {machine.state}"
        if to_mark:
            return Verdict.WAITS, "it runs, and its Agent was not seen to be away before"
        return self._old(since)

    def _volume(self, shelf: _Shelf, volume: Volume, owner: Key | None, machines: list[Finding]) -> Finding | None:
        key = self._volume_owner(shelf, volume, owner)
        if key is None or key in self._live or volume.id in self._mentioned or volume.deleted:
            return None
        since = _time(volume.created_at)
        verdict, why = (
            self._place(shelf, key) or self._held(volume, key, machines) or self._cluster(key) or self._old(since)
        )
        return self._finding("volume", volume, shelf, key, verdict, why, f"{volume.size_gb} GB", since)

    def _held(self, volume: Volume, key: Key, machines: list[Finding]) -> tuple[Verdict, str] | None:
        leaving = {f.id for f in machines if f.verdict is Verdict.ORPHAN}
        staying = [f.id for f in machines if f.agent == key and f.id not in leaving]
        if (holder := volume.attached_machine_id) is not None and holder not in leaving:
            return Verdict.WAITS, f"machine {holder} holds it"
        if staying:
            return Verdict.WAITS, f"machine {staying[0]} stays for now"
        if _CHANGING.fullmatch(volume.state):
            return Verdict.WAITS, f"it is {volume.state}"
        return None

    def _app(self, shelf: _Shelf, key: Key, inside: list[Finding]) -> Finding | None:
        if key in self._live or shelf.name in self._live_apps or shelf.row is None:
            return None
        leftovers = [_time(m.updated_at) for m in shelf.machines.values()]
        leftovers += [_time(v.updated_at) for v in shelf.volumes.values() if v.deleted]
        since = max((time for time in leftovers if time), default=None)
        verdict, why = self._place(shelf, key) or self._cluster(key) or self._contents(shelf, inside, since)
        return self._finding("app", shelf.row, shelf, key, verdict, why, "", since)

    def _contents(self, shelf: _Shelf, inside: list[Finding], since: datetime | None) -> tuple[Verdict, str]:
        """Deleting an app takes everything in it along."""
        leaving = {f.id for f in inside if f.verdict is Verdict.ORPHAN}
        machines = [m.id for m in shelf.machines.values() if m.state != "destroyed"]
        volumes = [v.id for v in shelf.volumes.values() if not v.deleted]
        staying = sorted({*machines, *volumes} - leaving)
        strangers = sorted({*staying} - {f.id for f in inside if f.verdict is not Verdict.UNPROVEN})
        if strangers:
            return Verdict.WAITS, f"it holds what is not ours: {', '.join(strangers[:3])}"
        if staying:
            return Verdict.WAITS, f"{staying[0]} in it stays for now"
        counted = shelf.row is not None and (shelf.row.machine_count or 0, shelf.row.volume_count or 0)
        if counted and (counted[0] > len(machines) or counted[1] > len(shelf.volumes)):
            return Verdict.UNKNOWN, f"Fly counts {counted[0]} machines and {counted[1]} volumes in it, and lists fewer"
        # Nothing tells how old an empty app is; nothing is lost with it either.
        return self._old(since) if since and not leaving else (Verdict.ORPHAN, "")

    def _place(self, shelf: _Shelf, key: Key) -> tuple[Verdict, str] | None:
        """What holds for everything of an Agent in an app; None when nothing there speaks against its removal."""
        if any(cluster != self._here.cluster for cluster in self._clusters.get(key, ())):
            return Verdict.OTHER_CLUSTER, "its machine is of another cluster with this owner id"
        if shelf.unread:
            return Verdict.UNKNOWN, f"org {shelf.org} could not be read in full"
        if shelf.name not in self._secrets:
            return Verdict.UNKNOWN, "the names of its app's secrets could not be read"
        if any(name.startswith(RETAINED) for name in self._secrets[shelf.name]):
            return Verdict.RETAINED, "deletionPolicy: Retain"
        return None

    def _cluster(self, key: Key) -> tuple[Verdict, str] | None:
        """Volumes and apps do not say which cluster made them: a machine must, unless there is no other cluster."""
        if key in self._clusters or self._alone:
            return None
        return Verdict.UNPROVEN, "another cluster has this owner id, and no machine says of which of them it is"

    def _old(self, since: datetime | None) -> tuple[Verdict, str]:
        if not self._grace:
            return Verdict.ORPHAN, ""
        if since is None:
            return Verdict.WAITS, "Fly does not tell since when it is as it is"
        if self._now - since < self._grace:
            return Verdict.WAITS, f"for less than {span(self._grace.total_seconds())}"
        return Verdict.ORPHAN, ""

    def _finding(
        self,
        kind: str,
        thing: App | MachineRow | Volume,
        shelf: _Shelf,
        key: Key,
        verdict: Verdict,
        why: str,
        detail: str,
        since: datetime | None,
        *,
        to_mark: bool = False,
    ) -> Finding:
        name = thing.name if isinstance(thing, App) else thing.id
        return Finding(
            kind, name, shelf.name, shelf.org, shelf.credential, key, verdict, why, detail, since, thing, to_mark
        )


def _time(text: str) -> datetime | None:
    """RFC 3339, as Fly writes it: down to nanoseconds, with a zone."""
    try:
        time = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        return None
    return time if time.tzinfo is not None else None
