"""Copies OpenClaw's state database into one file that stands alone, with what its write-ahead log holds.

A program, not a module: it runs as the agent's user, since the database is the agent's to write. What a program that
was killed left in the log is in the copy. Only the standard library is on its path (python -I -S).
"""

import sqlite3
import sys

_BUSY_SECONDS = 5.0


def main(database: str, copy: str) -> None:
    with sqlite3.connect(database, timeout=_BUSY_SECONDS) as source, sqlite3.connect(copy) as target:
        source.backup(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
