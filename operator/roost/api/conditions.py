"""The closed list of condition types and reasons, each with the sentence that the reference page shows.

Conditions are for people and their tools: Ready says whether it works, the others say which part does not. A reason is
one word that never changes its meaning; the message beside it carries names and remedies. Pure names, no behaviour.
"""

from enum import StrEnum
from typing import Self


class _Documented(StrEnum):
    """A word with its sentence."""

    doc: str

    def __new__(cls, value: str, doc: str) -> Self:
        word = str.__new__(cls, value)
        word._value_ = value
        word.doc = doc
        return word


class ConditionType(_Documented):
    """What a condition speaks about; the sentence says what True means."""

    READY = (
        "Ready",
        "It is as declared and works: a running agent answers, a stopped or revoked one is down, each member of a "
        "Fleet is Ready, each required key of a Secret is there.",
    )
    SECRETS_RESOLVED = "SecretsResolved", "Every reference to a Secret was found."
    VOLUME_READY = "VolumeReady", "Fly confirms the volume and it is as declared."
    MACHINE_READY = "MachineReady", "Fly confirms the machine and it is as declared."
    CONFIG_APPLIED = "ConfigApplied", "The agent runs the configuration that is desired now."
    AGENT_HEALTHY = "AgentHealthy", "Heartbeats arrive in time and say that the agent is healthy."
    RECONCILING = "Reconciling", "Something is moving towards what is declared; never together with Stalled."
    STALLED = "Stalled", "It can't go on until a person changes something; the message says what."
    DESTROY_STUCK = "DestroyStuck", "Deletion takes too long: the message says what is left at Fly and why."
    ROTATING = "Rotating", "A staged rotation goes from Agent to Agent."
    PROGRESSING = "Progressing", "Members are being made, changed or removed."


AGENT_CONDITIONS = (
    ConditionType.READY,
    ConditionType.SECRETS_RESOLVED,
    ConditionType.VOLUME_READY,
    ConditionType.MACHINE_READY,
    ConditionType.CONFIG_APPLIED,
    ConditionType.AGENT_HEALTHY,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
    ConditionType.DESTROY_STUCK,
)
FLEET_CONDITIONS = (
    ConditionType.READY,
    ConditionType.PROGRESSING,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
)
SECRET_CONDITIONS = (
    ConditionType.READY,
    ConditionType.ROTATING,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
)


