"""The three ports of an OpenClaw machine, before a real supervisor, where the seed's environment puts them."""

import inspect
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from endpoint import OperatorDouble
from machine import Machine
from openclaw_image import GATEWAY_TOKEN, make, quick, want

from roost_agent.contract import PORTS
from roost_agent.servers import proxy

VERSION = "2026.9.6"
CHOSEN = {"CONTROL_PORT": "28790", "PAIRING_PORT": "28791"}


@pytest.fixture
def openclaw(machine: Machine, operator: OperatorDouble, tmp_path: Path) -> Machine:
    machine.environment |= make(tmp_path / "opt", {VERSION: {}})
    want(operator, VERSION)
    return machine


async def asked(machine: Machine, port: int, path: str, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{machine.address}:{port}{path}", headers=headers) as answer,
    ):
        return answer.status


async def hello(machine: Machine, port: int) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {GATEWAY_TOKEN}"}) as session,
        session.ws_connect(f"http://{machine.address}:{port}/") as listener,
    ):
        return dict(await listener.receive_json(timeout=5))


async def test_three_ports_stand_where_the_environment_says_and_open_with_the_token_alone(openclaw: Machine) -> None:
    openclaw.run(quick(1), **CHOSEN)
    await openclaw.ready()
    looked_at = {PORTS["gateway"]: "/healthz", 28790: "/v1/status", 28791: "/v1/pairings"}
    for port, path in looked_at.items():
        assert await asked(openclaw, port, path) == 401
        assert await asked(openclaw, port, path, Authorization="Bearer wrong") == 401
        assert await asked(openclaw, port, path, Authorization=f"Bearer {GATEWAY_TOKEN}") == 200
    assert await asked(openclaw, PORTS["gateway"], "/healthz", **{"X-KiloClaw-Proxy-Token": GATEWAY_TOKEN}) == 200
    said = await hello(openclaw, 28790)
    assert (said["type"], said["state"]["ready"], said["pairings"]) == ("hello", True, [])
    for port in (PORTS["control"], PORTS["pairing"]):
        with pytest.raises(aiohttp.ClientConnectorError):
            await asked(openclaw, port, "/")
    assert await openclaw.stop() == 0


async def test_an_agent_lives_without_a_port_that_is_taken_and_says_so(
    openclaw: Machine, operator: OperatorDouble
) -> None:
    with socket.create_server((openclaw.address, PORTS["control"])):
        openclaw.run(quick(1))
        await openclaw.heard(lambda b: b["ready"] and b["bootPhase"] == "done", "ready all the same")
        assert operator.last["status"] == "degraded"
        (why,) = operator.last["degraded"]
        assert why.startswith("control: port 18790 can't be opened (")
        assert "address already in use" in why
        bearer = {"Authorization": f"Bearer {GATEWAY_TOKEN}"}
        assert await asked(openclaw, PORTS["pairing"], "/v1/pairings", **bearer) == 200
        assert await asked(openclaw, PORTS["gateway"], "/healthz", **bearer) == 200
    want(operator, VERSION, soul="kind")
    await openclaw.heard(lambda b: b["status"] == "running" and not b["degraded"], "the port, once it is free")
    assert (await hello(openclaw, PORTS["control"]))["type"] == "hello"


def test_the_limits_are_those_that_kiloclaws_callers_know() -> None:
    usual = {name: each.default for name, each in inspect.signature(proxy.serve).parameters.items()}
    assert (usual["idle"], usual["handshake"], proxy.MOST_WEBSOCKETS) == (600, 5, 100)
