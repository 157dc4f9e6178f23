"""Letting a gateway finish what it has begun, and knowing that it has taken up a new configuration."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openclaw_stub import Running, eventually, running

from roost_agent.runtime import Refused
from roost_agent.runtime.openclaw import drain as drain_module
from roost_agent.runtime.openclaw import reload
from roost_agent.runtime.openclaw.drain import drain, resume
from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway
from roost_agent.runtime.openclaw.reload import reloaded


async def test_it_finishes_what_it_has_begun_and_takes_on_nothing_new(tmp_path: Path) -> None:
    async with running(tmp_path, turns=1) as world, world.connected() as gateway:
        draining = asyncio.create_task(drain(gateway, 10))
        await eventually(lambda: world.stub.lease, "admission closed")
        assert not draining.done()
        assert (await gateway.get("/startupz", 1))[0] == 503
        world.stub.tell({"turns": 0})
        assert await draining is True
        # And it opens again when it is to go on after all.
        await resume(gateway)
        assert await gateway.call("channels.status")


async def test_it_is_not_waited_for_without_end(tmp_path: Path) -> None:
    async with running(tmp_path, turns=1) as world, world.connected() as gateway:
        assert await drain(gateway, 0.05) is False
        await resume(gateway)
        assert world.stub.lease is None


async def test_what_does_not_run_has_nothing_to_finish(tmp_path: Path) -> None:
    assert await drain(Gateway("127.0.0.1", 1, lambda: ""), 1) is False


async def test_a_lease_of_somebody_else_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        await gateway.call("gateway.suspend.prepare", {"requestId": "another"})
        draining = asyncio.create_task(drain(gateway, 10))
        await eventually(lambda: world.stub.calls["gateway.suspend.prepare"] > 1, "asked")
        world.stub.lease = None
        assert await draining is True
        assert world.stub.lease == "roost"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is as stale as it is quick."""
    monkeypatch.setattr(reload, "_STALE_SECONDS", 0.3)
    for module in (drain_module, reload):
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)


def changed(world: Running, **section: Any) -> dict[str, Any]:
    return world.config | section


async def test_a_change_is_in_effect_when_it_is_said_to_be(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        for soul in ("one", "two"):
            config = changed(world, messages={"prefix": soul}, agents={"list": [1, {"a": None}]})
            world.write(config)
            await reloaded(gateway, config, 10)
            assert world.stub.applied == config


async def test_what_it_already_has_is_in_effect_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        await reloaded(gateway, world.config, 10)


async def test_an_answer_of_the_file_before_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        with pytest.raises(TimeoutError, match=r"not in effect after 0.3 s"):
            await reloaded(gateway, changed(world, messages={"never": "written"}), 0.3)


async def test_a_value_that_may_be_a_secret_is_not_shown_and_not_missed(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        config = changed(world, channels={"telegram": {"enabled": True, "botToken": "1:plain"}})
        world.write(config)
        await reloaded(gateway, config, 10)


async def test_a_configuration_that_it_refuses_is_said_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as world, world.connected() as gateway:
        config = changed(world, nonsense=1)
        world.write(config)
        with pytest.raises(Refused, match=r'openclaw.json whole: Unrecognized key: "nonsense": correct the bundle'):
            await reloaded(gateway, config, 10)
        assert world.stub.applied == world.config
        # When it is corrected, the refusal of before is not taken for one of this
        config = changed(world, messages={"prefix": "better"})
        world.write(config)
        await reloaded(gateway, config, 10)


async def test_one_that_starts_anew_for_the_change_is_away(tmp_path: Path) -> None:
    world = Running(tmp_path)
    world.start(startSeconds=0)
    async with world.connected() as gateway:
        config = changed(world, env={"vars": {"A": "b"}})
        world.write(config)
        assert await world.code == 0
        with pytest.raises((GatewayAway, TimeoutError)):
            await reloaded(gateway, config, 0.3)
