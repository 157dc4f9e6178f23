"""What is not the operator's fault: the API server and etcd go away, the clock jumps, another cluster shares the org.

The measure is the same everywhere: what is declared comes true, and an Agent that was at its goal is neither restarted
nor changed at Fly.
"""

import json
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from api_proxy import ApiProxy, serving_pair, watches
from process_bed import Bed, Broken, Clock, Tail, changes, writes
from process_rivals import lease
from process_schedules import CREATED, GROWN, SHORT_LEASE, UPDATED, Account, Strike, Trap, leave

from roost.kube.roots import SECRET_NAME
from roost.local import recipes

_LIVED = ("machine_started", "machine_exited", "machine_stopped", "machine_updated", "machine_destroyed")
ROOTS = f"/api/v1/namespaces/{recipes.NAMESPACE}/secrets"
MERGE = {"Content-Type": "application/merge-patch+json"}


@contextmanager
def undisturbed(bed: Bed, names: Iterable[str], *, most_writes: int = 1) -> Iterator[None]:
    """Within it nothing happens to these Agents at Fly, and each is written to `most_writes` times at most.

    One write may be right: an operator that has just started says that it has not heard an agent yet.
    """
    mine = tuple(f"roost-{name}-" for name in names)
    with closing(bed.tail()) as ledger, closing(bed.audit()) as audit:
        yield
        lines = [line for line in ledger.lines() if (line.get("app") or "").startswith(mine)]
        said = [f"{line['op']} by {line['agent']}" for line in changes(iter(lines))]
        said += [f"{line['event']} ({line['cause']})" for line in lines if line.get("event") in _LIVED]
        written = [w["objectRef"]["name"] for w in writes(audit.lines())]
        said += [f"{n} writes on {name}" for name in names if (n := written.count(name)) > most_writes]
    if said:
        raise Broken(f"Agents at their goal should be left alone, but: {'; '.join(said)}\n{bed.scene()}")


def api_server_away(bed: Bed, account: Account, seconds: float) -> None:
    """The API server is killed in the middle of a create and comes back on the same etcd after so many seconds."""
    _away_in_a_create(bed, account, "kube-apiserver", "create_volume", f"API server away for {seconds:g} s", seconds)


def etcd_restarted(bed: Bed, account: Account, seconds: float) -> None:
    """etcd is killed while an Agent is being made, and comes back with its data after so many seconds."""
    _away_in_a_create(bed, account, "etcd", "create_machine", f"etcd away for {seconds:g} s", seconds)


def _away_in_a_create(bed: Bed, account: Account, program: str, call: str, says: str, seconds: float) -> None:
    _settle(bed, "calm", "still")
    with account.schedule(says), undisturbed(bed, ("calm", "still"), most_writes=2):
        with closing(Trap(bed, Strike("before", op=call, app="roost-half-*"))) as trap:
            bed.apply("half", CREATED)
            if trap.hit(lambda: bed.stack.kill(program, signal.SIGKILL)) is None:
                raise Broken(f"it was made without {call}")
        _while_away(bed, seconds)
        bed.stack.restart(program)
        bed.until_served()
        bed.apply("after", UPDATED)
        bed.until_reached()
    leave(bed)


def watches_break(bed: Bed, account: Account, rounds: int) -> None:
    """Watches end in half a line or say 410, and a deletion falls into the gap, while Agents are made and deleted."""
    bed.end_operators()
    access = bed.stack.admin
    with ApiProxy(access.server, access.ca_file, tls=serving_pair(bed.stack)) as proxy:
        bed.start(api_port=proxy.port, leaderElection=SHORT_LEASE)
        _settle(bed, "calm", "still")
        for number in range(rounds):
            half, gone = f"half-{number}", f"gone-{number}"
            with account.schedule("watches cut and expired"), undisturbed(bed, ("calm", "still")):
                bed.apply(gone, CREATED)
                proxy.cut_after(b'{"type":"MODIFIED","object":{"apiVersion":"roost.dev/v1al')
                bed.until_reached()
                with proxy.answers(410, on=watches("agents"), times=2):
                    proxy.cut()
                    bed.delete(gone)
                    bed.apply(half, CREATED)
                    proxy.says_expired()
                    bed.apply(half, GROWN)
                    bed.until_reached()
        leave(bed)
        bed.end_operators()


def clock_jumps(bed: Bed, account: Account, seconds: float) -> None:
    """The operator's wall clock jumps an hour ahead, then two back; after each it is watched for so many seconds.

    Only what this process reads as wall time is patched (process_zygote.py): the computer's clock is not touched.
    """
    clock = Clock(bed.folder / "clock")
    bed.end_operators()
    bed.start(clock=clock.path, leaderElection=SHORT_LEASE)
    _settle(bed, "calm", "still")
    for jump in (3600.0, -3600.0):
        with account.schedule(f"clock {'ahead' if jump > 0 else 'back'}"), undisturbed(bed, ("calm", "still")):
            clock.jump(jump)
            with closing(bed.audit()) as audit:
                bed.apply(f"at-{jump:.0f}", CREATED)
                bed.until_reached()
                bed.apply(f"at-{jump:.0f}", GROWN)
                bed.until_reached()
                _while_away(bed, seconds)
                _shows(audit, jump)
    leave(bed)
    bed.end_operators()


