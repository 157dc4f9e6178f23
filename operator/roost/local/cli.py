"""`roost local up | down | status`: the stack from the command line.

Exit codes: 0 done, 1 it could not be done (the message says why), 3 `status` found that not everything runs.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from roost.local.binaries import BinariesError
from roost.local.cluster import ClusterError
from roost.local.processes import StillRunningError
from roost.local.stack import Row, Stack, StackError, default_dir

NOT_RUNNING = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds up, down and status to the parser of `roost local`; `run` takes what it parsed."""
    commands = parser.add_subparsers(dest="local_command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start everything, return when it answers")
    up.add_argument("--no-operator", action="store_true", help="leave the operator out, to run it yourself")
    down = commands.add_parser("down", help="end everything")
    status = commands.add_parser("status", help="show what runs; exit code 3 when something does not")
    for command in (up, down, status):
        command.add_argument(
            "--dir", type=Path, default=default_dir(), help="where all state is kept (default: %(default)s)"
        )


def run(arguments: argparse.Namespace) -> int:
    """Does what `add_arguments` parsed; returns the exit code."""
    stack = Stack(arguments.dir, operator=not getattr(arguments, "no_operator", False), say=_say)
    try:
        match arguments.local_command:
            case "up":
                return _up(stack)
            case "down":
                return _down(stack)
            case _:
                return _status(stack)
    except (StackError, BinariesError, ClusterError, StillRunningError, OSError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted: everything is taken down again")
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m roost.local`: the same without the operator's other commands."""
    parser = argparse.ArgumentParser(
        prog="roost local", description="A local Kubernetes API, Fly simulator and operator"
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _up(stack: Stack) -> int:
    began = time.monotonic()
    # Without handlers SIGTERM would skip the clean-up of a start that is under way, and a shell that starts us in the
    # background has us ignore SIGINT.
    handlers = {signal.SIGTERM: _terminated, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        started = stack.up()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    running = "started" if started else "runs already"
    print(f"The local stack {running}" + (f" in {time.monotonic() - began:.1f} s." if started else "."))
    print()
    _table(stack.status())
    print()
    print(f"  export KUBECONFIG={stack.kubeconfig}")
    print("  kubectl get agents -A              # your agents")
    print(f"  curl -s {stack.fly_url}/_sim/machines   # the machines of the simulated Fly")
    print(f"  curl -H 'Host: APP.fly.dev' {stack.edge_url}   # a public agent; APP: its .status.app.name")
    print(f"  tail -F {stack.layout.logs}/*.log")
    print("  roost local down                   # ends everything; the next start begins empty")
    return 0


def _down(stack: Stack) -> int:
    ran = stack.down()
    print("The local stack is down." if ran else f"Nothing runs in {stack.layout.root}.")
    return 0


def _status(stack: Stack) -> int:
    rows = stack.status()
    if not rows:
        print(f"Nothing runs in {stack.layout.root}.")
        return NOT_RUNNING
    _table(rows)
    return 0 if all(row.running for row in rows) else NOT_RUNNING


def _table(rows: Sequence[Row]) -> None:
    print(f"  {'PROGRAM':<24}{'PID':>8}  {'UP SINCE':<20}{'RSS':>8}  ADDRESS")
    for row in rows:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.since)) if row.running else "not running"
        rss = f"{row.rss / 2**20:.0f} MB" if row.rss is not None else "-"
        print(f"  {row.name:<24}{row.pid:>8}  {since:<20}{rss:>8}  {row.address}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)
