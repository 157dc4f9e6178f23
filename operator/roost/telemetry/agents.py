"""The figures of agents: what their heartbeats and check-ins say, for dashboards and alerts; apart from our series.

Made at scrape time from what is in mind; of an Agent that is gone nothing is left. What an agent sends becomes a
label's value only from a closed list, or, on the one info series, bounded in length. Nothing is decided by any of it.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from roost_agent.contract import Checkin, Heartbeat, LastExit

STATES = ("stopped", "starting", "running", "stopping", "crashed", "shutting_down", "unknown")
"""What a supervisor's state may be; any other word is unknown."""
_CODES = {f"code:{n}" for n in range(256)} | {f"signal:{s.name}" for s in signal.Signals}
"""How a runtime may have ended; anything else is other."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the check-ins of one agent have said: the last one, and the sums of its deltas.

    `at` in epoch seconds, sizes in bytes, `uptime` in seconds.
    """

    at: float
    machine_id: str
    supervisor_version: str
    supervisor_commit: str
    runtime_version: str
    runtime_commit: str
    state: str
    restarts: int
    uptime: int
    load5: float
    received: int
    transmitted: int
    last: tuple[int, int]
    """What the last check-in added to the two sums."""
    last_exit: str
    disk_used: int | None
    disk_total: int | None


