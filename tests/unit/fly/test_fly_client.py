"""The client against a real server: each call as documented, and exactly one FlyError for every way to fail."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from fly_samples import CONFIG, MACHINE, ROW, VOLUME
from fly_server import Server, raw, serving

from roost import __version__
from roost.fly import client as client_module
from roost.fly import errors, types
from roost.fly.client import Fly, authorization

SECRET = 'hunter2-"quoted"-value'


async def token() -> str | None:
    return "fm2_lJPECAAA"


class Observed(list[tuple[str, str]]):
    def __call__(self, op: str, outcome: str, seconds: float, throttled: float) -> None:
        assert seconds >= 0
        assert throttled >= 0
        self.append((op, outcome))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
async def fly(server: Server, observed: Observed) -> AsyncIterator[Fly]:
    async with Fly(token, observed, base_url=server.url) as fly:
        yield fly


async def test_behind_a_closed_fence_nothing_is_changed_and_all_can_be_read(server: Server) -> None:
    class Closed(Exception): ...

    def fence() -> None:
        raise Closed

    async with Fly(token, Observed(), base_url=server.url, fence=fence) as fly:
        with pytest.raises(Closed):
            await fly.create_app("ag-1", "personal", None)
        with pytest.raises(Closed):
            await fly.delete_volume("ag-1", "vol_1")
        server.answers = [answer(MACHINE)]
        await fly.get_machine("ag-1", "m1")
    assert [asked.method for asked in server.asked] == ["GET"]


def answer(data: Any, status: int = 200, **headers: str) -> web.Response:
    return web.Response(status=status, text=json.dumps(data), headers={"fly-request-id": "01J-ams", **headers})


def create(fly: Fly) -> Any:
    return fly.create_machine("ag-1", "ada-1", "ams", CONFIG)


OK = {"ok": True}
CALLS: dict[str, tuple[Callable[[Fly], Any], Any, str, dict[str, str], Any]] = {
    # op: the call, the answer, "METHOD path", query, body
    "create_app": (
        lambda fly: fly.create_app("ag-1", "personal", "net-1"),
        {"id": "z4k69dxd8r31p5mx", "created_at": 1700000000000},
        "POST /v1/apps",
        {},
        {"name": "ag-1", "org_slug": "personal", "network": "net-1"},
    ),
    "get_app": (
        lambda fly: fly.get_app("ag-1"),
        {"name": "ag-1", "organization": {"slug": "personal"}},
        "GET /v1/apps/ag-1",
        {},
        None,
    ),
    "list_apps": (
        lambda fly: fly.list_apps("personal"),
        {"total_apps": 1, "apps": [{"name": "ag-1", "network": "net-1", "machine_count": 2, "volume_count": 1}]},
        "GET /v1/apps",
        {"org_slug": "personal", "limit": "1000"},
        None,
    ),
    "delete_app": (lambda fly: fly.delete_app("ag-1"), None, "DELETE /v1/apps/ag-1", {}, None),
    "set_secrets": (
        lambda fly: fly.set_secrets("ag-1", {"A": SECRET, "B": None}),
        {"secrets": [], "version": 13},
        "POST /v1/apps/ag-1/secrets",
        {},
        {"values": {"A": SECRET, "B": None}},
    ),
    "list_secret_names": (
        lambda fly: fly.list_secret_names("ag-1"),
        {"secrets": [{"name": "A", "digest": "x"}, {"name": "B"}]},
        "GET /v1/apps/ag-1/secrets",
        {},
        None,
    ),
    "list_ips": (
        lambda fly: fly.list_ips("ag-1"),
        {
            "ips": [
                {"ip": "2a09:8280:1::1"},
                {"ip": "66.241.125.1", "shared": True},
                {"ip": "37.16.1.1"},
                {"ip": "fdaa:0:18::3", "network": "net-1"},
                {"ip": "37.16.1.2", "egress": True},
            ]
        },
        "GET /v1/apps/ag-1/ip_assignments",
        {},
        None,
    ),
    "assign_ip": (
        lambda fly: fly.assign_ip("ag-1", "private_v6", network="net-1"),
        {"ip": "fdaa:0:18::3"},
        "POST /v1/apps/ag-1/ip_assignments",
        {},
        {"type": "private_v6", "network": "net-1"},
    ),
    "list_machines": (
        lambda fly: fly.list_machines("ag-1", include_deleted=True),
        [MACHINE],
        "GET /v1/apps/ag-1/machines",
        {"include_deleted": "true"},
        None,
    ),
    "get_machine": (lambda fly: fly.get_machine("ag-1", "e1"), MACHINE, "GET /v1/apps/ag-1/machines/e1", {}, None),
    "create_machine": (
        lambda fly: fly.create_machine("ag-1", "ada-1", "ams,eu", CONFIG, min_secrets_version=3, skip_launch=True),
        MACHINE,
        "POST /v1/apps/ag-1/machines",
        {},
        {"name": "ada-1", "region": "ams,eu", "config": CONFIG, "min_secrets_version": 3, "skip_launch": True},
    ),
    "update_machine": (
        lambda fly: fly.update_machine("ag-1", "e1", CONFIG, "01J"),
        MACHINE,
        "POST /v1/apps/ag-1/machines/e1",
        {},
        {"config": CONFIG, "current_version": "01J"},
    ),
    "start_machine": (
        lambda fly: fly.start_machine("ag-1", "e1"),
        {"previous_state": "stopped"},
        "POST /v1/apps/ag-1/machines/e1/start",
        {},
        None,
    ),
    "stop_machine": (
        lambda fly: fly.stop_machine("ag-1", "e1", signal="SIGTERM", timeout_seconds=30),
        OK,
        "POST /v1/apps/ag-1/machines/e1/stop",
        {},
        {"signal": "SIGTERM", "timeout": "30s"},
    ),
    "suspend_machine": (
        lambda fly: fly.suspend_machine("ag-1", "e1"),
        OK,
        "POST /v1/apps/ag-1/machines/e1/suspend",
        {},
        None,
    ),
    "restart_machine": (
        lambda fly: fly.restart_machine("ag-1", "e1", timeout_seconds=20),
        None,
        "POST /v1/apps/ag-1/machines/e1/restart",
        {"signal": "SIGTERM", "timeout": "20s"},
        None,
    ),
    "delete_machine": (
        lambda fly: fly.delete_machine("ag-1", "e1", force=True),
        OK,
        "DELETE /v1/apps/ag-1/machines/e1",
        {"force": "true"},
        None,
    ),
    "wait_machine": (
        lambda fly: fly.wait_machine("ag-1", "e1", ["started", "failed"], version="01J", timeout_seconds=600),
        {"ok": True, "state": "started", "version": "01J"},
        "GET /v1/apps/ag-1/machines/e1/wait",
        {"state": "started,failed", "version": "01J", "timeout": "60"},
        None,
    ),
    "patch_metadata": (
        lambda fly: fly.patch_metadata("ag-1", "e1", {"a": "1", "b": None}, machine_version="01J"),
        None,
        "PATCH /v1/apps/ag-1/machines/e1/metadata",
        {},
        {"metadata": {"a": "1", "b": None}, "machine_version": "01J"},
    ),
    "list_volumes": (lambda fly: fly.list_volumes("ag-1"), [VOLUME], "GET /v1/apps/ag-1/volumes", {}, None),
    "get_volume": (lambda fly: fly.get_volume("ag-1", "vol_1"), VOLUME, "GET /v1/apps/ag-1/volumes/vol_1", {}, None),
    "create_volume": (
        lambda fly: fly.create_volume(
            "ag-1", "data", "ams", 10, snapshot_retention_days=7, snapshot_id="vs_1", compute={"cpus": 2}
        ),
        VOLUME,
        "POST /v1/apps/ag-1/volumes",
        {},
        {
            "name": "data",
            "region": "ams",
            "size_gb": 10,
            "encrypted": True,
            "snapshot_retention": 7,
            "snapshot_id": "vs_1",
            "compute": {"cpus": 2},
        },
    ),
    "update_volume": (
        lambda fly: fly.update_volume("ag-1", "vol_1", snapshot_retention_days=7),
        {**VOLUME, "snapshot_retention": 7},
        "PUT /v1/apps/ag-1/volumes/vol_1",
        {},
        {"snapshot_retention": 7},
    ),
    "list_snapshots": (
        lambda fly: fly.list_snapshots("ag-1", "vol_1"),
        [
            {"id": "vs_1", "status": "created", "created_at": "2026-11-01", "size": 5, "volume_size": 3 << 30},
            {"id": "", "status": "running", "retention_days": 5, "volume_size": 0},
        ],
        "GET /v1/apps/ag-1/volumes/vol_1/snapshots",
        {},
        None,
    ),
    "create_snapshot": (
        lambda fly: fly.create_snapshot("ag-1", "vol_1"),
        {"Msg": {"backup": {}}},
        "POST /v1/apps/ag-1/volumes/vol_1/snapshots",
        {},
        None,
    ),
    "extend_volume": (
        lambda fly: fly.extend_volume("ag-1", "vol_1", 20),
        {"volume": VOLUME, "needs_restart": True},
        "PUT /v1/apps/ag-1/volumes/vol_1/extend",
        {},
        {"size_gb": 20},
    ),
    "delete_volume": (
        lambda fly: fly.delete_volume("ag-1", "vol_1"),
        VOLUME,
        "DELETE /v1/apps/ag-1/volumes/vol_1",
        {},
        None,
    ),
    "placements": (
        lambda fly: fly.placements("personal", ["ams", "eu"], {"cpus": 2}, volume_size_gb=10),
        {"Regions": [{"Region": "ams", "Count": 3, "Concurrency": 3}, {"Region": "fra", "Count": 0}]},
        "POST /v1/platform/placements",
        {},
        {
            "org_slug": "personal",
            "region": "ams,eu",
            "compute": {"cpus": 2},
            "count": 0,
            "volume_size_bytes": 10_737_418_240,
        },
    ),
    "org_machines": (
        lambda fly: fly.org_machines("personal", updated_after="2026-11-01T10:00:00Z", cursor="c", limit=5),
        {"machines": [ROW]},
        "GET /v1/orgs/personal/machines",
        {"updated_after": "2026-11-01T10:00:00Z", "cursor": "c", "limit": "5", "include_deleted": "false"},
        None,
    ),
    "org_volumes": (
        lambda fly: fly.org_volumes("personal", include_deleted=True),
        {"volumes": [{**VOLUME, "app_name": "ag-1"}]},
        "GET /v1/orgs/personal/volumes",
        {"limit": "1000", "include_deleted": "true"},
        None,
    ),
}
RESULTS: dict[str, Any] = {
    "create_app": types.App("ag-1", "personal", "net-1", "pending"),
    "get_app": types.App("ag-1", "personal", "", ""),
    "set_secrets": 13,
    "list_machines": [types.parse_machine("ag-1", MACHINE)],
    "get_machine": types.parse_machine("ag-1", MACHINE),
    "create_machine": types.parse_machine("ag-1", MACHINE),
    "update_machine": types.parse_machine("ag-1", MACHINE),
    "wait_machine": types.WaitResult("started", "01J"),
    "list_volumes": [types.parse_volume("ag-1", VOLUME)],
    "get_volume": types.parse_volume("ag-1", VOLUME),
    "create_volume": types.parse_volume("ag-1", VOLUME),
    "extend_volume": types.Extended(types.parse_volume("ag-1", VOLUME), needs_restart=True),
    "update_volume": types.parse_volume("ag-1", {**VOLUME, "snapshot_retention": 7}),
    "list_apps": [types.App("ag-1", "personal", "net-1", "", machine_count=2, volume_count=1)],
    "list_secret_names": ["A", "B"],
    "list_ips": [
        types.Ip("2a09:8280:1::1", "v6"),
        types.Ip("66.241.125.1", "shared_v4"),
        types.Ip("37.16.1.1", "v4"),
        types.Ip("fdaa:0:18::3", "private_v6"),
        types.Ip("37.16.1.2", "egress"),
    ],
    "list_snapshots": [
        types.Snapshot("vs_1", "created", "2026-11-01", 5, 3, None),
        types.Snapshot("", "running", "", None, None, 5),
    ],
    "placements": {"ams": 3, "fra": 0},
    "org_machines": types.parse_machines_page({"machines": [ROW]}),
    "org_volumes": types.parse_volumes_page({"volumes": [{**VOLUME, "app_name": "ag-1"}]}),
}


@pytest.mark.parametrize("op", CALLS)
async def test_each_call_as_documented(op: str, fly: Fly, server: Server, observed: Observed) -> None:
    call, data, line, query, body = CALLS[op]
    server.answers = [web.Response(status=204) if data is None else answer(data)]

    assert await call(fly) == RESULTS.get(op)

    (asked,) = server.asked
    assert (f"{asked.method} {asked.path}", asked.query, asked.body) == (line, query, body)
    assert asked.headers["Authorization"] == "FlyV1 fm2_lJPECAAA"
    assert asked.headers["User-Agent"] == f"roost/{__version__}"
    assert observed == [(op, "2xx")]


@pytest.mark.parametrize("op", CALLS)
async def test_each_call_fails_as_fly_says(op: str, fly: Fly, server: Server, observed: Observed) -> None:
    server.answers = [answer({"error": "Authenticate: token validation error"}, 401)]

    with pytest.raises(errors.Unauthorized) as raised:
        await CALLS[op][0](fly)

    assert (raised.value.op, raised.value.status, raised.value.request_id) == (op, 401, "01J-ams")
    assert len(server.asked) == 1
    assert observed == [(op, "4xx")]


@pytest.mark.parametrize("op", CALLS)
async def test_each_call_without_an_answer_is_unknown_or_nothing(op: str, fly: Fly, server: Server) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.answers = [cut]

    with pytest.raises(errors.Unavailable if errors.is_read(op) else errors.Ambiguous) as raised:
        await CALLS[op][0](fly)

    assert raised.value.status == 0
    # A change is never sent twice, and the HTTP library takes every POST for a change.
    assert len(server.asked) == (2 if CALLS[op][2].startswith("GET") else 1)


def test_every_method_stands_in_the_table_above() -> None:
    methods = {name for name in vars(Fly) if not name.startswith("_") and callable(getattr(Fly, name))}
    assert CALLS.keys() == {name for name in methods if not name.endswith("_pages")}


async def test_a_fork_says_no_size_because_it_has_its_sources(fly: Fly, server: Server) -> None:
    server.answers = [answer(VOLUME)]
    await fly.create_volume("ag-1", "data", "ams", None, source_volume_id="vol_0")
    assert server.asked[0].body == {"name": "data", "region": "ams", "encrypted": True, "source_volume_id": "vol_0"}


async def test_placements_are_read_in_small_letters_too(fly: Fly, server: Server) -> None:
    server.answers = [answer({"regions": [{"region": "ams", "count": 2}]}), answer({"Nearest": "ams"})]
    assert await fly.placements("personal", ["ams"], {}) == {"ams": 2}
    with pytest.raises(errors.Unavailable):  # what says nothing of regions is no full house
        await fly.placements("personal", ["ams"], {})


@pytest.mark.parametrize("status", [409, 422])
async def test_an_address_that_the_app_has_is_as_good_as_a_new_one(status: int, fly: Fly, server: Server) -> None:
    server.answers = [answer({"error": "app already has an address of this type"}, status)]
    await fly.assign_ip("ag-1", "shared_v4")


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (422, "To have a dedicated v4 address please add a payment method.", errors.AccountLimit),
        (400, "unknown type", errors.Invalid),
        (404, "Could not find App x", errors.NotFound),
        (500, "internal", errors.Ambiguous),
    ],
)
async def test_an_address_that_the_app_does_not_get_is_an_error(
    status: int, text: str, kind: type[errors.FlyError], fly: Fly, server: Server
) -> None:
    server.answers = [answer({"error": text}, status)]
    with pytest.raises(kind):
        await fly.assign_ip("ag-1", "v4")


# --- While Fly answers nobody ----------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def patient(server: Server, observed: Observed, clock: Clock) -> AsyncIterator[Fly]:
    async with Fly(token, observed, base_url=server.url, clock=clock) as fly:
        yield fly


async def outage(fly: Fly, server: Server) -> None:
    """Calls for five things, none of which Fly answers."""
    server.answers = [answer({"error": "bad gateway"}, 502)]
    for n in range(5):
        with pytest.raises(errors.FlyError):
            await fly.start_machine("ag-1", f"e{n}")


async def test_while_fly_answers_nobody_calls_are_refused_at_once_and_change_nothing(
    patient: Fly, server: Server, observed: Observed
) -> None:
    await outage(patient, server)
    assert patient.silent

    with pytest.raises(errors.Unavailable, match="not sent: Fly has not answered any call since 20") as raised:
        await create(patient)

    assert (raised.value.effect, raised.value.status) == ("none", 0)
    assert raised.value.retry_after is not None
    assert 0 < raised.value.retry_after <= 1
    assert len(server.asked) == len(observed) == 5


async def test_a_refusal_takes_no_turn_and_waits_for_none(server: Server, observed: Observed, clock: Clock) -> None:
    async with Fly(token, observed, base_url=server.url, clock=clock, max_throttle_seconds=0.0) as fly:
        await outage(fly, server)
        for _ in range(9):
            with pytest.raises(errors.Unavailable):  # and no RateLimited
                await create(fly)


async def test_a_call_that_waited_while_the_silence_began_is_not_sent(server: Server, observed: Observed) -> None:
    waits, go_on = asyncio.Event(), asyncio.Event()

    async def slow_for_the_first() -> str:
        if not waits.is_set():
            waits.set()
            await go_on.wait()
        return "fm2_x"

    async with Fly(slow_for_the_first, observed, base_url=server.url, clock=Clock()) as fly:
        waiting = asyncio.create_task(create(fly))
        await waits.wait()
        await outage(fly, server)
        go_on.set()
        with pytest.raises(errors.Unavailable, match="not sent"):
            await waiting
    assert len(server.asked) == 5


async def test_a_probe_that_is_answered_ends_the_silence(patient: Fly, server: Server, clock: Clock) -> None:
    await outage(patient, server)
    clock.now = 1.0
    with pytest.raises(errors.FlyError):
        await patient.get_machine("ag-1", "e1")
    assert (patient.silent, len(server.asked)) == (True, 6)

    clock.now = 3.0
    server.answers = [answer({"error": "machine not found"}, 404), answer(MACHINE)]
    with pytest.raises(errors.NotFound):  # a refusal is an answer
        await patient.get_machine("ag-1", "e1")

    assert not patient.silent
    await create(patient)


async def test_a_wait_that_its_host_leaves_unanswered_says_nothing_of_fly(patient: Fly, server: Server) -> None:
    server.answers = [answer({"error": "timed out talking to the host"}, 408)]
    for n in range(9):
        with pytest.raises(errors.Unavailable):
            await patient.wait_machine("ag-1", f"e{n}", ["started"], version=None, timeout_seconds=1)
    assert not patient.silent


async def test_what_we_refuse_ourselves_says_nothing_of_fly(observed: Observed, server: Server, clock: Clock) -> None:
    async def none() -> None:
        return None

    async with Fly(none, observed, base_url=server.url, clock=clock) as fly:
        for n in range(9):
            with pytest.raises(errors.TokenMissing):
                await fly.get_machine("ag-1", f"e{n}")
        assert not fly.silent


# --- Connections -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("call", [create, lambda fly: fly.get_machine("ag-1", "e1")], ids=["change", "read"])
async def test_a_refused_connection_changes_nothing(call: Callable[[Fly], Any], observed: Observed) -> None:
    async with Fly(token, observed, base_url=f"http://127.0.0.1:{free_port()}") as fly:
        with pytest.raises(errors.Unavailable):
            await call(fly)
    assert [outcome for _, outcome in observed] == ["error"]


async def test_a_connection_that_is_never_made_changes_nothing(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 0.1)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        host, port = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # nobody accepts: further handshakes hang
        for s in waiting:
            s.setblocking(False)
            s.connect_ex((host, port))
        async with Fly(token, observed, base_url=f"http://{host}:{port}") as fly:
            with pytest.raises(errors.Unavailable) as raised:
                await create(fly)
        for s in waiting:
            s.close()
    assert "Connection timeout" in raised.value.message


async def test_not_speaking_tls_changes_nothing(observed: Observed) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"I am no TLS server\r\n")
        await writer.drain()

    async with raw(babble) as url, Fly(token, observed, base_url=url.replace("http:", "https:")) as fly:
        with pytest.raises(errors.Unavailable):
            await create(fly)


async def test_a_proxy_of_the_environment_is_used_unless_told_otherwise(
    observed: Observed, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readline())
        text = json.dumps(MACHINE)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()

    server.answers = [answer(MACHINE)]
    async with raw(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with Fly(token, observed, base_url="http://api.machines.invalid") as fly:
            await fly.get_machine("ag-1", "e1")
        async with Fly(token, observed, base_url=server.url) as fly:
            await fly.get_machine("ag-1", "e1")
    assert lines == [b"GET http://api.machines.invalid/v1/apps/ag-1/machines/e1 HTTP/1.1\r\n"]
    assert len(server.asked) == 1


async def cut_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def cut_after_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.transport.abort()


async def cut_in_the_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"id": "e1", "sta')
    await writer.drain()


async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    await writer.drain()


async def bad_encoding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope")
    await writer.drain()


@pytest.mark.parametrize("behave", [cut_at_once, cut_after_reading, cut_in_the_answer, no_http, bad_encoding])
async def test_once_connected_a_change_may_have_happened(behave: Any, observed: Observed) -> None:
    async with raw(behave) as url, Fly(token, observed, base_url=url) as fly:
        with pytest.raises(errors.Ambiguous):
            await create(fly)
        with pytest.raises(errors.Unavailable):
            await fly.get_machine("ag-1", "e1")


async def test_a_kept_alive_connection_that_was_closed_meanwhile(observed: Observed) -> None:
    """A change is not sent again, because its first sending may have arrived; a read is, by the HTTP library."""
    seen: list[bytes] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for last in (False, True):
            seen.append((await reader.readuntil(b"\r\n")).split(b" ")[0])
            await reader.readuntil(b"\r\n\r\n")
            if last:
                writer.transport.abort()
                return
            text = json.dumps(MACHINE)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
            await writer.drain()

    async with raw(once) as url, Fly(token, observed, base_url=url) as fly:
        await fly.get_machine("ag-1", "e1")
        with pytest.raises(errors.Ambiguous):
            await create(fly)
        assert seen == [b"GET", b"POST"]
        await fly.get_machine("ag-1", "e1")
        await fly.get_machine("ag-1", "e1")
        assert seen == [b"GET", b"POST", b"GET", b"GET", b"GET"]


# --- Answers ---------------------------------------------------------------------------------------------------------


async def slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:  # never silent long enough for a timeout between two reads
        await response.write(b" ")
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("behave", [slow, dripping])
async def test_a_slow_answer_is_given_up(
    behave: Any, fly: Fly, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_WRITE_SECONDS", 0.1)
    monkeypatch.setattr(client_module, "_READ_SECONDS", 0.1)
    server.answers = [behave]
    with pytest.raises(errors.Ambiguous):
        await create(fly)
    with pytest.raises(errors.Unavailable):
        await fly.get_machine("ag-1", "e1")


async def test_a_wait_is_given_more_time_than_it_waits(
    fly: Fly, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_READ_SECONDS", 0.01)

    async def waits(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return answer({"ok": True, "state": "started"})

    server.answers = [waits]
    result = await fly.wait_machine("ag-1", "e1", ["started"], version=None, timeout_seconds=0)
    assert result.state == "started"
    assert server.asked[0].query == {"state": "started", "timeout": "1"}


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_huge_answer_is_not_taken_into_memory(compressed: bool, fly: Fly, server: Server) -> None:
    piece = b" " * (1 << 20)

    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"} if compressed else {})
        await response.prepare(request)
        if compressed:
            await response.write(gzip.compress(piece * 40, 1))
        else:
            for _ in range(40):
                await response.write(piece)
        return response

    server.answers = [huge]
    with pytest.raises(errors.Unavailable, match="larger than 32 MiB"):
        await fly.list_machines("ag-1")


@pytest.mark.parametrize(
    "body", [b"", b"<html>Welcome to the hotel's network</html>", b"{", b"[]", b'"ok"', b'{"ok": true}', b'{"id": 5}']
)
async def test_an_answer_of_the_wrong_shape_proves_nothing(body: bytes, fly: Fly, server: Server) -> None:
    server.answers = [web.Response(body=body)]
    with pytest.raises(errors.Ambiguous) as raised:
        await create(fly)
    assert raised.value.status == 200
    with pytest.raises(errors.Unavailable):
        await fly.get_machine("ag-1", "e1")
    with pytest.raises(errors.Unavailable):
        await fly.org_machines("personal")


async def test_a_page_of_somebody_else_is_not_the_success_of_a_change(fly: Fly, server: Server) -> None:
    server.answers = [web.Response(text="<html>Please sign in</html>")]
    with pytest.raises(errors.Ambiguous):
        await fly.delete_volume("ag-1", "vol_1")


async def test_an_empty_answer_is_no_empty_list(fly: Fly, server: Server) -> None:
    server.answers = [web.Response()]
    with pytest.raises(errors.Unavailable):
        await fly.list_machines("ag-1")


async def test_a_redirect_is_not_followed(fly: Fly, server: Server) -> None:
    server.answers = [web.Response(status=307, headers={"Location": "/v1/elsewhere"})]
    with pytest.raises(errors.Ambiguous):
        await create(fly)
    assert [asked.path for asked in server.asked] == ["/v1/apps/ag-1/machines"]


async def test_a_wait_that_ends_without_the_state_is_no_failure(fly: Fly, server: Server) -> None:
    text = "deadline_exceeded: machine failed to reach desired state, started, currently created"
    server.answers = [answer({"error": text}, 408)]
    with pytest.raises(errors.NotYet):
        await fly.wait_machine("ag-1", "e1", ["started"], version=None, timeout_seconds=5)


async def test_a_cancelled_call_ends_and_is_told(fly: Fly, server: Server, observed: Observed) -> None:
    arrived = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        arrived.set()
        return await slow(request)

    server.answers = [hold]
    call = asyncio.create_task(fly.wait_machine("ag-1", "e1", ["started"], version=None, timeout_seconds=60))
    await asyncio.wait_for(arrived.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert observed == [("wait_machine", "cancelled")]


# --- Lists -----------------------------------------------------------------------------------------------------------


async def test_an_apps_list_follows_the_pages_that_a_header_announces(fly: Fly, server: Server) -> None:
    server.answers = [
        answer([{**MACHINE, "id": "e1"}], **{"fly-next-cursor": "two"}),
        answer([], **{"fly-next-cursor": "three"}),
        answer([{**MACHINE, "id": "e3"}]),
    ]
    assert [machine.id for machine in await fly.list_machines("ag-1", include_deleted=True)] == ["e1", "e3"]
    assert [asked.query.get("cursor") for asked in server.asked] == [None, "two", "three"]
    assert {asked.query["include_deleted"] for asked in server.asked} == {"true"}


async def test_half_a_list_is_no_list(fly: Fly, server: Server) -> None:
    server.answers = [answer([VOLUME], **{"fly-next-cursor": "two"}), answer({"error": "internal"}, 500)]
    with pytest.raises(errors.Unavailable):
        await fly.list_volumes("ag-1")


async def test_an_orgs_pages_one_after_the_other(fly: Fly, server: Server) -> None:
    server.answers = [
        answer({"machines": [ROW], "next_cursor": "two", "last_updated_at": "a"}),
        answer({"machines": [], "next_cursor": "three"}),
        answer({"machines": [ROW], "next_cursor": ""}),
    ]
    pages = [page async for page in fly.org_machine_pages("personal", updated_after="t", include_deleted=True)]
    assert [len(page.rows) for page in pages] == [1, 0, 1]
    assert [asked.query.get("cursor") for asked in server.asked] == [None, "two", "three"]
    assert {asked.query["updated_after"] for asked in server.asked} == {"t"}


async def test_an_orgs_volumes(fly: Fly, server: Server) -> None:
    server.answers = [
        answer({"volumes": [{**VOLUME, "app_name": "x"}], "next_cursor": "two"}),
        answer({"volumes": [{**VOLUME, "app_name": "y"}]}),
    ]
    assert [v.app async for page in fly.org_volume_pages("personal") for v in page.volumes] == ["x", "y"]


async def test_an_orgs_apps_of_all_pages(fly: Fly, server: Server) -> None:
    server.answers = [answer({"apps": [{"name": "a"}], "next_cursor": "two"}), answer({"apps": [{"name": "b"}]})]
    assert [app.name for app in await fly.list_apps("personal")] == ["a", "b"]
    assert [asked.query.get("cursor") for asked in server.asked] == [None, "two"]


async def test_pages_that_go_in_circles_end_in_an_error(fly: Fly, server: Server) -> None:
    server.answers = [answer({"machines": [], "next_cursor": "again"})]
    with pytest.raises(errors.Unavailable, match="circles"):
        [page async for page in fly.org_machine_pages("personal")]
    server.answers = [answer([], **{"fly-next-cursor": "again"})]
    with pytest.raises(errors.Unavailable, match="circles"):
        await fly.list_volumes("ag-1")


# --- Credentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pasted", "header"),
    [
        ("fm2_abc", "FlyV1 fm2_abc"),
        ("FlyV1 fm2_abc,fm2_def", "FlyV1 fm2_abc,fm2_def"),
        ("  Bearer FlyV1 fm1r_abc\n", "FlyV1 fm1r_abc"),
        ("fm2_abc,fo1_user, fm1a_x", "FlyV1 fm2_abc,fm1a_x"),
        ("fo1_user", "Bearer fo1_user"),
        ("bearer eyJhbGciOi.x.y", "Bearer eyJhbGciOi.x.y"),
        ("", None),
        ("  \n", None),
        ("FlyV1 ", None),
        (",", None),
        ("fm2_abc\r\nX-Evil: 1", None),
        ("fm2_abc def", None),
        ("fm2_ä", None),
    ],
)
def test_a_token_as_people_paste_it(pasted: str, header: str | None) -> None:
    assert authorization(pasted) == header


async def test_a_replaced_token_is_used_at_the_next_call(server: Server, observed: Observed) -> None:
    tokens = iter(["fm2_old", "fm2_new"])

    async def rotating() -> str:
        return next(tokens)

    server.answers = [answer(MACHINE)]
    async with Fly(rotating, observed, base_url=server.url) as fly:
        await fly.get_machine("ag-1", "e1")
        await fly.get_machine("ag-1", "e1")
    assert [asked.headers["Authorization"] for asked in server.asked] == ["FlyV1 fm2_old", "FlyV1 fm2_new"]


@pytest.mark.parametrize("missing", [None, "", "two words"])
async def test_without_a_token_nothing_is_sent(missing: str | None, server: Server, observed: Observed) -> None:
    async def none() -> str | None:
        return missing

    async with Fly(none, observed, base_url=server.url) as fly:
        with pytest.raises(errors.TokenMissing) as raised:
            await create(fly)
    assert raised.value.reason == "FlyTokenMissing"
    assert (missing or "nothing") not in raised.value.message
    assert (server.asked, observed) == ([], [])


async def test_a_token_that_cannot_be_read_is_told_without_its_words(server: Server, observed: Observed) -> None:
    async def broken() -> str:
        raise OSError("fm2_secret")

    async with Fly(broken, observed, base_url=server.url) as fly:
        with pytest.raises(errors.Unavailable, match="OSError") as raised:
            await create(fly)
    assert "fm2_secret" not in str(raised.value)
    assert server.asked == []


@pytest.mark.parametrize("status", [200, 400, 422, 500])
async def test_no_error_of_setting_secrets_repeats_a_value(status: int, fly: Fly, server: Server) -> None:
    server.answers = [answer({"error": f"value {SECRET} is too long", "version": SECRET}, status)]
    with pytest.raises(errors.FlyError) as raised:
        await fly.set_secrets("ag-1", {"A": SECRET})
    assert "hunter2" not in repr(raised.value) + str(raised.value) + raised.value.message


@pytest.mark.parametrize("name", ["", "..", "a/b", "a?b", "a%2fb", "ä", "x" * 200])
async def test_a_name_that_would_address_something_else_is_not_sent(name: str, fly: Fly, server: Server) -> None:
    for call in (
        fly.get_app(name),
        fly.get_machine("ag-1", name),
        fly.delete_volume(name, "vol_1"),
        fly.org_machines(name),
        fly.create_machine(name, "n", "ams", CONFIG),
        fly.wait_machine("ag-1", name, ["started"], version=None, timeout_seconds=1),
    ):
        with pytest.raises(errors.Invalid):
            await call
    assert server.asked == []


@pytest.mark.parametrize("value", ["\ud800", 1 << 70])
async def test_a_config_that_json_cannot_carry_is_not_sent(value: Any, fly: Fly, server: Server) -> None:
    with pytest.raises(errors.Invalid, match="not sent"):
        await fly.create_machine("ag-1", "ada-1", "ams", {"metadata": {"x": value}})
    assert server.asked == []


# --- Rate limits -----------------------------------------------------------------------------------------------------


async def test_the_documented_limits_hold_for_each_action_and_thing(server: Server, observed: Observed) -> None:
    server.answers = [answer(MACHINE)]
    async with Fly(token, observed, base_url=server.url, clock=lambda: 0.0, max_throttle_seconds=0.0) as fly:
        for machine in ("e1", "e2"):
            for _ in range(3):
                await fly.start_machine("ag-1", machine)
                await fly.delete_machine("ag-1", machine, force=False)
            for _ in range(8):
                await fly.get_machine("ag-1", machine)
            with pytest.raises(errors.RateLimited) as raised:
                await fly.start_machine("ag-1", machine)
            assert raised.value.retry_after == 1.25
            with pytest.raises(errors.RateLimited):
                await fly.get_machine("ag-1", machine)
    assert len(server.asked) == len(observed) == 28


async def test_a_429_closes_the_bucket_for_the_time_that_fly_asks_for(server: Server, observed: Observed) -> None:
    now = [0.0]
    server.answers = [answer({"error": "rate limit exceeded"}, 429, **{"Retry-After": "7"}), answer(MACHINE)]
    async with Fly(token, observed, base_url=server.url, clock=lambda: now[0], max_throttle_seconds=5.0) as fly:
        with pytest.raises(errors.RateLimited) as raised:
            await fly.get_machine("ag-1", "e1")
        assert raised.value.retry_after == 7.0
        with pytest.raises(errors.RateLimited) as raised:
            await fly.get_machine("ag-1", "e1")
        assert (raised.value.status, raised.value.retry_after) == (0, pytest.approx(7.0))
        await fly.get_machine("ag-1", "e2")
        now[0] = 7.0
        await fly.get_machine("ag-1", "e1")
    assert len(server.asked) == 3


async def test_a_429_without_a_time_spends_the_burst(server: Server, observed: Observed) -> None:
    server.answers = [answer({"error": "rate limit exceeded"}, 429), answer(OK)]
    async with Fly(token, observed, base_url=server.url, clock=lambda: 0.0, max_throttle_seconds=0.0) as fly:
        for _ in range(2):
            with pytest.raises(errors.RateLimited):
                await fly.start_machine("ag-1", "e1")
    assert len(server.asked) == 1


async def test_what_was_throttled_is_told_to_the_observer(server: Server) -> None:
    told: list[float] = []
    server.answers = [answer(OK)]

    def observer(op: str, outcome: str, seconds: float, throttled: float) -> None:
        told.append(throttled)

    async with Fly(token, observer, base_url=server.url) as fly:
        for _ in range(9):
            with pytest.raises(errors.FlyError):  # an answer that is no machine
                await fly.get_machine("ag-1", "e1")
    assert told[:8] == [0.0] * 8
    assert 0.0 < told[8] <= 0.3
