"""The real OpenClaw for this machine: installed once by the image's own script, and kept in the cache.

What is in the cache lies there as in the image below /opt: `openclaw/<version>` and `node`. Each of them is whole and
as its lock says, or not there at all, and is made by one process at a time.
"""

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["VERSIONS", "OpenClawError", "find"]

VERSIONS = ("2026.9.6", "2026.9.5")
_IMAGE = Path(__file__).parents[3] / "agent_image"
_LOCK = "package-lock.json"


class OpenClawError(Exception):
    """OpenClaw can't be had on this machine; the message says why."""


def find(
    say: Callable[[str], None] = print,
    versions: Sequence[str] = VERSIONS,
    *,
    environ: Mapping[str, str] = os.environ,
    image: Path = _IMAGE,
) -> Path:
    """A directory with `node/bin/node` and `openclaw/<version>` for each version; `say` gets one line per step.

    The first time costs about a minute and 0.8 GB for each version, and needs npm with a registry or a warm cache.

    Raises:
        OpenClawError: something could not be installed.
    """
    opt = cache_dir(environ) / "opt"
    parts = {opt / "node": ("node",)} | {opt / "openclaw" / version: ("openclaw", version) for version in versions}
    locks = {prefix: image / "openclaw" / step[-1] for prefix, step in parts.items()}
    if unknown := [version for version in versions if not (image / "openclaw" / version / _LOCK).exists()]:
        raise OpenClawError(f"there is no lock for OpenClaw {', '.join(unknown)} in {image / 'openclaw'}.")
    if not all(_is_there(prefix, lock) for prefix, lock in locks.items()):
        with _alone(opt, say):
            for left in (*opt.glob(".installing-*"), *opt.glob("*/.installing-*")):  # of one that was killed
                _remove(left)
            for prefix, step in parts.items():
                if not _is_there(prefix, locks[prefix]):
                    _remove(prefix)
                    _install(image, step, prefix, say=say, environ={**environ, "ROOST_NODE": f"{opt}/node/bin/node"})
    return opt


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where it is kept."""
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".cache")
    return Path(base) / "roost" / "openclaw"


def _is_there(prefix: Path, locks: Path) -> bool:
    """Installed, and from these very locks: the script leaves a copy of them in what it makes."""
    for lock in locks.rglob(_LOCK):
        copy = prefix / lock.relative_to(locks)
        if not copy.exists() or copy.read_bytes() != lock.read_bytes():
            return False
    return True


@contextmanager
def _alone(opt: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the cache's lock; the kernel drops it when this process ends, however it ends."""
    opt.mkdir(parents=True, exist_ok=True)
    with (opt.parent / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {opt}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    """Removes what can't be written to, whoever we are."""
    if path.exists():
        subprocess.run(["chmod", "-R", "u+w", str(path)], check=False)
        subprocess.run(["rm", "-rf", str(path)], check=True)


def _install(
    image: Path, step: Sequence[str], prefix: Path, *, say: Callable[[str], None], environ: Mapping[str, str]
) -> None:
    name = " ".join(step)
    say(f"installing {name}")
    began = time.monotonic()
    done = subprocess.run(
        [str(image / "install.sh"), *step, str(prefix)], env=dict(environ), capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise OpenClawError(f"{name} could not be installed:\n{why}")
    say(f"installing {name}: done in {time.monotonic() - began:.0f} s")
