"""Whether a version of OpenClaw takes a configuration: asked before it is written, since one bad key means no start.

`problems` costs 0.3 s of a short-lived process, and no memory of the supervisor's: fast enough for every change.
`refusals` asks OpenClaw itself, which also knows the rules that no schema can say, and costs 2 to 3 s: for a change
that starts the process anew anyway. Neither touches the state on the volume.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roost_agent.runtime import Ran, Run
from roost_agent.runtime.openclaw.versions import Installed

__all__ = ["problems", "refusals"]

_PROGRAM = Path(__file__).with_name("check.mjs")
_SECONDS = 20.0
_SECONDS_OF_ITS_OWN = 60.0
_MOST_CHARACTERS = 300


async def problems(config: Mapping[str, Any], installed: Installed, *, run: Run) -> list[str]:
    """What the schema and the catalogues of this version have against the configuration, as "path: message".

    No message holds a value of the configuration, except the name of a model.

    Raises:
        OSError: that can't be found out now.
    """
    with tempfile.TemporaryDirectory(prefix="roost-check-") as directory:
        file = await asyncio.to_thread(_written, Path(directory), config)
        argv = [str(installed.node), str(_PROGRAM), str(installed.entry), str(installed.schema), str(file)]
        ran = await _run(run, argv, Path(directory), _SECONDS)
    if ran.code != 0:
        raise OSError(f"the configuration can't be checked: {_last_line(ran)}")
    found = json.loads(ran.stdout)
    return [str(line)[:_MOST_CHARACTERS] for line in found]


async def refusals(config: Mapping[str, Any], installed: Installed, *, run: Run) -> list[str]:
    """What this version itself has against the configuration, as "path: message".

    Raises:
        OSError: that can't be found out now.
    """
    with tempfile.TemporaryDirectory(prefix="roost-check-") as directory:
        await asyncio.to_thread(_written, Path(directory), config)
        argv = [str(installed.node), str(installed.entry), "config", "validate", "--json"]
        ran = await _run(run, argv, Path(directory), _SECONDS_OF_ITS_OWN)
    try:
        said = json.loads(ran.stdout)
        valid, issues = said["valid"], said.get("issues", [])
    except (ValueError, KeyError, TypeError):
        raise OSError(f"the configuration can't be checked: {_last_line(ran)}") from None
    if valid:
        return []
    return [f"{i.get('path')}: {i.get('message')}"[:_MOST_CHARACTERS] for i in issues] or ["openclaw.json: is refused"]


def _written(directory: Path, config: Mapping[str, Any]) -> Path:
    file = directory / "openclaw.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


async def _run(run: Run, argv: Sequence[str], directory: Path, seconds: float) -> Ran:
    env = {
        "PATH": os.defpath,
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "NO_COLOR": "1",
        "OPENCLAW_STATE_DIR": str(directory),
        "OPENCLAW_CONFIG_PATH": str(directory / "openclaw.json"),
    }
    try:
        return await run(argv, env=env, cwd=directory, user=None, seconds=seconds)
    except TimeoutError:
        raise OSError(f"the configuration can't be checked: no answer within {seconds:.0f} s") from None


def _last_line(ran: Ran) -> str:
    """Of what it printed, without what a stack trace might quote."""
    lines = [line for line in ran.stderr.decode(errors="replace").splitlines() if "Error" in line]
    return (lines[0] if lines else f"exit code {ran.code}")[:_MOST_CHARACTERS]
