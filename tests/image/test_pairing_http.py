"""Letting people in over HTTP: real calls to the real server, before a runtime of the tests."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_calls import SECONDS, TOKEN, Answered, answer, asked, connected, head, json_request, request

from roost_agent.runtime.openclaw.pairing import NoSuchPairing, NotReady, Pairing
from roost_agent.servers import pairing_http
from roost_agent.servers.pairing_http import described

ANN = Pairing(
    channel="telegram",
    account="default",
    id="req-1",
    sender="777001",
    code="MP73QBCH",
    name="ann",
    created_at="2026-11-21T12:00:00Z",
    expires_at="2026-11-21T13:00:00Z",
)


class Runtime:
    """Knows who waits, and what was decided."""

    def __init__(self, *waiting: Pairing) -> None:
        self.waiting = list(waiting)
        self.asked: list[tuple[Any, ...]] = []
        self.away = False

    async def list(self) -> Sequence[Pairing]:
        if self.away:
            raise NotReady("it starts")
        return self.waiting

    async def approve(self, channel: str, *, id: str | None = None, code: str | None = None) -> Pairing:  # noqa: A002
        return await self._decide("approve", channel, id, code)

    async def dismiss(self, channel: str, *, id: str) -> Pairing:  # noqa: A002
        return await self._decide("dismiss", channel, id, None)

    async def _decide(self, what: str, channel: str, id_: str | None, code: str | None) -> Pairing:
        self.asked.append((what, channel, id_, code))
        for each in await self.list():
            if each.channel == channel and (each.id == id_ or each.code == code):
                self.waiting.remove(each)
                return each
        raise NoSuchPairing("nobody waits under this code or id")


@asynccontextmanager
async def server(runtime: Runtime, token: str | None = TOKEN) -> AsyncIterator[int]:
    runner = await pairing_http.serve(runtime, token=lambda: token, address="127.0.0.1", port=0)
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def post(port: int, path: str, body: Any, **more: Any) -> Answered:
    return await asked(port, json_request(path, json.dumps(body).encode(), **more))


def error(answered: Answered) -> tuple[int, str]:
    body = json.loads(answered.body)
    assert set(body) == {"error", "message"}
    return answered.status, body["error"]


@pytest.mark.parametrize("wish", [{"id": ANN.id}, {"code": ANN.code}])
async def test_somebody_who_waits_is_seen_and_let_in(wish: dict[str, str]) -> None:
    runtime = Runtime(ANN)
    async with server(runtime) as port:
        listed = await asked(port, request("GET /v1/pairings"))
        assert json.loads(listed.body) == {"pairings": [described(ANN)]}
        assert listed.headers["cache-control"] == "no-store"
        status = await asked(port, request("GET /v1/status"))
        assert json.loads(status.body) == {"ready": True, "pending": 1}

        approved = await post(port, "/v1/pairings/approve", {"channel": "telegram", **wish})
        assert (approved.status, json.loads(approved.body)) == (200, {"pairing": described(ANN)})
        assert runtime.asked == [("approve", "telegram", wish.get("id"), wish.get("code"))]
        again = await post(port, "/v1/pairings/approve", {"channel": "telegram", **wish})
        assert error(again) == (404, "no_such_pairing")


async def test_somebody_is_turned_away() -> None:
    runtime = Runtime(ANN, replace(ANN, id="req-2"))
    async with server(runtime) as port:
        assert (await post(port, "/v1/pairings/dismiss", {"channel": "telegram", "id": "req-2"})).status == 200
        assert runtime.waiting == [ANN]
        assert error(await post(port, "/v1/pairings/dismiss", {"channel": "discord", "id": "req-1"}))[0] == 404


async def test_the_calls_of_kiloclaw_do_the_same() -> None:
    async with server(Runtime(ANN)) as port:
        (found,) = json.loads((await asked(port, request("GET /_kilo/pairing/channels?refresh=true"))).body)["requests"]
        assert (found["channel"], found["code"], found["id"]) == ("telegram", "MP73QBCH", "777001")
        approved = await post(port, "/_kilo/pairing/channels/approve", {"channel": "telegram", "code": "MP73QBCH"})
        assert json.loads(approved.body)["success"] is True
        again = await post(port, "/_kilo/pairing/channels/approve", {"channel": "telegram", "code": "MP73QBCH"})
        assert (again.status, json.loads(again.body)["code"]) == (404, "no_such_pairing")


async def test_a_runtime_that_is_not_ready_is_asked_again_later() -> None:
    runtime = Runtime(ANN)
    runtime.away = True
    async with server(runtime) as port:
        for early in (
            await asked(port, request("GET /v1/pairings")),
            await post(port, "/v1/pairings/approve", {"channel": "telegram", "code": "A"}),
            await post(port, "/v1/pairings/dismiss", {"channel": "telegram", "id": "a"}),
        ):
            assert (*error(early), early.headers["retry-after"]) == (503, "not_ready", "5")
        status = await asked(port, request("GET /v1/status"))
        assert (status.status, json.loads(status.body)) == (200, {"ready": False, "pending": None})


async def test_a_runtime_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Runtime):
        async def list(self) -> Sequence[Pairing]:
            await asyncio.Event().wait()
            return []

    monkeypatch.setattr(pairing_http, "_SECONDS", 0.1)
    async with server(Deaf()) as port:
        assert error(await asked(port, request("GET /v1/pairings"))) == (503, "not_ready")


async def test_strangers_learn_and_change_nothing() -> None:
    runtime = Runtime(ANN)
    async with server(runtime) as port:
        for token in (None, "wrong"):
            for sent in (
                request("GET /v1/pairings", token=token),
                request("GET /v1/status", token=token),
                request("GET /nowhere", token=token),
                request(f"GET /v1/pairings?token={TOKEN}", token=token),
                json_request("/v1/pairings/approve", b'{"channel":"telegram","id":"req-1"}', token=token),
            ):
                assert error(await asked(port, sent)) == (401, "unauthorized")
        assert (runtime.asked, runtime.waiting) == ([], [ANN])
    async with server(runtime, token=None) as port:
        assert error(await asked(port, request("GET /v1/pairings"))) == (503, "not_ready")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"telegram"',
        b"{}",
        b"\xff",
        b'{"channel": "telegram"}',
        b'{"channel": "telegram", "id": "req-1", "code": "MP73QBCH"}',
        b'{"channel": "Telegram", "id": "req-1"}',
        b'{"channel": "../telegram", "id": "req-1"}',
        b'{"channel": "telegram\\n", "id": "req-1"}',
        b'{"channel": "t' + b"x" * 64 + b'", "id": "req-1"}',
        b'{"channel": ["telegram"], "id": "req-1"}',
        b'{"channel": "telegram", "id": ""}',
        b'{"channel": "telegram", "id": 1}',
        b'{"channel": "telegram", "id": "a b"}',
        b'{"channel": "telegram", "code": "MP73-QBCH"}',
        b'{"channel": "telegram", "code": "' + b"A" * 33 + b'"}',
        b'{"channel": "telegram", "code": "A\\u0000"}',
        b'{"channel": "telegram", "code": "\\ud800"}',
        b"[" * 4000,
    ],
)
async def test_what_makes_no_sense_is_asked_of_nobody(body: bytes) -> None:
    runtime = Runtime(ANN)
    async with server(runtime) as port:
        refused = await asked(port, json_request("/v1/pairings/approve", body))
        assert error(refused) == (400, "bad_request")
        assert b"MP73QBCH" not in refused.body
        assert runtime.asked == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from(["channel", "id", "code", "account", "x"]),
        st.one_of(st.text(max_size=80), st.sampled_from(["telegram", "req-1", "MP73QBCH"]), st.none(), st.integers()),
    )
)
async def test_any_object_is_answered_and_only_what_fits_reaches_the_runtime(body: dict[str, Any]) -> None:
    runtime = Runtime(ANN)
    async with server(runtime) as port:
        answered = await post(port, "/v1/pairings/approve", body)
        assert answered.status in (200, 400, 404)
        assert bool(runtime.asked) == (answered.status != 400)
        for _, channel, id_, code in runtime.asked:
            assert channel.isascii()
            assert (id_ is None) != (code is None)
            assert (id_ or code).isascii()
            assert (id_ or code).isprintable()


async def test_a_large_body_is_refused_unread_and_a_slow_one_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairing_http, "HANDSHAKE_SECONDS", 0.1)
    async with server(Runtime(ANN)) as port:
        said = await asked(port, request("POST /v1/pairings/approve", "Content-Length: 4097", "Expect: 100-continue"))
        assert error(said) == (413, "too_large")
        chunk = b"1001\r\n" + b"x" * 4097 + b"\r\n"
        assert error(
            await asked(port, request("POST /v1/pairings/approve", "Transfer-Encoding: chunked", body=chunk))
        ) == (
            413,
            "too_large",
        )
        slow = await asked(port, request("POST /v1/pairings/approve", "Content-Length: 10", body=b"{"))
        assert error(slow) == (408, "too_slow")


async def test_whoever_waits_for_leave_to_send_is_given_it() -> None:
    body = b'{"channel": "telegram", "id": "req-1"}'
    async with server(Runtime(ANN)) as port:
        reader, writer = await connected(port)
        writer.write(request("POST /v1/pairings/approve", f"Content-Length: {len(body)}", "Expect: 100-continue"))
        async with asyncio.timeout(SECONDS):
            assert (await head(reader))[0] == 100
            writer.write(body)
            assert (await answer(reader)).status == 200
        writer.close()


async def test_other_methods_and_paths_are_told_so() -> None:
    async with server(Runtime()) as port:
        wrong = await asked(port, request("DELETE /v1/pairings"))
        assert (*error(wrong), wrong.headers["allow"]) == (405, "method_not_allowed", "GET")
        assert error(await asked(port, request("GET /v1/pairings/approve")))[0] == 405
        assert error(await asked(port, request("OPTIONS /v1/pairings", "Origin: https://x.test")))[0] == 405
        assert error(await asked(port, request("GET /v2"))) == (404, "not_found")
        allowed = await asked(port, request("GET /v1/pairings", "Origin: https://x.test"))
        assert not [name for name in allowed.headers if name.startswith("access-control")]
