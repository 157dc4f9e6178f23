"""What an agent is told in the answer to its heartbeat: a pure function of the Agent and that heartbeat.

Nothing is stored: a command's id is its type and cause, it is repeated until the heartbeat shows its effect, and
carrying it out twice is the same as once. Any replica, after any change of leader, gives the same answer.
"""

from roost.agents.view import Declared
from roost_agent.contract import Command, CommandType, Heartbeat, Status

DRAIN = "roost.dev/drain"


def commands(declared: Declared, revision: str | None, beat: Heartbeat) -> list[Command]:
    """The commands that are due; `revision` is the desired bundle's, None while its secrets can't be resolved."""
    if beat.status is Status.STOPPING or declared.paused:
        return []
    for cause, due in (
        ("deleted", declared.deleting),
        ("revoked", declared.revoked),
        ("desiredState", declared.spec.desired_state == "Stopped"),
    ):
        if due:
            return [Command(id=f"stop:{cause}", type=CommandType.STOP, reason=f"{cause} says so")]
    spec, found = declared.spec, []
    if revision is not None and beat.bundle_revision != revision:
        why = "its configuration has changed"
        found.append(Command(id=f"update_config:{revision}", type=CommandType.UPDATE_CONFIG, reason=why))
    version = spec.runtime.version
    if revision is not None and spec.runtime.kind == "OpenClaw" and beat.openclaw_version not in (None, version):
        why, command = "runtime.version has changed", f"update_version:{version}"
        if beat.last_command_id != command:  # else it was tried, and the agent has gone back
            found.append(Command(id=command, type=CommandType.UPDATE_VERSION, reason=why, version=version))
    if (at := spec.restarted_at) is not None and beat.restarted_at != at:
        why = "restartedAt has changed"
        found.append(Command(id=f"restart:{at}", type=CommandType.RESTART, reason=why, restarted_at=at))
    cause = declared.annotations.get(DRAIN, "false")
    if cause not in ("", "false") and beat.status is not Status.DRAINING:
        why, command = f"{DRAIN} is set: finish what has begun, begin nothing new", f"drain:{cause[:64]}"
        if beat.last_command_id != command:
            found.append(Command(id=command, type=CommandType.DRAIN, reason=why))
    return found
