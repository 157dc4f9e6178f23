"""The owner of the directories is hostile, and at work while the supervisor writes, reads and clears."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resolving import MECHANISMS, Interruption, resolve_by
from roost_agent import tree as tree_module
from roost_agent.runtime import User
from roost_agent.tree import Tree

CHILD = User(12345, 12346) if os.geteuid() == 0 else User(os.geteuid(), os.getegid())
SECRET = b"nobody's business"


@pytest.fixture(params=MECHANISMS)
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    resolve_by(request.param, monkeypatch)
    made = tmp_path / "data"
    made.mkdir()
    return made


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def picture(folder: Path) -> dict[str, object]:
    """All that a touch would change."""
    seen: dict[str, object] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        seen[str(path)] = (content, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
    return seen


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# Where the hostile owner is at work, and what it puts there: links, mostly.
PLACES = ("a", "a/b", "a/b/f", "a/b/c")
PLANTS = ("outside", "outside/deep", "outside/secret", "..", "pipe", "hard link", "directory", "away")
ACTS: dict[str, Callable[[Tree], object]] = {
    "write": lambda tree: tree.write("a/b/f", b"mine"),
    "write new": lambda tree: tree.write_new("a/b/c/f", b"mine"),
    "make": lambda tree: tree.make("a/b/c"),
    "clear": lambda tree: tree.clear("a", ["a/b/f"]),
    "clear all": lambda tree: tree.clear("a"),
    "remove": lambda tree: tree.remove("a/b/secret"),
    "read": lambda tree: tree.read("a/b/f"),
    "read secret": lambda tree: tree.read("a/b/secret"),
    "holds": lambda tree: tree.holds("a/b/secret", SECRET, 0o644),
    "stage": lambda tree: tree.discard(tree.stage("a/b/f", b"mine", 0o600)),
}


def plant(what: str, place: Path, beside: Path) -> None:
    """Puts it in the place of whatever is there, without following its own links."""
    data, made = beside.parent / "data", beside / "made"
    for above in reversed(place.parents[: place.parents.index(data)]):
        if above.is_symlink() or not above.is_dir():
            above.unlink(missing_ok=True)
            above.mkdir()
    if what == "away":
        place.rename(beside / "away")
        (beside / "away").rename(place)
        return
    if what == "pipe":
        os.mkfifo(made)
    elif what == "hard link":
        os.link(beside.parent / "shared", made)
    elif what == "directory":
        (made / "b/c").mkdir(parents=True)
        (made / "b/f").write_bytes(b"theirs")
    else:
        made.symlink_to(beside.parent / what)
    if place.is_dir() and not place.is_symlink():
        place.rename(beside / "away")
    made.rename(place)


@contextmanager
def at_work(plan: list[tuple[str, str]], data: Path) -> Iterator[None]:
    """Somebody who goes through the plan again and again, until the block ends."""
    over = threading.Event()
    beside = data.parent / "beside"

    def work() -> None:
        while not over.is_set():
            for place, what in plan:
                try:
                    plant(what, data / place, beside)
                except OSError:
                    pass
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(exist_ok=True)

    hostile = threading.Thread(target=work)
    hostile.start()
    try:
        yield
    finally:
        over.set()
        hostile.join()


def world(folder: Path) -> tuple[Path, Path]:
    """A data directory, and one outside of it that has all the names that are in the former."""
    data, outside = folder / "data", folder / "outside"
    (outside / "deep/b/c").mkdir(parents=True)
    for place in ("secret", "f", "deep/f", "deep/b/f", "deep/secret", "deep/b/c/f"):
        (outside / place).write_bytes(SECRET)
    (folder / "shared").write_bytes(b"shared")
    (folder / "beside").mkdir()
    (data / "a/b/c").mkdir(parents=True)
    (data / "a/b/f").write_bytes(b"theirs")
    return data, outside


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c", "a/b/f"])
def test_a_link_may_appear_between_any_two_steps(root: Path, act: str, place: str) -> None:
    step, interrupted = 0, True
    while interrupted:
        # given a link to what is outside, in the place of a directory or a file, that appears just before this step
        folder = root.parent / f"world{step}"
        folder.mkdir()
        data, outside = world(folder)
        target = "outside/secret" if place == "a/b/f" else "outside/deep"
        before, found = picture(outside), None
        swap = partial(plant, target, data / place, folder / "beside")
        with Interruption.before(step, swap) as happened:
            # when the supervisor goes about its work
            try:
                found = ACTS[act](Tree(data))
            except OSError:
                pass
            interrupted = happened()
        # then what is outside is as it was
        assert found != SECRET
        assert act != "holds" or found is False
        assert picture(outside) == before
        step += 1
    assert step > 2, "the steps were not seen"


@pytest.mark.parametrize("mechanism", MECHANISMS)
@given(
    plan=st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(PLANTS)), min_size=1, max_size=4),
    acts=st.lists(st.sampled_from(sorted(ACTS)), min_size=1, max_size=6),
)
@example(plan=[("a/b/f", "outside/secret")], acts=["read", "holds", "write"])
@example(plan=[("a/b", "outside")], acts=["read secret", "remove", "clear", "make"])
@example(plan=[("a/b", "outside/deep"), ("a/b", "directory")], acts=["clear all", "read", "write new"])
@example(plan=[("a", "outside/deep"), ("a", "directory")], acts=["clear all", "read", "stage"])
@example(plan=[("a/b/c", "outside/deep"), ("a/b/c", "directory")], acts=["clear", "write new"])
@settings(max_examples=40, deadline=None)
def test_whatever_the_owner_swaps_meanwhile_nothing_outside_is_touched_or_read(
    mechanism: str, plan: list[tuple[str, str]], acts: list[str]
) -> None:
    with TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as monkeypatch:
        resolve_by(mechanism, monkeypatch)
        # One deeper than it needs: were a link followed, `..` must be a directory of this test's own, and not /tmp.
        folder = Path(temporary) / "world"
        folder.mkdir()
        # given something outside, and a tree in which somebody swaps names for links to it
        data, outside = world(folder)
        before, shared, open_before = picture(outside), picture(folder / "shared"), descriptors()
        tree = Tree(data, CHILD)
        with at_work(plan, data):
            for _ in range(8):
                for act in acts:
                    # when the supervisor goes about its work, whatever comes of it
                    try:
                        found = ACTS[act](tree)
                    except OSError:
                        continue
                    assert found != SECRET
                    assert act != "holds" or found is False
        # then what is outside is as it was, and nothing was left open
        assert picture(outside) == before
        assert picture(folder / "shared") == shared
        assert descriptors() == open_before


def test_clearing_leaves_what_is_kept_and_nothing_else(root: Path) -> None:
    # given a directory with all that an owner can put there, and links to what is outside
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "x").write_text("stays")
    for place in (
        "skills/kept/SKILL.md",
        "skills/kept/more",
        "skills/partly/kept",
        "skills/partly/not",
        "skills/not/x",
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(place)
    (root / "skills/link").symlink_to(outside)
    (root / "skills/partly/link").symlink_to(outside / "x")
    os.mkfifo(root / "skills/pipe")
    os.link(outside / "x", root / "skills/hard")
    (root / "other").mkdir()
    # when it is cleared
    Tree(root).clear("skills", ["skills/kept", "skills/partly/kept", "skills/away", "other", "skillset/x"])
    # then only the kept are left
    kept = {"kept", "kept/SKILL.md", "kept/more", "partly", "partly/kept"}
    assert everything(root) == {"other", "skills", *(f"skills/{path}" for path in kept)}
    assert (outside / "x").read_text() == "stays"


def test_clearing_what_is_not_there_or_kept_itself_changes_nothing(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a/x").write_text("stays")
    Tree(root).clear("b/c")
    Tree(root).clear("a", ["a"])
    assert everything(root) == {"a", "a/x"}


@pytest.mark.parametrize("path", ["", ".", "..", "a/../..", "absolute"])
def test_the_data_directory_itself_is_never_cleared(root: Path, path: str) -> None:
    (root / "a").write_text("stays")
    for act in (Tree(root).clear, Tree(root).make):
        with pytest.raises(PermissionError, match="no path below the data directory"):
            act(str(root) if path == "absolute" else path)
    assert everything(root) == {"a"}


def test_a_link_is_not_cleared_through(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real/x").write_text("stays")
    (root / "link").symlink_to("real")
    with pytest.raises(NotADirectoryError, match="link is a link or no directory"):
        Tree(root).clear("link")
    assert everything(root) == {"real", "real/x", "link"}


def test_a_link_in_the_middle_of_a_way_is_not_followed(root: Path) -> None:
    (root.parent / "outside/deep/er").mkdir(parents=True)
    (root.parent / "outside/deep/er/x").write_bytes(SECRET)
    (root / "a").mkdir()
    (root / "a/link").symlink_to(root.parent / "outside")
    before = picture(root.parent)
    tree, way = Tree(root), "a/link/deep/er"
    acts: list[Callable[[], object]] = [
        lambda: tree.read(f"{way}/x"),
        lambda: tree.remove(f"{way}/x"),
        lambda: tree.write(f"{way}/x", b""),
        lambda: tree.write_new(f"{way}/y", b""),
        lambda: tree.make(f"{way}/y"),
        lambda: tree.clear(way),
    ]
    for act in acts:
        with pytest.raises(NotADirectoryError, match="is a link or no directory"):
            act()
    assert picture(root.parent) == before


def test_directories_within_directories_do_not_outlive_clearing(root: Path) -> None:
    # given more levels than descriptors that may be open at once
    here = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = descriptors()
    Tree(root).clear("deep")
    assert everything(root) == {"deep"}
    assert descriptors() == before


def test_what_can_not_be_removed_does_not_save_the_rest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given one name that the system refuses to remove
    for name in ("1", "2", "refused", "3"):
        (root / "a" / name).mkdir(parents=True)
    real = os.rmdir

    def rmdir(name: str, *, dir_fd: int) -> None:
        if name == "refused":
            raise OSError(errno.EBUSY, "busy")
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(OSError, match="busy"):
        Tree(root).clear("a")
    monkeypatch.undo()
    assert everything(root) == {"a", "a/refused"}


_MOUNTED = """
import subprocess, sys
from pathlib import Path
from roost_agent import beneath
from roost_agent.tree import Tree

