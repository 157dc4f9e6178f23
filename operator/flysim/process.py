"""Machines that are real processes, each in its own session, with its own loopback address, log and directories.

Promises: when a machine has ended, nothing that it started is left, whatever session it went to, as a VM takes
everything with it; every child is waited for, so there are no zombies; what a killed simulator left behind is found
again by pid and start time, or by machine id and state directory in its environment, and never by name. It touches no
process that carries neither. There is no isolation beyond that: machines share the host's files, network and user. So a
file that a machine is given lies below its own directory, and a variable whose value is that file's path in the machine
holds the path where it lies.
"""

import asyncio
import fcntl
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from pydantic import BaseModel, ConfigDict, Field

from flysim.inside import MachineSocket
from flysim.runner import BootError, Exit, Launch

_log = logging.getLogger(__name__)
_STATE = "FLY_SIM_STATE"
"""In the environment of every machine: whose it is, since a seed gives two simulators the same machine ids."""
_SOCKET = "FLY_API_SOCKET"
"""In the environment of every machine: its own socket, which lies at /.fly/api at Fly."""
_STARTED_TOLERANCE = 0.5
_KILL_SECONDS = 5.0
_ROUNDS = 5


class Image(BaseModel):
    """What an image reference stands for. Values of `env` may hold {volume}, {address} and {machine}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: list[str] = Field(min_length=1)
    env: dict[str, str] = {}


class Catalogue(BaseModel):
    """All images that can be pulled, by exact reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: dict[str, Image]


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells a machine's processes from all others, in whatever session they are."""

    machine: str
    state: Path

    def on(self, process: psutil.Process) -> bool:
        """Whether a process carries it. Raises psutil.Error for one that can't be looked at."""
        environment = process.environ()
        return environment.get(_STATE) == str(self.state) and environment.get("FLY_MACHINE_ID") == self.machine


class StateDirectory:
    """The directory of one simulator: taken for itself alone, cleared of what an earlier one left, then empty.

    Raises:
        OSError: another simulator uses it, or it holds files and was never a simulator's.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.machines = self.root / "machines"
        self.volumes = self.root / "volumes"
        self.ledger = self.root / "ledger.jsonl"
        self._lock = self._take()
        end_leftovers(self.root)
        for folder in (self.machines, self.volumes):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self.ledger.unlink(missing_ok=True)

    def release(self) -> None:
        """Lets another simulator have it; the files stay."""
        self._lock.close()

    def _take(self) -> IO[str]:
        lock = self.root / "flysim.lock"
        if self.root.is_dir() and any(self.root.iterdir()) and not lock.exists():
            raise FileExistsError(f"{self.root} is not empty and no state directory of flysim; name another one")
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise BlockingIOError(f"another flysim uses {self.root}") from error
        return file


class ProcessRunner:
    """A `flysim.runner.Runner`."""

    def __init__(self, state: StateDirectory, catalogue: Catalogue) -> None:
        self._state = state
        self._catalogue = catalogue

    async def start(self, launch: Launch) -> "ProcessInstance":
        if (image := self._catalogue.images.get(launch.image)) is None:
            raise BootError(f"image {launch.image} is not in the catalogue")
        folder = self._state.machines / launch.machine
        disk = folder / "disk"
        # As at Fly, the root file system of a machine starts afresh with every boot.
        await asyncio.to_thread(shutil.rmtree, disk, ignore_errors=True)
        volume = self.volume_path(launch.volume) if launch.volume is not None else disk
        names = {"volume": str(volume), "address": launch.address, "machine": launch.machine}
        environment = {"PATH": os.environ.get("PATH", os.defpath), **launch.environment, _STATE: str(self._state.root)}
        environment |= {key: _fill(value, names) for key, value in image.env.items()}
        places = {name: disk / name.lstrip("/") for name in launch.files}
        environment = {key: str(places.get(value, value)) for key, value in environment.items()}
        argv = [*(launch.command if launch.command is not None else image.command), *launch.arguments]
        door, path = MachineSocket(launch.api), folder / "api"
        try:
            disk.mkdir(parents=True)
            for name, content in launch.files.items():
                places[name].parent.mkdir(parents=True, exist_ok=True)
                places[name].write_bytes(content)
            if await door.open(path):
                environment[_SOCKET] = str(path)
            process = self._spawn(argv, environment, disk, launch.machine)
        except (OSError, ValueError) as error:
            await door.close()
            raise BootError(f"{argv[0]} can't be run: {error}") from error
        try:
            _record(folder / "process.json", launch.machine, process.pid)
        except OSError as error:  # a process that nobody could find again must not run
            process.kill()
            process.wait()
            await door.close()
            raise BootError(f"machine {launch.machine} can't be recorded: {error}") from error
        return ProcessInstance(process, Mark(launch.machine, self._state.root), door)

    def _spawn(
        self, argv: list[str], environment: dict[str, str], folder: Path, machine: str
    ) -> "subprocess.Popen[bytes]":
        with self.log_path(machine).open("ab") as log:
            return subprocess.Popen(
                argv,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def make_volume(self, volume_id: str) -> None:
        self.volume_path(volume_id).mkdir()

    async def drop_volume(self, volume_id: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self.volume_path(volume_id), ignore_errors=True)

    async def copy_volume(self, source_id: str, target_id: str) -> None:
        await asyncio.to_thread(_copy, self.volume_path(source_id), self.volume_path(target_id))

    async def used_bytes(self, volume_id: str) -> int:
        return await asyncio.to_thread(_bytes, self.volume_path(volume_id))

    def log_path(self, machine_id: str) -> Path:
        return self._state.machines / machine_id / "log"

    def volume_path(self, volume_id: str) -> Path:
        return self._state.volumes / volume_id


class ProcessInstance:
    """A `flysim.runner.Instance`: one process with all that it started.

    The process is reaped here and nowhere else, so its pid can't be somebody else's as long as it is signalled.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", mark: "Mark", door: MachineSocket) -> None:
        self._process = process
        self._mark = mark
        self._door = door
        self._family: list[psutil.Process] = []
        self._frozen: list[psutil.Process] = []
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        if self._process.returncode is not None:
            return
        # Once the main process is gone, nobody can tell whose children its children were. So what was known before a
        # second signal stays known: the first may have ended it already.
        self._family = [*{*self._family, *psutil.Process(self.pid).children(recursive=True)}]
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Blocks for a few milliseconds. Round by round: a process not yet frozen may have started another."""
        if self._process.returncode is not None:
            return
        self._frozen = []
        for _ in range(_ROUNDS):
            fresh = [process for process in self._living() if process not in self._frozen]
            if not fresh:
                return
            for process in fresh:
                _send(process, signal.SIGSTOP)
            self._frozen += fresh
        _log.error("machine %s starts processes faster than SIGSTOP reaches them", self._mark.machine)

    def thaw(self) -> None:
        """In the order of freezing turned round: a parent goes on when its children do."""
        for process in reversed(self._frozen):
            _send(process, signal.SIGCONT)
        self._frozen = []

    def _living(self) -> list[psutil.Process]:
        """The main process and all that is known to be of the machine."""
        try:
            main = psutil.Process(self.pid)
            known = [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            known = []
        return known + [process for process in _members(self.pid, self._mark) if process not in known]

    def on_exit(self, exited: Callable[[Exit], None]) -> None:
        self._watch = asyncio.create_task(self._wait(exited), name=f"process of {self._mark.machine}")

    async def _wait(self, exited: Callable[[Exit], None]) -> None:
        await _ended(self.pid)
        code = self._process.wait()
        await asyncio.to_thread(_end_family, self.pid, self._mark, self._family)
        await self._door.close()
        exited(Exit(code=code) if code >= 0 else Exit(signal=-code))


async def _ended(pid: int) -> None:
    """Returns when a child has ended; it is not reaped."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(pid)
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
    else:

        def watch() -> None:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=watch, daemon=True).start()
        await ended.wait()


