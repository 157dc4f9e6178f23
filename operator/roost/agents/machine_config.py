"""What a machine is told to be: the Fly machine config of one Agent, and the hashes by which drift is known.

The config is always sent whole, since Fly replaces and never merges. Whether a machine is as it should be is told by
our own hash, kept in its metadata: Fly echoes fields that nobody sent. Only when somebody else has made a new version
of it are the fields that we own compared one by one. Pure.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from roost.agents.view import NO_TOKEN, AgentView, MachineSight
from roost.api.agent import RestoreFrom
from roost_agent.contract.bootstrap import BOOTSTRAP_ENV
from roost_agent.contract.bundle import canonical

HASH_VERSION = "2"
TOKEN_ENV = "AS_HEARTBEAT_TOKEN"  # noqa: S105 - a name
RETAINED = "ROOST_RETAINED"
_PROVES, _PROVES_OVER = "oidc", "oidc-over-token"
"""In place of the epoch: the machine was given no token; and one may be stored in its app all the same."""
_RESTART = {"Always": "always", "OnFailure": "on-failure", "Never": "no"}
_PORTS = {"None": (), "Gateway": ((443, 18789),), "All": ((443, 18789), (18790, 18790), (18791, 18791))}
"""Public port and port in the machine, by spec.machine.public."""
_AUTHORITY_PATH = "/etc/roost/ca.crt"
_ENDPOINT_ENV = ("AGENTSHIELD_API_URL", "ROOST_CA_FILE")
ADDRESSES: tuple[Literal["v6", "shared_v4"], ...] = ("v6", "shared_v4")

Config = dict[str, Any]


def token_secret(view: AgentView) -> str:
    """The app secret that holds the token: its own name in a shared app, where each machine sees only its own."""
    if view.declared.spec.fly.app_strategy == "PerAgent":
        return TOKEN_ENV
    return f"ROOST_TOKEN_{view.names.digest[:16].upper()}"


def proves_itself(view: AgentView) -> bool:
    """Whether the machine gets no token, and has its agent's for the one that Fly makes of it."""
    return view.declared.spec.identity.proves_itself


def render(view: AgentView, volume_id: str) -> Config:
    """The whole machine config on this volume, metadata with our hashes included."""
    config = _owned(view, volume_id)
    d, extra = view.declared, view.declared.spec.machine.metadata
    config["metadata"] = {
        **extra,
        **stamp(view),
        "roost_owner": view.owner_id,
        "roost_namespace": d.namespace,
        "roost_name": d.name,
        "roost_incarnation": view.incarnation,
        "roost_generation": str(d.generation),
        "roost_token_epoch": _mark(view),
        "roost_token_root": view.token_root,
        "roost_image": view.place.image,
        "roost_edge": edge(view),
        "roost_config_hash": config_hash(view, volume_id),
    }
    if restored := restored_from(view):
        config["metadata"]["roost_restored"] = restored
    return config


def stamp(view: AgentView) -> dict[str, str]:
    """The part of the metadata that changes without the machine: whose it is now, and what the user adds."""
    extra = view.declared.spec.machine.metadata
    return {
        "roost_cluster": view.cluster,
        "roost_uid": view.declared.uid,
        "roost_extra": ",".join(sorted(extra)),
    }


def restamp(view: AgentView, machine: MachineSight) -> tuple[tuple[str, str | None], ...]:
    """What must be written into a machine's metadata for it to say whose it is; nothing when it does."""
    has, wanted = machine.metadata, {**view.declared.spec.machine.metadata, **stamp(view)}
    if without_token(has):
        if not proves_itself(view):
            wanted["roost_token_epoch"] = _PROVES_OVER  # before one is stored: by then it may be wanted no more
        elif view.world.token_epoch is not None:
            wanted["roost_token_epoch"] = _mark(view)
    before = [key for key in has.get("roost_extra", "").split(",") if key]
    changes: dict[str, str | None] = {key: None for key in before if key not in wanted and key in has}
    changes |= {key: value for key, value in wanted.items() if has.get(key, "") != value}
    return tuple(sorted(changes.items()))