class Reason(_Documented):
    """Why a condition is as it is; also the reason of the events that tell of a change."""

    # As declared.
    AS_EXPECTED = "AsExpected", "Nothing is wrong and nothing is moving."
    RUNNING = "Running", "The agent runs and is ready."
    STOPPED = "Stopped", "The machine is stopped, as desiredState says."
    SUSPENDED = "Suspended", "The machine is suspended, as desiredState says."
    IDLE = "Idle", "The agent has nothing to do and rests; an edit, traffic, its next run or roost.dev/wake wakes it."
    REVOKED = "Revoked", "The kill switch is on: the machine is stopped and its configuration holds no secret."
    PAUSED = "Paused", "Nothing is changed until spec.paused is false again."

    # On the way.
    PENDING = "Pending", "It has been seen and work on it begins."
    PROVISIONING = "Provisioning", "Its app, volume or machine is being made."
    STARTING = "Starting", "The machine starts, or has started and its agent has not said ready yet."
    UPDATING = "Updating", "A change of the spec is on its way to the machine or the agent."
    STOPPING = "Stopping", "The machine is being stopped."
    SUSPENDING = "Suspending", "The machine is being suspended."
    RECOVERING = "Recovering", "The agent was silent for too long and is being brought back."
    RESTORING = "Restoring", "The volume is being made from a snapshot."
    RELOCATING = "Relocating", "The volume is being copied to another host, and its machine follows."
    TERMINATING = "Terminating", "It is being deleted and its machine, volume and app with it."
    WAITING_FOR_FLY = "WaitingForFly", "Fly was asked and has not finished yet."
    NOT_NEEDED = "NotNeeded", "There is nothing to say of this while it is down on purpose."

    # The agent inside.
    WAITING_FOR_AGENT = "WaitingForAgent", "The machine is up and its first heartbeat has not arrived yet."
    AGENT_NOT_READY = "AgentNotReady", "Heartbeats arrive and say that the agent is not ready."
    DEGRADED = "Degraded", "The agent runs and reports that something in it does not work."
    AGENT_SILENT = "AgentSilent", "Heartbeats have stopped for longer than spec.heartbeat allows."
    RECOVERY_EXHAUSTED = (
        "RecoveryExhausted",
        "As many attempts as spec.recovery allows within an hour have not brought the agent back.",
    )
    ENDPOINT_UNREACHABLE = (
        "EndpointUnreachable",
        "Many agents fell silent together, so it is our endpoint that can't be reached: nothing is restarted for it.",
    )
    UNHEARD = "Unheard", "This operator started a short while ago and has not heard or seen it yet."

    # Secrets.
    RESOLVED = "Resolved", "Every referenced Secret and key was found."
    NO_REFERENCES = "NoReferences", "It refers to no Secret."
    RESOLVING = "Resolving", "The Secrets it refers to are being read."
    SECRET_MISSING = "SecretMissing", "A Secret that is referred to does not exist; the message says which."
    SECRET_KEY_MISSING = "SecretKeyMissing", "A Secret exists and lacks a key; the message says which."
    SECRET_FORBIDDEN = (
        "SecretForbidden",
        "The operator may not read a Secret; the message says which permission it lacks.",
    )

    SECRET_KEY_INVALID = (
        "SecretKeyInvalid",
        "A key's value is not text, or not what spec.keys asks for; the message says which key, never the value.",
    )
    SECRET_NOT_OFFERED = (
        "SecretNotOffered",
        "A Secret of the name exists and its spec.availableTo leaves this Agent out.",
    )
    CONFIG_MAP_MISSING = "ConfigMapMissing", "A ConfigMap that is referred to does not exist, or lacks a key."
    BOT_TOKEN_TAKEN = (
        "BotTokenTaken",
        "An older Agent has the same bot token: a bot answers to one, so this one does not get it.",
    )
    SECRET_OLD = "SecretOld", "The values are older than spec.rotation.maxAgeDays; they still serve."
    SECRET_ROTATING = "SecretRotating", "The new values go from Agent to Agent; the message says where they are."
    ROTATION_STOPPED = (
        "RotationStopped",
        "An Agent did not become Ready with the new values; the others keep the old ones until it does.",
    )
    SECRET_DELETED = "SecretDeleted", "A Secret was deleted while Agents use it; they keep what they have."

    # Volume.
    VOLUME_CREATING = "VolumeCreating", "The volume is being made."
    VOLUME_ATTACHED = "VolumeAttached", "The volume exists and is as declared."
    VOLUME_EXTENDING = "VolumeExtending", "The volume is growing to spec.volume.sizeGb."
    VOLUME_LOST = "VolumeLost", "The volume is gone at Fly and its data with it; nothing empty takes its place unasked."

    RESTORE_REFUSED = (
        "RestoreRefused",
        "What volume.restoreFrom asks for can't be done; the message says why, and no volume in use is ever replaced.",
    )
    SNAPSHOT_NOT_FOUND = (
        "SnapshotNotFound",
        "The snapshot of volume.restoreFrom is not at Fly: it never was, has expired, or belongs to somebody else.",
    )
    HOST_LOST = "HostLost", "The host of the volume can't be reached; Fly brings it back, or the agent moves if it may."

    # Machine.
    MACHINE_CREATING = "MachineCreating", "The machine is being made."
    MACHINE_STARTED = "MachineStarted", "The machine runs with the declared configuration."
    MACHINE_STOPPED = "MachineStopped", "The machine is stopped."
    MACHINE_FAILED = "MachineFailed", "The machine ended or could not start; the message has its last exit."
    IMAGE_NOT_FOUND = "ImageNotFound", "Fly can't pull the image: correct spec.machine.image."
    DUPLICATE_MACHINES = (
        "DuplicateMachines",
        "Several machines say that they are this Agent's; the best is kept, the others are named and left alone.",
    )
    DUPLICATE_VOLUMES = (
        "DuplicateVolumes",
        "Several volumes carry this Agent's volume name; the one in use is kept, the others are named and left alone.",
    )
    CLUSTER_MOVED = (
        "ClusterMoved",
        "The machine belongs to the same Roost in another cluster: it is only read until the settings' "
        "adoptFromCluster names that cluster.",
    )
    FOREIGN_MACHINE = "ForeignMachine", "A machine of the derived name is not ours; it is left alone."

    # Configuration.
    CONFIG_CURRENT = "ConfigCurrent", "The agent runs the desired configuration."
    CONFIG_PENDING = "ConfigPending", "The agent has not taken up the desired configuration yet."
    CONFIG_FAILED = "ConfigFailed", "The agent could not apply the desired configuration."
    LOW_MEMORY = (
        "LowMemory",
        "The machine has less memory than its runtime is known to need; the message says how much.",
    )
    SPEC_INVALID = "SpecInvalid", "This version of the operator can't read the spec; the message names the field."

    # Fly says no.
    FLY_UNAUTHORIZED = "FlyUnauthorized", "Fly refuses the token: renew it in the Secret that the settings name."
    FLY_TOKEN_MISSING = "FlyTokenMissing", "There is no Fly token for this credential."
    FLY_UNAVAILABLE = "FlyUnavailable", "Fly can't be reached or fails; it is tried again more and more slowly."
    FLY_RATE_LIMITED = "FlyRateLimited", "Fly asks us to slow down."
    FLY_INVALID = "FlyInvalid", "Fly refuses the request as it stands; the message has its words."
    FLY_CONFLICT = "FlyConflict", "Something else changed the same thing at Fly; it is looked at again."
    FLY_UNKNOWN = "FlyUnknown", "A call to Fly was sent and its outcome is not known; we look before we act again."
    CAPACITY_EXHAUSTED = "CapacityExhausted", "No room in the regions of spec.placement: add regions or wait."
    QUOTA_EXCEEDED = "QuotaExceeded", "The org's quota at Fly is used up: ask Fly to raise it or free something."
    APP_NAME_TAKEN = "AppNameTaken", "The app's name belongs to somebody else: set spec.fly.app on a new Agent."
    APP_NOT_FOUND = "AppNotFound", "The shared app of spec.fly.app does not exist: create it or name another."
    FOREIGN_APP = "ForeignApp", "The app of this name belongs to another org; it is left alone."

    # Deletion.
    DESTROY_BLOCKED = "DestroyBlocked", "Something not ours is in the way of deletion; the message names it."
    DESTROY_FAILING = "DestroyFailing", "Fly keeps refusing a step of the deletion; the message has its words."

    # Fleets.
    ALL_READY = "AllReady", "Every member runs the template and is ready."
    SCALING = "Scaling", "Members are being made or removed."
    ROLLING_OUT = "RollingOut", "Members are being changed to the template, one after the other."
    MEMBERS_NOT_READY = "MembersNotReady", "The members are in place and some are not ready; the message names them."
    MEMBER_FAILED = "MemberFailed", "A member can't go on without a person; the message names it."
    MEMBER_REFUSED = "MemberRefused", "The API server refused a member; the message has its words."
    MEMBER_NOT_OURS = "MemberNotOurs", "An Agent with a member's name exists and does not belong to this Fleet."


def reason(word: str) -> Reason:
    """The reason of this word.

    Raises:
        ValueError: it is not in the list.
    """
    found = Reason._value2member_map_.get(word)
    if not isinstance(found, Reason):
        raise ValueError(f"{word} is no reason of the documented list")
    return found
