"""The check-in over real sockets: the seed's cases, who else is kept out, and what becomes of the figures."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from endpoint_world import NAMESPACE, ROOTS, Answer, Caller, EndpointWorld, endpoint_world

from roost.agents.names import gateway_token
from roost.agents.sessions import CHECKINS_MISSED
from roost.agents.view import MachineSight
from roost.settings import EndpointLimits, GatewaySecret
from roost_agent.contract import (
    CHECKIN_ROUTES,
    GATEWAY_TOKEN_HEADERS,
    TOKEN_HEADER,
    checkin_path,
    seed_gateway_token,
)

SEED = json.loads((Path(__file__).parents[1] / "contract/data/controller-checkin.json").read_text())
VECTORS = json.loads((Path(__file__).parents[1] / "contract/data/gateway-token-vectors.json").read_text())["vectors"]
CANONICAL, ALIAS = CHECKIN_ROUTES


@pytest.fixture
async def world() -> AsyncIterator[EndpointWorld]:
    async with endpoint_world() as made:
        yield made


@pytest.fixture
async def seeds() -> AsyncIterator[EndpointWorld]:
    """An operator that knows the seed's secret."""
    async with endpoint_world(gateway_secret=GatewaySecret(secret_name="seed-v1", secret_key="hmac")) as made:
        made.secret("seed", {"hmac": SEED["secret"]})
        yield made


@pytest.fixture
def ada(world: EndpointWorld) -> Caller:
    return world.agent("ada")


def gateway(caller: Caller, epoch: int = 0) -> str:
    """The agent's gateway token, as its bundle brings it."""
    born = f"uid-of-{caller.name}"
    return gateway_token(ROOTS.token, ROOTS.owner_id, NAMESPACE, caller.name, born, epoch)


def figures(caller: Caller, **other: Any) -> dict[str, Any]:
    """The seed's valid body, from this agent's machine."""
    return SEED["valid_body"] | {"sandboxId": caller.did, "machineId": caller.machine} | other


async def check_in(
    caller: Caller, body: dict[str, Any] | bytes | None = None, *, path: str = ALIAS, **headers: str | None
) -> Answer:
    """Posts a check-in with both proofs; a header that is None is left out."""
    both = {
        TOKEN_HEADER: None,
        "Authorization": f"Bearer {caller.token}",
        GATEWAY_TOKEN_HEADERS[0]: gateway(caller),
    }
    given = {k.replace("_", "-"): v for k, v in headers.items()}
    sent = {k.replace("-", "_"): v for k, v in (both | given).items()}
    return await caller.say(figures(caller) if body is None else body, path=path.format(did=caller.did), **sent)


# --- The seed's cases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [row["case"] for row in SEED["expected"]])
@pytest.mark.parametrize("header", GATEWAY_TOKEN_HEADERS)
async def test_a_case_of_the_seed_gets_its_answer(
    seeds: EndpointWorld, monkeypatch: pytest.MonkeyPatch, case: str, header: str
) -> None:
    [expected] = [row["expect"] for row in SEED["expected"] if row["case"] == case]
    ada, grace = seeds.agent("ada"), seeds.agent("grace")
    name = header.replace("-", "_")
    proofs: dict[str, str | None] = {"X_Gateway_Token": None} | {name: seed_gateway_token(SEED["secret"], ada.did)}
    body = figures(ada)
    match case:
        case "ok":
            pass
        case "no Authorization header":
            proofs["Authorization"] = None
        case "no gateway token header":
            proofs[name] = None
        case "body fails the schema (e.g. uptimeSeconds is a string)":
            body["uptimeSeconds"] = "86461"
        case "server has no gateway secret configured":
            seeds.secrets.values.clear()
        case "gateway token of another sandbox":
            proofs[name] = seed_gateway_token(SEED["secret"], grace.did)
        case "API key does not belong to the sandbox owner":
            proofs["Authorization"] = f"Bearer {grace.token}"
        case "metrics sink throws":
            monkeypatch.setattr("roost.agents.sessions.fold", lambda *_: 1 / 0)
        case _:
            pytest.fail(f"a case nobody has thought of: {case}")
    answer = await check_in(ada, body, **proofs)
    assert answer.status == expected, answer.content
    assert (answer.content == b"") == (expected == 204)
    assert (ada.memory.figures is not None) == (case == "ok")


