"""Takes our finalizers off, so that resources and CRDs can go while machines stay at Fly.

Only with no operator running: it would put them back, or take what is being deleted away at Fly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from roost.agents.view import FINALIZER as AGENT_FINALIZER
from roost.fleets.plan import FINALIZER as FLEET_FINALIZER
from roost.intake import listing
from roost.kube.client import Conflict, Gone, Kube, collection, set_finalizers
from roost.kube.records import Record, record
from roost.settings import Settings

OURS = {"Fleet": FLEET_FINALIZER, "Agent": AGENT_FINALIZER}
"""Fleets first, so that one that is being deleted does not wait for members. Secrets have no finalizer."""
_OPERATOR = "app.kubernetes.io/name=roost,app.kubernetes.io/component=operator"


class OperatorRuns(Exception):
    """Release must not go on; the message says what to do first."""


@dataclass(frozen=True, slots=True)
class Held:
    """A Fleet or Agent with our finalizer, and what stays at Fly of an Agent ("-" where there is nothing)."""

    kind: str
    namespace: str
    name: str
    app: str
    machine: str
    volume: str
    deleting: bool
    """It goes as soon as it is released, and nothing then knows of its machine but `roost orphans`."""


async def refuse_while_running(kube: Kube, settings: Settings, *, is_stopped: bool) -> None:
    """Makes sure that there is no operator. `is_stopped`: a person says so where no Deployment can tell.

    Raises:
        OperatorRuns: there is one, or nobody can tell.
        KubeError: the cluster can't be asked.
    """
    namespace = settings.namespace
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    found = (await kube.get(path, labelSelector=_OPERATOR))["items"]
    for deployment in found:
        name = deployment["metadata"]["name"]
        if deployment["spec"].get("replicas", 1) > 0:
            raise OperatorRuns(
                f"The operator runs and would put its finalizers back. Stop it first: "
                f"kubectl -n {namespace} scale deployment/{name} --replicas=0"
            )
        if deployment.get("status", {}).get("replicas", 0) > 0:
            raise OperatorRuns(f"The operator is still ending: kubectl -n {namespace} rollout status deployment/{name}")
    if not found and not is_stopped:
        raise OperatorRuns(
            f"There is no Deployment of the operator in namespace {namespace}, so it can't be seen whether one runs "
            "elsewhere, as a process for example. End it, and say so with --operator-is-stopped."
        )


async def held(kube: Kube, namespace: str | None) -> list[Held]:
    """What has a finalizer of ours, in one namespace or in all.

    Raises:
        KubeError: a list can't be read to its end.
    """
    return [_held(found) for found in await _records(kube, namespace)]


async def release(kube: Kube, namespace: str | None) -> list[str]:
    """Takes our finalizers off, others' stay; answers a sentence for each that has failed.

    Raises:
        KubeError: the cluster can't be asked, or refuses.
    """
    failed: Sequence[Record] = ()
    for _ in range(3):
        failed = [found for found in await _records(kube, namespace) if not await _released(kube, found)]
        if not failed:
            return []
    return [f"{f.key.kind} {f.key.namespace}/{f.key.name} is being changed by somebody; try again" for f in failed]


async def _records(kube: Kube, namespace: str | None) -> list[Record]:
    found = [record(body) for kind in OURS for body in [b async for b in listing.objects(kube, kind)]]
    return [f for f in found if OURS[f.key.kind] in f.finalizers and namespace in (None, f.key.namespace)]


async def _released(kube: Kube, found: Record) -> bool:
    path = f"{collection(found.key.kind, found.key.namespace)}/{found.key.name}"
    theirs = [name for name in found.finalizers if name != OURS[found.key.kind]]
    try:
        await set_finalizers(kube, path, str(found.version), theirs)
    except Gone:
        return True
    except Conflict:
        return False
    return True


def _held(found: Record) -> Held:
    status = found.status
    told = ((status.get("app") or {}).get("name"), *((status.get(k) or {}).get("id") for k in ("machine", "volume")))
    app, machine, volume = (word or "-" for word in told)
    return Held(found.key.kind, found.key.namespace, found.key.name, app, machine, volume, found.deleting)
