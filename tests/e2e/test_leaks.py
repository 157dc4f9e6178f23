"""Every secret there is holds a marker; agents live, change, break and end; then the markers are searched everywhere.

One table (`MAY`) says where a marker may be, as the contract does: in the environment of the agent's own runtime, in
the files that the Agent declares, and nowhere else. A failure names the place and the marker, never its value.
"""

import base64
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import psutil
import pytest
from test_agents import condition

from roost.agents.names import gateway_token, heartbeat_token
from roost.local import binaries, recipes
from roost.local.stack import Stack
from roost.local.story import Machine, Stage
from roost_agent.contract import bundle_path, checkin_path, heartbeat_path, seed_gateway_token, token_path

GATEWAY_SECRET = {"secretName": "seed-gateway", "secretKey": "secret"}
WITHOUT_END = ["sh", "-c", "exec sleep 1000"]
OF_ADA = ("env", "core", "provider", "telegram", "discord", "slackBot", "slackApp", "bridge", "linking", "urls")
"""What Ada's runtime is given as variables."""
MAY = {
    "environment of ada's runtime": {*OF_ADA, "env, rotated"},
    "environment of crew-0's runtime": {"env", "env, rotated"},
    "environment of hedy's runtime": {"env", "env, rotated"},
    "environment of sue's runtime": {"env", "env, rotated"},
    "volume of ada: keys/file.pem": {"file"},
}
"""Where which markers may be, and must be once they were rotated; everywhere else is a leak.

A runtime of the kind Command has no gateway, so it is not given the token of one.
"""
PART = 16
"""So many characters of a marker are found wherever they stand."""
PROVOKE = """
import faulthandler, signal
faulthandler.enable()
def fail(*_):
    raise RuntimeError("provoked")
signal.signal(signal.SIGUSR1, fail)
"""
"""What makes our programs raise an error where nobody expects one; Python runs it at its start."""


# --- Searching -------------------------------------------------------------------------------------------------------


def forms(value: bytes) -> set[bytes]:
    """How a value may stand in a text: as it is, in hex, in base64 at any offset, quoted, escaped."""
    shapes = {value, value.hex().encode(), value.hex().upper().encode(), quote_from_bytes(value, safe="").encode()}
    for ahead in range(3):
        coded = base64.b64encode(b"\0" * ahead + value)
        # The characters at both ends depend on what stands around the value.
        inner = coded[(0, 2, 3)[ahead] : (len(value) + ahead) * 8 // 6]
        shapes |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    text = value.decode("latin-1")
    shapes |= {repr(value)[2:-1].encode(), json.dumps(text)[1:-1].encode()}
    return shapes


@dataclass
class Markers:
    """The secrets by name, and how each would be recognised."""

    values: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, set[bytes]] = field(default_factory=dict)

    def new(self, name: str) -> str:
        """A value that nothing else in the world has; with characters that texts quote."""
        return self.add(name, f'{secrets.token_hex(16)}"/+%\\é')

    def add(self, name: str, value: str | bytes) -> str:
        raw = value if isinstance(value, bytes) else value.split('"')[0].encode()
        # A part of it is enough: whatever becomes of the rest, nobody may see it.
        self.shapes[name] = forms(raw[:PART]) | forms(raw[-PART:])
        if isinstance(value, str):
            self.values[name] = value
        return self.values.get(name, "")

    def found(self, text: bytes) -> set[str]:
        return {name for name, shapes in self.shapes.items() if any(shape in text for shape in shapes)}


@pytest.mark.parametrize(
    "written",
    [
        lambda v: v,
        lambda v: json.dumps({"a": v}),
        lambda v: json.dumps({"a": json.dumps({"b": v})}),
        lambda v: quote_from_bytes(v.encode()),
        lambda v: v[:20] + "…",
        lambda v: f"{v.encode()!r}",
        lambda v: f"a{v}".encode().hex(),
        *(lambda v, n=n: base64.b64encode(f"{'x' * n}{v}tail".encode()).decode() for n in range(4)),
        lambda v: base64.urlsafe_b64encode(f"{v}".encode()).decode(),
        lambda v: base64.b64encode(json.dumps({"k": v}).encode()).decode(),
    ],
)
def test_the_search_finds_a_marker_in_whatever_form(written: Callable[[str], str]) -> None:
    markers = Markers()
    value = markers.new("it")
    markers.new("another")
    assert markers.found(b"before " + written(value).encode() + b" after") == {"it"}
    markers.add("root", secrets.token_bytes(32))
    assert "root" not in markers.found(written(value).encode())