async def test_all_that_the_seed_may_add_is_taken(world: EndpointWorld, ada: Caller) -> None:
    assert (await check_in(ada, figures(ada) | SEED["optional_fields"])).status == 204
    assert ada.memory.figures is not None
    assert ada.memory.figures.disk_used == SEED["optional_fields"]["diskUsedBytes"]


@pytest.mark.parametrize("vector", VECTORS)
async def test_the_seeds_tokens_are_what_the_seed_makes(vector: dict[str, str]) -> None:
    assert seed_gateway_token(vector["secret"], vector["sandboxId"]) == vector["token"]


async def test_a_token_of_the_seed_is_not_taken_where_no_secret_is_named(world: EndpointWorld, ada: Caller) -> None:
    answer = await check_in(ada, X_Gateway_Token=seed_gateway_token(SEED["secret"], ada.did))
    assert (answer.status, answer.json["error"]) == (503, "no_gateway_secret")
    assert "endpoint.gatewaySecret" in answer.json["message"]
    assert int(answer.headers["Retry-After"]) > 0
    assert world.secrets.reads == 0


async def test_the_seeds_secret_is_read_once_for_many_calls_and_anew_when_it_changes(seeds: EndpointWorld) -> None:
    ada = seeds.agent("ada")
    before, after = (seed_gateway_token(secret, ada.did) for secret in (SEED["secret"], "another"))
    for _ in range(3):
        assert (await check_in(ada, X_Gateway_Token=before)).status == 204
    assert seeds.secrets.reads == 1
    seeds.secret("seed", {"hmac": "another\n"})  # a newline at its end comes with every file that was edited by hand
    seeds.clock.now += 31
    assert (await check_in(ada, X_Gateway_Token=after)).status == 204
    assert (await check_in(ada, X_Gateway_Token=before)).status == 403
    seeds.secrets.fails_with = 500  # Kubernetes is away: what was known still counts
    seeds.clock.now += 31
    assert (await check_in(ada, X_Gateway_Token=after)).status == 204


@pytest.mark.parametrize("values", [{}, {"hmac": ""}, {"hmac": b"\xff"}, {"other": "x"}])
async def test_a_secret_that_says_nothing_is_none(seeds: EndpointWorld, values: dict[str, str | bytes]) -> None:
    """Above all it is no empty one: anybody could make tokens with that."""
    ada = seeds.agent("ada")
    seeds.secrets.values["seed-v1"] = values
    answer = await check_in(ada, X_Gateway_Token=seed_gateway_token("", ada.did))
    assert (answer.status, answer.json["error"]) == (503, "no_gateway_secret")
    seeds.secret("seed", {"hmac": SEED["secret"]})
    seeds.clock.now += 6
    assert (await check_in(ada, X_Gateway_Token=seed_gateway_token(SEED["secret"], ada.did))).status == 204


# --- Who gets in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHECKIN_ROUTES)
@pytest.mark.parametrize("header", GATEWAY_TOKEN_HEADERS)
async def test_an_agent_of_ours_is_heard_under_both_addresses(ada: Caller, path: str, header: str) -> None:
    proof: dict[str, str | None] = {"X_Gateway_Token": None} | {header.replace("-", "_"): gateway(ada)}
    assert (await check_in(ada, path=path, **proof)).status == 204


@pytest.mark.parametrize("path", CHECKIN_ROUTES)
@pytest.mark.parametrize("lacking", ["Authorization", "X_Gateway_Token"])
async def test_one_proof_is_none(ada: Caller, path: str, lacking: str) -> None:
    answer = await check_in(ada, path=path, **{lacking: None})
    assert (answer.status, answer.json["error"]) == (401, "unauthorized")


