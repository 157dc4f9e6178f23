"""Fixtures for tests against the real control plane: one for the whole session, a namespace for each test.

`stack` runs etcd, the API server, the controller manager and flysim with the manifests applied, and no operator: who
needs one starts it (`stack.operator_recipe`) or makes a Stack of its own. Its files, logs and audit log are kept where
pytest keeps its last temporary directories.
"""

import secrets
from collections.abc import Iterator

import httpx
import pytest

from roost.local.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The session's control plane and simulated Fly."""
    _end_what_killed_sessions_left(tmp_path_factory)
    with Stack(tmp_path_factory.mktemp("roost-stack"), operator=False, say=print) as running:
        yield running


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Iterator[httpx.Client]:
    """HTTP to the API server, with every right."""
    with stack.api() as client:
        yield client


@pytest.fixture
def namespace(admin: httpx.Client) -> Iterator[str]:
    """The name of a fresh namespace; its deletion is started afterwards and not waited for."""
    name = f"test-{secrets.token_hex(4)}"
    admin.post("/api/v1/namespaces", json={"metadata": {"name": name}}).raise_for_status()
    yield name
    admin.delete(f"/api/v1/namespaces/{name}").raise_for_status()


def _end_what_killed_sessions_left(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A test session that got SIGKILL could not end its stack; its processes are on record in its directory."""
    for record in tmp_path_factory.getbasetemp().parent.glob("*/roost-stack*/processes.json"):
        left = Stack(record.parent)
        if left.owner_is_gone():
            left.down()
