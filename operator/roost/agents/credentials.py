"""Which Fly credential an Agent uses, and whether it may: by the operator's settings, never by what Fly says. Pure."""

from roost.api.agent import AgentSpec
from roost.settings import Credential, Fly


def name_of(spec: AgentSpec, fly: Fly) -> str:
    """The credential that an Agent names, else the first of the settings."""
    return spec.fly.credential or next(iter(fly.credentials))


def problem(spec: AgentSpec, namespace: str, org: str, fly: Fly) -> str:
    """Why an Agent of this namespace can't use its credential for what it wants; empty when it can.

    `org` is the one that its app is or will be in.
    """
    name = name_of(spec, fly)
    credential = fly.credentials.get(name)
    if credential is None:
        known = ", ".join(n for n, c in fly.credentials.items() if _serves(c.namespaces, namespace)) or "none"
        return f'spec.fly.credential: "{name}" is not in the operator\'s settings; use one of: {known}'
    shared = spec.fly.app if spec.fly.app_strategy == "Shared" else None
    for field, value, allowed, setting in (
        ("metadata.namespace", namespace, credential.namespaces, "namespaces"),
        ("spec.fly.org", org, credential.orgs, "orgs"),
        ("spec.fly.app", shared, credential.shared_apps, "sharedApps"),
        ("spec.fly.network", spec.fly.network, credential.networks, "networks"),
    ):
        if value is not None and not _serves(allowed, value):
            others = [n for n, c in fly.credentials.items() if n != name and _serves(c.namespaces, namespace)]
            instead = f"; or name another in spec.fly.credential of a new Agent: {', '.join(others)}" if others else ""
            return (
                f'{field}: Fly credential "{name}" does not serve "{value}"; an administrator can add it to the '
                f"operator's settings, fly.credentials.{name}.{setting}{instead}"
            )
    return ""


def advice(name: str, credential: Credential, namespace: str) -> str:
    """What a person does about a token that is missing or refused."""
    secret, key = credential.secret_name, credential.secret_key
    make = f'kubectl -n {namespace} create secret generic {secret} --from-literal={key}="$(fly tokens create org)"'
    return f'Put a good token in its place (credential "{name}"): {make} --dry-run=client -o yaml | kubectl apply -f -'


def _serves(allowed: tuple[str, ...] | None, value: str) -> bool:
    return allowed is None or value in allowed
