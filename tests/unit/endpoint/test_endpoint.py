"""What agents call, over real sockets: who gets in, what they get, what they are told and when."""

import asyncio
import gc
import gzip
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from endpoint_world import DEADLINE, MAX_BODY, Answer, Caller, EndpointWorld, endpoint_world

from roost.agents.sessions import OVERLAP_SECONDS
from roost.agents.view import MachineSight
from roost.engine.queue import Lane
from roost.kube.records import Key
from roost_agent.contract import (
    BUNDLE_ROUTES,
    HEARTBEAT_ROUTES,
    MAX_WAIT_SECONDS,
    TOKEN_HEADER,
    ConfigBundle,
    HeartbeatAnswer,
    bundle_path,
    heartbeat_path,
)

VALUE = "sk-ant-very-secret-value"
WITH_SECRET = [{"name": "API_KEY", "valueFrom": {"name": "anthropic", "key": "api-key"}}]


@pytest.fixture
async def world() -> AsyncIterator[EndpointWorld]:
    async with endpoint_world() as made:
        yield made


@pytest.fixture
def ada(world: EndpointWorld) -> Caller:
    return world.agent("ada")


def without_date(answer: Answer) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k != "Date"}


# --- Who gets in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fetch", "say"])
async def test_without_credentials_one_is_asked_for_them(ada: Caller, method: str) -> None:
    answer = await getattr(ada, method)(X_Heartbeat_Token=None)
    assert answer.status == 401
    assert answer.json["error"] == "unauthorized"


@pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer  ", "token"])
async def test_credentials_of_another_kind_are_none(ada: Caller, header: str) -> None:
    assert (await ada.fetch(X_Heartbeat_Token=None, Authorization=header)).status == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_token_may_come_in_either_header(ada: Caller, scheme: str) -> None:
    assert (await ada.fetch()).status == 200
    assert (await ada.fetch(X_Heartbeat_Token=None, Authorization=f"{scheme} {ada.token}")).status == 200


@pytest.mark.parametrize("method", ["fetch", "say"])
async def test_every_stranger_gets_the_same_answer(world: EndpointWorld, ada: Caller, method: str) -> None:
    """A wrong token, another agent's token, and an agent that does not exist can't be told apart."""
    grace, nobody = world.agent("grace"), Caller(world, "nobody")
    path = {"fetch": bundle_path, "say": heartbeat_path}[method]
    nobodys = {"beat": ada.beat()} if method == "say" else {}
    answers = [
        await getattr(ada, method)(X_Heartbeat_Token="wrong"),
        await getattr(ada, method)(X_Heartbeat_Token=grace.token),
        await getattr(ada, method)(X_Heartbeat_Token=ada.token + "x"),
        await getattr(ada, method)(path=path(grace.did)),
        await getattr(nobody, method)(**nobodys),
        await getattr(ada, method)(path=path("did:key:zNothingOfTheKind")),
        await getattr(ada, method)(path=path("a%2Fb")),
    ]
    first = answers[0]
    assert first.status == 403
    assert first.json == {"error": "forbidden", "message": "these credentials are not good for this agent"}
    for other in answers:
        assert (other.status, other.content, without_date(other)) == (403, first.content, without_date(first))


@pytest.mark.parametrize("token", [b"\xff\xfe", "schlüssel".encode(), b"\xed\xa0\x80", b"x" * 7000])
async def test_a_token_of_strange_bytes_is_a_strangers(world: EndpointWorld, ada: Caller, token: bytes) -> None:
    answer = await raw(world, b"GET %s HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: %s\r\n" % (path_of(ada), token))
    assert answer.split(b"\r\n", 1)[0] == b"HTTP/1.1 403 Forbidden"


async def test_refusing_a_stranger_keeps_nothing_of_the_request_in_mind(world: EndpointWorld, ada: Caller) -> None:
    """An exception that is raised again and again would grow a traceback, and hold every request with its token."""
    for _ in range(20):
        assert (await ada.fetch(X_Heartbeat_Token="wrong")).status == 403
    gc.collect()
    kept = [o for o in gc.get_objects() if isinstance(o, web.BaseRequest) and "/agents/did" in o.path]
    assert len(kept) <= 2  # the connection of the last one


