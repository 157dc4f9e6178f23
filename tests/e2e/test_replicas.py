"""Two replicas of the operator as real processes: one works, the other serves and takes over.

The agents' machines are told the address of the standby, so that every heartbeat of theirs arrives there first.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from roost.engine.leader import ENDPOINT_ANNOTATION
from roost.local import binaries
from roost.local.stack import Stack
from roost.local.story import Stage

LEASE = "/apis/coordination.k8s.io/v1/namespaces/roost-system/leases/roost"


@dataclass
class Replica:
    """One operator process on an address of its own."""

    address: str
    settings: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def endpoint(self) -> str:
        return f"http://{self.settings['endpoint']['listen']}"

    def probe(self, path: str) -> int:
        try:
            url = f"http://{self.settings['metrics']['listen']}/{path}"
            return httpx.get(url, trust_env=False, timeout=5).status_code
        except httpx.TransportError:
            return 0

    def metric(self, line: str) -> float:
        text = httpx.get(f"http://{self.settings['metrics']['listen']}/metrics", trust_env=False, timeout=5).text
        return next((float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line)), 0.0)


class Pair:
    """A stack without an operator of its own, and replicas on it. `first` is where agents call."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self._folder = stage, folder
        self.replicas: list[Replica] = []

    def start(self, address: str) -> Replica:
        """Starts a replica and waits until it serves."""
        settings = yaml.safe_load(self.stage.stack.layout.settings.read_text())
        for room in ("endpoint", "metrics"):
            port = settings[room]["listen"].rpartition(":")[2]
            settings[room]["listen"] = f"{address}:{port}"
        settings["endpoint"]["publicUrl"] = f"http://127.0.0.2:{settings['endpoint']['listen'].rpartition(':')[2]}"
        file, log = self._folder / f"{address}.yaml", self._folder / f"{address}-{len(self.replicas)}.log"
        file.write_text(yaml.safe_dump(settings))
        recipe = self.stage.stack.operator_recipe()
        with log.open("wb") as output:
            process = subprocess.Popen(
                (*recipe.argv[:-1], str(file)), env={**recipe.env, "HOSTNAME": f"at-{address}"}, stderr=output
            )
        replica = Replica(address, settings, process, log)
        self.replicas.append(replica)
        self.stage.until("it should serve", lambda: replica.probe("readyz") == 200)
        return replica

    def lease(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stage.kubectl("get", "--raw", LEASE))
        return found

    @property
    def leader(self) -> str:
        """The address of the one that holds the Lease."""
        return str(self.lease()["spec"]["holderIdentity"]).partition("_")[0].removeprefix("at-")

    def end(self) -> None:
        for replica in self.replicas:
            if replica.process.poll() is None:
                replica.process.kill()
                replica.process.wait()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """127.0.0.1 leads, 127.0.0.2 stands by, and ada runs."""
    with Stack(tmp_path_factory.mktemp("roost-replicas"), operator=False, say=print) as stack:
        pair = Pair(Stage(stack, binaries.find(say=print).kubectl, print), tmp_path_factory.mktemp("replicas"))
        try:
            pair.start("127.0.0.1")
            pair.stage.until("it should lead", lambda: pair.leader == "127.0.0.1")
            pair.start("127.0.0.2")
            apply(pair, "ada")
            pair.stage.ready("agents", "ada")
            yield pair
        finally:
            pair.end()


def apply(pair: Pair, name: str, **spec: Any) -> None:
    command = ["sh", "-c", "echo start >> starts.txt; exec sleep 1000"]
    defaults = {"runtime": {"kind": "Command", "command": command}, "heartbeat": {"intervalSeconds": 5}}
    metadata = {"name": name, "namespace": "default"}
    body = {"apiVersion": "roost.dev/v1alpha1", "kind": "Agent", "metadata": metadata, "spec": defaults | spec}
    pair.stage.kubectl("apply", "-f", "-", given=body)


