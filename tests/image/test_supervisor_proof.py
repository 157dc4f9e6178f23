"""A machine to which no token was given: how it gets one for the token that Fly makes of it, and where that is kept."""

import itertools
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from endpoint import TOKEN, OperatorDouble, bundle, refuse
from machine import Machine, eventually, seen_in_proc
from test_image_policies import GOOD

from roost_agent.contract import Exit
from roost_agent.settings import BadEnvironment, read

PROOF = "eyJhbGciOiJSUzI1NiJ9.eyJtYWNoaW5lX2lkIjoibS0xIn0"


class FlyDouble:
    """The socket of one machine. Each token is another, so that none can be used twice unseen."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "api"
        self.asked: list[Any] = []
        self.answer: web.Response | None = None
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        application = web.Application()
        application.router.add_post("/v1/tokens/oidc", self._token)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.UnixSite(self._runner, self.socket).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _token(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        return self.answer or web.Response(text=f"{PROOF}.signature-{next(self._numbers)}")


@pytest.fixture
async def fly() -> AsyncIterator[FlyDouble]:
    with tempfile.TemporaryDirectory() as folder:  # a socket's name must be short
        double = FlyDouble(Path(folder))
        await double.start()
        yield double
        await double.stop()


@pytest.fixture
def machine(machine: Machine, fly: FlyDouble) -> Machine:
    """One that is given no token."""
    del machine.environment["AS_HEARTBEAT_TOKEN"]
    machine.environment |= {"ROOST_BOOTSTRAP": "FlyOidc", "FLY_API_SOCKET": str(fly.socket)}
    return machine


async def test_it_has_its_token_for_the_one_that_fly_makes_for_this_operator_alone(
    machine: Machine, operator: OperatorDouble, fly: FlyDouble
) -> None:
    machine.start()
    await machine.ready()
    assert fly.asked == [{"aud": operator.url}]
    [headers] = operator.proofs
    assert headers["Authorization"] == f"Bearer {PROOF}.signature-1"
    assert headers["X-Machine-Id"] == "m-1"
    assert "X-Heartbeat-Token" not in headers
    assert operator.beats[-1].headers["X-Heartbeat-Token"] == TOKEN
    assert "Authorization" not in operator.beats[-1].headers


async def test_its_token_is_nowhere_but_in_its_memory(machine: Machine, operator: OperatorDouble) -> None:
    operator.change(runtime=bundle()["runtime"] | {"command": ["sh", "-c", "env > env.txt; exec sleep 1000"]})
    machine.start()
    pid = await machine.ready()
    for name in ("environ", "cmdline"):
        assert TOKEN not in seen_in_proc(pid, name) + seen_in_proc(machine.pid, name)
    assert TOKEN not in (machine.data / "env.txt").read_text()
    assert not [p for p in machine.data.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert TOKEN not in machine.log.read_text()
    assert PROOF not in machine.log.read_text()


async def test_a_token_that_was_given_all_the_same_is_not_used(machine: Machine, operator: OperatorDouble) -> None:
    machine.start(AS_HEARTBEAT_TOKEN="left-over-from-before")
    await machine.ready()
    assert {b.headers["X-Heartbeat-Token"] for b in operator.beats} == {TOKEN}


async def test_a_rotated_token_is_asked_for_anew_and_nothing_is_restarted(
    machine: Machine, operator: OperatorDouble, fly: FlyDouble
) -> None:
    machine.start()
    pid = await machine.ready()
    operator.token = "the-token-of-the-next-epoch"
    operator.change(heartbeat={"intervalSeconds": 60})
    assert await machine.ready() == pid
    assert operator.beats[-1].headers["X-Heartbeat-Token"] == operator.token
    assert len(fly.asked) == len(operator.proofs) == 2
    assert not machine.lines("heartbeat not taken"), "no pause: the new one was there at once"


async def test_who_is_refused_with_its_own_token_does_not_ask_without_end(
    machine: Machine, operator: OperatorDouble
) -> None:
    seen: list[str] = []

    def refused() -> web.Response:
        seen.append("refused")
        return refuse(403)()

    def token() -> web.Response:
        seen.append("token")
        return web.json_response({"token": operator.token, "epoch": 0})

    machine.start()
    await machine.ready()
    operator.beat_answer, operator.token_answer = refused, token
    operator.wake()
    await eventually(lambda: len(seen) >= 4, "two tries")
    assert seen[:4] == ["refused", "token"] * 2, "the same token again is no reason to call again at once"
    assert machine.lines("heartbeat not taken")[0]["why"] == "refused with 403"
    operator.beat_answer, operator.holds = None, False
    await eventually(lambda: machine.lines("heartbeat taken again"), "peace")


async def test_without_fly_or_the_endpoint_it_keeps_asking_and_starts_nothing(
    machine: Machine, operator: OperatorDouble, fly: FlyDouble
) -> None:
    """Not even its last good configuration: that is sealed with the token."""
    machine.start()
    await machine.ready()
    assert (machine.data / ".roost/bundle.sealed").exists()
    assert await machine.stop() == Exit.ASKED
    starts = len(machine.lines("runtime started"))

    await fly.stop()
    machine.start()
    await eventually(lambda: machine.lines("no token yet"), "the first failure")
    assert "does not answer" in machine.lines("no token yet")[-1]["why"]
    operator.token_answer = refuse(503, **{"Retry-After": "1"})
    proofs = len(operator.proofs)
    await fly.start()
    await eventually(lambda: len(operator.proofs) > proofs, "a call for a token")
    assert await machine.get("/healthz") == (200, {"status": "starting", "phase": "bundle"})
    assert len(machine.lines("runtime started")) == starts
    operator.token_answer = None
    await machine.ready()


async def test_the_last_good_configuration_serves_when_only_the_new_one_can_not_be_had(
    machine: Machine, operator: OperatorDouble
) -> None:
    machine.start()
    await machine.ready()
    assert await machine.stop() == Exit.ASKED
    operator.bundle_answer = refuse(403)
    machine.start()
    await eventually(lambda: machine.lines("starting with the last good bundle"), "the last good one")
    await machine.heard(lambda b: b["ready"], "ready")


@pytest.mark.parametrize("status", [403, 409])
async def test_a_machine_that_is_not_the_agents_learns_nothing(
    machine: Machine, operator: OperatorDouble, status: int
) -> None:
    operator.token_answer = refuse(status)
    machine.start()
    if status == 409:
        assert await machine.ended() == Exit.ASKED
    else:
        await eventually(lambda: len(operator.proofs) > 1, "another try")
    assert operator.bundle_calls == []
    assert machine.lines("runtime started") == []


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 500, "text": "internal"},
        {"text": "no token at all"},
        {"text": f"{PROOF}.x\r\nX-Other: 1"},
        {"text": f"{PROOF}." + "x" * 20_000 + "."},
    ],
)
async def test_what_is_no_token_of_fly_goes_nowhere(
    machine: Machine, operator: OperatorDouble, fly: FlyDouble, answer: dict[str, Any]
) -> None:
    fly.answer = web.Response(**answer)
    machine.start()
    await eventually(lambda: machine.lines("no token yet"), "the failure")
    assert re.fullmatch(r"Fly's socket \S+ gives no token \(status \d+\)", machine.lines("no token yet")[0]["why"])
    assert operator.proofs == []


@pytest.mark.parametrize("answer", [{}, {"token": ""}, {"token": "with\nnewline", "epoch": 0}, [], {"token": 5}])
async def test_an_answer_without_a_token_is_no_answer(machine: Machine, operator: OperatorDouble, answer: Any) -> None:
    operator.token_answer = lambda: web.json_response(answer)
    machine.start()
    await eventually(lambda: machine.lines("no token yet"), "the failure")
    why = machine.lines("no token yet")[0]["why"]
    assert why.startswith("the answer to the proof makes no sense")
    assert "newline" not in why
    assert operator.bundle_calls == []


def test_where_the_token_comes_from_is_one_of_two_words(tmp_path: Path) -> None:
    given = GOOD | {"DATA_DIR": str(tmp_path)}
    assert read(given | {"ROOST_BOOTSTRAP": "Token"}).token == given["AS_HEARTBEAT_TOKEN"]
    proving = read({k: v for k, v in given.items() if k != "AS_HEARTBEAT_TOKEN"} | {"ROOST_BOOTSTRAP": "FlyOidc"})
    assert proving.token is None
    assert proving.api_socket == Path("/.fly/api")
    with pytest.raises(BadEnvironment, match="ROOST_BOOTSTRAP is 'Magic': set it to Token or FlyOidc"):
        read(given | {"ROOST_BOOTSTRAP": "Magic"})
