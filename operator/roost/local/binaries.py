"""The programs of the local control plane: found, fetched or built, and checked before they are used.

Looked for in this order: the directory `KUBEBUILDER_ASSETS` names, the cache, the official downloads with their
checksums, a build from Go modules whose go.sum holds the checksums. The cache only ever holds whole programs that have
told their version: they are made beside it and moved in, by one process at a time.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

KUBERNETES_VERSION = "1.36.1"
ETCD_VERSION = "3.6.7"

CONNECT_SECONDS = 5.0
PROGRESS_SECONDS = 15.0

_VERSION_PACKAGE = "k8s.io/component-base/version"


class BinariesError(Exception):
    """The control plane's programs can't be had; the message says which, why, and what to do."""


class _Unreachable(Exception):
    """A download that this machine can't have; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program: its version, the Go module under `build/` that pins it, and how it tells its version."""

    name: str
    version: str
    module: str
    package: str
    version_arguments: tuple[str, ...] = ("--version",)


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where official programs are published (base URLs without a trailing slash)."""

    kubernetes: str = "https://dl.k8s.io"
    etcd: str = "https://github.com/etcd-io/etcd/releases/download"


@dataclass(frozen=True, slots=True)
class Binaries:
    """Paths of checked programs."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kubectl: Path


ETCD = Program("etcd", ETCD_VERSION, "etcd", "go.etcd.io/etcd/server/v3")
APISERVER = Program("kube-apiserver", KUBERNETES_VERSION, "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver")
CONTROLLER_MANAGER = Program(
    "kube-controller-manager", KUBERNETES_VERSION, "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"
)
KUBECTL = Program("kubectl", KUBERNETES_VERSION, "kubernetes", "k8s.io/kubernetes/cmd/kubectl", ("version", "--client"))
PROGRAMS = (ETCD, APISERVER, CONTROLLER_MANAGER, KUBECTL)


