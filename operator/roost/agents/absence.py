"""When something at Fly may be believed to be absent, and when what is wrong there is looked at again. Pure.

Lists lag behind and have been empty by mistake, so one that leaves something out proves nothing: two do, some time
apart, and both so late that a create whose answer was lost would show by then.
"""

from roost.agents.view import Act, AgentView, MachineSight, Step, VolumeSight, Wait

LOOKS_APART_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 200.0
"""Less than `SLOW_SECONDS` with its jitter: whoever is woken after that looks before it says the same again."""
DOUBT_AFTER = 6
"""A volume stays bound for a while after its machine is gone; so many refusals later, the machine is looked at."""

HOST_PAUSE_SECONDS = 30.0

Looks = tuple[float, ...]


def settled_at(view: AgentView) -> float:
    """From when on Fly's lists show everything that we, or a process before us, may ever have made."""
    quiet = view.world.quiet_since
    return 0.0 if quiet is None else quiet + view.absence_seconds


def proven(view: AgentView, looks: Looks) -> bool:
    """Whether the last two looks that found nothing are proof."""
    return len(looks) >= 2 and looks[-2] >= settled_at(view) and looks[-1] - looks[-2] >= LOOKS_APART_SECONDS


def next_look(view: AgentView, looks: Looks) -> float:
    """When the next look is worth its call."""
    return max(settled_at(view), looks[-1] + LOOKS_APART_SECONDS if looks else 0.0)


def patient(view: AgentView, move: Step) -> Step:
    """Instead of a look that can't prove anything yet: a wait until it can, or until a person asks for a look.

    A thing that shows in a list meanwhile makes the planner go on by itself.
    """
    failure = view.world.failure
    late = failure.late if failure is not None else None
    if failure is None or late is None or not isinstance(move, Act) or move.action != late.look:
        return move
    if late.at < view.nudged_at or late.until <= view.now:
        return move
    return Wait(move.phase, failure.reason, failure.message, late.until - view.now)


def look_due(view: AgentView, looked_at: float | None) -> bool:
    """Whether what only a person can heal was looked at so long ago that it may be healed by now.

    Or before a person asked for a look (roost.dev/reconcile-at).
    """
    return looked_at is None or looked_at < view.nudged_at or view.now - looked_at >= LOOK_AGAIN_SECONDS


def back_due(view: AgentView, sight: MachineSight | VolumeSight) -> bool:
    """Whether it is time to look if a host that was out of reach is back: no list tells."""
    return not sight.host_ok and view.now - sight.seen_at >= HOST_PAUSE_SECONDS
