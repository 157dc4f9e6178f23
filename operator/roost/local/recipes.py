"""How each program of the stack is started, where it listens and how it shows that it answers.

Everything listens on 127.0.0.1. The operator's environment holds no kubeconfig: it can only be its ServiceAccount.
"""

import fcntl
import json
import os
import random
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import yaml

from roost.local.binaries import Binaries
from roost.local.credentials import CONTROLLER_MANAGER_USER, Credentials, kubeconfig, write_private

NAMESPACE = "roost-system"
SERVICE_ACCOUNT = "roost"
FLY_SECRET = "roost-fly"
FLY_ORG = "personal"
AGENT_IMAGE = "roost/agent:0.1.0"
REGIONS = ("iad",)
REFRESH_SECONDS = 15

_CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
)

# Writes on our kinds with what was written; other writes by name only; reads not at all.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "omitManagedFields": True,
    "rules": [
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "Request", "resources": [{"group": "roost.dev"}]},
        {"level": "Metadata"},
    ],
}

_LEAD_AWAY = frozenset({"KUBECONFIG", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"})

# Below the range from which systems hand out ports by themselves, so that nothing takes one between choice and use.
_BLOCKS = range(20_000, 32_000, 10)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the stack's directory."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "processes.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def credentials(self) -> Path:
        return self.root / "credentials"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def fly(self) -> Path:
        return self.root / "fly"

    @property
    def machines(self) -> Path:
        return self.fly / "machines"

    @property
    def ledger(self) -> Path:
        return self.fly / "ledger.jsonl"

    @property
    def audit(self) -> Path:
        return self.root / "audit.jsonl"

    @property
    def audit_policy(self) -> Path:
        return self.root / "audit-policy.yaml"

    @property
    def images(self) -> Path:
        return self.root / "images.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def service_account(self) -> Path:
        return self.root / "serviceaccount"

    @property
    def settings(self) -> Path:
        return self.root / "operator.yaml"

    def all_made(self) -> tuple[Path, ...]:
        """Everything a start makes, and so may remove before the next one; nothing else in the directory is ours."""
        return (
            self.record,
            self.logs,
            self.credentials,
            self.etcd,
            self.fly,
            *sorted(self.root.glob("audit*.jsonl")),
            self.audit_policy,
            self.images,
            self.kubeconfig,
            self.service_account,
            self.settings,
        )


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports on 127.0.0.1."""

    etcd: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    fly: int
    endpoint: int
    metrics: int
    edge: int

    @classmethod
    @contextmanager
    def reserved(cls) -> Iterator[Self]:
        """Ports that nothing listens on, and that no other stack takes while the block lasts.

        Stacks take whole blocks: one that runs keeps its block with any of its ports, also while it restarts a program.
        """
        locks = Path(tempfile.gettempdir()) / f"roost-ports-{os.getuid()}"
        locks.mkdir(mode=0o700, exist_ok=True)
        for first in random.sample(_BLOCKS, len(_BLOCKS)):
            with (locks / str(first)).open("w") as lock:
                if _locked(lock) and all(_free(port) for port in range(first, first + _BLOCKS.step)):
                    yield cls(*range(first, first + len(cls.__slots__)))
                    return
        raise OSError(f"no ten free ports in a row on 127.0.0.1 between {_BLOCKS.start} and {_BLOCKS.stop}")


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        # A connection that was closed a moment ago does not keep a server from listening; a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A program to start. It answers when GET `ready_url` gives 200; `patience` is seconds from SIGTERM to SIGKILL."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    address: str
    ready_url: str
    patience: float


def etcd(binaries: Binaries, layout: Layout, ports: Ports) -> Recipe:
    client, peer = f"http://127.0.0.1:{ports.etcd}", f"http://127.0.0.1:{ports.etcd_peer}"
    return Recipe(
        "etcd",
        (
            str(binaries.etcd),
            f"--data-dir={layout.etcd}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        ),
        _small_environment(),
        client,
        f"{client}/health",
        5.0,
    )


def apiserver(binaries: Binaries, layout: Layout, ports: Ports, credentials: Credentials) -> Recipe:
    server = f"https://127.0.0.1:{ports.apiserver}"
    return Recipe(
        "kube-apiserver",
        (
            str(binaries.kube_apiserver),
            f"--etcd-servers=http://127.0.0.1:{ports.etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            # There is no Service network; without this it wants to publish its loopback address and fails.
            "--endpoint-reconciler-type=none",
            f"--secure-port={ports.apiserver}",
            f"--tls-cert-file={credentials.serving_certificate}",
            f"--tls-private-key-file={credentials.serving_key}",
            "--authorization-mode=RBAC",
            f"--token-auth-file={credentials.token_file}",
            f"--service-account-key-file={credentials.service_account_public_key}",
            f"--service-account-signing-key-file={credentials.service_account_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--audit-policy-file={layout.audit_policy}",
            f"--audit-log-path={layout.audit}",
            "--audit-log-maxsize=2048",
            "--profiling=false",
        ),
        _small_environment(),
        server,
        f"{server}/readyz",
        # With watches open it takes 61 s to SIGTERM; nothing of its state outlives the stack.
        2.0,
    )


def controller_manager(binaries: Binaries, layout: Layout, ports: Ports, credentials: Credentials) -> Recipe:
    address = f"https://127.0.0.1:{ports.controller_manager}"
    config = layout.credentials / "controller-manager.kubeconfig"
    return Recipe(
        "kube-controller-manager",
        (
            str(binaries.kube_controller_manager),
            f"--kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--secure-port={ports.controller_manager}",
            f"--tls-cert-file={credentials.serving_certificate}",
            f"--tls-private-key-file={credentials.serving_key}",
            f"--controllers={','.join(_CONTROLLERS)}",
            f"--service-account-private-key-file={credentials.service_account_key}",
            f"--root-ca-file={credentials.ca_file}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--profiling=false",
        ),
        _small_environment(),
        address,
        f"{address}/healthz",
        2.0,
    )


def fly(layout: Layout, ports: Ports, credentials: Credentials) -> Recipe:
    address = f"http://127.0.0.1:{ports.fly}"
    return Recipe(
        "flysim",
        (
            sys.executable,
            *("-m", "flysim.cli", "serve"),
            f"--listen=127.0.0.1:{ports.fly}",
            f"--edge=127.0.0.1:{ports.edge}",
            f"--state={layout.fly}",
            f"--images={layout.images}",
            f"--token={credentials.fly_token}",
            f"--org={FLY_ORG}",
        ),
        _own_environment(),
        address,
        f"{address}/_sim/machines",
        # It ends its machines first, each in its own stop timeout.
        20.0,
    )


def operator(layout: Layout, ports: Ports) -> Recipe:
    environment = _own_environment() | {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(ports.apiserver),
        "ROOST_SERVICE_ACCOUNT_DIR": str(layout.service_account),
    }
    return Recipe(
        "operator",
        (sys.executable, "-m", "roost.cli", "run", "--config", str(layout.settings)),
        environment,
        f"http://127.0.0.1:{ports.endpoint}",
        f"http://127.0.0.1:{ports.metrics}/readyz",
        10.0,
    )


def write_files(layout: Layout, ports: Ports, credentials: Credentials, openclaw: Path | None = None) -> None:
    """Writes what the programs read at start: audit policy, kubeconfigs, image catalogue, the operator's settings.

    `openclaw` is where OpenClaw and its Node are, for machines that can run it.
    """
    server = f"https://127.0.0.1:{ports.apiserver}"
    write_private(layout.audit_policy, yaml.safe_dump(_AUDIT_POLICY).encode())
    write_private(
        layout.credentials / "controller-manager.kubeconfig",
        kubeconfig(
            server=server,
            ca_file=credentials.ca_file,
            user=CONTROLLER_MANAGER_USER,
            token=credentials.controller_manager_token,
        ),
    )
    write_private(
        layout.kubeconfig,
        kubeconfig(server=server, ca_file=credentials.ca_file, user="admin", token=credentials.admin_token),
    )
    write_private(layout.images, json.dumps(_image_catalogue(openclaw), indent=2).encode())
    write_private(layout.settings, yaml.safe_dump(_settings(ports), sort_keys=False).encode())


def write_service_account(layout: Layout, *, token: str, ca_file: Path) -> None:
    """Writes the folder that a Pod would find at its ServiceAccount mount."""
    layout.service_account.mkdir(mode=0o700, exist_ok=True)
    write_private(layout.service_account / "token", token.encode())
    write_private(layout.service_account / "ca.crt", ca_file.read_bytes())
    write_private(layout.service_account / "namespace", NAMESPACE.encode())


def _image_catalogue(openclaw: Path | None) -> dict[str, object]:
    """The simulator has no mount or network namespaces: volume directory and address come by environment."""
    env = {"DATA_DIR": "{volume}", "ROOST_BIND_ADDRESS": "{address}"}
    if openclaw is not None:
        env |= {"ROOST_OPENCLAW_DIR": str(openclaw / "openclaw"), "ROOST_NODE": str(openclaw / "node/bin/node")}
    return {"images": {AGENT_IMAGE: {"command": [sys.executable, "-m", "roost_agent"], "env": env}}}


def _settings(ports: Ports) -> dict[str, object]:
    endpoint, fly = f"127.0.0.1:{ports.endpoint}", f"http://127.0.0.1:{ports.fly}"
    return {
        "endpoint": {"listen": endpoint, "publicUrl": f"http://{endpoint}"},
        "metrics": {"listen": f"127.0.0.1:{ports.metrics}"},
        "fly": {
            "baseUrl": fly,
            "org": FLY_ORG,
            "oidcIssuer": f"{fly}/oidc/{{org}}",
            "refreshSeconds": REFRESH_SECONDS,
        },
        "defaults": {"image": AGENT_IMAGE, "regions": list(REGIONS)},
    }


def _small_environment() -> dict[str, str]:
    """For programs that need nothing of the caller's environment (proxies would even harm: all is on loopback)."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}


def _own_environment() -> dict[str, str]:
    """For our own programs: the caller's, without what leads to another cluster or away from loopback."""
    return {name: value for name, value in os.environ.items() if name.upper() not in _LEAD_AWAY}
