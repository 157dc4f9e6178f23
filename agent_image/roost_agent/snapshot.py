"""Local snapshots of directories of the data volume, to go back to when an update of the runtime fails.

A snapshot is a plain tar below `.roost/snapshots/` and, written last, a manifest that names the agent, the version and
the tar's SHA-256. It is listed only when it is whole. It is never restored over another agent's data, over data in use,
or when it is spoilt. Reading, it follows no link, takes no file of another user (a hard link to a secret of the
supervisor's, say) and enters no other file system.

To restore is to extract beside, to mark that as whole, and to swap by rename: before the mark a crash leaves the old
state, and after it `recover` puts the new one in its place. Not compressed: the runtime waits for it, and for 217 MB
zlib's fastest took 5.8 s instead of 1.9 s.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Annotated

import structlog
from pydantic import AfterValidator, ValidationError

from roost_agent.beneath import DIRECTORY, open_beneath
from roost_agent.contract.paths import RESERVED_DIRECTORY
from roost_agent.contract.wire import Count, Name, Time, Version, Wire
from roost_agent.runtime import User
from roost_agent.tree import Tree

__all__ = ["NotRestored", "Snapshot", "Snapshots"]

_STORE = f"{RESERVED_DIRECTORY}/snapshots"
_WORK = f"{RESERVED_DIRECTORY}/restore"
_NEW, _OLD, _WHOLE = "new", "old", "whole"
"""In the work directory: what was extracted, what stood there before, and the mark that the former is complete.

The mark is the snapshot's manifest.
"""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_DEEPEST = 100
"""Directories within each other: each keeps a descriptor open while it is read."""
_CHUNK = 2**18
_MEMBER = 2048
"""Bytes of a tar for one member beside its content, at most: two headers, a long name, the padding."""
_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_log = structlog.get_logger()


class NotRestored(Exception):
    """This snapshot must not be restored, or not now; nothing was changed. The text says why."""


def _right_below(path: str) -> str:
    if path in ("", ".", "..", RESERVED_DIRECTORY) or PurePosixPath(path).name != path:
        raise ValueError(f"path {path!r}: must name a directory right below the data directory")
    return path


Directory = Annotated[str, AfterValidator(_right_below)]


class Snapshot(Wire):
    """The manifest of a snapshot."""

    label: str
    number: Count
    """Counts up, so that the order does not hang on the clock."""
    identity: Name
    """The agent's DID."""
    version: Version
    """The runtime's, whose state this is."""
    created: Time
    paths: tuple[Directory, ...]
    """The directories it holds, right below the data directory."""
    absent: tuple[Directory, ...]
    """Those that were not there; to restore is to take them away."""
    files: Count
    """How many files, directories and links."""
    size: Count
    """Bytes of all the files."""
    left_out: Count
    """Files of other users, and links that lead out of their directory."""
    sha256: str
    """Of the tar, in hex."""


