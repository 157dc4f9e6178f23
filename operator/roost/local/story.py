"""The story of an agent, from outside: what a person does with kubectl, told step by step on a running stack.

    python -m roost.local.story            brings a stack up, applies the sample and stays to be played with
    python -m roost.local.story --once     plays the whole story and ends with one JSON line
    … --openclaw                           the same for a real OpenClaw, as `openclaw_story` tells it

Everything is asked of the API server by kubectl and of the simulated Fly by HTTP; the operator's word counts only where
a person would read it (status, conditions). The figures come from `verify_figures`, which believes the ledger and the
audit log alone.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from roost.local import binaries, openclaw
from roost.local.evidence import read_audit, read_ledger
from roost.local.stack import Stack, default_dir, manifests_dir
from roost.local.verify_figures import Report, Window, verify

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
IDLE_SECONDS = 120.0
_POLL_SECONDS = 0.1


class Broken(Exception):
    """The story did not go on as it should; the message says what was expected and what was seen."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine as the simulator shows it."""

    id: str
    app: str
    name: str
    state: str
    pid: int | None
    address: str
    log: Path
    volume: Path | None

    def wrote(self, name: str) -> list[str]:
        """The lines of a file on its volume."""
        path = self.volume / name if self.volume else None
        return path.read_text().splitlines() if path is not None and path.exists() else []


