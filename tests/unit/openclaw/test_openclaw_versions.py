"""Where versions of OpenClaw come from, and what stays when one can't be had.

npm, Node and OpenClaw are one small program here that does what each of them is seen to do: it puts a tree in place or
tells npm's error as npm does. It is started by the supervisor's own reaper. The real ones are in tests/openclaw.
"""

import asyncio
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost_agent.reaper import Reaper
from roost_agent.runtime import Ran, Refused, User
from roost_agent.runtime.openclaw.versions import Installed, Versions

SYSTEM_PYTHON = Path("/usr/bin/python3")
"""One that every user can run, which that of a virtual environment may not be."""
IMAGE, NEWER, BROKEN = "2026.9.6", "2026.9.7", "2026.9.8"

NODE = """#!PYTHON -IS
import json, os, sys, time
from pathlib import Path

script, *words = sys.argv[1:]
with open("CALLS", "a") as calls:
    calls.write(json.dumps([script, words, dict(os.environ), os.geteuid()]) + "\\n")
if script.endswith("npm-cli.js"):
    version = words[1].removeprefix("openclaw@")
    unknown = {"code": "ETARGET", "summary": f"No matching version found for {words[1]}.", "detail": "In most cases"}
    said = json.loads(Path("REGISTRY").read_text()).get(version, unknown)
    entry = Path("node_modules/openclaw/openclaw.mjs")
    entry.parent.mkdir(parents=True)
    Path("package.json").open("a").close()
    time.sleep(said.get("seconds", 0))
    try:
        entry.write_text(said.get("tells", version) + "x" * said.get("bytes", 0))
    except OSError:
        said = {"code": "ENOSPC", "summary": "ENOSPC: no space left on device, write", "detail": "no space"}
    if "code" in said:
        print(json.dumps({"error": said}, indent=2))
        sys.exit(1)
elif words == ["--version"]:
    told = Path(script).read_text()
    if told.startswith("!"):
        sys.exit(told[1:])
    print(f"OpenClaw {told} (eb377ac)")
elif words == ["config", "schema"]:
    print(json.dumps({"properties": {} if Path(script).read_text() == "schemaless" else {"gateway": {}}}))
"""


class Bench:
    """A machine with one version in its image, an empty volume, and a registry that says what the test wants."""

    def __init__(self, folder: Path) -> None:
        self.image, self.volume = folder / "opt" / "openclaw", folder / "data"
        self.kept = self.volume / ".roost" / "openclaw"
        self.node = folder / "opt" / "node" / "bin" / "node"
        self.calls_file, self.registry_file = folder / "calls", folder / "registry"
        self.node.parent.mkdir(parents=True)
        python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable
        program = NODE.replace("PYTHON", str(python)).replace("CALLS", str(self.calls_file))
        self.node.write_text(program.replace("REGISTRY", str(self.registry_file)))
        self.node.chmod(0o755)
        self.volume.mkdir()
        self.lay(self.image / IMAGE, IMAGE)
        self.registry()
        self.versions = self.of(self.volume)

    def of(self, volume: Path, user: User | None = None) -> Versions:
        env = {"PATH": os.defpath, "npm_config_registry": "http://r"}
        return Versions(self.image, volume, Reaper().run, node=self.node, env=env, user=user)

    @staticmethod
    def lay(folder: Path, tells: str) -> None:
        entry = folder / "node_modules/openclaw/openclaw.mjs"
        entry.parent.mkdir(parents=True)
        entry.write_text(tells)
        (folder / "schema.json").write_text("{}")

    def registry(self, **answers: dict[str, Any]) -> None:
        """What npm says of each version; of any other, that there is none."""
        self.registry_file.write_text(json.dumps(answers))

    @property
    def calls(self) -> list[list[Any]]:
        return (
            [json.loads(line) for line in self.calls_file.read_text().splitlines()] if self.calls_file.exists() else []
        )

    @property
    def on_volume(self) -> list[str]:
        return sorted(each.name for each in self.kept.iterdir()) if self.kept.exists() else []


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def refusal(bench: Bench, version: str) -> str:
    with pytest.raises(Refused) as refused:
        await bench.versions.install(version)
    return str(refused.value)


async def failure(bench: Bench, version: str) -> OSError:
    with pytest.raises(OSError) as failed:  # noqa: PT011 - the callers look at it
        await bench.versions.install(version)
    return failed.value


