"""The edge: requests for an app's host name find a machine, wake it, and let it sleep again."""

import asyncio
from typing import Any

import aiohttp
import httpx
import pytest
from flysim_client import Client, Make, eventually
from flysim_edge import edge_of, public_app, service

pytestmark = pytest.mark.timeout(60)


async def web_machine(fly: Client, app: str, *, image: str = "web", ready: bool = True, **fields: Any) -> str:
    config = {"services": [service(**fields)]}
    machine = await fly.machine(app, image, config=config)
    if ready:
        await fly.log(machine)
    return machine


OFTEN = {"interval": "20ms", "timeout": "5s"}


def identity(machine: str) -> str:
    return machine.rsplit("/", 1)[1]


async def state(fly: Client, machine: str) -> str:
    return str((await fly.get(machine))["state"])


# Finding the machine


async def test_a_request_is_carried_whole_with_fly_s_headers(fly: Client) -> None:
    machine = await web_machine(fly, await public_app(fly))
    async with edge_of(fly) as outside:
        answer = await outside.http.post(
            "/a%2Fb?x=1&x=%20",
            content=b"hello",
            headers={"host": "ada.fly.dev", "fly-client-ip": "6.6.6.6", "x-forwarded-for": "10.0.0.1", "x-other": "y"},
        )
    told, headers = answer.json(), answer.json()["headers"]
    assert (told["machine"], told["method"], told["path"]) == (identity(machine), "POST", "/a%2Fb?x=1&x=%20")
    assert told["body"] == "hello"
    assert headers["host"] == "ada.fly.dev"
    assert headers["x-other"] == "y"
    assert headers["fly-client-ip"] == "127.0.0.1", "a caller's own is not believed"
    assert headers["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"
    assert (headers["fly-forwarded-port"], headers["x-forwarded-port"], headers["x-forwarded-proto"]) == (
        "443",
        "443",
        "https",
    )
    assert (headers["fly-region"], headers["via"]) == ("iad", "1.1 fly.io")
    assert headers["fly-request-id"] == answer.headers["fly-request-id"]
    assert (answer.headers["x-mine"], answer.headers["set-cookie"]) == ("1", "a=b")


async def test_the_public_port_chooses_the_service(fly: Client) -> None:
    app = await public_app(fly)
    await web_machine(fly, app, ports=[{"port": 80}, {"start_port": 9000, "end_port": 9010}])
    async with edge_of(fly) as outside:
        assert (await outside.get()).json["headers"]["fly-forwarded-port"] == "80", "443, else 80"
        told = (await outside.get(host="ada.fly.dev:9005")).json
        assert (told["headers"]["fly-forwarded-port"], told["headers"]["x-forwarded-proto"]) == ("9005", "http")
        own_port = outside.url.rsplit(":", 1)[1]
        assert (await outside.get(host=f"ada.fly.dev:{own_port}")).status == 200, "its own port says nothing"
        assert (await outside.get(host="ada.fly.dev:9011")).status == 503


async def test_without_an_address_an_app_or_a_service_nobody_answers(fly: Client) -> None:
    app = await fly.app()
    await web_machine(fly, app, ready=False)
    async with edge_of(fly) as outside:
        assert "no public IP address" in (await outside.get()).body.decode()
        await fly.call("POST", f"{app}/ip_assignments", {"type": "private_v6"})
        assert (await outside.get()).status == 503
        for host in ("eve.fly.dev", "ada.example.com", "ada"):
            assert "no app has the host name" in (await outside.get(host=host)).body.decode()
        await public_app(fly, "bob")
        await fly.machine("/v1/apps/bob")
        assert (await outside.get(host="bob.fly.dev")).status == 503


async def test_a_machine_can_be_forced_or_preferred(fly: Client) -> None:
    app = await public_app(fly)
    first, second = identity(await web_machine(fly, app)), identity(await web_machine(fly, app))
    async with edge_of(fly) as outside:
        for wanted in (first, second):
            told = (await outside.get(fly_force_instance_id=wanted)).json
            assert told["machine"] == wanted
            assert "fly-force-instance-id" not in told["headers"]
            assert (await outside.get(fly_prefer_instance_id=wanted)).json["machine"] == wanted
        assert (await outside.get(fly_force_instance_id="0000")).status == 503, "no fallback"
        told = (await outside.get(fly_prefer_instance_id="0000")).json
        assert told["headers"]["fly-preferred-instance-unavailable"] == "0000"


async def test_cordoned_machines_are_left_out(fly: Client) -> None:
    machine = await web_machine(fly, await public_app(fly))
    async with edge_of(fly) as outside:
        await fly.call("POST", f"{machine}/cordon")
        assert (await outside.get()).status == 503
        await fly.call("POST", f"{machine}/uncordon")
        assert (await outside.get()).status == 200


async def test_a_machine_that_fails_its_service_s_check_is_left_out(fly: Client) -> None:
    app = await public_app(fly)
    check = {"type": "http", "path": "/health"} | OFTEN
    sick = await web_machine(fly, app, checks=[check])
    other = service(internal_port=9999, ports=[{"port": 9999}], checks=[check | {"type": "tcp"}])
    config = {"services": [service(checks=[check]), other], "checks": {"mine": {"type": "tcp", "port": 1} | OFTEN}}
    well = await fly.machine(app, "web", config=config)
    await fly.log(well)
    async with edge_of(fly) as outside:
        await outside.get("/sick", fly_force_instance_id=identity(sick))

        async def noticed() -> bool:
            return bool((await fly.get(sick))["checks"][0]["status"] == "critical")

        async def only_others_fail() -> bool:
            statuses = [row["status"] for row in (await fly.get(well))["checks"]]
            return bool(statuses == ["passing", "critical", "critical"])

        await eventually(noticed)
        await eventually(only_others_fail)
        assert {(await outside.get()).json["machine"] for _ in range(4)} == {identity(well)}


# Carrying


async def test_a_program_that_listens_late_is_waited_for_and_a_dead_one_is_502(fly: Client) -> None:
    app = await public_app(fly)
    await web_machine(fly, app, ready=False)
    async with edge_of(fly) as outside:
        assert (await outside.get()).status == 200
    await public_app(fly, "bob")
    await web_machine(fly, "/v1/apps/bob", image="sleeper", ready=False)
    async with edge_of(fly, patience=0.2) as outside:
        reply = await outside.get(host="bob.fly.dev")
    assert reply.status == 502
    assert reply.body.startswith(b"fly-proxy: [PC01]")


async def test_nothing_is_added_and_answers_without_a_body_come_through(fly: Client) -> None:
    await web_machine(fly, await public_app(fly))
    async with edge_of(fly) as outside:
        bare = httpx.Request("POST", f"{outside.url}/", headers={"host": "ada.fly.dev"}, content=b"x")
        told = (await outside.http.send(bare)).json()["headers"]
        assert {"accept", "accept-encoding", "content-type", "user-agent"}.isdisjoint(told)
        seen = await outside.http.head("/", headers={"host": "ada.fly.dev"})
        assert (seen.status_code, seen.content, int(seen.headers["content-length"]) > 0) == (200, b"", True)
        empty = await outside.http.get("/health", headers={"host": "ada.fly.dev"})
        assert (empty.status_code, empty.content) == (200, b"")


async def test_an_answer_that_breaks_off_does_not_look_whole(fly: Client) -> None:
    await web_machine(fly, await public_app(fly))
    async with edge_of(fly) as outside:
        with pytest.raises(httpx.RemoteProtocolError):
            await outside.get("/broken")


async def test_web_sockets_go_through(fly: Client) -> None:
    await web_machine(fly, await public_app(fly))
    async with edge_of(fly) as outside, aiohttp.ClientSession() as session:
        headers = {"host": "ada.fly.dev"}
        async with session.ws_connect(f"{outside.url}/ws", headers=headers, protocols=["chat", "x"]) as socket:
            assert socket.protocol == "chat"
            await socket.send_str("hello")
            assert (await socket.receive_str()) == "HELLO"
            await socket.send_bytes(b"abc")
            assert (await socket.receive_bytes()) == b"cba"
            await socket.send_str("bye")
            assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 4001
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{outside.url}/forbidden", headers=headers)
        assert refused.value.status == 403


# Waking


@pytest.mark.parametrize("how", ["stop", "suspend"])
async def test_a_request_wakes_a_machine_and_waits_for_it(fly: Client, how: str) -> None:
    machine = await web_machine(fly, await public_app(fly), autostart=True)
    await fly.call("POST", f"{machine}/{how}")
    await fly.wait(machine, "stopped" if how == "stop" else "suspended")
    since = len(await fly.ledger())
    async with edge_of(fly) as outside:
        replies = await asyncio.gather(*(outside.get() for _ in range(5)))
    assert [reply.status for reply in replies] == [200] * 5
    (told,) = [line for line in await fly.ledger(since) if line.get("event") == "machine_started"]
    assert (told["cause"], told["request_id"]) == ("proxy", None)


async def test_without_autostart_or_while_leased_it_sleeps_on(fly: Client) -> None:
    app = await public_app(fly)
    machine = await web_machine(fly, app, ready=False)
    await fly.call("POST", f"{machine}/stop")
    await fly.wait(machine, "stopped")
    async with edge_of(fly) as outside:
        assert b"[PR01]" in (await outside.get()).body
    config = {"image": "web", "services": [service(autostart=True)]}
    await fly.call("POST", machine, {"config": config, "skip_launch": True})
    await fly.wait(machine, "stopped")
    await fly.call("POST", f"{machine}/lease", {"ttl": 60})
    async with edge_of(fly) as outside:
        reply = await outside.get()
    assert (reply.status, b"[PM01]" in reply.body) == (503, True)
    assert await state(fly, machine) == "stopped"


async def test_a_full_host_wakes_nobody_and_a_dead_one_gets_nothing(fly: Client) -> None:
    assert fly.core is not None
    machine = await web_machine(fly, await public_app(fly), autostart=True)
    host = fly.core.world.machines[identity(machine)].host
    await fly.call("POST", f"{machine}/stop")
    await fly.wait(machine, "stopped")
    async with edge_of(fly) as outside:
        host.slots = 0
        reply = await outside.get()
        assert (reply.status, b"insufficient CPUs available" in reply.body) == (503, True)
        host.slots = None
        assert (await outside.get()).status == 200
        host.up = False
        assert (await outside.get()).status == 503
        host.up = True


# Sleeping


async def quiet(make: Make, idle: float = 0.3) -> Client:
    return await make(idle=idle, suspend=0)


async def until(fly: Client, machine: str, wanted: str) -> None:
    async def so() -> bool:
        return await state(fly, machine) == wanted

    await eventually(so)


@pytest.mark.parametrize(("autostop", "wanted"), [("stop", "stopped"), (True, "stopped"), ("suspend", "suspended")])
async def test_an_idle_machine_is_put_to_sleep(make: Make, autostop: Any, wanted: str) -> None:
    fly = await quiet(make)
    machine = await web_machine(fly, await public_app(fly), autostop=autostop, autostart=True, ready=False)
    async with edge_of(fly) as outside:
        await until(fly, machine, wanted)
        told = (await fly.happened(f"machine_{wanted}"))[0]
        assert (told["cause"], told["request_id"]) == ("autostop", None)
        assert (await outside.get()).status == 200, "and woken again"
        await until(fly, machine, wanted)


async def test_a_machine_that_can_t_be_suspended_is_stopped(make: Make) -> None:
    fly = await quiet(make)
    config = {"guest": {"cpus": 2, "memory_mb": 4096}, "services": [service(autostop="suspend")]}
    machine = await fly.machine(await public_app(fly), config=config)
    async with edge_of(fly):
        await until(fly, machine, "stopped")


async def test_an_open_connection_keeps_it_awake(make: Make) -> None:
    fly = await quiet(make)
    app = await public_app(fly)
    busy = await web_machine(fly, app, autostop="stop", autostart=True)
    async with edge_of(fly) as outside, aiohttp.ClientSession() as session:
        headers = {"host": "ada.fly.dev", "fly-force-instance-id": identity(busy)}
        async with session.ws_connect(f"{outside.url}/ws", headers=headers):
            idle = await fly.machine(app, config={"services": [service(autostop="stop")]})
            await until(fly, idle, "stopped")
            assert await state(fly, busy) == "started"
        await until(fly, busy, "stopped")


async def test_so_many_machines_stay_awake_and_others_are_not_its_business(make: Make) -> None:
    fly = await quiet(make)
    app = await public_app(fly)
    kept = [
        await fly.machine(app, config={"services": [service(autostop="stop", min_machines_running=1)]})
        for _ in range(3)
    ]
    never = await fly.machine(app, config={"services": [service(autostop="off", internal_port=1)]})
    plain = await fly.machine(app)
    async with edge_of(fly):

        async def one_left() -> bool:
            return [await state(fly, machine) for machine in kept].count("started") == 1

        await eventually(one_left)
        bystander = await fly.machine(app, config={"services": [service(autostop="stop", internal_port=2)]})
        await until(fly, bystander, "stopped")
        assert await one_left()
        assert [await state(fly, machine) for machine in (never, plain)] == ["started"] * 2