root, mechanism = Path(sys.argv[1]), sys.argv[2]
if mechanism == "walk":
    beneath._kernel_resolves = lambda: False
(root / "a/mounted").mkdir(parents=True)
(root / "a/other").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "none", root / "a/mounted"], check=True)
(root / "a/mounted/x").write_text("stays")
try:
    Tree(root).clear("a")
except OSError as error:
    print(error.errno, sorted(str(p.relative_to(root)) for p in root.rglob("*")))
"""


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_other_file_system_is_cleared(mechanism: str, tmp_path: Path) -> None:
    # given a mount below the directory, in a namespace of its own
    argv = ["unshare", "--mount", "--map-root-user", sys.executable, "-c", _MOUNTED, str(tmp_path), mechanism]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == f"{errno.EXDEV} ['a', 'a/mounted', 'a/mounted/x']\n", ran.stderr


@pytest.mark.parametrize("there", ["file", "directory", "link", "dangling link", "pipe"])
def test_a_seed_is_written_only_where_nothing_is(root: Path, there: str) -> None:
    place = root / "w/SOUL.md"
    assert Tree(root).write_new("w/SOUL.md", b"seed", 0o640)
    assert (place.read_bytes(), stat.S_IMODE(place.stat().st_mode)) == (b"seed", 0o640)
    place.unlink()
    {
        "file": lambda: place.write_bytes(b"theirs"),
        "directory": place.mkdir,
        "link": lambda: place.symlink_to("other"),
        "dangling link": lambda: place.symlink_to("missing"),
        "pipe": lambda: os.mkfifo(place),
    }[there]()
    (root / "w/other").write_bytes(b"other")
    before = picture(root)
    assert not Tree(root).write_new("w/SOUL.md", b"seed")
    assert picture(root) == before


def test_a_seed_does_not_replace_what_appears_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "seed").write_bytes(b"theirs")
    monkeypatch.setattr(tree_module, "_stands", lambda *_: False)  # it looked just before
    assert not Tree(root).write_new("seed", b"ours")
    assert (root / "seed").read_bytes() == b"theirs"
    assert everything(root) == {"seed"}


def belongs(path: Path) -> User:
    return User(path.lstat().st_uid, path.lstat().st_gid)


def test_what_is_made_belongs_to_the_child(root: Path) -> None:
    tree = Tree(root, CHILD)
    tree.write("openclaw/agents/main/x", b"1", 0o640)
    tree.make("workspace/skills")
    assert tree.write_new("workspace/SOUL.md", b"1")
    made = sorted(everything(root))
    assert made == [
        "openclaw",
        "openclaw/agents",
        "openclaw/agents/main",
        "openclaw/agents/main/x",
        "workspace",
        "workspace/SOUL.md",
        "workspace/skills",
    ]
    assert {belongs(root / path) for path in made} == {CHILD}
    assert stat.S_IMODE((root / "openclaw/agents/main/x").stat().st_mode) == 0o640
    assert belongs(root) == User(os.geteuid(), os.getegid())
    assert tree.holds("openclaw/agents/main/x", b"1", 0o640)


def test_a_directory_that_a_crash_left_to_the_supervisor_is_given_away(root: Path) -> None:
    (root / "openclaw/agents").mkdir(parents=True)
    Tree(root, CHILD).make("openclaw/agents")
    assert {belongs(root / "openclaw"), belongs(root / "openclaw/agents")} == {CHILD}


def test_another_owner_is_another_file(root: Path) -> None:
    Tree(root).write("x", b"1", 0o600)
    somebody = User(os.geteuid(), os.getegid() + 1)
    assert Tree(root).holds("x", b"1", 0o600)
    assert not Tree(root, somebody).holds("x", b"1", 0o600)


def test_nothing_is_given_away_through_a_planted_name(root: Path) -> None:
    # given links to a file and a directory of the supervisor's, hard and soft, where the child's files go
    (root / ".roost").mkdir()
    (root / ".roost/sealed").write_bytes(SECRET)
    (root / "openclaw").mkdir()
    Tree(root, CHILD).write("openclaw/x", b"1")
    os.link(root / ".roost/sealed", root / "openclaw/hard")
    (root / "openclaw/soft").symlink_to(root / ".roost/sealed")
    (root / "openclaw/directory").symlink_to(root / ".roost")
    before = picture(root / ".roost")
    tree = Tree(root, CHILD)
    # when files are written there
    tree.write("openclaw/hard", b"2")
    tree.write("openclaw/soft", b"2")
    for act in (lambda: tree.write("openclaw/directory/sealed", b"2"), lambda: tree.make("openclaw/directory")):
        with pytest.raises(NotADirectoryError):
            act()
    # then those are the child's, and what they were linked to is as it was
    assert picture(root / ".roost") == before
    assert {belongs(root / "openclaw/hard"), belongs(root / "openclaw/soft")} == {CHILD}


def test_a_directory_where_a_file_is_staged_is_an_error_that_changes_nothing(root: Path) -> None:
    tree = Tree(root)
    staged = tree.stage("a/x", b"1", 0o600)
    tree.discard(staged)
    (root / "a" / staged.temporary / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=staged.temporary):
        tree.write("a/x", b"1")
    assert not (root / "a/x").exists()