def find(
    *,
    environ: Mapping[str, str] = os.environ,
    say: Callable[[str], None],
    hosts: Hosts = Hosts(),
) -> Binaries:
    """All four programs, fetched or built when they are not at hand; `say` gets one line per step.

    Raises BinariesError with one sentence when a program can't be had on this machine.
    """
    found = {program.name: path for program in PROGRAMS if (path := _at_hand(program, environ)) is not None}
    missing = [program for program in PROGRAMS if program.name not in found]
    if missing:
        found |= _prepare(missing, cache_dir(environ), environ=environ, say=say, hosts=hosts)
    return Binaries(
        etcd=found[ETCD.name],
        kube_apiserver=found[APISERVER.name],
        kube_controller_manager=found[CONTROLLER_MANAGER.name],
        kubectl=found[KUBECTL.name],
    )


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where checked programs are kept, one folder per version."""
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".cache")
    return Path(base) / "roost" / "controlplane"


def check(program: Program, path: Path) -> str | None:
    """None when `path` runs and says the pinned version, else what is wrong with it."""
    try:
        done = subprocess.run(
            [str(path), *program.version_arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run: {error}"
    words = {word.removeprefix("v") for word in done.stdout.split()}
    if done.returncode == 0 and program.version in words:
        return None
    told = (done.stdout or done.stderr).strip().splitlines()
    return f"{path} is not {program.name} {program.version}: it says {told[0] if told else 'nothing'!r}"


def _at_hand(program: Program, environ: Mapping[str, str]) -> Path | None:
    """The program from KUBEBUILDER_ASSETS (must be right), PATH (kubectl only, any version) or the cache."""
    if assets := environ.get("KUBEBUILDER_ASSETS"):
        path = Path(assets) / program.name
        if path.exists():
            if wrong := check(program, path):
                raise BinariesError(f"{wrong}; KUBEBUILDER_ASSETS names this directory: correct or unset it.")
            return path
    if program is KUBECTL and (on_path := shutil.which("kubectl", path=environ.get("PATH", ""))):
        return Path(on_path)
    path = _cached(cache_dir(environ), program)
    return path if path.exists() and check(program, path) is None else None


def _cached(cache: Path, program: Program) -> Path:
    return cache / program.version / program.name


def _prepare(
    missing: Sequence[Program],
    cache: Path,
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    hosts: Hosts,
) -> dict[str, Path]:
    """Fetches or builds what is missing, alone, in a folder beside the cache that always goes away."""
    with _alone(cache, say):
        for left in cache.glob(".making-*"):  # of a process that was killed: the lock is ours, so nobody uses it
            shutil.rmtree(left, ignore_errors=True)
        todo = [p for p in missing if not _cached(cache, p).exists() or check(p, _cached(cache, p)) is not None]
        with tempfile.TemporaryDirectory(prefix=".making-", dir=cache, ignore_cleanup_errors=True) as folder:
            making = Path(folder)
            unreachable = _download(todo, making, hosts=hosts, say=say)
            still = [program for program in todo if not (making / program.name).exists()]
            if still:
                _build(still, making, environ=environ, say=say, why=unreachable)
            for program in todo:
                if wrong := check(program, making / program.name):
                    raise BinariesError(f"{wrong}.")
                _cached(cache, program).parent.mkdir(parents=True, exist_ok=True)
                (making / program.name).replace(_cached(cache, program))
    return {program.name: _cached(cache, program) for program in missing}


@contextmanager
def _alone(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the cache's lock; the kernel drops it when this process ends, however it ends."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares the programs in {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(todo: Sequence[Program], making: Path, *, hosts: Hosts, say: Callable[[str], None]) -> list[str]:
    """Fetches what is published for this machine; returns why the rest could not be fetched, one entry per host."""
    reasons: dict[str, str] = {}
    timeout = httpx.Timeout(60.0, connect=CONNECT_SECONDS)
    with httpx.Client(timeout=timeout, follow_redirects=True) as http:
        for program in todo:
            if program.module in reasons:
                continue
            try:
                if program is ETCD:
                    _download_etcd(program, making, http, hosts.etcd, say)
                else:
                    _download_kubernetes(program, making, http, hosts.kubernetes, say)
            except _Unreachable as reason:
                reasons[program.module] = str(reason)
    return list(dict.fromkeys(reasons.values()))


def _download_kubernetes(
    program: Program, making: Path, http: httpx.Client, host: str, say: Callable[[str], None]
) -> None:
    url = f"{host}/v{program.version}/bin/{_os()}/{_arch()}/{program.name}"
    expected = _get_text(http, f"{url}.sha256").split()[0]
    say(f"downloading {url}")
    _get_file(http, url, making / program.name, expected)
    (making / program.name).chmod(0o755)


def _download_etcd(program: Program, making: Path, http: httpx.Client, host: str, say: Callable[[str], None]) -> None:
    name = f"etcd-v{program.version}-{_os()}-{_arch()}.tar.gz"
    base = f"{host}/v{program.version}"
    lines = [line.split() for line in _get_text(http, f"{base}/SHA256SUMS").splitlines()]
    sums = {words[1]: words[0] for words in lines if len(words) == 2}
    if name not in sums:
        raise _Unreachable(f"{base} has no {name}")
    say(f"downloading {base}/{name}")
    archive = making / name
    _get_file(http, f"{base}/{name}", archive, sums[name])
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"{name.removesuffix('.tar.gz')}/{program.name}")
        if member is None:
            raise _Unreachable(f"{name} holds no {program.name}")
        with (making / program.name).open("wb") as out:
            shutil.copyfileobj(member, out)
    (making / program.name).chmod(0o755)


def _get_text(http: httpx.Client, url: str) -> str:
    try:
        answer = http.get(url)
    except httpx.TransportError as error:
        raise _Unreachable(f"{httpx.URL(url).host} can't be reached ({error or type(error).__name__})") from error
    if answer.status_code != httpx.codes.OK or not answer.text.strip():
        raise _Unreachable(f"{url} answers {answer.status_code}")
    return answer.text


def _get_file(http: httpx.Client, url: str, target: Path, expected: str) -> None:
    """Streams `url` to `target`. A wrong checksum ends everything (BinariesError): no other source is tried then."""
    digest = hashlib.sha256()
    try:
        with http.stream("GET", url) as answer, target.open("wb") as out:
            if answer.status_code != httpx.codes.OK:
                target.unlink()
                raise _Unreachable(f"{url} answers {answer.status_code}")
            for chunk in answer.iter_bytes(1 << 20):
                digest.update(chunk)
                out.write(chunk)
    except httpx.TransportError as error:
        target.unlink(missing_ok=True)
        raise _Unreachable(f"{url} broke off ({error or type(error).__name__})") from error
    if digest.hexdigest() != expected:
        target.unlink()
        raise BinariesError(f"{url} does not have its published checksum {expected} (it has {digest.hexdigest()}).")


def _build(
    programs: Sequence[Program],
    making: Path,
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    why: Sequence[str],
) -> None:
    """Builds programs from Go modules into `making`, one `go build` per module."""
    names = ", ".join(f"{program.name} {program.version}" for program in programs)
    go = shutil.which("go", path=environ.get("PATH", ""))
    if go is None:
        raise BinariesError(
            f"The local stack needs {names}; {', '.join(why)}, and there is no Go toolchain on PATH to build from "
            "source: install Go 1.26 or newer, or set KUBEBUILDER_ASSETS to a directory that has the programs."
        )
    say(f"{', '.join(why)}: building from source")
    for module in dict.fromkeys(program.module for program in programs):
        _build_module(go, module, [p for p in programs if p.module == module], making, environ=environ, say=say)


def _build_module(
    go: str,
    module: str,
    programs: Sequence[Program],
    making: Path,
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    folder = making / f"module-{module}"
    shutil.copytree(Path(__file__).parent / "build" / module, folder)
    # With several packages -o must be a directory, and each binary gets the last part of its package's path: etcd's
    # package ends in "server/v3", so a program that is alone is named itself.
    out = str(making / programs[0].name) if len(programs) == 1 else f"{making}/"
    command = [go, "build", "-mod=readonly", "-trimpath", "-v", "-ldflags", _ldflags(programs[0]), "-o", out]
    command += [program.package for program in programs]
    # Neither a workspace above nor flags of the user's may change what is built.
    env = {**environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}
    names = ", ".join(program.name for program in programs)
    lines = _run_with_progress(command, cwd=folder, env=env, what=f"building {names}", say=say)
    missing = [program.name for program in programs if not (making / program.name).exists()]
    if missing:
        raise BinariesError(f"go build of {', '.join(missing)} failed:\n" + "\n".join(lines[-15:]))


def _ldflags(program: Program) -> str:
    """A build from modules knows its own version only when it is told."""
    if program.module != "kubernetes":
        return "-s -w"
    major, minor, _ = program.version.split(".")
    values = {
        f"{_VERSION_PACKAGE}.gitVersion": f"v{program.version}",
        f"{_VERSION_PACKAGE}.gitMajor": major,
        f"{_VERSION_PACKAGE}.gitMinor": minor,
        f"{_VERSION_PACKAGE}.gitTreeState": "clean",
        "k8s.io/client-go/pkg/version.gitVersion": f"v{program.version}",
    }
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in values.items())])


def _run_with_progress(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], what: str, say: Callable[[str], None]
) -> list[str]:
    """Runs a `go build -v` to its end and returns what it printed; on any way out its whole process group is gone."""
    began = time.monotonic()
    lines: list[str] = []
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    reader = threading.Thread(target=_collect, args=(process.stderr, lines), daemon=True)
    reader.start()
    line = _ProgressLine(say)
    try:
        while True:
            try:
                process.wait(timeout=line.every)
                break
            except subprocess.TimeoutExpired:
                line.show(f"{what}: {time.monotonic() - began:.0f} s, {_packages(lines)}")
        reader.join()
        line.end(f"{what}: done in {time.monotonic() - began:.0f} s, {_packages(lines)}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stderr.close()
    return lines


def _collect(stream: IO[str], lines: list[str]) -> None:
    try:
        lines.extend(line.rstrip() for line in stream)
    except ValueError:  # closed under us: the build was given up
        return


def _packages(lines: Sequence[str]) -> str:
    fetched = sum(line.startswith("go: downloading") for line in lines)
    compiled = sum(not line.startswith(("go: ", "#")) for line in lines)
    return f"{compiled} packages compiled" + (f", {fetched} modules fetched" if fetched else "")


class _ProgressLine:
    """One line that is rewritten on a terminal; elsewhere a plain line now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._tty = sys.stderr.isatty()
        self.every = 1.0 if self._tty else PROGRESS_SECONDS

    def show(self, text: str) -> None:
        if self._tty:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        else:
            self._say(text)

    def end(self, text: str) -> None:
        if self._tty:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._say(text)


def _os() -> str:
    return platform.system().lower()


def _arch() -> str:
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
