"""Reads what a child prints, line by line, so that it is never held up and never fills the memory."""

import asyncio
import os
from collections.abc import Callable

__all__ = ["Lines"]

_CHUNK = 65536
_LONGEST = 65536
"""Bytes of a line; what is longer is told in pieces."""
_LAST_READS = 32
"""A pipe holds no more (pipe(7)), unless somebody goes on writing."""


class Lines:
    """The reading end of one child's output. `tell` hears each line, without its newline; it must not block.

    Must be made inside the running loop. `write_end` is for the child; close ours with `started()` once it has it.
    """

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._rest = b""
        self._loop.add_reader(self._read_end, self._readable)

    def started(self) -> None:
        """The child has its end (or never will): only its death, and that of all who inherited it, ends the output."""
        os.close(self.write_end)

    def close(self) -> None:
        """No more is read; what had no newline yet is told. What was printed until now is read first."""
        if self._read_end < 0:
            return
        for _ in range(_LAST_READS):
            if not self._readable():
                break
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
        self._read_end = -1
        if self._rest:
            self._tell(self._rest)
        self._rest = b""

    def _readable(self) -> bool:
        """Reads once; False when there is nothing to read now."""
        try:
            chunk = os.read(self._read_end, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._read_end)
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._tell(line)
        if len(self._rest) > _LONGEST:
            self._tell(self._rest)
            self._rest = b""
        return True
