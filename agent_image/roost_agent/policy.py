"""When a runtime that ended unasked is started again: pure, of how its last lives ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roost_agent.backoff import RESTARTS, Random

__all__ = ["LIVES", "Life", "Next", "Policy", "gateway", "steady"]

LIVES = 64
"""How many lives are remembered."""
_HEALTHY_SECONDS = 30.0
"""A runtime that was ready for so long starts with a clean record."""
_REFUSES = 78
"""EX_CONFIG of sysexits.h: its configuration or its state is not for this version. Another try ends the same way."""
_WINDOW_SECONDS = 600.0
_MOST_RESPAWNS = 5
"""So many ends in one window make a loop."""
_UNCLEAN_SECONDS = 300.0
_MOST_UNCLEAN = 2
"""A third unclean end within that time, and the gateway starts with its channels switched off."""
_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class Life:
    """How a life ended that nobody asked to end.

    Args:
        ended: When, in seconds of a monotonic clock.
        healthy: For how many seconds it had been ready; 0 if it never was.
        code: The exit code, None when a signal ended it.
        killed: It did not answer any more, and the supervisor had to kill it.
    """

    ended: float
    healthy: float
    code: int | None
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Next:
    """Start it again after so many seconds; None: not before something has changed. `trouble` is for the heartbeat."""

    seconds: float | None
    trouble: str | None = None


Policy = Callable[[Sequence[Life], Random], Next]
"""Takes the last lives, never none, the newest last."""


def steady(lives: Sequence[Life], _: Random) -> Next:
    """Any program: 1 s, doubling to 300 s, afresh after 30 s of being ready; exit 0 is no exception."""
    return Next(RESTARTS.seconds(_deaths(lives, _HEALTHY_SECONDS)))


def gateway(lives: Sequence[Life], random: Random) -> Next:
    """OpenClaw, by what its exit codes mean.

    78 is never followed by another start. 0 asks to be started again, and is at once, at most 5 times in 10 minutes.
    Everything else waits 1 s, doubling to 300 s, at most a fifth less by chance, afresh after 10 minutes of being ready
    (a start costs it 10 s of a core). What the supervisor itself had to kill is spaced so that no third kill falls into
    5 minutes.
    """
    last = lives[-1]
    if last.code == _REFUSES:
        return Next(None, "it refuses its configuration or its state (exit 78)")
    recent = [life for life in lives if last.ended - life.ended < _WINDOW_SECONDS]
    loop = f"it ended {len(recent)} times in 10 minutes" if len(recent) >= _MOST_RESPAWNS else None
    if last.code == 0 and sum(life.code == 0 for life in recent) <= _MOST_RESPAWNS:
        return Next(0.0, loop)
    seconds = RESTARTS.seconds(_deaths(lives, _WINDOW_SECONDS)) * (1 - _JITTER * random())
    kills = [life.ended for life in lives if life.killed][-_MOST_UNCLEAN:]
    if last.killed and len(kills) == _MOST_UNCLEAN:
        seconds = max(seconds, kills[0] + _UNCLEAN_SECONDS - last.ended)
    return Next(seconds, loop)


def _deaths(lives: Sequence[Life], enough: float) -> int:
    """How many times in a row it has now ended; a life that was healthy for long enough begins the count anew."""
    died = 0
    for life in lives:
        died = 1 if life.healthy >= enough else died + 1
    return died
