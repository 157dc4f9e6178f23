"""Turns a bundle into the files that OpenClaw finds on the volume: configuration, soul, workspace, skills. Pure.

Nothing of it leads out of its directory, nothing is written that OpenClaw would cut short in silence, and a skill is
taken only with the checksums that it was declared with.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from roost_agent.contract.bundle import BundleFile, ConfigBundle, Skill, SkillsPolicy, WorkspacePolicy
from roost_agent.runtime import Layout, Refused
from roost_agent.runtime.openclaw import CONFIG, HOME, STATE, TEMPORARY, WORKSPACE

__all__ = ["layout"]

_SOUL = "SOUL.md"
_SKILLS = "skills"
_SKILL_TEXT = "SKILL.md"
_SKILL_LAYOUT = "openclaw-workspace-skill-v1"
_SKILL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{1,127}")
_SKILL_MARKER = ".af-global-skill.json"
"""A file by which agent-factory knows its own skills: not for others to bring."""
_SKILL_MOST_BYTES = 200_000

_READ_EACH_TIME = {"AGENTS.md": None, "IDENTITY.md": None, "MEMORY.md": None, _SOUL: None, "USER.md": 4_000}
"""The files that are part of every session, with a cap of their own where there is one (`bootstrap` of the package)."""
_MOST_CHARACTERS, _MOST_CHARACTERS_IN_ALL = 20_000, 60_000
"""What OpenClaw reads of one of them, and of all: `agents.defaults.bootstrapMaxChars`, `…bootstrapTotalMaxChars`."""

_SEEDS = {
    "AGENTS.md": """# AGENTS.md

How you work. This file is yours: keep it short, and change it as you learn.

- SOUL.md says who you are, USER.md whom you help. Skills lie in skills/.
- Before you act outside of this workspace, send or delete something, ask.
- What is worth remembering goes to MEMORY.md; what is private stays out of groups.

## Tools

