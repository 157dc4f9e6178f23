"""Who has asked for leave to write to the agent, and the answer to them."""

import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openclaw_stub import Running, eventually, run, running

from roost_agent.runtime import Ran
from roost_agent.runtime.openclaw.pairing import NoSuchPairing, NotReady, Pairings

ANN = {"senderId": "777001", "code": "MP73QBCH", "username": "ann"}
BEN = {"senderId": "777002", "code": "38NL7G5R", "username": "ben\x1b[2J"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, requests=[ANN, BEN]) as made:
        await eventually(lambda: made.stub.requests, "two who wait")
        yield made


def pairings(world: Running) -> Pairings:
    return Pairings(world.gateway, world.state, run, None)


def left(world: Running) -> list[str]:
    return [one["shown"]["senderId"] for one in world.stub.requests]


async def test_they_are_listed_with_what_they_were_told(world: Running) -> None:
    async with world.connected():
        ann, ben = await pairings(world).list()
    assert (ann.channel, ann.account, ann.sender, ann.code) == ("telegram", "default", "777001", "MP73QBCH")
    assert (ann.name, ben.name) == ("ann", "ben [2J")
    assert ann.created_at
    assert ann.expires_at


async def test_a_code_is_looked_up_once_and_not_at_every_look(world: Running) -> None:
    runs: list[Any] = []

    async def counted(argv: Any, **given: Any) -> Ran:
        runs.append(argv)
        return await run(argv, **given)

    found = Pairings(world.gateway, world.state, counted, None)
    async with world.connected():
        for _ in range(3):
            assert [one.code for one in await found.list()] == ["MP73QBCH", "38NL7G5R"]
        assert len(runs) == 1
        world.stub.tell({"requests": [ANN, BEN, {"senderId": "777003", "code": "ZZZZ2222"}]})
        assert [one.code for one in await found.list()][2] == "ZZZZ2222"
        assert len(runs) == 2


async def test_one_is_let_in_by_code(world: Running) -> None:
    async with world.connected():
        approved = await pairings(world).approve("telegram", code="38nl7g5r")
        assert (approved.sender, left(world)) == ("777002", ["777001"])
        with pytest.raises(NoSuchPairing):
            await pairings(world).approve("telegram", code="38NL7G5R")


async def test_one_is_let_in_by_id_and_another_turned_away(world: Running) -> None:
    async with world.connected():
        ann, ben = await pairings(world).list()
        assert (await pairings(world).approve("telegram", id=ann.id)).sender == "777001"
        assert (await pairings(world).dismiss("telegram", id=ben.id)).sender == "777002"
    assert left(world) == []
    assert (world.stub.calls["channels.pairing.approve"], world.stub.calls["channels.pairing.dismiss"]) == (1, 1)


@pytest.mark.parametrize("code", ["ZZZZ2222", "", "MP73QBC", "MP73QBCHX", "MP73QBCH\n", "' OR 1=1 --", "é" * 8])
async def test_every_wrong_code_is_answered_alike_and_lets_nobody_in(world: Running, code: str) -> None:
    async with world.connected():
        with pytest.raises(NoSuchPairing) as refused:
            await pairings(world).approve("telegram", code=code)
        with pytest.raises(NoSuchPairing) as unknown:
            await pairings(world).approve("telegram", id="no such id")
    assert str(refused.value) == str(unknown.value)
    assert len(left(world)) == 2


async def test_a_code_of_another_messenger_is_a_wrong_one(world: Running) -> None:
    async with world.connected():
        with pytest.raises(NoSuchPairing):
            await pairings(world).approve("slack", code="MP73QBCH")
    assert len(left(world)) == 2


async def test_one_who_gave_up_while_the_answer_was_on_its_way(world: Running) -> None:
    async with world.connected():
        found = pairings(world)
        ann, _ = await found.list()
        world.stub.pairing_list = lambda _: {  # type: ignore[method-assign]
            "requests": [{"requestId": ann.id, "channel": "telegram", "accountId": "default", "senderId": "777001"}]
        }
        world.stub.requests = []
        with pytest.raises(NoSuchPairing):
            await found.approve("telegram", id=ann.id)


async def test_while_it_does_not_run_nobody_is_let_in(world: Running) -> None:
    with pytest.raises(NotReady):
        await pairings(world).list()
    with pytest.raises(NotReady):
        await pairings(world).approve("telegram", code="MP73QBCH")


async def test_while_it_drains_one_is_asked_to_come_again(world: Running) -> None:
    async with world.connected() as gateway:
        await gateway.call("gateway.suspend.prepare", {"requestId": "x", "drain": True})
        with pytest.raises(NotReady):
            await pairings(world).list()


async def test_a_database_that_is_a_trap_costs_the_codes_and_no_more(world: Running, tmp_path: Path) -> None:
    database = world.state / "state" / "openclaw.sqlite"

    def plant(what: str) -> None:
        for old in database.parent.glob("openclaw.sqlite*"):
            old.unlink()
        if what == "link":
            database.symlink_to("/etc/passwd")
        elif what == "noise":
            database.write_bytes(os.urandom(100_000))
        elif what == "other":
            sqlite3.connect(database).execute("CREATE TABLE t (x)").connection.close()

    async with world.connected():
        for what in ("link", "noise", "other", "gone"):
            plant(what)
            found = Pairings(world.gateway, world.state, run, None)
            ann, _ = await found.list()
            assert (ann.sender, ann.code) == ("777001", None)
            # By id it goes on working.
            with pytest.raises(NoSuchPairing):
                await found.approve("telegram", code="MP73QBCH")
        assert (await found.approve("telegram", id=ann.id)).sender == "777001"


async def test_no_code_is_the_code_of_those_whose_code_is_not_known(world: Running) -> None:
    # Given one who waits, and of whom the database says nothing
    (world.state / "state" / "openclaw.sqlite").unlink()
    world.stub.requests = world.stub.requests[:1]
    async with world.connected():
        for code in ("", "?"):
            with pytest.raises(NoSuchPairing):
                await pairings(world).approve("telegram", code=code)
    assert left(world) == ["777001"]


async def test_two_with_the_same_code_are_both_left_out(world: Running) -> None:
    # A hostile agent can write codes of its own into its database; that must not choose between two people.
    world.stub.tell({"requests": [ANN, {"senderId": "666", "code": "MP73QBCH"}]})
    async with world.connected():
        with pytest.raises(NoSuchPairing):
            await pairings(world).approve("telegram", code="MP73QBCH")


async def test_rows_that_make_no_sense_are_passed_over(world: Running) -> None:
    good = {"requestId": "r", "channel": "telegram", "accountId": "default", "senderId": "7", "metadata": 3}
    bad = [7, None, {}, good | {"channel": "../x"}, good | {"senderId": 7}, good | {"requestId": "x" * 999}]
    world.stub.pairing_list = lambda _: {"requests": [*bad, good]}  # type: ignore[method-assign]
    async with world.connected():
        assert [one.sender for one in await pairings(world).list()] == ["7"]
        world.stub.pairing_list = lambda _: {"requests": "many"}  # type: ignore[method-assign]
        assert await pairings(world).list() == []
