"""Two records that the operator has no hand in, read into plain facts: Fly's ledger and the API server's audit log.

Reads only; knows what happened and when, draws no conclusions.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Key = tuple[str, str]
"""Namespace and name of an Agent."""

_WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_MACHINE, _VOLUME, _APP = "machine", "volume", "app"


class BadEvidence(Exception):
    """A log that can't be read; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write request that the API server answered. Times are epoch seconds; `name` is empty when it told none."""

    received: float
    answered: float
    user: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    body: Mapping[str, Any]
    selective: bool

    @property
    def ok(self) -> bool:
        return 200 <= self.code < 300

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    def on(self, group: str, resource: str) -> bool:
        return self.group == group and self.resource == resource


@dataclass(frozen=True, slots=True)
class Call:
    """One request that Fly answered (`at`, `answered`: when it arrived and when it was answered, epoch seconds).

    `done`: when it had been carried out, which is before `answered` when a fault held the answer back. `happened`: it
    succeeded, or took effect and was not told so. `changed`: it changed something.
    """

    at: float
    answered: float
    done: float
    op: str
    agent: str
    app: str | None
    machine: str | None
    volume: str | None
    happened: bool
    changed: bool
    faulty: bool
    metadata: Mapping[str, Any]


@dataclass(slots=True)
class Thing:
    """A machine, volume or app that came to be. Times are epoch seconds, None while it has not happened.

    `deletion_asked` is the arrival of the call that destroyed it; `maker` the User-Agent of the call that made it.
    """

    kind: str
    id: str
    app: str
    created: float
    deletion_asked: float | None = None
    destroyed: float | None = None
    maker: str | None = None
    volumes: set[str] = field(default_factory=set)
    name: str = ""

    def alive_at(self, moment: float) -> bool:
        return self.created < moment and (self.destroyed is None or self.destroyed > moment)

    def __str__(self) -> str:
        return f"{self.kind} {self.id}" + (f" of app {self.app}" if self.kind != _APP else "")


@dataclass(frozen=True, slots=True)
class Ledger:
    """Calls in order of arrival, everything that ever existed, and which Agent a machine's metadata names."""

    calls: Sequence[Call]
    machines: Sequence[Thing]
    volumes: Sequence[Thing]
    apps: Sequence[Thing]
    machine_keys: Mapping[str, Key]


def read_audit(paths: Iterable[Path]) -> list[Write]:
    """The answered writes of an API server's JSON audit log (several files when it was rotated), by arrival.

    Dry runs are left out. Raises BadEvidence.
    """
    writes = [write for path in paths for number, entry in _lines(path) if (write := _write(path, number, entry))]
    return sorted(writes, key=lambda write: write.received)


def read_ledger(path: Path) -> Ledger:
    """Fly's ledger. Raises BadEvidence."""
    return ledger_of((f"{path}:{number}", line) for number, line in _lines(path))


def ledger_of(lines: Iterable[tuple[str, Mapping[str, Any]]]) -> Ledger:
    """The ledger that these lines are, each with the place where it stands. Raises BadEvidence."""
    calls: list[Call] = []
    events: list[Mapping[str, Any]] = []
    keys: dict[str, Key] = {}
    held: dict[str | None, float] = {}
    for place, line in lines:
        try:
            if line["kind"] == "call":
                calls.append(_call(line, held))
            elif line["kind"] == "held":
                held[line["request_id"]] = line["at"]
            elif line["kind"] == "event":
                events.append(line)
            _learn_key(line, keys)
        except (KeyError, TypeError) as error:
            raise BadEvidence(f"{place} is no line of a ledger: {error!r}") from error
    calls.sort(key=lambda call: call.at)
    machines, volumes, apps = (_things(kind, events, calls) for kind in (_MACHINE, _VOLUME, _APP))
    return Ledger(calls, machines, volumes, apps, keys)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
            except ValueError as error:
                # A writer that was killed leaves at most its last line unfinished.
                if not line.endswith("\n"):
                    return
                raise BadEvidence(f"{path}:{number} is not JSON: {error}") from error
            if not isinstance(value, dict):
                raise BadEvidence(f"{path}:{number} is not a JSON object")
            yield number, value


def _write(path: Path, number: int, entry: Mapping[str, Any]) -> Write | None:
    try:
        if entry["stage"] != "ResponseComplete" or entry["verb"] not in _WRITE_VERBS or "objectRef" not in entry:
            return None
        query = parse_qs(urlsplit(entry["requestURI"]).query)
        if "dryRun" in query:
            return None
        ref, body = entry["objectRef"], entry.get("requestObject")
        return Write(
            received=_epoch(entry["requestReceivedTimestamp"]),
            answered=_epoch(entry["stageTimestamp"]),
            user=entry["user"]["username"],
            verb=entry["verb"],
            group=ref.get("apiGroup", ""),
            resource=ref["resource"],
            subresource=ref.get("subresource", ""),
            namespace=ref.get("namespace", ""),
            name=ref.get("name", ""),
            code=int(entry.get("responseStatus", {}).get("code", 0)),
            body=body if isinstance(body, dict) else {},
            selective=bool({"labelSelector", "fieldSelector"} & query.keys()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadEvidence(f"{path}:{number} is no entry of an audit log: {error!r}") from error


def _epoch(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def _call(line: Mapping[str, Any], held: Mapping[str | None, float]) -> Call:
    return Call(
        at=line["at"],
        answered=line["at"] + line["seconds"],
        done=held.get(line.get("request_id"), line["at"] + line["seconds"]),
        op=line["op"] or "",
        agent=line.get("agent") or "",
        app=line.get("app"),
        machine=line.get("machine"),
        volume=line.get("volume"),
        happened=200 <= line["status"] < 300 or line.get("effect") is not None,
        changed=line.get("effect") is not None,
        faulty=line.get("fault") is not None,
        metadata=line.get("metadata") or {},
    )


def _learn_key(line: Mapping[str, Any], keys: dict[str, Key]) -> None:
    metadata = line.get("metadata") or (line.get("detail") or {}).get("metadata") or {}
    machine, name = line.get("machine"), metadata.get("roost_name")
    if machine and name:
        keys[machine] = (metadata["roost_namespace"], name)


def _things(kind: str, events: Iterable[Mapping[str, Any]], calls: Sequence[Call]) -> list[Thing]:
    """Everything of one kind that was ever created; a name used twice (an app's) is two things."""
    creations, deletions = _index(calls, f"create_{kind}", kind), _index(calls, f"delete_{kind}", kind)
    things: list[Thing] = []
    alive: dict[str, Thing] = {}
    for event in sorted(events, key=lambda event: float(event["at"])):
        identity = event.get(kind)
        if event["event"] == f"{kind}_created":
            made = Thing(kind, event[kind], event["app"], event["at"])
            made.name = str((event.get("detail") or {}).get("name") or "")
            made.maker = next((c.agent for c in reversed(creations[made.id]) if c.at <= made.created), None)
            alive[made.id] = made
            things.append(made)
        elif event["event"] == f"{kind}_destroyed" and identity in alive:
            gone = alive.pop(identity)
            gone.destroyed = event["at"]
            gone.deletion_asked = next((c.at for c in deletions[gone.id] if c.at >= gone.created), None)
        if kind == _MACHINE and identity in alive and event.get("volume"):
            alive[identity].volumes.add(event["volume"])
    return things


def _index(calls: Iterable[Call], op: str, kind: str) -> Mapping[str, list[Call]]:
    """Calls of one operation that took effect, by the id of what they were about."""
    found: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.op == op and call.happened and (identity := getattr(call, kind)):
            found[identity].append(call)
    return found
