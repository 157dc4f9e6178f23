"""The wire contract: the only code that the operator and the machine share.

Models of what travels, the tokens that protect it, the addresses it travels to. Importing it brings no web framework
and no event loop. It never does I/O.
"""

from roost_agent.contract.bundle import (
    API_VERSION,
    VOLATILE,
    BundleAgent,
    BundleFile,
    BundleHeartbeat,
    BundleRuntime,
    ConfigBundle,
    HttpGet,
    Readiness,
    canonical,
    revision,
)
from roost_agent.contract.exits import Exit
from roost_agent.contract.heartbeat import (
    MAX_HEARTBEAT_BYTES,
    MAX_WAIT_SECONDS,
    BootPhase,
    Command,
    CommandType,
    Disk,
    Heartbeat,
    HeartbeatAnswer,
    LastExit,
    ProcessState,
    RuntimeState,
    Status,
)
from roost_agent.contract.paths import (
    BUNDLE_ROUTES,
    HEARTBEAT_ROUTES,
    MACHINE_ID_HEADER,
    PORTS,
    TOKEN_HEADER,
    bundle_path,
    heartbeat_path,
)
from roost_agent.contract.tokens import BadSeal, derive, seal, unseal
from roost_agent.contract.wire import instant

__all__ = [
    "API_VERSION",
    "BUNDLE_ROUTES",
    "HEARTBEAT_ROUTES",
    "MACHINE_ID_HEADER",
    "MAX_HEARTBEAT_BYTES",
    "MAX_WAIT_SECONDS",
    "PORTS",
    "TOKEN_HEADER",
    "VOLATILE",
    "BadSeal",
    "BootPhase",
    "BundleAgent",
    "BundleFile",
    "BundleHeartbeat",
    "BundleRuntime",
    "Command",
    "CommandType",
    "ConfigBundle",
    "Disk",
    "Exit",
    "Heartbeat",
    "HeartbeatAnswer",
    "HttpGet",
    "LastExit",
    "ProcessState",
    "Readiness",
    "RuntimeState",
    "Status",
    "bundle_path",
    "canonical",
    "derive",
    "heartbeat_path",
    "instant",
    "revision",
    "seal",
    "unseal",
]
