"""A machine whose supervisor is a real PID 1: in a PID namespace, in a root directory that holds what the image holds.

The root directory comes from the image's own install script, once, and is kept in the cache; the supervisor's code in
it is a copy of this working tree's. All of it is mounted read-only; the data directory is a mount of its own, or not.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from endpoint import OperatorDouble
from machine import Machine

IMAGE = Path(__file__).parents[2] / "agent_image"
REQUIREMENTS = IMAGE.parent / "requirements" / "agent.txt"
UNUSED_SECONDS = 86_400
"""A root directory that nobody has used for so long is removed; one of other sources may be in use by a run beside."""

# $1: the root, $2: the code, $3: what to mount for data, empty for nothing; then the program, which takes the place of
# the shell and so is the namespace's first process. The mounts go away with it.
ENTER = """
set -e
root=$1 code=$2 data=$3
shift 3
mount --bind "$root" "$root"
mount --bind "$code" "$root/opt/roost/roost_agent"
mount -o remount,bind,ro "$root/opt/roost/roost_agent"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
if [ -n "$data" ]; then mount -t "$data" "$data" "$root/data"; fi
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


def why_not() -> str | None:
    """Why this machine can't do it; None when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root of a Linux machine can make a PID namespace with a root directory of its own"
    tried = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return f"unshare does not work here: {tried.stderr.strip()}" if tried.returncode else None


def root_directory() -> Path:
    """The root directory of an image without OpenClaw; made on first use, in half a minute."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roost" / "pid1"
    cache.mkdir(parents=True, exist_ok=True)
    sources = [(IMAGE / "install.sh").read_bytes(), REQUIREMENTS.read_bytes(), sys.version.encode()]
    root = cache / hashlib.sha256(b"".join(sources)).hexdigest()[:16]
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "opt" / "roost").exists():
            long_ago = time.time() - UNUSED_SECONDS
            unused = [each for each in cache.iterdir() if each.is_dir() and each.stat().st_mtime < long_ago]
            subprocess.run(["rm", "-rf", root, *unused], check=True)
            for step, prefix in (("base", root), ("supervisor", root / "opt" / "roost")):
                install(step, str(prefix))
        os.utime(root)
    return root


def install(*step: str) -> None:
    """Runs a step of the install script; what it says is shown when it fails."""
    environment = {**os.environ, "ROOST_PYTHON": sys.executable}
    done = subprocess.run([IMAGE / "install.sh", *step], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class FirstProcess(Machine):
    """A machine whose supervisor is the first process of its own PID namespace."""

    def __init__(self, operator: OperatorDouble, folder: Path, address: str, root: Path) -> None:
        super().__init__(operator, folder, address)
        self.root = root
        self.code = folder / "code"
        """A copy: what runs in there is root, and may try to write to it."""
        shutil.copytree(IMAGE / "roost_agent", self.code, ignore=shutil.ignore_patterns("__pycache__"))
        self.environment |= {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "DATA_DIR": "/data",
            "PYTHONPATH": "/opt/roost",
            "PYTHONDONTWRITEBYTECODE": "1",
            "ROOST_REQUIRE_MOUNT": "true",
        }

    def enter(self, *, mounted: bool = True, way: str = ENTER, **environment: str) -> None:
        """Starts the supervisor, its data directory a mount or not."""
        data = "tmpfs" if mounted else ""
        argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "sh", "-c", way, "enter", str(self.root)]
        argv += [str(self.code), data, "/usr/bin/env", "python3", "-m", "roost_agent"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=self.environment | environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def at(self, name: str) -> Path:
        """A file of the data directory, as this side sees it."""
        return Path("/proc", str(self.first.pid), "root", "data", name)

    @property
    def first(self) -> psutil.Process:
        """The supervisor, as this side of the namespace sees it."""
        (child,) = psutil.Process(self.pid).children()
        return child

    @staticmethod
    def nspid(process: psutil.Process) -> int:
        """The pid that a process has inside (proc(5), NSpid)."""
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:")))

    def inside(self) -> dict[int, psutil.Process]:
        """What runs in there beside the supervisor, the dead that nobody has taken in included, by the pid inside."""
        found = {}
        for process in self.first.children(recursive=True):
            try:
                found[self.nspid(process)] = process
            except (FileNotFoundError, ProcessLookupError):  # taken in while we looked
                continue
        return found

    async def stopped(self, signal_number: int) -> int:
        """Signals the supervisor from outside, as Fly does; returns its exit code."""
        self.first.send_signal(signal_number)
        return await self.ended()
