"""Machines as processes: environment, signals, ends, restart policies, and that nothing is left behind."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from flysim_client import Client, Make, alive, eventually


async def exit_events(fly: Client, machine: str) -> list[dict[str, Any]]:
    """Payloads of its exit events, oldest first."""
    events = await fly.get(f"{machine}/events", limit=50)
    return [event["request"] for event in reversed(events) if event["type"] == "exit"]


# Environment


async def test_a_file_lies_where_a_variable_with_its_path_says(fly: Client) -> None:
    config = {
        "env": {"WHERE": "/etc/roost/ca.crt", "OTHER": "see /etc/roost/ca.crt"},
        "files": [{"guest_path": "/etc/roost/ca.crt", "raw_value": "dHJ1c3QK"}],
        "init": {"exec": ["sh", "-c", 'cat "$WHERE"; echo "$OTHER"; exec sleep 60']},
    }
    machine = await fly.machine(await fly.app(), "tells", config=config)
    assert (await fly.log(machine, "see")).splitlines() == ["trust", "see /etc/roost/ca.crt"]
    assert (await fly.get(machine))["config"]["files"] == config["files"], "echoed as it was sent"


@pytest.mark.parametrize(
    "file",
    [
        {"guest_path": "relative", "raw_value": ""},
        {"guest_path": "/a/../../b", "raw_value": ""},
        {"guest_path": "/a", "raw_value": "no base64!"},
    ],
)
async def test_a_file_that_can_not_be_put_anywhere_is_refused(fly: Client, file: dict[str, str]) -> None:
    assert (await fly.create(await fly.app(), "tells", config={"files": [file]})).status == 400


async def test_the_environment_is_what_the_config_says_and_fly_adds(
    fly: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_SIMULATOR", "x")
    app = await fly.app()
    volume = await fly.volume(app)
    await fly.call("POST", f"{app}/secrets", {"values": {"TOKEN": "s3cret", "SHARED": "of the secret"}})
    config = {
        "env": {"A": "1", "SHARED": "of the config", "PLAIN": "of the config"},
        "guest": {"memory_mb": 512},
        "mounts": [{"volume": volume["id"], "path": "/data"}],
        "init": {"cmd": ["--loud"]},
    }
    machine = await fly.machine(app, "tells", name="ada-1", config=config)
    output = await fly.log(machine, "args:")
    environment = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    row, inside = await fly.get(machine), await fly.inside(machine)
    shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert {name: value for name, value in environment.items() if name not in shell} == {
        "A": "1",
        "SHARED": "of the secret",
        "TOKEN": "s3cret",
        "PLAIN": "of the image",
        "DATA_DIR": inside["volume_dir"],
        "BIND": inside["address"],
        "SELF": row["id"],
        "PATH": os.environ["PATH"],
        "FLY_SIM_STATE": str(tmp_path / "state-0"),
        "FLY_API_SOCKET": str(tmp_path / "state-0" / "machines" / row["id"] / "api"),
        "FLY_APP_NAME": "ada",
        "FLY_MACHINE_ID": row["id"],
        "FLY_ALLOC_ID": row["id"],
        "FLY_REGION": "ams",
        "FLY_PRIVATE_IP": row["private_ip"],
        "FLY_IMAGE_REF": "tells",
        "FLY_MACHINE_VERSION": row["version"],
        "FLY_VM_MEMORY_MB": "512",
    }


async def test_a_machine_without_a_volume_gets_a_fresh_directory_at_every_boot(fly: Client) -> None:
    config = {"init": {"exec": ["/bin/sh", "-c", 'cd "$DATA_DIR"; ls -a; > left; echo done; exec sleep 1000']}}
    machine = await fly.machine(await fly.app(), "tells", config=config)
    await fly.log(machine, "done")
    await fly.call("POST", f"{machine}/restart")
    await fly.wait(machine, "started")
    assert "left" not in await fly.log(machine, "done\n.\n..\ndone\n")


async def test_the_command_can_be_replaced(fly: Client) -> None:
    app = await fly.app()
    for config in (
        {"init": {"exec": ["echo", "hello", "world"]}},
        {"init": {"entrypoint": ["echo", "hello"], "cmd": ["world"]}},
        {"processes": [{"entrypoint": ["echo", "hello"], "cmd": ["world"]}]},
    ):
        machine = await fly.machine(app, until="stopped", config=config)
        assert await fly.log(machine, "\n") == "hello world\n"


async def test_every_machine_has_its_own_address(fly: Client) -> None:
    app = await fly.app()
    machines = [await fly.machine(app, "listens") for _ in range(3)]
    addresses = [(await fly.inside(machine))["address"] for machine in machines]
    pids = [(await fly.inside(machine))["pid"] for machine in machines]
    assert [os.getsid(pid) for pid in pids] == pids, "and its own session"
    assert len(set(addresses)) == 3
    for machine, address in zip(machines, addresses, strict=True):
        await fly.log(machine)
        socket.create_connection((address, 18790), timeout=5).close()


# Ends


async def test_a_machine_that_obeys_ends_by_its_own_code(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), "polite", config={"stop_config": {"signal": "SIGTERM"}})
    await fly.log(machine)
    await fly.call("POST", f"{machine}/stop", {})
    await fly.wait(machine, "stopped")
    (told,) = await exit_events(fly, machine)
    assert "exit_code" not in told["exit_event"], "Fly leaves it out when it is 0"
    assert told["exit_event"] | {"exited_at": ""} == {
        "guest_exit_code": 0,
        "guest_signal": -1,
        "signal": -1,
        "oom_killed": False,
        "requested_stop": True,
        "restarting": False,
        "exited_at": "",
    }
    assert told["restart_count"] == 0


@pytest.mark.parametrize("order", [{}, {"signal": "SIGTERM", "timeout": "50ms"}, {"timeout": 50_000_000}])
async def test_a_machine_that_does_not_obey_is_killed_after_the_timeout(fly: Client, order: dict[str, Any]) -> None:
    machine = await fly.machine(await fly.app(), "stubborn", config={"stop_config": {"timeout": "100ms"}})
    await fly.log(machine)
    pid = (await fly.inside(machine))["pid"]
    await fly.call("POST", f"{machine}/stop", order)
    await fly.wait(machine, "stopped")
    assert not alive(pid)
    (told,) = await exit_events(fly, machine)
    assert (told["exit_event"]["exit_code"], told["exit_event"]["signal"]) == (137, 9)


async def test_the_stop_call_goes_before_the_config(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), config={"stop_config": {"signal": "SIGTERM"}})
    await fly.call("POST", f"{machine}/stop", {"signal": "SIGUSR1"})
    await fly.wait(machine, "stopped")
    (told,) = await exit_events(fly, machine)
    assert told["exit_event"]["signal"] == int(signal.SIGUSR1)


@pytest.mark.parametrize("sent", ["SIGKILL", 9, "9"])
async def test_a_signal_goes_to_the_main_process(fly: Client, sent: Any) -> None:
    machine = await fly.machine(await fly.app(), config={"restart": {"policy": "no"}})
    assert (await fly.call("POST", f"{machine}/signal", {"signal": "SIGWHAT"})).status == 400
    assert (await fly.call("POST", f"{machine}/signal", {"signal": sent})).json == {"ok": True}
    await fly.wait(machine, "stopped")
    (told,) = await exit_events(fly, machine)
    assert (told["exit_event"]["signal"], told["exit_event"]["requested_stop"]) == (9, False)
    assert (await fly.call("POST", f"{machine}/signal", {"signal": "SIGHUP"})).status == 412


# Restart policies


@pytest.mark.parametrize("config", [{}, {"restart": {"policy": "on-failure"}}, {"restart": {"policy": "no"}}])
async def test_an_orderly_end_is_the_end(fly: Client, config: dict[str, Any]) -> None:
    machine = await fly.machine(await fly.app(), "quits", until="stopped", config=config)
    (told,) = await exit_events(fly, machine)
    assert (told["exit_event"]["guest_exit_code"], told["exit_event"]["requested_stop"]) == (0, False)
    assert await fly.happened("machine_restarted") == []


async def test_a_crash_is_restarted_so_many_times(fly: Client) -> None:
    config = {"restart": {"policy": "on-failure", "max_retries": 2}}
    machine = await fly.machine(await fly.app(), "crashes", until="stopped", config=config)
    exits = await exit_events(fly, machine)
    assert [told["exit_event"]["exit_code"] for told in exits] == [3, 3, 3]
    assert [told["exit_event"]["restarting"] for told in exits] == [True, True, False]
    assert [told["restart_count"] for told in exits] == [0, 1, 2]
    assert len(await fly.happened("machine_restarted")) == 2


async def test_always_means_after_an_orderly_end_too_until_it_is_stopped(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), "quits", until="created", config={"restart": {"policy": "always"}})
    for _ in range(3):
        last = (await fly.get(f"{machine}/events"))[0]["id"]
        await fly.get(f"{machine}/wait", state="started", from_event_id=last)
    await fly.call("POST", f"{machine}/stop", {})
    await fly.wait(machine, "stopped")
    boots = len(await fly.happened("machine_started"))
    assert boots >= 3
    assert (await fly.get(machine))["state"] == "stopped"
    assert len(await fly.happened("machine_started")) == boots


async def test_auto_destroy(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), "quits", until="destroyed", config={"auto_destroy": True})
    assert (await fly.get(machine))["state"] == "destroyed"


async def test_a_killed_machine_comes_back_as_its_policy_says(fly: Client) -> None:
    machine = await fly.machine(await fly.app())
    inside = await fly.inside(machine)
    last = (await fly.get(f"{machine}/events"))[0]["id"]
    killed = await fly.sim("POST", f"machines/{inside['id']}/kill", {"signal": 9})
    assert killed == {"pid": inside["pid"], "signal": 9}
    await fly.get(f"{machine}/wait", state="started", from_event_id=last)
    assert not alive(inside["pid"])
    assert alive((await fly.inside(machine))["pid"])
    assert len(await fly.happened("machine_restarted")) == 1


# Nothing is left behind


async def family(fly: Client, app: str, **config: Any) -> tuple[str, list[int]]:
    """A machine with a child in its group, one in another session, and one there without its environment."""
    machine = await fly.machine(app, "family", config=config)
    output = await fly.log(machine)
    pids = [int(line.split()[1]) for line in output.splitlines() if line.startswith("pid")]
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    return machine, [(await fly.inside(machine))["pid"], *pids]


@pytest.mark.parametrize("how", ["stop", "kill", "destroy", "update", "delete app"])
async def test_a_machine_takes_everything_with_it(fly: Client, how: str) -> None:
    app = await fly.app()
    machine, pids = await family(fly, app, restart={"policy": "no"}, stop_config={"signal": "SIGKILL"})
    identity = machine.rsplit("/", 1)[1]
    match how:
        case "stop":
            await fly.call("POST", f"{machine}/stop", {})
            await fly.wait(machine, "stopped")
        case "kill":
            await fly.sim("POST", f"machines/{identity}/kill")
            await fly.wait(machine, "stopped")
        case "destroy":
            await fly.call("DELETE", machine, force="true")
            await fly.wait(machine, "destroyed")
        case "update":
            version = (await fly.call("POST", machine, {"config": {"image": "sleeper"}})).json["version"]
            await fly.get(f"{machine}/wait", version=version)
        case _:
            await fly.call("DELETE", app, force="true")
            await eventually(lambda: not any(map(alive, pids)))
    assert [pid for pid in pids if alive(pid)] == []


async def test_a_main_process_killed_from_outside_takes_what_is_known_by_group_or_environment(fly: Client) -> None:
    machine, pids = await family(fly, await fly.app(), restart={"policy": "no"})
    os.kill(pids[0], signal.SIGKILL)
    await fly.wait(machine, "stopped")
    assert [alive(pid) for pid in pids[:3]] == [False] * 3
    os.kill(pids[3], signal.SIGKILL)


async def test_a_machine_that_is_killed_twice_takes_everything_with_it_too(fly: Client) -> None:
    """The second kill finds no children any more; the first one's are remembered."""
    assert fly.core is not None
    machine, pids = await family(fly, await fly.app(), restart={"policy": "no"})
    boot = fly.core.world.machines[machine.rsplit("/", 1)[1]].boot
    assert boot is not None
    boot.instance.kill()
    while alive(pids[0]):  # not awaited: the loop must not have reaped it yet
        pass
    boot.instance.kill()
    await fly.wait(machine, "stopped")
    assert [pid for pid in pids if alive(pid)] == []


