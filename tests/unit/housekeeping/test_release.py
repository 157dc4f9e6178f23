"""When release refuses; that it releases is told against a real API server."""

from typing import Any, cast

import pytest

from roost.housekeeping.release import OperatorRuns, refuse_while_running
from roost.kube.client import Kube
from roost.settings import Settings


class Cluster:
    """Answers with these Deployments of the operator: replicas wanted, and those that there are."""

    def __init__(self, *deployments: tuple[int | None, int]) -> None:
        self._deployments = deployments

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        assert path == "/apis/apps/v1/namespaces/roost-system/deployments"
        assert "app.kubernetes.io/component=operator" in params["labelSelector"]
        return {
            "items": [
                {
                    "metadata": {"name": f"roost-{i}"},
                    "spec": {} if wanted is None else {"replicas": wanted},
                    "status": {"replicas": there} if there else {},
                }
                for i, (wanted, there) in enumerate(self._deployments)
            ]
        }


async def refusal(*deployments: tuple[int | None, int], is_stopped: bool = False) -> str:
    try:
        await refuse_while_running(cast("Kube", Cluster(*deployments)), Settings(), is_stopped=is_stopped)
    except OperatorRuns as error:
        return str(error)
    return ""


@pytest.mark.parametrize("wanted", [1, 2, None])
async def test_an_operator_that_is_to_run_is_refused_with_the_command_that_stops_it(wanted: int | None) -> None:
    told = await refusal((0, 0), (wanted, 0), is_stopped=True)
    assert told.endswith("kubectl -n roost-system scale deployment/roost-1 --replicas=0")


async def test_an_operator_that_is_still_ending_is_waited_for() -> None:
    assert "kubectl -n roost-system rollout status deployment/roost-0" in await refusal((0, 1), is_stopped=True)


async def test_where_no_deployment_tells_a_person_must() -> None:
    assert "--operator-is-stopped" in await refusal()
    assert await refusal(is_stopped=True) == ""


async def test_a_deployment_without_replicas_tells_that_it_is_stopped() -> None:
    assert await refusal((0, 0)) == ""
