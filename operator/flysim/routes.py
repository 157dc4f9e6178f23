"""Which call is which operation: the one table of methods and paths."""

from collections.abc import Mapping
from urllib.parse import unquote

_APP = "/v1/apps/{app}"
_MACHINE = f"{_APP}/machines/{{machine}}"
_VOLUME = f"{_APP}/volumes/{{volume}}"

_TABLE = (
    ("POST", "/v1/apps", "create_app"),
    ("GET", "/v1/apps", "list_apps"),
    ("GET", _APP, "get_app"),
    ("DELETE", _APP, "delete_app"),
    ("GET", f"{_APP}/machines", "list_machines"),
    ("POST", f"{_APP}/machines", "create_machine"),
    ("GET", _MACHINE, "get_machine"),
    ("POST", _MACHINE, "update_machine"),
    ("DELETE", _MACHINE, "delete_machine"),
    ("POST", f"{_MACHINE}/start", "start_machine"),
    ("POST", f"{_MACHINE}/stop", "stop_machine"),
    ("POST", f"{_MACHINE}/suspend", "suspend_machine"),
    ("POST", f"{_MACHINE}/cordon", "cordon_machine"),
    ("POST", f"{_MACHINE}/uncordon", "uncordon_machine"),
    ("POST", f"{_MACHINE}/restart", "restart_machine"),
    ("POST", f"{_MACHINE}/signal", "signal_machine"),
    ("GET", f"{_MACHINE}/wait", "wait_machine"),
    ("GET", f"{_MACHINE}/events", "list_events"),
    ("GET", f"{_MACHINE}/lease", "get_lease"),
    ("POST", f"{_MACHINE}/lease", "acquire_lease"),
    ("DELETE", f"{_MACHINE}/lease", "release_lease"),
    ("GET", f"{_MACHINE}/metadata", "get_metadata"),
    ("PATCH", f"{_MACHINE}/metadata", "patch_metadata"),
    ("PUT", f"{_MACHINE}/metadata", "patch_metadata"),
    ("GET", f"{_MACHINE}/metadata/{{key}}", "get_metadata"),
    ("POST", f"{_MACHINE}/metadata/{{key}}", "set_metadata"),
    ("DELETE", f"{_MACHINE}/metadata/{{key}}", "delete_metadata"),
    ("GET", f"{_APP}/ip_assignments", "list_ips"),
    ("POST", f"{_APP}/ip_assignments", "assign_ip"),
    ("DELETE", f"{_APP}/ip_assignments/{{ip}}", "release_ip"),
    ("GET", f"{_APP}/volumes", "list_volumes"),
    ("POST", f"{_APP}/volumes", "create_volume"),
    ("GET", _VOLUME, "get_volume"),
    ("PUT", _VOLUME, "update_volume"),
    ("PUT", f"{_VOLUME}/extend", "extend_volume"),
    ("DELETE", _VOLUME, "delete_volume"),
    ("GET", f"{_VOLUME}/snapshots", "list_snapshots"),
    ("POST", f"{_VOLUME}/snapshots", "create_snapshot"),
    ("GET", f"{_APP}/secrets", "list_secrets"),
    ("POST", f"{_APP}/secrets", "set_secrets"),
    ("POST", f"{_APP}/secrets/{{name}}", "set_secret"),
    ("DELETE", f"{_APP}/secrets/{{name}}", "delete_secret"),
    ("GET", "/v1/orgs/{org}/machines", "org_machines"),
    ("GET", "/v1/orgs/{org}/volumes", "org_volumes"),
    ("GET", "/v1/platform/regions", "platform_regions"),
    ("POST", "/v1/platform/placements", "platform_placements"),
    ("POST", "/v1/tokens/oidc", "oidc_token"),
    ("GET", "/oidc/{org}/.well-known/openid-configuration", "oidc_discovery"),
    ("GET", "/oidc/{org}/.well-known/jwks", "oidc_keys"),
)
OPERATIONS = frozenset(op for _, _, op in _TABLE)
PUBLIC = frozenset({"oidc_discovery", "oidc_keys"})
"""What anybody may ask, without a token."""
INSIDE = frozenset({"oidc_token"})
"""What a machine may ask over its own socket."""
_ROUTES = tuple((method, tuple(template.split("/")), op) for method, template, op in _TABLE)


def match(method: str, path: str) -> tuple[str, Mapping[str, str]] | None:
    """The operation that a call is, and the values in its path; None for what is no route."""
    parts = path.split("/")
    for verb, template, op in _ROUTES:
        if verb == method and len(template) == len(parts):
            params: dict[str, str] = {}
            for expected, part in zip(template, parts, strict=True):
                if expected.startswith("{") and part:
                    params[expected[1:-1]] = unquote(part)
                elif expected != part:
                    break
            else:
                return op, params
    return None