# --- Everywhere ------------------------------------------------------------------------------------------------------


def everywhere(stage: Stage, agents: Mapping[str, Machine]) -> Iterator[tuple[str, bytes]]:
    """All places, with what stands there. `agents`: whose machine is whose, the gone ones too."""
    yield from _cluster(stage)
    yield from _operator(stage)
    yield from _fly(stage)
    yield from _files(Path.cwd(), "left by a crash")
    yield from _processes(stage, {m.id: name for name, m in agents.items()})
    names = {machine.volume: name for name, machine in agents.items()}
    for volume in sorted((stage.stack.layout.fly / "volumes").iterdir()):
        yield from _files(volume, f"volume of {names.get(volume, volume.name)}")


def _cluster(stage: Stage) -> Iterator[tuple[str, bytes]]:
    with stage.stack.api() as api:
        for path in (
            *(f"/apis/roost.dev/v1alpha1/{kind}" for kind in ("agents", "fleets", "secrets")),
            "/apis/events.k8s.io/v1/events",
            "/api/v1/events",
            "/api/v1/configmaps",
            "/apis/apps/v1/controllerrevisions",
            "/apis/coordination.k8s.io/v1/leases",
        ):
            answer = api.get(path).raise_for_status()
            yield f"API server: {path.rsplit('/', 1)[-1]}", answer.content


def _operator(stage: Stage) -> Iterator[tuple[str, bytes]]:
    layout = stage.stack.layout
    for log in sorted(layout.logs.iterdir()):
        yield f"log of {log.stem}", log.read_bytes()
    yield "audit log", layout.audit.read_bytes()
    yield "settings of the operator", layout.settings.read_bytes()
    for page in ("/metrics", "/metrics/agents"):
        yield page, httpx.get(stage.stack.metrics_url + page).raise_for_status().content


def _fly(stage: Stage) -> Iterator[tuple[str, bytes]]:
    yield "flysim: ledger", stage.stack.ledger_path.read_bytes()
    with httpx.Client(base_url=stage.stack.fly_url, headers=_person(stage), verify=False, timeout=20) as fly:
        for page in ("/_sim/state", "/_sim/machines", "/_sim/faults"):
            yield f"flysim: {page}", fly.get(page).raise_for_status().content
        for app in fly.get("/_sim/state").json()["apps"]:
            for what in ("machines", "secrets", "volumes"):
                yield f"flysim: {what}", fly.get(f"/v1/apps/{app['name']}/{what}").raise_for_status().content
    yield from _files(stage.stack.layout.machines, "files of machines")


def _files(folder: Path, what: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield f"{what}: {path.relative_to(folder)}", path.read_bytes()


def _processes(stage: Stage, names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Arguments and environment, as root may read them."""
    rows = {row.name: row.pid for row in stage.stack.status() if row.running}
    for name in ("operator", "flysim"):
        yield from _process(rows[name], name)
    for machine in stage.machines():
        if machine.pid is None:
            continue
        agent = names.get(machine.id, machine.name)
        yield from _process(machine.pid, f"{agent}'s supervisor")
        for child in psutil.Process(machine.pid).children(recursive=True):
            yield from _process(child.pid, f"{agent}'s runtime")


def _process(pid: int, name: str) -> Iterator[tuple[str, bytes]]:
    for file, what in (("cmdline", "arguments"), ("environ", "environment")):
        try:
            yield f"{what} of {name}", Path(f"/proc/{pid}/{file}").read_bytes()
        except (PermissionError, ProcessLookupError, FileNotFoundError):
            pass


# --- The life --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def markers() -> Markers:
    return Markers()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, markers: Markers) -> Iterator[Stage]:
    """A stack whose operator logs all that it ever logs, and whose programs can be made to fail."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(PROVOKE)
    paths = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    failing = {"PYTHONFAULTHANDLER": "1", "PYTHONPATH": paths}
    settings, catalogue = recipes._settings, recipes._image_catalogue

    def talkative(ports: Any) -> dict[str, Any]:
        plain: dict[str, Any] = settings(ports)
        plain["endpoint"]["gatewaySecret"] = GATEWAY_SECRET
        # It believes in absence soon: these lists never lag.
        plain["fly"] |= dict.fromkeys(("refreshSeconds", "volumeRefreshSeconds", "absenceSeconds"), 2)
        election = {"leaseSeconds": 3, "renewSeconds": 2, "retrySeconds": 1}
        return plain | {"logLevel": "debug", "leaderElection": election}

    def images(openclaw: Path | None) -> dict[str, Any]:
        plain: dict[str, Any] = catalogue(openclaw)
        for image in plain["images"].values():
            image["env"] |= failing
        return plain

    left = tmp_path_factory.mktemp("left")
    before = resource.getrlimit(resource.RLIMIT_CORE)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in failing.items():
            patched.setenv(name, value)
        patched.chdir(left)  # where a program that crashes would leave its memory
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
        patched.setattr(recipes, "_settings", talkative)
        patched.setattr(recipes, "_image_catalogue", images)
        with Stack(tmp_path_factory.mktemp("leaks"), say=print) as stack:
            stage = Stage(stack, binaries.find(say=print).kubectl, print)
            # Not the one that the simulator was started with: that stands in its arguments.
            token = markers.add("fly token", f"fm2_{secrets.token_hex(20)}")
            httpx.post(stack.fly_url + "/_sim/tokens", json={"tokens": [token]}).raise_for_status()
            _core(stage, "seed-gateway", {"secret": markers.new("seed gateway secret")}, "roost-system")
            yield stage
    resource.setrlimit(resource.RLIMIT_CORE, before)


def _person(stage: Stage) -> dict[str, str]:
    return {"Authorization": f"Bearer {_token_of_fly(stage)}", "User-Agent": "a person"}


def _token_of_fly(stage: Stage) -> str:
    held = json.loads(stage.kubectl("-n", "roost-system", "get", "secret", "roost-fly", "-o", "json"))
    return base64.b64decode(held["data"]["token"]).decode()


def _core(stage: Stage, name: str, values: Mapping[str, str], namespace: str = "default") -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}}
    stage.kubectl("apply", "-f", "-", given=body | {"stringData": dict(values)})