def writers(pair: Pair, since: float) -> dict[str, set[str]]:
    """What each replica wrote to Kubernetes and asked Fly to change, by the address in its name."""
    found: dict[str, set[str]] = {}
    for line in pair.stage.stack.audit_path.read_text().splitlines():
        entry = json.loads(line)
        agent, at = entry.get("userAgent", ""), entry["requestReceivedTimestamp"]
        if "(at-" in agent and at >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since)):
            found.setdefault(agent.partition("(at-")[2].partition("_")[0], set()).add(entry["objectRef"]["resource"])
    for line in pair.stage.stack.ledger_path.read_text().splitlines():
        call = json.loads(line)
        if call["kind"] == "call" and "(at-" in call["agent"] and call["at"] >= since and call["method"] != "GET":
            found.setdefault(call["agent"].partition("(at-")[2].partition("_")[0], set()).add(call["op"])
    return found


def test_the_standby_serves_and_writes_nothing(pair: Pair) -> None:
    """ada's machine knows the standby alone: that she is Ready means that all she asked and said went that way."""
    leader, standby = pair.replicas
    assert (leader.metric("leader_election_master_status"), standby.metric("leader_election_master_status")) == (1, 0)
    assert pair.lease()["metadata"]["annotations"][ENDPOINT_ANNOTATION] == leader.endpoint
    assert standby.metric('roost_bundles_total{code="200"}') >= 1
    heartbeats = 'roost_heartbeats_total{code="200"}'  # the first one may be held open still
    pair.stage.until("a heartbeat should be answered", lambda: standby.metric(heartbeats) >= 1)
    wrote = writers(pair, 0.0)
    assert {"agents", "create_machine"} <= wrote["127.0.0.1"]
    assert wrote["127.0.0.2"] == {"selfsubjectaccessreviews"}
    assert standby.metric("workqueue_depth") == 0


def test_a_command_reaches_an_agent_through_the_standby(pair: Pair) -> None:
    before = pair.stage.machine("ada")
    pair.stage.patch("agents", "ada", {"spec": {"restartedAt": "2026-11-21T10:00:00Z"}})
    pair.stage.until("it should be restarted", lambda: before.wrote("starts.txt") == ["start", "start"])
    pair.stage.ready("agents", "ada")
    assert pair.stage.machine("ada").pid == before.pid  # the runtime was, not the machine


def test_a_leader_that_ends_in_order_is_followed_within_two_seconds_and_nobody_is_restarted(pair: Pair) -> None:
    leader, standby = pair.replicas
    before, since = pair.stage.machine("ada"), time.time()
    leader.process.terminate()
    assert leader.process.wait(20) == 0
    ended = time.monotonic()
    apply(pair, "bea")
    pair.stage.until("the standby should lead", lambda: pair.leader == standby.address)
    pair.stage.until("it should act", lambda: pair.stage.get("agents", "bea")["metadata"].get("finalizers"))
    assert time.monotonic() - ended < 3
    pair.stage.ready("agents", "bea")
    after = pair.stage.machine("ada")
    assert (after.id, after.pid, after.wrote("starts.txt")) == (before.id, before.pid, before.wrote("starts.txt"))
    assert not {"update_machine", "restart_machine", "destroy_machine"} & writers(pair, since)[standby.address]


def test_a_leader_that_is_stopped_past_its_lease_does_nothing_more_when_it_goes_on(pair: Pair) -> None:
    standby, leader = pair.start("127.0.0.1"), pair.replicas[1]
    os.kill(leader.process.pid, signal.SIGSTOP)
    apply(pair, "cid")
    pair.stage.until("another should lead", lambda: pair.leader == standby.address)
    pair.stage.until("it should act", lambda: pair.stage.get("agents", "cid")["metadata"].get("finalizers"), 2)
    since = time.time()
    os.kill(leader.process.pid, signal.SIGCONT)
    assert leader.process.wait(20) == 1
    assert "it ends, to come back as a standby" in leader.log.read_text()
    assert writers(pair, since).get(leader.address, set()) <= {"leases"}  # a renewal, which was refused
    # Agents know the address of 127.0.0.2 alone: it comes back, as the standby.
    pair.start("127.0.0.2")
    pair.stage.ready("agents", "cid")
    assert pair.leader == standby.address
