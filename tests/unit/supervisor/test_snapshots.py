"""A snapshot before an update: what it takes, over what it is restored, and what a crash or a full disk leaves."""

import errno
import hashlib
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from resolving import MECHANISMS, Interruption, resolve_by
from roost_agent.runtime import User
from roost_agent.snapshot import NotRestored, Snapshot, Snapshots

ADA = "did:key:z6MkAda"
CHILD = User(12345, 12346) if os.geteuid() == 0 else User(os.geteuid(), os.getegid())
NOW = datetime(2026, 11, 21, tzinfo=UTC)
STORE, WORK = ".roost/snapshots", ".roost/restore"


@pytest.fixture(autouse=True, params=MECHANISMS)
def mechanism(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    resolve_by(request.param, monkeypatch)
    monkeypatch.setattr(os, "sync", lambda: None)  # the whole machine's disks: shared with other tests
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    make(made / "openclaw/openclaw.json", "{}", 0o600)
    make(made / "openclaw/state/openclaw.sqlite", "sessions" * 1000)
    make(made / "openclaw/npm/node_modules/p/bin.js", "x", 0o755)
    (made / "openclaw/npm/node_modules/.bin").mkdir()
    (made / "openclaw/npm/node_modules/.bin/p").symlink_to("../p/bin.js")
    (made / "openclaw/empty").mkdir(mode=0o750)
    make(made / "workspace/SOUL.md", "old soul")
    give(made)
    return made


def make(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def give(root: Path) -> None:
    for path in (*root.glob("*"), *root.glob("openclaw/**/*"), *root.glob("workspace/**/*")):
        os.chown(path, CHILD.uid, CHILD.gid, follow_symlinks=False)


def snapshots(
    root: Path, identity: str = ADA, *, live: Callable[[], bool] = lambda: False, now: datetime = NOW
) -> Snapshots:
    return Snapshots(root, identity, live=live, now=lambda: now, owner=CHILD)


def take(root: Path, label: str = "before", also: tuple[str, ...] = ()) -> Snapshot:
    return snapshots(root).take(["openclaw", "workspace", *also], label=label, version="2026.9.5")


def picture(folder: Path) -> dict[str, object]:
    """All that a snapshot promises to bring back."""
    seen: dict[str, object] = {}
    for path in folder.rglob("*"):
        if ".roost" not in path.parts:
            status = path.lstat()
            if path.is_symlink():
                what: object = path.readlink()
            else:
                what = (path.read_bytes() if path.is_file() else None, status.st_mode, int(status.st_mtime))
            seen[str(path.relative_to(folder))] = (what, status.st_uid, status.st_gid)
    return seen


def update(root: Path) -> None:
    """A newer version has been at the state."""
    make(root / "openclaw/state/openclaw.sqlite", "schema 18")
    make(root / "openclaw/newer", "x")
    shutil.rmtree(root / "openclaw/npm", ignore_errors=True)
    make(root / "workspace/SOUL.md", "new soul")


def kept(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root / ".roost")) for p in (root / ".roost").rglob("*"))


def whole(*labels: str) -> list[str]:
    return ["restore", "snapshots", *(f"snapshots/{label}.{kind}" for label in labels for kind in ("json", "tar"))]


def test_what_was_taken_comes_back_as_it_was(root: Path) -> None:
    before = picture(root)
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    taken = take(root)
    assert taken == Snapshot(
        label="before",
        number=1,
        identity=ADA,
        version="2026.9.5",
        created="2026-11-21T00:00:00+00:00",
        paths=("openclaw", "workspace"),
        absent=(),
        files=len(before),
        size=sum(path.stat().st_size for path in files),
        left_out=0,
        sha256=hashlib.sha256((root / STORE / "before.tar").read_bytes()).hexdigest(),
    )
    update(root)
    make(root / "other", "stays")
    [listed] = snapshots(root).list()
    snapshots(root).restore(listed)
    assert (root / "other").read_text() == "stays"
    (root / "other").unlink()
    assert picture(root) == before
    assert kept(root) == whole("before")
    assert stat.S_IMODE((root / STORE).stat().st_mode) == 0o700
    assert stat.S_IMODE((root / STORE / "before.tar").stat().st_mode) == 0o600