def fold(before: Figures | None, said: Checkin, at: float) -> Figures:
    """The figures after a check-in. Deltas are added; the same check-in heard twice adds them once.

    An agent counts its deltas from its last check-in that was answered with 204. When such an answer was lost on its
    way, the next check-in holds what was added already: no field tells, so that much is counted twice.
    """
    last = (said.bandwidth_bytes_in, said.bandwidth_bytes_out)
    made_by = (said.machine_id or "", said.uptime_seconds, last)
    again = before is not None and made_by == (before.machine_id, before.uptime, before.last)
    received, transmitted = (0, 0) if before is None else (before.received, before.transmitted)
    return Figures(
        at=at,
        machine_id=said.machine_id or "",
        supervisor_version=sys.intern(said.controller_version),
        supervisor_commit=sys.intern(said.controller_commit),
        runtime_version=sys.intern(said.openclaw_version or ""),
        runtime_commit=sys.intern(said.openclaw_commit or ""),
        state=sys.intern(said.supervisor_state),
        restarts=said.total_restarts,
        uptime=said.uptime_seconds,
        load5=said.load_avg5m,
        received=received if again else received + last[0],
        transmitted=transmitted if again else transmitted + last[1],
        last=last,
        last_exit=sys.intern(said.last_exit_reason),
        disk_used=said.disk_used_bytes,
        disk_total=said.disk_total_bytes,
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """One agent at scrape time; `heard_at` in epoch seconds.

    `beat` is its last heartbeat while it is not silent, `figures_hold` whether its last check-in is new enough to be
    true of now.
    """

    namespace: str
    name: str
    machine_id: str
    region: str
    heard_at: float | None
    beat: Heartbeat | None
    figures: Figures | None
    figures_hold: bool


Labels = dict[str, str]
Samples = Iterable[tuple[Labels, float | None]]
INFO = ("machine_id", "region", "supervisor_version", "supervisor_commit", "runtime_version", "runtime_commit")
"""Labels that only the info series has: another value of any is another series."""


def _info(seen: Seen) -> Samples:
    beat, said = seen.beat, seen.figures
    if beat is None and not seen.figures_hold:
        return
    values = (
        seen.machine_id or (beat.machine_id if beat else "") or (said.machine_id if said else ""),
        seen.region,
        (beat.compute_version if beat else "") or (said.supervisor_version if said else ""),
        said.supervisor_commit if said else "",
        (beat.openclaw_version if beat else "") or (said.runtime_version if said else ""),
        said.runtime_commit if said else "",
    )
    yield dict(zip(INFO, values, strict=True)), 1


def _state(seen: Seen) -> Samples:
    if seen.beat is not None and seen.beat.runtime is not None:
        state = seen.beat.runtime.state.value
    elif seen.figures is not None and seen.figures_hold:
        state = seen.figures.state if seen.figures.state in STATES else "unknown"
    else:
        return
    for one in STATES:
        yield {"state": one}, one == state


def _last_exit(seen: Seen) -> Samples:
    last = seen.beat.runtime.last_exit if seen.beat is not None and seen.beat.runtime is not None else None
    if last is not None:
        reason = _reason(last)
    elif seen.figures is not None and seen.figures_hold:
        reason = seen.figures.last_exit
    else:
        return
    if reason:
        yield {"reason": reason if reason in _CODES else "other"}, 1


def _reason(last: LastExit) -> str:
    if last.signal is None:
        return f"code:{last.code}"
    try:
        return f"signal:{signal.Signals(last.signal).name}"
    except ValueError:
        return "other"


def _restarts(seen: Seen) -> Samples:
    if seen.beat is not None and seen.beat.runtime is not None:
        yield {}, seen.beat.runtime.restarts
    elif seen.figures is not None:
        yield {}, seen.figures.restarts


def _of_now(in_beat: Callable[[Heartbeat], float | None], in_figures: Callable[[Figures], float | None]) -> "_Samples":
    """A figure of the last heartbeat or, where that does not say, of the last check-in; none when both are old."""

    def samples(seen: Seen) -> Samples:
        value = in_beat(seen.beat) if seen.beat is not None else None
        if value is None and seen.figures is not None and seen.figures_hold:
            value = in_figures(seen.figures)
        yield {}, value

    return samples


def _ever(value: Callable[[Seen], float | None]) -> "_Samples":
    def samples(seen: Seen) -> Samples:
        yield {}, value(seen)

    return samples


def _checked_in(value: Callable[[Figures], float]) -> "_Samples":
    return _ever(lambda seen: None if seen.figures is None else value(seen.figures))


_Samples = Callable[[Seen], Samples]


@dataclass(frozen=True, slots=True)
class Series:
    """One series: its name without `_total`, its own labels beside namespace and agent, and where it comes from."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    samples: _Samples


SERIES = (
    Series("roost_agent_info", "gauge", INFO, "1; versions, and where it runs.", _info),
    Series(
        "roost_agent_up",
        "gauge",
        (),
        "1 while its heartbeats arrive; 0 when they do not, also because it is at rest.",
        _ever(lambda s: None if s.heard_at is None else float(s.beat is not None)),
    ),
    Series(
        "roost_agent_last_heartbeat_timestamp_seconds",
        "gauge",
        (),
        "When its last heartbeat arrived.",
        _ever(lambda s: s.heard_at),
    ),
    Series(
        "roost_agent_last_checkin_timestamp_seconds",
        "gauge",
        (),
        "When its last check-in arrived.",
        _checked_in(lambda f: f.at),
    ),
    Series("roost_agent_supervisor_state", "gauge", ("state",), "1 for the state its runtime is in.", _state),
    Series("roost_agent_restarts", "counter", (), "Starts of its runtime after an end nobody asked for.", _restarts),
    Series("roost_agent_last_exit_info", "gauge", ("reason",), "1; how its runtime last ended.", _last_exit),
    Series(
        "roost_agent_uptime_seconds",
        "gauge",
        (),
        "For how long its supervisor runs.",
        _of_now(lambda b: b.uptime_seconds, lambda f: f.uptime),
    ),
    Series(
        "roost_agent_load5",
        "gauge",
        (),
        "Load average of its machine over five minutes.",
        _of_now(lambda _: None, lambda f: f.load5),
    ),
    Series(
        "roost_agent_network_receive_bytes",
        "counter",
        (),
        "What its machine has received, by its check-ins.",
        _checked_in(lambda f: f.received),
    ),
    Series(
        "roost_agent_network_transmit_bytes",
        "counter",
        (),
        "What its machine has sent, by its check-ins.",
        _checked_in(lambda f: f.transmitted),
    ),
    Series(
        "roost_agent_disk_used_bytes",
        "gauge",
        (),
        "What is used of its volume.",
        _of_now(lambda b: b.disk.used_bytes if b.disk else None, lambda f: f.disk_used),
    ),
    Series(
        "roost_agent_disk_total_bytes",
        "gauge",
        (),
        "The size of its volume.",
        _of_now(lambda b: b.disk.total_bytes if b.disk else None, lambda f: f.disk_total),
    ),
)


class AgentFigures(Collector):
    """Every series of every agent that `seen` tells of. A scrape may run in a thread: it only reads."""

    def __init__(self, seen: Callable[[], Iterable[Seen]]) -> None:
        self._seen = seen

    def describe(self) -> Iterable[Metric]:
        return [Metric(s.name, s.text, s.kind) for s in SERIES]

    def collect(self) -> Iterator[Metric]:
        """One family at a time, so that thousands of agents need no more memory than that."""
        everybody = list(self._seen())
        for series in SERIES:
            family = Metric(series.name, series.text, series.kind)
            name = f"{series.name}_total" if series.kind == "counter" else series.name
            for seen in everybody:
                whose = {"namespace": seen.namespace, "agent": seen.name}
                for labels, value in series.samples(seen):
                    if value is not None:
                        family.add_sample(name, whose | labels, value)
            yield family
