"""Many Agents, and everything happens to them at random, for minutes: `make soak` (MINUTES=10 AGENTS=50 SEED=…).

A real API server, a simulated Fly over HTTP with real processes as machines, and the operator as a real process. People
create, edit, stop, delete and apply again; secrets rotate; machines are killed, stopped and destroyed by hand; hosts
die and return; Fly fails; the API server stands still; the operator is killed and ended. What must hold is read from
Fly's ledger and the API server's audit log every half minute and at the end, when nothing fails any more: all that is
wanted becomes Ready, all that is deleted leaves nothing.

The operator's memory and open files are judged life by life, each after its warm-up, by the slope of a line through all
samples. It is killed in the first half only, so that one life lasts for the whole second half: `rss_start_mb` and
`rss_end_mb` are that line's ends in the longest life. A seed decides what happens and how far apart; what is under way
meanwhile, and so whom it happens to, is up to the machine.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml

from roost.local.evidence import Write, read_audit, read_ledger
from roost.local.stack import Stack
from roost.local.verify_figures import GROUP, OPERATOR, verify

NAMESPACE, FLEET = "default", "crew"
HOSTS = 6
PAUSE_SECONDS = 0.7
"""Between two things that happen, on average."""
LOOK_SECONDS, CHECK_SECONDS, ROW_SECONDS = 2.0, 30.0, 10.0
PATIENCE_SECONDS = 420.0
"""To converge at the end: more than the longest back-off."""
WARM_UP_SECONDS, JUDGED_SECONDS = 60.0, 120.0
RSS_GROWTH_MB, FDS_GROWTH = 12.0, 64.0
"""What a life may grow by, along its line: noise of an allocator, and the pool of connections to Kubernetes."""


# --- What must hold ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Life:
    """One life of the operator's process: samples of seconds since its start, MB of memory, open files less callers."""

    pid: int
    began: float
    samples: list[tuple[float, float, int]] = field(default_factory=list)

    def line(self, number: int) -> tuple[float, float] | None:
        """Where a straight line through the samples after the warm-up begins and ends; None when there are too few.

        `number` 1 is memory, 2 open files.
        """
        kept = [sample for sample in self.samples if sample[0] >= WARM_UP_SECONDS]
        if len(kept) < 10 or kept[-1][0] - kept[0][0] < JUDGED_SECONDS:
            return None
        slope, at_zero = linear_regression([s[0] for s in kept], [float(s[number]) for s in kept])
        return at_zero + slope * kept[0][0], at_zero + slope * kept[-1][0]


def growth(lives: Iterable[Life]) -> list[str]:
    """A sentence for each life that grew more than it may."""
    found = []
    for life in lives:
        for number, what, most in ((1, "MB of memory", RSS_GROWTH_MB), (2, "open files", FDS_GROWTH)):
            ends = life.line(number)
            if ends is not None and ends[1] - ends[0] > most:
                found.append(f"the operator (pid {life.pid}) grew from {ends[0]:.0f} to {ends[1]:.0f} {what}")
    return found


def spec_writes(writes: Iterable[Write], fleet: str) -> list[str]:
    """A sentence for each write of the operator to a spec; its members are the Fleet's own to write."""
    return [
        f"the operator wrote the spec of {write.resource} {write.namespace}/{write.name}"
        for write in writes
        if write.user == OPERATOR
        and write.ok
        and write.group == GROUP
        and "spec" in write.body
        and not write.subresource
        and not (write.resource == "agents" and (write.name or fleet).startswith(fleet))
    ]


# --- The run -----------------------------------------------------------------------------------------------------


