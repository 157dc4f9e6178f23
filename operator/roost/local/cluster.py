"""What the stack itself asks of its API server, as admin: apply manifests, ask for a token, wait for kinds.

Synchronous and small on purpose: it runs once per start. The operator has its own way to the API server.
"""

import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

FIELD_MANAGER = "roost-local"

_POLL_SECONDS = 0.02


class ClusterError(Exception):
    """The API server refused something the stack needs; the message names the object and its answer."""


@dataclass(frozen=True, slots=True)
class Admin:
    """How to reach the API server with every right. `token` goes into an `Authorization: Bearer` header."""

    server: str
    token: str
    ca_file: Path


class Cluster:
    """A connection to the API server, to be closed; `with` does it."""

    def __init__(self, admin: Admin) -> None:
        self._http = httpx.Client(
            base_url=admin.server,
            headers={"Authorization": f"Bearer {admin.token}"},
            verify=ssl.create_default_context(cafile=str(admin.ca_file)),
            timeout=30.0,
            trust_env=False,
        )
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def apply(self, resource: Mapping[str, Any]) -> None:
        """Server-side apply of one object, strict about unknown fields. Raises ClusterError."""
        path = self._path(resource)
        answer = self._http.patch(
            path,
            params={"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            content=yaml.safe_dump(dict(resource)).encode(),
        )
        _succeeded(answer, f"{resource['kind']} {resource['metadata']['name']}")

    def token(self, namespace: str, service_account: str, *, seconds: int) -> str:
        """A token of a ServiceAccount that lives `seconds`. Raises ClusterError."""
        answer = self._http.post(
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token",
            json={
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": seconds},
            },
        )
        _succeeded(answer, f"token of ServiceAccount {namespace}/{service_account}")
        return str(answer.json()["status"]["token"])

    def wait_for_kinds(self, crds: Iterable[Mapping[str, Any]], *, deadline: float) -> None:
        """Waits until the kinds of these CRDs are served; `deadline` is a `time.monotonic()`. Raises ClusterError.

        Served is what can be listed: a kind is discovered before that, and its first lists are answered 429.
        """
        for crd in crds:
            for version in crd["spec"]["versions"]:
                group_version, names = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]
                while not self._lists(group_version, names["kind"], names["plural"]):
                    if time.monotonic() > deadline:
                        raise ClusterError(f"the API server does not serve {names['kind']} of {group_version}")
                    time.sleep(_POLL_SECONDS)

    def _lists(self, group_version: str, kind: str, plural: str) -> bool:
        if kind not in self._discover(group_version):
            return False
        return self._http.get(f"{_root(group_version)}/{plural}", params={"limit": 1}).is_success

    def _path(self, resource: Mapping[str, Any]) -> str:
        group_version, kind, metadata = resource["apiVersion"], resource["kind"], resource["metadata"]
        if group_version not in self._kinds:
            self._kinds[group_version] = self._discover(group_version)
        known = self._kinds[group_version].get(kind)
        if known is None:
            raise ClusterError(f"the API server does not know {kind} of {group_version}")
        plural, namespaced = known
        middle = f"namespaces/{metadata.get('namespace', 'default')}/" if namespaced else ""
        return f"{_root(group_version)}/{middle}{plural}/{metadata['name']}"

    def _discover(self, group_version: str) -> dict[str, tuple[str, bool]]:
        """Kind → (plural, namespaced); empty while the group is unknown."""
        answer = self._http.get(_root(group_version))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return {}
        _succeeded(answer, f"discovery of {group_version}")
        resources = answer.json()["resources"]
        return {r["kind"]: (r["name"], r["namespaced"]) for r in resources if "/" not in r["name"]}


def read_manifests(folder: Path) -> list[dict[str, Any]]:
    """The objects a kustomization of plain resources stands for, in its order.

    Understands `resources` alone: folders and files. The base uses nothing else, so this is what
    `kubectl kustomize` prints.
    """
    found: list[dict[str, Any]] = []
    for entry in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = folder / entry
        if path.is_dir():
            found += read_manifests(path)
        else:
            found += [document for document in yaml.safe_load_all(path.read_text()) if document]
    return found


def _root(group_version: str) -> str:
    return f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}"


def _succeeded(answer: httpx.Response, what: str) -> None:
    if answer.is_error:
        try:
            message = answer.json().get("message", answer.text)
        except ValueError:
            message = answer.text
        raise ClusterError(f"{what}: the API server answers {answer.status_code}: {message}")
