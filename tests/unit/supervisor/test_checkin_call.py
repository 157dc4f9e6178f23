"""The call of a check-in over a real socket: its two proofs, and what each answer means."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from image.endpoint import DID, TOKEN, OperatorDouble, bundle, refuse
from roost.agents.names import gateway_token
from roost_agent.contract import Checkin
from roost_agent.endpoint import Busy, Endpoint, NotAllowed, NotUnderstood, Superseded, Unreachable
from roost_agent.settings import Settings, read
from unit.endpoint.endpoint_world import NAMESPACE, ROOTS, endpoint_world

SEED = json.loads((Path(__file__).parents[1] / "contract/data/controller-checkin.json").read_text())
GATEWAY = "gateway-token-of-the-agent"


def figures(did: str = DID, machine: str = "m-1") -> Checkin:
    return Checkin.read(json.dumps(SEED["valid_body"] | {"sandboxId": did, "machineId": machine}))


def settings(folder: Path, url: str, **other: str) -> Settings:
    environ = {"AGENT_DID": DID, "AGENTSHIELD_API_URL": url, "AS_HEARTBEAT_TOKEN": TOKEN, "FLY_MACHINE_ID": "m-1"}
    return read(environ | {"DATA_DIR": str(folder)} | other)


@pytest.fixture
async def operator() -> AsyncIterator[OperatorDouble]:
    double = OperatorDouble()
    double.bundle = bundle(secretEnv={"OPENCLAW_GATEWAY_TOKEN": GATEWAY})
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
async def endpoint(operator: OperatorDouble, tmp_path: Path) -> AsyncIterator[Endpoint]:
    async with Endpoint(settings(tmp_path, operator.url)) as made:
        yield made


async def test_it_proves_itself_twice_and_says_which_machine_it_is(
    operator: OperatorDouble, endpoint: Endpoint
) -> None:
    await endpoint.checkin(figures(), GATEWAY)
    [(body, headers)] = operator.checkins
    assert body == json.loads(figures().write())
    assert (headers["Authorization"], headers["X-Gateway-Token"]) == (f"Bearer {TOKEN}", GATEWAY)
    assert (headers["X-Machine-Id"], headers["Content-Type"]) == ("m-1", "application/json")
    assert "X-Heartbeat-Token" not in headers


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (200, Unreachable),  # nobody but the operator says 204: a page that answers everything takes no figures
        (302, Unreachable),
        (304, Unreachable),
        (400, NotUnderstood),
        (401, NotAllowed),
        (403, NotAllowed),
        (404, Unreachable),
        (409, Superseded),
        (413, NotUnderstood),
        (429, Busy),
        (500, Unreachable),
        (503, Busy),
    ],
)
async def test_any_answer_but_204_is_none(
    operator: OperatorDouble, endpoint: Endpoint, status: int, meaning: type[Exception]
) -> None:
    operator.checkin_answer = refuse(status) if status != 304 else lambda: web.Response(status=304)
    with pytest.raises(meaning):
        await endpoint.checkin(figures(), GATEWAY)


async def test_a_wrong_gateway_token_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(NotAllowed):
        await endpoint.checkin(figures(), "another")


async def test_it_waits_ten_seconds_for_an_answer(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    async def noted(*_: Any, **kwargs: Any) -> tuple[int, bytes]:
        given.update(kwargs)
        return 204, b""

    monkeypatch.setattr(endpoint, "_send", noted)
    await endpoint.checkin(figures(), GATEWAY)
    assert given["seconds"] == 10


async def test_an_endpoint_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost_agent.endpoint._CHECKIN_SECONDS", 0.05)
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with Endpoint(settings(tmp_path, url)) as endpoint:
        with pytest.raises(Unreachable, match="no answer"):
            await endpoint.checkin(figures(), GATEWAY)
    silent.close()


async def test_the_real_operator_takes_it(tmp_path: Path) -> None:
    async with endpoint_world() as world:
        ada = world.agent("ada")
        gateway = gateway_token(ROOTS.token, ROOTS.owner_id, NAMESPACE, "ada", "uid-of-ada", 0)
        real = replace(
            settings(tmp_path, f"http://127.0.0.1:{world.port}"), did=ada.did, token=ada.token, machine_id=ada.machine
        )
        async with Endpoint(real) as endpoint:
            await endpoint.checkin(figures(ada.did, ada.machine), gateway)
            assert ada.memory.figures is not None
            assert ada.memory.figures.received == SEED["valid_body"]["bandwidthBytesIn"]
            with pytest.raises(NotAllowed):
                await endpoint.checkin(figures(ada.did, ada.machine), ada.token)
            world.remembers_machine("ada", "another")
            with pytest.raises(Superseded):
                await endpoint.checkin(figures(ada.did, ada.machine), gateway)
