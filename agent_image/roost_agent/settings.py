"""The environment of the supervisor, read and checked once. A mistake is one sentence that names the remedy."""

import ipaddress
import os
import pwd
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from roost_agent.contract.bootstrap import BOOTSTRAP_ENV
from roost_agent.contract.bundle import BundleGateway
from roost_agent.contract.paths import ACTIVITY_FILE, DATA_DIRECTORY, PORTS
from roost_agent.proof import SOCKET
from roost_agent.runtime import User

__all__ = ["TOKEN_VARIABLE", "BadEnvironment", "Settings", "read"]

TOKEN_VARIABLE = "AS_HEARTBEAT_TOKEN"  # noqa: S105 - a variable's name
_DID = re.compile(r"did:key:z[1-9A-HJ-NP-Za-km-z]{1,128}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")
_ID = re.compile(r"[A-Za-z0-9:._+-]{1,128}")
_PRIVATE = ipaddress.ip_network("fdaa::/16")
"""Addresses of Fly's private network (6PN), which is encrypted between hosts."""
_PRIVATE_NAMES = (".localhost", ".internal", ".flycast")
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ")
_FETCHING = re.compile(r"npm_config_\w+|(https?|no)_proxy", re.IGNORECASE)
_LOOPBACK, _LOOPBACK_NET = "127.0.0.1", 127
_FIRST_PORT, _PORTS = 10_000, 20_000
"""Below those that the kernel gives to clients."""
_EVERY_ADDRESS = "::"


class BadEnvironment(Exception):
    """A variable is missing or makes no sense."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. Durations in seconds; `bind_address` None means every address of the machine."""

    did: str
    endpoint: str
    token: str | None = field(repr=False)
    """None when the machine proves itself with the token that Fly makes of it, and is given its own for that."""
    api_socket: Path
    """Where Fly answers calls from inside the machine."""
    machine_id: str
    machine_version: str | None
    """Fly's id of the machine's configuration."""
    data_dir: Path
    bind_address: str | None
    health_port: int
    control_port: int
    pairing_port: int
    gateway_port: int
    """The port of the proxy before the runtime's own."""
    openclaw_port: int
    """Where OpenClaw listens on 127.0.0.1, which machines that share one host share as well."""
    interval: float
    grace: float
    tls: ssl.SSLContext | None
    """Set when a private authority is to be trusted instead of the public ones."""
    user: User | None
    """As whom the runtime runs; None: as the supervisor does."""
    openclaw_dir: Path
    """Where the image has its versions of OpenClaw."""
    node: Path
    """The Node that runs them."""
    fetch_env: Mapping[str, str] = field(repr=False)
    """What a program that fetches packages gets of it: where from, and by which proxy."""
    base_env: Mapping[str, str] = field(repr=False)
    """What the runtime gets of the supervisor's own environment: never the token."""


def read(environ: Mapping[str, str]) -> Settings:
    """The settings that this environment describes; DATA_DIR is made when it is not there.

    Raises:
        BadEnvironment: with the sentence that says which variable, and what to do.
    """
    data_dir = _data_dir(environ.get("DATA_DIR") or DATA_DIRECTORY, mount=_truth(environ, "ROOST_REQUIRE_MOUNT"))
    bind = _bind_address(environ.get("ROOST_BIND_ADDRESS"))
    base = {k: v for k, v in environ.items() if k in _PASSED_ON or k.startswith("FLY_")}
    base |= {"DATA_DIR": str(data_dir), "ROOST_BIND_ADDRESS": bind or _EVERY_ADDRESS}
    base |= {"ROOST_ACTIVITY_FILE": str(data_dir / ACTIVITY_FILE)}
    return Settings(
        did=_matching(environ, "AGENT_DID", _DID, "the agent's did:key (did:key:z…), which the operator sets"),
        endpoint=_endpoint(_required(environ, "AGENTSHIELD_API_URL", "the public URL of the operator's endpoint")),
        token=_token(environ),
        api_socket=Path(environ.get("FLY_API_SOCKET") or SOCKET),
        machine_id=_fly_id(environ, "FLY_MACHINE_ID") or socket.gethostname(),
        machine_version=_fly_id(environ, "FLY_MACHINE_VERSION"),
        data_dir=data_dir,
        bind_address=bind,
        **_ports(environ),
        openclaw_port=_openclaw_port(bind),
        interval=_number(environ, "HEARTBEAT_INTERVAL_MS", 30_000, least=1000, most=3_600_000) / 1000,
        grace=_number(environ, "ROOST_STOP_GRACE_SECONDS", 10, least=0, most=3600),
        tls=_tls(environ.get("ROOST_CA_FILE")),
        user=_user(environ.get("ROOST_RUNTIME_USER")),
        openclaw_dir=Path(environ.get("ROOST_OPENCLAW_DIR") or "/opt/openclaw"),
        node=Path(environ.get("ROOST_NODE") or "/opt/node/bin/node"),
        fetch_env={k: v for k, v in environ.items() if k == "PATH" or _FETCHING.fullmatch(k)},
        base_env={"PATH": os.defpath} | base,
    )


