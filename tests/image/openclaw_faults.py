"""Supervisors that something goes wrong in at one chosen point: what `Machine.run` starts instead of the real program.

Each fault is a few lines of Python that replace one function before the supervisor starts.
"""

import json
import sys
from pathlib import Path
from typing import Any

from machine import Machine

_BEFORE = """\
import errno, functools, os, pathlib, psutil, time
import roost_agent.boot, roost_agent.control as control, roost_agent.update as update
from roost_agent.doors import Doors
from roost_agent.reaper import Reaper
from roost_agent.snapshot import NotRestored, Snapshots
from roost_agent.tree import Tree
from roost_agent.update import Update
from roost_agent.volume import Volume

update._PROOF_SECONDS, update._GATE_SECONDS, control._AGAIN_SECONDS = {proof}, 10.0, 1.0

def die():
    "As a machine does: everything at once."
    for below in psutil.Process().children(recursive=True):
        below.kill()
    os.kill(os.getpid(), 9)

def around(owner, name, before=None, after=None):
    "Calls these with the arguments, before and after a method."
    real = getattr(owner, name)
    @functools.wraps(real)
    def wrapped(*args, **named):
        if before:
            before(*args, **named)
        given = real(*args, **named)
        if after:
            after(*args, **named)
        return given
    setattr(owner, name, wrapped)

def once(do):
    "Does it the first time only."
    calls = []
    def first(*args, **named):
        if not calls:
            calls.append(1)
            do()
    return first

def fail(number, text):
    raise OSError(number, text)

"""


def faulty(fault: str, *, proof: float = 1.0) -> tuple[str, ...]:
    """A supervisor with this fault, for which a new version has proved itself after so long."""
    program = f"{_BEFORE.format(proof=proof)}{fault}\nfrom roost_agent.__main__ import main; main()\n"
    return (sys.executable, "-c", program)


def memory(machine: Machine) -> dict[str, Any]:
    """What the supervisor remembers on the volume."""
    said: dict[str, Any] = json.loads((machine.data / ".roost" / "memory.json").read_text())
    return said


def snapshots(machine: Machine) -> list[Path]:
    """The archives of all that are kept."""
    return sorted((machine.data / ".roost" / "snapshots").glob("*.tar"))
