"""The page of agents' figures, as Prometheus reads it, from heartbeats and check-ins."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from roost.telemetry.agents import SERIES, STATES, Figures, Seen, fold
from roost.telemetry.metrics import Metrics
from roost.telemetry.probes import probes
from roost_agent.contract import Checkin, Heartbeat

SEED = json.loads((Path(__file__).parents[1] / "contract/data/controller-checkin.json").read_text())
NOW = 1_795_262_400.0
BEAT: dict[str, Any] = {
    "status": "running",
    "openclawVersion": "2026.9.6",
    "machineId": "m-1",
    "uptimeSeconds": 3600,
    "memoryMb": 61,
    "computeVersion": "0.2.0",
    "ready": True,
    "runtime": {"state": "running", "pid": 7, "restarts": 3, "lastExit": None},
    "disk": {"usedBytes": 11, "totalBytes": 22},
}


def said(**other: Any) -> Checkin:
    return Checkin.read(json.dumps(SEED["valid_body"] | other))


def beat(**other: Any) -> Heartbeat:
    return Heartbeat.read(json.dumps(BEAT | other))


def heard(**other: Any) -> Seen:
    """An agent of ours: it sends heartbeats, and no check-ins."""
    return Seen("team-a", "ada", "m-1", "iad", NOW, beat(**other), None, False)


def checked_in(*checkins: Checkin) -> Seen:
    """An agent of the seed systems whose heartbeat says nothing of its runtime; here without any."""
    figures: Figures | None = None
    for one in checkins or (said(),):
        figures = fold(figures, one, NOW)
    return Seen("team-a", "ada", "", "", None, None, figures, True)


def page(*seen: Seen) -> dict[tuple[str, ...], float]:
    """What Prometheus stores: name, then the labels' values in the order of their names, beside namespace and agent."""
    metrics = Metrics()
    metrics.watch_agents(lambda: seen)
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(generate_latest(metrics.agent_figures).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("namespace"), labels.pop("agent")) in {(s.namespace, s.name) for s in seen}
            found[sample.name, *(labels[k] for k in sorted(labels))] = sample.value
    return found


def of(found: dict[tuple[str, ...], float], name: str) -> dict[tuple[str, ...], float]:
    return {labels: value for (n, *labels_), value in found.items() if n == name for labels in [tuple(labels_)]}


def test_the_seeds_check_in_becomes_these_series() -> None:
    found = page(checked_in(said(**SEED["optional_fields"])))
    states = of(found, "roost_agent_supervisor_state")
    assert {labels[0] for labels, value in states.items() if value} == {"running"}
    assert {labels[0] for labels in states} == set(STATES)
    labels = ("d8913d0b2e5438", "", "4c5b6a7", "2026.9.1", "0f1e2d3", "0.1.0")
    assert {k: v for k, v in found.items() if k[0] != "roost_agent_supervisor_state"} == {
        ("roost_agent_info", *labels): 1,
        ("roost_agent_last_checkin_timestamp_seconds",): NOW,
        ("roost_agent_restarts_total",): 7,
        ("roost_agent_last_exit_info", "code:1"): 1,
        ("roost_agent_uptime_seconds",): 86461,
        ("roost_agent_load5",): 0.31,
        ("roost_agent_network_receive_bytes_total",): 71234,
        ("roost_agent_network_transmit_bytes_total",): 88123,
        ("roost_agent_disk_used_bytes",): 2147483648,
        ("roost_agent_disk_total_bytes",): 10737418240,
    }


def test_a_heartbeat_alone_says_most_of_it() -> None:
    found = page(heard(runtime=BEAT["runtime"] | {"lastExit": {"signal": 9, "at": "2026-11-21T10:00:00Z"}}))
    assert {k: v for k, v in found.items() if k[0] != "roost_agent_supervisor_state"} == {
        ("roost_agent_info", "m-1", "iad", "", "2026.9.6", "", "0.2.0"): 1,
        ("roost_agent_up",): 1,
        ("roost_agent_last_heartbeat_timestamp_seconds",): NOW,
        ("roost_agent_restarts_total",): 3,
        ("roost_agent_last_exit_info", "signal:SIGKILL"): 1,
        ("roost_agent_uptime_seconds",): 3600,
        ("roost_agent_disk_used_bytes",): 11,
        ("roost_agent_disk_total_bytes",): 22,
    }
    assert of(found, "roost_agent_supervisor_state")["running",] == 1


def test_of_both_the_heartbeat_is_the_newer_word() -> None:
    both = replace(checked_in(said(uptimeSeconds=1)), beat=beat(), heard_at=NOW)
    found = page(both)
    assert found["roost_agent_uptime_seconds",] == 3600
    assert found["roost_agent_restarts_total",] == 3
    assert found["roost_agent_load5",] == 0.31
    assert ("roost_agent_info", "m-1", "", "4c5b6a7", "2026.9.6", "0f1e2d3", "0.2.0") in found


# --- Counters -------------------------------------------------------------------------------------------------------


def traffic(*checkins: Checkin) -> tuple[float, float]:
    found = page(checked_in(*checkins))
    return found["roost_agent_network_receive_bytes_total",], found["roost_agent_network_transmit_bytes_total",]


def test_deltas_are_added_up() -> None:
    first = said(uptimeSeconds=120, bandwidthBytesIn=100, bandwidthBytesOut=1)
    second = said(uptimeSeconds=420, bandwidthBytesIn=50, bandwidthBytesOut=2)
    after_a_restart = said(uptimeSeconds=5, bandwidthBytesIn=7, bandwidthBytesOut=3)
    assert traffic(first) == (100, 1)
    assert traffic(first, second) == (150, 3)
    assert traffic(first, second, after_a_restart) == (157, 6)


