"""The few things that are asked of the kernel itself: orphans, and that nobody reads the token out of this process."""

import ctypes
import os
import sys

__all__ = ["adopt_orphans", "hide"]

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Orphans below this process become its children. As PID 1 they do anyway (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if sys.platform == "linux" and os.getpid() != 1:
        _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hide(variable: str) -> None:
    """Takes a variable out of the environment for good, and forbids core dumps of this process.

    Leaving it out of a child's environment is not enough: the runtime may read /proc/<pid>/environ, which shows the
    memory where the variables stood when the process began.
    """
    if sys.platform == "linux":
        libc = _libc()
        libc.getenv.restype = ctypes.c_void_p
        if address := libc.getenv(variable.encode()):
            ctypes.memset(address, 0, len(ctypes.string_at(address)))
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.environ.pop(variable, None)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
