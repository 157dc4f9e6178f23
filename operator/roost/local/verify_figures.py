"""What the operator cost and what it left, computed from Fly's ledger and the API server's audit log alone.

    python -m roost.local.verify_figures --ledger LEDGER --audit AUDIT [--idle FROM TO] [--json]

The operator's own metrics and status are never believed; a status write counts as a write, and is read only to learn
when Ready first became true and which app is whose. How each figure is defined:

- *Converge* runs from an Agent's creation to the operator's first status write that carries Ready=True, that write
  included. It is taken over Agents that nobody else wrote to and whose Fly calls met no injected fault in that time.
- *Life* runs from creation until the finalizer is released (or a deletion without one is answered); over Agents whose
  whole life was create, ready, delete.
- What creates, changes or deletes an Agent's spec, or a Secret that it may use, is its author's write, also when the
  operator makes it for a Fleet.
- *Destroy* runs from the deletion of an Agent that was Ready until its finalizer is released; over Agents whose Fly
  calls met no injected fault in that time. That Fly refuses to delete a volume which is still bound is counted apart.
- Of an Agent's volumes each number (their names end in it) may live once; one that follows another is no double.
- Two calls of one Agent *overlap* when both changed something at Fly and the second arrived before the first had been
  carried out, whichever operator sent them. A volume that nothing ever mounted is a twin and its create overlaps
  nothing: its name is not unique, so it is the one call that can't be harmless by being refused when it comes late.
- Fly calls count for the Agent whose machine or app they name; what names neither (org-wide lists) is apart.

Exit codes: 0 nothing wrong, 1 something is left over, doubled, overlapped or was destroyed out of order, 2 the logs
can't be used.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from roost.local.evidence import BadEvidence, Call, Key, Ledger, Thing, Write, read_audit, read_ledger

OPERATOR = "system:serviceaccount:roost-system:roost"
OPERATOR_AGENT = "roost/"
GROUP = "roost.dev"
FINALIZER = "roost.dev/machine"
# Events are posted beside the status write and may arrive a little after it.
EVENT_TAIL_SECONDS = 2.0

_FOREVER = float("inf")


@dataclass(slots=True)
class Life:
    """One Agent from its creation on. Times are epoch seconds, None for what did not happen or was not recorded."""

    key: Key
    created: float | None
    retain: bool = False
    finalizer: bool = False
    uses_secrets: bool = False
    ready: Write | None = None
    deletion: float | None = None
    gone: float | None = None
    ours: list[Write] = field(default_factory=list)
    refused: list[Write] = field(default_factory=list)
    others: list[Write] = field(default_factory=list)

    @property
    def began(self) -> float:
        return self.created if self.created is not None else 0.0

    @property
    def ended(self) -> float:
        return self.gone if self.gone is not None else _FOREVER

    def covers(self, moment: float) -> bool:
        return self.began <= moment <= self.ended


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """The figures of one life; None for what it has no answer to (see the module's definitions)."""

    namespace: str
    name: str
    disturbed: bool
    apply_to_ready_s: float | None
    k8s_writes_converge: int | None
    k8s_writes_life: int | None
    k8s_events_converge: int | None
    fly_calls_converge: int | None
    fly_calls_destroy: int | None
    fly_refusals_destroy: int | None
    idle_writes: int | None
    idle_fly_calls: int | None


@dataclass(frozen=True, slots=True)
class Spread:
    """How a figure spreads over Agents."""

    agents: int
    median: float
    max: float
    total: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found; the four last lists are sentences, empty when all is well."""

    agents: Sequence[AgentFigures]
    figures: Mapping[str, Spread]
    refused_writes: int
    org_calls: int
    unattributed_calls: int
    idle_seconds: float | None
    idle_org_calls: int | None
    idle_other_writes: int | None
    volume_twins: int
    orphans: Sequence[str]
    doubles: Sequence[str]
    overlaps: Sequence[str]
    order_violations: Sequence[str]

    @property
    def sound(self) -> bool:
        return not (self.orphans or self.doubles or self.overlaps or self.order_violations)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time, epoch seconds."""

    since: float
    until: float

    def __contains__(self, moment: float) -> bool:
        return self.since <= moment <= self.until


def verify(ledger: Ledger, writes: Sequence[Write], *, operator: str = OPERATOR, idle: Window | None = None) -> Report:
    """All figures of a run. Raises BadEvidence when the logs hold no Agent at all."""
    lives = _lives(writes, operator)
    if not lives:
        raise BadEvidence("the audit log holds no write on an Agent: there is nothing to verify")
    owners = _Owners(ledger, writes, operator)
    calls = [call for call in ledger.calls if call.agent.startswith(OPERATOR_AGENT)]
    calls_of: dict[Key | None, list[Call]] = defaultdict(list)
    for call in calls:
        calls_of[owners.of_call(call)].append(call)
    events_of = _events(writes, operator)
    agents = [_figures(life, calls_of[life.key], events_of[life.key], idle) for life in lives]
    org = [call for call in calls_of[None] if call.app is None]
    return Report(
        agents=agents,
        figures=_spreads(agents),
        refused_writes=sum(len(life.refused) for life in lives),
        org_calls=len(org),
        unattributed_calls=len(calls_of[None]) - len(org),
        idle_seconds=idle.until - idle.since if idle else None,
        idle_org_calls=sum(call.at in idle for call in org) if idle else None,
        idle_other_writes=_other_writes(writes, operator, idle) if idle else None,
        volume_twins=sum(1 for v in ledger.volumes if owners.is_twin(v)),
        orphans=_orphans(lives, owners),
        doubles=_doubles(owners),
        overlaps=_overlaps(calls, owners),
        order_violations=_order_violations(lives, owners),
    )


class _Owners:
    """Which Agent a machine, volume, app or call belongs to; only things that the operator made count at all."""

    def __init__(self, ledger: Ledger, writes: Iterable[Write], operator: str) -> None:
        self._machine_keys = ledger.machine_keys
        self._app_keys: dict[str, set[Key]] = defaultdict(set)
        for machine in ledger.machines:
            if key := self._machine_keys.get(machine.id):
                self._app_keys[machine.app].add(key)
        for write in writes:
            if write.ok and write.user == operator and write.on(GROUP, "agents") and (app := _status_app(write)):
                self._app_keys[app].add(write.key)
        self._volume_keys = {
            volume: self._machine_keys[machine.id]
            for machine in ledger.machines
            if machine.id in self._machine_keys
            for volume in machine.volumes
        }
        self._machines_tell_volumes = bool(self._volume_keys)
        self.machines = [thing for thing in ledger.machines if _ours(thing)]
        self.volumes = [thing for thing in ledger.volumes if _ours(thing)]
        self.apps = [thing for thing in ledger.apps if _ours(thing)]

    def of(self, thing: Thing) -> Key | None:
        if thing.kind == "machine" and thing.id in self._machine_keys:
            return self._machine_keys[thing.id]
        if thing.kind == "volume" and thing.id in self._volume_keys:
            return self._volume_keys[thing.id]
        return self._of_app(thing.app)

    def of_call(self, call: Call) -> Key | None:
        named = self._machine_keys.get(call.machine or "") or self._volume_keys.get(call.volume or "")
        return named or self._of_app(call.app)

    def is_twin(self, volume: Thing) -> bool:
        """A volume that no machine ever mounted: the price of a lost answer, not a second current volume."""
        return self._machines_tell_volumes and volume.id not in self._volume_keys

    def subject(self, call: Call) -> str:
        """Whom a call is about, in words: its Agent, or what it names where nobody can tell the Agent."""
        if key := self.of_call(call):
            return f"Agent {_name(key)}"
        return f"app {call.app}" + (f", {named}" if (named := call.machine or call.volume) else "")

    def makes_twin(self, call: Call) -> bool:
        return call.op == "create_volume" and self._machines_tell_volumes and call.volume not in self._volume_keys

    def by_key(self, things: Iterable[Thing]) -> dict[Key, list[Thing]]:
        found: dict[Key, list[Thing]] = defaultdict(list)
        for thing in things:
            if key := self.of(thing):
                found[key].append(thing)
        return found

    def _of_app(self, app: str | None) -> Key | None:
        keys = self._app_keys.get(app or "", set())
        return next(iter(keys)) if len(keys) == 1 else None


def _ours(thing: Thing) -> bool:
    """Made by the operator; a thing whose maker is not on record is held to be."""
    return thing.maker is None or thing.maker.startswith(OPERATOR_AGENT)


def _status_app(write: Write) -> str | None:
    app = (write.body.get("status") or {}).get("app") or {}
    return app.get("name") if write.subresource == "status" else None


# Lives


def _lives(writes: Iterable[Write], operator: str) -> list[Life]:
    """Every Agent's life, in order of creation."""
    lives: list[Life] = []
    current: dict[Key, Life] = {}
    for write in writes:
        if write.resource == "secrets" and write.ok:
            _secret_changed(write, current)
        if not write.on(GROUP, "agents"):
            continue
        if write.verb == "deletecollection":
            _delete_all(write, current)
        elif write.name and _creates(write):
            life = current[write.key] = Life(write.key, write.received)
            lives.append(life)
            _remember_spec(life, write)
        elif write.name:
            if write.key not in current:
                if not write.ok:
                    continue
                current[write.key] = Life(write.key, None)
                lives.append(current[write.key])
            _live(current[write.key], write, operator)
            if current[write.key].gone is not None:
                del current[write.key]
    return lives


def _secret_changed(write: Write, current: Mapping[Key, Life]) -> None:
    """Somebody changed what these Agents live from."""
    for key, life in current.items():
        if life.uses_secrets and key[0] == write.namespace:
            life.others.append(write)


def _creates(write: Write) -> bool:
    applied = write.verb == "patch" and write.code == 201 and not write.subresource
    return write.ok and (write.verb == "create" or applied)


def _delete_all(write: Write, current: dict[Key, Life]) -> None:
    """A collection deleted without a selector deletes each; with one, only the release of the finalizer tells."""
    if not write.ok or write.selective:
        return
    for key in [key for key in current if not write.namespace or key[0] == write.namespace]:
        _deleted(current[key], write)
        if current[key].gone is not None:
            del current[key]


def _live(life: Life, write: Write, operator: str) -> None:
    if write.user == operator and not write.ok:
        life.refused.append(write)
        _left_open(life, write)
    if not write.ok:
        return
    if write.verb == "delete":
        _deleted(life, write)
        if write.user != operator:
            life.others.append(write)
        return
    _remember_spec(life, write)
    if write.user != operator or ("spec" in write.body and not write.subresource):
        life.others.append(write)  # a Fleet's rollout is its author's change, though the operator makes it
        return
    life.ours.append(write)
    if life.ready is None and _says_ready(write):
        life.ready = write
    finalizers = (write.body.get("metadata") or {}).get("finalizers", ()) if not write.subresource else ()
    if FINALIZER in (finalizers or ()):
        life.finalizer = True
    elif finalizers != () and life.finalizer:
        life.deletion = life.deletion if life.deletion is not None else write.received
        life.gone = write.received


def _left_open(life: Life, write: Write) -> None:
    """What a refusal tells nevertheless: a write whose sender died meanwhile is 504 and may be stored all the same.

    If the finalizer was not, nothing may be made before it is written once more; that write tells then.
    """
    if write.code >= 500 and not write.subresource and FINALIZER in _finalizers(write):
        life.finalizer = True
    if write.code == 404 and life.deletion is not None:
        life.gone = write.received


def _finalizers(write: Write) -> Sequence[str]:
    return (write.body.get("metadata") or {}).get("finalizers") or ()


def _deleted(life: Life, write: Write) -> None:
    if life.deletion is None:
        life.deletion = write.received
    if not life.finalizer:
        life.gone = write.received


def _remember_spec(life: Life, write: Write) -> None:
    spec = write.body.get("spec") or {}
    if policy := spec.get("deletionPolicy"):
        life.retain = policy == "Retain"
    sources = [*(spec.get("env") or ()), *(spec.get("files") or ())]
    life.uses_secrets |= any("valueFrom" in source or "contentFrom" in source for source in sources)
    if write.verb in {"create", "patch"} and FINALIZER in _finalizers(write):
        life.finalizer = True


def _says_ready(write: Write) -> bool:
    conditions = (write.body.get("status") or {}).get("conditions") or []
    return write.subresource == "status" and any(
        condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions
    )


# Figures


def _figures(life: Life, calls: Sequence[Call], events: Sequence[Write], idle: Window | None) -> AgentFigures:
    until_ready = _until_ready(life)
    disturbed = until_ready is None or _disturbed(life, calls, until_ready)
    converge = None if disturbed else until_ready
    whole = _whole_life(life, calls)
    leaving = _leaving(life, calls)
    return AgentFigures(
        namespace=life.key[0],
        name=life.key[1],
        disturbed=until_ready is not None and disturbed,
        apply_to_ready_s=round(life.ready.answered - life.began, 3) if converge and life.ready else None,
        k8s_writes_converge=sum(w.received in converge for w in life.ours) if converge else None,
        k8s_writes_life=len(life.ours) if whole else None,
        k8s_events_converge=sum(_tail(converge, w.received) for w in events) if converge else None,
        fly_calls_converge=sum(call.at in converge for call in calls) if converge else None,
        fly_calls_destroy=sum(not _still_bound(call) for call in leaving) if leaving else None,
        fly_refusals_destroy=sum(_still_bound(call) for call in leaving) if leaving else None,
        idle_writes=sum(w.received in idle for w in life.ours) if idle else None,
        idle_fly_calls=sum(call.at in idle for call in calls if life.covers(call.at)) if idle else None,
    )


def _until_ready(life: Life) -> Window | None:
    if life.created is None or life.ready is None:
        return None
    return Window(life.created, life.ready.received)


def _disturbed(life: Life, calls: Iterable[Call], window: Window) -> bool:
    return any(w.received in window for w in life.others) or any(c.faulty and c.at in window for c in calls)


def _whole_life(life: Life, calls: Iterable[Call]) -> bool:
    if life.created is None or life.ready is None or life.gone is None:
        return False
    window = Window(life.created, life.gone)
    return all(w.verb == "delete" for w in life.others) and not any(c.faulty and c.at in window for c in calls)


def _leaving(life: Life, calls: Iterable[Call]) -> list[Call]:
    """The calls of an undisturbed destroy; none when it was disturbed or did not happen."""
    if life.ready is None or life.deletion is None or life.gone is None:
        return []
    window = Window(life.deletion, life.gone)
    found = [call for call in calls if call.at in window]
    return [] if any(call.faulty for call in found) else found


def _still_bound(call: Call) -> bool:
    return call.op == "delete_volume" and not call.happened


def _tail(window: Window, moment: float) -> bool:
    return moment in Window(window.since, window.until + EVENT_TAIL_SECONDS)


def _events(writes: Iterable[Write], operator: str) -> dict[Key, list[Write]]:
    """The operator's Events by Agent: their names are `<agent>.<unique>`, and an Agent's name holds no dot."""
    found: dict[Key, list[Write]] = defaultdict(list)
    for write in writes:
        if write.ok and write.user == operator and write.resource == "events":
            found[write.namespace, write.name.partition(".")[0]].append(write)
    return found


def _other_writes(writes: Iterable[Write], operator: str, idle: Window) -> int:
    """The operator's writes in the window that are on no Agent (its Lease, Events, other kinds)."""
    return sum(w.user == operator and w.ok and w.received in idle and not w.on(GROUP, "agents") for w in writes)


def _spreads(agents: Sequence[AgentFigures]) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    for name in (f.name for f in dataclasses.fields(AgentFigures) if f.name not in {"namespace", "name", "disturbed"}):
        values = [value for agent in agents if (value := getattr(agent, name)) is not None]
        if values:
            found[name] = Spread(len(values), median(values), max(values), round(sum(values), 3))
    return found


# What must never be


def _orphans(lives: Sequence[Life], owners: _Owners) -> list[str]:
    """What exists at the end although no Agent does that it could belong to, or that kept it on purpose."""
    last = {life.key: life for life in lives}
    found = []
    for thing in (*owners.machines, *owners.volumes, *owners.apps):
        if thing.destroyed is not None:
            continue
        key = owners.of(thing)
        life = last.get(key) if key else None
        if life is None:
            found.append(f"{thing} is left and belongs to no Agent on record")
        elif life.gone is not None and not (life.retain and thing.kind != "machine"):
            found.append(f"{thing} is left although Agent {_name(life.key)} is gone")
    return found


def _doubles(owners: _Owners) -> list[str]:
    volumes = [volume for volume in owners.volumes if not owners.is_twin(volume)]
    return [
        f"{earlier} and {later} of Agent {_name(key)} lived at the same time"
        for things in (owners.machines, volumes)
        for key, of_key in sorted(owners.by_key(things).items())
        for of_one in _by_number(of_key)
        for earlier, later in _overlapping(of_one)
    ]


def _by_number(things: Iterable[Thing]) -> Iterable[list[Thing]]:
    """Volumes apart by the number in their names, none is the first; of machines at most one may live."""
    found: dict[str, list[Thing]] = defaultdict(list)
    for thing in things:
        number = re.search(r"_(\d{1,3})$", thing.name) if thing.kind == "volume" else None
        found[number[1] if number else "1"].append(thing)
    return found.values()


def _overlapping(things: Iterable[Thing]) -> Iterable[tuple[Thing, Thing]]:
    ordered = sorted(things, key=lambda thing: thing.created)
    longest = ordered[0]
    for before, after in pairwise(ordered):
        if (before.destroyed or _FOREVER) > (longest.destroyed or _FOREVER):
            longest = before
        if (longest.destroyed or _FOREVER) > after.created:
            yield longest, after


def _overlaps(calls: Iterable[Call], owners: _Owners) -> list[str]:
    """Of each subject, every change that began while an earlier one was not carried out yet."""
    found = []
    last: dict[str, Call] = {}
    for call in sorted(calls, key=lambda call: call.at):
        if not call.changed or call.app is None or owners.makes_twin(call):
            continue
        subject = owners.subject(call)
        before = last.get(subject)
        if before is not None and call.at < before.done:
            found.append(
                f"{call.op} by {call.agent} began {before.done - call.at:.3f} s before {before.op} by "
                f"{before.agent} was done, both of {subject}"
            )
        if before is None or call.done > before.done:
            last[subject] = call
    return found


def _order_violations(lives: Sequence[Life], owners: _Owners) -> list[str]:
    machines, volumes, apps = (owners.by_key(t) for t in (owners.machines, owners.volumes, owners.apps))
    lives_of: dict[Key, list[Life]] = defaultdict(list)
    for life in lives:
        lives_of[life.key].append(life)
    found: list[str] = []
    for key, of_key in sorted(lives_of.items()):
        found += _destroyed_too_early(of_key, machines[key], volumes[key], apps[key])
        for life in of_key:
            found += _outlived(life, (*machines[key], *volumes[key], *apps[key]))
    return found


def _destroyed_too_early(
    lives: Sequence[Life], machines: Sequence[Thing], volumes: Sequence[Thing], apps: Sequence[Thing]
) -> list[str]:
    """A volume whose deletion was asked for under a living machine, an app's over anything that lives in it."""
    found = []
    for volume in volumes:
        if (asked := _destruction(volume)) is not None:
            dying = any(life.deletion is not None and life.deletion <= asked <= life.ended for life in lives)
            users = [m for m in machines if volume.id in m.volumes or (dying and not m.volumes)]
            found += [f"{volume} was deleted while {m} was alive" for m in users if m.alive_at(asked)]
    for app in apps:
        if (asked := _destruction(app)) is not None:
            inside = [thing for thing in (*machines, *volumes) if thing.app == app.id]
            found += [f"{app} was deleted while {thing} was alive" for thing in inside if thing.alive_at(asked)]
    return found


def _destruction(thing: Thing) -> float | None:
    return thing.deletion_asked if thing.deletion_asked is not None else thing.destroyed


def _outlived(life: Life, things: Iterable[Thing]) -> list[str]:
    """What was still there when the Agent's resource went."""
    if life.gone is None:
        return []
    return [
        f"Agent {_name(life.key)} was gone while {thing} was alive"
        for thing in things
        if thing.alive_at(life.gone) and not (life.retain and thing.kind != "machine")
    ]


def _name(key: Key) -> str:
    return "/".join(key)


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m roost.local.verify_figures", description="Figures of a run from its ledger and audit log"
    )
    parser.add_argument("--ledger", type=Path, required=True, help="flysim's ledger.jsonl")
    parser.add_argument(
        "--audit", type=Path, required=True, nargs="+", help="the API server's audit log, all its files"
    )
    parser.add_argument("--operator", default=OPERATOR, metavar="USER", help="default: %(default)s")
    window = parser.add_mutually_exclusive_group()
    window.add_argument("--idle", type=float, nargs=2, metavar=("FROM", "TO"), help="an idle window, epoch seconds")
    window.add_argument("--idle-file", type=Path, help="a file that holds FROM and TO")
    parser.add_argument("--json", action="store_true", help="the whole report, every Agent, as JSON")
    arguments = parser.parse_args(argv)
    try:
        idle = _idle(arguments.idle, arguments.idle_file)
        ledger, writes = read_ledger(arguments.ledger), read_audit(arguments.audit)
        report = verify(ledger, writes, operator=arguments.operator, idle=idle)
    except (BadEvidence, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(report), indent=2) if arguments.json else _text(report))
    return 0 if report.sound else 1


