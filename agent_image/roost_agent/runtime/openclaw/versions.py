"""The versions of OpenClaw on this machine: those of the image, and those that were fetched to the volume.

They lie side by side, each a directory of its own that is whole or not there. A version is fetched beside its place,
checked, and moved in last; what runs is never touched. No script of any package is run while it is installed
(`--ignore-scripts`), and npm checks the integrity of all it fetches.

On the volume they lie below `.roost/`, belong to the supervisor, and may be read by the child's user. Nothing that was
fetched is ever run as the supervisor: npm and the checks run as the child's user, to whom the tree belongs until then.
(OpenClaw finishes its installation when it is first run, and must be able to write there.)
"""

import asyncio
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from roost_agent.contract.paths import RESERVED_DIRECTORY
from roost_agent.runtime import Ran, Refused, Run, User

__all__ = ["Installed", "Versions"]

_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}(-[0-9A-Za-z.-]{1,32})?")
_TOLD = re.compile(rb"^OpenClaw (\S{1,64}) \(([0-9a-f]{1,40})\)")
_ENTRY = Path("node_modules/openclaw/openclaw.mjs")
_SCHEMA = "schema.json"
_UNFINISHED = ".tmp-"
_READABLE = ("sh", "-c", 'umask 022; exec "$@"', "sh")
"""Before a program: what it makes may be read by others. (What the reaper starts as another user is private.)"""
_FETCH_SECONDS = 180.0
_ASK_SECONDS = 60.0
"""An answer takes 0.1 s (`--version`) or 2 s (`config schema`) on an idle core."""
_NO_SUCH_VERSION = ("ETARGET", "E404")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Installed:
    """One version that is there. `schema` is the JSON Schema of its own configuration."""

    version: str
    node: Path
    entry: Path
    schema: Path


class Versions:
    """Where versions come from, and what is known of them.

    Args:
        image: The image's versions, one directory each.
        volume: The data directory.
        run: Runs a short program.
        node: The Node that runs OpenClaw; npm lies beside it.
        env: The environment of npm: PATH, and what says where and how to reach a registry.
        user: As whom npm and OpenClaw run; None: as the supervisor does.
    """

    def __init__(
        self, image: Path, volume: Path, run: Run, *, node: Path, env: Mapping[str, str], user: User | None = None
    ) -> None:
        self._image = image
        self._kept = volume / RESERVED_DIRECTORY / "openclaw"
        self._run = run
        self._node = node
        self._env = env
        self._user = user
        self._told: dict[Path, tuple[str, str]] = {}
        self._one = asyncio.Lock()

    def find(self, version: str) -> Installed | None:
        """The version, when it is there: the image's before the volume's. Costs a few looks at the disk."""
        if not _VERSION.fullmatch(version):
            return None
        for folder in (self._image, self._kept):
            installed = self._in(folder / version, version)
            if installed.entry.is_file() and installed.schema.is_file():
                return installed
        return None

    async def install(self, version: str) -> Installed:
        """The version, fetched when it is not there, and seen to run.

        Raises:
            Refused: there is no such version, or it does not run with this image's Node.
            OSError: it can't be had now (no registry, no space, no time); nothing is left of the attempt.
        """
        if not _VERSION.fullmatch(version):
            raise Refused(f"runtime.version {version!r} is no version of OpenClaw: name one, such as 2026.9.6.")
        async with self._one:
            installed = self.find(version) or await self._fetch(version)
            await self._seen_to_run(installed)
            return installed

    async def probe(self, installed: Installed) -> tuple[str, str]:
        """The version and the commit that it tells; it is asked once.

        Raises:
            OSError: it does not tell.
        """
        if (told := self._told.get(installed.entry)) is None:
            ran = await self._ask(installed, "--version")
            if (match := _TOLD.match(ran.stdout)) is None or ran.code != 0:
                raise OSError(errno.ENOEXEC, f"OpenClaw {installed.version} does not tell its version: {_gist(ran)}")
            told = self._told[installed.entry] = match[1].decode(), match[2].decode()
        return told

    async def keep(self, versions: Collection[str]) -> None:
        """Removes all other versions from the volume; those of the image stay. Never raises.

        Called once a version has proved itself, with that one and the one before.
        """
        async with self._one:
            await asyncio.to_thread(self._remove_others, set(versions))

    def _in(self, folder: Path, version: str) -> Installed:
        return Installed(version, self._node, folder / _ENTRY, folder / _SCHEMA)

    async def _seen_to_run(self, installed: Installed) -> None:
        """OpenClaw itself refuses a Node that does not fit, before it does anything."""
        try:
            told, _ = await self.probe(installed)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            raise Refused(
                f"runtime.version {installed.version} does not run in this image ({error.strerror}): name another "
                "version, or an image with the Node that it needs."
            ) from error
        if told != installed.version:
            raise Refused(f"runtime.version {installed.version}: what lies there says that it is {told}.")

    async def _fetch(self, version: str) -> Installed:
        work = self._kept / f"{_UNFINISHED}{version}"
        tree, cache = work / "tree", work / "cache"
        made = self._in(tree, version)
        _log.info("fetching OpenClaw", version=version)
        try:
            await asyncio.to_thread(self._begin, tree, cache)
            await self._npm(version, tree, cache)
            schema = await self._ask(made, "config", "schema")
            if schema.code != 0 or not _is_schema(schema.stdout):
                why = f"runtime.version {version} does not tell the schema of its configuration: {_gist(schema)}"
                raise Refused(f"{why}: name another version.")
            await self._seen_to_run(made)
            return await asyncio.to_thread(self._finish, tree, schema.stdout, version)
        finally:
            self._told.pop(made.entry, None)
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    def _begin(self, tree: Path, cache: Path) -> None:
        self._kept.mkdir(mode=0o755, parents=True, exist_ok=True)
        for left in self._kept.glob(f"{_UNFINISHED}*"):  # of an attempt that was cut short
            shutil.rmtree(left, ignore_errors=True)
        tree.mkdir(parents=True)
        cache.mkdir()
        (tree / "package.json").write_text('{"private": true}\n')
        for each in (tree, cache, tree / "package.json"):
            self._give(each)

    async def _npm(self, version: str, tree: Path, cache: Path) -> None:
        npm = self._node.parent.parent / "lib/node_modules/npm/bin/npm-cli.js"
        argv = [*_READABLE, str(self._node), str(npm), "install", f"openclaw@{version}", "--save-exact", "--json"]
        argv += ["--ignore-scripts", "--engine-strict", "--omit=dev", "--no-audit", "--no-fund"]
        # Its own patience would be seventy seconds for a registry that is away.
        argv += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
        argv += ["--omit-lockfile-registry-resolved"]
        env = {**self._env, "HOME": str(cache), "npm_config_cache": str(cache), "npm_config_update_notifier": "false"}
        try:
            ran = await self._run(argv, env=env, cwd=tree, user=self._user, seconds=_FETCH_SECONDS)
        except TimeoutError:
            why = f"OpenClaw {version} was not fetched within {_FETCH_SECONDS:.0f} s: is the npm registry slow?"
            raise OSError(errno.ETIMEDOUT, why) from None
        if ran.code != 0:
            _npm_failed(version, ran)

    async def _ask(self, installed: Installed, *words: str) -> Ran:
        """Asks OpenClaw something; what it writes meanwhile goes nowhere near the agent's own state."""
        home = await asyncio.to_thread(self._new_home)
        try:
            own = dict.fromkeys(("HOME", "TMPDIR", "OPENCLAW_STATE_DIR"), str(home))
            env = {"PATH": self._env.get("PATH", os.defpath), **own, "OPENCLAW_OFFLINE": "1", "DO_NOT_TRACK": "1"}
            argv = [*_READABLE, str(installed.node), str(installed.entry), *words]
            return await self._run(argv, env=env, cwd=home, user=self._user, seconds=_ASK_SECONDS)
        except TimeoutError:
            why = f"OpenClaw {installed.version} did not answer {' '.join(words)} within {_ASK_SECONDS:.0f} s"
            raise OSError(errno.ETIMEDOUT, why) from None
        finally:
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)

    def _new_home(self) -> Path:
        home = Path(tempfile.mkdtemp(prefix="roost-openclaw-"))
        self._give(home)
        return home

    def _give(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.uid, self._user.gid)

    def _finish(self, tree: Path, schema: bytes, version: str) -> Installed:
        if self._user is not None:
            _take(tree)
        (tree / _SCHEMA).write_bytes(schema)
        os.sync()  # what has its name must be whole, also after the power was cut
        place = self._kept / version
        shutil.rmtree(place, ignore_errors=True)  # what `find` did not take for whole
        tree.rename(place)
        return self._in(place, version)

    def _remove_others(self, versions: set[str]) -> None:
        try:
            others = [each for each in self._kept.iterdir() if each.name not in versions]
        except OSError:
            return
        for each in others:
            try:  # another name first: half a version must not be taken for one
                gone = each if each.name.startswith(".") else each.rename(each.with_name(f"{_UNFINISHED}{each.name}"))
            except OSError as error:
                _log.warning("version not removed", version=each.name, why=error.strerror)
                continue
            shutil.rmtree(gone, ignore_errors=True)


