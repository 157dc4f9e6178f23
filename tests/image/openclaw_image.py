"""An image of the tests with versions of OpenClaw that start in milliseconds: each is the stand-in under another name.

They lie as the real ones do, below ROOST_OPENCLAW_DIR, and ROOST_NODE is a program that runs them with this Python. A
version writes its schema into the state directory when it starts, and refuses one that is newer, as the real one does.
"""

import sys
from pathlib import Path
from typing import Any

from endpoint import OperatorDouble
from machine import Machine

STUB = Path(__file__).with_name("stub_gateway.py")
GATEWAY_TOKEN = "gateway-token-of-these-tests"

_ENTRY = """\
import json, os, pathlib, sqlite3, sys
VERSION, SCHEMA, FAILS = {version!r}, {schema}, {fails!r}
sys.path.insert(0, {folder!r})
words = sys.argv[1:]
if words[:2] == ["config", "validate"]:
    print(json.dumps({{"valid": True}}))
elif words[:2] == ["database", "preflight"]:
    found = sqlite3.connect(words[2]).execute("PRAGMA user_version").fetchone()[0]
    status = "exact" if found == SCHEMA else "migration-required" if found < SCHEMA else "incompatible"
    print(json.dumps({{"status": status, "foundVersion": found, "targetVersion": SCHEMA}}))
else:
    if words[:2] == ["gateway", "run"]:
        state = pathlib.Path(os.environ["OPENCLAW_STATE_DIR"], "state")
        state.mkdir(exist_ok=True)
        database = sqlite3.connect(state / "openclaw.sqlite")
        if database.execute("PRAGMA user_version").fetchone()[0] > SCHEMA:
            sys.exit(78)
        database.execute(f"PRAGMA user_version = {{SCHEMA}}")
        database.execute("CREATE TABLE IF NOT EXISTS lives (version)")
        database.execute("INSERT INTO lives VALUES (?)", (VERSION,))
        database.commit()
        database.close()
        if FAILS:
            sys.exit(FAILS)
    import stub_gateway
    stub_gateway.VERSION = VERSION
    stub_gateway.main()
"""
_NODE = """\
#!/bin/sh
case "$1" in
    --version) echo v24.21.0 ;;
    *check.mjs) echo '[]' ;;
    *) exec {python} "$@" ;;
esac
"""


def make(folder: Path, versions: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The image, and what the supervisor's environment says of it.

    Args:
        folder: Where it is made.
        versions: By version, `schema` (a number) and `fails` (the exit code of each start, 0 for none).
    """
    for version, said in versions.items():
        package = folder / "openclaw" / version / "node_modules" / "openclaw"
        package.mkdir(parents=True)
        given = {"schema": 18, "fails": 0} | said
        (package / "openclaw.mjs").write_text(_ENTRY.format(version=version, folder=str(STUB.parent), **given))
        (package / "package.json").write_text('{"engines": {"node": ">=24.16"}}')
        (folder / "openclaw" / version / "schema.json").write_text("{}")
    node = folder / "node"
    node.write_text(_NODE.format(python=sys.executable))
    node.chmod(0o755)
    return {"ROOST_OPENCLAW_DIR": str(folder / "openclaw"), "ROOST_NODE": str(node)}


def want(operator: OperatorDouble, version: str, **more: Any) -> None:
    """The operator's bundle is an agent of this version from now on; it wants to hear of it every second."""
    operator.next_seconds = 1
    given: dict[str, Any] = {
        "runtime": {"kind": "OpenClaw", "version": version},
        "model": {"default": "anthropic/claude-sonnet-4-6"},
        "secretEnv": {"OPENCLAW_GATEWAY_TOKEN": GATEWAY_TOKEN},
        "heartbeat": {"intervalSeconds": 1},
    }
    operator.change(**(given | more))


def quick(seconds: float) -> tuple[str, ...]:
    """What `Machine.run` starts instead: a supervisor for which a new version has proved itself after so long."""
    program = (
        f"import roost_agent.update as u; u._PROOF_SECONDS = {seconds}; u._GATE_SECONDS = 10.0; "
        "from roost_agent.__main__ import main; main()"
    )
    return (sys.executable, "-c", program)


def lives(machine: Machine) -> list[str]:
    """The versions that have run with the state that lies on the volume, in their order."""
    import sqlite3

    database = sqlite3.connect(machine.data / "openclaw" / "state" / "openclaw.sqlite")
    try:
        return [row[0] for row in database.execute("SELECT version FROM lives ORDER BY rowid")]
    finally:
        database.close()