def test_the_same_check_in_heard_twice_counts_once() -> None:
    """As when a proxy sends a request again whose answer it has lost."""
    one = said(uptimeSeconds=120, bandwidthBytesIn=100, bandwidthBytesOut=1)
    assert traffic(one, one, one) == (100, 1)
    assert traffic(one, one, said(uptimeSeconds=420, bandwidthBytesIn=100, bandwidthBytesOut=1)) == (200, 2)


def test_the_same_deltas_of_another_machine_count_anew() -> None:
    one = said(machineId="a", uptimeSeconds=120, bandwidthBytesIn=100, bandwidthBytesOut=1)
    assert traffic(one, one.model_copy(update={"machine_id": "b"})) == (200, 2)


def test_restarts_are_those_since_the_supervisors_start_whatever_was_lost() -> None:
    """They come as a total too, so a lost answer counts nothing twice; a smaller total is a reset to Prometheus."""
    totals = [7, 7, 9, 1]
    seen = [page(checked_in(said(totalRestarts=t, restartsSinceLastCheckin=2))) for t in totals]
    assert [found["roost_agent_restarts_total",] for found in seen] == totals


def test_counters_stay_when_an_agent_falls_silent_and_what_is_true_of_now_goes() -> None:
    silent = replace(checked_in(said(**SEED["optional_fields"])), heard_at=NOW, figures_hold=False)
    assert {name for name, *_ in page(silent)} == {
        "roost_agent_up",
        "roost_agent_last_heartbeat_timestamp_seconds",
        "roost_agent_last_checkin_timestamp_seconds",
        "roost_agent_restarts_total",
        "roost_agent_network_receive_bytes_total",
        "roost_agent_network_transmit_bytes_total",
    }
    assert page(silent)["roost_agent_up",] == 0


# --- What is hostile ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["", "RUNNING", 'x"} 1\nroost_agents{phase="', "x" * 64])
def test_a_state_that_nobody_knows_is_unknown(state: str) -> None:
    found = of(page(checked_in(said(supervisorState=state.replace("\n", " ")))), "roost_agent_supervisor_state")
    assert {labels[0]: value for labels, value in found.items()} == {s: float(s == "unknown") for s in STATES}


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("signal:SIGKILL", "signal:SIGKILL"),
        ("code:137", "code:137"),
        ("code:256", "other"),
        ("signal:SIGNOTHING", "other"),
        ('code:1"} 1', "other"),
        ("x" * 200, "other"),
        ("", None),
    ],
)
def test_how_it_ended_is_one_of_a_closed_list(reason: str, told: str | None) -> None:
    found = of(page(checked_in(said(lastExitReason=reason))), "roost_agent_last_exit_info")
    assert found == ({} if told is None else {(told,): 1})


def test_a_signal_without_a_name_is_other() -> None:
    last = {"signal": 33, "at": "2026-11-21T10:00:00Z"}
    assert of(page(heard(runtime=BEAT["runtime"] | {"lastExit": last})), "roost_agent_last_exit_info") == {
        ("other",): 1
    }


def test_what_is_set_up_is_nobodys_business() -> None:
    """The product telemetry of the seed is understood, and kept nowhere."""
    model = SEED["optional_fields"]["productTelemetry"]["defaultModel"]
    seen = checked_in(said(**SEED["optional_fields"]))
    assert not any(model in str(part) for key in page(seen) for part in key)
    assert model not in str(seen)


def test_only_the_info_series_has_labels_that_an_agent_writes() -> None:
    assert {s.name: s.labels for s in SERIES if s.labels} == {
        "roost_agent_info": (
            "machine_id",
            "region",
            "supervisor_version",
            "supervisor_commit",
            "runtime_version",
            "runtime_commit",
        ),
        "roost_agent_supervisor_state": ("state",),
        "roost_agent_last_exit_info": ("reason",),
    }


# --- The page -------------------------------------------------------------------------------------------------------


async def test_it_is_a_page_of_its_own() -> None:
    metrics = Metrics()
    metrics.watch_agents(lambda: [heard()])
    async with TestServer(probes(metrics, lambda: True, lambda: True)) as server, aiohttp.ClientSession() as web:
        async with web.get(server.make_url("/metrics/agents")) as answer:
            agents = await answer.text()
            assert (answer.status, answer.content_type) == (200, "text/plain")
        async with web.get(server.make_url("/metrics")) as answer:
            own = await answer.text()
    assert 'roost_agent_up{agent="ada",namespace="team-a"} 1.0' in agents
    assert "roost_agents{" not in agents
    assert "roost_agent_up" not in own
    assert "roost_heartbeats" in own


async def test_it_is_not_made_where_heartbeats_are_answered() -> None:
    """Of thousands of agents it takes more than a second, and none of them may wait for that."""
    where: list[int] = []

    def noted() -> list[Seen]:
        where.append(threading.get_ident())
        return []

    metrics = Metrics()
    metrics.watch_agents(noted)
    async with (
        TestServer(probes(metrics, lambda: True, lambda: True)) as server,
        aiohttp.ClientSession() as web,
        web.get(server.make_url("/metrics/agents")) as answer,
    ):
        assert answer.status == 200
    assert where
    assert threading.get_ident() not in where