def end_leftovers(root: Path) -> None:
    """Kills what machines of an earlier simulator with this state directory left running; blocks until it is gone."""
    for folder in sorted((root / "machines").glob("*")):
        session = _recorded(folder / "process.json")
        _end_family(session, Mark(folder.name, root.absolute()), [])


def _copy(source: Path, target: Path) -> None:
    """Copies a directory that a machine may be writing to: a file that goes away meanwhile is no error."""
    try:
        shutil.copytree(source, target, symlinks=True, ignore=_not_files)
    except shutil.Error as error:
        if any(Path(path).exists() for path, *_ in error.args[0]):
            raise


def _not_files(folder: str, names: list[str]) -> list[str]:
    """Sockets and pipes hold nothing that could be copied."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if not (path.is_symlink() or path.is_dir() or path.is_file())]


def _bytes(folder: Path) -> int:
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found += Path(parent, name).lstat().st_size
            except FileNotFoundError:  # a machine has just taken it away
                pass
    return found


def _fill(template: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def _record(path: Path, machine: str, pid: int) -> None:
    """`started` is in seconds after boot: with the pid it names a process for as long as the host is up."""
    try:
        process = psutil.Process(pid)
        started = round(process.create_time() - psutil.boot_time(), 2)
    except psutil.NoSuchProcess:  # it has ended and was reaped; there is nothing to find later
        path.unlink(missing_ok=True)
        return
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"machine": machine, "pid": pid, "started": started}))
    fresh.replace(path)


def _recorded(path: Path) -> int | None:
    """The session of a machine, when nothing else can have got its number: its leader lives, or is gone for good."""
    try:
        record = json.loads(path.read_text())
        pid, started = int(record["pid"]), float(record["started"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    try:
        now_there = psutil.Process(pid).create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None
    return pid if abs(now_there - started) <= _STARTED_TOLERANCE else None


def _end_family(session: int | None, mark: Mark, known: Iterable[psutil.Process]) -> None:
    """Kills everything of a machine, round by round until nothing is left: a fork may have slipped through a round."""
    family = [process for process in known if _lives(process)]
    for _ in range(_ROUNDS):
        if not (family := family + _members(session, mark)):
            return
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        for process in family:
            _wait_ended(process, _KILL_SECONDS)
        family = [process for process in family if _lives(process)]
    _log.error("machine %s left processes that SIGKILL does not end: %s", mark.machine, [p.pid for p in family])


def _members(session: int | None, mark: Mark) -> list[psutil.Process]:
    """Live processes of this session, or with this mark in their environment, other than ourselves."""
    return [process for pid in psutil.pids() if (process := _member(pid, session, mark)) is not None]


def _member(pid: int, session: int | None, mark: Mark) -> psutil.Process | None:
    if pid == os.getpid():
        return None
    try:
        process = psutil.Process(pid)
        ours = (session is not None and os.getsid(pid) == session) or mark.on(process)
    except (psutil.Error, OSError):
        return None
    return process if ours and _lives(process) else None


def _wait_ended(process: psutil.Process, seconds: float) -> None:
    """Returns when a process has ended, reaped or not: it may be the child of one that is slow to reap."""
    try:
        if not hasattr(os, "pidfd_open"):
            process.wait(seconds)
            return
        handle = os.pidfd_open(process.pid)
    except (psutil.Error, ProcessLookupError):
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        os.close(handle)


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
