"""A machine's config as Fly takes it: checked, completed, and echoed the way Fly echoes it. Pure.

The echo differs from what was sent, as Fly's does: empty `init` and `dns` appear, the guest is always there, `autostop`
comes back as a boolean, a mount tells its volume's name and size, and unknown fields are gone.
"""

import base64
import binascii
import re
from typing import Any

from flysim import checks, errors, requests
from flysim.requests import Guest, MachineConfig

_KNOWN = frozenset(
    [
        "auto_destroy",
        "cache_drive",
        "checks",
        "containers",
        "disable_machine_autostart",
        "dns",
        "env",
        "files",
        "guest",
        "image",
        "init",
        "metadata",
        "metrics",
        "mounts",
        "processes",
        "restart",
        "rootfs",
        "schedule",
        "services",
        "size",
        "spot",
        "standbys",
        "statics",
        "stop_config",
        "volumes",
    ]
)
_SIZE = re.compile(r"(shared-cpu|performance)-(\d+)x")
_CPUS = {"shared": (1, 2, 4, 6, 8), "performance": (1, 2, 4, 6, 8, 10, 12, 14, 16)}
_MEMORY_PER_CPU = {"shared": (256, 2048), "performance": (2048, 8192)}
_MEMORY_STEP = 256


def read(sent: dict[str, Any]) -> tuple[MachineConfig, dict[str, Any]]:
    """The config as the simulator acts on it, and as the API shows it. Raises Refusal."""
    plain = requests.without_nulls(sent)
    shown: dict[str, Any] = {key: value for key, value in plain.items() if key in _KNOWN}
    config = requests.read_value(MachineConfig, shown)
    _check(config, shown)
    taken = _guest(config, shown)
    shown.pop("size", None)
    shown["guest"] = shown.get("guest", {}) | taken.model_dump()
    shown.setdefault("init", {})
    shown.setdefault("dns", {})
    if isinstance(services := shown.get("services"), list):
        shown["services"] = [_service(service) for service in services]
    return config.model_copy(update={"guest": taken}), shown


def _check(config: MachineConfig, shown: dict[str, Any]) -> None:
    if not config.image:
        raise errors.invalid("config.image is required")
    if len(config.mounts) > 1:
        raise errors.invalid("config.mounts: a machine can have one mount at most")
    for mount in config.mounts:
        if not mount.volume or not mount.path.startswith("/"):
            raise errors.invalid("config.mounts[0]: volume and an absolute path are required")
    if config.size and "guest" in shown:
        raise errors.invalid("config.size and config.guest exclude each other")
    if config.containers or len(config.processes) > 1:
        raise errors.not_simulated("more than one process in a machine")
    if config.schedule:
        raise errors.not_simulated("scheduled machines")
    _check_files(config)
    checks.probes(config)
    for service in config.services:
        if service.autostop not in _AUTOSTOP:
            raise errors.invalid(f"config.services: autostop {service.autostop!r} is not one of off, stop, suspend")
    for entry in config.process.secrets:
        if not entry.env_var:
            raise errors.invalid("config.processes[0].secrets: env_var is required")
    requests.stop_signal(config.stop_config.signal, requests.DEFAULT_STOP_SIGNAL)
    requests.seconds(config.stop_config.timeout, requests.DEFAULT_STOP_TIMEOUT)


def _check_files(config: MachineConfig) -> None:
    for file in config.files:
        if file.secret_name or file.image_config:
            raise errors.not_simulated("config.files from a secret or an image")
        if not file.guest_path.startswith("/") or ".." in file.guest_path.split("/"):
            raise errors.invalid("config.files: guest_path must be absolute")
        try:
            base64.b64decode(file.raw_value, validate=True)
        except binascii.Error as error:
            raise errors.invalid("config.files: raw_value must be base64") from error


def guest(sent: dict[str, Any]) -> Guest:
    """A guest as it is asked for; without `memory_mb` the least that goes with its CPUs. Raises Refusal (400, 422)."""
    plain = requests.without_nulls(sent)
    wanted = requests.read_value(Guest, plain)
    if "memory_mb" not in plain:
        least = _MEMORY_PER_CPU.get(wanted.cpu_kind, (0, 0))[0] * wanted.cpus
        wanted = wanted.model_copy(update={"memory_mb": least})
    _check_guest(wanted)
    return wanted


def _guest(config: MachineConfig, shown: dict[str, Any]) -> Guest:
    if not config.size:
        return guest(shown.get("guest", {}))
    if (size := _SIZE.fullmatch(config.size)) is None:
        raise errors.guest_refused(f"size {config.size} is not known")
    return guest({"cpu_kind": size[1].removesuffix("-cpu"), "cpus": int(size[2])})


def _check_guest(guest: Guest) -> None:
    """Fly's table: which CPU counts there are, and how much memory goes with them."""
    if guest.cpu_kind not in _CPUS:
        raise errors.guest_refused(f"cpu_kind {guest.cpu_kind} is not one of {', '.join(_CPUS)}")
    if guest.cpus not in _CPUS[guest.cpu_kind]:
        counts = ", ".join(map(str, _CPUS[guest.cpu_kind]))
        raise errors.guest_refused(f"{guest.cpu_kind} machines have {counts} CPUs, not {guest.cpus}")
    low, high = (per_cpu * guest.cpus for per_cpu in _MEMORY_PER_CPU[guest.cpu_kind])
    if not low <= guest.memory_mb <= high or guest.memory_mb % _MEMORY_STEP:
        raise errors.guest_refused(
            f"memory_mb {guest.memory_mb} does not fit {guest.cpus} {guest.cpu_kind} CPUs: "
            f"{low} to {high} in steps of {_MEMORY_STEP}"
        )


_AUTOSTOP: dict[str | bool, str | bool] = {
    False: False,
    True: True,
    "off": False,
    "stop": True,
    "suspend": "suspend",
}
"""What may be sent, and how Fly echoes it."""


def _service(service: Any) -> Any:
    if not isinstance(service, dict) or "autostop" not in service:
        return service
    return service | {"autostop": _AUTOSTOP[service["autostop"]]}
