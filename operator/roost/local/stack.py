"""The stack's life: started in order until everything answers, ended in reverse until nothing is left.

Promises: each start begins with an empty cluster and an empty Fly; what a crash left is recognised by pid and start
time and ended before, simulated machines included; a start that fails or is interrupted takes everything down again.
Never leaves a child that is not on record, never ends a process that is not, never removes a file it did not make.
"""

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from flysim.process import end_leftovers
from roost.local import binaries, credentials, processes, recipes
from roost.local.binaries import Binaries
from roost.local.cluster import Admin, Cluster, read_manifests
from roost.local.credentials import Credentials
from roost.local.processes import Child
from roost.local.recipes import Layout, Ports, Recipe

START_SECONDS = 90.0
SERVICE_ACCOUNT_TOKEN_SECONDS = 10 * 365 * 24 * 3600

# The API server holds back creates of a kind that was established less than 2 s ago (for the sake of other replicas);
# whoever measures after a start would measure that.
_ESTABLISHED_SECONDS = 2.0

_POLL_SECONDS = 0.02
# Ended in this order: nothing loses what it needs while it still works.
_ENDED_FIRST = ("operator", "flysim", "kube-controller-manager", "kube-apiserver", "etcd")


class StackError(Exception):
    """The stack can't do what was asked; the message says why and, after a failed start, shows the last log lines."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a running stack; stored beside the processes, readable by the owner only."""

    server: str
    admin_token: str
    ca_file: str
    fly_url: str
    fly_token: str
    endpoint_url: str
    metrics_url: str
    edge_url: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the status: `rss` in bytes, None when the process does not run; `since` in epoch seconds."""

    name: str
    pid: int
    running: bool
    since: float
    rss: int | None
    address: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The process whose `with` block holds the stack; when it is gone, nobody will end the stack any more."""

    pid: int
    started: float


