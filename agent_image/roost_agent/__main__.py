"""`python -m roost_agent`: the supervisor, as PID 1 of a machine or below another one."""

import asyncio
import os
import signal
import sys
import time

import structlog

from roost_agent import kernel, log
from roost_agent.contract.exits import Exit
from roost_agent.settings import TOKEN_VARIABLE, BadEnvironment, read

__all__ = ["main"]


def main() -> None:
    """Runs the supervisor and exits the process with one of `Exit`'s codes."""
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    log.set_up()
    try:
        settings = read(os.environ)
    except BadEnvironment as error:
        structlog.get_logger().error("bad environment", why=str(error))
        sys.stderr.write(f"roost-agent: {error}\n")
        sys.exit(Exit.BAD_ENVIRONMENT)
    kernel.hide(TOKEN_VARIABLE)
    kernel.adopt_orphans()

    from roost_agent.boot import live  # only now: a bad environment is told without loading the rest

    sys.exit(asyncio.run(live(settings, began)))


def _leave(_number: int, _frame: object) -> None:
    """Nothing has been started yet. A PID 1 does not even hear a signal for which it has no handler."""
    sys.exit(Exit.ASKED)


if __name__ == "__main__":
    main()