Notes about the tools you have.
""",
    "IDENTITY.md": "# IDENTITY.md\n\n- **Name:** {name}\n",
    _SOUL: "# SOUL.md\n\nBe helpful, honest and brief. Say so when you do not know something.\n",
    "USER.md": "# USER.md\n\nWhat is known of the people you help: names, wishes, habits. Nothing yet.\n",
}


def layout(bundle: ConfigBundle, config: Mapping[str, Any]) -> Layout:
    """The files of a bundle with this openclaw.json, by paths relative to the data directory.

    Raises:
        Refused: a path that is not its place, a text that is too long, a skill that is not whole.
    """
    skills = list(_skills(bundle))
    files = [
        BundleFile(path=CONFIG, mode="0600", content=json.dumps(config, indent=2, ensure_ascii=False) + "\n"),
        *(_plain(file) for file in bundle.files),
        *_workspace(bundle, WorkspacePolicy.OVERWRITE),
        *skills,
    ]
    if bundle.soul is not None:
        files.append(_file(f"{WORKSPACE}/{_SOUL}", bundle.soul))
    wanted = list(_workspace(bundle, WorkspacePolicy.SEED))
    _check_places([*files, *wanted])
    taken = {file.path for file in (*files, *wanted)}
    own = [
        _file(path, text.format(name=bundle.agent.name))
        for name, text in _SEEDS.items()
        if (path := f"{WORKSPACE}/{name}") not in taken
    ]
    _check_lengths([*files, *wanted], config)
    home = f"{WORKSPACE}/{_SKILLS}"
    only = bundle.skills.policy is SkillsPolicy.ALLOWLIST_ONLY
    return Layout(
        files=files,
        seeds=[*wanted, *own],
        closed=[home] if only else [f"{home}/{skill.name}" for skill in bundle.skills.items],
        directories=[STATE, f"{STATE}/logs", WORKSPACE, home, HOME, TEMPORARY],
    )


def _plain(file: BundleFile) -> BundleFile:
    path = str(PurePosixPath(file.path))
    if path.startswith(CONFIG):  # and its backups, which OpenClaw would read in its place
        raise Refused(f"files {path} is made by the supervisor: use runtime.config")
    if path in (STATE, WORKSPACE, HOME, TEMPORARY):
        raise Refused(f"files {path} is a directory of OpenClaw: choose another path")
    if _below(path, f"{WORKSPACE}/{_SKILLS}"):
        raise Refused(f"files {path} lies among the skills: declare it in skills")
    return BundleFile(path=path, mode=file.mode, content=file.content)


def _workspace(bundle: ConfigBundle, policy: WorkspacePolicy) -> Iterator[BundleFile]:
    for file in bundle.workspace:
        path = str(PurePosixPath(file.path))
        if file.policy is WorkspacePolicy.UNKNOWN:
            raise Refused(f"workspace {path} has a policy that this image does not know: use Seed or Overwrite")
        if _below(path, _SKILLS):
            raise Refused(f"workspace {path} lies among the skills: declare it in skills")
        if path == _SOUL and bundle.soul is not None:
            raise Refused(f"workspace {path} is what soul is written to: leave one of them out")
        if file.policy is policy:
            yield _file(f"{WORKSPACE}/{path}", file.content)


def _skills(bundle: ConfigBundle) -> Iterator[BundleFile]:
    skills = bundle.skills
    if skills.policy is SkillsPolicy.UNKNOWN:
        raise Refused("skills.policy is none that this image knows: use AllowlistOnly or Merge")
    if skills.layout_version != _SKILL_LAYOUT:
        raise Refused(f"skills.layoutVersion {skills.layout_version[:64]} is not known: use {_SKILL_LAYOUT}")
    names = [skill.name for skill in skills.items]
    for skill in skills.items:
        if not _SKILL_NAME.fullmatch(skill.name):
            raise Refused(
                f"skills {skill.name[:130]!r} is no name of a skill: use two or more lower-case letters, digits, -, _"
            )
        if names.count(skill.name) > 1:
            raise Refused(f"skills {skill.name} is there twice: keep one of them")
        yield from _skill(skill)


def _skill(skill: Skill) -> Iterator[BundleFile]:
    field = f"skills {skill.name}"
    files = {str(PurePosixPath(file.path)): file for file in skill.files}
    if len(files) < len(skill.files):
        raise Refused(f"{field} has two files of the same path: keep one of them")
    if _SKILL_TEXT not in files:
        raise Refused(f"{field} has no {_SKILL_TEXT}: add it, OpenClaw takes no skill without")
    if any(PurePosixPath(path).name == _SKILL_MARKER for path in files):
        raise Refused(f"{field} brings {_SKILL_MARKER}, which is reserved: take it out")
    if (size := sum(len(file.content.encode()) for file in files.values())) > _SKILL_MOST_BYTES:
        raise Refused(f"{field} has {size} bytes: {_SKILL_MOST_BYTES} are the most")
    for path, file in files.items():
        if file.sha256 != _sha256(file.content):
            raise Refused(f"{field} {path} is not what its sha256 says: take the file or the checksum from its source")
    whole = "\n---\n".join(f"{file.path}\n{file.sha256}\n{file.content}" for _, file in sorted(files.items()))
    if skill.sha256 is not None and skill.sha256 != _sha256(whole):
        raise Refused(f"{field} is not what its sha256 says: take the files or the checksum from their source")
    for path, file in files.items():
        yield _file(f"{WORKSPACE}/{_SKILLS}/{skill.name}/{path}", file.content)


def _check_places(files: Iterable[BundleFile]) -> None:
    """No two in one place, and none where another needs a directory."""
    paths: set[str] = set()
    for file in files:
        if file.path in paths:
            raise Refused(f"files {file.path} is written twice: keep one of them")
        paths.add(file.path)
    for path in sorted(paths):
        if above := next((str(p) for p in PurePosixPath(path).parents if str(p) in paths), None):
            raise Refused(f"files {above} is to be a file, and the directory of {path}: rename one of them")


def _check_lengths(files: Iterable[BundleFile], config: Mapping[str, Any]) -> None:
    """Refuses what OpenClaw would cut off: an agent that has read half of its rules does not know the others."""
    defaults = config["agents"]["defaults"]
    most = _cap(defaults, "bootstrapMaxChars", _MOST_CHARACTERS)
    most_in_all = _cap(defaults, "bootstrapTotalMaxChars", _MOST_CHARACTERS_IN_ALL)
    total = 0
    for file in files:
        path = PurePosixPath(file.path)
        if str(path.parent) != WORKSPACE or path.name not in _READ_EACH_TIME:
            continue
        own = _READ_EACH_TIME[path.name]
        cap, length = most if own is None else min(own, most), len(file.content.encode("utf-16-le")) // 2
        if length > cap:
            remedy = "" if own is not None else ", or raise agents.defaults.bootstrapMaxChars in runtime.config"
            field = "soul" if path.name == _SOUL else f"workspace {path.name}"
            raise Refused(f"{field} has {length} characters, of which OpenClaw reads {cap}: shorten it{remedy}")
        total += length
    if total > most_in_all:
        raise Refused(
            f"soul and workspace have {total} characters for every session, of which OpenClaw reads {most_in_all}: "
            "shorten them, or raise agents.defaults.bootstrapTotalMaxChars in runtime.config"
        )


def _cap(defaults: Mapping[str, Any], key: str, otherwise: int) -> int:
    value = defaults.get(key)
    return value if type(value) is int else otherwise


def _file(path: str, content: str) -> BundleFile:
    return BundleFile(path=path, mode="0600", content=content)


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
