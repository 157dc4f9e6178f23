"""Prints the pairing codes that stand in OpenClaw's state database, as JSON: [[channel, account, sender, code], …].

A program, not a module: it runs as the agent's user, since the database is the agent's to write. Whatever lies there in
its place (a link, a pipe, a schema that never ends) it can reach no more than the agent can, and is killed when it
takes too long. Only the standard library, and nothing of the agent's, is on its path (python -I -S).
"""

import json
import sqlite3
import sys
from pathlib import Path

_MOST = 100
_LONGEST = 256
_BUSY_SECONDS = 2.0


def main(database: str) -> None:
    found = sqlite3.connect(f"{Path(database).as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
    rows = found.execute(
        "SELECT channel_key, account_id, request_id, code FROM channel_pairing_requests LIMIT ?", (_MOST,)
    )
    json.dump([[str(cell)[:_LONGEST] for cell in row] for row in rows], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
