"""The series Prometheus scrapes: controller-runtime's and client-go's names where they exist, ours beside them.

Labels are closed lists (kind, phase, operation, code class): never a name, a uid or a message. What agents say of
themselves has labels that name them, and so a registry and a page of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from roost.telemetry.agents import AgentFigures, Seen

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
_READY_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class Turn(Protocol):
    """One key being worked on."""

    @property
    def started(self) -> float: ...


class Queue(Protocol):
    """What is asked of a work queue at scrape time."""

    adds: int
    retries: int

    def depth(self) -> int: ...

    def turns(self) -> Sequence[Turn]: ...


class Metrics:
    """All series of one operator process; `agent_figures` has those that agents say of themselves."""

    def __init__(self) -> None:
        # `_created` series double the number of series and no dashboard reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.agent_figures = CollectorRegistry()
        r = self.registry = CollectorRegistry()
        kind = ["controller"]
        self.reconcile_total = Counter(
            "controller_runtime_reconcile", "Reconciles by kind and result.", ["controller", "result"], registry=r
        )
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors", "Reconciles that raised.", kind, registry=r
        )
        self.terminal_errors = Counter(
            "controller_runtime_terminal_reconcile_errors",
            "Times an object became Stalled: it can't go on without a person.",
            kind,
            registry=r,
        )
        self.reconcile_time = Histogram(
            "controller_runtime_reconcile_time_seconds", "Length of a reconcile.", kind, registry=r, buckets=_SECONDS
        )
        self.queue_duration = Histogram(
            "workqueue_queue_duration_seconds", "Wait in the queue.", ["name"], registry=r, buckets=_SECONDS
        )
        self.work_duration = Histogram(
            "workqueue_work_duration_seconds", "Work on an item.", ["name"], registry=r, buckets=_SECONDS
        )
        self.rest_requests = Counter(
            "rest_client_requests", "Requests to the Kubernetes API.", ["code", "method"], registry=r
        )
        self.fly_requests = Counter(
            "fly_api_requests", "Calls to the Fly Machines API.", ["op", "code_class"], registry=r
        )
        self.fly_seconds = Histogram(
            "fly_api_request_duration_seconds", "Length of a Fly call.", ["op"], registry=r, buckets=_SECONDS
        )
        self.fly_throttled = Counter(
            "fly_api_throttled_seconds", "Seconds that calls waited for our own rate limits.", registry=r
        )
        self.leader = Gauge(
            "leader_election_master_status", "1 while this replica is the one that acts.", ["name"], registry=r
        )
        self.agents = Gauge("roost_agents", "Agents by phase.", ["phase"], registry=r)
        self.time_to_ready = Histogram(
            "roost_agent_time_to_ready_seconds",
            "From the creation of an Agent to its first Ready=True.",
            registry=r,
            buckets=_READY_SECONDS,
        )
        self.token_exchanges = Counter(
            "roost_token_exchanges", "Calls of machines for their token, by answer.", ["code"], registry=r
        )
        self.heartbeats = Counter("roost_heartbeats", "Heartbeats by answer.", ["code"], registry=r)
        self.bundles = Counter("roost_bundles", "Bundle requests by answer.", ["code"], registry=r)
        self.checkins = Counter("roost_checkins", "Check-ins by answer.", ["code"], registry=r)
        self.long_polls = Gauge("roost_long_polls", "Heartbeats that are held open for a command.", registry=r)
        self.endpoint_connections = Gauge(
            "roost_endpoint_connections", "Connections to the endpoint, TLS handshakes under way too.", registry=r
        )
        self.endpoint_closed = Counter(
            "roost_endpoint_connections_closed",
            "Connections that the endpoint ended itself: `full`, `slow_sender`, `slow_reader`, `idle`, `large_head`, "
            "`no_handshake`.",
            ["reason"],
            registry=r,
        )
        self.certificate_expiry = Gauge(
            "roost_endpoint_certificate_expiry_timestamp_seconds",
            "When the endpoint's certificate in use ends; 0 without one.",
            registry=r,
        )
        self.certificate_unusable = Gauge(
            "roost_endpoint_certificate_unusable",
            "1 while the Secret holds no certificate that can be used, so that the one before is kept.",
            registry=r,
        )
        self.status_writes = Counter("roost_status_writes", "Status writes by kind.", ["controller"], registry=r)
        self.watch_last_event = Gauge(
            "roost_watch_last_event_timestamp_seconds", "When the last event of a kind arrived.", ["kind"], registry=r
        )
        self.sweep_last = Gauge(
            "roost_fly_sweep_timestamp_seconds", "When the machines of an org were last listed.", ["org"], registry=r
        )
        self.fly_breaker_open = Gauge(
            "roost_fly_breaker_open", "Fly credentials whose calls go unanswered, so that none is sent.", registry=r
        )
        self.agents_silent = Gauge(
            "roost_agents_silent", "Agents that should be heard and are not, for longer than their window.", registry=r
        )
        self.endpoint_unreachable = Gauge(
            "roost_endpoint_unreachable",
            "1 while so many agents fell silent together that our endpoint is to blame and none is restarted.",
            registry=r,
        )
        self.previous_token_root = Gauge(
            "roost_machines_on_previous_token_root",
            "Machines that have yet to take a token of the token root as it is now; 0 ends its rotation.",
            registry=r,
        )
        self.recoveries = Counter("roost_recoveries", "Machines restarted because their agent was silent.", registry=r)
        self.loop_lag = Gauge("roost_event_loop_lag_seconds", "How late the event loop runs timers.", registry=r)
        self.intake_age = Gauge(
            "roost_intake_loop_age_seconds", "How long ago the event loop of the watches last turned.", registry=r
        )
        self.intake_restarts = Counter("roost_intake_restarts", "Times the watches were started anew.", registry=r)
        self.intake_deaf = Gauge(
            "roost_intake_deaf_sweeps",
            "Sweeps in a row that found changes of which the watches had not told.",
            registry=r,
        )

    def reconciled(self, kind: str, result: str, seconds: float) -> None:
        self.reconcile_total.labels(kind, result).inc()
        self.reconcile_time.labels(kind).observe(seconds)
        self.work_duration.labels(kind).observe(seconds)

    def fly_called(self, op: str, code_class: str, seconds: float, throttled: float) -> None:
        """The Fly client's observer."""
        self.fly_requests.labels(op, code_class).inc()
        self.fly_seconds.labels(op).observe(seconds)
        if throttled > 0:
            self.fly_throttled.inc(throttled)

    def watch_agents(self, seen: Callable[[], Iterable[Seen]]) -> None:
        """Reports at scrape time what the agents have said of themselves."""
        self.agent_figures.register(AgentFigures(seen))

    def watch_queue(self, queue: Queue, clock: Callable[[], float]) -> None:
        """Reports depth, adds, retries and unfinished work of a queue at scrape time."""
        self.registry.register(_QueueCollector(queue, clock))


class _QueueCollector(Collector):
    def __init__(self, queue: Queue, clock: Callable[[], float]) -> None:
        self._queue, self._clock = queue, clock

    def collect(self) -> Iterable[Metric]:
        return list(self._families())

    def _families(self) -> Iterator[Metric]:
        now = self._clock()
        ages = [now - turn.started for turn in self._queue.turns()]
        for name, text, value in (
            ("workqueue_depth", "Keys that are due.", float(self._queue.depth())),
            ("workqueue_unfinished_work_seconds", "Seconds of work in progress, summed.", sum(ages)),
            ("workqueue_longest_running_processor_seconds", "Age of the longest work.", max(ages, default=0.0)),
            ("controller_runtime_active_workers", "Keys being worked on.", float(len(ages))),
        ):
            family = GaugeMetricFamily(name, text, labels=["name"])
            family.add_metric(["roost"], value)
            yield family
        for name, text, total in (
            ("workqueue_adds", "Adds to the queue.", self._queue.adds),
            ("workqueue_retries", "Keys put back by back-off.", self._queue.retries),
        ):
            counter = Metric(name, text, "counter")
            counter.add_sample(f"{name}_total", {"name": "roost"}, float(total))
            yield counter
