"""Many lives of runtimes under the real Supervisor and Reaper, and what the process holds before and after them.

A program of its own, because a Reaper kills whatever it finds below its process:

    python tests/image/supervisor_lives.py ended=1000 killed=50

The kinds of lives are in `KINDS`. The last line of standard output is JSON: by kind `lives`, `seconds`, and what was
held `before` and `after` (see `held`).
"""

import asyncio
import gc
import json
import os
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from roost_agent import kernel, log
from roost_agent.contract.bundle import HttpGet, Readiness
from roost_agent.output import Output
from roost_agent.policy import LIVES, Life, Next
from roost_agent.reaper import Reaper
from roost_agent.runtime import Follow, Launch, Tell
from roost_agent.runtime.command import _follow
from roost_agent.supervisor import Supervisor

KINDS = {
    "ended": "ends by itself at once, with exit 0 or 1; every tenth while it is asked over HTTP whether it is ready",
    "killed": "is ready, and killed from outside",
    "orphans": "ends, and leaves one process in its group and one in a session of its own",
    "never": "is never ready, and ignores SIGTERM",
    "absent": "can't be started",
    "restarted": "is ended because another is wanted",
    "short": "is a short program: ends, is too slow, or can't be started",
}
_LINE = b'{"level": "info", "subsystem": "gateway", "message": "hello"}'
_ADDRESS = "127.0.0.1"
_GRACE_SECONDS = 0.05
_DEADLINE_SECONDS = 0.05
_HTTP_EVERY = 10
_LINES = 2000
"""So many lines of output are remembered."""
_SETTLE_SECONDS = 5.0


def held() -> dict[str, int]:
    """What this process holds; `bytes` is what Python has given out."""
    loop: Any = asyncio.get_running_loop()
    gc.collect()
    return {
        "children": len(psutil.Process().children(recursive=True)),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "readers": len(loop._selector.get_map()),
        "handlers": len(loop._signal_handlers),
        "timers": sum(not timer.cancelled() for timer in loop._scheduled),
        "bytes": tracemalloc.get_traced_memory()[0],
    }


async def settled(before: Mapping[str, int]) -> dict[str, int]:
    """What is held once the counts are as before, or after some seconds: who was killed is reaped a moment later."""
    until = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < until:
        after = held()
        if all(after[what] <= before[what] for what in before if what != "bytes"):
            break
        await asyncio.sleep(0.05)
    return after