def _ours(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "roost.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _ref(key: str) -> dict[str, str]:
    return {"name": "vault", "key": key}


def _spec(**more: Any) -> dict[str, Any]:
    plain = {
        "runtime": {"kind": "Command", "command": WITHOUT_END},
        "heartbeat": {"intervalSeconds": 5},
        "telemetry": {"intervalSeconds": 30, "initialDelaySeconds": 0},
        "env": [{"name": "KEY", "valueFrom": _ref("env")}],
    }
    return plain | more


ADA = _spec(
    env=[
        {"name": "KEY", "valueFrom": _ref("env")},
        {"name": "RAW", "valueFrom": {"name": "raw", "key": "core", "kind": "CoreSecret"}},
    ],
    files=[{"path": "keys/file.pem", "contentFrom": _ref("file")}],
    providers=[{"id": "anthropic", "apiKeyFrom": _ref("provider")}],
    channels={
        "telegram": {"tokenFrom": _ref("telegram")},
        "discord": {"tokenFrom": _ref("discord")},
        "slack": {"botTokenFrom": _ref("slackBot"), "appTokenFrom": _ref("slackApp")},
    },
    bridge={
        "enabled": True,
        "serviceId": "service",
        "serviceKeyFrom": _ref("bridge"),
        "linkingSecretFrom": _ref("linking"),
        "baseUrlMapFrom": _ref("urls"),
    },
)


def _derived(stage: Stage, markers: Markers, *names: str) -> None:
    """The roots and all that is derived of them."""
    held = json.loads(stage.kubectl("-n", "roost-system", "get", "secret", "roost-roots", "-o", "json"))["data"]
    roots = {key: base64.b64decode(value) for key, value in held.items()}
    for name in ("identity", "token", "fingerprint"):
        markers.add(f"{name} root", roots[name])
    for name in names:
        born = stage.get("agents", name)["status"]["app"]["incarnation"]
        who = (roots["token"], roots["ownerId"].decode(), "default", name, born, 0)
        markers.add(f"heartbeat token of {name}", heartbeat_token(*who))
        markers.add(f"gateway token of {name}", gateway_token(*who))


def _seen(stage: Stage, markers: Markers, agents: Mapping[str, Machine]) -> set[tuple[str, str]]:
    """Which marker is in which place."""
    return {(place, name) for place, text in everywhere(stage, agents) for name in markers.found(text)}


def _told(leaks: set[tuple[str, str]]) -> str:
    return "\n".join(f"{name}: {place}" for place, name in sorted(leaks))


def _calls_of_all_kinds(stage: Stage, markers: Markers) -> None:
    """Good calls, wrong ones and broken ones, each with a token in it somewhere."""
    did = stage.get("agents", "ada")["status"]["did"]
    hedy = stage.get("agents", "hedy")["status"]["did"]
    machine = stage.get("agents", "ada")["status"]["machine"]["id"]
    token, gateway = markers.values["heartbeat token of ada"], markers.values["gateway token of ada"]
    mine, both = {"X-Heartbeat-Token": token}, {"Authorization": f"Bearer {token}", "X-Gateway-Token": gateway}
    beat = {"status": "running", "machineId": machine, "uptimeSeconds": 1, "memoryMb": 1, "computeVersion": "1"}
    figures = {"sandboxId": did, "controllerVersion": "1", "controllerCommit": "1", "supervisorState": "running"}
    figures |= dict.fromkeys(("totalRestarts", "restartsSinceLastCheckin", "uptimeSeconds", "loadAvg5m"), 1)
    figures |= dict.fromkeys(("bandwidthBytesIn", "bandwidthBytesOut"), 1)
    with httpx.Client(base_url=stage.stack.endpoint_url) as web:

        def post(path: str, headers: Mapping[str, str], body: Any, *statuses: int) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = web.post(path, headers=dict(headers), content=content)
            assert answer.status_code in statuses, answer.text
            assert not markers.found(answer.content + str(answer.headers).encode()), f"an answer {statuses} shows one"

        post(heartbeat_path(hedy), mine, beat, 403)
        post(heartbeat_path(did), mine, beat | {"status": 5, "computeVersion": token}, 400)
        post(heartbeat_path(did), mine, beat | {"lastCommandId": {token: token}, "machineVersion": token * 9}, 400)
        post(heartbeat_path(did), mine, beat | {"channels": {"telegram": {"state": "failed", token: token}}}, 200, 409)
        post(heartbeat_path(did), mine, f'{{"status": "{token}'.encode(), 400)
        post(heartbeat_path(did), mine | {"X-Machine-Id": token}, beat, 409)
        post(heartbeat_path(did) + f"?wait={token}", mine, beat, 400)
        post(heartbeat_path(token), mine, beat, 403)
        post(token_path(hedy), {"Authorization": f"Bearer {token}"}, b"", 403)
        post(token_path(hedy), {"Authorization": f"Bearer {token}.{gateway}.{token}"}, b"", 403)
        post(checkin_path(did), both, figures, 204)
        post(checkin_path(did), both, figures | {"supervisorState": 1, "lastExitReason": token}, 400)
        seeds = seed_gateway_token(markers.values["seed gateway secret"], did)
        markers.add("gateway token of the seed", seeds)
        post(checkin_path(did), both | {"X-Gateway-Token": seeds}, figures, 204)
        post(checkin_path(hedy), both, figures, 403)
        for broken in (b"X-Heartbeat-Token: %s\0", b"X-Heartbeat-Token %s", b"Content-Length: %s", b"%s: \x01"):
            _raw(stage, b"POST %s HTTP/1.1\r\nHost: x\r\n" % heartbeat_path(did).encode() + broken % token.encode())
        fetched = web.get(bundle_path(did), headers=mine | {"X-Machine-Id": machine})
        assert fetched.status_code == 200
        assert markers.found(fetched.content) >= {"file", "provider"}, "here they belong"


def _raw(stage: Stage, head: bytes) -> None:
    host, _, port = stage.stack.endpoint_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head + b"\r\nConnection: close\r\n\r\n")
        assert b" 400 " in connection.recv(100)


