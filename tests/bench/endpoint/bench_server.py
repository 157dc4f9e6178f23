"""The server of the endpoint's figures: the operator's own rooms on one core, without a cluster, in this process.

    python bench_server.py --core 0 --agents 10000 --callers FILE [--unlimited] [--certificate PEM --key PEM]

It prints where it listens, writes to the file who the Agents are, and then answers orders, one JSON line each: `held`
(heartbeats that are held open), `trim` (gives back to the system what is free, so that memory can be compared). It ends
with its standard input. Beside the endpoint a bare aiohttp.web server listens, for comparison: it reads the body of any
heartbeat and answers as much, after `wait` seconds if told to.
"""

import argparse
import asyncio
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path

import uvloop
from aiohttp import web

sys.path.append(str(Path(__file__).parents[2] / "unit" / "endpoint"))

import endpoint_world as worlds

from roost.endpoint.tls import Certificate
from roost.kube.client import Kube
from roost.kube.cluster import Cluster
from roost.run import _serve, settle
from roost.settings import EndpointLimits, EndpointTls
from roost.telemetry import logs
from roost.telemetry.metrics import Metrics


class Clock(worlds.Clock):
    """Time passes here, as it does in the operator."""

    def __init__(self) -> None:
        pass

    @property
    def now(self) -> float:  # type: ignore[override]
        return time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--callers", type=Path, required=True, help="file for one JSON line of each Agent")
    parser.add_argument("--unlimited", action="store_true", help="an agent may call as often as it likes")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    logs.set_up("info")
    uvloop.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    """Serves until standard input ends."""
    worlds.Clock = Clock  # type: ignore[misc]
    limits = worlds.MANY_CALLS if options.unlimited else EndpointLimits()
    certificate = _certificate(options.certificate, options.key) if options.certificate else None
    async with worlds.endpoint_world(limits, certificate) as world:
        world.access._successes = False  # as with the level at which the operator runs
        with options.callers.open("w") as file:
            for number in range(options.agents):
                caller = world.agent(f"agent-{number:05d}")
                known = (caller.did, caller.token, caller.machine, caller.memory.revision)
                file.write(json.dumps(known) + "\n")
        settle()  # as the operator, when it has looked at everything
        bare = await _serve(_bare(), "127.0.0.1:0")
        _say({"port": world.port, "bare": bare.addresses[0][1]})
        orders = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        async for line in orders:
            _say(_obeyed(world, line.strip().decode()))
        await bare.cleanup()


def _certificate(certificate: Path, key: Path) -> Certificate:
    """The operator's, with a pair from files and not from a Secret."""
    nowhere = Kube(Cluster("http://127.0.0.1:1", None), Metrics())
    made = Certificate(nowhere, "roost-system", EndpointTls(), Metrics(), lambda: None)
    made.context.load_cert_chain(certificate, key)
    return made


def _obeyed(world: worlds.EndpointWorld, order: str) -> object:
    match order:
        case "held":
            return world.metric("roost_long_polls")
        case "trim":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            return None
    raise ValueError(f"no such order: {order}")


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


def _bare() -> web.Application:
    async def post(request: web.Request) -> web.Response:
        await request.read()
        if wait := request.query.get("wait"):
            await asyncio.sleep(float(wait))
        return web.Response(text='{"commands": [], "nextHeartbeatSeconds": 30}', content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/agents/{did}/heartbeat", post)
    return app


if __name__ == "__main__":
    main()
