"""Files below one directory, entered one component at a time, so that no symbolic link ever leads out of it.

What runs on the volume may be hostile: it can plant a link where the supervisor is about to write. Every directory on
the way is therefore opened by its parent's descriptor and never through a link (openat(2), O_NOFOLLOW). A new content
appears whole or not at all: it is written beside, synced, and renamed.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["Staged", "Tree"]

_LARGEST = 64 * 2**20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Staged:
    """A new content that lies beside its place, complete and synced."""

    path: PurePosixPath
    temporary: str


class Tree:
    """The files below `root`. Paths are relative and without `..`; every method raises OSError as the system does."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str, most: int = _LARGEST) -> bytes:
        """The content of a regular file of at most so many bytes (64 MiB)."""
        return self._look(path, most)[0]

    def holds(self, path: str, content: bytes, mode: int) -> bool:
        """The file is there with just this content and mode. Never raises."""
        try:
            return self._look(path) == (content, mode)
        except OSError:
            return False

    def write(self, path: str, content: bytes, mode: int = 0o600) -> None:
        """Puts one file in its place, parents made with mode 0700."""
        self.commit(self.stage(path, content, mode))

    def stage(self, path: str, content: bytes, mode: int) -> Staged:
        """Writes a file beside its place: all that can fail for want of space or rights fails here."""
        staged = Staged(PurePosixPath(path), f".roost-{hashlib.sha256(path.encode()).hexdigest()[:16]}.new")
        with self._parent(staged.path, make=True) as (parent, name):
            if _is_directory(name, parent):
                raise IsADirectoryError(errno.EISDIR, f"{path} is a directory")
            _unlink(staged.temporary, parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(staged.temporary, flags, 0o600, dir_fd=parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fchmod(file.fileno(), mode)
                    os.fsync(file.fileno())
            except OSError:
                _unlink(staged.temporary, parent)
                raise
        return staged

    def commit(self, staged: Staged) -> None:
        """Puts it in its place in one step; a link that stood there is replaced, not followed."""
        with self._parent(staged.path, make=False) as (parent, name):
            os.rename(staged.temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)

    def discard(self, staged: Staged) -> None:
        with self._parent(staged.path, make=False) as (parent, _):
            _unlink(staged.temporary, parent)

    def remove(self, path: str) -> None:
        """Removes a file or a link. What is not there is fine."""
        try:
            with self._parent(PurePosixPath(path), make=False) as (parent, name):
                _unlink(name, parent)
        except FileNotFoundError:
            pass

    def _look(self, path: str, most: int = _LARGEST) -> tuple[bytes, int]:
        with self._parent(PurePosixPath(path), make=False) as (parent, name):
            # Non-blocking, because a pipe may have been planted there.
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                    raise OSError(errno.EFBIG, f"{path} is no regular file, or too large")
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    return file.read(most), stat.S_IMODE(status.st_mode)
            finally:
                os.close(descriptor)  # by hand: fdopen() refuses a directory, and leaves it open

    @contextmanager
    def _parent(self, path: PurePosixPath, *, make: bool) -> Iterator[tuple[int, str]]:
        """The open directory that holds the path's last part, and that part."""
        *directories, name = path.parts
        if path.is_absolute() or ".." in path.parts:
            raise PermissionError(errno.EPERM, f"{path} leads out of the data directory")
        # The root itself is the operator's word; it may be a link.
        here = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for directory in directories:
                below = _enter(directory, here, path, make=make)
                os.close(here)
                here = below
            yield here, name
        finally:
            os.close(here)


def _enter(name: str, parent: int, path: PurePosixPath, *, make: bool) -> int:
    if make:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NotADirectoryError(error.errno, f"{path}: {name} is a link or no directory") from None
        raise


def _is_directory(name: str, parent: int) -> bool:
    try:
        os.close(os.open(name, _DIRECTORY, dir_fd=parent))
    except OSError:
        return False
    return True


def _unlink(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