class Snapshots:
    """Every method blocks on the disk, and only one may run at a time. All raise OSError as the system does.

    Args:
        root: The data directory.
        identity: The agent's DID.
        live: Whether something runs that uses the data.
        now: The time of day, with a zone.
        owner: To whom the data belong; None: the supervisor.
    """

    def __init__(
        self, root: Path, identity: str, *, live: Callable[[], bool], now: Callable[[], datetime], owner: User | None
    ) -> None:
        self._root = root
        self._identity = identity
        self._live = live
        self._now = now
        self._owner = owner
        self._tree = Tree(root)

    def take(
        self, paths: Sequence[str], *, label: str, version: str, exclude: Collection[str] = ("cache", "tmp")
    ) -> Snapshot:
        """A snapshot of directories. Nothing may write to them meanwhile.

        Args:
            paths: Names of directories right below the data directory; that one is not there is kept as well.
            label: A new one; letters, digits and `._+-`.
            version: The runtime's, whose state this is.
            exclude: Names right below each of the directories that are left out. Sockets, pipes and devices always are.

        Raises:
            ValueError: no such label or path can be.
            NotRestored: see `recover`, which comes first.
            OSError: the label is taken, there is no room, a file changed while it was read, or what the system says.
                Nothing is left behind.
        """
        if not _LABEL.fullmatch(label):
            raise ValueError(f"label {label!r}: must be 1 to 100 letters, digits or one of ._+-")
        for path in paths:
            _right_below(path)
        self.recover()
        known = self.list()
        if any(each.label == label for each in known):
            raise FileExistsError(errno.EEXIST, f"snapshot {label} is there already; take another label")
        with self._opened(".") as root, self._opened(_STORE) as store:
            there = tuple(path for path in paths if _is_there(path, root))
            estimate = _Reading(self._owner, exclude)
            _has_room(
                store, sum(_MEMBER + member.size for member, _ in estimate.members(root, there)), "for a snapshot"
            )
            archive = f"{label}.tar"
            try:
                reading = _Reading(self._owner, exclude)
                files, size, sha256 = _pack(store, f"{archive}.new", reading.members(root, there))
                os.rename(f"{archive}.new", archive, src_dir_fd=store, dst_dir_fd=store)
                os.fsync(store)
                snapshot = Snapshot(
                    label=label,
                    number=max((each.number for each in known), default=0) + 1,
                    identity=self._identity,
                    version=version,
                    created=self._now().isoformat(),
                    paths=there,
                    absent=tuple(path for path in paths if path not in there),
                    files=files,
                    size=size,
                    left_out=reading.left_out,
                    sha256=sha256,
                )
                self._tree.write(_manifest(label), snapshot.write())
            except BaseException:
                self._sweep()
                raise
        if snapshot.left_out:
            _log.warning("snapshot without some files", label=label, left_out=snapshot.left_out)
        return snapshot

    def list(self) -> list[Snapshot]:
        """All that are whole, the oldest first."""
        found = []
        with self._opened(_STORE) as store:
            names = _names(store)
        for name in names:
            label = name.removesuffix(".json")
            if label != name and f"{label}.tar" in names:
                try:
                    snapshot = Snapshot.read(self._tree.read(_manifest(label)))
                except ValidationError:
                    continue
                if snapshot.label == label:
                    found.append(snapshot)
        return sorted(found, key=lambda each: each.number)

    def keep(self, most: int) -> None:
        """Removes the oldest, so that so many are left."""
        for each in self.list()[: -most or None]:
            self._tree.remove(_manifest(each.label))  # first: what has no manifest is not listed
            self._tree.remove(f"{_STORE}/{each.label}.tar")

    def restore(self, snapshot: Snapshot) -> None:
        """Puts the directories of the snapshot in the place of those that are there. All of them, or none.

        Raises:
            NotRestored: it is another agent's, spoilt, or the data are in use.
            OSError: there is no room, or what the system says. The state is as it was, unless the swap had begun:
                then `recover` finishes it.
        """
        self.recover()
        if snapshot.identity != self._identity:
            raise NotRestored(
                f"snapshot {snapshot.label} is of agent {snapshot.identity}, and this is {self._identity}; "
                "take one of this agent's"
            )
        self._refuse_live()
        try:
            with self._opened(_STORE) as store, _reading(store, f"{snapshot.label}.tar") as archive:
                if hashlib.file_digest(archive, "sha256").hexdigest() != snapshot.sha256:
                    raise NotRestored(f"snapshot {snapshot.label} is spoilt: its tar has another SHA-256; take another")
                archive.seek(0)
                _has_room(store, snapshot.size + snapshot.files * 4096, "to restore it")
                with self._opened(f"{_WORK}/{_NEW}") as new:
                    _unpack(archive, new, snapshot, self._owner)
            os.sync()  # the content before the mark; one call instead of one for each file
            self._refuse_live()
            self._tree.write(f"{_WORK}/{_WHOLE}", snapshot.write())
        except BaseException:
            self._sweep()
            raise
        self._swap()
        self._sweep()
        _log.info("snapshot restored", label=snapshot.label, version=snapshot.version, files=snapshot.files)

    def recover(self) -> None:
        """Ends what a crash interrupted: a restore is finished or undone, half a snapshot removed.

        Belongs at the beginning of a boot, before anything else touches the data.

        Raises:
            NotRestored: a restore is to be finished, and the data are in use.
        """
        with self._opened(_WORK) as work:
            interrupted = _stands(_WHOLE, work)
        if interrupted:
            self._refuse_live()
            self._swap()
        self._sweep()

    def _swap(self) -> None:
        """Puts what was extracted in its place. May be interrupted anywhere and called again."""
        with (
            self._opened(".") as root,
            self._opened(_WORK) as work,
            self._opened(f"{_WORK}/{_NEW}") as new,
            self._opened(f"{_WORK}/{_OLD}") as old,
        ):
            extracted = _names(new)
            for path in (*self._absent(), *extracted):
                if _stands(path, root):
                    # By its number, because something may have been made there after a crash.
                    aside = f"{path}.{os.lstat(path, dir_fd=root).st_ino}"
                    os.rename(path, aside, src_dir_fd=root, dst_dir_fd=old)
                    os.fsync(old)
                if path in extracted:
                    os.rename(path, path, src_dir_fd=new, dst_dir_fd=root)
                os.fsync(root)
            os.fsync(new)
            os.unlink(_WHOLE, dir_fd=work)
            os.fsync(work)  # before anything is removed: beside the mark, `new` must be whole or empty

    def _absent(self) -> Sequence[str]:
        try:
            return Snapshot.read(self._tree.read(f"{_WORK}/{_WHOLE}")).absent
        except ValidationError:
            return ()  # spoilt, but all the same a mark

    def _refuse_live(self) -> None:
        if self._live():
            raise NotRestored("the data are in use; stop the runtime first")

    def _sweep(self) -> None:
        """Removes what belongs to no snapshot, and the rest of a restore that is over. Never raises OSError."""
        try:
            with self._opened(_WORK) as work:
                if not _stands(_WHOLE, work):
                    self._tree.clear(_WORK)
            whole = [each.label for each in self.list()]
            self._tree.clear(_STORE, [f"{_STORE}/{label}.{kind}" for label in whole for kind in ("json", "tar")])
        except OSError as error:
            _log.warning("rest of a snapshot not removed", why=error.strerror)

    @contextmanager
    def _opened(self, directory: str) -> Iterator[int]:
        """A directory below the root, made if need be."""
        if directory != ".":
            self._tree.make(directory)
        root = os.open(self._root, DIRECTORY)
        try:
            opened = open_beneath(root, directory, DIRECTORY)
        finally:
            os.close(root)
        try:
            yield opened
        finally:
            os.close(opened)


