"""Looks before the start whether the cluster has what we need; kopf would wait in silence for what is missing.

`doctor` and `run` share it: each problem is one sentence with its remedy.
"""

from roost.engine.leader import LEASE_NAME
from roost.kube.client import Gone, Kube, may

_GROUP = "roost.dev"
_LEASES = ("coordination.k8s.io", "leases", ("get", "create", "update"))
"""In the operator's own namespace alone."""
_NEEDED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (_GROUP, "agents", ("get", "list", "watch", "patch", "create", "delete")),
    (_GROUP, "fleets", ("get", "list", "watch", "patch")),
    (_GROUP, "secrets", ("get", "list", "watch")),
    (_GROUP, "agents/status", ("patch",)),
    (_GROUP, "fleets/status", ("patch",)),
    (_GROUP, "secrets/status", ("patch",)),
    ("apps", "controllerrevisions", ("get", "list", "create", "delete")),
    ("events.k8s.io", "events", ("create",)),
    ("", "secrets", ("get",)),
    ("", "configmaps", ("get",)),
)


async def problems(kube: Kube, namespace: str) -> list[str]:
    """What is missing, as sentences with remedies; empty when all is there. `namespace` is the operator's own.

    Raises:
        KubeError: the API server can't be asked at all.
    """
    try:
        found = {r["name"] for r in (await kube.get("/apis/roost.dev/v1alpha1"))["resources"]}
    except Gone:
        found = set()
    lacking = [
        f"CRD {k}.roost.dev is not installed: kubectl apply -k crds"
        for k in ("agents", "fleets", "secrets")
        if k not in found
    ]
    for scope, (group, resource, verbs) in [*(("", needed) for needed in _NEEDED), (namespace, _LEASES)]:
        for verb in verbs:
            if not await may(kube, group, resource, verb, scope, LEASE_NAME if scope else ""):
                name = f"{resource}.{group}" if group else resource
                lacking.append(f"may not {verb} {name}: kubectl apply -k manifests/base grants it")
    return lacking


async def cluster_uid(kube: Kube) -> str:
    """The uid of the kube-system namespace: what tells one cluster from another.

    Raises:
        KubeError: it can't be read (the ClusterRole grants get on this one namespace).
    """
    return str((await kube.get("/api/v1/namespaces/kube-system"))["metadata"]["uid"])
