"""The status of an Agent: what became true, for people, kstatus, Argo CD and Flux. Pure.

Every condition is set on the first visit, Unknown where nothing is known. `lastTransitionTime` moves on flips only,
messages carry no counters or times that churn, no secret value ever gets here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from roost.agents import machine_config, recovery, rest, storage
from roost.agents.plan import app_is_ours, beat_of, machine_of
from roost.agents.view import AgentView, Beat, MachineSight, Settled, Step, Stuck, VolumeSight, Wait
from roost.api.agent import Phase
from roost.api.conditions import Reason, reason
from roost.kube.objects import MESSAGE_LENGTH, condition, new_condition

Status = dict[str, Any]
Verdict = tuple[str, Reason, str]
STUCK_AFTER_SECONDS = 900.0
SAME_SECONDS = 5.0
_READY = frozenset({Phase.RUNNING, Phase.DEGRADED, Phase.STOPPED, Phase.SUSPENDED, Phase.REVOKED})


def render(view: AgentView, end: Step, previous: Mapping[str, Any], wall: str) -> Status:
    """The whole status after a turn that ended in `end`; `wall` is the time now, RFC 3339.

    After a restart of the operator an agent that was not heard yet keeps what was said of it: silence means nothing
    before one window has passed.
    """
    d = view.declared
    if end_reason(end) is Reason.UNHEARD and previous.get("observedGeneration") == d.generation:
        return dict(previous)
    paused = d.paused
    current = machine_of(view)
    machine = _machine(view, current) or _machine_in_doubt(view, previous)
    volume = _volume(view, storage.current(view), previous) or _lost_volume(view, previous)
    destroy = _destroy(view, previous, machine, wall) if d.deleting else None
    verdicts = _verdicts(view, end, previous, paused=paused) | _stuck(view, end, destroy, wall)
    status: Status = {
        "observedGeneration": d.generation,
        "phase": previous.get("phase", Phase.PENDING.value) if paused else end.phase.value,
        "did": view.names.did,
        "app": _app(view),
        "machine": machine,
        "volume": volume,
        "previousVolume": _previous_volume(view, previous),
        "idle": _idle(view, current, end, previous),
        "recovery": _recovery(view, previous),
        "bundle": _bundle(view, end),
        "agent": _agent(view, previous.get("agent") or {}, wall),
        "secrets": [{"name": n, "version": v} for n, v in view.secrets.versions] or None,
        "destroy": destroy,
        "nextAction": None if isinstance(end, Settled) else end.say[:MESSAGE_LENGTH],
        "lastHandledReconcileAt": d.annotations.get("roost.dev/reconcile-at"),
        "conditions": [
            new_condition(previous, kind, verdict, d.generation, wall) for kind, verdict in verdicts.items()
        ],
    }
    return {k: v for k, v in status.items() if v is not None}


def end_reason(end: Step) -> Reason | None:
    return end.reason if isinstance(end, Wait | Stuck | Settled) else None


# --- Conditions --------------------------------------------------------------------------------------------------


def _verdicts(view: AgentView, end: Step, previous: Mapping[str, Any], *, paused: bool) -> dict[str, Verdict]:
    return {
        "Ready": _kept(previous, "Ready") if paused else _ready(end),
        "SecretsResolved": _secrets(view),
        "VolumeReady": _volume_ready(view, end),
        "MachineReady": _machine_ready(view, end),
        "ConfigApplied": _config_applied(view, end),
        "AgentHealthy": _agent_healthy(view, end),
        "Reconciling": _reconciling(end, paused=paused),
        "Stalled": _stalled(end),
    }


def _stuck(view: AgentView, end: Step, destroy: Status | None, wall: str) -> dict[str, Verdict]:
    """A destroy that takes too long, whatever it waits for: what is in the way."""
    if destroy is None or isinstance(end, Settled):
        return {}
    lasts = datetime.fromisoformat(wall) - datetime.fromisoformat(destroy["startedAt"])
    if lasts.total_seconds() <= STUCK_AFTER_SECONDS:
        return {}
    failure = view.world.failure
    if failure is not None:
        return {"DestroyStuck": ("True", failure.reason, failure.message)}
    return {"DestroyStuck": ("True", end_reason(end) or Reason.WAITING_FOR_FLY, end.say)}


def _ready(end: Step) -> Verdict:
    if isinstance(end, Settled) and end.phase in _READY:
        return "True", end.reason, end.say
    if isinstance(end, Wait | Stuck):
        return ("Unknown" if end.reason is Reason.UNHEARD else "False"), end.reason, end.say
    return "False", Reason.TERMINATING, ""


def _kept(previous: Mapping[str, Any], kind: str) -> Verdict:
    before = condition(previous, kind)
    if not before:
        return "Unknown", Reason.PAUSED, "spec.paused is set: nothing is made or changed"
    return before["status"], reason(before["reason"]), before["message"]


def _secrets(view: AgentView) -> Verdict:
    if not view.secrets.known:
        return "Unknown", Reason.RESOLVING, ""
    if view.secrets.missing:
        return "False", view.secrets.missing_reason or Reason.SECRET_MISSING, " · ".join(view.secrets.missing)
    return "True", Reason.RESOLVED if view.secrets.versions else Reason.NO_REFERENCES, ""


_ABOUT_VOLUME = frozenset(
    {Reason.VOLUME_LOST, Reason.HOST_LOST, Reason.RESTORING, Reason.RESTORE_REFUSED, Reason.CAPACITY_EXHAUSTED}
)


def _volume_ready(view: AgentView, end: Step) -> Verdict:
    why = end_reason(end)
    if why in (Reason.RESTORE_REFUSED, Reason.DUPLICATE_VOLUMES) and isinstance(end, Settled):
        return "True", why, end.say
    if why in _ABOUT_VOLUME:
        return "False", why, end.say
    volume = storage.current(view)
    if volume is None or volume.state in storage.COMING:
        return "False", Reason.VOLUME_CREATING if view.declared.wants_running else Reason.NOT_NEEDED, ""
    return "True", Reason.VOLUME_ATTACHED, ""


def _machine_ready(view: AgentView, end: Step) -> Verdict:
    machine, volume = machine_of(view), storage.current(view)
    if view.declared.deleting:
        return "False", Reason.TERMINATING, ""
    if end_reason(end) in (Reason.HOST_LOST, Reason.CLUSTER_MOVED, Reason.FOREIGN_MACHINE):
        return "False", end_reason(end) or Reason.HOST_LOST, ""
    if machine is None or volume is None:
        wanted = view.declared.wants_running
        return ("False", Reason.MACHINE_CREATING, "") if wanted else ("True", Reason.MACHINE_STOPPED, "")
    if not view.declared.wants_running or end_reason(end) is Reason.IDLE:
        if machine.state == "suspended":
            return "True", Reason.SUSPENDED, ""
        rests = machine.state in ("stopped", "failed")
        return ("True", Reason.MACHINE_STOPPED, "") if rests else ("False", Reason.STOPPING, "")
    if machine.state == "failed":
        return "False", Reason.MACHINE_FAILED, machine.exit_note
    drift = machine_config.drift(view, machine, volume.id)
    current = not drift or (drift == "defaults" and not view.may_roll)
    if machine.state == "started" and current:
        if end_reason(end) is Reason.DUPLICATE_MACHINES:
            return "True", Reason.DUPLICATE_MACHINES, end.say
        return "True", Reason.MACHINE_STARTED, view.listing_note[:MESSAGE_LENGTH]
    return "False", Reason.STARTING if current else Reason.UPDATING, ""


_NOT_APPLIED = ("configure:", "install:", "bundle: the bundle makes no sense")
"""How the troubles of a heartbeat begin that keep a bundle from being in force."""


def _config_applied(view: AgentView, end: Step) -> Verdict:
    beat = _beat(view)
    if not view.declared.wants_running or end_reason(end) is Reason.IDLE:
        return "Unknown", Reason.NOT_NEEDED, ""
    if beat is None or view.bundle_revision is None:
        return "Unknown", Reason.UNHEARD, ""
    if beat.bundle_revision == view.bundle_revision:
        return "True", Reason.CONFIG_CURRENT, ""
    failed = next((text for text in beat.degraded if text.startswith(_NOT_APPLIED)), None)
    return ("False", Reason.CONFIG_FAILED, failed) if failed else ("False", Reason.CONFIG_PENDING, "")


_SILENT = frozenset({Reason.AGENT_SILENT, Reason.ENDPOINT_UNREACHABLE, Reason.RECOVERING, Reason.RECOVERY_EXHAUSTED})


def _agent_healthy(view: AgentView, end: Step) -> Verdict:
    beat = _beat(view)
    if not view.declared.wants_running or end_reason(end) is Reason.IDLE:
        return "Unknown", Reason.NOT_NEEDED, ""
    if (why := end_reason(end)) in _SILENT:
        return "False", why or Reason.AGENT_SILENT, ""
    if beat is None:
        return "Unknown", Reason.UNHEARD, ""
    if beat.age > view.silence_window:
        return "False", Reason.AGENT_SILENT, ""
    if beat.degraded:
        return "True", Reason.DEGRADED, "; ".join(beat.degraded)
    return ("True", Reason.AS_EXPECTED, "") if beat.ready else ("False", Reason.AGENT_NOT_READY, beat.last_exit)


def _reconciling(end: Step, *, paused: bool) -> Verdict:
    if paused:
        return "False", Reason.PAUSED, "spec.paused is set: nothing is made or changed"
    if isinstance(end, Wait):
        return "True", end.reason, ""
    return "False", Reason.AS_EXPECTED, ""


def _stalled(end: Step) -> Verdict:
    if isinstance(end, Stuck):
        return "True", end.reason, end.say
    return "False", Reason.AS_EXPECTED, ""


def _beat(view: AgentView) -> Beat | None:
    """The last heartbeat of its machine as it is now."""
    machine = machine_of(view)
    return beat_of(view, machine) if machine else None


# --- Blocks ------------------------------------------------------------------------------------------------------


def _app(view: AgentView) -> Status | None:
    if not app_is_ours(view):
        return None
    place = view.place
    block = {"name": place.app, "org": place.org, "network": place.network, "incarnation": view.incarnation}
    return {k: v for k, v in block.items() if v is not None}


def _machine(view: AgentView, machine: MachineSight | None) -> Status | None:
    if machine is None:
        return None
    return {
        "id": machine.id,
        "name": machine.name,
        "state": machine.state,
        "version": machine.version,
        "region": machine.region,
        "privateIp": machine.private_ip,
        "image": _image(view, machine),
        "configHash": machine.metadata.get("roost_config_hash", ""),
    }


def _image(view: AgentView, machine: MachineSight) -> str:
    """The image with the digest that it has at Fly; as the status had it, where only a list has shown the machine."""
    if "@" in machine.image:
        return machine.image
    if machine.image_digest:
        return f"{machine.image}@{machine.image_digest}"
    known = view.remembered.image
    return known if known.partition("@")[0] == machine.image else machine.image


def _machine_in_doubt(view: AgentView, previous: Mapping[str, Any]) -> Status | None:
    """A machine that was not seen lately stays in the status until it is confirmed gone: its id leads back to it."""
    known = view.remembered.machine_id
    if known is None or any(m.id == known and m.gone for m in view.world.machines or ()):
        return None
    return previous.get("machine")


def _lost_volume(view: AgentView, previous: Mapping[str, Any]) -> Status | None:
    """A volume that is gone stays in the status: whoever forgets it would make an empty one in its place."""
    known = view.remembered.volume_id
    state = next((v.state for v in view.world.volumes or () if v.id == known), None)
    return None if known is None or state is None else {**previous.get("volume", {}), "state": state}


def _volume(view: AgentView, volume: VolumeSight | None, previous: Mapping[str, Any]) -> Status | None:
    if volume is None:
        return None
    name, before = view.names.machine(volume.id), previous.get("volume") or {}
    holder = before.get("mountedBy") if view.world.machines is None and before.get("id") == volume.id else None
    block = {
        "id": volume.id,
        "name": volume.name or None,
        "state": volume.state,
        "region": volume.region,
        "sizeGb": volume.size_gb,
        "mountedBy": next((m.id for m in view.ours() if m.name == name), holder),
        "restoredFrom": machine_config.restored_from(view),
    }
    return {k: v for k, v in block.items() if v is not None}


def _previous_volume(view: AgentView, before: Mapping[str, Any]) -> Status | None:
    found, block = storage.previous(view), before.get("previousVolume") or {}
    if found is None:
        return None
    region = next((v.region for v in view.world.volumes or () if v.id == found[0]), block.get("region"))
    told = {"id": found[0], "region": region, "expiresAt": _when(view, found[1], block.get("expiresAt"))}
    return {k: v for k, v in told.items() if v is not None}


_RESTS = frozenset({"stopped", "suspended", "stopping", "suspending"})


def _idle(view: AgentView, machine: MachineSight | None, end: Step, before: Mapping[str, Any]) -> Status | None:
    resting = end.rest if isinstance(end, Settled) else None
    if machine is not None and (machine.suspect or machine.state in _RESTS):
        resting = rest.in_force(view, machine)
    if resting is None or not view.declared.wants_running:
        return None
    block = before.get("idle") or {}
    told = {
        "since": _when(view, resting.since, block.get("since")),
        "wakeAt": None if resting.wake_at is None else _when(view, resting.wake_at, block.get("wakeAt")),
        "generation": resting.generation,
        "wake": resting.wake or None,
    }
    return {k: v for k, v in told.items() if v is not None}


def _recovery(view: AgentView, before: Mapping[str, Any]) -> Status | None:
    tried, block = recovery.attempts(view), before.get("recovery") or {}
    if tried is None:
        return None
    return {
        "count": tried.count,
        "windowStart": _when(view, tried.since, block.get("windowStart")),
        "lastReason": tried.reason[:MESSAGE_LENGTH],
    }


def _when(view: AgentView, at: float, before: str | None) -> str:
    """A moment of the clock as a date; as it stood there before, when it is the same but for rounding."""
    moment = view.wall + (at - view.now)
    if before is not None and abs(datetime.fromisoformat(before).timestamp() - moment) < SAME_SECONDS:
        return before
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _bundle(view: AgentView, end: Step) -> Status | None:
    at_rest = not view.declared.wants_running or end_reason(end) is Reason.IDLE
    beat = None if at_rest else _beat(view)  # what was heard before would not outlive this process
    block = {"desired": view.bundle_revision, "applied": beat.bundle_revision if beat else None}
    return {k: v for k, v in block.items() if v is not None} or None


def _agent(view: AgentView, before: Mapping[str, Any], wall: str) -> Status | None:
    """What the agent said last; `since` is when its boot phase was first heard of."""
    beat = _beat(view)
    if beat is None:
        return dict(before) or None
    block = {
        "supervisorVersion": beat.supervisor_version,
        "runtimeVersion": beat.runtime_version or "",
        "bootPhase": beat.boot_phase,
        "since": before["since"] if before.get("bootPhase") == beat.boot_phase else wall,
        "restarts": beat.restarts,
        "lastExitReason": beat.last_exit,
        "degraded": list(beat.degraded),
        "pendingPairings": beat.pending_pairings,
    }
    return {k: v for k, v in block.items() if v is not None}


def _destroy(view: AgentView, previous: Mapping[str, Any], machine: Status | None, wall: str) -> Status:
    """What a destroy that lasts hangs on; a quick one ends before it is told. It counts from when it was first told."""
    failure, before = view.world.failure, previous.get("destroy", {})
    volume, last = storage.current(view), before.get("lastError")
    if failure is not None:
        error = {"op": failure.op, "status": failure.status, "message": failure.message}
        if {k: (last or {}).get(k) for k in error} != error:
            last = error | {"at": wall}
    block = {
        "startedAt": before.get("startedAt", wall),
        "machineIds": [machine["id"]] if machine else [],
        "volumeIds": [volume.id] if volume else [],
        "app": view.place.app,
        "lastError": last,
    }
    return {k: v for k, v in block.items() if v is not None}