async def test_what_the_image_has_is_taken_from_there_and_no_registry_is_asked(bench: Bench) -> None:
    installed = await bench.versions.install(IMAGE)
    assert (
        installed
        == bench.versions.find(IMAGE)
        == Installed(
            IMAGE,
            bench.node,
            bench.image / IMAGE / "node_modules/openclaw/openclaw.mjs",
            bench.image / IMAGE / "schema.json",
        )
    )
    assert not any("npm-cli" in call[0] for call in bench.calls)


async def test_what_the_image_has_goes_before_what_was_fetched_once(bench: Bench) -> None:
    bench.lay(bench.kept / IMAGE, IMAGE)
    assert (await bench.versions.install(IMAGE)).entry.is_relative_to(bench.image)


async def test_what_takes_too_long_can_be_had_later(bench: Bench) -> None:
    async def too_slow(*_: object, seconds: float, **__: object) -> Ran:
        raise TimeoutError

    versions = Versions(bench.image, bench.volume, too_slow, node=bench.node, env={})
    with pytest.raises(OSError, match=f"OpenClaw {NEWER} was not fetched within 180 s: is the npm registry slow?"):
        await versions.install(NEWER)
    with pytest.raises(OSError, match=f"OpenClaw {IMAGE} did not answer --version within 60 s"):
        await versions.install(IMAGE)
    assert bench.on_volume == []


async def test_an_unknown_version_is_fetched_to_the_volume_with_its_schema(bench: Bench) -> None:
    bench.registry(**{NEWER: {}})
    assert bench.versions.find(NEWER) is None
    # When it is installed
    installed = await bench.versions.install(NEWER)
    # Then it lies on the volume, whole, and beside it is nothing of the fetching
    assert installed.entry == bench.kept / NEWER / "node_modules/openclaw/openclaw.mjs"
    assert "gateway" in json.loads(installed.schema.read_text())["properties"]
    assert bench.on_volume == [NEWER]
    # And another supervisor on this volume finds it
    assert bench.versions.find(NEWER) == installed
    # And npm ran no script of any package, and asked the registry that it was told of
    npm, environment = next((words, env) for script, words, env, _ in bench.calls if "npm-cli" in script)
    assert {"--ignore-scripts", "--engine-strict", f"openclaw@{NEWER}"} <= set(npm)
    assert environment["npm_config_registry"] == "http://r"


async def test_a_version_that_the_registry_does_not_know_is_refused(bench: Bench) -> None:
    assert await refusal(bench, "2026.9.99") == (
        "runtime.version 2026.9.99: the npm registry has no such version of OpenClaw: name another."
    )
    assert bench.on_volume == []


async def test_a_version_for_another_node_is_refused_before_anything_is_switched(bench: Bench) -> None:
    # As npm 11 says it
    bench.registry(
        **{
            NEWER: {
                "code": "EBADENGINE",
                "summary": f"Unsupported engine\nNot compatible with: openclaw@{NEWER}",
                "detail": 'Not compatible\nRequired: {"node":">=30.1.0"}\nActual:   {"node":"v24.21.0"}',
            }
        }
    )
    assert await refusal(bench, NEWER) == (
        f"runtime.version {NEWER} needs Node >=30.1.0, and this image has v24.21.0: name another version, or an image "
        "with that Node."
    )
    assert bench.on_volume == []


async def test_a_version_on_the_disk_that_the_new_image_can_no_longer_run_is_refused(bench: Bench) -> None:
    bench.lay(bench.kept / NEWER, "!node:sqlite is unavailable; use 24.16+")
    text = await refusal(bench, NEWER)
    assert "does not run in this image" in text
    assert "node:sqlite is unavailable; use 24.16+" in text


async def test_without_a_registry_the_machine_says_so_and_keeps_what_it_has(bench: Bench) -> None:
    bench.registry(**{NEWER: {"code": "EAI_AGAIN", "summary": "request to the registry failed", "detail": "network"}})
    error = await failure(bench, NEWER)
    assert error.strerror == f"OpenClaw {NEWER} can't be fetched now: EAI_AGAIN request to the registry failed"
    assert bench.on_volume == []
    assert bench.versions.find(IMAGE) is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A data directory of 200 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = tmp_path / "data"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


async def test_on_a_full_disk_nothing_is_left_of_the_attempt(small_disk: Path, tmp_path: Path) -> None:
    bench = Bench(small_disk.parent / "machine")
    bench.volume, bench.kept = small_disk, small_disk / ".roost" / "openclaw"
    bench.versions = bench.of(small_disk)
    bench.registry(**{NEWER: {"bytes": 1_000_000}})
    error = await failure(bench, NEWER)
    assert error.errno == errno.ENOSPC
    assert error.strerror == f"no space on the volume for OpenClaw {NEWER} (about 1 GB is needed): extend it"
    assert bench.on_volume == []


