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
    return [c for c in _wanted(declared, revision) if not _in_effect(c, revision, beat)]


def _wanted(declared: Declared, revision: str | None) -> list[Command]:
    """What this Agent is to do, whether it has done so already or not."""
    spec, found = declared.spec, []
    if revision is not None:
        why = "its configuration has changed"
        found.append(Command(id=f"update_config:{revision}", type=CommandType.UPDATE_CONFIG, reason=why))
    if revision is not None and spec.runtime.kind == "OpenClaw":
        version, why = spec.runtime.version, "runtime.version has changed"
        found.append(
            Command(id=f"update_version:{version}", type=CommandType.UPDATE_VERSION, reason=why, version=version)
        )
    if (at := spec.restarted_at) is not None:
        why = "restartedAt has changed"
        found.append(Command(id=f"restart:{at}", type=CommandType.RESTART, reason=why, restarted_at=at))
    if (cause := declared.annotations.get(DRAIN, "false")) not in ("", "false"):
        why = f"{DRAIN} is set: finish what has begun, begin nothing new"
        found.append(Command(id=f"drain:{cause[:64]}", type=CommandType.DRAIN, reason=why))
    return found


def _in_effect(command: Command, revision: str | None, beat: Heartbeat) -> bool:
    """Whether the heartbeat shows what the command asks for.

    An agent that knows no version, or has tried the new one and gone back, is not asked for it again and again.
    """
    match command.type:
        case CommandType.UPDATE_CONFIG:
            return beat.bundle_revision == revision
        case CommandType.UPDATE_VERSION:
            return beat.openclaw_version in (None, command.version) or beat.last_command_id == command.id
        case CommandType.RESTART:
            return beat.restarted_at == command.restarted_at
        case _:
            return beat.status is Status.DRAINING or beat.last_command_id == command.id
