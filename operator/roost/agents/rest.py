"""Rest for idleness: when an agent may rest, and what wakes it. Pure.

Only what the agent itself says counts: no session, no connection, no run soon, and nothing of it for as long as the
spec asks. One that does not say is never put to rest. A rest is written in the status before it begins, so that a
machine that is down on purpose is told from one that fell, by whatever process finds it; if that is lost, the agent is
started, and rests again in its time.
"""

from roost.agents.view import AgentView, Beat, IdleRest, MachineSight

WAKE_BEFORE_SECONDS = 120.0
"""How long before its next run an agent is woken."""
RUN_SOON_SECONDS = WAKE_BEFORE_SECONDS + 300.0
"""A rest that would be shorter is not worth it."""
SAME_ALARM_SECONDS = 2.0
"""The status tells whole seconds."""
WAKE = "roost.dev/wake"


def in_force(view: AgentView, machine: MachineSight) -> IdleRest | None:
    """The rest that a machine which is down is in; None when something has ended it."""
    known = [idle for idle in (view.world.idle, view.remembered.idle) if idle is not None]
    idle = max(known, key=lambda idle: idle.since, default=None)
    if idle is None or view.declared.spec.idle.action == "None":
        return None
    ended = (
        (view.started_at(machine) or 0.0) > idle.since
        or idle.generation != view.declared.generation
        or idle.wake != view.declared.annotations.get(WAKE, "")
        or (idle.wake_at is not None and view.now >= idle.wake_at)
    )
    return None if ended else idle


def due(view: AgentView, machine: MachineSight, beat: Beat) -> IdleRest | float | None:
    """The rest to begin now, or in how many seconds it may be time; None when the agent is not to rest.

    What woke it counts as activity: it is not put back to rest at once.
    """
    spec = view.declared.spec
    if spec.idle.action == "None" or not says(beat) or _deaf(view):
        return None
    if beat.active_sessions or beat.connections:
        return float(spec.idle.after_seconds)
    if beat.next_run_at is not None and beat.next_run_at - view.now < RUN_SOON_SECONDS:
        return max(beat.next_run_at - view.now, 1.0) + spec.idle.after_seconds
    active = max(beat.last_activity_at or 0.0, view.started_at(machine) or 0.0, view.listening_since)
    left = active + spec.idle.after_seconds - view.now
    if left > 0:
        return left
    wake_at = None if beat.next_run_at is None else beat.next_run_at - WAKE_BEFORE_SECONDS
    return IdleRest(view.now, wake_at, view.declared.generation, view.declared.annotations.get(WAKE, ""))


def noted(view: AgentView, machine: MachineSight, resting: IdleRest) -> bool:
    """Whether the status says already that this rest is to begin."""
    told = view.remembered.idle
    if told is None or (told.generation, told.wake) != (resting.generation, resting.wake):
        return False
    same_alarm = abs((told.wake_at or 0.0) - (resting.wake_at or 0.0)) < SAME_ALARM_SECONDS
    return same_alarm and told.since >= (view.started_at(machine) or 0.0)


def says(beat: Beat) -> bool:
    """Whether the agent tells at all if it has something to do."""
    return beat.active_sessions is not None or beat.connections is not None


def _deaf(view: AgentView) -> bool:
    spec = view.declared.spec
    return not spec.idle.allow_deaf and not (spec.machine.autostart and spec.machine.public != "None")