async def test_an_agent_made_again_under_its_name_does_not_know_its_predecessors_token(world: EndpointWorld) -> None:
    ada = world.agent("ada")
    world.forget("ada")
    world.agent("ada", metadata={"uid": "another-uid"})
    assert (await ada.fetch()).status == 403
    assert (await Caller(world, "ada", incarnation="another-uid").fetch()).status == 200


async def test_an_adopted_agent_keeps_its_first_incarnation(world: EndpointWorld) -> None:
    """Restored from a backup it has another uid; its status remembers who first made the app."""
    ada = world.agent("ada", metadata={"uid": "restored"})
    found = world.cache.get(ada.key)
    assert found is not None
    world.cache.put(replace(found, version=found.version + 1, status={"app": {"incarnation": "uid-of-ada"}}))
    world.look(ada.key)
    assert (await ada.fetch()).status == 200


async def test_before_the_cluster_was_read_everybody_is_asked_to_come_again(world: EndpointWorld, ada: Caller) -> None:
    world.ready = False
    for answer in (await ada.fetch(), await ada.say(), await ada.fetch(X_Heartbeat_Token=None)):
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/agents/x/heartbeat"), ("GET", "/"), ("POST", "/metrics")])
async def test_what_is_no_call_of_the_contract_is_said_in_its_manner(
    world: EndpointWorld, method: str, path: str
) -> None:
    async with world.http.request(method, path) as answer:
        assert answer.status in (404, 405)
        assert set(await answer.json()) == {"error", "message"}


# --- Tokens that are rotated ----------------------------------------------------------------------------------------


async def test_the_token_before_works_until_the_new_one_was_proved(world: EndpointWorld, ada: Caller) -> None:
    world.agent("ada", identity={"tokenEpoch": 1})
    after = Caller(world, "ada", epoch=1)
    assert (await ada.say()).status == 200
    assert (await after.say()).status == 200
    assert (await ada.say()).status == 403
    assert (await after.say()).status == 200


async def test_the_token_before_ends_by_itself_after_a_while(world: EndpointWorld, ada: Caller) -> None:
    world.agent("ada", identity={"tokenEpoch": 1})
    world.clock.now += OVERLAP_SECONDS
    assert (await ada.say()).status == 200
    world.clock.now += 1
    assert (await ada.say()).status == 403


async def test_older_tokens_than_the_one_before_are_dead_at_once(world: EndpointWorld, ada: Caller) -> None:
    world.agent("ada", identity={"tokenEpoch": 2})
    assert (await ada.say()).status == 403
    assert (await Caller(world, "ada", epoch=1).say()).status == 200


async def test_a_revoked_agents_token_before_gets_no_overlap(world: EndpointWorld, ada: Caller) -> None:
    world.agent("ada", identity={"tokenEpoch": 1}, revoked=True)
    assert (await ada.fetch()).status == 403


# --- The bundle -----------------------------------------------------------------------------------------------------


async def test_the_bundle_comes_whole_and_is_not_to_be_stored(world: EndpointWorld) -> None:
    world.secret("anthropic", {"api-key": VALUE})
    ada = world.agent(
        "ada",
        env=[*WITH_SECRET, {"name": "TZ", "value": "Europe/Rome"}],
        files=[{"path": "a/key", "mode": "0400", "contentFrom": {"name": "anthropic", "key": "api-key"}}],
        metadata={"labels": {"roost.dev/fleet": "support", "roost.dev/ordinal": "2"}},
    )
    answer = await ada.fetch()
    bundle = ConfigBundle.read(answer.content)
    assert bundle.env == {"TZ": "Europe/Rome"}
    assert bundle.secret_env["API_KEY"] == VALUE
    assert [(f.path, f.mode, f.content) for f in bundle.files] == [("a/key", "0400", VALUE)]
    assert (bundle.agent.did, bundle.agent.fleet, bundle.agent.ordinal) == (ada.did, "support", 2)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["ETag"] == f'"{bundle.revision}"'
    assert bundle.revision == ada.memory.revision


