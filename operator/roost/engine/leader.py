"""One writer among the replicas: a Lease says who, and a fence keeps everybody else from beginning a change.

Promises: at most one replica holds the Lease; what passes the fence begins within `renew` seconds of a renewal that
was *sent* then and answered, so before anybody else may take over; a lost Lease is never won back by the same process.
The leader's endpoint address stands in the Lease, for the others to pass heartbeats on to. Knows no keys, no agents.

The rules are client-go's: a candidate trusts its own clock alone and counts from when it *saw* the Lease change, so
clocks of different machines are never compared. A process that is stopped between fence and send can't be held back
here; that its late change is harmless is the business of names, versions and resourceVersions.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from roost.kube.client import Body, Conflict, Gone, KubeError, NotLeading
from roost.settings import LeaderElection

log = structlog.get_logger(__name__)
LEASE_NAME = "roost"
ENDPOINT_ANNOTATION = "roost.dev/endpoint"
LOOK_SECONDS = 1.0
"""How often a standby looks, so that a Lease that is given back is taken soon."""


class Leases(Protocol):
    """What is asked of the Kubernetes API; `roost.kube.client.Kube` is one."""

    async def get(self, path: str, /) -> Body: ...

    async def create(self, path: str, body: Body, /) -> Body: ...

    async def update(self, path: str, body: Body, /) -> Body: ...


class LeaseLost(Exception):
    """This process led and does no longer; it must end, so that its successor in this place begins as a standby."""


def boot_time() -> float:
    """Seconds that go on while the process is stopped and while the machine sleeps (Linux; else monotonic ones)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leader:
    """Takes part in the election until stopped.

    Args:
        identity: who this process is; another in each process, also after a restart in the same Pod.
        address: where other replicas reach this one's endpoint.
        clock: seconds that no stop of the process can halt.
    """

    def __init__(
        self,
        leases: Leases,
        namespace: str,
        timing: LeaderElection,
        identity: str,
        address: str,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._leases, self._timing, self._clock = leases, timing, clock
        self._identity, self._address = identity, address
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{LEASE_NAME}"
        self._seen: Body = {}
        self._there = False
        self._seen_at = float("-inf")
        self._renewed_at = float("-inf")
        self.acquired, self.lost = asyncio.Event(), asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that may change things."""
        holds = self.acquired.is_set() and not self.lost.is_set()
        return holds and self._clock() - self._renewed_at < self._timing.renew_seconds

    @property
    def leader_address(self) -> str | None:
        """Where the leader's endpoint is, when that is another replica and is known."""
        annotations = self._seen.get("metadata", {}).get("annotations") or {}
        theirs = self._holder and self._holder != self._identity
        return annotations.get(ENDPOINT_ANNOTATION) if theirs else None

    def fence(self) -> None:
        """Called before each change begins.

        Raises:
            NotLeading: it must not begin.
        """
        if not self.leads:
            raise NotLeading("this replica does not hold the Lease, or could not renew it in time")

    async def run(self) -> None:
        """Waits for the Lease, then keeps it; returns when it is lost. Cancel it to stop, then `release`."""
        while not self.acquired.is_set():
            await self._attempt(self._try_to_take)
            if not self.acquired.is_set():
                await asyncio.sleep(min(LOOK_SECONDS, max(0.0, self._free_at - self._clock())) or LOOK_SECONDS)
        log.info("leading", identity=self._identity)
        while not self.lost.is_set():
            await asyncio.sleep(self._timing.retry_seconds)
            await self._attempt(self._renew)
            if not self.leads:
                self.lost.set()
        log.error("the Lease is lost: nothing is changed any more", identity=self._identity, holder=self._holder)

    async def release(self) -> None:
        """Gives the Lease back, so that nobody waits until it runs out. Only when all that was begun has ended."""
        if self.leads:
            self.lost.set()
            try:
                self._seen = await self._leases.update(self._path, self._lease("", 1))
            except KubeError as error:
                log.info("the Lease could not be given back; it runs out", error=str(error))

    # --- One try -----------------------------------------------------------------------------------------------

    async def _attempt(self, step: Callable[[], Any]) -> None:
        """One try; one that hangs is given up in time for another before the Lease is too old."""
        try:
            async with asyncio.timeout(self._timing.renew_seconds / 2):
                await step()
        except (KubeError, TimeoutError) as error:
            log.info("the Lease could not be read or written", error=f"{type(error).__name__}: {error}")

    async def _try_to_take(self) -> None:
        await self._look()
        if self._clock() < self._free_at:
            return
        try:
            await self._store(taken=True)
        except (Conflict, Gone):
            return  # another was faster, or it was deleted: look again
        self.acquired.set()

    async def _renew(self) -> None:
        try:
            await self._store(taken=False)
        except (Conflict, Gone):
            # Somebody wrote to it: another holder, a person, or we ourselves in a try whose answer was lost.
            await self._look()
            if self._holder != self._identity:
                self.lost.set()

    async def _look(self) -> None:
        try:
            found = await self._leases.get(self._path)
        except Gone:
            self._there = False  # deleted by hand: its holder does not know yet, and what was seen of it still holds
            return
        if not self._there or found["metadata"]["resourceVersion"] != self._seen["metadata"]["resourceVersion"]:
            self._seen_at = self._clock()
        self._seen, self._there = found, True

    async def _store(self, *, taken: bool) -> None:
        """Writes the Lease over what was seen of it. Raises Conflict or Gone when that is not what is there."""
        now = self._clock()  # of the sending: when it arrived is not known
        body = self._lease(self._identity, self._timing.lease_seconds, taken=taken)
        if self._there:
            self._seen = await self._leases.update(self._path, body)
        else:
            self._seen = await self._leases.create(self._collection, body)
        self._there, self._renewed_at, self._seen_at = True, now, now

    def _lease(self, holder: str, seconds: int, *, taken: bool = False) -> Body:
        meta, before = dict(self._seen.get("metadata", {})) if self._there else {}, self._seen.get("spec", {})
        wall = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        annotations = (meta.get("annotations") or {}) | {ENDPOINT_ANNOTATION: self._address if holder else ""}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": meta | {"name": LEASE_NAME, "annotations": annotations},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": seconds,
                "acquireTime": wall if taken else before.get("acquireTime", wall),
                "renewTime": wall,
                "leaseTransitions": before.get("leaseTransitions", 0) + (1 if taken and self._seen else 0),
            },
        }

    @property
    def _holder(self) -> str:
        return self._seen.get("spec", {}).get("holderIdentity") or ""

    @property
    def _free_at(self) -> float:
        """From when on the Lease may be taken, by what was seen of it and by our own clock."""
        if self._holder in ("", self._identity):  # ours: taken in a try whose answer was lost
            return self._seen_at
        return self._seen_at + float(self._seen["spec"].get("leaseDurationSeconds") or self._timing.lease_seconds)
