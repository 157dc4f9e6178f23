"""What may happen below the data directory, and what may not."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from resolving import MECHANISMS, resolve_by
from roost_agent.contract import BundleFile
from roost_agent.runtime import Layout
from roost_agent.tree import Tree
from roost_agent.volume import Volume

TOKEN = "a-token"


@pytest.fixture(params=MECHANISMS)
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    resolve_by(request.param, monkeypatch)
    made = tmp_path / "data"
    made.mkdir()
    return made


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_a_file_appears_whole_with_its_mode(root: Path) -> None:
    old = os.umask(0o077)
    try:
        Tree(root).write("a/b/c", b"content", 0o664)
    finally:
        os.umask(old)
    assert (root / "a/b/c").read_bytes() == b"content"
    assert stat.S_IMODE((root / "a/b/c").stat().st_mode) == 0o664
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o700
    assert everything(root) == {"a", "a/b", "a/b/c"}


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a/../x"])
def test_no_path_leads_out(root: Path, path: str) -> None:
    for act in (lambda: Tree(root).write(path, b""), lambda: Tree(root).remove(path), lambda: Tree(root).read(path)):
        with pytest.raises(PermissionError):
            act()
    assert everything(root.parent) == {"data"}


@pytest.mark.parametrize("target", ["..", "/", "inside", "missing"])
def test_no_link_on_the_way_is_followed(root: Path, target: str) -> None:
    (root / "inside").mkdir()
    (root / "inside/x").write_text("stays")
    (root / "link").symlink_to(target)
    tree = Tree(root)
    acts: list[Callable[[], object]] = [
        lambda: tree.write("link/x", b"y"),
        lambda: tree.write("link/deep/x", b"y"),
        lambda: tree.remove("link/x"),
        lambda: tree.read("link/x"),
    ]
    for act in acts:
        with pytest.raises(NotADirectoryError, match="link is a link or no directory"):
            act()
    assert everything(root) == {"inside", "inside/x", "link"}
    assert (root / "inside/x").read_text() == "stays"


def test_a_link_in_the_place_of_a_file_is_replaced(root: Path) -> None:
    outside = root.parent / "outside"
    outside.write_text("stays")
    (root / "a").symlink_to(outside)
    Tree(root).write("a", b"new")
    assert not (root / "a").is_symlink()
    assert (root / "a").read_bytes() == b"new"
    assert outside.read_text() == "stays"


def test_a_link_is_not_read(root: Path) -> None:
    (root.parent / "outside").write_text("hidden")
    (root / "a").symlink_to(root.parent / "outside")
    with pytest.raises(OSError, match="Too many levels"):
        Tree(root).read("a")
    os.mkfifo(root / "pipe")
    with pytest.raises(OSError, match="no regular file"):  # and it does not hang
        Tree(root).read("pipe")


def test_all_the_files_or_none(root: Path) -> None:
    volume = Volume(root, lambda: TOKEN)
    volume.put(Layout([BundleFile(path="a", content="1"), BundleFile(path="c/d", content="1")]))
    (root / "b").mkdir()
    with pytest.raises(IsADirectoryError, match="b is a directory"):
        volume.put(Layout([BundleFile(path="a", content="2"), BundleFile(path="b", content="2")]))
    assert (root / "a").read_text() == "1"
    assert everything(root) == {".roost", ".roost/memory.json", "a", "b", "c", "c/d"}
    volume.put(Layout([BundleFile(path="a", content="2")]))
    assert (root / "a").read_text() == "2"
    assert everything(root) == {".roost", ".roost/memory.json", "a", "b", "c"}


def test_what_is_already_so_is_not_written_again(root: Path) -> None:
    volume = Volume(root, lambda: TOKEN)
    file = BundleFile(path="a", mode="0640", content="1")
    volume.put(Layout([file]))
    before = (root / "a").stat()
    volume.put(Layout([file]))
    assert (root / "a").stat().st_ino == before.st_ino
    (root / "a").chmod(0o600)
    volume.put(Layout([file]))
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o640


def test_a_file_that_a_crash_left_half_made_is_no_hindrance(root: Path) -> None:
    tree = Tree(root)
    tree.stage("a", b"half", 0o600)
    assert not (root / "a").exists()
    tree.write("a", b"whole")
    assert everything(root) == {"a"}
    assert (root / "a").read_bytes() == b"whole"


def test_nothing_is_removed_that_a_spoilt_memory_names(root: Path) -> None:
    (root.parent / "precious").write_text("stays")
    (root / ".roost").mkdir()
    for spoilt in (
        '{"files": ["../precious"]}',
        '{"files": [".roost/bundle.sealed"]}',
        "[]",
        '{"later": 1}',
        "\0" * 99,
    ):
        (root / ".roost/memory.json").write_text(spoilt)
        volume = Volume(root, lambda: TOKEN)
        volume.keep(b"kept")
        volume.put(Layout([]))
        assert volume.last_good() == b"kept"
    assert (root.parent / "precious").read_text() == "stays"


def test_the_kept_bundle_opens_only_with_its_token(root: Path) -> None:
    volume = Volume(root, lambda: TOKEN)
    assert volume.last_good() is None
    volume.keep(b'{"secretEnv": {"KEY": "s3cret"}}')
    sealed = root / ".roost/bundle.sealed"
    assert b"s3cret" not in sealed.read_bytes()
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert volume.last_good() == b'{"secretEnv": {"KEY": "s3cret"}}'
    assert Volume(root, lambda: "another").last_good() is None
    sealed.write_bytes(sealed.read_bytes()[:-1])
    assert volume.last_good() is None
    volume.forget()
    volume.forget()
    assert not sealed.exists()


def test_a_file_that_could_not_be_removed_is_not_forgotten(root: Path) -> None:
    volume = Volume(root, lambda: TOKEN)
    volume.put(Layout([BundleFile(path="d/a", content="1")]))
    (root / "d").rename(root / "moved")
    (root / "d").symlink_to("moved")
    volume.put(Layout([]))
    assert (root / "moved/a").exists()
    (root / "d").unlink()
    (root / "moved").rename(root / "d")
    volume.put(Layout([]))
    assert not (root / "d/a").exists()


def test_a_restart_is_remembered_beside_the_files(root: Path) -> None:
    volume = Volume(root, lambda: TOKEN)
    assert volume.memory.restarted_at is None
    volume.put(Layout([BundleFile(path="a", content="1")]))
    volume.remember(restarted_at="2026-11-21T10:00:00Z")
    volume.put(Layout([]))
    assert Volume(root, lambda: TOKEN).memory.restarted_at == "2026-11-21T10:00:00Z"
    assert not (root / "a").exists()