def _idle(given: Sequence[float] | None, file: Path | None) -> Window | None:
    if file is not None:
        try:
            given = [float(word) for word in file.read_text().split()]
        except ValueError as error:
            raise BadEvidence(f"{file} must hold two epoch times: {error}") from error
    if given is None:
        return None
    if len(given) != 2 or given[0] >= given[1]:
        raise BadEvidence(f"an idle window is a start and a later end, not {' '.join(map(str, given)) or 'nothing'}")
    return Window(*given)


def _text(report: Report) -> str:
    lines = [f"{len(report.agents)} Agents, {sum(agent.disturbed for agent in report.agents)} disturbed", ""]
    lines.append(f"  {'FIGURE':<22}{'AGENTS':>7}{'MEDIAN':>10}{'MAX':>10}{'TOTAL':>12}")
    for name, spread in report.figures.items():
        lines.append(f"  {name:<22}{spread.agents:>7}{spread.median:>10g}{spread.max:>10g}{spread.total:>12g}")
    lines.append("")
    rest: list[tuple[str, Any]] = [
        ("refused_writes", report.refused_writes),
        ("org_calls", report.org_calls),
        ("unattributed_calls", report.unattributed_calls),
        ("idle_seconds", report.idle_seconds),
        ("idle_org_calls", report.idle_org_calls),
        ("idle_other_writes", report.idle_other_writes),
        ("volume_twins", report.volume_twins),
    ]
    lines += [f"  {name:<22}{value:>7g}" for name, value in rest if value is not None]
    for name, sentences in (
        ("orphans", report.orphans),
        ("doubles", report.doubles),
        ("overlaps", report.overlaps),
        ("order_violations", report.order_violations),
    ):
        lines.append(f"  {name:<22}{len(sentences):>7}")
        lines += [f"    {sentence}" for sentence in sentences]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
