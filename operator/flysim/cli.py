"""The command line: `flysim serve`."""

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from pydantic import ValidationError

from flysim.clock import Clock
from flysim.http import Server
from flysim.process import Catalogue, ProcessRunner, StateDirectory
from flysim.sim import Sim
from flysim.world import Timing


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 after an orderly end, 2 when it can't start."""
    options = _parser().parse_args(argv)
    logging.basicConfig(format="flysim: %(levelname)s: %(message)s", level=logging.WARNING)
    try:
        catalogue = Catalogue.model_validate_json(options.images.read_bytes())
        state = StateDirectory(options.state)
    except (OSError, ValidationError) as error:
        print(f"flysim: {error}", file=sys.stderr)
        return 2
    try:
        return asyncio.run(_serve(options, state, catalogue))
    finally:
        state.release()


async def _serve(options: argparse.Namespace, state: StateDirectory, catalogue: Catalogue) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sim = Sim(
        ProcessRunner(state, catalogue),
        Clock(time.time()),
        Random(options.seed),
        tokens=options.token,
        orgs=options.org or ["personal"],
        timing=_timing(options),
        rate_limits=options.rate_limits,
        ledger=state.ledger,
    )
    server = Server(sim)
    try:
        url = await server.start(*options.listen)
        print(f"flysim: listening on {url}", flush=True)
        await stop.wait()
    except OSError as error:
        print(f"flysim: can't listen: {error}", file=sys.stderr)
        return 2
    finally:
        await server.close()
        await sim.close()
    return 0


def _timing(options: argparse.Namespace) -> Timing:
    return Timing(
        prepare=options.prepare_seconds,
        replace=options.replace_seconds,
        active=options.active_seconds,
        unbind=options.unbind_seconds,
        restart=options.restart_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    usual = Timing()
    parser = argparse.ArgumentParser(prog="flysim", description="A Fly Machines API whose machines are processes.")
    serve = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("serve", help="serve the API")
    add = serve.add_argument
    add("--listen", type=_address, default="127.0.0.1:4280", metavar="HOST:PORT", help="default 127.0.0.1:4280")
    add("--state", type=Path, required=True, metavar="DIR", help="for machines, volumes and the ledger; begins empty")
    add("--images", type=Path, required=True, metavar="FILE", help="the image catalogue (JSON)")
    add("--token", action="append", required=True, metavar="TOKEN", help="a token that callers may use; repeatable")
    add("--org", action="append", metavar="NAME", help="an org that exists; repeatable, default personal")
    add("--seed", type=int, metavar="N", help="makes ids the same in every run")
    add("--rate-limits", action="store_true", help="enforce Fly's documented rate limits")
    for name, default, text in (
        ("prepare", usual.prepare, "a new machine stays created"),
        ("replace", usual.replace, "an update stays replacing"),
        ("active", usual.active, "a stopped machine refuses to start"),
        ("unbind", usual.unbind, "a volume stays bound to its destroyed machine"),
        ("restart", usual.restart, "a machine that ended waits for its restart policy"),
    ):
        add(f"--{name}-seconds", type=_seconds, default=default, metavar="S", help=f"{text} so long, default {default}")
    return parser


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
