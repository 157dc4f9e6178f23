"""The command line: `flysim serve`, and `flysim fault …` for one that runs."""

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from flysim.clock import Clock
from flysim.edge import Edge
from flysim.faults import Order, read_orders
from flysim.http import Server
from flysim.process import Catalogue, ProcessRunner, StateDirectory
from flysim.runner import Runner
from flysim.sim import Sim
from flysim.virtual import Script, VirtualRunner
from flysim.world import Timing


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 after an orderly end, 1 when a running simulator refuses, 2 when it can't start."""
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _run_serve(options: argparse.Namespace) -> int:
    logging.basicConfig(format="flysim: %(levelname)s: %(message)s", level=logging.WARNING)
    try:
        catalogue = Catalogue.model_validate_json(options.images.read_bytes()) if options.images else None
        faults = read_orders(options.faults.read_bytes()) if options.faults else []
        state = StateDirectory(options.state)
    except (OSError, ValueError) as error:
        print(f"flysim: {error}", file=sys.stderr)
        return 2
    try:
        runner = ProcessRunner(state, catalogue) if catalogue is not None else _virtual(options.boot_seconds)
        return asyncio.run(_serve(options, state, runner, faults))
    finally:
        state.release()


def _virtual(boot: float) -> VirtualRunner:
    script = Script(boot=boot)
    return VirtualRunner(lambda _: script)


async def _serve(options: argparse.Namespace, state: StateDirectory, runner: Runner, faults: Sequence[Order]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sim = Sim(
        runner,
        Clock(time.time()),
        Random(options.seed),
        tokens=options.token,
        orgs=options.org or ["personal"],
        timing=_timing(options),
        rate_limits=options.rate_limits,
        ledger=state.ledger,
    )
    for order in faults:
        sim.faults.add(order)
    server, edge = Server(sim), Edge(sim)
    try:
        proxy = await edge.start(*options.edge) if options.edge is not None else None
        print(f"flysim: listening on {await server.start(*options.listen)}", flush=True)
        if proxy is not None:
            print(f"flysim: edge on {proxy}", flush=True)
        await stop.wait()
    except OSError as error:
        print(f"flysim: can't listen: {error}", file=sys.stderr)
        return 2
    finally:
        await edge.close()
        await server.close()
        await sim.close()
    return 0


def _run_fault(options: argparse.Namespace) -> int:
    """A thin client of `/_sim/faults`; prints one JSON object a line."""
    try:
        match options.action:
            case "add":
                lines = [_ask(options.url, "POST", "faults", options.fault.encode())]
            case "list":
                lines = _ask(options.url, "GET", "faults")
            case _:
                lines = [_ask(options.url, "DELETE", f"faults/{options.id}" if options.id else "faults")]
    except urllib.error.HTTPError as error:
        print(f"flysim: {json.load(error)['error']}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"flysim: {options.url} can't be asked: {error}", file=sys.stderr)
        return 1
    for line in lines:
        print(json.dumps(line))
    return 0


def _ask(url: str, method: str, path: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(f"{url.rstrip('/')}/_sim/{path}", data=body, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as reply:
        return json.load(reply)


def _timing(options: argparse.Namespace) -> Timing:
    return Timing(
        prepare=options.prepare_seconds,
        replace=options.replace_seconds,
        active=options.active_seconds,
        unbind=options.unbind_seconds,
        suspend=options.suspend_seconds,
        idle=options.idle_seconds,
        restart=options.restart_seconds,
        hydrate=options.hydrate_seconds,
        snapshot=options.snapshot_seconds,
        list_lag=options.list_lag_seconds,
        app_young=options.app_young_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    usual = Timing()
    parser = argparse.ArgumentParser(prog="flysim", description="A Fly Machines API whose machines are processes.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API")
    serve.set_defaults(run=_run_serve)
    add = serve.add_argument
    add("--listen", type=_address, default="127.0.0.1:4280", metavar="HOST:PORT", help="default 127.0.0.1:4280")
    add("--state", type=Path, required=True, metavar="DIR", help="for machines, volumes and the ledger; begins empty")
    kind = serve.add_mutually_exclusive_group(required=True)
    kind.add_argument("--images", type=Path, metavar="FILE", help="the image catalogue (JSON); machines are processes")
    kind.add_argument("--virtual", action="store_true", help="machines have no processes, every image can be pulled")
    add("--boot-seconds", type=_seconds, default=0.0, metavar="S", help="a virtual machine boots so long, default 0")
    add("--edge", type=_address, metavar="HOST:PORT", help="the proxy for <app>.fly.dev, autostart and autostop too")
    add("--faults", type=Path, metavar="FILE", help="a fault plan to begin with (JSON list)")
    add("--token", action="append", required=True, metavar="TOKEN", help="a token that callers may use; repeatable")
    add("--org", action="append", metavar="NAME", help="an org that exists; repeatable, default personal")
    add("--seed", type=int, metavar="N", help="makes ids the same in every run")
    add("--rate-limits", action="store_true", help="enforce Fly's documented rate limits")
    for name, default, text in (
        ("prepare", usual.prepare, "a new machine stays created"),
        ("replace", usual.replace, "an update stays replacing"),
        ("active", usual.active, "a stopped machine refuses to start"),
        ("unbind", usual.unbind, "a volume stays bound to its destroyed machine"),
        ("suspend", usual.suspend, "a machine stays suspending"),
        ("idle", usual.idle, "the edge stops a machine with autostop that has had no connection"),
        ("restart", usual.restart, "a machine that ended waits for its restart policy"),
        ("hydrate", usual.hydrate, "a fork stays hydrating and a restored volume restoring"),
        ("snapshot", usual.snapshot, "a snapshot runs"),
        ("list-lag", usual.list_lag, "lists are behind"),
        ("app-young", usual.app_young, "a new app can't be read"),
    ):
        add(f"--{name}-seconds", type=_seconds, default=default, metavar="S", help=f"{text} so long, default {default}")
    _fault_commands(commands.add_parser("fault", help="order failures of a simulator that runs"))
    return parser


def _fault_commands(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run_fault)
    actions = parser.add_subparsers(required=True, dest="action", metavar="ACTION")
    add = actions.add_parser("add", help="order a fault; prints its id")
    add.add_argument("fault", metavar="JSON", help='such as {"op": "create_machine", "status": 500, "times": 1}')
    listed = actions.add_parser("list", help="show all faults and how often they hit")
    clear = actions.add_parser("clear", help="take one fault away, or all")
    clear.add_argument("id", nargs="?", help="as `add` printed it; all without it")
    for action in (add, listed, clear):
        action.add_argument("--url", default="http://127.0.0.1:4280", metavar="URL", help="default %(default)s")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _seconds(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