def restored_from(view: AgentView) -> str | None:
    """The value of volume.restoreFrom that was followed last; it is never followed again.

    Where nothing has recorded it yet, the names of its volumes tell whether it was the value that is declared.
    """
    told = (m.metadata.get("roost_restored") for m in view.ours())
    return (
        view.world.restored or view.remembered.restored_from or next((value for value in told if value), _named(view))
    )


def _named(view: AgentView) -> str | None:
    """A deleted volume counts where it can't be of an earlier life: in its own app, or by its id in the status."""
    wanted = view.declared.spec.volume.restore_from
    if wanted is None:
        return None
    alone, value = view.declared.spec.fly.app_strategy == "PerAgent", value_of(wanted)
    own = (v for v in view.world.volumes or () if alone or not v.deleted or v.id == view.remembered.volume_id)
    return value if any(view.names.restores(v.name, value) for v in own) else None


def value_of(wanted: RestoreFrom) -> str:
    """The value of volume.restoreFrom as it is recorded once it was followed."""
    return wanted.snapshot or f"agent/{wanted.agent}"


Drift = Literal["", "declared", "defaults"]


def drift(view: AgentView, machine: MachineSight, volume_id: str) -> Drift:
    """Why a machine's config is not the wanted one: what is declared has changed, or only what we add to it.

    A hash of another version can't be compared: an upgrade of the operator alone restarts nobody.
    """
    has, wanted = machine.metadata.get("roost_config_hash", ""), config_hash(view, volume_id)
    if has == wanted:
        return "declared" if _changed_by_others(view, machine, volume_id) else ""
    if has.split(":")[0] != HASH_VERSION:
        same = machine.metadata.get("roost_generation") == str(view.declared.generation)
        return "" if same and has else "defaults" if has else "declared"
    return "declared" if has.split(":")[1] != wanted.split(":")[1] else "defaults"


def token(view: AgentView, machine: MachineSight) -> Drift:
    """Why a machine's token is not the wanted one: it is of another epoch or Agent, or its root was changed for all."""
    has, epoch = machine.metadata, str(view.declared.spec.identity.token_epoch)
    if proves_itself(view):
        return "" if without_token(has) and has.get("roost_incarnation") == view.incarnation else "declared"
    if (has.get("roost_token_epoch"), has.get("roost_incarnation")) != (epoch, view.incarnation):
        return "declared"
    root = has.get("roost_token_root", "" if view.token_root_changed else view.token_root)
    return "defaults" if root != view.token_root else ""


def without_token(metadata: Mapping[str, str]) -> bool:
    """Whether a machine was given no token, by what it says of itself."""
    return metadata.get("roost_token_epoch") in (_PROVES, _PROVES_OVER)


def token_left(view: AgentView, machine: MachineSight) -> bool:
    """Whether a token may be stored that its machine has no use for."""
    return proves_itself(view) and machine.metadata.get("roost_token_epoch") == _PROVES_OVER


def foreign_version(view: AgentView, machine: MachineSight) -> bool:
    """Whether somebody else may have made this version of the machine: it is none that we made or wrote down."""
    return machine.version not in (view.world.own_version, view.remembered.machine_version)


def config_hash(view: AgentView, volume_id: str) -> str:
    """`<version>:<of what is declared>:<of all>`, of what needs the machine to be updated."""
    declared = _owned(view, volume_id) | {"image": view.declared.spec.machine.image}
    declared["env"] = {k: v for k, v in declared["env"].items() if k not in _ENDPOINT_ENV}
    declared.pop("files", None)
    epoch = _PROVES if proves_itself(view) else view.declared.spec.identity.token_epoch
    whole = _owned(view, volume_id) | {"image": view.place.image}
    return ":".join((HASH_VERSION, _digest([declared, epoch]), _digest([whole, epoch])))


def fingerprint(config: Mapping[str, Any]) -> str:
    """A digest of those fields of a config that we own, the same for what we send and for what Fly makes of it.

    Fly adds `init`, `dns` and more, and tells `autostop` as a boolean; a tag may have its digest with it or not.
    """
    guest, restart = config.get("guest") or {}, config.get("restart") or {}
    owned = {
        "image": str(config.get("image", "")).partition("@")[0],
        "guest": [guest.get(key) for key in ("cpu_kind", "cpus", "memory_mb")],
        "env": config.get("env") or {},
        "mounts": [[m.get("volume"), m.get("path")] for m in config.get("mounts") or ()],
        "restart": restart.get("policy"),
        "services": [
            [s.get("internal_port"), bool(s.get("autostart")), [p.get("port") for p in s.get("ports") or ()]]
            for s in config.get("services") or ()
        ],
    }
    return _digest(owned)


