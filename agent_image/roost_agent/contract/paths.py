"""Addresses, header names and ports of the contract, each written down once."""

from types import MappingProxyType

__all__ = [
    "ACTIVITY_FILE",
    "BUNDLE_ROUTES",
    "CHECKIN_ROUTES",
    "DATA_DIRECTORY",
    "GATEWAY_TOKEN_ENV",
    "GATEWAY_TOKEN_HEADERS",
    "HEARTBEAT_ROUTES",
    "MACHINE_ID_HEADER",
    "PORTS",
    "RESERVED_DIRECTORY",
    "TOKEN_HEADER",
    "TOKEN_ROUTE",
    "bundle_path",
    "checkin_path",
    "heartbeat_path",
    "token_path",
]

BUNDLE_ROUTES = ("/v1/agents/{did}/config-bundle", "/api/v1/molti/deployments/{did}/config-bundle")
"""GET. The canonical address first, then the alias that agents of the seed systems call."""
HEARTBEAT_ROUTES = ("/v1/agents/{did}/heartbeat", "/api/v1/molti/agents/{did}/heartbeat")
"""POST, with `?wait=<seconds>` to hold the answer until there is a command."""

CHECKIN_ROUTES = ("/v1/agents/{did}/checkin", "/api/controller/checkin")
"""POST. At the alias the body's `sandboxId` names the agent."""
TOKEN_ROUTE = "/v1/agents/{did}/token"  # noqa: S105 - an address
"""POST. A machine without a stored token proves itself with the token that Fly gave it, and gets its own."""

TOKEN_HEADER = "X-Heartbeat-Token"  # noqa: S105 - a header's name
GATEWAY_TOKEN_HEADERS = ("X-Gateway-Token", "X-KiloClaw-Gateway-Token")
"""The second proof of a check-in, canonical name first."""
GATEWAY_TOKEN_ENV = "OPENCLAW_GATEWAY_TOKEN"  # noqa: S105 - a name
MACHINE_ID_HEADER = "X-Machine-Id"

PORTS = MappingProxyType({"gateway": 18789, "control": 18790, "pairing": 18791, "health": 18792})
"""TCP ports inside the machine. The supervisor opens `health`, and with OpenClaw the others too.

`gateway` is then a proxy before the runtime's own port; with a Command those three are the runtime's.
"""

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


def checkin_path(did: str) -> str:
    """Where the agent's figures are posted."""
    return CHECKIN_ROUTES[0].format(did=did)


def token_path(did: str) -> str:
    """Where a machine without a stored token gets one."""
    return TOKEN_ROUTE.format(did=did)
