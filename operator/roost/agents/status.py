"""The status of an Agent: what became true, for people, kstatus, Argo CD and Flux. Pure.

Every condition is set on the first visit, Unknown where nothing is known. `lastTransitionTime` moves on flips only,
messages carry no counters or times that churn, no secret value ever gets here.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from roost.agents import machine_config
from roost.agents.plan import beat_of, machine_of, volume_of
from roost.agents.view import AgentView, Beat, MachineSight, Settled, Step, Stuck, VolumeSight, Wait
from roost.api.agent import Phase
from roost.api.conditions import Reason, reason
from roost.kube.objects import MESSAGE_LENGTH, condition, new_condition

Status = dict[str, Any]
Verdict = tuple[str, Reason, str]
STUCK_AFTER_SECONDS = 900.0
_READY = frozenset({Phase.RUNNING, Phase.DEGRADED, Phase.STOPPED, Phase.REVOKED})


def render(view: AgentView, rest: Step, previous: Mapping[str, Any], wall: str) -> Status:
    """The whole status after a turn that ended in `rest`; `wall` is the time now, RFC 3339.

    After a restart of the operator an agent that was not heard yet keeps what was said of it: silence means nothing
    before one window has passed.
    """
    d = view.declared
    if rest_reason(rest) is Reason.UNHEARD and previous.get("observedGeneration") == d.generation:
        return dict(previous)
    paused = d.paused
    machine = _machine(machine_of(view)) or _machine_in_doubt(view, previous)
    volume = _volume(volume_of(view)) or _lost_volume(view, previous)
    destroy = _destroy(view, previous, machine, wall) if d.deleting else None
    verdicts = _verdicts(view, rest, previous, paused=paused) | _stuck(view, rest, destroy, wall)
    status: Status = {
        "observedGeneration": d.generation,
        "phase": previous.get("phase", Phase.PENDING.value) if paused else rest.phase.value,
        "did": view.names.did,
        "app": _app(view),
        "machine": machine,
        "volume": volume,
        "bundle": _bundle(view),
        "agent": _agent(view, previous.get("agent") or {}, wall),
        "secrets": [{"name": n, "version": v} for n, v in view.secrets.versions] or None,
        "destroy": destroy,
        "nextAction": None if isinstance(rest, Settled) else rest.say[:MESSAGE_LENGTH],
        "lastHandledReconcileAt": d.annotations.get("roost.dev/reconcile-at"),
        "conditions": [
            new_condition(previous, kind, verdict, d.generation, wall) for kind, verdict in verdicts.items()
        ],
    }
    return {k: v for k, v in status.items() if v is not None}


def rest_reason(rest: Step) -> Reason | None:
    return rest.reason if isinstance(rest, Wait | Stuck | Settled) else None


# --- Conditions --------------------------------------------------------------------------------------------------


def _verdicts(view: AgentView, rest: Step, previous: Mapping[str, Any], *, paused: bool) -> dict[str, Verdict]:
    return {
        "Ready": _kept(previous, "Ready") if paused else _ready(rest),
        "SecretsResolved": _secrets(view),
        "VolumeReady": _volume_ready(view, rest),
        "MachineReady": _machine_ready(view),
        "ConfigApplied": _config_applied(view),
        "AgentHealthy": _agent_healthy(view),
        "Reconciling": _reconciling(rest, paused=paused),
        "Stalled": _stalled(rest),
    }


def _stuck(view: AgentView, rest: Step, destroy: Status | None, wall: str) -> dict[str, Verdict]:
    """A destroy that takes too long, whatever it waits for: what is in the way."""
    if destroy is None or isinstance(rest, Settled):
        return {}
    lasts = datetime.fromisoformat(wall) - datetime.fromisoformat(destroy["startedAt"])
    if lasts.total_seconds() <= STUCK_AFTER_SECONDS:
        return {}
    failure = view.world.failure
    if failure is not None:
        return {"DestroyStuck": ("True", failure.reason, failure.message)}
    return {"DestroyStuck": ("True", rest_reason(rest) or Reason.WAITING_FOR_FLY, rest.say)}


def _ready(rest: Step) -> Verdict:
    if isinstance(rest, Settled) and rest.phase in _READY:
        return "True", rest.reason, ""
    if isinstance(rest, Wait | Stuck):
        return ("Unknown" if rest.reason is Reason.UNHEARD else "False"), rest.reason, rest.say
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


def _volume_ready(view: AgentView, rest: Step) -> Verdict:
    if rest_reason(rest) is Reason.VOLUME_LOST:
        return "False", Reason.VOLUME_LOST, getattr(rest, "say", "")
    volume = volume_of(view)
    if volume is None or volume.state in ("creating", "doubted"):
        return "False", Reason.VOLUME_CREATING if view.declared.wants_running else Reason.NOT_NEEDED, ""
    return "True", Reason.VOLUME_ATTACHED, ""


def _machine_ready(view: AgentView) -> Verdict:
    machine, volume = machine_of(view), volume_of(view)
    if view.declared.deleting:
        return "False", Reason.TERMINATING, ""
    if machine is None or volume is None:
        wanted = view.declared.wants_running
        return ("False", Reason.MACHINE_CREATING, "") if wanted else ("True", Reason.MACHINE_STOPPED, "")
    if not view.declared.wants_running:
        rests = machine.state in ("stopped", "suspended", "failed")
        return ("True", Reason.MACHINE_STOPPED, "") if rests else ("False", Reason.STOPPING, "")
    if machine.state == "failed":
        return "False", Reason.MACHINE_FAILED, machine.exit_note
    current = machine.metadata.get("roost_config_hash") == machine_config.config_hash(view, volume.id)
    if machine.state == "started" and current:
        return "True", Reason.MACHINE_STARTED, ""
    return "False", Reason.STARTING if current else Reason.UPDATING, ""


def _config_applied(view: AgentView) -> Verdict:
    beat = _beat(view)
    if not view.declared.wants_running:
        return "Unknown", Reason.NOT_NEEDED, ""
    if beat is None or view.bundle_revision is None:
        return "Unknown", Reason.UNHEARD, ""
    if beat.bundle_revision == view.bundle_revision:
        return "True", Reason.CONFIG_CURRENT, ""
    failed = next((text for text in beat.degraded if text.startswith("config")), None)
    return ("False", Reason.CONFIG_FAILED, failed) if failed else ("False", Reason.CONFIG_PENDING, "")


def _agent_healthy(view: AgentView) -> Verdict:
    beat = _beat(view)
    if not view.declared.wants_running:
        return "Unknown", Reason.NOT_NEEDED, ""
    if beat is None:
        machine = machine_of(view)
        silent = view.now - view.listening_since > view.silence_window and view.remembered.machine_id is not None
        asked = view.world.start_asked_at
        if silent and machine and (asked is None or view.now - asked > view.silence_window):
            return "False", Reason.AGENT_SILENT, ""
        return "Unknown", Reason.UNHEARD, ""
    if beat.age > view.silence_window:
        return "False", Reason.AGENT_SILENT, ""
    if beat.degraded:
        return "True", Reason.DEGRADED, "; ".join(beat.degraded)
    return ("True", Reason.AS_EXPECTED, "") if beat.ready else ("False", Reason.AGENT_NOT_READY, beat.last_exit)


def _reconciling(rest: Step, *, paused: bool) -> Verdict:
    if paused:
        return "False", Reason.PAUSED, "spec.paused is set: nothing is made or changed"
    if isinstance(rest, Wait):
        return "True", rest.reason, ""
    return "False", Reason.AS_EXPECTED, ""


def _stalled(rest: Step) -> Verdict:
    if isinstance(rest, Stuck):
        return "True", rest.reason, rest.say
    return "False", Reason.AS_EXPECTED, ""


def _beat(view: AgentView) -> Beat | None:
    """The last heartbeat of its machine as it is now."""
    machine = machine_of(view)
    return beat_of(view, machine) if machine else None


# --- Blocks ------------------------------------------------------------------------------------------------------


def _app(view: AgentView) -> Status | None:
    if not (view.remembered.app or (view.world.app_present and view.world.app_org == view.place.org)):
        return None
    place = view.place
    block = {"name": place.app, "org": place.org, "network": place.network, "incarnation": view.incarnation}
    return {k: v for k, v in block.items() if v is not None}


def _machine(machine: MachineSight | None) -> Status | None:
    if machine is None:
        return None
    return {
        "id": machine.id,
        "name": machine.name,
        "state": machine.state,
        "version": machine.version,
        "region": machine.region,
        "privateIp": machine.private_ip,
        "image": machine.image,
        "configHash": machine.metadata.get("roost_config_hash", ""),
    }


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


def _volume(volume: VolumeSight | None) -> Status | None:
    if volume is None:
        return None
    return {"id": volume.id, "state": volume.state, "region": volume.region, "sizeGb": volume.size_gb}


def _bundle(view: AgentView) -> Status | None:
    beat = _beat(view)
    block = {"desired": view.bundle_revision, "applied": beat.bundle_revision if beat else None}
    return {k: v for k, v in block.items() if v is not None} or None


def _agent(view: AgentView, before: Mapping[str, Any], wall: str) -> Status | None:
    """What the agent said last; `since` is when its boot phase was first heard of."""
    beat = _beat(view)
    if beat is None:
        return dict(before) or None
    return {
        "supervisorVersion": beat.supervisor_version,
        "runtimeVersion": beat.runtime_version or "",
        "bootPhase": beat.boot_phase,
        "since": before["since"] if before.get("bootPhase") == beat.boot_phase else wall,
        "restarts": beat.restarts,
        "lastExitReason": beat.last_exit,
        "degraded": list(beat.degraded),
    }


def _destroy(view: AgentView, previous: Mapping[str, Any], machine: Status | None, wall: str) -> Status:
    """What a destroy that lasts hangs on; a quick one ends before it is told. It counts from when it was first told."""
    failure, before = view.world.failure, previous.get("destroy", {})
    volume, last = volume_of(view), before.get("lastError")
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
