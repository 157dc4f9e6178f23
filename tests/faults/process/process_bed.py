"""A bed for process faults: a real control plane, a simulated Fly over HTTP, operators that can be killed and paused.

Machines are real processes that only send heartbeats (process_machine.py). An Agent has reached its goal when Fly's own
records are as it was asked for, and its status says so: Ready, of this generation, with the ids that Fly has. Each bed
has a flysim and a directory of its own, and as many operators as are started; all of it ends with the bed, and when the
process that holds it is killed.
"""

import json
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import yaml

from roost.local import recipes
from roost.local.evidence import BadEvidence, read_audit, read_ledger
from roost.local.processes import last_lines
from roost.local.stack import Stack
from roost.local.verify_figures import OPERATOR, OPERATOR_AGENT, Report, verify

sys.path.append(str(Path(__file__).parents[2] / "e2e"))  # for api_proxy, also where pytest does not see to it
T = TypeVar("T")
AGENTS = "/apis/roost.dev/v1alpha1"
NAMESPACE = "faults"
IMAGE, OTHER = "test/agent:1", "test/agent:2"
PATIENCE_SECONDS = 40.0
"""Far longer than anything here takes; it covers a machine with much else to do."""
_POLL_SECONDS = 0.03
_TAIL_SECONDS = 0.003
# What only takes time at Fly: the order of things stays as it is.
_TIMING = {"prepare": 0.05, "replace": 0.05, "active": 0.05, "unbind": 0.1, "restart": 0.1}
LOOK_SECONDS = 1.5
"""How often these operators look at Fly, and how soon they believe in absence: these lists never lag."""


class Broken(Exception):
    """It did not become as it should; the message says what was expected and what was seen."""


class Zygote:
    """Starts programs in a few milliseconds (process_zygote.py); all of them die with it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("process_zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self, program: str, argv: list[str], env: Mapping[str, str], log: Path, clock: Path | None = None
    ) -> "Process":
        order = {"start": program, "argv": argv, "env": dict(env), "log": str(log), "clock": clock and str(clock)}
        return Process(self, self._ask(order)["pid"], log, env.get("HOSTNAME", ""))

    def ended(self, pid: int) -> int | None:
        code: int | None = self._ask({"ended": pid})["code"]
        return code

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Broken("the process that starts operators has ended")
        return dict(json.loads(line))


@dataclass(slots=True)
class Process:
    """One program that was started; `code` is None while it runs, then its exit code, or minus the signal."""

    zygote: Zygote
    pid: int
    log: Path
    host: str
    _code: int | None = None

    @property
    def code(self) -> int | None:
        if self._code is None:
            self._code = self.zygote.ended(self.pid)
        return self._code

    def send(self, number: signal.Signals) -> None:
        if self.code is None:  # nobody else reaps it, so its pid is its own until then
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                raise Broken(f"process {self.pid} should have ended\n" + "\n".join(last_lines(self.log, 10)))
            time.sleep(_TAIL_SECONDS)
        return code

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.send(number)
        return self.wait()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an Agent is asked to be."""

    image: str = IMAGE
    size_gb: int = 1
    state: str = "Running"
    serial: int = 0
    """Which of those that had this name one after the other."""

    def spec(self) -> dict[str, Any]:
        return {
            "desiredState": self.state,
            "machine": {"image": self.image, "stopTimeoutSeconds": 1},
            "volume": {"sizeGb": self.size_gb},
            "runtime": {"kind": "Command", "command": ["true"]},
            "heartbeat": {"intervalSeconds": 5},
        }