NAMES = ("two\nlines", "caf\xe9", os.fsdecode(b"not \xff utf-8"), "n" * 250, "-rf *", "d" * 90 + "/" + "f" * 200)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_that_a_file_can_have_comes_back(root: Path, name: str) -> None:
    make(root / "openclaw" / name, name.encode(errors="surrogateescape").hex())
    give(root)
    before = picture(root)
    taken = take(root)
    update(root)
    snapshots(root).restore(taken)
    assert picture(root) == before


def test_only_the_agents_own_data_are_taken(root: Path) -> None:
    """A hard link to a file of the supervisor's would otherwise come back as the agent's own."""
    # given what an owner may have planted, and what is not worth keeping
    make(root / ".roost/bundle.sealed", "SECRET", 0o600)
    make(root.parent / "outside/x", "SECRET")
    state = root / "openclaw"
    before = picture(root)
    os.mkfifo(state / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(state / "socket"))
    targets = (root.parent / "outside", "../../outside/x", "../.roost", "..", "npm/../../workspace", "../workspace/x")
    for n, target in enumerate(targets):
        (state / f"link{n}").symlink_to(target)
    make(state / "cache/x", "not kept")
    make(state / "tmp/x", "not kept")
    make(state / "npm/cache/x", "kept: part of a package")
    give(root)
    os.link(root / ".roost/bundle.sealed", state / "hard")
    hidden = os.geteuid() == 0  # else the supervisor's files are the agent's
    # when a snapshot is taken
    taken = take(root)
    # then those are not in it
    assert taken.left_out == len(targets) + hidden
    with tarfile.open(root / STORE / "before.tar") as archive:
        names = set(archive.getnames())
    assert names - {"openclaw/hard"} == {*before, "openclaw/npm/cache", "openclaw/npm/cache/x"}
    assert hidden == (b"SECRET" not in (root / STORE / "before.tar").read_bytes())


def test_a_directory_that_was_not_there_is_gone_again(root: Path) -> None:
    """What a newer version made is nothing for the older one."""
    taken = snapshots(root).take(["openclaw", "later"], label="a", version="1")
    assert (taken.paths, taken.absent) == (("openclaw",), ("later",))
    before = picture(root)
    make(root / "later/x", "made by the newer version")
    snapshots(root).restore(taken)
    assert picture(root) == before
    snapshots(root).restore(snapshots(root).take(["later"], label="b", version="1"))
    assert picture(root) == before


def test_a_link_in_the_place_of_a_directory_is_not_taken(root: Path) -> None:
    (root / "link").symlink_to("openclaw")
    with pytest.raises(OSError, match="link"):
        snapshots(root).take(["link"], label="b", version="1")
    assert kept(root) == whole()


