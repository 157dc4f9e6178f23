"""The token that a person needs to approve somebody: the same that the operator puts into the agent's bundle."""

import base64
from typing import Any, cast

import pytest

from roost.agents.names import gateway_token
from roost.housekeeping.gateway_token import NoAgent, gateway_token_of
from roost.kube.client import Gone, Kube

ROOT = b"t" * 32
AGENT = "/apis/roost.dev/v1alpha1/namespaces/team-a/agents/ada"
ROOTS = "/api/v1/namespaces/roost-system/secrets/roost-roots"


class Cluster:
    """Holds these objects, by path."""

    def __init__(self, **agent: Any) -> None:
        data = {"identity": b"i" * 32, "token": ROOT, "fingerprint": b"f" * 32, "ownerId": b"owner"}
        secret = {"data": {name: base64.b64encode(value).decode() for name, value in data.items()}}
        self._objects = {AGENT: agent, ROOTS: secret}

    async def get(self, path: str) -> dict[str, Any]:
        if path not in self._objects:
            raise Gone("GET", 404, "not found")
        return self._objects[path]


async def told(cluster: Cluster, name: str = "ada") -> str:
    return await gateway_token_of(cast("Kube", cluster), "roost-system", "team-a", name)


async def test_it_is_of_the_agents_incarnation_and_epoch() -> None:
    status = {"app": {"incarnation": "uid-1"}}
    assert await told(Cluster(spec={}, status=status)) == gateway_token(ROOT, "owner", "team-a", "ada", "uid-1", 0)
    rotated = Cluster(spec={"identity": {"tokenEpoch": 3}}, status=status)
    assert await told(rotated) == gateway_token(ROOT, "owner", "team-a", "ada", "uid-1", 3)


async def test_an_agent_that_is_not_there_or_not_made_yet_is_named() -> None:
    with pytest.raises(NoAgent, match="no Agent team-a/eve"):
        await told(Cluster(spec={}), "eve")
    with pytest.raises(NoAgent, match="no app at Fly yet"):
        await told(Cluster(spec={}, status={"observedGeneration": -1}))
