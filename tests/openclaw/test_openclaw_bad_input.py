"""A bundle that can't be applied changes nothing: the agent goes on as it was, and the heartbeat says why."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from openclaw_world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.openclaw_full, pytest.mark.timeout(600)]

SKILL = "---\nname: minutes\ndescription: Minutes of a meeting.\n---\nDecisions first.\n"


def skill(path: str = "SKILL.md", **file: Any) -> dict[str, Any]:
    """A bundle's skills with one file, right unless something else is said."""
    right = {"path": path, "content": SKILL, "sha256": hashlib.sha256(SKILL.encode()).hexdigest()}
    whole = {name: value for name, value in (right | file).items() if value is not None}
    return {"skills": {"items": [{"name": "minutes", "version": "1.0.0", "files": [whole]}]}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talking(world: World) -> AsyncIterator[World]:
    """An agent that has talked already."""
    world.declare()
    world.machine.start()
    await world.ready()
    await world.pair()
    await world.turn("first")
    yield world


BAD: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "an overlay with a key that OpenClaw does not know": (
        {"overlay": {"gateway": {"nonsense": True}}},
        "configure",
        ("gateway",),
    ),
    "an overlay with a value of the wrong type": (
        {"overlay": {"agents": {"defaults": {"timeoutSeconds": "soon"}}}},
        "configure",
        ("agents.defaults.timeoutSeconds",),
    ),
    "a model of a provider that is not there": ({"model": "nowhere/none"}, "configure", ("nowhere",)),
    "a skill without a checksum": (skill(sha256=None), "bundle", ("skills.items.0.files.0.sha256",)),
    "a skill with the checksum of another content": (skill(sha256="0" * 64), "configure", ("minutes", "SKILL.md")),
    "a skill without SKILL.md": (skill("README.md"), "configure", ("minutes", "SKILL.md")),
    "a skill whose file leads out": (skill("../../../escaped"), "bundle", ("skills.items.0.files.0.path",)),
    "a workspace file that leads out": (
        {"workspace": [{"path": "../escaped", "content": "x"}]},
        "bundle",
        ("workspace.0.path",),
    ),
    "a soul of 10 MB": ({"soul": "x" * 10 * 2**20}, "configure", ("soul",)),
}


@pytest.mark.parametrize("bad", BAD)
async def test_the_old_configuration_goes_on_and_the_reason_is_told(talking: World, bad: str) -> None:
    world, (given, topic, words) = talking, BAD[bad]
    applied = world.operator.last["bundleRevision"]
    world.declare(**({"soul": "You are somebody else."} | given))
    line = await world.troubled(topic, *words)
    assert len(line) <= 200
    assert world.operator.last["bundleRevision"] == applied
    assert world.operator.last["ready"]
    asked = await world.turn(f"after {bad}")
    assert (asked.model, asked.soul) == ("one", "You are Ada.")
    assert not list(world.machine.data.parent.rglob("escaped"))

    world.declare()
    await world.well()
    assert world.starts == 1


async def test_a_link_that_the_agent_planted_leads_nowhere(talking: World) -> None:
    # Given an agent that has put a link to a place outside where its skill is to be
    world = talking
    outside = world.machine.data.parent / "outside"
    outside.mkdir()
    skills = world.machine.data / "workspace" / "skills"
    skills.mkdir(exist_ok=True)
    (skills / "minutes").symlink_to(outside)
    # When the skill comes, then nothing is written outside, whatever else happens
    revision = world.declare(**skill())
    await world.heard(
        lambda b: b["bundleRevision"] == revision or any(d.startswith("configure: ") for d in b["degraded"]),
        "a verdict",
    )
    assert list(outside.iterdir()) == []
    assert world.starts == 1