def _crashes(stage: Stage, agents: Mapping[str, Machine]) -> None:
    """Our programs end in every way in which they may say something."""
    numbers = {"ada": signal.SIGSEGV, "hedy": signal.SIGABRT, "crew-0": signal.SIGUSR1}
    said = {"ada": "Segmentation fault", "hedy": "Aborted", "crew-0": "RuntimeError: provoked"}
    for name, number in numbers.items():
        stage.fly("POST", f"/_sim/machines/{agents[name].id}/kill", {"signal": int(number)})
    for name, words in said.items():
        stage.until(f"{name}'s log should tell of {words}", lambda n=name, w=words: w in agents[n].log.read_text())
    log = stage.stack.log_path("operator")
    for number, words in ((signal.SIGSEGV, "Segmentation fault"), (signal.SIGUSR1, "RuntimeError: provoked")):
        stage.stack.kill("operator", number)
        stage.until(f"the operator's log should tell of {words}", lambda w=words: w in log.read_text())
        stage.stack.restart("operator")


def _damaged_roots(stage: Stage) -> None:
    """The operator refuses to start, and says why."""
    path = ["-n", "roost-system", "patch", "secret", "roost-roots", "--type=merge", "-p"]
    held = json.loads(stage.kubectl("-n", "roost-system", "get", "secret", "roost-roots", "-o", "json"))["data"]
    longer = base64.b64encode(base64.b64decode(held["token"]) + b"\n").decode()
    stage.stack.stop("operator")
    stage.kubectl(*path, json.dumps({"data": {"token": longer}}))
    recipe = stage.stack.operator_recipe()
    with stage.stack.log_path("operator").open("ab") as log:
        done = subprocess.run(recipe.argv, env=dict(recipe.env), stdout=log, stderr=log, timeout=60, check=False)
    assert done.returncode == 1
    stage.kubectl(*path, json.dumps({"data": {"token": held["token"]}}))
    stage.stack.restart("operator")