@pytest.mark.parametrize("label", ["", "../x", ".hidden", "a/b", "a b", "x" * 101])
def test_no_label_leads_out(root: Path, label: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 100 letters"):
        take(root, label)


@pytest.mark.parametrize("path", ["", ".", "..", "/openclaw", "openclaw/state", "openclaw/", ".roost"])
def test_only_a_directory_right_below_the_data_directory_is_taken(root: Path, path: str) -> None:
    with pytest.raises(ValueError, match="must name a directory right below"):
        snapshots(root).take([path], label="a", version="1")


def test_a_label_is_given_once(root: Path) -> None:
    taken = take(root)
    with pytest.raises(FileExistsError, match="before is there already; take another label"):
        take(root)
    assert snapshots(root).list() == [taken]


def test_nothing_half_is_listed(root: Path) -> None:
    for label in ("no tar", "spoilt", "renamed"):
        take(root, label.replace(" ", "-"))
    (root / STORE / "no-tar.tar").unlink()
    (root / STORE / "spoilt.json").write_text('{"label": "spoilt"}')
    for kind in ("json", "tar"):
        (root / STORE / f"renamed.{kind}").rename(root / STORE / f"other.{kind}")
    make(root / STORE / "half.tar", "no manifest")
    assert snapshots(root).list() == []
    snapshots(root).recover()
    assert kept(root) == whole()


def test_the_newest_are_kept_whatever_the_clock_says(root: Path) -> None:
    for n in range(4):
        snapshots(root, now=NOW - timedelta(days=n * 365)).take(["workspace"], label=f"s{n}", version="1")
    assert [each.label for each in snapshots(root).list()] == ["s0", "s1", "s2", "s3"]
    snapshots(root).keep(9)
    snapshots(root).keep(2)
    assert [each.label for each in snapshots(root).list()] == ["s2", "s3"]
    assert kept(root) == whole("s2", "s3")
    assert take(root, "s4").number == 5
    snapshots(root).keep(0)
    assert kept(root) == whole()


def refused(root: Path, snapshot: Snapshot, why: str, using: Snapshots | None = None) -> None:
    """It is not restored, and nothing is changed."""
    update(root)
    before, stored = picture(root), kept(root)
    with pytest.raises(NotRestored, match=why):
        (using or snapshots(root)).restore(snapshot)
    assert picture(root) == before
    assert kept(root) == stored


def test_never_over_another_agent(root: Path) -> None:
    why = "is of agent did:key:z6MkAda, and this is did:key:z6MkBob"
    refused(root, take(root), why, snapshots(root, "did:key:z6MkBob"))


def test_never_over_data_in_use(root: Path) -> None:
    refused(root, take(root), "in use; stop the runtime first", snapshots(root, live=lambda: True))


def test_never_over_data_that_came_into_use_meanwhile(root: Path) -> None:
    looks = iter([False, True])
    refused(root, take(root), "in use", snapshots(root, live=lambda: next(looks)))


@pytest.mark.parametrize("at", [0, 600, -1])
def test_never_when_it_is_spoilt(root: Path, at: int) -> None:
    taken = take(root)
    tar = root / STORE / "before.tar"
    content = bytearray(tar.read_bytes())
    content[at] ^= 1
    tar.write_bytes(content)
    refused(root, taken, "spoilt: its tar has another SHA-256")
    tar.write_bytes(content[:-512])
    refused(root, taken, "spoilt: its tar has another SHA-256")


def member(name: str, kind: bytes = tarfile.REGTYPE, **change: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in change.items():
        setattr(made, field, value)
    return made


FORGED = {
    "an absolute name": [member("/dev/null/openclaw")],
    "a name that leads out": [member("openclaw", tarfile.DIRTYPE), member("openclaw/../x")],
    "another directory": [member("workspace", tarfile.DIRTYPE)],
    "the supervisor's corner": [member(".roost/x")],
    "a device": [member("openclaw", tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a pipe": [member("openclaw", tarfile.FIFOTYPE)],
    "a hard link": [member("openclaw", tarfile.LNKTYPE, linkname="workspace")],
    "a link out": [member("openclaw", tarfile.DIRTYPE), member("openclaw/x", tarfile.SYMTYPE, linkname="../workspace")],
    "a link to everywhere": [member("openclaw", tarfile.SYMTYPE, linkname="/nowhere")],
    "too many": [member("openclaw", tarfile.DIRTYPE), *(member(f"openclaw/{n}") for n in range(3))],
    "too much": [member("openclaw", tarfile.DIRTYPE), member("openclaw/x", size=11)],
    "too little": [member("openclaw", tarfile.DIRTYPE)],
}


@pytest.mark.parametrize("forged", FORGED)
def test_nothing_is_extracted_that_a_snapshot_can_not_hold(root: Path, forged: str) -> None:
    """Even if its checksum is right."""
    content = io.BytesIO()
    with tarfile.open(mode="w", fileobj=content) as archive:
        for each in FORGED[forged]:
            archive.addfile(each, io.BytesIO(b"x" * each.size))
    taken = take(root)
    (root / STORE / "before.tar").write_bytes(content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    what = "less than its manifest names" if forged == "too little" else "what its manifest does not name"
    change = {"sha256": digest, "files": 3, "size": 10, "paths": ("openclaw",)}
    refused(root, taken.model_copy(update=change), f"spoilt: it holds {what}")


def test_no_member_is_written_through_a_link_of_another_member(root: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(mode="w", fileobj=content) as archive:
        archive.addfile(member("openclaw", tarfile.DIRTYPE))
        archive.addfile(member("openclaw/there", tarfile.DIRTYPE))
        archive.addfile(member("openclaw/link", tarfile.SYMTYPE, linkname="there"))
        archive.addfile(member("openclaw/link/x"))
    taken = take(root)
    (root / STORE / "before.tar").write_bytes(content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    before = picture(root)
    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        snapshots(root).restore(taken.model_copy(update={"sha256": digest}))
    assert picture(root) == before
    assert kept(root) == whole("before")


def test_a_file_that_shrinks_while_it_is_read_spoils_only_the_snapshot(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "openclaw/state/openclaw.sqlite", "sessions" * 100_000)
    give(root)
    taken = take(root, "first")
    real = os.read

    def read(descriptor: int, most: int) -> bytes:
        found = real(descriptor, most)
        if found.startswith(b"sessions"):
            os.truncate(root / "openclaw/state/openclaw.sqlite", 10)
        return found

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(OSError, match=r"openclaw.sqlite became shorter while it was read"):
        take(root, "second")
    assert snapshots(root).list() == [taken]
    assert kept(root) == whole("first")


def test_directories_within_directories_are_read_to_a_bound(root: Path) -> None:
    deep = root / "openclaw" / "/".join(["d"] * 110)
    deep.mkdir(parents=True)
    with pytest.raises(OSError, match="more than 100 directories within each other"):
        take(root)
    assert kept(root) == whole()


@pytest.mark.parametrize("place", ["openclaw", "openclaw/state", "openclaw/state/openclaw.sqlite"])
def test_nothing_is_taken_through_a_link_that_appears_between_any_two_steps(root: Path, place: str) -> None:
    # given what is outside, with the same names
    outside = root.parent / "outside"
    make(outside / "openclaw/state/openclaw.sqlite", "SECRET")
    step, interrupted = 0, True
    while interrupted:
        # when a snapshot is taken, and a link to that takes the place just before this step
        def swap() -> None:
            (root / place).rename(root.parent / "away")
            (root / place).symlink_to(outside / place)

        mine = Snapshots(root, ADA, live=lambda: False, now=lambda: NOW, owner=None)
        with Interruption.before(step, swap) as happened:
            try:
                mine.take(["openclaw"], label=f"s{step}", version="1")
            except OSError:
                pass
            interrupted = happened()
        # then it is not in the snapshot
        for each in mine.list():
            assert b"SECRET" not in (root / STORE / f"{each.label}.tar").read_bytes()
        mine.keep(0)
        if interrupted:
            (root / place).unlink()
            (root.parent / "away").rename(root / place)
        step += 1
    assert step > 20, "the steps were not seen"


# Crashes

ONCE = pytest.mark.parametrize("mechanism", MECHANISMS[:1], indirect=True)


CALLS = ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "chmod", "chown", "utime")
STEPS = {"open", *(f"os.{call}" for call in CALLS)}


def copy(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", folder, to], check=True)


def crashed(act: Callable[[], object], step: int) -> bool:
    """Whether the act, in a process of its own that is killed before its n-th change of the disk, came so far."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str = "", _: object = None) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            os.fsync = lambda _: count("open")  # type: ignore[assignment]
            os.sync = lambda: count("open")
            sys.addaudithook(count)
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def crashes(pristine: Path, act: Callable[[Path], object]) -> Iterator[Path]:
    """The data directory after a crash at the first step, at the second, and so on; at last after none."""
    step, going = 0, True
    while going:
        root = pristine.parent / f"crashed{step}"
        copy(pristine, root)
        going = crashed(lambda root=root: act(root), step)  # type: ignore[misc]
        yield root
        shutil.rmtree(root)
        step += 1
    assert step > 10, "the steps were not seen"


@ONCE
def test_a_crash_while_a_snapshot_is_taken_leaves_it_whole_or_not_at_all(root: Path) -> None:
    first = take(root, "first")
    seen = []
    for after in crashes(root, lambda root: take(root, "second")):
        labels = [each.label for each in snapshots(after).list()]
        assert labels[0] == "first"
        snapshots(after).recover()
        assert [each.label for each in snapshots(after).list()] == labels
        assert kept(after) == whole(*labels)
        snapshots(after).restore(snapshots(after).list()[-1])
        seen.append(len(labels))
        assert first in snapshots(after).list()
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


@ONCE
def test_a_crash_while_snapshots_are_removed_leaves_them_whole_or_not_at_all(root: Path) -> None:
    take(root, "a")
    take(root, "b")
    for after in crashes(root, lambda root: snapshots(root).keep(0)):
        labels = [each.label for each in snapshots(after).list()]
        assert labels in (["a", "b"], ["b"], [])
        snapshots(after).recover()
        assert kept(after) == whole(*labels)


@ONCE
def test_a_crash_while_it_is_restored_leaves_the_old_state_or_the_new(root: Path) -> None:
    old = picture(root)
    taken = take(root, also=("later",))
    update(root)
    make(root / "later/x", "x")
    give(root)
    new = picture(root)
    seen = []
    interrupted = None
    for after in crashes(root, lambda root: snapshots(root).restore(taken)):
        # given a crash somewhere, no directory holds a mixture
        for name in ("openclaw", "workspace"):
            if (after / name).exists():
                assert below(picture(after), name) in (below(old, name), below(new, name))
        missing = not ((after / "openclaw").exists() and (after / "workspace").exists())
        if missing and interrupted is None:
            interrupted = root.parent / "interrupted"
            copy(after, interrupted)
        # when the next boot recovers
        snapshots(after).recover()
        # then all is as it was before the update, or as after it, and nothing is left over
        found = picture(after)
        assert found in (old, new)
        assert kept(after) == whole("before")
        assert snapshots(after).list() == [taken]
        seen.append(found == old)
    assert seen == sorted(seen), "once it is decided it stays so"
    assert set(seen) == {False, True}
    # and a crash while it recovers is no worse
    assert interrupted is not None
    with pytest.raises(NotRestored, match="in use"):
        snapshots(interrupted, live=lambda: True).recover()
    for after in crashes(interrupted, lambda root: snapshots(root).recover()):
        make(after / "openclaw/made-too-early", "x")
        snapshots(after).recover()
        assert below(picture(after), "workspace") == below(old, "workspace")
        assert (after / "openclaw/openclaw.json").exists()
        assert kept(after) == whole("before")


def below(seen: dict[str, object], name: str) -> dict[str, object]:
    return {path: what for path, what in seen.items() if path.split("/")[0] == name}


# A full disk

_FULL = """
import os, subprocess, sys
from datetime import UTC, datetime
from pathlib import Path
from roost_agent import beneath
from roost_agent.snapshot import Snapshots

root, mechanism = Path(sys.argv[1]), sys.argv[2]
if mechanism == "walk":
    beneath._kernel_resolves = lambda: False
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", root], check=True)
(root / "openclaw").mkdir()
(root / "openclaw/x").write_bytes(b"x" * 1_300_000)
mine = Snapshots(root, "did", live=lambda: False, now=lambda: datetime.now(UTC), owner=None)

def attempt(act):
    try:
        act()
    except OSError as error:
        print(error.errno, error.strerror)
    print(sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()))

taken = mine.take(["openclaw"], label="a", version="1")
(root / "y").write_bytes(b"y" * 1_000_000)
attempt(lambda: mine.take(["openclaw"], label="b", version="1"))
attempt(lambda: mine.restore(taken))
real = os.fstatvfs
class Roomy:
    f_bavail = f_frsize = 2**20
os.fstatvfs = lambda _: Roomy  # somebody fills the disk after it was looked at
attempt(lambda: mine.take(["openclaw"], label="b", version="1"))
attempt(lambda: mine.restore(taken))
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, mechanism: str) -> None:
    # given a disk with room for one copy of the state but not for two, in a namespace of its own
    argv = ["unshare", "--mount", "--map-root-user", sys.executable, "-c", _FULL, str(tmp_path), mechanism]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    files = "['.roost/snapshots/a.json', '.roost/snapshots/a.tar', 'openclaw/x', 'y']"
    said, text = ran.stdout.splitlines(), f"{errno.ENOSPC} no room"
    assert said[1::2] == [files] * 4, ran.stderr
    assert said[0].startswith(f"{text} for a snapshot: 1.3 MB are needed and 0.")
    assert said[2].startswith(f"{text} to restore it: 1.3 MB are needed and 0.")
    assert said[4::2] == [f"{errno.ENOSPC} No space left on device"] * 2
