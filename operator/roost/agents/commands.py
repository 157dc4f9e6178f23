"""What an agent is told in the answer to its heartbeat: a pure function of the Agent and that heartbeat.

Nothing is stored: a command's id is its type and cause, it is repeated until the heartbeat shows its effect, and
carrying it out twice is the same as once. Any replica, after any change of leader, gives the same answer.
"""

from roost.agents.view import Declared
from roost_agent.contract import Command, Heartbeat


def commands(declared: Declared, revision: str | None, beat: Heartbeat) -> list[Command]:
    """The commands that are due; `revision` is the desired bundle's, None while its secrets can't be resolved."""
    if beat.status in ("stopping", "stopped") or declared.paused:
        return []
    for cause, due in (
        ("deleted", declared.deleting),
        ("revoked", declared.revoked),
        ("desiredState", declared.spec.desired_state == "Stopped"),
    ):
        if due:
            return [Command(id=f"stop:{cause}", type="stop", reason=f"{cause} says so")]
    due_commands = []
    if revision is not None and beat.bundle_revision != revision:
        due_commands.append(
            Command(id=f"update_config:{revision}", type="update_config", reason="its configuration has changed")
        )
    wanted = declared.spec.restarted_at
    if wanted is not None and beat.restarted_at != wanted:
        due_commands.append(
            Command(id=f"restart:{wanted}", type="restart", reason="restartedAt has changed", restarted_at=wanted)
        )
    return due_commands