def test_no_marker_is_anywhere_but_where_the_contract_says(stage: Stage, markers: Markers) -> None:
    may = {(place, name) for place, names in MAY.items() for name in names}
    # They are made, at first with a token that Fly refuses.
    values = {key: markers.new(key) for key in (*OF_ADA, "file") if key != "core"}
    _core(stage, "vault-v1", values)
    _core(stage, "raw", {"core": markers.new("core")})
    for name in ("vault", "spoilt"):
        stage.kubectl(
            "apply", "-f", "-", given=_ours("Secret", name, {"source": {"secretRef": {"name": f"{name}-v1"}}})
        )
    lost = _spec(env=[{"name": "KEY", "valueFrom": {"name": "spoilt", "key": "env"}}])
    crew = {"replicas": 1, "template": {"spec": _spec()}}
    for body in (
        _ours("Agent", "ada", ADA),
        _ours("Agent", "hedy", _spec(identity={"bootstrap": "FlyOidc"})),
        _ours("Fleet", "crew", crew),
        _ours("Agent", "lost", lost),
    ):
        stage.kubectl("apply", "-f", "-", given=body)
    stage.until("it should be refused", lambda: condition(stage, "ada", "Stalled").get("reason") == "FlyUnauthorized")
    _core(stage, "roost-fly", {"token": markers.values["fly token"]}, "roost-system")
    shared = {"app_name": "shared-by-many", "org_slug": "personal"}
    httpx.post(stage.stack.fly_url + "/v1/apps", json=shared, headers=_person(stage)).raise_for_status()
    fly = {"appStrategy": "Shared", "app": "shared-by-many"}
    stage.kubectl("apply", "-f", "-", given=_ours("Agent", "sue", _spec(fly=fly)))
    everybody = ("ada", "hedy", "crew-0", "sue")
    for name in everybody:
        stage.ready("agents", name)
    agents = {name: _machine(stage, name) for name in everybody}
    _derived(stage, markers, *everybody)

    # A missing one, one that is no text, one that does not match; one is rotated.
    assert condition(stage, "lost", "SecretsResolved")["reason"] == "SecretMissing"
    spoilt = base64.b64encode(markers.new("no text").encode() + b"\0\xff").decode()
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "spoilt-v1"}, "data": {"env": spoilt}}
    stage.kubectl("apply", "-f", "-", given=body)
    stage.until("no text", lambda: condition(stage, "lost", "SecretsResolved").get("reason") == "SecretKeyInvalid")
    _core(stage, "vault-v1", {"env": markers.new("env, rotated")})
    _calls_of_all_kinds(stage, markers)
    rotated = markers.values["env, rotated"].encode()
    for name, machine in agents.items():
        stage.until(f"{name} should have it", lambda m=machine: rotated in _environment_below(m))
    for name in agents:
        stage.ready("agents", name)
    seen = _seen(stage, markers, agents)
    assert not seen - may, _told(seen - may)
    assert may - seen == {(place, "env") for place, name in may if name == "env"}, "what is there is found"

    # Crashes, another start, a revocation, an end.
    _crashes(stage, agents)
    _damaged_roots(stage)
    stage.kubectl("annotate", "agents", "hedy", "roost.dev/revoked=true")
    stage.until("it should be revoked", lambda: stage.get("agents", "hedy")["status"]["phase"] == "Revoked")
    stage.kubectl("delete", "fleets", "crew", "--timeout=60s")
    stage.ready("agents", "ada")
    leaks = _seen(stage, markers, agents) - may
    assert not leaks, _told(leaks)


def _machine(stage: Stage, name: str) -> Machine:
    app = stage.get("agents", name)["status"]["app"]["name"]
    return next(m for m in stage.machines() if m.app == app)


def _environment_below(machine: Machine) -> bytes:
    found = b""
    for child in psutil.Process(machine.pid).children(recursive=True):
        try:
            found += Path(f"/proc/{child.pid}/environ").read_bytes()
        except OSError:
            pass
    return found