@pytest.mark.parametrize("route", BUNDLE_ROUTES)
async def test_both_addresses_of_the_bundle_lead_to_it(ada: Caller, route: str) -> None:
    assert (await ada.fetch(path=route.format(did=ada.did))).json["agent"]["did"] == ada.did


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', "{}"])
async def test_an_unchanged_bundle_is_not_sent_again_and_costs_no_read(world: EndpointWorld, form: str) -> None:
    world.secret("anthropic", {"api-key": VALUE})
    ada = world.agent("ada", env=WITH_SECRET)
    revision = (await ada.fetch()).json["revision"]
    reads = world.secrets.reads
    answer = await ada.fetch(If_None_Match=form.format(revision))
    assert (answer.status, answer.content) == (304, b"")
    assert answer.headers["ETag"] == f'"{revision}"'
    assert world.secrets.reads == reads


async def test_a_change_of_what_is_declared_is_another_revision(world: EndpointWorld, ada: Caller) -> None:
    before = (await ada.fetch()).json["revision"]
    world.agent("ada", env=[{"name": "A", "value": "1"}])
    answer = await ada.fetch(If_None_Match=f'"{before}"')
    assert answer.status == 200
    assert answer.json["revision"] != before


async def test_a_value_that_is_newer_than_our_last_look_is_sent_and_looked_at(world: EndpointWorld) -> None:
    world.secret("anthropic", {"api-key": VALUE})
    ada = world.agent("ada", env=WITH_SECRET)
    before = (await ada.fetch()).json["revision"]
    world.secrets.values["anthropic-v1"] = {"api-key": "rotated"}
    world.clock.now += 1.0  # what is read serves others for a moment
    answer = await ada.fetch()
    assert answer.json["secretEnv"]["API_KEY"] == "rotated"
    assert answer.json["revision"] != before
    assert world.engine.queue.holds(Key("CoreSecret", "team-a", "anthropic-v1"))


async def test_a_revoked_agent_gets_nothing_that_it_could_use(world: EndpointWorld) -> None:
    world.secret("anthropic", {"api-key": VALUE})
    files = [{"path": "key", "contentFrom": {"name": "anthropic", "key": "api-key"}}, {"path": "x", "content": "plain"}]
    whole = {"env": [*WITH_SECRET, {"name": "TZ", "value": "UTC"}], "files": files}
    ada = world.agent("ada", **whole)
    before = (await ada.fetch()).json["revision"]
    world.agent("ada", **whole, metadata={"annotations": {"roost.dev/revoked": "true"}})
    reads = world.secrets.reads
    answer = await ada.fetch(If_None_Match=f'"{before}"')
    bundle = ConfigBundle.read(answer.content)
    assert bundle.revoked
    assert (bundle.runtime, bundle.env, bundle.secret_env, bundle.files) == (None, {}, {}, [])
    assert VALUE.encode() not in answer.content
    assert world.secrets.reads == reads, "a value was read for a revoked agent"


async def test_a_bundle_that_lacks_a_secret_is_not_sent_half(world: EndpointWorld) -> None:
    ada = world.agent("ada", env=WITH_SECRET)
    assert (await ada.fetch()).status == 503
    world.secret("anthropic", {"other": "x"})
    answer = await ada.fetch()
    assert (answer.status, answer.json["error"], answer.headers["Retry-After"]) == (503, "not_now", "5")
    assert answer.json["message"] == "the bundle can't be made now: secret anthropic lacks key api-key"
    world.secret("anthropic", {"api-key": VALUE})
    assert (await ada.fetch()).status == 200


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_while_kubernetes_can_not_be_asked_the_agent_keeps_what_it_has(world: EndpointWorld, status: int) -> None:
    world.secret("anthropic", {"api-key": VALUE})
    ada = world.agent("ada", env=WITH_SECRET)
    world.secrets.fails_with = status
    answer = await ada.fetch()
    assert (answer.status, answer.json["error"]) == (503, "not_now")
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a\0b"])
async def test_a_value_that_no_variable_can_hold_is_a_matter_of_the_secret_not_a_crash(
    world: EndpointWorld, value: bytes
) -> None:
    world.secret("anthropic", {"api-key": VALUE})
    ada = world.agent("ada", env=WITH_SECRET)
    world.secrets.values["anthropic-v1"] = {"api-key": value}
    assert (await ada.fetch()).status == 503


