"""Starts processes of Roost in a moment: it has imported everything already, and forks one on request.

    python process_zygote.py        one JSON line in, one JSON line out; end of input kills all that it started

    {"start": "operator", "argv": […], "env": {…}, "log": PATH, "clock": PATH or null}  →  {"pid": n}
    {"ended": pid}                                                  →  {"code": n, minus the signal, or null: it runs}

What is forked is the real program: its own session, environment, log and event loop, killed and stopped like any other.
Only its clock can be another one: with `clock` a file of 8 bytes holds a double that is added to what `time.time()` and
`datetime.now()` tell in this process, at every look. What C code reads by itself (TLS, timers, which are monotonic) is
not touched, and neither is the machine's clock. Two constants of theirs are shorter, since
this flysim tells of everything at once: for how long a 404 proves nothing of what may just have been made (a minute and
a half; a process that has just started must take all that it finds for young), and how far two looks are apart that
prove an absence (5 s).
"""

import faulthandler
import gc
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def operator(argv: list[str]) -> int:
    from roost.cli import main

    return main(argv)


def fly(argv: list[str]) -> int:
    from flysim.cli import main

    return main(argv)


YOUNG_SECONDS = 1.5
LOOKS_APART_SECONDS = 0.5
PROGRAMS: dict[str, Callable[[list[str]], int]] = {"operator": operator, "fly": fly}


def main() -> None:
    import_everything()
    gc.collect()
    gc.freeze()  # the children share these pages
    children: set[int] = set()
    try:
        print(json.dumps({"ready": len(sys.modules)}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            if "start" in request:
                children.add(pid := start(**request))
                answer: dict[str, Any] = {"pid": pid}
            else:
                answer = {"code": ended(request["ended"], children)}
            print(json.dumps(answer), flush=True)
    finally:
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def import_everything() -> None:
    """What an operator and a flysim import at their start, and late."""
    import aiohttp.resolver  # noqa: F401
    import httpx_aiohttp  # noqa: F401
    import kopf  # noqa: F401
    import uvloop  # noqa: F401

    import flysim.cli  # noqa: F401
    import roost.cli
    import roost.run
    import roost.telemetry.logs  # noqa: F401
    from roost.agents import absence, fold

    fold.YOUNG_SECONDS, absence.LOOKS_APART_SECONDS = YOUNG_SECONDS, LOOKS_APART_SECONDS


def start(*, start: str, argv: list[str], env: dict[str, str], log: str, clock: str | None) -> int:
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        _redirect(log)
        faulthandler.register(signal.SIGUSR1)  # for a person: where it hangs, into its log
        os.environ.clear()
        os.environ.update(env)
        if clock is not None:
            shift_clock(clock)
        code = PROGRAMS[start](argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.close(out)
    os.close(null)


def ended(pid: int, children: set[int]) -> int | None:
    """The exit code (minus n: signal n) of a child, None while it runs. Asked once: then it is forgotten."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(status)


def shift_clock(path: str) -> None:
    """From now on this process tells the time with the offset (seconds, a double) that the file holds."""
    import datetime

    with open(path, "r+b") as file:  # noqa: PTH123
        page = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    real_time, real = time.time, datetime.datetime

    def offset() -> float:
        return float(struct.unpack("d", page[:])[0])

    class Alike(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class Shifted(real, metaclass=Alike):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return real.now(tz) + datetime.timedelta(seconds=offset())

    time.time = lambda: real_time() + offset()
    datetime.datetime = Shifted  # type: ignore[misc]
    for name, module in list(sys.modules.items()):
        if name.startswith("roost") and getattr(module, "datetime", None) is real:
            module.datetime = Shifted


if __name__ == "__main__":
    main()
