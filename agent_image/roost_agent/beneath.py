"""Opening what lies below an open directory: no link on the way is followed, nor where it ends, and nothing leads out.

Linux resolves such a path in one call (openat2(2), since 5.6). Where it does not know that call, or a sandbox forbids
it, the path is walked one component at a time, each opened by its parent's descriptor and never through a link. Either
way, whoever swaps names meanwhile gets an error at most.
"""

import ctypes
import errno
import os
import platform
import sys
from functools import cache
from pathlib import PurePosixPath

__all__ = ["DIRECTORY", "open_beneath"]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_OPENAT2 = 437
"""The number of the call on these machines (Linux, include/uapi/asm-generic/unistd.h)."""
_MACHINES = ("x86_64", "aarch64")
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: int, path: str, flags: int, *, same_mount: bool = False) -> int:
    """A descriptor of what the relative path names below the open directory.

    Args:
        directory: Stays open, and stays the caller's.
        path: Without `..`.
        flags: As of open(2), without O_CREAT.
        same_mount: Refuses to enter another file system.

    Raises:
        OSError: as open(2) does; ELOOP or ENOTDIR for a link, EXDEV for another file system.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    if _kernel_resolves():
        return _openat2(directory, path, flags, _NO_XDEV if same_mount else 0)
    return _walk(directory, path, flags, same_mount=same_mount)


@cache
def _kernel_resolves() -> bool:
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    here = os.open("/", DIRECTORY)
    try:
        os.close(_openat2(here, ".", DIRECTORY | os.O_CLOEXEC, 0))
    except OSError:
        return False
    finally:
        os.close(here)
    return True


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = _How(flags, 0, resolve | _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    opened: int = _libc().syscall(
        ctypes.c_long(_OPENAT2), directory, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if opened < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return opened


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _walk(directory: int, path: str, flags: int, *, same_mount: bool) -> int:
    *above, name = PurePosixPath(path).parts or (".",)
    here = os.dup(directory)
    try:
        for each in above:
            below = os.open(each, DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        opened = os.open(name, flags, dir_fd=here)
    finally:
        os.close(here)
    if same_mount and os.fstat(opened).st_dev != os.fstat(directory).st_dev:
        os.close(opened)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    return opened
