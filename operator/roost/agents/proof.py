"""Whether a machine that proves itself with Fly's token is the Agent's: what it must say, against what we made.

The token itself was checked before (`roost.endpoint.oidc`): here its claims are only compared, and nothing is asked.
"""

from collections.abc import Mapping
from typing import Any

from roost.agents.memory import Installation, Memories, Memory
from roost.agents.sessions import Session
from roost.kube.records import Cache, Key
from roost.settings import Settings


class NotIts(Exception):
    """The machine is not this Agent's, or the Agent takes no such proof."""


class Replaced(Exception):
    """The machine was this Agent's, and another is now."""


class NotKnown(Exception):
    """Another machine was the Agent's when that was last written down, and nobody has looked since."""


class Proofs:
    """What the endpoint asks of the agents' room about machines without a stored token."""

    def __init__(self, cache: Cache, memories: Memories, here: Installation, settings: Settings) -> None:
        self._cache, self._memories, self._here, self._settings = cache, memories, here, settings

    @property
    def audience(self) -> str:
        """For whom a token must be."""
        return self._settings.endpoint.public_url

    def issuer(self, did: str) -> str:
        """Whose token it must be: the issuer of the Agent's org; for everybody else that of our own."""
        memory = self._proving(did)
        org = self._settings.fly.org if memory is None else self._place(memory)[0]
        return self._settings.fly.oidc_issuer.replace("{org}", org)

    def accept(self, did: str, claims: Mapping[str, Any]) -> tuple[Session, str, int]:
        """The agent, its heartbeat token and the epoch of that, for the claims of a good token.

        Raises:
            NotIts, Replaced, NotKnown
        """
        memory = self._proving(did)
        if memory is None:
            raise NotIts
        key = self._memories.key_of(did)
        assert key is not None
        machine, name = claims.get("machine_id"), claims.get("machine_name")
        ours = isinstance(name, str) and memory.names.is_machine(name)
        if claims.get("app_name") != self._place(memory)[1] or not isinstance(machine, str):
            raise NotIts
        current = self._current(memory)
        if current != machine and not ours:
            raise NotIts
        if current not in (None, machine):
            raise Replaced if memory.world.machines is not None else NotKnown
        if (digest := self._digest(memory, claims)) and claims.get("image_digest") != digest:
            raise NotIts
        epoch = memory.declared.spec.identity.token_epoch
        return Session(key, did), self._here.heartbeat_token(memory.declared, memory.incarnation), epoch

    def _proving(self, did: str) -> Memory | None:
        """The Agent with this DID, when its machine proves itself so."""
        key = self._memories.key_of(did)
        memory = self._memories.get(key) if key is not None else None
        return memory if memory is not None and memory.declared.spec.identity.proves_itself else None

    def _place(self, memory: Memory) -> tuple[str, str]:
        """Org and app: pinned, declared or derived."""
        spec, pinned = memory.declared.spec.fly, self._status(memory).get("app") or {}
        org = pinned.get("org") or spec.org or self._settings.fly.org
        return org, pinned.get("name") or spec.app or memory.names.app

    def _current(self, memory: Memory) -> str | None:
        """The id of its machine; None while that is not known, as when it boots before its create has answered."""
        if memory.machine_id is not None or memory.world.machines is not None:
            return memory.machine_id
        told: str | None = (self._status(memory).get("machine") or {}).get("id")
        return told

    def _digest(self, memory: Memory, claims: Mapping[str, Any]) -> str:
        """The digest that this version of its machine was made with; of one not yet seen, the pinned one, if any."""
        asked = (claims.get("machine_id"), claims.get("machine_version"))
        for seen in memory.world.machines or ():
            if (seen.id, seen.version) == asked and seen.image_digest:
                return seen.image_digest
        told = self._status(memory).get("machine") or {}
        if (told.get("id"), told.get("version")) == asked and "@" in (told.get("image") or ""):
            return str(told["image"]).partition("@")[2]
        return (memory.declared.spec.machine.image or self._settings.defaults.image).partition("@")[2]

    def _status(self, memory: Memory) -> Mapping[str, Any]:
        found = self._cache.get(Key("Agent", memory.declared.namespace, memory.declared.name))
        return found.status if found is not None else {}