class Tail:
    """The lines of a log of JSON lines that were written since it was made."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._file.seek(0, 2)
        self._rest = b""

    def close(self) -> None:
        self._file.close()

    def lines(self) -> Iterator[dict[str, Any]]:
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in whole:
            yield json.loads(line)


@dataclass(slots=True)
class Bed:
    """What runs, and hands on it. `made` says what is asked now of each Agent."""

    stack: Stack
    zygote: Zygote
    api: httpx.Client
    http: httpx.Client
    folder: Path
    fly_url: str
    ledger: Path
    made: dict[str, Wanted] = field(default_factory=dict)
    operators: dict[str, Process] = field(default_factory=dict)
    strangers: set[str] = field(default_factory=set)
    """Apps of another cluster on this Fly: not ours to judge."""
    restarts: int = 0
    _starts: dict[str, Callable[[], Process]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _probed: dict[str, str] = field(default_factory=dict)

    # Operators

    @property
    def second_endpoint(self) -> str:
        """Where operator b listens: this flysim has no edge, and the stack's ports are ten in a row."""
        return self.stack.facts.edge_url.removeprefix("http://")

    def settings(self, **more: Any) -> Path:
        """A settings file: what the stack would give its operator, but for what is told."""
        settings = yaml.safe_load(self.stack.layout.settings.read_text())
        looks = dict.fromkeys(("refreshSeconds", "volumeRefreshSeconds", "absenceSeconds"), LOOK_SECONDS)
        settings["fly"] |= {"baseUrl": self.fly_url, **looks}
        for block, value in more.items():
            settings[block] = {**settings.get(block, {}), **value} if isinstance(value, dict) else value
        path = self.folder / f"settings-{secrets.token_hex(4)}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def start(
        self, name: str = "a", *, clock: Path | None = None, api_port: int | None = None, **settings: Any
    ) -> Process:
        """Starts an operator; `b` listens at other ports than `a` (in a cluster each has an address of its own).

        With `api_port` it finds the API server there: a proxy on this computer.
        """
        if name != "a":
            port = int(self.second_endpoint.rpartition(":")[2])
            metrics = {"listen": f"127.0.0.1:{port + 1}"}
            settings = {"endpoint": {"listen": self.second_endpoint}, "metrics": metrics, **settings}
        path = self.settings(**settings)
        argv = ["run", "--config", str(path)]
        log = self.folder / f"operator-{name}.log"
        self._probed[name] = yaml.safe_load(path.read_text())["metrics"]["listen"]

        def begin() -> Process:
            host = f"operator-{name}-{next(self._numbers)}"  # its identity in the Lease begins with it
            env = {**self.stack.operator_recipe().env, "HOSTNAME": host}
            if api_port is not None:
                env["KUBERNETES_SERVICE_PORT"] = str(api_port)
            return self.zygote.start("operator", argv, env, log, clock)

        self._starts[name] = begin
        started = self.operators[name] = self._starts[name]()
        return started

    def keep(self) -> None:
        """Starts what has ended, as a kubelet does."""
        for name, operator in self.operators.items():
            if operator.code is not None:
                self.operators[name] = self._starts[name]()
                self.restarts += 1

    def end_operators(self) -> None:
        for operator in self.operators.values():
            operator.send(signal.SIGKILL)
        for operator in self.operators.values():
            operator.wait()
        self.operators.clear()

    # What a user asks for

    def apply(self, name: str, wanted: Wanted) -> None:
        """Makes or changes an Agent."""
        self._done(
            self.api.patch(
                f"{AGENTS}/namespaces/{NAMESPACE}/agents/{name}",
                params={"fieldManager": "test", "force": "true", "fieldValidation": "Strict"},
                headers={"Content-Type": "application/apply-patch+yaml"},
                json={
                    "apiVersion": "roost.dev/v1alpha1",
                    "kind": "Agent",
                    "metadata": {"name": name},
                    "spec": wanted.spec(),
                },
            )
        )
        self.made[name] = wanted

    def delete(self, name: str) -> None:
        self._done(self.api.delete(f"{AGENTS}/namespaces/{NAMESPACE}/agents/{name}"))
        self.made.pop(name)

    def agents(self) -> dict[str, dict[str, Any]]:
        answer = self._done(self.api.get(f"{AGENTS}/namespaces/{NAMESPACE}/agents"))
        return {a["metadata"]["name"]: a for a in answer.json()["items"]}

    # What is so

    def sim(self, method: str, path: str, body: Any = None) -> Any:
        return self._done(self.http.request(method, f"/_sim/{path}", json=body)).json()

    def lacking(self) -> list[str]:
        """In sentences, what is not as it was asked for; nobody's opinion but Fly's and the API server's."""
        state, agents = self.sim("GET", "state"), self.agents()
        said = [f"Agent {name} is still there" for name in agents.keys() - self.made.keys()]
        for name, wanted in self.made.items():
            agent = agents.get(name)
            said += [f"{name}: {what}" for what in (_lacks(agent, wanted, state) if agent else ["it is not there"])]
        mine = tuple(f"roost-{name}-" for name in self.made)
        left = [a["name"] for a in state["apps"] if not a["name"].startswith(mine)]
        said += [f"app {app} is left" for app in left if app not in self.strangers]
        return said

    def until(self, what: str, look: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
        """Looks until it is so. Raises Broken."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                raise Broken(f"waited {seconds:.0f} s: {what}\n{self.scene()}")
            self.keep()
            time.sleep(_POLL_SECONDS)
        return found

    def until_reached(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until everything is as it was asked for. Raises Broken."""
        lacking: list[str] = []

        def reached() -> bool:
            nonlocal lacking
            lacking = self.lacking()
            return not lacking

        try:
            self.until("all Agents should be as they were asked for", reached, seconds)
        except Broken as broken:
            raise Broken("\n".join([str(broken), *lacking])) from None

    def scene(self) -> str:
        told = []
        for name, operator in self.operators.items():
            told += [f"operator {name} (exit code {operator.code}), last lines:", *last_lines(operator.log, 25)]
        return "\n".join(told)

    def tail(self) -> Tail:
        return Tail(self.ledger)

    def audit(self) -> Tail:
        return Tail(self.stack.audit_path)

    def until_served(self) -> None:
        """Waits until the API server serves our kinds: in its first seconds it answers 429."""

        def served() -> bool:
            with suppress(httpx.TransportError):
                return self.api.get(f"{AGENTS}/agents").status_code == httpx.codes.OK
            return False

        self.until("our kinds should be served", served)

    def is_ready(self, name: str) -> bool:
        """What a readiness probe is told."""
        with suppress(httpx.TransportError):
            return self.http.get(f"http://{self._probed[name]}/readyz").status_code == httpx.codes.OK
        return False

    def report(self) -> Report | None:
        """What ledger and audit log say of everything that was of this cluster; None while nothing was."""
        ledger = read_ledger(self.ledger)
        ours = replace(
            ledger,
            calls=[call for call in ledger.calls if call.app not in self.strangers],
            **{
                kind: [thing for thing in getattr(ledger, kind) if thing.app not in self.strangers]
                for kind in ("machines", "volumes", "apps")
            },
        )
        try:
            return verify(ours, read_audit([self.stack.audit_path]))
        except BadEvidence:
            return None

    def _done(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_error:
            raise Broken(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
        return answer


def _lacks(agent: Mapping[str, Any], wanted: Wanted, state: Mapping[str, Any]) -> Iterator[str]:
    status = agent.get("status", {})
    app = status.get("app", {}).get("name")
    machines = [m for m in state["machines"] if m["app"] == app and m["state"] != "destroyed"]
    volumes = [v for v in state["volumes"] if v["app_name"] == app and "destroy" not in v["state"]]
    if len(machines) != 1 or len(volumes) != 1:
        yield f"{len(machines)} machines and {len(volumes)} volumes at Fly"
        return
    (machine,), (volume,) = machines, volumes
    held = machine["state"], machine["config"]["image"], volume["size_gb"]
    should = ("started", wanted.image, wanted.size_gb)
    if wanted.state == "Stopped":  # what it shall run and hold is looked at when it is started again
        held, should = held[:1], ("stopped",)
    if held != should:
        yield f"Fly has {held}, not {should}"
    if (told := (status.get("machine", {}).get("id"), status.get("volume", {}).get("id"))) != (
        is_so := (machine["id"], volume["id"])
    ):
        yield f"the status tells {told}, not {is_so}"
    if status.get("observedGeneration") != agent["metadata"]["generation"]:
        yield "the status is of an older generation"
    ready = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
    if ready.get("status") != "True":
        yield f"it is not Ready: {ready.get('reason')}, {ready.get('message')}"


@contextmanager
def bed(folder: Path, *, fly_of: Bed | None = None, say: Callable[[str], None] = lambda _: None) -> Iterator[Bed]:
    """A bed in `folder`; with `fly_of` its operators use another bed's Fly."""
    with ExitStack() as parts:
        zygote = parts.enter_context(Zygote())
        stack = parts.enter_context(Stack(folder / "stack", fly=False, say=say))
        api = parts.enter_context(stack.api())
        url = fly_of.fly_url if fly_of else stack.fly_url
        http = parts.enter_context(httpx.Client(base_url=url, timeout=30, trust_env=False))
        ledger = fly_of.ledger if fly_of else stack.ledger_path
        made = Bed(stack, zygote, api, http, folder, url, ledger)
        made._done(api.post("/api/v1/namespaces", json={"metadata": {"name": NAMESPACE}}))
        made.until_served()
        if fly_of is None:
            flysim = _start_fly(made)
            parts.callback(lambda: flysim.end(signal.SIGTERM))
        else:
            token = {"stringData": {"token": fly_of.stack.fly_token}}
            path = f"/api/v1/namespaces/{recipes.NAMESPACE}/secrets/{recipes.FLY_SECRET}"
            made._done(api.patch(path, headers={"Content-Type": "application/merge-patch+json"}, json=token))
        parts.callback(made.end_operators)
        yield made


def _start_fly(made: Bed) -> Process:
    command = [sys.executable, "-S", "-I", str(Path(__file__).with_name("process_machine.py"))]
    image = {"command": command, "env": {"SECOND_ENDPOINT": made.second_endpoint}}
    images = {IMAGE: image, OTHER: image}
    catalogue = made.folder / "images.json"
    catalogue.write_text(json.dumps({"images": images}))
    argv = ["serve", f"--listen={made.fly_url.removeprefix('http://')}", f"--state={made.stack.layout.fly}"]
    argv += [f"--images={catalogue}", f"--token={made.stack.fly_token}", f"--org={recipes.FLY_ORG}"]
    argv += [f"--{name}-seconds={seconds}" for name, seconds in _TIMING.items()]
    flysim = made.zygote.start("fly", argv, os.environ, made.folder / "flysim.log")

    def answers() -> bool:
        if flysim.code is not None:
            raise Broken("flysim did not start: " + "\n".join(last_lines(flysim.log, 5)))
        with suppress(httpx.TransportError):
            return made.http.get("/_sim/machines").status_code == 200
        return False

    made.until("flysim should answer", answers)
    return flysim


class Clock:
    """The offset of an operator's wall clock, in seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jump(0.0)

    def jump(self, seconds: float) -> None:
        """From now on it shows so much more than the real one. In place: the operator has the file mapped."""
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


def changes(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operators' calls of a ledger that changed something at Fly."""
    return [
        line
        for line in lines
        if line["kind"] == "call" and line["effect"] is not None and line["agent"].startswith(OPERATOR_AGENT)
    ]


def writes(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operators' writes of an audit log on Agents."""
    return [
        line
        for line in lines
        if line.get("stage") == "ResponseComplete"
        and line["user"]["username"] == OPERATOR
        and line.get("objectRef", {}).get("resource") == "agents"
    ]
