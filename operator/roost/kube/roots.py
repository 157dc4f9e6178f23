"""The three roots everything about an agent is derived from, and the owner id that says whose machines are ours.

They live in one core Secret in the operator's namespace. A lost root must not mint a new world: it is created only
when no Agent carries our finalizer, otherwise the operator refuses to start and names the backup to restore.
"""

import base64
import secrets
from dataclasses import dataclass, field

from roost.kube.client import Body, Conflict, Gone, Kube, collection, core_secret

SECRET_NAME = "roost-roots"  # noqa: S105 - the name of a Secret, not a secret
AGENT_FINALIZER = "roost.dev/machine"
_KEYS = ("identity", "token", "fingerprint")
_BEFORE = "tokenPrevious"
_ROOT_BYTES = 32


class LostRoots(Exception):
    """The roots are gone or damaged while Agents still exist; the message says how to restore them."""


@dataclass(frozen=True, slots=True)
class Roots:
    """identity: DIDs and names, never rotated · token: agents' tokens · fingerprint: versions of secrets, bundles."""

    owner_id: str
    identity: bytes = field(repr=False)
    token: bytes = field(repr=False)
    fingerprint: bytes = field(repr=False)
    token_before: bytes | None = field(default=None, repr=False)
    """The token root that `token` has taken the place of, while machines with tokens of it are left."""


async def load_roots(kube: Kube, namespace: str) -> Roots:
    """The roots of this installation; created when this is a new one.

    Raises:
        LostRoots: the Secret is missing or damaged and Agents carry our finalizer.
        KubeError: the API server can't be asked.
    """
    path = core_secret(namespace, SECRET_NAME)
    try:
        return _parse(await kube.get(path), namespace)
    except Gone:
        pass
    agents = await kube.get(collection("Agent", ""))
    ours = [a["metadata"] for a in agents["items"] if AGENT_FINALIZER in a["metadata"].get("finalizers", ())]
    if ours:
        raise LostRoots(
            f"Secret {namespace}/{SECRET_NAME} is missing, but {len(ours)} Agents (first: {ours[0]['namespace']}/"
            f"{ours[0]['name']}) were made with it. Restore it from your backup: without it their machines, tokens "
            "and DIDs can't be recognised, and new ones would be made beside them."
        )
    values = {k: secrets.token_bytes(_ROOT_BYTES) for k in _KEYS} | {"ownerId": secrets.token_hex(8).encode()}
    body: Body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET_NAME, "labels": {"app.kubernetes.io/part-of": "roost"}},
        "type": "Opaque",
        "data": {k: base64.b64encode(v).decode() for k, v in values.items()},
    }
    try:
        return _parse(await kube.create(path.removesuffix(f"/{SECRET_NAME}"), body), namespace)
    except Conflict:  # another replica was faster: its roots are the ones
        return _parse(await kube.get(path), namespace)


def _parse(secret: Body, namespace: str) -> Roots:
    try:
        data = {k: base64.b64decode(v, validate=True) for k, v in secret["data"].items()}
        identity, token, fingerprint = (data[k] for k in _KEYS)
        roots = Roots(data["ownerId"].decode(), identity, token, fingerprint, data.get(_BEFORE))
    except (KeyError, ValueError) as error:
        raise LostRoots(
            f"Secret {namespace}/{SECRET_NAME} is damaged ({error}); restore it from your backup, it is never re-made."
        ) from error
    # A restore by hand easily adds a newline: nothing would be recognised any more, and everything made anew.
    before = roots.token if roots.token_before is None else roots.token_before
    sizes = {len(root) for root in (roots.identity, roots.token, roots.fingerprint, before)}
    if not roots.owner_id.isalnum() or sizes != {_ROOT_BYTES}:
        raise LostRoots(
            f"Secret {namespace}/{SECRET_NAME} is damaged (a root is not of {_ROOT_BYTES} bytes, or ownerId has more "
            "than letters and digits); restore it from your backup, it is never re-made."
        )
    return roots
