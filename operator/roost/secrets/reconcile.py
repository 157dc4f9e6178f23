"""The reconcile of a Roost Secret: looks at its core Secret by name, keeps fingerprints, tells those who use it.

Core Secrets are read, never listed or watched: the alarms of all Secrets together are the poller, and stretch so
that they stay under five reads a second. Values are forgotten as soon as they are fingerprinted.
"""

import hmac
import json
from collections.abc import Callable
from typing import Any

import structlog

from roost.api.block import parse
from roost.api.conditions import Reason
from roost.api.secret import SecretSpec
from roost.engine.engine import GONE, Again, News
from roost.kube.client import Gone, Kube, Refused, core_secret
from roost.kube.objects import Objects, new_condition, wall
from roost.kube.records import Cache, Key, Record
from roost.secrets.state import NotAText, SecretState, SecretTable, fingerprint, values_of

log = structlog.get_logger(__name__)
READS_PER_SECOND = 5.0
KEYS_TOLD = 256


class Secrets:
    """Reconciles Secrets. `wake` is called with each Agent whose references changed."""

    def __init__(
        self,
        kube: Kube,
        objects: Objects,
        cache: Cache,
        table: SecretTable,
        root: bytes,
        wake: Callable[[Key], None],
        poll_seconds: float,
    ) -> None:
        self._kube, self._objects, self._cache, self._table = kube, objects, cache, table
        self._root, self._wake, self._poll_seconds = root, wake, poll_seconds

    async def reconcile(self, key: Key, _news: News) -> Again:
        """One look at one Secret."""
        found = self._cache.get(key)
        if found is None or found.deleting:
            if self._table.states.pop((key.namespace, key.name), None) is not None:
                self._tell(key)
            if found is None:
                return GONE
        else:
            await self._look(found)
        return Again(after=max(self._poll_seconds, len(self._table.states) / READS_PER_SECOND))

    async def _look(self, found: Record) -> None:
        key, spec = found.key, parse(SecretSpec, found.spec)
        source = spec.source.secret_ref.name
        values: dict[str, str] = {}
        problem, reason = "", None
        try:
            core = await self._kube.get(core_secret(key.namespace, source))
            values, lacking = values_of(spec, core.get("data") or {})
            if lacking:
                reason = Reason.SECRET_KEY_MISSING
                # A patch: applying a Secret of these keys alone could take away those that an apply before brought.
                given = json.dumps({"stringData": dict.fromkeys(lacking, "VALUE")}, separators=(",", ":"))
                problem = (
                    f'core Secret "{source}" in namespace "{key.namespace}" lacks {", ".join(lacking)}: '
                    f"kubectl -n {key.namespace} patch secret {source} -p '{given}'"
                )
        except Gone:
            reason = Reason.SECRET_MISSING
            pairs = " ".join(f"--from-literal={k.in_source}=VALUE" for k in spec.keys if k.required)
            problem = (
                f'core Secret "{source}" not found in namespace "{key.namespace}": '
                f"kubectl -n {key.namespace} create secret generic {source} {pairs or '--from-literal=KEY=VALUE'}"
            )
        except NotAText as error:
            reason = Reason.SECRET_KEY_MISSING
            problem = (
                f'key "{error}" of core Secret "{source}" is not UTF-8 text; store text (base64 it if it is binary)'
            )
        except Refused as error:
            reason = Reason.SECRET_FORBIDDEN
            problem = f'core Secret "{source}" can not be read: {error.message}; grant the operator get on secrets'
        await self._settle(found, values, problem, reason)

    async def _settle(self, found: Record, values: dict[str, str], problem: str, reason: Reason | None) -> None:
        key = found.key
        prints = {name: fingerprint(self._root, value) for name, value in sorted(values.items())}
        whole = hmac.digest(self._root, repr(sorted(prints.items())).encode(), "sha256").hex()[:32]
        version = int(found.status.get("activeVersion") or 0)
        rotated = bool(prints) and found.status.get("fingerprint") != whole
        state = SecretState(version + rotated, prints, problem, reason)
        changed = self._table.states.get((key.namespace, key.name)) != state
        status = _status(found, state, whole if prints else None, rotated=rotated)
        if status != found.status:
            await self._objects.write_status(found, status)
        if changed:
            self._table.states[key.namespace, key.name] = state
            log.info("secret looked at", key=str(key), version=state.version, problem=problem)
            self._tell(key)

    def _tell(self, key: Key) -> None:
        for agent in self._table.users.get((key.namespace, key.name), ()):
            self._wake(agent)


def _status(found: Record, state: SecretState, whole: str | None, *, rotated: bool) -> dict[str, Any]:
    now = wall()
    names = [k.name for k in parse(SecretSpec, found.spec).keys] or sorted(state.fingerprints)
    ok, reason = not state.problem, state.reason or Reason.RESOLVED
    verdicts = {
        "Ready": ("True" if ok else "False", reason, state.problem),
        "Reconciling": ("False", Reason.AS_EXPECTED, ""),
        "Stalled": ("False", Reason.AS_EXPECTED, "") if ok else ("True", reason, state.problem),
    }
    status = {
        "observedGeneration": found.generation,
        "fingerprint": whole or found.status.get("fingerprint"),
        "activeVersion": state.version or None,
        "lastRotatedAt": now if rotated else found.status.get("lastRotatedAt"),
        "keys": [{"name": name, "present": name in state.fingerprints} for name in names[:KEYS_TOLD]],
        "lastHandledReconcileAt": found.annotations.get("roost.dev/reconcile-at"),
        "conditions": [new_condition(found.status, k, v, found.generation, now) for k, v in verdicts.items()],
    }
    return {k: v for k, v in status.items() if v is not None}
