"""Knows whether a configuration that was written while the gateway runs is in effect.

OpenClaw sees the file change within about 0.6 s, and has taken it up after another 0.3 s. It says so by `config.get`:
the file as it reads it, whether that is valid, and the revisions of the file and of what is in effect. An invalid file
is passed over, and the gateway goes on with what it had.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from roost_agent.runtime import Refused
from roost_agent.runtime.openclaw.gateway import Gateway, GatewayError

__all__ = ["reloaded"]

_LOOK_SECONDS = 0.2
_STALE_SECONDS = 2.0
"""It may answer of an earlier file for so long, and of an invalid one it shows nothing by which to know it."""
_REDACTED = "__OPENCLAW_REDACTED__"
"""What stands in the answer for a value that may be a secret; `${NAME}` is shown as it is."""
_MOST_ISSUES = 3
_LONGEST_ISSUE = 200


async def reloaded(gateway: Gateway, config: Mapping[str, Any], seconds: float) -> None:
    """Returns when the running gateway has taken up this configuration, which already lies in its file.

    Raises:
        Refused: it reads the file and does not take it; it goes on with what it had.
        TimeoutError: not in effect after so many seconds: it waits for work under way, or can't apply it.
        GatewayAway: it ended, as it does by itself (exit 0) for a change that needs a new start.
        GatewayError: it refused to tell.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        async with asyncio.timeout(seconds):
            while True:
                # No answer is no sign that it ended: it may be at work, and is waited for until the limit.
                said = await _config(gateway, seconds)
                if said is not None and _in_effect(said, config, certain=clock() - began > _STALE_SECONDS):
                    return
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"openclaw.json is not in effect after {seconds:g} s") from None


async def _config(gateway: Gateway, seconds: float) -> Mapping[str, Any] | None:
    """What it says of its configuration; None while it says nothing, as when it drains."""
    try:
        return await gateway.call("config.get", seconds=seconds)
    except GatewayError as error:
        if error.retry_after is None:
            raise
        return None


def _in_effect(said: Mapping[str, Any], config: Mapping[str, Any], *, certain: bool) -> bool:
    if certain and said.get("valid") is False:
        raise Refused(f"openclaw.json {_issues(said.get('issues'))}: correct the bundle")
    revision = said.get("configRevisionHash")
    # Until it has seen that the file is another one, it answers of the one before, which is in effect.
    return (
        _shows(said.get("parsed"), config) and isinstance(revision, str) and revision == said.get("appliedConfigHash")
    )


def _shows(shown: object, wanted: object) -> bool:
    """What the gateway shows is this, as far as it shows it."""
    if shown == _REDACTED:
        return True
    if isinstance(wanted, Mapping):
        return (
            isinstance(shown, Mapping)
            and shown.keys() == wanted.keys()
            and all(_shows(shown[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, list | tuple):
        return isinstance(shown, list) and len(shown) == len(wanted) and all(map(_shows, shown, wanted))
    return shown == wanted


def _issues(said: object) -> str:
    found = [issue for issue in said if isinstance(issue, dict)] if isinstance(said, list) else []
    texts = [
        f"{issue.get('path') or 'whole'}: {issue.get('message')}"[:_LONGEST_ISSUE] for issue in found[:_MOST_ISSUES]
    ]
    return "; ".join(texts) or "is not taken"