def _take(tree: Path) -> None:
    """Makes the tree ours. Whose it was may still be at it, so no link is followed; a link's own owner is no matter."""
    for _, directories, files, here in os.fwalk(tree, follow_symlinks=False):
        for name in (*directories, *files):
            os.chown(name, os.geteuid(), os.getegid(), dir_fd=here, follow_symlinks=False)
    os.chown(tree, os.geteuid(), os.getegid(), follow_symlinks=False)


def _npm_failed(version: str, ran: Ran) -> NoReturn:
    """Says why npm did not install it; npm tells its reasons as JSON on its standard output."""
    try:
        told = json.loads(ran.stdout)["error"]
        code, summary, detail = (str(told.get(key, "")) for key in ("code", "summary", "detail"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OSError(errno.EIO, f"npm could not install OpenClaw {version}: {_gist(ran)}") from None
    if code in _NO_SUCH_VERSION:
        raise Refused(f"runtime.version {version}: the npm registry has no such version of OpenClaw: name another.")
    if code == "EBADENGINE":
        wanted = re.search(r'Required:\s*\{"node":"([^"]*)"', detail)
        there = re.search(r'Actual:.*"node":"([^"]*)"', detail)
        raise Refused(
            f"runtime.version {version} needs Node {wanted[1] if wanted else 'of another version'}, and this image has "
            f"{there[1] if there else 'another'}: name another version, or an image with that Node."
        )
    if code == "ENOSPC":
        raise OSError(errno.ENOSPC, f"no space on the volume for OpenClaw {version} (about 1 GB is needed): extend it")
    why = f"{code} {summary}".strip().partition("\n")[0]
    raise OSError(errno.EHOSTUNREACH, f"OpenClaw {version} can't be fetched now: {why}"[:500])


def _is_schema(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text)["properties"]["gateway"], dict)
    except (ValueError, KeyError, TypeError):
        return False


def _gist(ran: Ran) -> str:
    """The first thing that a program said, short enough for a message."""
    said = (ran.stderr or ran.stdout).decode(errors="replace").strip().splitlines()
    return f"code {ran.code}" + (f", {said[0][:200]!r}" if said else "")