class _Reading:
    """Reads directories that someone hostile may have filled."""

    def __init__(self, owner: User | None, exclude: Collection[str]) -> None:
        self._owner = owner
        self._exclude = exclude
        self.left_out = 0

    def members(self, root: int, paths: Sequence[str]) -> Iterator[tuple[tarfile.TarInfo, int]]:
        """Every directory, file and link, each with a descriptor that is open until the next (a link has none: -1)."""
        for path in paths:
            yield from self._below(root, path, path, 0)

    def _below(self, parent: int, name: str, where: str, depth: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
        try:
            kind = os.lstat(name, dir_fd=parent).st_mode
            if stat.S_ISLNK(kind):
                target = os.readlink(name, dir_fd=parent)
                if _leads_out(where, target):
                    self.left_out += 1
                else:
                    yield _member(where, None, target), -1
                return
            if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
                return
            descriptor = open_beneath(parent, name, os.O_RDONLY | os.O_NONBLOCK, same_mount=True)
        except FileNotFoundError:
            return
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                if self._owner is not None and status.st_uid != self._owner.uid:
                    self.left_out += 1
                else:
                    yield _member(where, status), descriptor
            elif stat.S_ISDIR(status.st_mode):
                if depth > _DEEPEST:
                    raise OSError(errno.ELOOP, f"{where}: more than {_DEEPEST} directories within each other")
                yield _member(where, status), descriptor
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        if depth > 0 or entry.name not in self._exclude:
                            yield from self._below(descriptor, entry.name, f"{where}/{entry.name}", depth + 1)
        finally:
            os.close(descriptor)


def _pack(store: int, name: str, members: Iterator[tuple[tarfile.TarInfo, int]]) -> tuple[int, int, str]:
    """Writes a tar, synced: how many members it has, how many bytes they hold, and its SHA-256.

    Block by block, because a TarFile remembers every member that it was given.
    """
    files = size = 0
    sha256 = hashlib.sha256()
    with os.fdopen(os.open(name, os.O_WRONLY | _CREATE, 0o600, dir_fd=store), "wb") as file:
        for member, descriptor in members:
            files, size = files + 1, size + member.size
            for chunk in _blocks(member, descriptor):
                sha256.update(chunk)
                file.write(chunk)
        end = bytes(2 * tarfile.BLOCKSIZE)
        sha256.update(end)
        file.write(end)
        file.flush()
        os.fsync(file.fileno())
    return files, size, sha256.hexdigest()


def _blocks(member: tarfile.TarInfo, descriptor: int) -> Iterator[bytes]:
    """One member of a tar: its header, its content, and the padding."""
    yield member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    left = member.size
    while left:
        chunk = os.read(descriptor, min(left, _CHUNK))
        if not chunk:
            raise OSError(errno.EIO, f"{member.name} became shorter while it was read")
        left -= len(chunk)
        yield chunk
    yield bytes(-member.size % tarfile.BLOCKSIZE)


def _member(where: str, status: os.stat_result | None, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(where)
    if status is None:
        member.type, member.linkname = tarfile.SYMTYPE, target
        return member
    member.mode, member.mtime = status.st_mode & 0o777, int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    else:
        member.size = status.st_size
    return member


def _unpack(archive: BufferedReader, new: int, snapshot: Snapshot, owner: User | None) -> None:
    """Extracts into an empty directory: members below the snapshot's paths, and no more of them than it names."""
    files = size = 0
    directories = []
    try:
        with tarfile.open(mode="r|", fileobj=archive, encoding="utf-8", bufsize=_CHUNK) as members:
            while (member := members.next()) is not None:
                members.members.clear()  # type: ignore[attr-defined]  # it would remember them all
                files, size = files + 1, size + member.size
                if files > snapshot.files or size > snapshot.size or _is_unsafe(member, snapshot.paths):
                    raise NotRestored(f"snapshot {snapshot.label} is spoilt: it holds what its manifest does not name")
                with _parent(new, member.name) as (parent, name):
                    if member.isdir():
                        os.mkdir(name, 0o700, dir_fd=parent)
                        directories.append(member)
                    elif member.issym():
                        os.symlink(member.linkname, name, dir_fd=parent)
                        if owner is not None:
                            os.chown(name, owner.uid, owner.gid, dir_fd=parent, follow_symlinks=False)
                    elif (content := members.extractfile(member)) is not None:
                        with os.fdopen(os.open(name, os.O_WRONLY | _CREATE, 0o600, dir_fd=parent), "wb") as file:
                            shutil.copyfileobj(content, file, _CHUNK)
                            file.flush()
                            _finish(file.fileno(), member, owner)
    except tarfile.TarError as error:
        raise NotRestored(f"snapshot {snapshot.label} is spoilt: {error}") from None
    for member in reversed(directories):  # last: nothing could be made in one that is read-only
        directory = open_beneath(new, member.name, DIRECTORY)
        try:
            _finish(directory, member, owner)
        finally:
            os.close(directory)
    if (files, size) != (snapshot.files, snapshot.size):
        raise NotRestored(f"snapshot {snapshot.label} is spoilt: it holds less than its manifest names")


def _finish(descriptor: int, member: tarfile.TarInfo, owner: User | None) -> None:
    if owner is not None:
        os.fchown(descriptor, owner.uid, owner.gid)
    os.fchmod(descriptor, member.mode & 0o777)
    os.utime(descriptor, (member.mtime, member.mtime))


def _is_unsafe(member: tarfile.TarInfo, paths: Collection[str]) -> bool:
    parts = PurePosixPath(member.name).parts
    return (
        not parts
        or parts[0] not in paths
        or ".." in parts
        or not (member.isdir() or member.issym() or member.isreg())
        or (member.issym() and _leads_out(member.name, member.linkname))
    )


def _leads_out(link: str, target: str) -> bool:
    """Whether a link may lead out of its top directory, over other links that do not.

    `..` is fine at the beginning only, where it is the link's own place that it climbs from.
    """
    parts = PurePosixPath(target).parts
    up = next((n for n, part in enumerate(parts) if part != ".."), len(parts))
    return target.startswith("/") or ".." in parts[up:] or up > len(PurePosixPath(link).parts) - 2


@contextmanager
def _parent(directory: int, path: str) -> Iterator[tuple[int, str]]:
    above, _, name = path.rpartition("/")
    parent = open_beneath(directory, above or ".", DIRECTORY)
    try:
        yield parent, name
    finally:
        os.close(parent)


@contextmanager
def _reading(directory: int, name: str) -> Iterator[BufferedReader]:
    with os.fdopen(open_beneath(directory, name, os.O_RDONLY), "rb") as file:
        yield file


def _has_room(directory: int, needed: int, what: str) -> None:
    found = os.fstatvfs(directory)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        text = f"no room {what}: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free; extend the volume"
        raise OSError(errno.ENOSPC, text)


def _is_there(path: str, root: int) -> bool:
    try:
        os.close(open_beneath(root, path, DIRECTORY, same_mount=True))
    except FileNotFoundError:
        return False
    return True


def _stands(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def _names(directory: int) -> set[str]:
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries}


def _manifest(label: str) -> str:
    return f"{_STORE}/{label}.json"
