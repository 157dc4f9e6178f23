"""What is done with an agent that has fallen silent: restart its machine, then move it, then ask a person. Pure.

Many that fall silent together are not ill: it is our endpoint that they can't reach, and nothing is done to them.
"""

from dataclasses import replace

from roost.agents import placement, storage
from roost.agents.view import (
    Act,
    AgentView,
    Attempts,
    MachineSight,
    RestartMachine,
    Step,
    Stuck,
    VolumeSight,
    Wait,
    World,
)
from roost.api.agent import Phase
from roost.api.conditions import Reason

HOUR_SECONDS = 3600.0
RESTARTS_BEFORE_MOVING = 2


def step(view: AgentView, machine: MachineSight, volume: VolumeSight, silent_for: float) -> Step:
    """The next thing to do for an agent that was silent for longer than its window."""
    spec, window = view.declared.spec, view.silence_window
    say = f"no heartbeat from machine {machine.id} for more than {window:.0f} s"
    if view.endpoint_suspect:
        return Wait(
            Phase.DEGRADED,
            Reason.ENDPOINT_UNREACHABLE,
            "many agents fell silent together, so nothing is restarted: check that machines can reach "
            f"{view.place.endpoint_url}",
            spec.heartbeat.interval_seconds,
        )
    if spec.recovery.on_unhealthy == "None":
        return Wait(Phase.DEGRADED, Reason.AGENT_SILENT, say + "; recovery.onUnhealthy is None", window)
    # One more interval, so that a silence of many shows itself before the first of them is restarted.
    grace = spec.heartbeat.interval_seconds - silent_for
    if grace > 0:
        return Wait(Phase.DEGRADED, Reason.AGENT_SILENT, say, grace)
    tried = attempts(view)
    if tried is not None and tried.count >= spec.recovery.max_per_hour:
        return Stuck(
            Phase.DEGRADED,
            Reason.RECOVERY_EXHAUSTED,
            f"{say}, and {spec.recovery.max_per_hour} attempts within an hour have not helped "
            "(recovery.maxPerHour); look into the machine: fly logs, fly ssh console",
            max(1.0, min(tried.since + HOUR_SECONDS - view.now, 300.0)),
        )
    moves = spec.recovery.on_unhealthy == "Relocate" and not storage.unforkable(view, volume)
    if moves and tried is not None and tried.count >= RESTARTS_BEFORE_MOVING:
        region = placement.choose(view, Phase.RECOVERING, near=volume.region)
        if isinstance(region, Act):
            return region
        if region is not None:
            return storage.copy(view, volume, region, Phase.RECOVERING)
    action = RestartMachine(machine.id, because=say)
    return Act(action, Phase.RECOVERING, f"restarting machine {machine.id}: {say}", Reason.RECOVERING)


def attempts(view: AgentView) -> Attempts | None:
    """What was tried within the last hour."""
    tried = view.world.attempts or view.remembered.attempts
    return tried if tried is not None and view.now - tried.since < HOUR_SECONDS else None


def counted(world: World, before: Attempts | None, because: str, now: float) -> World:
    """The world after one more attempt."""
    fresh = before is None or now - before.since >= HOUR_SECONDS
    tried = Attempts(1, now, because) if fresh or before is None else Attempts(before.count + 1, before.since, because)
    return replace(world, attempts=tried)
