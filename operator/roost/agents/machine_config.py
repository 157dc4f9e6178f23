"""What a machine is told to be: the Fly machine config of one Agent, and the hash by which drift is known.

The config is always sent whole, since Fly replaces and never merges. Drift is a difference of our own hash, kept in
the machine's metadata: Fly echoes fields that nobody sent. Pure.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from roost.agents.view import AgentView
from roost_agent.contract.bundle import canonical

HASH_VERSION = "1"
TOKEN_ENV = "AS_HEARTBEAT_TOKEN"  # noqa: S105 - a name
_RESTART = {"Always": "always", "OnFailure": "on-failure", "Never": "no"}


def token_secret(view: AgentView) -> str:
    """The app secret that holds the token: its own name in a shared app, where each machine sees only its own."""
    if view.declared.spec.fly.app_strategy == "PerAgent":
        return TOKEN_ENV
    return f"ROOST_TOKEN_{view.names.digest[:16].upper()}"


def render(view: AgentView, volume_id: str) -> dict[str, Any]:
    """The whole machine config on this volume, metadata with our hash included."""
    config = _owned(view, volume_id)
    d = view.declared
    config["metadata"] = {
        "roost_owner": view.owner_id,
        "roost_cluster": view.cluster,
        "roost_namespace": d.namespace,
        "roost_name": d.name,
        "roost_uid": d.uid,
        "roost_incarnation": view.incarnation,
        "roost_generation": str(d.generation),
        "roost_token_epoch": str(d.spec.identity.token_epoch),
        "roost_config_hash": config_hash(view, volume_id),
    }
    return config


def config_hash(view: AgentView, volume_id: str) -> str:
    """`<version>:<digest>` of all that needs the machine to be updated: its config and the token's epoch."""
    content: dict[str, Any] = {"config": _owned(view, volume_id), "tokenEpoch": view.declared.spec.identity.token_epoch}
    return f"{HASH_VERSION}:{hashlib.sha256(canonical(content)).hexdigest()[:24]}"


def is_ours(view: AgentView, metadata: Mapping[str, str]) -> bool:
    """Ownership: the machine itself says our owner id and this Agent's namespace and name (never the uid)."""
    return (
        metadata.get("roost_owner") == view.owner_id
        and metadata.get("roost_namespace") == view.declared.namespace
        and metadata.get("roost_name") == view.declared.name
    )


def _owned(view: AgentView, volume_id: str) -> dict[str, Any]:
    spec = view.declared.spec
    config: dict[str, Any] = {
        "image": view.place.image,
        "guest": {"cpu_kind": "shared", "cpus": spec.machine.cpus, "memory_mb": spec.machine.memory_mb},
        "env": {
            "AGENT_DID": view.names.did,
            "AGENTSHIELD_API_URL": view.place.endpoint_url,
            "DATA_DIR": spec.volume.mount_path,
            "ROOST_MEMORY_MB": str(spec.machine.memory_mb),
            # Two seconds less than Fly's patience: the supervisor must end its runtime before it is ended itself.
            "ROOST_STOP_GRACE_SECONDS": str(max(1, spec.machine.stop_timeout_seconds - 2)),
        },
        "mounts": [{"volume": volume_id, "path": spec.volume.mount_path}],
        "restart": {"policy": _RESTART[spec.machine.restart]},
        "stop_config": {"signal": "SIGTERM", "timeout": f"{spec.machine.stop_timeout_seconds}s"},
    }
    if spec.fly.app_strategy == "Shared":
        secret = {"env_var": TOKEN_ENV, "name": token_secret(view)}
        config["processes"] = [{"ignore_app_secrets": True, "secrets": [secret]}]
    return config