async def test_the_heartbeats_own_header_is_no_bearer_token(ada: Caller) -> None:
    assert (await check_in(ada, Authorization=None, X_Heartbeat_Token=ada.token)).status == 401


@pytest.mark.parametrize("path", CHECKIN_ROUTES)
async def test_every_stranger_gets_the_same_answer(world: EndpointWorld, ada: Caller, path: str) -> None:
    grace, nobody = world.agent("grace"), Caller(world, "nobody")
    answers = [
        await check_in(ada, path=path, Authorization="Bearer wrong"),
        await check_in(ada, path=path, Authorization=f"Bearer {grace.token}"),
        await check_in(ada, path=path, X_Gateway_Token="wrong"),
        await check_in(ada, path=path, X_Gateway_Token=gateway(grace)),
        await check_in(ada, path=path, X_Gateway_Token=ada.token),  # one purpose never opens what the other does
        await check_in(ada, path=path, Authorization=f"Bearer {gateway(ada)}"),
        await check_in(ada, path=path, X_Gateway_Token="schlüssel"),
        await check_in(ada, path=path, X_Gateway_Token="A" * 64),
        await check_in(ada, figures(grace), path=path),
        await check_in(nobody, figures(nobody), path=path),
        await check_in(ada, figures(ada, sandboxId=""), path=path),
        await check_in(ada, path=checkin_path(grace.did)),
        await check_in(ada, path=checkin_path("did:key:zNothingOfTheKind")),
    ]
    first = answers[0]
    assert first.status == 403
    for other in answers:
        same = {k: v for k, v in other.headers.items() if k != "Date"}
        assert (other.status, other.content) == (403, first.content)
        assert same == {k: v for k, v in first.headers.items() if k != "Date"}
    assert ada.memory.figures is None
    assert grace.memory.figures is None