def edge(view: AgentView) -> str:
    """What the Internet reaches of it: `none`, `public`, or `autostart` when traffic may start it as well."""
    spec = view.declared.spec.machine
    if view.declared.revoked or spec.public == "None":
        return "none"
    return "autostart" if spec.autostart and view.declared.wants_running else "public"


def image(view: AgentView) -> str:
    """The image to send: the tag that is wanted, with the digest it had when this Agent first used it."""
    wanted = view.place.image
    name, _, digest = view.remembered.image.partition("@")
    return f"{wanted}@{digest}" if digest and name == wanted and "@" not in wanted else wanted


def guest(view: AgentView) -> Config:
    """The size of the machine in Fly's words."""
    spec = view.declared.spec.machine
    return {"cpu_kind": spec.cpu_kind, "cpus": spec.cpus, "memory_mb": spec.memory_mb}


def _changed_by_others(view: AgentView, machine: MachineSight, volume_id: str) -> bool:
    if machine.config is None or not foreign_version(view, machine):
        return False
    return machine.config != fingerprint(_owned(view, volume_id))


def _owned(view: AgentView, volume_id: str) -> Config:
    spec = view.declared.spec
    mount: Config = {"volume": volume_id, "path": spec.volume.mount_path}
    if (extend := spec.volume.auto_extend) is not None:
        mount |= {
            "extend_threshold_percent": extend.at_percent,
            "add_size_gb": extend.by_gb,
            "size_gb_limit": extend.limit_gb,
        }
    config: Config = {
        "image": image(view),
        "guest": guest(view),
        "env": {
            "AGENT_DID": view.names.did,
            "AGENTSHIELD_API_URL": view.place.endpoint_url,
            "DATA_DIR": spec.volume.mount_path,
            "ROOST_MEMORY_MB": str(spec.machine.memory_mb),
            # Two seconds less than Fly's patience: the supervisor must end its runtime before it is ended itself.
            "ROOST_STOP_GRACE_SECONDS": str(max(1, spec.machine.stop_timeout_seconds - 2)),
        },
        "mounts": [mount],
        "restart": {"policy": _RESTART[spec.machine.restart]},
        "stop_config": {"signal": "SIGTERM", "timeout": f"{spec.machine.stop_timeout_seconds}s"},
    }
    if authority := view.place.endpoint_authority:
        config["env"]["ROOST_CA_FILE"] = _AUTHORITY_PATH
        content = base64.b64encode(authority.encode()).decode()
        config["files"] = [{"guest_path": _AUTHORITY_PATH, "raw_value": content}]
    if services := _services(view):
        config["services"] = services
    if proves_itself(view):
        config["env"][BOOTSTRAP_ENV] = "FlyOidc"
        config["processes"] = [{"ignore_app_secrets": True}]
    elif spec.fly.app_strategy == "Shared":
        secret = {"env_var": TOKEN_ENV, "name": token_secret(view)}
        config["processes"] = [{"ignore_app_secrets": True, "secrets": [secret]}]
    return config


def _mark(view: AgentView) -> str:
    """What its machine is given: the token of an epoch, or none."""
    if not proves_itself(view):
        return str(view.declared.spec.identity.token_epoch)
    return _PROVES if view.world.token_epoch == NO_TOKEN else _PROVES_OVER


def _services(view: AgentView) -> list[Config]:
    """Public ports. Fly never stops the machine for idleness: that is decided by what the agent itself says."""
    state = edge(view)
    if state == "none":
        return []
    return [
        {
            "protocol": "tcp",
            "internal_port": inside,
            "autostart": state == "autostart",
            "autostop": "off",
            "ports": [{"port": outside, "handlers": ["tls", "http"]}],
        }
        for outside, inside in _PORTS[view.declared.spec.machine.public]
    ]


def _digest(content: Any) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()[:12]
