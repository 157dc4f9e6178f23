"""Where the Agent's next volume is made: the first region of its list that has room and has not just refused. Pure.

Volumes take one region and no alias, so an alias is opened by asking Fly where there is room. A list of several is
asked about one after the other, in the order that the user gave, and the answers are shared by everybody for a while.
A single region is not asked about: making the volume says the same.
"""

from roost.agents.view import Act, AgentView, AskRoom
from roost.api.agent import Phase

ALIASES = frozenset({"apac", "eu", "na", "sa", "us", "usa", "any"})
"""Fly's names for several regions (Fly docs, machine placement)."""
REFUSED_SECONDS = 240.0
"""For so long a region that had no room is left alone; less than `SLOW_SECONDS` with its jitter."""


def choose(view: AgentView, phase: Phase, *, near: str | None = None, sure: bool = False) -> Act | str | None:
    """The region for the next volume, or the question that must be asked first; None when there is no room anywhere.

    Args:
        view: the Agent.
        phase: of the question, when one is asked.
        near: a region to try first.
        sure: ask even where one region is the only choice: something is given up for the new volume.
    """
    wanted = tuple(dict.fromkeys([near, *view.place.regions] if near else view.place.regions))
    ask = sure or len(wanted) > 1 or wanted[0] in ALIASES
    for region in wanted:
        if ask and region not in view.room:
            return Act(AskRoom(region), phase, f"asking Fly for room in {region}")
        room = view.room[region] if ask else (region,)
        if room is None:  # Fly could not tell: making the volume will
            room = () if region in ALIASES else (region,)
        for code in room:
            if not _refused(view, code):
                return code
    return None


def unknown(view: AgentView) -> bool:
    """Whether Fly could not tell what stands behind an alias: then "no room" is not known either."""
    return any(region in ALIASES and view.room.get(region, ()) is None for region in view.place.regions)


def _refused(view: AgentView, region: str) -> bool:
    """Whether it had no room a moment ago, and nobody has asked for another look since."""
    since = max(view.now - REFUSED_SECONDS, view.nudged_at)
    return any(code == region and at > since for code, at in view.world.refused)