@dataclass(slots=True)
class Stage:
    """A running stack, and the hands that a person has on it."""

    stack: Stack
    kubectl_path: Path
    say: Callable[[str], None]
    steps: dict[str, float] = field(default_factory=dict)
    rss_mb: float = 0.0

    @contextmanager
    def step(self, name: str, says: str) -> Iterator[None]:
        """One step of the story: told and timed."""
        began = time.monotonic()
        self.say(f"  … {says}")
        yield
        self.steps[name] = round(time.monotonic() - began, 2)
        self.say(f"  ✓ {says}  ({self.steps[name]:.1f} s)")
        rss = next((row.rss for row in self.stack.status() if row.name == "operator"), None)
        self.rss_mb = max(self.rss_mb, (rss or 0) / 2**20)

    def kubectl(self, *arguments: str, given: Any = None, fails: bool = False) -> str:
        """Runs kubectl; `given` goes to its standard input as JSON. Answers what it printed, errors included."""
        done = subprocess.run(
            [self.kubectl_path, *arguments],
            input=None if given is None else json.dumps(given),
            env={**os.environ, "KUBECONFIG": str(self.stack.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS * 2,
            check=False,
        )
        if (done.returncode != 0) is not fails:
            raise Broken(f"kubectl {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def roost(self, *arguments: str) -> str:
        """Runs our own command line, as a person with this kubeconfig would. Answers what it printed."""
        argv = [sys.executable, "-m", "roost.cli", *arguments, "--kubeconfig", str(self.stack.kubeconfig)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        if done.returncode:
            raise Broken(f"roost {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object, or an empty one when it is not there."""
        text = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def patch(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def until(self, what: str, look: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
        """Looks until it is so, with a deadline."""
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found:
                return found
            if time.monotonic() > deadline:
                raise Broken(f"waited {seconds:.0f} s: {what}\n{self.scene()}")
            time.sleep(_POLL_SECONDS)

    def ready(self, kind: str, name: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Waits until the object, as it is declared now, is Ready."""
        return self.until(f"{kind} {name} should be Ready", lambda: self.is_ready(kind, name), seconds)

    def is_ready(self, kind: str, name: str) -> dict[str, Any] | None:
        found = self.get(kind, name)
        status = found.get("status", {})
        fresh = status.get("observedGeneration") == found.get("metadata", {}).get("generation")
        true = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
        return found if found and fresh and true else None

    def fly(self, method: str, path: str, body: Any = None) -> Any:
        """A call to the simulated Fly, as a person with flyctl would make it."""
        headers = {"Authorization": f"Bearer {self.stack.fly_token}", "User-Agent": "a person"}
        answer = httpx.request(method, self.stack.fly_url + path, json=body, headers=headers, timeout=10)
        if answer.status_code >= 300:
            raise Broken(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def machines(self) -> list[Machine]:
        """All machines that live."""
        return [
            Machine(
                m["id"],
                m["app"],
                m["name"],
                m["state"],
                m["pid"],
                m["address"],
                Path(m["log"]),
                Path(m["volume_dir"]) if m["volume_dir"] else None,
            )
            for m in self.fly("GET", "/_sim/machines")
            if m["state"] != "destroyed"
        ]

    def machine(self, agent: str) -> Machine:
        """The one machine of an Agent."""
        app = self.get("agents", agent)["status"]["app"]["name"]
        found = [m for m in self.machines() if m.app == app]
        if len(found) != 1:
            raise Broken(f"Agent {agent} should have one machine, not {len(found)}\n{self.scene()}")
        return found[0]

    def scene(self) -> str:
        """What a person would look at when something is wrong."""
        parts = [self.kubectl("get", "agents,fleets,secrets.roost.dev", "-A", "-o", "wide")]
        log = self.stack.log_path("operator")
        if log.exists():
            parts.append("operator, last lines:\n" + "\n".join(log.read_text().splitlines()[-25:]))
        return "\n".join(parts)


def tell(stage: Stage, idle_seconds: float = IDLE_SECONDS) -> dict[str, Any]:
    """Plays the whole story; answers its figures.

    Raises:
        Broken: a step did not come true.
    """
    for part in (_begins, _changes, _breaks, _rests, _is_refused, _secret_changes, _operator_dies, _fleet, _short_life):
        part(stage)
    window = _idle(stage, idle_seconds)
    _ends(stage)
    return _figures(stage, window)


def _begins(stage: Stage) -> None:
    with stage.step("apply", "kubectl apply -f agent.yaml: the Agent becomes Ready"):
        stage.kubectl("apply", "-f", str(_sample("agent.yaml")))
        stage.ready("agents", "ada")
        _expect(stage.machine("ada").wrote("hello.txt"), ["Hello from Ada"], "the process wrote a file on its volume")


def _changes(stage: Stage) -> None:
    with stage.step("env", "env is edited: same machine, the runtime starts again once with the new value"):
        before = stage.machine("ada")
        stage.patch("agents", "ada", {"spec": {"env": [{"name": "GREETING", "value": "Hello again"}]}})
        stage.ready("agents", "ada")
        after = stage.machine("ada")
        _expect((after.id, after.pid), (before.id, before.pid), "the machine was not touched")
        _expect(after.wrote("hello.txt"), ["Hello from Ada", "Hello again"], "it started again once")
    with stage.step("memory", "memoryMb is edited: the machine is updated, the volume stays"):
        volume = stage.get("agents", "ada")["status"]["volume"]["id"]
        stage.patch("agents", "ada", {"spec": {"machine": {"memoryMb": 2048}}})
        ada = stage.ready("agents", "ada")
        _expect(ada["status"]["volume"]["id"], volume, "the volume is the same")
        _expect(ada["status"]["machine"]["id"], before.id, "the machine is the same")
        config = stage.fly("GET", f"/v1/apps/{before.app}/machines/{before.id}")["config"]
        _expect(config["guest"]["memory_mb"], 2048, "Fly was told")
        _expect(stage.machine("ada").wrote("hello.txt")[:2], ["Hello from Ada", "Hello again"], "its file is there")


def _breaks(stage: Stage) -> None:
    with stage.step("kill", "the machine's process is killed: it comes back by itself"):
        before = stage.machine("ada")
        stage.fly("POST", f"/_sim/machines/{before.id}/kill", {"signal": 9})
        stage.until("the process should be another", lambda: _other_process(stage, before))
        stage.ready("agents", "ada")
    with stage.step("destroyed", "the machine is destroyed behind our back: made again on the same volume"):
        before = stage.machine("ada")
        volume = stage.get("agents", "ada")["status"]["volume"]["id"]
        stage.fly("DELETE", f"/v1/apps/{before.app}/machines/{before.id}?force=true")
        stage.until("there should be another machine", lambda: _other_machine(stage, before))
        ada = stage.ready("agents", "ada")
        _expect(ada["status"]["volume"]["id"], volume, "the volume is the same")
        _expect(stage.machine("ada").wrote("hello.txt")[0], "Hello from Ada", "its file is there")


def _rests(stage: Stage) -> None:
    with stage.step("stopped", "desiredState: Stopped: it stops, and is Ready for what it is"):
        stage.patch("agents", "ada", {"spec": {"desiredState": "Stopped"}})
        ada = stage.ready("agents", "ada")
        _expect((ada["status"]["phase"], stage.machine("ada").state), ("Stopped", "stopped"), "it is stopped")
    with stage.step("running", "desiredState: Running: it runs again"):
        stage.patch("agents", "ada", {"spec": {"desiredState": "Running"}})
        _expect(stage.ready("agents", "ada")["status"]["phase"], "Running", "it runs")


def _is_refused(stage: Stage) -> None:
    with stage.step("refused", "an invalid spec is refused with a sentence"):
        bad = _named("bad")
        bad["spec"]["runtime"]["command"] = []
        said = stage.kubectl("apply", "-f", "-", given=bad, fails=True)
        if "command" not in said:
            raise Broken(f"the refusal should name the field:\n{said}")


def _secret_changes(stage: Stage) -> None:
    with stage.step("secret", "a core Secret changes: the agent that uses it starts again with the new value"):
        stage.kubectl("apply", "-f", str(_sample("agent-secret.yaml")))
        stage.ready("agents", "grace")
        before = stage.machine("grace")
        _expect(before.wrote(".config/anthropic.key"), ["replace-me"], "the file holds the value")
        stage.patch("secret", "anthropic-v1", {"stringData": {"ANTHROPIC_API_KEY": "another-key"}})
        stage.until(
            "the file should hold the new value",
            lambda: stage.machine("grace").wrote(".config/anthropic.key") == ["another-key"],
        )
        stage.ready("agents", "grace")
        after = stage.machine("grace")
        _expect((after.id, after.pid), (before.id, before.pid), "the machine was not touched")
        starts = sum("the key has" in line for line in after.log.read_text().splitlines())
        _expect(starts, 2, "it started again once")


def _operator_dies(stage: Stage) -> None:
    with stage.step("operator_killed", "the operator is killed in the middle of a create: one machine all the same"):
        stage.fly("POST", "/_sim/faults", {"op": "create_machine", "where": "before", "delay": 1.5, "times": 1})
        began = len(_ledger(stage))
        stage.kubectl("apply", "-f", "-", given=_named("bob"))
        stage.until("a create should be on its way", lambda: _begun(stage, began, "create_machine"))
        stage.stack.kill("operator", signal.SIGKILL)
        stage.stack.restart("operator")
        stage.ready("agents", "bob")
        app = stage.machine("bob").app
        made = [e for e in _ledger(stage) if e.get("event") == "machine_created" and e.get("app") == app]
        _expect(len(made), 1, "machines that were ever made for bob")


def _fleet(stage: Stage) -> None:
    with stage.step("fleet", "a Fleet of 3 becomes Ready"):
        stage.kubectl("apply", "-f", str(_sample("fleet.yaml")))
        stage.ready("fleets", "support")
    with stage.step("scale_up", "kubectl scale --replicas=5"):
        stage.kubectl("scale", "fleets/support", "--replicas=5")
        _expect(stage.ready("fleets", "support")["status"]["readyReplicas"], 5, "members that are ready")
    with stage.step("scale_down", "kubectl scale --replicas=2: the highest ordinals go, one after the other"):
        stage.kubectl("scale", "fleets/support", "--replicas=2")
        stage.ready("fleets", "support", PATIENCE_SECONDS * 2)
        _expect(_members(stage), ["support-0", "support-1"], "members that are left")
        gone = [e["app"] for e in _ledger(stage) if e.get("event") == "app_destroyed" and "support-" in e["app"]]
        _expect([app.split("-")[2] for app in gone], ["4", "3", "2"], "ordinals in the order in which they went")
    with stage.step("rollout", "its template changes: one member after the other gets it"):
        stage.patch("fleets", "support", {"spec": {"template": {"spec": {"machine": {"memoryMb": 2048}}}}})
        worst = _roll(stage)
        _expect(worst <= 1, True, f"at most one member is away at a time (seen: {worst})")


def _roll(stage: Stage) -> int:
    """Waits for a rollout and answers how many members were not Ready at once, at worst."""
    worst = 0

    def look() -> bool:
        nonlocal worst
        status = stage.get("fleets", "support").get("status", {})
        worst = max(worst, status.get("unavailableReplicas", 0))
        return status.get("updatedReplicas") == 2 and stage.is_ready("fleets", "support") is not None

    stage.until("both members should be rolled", look, PATIENCE_SECONDS * 2)
    return worst


def _short_life(stage: Stage) -> None:
    with stage.step("short_life", "an Agent that is only applied and deleted"):
        stage.kubectl("apply", "-f", "-", given=_named("carl"))
        stage.ready("agents", "carl")
        stage.kubectl("delete", "agents", "carl", "--timeout=60s")


def _idle(stage: Stage, seconds: float) -> Window:
    with stage.step("idle", f"{seconds:.0f} s in which nobody does anything"):
        since = time.time()
        time.sleep(seconds)
        window = Window(since, time.time())
        (stage.stack.layout.logs / "idle-window").write_text(f"{window.since} {window.until}\n")
        return window


def _ends(stage: Stage) -> None:
    with stage.step("delete", "everything is deleted: machine, volume, app, and only then the resource"):
        stage.kubectl("delete", "fleets,agents,secrets.roost.dev", "--all", "--timeout=120s")
        _expect(stage.machines(), [], "machines that are left")
        _expect(stage.kubectl("get", "agents,fleets", "-o", "name").strip(), "", "resources that are left")


def _figures(stage: Stage, window: Window) -> dict[str, Any]:
    """The JSON line. Everything but the memory and the seconds is computed from the ledger and the audit log."""
    report: Report = verify(read_ledger(stage.stack.ledger_path), read_audit([stage.stack.audit_path]), idle=window)
    for sentence in (*report.orphans, *report.doubles, *report.order_violations):
        stage.say(f"  ✗ {sentence}")

    def worst(name: str) -> float | None:
        spread = report.figures.get(name)
        return spread.max if spread else None

    return {
        "k8s_writes_converge": worst("k8s_writes_converge"),
        "k8s_writes_life": worst("k8s_writes_life"),
        "k8s_events_converge": worst("k8s_events_converge"),
        "fly_calls_converge": worst("fly_calls_converge"),
        "fly_calls_destroy": worst("fly_calls_destroy"),
        "idle_writes": worst("idle_writes"),
        "idle_fly_calls": worst("idle_fly_calls"),
        "apply_to_ready_s": report.figures["apply_to_ready_s"].median,
        "operator_rss_mb": round(stage.rss_mb, 1),
        "orphans": len(report.orphans),
        "doubles": len(report.doubles),
        "order_violations": len(report.order_violations),
        "steps": stage.steps,
    }


# --- Small pieces ------------------------------------------------------------------------------------------------


def _expect(seen: object, wanted: object, what: str) -> None:
    if seen != wanted:
        raise Broken(f"{what}: expected {wanted!r}, seen {seen!r}")


def _sample(name: str) -> Path:
    return manifests_dir().parent / "samples" / name


def _named(name: str) -> dict[str, Any]:
    """The sample Agent under another name."""
    body: dict[str, Any] = yaml.safe_load(_sample("agent.yaml").read_text())
    body["metadata"]["name"] = name
    return body


def _ledger(stage: Stage) -> list[dict[str, Any]]:
    lines = stage.stack.ledger_path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _begun(stage: Stage, since: int, op: str) -> bool:
    return any(line.get("kind") == "begin" and line.get("op") == op for line in _ledger(stage)[since:])


def _other_process(stage: Stage, before: Machine) -> bool:
    now = next((m for m in stage.machines() if m.id == before.id), None)
    return now is not None and now.pid is not None and now.pid != before.pid


def _other_machine(stage: Stage, before: Machine) -> bool:
    return any(m.app == before.app and m.id != before.id and m.state == "started" for m in stage.machines())


def _members(stage: Stage) -> list[str]:
    names = stage.kubectl("get", "agents", "-l", "roost.dev/fleet=support", "-o", "name").split()
    return sorted(name.rpartition("/")[2] for name in names)


# --- The command -------------------------------------------------------------------------------------------------

_TRY = """
Try this (export KUBECONFIG={kubeconfig}):

  kubectl get agents -w                                     the story as it goes on
  kubectl describe agent ada                                conditions and events
  kubectl patch agent ada --type=merge -p '{{"spec":{{"env":[{{"name":"GREETING","value":"Hi"}}]}}}}'
  curl -s {fly}/_sim/machines                   the machines of the simulated Fly
  curl -s -X POST {fly}/_sim/machines/{machine}/kill -d '{{"signal":9}}'
  kubectl apply -f manifests/samples/fleet.yaml && kubectl scale fleets/support --replicas=5
  kubectl delete agent ada                                  and nothing is left

Ctrl-C ends it all.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Brings a stack up and plays; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m roost.local.story", description="The story of an agent")
    parser.add_argument("--once", action="store_true", help="play the whole story and end with one JSON line")
    parser.add_argument("--openclaw", action="store_true", help="the story of a real OpenClaw, reached by Telegram")
    parser.add_argument("--dir", type=Path, default=default_dir().with_name("demo"), help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        kubectl = binaries.find(say=say).kubectl
        found = openclaw.find(say) if arguments.openclaw else None
        say("Starting etcd, kube-apiserver, kube-controller-manager, a simulated Fly and the operator …")
        with Stack(arguments.dir, openclaw=found, say=say) as stack:
            stage = Stage(stack, kubectl, say)
            if arguments.openclaw:
                return _with_openclaw(stage, once=arguments.once)
            return _once(tell(stage)) if arguments.once else _play(stage)
    except (Broken, openclaw.OpenClawError) as broken:
        say(f"  ✗ {broken}")
        return 1
    except KeyboardInterrupt:
        say("\nEverything is taken down again.")
        return 0


def _once(figures: dict[str, Any]) -> int:
    print(json.dumps(figures), flush=True)
    return 0 if not (figures["orphans"] or figures["doubles"] or figures["order_violations"]) else 1


def _play(stage: Stage) -> int:
    _begins(stage)
    stage.say(stage.kubectl("get", "agents", "-o", "wide"))
    stage.say(_TRY.format(kubeconfig=stage.stack.kubeconfig, fly=stage.stack.fly_url, machine=stage.machine("ada").id))
    signal.pause()
    return 0


def _with_openclaw(stage: Stage, *, once: bool) -> int:
    from roost.local import openclaw_story  # it tells its story with our words
    from roost.local.fakes.background import Background

    with Background() as fakes:
        cast = openclaw_story.Cast(stage, fakes)
        if once:
            return _once(openclaw_story.tell(cast))
        openclaw_story.play(cast)
        return 0


if __name__ == "__main__":
    sys.exit(main())