async def test_a_machine_of_another_simulator_is_left_alone_whatever_its_id(make: Make) -> None:
    """With one seed both have the same ids."""
    one, two = await make(seed=7), await make(seed=7)
    first, second = [await fly.machine(await fly.app()) for fly in (one, two)]
    assert first == second
    await one.call("DELETE", first, force="true")
    await one.wait(first, "destroyed")
    assert alive((await two.inside(second))["pid"])


async def test_a_machine_destroyed_while_it_boots_leaves_no_process(make: Make) -> None:
    fly = await make(prepare=0)
    app = await fly.app()
    for _ in range(10):
        machine = await fly.machine(app, until="created")
        await fly.call("DELETE", machine, force="true")
        await fly.wait(machine, "destroyed")
    started = [line["detail"]["pid"] for line in await fly.happened("machine_started")]
    assert not any(map(alive, started))
    assert len(await fly.happened("machine_destroyed")) == 10


async def test_orders_that_overtake_each_other_end_in_the_last_one(fly: Client) -> None:
    machine = await fly.machine(await fly.app(), "stubborn", config={"stop_config": {"timeout": "60s"}})
    await fly.log(machine)
    pid = (await fly.inside(machine))["pid"]
    await fly.call("POST", f"{machine}/stop", {})
    assert (await fly.get(machine))["state"] == "stopping"
    assert alive(pid)
    assert (await fly.call("POST", machine, {"config": {"image": "sleeper"}})).status == 412
    assert (await fly.call("DELETE", machine)).status == 412
    await fly.call("DELETE", machine, force="true")
    await fly.wait(machine, "destroyed")
    assert not alive(pid)
