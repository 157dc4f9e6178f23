"""What an agent says about itself, and what it is asked to do.

A heartbeat is hostile input to the operator: every string, list and number is bounded, every word that may reach a
status or a label is of a closed list. The endpoint bounds the body itself with `MAX_HEARTBEAT_BYTES`, since fields that
are not known here are kept.
"""

from typing import Annotated

from pydantic import Field

from roost_agent.contract.wire import Count, Line, RestartedAt, Time, Version, Wire, Word

__all__ = [
    "MAX_HEARTBEAT_BYTES",
    "MAX_WAIT_SECONDS",
    "BootPhase",
    "ChannelReport",
    "ChannelState",
    "Command",
    "CommandType",
    "Disk",
    "Heartbeat",
    "HeartbeatAnswer",
    "LastExit",
    "ProcessState",
    "RuntimeState",
    "Status",
]

MAX_HEARTBEAT_BYTES = 16 * 1024
MAX_WAIT_SECONDS = 25
"""The longest that the answer to a heartbeat is held open (`?wait=`)."""

Identifier = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9:._+-]*$")]
Cause = Annotated[str, Field(max_length=128, pattern=r"^[\x20-\x7e]*$")]


class Status(Word):
    """The supervisor in one word. Degraded: it runs, but something in `degraded` needs attention, or it crashes.

    Draining: it finishes what it has begun and takes on nothing new.
    """

    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    DRAINING = "draining"
    STOPPING = "stopping"
    UNKNOWN = "unknown"


class BootPhase(Word):
    """The steps of the boot in their order; `done` from then on."""

    ENVIRONMENT = "environment"
    HEALTH = "health"
    BUNDLE = "bundle"
    KILL_SWITCH = "killSwitch"
    INSTALL = "install"
    CONFIGURE = "configure"
    START = "start"
    HEARTBEAT = "heartbeat"
    CONTROL = "control"
    PAIRING = "pairing"
    DONE = "done"
    UNKNOWN = "unknown"


class ProcessState(Word):
    """The runtime's process. Crashed: it ended unasked and waits for its next start."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


class CommandType(Word):
    STOP = "stop"
    RESTART = "restart"
    UPDATE_CONFIG = "update_config"
    UPDATE_VERSION = "update_version"
    DRAIN = "drain"
    UNKNOWN = "unknown"


class LastExit(Wire):
    """How the runtime last ended: an exit code, or the number of the signal that ended it."""

    code: Annotated[int, Field(ge=0, le=255)] | None = None
    signal: Annotated[int, Field(ge=1, le=64)] | None = None
    at: Time


class RuntimeState(Wire):
    """The runtime's process; `restarts` counts starts after an end nobody asked for, since the supervisor's start."""

    state: ProcessState = Field(strict=False)
    pid: Annotated[int, Field(ge=1, le=2**22)] | None = None
    restarts: Count = 0
    last_exit: LastExit | None = None


class ChannelState(Word):
    """A messenger as the runtime sees it. Suppressed: the runtime has given up on it after bad starts."""

    CONNECTED = "connected"
    CONNECTING = "connecting"
    STOPPED = "stopped"
    FAILED = "failed"
    SUPPRESSED = "suppressed"
    DISABLED = "disabled"
    UNKNOWN = "unknown"


class ChannelReport(Wire):
    """How a messenger does, and what went wrong last."""

    state: ChannelState = Field(strict=False)
    last_error: Line | None = None


class Disk(Wire):
    """The data volume, in bytes."""

    used_bytes: Count
    total_bytes: Count


class Heartbeat(Wire):
    """One heartbeat. The first six fields are all that an agent of the seed systems sends.

    `machine_version` is Fly's id of the machine's configuration (FLY_MACHINE_VERSION): it tells a heartbeat from before
    an update from one after it. `memory_mb` is the supervisor's resident set in MiB, `bundle_revision` the last one
    applied in full, `restarted_at` the bundle's value that is in effect, `last_command_id` the last one carried out,
    `pending_pairings` how many people wait for leave to write to it.

    The last four tell whether the agent is busy, and each may be None: the agent does not know, or does not say. None
    is never zero. `active_sessions` and `next_scheduled_run_at` are the runtime's own word, the latter as old as the
    runtime left it, perhaps in the past. `last_activity_at` is the later of the runtime's word and the last moment at
    which the supervisor saw a connection; it moves only with activity. `connections` counts the TCP connections that
    are open from elsewhere to the ports on which the runtime listens.
    """

    status: Status = Field(strict=False)
    openclaw_version: Version | None = None
    machine_id: Identifier
    machine_version: Identifier | None = None
    uptime_seconds: Count
    memory_mb: Count
    compute_version: Version
    bundle_revision: Identifier | None = None
    boot_phase: BootPhase = Field(default=BootPhase.UNKNOWN, strict=False)
    ready: bool = False
    degraded: Annotated[list[Line], Field(max_length=16)] = Field(default_factory=list)
    runtime: RuntimeState | None = None
    restarted_at: RestartedAt | None = None
    disk: Disk | None = None
    last_command_id: Cause | None = None
    channels: Annotated[dict[Identifier, ChannelReport], Field(max_length=16)] = Field(default_factory=dict)
    pending_pairings: Count | None = None
    active_sessions: Count | None = None
    last_activity_at: Time | None = None
    next_scheduled_run_at: Time | None = None
    connections: Count | None = None


class Command(Wire):
    """Something the agent is asked to do, repeated until a heartbeat shows its effect. The id is type and cause.

    `restarted_at` is of a restart, `version` of an update_version.
    """

    id: Annotated[Cause, Field(min_length=1)]
    type: CommandType = Field(strict=False)
    reason: Annotated[str, Field(max_length=300)] = ""
    restarted_at: RestartedAt | None = None
    version: Version | None = None


class HeartbeatAnswer(Wire):
    """The answer to a heartbeat; without `next_heartbeat_seconds` the bundle's interval stays in force."""

    commands: Annotated[list[Command], Field(max_length=16)] = Field(default_factory=list)
    next_heartbeat_seconds: int | None = None