def _shows(audit: Tail, jump: float) -> None:
    """The operator really told the other time, else this proves nothing."""
    year = time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() + jump))
    before = time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() + jump - 60))
    told = json.dumps([write.get("requestObject") for write in writes(audit.lines())])
    if year not in told and before not in told:
        raise Broken(f"no status tells a time of {year}: the clock was not patched")


def unrelated_clusters(one: Bed, other: Bed, account: Account) -> None:
    """Two installations on one Fly org, with Agents of the same names: neither ever touches what is the other's."""
    for bed in (one, other):
        bed.start(leaderElection=SHORT_LEASE)
    with account.schedule("two installations on one org"):
        for bed in (one, other):
            bed.apply("twin", CREATED)
            bed.apply("calm", CREATED)
        for bed, neighbour in ((one, other), (other, one)):
            bed.until(
                "its Agents should have apps",
                lambda bed=bed: all("app" in a.get("status", {}) for a in bed.agents().values()),
            )
            neighbour.strangers |= {app_of(bed, name) for name in bed.made}
        for bed in (one, other):
            bed.until_reached()
        with closing(one.tail()) as ledger:
            other.apply("twin", UPDATED)
            other.until_reached()
            other.delete("twin")
            other.until_reached()
            mine = {app_of(one, name) for name in one.made}
            if touched := [c["op"] for c in changes(ledger.lines()) if c["app"] in mine]:
                raise Broken(f"the other cluster's Agent was changed, and ours had {', '.join(touched)}")
    with account.schedule("roost cleanup of one installation"), undisturbed(one, tuple(one.made)):
        clean_up(other)
        one.until_reached()
    leave(other)
    for bed in (one, other):
        account.judge(bed)


def restored_backup(one: Bed, other: Bed, account: Account) -> None:
    """The second cluster gets the first one's roots and Agents, as a restore drill does: it only reads."""
    other.end_operators()
    roots = one._done(one.api.get(f"{ROOTS}/{SECRET_NAME}")).json()
    other._done(other.api.patch(f"{ROOTS}/{SECRET_NAME}", headers=MERGE, json={"data": roots["data"]}))
    one.start(leaderElection=SHORT_LEASE) if not one.operators else None
    for name in ("calm", "still"):
        one.apply(name, CREATED)
    one.until_reached()
    with account.schedule("restored backup: cleanup without Agents"), undisturbed(one, ("calm", "still")):
        clean_up(other)
        one.until_reached()
    with account.schedule("restored backup: its operator only reads"), undisturbed(one, ("calm", "still")):
        other.start(leaderElection=SHORT_LEASE)
        with closing(one.tail()) as ledger:
            for name in ("calm", "still"):
                other.apply(name, UPDATED)
            other.until("both should say that their cluster has moved", lambda: _moved(other, ("calm", "still")))
            identity, _ = lease(other)
            other.delete("still")
            _while_away(other, 3.0)
            if did := [c["op"] for c in changes(ledger.lines()) if identity in c["agent"]]:
                raise Broken(f"a restored cluster should only read, but it did {', '.join(did)}")
        one.until_reached()
    other.end_operators()


def _moved(bed: Bed, names: Iterable[str]) -> bool:
    agents = bed.agents()
    return all(
        any(c["reason"] == "ClusterMoved" for c in agents[name].get("status", {}).get("conditions", ()))
        for name in names
    )


def clean_up(bed: Bed) -> None:
    """`roost cleanup --apply` of this bed's cluster, with no grace at all."""
    argv = ["cleanup", "--apply", "--yes-i-mean", recipes.FLY_ORG, "--grace", "0", "--json"]
    argv += ["--config", str(bed.settings()), "--kubeconfig", str(bed.stack.kubeconfig)]
    log = bed.folder / "cleanup.log"
    code = bed.zygote.start("operator", argv, bed.stack.operator_recipe().env, log).wait()
    if code != 0:
        raise Broken(f"roost cleanup ended with {code}:\n{log.read_text()[-2000:]}")


def app_of(bed: Bed, name: str) -> str:
    return str(bed.agents()[name]["status"]["app"]["name"])


def _settle(bed: Bed, *names: str) -> None:
    for name in names:
        bed.apply(name, CREATED)
    bed.until_reached()


def _while_away(bed: Bed, seconds: float) -> None:
    """Time passes; what ends is started again, as a kubelet does."""
    over = time.monotonic() + seconds
    bed.until("time should pass", lambda: time.monotonic() > over, seconds + 1)