class Soak:
    """One run: the stack, what people want, what was done, what was found."""

    def __init__(self, stack: Stack, seconds: float, agents: int, rng: random.Random) -> None:
        self._stack, self._seconds, self._rng = stack, seconds, rng
        self._names = [f"a{number:02d}" for number in range(agents)]
        self._began = time.monotonic()
        self._again: set[str] = set()
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._secret = self._rows = 0
        self.did: Counter[str] = Counter()
        self.lives: list[Life] = []
        self.violations: list[str] = []
        self._kube = stack.api(timeout=10)
        headers = {"Authorization": f"Bearer {stack.fly_token}", "User-Agent": "somebody"}
        self._fly = httpx.Client(base_url=stack.fly_url, headers=headers, timeout=30, trust_env=False)

    def run(self) -> None:
        """All of it. What is wrong is in `violations` afterwards."""
        self._prepare()
        looked = checked = told = 0.0
        while (now := self._now()) < self._seconds:
            self._happen(now)
            if now - looked >= LOOK_SECONDS:
                looked = now
                self._look_at_operator()
            if now - checked >= CHECK_SECONDS:
                checked = now
                self._check(at_end=False)
            if now - told >= ROW_SECONDS:
                told = now
                self._tell()
            time.sleep(self._rng.expovariate(1 / PAUSE_SECONDS))
        self._calm()
        self._until("all that is wanted should be Ready", lambda: not self._unready(), self._unready)
        self._delete_all()
        self._until("all that is deleted should be gone", lambda: not self._left(), self._left)
        self._check(at_end=True)
        self._note(growth(self.lives))

    # What people and clouds do

    def _prepare(self) -> None:
        self._post("/_sim/hosts", {"region": "iad", "hosts": [{}] * HOSTS})
        self._rotate()
        source = {"source": {"secretRef": {"name": "key-v"}}}
        self._create("secrets", {"metadata": {"name": "key"}, "spec": source})
        template = self._spec() | {"env": []}
        self._create("fleets", {"metadata": {"name": FLEET}, "spec": {"replicas": 2, "template": {"spec": template}}})
        for name in self._names:
            self._apply(name)

    def _happen(self, now: float) -> None:
        for at, back in [due for due in self._due if due[0] <= now]:
            self._due.remove((at, back))
            back()
        for name in sorted(self._again):
            self._apply_again(name)
        ways = {
            self._edit: 8,
            self._stop_or_start: 6,
            self._delete: 5,
            self._delete_and_apply: 3,
            self._apply_missing: 9,
            self._rotate: 1,
            self._scale: 1,
            self._kill_machine: 5,
            self._stop_machine: 3,
            self._destroy_machine: 3,
            self._host_dies: 1,
            self._fly_fails: 4,
            self._api_server_stands: 0.4,
        }
        if now < self._seconds / 2:
            ways |= {self._operator_killed: 0.6, self._operator_ended: 0.4}
        (way,) = self._rng.choices(list(ways), list(ways.values()))
        try:
            way()
        except (httpx.TransportError, httpx.HTTPStatusError, IndexError):
            return  # nobody is there to do it to, or the API server stands still
        self.did[way.__name__.strip("_")] += 1

    def _spec(self) -> dict[str, Any]:
        rng = self._rng
        secret = [{"name": "KEY", "valueFrom": {"name": "key", "key": "k"}}] if rng.random() < 0.3 else []
        return {
            "runtime": {"kind": "Command", "command": ["sh", "-c", "exec sleep 100000"]},
            "heartbeat": {"intervalSeconds": 10},
            "env": [{"name": "N", "value": str(rng.randrange(1000))}, *secret],
            "machine": {"public": rng.choice(["None", "None", "Gateway"])},
        }

    def _apply(self, name: str) -> None:
        self._create("agents", {"metadata": {"name": name}, "spec": self._spec()})

    def _apply_missing(self) -> None:
        there = {body["metadata"]["name"] for body in self._list("agents")}
        self._apply(self._rng.choice([name for name in self._names if name not in there]))

    def _wanted(self) -> str:
        """Any Agent that is not being deleted, and no Fleet's."""
        found = {o["metadata"]["name"] for o in self._list("agents") if "deletionTimestamp" not in o["metadata"]}
        return self._rng.choice([name for name in self._names if name in found])

    def _edit(self) -> None:
        rng = self._rng
        change = rng.choice(
            [
                {"env": [{"name": "N", "value": str(rng.randrange(1000))}]},
                {"machine": {"memoryMb": rng.choice([512, 1024, 2048])}},
                {"machine": {"public": rng.choice(["None", "Gateway"])}},
                {"volume": {"sizeGb": rng.choice([1, 2, 3])}},
            ]
        )
        self._merge("agents", self._wanted(), {"spec": change})

    def _stop_or_start(self) -> None:
        state = self._rng.choice(["Stopped", "Running", "Running", "Suspended"])
        self._merge("agents", self._wanted(), {"spec": {"desiredState": state}})

    def _delete(self) -> None:
        self._kube.delete(_path("agents", self._wanted())).raise_for_status()

    def _delete_and_apply(self) -> None:
        """Applied again as soon as it is gone; until then the API server refuses it, and people try on."""
        name = self._wanted()
        self._kube.delete(_path("agents", name)).raise_for_status()
        self._again.add(name)
        self._apply_again(name)

    def _apply_again(self, name: str) -> None:
        try:
            self._apply(name)
        except httpx.TransportError:
            return
        except httpx.HTTPStatusError as refused:
            body = self._kube.get(_path("agents", name)).json()
            if refused.response.status_code != 409 or "deletionTimestamp" in body.get("metadata", {}):
                return
        self._again.discard(name)

    def _rotate(self) -> None:
        self._secret += 1
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key-v"}}
        path = f"/api/v1/namespaces/{NAMESPACE}/secrets/key-v"
        query, headers = {"fieldManager": "soak"}, {"Content-Type": "application/apply-patch+yaml"}
        body |= {"stringData": {"k": f"value-{self._secret}"}}
        self._kube.patch(path, params=query, headers=headers, content=json.dumps(body)).raise_for_status()

    def _scale(self) -> None:
        self._merge("fleets", FLEET, {"spec": {"replicas": self._rng.randrange(5)}})

    def _machine(self, *states: str) -> str:
        machines = self._fly.get("/_sim/machines").json()
        return str(self._rng.choice([m["id"] for m in machines if m["state"] in states]))

    def _kill_machine(self) -> None:
        self._post(f"/_sim/machines/{self._machine('started')}/kill", {"signal": 9})

    def _stop_machine(self) -> None:
        machines = [m for m in self._fly.get("/_sim/machines").json() if m["state"] == "started"]
        machine = self._rng.choice(machines)
        self._post(f"/v1/apps/{machine['app']}/machines/{machine['id']}/stop", {})

    def _destroy_machine(self) -> None:
        self._fly.delete(f"/_sim/machines/{self._machine('started', 'stopped')}").raise_for_status()

    def _host_dies(self) -> None:
        host = self._rng.choice([h["id"] for h in self._fly.get("/_sim/hosts").json() if h["status"] == "ok"])
        self._post(f"/_sim/hosts/{host}", {"status": "dead"})
        back = self._now() + self._rng.uniform(2, 25)
        self._due.append((back, lambda: self._post(f"/_sim/hosts/{host}", {"status": "ok"})))

    def _fly_fails(self) -> None:
        rng = self._rng
        where = rng.choice(["before", "before", "after"])
        status = rng.choice([500, 502, 503, 504, 429, 408] if where == "before" else [500, 502, 504])
        op = rng.choice(["*", "create_*", "delete_*", "*_machine", "*_volume*", "get_*", "org_machines", "set_secrets"])
        order = {"op": op, "where": where, "status": status, "chance": rng.uniform(0.1, 0.6)}
        order |= {"times": rng.randrange(1, 20), "match": {"agent": "roost/*"}}
        fault = self._post("/_sim/faults", order)["id"]
        self._due.append((self._now() + rng.uniform(1, 15), lambda: self._forget(fault)))

    def _forget(self, fault: str) -> None:
        self._fly.delete(f"/_sim/faults/{fault}")

    def _api_server_stands(self) -> None:
        """As when it is overloaded: shorter than the Lease may go without renewal."""
        self._stack.kill("kube-apiserver", signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 2.5))
        self._stack.kill("kube-apiserver", signal.SIGCONT)

    def _operator_killed(self) -> None:
        self._stack.kill("operator", signal.SIGKILL)
        self._stack.restart("operator")

    def _operator_ended(self) -> None:
        self._stack.restart("operator")

    # What is looked at

    def _look_at_operator(self) -> None:
        """One sample; and one that has ended by itself is started again, as a kubelet would."""
        row = next(row for row in self._stack.status() if row.name == "operator")
        if not row.running:
            self.did["operator_ended_by_itself"] += 1
            self._stack.restart("operator")
            return
        if not self.lives or self.lives[-1].pid != row.pid:
            self.lives.append(Life(row.pid, self._now()))
        try:
            process = psutil.Process(row.pid)
            sample = process.memory_info().rss / 2**20, process.num_fds() - self._callers(process)
        except psutil.Error:
            return
        self.lives[-1].samples.append((self._now() - self.lives[-1].began, *sample))

    def _callers(self, process: psutil.Process) -> int:
        """Connections of agents: each that runs holds one open for its heartbeat, so they grow with those that run."""
        port = urlsplit(self._stack.endpoint_url).port
        return sum(c.laddr.port == port and c.status == "ESTABLISHED" for c in process.net_connections("tcp"))

    def _check(self, *, at_end: bool) -> None:
        """Every violation on record, once. That something is left over can be told at the end only."""
        writes = read_audit(sorted(self._stack.audit_path.parent.glob("audit*.jsonl")))
        report = verify(read_ledger(self._stack.ledger_path), writes)
        self._note(report.doubles)
        self._note(report.overlaps)
        self._note(report.order_violations)
        self._note(spec_writes(writes, FLEET))
        if at_end:
            self._note(report.orphans)

    def _note(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            if sentence not in self.violations:
                self.violations.append(sentence)
                print(f"  ✗ {self._now():5.0f} s  {sentence}", flush=True)

    def _tell(self) -> None:
        if self._rows % 20 == 0:
            print(f"  {'time':>7} {'Agents':>7} {'Ready':>6} {'happened':>9} {'MB':>6} {'files':>6} {'violations':>11}")
        self._rows += 1
        _, rss, files = self.lives[-1].samples[-1] if self.lives and self.lives[-1].samples else (0.0, 0.0, 0)
        there = self._list("agents")
        ready, happened = sum(map(_ready, there)), sum(self.did.values())
        row = f"{len(there):>7} {ready:>6} {happened:>9} {rss:>6.0f} {files:>6} {len(self.violations):>11}"
        print(f"  {self._now():>6.0f}s {row}", flush=True)

    def _unready(self) -> list[str]:
        """Agents and the Fleet that are not Ready as they are declared; those that are being deleted never are."""
        return [o["metadata"]["name"] for kind in ("agents", "fleets") for o in self._list(kind) if not _ready(o)]

    def _left(self) -> list[str]:
        """What is left of what was deleted, in Kubernetes and at Fly."""
        state = self._fly.get("/_sim/state").json()
        objects = [o["metadata"]["name"] for kind in ("agents", "fleets") for o in self._list(kind)]
        machines = [m["id"] for m in state["machines"] if m["state"] != "destroyed"]
        volumes = [v["id"] for v in state["volumes"] if "destroy" not in v["state"]]
        return [*objects, *machines, *volumes, *(app["name"] for app in state["apps"])]

    def _until(self, what: str, holds: Callable[[], object], found: Callable[[], list[str]]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        began, looked = self._now(), 0.0
        while not holds():
            if time.monotonic() > deadline:
                said = {o["metadata"]["name"]: o.get("status", {}).get("nextAction") for o in self._list("agents")}
                self._note([f"{what}, and after {PATIENCE_SECONDS:.0f} s not: {n}: {said.get(n)}" for n in found()])
                return
            if self._now() - looked >= LOOK_SECONDS:
                looked = self._now()
                self._look_at_operator()
            time.sleep(0.5)
        print(f"  ✓ {what}: {self._now() - began:.0f} s", flush=True)

    # The end

    def _calm(self) -> None:
        """Nothing fails any more, and all hosts are back."""
        for _, back in self._due:
            back()
        self._again.clear()
        self._fly.delete("/_sim/faults")
        self._tell()

    def _delete_all(self) -> None:
        for kind in ("fleets", "agents"):
            self._kube.delete(_path(kind)).raise_for_status()

    # Small pieces

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _create(self, kind: str, body: dict[str, Any]) -> None:
        names = {"agents": "Agent", "fleets": "Fleet", "secrets": "Secret"}
        whole = {"apiVersion": f"{GROUP}/v1alpha1", "kind": names[kind], **body}
        self._kube.post(_path(kind), json=whole).raise_for_status()

    def _merge(self, kind: str, name: str, change: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        self._kube.patch(_path(kind, name), headers=headers, content=json.dumps(change)).raise_for_status()

    def _list(self, kind: str) -> Sequence[dict[str, Any]]:
        items: list[dict[str, Any]] = self._kube.get(_path(kind)).raise_for_status().json()["items"]
        return items

    def _post(self, path: str, body: Any) -> Any:
        return self._fly.post(path, json=body).raise_for_status().json()


def _path(kind: str, name: str = "") -> str:
    path = f"/apis/{GROUP}/v1alpha1/namespaces/{NAMESPACE}/{kind}"
    return f"{path}/{name}" if name else path


def _ready(body: dict[str, Any]) -> bool:
    if "deletionTimestamp" in body["metadata"]:
        return False
    status = body.get("status", {})
    true = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    return true and status.get("observedGeneration") == body["metadata"]["generation"]


def main(argv: Sequence[str] | None = None) -> int:
    """Brings a stack up and runs; 1 when anything was violated."""
    parser = argparse.ArgumentParser(description="Everything at random, for minutes")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--dir", type=Path, help="where logs, ledger and audit log stay (default: a temporary one)")
    arguments = parser.parse_args(argv)
    home = arguments.dir or Path(tempfile.mkdtemp(prefix="roost-soak-"))
    print(f"make soak MINUTES={arguments.minutes:g} AGENTS={arguments.agents} SEED={arguments.seed}; logs in {home}")
    with Stack(home, say=print) as stack:
        settings = yaml.safe_load(stack.layout.settings.read_text())
        settings["leaderElection"] = {"leaseSeconds": 6, "renewSeconds": 4, "retrySeconds": 1}
        stack.layout.settings.write_text(yaml.safe_dump(settings))
        stack.restart("operator")
        soak = Soak(stack, arguments.minutes * 60, arguments.agents, random.Random(arguments.seed))
        soak.run()
    longest = max(soak.lives, key=lambda life: len(life.samples))
    for life in soak.lives:
        print(f"  operator pid {life.pid}: {len(life.samples)} samples, MB {life.line(1)}, open files {life.line(2)}")
    rss, files = longest.line(1) or longest.samples[-1][1:2] * 2, longest.line(2) or longest.samples[-1][2:3] * 2
    figures = {
        "minutes": arguments.minutes,
        "agents": arguments.agents,
        "violations": len(soak.violations),
        "rss_start_mb": round(rss[0], 1),
        "rss_end_mb": round(rss[1], 1),
        "files_start": round(files[0]),
        "files_end": round(files[1]),
        "operator_lives": len(soak.lives),
        "happened": dict(soak.did),
        "seed": arguments.seed,
    }
    print(json.dumps(figures), flush=True)
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())