# --- Machines that are no longer the agent's ------------------------------------------------------------------------


def runs_on(world: EndpointWorld, caller: Caller, machine: str) -> None:
    """Fly was seen to hold this machine for the Agent."""
    seen = MachineSight(
        id=machine,
        name="ada",
        state="started",
        version="1",
        region="iad",
        private_ip="",
        image="x",
        metadata={},
        updated_at="",
        seen_at=0.0,
    )
    caller.memory.world = replace(caller.memory.world, machines=(seen,))
    caller.memory.machine_id = machine  # as each look at the Agent notes it


async def test_a_machine_that_came_back_with_its_host_gets_no_secret_and_no_word(
    world: EndpointWorld, ada: Caller
) -> None:
    runs_on(world, ada, "new-machine")
    for answer in (
        await ada.fetch(X_Machine_Id="old-machine"),
        await ada.say(X_Machine_Id="old-machine"),
        await ada.say(ada.beat(machineId="old-machine"), X_Machine_Id=None),
        await ada.say(
            ada.beat(machineId="old-machine"), path=HEARTBEAT_ROUTES[1].format(did=ada.did), X_Machine_Id=None
        ),
    ):
        assert (answer.status, answer.json["error"]) == (409, "superseded")
    assert ada.memory.heard is None, "its word was taken for the current machine's"
    assert (await ada.say(ada.beat(machineId="new-machine"), X_Machine_Id="new-machine")).status == 200


async def test_a_machine_can_not_speak_in_the_name_of_another(world: EndpointWorld, ada: Caller) -> None:
    runs_on(world, ada, "new-machine")
    assert (await ada.say(ada.beat(machineId="old-machine"), X_Machine_Id="new-machine")).status == 409


async def test_after_a_restart_the_status_says_which_machine_is_the_current_one(
    world: EndpointWorld, ada: Caller
) -> None:
    world.remembers_machine("ada", "known-machine")
    assert (await ada.fetch(X_Machine_Id="old-machine")).status == 409
    assert (await ada.fetch(X_Machine_Id="known-machine")).status == 200


async def test_a_machine_held_open_is_told_when_another_takes_its_place(world: EndpointWorld, ada: Caller) -> None:
    runs_on(world, ada, ada.machine)
    held = asyncio.create_task(ada.say(wait="20"))
    await world.until_held()
    runs_on(world, ada, "new-machine")
    world.look(ada.key)
    async with asyncio.timeout(DEADLINE):
        assert (await held).status == 409


# --- The heartbeat --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", HEARTBEAT_ROUTES)
async def test_both_addresses_of_the_heartbeat_lead_to_it(ada: Caller, route: str) -> None:
    answer = await ada.say(path=route.format(did=ada.did))
    assert HeartbeatAnswer.read(answer.content).next_heartbeat_seconds == 30
    assert ada.memory.heard is not None


async def test_the_interval_that_is_declared_is_told(world: EndpointWorld) -> None:
    ada = world.agent("ada", heartbeat={"intervalSeconds": 7})
    assert (await ada.say()).json["nextHeartbeatSeconds"] == 7


async def test_only_what_is_new_wakes_the_planner(world: EndpointWorld, ada: Caller) -> None:
    queue = world.engine.queue
    await ada.say()
    popped = queue.pop()
    assert popped is not None
    assert popped[0].key == ada.key
    queue.done(popped[0])
    await ada.say(ada.beat(uptimeSeconds=90, memoryMb=41))
    assert not queue.holds(ada.key)
    await ada.say(ada.beat(ready=False))
    assert queue.holds(ada.key)