def default_dir() -> Path:
    """`$XDG_STATE_HOME/roost/local`, or its usual place below the home directory."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "roost" / "local"


class Stack:
    """A control plane, a simulated Fly and the operator, with all their state under `dir`.

    Used by the command line (`up`, `down`, `status` from different processes) and by tests (`with Stack(dir=…)`). With
    `fly=False` only the control plane starts, with the manifests applied. `operator=False` starts everything but the
    operator, which `operator_recipe` tells how to run; the API server holds back creates of our kinds for the first two
    seconds then. `openclaw` is the directory that `roost.local.openclaw.find` gives: with it, agents can be of that
    kind. `say` gets one line for each longer step.
    """

    def __init__(
        self,
        dir: Path | None = None,  # noqa: A002 - the name of the option
        *,
        operator: bool = True,
        fly: bool = True,
        openclaw: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.layout = Layout((dir or default_dir()).absolute())
        self._with_operator = operator and fly
        self._with_fly = fly
        self._openclaw = openclaw
        self._say = say
        self._owner: Owner | None = None
        self._facts: Facts | None = None
        self._ports: Ports | None = None
        self._children: dict[str, Child] = {}
        self._recipes: dict[str, Recipe] = {}
        self._popens: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._owner = Owner(os.getpid(), processes.started_after_boot(os.getpid()))
        if not self.up():
            raise StackError(f"a stack runs in {self.layout.root} already: end it with `roost local down` first")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # What a user of the stack needs to know

    @property
    def kubeconfig(self) -> Path:
        """An admin kubeconfig."""
        return self.layout.kubeconfig

    @property
    def admin(self) -> Admin:
        facts = self.facts
        return Admin(facts.server, facts.admin_token, Path(facts.ca_file))

    def api(self, timeout: float = 30) -> httpx.Client:
        """HTTP to the API server, with every right; to be closed by whoever asked for it. `timeout` in seconds."""
        access = self.admin
        return httpx.Client(
            base_url=access.server,
            headers={"Authorization": f"Bearer {access.token}"},
            verify=ssl.create_default_context(cafile=str(access.ca_file)),
            timeout=timeout,
            trust_env=False,
        )

    @property
    def fly_url(self) -> str:
        """Base URL of the simulated Machines API (and of its `/_sim` side)."""
        return self.facts.fly_url

    @property
    def fly_token(self) -> str:
        return self.facts.fly_token

    @property
    def edge_url(self) -> str:
        """Where the simulated Fly takes requests for `<app>.fly.dev`, told apart by their Host header."""
        return self.facts.edge_url

    @property
    def endpoint_url(self) -> str:
        return self.facts.endpoint_url

    @property
    def metrics_url(self) -> str:
        return self.facts.metrics_url

    @property
    def ledger_path(self) -> Path:
        """Every call that Fly got and every effect, one JSON object a line."""
        return self.layout.ledger

    @property
    def audit_path(self) -> Path:
        """Every write that the API server got, one JSON object a line."""
        return self.layout.audit

    def log_path(self, name: str) -> Path:
        """Where a program's output goes."""
        return self.layout.logs / f"{name}.log"

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            self._load()
        if self._facts is None:
            raise StackError(f"no stack runs in {self.layout.root}: start one with `roost local up`")
        return self._facts

    def operator_recipe(self) -> Recipe:
        """How this stack runs its operator, for those who want to run one themselves."""
        if self._ports is None:
            raise StackError("only the process that started a stack can tell how to run its operator")
        return recipes.operator(self.layout, self._ports)

    # Life

    def up(self) -> bool:
        """Starts everything and returns when it answers; False when all of it ran already.

        Raises StackError, ClusterError or BinariesError, with nothing left running.
        """
        with self._alone():
            self._load()
            if self._children and all(row.running for row in self._rows()):
                return False
            self._end_everything()
            self._remove_what_we_made()
            try:
                self._start()
            except BaseException:
                self._end_everything()
                raise
            return True

    def down(self) -> bool:
        """Ends everything that is on record; True when something ran. Logs, ledger and audit log stay to be read."""
        if not self.layout.root.is_dir():
            return False
        with self._alone():
            self._load()
            return self._end_everything()

    def status(self) -> list[Row]:
        """One row for each program on record."""
        self._load()
        return self._rows()

    def owner_is_gone(self) -> bool:
        """True when the process whose `with` block held this stack has died without ending it."""
        record = self._read_record()
        owner = record["owner"] if record else None
        return owner is not None and processes.find(owner["pid"], owner["started"]) is None

    # One program, for tests that break things

    def kill(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to one program; after SIGKILL, returns when it is gone."""
        child = self._child(name)
        process = processes.find(child.pid, child.started)
        if process is None:
            raise StackError(f"{name} does not run")
        process.send_signal(number)
        if number == signal.SIGKILL:
            processes.wait_gone(child.pid, child.started, seconds=10, reap=self._reap(child))

    def stop(self, name: str) -> None:
        """Ends one program as `down` would."""
        self._end(self._child(name))

    def restart(self, name: str) -> None:
        """Ends one program, if it runs, and starts it again; returns when it answers.

        Its state is the old one, but for flysim, which begins empty.
        """
        if name not in self._recipes:
            raise StackError(f"only the process that started a stack can restart {name}")
        self.stop(name)
        self._spawn(self._recipes[name])
        self._wait(name, time.monotonic() + START_SECONDS)

    # Starting

    def _start(self) -> None:
        programs = binaries.find(say=self._say)
        with Ports.reserved() as ports:
            self._start_programs(programs, ports, time.monotonic() + START_SECONDS)

    def _start_programs(self, programs: Binaries, ports: Ports, deadline: float) -> None:
        self._ports = ports
        made = credentials.make(self.layout.credentials, now=datetime.datetime.now(datetime.UTC))
        self.layout.logs.mkdir(mode=0o700)
        recipes.write_files(self.layout, ports, made, self._openclaw)
        self._facts = _facts(ports, made)
        if self._with_fly:
            self._spawn(recipes.fly(self.layout, ports, made))
        unhindered = self._start_control_plane(programs, ports, made, deadline)
        if self._with_fly:
            self._wait("flysim", deadline)
        if self._with_operator:
            self._spawn(recipes.operator(self.layout, ports))
            self._wait("operator", deadline)
            time.sleep(max(0.0, unhindered - time.monotonic()))

    def _start_control_plane(self, programs: Binaries, ports: Ports, made: Credentials, deadline: float) -> float:
        """Starts it, with our kinds served; returns when (`time.monotonic()`) their creates are no longer held back.

        The controller manager comes last: its garbage collector learns of new kinds only every 30 s.
        """
        self._spawn(recipes.etcd(programs, self.layout, ports))
        self._spawn(recipes.apiserver(programs, self.layout, ports, made))
        self._wait("etcd", deadline)
        self._wait("kube-apiserver", deadline)
        with Cluster(self.admin) as cluster:
            self._apply_manifests(cluster, deadline)
            established = time.monotonic()
            self._spawn(recipes.controller_manager(programs, self.layout, ports, made))
            token = cluster.token(recipes.NAMESPACE, recipes.SERVICE_ACCOUNT, seconds=SERVICE_ACCOUNT_TOKEN_SECONDS)
        recipes.write_service_account(self.layout, token=token, ca_file=made.ca_file)
        self._wait("kube-controller-manager", deadline)
        return established + _ESTABLISHED_SECONDS

    def _apply_manifests(self, cluster: Cluster, deadline: float) -> None:
        """What `kubectl apply -k manifests/base` applies, but the Deployment; and the Fly token."""
        objects = [o for o in read_manifests(manifests_dir()) if o["kind"] != "Deployment"]
        for resource in objects:
            cluster.apply(resource)
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": recipes.FLY_SECRET, "namespace": recipes.NAMESPACE},
                "stringData": {"token": self.fly_token},
            }
        )
        cluster.wait_for_kinds((o for o in objects if o["kind"] == "CustomResourceDefinition"), deadline=deadline)

    def _spawn(self, recipe: Recipe) -> None:
        def record(child: Child) -> None:
            self._children[recipe.name] = child
            self._save()

        self._recipes[recipe.name] = recipe
        child, popen = processes.spawn(
            recipe.name,
            recipe.argv,
            env=recipe.env,
            log=self.log_path(recipe.name),
            address=recipe.address,
            patience=recipe.patience,
            record=record,
        )
        self._popens[child.pid] = popen

    def _wait(self, name: str, deadline: float) -> None:
        """Waits until a program answers. Raises StackError with its last log lines when it dies or stays silent."""
        child, recipe = self._child(name), self._recipes[name]
        tls = ssl.create_default_context(cafile=self.facts.ca_file) if recipe.ready_url.startswith("https") else False
        answered = "nothing"
        with httpx.Client(verify=tls, timeout=5.0, trust_env=False) as http:
            while time.monotonic() < deadline:
                self._reap(child)()
                if processes.find(child.pid, child.started) is None:
                    raise StackError(self._told(f"{name} ended while starting", name))
                with contextlib.suppress(httpx.TransportError):
                    answer = http.get(recipe.ready_url)
                    if answer.status_code == httpx.codes.OK:
                        return
                    answered = f"{answer.status_code} {answer.text[:500]}"
                time.sleep(_POLL_SECONDS)
        raise StackError(self._told(f"{name} is not ready in time; {recipe.ready_url} answers {answered}", name))

    def _told(self, what: str, name: str) -> str:
        lines = processes.last_lines(self.log_path(name), 15)
        return f"{what}. Its last words ({self.log_path(name)}):\n" + "\n".join(f"  {line}" for line in lines)

    # Ending

    def _end_everything(self) -> bool:
        """Ends what is on record, machines included, and forgets it; True when something ran."""
        known = sorted(self._children.values(), key=lambda child: _ENDED_FIRST.index(child.name))
        ended = [*(self._end(child) for child in known), _end_machines(self.layout)]
        self._children.clear()
        self._facts = None
        self.layout.record.unlink(missing_ok=True)
        return any(ended)

    def _end(self, child: Child) -> bool:
        return processes.end(child.pid, child.started, patience=child.patience, reap=self._reap(child))

    def _reap(self, child: Child) -> Callable[[], object]:
        popen = self._popens.get(child.pid)
        return popen.poll if popen is not None else lambda: None

    def _remove_what_we_made(self) -> None:
        for path in self.layout.all_made():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # The record

    def _child(self, name: str) -> Child:
        self._load()
        if name not in self._children:
            raise StackError(f"the stack in {self.layout.root} has no {name}")
        return self._children[name]

    def _rows(self) -> list[Row]:
        return [_row(child) for child in self._children.values()]

    def _save(self) -> None:
        record = {
            "owner": asdict(self._owner) if self._owner else None,
            "facts": asdict(self.facts),
            "children": [asdict(child) for child in self._children.values()],
        }
        credentials.write_private(self.layout.record, json.dumps(record, indent=2).encode())

    def _load(self) -> None:
        record = self._read_record()
        if record is None:
            return
        try:
            self._facts = Facts(**record["facts"])
            self._children = {child["name"]: Child(**child) for child in record["children"]}
        except (KeyError, TypeError) as error:
            raise StackError(self._unreadable(error)) from error

    def _read_record(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self.layout.record.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise StackError(self._unreadable(error)) from error

    def _unreadable(self, error: Exception) -> str:
        return (
            f"{self.layout.record} was not written by this version of the stack ({error}): "
            "end the processes whose pids it names, then remove it."
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time for a directory; the kernel drops the lock when its holder ends."""
        self.layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.layout.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say(f"waiting for another process that starts or ends the stack in {self.layout.root}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def manifests_dir() -> Path:
    """The kustomize base of this checkout. Raises StackError when there is none beside the code."""
    folder = Path(__file__).parents[3] / "manifests" / "base"
    if not folder.is_dir():
        raise StackError(
            f"The local stack applies manifests/base and crds of the project, but {folder} does not exist: "
            "run it from a checkout (pip install -e .)."
        )
    return folder


def _facts(ports: Ports, made: Credentials) -> Facts:
    return Facts(
        server=f"https://127.0.0.1:{ports.apiserver}",
        admin_token=made.admin_token,
        ca_file=str(made.ca_file),
        fly_url=f"http://127.0.0.1:{ports.fly}",
        fly_token=made.fly_token,
        endpoint_url=f"http://127.0.0.1:{ports.endpoint}",
        metrics_url=f"http://127.0.0.1:{ports.metrics}",
        edge_url=f"http://127.0.0.1:{ports.edge}",
    )


def _row(child: Child) -> Row:
    process = processes.find(child.pid, child.started)
    rss = None
    if process is not None:
        with contextlib.suppress(psutil.Error):
            rss = process.memory_info().rss
    return Row(child.name, child.pid, rss is not None, child.since, rss, child.address)


def _end_machines(layout: Layout) -> bool:
    """Ends simulated machines that a killed simulator left behind; True when there were any.

    One look over all processes comes first: the simulator's own clean-up looks once for each machine there ever was.
    """
    ids = {folder.name for folder in layout.machines.glob("*")}
    if not any(_machine_of(process) in ids for process in psutil.process_iter()):
        return False
    end_leftovers(layout.fly)
    return True


def _machine_of(process: psutil.Process) -> str | None:
    """The id of the simulated machine that a process belongs to; whatever a machine starts inherits it."""
    try:
        return process.environ().get("FLY_MACHINE_ID")
    except (psutil.Error, OSError):
        return None
