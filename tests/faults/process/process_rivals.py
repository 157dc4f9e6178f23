"""Two replicas, one writer: the leader is paused past its Lease and goes on, is killed, or is told to go.

A paused process is the hardest case: it can be stopped between the look at its Lease and the call, or with a call held
at Fly, and knows nothing of the time that passed. Who sent what is told by the identity in the User-Agent, in Fly's
ledger and in the audit log. A takeover's time counts from when the Lease may be taken (its last renewal and its length)
to the first change at Fly or write on an Agent by the other, for an Agent that was applied meanwhile.
"""

import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from typing import Any, Final

import httpx
from process_bed import Bed, Broken, Process, changes, writes
from process_schedules import CHANGES, CREATED, LIFE, Account, Assassin, Strike, Trap, ask, leave

from roost.local import recipes

LEASE: Final = f"/apis/coordination.k8s.io/v1/namespaces/{recipes.NAMESPACE}/leases/roost"
TIMING: Final = {"leaseSeconds": 3, "renewSeconds": 2, "retrySeconds": 0.4}
DEFAULT_TIMING: Final = {"leaseSeconds": 15, "renewSeconds": 10, "retrySeconds": 2}
EXIT_SECONDS: Final = 15.0


def two_replicas(bed: Bed, timing: dict[str, Any]) -> None:
    """Starts operators a and b; returns when both have read the cluster and one of them leads."""
    for name in ("a", "b"):
        bed.start(name, leaderElection=timing)
    bed.until("both replicas should be ready", lambda: all(map(bed.is_ready, ("a", "b"))))
    leader(bed)


def lease(bed: Bed) -> tuple[str, float]:
    """Who holds the Lease, and until when (epoch seconds), unless it is renewed; by what stands in it."""
    answer = bed.api.get(LEASE)
    if answer.status_code == httpx.codes.NOT_FOUND:
        return "", 0.0
    spec = answer.json()["spec"]
    until = datetime.fromisoformat(spec["renewTime"]).timestamp() + spec["leaseDurationSeconds"]
    return spec.get("holderIdentity") or "", until


def leader(bed: Bed) -> str:
    """The name of the operator that leads; waits until one that runs does."""

    def look() -> str | None:
        holder, until = lease(bed)
        if until < time.time():
            return None
        runs = (name for name, process in bed.operators.items() if process.host == holder.partition("_")[0])
        return next((name for name in runs if bed.operators[name].code is None), None)

    return bed.until("one of the operators should lead", look)