async def test_an_agent_of_the_seed_systems_is_understood(world: EndpointWorld, ada: Caller) -> None:
    """Six fields, no machine header, bearer token, the older address."""
    six = {k: ada.beat()[k] for k in ("status", "machineId", "uptimeSeconds", "memoryMb", "computeVersion")}
    answer = await ada.say(
        six | {"openclawVersion": "2026.9.6"},
        path=HEARTBEAT_ROUTES[1].format(did=ada.did),
        X_Heartbeat_Token=None,
        X_Machine_Id=None,
        Authorization=f"Bearer {ada.token}",
    )
    assert answer.status == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"machineId": None}, "machineId"),
        ({"uptimeSeconds": -1}, "uptimeSeconds"),
        ({"memoryMb": "40"}, "memoryMb"),
        ({"computeVersion": "x" * 65}, "computeVersion"),
        ({"degraded": ["line\nforged"]}, "degraded.0"),
        ({"degraded": ["x"] * 17}, "degraded"),
        ({"runtime": {"state": "running", "restarts": -1}}, "runtime.restarts"),
        ({"disk": {"usedBytes": 1}}, "disk.totalBytes"),
    ],
)
async def test_a_heartbeat_out_of_bounds_is_refused_and_the_field_is_named(
    ada: Caller, change: dict[str, Any], field: str
) -> None:
    answer = await ada.say(ada.beat(**change))
    assert (answer.status, answer.json["error"]) == (400, "bad_request")
    assert answer.json["message"].startswith(f"{field}: ")
    assert ada.memory.heard is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":1}x', b"[" * 10_000])
async def test_a_body_that_is_no_heartbeat_is_refused(ada: Caller, body: bytes) -> None:
    assert (await ada.say(body)).status == 400


@pytest.mark.parametrize("wait", ["soon", "1s", "--", "0x10"])
async def test_a_wait_that_is_no_number_is_refused(ada: Caller, wait: str) -> None:
    answer = await ada.say(wait=wait)
    assert (answer.status, answer.json["message"]) == (400, "wait: a number of seconds is needed")


@pytest.mark.parametrize("wait", ["0", "-5", "nan", "-inf"])
async def test_a_wait_of_nothing_is_answered_at_once(ada: Caller, wait: str) -> None:
    async with asyncio.timeout(DEADLINE):
        assert (await ada.say(wait=wait)).commands == []


# --- Bodies that are too large --------------------------------------------------------------------------------------


async def test_a_body_of_exactly_the_limit_is_read(ada: Caller) -> None:
    whole = json.dumps(ada.beat()).encode()
    assert (await ada.say(whole + b" " * (MAX_BODY - len(whole)))).status == 200
    assert (await ada.say(whole + b" " * (MAX_BODY - len(whole) + 1))).status == 413


async def test_a_body_that_says_it_is_too_large_is_refused_unread(world: EndpointWorld, ada: Caller) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: %s\r\nContent-Length: 999999999\r\n"
    answer = await raw(world, head % (heartbeat_path(ada.did).encode(), ada.token.encode()))  # not a byte of it is sent
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"error":"too_large"' in answer


async def test_a_body_in_pieces_that_never_ends_is_refused_at_the_limit(world: EndpointWorld, ada: Caller) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: %s\r\nTransfer-Encoding: chunked\r\n"
    pieces = b"1000\r\n%s\r\n" % (b"x" * 4096) * (MAX_BODY // 4096) + b"1\r\nx\r\n"
    answer = await raw(world, head % (heartbeat_path(ada.did).encode(), ada.token.encode()), pieces)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_small_body_that_unpacks_to_a_huge_one_is_refused(world: EndpointWorld, ada: Caller) -> None:
    bomb = gzip.compress(b" " * 20_000_000)
    answer = await ada.say(bomb, Content_Encoding="gzip")
    assert answer.status in (400, 413)


async def test_a_strangers_body_is_not_read(world: EndpointWorld, ada: Caller) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nX-Heartbeat-Token: wrong\r\nContent-Length: 100\r\n"
    assert (await raw(world, head % heartbeat_path(ada.did).encode())).startswith(b"HTTP/1.1 403 ")


# --- Commands -------------------------------------------------------------------------------------------------------


async def test_a_command_is_repeated_until_the_heartbeat_shows_its_effect(world: EndpointWorld) -> None:
    ada = world.agent("ada", restartedAt="monday")
    for _ in range(2):
        assert (await ada.say()).commands == ["restart:monday"]
    assert (await ada.say(ada.beat(restartedAt="monday"))).commands == []


async def test_a_command_that_is_due_is_told_without_any_wait(world: EndpointWorld) -> None:
    ada = world.agent("ada", desiredState="Stopped")
    async with asyncio.timeout(DEADLINE):
        assert (await ada.say(wait="25")).commands == ["stop:desiredState"]


async def test_a_command_reaches_a_held_heartbeat_in_no_more_than_one_round_trip(
    world: EndpointWorld, ada: Caller
) -> None:
    held = asyncio.create_task(ada.say(wait="25"))
    await world.until_held()
    world.look(ada.key)  # a look that changes nothing is no reason to answer
    began = time.monotonic()
    world.agent("ada", restartedAt="now")
    async with asyncio.timeout(DEADLINE):
        answer = await held
    assert answer.commands == ["restart:now"]
    assert time.monotonic() - began < 0.5
    assert world.metric("roost_long_polls") == 0


async def test_a_command_that_appears_while_a_heartbeat_settles_down_to_wait_is_not_missed(
    world: EndpointWorld, ada: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for commands and the wait for news there is no gap through which news could fall."""
    due, loop, asked = world.sessions.due, asyncio.get_running_loop(), []

    def due_and_then_news(session: Any, beat: Any) -> Any:
        answer = due(session, beat)
        if not asked:
            loop.call_soon(lambda: world.agent("ada", restartedAt="now"))
        asked.append(answer)
        return answer

    monkeypatch.setattr(world.sessions, "due", due_and_then_news)
    async with asyncio.timeout(DEADLINE):
        assert (await ada.say(wait="25")).commands == ["restart:now"]


async def test_without_a_command_the_answer_comes_at_the_end_of_the_wait(ada: Caller) -> None:
    began = time.monotonic()
    assert (await ada.say(wait="0.3")).commands == []
    assert 0.3 <= time.monotonic() - began < 0.3 + DEADLINE


@pytest.mark.parametrize("wait", ["1e9", "inf"])
async def test_nobody_is_held_longer_than_the_contract_says(
    world: EndpointWorld, ada: Caller, wait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    until, now = world.endpoint._until, asyncio.get_running_loop().time

    def at_once(when: float) -> set[asyncio.Future[None]]:
        asked.append(when - now())
        asyncio.get_running_loop().call_soon(asyncio.ensure_future, world.endpoint.release())
        return until(when)

    monkeypatch.setattr(world.endpoint, "_until", at_once)
    assert (await ada.say(wait=wait)).commands == []
    assert asked == [pytest.approx(MAX_WAIT_SECONDS, abs=1)]


async def test_a_held_heartbeat_is_answered_when_the_operator_goes_away(world: EndpointWorld, ada: Caller) -> None:
    held = [asyncio.create_task(ada.say(wait="25")) for _ in range(20)]
    await world.until_held(20)
    world.ready = False  # as it is told before anybody is let go
    await world.endpoint.release()
    async with asyncio.timeout(DEADLINE):
        answers = await asyncio.gather(*held)
    assert [(a.status, a.commands) for a in answers] == [(200, [])] * 20


async def test_a_held_heartbeat_of_an_agent_that_is_gone_ends_and_does_not_spin(
    world: EndpointWorld, ada: Caller
) -> None:
    held = asyncio.create_task(ada.say(wait="25"))
    await world.until_held()
    world.forget("ada")
    async with asyncio.timeout(DEADLINE):
        assert (await held).status == 403


async def test_a_held_heartbeat_ends_when_its_token_does(world: EndpointWorld, ada: Caller) -> None:
    held = asyncio.create_task(ada.say(wait="25"))
    await world.until_held()
    world.agent("ada", identity={"tokenEpoch": 2})
    async with asyncio.timeout(DEADLINE):
        assert (await held).status == 403


async def test_callers_that_go_away_leave_nothing_behind(world: EndpointWorld, ada: Caller) -> None:
    before = asyncio.all_tasks()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{world.port}") as http:
        headers = {TOKEN_HEADER: ada.token}
        url = heartbeat_path(ada.did) + "?wait=1"
        held = [asyncio.create_task(http.post(url, json=ada.beat(), headers=headers)) for _ in range(10)]
        await world.until_held(10)
        for call in held:
            call.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    await world.until_held(0)
    await world.until(lambda: not {t for t in asyncio.all_tasks() - before if not t.done()}, "all tasks ended")


# --- What it counts and what it tells -------------------------------------------------------------------------------


async def test_answers_are_counted_by_their_code(world: EndpointWorld, ada: Caller) -> None:
    await ada.say()
    await ada.say(X_Heartbeat_Token="wrong")
    await ada.say(b"{")
    revision = (await ada.fetch()).json["revision"]
    await ada.fetch(If_None_Match=revision)
    await ada.fetch(X_Heartbeat_Token=None)
    for name, code in [
        ("roost_heartbeats_total", "200"),
        ("roost_heartbeats_total", "403"),
        ("roost_heartbeats_total", "400"),
        ("roost_bundles_total", "200"),
        ("roost_bundles_total", "304"),
        ("roost_bundles_total", "401"),
    ]:
        assert world.metric(name, code=code) == 1, (name, code)


async def test_no_token_no_body_and_no_value_ever_reaches_a_log(
    world: EndpointWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.secret("anthropic", {"api-key": VALUE})
    with structlog.testing.capture_logs() as lines:
        ada = world.agent("ada", env=WITH_SECRET)
        await ada.fetch()
        await ada.fetch(X_Heartbeat_Token="stolen-token")
        await ada.say(ada.beat(degraded=["body-text-of-mine"]))
        await ada.say(b'{"status": "body-text-of-mine"')
        await ada.say(ada.beat(memoryMb="body-text-of-mine"))
        world.secrets.fails_with = 500
        await ada.fetch()
        world.secrets.fails_with, world.secrets.values["anthropic-v1"] = None, {"api-key": VALUE.encode() + b"\xff"}
        await ada.fetch()
    told = repr(lines) + caplog.text + repr([r.__dict__ for r in caplog.records])
    for hidden in (VALUE, ada.token, "stolen-token", "body-text-of-mine"):
        assert hidden not in told


async def test_no_value_is_kept_where_it_could_be_seen(world: EndpointWorld) -> None:
    world.secret("anthropic", {"api-key": VALUE})
    ada = world.agent("ada", env=WITH_SECRET)
    assert VALUE in (await ada.fetch()).content.decode()
    seen = repr([ada.memory, world.table, world.cache.get(ada.key), ConfigBundle.read((await ada.fetch()).content)])
    assert VALUE not in seen


def path_of(caller: Caller) -> bytes:
    return bundle_path(caller.did).encode()


async def raw(world: EndpointWorld, head: bytes, body: bytes = b"") -> bytes:
    """Sends bytes as they are, after these headers `Connection: close`; returns all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    try:
        writer.write(head + b"Connection: close\r\n\r\n" + body)
        async with asyncio.timeout(DEADLINE):
            return await reader.readuntil(b"}")
    finally:
        writer.close()


def test_the_lane_of_news_from_agents_is_the_users() -> None:
    """What an agent says changes what people see: it is not housekeeping."""
    assert Lane.USER < Lane.BACKGROUND
