"""Addresses, header names and ports of the contract, each written down once."""

from types import MappingProxyType

__all__ = [
    "ACTIVITY_FILE",
    "BUNDLE_ROUTES",
    "DATA_DIRECTORY",
    "HEARTBEAT_ROUTES",
    "MACHINE_ID_HEADER",
    "PORTS",
    "RESERVED_DIRECTORY",
    "TOKEN_HEADER",
    "bundle_path",
    "heartbeat_path",
]

BUNDLE_ROUTES = ("/v1/agents/{did}/config-bundle", "/api/v1/molti/deployments/{did}/config-bundle")
"""GET. The canonical address first, then the alias that agents of the seed systems call."""
HEARTBEAT_ROUTES = ("/v1/agents/{did}/heartbeat", "/api/v1/molti/agents/{did}/heartbeat")
"""POST, with `?wait=<seconds>` to hold the answer until there is a command."""

TOKEN_HEADER = "X-Heartbeat-Token"  # noqa: S105 - a header's name
MACHINE_ID_HEADER = "X-Machine-Id"

PORTS = MappingProxyType({"gateway": 18789, "control": 18790, "pairing": 18791, "health": 18792})
"""TCP ports inside the machine. Only `health` is opened by the supervisor; the others are kept free for the runtime."""

DATA_DIRECTORY = "/data"
RESERVED_DIRECTORY = ".roost"
"""Below the data directory, for the supervisor alone: no file of a bundle may lie there."""
ACTIVITY_FILE = ".roost-activity.json"
"""Below the data directory, for the runtime: what it says of its activity. ROOST_ACTIVITY_FILE names it in full."""


def bundle_path(did: str) -> str:
    """Where the agent's bundle is fetched."""
    return BUNDLE_ROUTES[0].format(did=did)


def heartbeat_path(did: str) -> str:
    """Where the agent's heartbeat is posted."""
    return HEARTBEAT_ROUTES[0].format(did=did)