def _required(environ: Mapping[str, str], name: str, what: str) -> str:
    if not (value := environ.get(name, "").strip()):
        raise BadEnvironment(f"{name} is not set: set it to {what}.")
    return value


def _matching(environ: Mapping[str, str], name: str, pattern: re.Pattern[str], what: str) -> str:
    value = _required(environ, name, what)
    if not pattern.fullmatch(value):
        raise BadEnvironment(f"{name} does not look right: set it to {what}.")
    return value


def _token(environ: Mapping[str, str]) -> str | None:
    """The token that the machine was given; one that is there and not asked for does not count."""
    match environ.get(BOOTSTRAP_ENV) or "Token":
        case "Token":
            what = f"the agent's heartbeat token, an app secret of Fly, or {BOOTSTRAP_ENV} to FlyOidc"
            return _matching(environ, TOKEN_VARIABLE, _TOKEN, what)
        case "FlyOidc":
            return None
        case other:
            raise BadEnvironment(f"{BOOTSTRAP_ENV} is {other!r}: set it to Token or FlyOidc, or leave it out.")


def _number(environ: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise BadEnvironment(f"{name} is {text!r}: set it to a number from {least} to {most}, or leave it out.")
    return value


def _endpoint(url: str) -> str:
    """The URL without a trailing slash; plain HTTP only where nobody else can listen."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise BadEnvironment("AGENTSHIELD_API_URL is no URL: set it to https://<host>[:port], without credentials.")
    if parts.scheme == "http" and not _private(host):
        raise BadEnvironment(
            f"AGENTSHIELD_API_URL would send the token to {host} unencrypted: use https://, or an address of the "
            "private network."
        )
    return url.rstrip("/")


def _private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f".{host}".endswith(_PRIVATE_NAMES)
    return address.is_loopback or address in _PRIVATE


def _bind_address(text: str | None) -> str | None:
    """One address of the machine; None for all of them."""
    try:
        address = ipaddress.ip_address(text) if text else None
    except ValueError:
        raise BadEnvironment(f"ROOST_BIND_ADDRESS is {text!r}: set it to an IP address, or leave it out.") from None
    return None if address is None or address.is_unspecified else str(address)


def _fly_id(environ: Mapping[str, str], name: str) -> str | None:
    if not (value := environ.get(name)):
        return None
    if not _ID.fullmatch(value):
        raise BadEnvironment(f"{name} does not look right: leave it as Fly sets it.")
    return value


def _ports(environ: Mapping[str, str]) -> dict[str, int]:
    """The four ports, each another one."""
    names = {"health": "HEALTH_PORT", "control": "CONTROL_PORT", "pairing": "PAIRING_PORT", "gateway": "GATEWAY_PORT"}
    ports = {f"{key}_port": int(_number(environ, name, PORTS[key], least=1, most=65535)) for key, name in names.items()}
    if len(set(ports.values())) < len(ports):
        raise BadEnvironment(f"{', '.join(names.values())} are not four different ports: change one, or leave it out.")
    return ports


def _openclaw_port(bind: str | None) -> int:
    """3001 of a machine's own; another one for each machine of a laptop, told apart by its address of 127.0.0.0/8."""
    number = int(ipaddress.ip_address(bind or _LOOPBACK))
    if bind is None or ipaddress.ip_address(bind).version == 6 or number >> 24 != _LOOPBACK_NET or bind == _LOOPBACK:
        return BundleGateway().port
    return _FIRST_PORT + number % _PORTS


def _truth(environ: Mapping[str, str], name: str) -> bool:
    match (environ.get(name) or "false").lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
        case other:
            raise BadEnvironment(f"{name} is {other!r}: set it to true or false, or leave it out.")


def _user(name: str | None) -> User | None:
    """The user of that name or number, and its group."""
    if not name:
        return None
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        raise BadEnvironment(f"ROOST_RUNTIME_USER is {name!r}, whom this image does not know: add the user.") from None
    if entry.pw_uid == 0 or (os.geteuid() != 0 and entry.pw_uid != os.geteuid()):
        what = "root" if entry.pw_uid == 0 else "a user that only root can become"
        raise BadEnvironment(f"ROOST_RUNTIME_USER is {name!r}, {what}: set it to another user, or leave it out.")
    return User(entry.pw_uid, entry.pw_gid)


def _data_dir(text: str, *, mount: bool) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise BadEnvironment(f"DATA_DIR is {text!r}: set it to an absolute path.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadEnvironment(
            f"DATA_DIR {text} is no directory and can't be made ({error.strerror}): mount a volume there."
        ) from error
    if mount and not path.is_mount():
        raise BadEnvironment(
            f"DATA_DIR {text} is no mount, so all that is kept there would be lost: mount a volume there, or leave "
            "ROOST_REQUIRE_MOUNT out."
        )
    return path


def _tls(ca_file: str | None) -> ssl.SSLContext | None:
    if not ca_file:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise BadEnvironment(
            f"ROOST_CA_FILE {ca_file} can't be used ({error.strerror or type(error).__name__}): "
            "set it to a readable file of PEM certificates."
        ) from error