class Lives:
    """One Supervisor, whose runtime is started anew without delay until it has lived so many times."""

    def __init__(self, reaper: Reaper, output: Output, port: int, kind: str) -> None:
        self._reaper = reaper
        self._output = output
        self._port = port
        self._kind = kind
        self._count = self._lived = 0
        self._supervisor = Supervisor(
            reaper,
            grace=_GRACE_SECONDS,
            before_start=lambda: None,
            changed=lambda: None,
            trouble=lambda _: None,
            clock=time.monotonic,
            random=lambda: 0.5,
        )
        self._running = asyncio.create_task(self._supervisor.run(None))

    async def end(self) -> None:
        self._supervisor.stop()
        await self._running

    async def run(self, count: int) -> None:
        """Returns when nothing of so many lives is left; the Supervisor then waits for another `run` or its end."""
        self._count, self._lived = count, 0
        match self._kind:
            case "ended":
                says = f"echo '{_LINE.decode()}'; echo an answer of the model; exit $(($$ % 2))"
                await self._live(self._launch(says, self._by_turns))
            case "killed":
                await self._live(self._launch("exec sleep 1000", self._shot_when_ready))
            case "orphans":
                leaves = "setsid sleep 1000 & sleep 1000 & exit 3"
                await self._live(self._launch(leaves, _follow(Readiness(), _ADDRESS)))
            case "never":
                get = HttpGet(path="/", port=1)  # nobody listens there
                said = Readiness.model_construct(http_get=get, initial_deadline_seconds=_DEADLINE_SECONDS)
                deaf = "trap '' TERM; while :; do sleep 1000; done"
                await self._live(self._launch(deaf, _follow(said, _ADDRESS)))
            case "absent":
                await self._live(self._launch("", _follow(Readiness(), _ADDRESS), shell="/nowhere/sh"))
            case "restarted":
                await self._restarts()
            case "short":
                await self._short_programs()

    async def _live(self, launch: Launch) -> None:
        await self._supervisor.restart(launch)
        await self._supervisor.until(lambda: self._supervisor.held)

    def _launch(self, script: str, follow: Follow, shell: str = "/bin/sh") -> Launch:
        env = {"PATH": os.environ["PATH"]}
        return Launch((shell, "-c", script), env, Path("/"), follow, self._policy, output=self._output.line)

    def _policy(self, lives: Sequence[Life], _: Callable[[], float]) -> Next:
        self._lived += 1
        return Next(0.0 if self._lived < self._count else None)

    @property
    def _by_http(self) -> Follow:
        return _follow(Readiness(http_get=HttpGet(path="/", port=self._port)), _ADDRESS)

    async def _by_turns(self, tell: Tell) -> str:
        follow = self._by_http if self._lived % _HTTP_EVERY == 0 else _follow(Readiness(), _ADDRESS)
        return await follow(tell)

    async def _shot_when_ready(self, tell: Tell) -> str:
        def ready(is_ready: bool) -> None:
            tell(is_ready)
            pid = self._supervisor.state.pid
            assert pid is not None, "it is followed for as long as it lives"
            os.kill(pid, signal.SIGKILL)

        return await self._by_http(ready)

    async def _restarts(self) -> None:
        launch = self._launch("exec sleep 1000", self._by_http)
        for number in range(self._count):
            await self._supervisor.restart(launch)
            if number % _HTTP_EVERY == 0:
                await self._supervisor.until(lambda: self._supervisor.ready)
        await self._supervisor.halt()

    async def _short_programs(self) -> None:
        programs = ("echo out; echo err >&2", "sleep 1000 & sleep 1000", "")
        for number in range(self._count):
            script = programs[number % len(programs)]
            argv = ("/bin/sh", "-c", script) if script else ("/nowhere/sh",)
            try:
                await self._reaper.run(argv, env=os.environ, cwd=Path("/"), user=None, seconds=_DEADLINE_SECONDS)
            except (OSError, TimeoutError):
                pass


async def live(counts: Mapping[str, int]) -> dict[str, Any]:
    """What was held before and after the lives of each kind."""

    async def here(_: web.Request) -> web.Response:
        return web.Response(text="ready", headers={"Connection": "close"})

    application = web.Application()
    application.router.add_get("/", here)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, _ADDRESS, 0).start()
    reaper = Reaper()
    tracemalloc.start()
    ticks = iter(range(sys.maxsize))
    output = Output(lambda: ("a-secret-of-the-agent",), clock=lambda: float(next(ticks)), room=lambda: True)
    for _ in range(_LINES):
        output.line(_LINE)
    found: dict[str, Any] = {}
    for kind, count in counts.items():
        lives = Lives(reaper, output, runner.addresses[0][1], kind)
        await asyncio.sleep(0)  # its Supervisor must have begun before it is asked for anything
        await lives.run(
            min(LIVES, count // 2)
        )  # threads are started, caches filled, as much remembered as ever will be
        before, began = await settled({"children": 0}), time.monotonic()
        await lives.run(count)
        seconds = round(time.monotonic() - began, 2)
        found[kind] = {"lives": count, "seconds": seconds, "before": before, "after": await settled(before)}
        await lives.end()
    await runner.cleanup()
    return found


def main() -> None:
    counts = {kind: int(count) for kind, count in (word.split("=") for word in sys.argv[1:])}
    assert counts.keys() <= KINDS.keys(), f"the kinds of lives are {', '.join(KINDS)}"
    log.set_up()
    kernel.adopt_orphans()
    print(json.dumps(asyncio.run(live(counts))))


if __name__ == "__main__":
    main()