async def test_both_proofs_are_tried_whichever_fails(
    world: EndpointWorld, ada: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the time of an answer does not tell which of them was right."""
    tried: list[str] = []
    real = world.sessions.authenticate

    def noted(did: str, token: str, purpose: Any = "heartbeat") -> Any:
        tried.append(purpose)
        return real(did, token, purpose)

    monkeypatch.setattr(world.sessions, "authenticate", noted)
    for wrong in ({"Authorization": "Bearer x"}, {"X_Gateway_Token": "x"}, {}):
        await check_in(ada, **wrong)
    await check_in(Caller(world, "nobody"))
    assert tried == ["heartbeat", "gateway"] * 4


async def test_the_gateway_token_overlaps_as_the_other_does(world: EndpointWorld, ada: Caller) -> None:
    world.clock.now += 1000
    world.agent("ada", identity={"tokenEpoch": 1})
    fresh = Caller(world, "ada", epoch=1)
    # The bundle brings the new gateway token to a machine that still has the heartbeat token before it ...
    assert (await check_in(ada, X_Gateway_Token=gateway(ada, 1))).status == 204
    # ... which therefore goes on working, as does the gateway token before.
    assert (await check_in(ada)).status == 204
    assert (await ada.say()).status == 200
    # The machine has the new heartbeat token: those before it end.
    assert (await check_in(fresh, X_Gateway_Token=gateway(ada, 1))).status == 204
    assert (await check_in(fresh)).status == 403
    assert (await check_in(ada, X_Gateway_Token=gateway(ada, 1))).status == 403


async def test_a_machine_that_was_replaced_is_sent_away(world: EndpointWorld, ada: Caller) -> None:
    world.remembers_machine("ada", "another")
    assert (await check_in(ada)).status == 409
    assert (await check_in(ada, figures(ada, machineId=None))).status == 409  # by the header
    assert (await check_in(ada, figures(ada), X_Machine_Id="another")).status == 409  # by the body
    assert (await check_in(ada, figures(ada, machineId="another"), X_Machine_Id=None)).status == 204
    assert ada.memory.figures is not None
    assert ada.memory.figures.machine_id == "another"


# --- What is not understood -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"uptimeSeconds": "s3cret-value"}, "uptimeSeconds"),
        ({"loadAvg5m": None}, "loadAvg5m"),
        ({"bandwidthBytesIn": -1}, "bandwidthBytesIn"),
        ({"totalRestarts": 2**60}, "totalRestarts"),
        ({"supervisorState": "s3cret-value" * 9}, "supervisorState"),
        ({"productTelemetry": {"channelCount": "s3cret-value"}}, "productTelemetry.channelCount"),
        ({"sandboxId": 7}, "sandboxId"),
    ],
)
@pytest.mark.parametrize("path", CHECKIN_ROUTES)
async def test_a_body_that_is_not_understood_is_refused_by_field(
    ada: Caller, path: str, body: dict[str, Any], named: str
) -> None:
    answer = await check_in(ada, figures(ada) | body, path=path)
    assert (answer.status, answer.json["error"]) == (400, "bad_request")
    assert answer.json["message"].startswith(f"{named}: ")
    assert "s3cret" not in answer.json["message"]
    assert ada.memory.figures is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"sandboxId": "\\ud800"}', b"[" * 9000, b"null"])
async def test_what_is_no_check_in_at_all_is_refused(ada: Caller, body: bytes) -> None:
    assert (await check_in(ada, body)).status == 400


async def test_too_much_is_too_much(ada: Caller) -> None:
    assert (await check_in(ada, figures(ada) | {"more": "x" * 20_000})).status == 413


async def test_a_field_of_a_later_version_does_no_harm(ada: Caller) -> None:
    assert (await check_in(ada, figures(ada) | {"gpu": {"count": 1}, "sandboxName": "x"})).status == 204


async def test_an_agent_that_calls_too_often_is_asked_to_wait() -> None:
    async with endpoint_world(EndpointLimits(requests_per_second=1)) as world:
        ada = world.agent("ada")
        statuses = [(await check_in(ada)).status for _ in range(7)]
        assert statuses == [204] * 5 + [429] * 2


async def test_before_the_cluster_is_known_nobody_is_heard(world: EndpointWorld, ada: Caller) -> None:
    world.ready = False
    for path in CHECKIN_ROUTES:
        answer = await check_in(ada, path=path)
        assert (answer.status, answer.json["error"]) == (503, "not_ready")


# --- Two replicas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHECKIN_ROUTES)
@pytest.mark.parametrize("header", GATEWAY_TOKEN_HEADERS)
async def test_a_standby_passes_a_check_in_on_to_the_leader(world: EndpointWorld, path: str, header: str) -> None:
    async with endpoint_world() as leader:
        theirs = leader.agent("ada")
        ada = world.agent("ada")
        world.leads, world.leader = False, f"http://127.0.0.1:{leader.port}"
        proof: dict[str, str | None] = {"X_Gateway_Token": None} | {header.replace("-", "_"): gateway(ada)}
        answer = await check_in(ada, path=path, **proof)
        assert (answer.status, answer.content) == (204, b"")
        assert theirs.memory.figures is not None
        assert ada.memory.figures is None
        leader.remembers_machine("ada", "another")
        assert (await check_in(ada, path=path, **proof)).status == 409
        assert (await check_in(ada, path=path, Authorization="Bearer x")).status == 403
        assert leader.metric("roost_checkins_total", code="403") == 0  # a stranger gets no further
    world.leader = ""
    answer = await check_in(ada, path=path)
    assert (answer.status, answer.json["error"]) == (503, "no_leader")


# --- What becomes of it ---------------------------------------------------------------------------------------------


def shown(world: EndpointWorld, series: str) -> dict[str, float]:
    """What a scrape shows of a series, by the name of the agent."""
    families = world.metrics.agent_figures.collect()
    found = {s.labels["agent"]: s.value for f in families for s in f.samples if s.name == series}
    return dict(sorted(found.items()))


async def test_a_check_in_counts_once_when_it_is_taken_and_not_otherwise(world: EndpointWorld, ada: Caller) -> None:
    grace = world.agent("grace")
    received = "roost_agent_network_receive_bytes_total"
    assert shown(world, received) == {}
    refused = [
        await check_in(ada, X_Gateway_Token="wrong"),
        await check_in(ada, figures(ada, loadAvg5m=-1)),
        await check_in(ada, figures(ada) | {"more": "x" * 20_000}),
    ]
    assert [answer.status for answer in refused] == [403, 400, 413]
    assert shown(world, received) == {}
    for seconds in (120, 420):
        assert (await check_in(ada, figures(ada, uptimeSeconds=seconds, bandwidthBytesIn=10))).status == 204
    assert (await check_in(grace, figures(grace, bandwidthBytesIn=3))).status == 204
    assert shown(world, received) == {"ada": 20, "grace": 3}
    world.forget("ada")
    assert shown(world, received) == {"grace": 3}
    world.agent("ada")  # another of that name begins anew
    assert shown(world, received) == {"grace": 3}


async def test_an_agent_is_up_while_it_is_heard(world: EndpointWorld, ada: Caller) -> None:
    grace = world.agent("grace", heartbeat={"intervalSeconds": 3600})
    await ada.say()
    await grace.say()
    world.agent("mute")
    assert shown(world, "roost_agent_up") == {"ada": 1, "grace": 1}
    world.clock.now += ada.memory.declared.silence_window + 1
    assert shown(world, "roost_agent_up") == {"ada": 0, "grace": 1}
    assert shown(world, "roost_agent_uptime_seconds").keys() == {"grace"}
    await ada.say()
    await grace.say(grace.beat(status="stopping"))
    assert shown(world, "roost_agent_up") == {"ada": 1, "grace": 0}


async def test_where_it_runs_is_what_fly_says_of_it(world: EndpointWorld, ada: Caller) -> None:
    await ada.say()
    machine = MachineSight(ada.machine, "n", "started", "v", "cdg", "", "", {}, "", 0.0)
    ada.memory.machine_id = ada.machine
    ada.memory.world = replace(ada.memory.world, machines=(machine,))
    [info] = [s for f in world.metrics.agent_figures.collect() for s in f.samples if s.name == "roost_agent_info"]
    assert (info.labels["region"], info.labels["machine_id"]) == ("cdg", ada.machine)


async def test_figures_of_long_ago_are_not_those_of_now(
    world: EndpointWorld, ada: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await check_in(ada)).status == 204
    assert shown(world, "roost_agent_load5") == {"ada": 0.31}
    later = time.time() + CHECKINS_MISSED * 300 + 1
    monkeypatch.setattr("roost.agents.sessions.time.time", lambda: later)
    assert shown(world, "roost_agent_load5") == {}
    assert shown(world, "roost_agent_network_receive_bytes_total") == {"ada": 71234}


# --- What is told ---------------------------------------------------------------------------------------------------


async def test_every_answer_is_counted(world: EndpointWorld, ada: Caller) -> None:
    await check_in(ada)
    await check_in(ada, path=CANONICAL)
    await check_in(ada, X_Gateway_Token="wrong")
    assert world.metric("roost_checkins_total", code="204") == 2
    assert world.metric("roost_checkins_total", code="403") == 1


async def test_figures_that_are_lost_are_told_without_their_values(
    world: EndpointWorld, ada: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError(f"no room for {ada.token}")

    monkeypatch.setattr("roost.agents.sessions.fold", broken)
    with structlog.testing.capture_logs() as lines:
        assert (await check_in(ada)).status == 204
    [line] = [line for line in lines if line["event"] == "figures lost"]
    assert (line["namespace"], line["agent"], line["why"]) == (NAMESPACE, "ada", "ValueError")
    assert ada.token not in str(lines)
    assert gateway(ada) not in str(lines)
