"""The local stack with real programs: it starts, tells, ends, survives being killed, and gives the operator its rights.

The operator itself is not needed here: what runs is the control plane and the simulated Fly.
"""

import functools
import json
import os
import re
import select
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from roost.local import binaries, processes
from roost.local.cluster import read_manifests
from roost.local.stack import Stack, manifests_dir

HOLD = """
import sys
from pathlib import Path
from roost.local.stack import Stack
with Stack(Path(sys.argv[1]), operator=False):
    print("up", flush=True)
    sys.stdin.read()
"""


def roost_local(*arguments: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "roost.local", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environ}
    )


@functools.cache
def kubectl_path() -> str:
    return str(binaries.find(say=print).kubectl)


def kubectl(kubeconfig: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [kubectl_path(), "--kubeconfig", str(kubeconfig), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def processes_of(directory: Path) -> dict[int, str]:
    """Every live process that was started with a path below the stack's directory: pid to command line."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if f"{directory}/" in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.info["pid"]] = line
    return found


def recorded(directory: Path) -> dict[str, int]:
    record = json.loads((directory / "processes.json").read_text())
    return {child["name"]: child["pid"] for child in record["children"]}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A place for a stack of its own, which is ended whatever the test did."""
    yield tmp_path / "stack"
    Stack(tmp_path / "stack").down()
    assert processes_of(tmp_path / "stack") == {}


@pytest.fixture(scope="module")
def service_account(stack: Stack) -> Iterator[httpx.Client]:
    """HTTP to the API server as the operator."""
    token = (stack.layout.service_account / "token").read_text()
    with httpx.Client(
        base_url=stack.admin.server,
        headers={"Authorization": f"Bearer {token}"},
        verify=ssl.create_default_context(cafile=str(stack.layout.service_account / "ca.crt")),
    ) as client:
        yield client


# The command


def test_up_status_kubectl_down(directory: Path) -> None:
    up = roost_local("up", "--no-operator", "--dir", directory)
    assert up.returncode == 0, up.stderr
    assert f"export KUBECONFIG={directory}/kubeconfig" in up.stdout
    before = recorded(directory)
    assert set(before) == {"etcd", "kube-apiserver", "kube-controller-manager", "flysim"}
    assert set(processes_of(directory)) == set(before.values())

    status = roost_local("status", "--dir", directory)
    assert status.returncode == 0
    assert re.search(
        r"kube-apiserver +\d+  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d +\d+ MB  https://127\.0\.0\.1:\d+", status.stdout
    )

    assert "roost-system" in kubectl(directory / "kubeconfig", "get", "ns").stdout
    kinds = kubectl(directory / "kubeconfig", "api-resources", "--api-group=roost.dev", "-o", "name").stdout.split()
    assert sorted(kinds) == ["agents.roost.dev", "fleets.roost.dev", "secrets.roost.dev"]

    again = roost_local("up", "--no-operator", "--dir", directory)
    assert again.returncode == 0
    assert "runs already" in again.stdout
    assert f"export KUBECONFIG={directory}/kubeconfig" in again.stdout
    assert recorded(directory) == before

    os.kill(before["flysim"], signal.SIGKILL)
    status = roost_local("status", "--dir", directory)
    assert status.returncode == 3
    assert re.search(r"flysim +\d+  not running", status.stdout)

    assert roost_local("down", "--dir", directory).returncode == 0
    assert processes_of(directory) == {}
    assert roost_local("status", "--dir", directory).returncode == 3
    assert "Nothing runs" in roost_local("down", "--dir", directory).stdout


def test_secrets_of_the_stack_are_for_its_owner_only(stack: Stack) -> None:
    assert stack.layout.root.stat().st_mode & 0o077 == 0
    for path in (stack.kubeconfig, stack.layout.record, stack.layout.service_account / "token"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_child_that_dies_at_start_is_heard_and_everything_goes(directory: Path, tmp_path: Path) -> None:
    """An etcd of the right version that can't run; the simulated Fly was started before it."""
    assets = tmp_path / "assets"
    assets.mkdir()
    real = binaries.find(say=print)
    for path in (real.kube_apiserver, real.kube_controller_manager):
        (assets / path.name).symlink_to(path)
    version = f'[ "$1" = --version ] && echo "etcd Version: {binaries.ETCD_VERSION}" && exit'
    (assets / "etcd").write_text(f"#!/bin/sh\n{version}\necho no memory; exit 7\n")
    (assets / "etcd").chmod(0o755)
    up = roost_local("up", "--no-operator", "--dir", directory, KUBEBUILDER_ASSETS=str(assets))
    assert up.returncode == 1
    assert "etcd ended while starting" in up.stderr
    assert "no memory" in up.stderr
    assert processes_of(directory) == {}


# Crashes


def hold(directory: Path) -> "subprocess.Popen[str]":
    """A process that starts a stack and holds it until it is told to end it."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_line(process: "subprocess.Popen[str]", seconds: float) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, f"nothing was said in {seconds} s"
    return process.stdout.readline().strip()


def test_what_a_killed_owner_left_is_ended_by_the_next_up(directory: Path) -> None:
    with hold(directory) as owner:
        assert read_line(owner, 60) == "up"
        assert not Stack(directory).owner_is_gone()
        owner.send_signal(signal.SIGKILL)
    left = recorded(directory)
    assert Stack(directory).owner_is_gone()
    assert set(processes_of(directory)) == set(left.values())
    for name in ("kube-apiserver", "etcd"):
        os.kill(left[name], signal.SIGKILL)

    up = roost_local("up", "--no-operator", "--dir", directory)
    assert up.returncode == 0, up.stderr
    now = recorded(directory)
    assert set(processes_of(directory)) == set(now.values())
    assert not set(now.values()) & set(left.values())
    assert "roost-system" in kubectl(directory / "kubeconfig", "get", "ns").stdout


def test_an_owner_killed_while_starting_leaves_nothing_unknown(directory: Path) -> None:
    with hold(directory) as owner:
        wait_for_child(directory, "kube-apiserver", owner)
        owner.send_signal(signal.SIGKILL)
    known = set(recorded(directory).values())
    assert set(processes_of(directory)) <= known
    assert roost_local("down", "--dir", directory).returncode == 0
    assert processes_of(directory) == {}


def test_an_interrupted_up_takes_everything_down(directory: Path) -> None:
    command = [sys.executable, "-m", "roost.local", "up", "--no-operator", "--dir", str(directory)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as up:
            wait_for_child(directory, "kube-apiserver", up)
            up.send_signal(number)
            up.communicate(timeout=60)
        assert up.returncode == 128 + number
        assert processes_of(directory) == {}


def wait_for_child(directory: Path, name: str, starter: "subprocess.Popen[str]") -> None:
    """Waits until a child is on record; the file is replaced whole, so that reading it at any time is safe."""
    for _ in range(3000):
        if (directory / "processes.json").exists() and name in recorded(directory):
            return
        try:
            starter.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"it ended before {name} was started: {starter.returncode}")
    raise AssertionError(f"{name} was not started in time")


@pytest.mark.parametrize("killed", [False, True], ids=["in order", "after a crash of the simulator"])
def test_simulated_machines_never_outlive_the_stack(directory: Path, killed: bool) -> None:
    with Stack(directory, operator=False) as stack:
        family = start_machine(stack)
        assert len(family) == 2
        if killed:
            stack.kill("flysim", signal.SIGKILL)
            assert all(processes.find(*process) for process in family)
    assert not [process for process in family if processes.find(*process)]


def start_machine(stack: Stack) -> list[tuple[int, float]]:
    """A machine whose main process started another one in a session of its own: pid and start time of both."""
    program = "setsid sleep 1000 & echo $!; exec sleep 1000"
    config = {"image": "roost/agent:0.1.0", "init": {"exec": ["sh", "-c", program]}}
    with httpx.Client(base_url=stack.fly_url, headers={"Authorization": f"Bearer {stack.fly_token}"}) as fly:
        fly.post("/v1/apps", json={"app_name": "app", "org_slug": "personal"}).raise_for_status()
        made = fly.post("/v1/apps/app/machines", json={"config": config}).raise_for_status().json()
        fly.get(f"/v1/apps/app/machines/{made['id']}/wait", params={"state": "started"}).raise_for_status()
        (machine,) = fly.get("/_sim/machines").raise_for_status().json()
    with subprocess.Popen(["tail", "-n+1", "-f", machine["log"]], stdout=subprocess.PIPE, text=True) as log:
        other = int(read_line(log, 30))
        log.terminate()
    return [(pid, processes.started_after_boot(pid)) for pid in (machine["pid"], other)]


def test_a_program_can_be_killed_and_started_again_with_its_state(directory: Path) -> None:
    with Stack(directory, operator=False) as stack:
        assert kubectl(stack.kubeconfig, "create", "ns", "kept").returncode == 0
        before = recorded(directory)
        stack.kill("kube-apiserver", signal.SIGKILL)
        assert kubectl(stack.kubeconfig, "get", "ns", "--request-timeout=1s").returncode != 0
        stack.restart("kube-apiserver")
        assert kubectl(stack.kubeconfig, "get", "ns", "kept").returncode == 0
        after = recorded(directory)
        assert {name for name in before if before[name] != after[name]} == {"kube-apiserver"}


# The cluster


def test_namespaces_and_owned_objects_are_really_collected(admin: httpx.Client, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = admin.post(maps, json={"metadata": {"name": "owner"}}).json()["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    admin.post(maps, json={"metadata": {"name": "owned", "ownerReferences": [reference]}}).raise_for_status()
    with admin.stream("GET", maps, params={"watch": "true", "timeoutSeconds": "30"}) as events:
        admin.delete(f"{maps}/owner").raise_for_status()
        seen = (json.loads(line) for line in events.iter_lines())
        assert any(e["type"] == "DELETED" and e["object"]["metadata"]["name"] == "owned" for e in seen)
    spaces = {"watch": "true", "timeoutSeconds": "30", "fieldSelector": f"metadata.name={namespace}-gone"}
    admin.post("/api/v1/namespaces", json={"metadata": {"name": f"{namespace}-gone"}}).raise_for_status()
    with admin.stream("GET", "/api/v1/namespaces", params=spaces) as events:
        admin.delete(f"/api/v1/namespaces/{namespace}-gone").raise_for_status()
        assert any(json.loads(line)["type"] == "DELETED" for line in events.iter_lines())


def test_the_audit_log_has_what_was_written_to_our_kinds_and_no_more(
    stack: Stack, admin: httpx.Client, namespace: str
) -> None:
    secrets = f"/apis/roost.dev/v1alpha1/namespaces/{namespace}/secrets"
    source = {"secretRef": {"name": "core"}}
    ours = {"apiVersion": "roost.dev/v1alpha1", "kind": "Secret", "metadata": {"name": "audited"}}
    body = ours | {"spec": {"source": source}}
    admin.post(secrets, json=body).raise_for_status()
    core = {"metadata": {"name": "core"}, "stringData": {"key": "hunter2"}}
    admin.post(f"/api/v1/namespaces/{namespace}/secrets", json=core).raise_for_status()
    admin.get(f"{secrets}/audited").raise_for_status()
    entries = [json.loads(line) for line in stack.audit_path.read_text().splitlines()]
    here = [entry for entry in entries if entry.get("objectRef", {}).get("namespace") == namespace]
    by_group = {(e["objectRef"].get("apiGroup", ""), e["objectRef"]["resource"], e["verb"]): e for e in here}
    assert by_group["roost.dev", "secrets", "create"]["requestObject"]["spec"]["source"] == source
    assert "requestObject" not in by_group["", "secrets", "create"]
    assert not {verb for _, _, verb in by_group} & {"get", "list", "watch"}
    assert "hunter2" not in stack.audit_path.read_text()


# The manifests


def test_the_base_is_what_kustomize_makes_of_it() -> None:
    made = subprocess.run(
        [kubectl_path(), "kustomize", str(manifests_dir())], capture_output=True, text=True, timeout=60, check=True
    )
    by_name = {identity(o): o for o in yaml.safe_load_all(made.stdout)}
    ours = {identity(o): o for o in read_manifests(manifests_dir())}
    assert by_name == ours
    assert len([kind for kind, *_ in ours if kind == "CustomResourceDefinition"]) == 3


def identity(resource: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = resource["metadata"]
    return resource["kind"], metadata.get("namespace", ""), metadata["name"]


def test_the_base_is_accepted_by_the_api_server(stack: Stack) -> None:
    applied = kubectl(stack.kubeconfig, "apply", "-k", str(manifests_dir()), "--server-side", "--dry-run=server")
    assert applied.returncode == 0, applied.stderr
    assert "deployment.apps/roost serverside-applied (server dry run)" in applied.stdout
    assert "warning" not in applied.stderr.lower(), applied.stderr


def test_the_deployment_meets_restricted_pod_security(stack: Stack) -> None:
    """The API server judges a Pod made of its template, in the namespace that enforces it."""
    (deployment,) = (o for o in read_manifests(manifests_dir()) if o["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "roost", "namespace": "roost-system"}}
    good = dry_run(stack, pod | {"spec": template["spec"]})
    assert good.returncode == 0, good.stderr
    del template["spec"]["securityContext"]
    bad = dry_run(stack, pod | {"spec": template["spec"]})
    assert bad.returncode != 0
    assert "violates PodSecurity" in bad.stderr


def dry_run(stack: Stack, resource: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
    command = [kubectl_path(), "--kubeconfig", str(stack.kubeconfig), "create", "--dry-run=server", "-f", "-"]
    return subprocess.run(command, input=json.dumps(resource), capture_output=True, text=True, timeout=60, check=False)


# The operator's rights


def test_the_operator_is_its_service_account(service_account: httpx.Client) -> None:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    who = service_account.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json=review).json()
    assert who["status"]["userInfo"]["username"] == "system:serviceaccount:roost-system:roost"


def test_the_fly_token_is_where_the_operator_looks(service_account: httpx.Client, stack: Stack) -> None:
    secret = service_account.get("/api/v1/namespaces/roost-system/secrets/roost-fly")
    assert secret.status_code == 200
    answers = {
        httpx.get(f"{stack.fly_url}/v1/apps", params={"org_slug": "personal"}, headers=headers).status_code
        for headers in ({"Authorization": f"Bearer {stack.fly_token}"}, {"Authorization": "Bearer wrong"})
    }
    assert answers == {200, 401}


def test_core_secrets_and_deployments_are_out_of_reach(service_account: httpx.Client) -> None:
    """Really asked, not only reviewed."""
    refused = [
        service_account.get("/api/v1/secrets"),
        service_account.get("/api/v1/namespaces/roost-system/secrets"),
        service_account.get("/api/v1/secrets", params={"watch": "true"}),
        service_account.delete("/api/v1/namespaces/roost-system/secrets/roost-fly"),
        service_account.get("/apis/apps/v1/namespaces/roost-system/deployments"),
        service_account.get("/apis/apps/v1/namespaces/roost-system/deployments/roost"),
        service_account.delete("/apis/apps/v1/namespaces/roost-system/deployments/roost"),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)


OURS = ("agents.roost.dev", "fleets.roost.dev", "secrets.roost.dev")
# Every (resource, namespace, name) with the verbs that must be allowed; all other verbs must not.
RIGHTS = [
    ("agents.roost.dev", "team-a", "", {"get", "list", "watch", "patch", "create", "delete"}),
    ("fleets.roost.dev", "team-a", "", {"get", "list", "watch", "patch"}),
    ("secrets.roost.dev", "team-a", "", {"get", "list", "watch"}),
    *((f"{resource}/status", "team-a", "", {"patch"}) for resource in OURS),
    ("fleets.roost.dev/finalizers", "team-a", "", {"update"}),
    ("controllerrevisions.apps", "team-a", "", {"get", "list", "create", "delete"}),
    ("deployments.apps", "roost-system", "", set()),
    ("events.events.k8s.io", "team-a", "", {"create"}),
    ("secrets", "team-a", "", {"get"}),
    ("secrets", "roost-system", "roost-roots", {"get", "create"}),
    ("secrets", "roost-system", "roost-fly", {"get", "create"}),
    ("configmaps", "team-a", "", {"get"}),
    ("namespaces", "kube-system", "kube-system", {"get"}),
    ("namespaces", "team-a", "team-a", set()),
    ("pods", "roost-system", "", set()),
    ("leases.coordination.k8s.io", "roost-system", "roost", {"get", "create", "update"}),
    ("leases.coordination.k8s.io", "roost-system", "another", {"create"}),
    ("leases.coordination.k8s.io", "team-a", "roost", set()),
    ("customresourcedefinitions.apiextensions.k8s.io", "", "", {"list", "watch"}),
    ("clusterroles.rbac.authorization.k8s.io", "", "", set()),
]


@pytest.mark.parametrize(("resource", "where", "name", "allowed"), RIGHTS)
def test_the_operator_may_do_what_it_needs_and_no_more(
    admin: httpx.Client, resource: str, where: str, name: str, allowed: set[str]
) -> None:
    plural, _, group = resource.partition(".")
    group, _, subresource = group.partition("/")
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")

    def may(verb: str) -> bool:
        attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
        spec = {
            "user": "system:serviceaccount:roost-system:roost",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:roost-system", "system:authenticated"],
            "resourceAttributes": attributes | {"namespace": where, "name": name},
        }
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = admin.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", json=review).raise_for_status()
        return bool(answer.json()["status"]["allowed"])

    assert {verb for verb in verbs if may(verb)} == allowed
