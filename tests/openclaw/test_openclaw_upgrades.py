"""Another version of OpenClaw: the conversation goes on, or everything is as it was before."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from openclaw_world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.openclaw_full, pytest.mark.timeout(600)]

BROKEN = "2026.9.99"
UPDATE_SECONDS = 400.0
"""An update watches the new version for a minute."""

SPOILS_THE_STATE = """
import { spawnSync } from "node:child_process";
import { DatabaseSync } from "node:sqlite";
const given = process.argv.slice(2);
if (given[0] === "--version") {
  console.log("OpenClaw BROKEN (0badc0de)");
} else if (given[0] === "gateway" && given[1] === "run") {
  const database = new DatabaseSync(`${process.env.OPENCLAW_STATE_DIR}/state/openclaw.sqlite`);
  database.exec("PRAGMA user_version = 99; DELETE FROM channel_pairing_allow_entries");
  database.close();
  process.exit(1);
} else {
  const done = spawnSync(process.execPath, [REAL, ...given], { stdio: "inherit" });
  process.exit(done.status ?? 1);
}
"""


@pytest.fixture(scope="module")
def opt(opt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with one version more, which spoils the state and ends when it is run."""
    image = tmp_path_factory.mktemp("opt")
    (image / "node").symlink_to(opt / "node")
    (image / "openclaw").mkdir()
    for version in ("2026.9.5", "2026.9.6"):
        (image / "openclaw" / version).symlink_to(opt / "openclaw" / version)
    real, broken = opt / "openclaw" / "2026.9.6", image / "openclaw" / BROKEN
    _linked(real, broken, "node_modules", "node_modules/openclaw")
    package = broken / "node_modules" / "openclaw"
    about = json.loads((real / "node_modules" / "openclaw" / "package.json").read_text())
    for name in ("package.json", "openclaw.mjs"):
        (package / name).unlink()
    (package / "package.json").write_text(json.dumps(about | {"version": BROKEN}))
    entry = SPOILS_THE_STATE.replace("REAL", json.dumps(str(real / "node_modules" / "openclaw" / "openclaw.mjs")))
    (package / "openclaw.mjs").write_text(entry.replace("BROKEN", BROKEN))
    return image


def _linked(real: Path, copy: Path, *own: str) -> None:
    """A directory whose entries are links to the real one's, but for these directories of its own."""
    for folder in ("", *own):
        (copy / folder).mkdir()
        for entry in (real / folder).iterdir():
            if str(entry.relative_to(real)) not in own:
                (copy / folder / entry.name).symlink_to(entry)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talking(world: World) -> AsyncIterator[World]:
    """An agent of 2026.9.5 that has talked already."""
    world.declare(version="2026.9.5")
    world.machine.start()
    await world.ready()
    await world.pair()
    await world.turn("first")
    yield world


async def test_a_version_that_does_not_come_up_is_taken_back_with_the_state_from_before(talking: World) -> None:
    world = talking
    world.declare(version=BROKEN)
    await world.troubled("configure", BROKEN, seconds=UPDATE_SECONDS)
    await world.heard(lambda b: b["ready"] and b["openclawVersion"] == "2026.9.5", "the version from before")
    asked = await world.turn("who runs you?")
    assert asked.said[0] == "first", "the conversation is as it was, and who was approved still is"
    world.declare(version="2026.9.5")
    await world.well()


async def test_a_newer_version_takes_the_conversation_over(talking: World) -> None:
    world = talking
    before = world.starts
    world.declare(version="2026.9.6")
    await world.ready(UPDATE_SECONDS)
    assert world.operator.last["openclawVersion"] == "2026.9.6"
    asked = await world.turn("and now?")
    assert asked.said[0] == "first"
    assert world.starts == before + 1


async def test_an_older_version_is_refused_by_the_state_and_the_newer_goes_on(talking: World) -> None:
    # Given a version that has proved itself: one that has not would be the first to be taken back
    world = talking
    await world.heard(lambda _: world.machine.lines("update done"), "the update's end", UPDATE_SECONDS)
    world.declare(version="2026.9.5")
    await world.troubled("configure", "2026.9.5", seconds=UPDATE_SECONDS)
    await world.heard(lambda b: b["ready"] and b["openclawVersion"] == "2026.9.6", "the newer version")
    asked = await world.turn("still you?")
    assert asked.said[0] == "first"
    assert not any(line["code"] == 78 for line in world.machine.lines("runtime ended")), "it was not even tried"
