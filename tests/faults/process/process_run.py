"""`make faults-process`: real operators, API server, etcd and Fly over HTTP, under every process fault that there is.

    python process_run.py [--minutes 15] [--seed N]         everything; the last line is the figures as JSON
    python process_run.py --part lone --seed N --life K     one random life again (parts: see PARTS)

The parts run side by side, each on a bed of its own. Those with random lives fill the time box. The seed decides what
is done; when exactly a process is hit also depends on how fast the machine is just then, so a life that failed may have
to be played a few times. Logs, ledgers and audit logs stay in the directory that is named at the beginning.
Exit code 1 when a schedule did not converge or the records tell of an orphan, a double, an overlap or a wrong order.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from process_bed import Bed, Broken, bed
from process_outages import (
    api_server_away,
    clock_jumps,
    etcd_restarted,
    restored_backup,
    unrelated_clusters,
    watches_break,
)
from process_rivals import DEFAULT_TIMING, TIMING, RivalAssassin, ended, paused, two_replicas
from process_schedules import (
    CHANGES,
    SHORT_LEASE,
    Account,
    Assassin,
    Strike,
    killed_at_each_call,
    leave,
    random_life,
)

JUDGED_EVERY = 10
"""Lives; the records are read from their beginning each time."""


def calls(here: Bed, account: Account, options: argparse.Namespace) -> None:
    here.start(leaderElection=SHORT_LEASE)
    killed_at_each_call(here, account)


def lone(here: Bed, account: Account, options: argparse.Namespace) -> None:
    here.start(leaderElection=SHORT_LEASE)
    _lives(here, account, options, Assassin(here))


def rivals(here: Bed, account: Account, options: argparse.Namespace) -> None:
    two_replicas(here, SHORT_LEASE)
    _lives(here, account, options, RivalAssassin(here))


def leases(here: Bed, account: Account, options: argparse.Namespace) -> None:
    two_replicas(here, TIMING)
    paused(here, account, "at rest")
    for point in ("before", "after"):
        for op in (op for ops in CHANGES.values() for op in ops):
            held = Strike(point, op=op, hold=TIMING["leaseSeconds"] + 2)
            paused(here, account, f"{point} {op}", held=held)
    for number in (signal.SIGKILL, signal.SIGTERM):
        ended(here, account, number)
    here.end_operators()
    two_replicas(here, DEFAULT_TIMING)
    paused(here, account, "with the default lease")
    ended(here, account, signal.SIGKILL)


def outages(here: Bed, account: Account, options: argparse.Namespace) -> None:
    here.start(leaderElection=SHORT_LEASE)
    api_server_away(here, account, 60)
    etcd_restarted(here, account, 5)
    clock_jumps(here, account, 20)
    watches_break(here, account, 3)


def clusters(here: Bed, account: Account, options: argparse.Namespace) -> None:
    with bed(here.folder / "other", fly_of=here) as other:
        unrelated_clusters(here, other, account)
        restored_backup(here, other, account)
        leave(here)


PARTS: dict[str, Callable[[Bed, Account, argparse.Namespace], None]] = {
    f.__name__: f for f in (lone, rivals, calls, leases, outages, clusters)
}
LANES = (("lone",), ("rivals",), ("calls", "leases", "outages", "clusters"))


def _lives(here: Bed, account: Account, options: argparse.Namespace, assassin: Assassin) -> None:
    if options.life is not None:
        random_life(here, account, f"{options.seed}/{options.life}", assassin)
        return
    over = time.monotonic() + options.minutes * 60
    for number in count():
        if time.monotonic() > over:
            return
        life = f"{options.seed}/{number}"
        try:
            random_life(here, account, life, assassin)
            if number % JUDGED_EVERY == 0:
                account.judge(here)
        except Broken as broken:
            again = f"PART={options.part} SEED={options.seed} LIFE={number}"
            raise Broken(f"life {life}: {broken}\nonce more: make faults-process {again}") from None


def play(options: argparse.Namespace) -> int:
    """One part, in this process. The last line is its account as JSON."""
    account = Account(lambda line: print(f"{options.part:<9}{line}", flush=True))
    folder = options.dir / options.part
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.log"), *folder.glob("settings-*.yaml")):
        old.unlink()
    failure = ""
    with bed(folder, say=print) as here:
        try:
            PARTS[options.part](here, account, options)
            here.until_reached()
            account.judge(here)
        except Broken as broken:
            failure = str(broken)
            print(f"{options.part}: {failure}", flush=True)
    told = {"schedules": account.schedules, "converged": account.converged, "failover": account.failover}
    print(json.dumps(told | account.wrong | {"failure": failure}), flush=True)
    return 1 if failure else 0


def play_all(options: argparse.Namespace) -> int:
    """All parts, each a process of its own, one lane beside the other."""
    print(f"seed {options.seed}, logs in {options.dir}", flush=True)
    began, told = time.monotonic(), list[dict[str, Any]]()
    lanes = [threading.Thread(target=_lane, args=(lane, options, told)) for lane in LANES]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    failures = [t["failure"] for t in told if t["failure"]]
    for failure in failures:
        print(failure)
    figures = {name: sum(t[name] for t in told) for name in ("schedules", "converged")}
    figures |= {name: sum(len(t[name]) for t in told) for name in ("orphans", "doubles", "overlaps")}
    failover = max((seconds for t in told for seconds in t["failover"]), default=None)
    print(json.dumps(figures | {"failover_s": failover, "seconds": round(time.monotonic() - began)}))
    return 1 if failures or len(told) < len(PARTS) else 0


def _lane(parts: Sequence[str], options: argparse.Namespace, told: list[dict[str, Any]]) -> None:
    for part in parts:
        argv = [sys.executable, __file__, "--part", part, "--dir", str(options.dir)]
        argv += ["--seed", str(options.seed), "--minutes", str(options.minutes)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = ""
            for line in process.stdout:
                if last:
                    print(last, end="", flush=True)
                last = line
        with suppress(ValueError):
            told.append(json.loads(last))


def main() -> int:
    parser = argparse.ArgumentParser(
        description="operators under process faults", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15, help="how long the random lives go on")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random lives")
    parser.add_argument("--part", choices=list(PARTS), help="only this one")
    parser.add_argument("--life", type=int, help="with --part lone or rivals: only this one")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    parser.add_argument("--dir", type=Path, default=state / "roost" / "faults-process", help="for logs and records")
    options = parser.parse_args()
    return play(options) if options.part else play_all(options)


if __name__ == "__main__":
    sys.exit(main())
