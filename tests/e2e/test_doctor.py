"""`roost doctor` against a real cluster: what it says when all is there, and when a kind is missing."""

import subprocess
import sys

import httpx
import yaml

from roost.local.stack import Stack


def doctor(stack: Stack) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "roost.cli", "doctor", "--kubeconfig", str(stack.kubeconfig)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def test_a_cluster_that_has_everything_is_told_so(stack: Stack) -> None:
    done = doctor(stack)
    assert (done.returncode, done.stdout) == (0, "This cluster has everything that Roost needs.\n")


def test_a_missing_right_is_named_with_the_command_that_grants_it(stack: Stack, admin: httpx.Client) -> None:
    """A person who may only look at things asks: the doctor speaks of the credentials it was given."""
    admin.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "looker"}}).raise_for_status()
    path = "/api/v1/namespaces/default/serviceaccounts/looker/token"
    token = admin.post(path, json={"spec": {}}).raise_for_status().json()["status"]["token"]
    config = yaml.safe_load(stack.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    theirs = stack.kubeconfig.with_name("looker.kubeconfig")
    theirs.write_text(yaml.safe_dump(config))
    argv = [sys.executable, "-m", "roost.cli", "doctor", "--kubeconfig", str(theirs)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "may not patch agents.roost.dev: kubectl apply -k manifests/base grants it" in done.stdout.splitlines()
