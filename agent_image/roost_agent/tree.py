"""Files below one directory, where someone hostile may be at work at the same time.

What runs on the volume owns its directories there: it can plant a link where the supervisor is about to write, and swap
one name for another meanwhile. Every path is therefore resolved below the root without following any link, and whatever
is read, written, given away or removed is reached by an open descriptor. A new content appears whole or not at all: it
is written beside, synced, and renamed.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from roost_agent.beneath import DIRECTORY, open_beneath
from roost_agent.runtime import User

__all__ = ["Staged", "Tree"]

_LARGEST = 64 * 2**20
_DEEPEST = 64
"""Directories that are entered within each other when something is removed: each keeps a descriptor open."""
_PASSES = 64
"""How often what was deeper is moved up and removed there: 4,096 directories within each other are removed."""

_Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Staged:
    """A new content that lies beside its place, complete and synced."""

    path: PurePosixPath
    temporary: str


class Tree:
    """The files below `root`. Paths are relative and without `..`; every method raises OSError as the system does.

    With an `owner`, whatever is made here belongs to that user, and so does every directory on the way to it that
    belonged to the supervisor.
    """

    def __init__(self, root: Path, owner: User | None = None) -> None:
        self._root = root
        self._owner = owner

    def read(self, path: str, most: int = _LARGEST) -> bytes:
        """The content of a regular file of at most so many bytes (64 MiB)."""
        return self._look(path, most)[0]

    def holds(self, path: str, content: bytes, mode: int) -> bool:
        """The file is there with just this content, mode and owner. Never raises."""
        try:
            found, status = self._look(path)
        except OSError:
            return False
        mine = self._owner is None or (status.st_uid, status.st_gid) == (self._owner.uid, self._owner.gid)
        return mine and (found, stat.S_IMODE(status.st_mode)) == (content, mode)

    def write(self, path: str, content: bytes, mode: int = 0o600) -> None:
        """Puts one file in its place, parents made with mode 0700."""
        self.commit(self.stage(path, content, mode))

    def write_new(self, path: str, content: bytes, mode: int = 0o600) -> bool:
        """Puts one file where nothing is. False, and nothing is changed, where there is anything, a link included."""
        with self._parent(path, make=True) as (parent, name):
            if _stands(name, parent):
                return False
            temporary = self._lay(parent, path, content, mode)
            try:
                os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                return False
            finally:
                _unlink(temporary, parent)
            os.fsync(parent)
        return True

    def make(self, directory: str) -> None:
        """Makes a directory and those above it, with mode 0700, unless they are there."""
        with self._directory(_parts(directory), make=True):
            pass

    def stage(self, path: str, content: bytes, mode: int) -> Staged:
        """Writes a file beside its place: all that can fail for want of space or rights fails here."""
        with self._parent(path, make=True) as (parent, name):
            if _is_directory(name, parent):
                raise IsADirectoryError(errno.EISDIR, f"{path} is a directory")
            return Staged(PurePosixPath(path), self._lay(parent, path, content, mode))

    def commit(self, staged: Staged) -> None:
        """Puts it in its place in one step; a link that stood there is replaced, not followed."""
        with self._parent(str(staged.path), make=False) as (parent, name):
            os.rename(staged.temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)

    def discard(self, staged: Staged) -> None:
        """Removes what was staged; it may have been put in its place already."""
        with self._parent(str(staged.path), make=False) as (parent, _):
            _unlink(staged.temporary, parent)

    def remove(self, path: str) -> None:
        """Removes a file or a link. What is not there is fine."""
        try:
            with self._parent(path, make=False) as (parent, name):
                _unlink(name, parent)
        except FileNotFoundError:
            pass

    def clear(self, directory: str, keep: Collection[str] = ()) -> None:
        """Removes everything below a directory but the kept paths and what is below them; paths are below the root.

        No link is followed and no other file system entered. What can't be removed does not keep the rest from being
        removed; then the first failure is raised. A directory that is not there is fine.
        """
        at = _parts(directory)
        kept = {parts[len(at) :] for parts in map(_parts, keep) if parts[: len(at)] == at}
        if () in kept:
            return
        try:
            with self._directory(at, make=False) as here:
                _Sweep(here).clear(kept)
        except FileNotFoundError:
            pass

    def _look(self, path: str, most: int = _LARGEST) -> tuple[bytes, os.stat_result]:
        with self._parent(path, make=False) as (parent, name):
            # Non-blocking, because a pipe may have been planted there.
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                    raise OSError(errno.EFBIG, f"{path} is no regular file, or too large")
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    return file.read(most), status
            finally:
                os.close(descriptor)  # by hand: fdopen() refuses a directory, and leaves it open

    def _lay(self, parent: int, path: str, content: bytes, mode: int) -> str:
        """Writes the content beside its place, and gives the name it has there."""
        temporary = f".roost-{hashlib.sha256(path.encode()).hexdigest()[:16]}.new"
        _unlink(temporary, parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if self._owner is not None:
                    os.fchown(file.fileno(), self._owner.uid, self._owner.gid)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
        except OSError:
            _unlink(temporary, parent)
            raise
        return temporary

    @contextmanager
    def _parent(self, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """The open directory that holds the path's last part, and that part."""
        *above, name = _parts(path)
        with self._directory(tuple(above), make=make) as here:
            yield here, name

    @contextmanager
    def _directory(self, parts: _Parts, *, make: bool) -> Iterator[int]:
        # The root itself is the operator's word; it may be a link.
        here = os.open(self._root, DIRECTORY)
        try:
            for step in parts if make else filter(None, ["/".join(parts)]):
                below = self._enter(here, step, parts, make=make)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _enter(self, parent: int, step: str, parts: _Parts, *, make: bool) -> int:
        if make:
            try:
                os.mkdir(step, 0o700, dir_fd=parent)
            except FileExistsError:
                pass
        try:
            entered = open_beneath(parent, step, DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                whole = "/".join(parts)
                where = step if step == whole else f"{whole}: {step}"
                text = f"{where} is a link or no directory, or leads over one"
                raise NotADirectoryError(error.errno, text) from None
            raise
        if make and self._owner is not None and os.fstat(entered).st_uid == os.geteuid():
            # Also what stood there: a crash may have come between making and giving.
            os.fchown(entered, self._owner.uid, self._owner.gid)
        return entered


def _parts(path: str) -> _Parts:
    parsed = PurePosixPath(path)
    if parsed.is_absolute() or ".." in parsed.parts or not parsed.parts:
        raise PermissionError(errno.EPERM, f"{path or '(empty)'} is no path below the data directory")
    return parsed.parts


class _Sweep:
    """Empties one open directory. What lies too deep is moved up into it, and removed in the next pass."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._moved_up = False
        self._failure: OSError | None = None

    def clear(self, kept: Collection[_Parts]) -> None:
        for _ in range(_PASSES):
            self._moved_up, self._failure = False, None
            self._empty(self._top, kept, 0)
            if not self._moved_up:
                break
        else:
            raise OSError(errno.ELOOP, "directories within directories without end")
        if self._failure is not None:
            raise self._failure

    def _empty(self, here: int, kept: Collection[_Parts], depth: int) -> None:
        with os.scandir(here) as entries:
            for entry in entries:
                below = {parts[1:] for parts in kept if parts[0] == entry.name}
                if () not in below:
                    try:
                        self._remove(entry.name, here, below, depth)
                    except FileNotFoundError:
                        pass
                    except OSError as error:
                        self._failure = self._failure or error

    def _remove(self, name: str, parent: int, kept: Collection[_Parts], depth: int) -> None:
        try:
            os.unlink(name, dir_fd=parent)
            return
        except (IsADirectoryError, PermissionError):  # the latter on macOS
            directory = open_beneath(parent, name, DIRECTORY, same_mount=True)
        try:
            if depth == _DEEPEST and not kept:
                up = f".roost-{os.fstat(directory).st_ino}.old"
                os.rename(name, up, src_dir_fd=parent, dst_dir_fd=self._top)
                self._moved_up = True
                return
            self._empty(directory, kept, depth + 1)
        finally:
            os.close(directory)
        if not kept:
            os.rmdir(name, dir_fd=parent)


def _stands(name: str, parent: int) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def _is_directory(name: str, parent: int) -> bool:
    try:
        os.close(open_beneath(parent, name, DIRECTORY))
    except OSError:
        return False
    return True


def _unlink(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
