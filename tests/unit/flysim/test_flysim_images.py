"""Images and their digests: what a tag stands for, and that a digest runs what its tag ran."""

import re
from typing import Any

import pytest
from flysim_client import Client

OTHER = "sha256:" + "b" * 64


async def digest_of(fly: Client, machine: str, **query: Any) -> str:
    return str((await fly.get(machine, **query))["image_ref"]["digest"])


async def test_a_reference_has_one_digest_in_every_simulator(fly: Client) -> None:
    app = await fly.app()
    digests = [await digest_of(fly, await fly.machine(app, until="created")) for _ in range(2)]
    assert re.fullmatch("sha256:[0-9a-f]{64}", digests[0])
    assert digests[0] == digests[1]
    assert digests[0] != await digest_of(fly, await fly.machine(app, "quits", until="created"))


async def test_a_digest_runs_what_its_tag_ran(fly: Client) -> None:
    app = await fly.app()
    digest = await digest_of(fly, await fly.machine(app, "polite"))
    pinned = await fly.machine(app, f"polite@{digest}")
    assert "ready" in await fly.log(pinned)
    row = await fly.get(pinned)
    assert row["config"]["image"] == f"polite@{digest}"
    assert (row["image_ref"]["tag"], row["image_ref"]["digest"]) == ("", digest)
    for unknown in (f"polite@{OTHER}", f"sleeper@{digest}"):
        await fly.machine(app, unknown, until="failed")


async def test_a_moved_tag_changes_what_is_pulled_next_and_nothing_that_runs(fly: Client) -> None:
    app = await fly.app()
    machine = await fly.machine(app, "polite")
    old, version = await digest_of(fly, machine), (await fly.get(machine))["version"]

    await fly.sim("POST", "images", {"reference": "polite", "digest": OTHER})

    assert await digest_of(fly, machine) == old
    await fly.call("POST", f"{machine}/restart")
    await fly.wait(machine, "started")
    assert await digest_of(fly, machine) == old, "a restart pulls nothing"
    await fly.call("POST", machine, {"config": {"image": "polite"}})
    await fly.wait(machine, "started")
    assert await digest_of(fly, machine) == OTHER
    assert await digest_of(fly, machine, version=version) == old
    for digest in (old, OTHER):
        assert "ready" in await fly.log(await fly.machine(app, f"polite@{digest}"))


@pytest.mark.parametrize(
    "body", [b'{"reference": "polite", "digest": "sha256:1"}', b'{"reference": "a@b", "digest": "x"}', b"{}"]
)
async def test_a_bad_move_is_refused(fly: Client, body: bytes) -> None:
    assert (await fly.raw("POST", "/_sim/images", body)).status == 400