async def test_what_is_not_what_was_asked_for_never_gets_its_name(bench: Bench) -> None:
    bench.registry(**{NEWER: {"tells": "2026.1.1"}, BROKEN: {"tells": "schemaless"}})
    assert await refusal(bench, NEWER) == f"runtime.version {NEWER}: what lies there says that it is 2026.1.1."
    assert "does not tell the schema" in await refusal(bench, BROKEN)
    assert bench.on_volume == []
    # And once the registry has put it right, it is taken
    bench.registry(**{NEWER: {}})
    await bench.versions.install(NEWER)
    assert bench.on_volume == [NEWER]


async def test_an_attempt_that_was_cut_short_leaves_nothing_and_disturbs_no_later_one(bench: Bench) -> None:
    # Given a supervisor that was killed in the middle of a fetch
    bench.lay(bench.kept / f".tmp-{BROKEN}" / "tree", BROKEN)
    # and one that ends while it fetches
    bench.registry(**{NEWER: {"seconds": 60}})
    fetching = asyncio.create_task(bench.versions.install(NEWER))
    while not any("npm-cli" in call[0] for call in bench.calls):  # noqa: ASYNC110 - another process tells
        await asyncio.sleep(0.01)
    fetching.cancel()
    await asyncio.wait({fetching})
    assert bench.on_volume == []
    # When the version is installed again
    bench.registry(**{NEWER: {}})
    await bench.versions.install(NEWER)
    # Then nothing of either attempt is left
    assert bench.on_volume == [NEWER]


async def test_two_who_want_the_same_version_fetch_it_once(bench: Bench) -> None:
    bench.registry(**{NEWER: {}})
    first, second = await asyncio.gather(bench.versions.install(NEWER), bench.versions.install(NEWER))
    assert first == second
    assert sum("npm-cli" in call[0] for call in bench.calls) == 1


async def test_only_the_versions_that_are_kept_stay_on_the_volume(bench: Bench) -> None:
    for version in ("2026.9.1", "2026.9.2", "2026.9.3", ".tmp-2026.9.4"):
        bench.lay(bench.kept / version, version)
    await bench.versions.keep(["2026.9.3", "2026.9.2"])
    assert bench.on_volume == ["2026.9.2", "2026.9.3"]
    assert bench.versions.find(IMAGE) is not None


@pytest.mark.skipif(os.geteuid() != 0 or not SYSTEM_PYTHON.exists(), reason="needs root, and a python for everybody")
async def test_nothing_that_was_fetched_runs_as_the_supervisor_and_its_files_become_the_supervisors(
    bench: Bench, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):  # as on a machine, where everybody may pass
        folder.chmod(0o711)
    bench.calls_file.touch()
    bench.calls_file.chmod(0o666)
    bench.registry(**{NEWER: {}})
    installed = await bench.of(bench.volume, User(10_001, 10_001)).install(NEWER)
    assert {uid for *_, uid in bench.calls} == {10_001}
    tree = bench.kept / NEWER
    assert {each.lstat().st_uid for each in (tree, *tree.rglob("*"))} == {0}
    assert installed.entry.stat().st_mode & 0o777 == 0o644


async def test_on_a_volume_that_can_not_be_written_the_versions_of_the_image_still_run(bench: Bench) -> None:
    bench.volume.rmdir()
    bench.volume.write_text("not even a directory")
    assert (await bench.versions.install(IMAGE)).version == IMAGE
    await failure(bench, NEWER)


async def test_a_version_is_asked_once_what_it_is(bench: Bench) -> None:
    installed = await bench.versions.install(IMAGE)
    assert await bench.versions.probe(installed) == (IMAGE, "eb377ac")
    assert await bench.versions.probe(installed) == (IMAGE, "eb377ac")
    assert sum("--version" in call[1] for call in bench.calls) == 1


@pytest.mark.parametrize("version", ["latest", "../2026.9.6", "2026.9", "2026.9.6/../..", "", "file:x", "^2026.9.6"])
async def test_what_is_no_version_is_neither_found_nor_fetched(bench: Bench, version: str) -> None:
    assert bench.versions.find(version) is None
    assert await refusal(bench, version) == (
        f"runtime.version {version!r} is no version of OpenClaw: name one, such as 2026.9.6."
    )
    assert bench.calls == []