class Rival:
    """One leader that is about to lose its Lease, and a record of what is sent from here on."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.name = leader(bed)
        self.process: Process = bed.operators[self.name]
        self.identity, _ = lease(bed)
        self.hit_at = 0.0
        self.ledger, self.audit = bed.tail(), bed.audit()
        self._calls: list[dict[str, Any]] = []
        self._writes: list[dict[str, Any]] = []

    def close(self) -> None:
        self.ledger.close()
        self.audit.close()

    def hit(self, number: signal.Signals) -> None:
        """Sends the signal; after SIGKILL it is gone."""
        self.hit_at = time.time()
        self.process.send(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def sent(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """All changes at Fly and all writes on Agents since it was made."""
        self._calls += changes(self.ledger.lines())
        self._writes += writes(self.audit.lines())
        return self._calls, self._writes

    def successor_acted_at(self) -> float | None:
        """When another replica first changed or wrote something (epoch seconds)."""
        calls, written = self.sent()
        times = [call["at"] for call in calls if self.identity not in call["agent"]]
        times += [_received(w) for w in written if self.identity not in w.get("userAgent", "")]
        return min(times, default=None)

    def acted_since(self, moment: float) -> list[str]:
        """What the old one began after that moment and was granted."""
        calls, written = self.sent()
        said = [f"{c['op']} on {c['app']}" for c in calls if self.identity in c["agent"] and c["at"] > moment]
        granted = (w for w in written if w["responseStatus"]["code"] < 300)
        mine = (w for w in granted if self.identity in w.get("userAgent", "") and _received(w) > moment)
        return said + [f"{w['verb']} of Agent {w['objectRef']['name']}" for w in mine]


def _received(write: dict[str, Any]) -> float:
    return datetime.fromisoformat(write["requestReceivedTimestamp"]).timestamp()


def paused(bed: Bed, account: Account, what: str, *, held: Strike | None = None) -> None:
    """The leader is stopped past its Lease and goes on; with `held` while that call of its is held at Fly.

    The held call comes true (or not) while the other replica is at work. When the old one goes on it must begin
    nothing that has an effect, and end with exit code 1.
    """
    name = what.replace(" ", "-").replace("_", "-")
    with account.schedule(f"leader paused {what}"), closing(Rival(bed)) as old:
        if held is None:
            old.hit(signal.SIGSTOP)
        else:
            _hold(bed, name, held, lambda: old.hit(signal.SIGSTOP))
        free_at = lease(bed)[1]
        bed.apply(f"{name}-meanwhile", CREATED)
        acted_at = bed.until("the other replica should take over", old.successor_acted_at)
        account.failover.append(round(acted_at - free_at, 3))
        bed.until("the held call should be answered", lambda: not held or time.time() > old.hit_at + held.hold)
        old.process.send(signal.SIGCONT)
        if (code := old.process.wait(EXIT_SECONDS)) != 1:
            raise Broken(f"a leader that lost its Lease should end with 1, not {code}\n{bed.scene()}")
        bed.until_reached()
        if late := old.acted_since(old.hit_at):
            raise Broken(f"after it had lost its Lease, {old.identity} still did: {', '.join(late)}")
    _leave(bed)


def _hold(bed: Bed, name: str, strike: Strike, hit: Callable[[], None]) -> None:
    """Leads an Agent to where the strike's operation is due, and hits when it is held."""
    for step, wanted in LIFE:
        with closing(Trap(bed, strike)) as trap:
            ask(bed, name, wanted)
            if trap.hit(hit) is not None:
                return
        bed.until_reached()
        if strike.op in CHANGES[step]:
            raise Broken(f"{step} did without {strike.op}")


def ended(bed: Bed, account: Account, number: signal.Signals) -> float:
    """The leader gets SIGKILL or SIGTERM. Answers the seconds until the other acted.

    After SIGKILL they count from when the Lease may be taken; after SIGTERM, which gives it back, from the signal.
    """
    with account.schedule(f"leader got {number.name}"), closing(Rival(bed)) as old:
        free_at = lease(bed)[1]
        old.hit(number)
        if number == signal.SIGKILL:
            free_at = lease(bed)[1]
        bed.apply(f"{number.name.lower()}-meanwhile", CREATED)
        acted_at = bed.until("the other replica should take over", old.successor_acted_at)
        seconds = round(acted_at - (free_at if number == signal.SIGKILL else old.hit_at), 3)
        account.failover.append(seconds)
        if number == signal.SIGTERM and (code := old.process.wait()) != 0:
            raise Broken(f"an orderly end should be 0, not {code}\n{bed.scene()}")
        bed.until_reached()
    _leave(bed)
    return seconds


class RivalAssassin(Assassin):
    """Kills the leader of two, or stops it, so that it goes on when the other is at work."""

    def __init__(self, bed: Bed) -> None:
        super().__init__(bed)
        self._stopped: list[Process] = []

    def hit(self, rng: random.Random) -> str:
        self.relieve()  # one must be left that can take over
        victim = self._bed.operators[leader(self._bed)]
        if rng.random() < 0.5:
            victim.end(signal.SIGKILL)
            return "killed"
        victim.send(signal.SIGSTOP)
        self._stopped.append(victim)
        return "stopped"

    def relieve(self) -> None:
        for process in self._stopped:
            process.send(signal.SIGCONT)
        self._stopped.clear()


def _leave(bed: Bed) -> None:
    leave(bed)
    bed.until("both replicas should be ready", lambda: all(map(bed.is_ready, ("a", "b"))))
