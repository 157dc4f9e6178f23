"""Where the control plane's programs come from, and that a half one never gets into the cache.

The programs here are shell scripts that tell a version, the host is a local server, and `go` is a script too: what is
tested is the way, not the compiler. `roost local up` on a machine without a cache tries the real ones.
"""

import hashlib
import io
import os
import platform
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from roost.local import binaries
from roost.local.binaries import PROGRAMS, BinariesError, Hosts, find

ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
SYSTEM = platform.system().lower()


def script(version: str) -> bytes:
    return f"#!/bin/sh\necho 'it is version v{version}'\n".encode()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)


def cached(cache_home: Path) -> list[str]:
    folder = cache_home / "roost" / "controlplane"
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


ALL_CACHED = sorted(f"{program.version}/{program.name}" for program in PROGRAMS)


@pytest.fixture
def unreachable() -> Hosts:
    """Hosts that refuse every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        yield Hosts(url, url)


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[Path, Hosts]]:
    """A folder that is served as both official hosts, with right programs and checksums."""
    root = tmp_path / "published"
    for program in PROGRAMS:
        if program.module == "kubernetes":
            path = root / f"v{program.version}/bin/{SYSTEM}/{ARCH}/{program.name}"
            put(path, script(program.version))
            put(path.with_name(f"{path.name}.sha256"), hashlib.sha256(path.read_bytes()).hexdigest().encode())
    stem = f"etcd-v{binaries.ETCD_VERSION}-{SYSTEM}-{ARCH}"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        info = tarfile.TarInfo(f"{stem}/etcd")
        info.size = len(script(binaries.ETCD_VERSION))
        tar.addfile(info, io.BytesIO(script(binaries.ETCD_VERSION)))
    put(root / f"v{binaries.ETCD_VERSION}/{stem}.tar.gz", archive.getvalue())
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    sums = f"{'0' * 64}  etcd-other.tar.gz\n{digest}  {stem}.tar.gz\n"
    put(root / f"v{binaries.ETCD_VERSION}/SHA256SUMS", sums.encode())

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield root, Hosts(url, url)
        server.shutdown()
        thread.join()


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """A `go` on a PATH of its own: notes how it is called, waits for a line in `gate` if there is one, then builds."""
    folder = tmp_path / "go"
    put(
        folder / "go",
        f"""#!/bin/sh
echo "$CGO_ENABLED $GOWORK $*" >> {folder}/calls
for last; do :; done
while [ "$1" != -o ]; do shift; done
out=$2; shift 2
printf half > "$out/half" 2>/dev/null || printf half > "$out"
[ ! -p {folder}/gate ] || read _ < {folder}/gate
[ ! -e {folder}/broken ] || {{ echo "no such package" >&2; exit 1; }}
for package; do
  case "$package" in
    go.etcd.io/*) printf '#!/bin/sh\\necho etcd Version: {binaries.ETCD_VERSION}\\n' > "$out"; chmod +x "$out" ;;
    *) f="$out/${{package##*/}}"; printf '#!/bin/sh\\necho v{binaries.KUBERNETES_VERSION}\\n' > "$f"; chmod +x "$f" ;;
  esac
  echo "$package" >&2
done
""".encode(),
    )
    return folder


def environment(cache_home: Path, *path: Path) -> dict[str, str]:
    """PATH has the given folders, and the few tools that the scripts here need."""
    tools = cache_home.parent / "tools"
    for name in ("sh", "chmod"):
        link = tools / name
        if not link.is_symlink():
            tools.mkdir(exist_ok=True)
            link.symlink_to(f"/bin/{name}")
    return {"XDG_CACHE_HOME": str(cache_home), "PATH": os.pathsep.join(map(str, (*path, tools)))}


def test_assets_come_first_and_are_not_copied(tmp_path: Path, unreachable: Hosts) -> None:
    for program in PROGRAMS:
        put(tmp_path / "assets" / program.name, script(program.version))
    environ = environment(tmp_path / "cache") | {"KUBEBUILDER_ASSETS": str(tmp_path / "assets")}
    found = find(environ=environ, say=print, hosts=unreachable)
    assert found.etcd == tmp_path / "assets" / "etcd"
    assert found.kubectl == tmp_path / "assets" / "kubectl"
    assert not (tmp_path / "cache").exists()


def test_assets_of_another_version_are_refused_in_a_sentence(tmp_path: Path, unreachable: Hosts) -> None:
    put(tmp_path / "assets" / "etcd", script("3.4.0"))
    environ = environment(tmp_path / "cache") | {"KUBEBUILDER_ASSETS": str(tmp_path / "assets")}
    with pytest.raises(
        BinariesError, match=r"is not etcd 3\.6\.7: it says 'it is version v3\.4\.0'; KUBEBUILDER_ASSETS"
    ):
        find(environ=environ, say=print, hosts=unreachable)


def test_downloads_are_checked_and_kept(tmp_path: Path, published: tuple[Path, Hosts], unreachable: Hosts) -> None:
    environ, said = environment(tmp_path / "cache"), list[str]()
    find(environ=environ, say=said.append, hosts=published[1])
    assert cached(tmp_path / "cache") == ALL_CACHED
    assert len(said) == len(PROGRAMS)
    again = find(environ=environ, say=said.append, hosts=unreachable)
    assert again.kube_apiserver.parent.name == binaries.KUBERNETES_VERSION
    assert len(said) == len(PROGRAMS)


def test_kubectl_on_the_path_is_good_enough(tmp_path: Path, published: tuple[Path, Hosts]) -> None:
    put(tmp_path / "bin" / "kubectl", script("1.30.0"))
    found = find(environ=environment(tmp_path / "cache", tmp_path / "bin"), say=print, hosts=published[1])
    assert found.kubectl == tmp_path / "bin" / "kubectl"
    assert "1.36.1/kubectl" not in cached(tmp_path / "cache")


@pytest.mark.parametrize("name", ["kube-apiserver", "etcd"])
def test_a_download_that_was_tampered_with_ends_everything(
    tmp_path: Path, published: tuple[Path, Hosts], go: Path, name: str
) -> None:
    root, hosts = published
    (victim,) = (p for p in root.rglob(f"{name}*") if p.name == name or p.name.endswith(".tar.gz"))
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(BinariesError, match="does not have its published checksum"):
        find(environ=environment(tmp_path / "cache", go), say=print, hosts=hosts)
    assert cached(tmp_path / "cache") == []
    assert not (go / "calls").exists()


def test_a_program_that_tells_another_version_is_not_kept(tmp_path: Path, published: tuple[Path, Hosts]) -> None:
    root, hosts = published
    (path,) = root.rglob("kube-apiserver")
    put(path, script("1.35.0"))
    put(path.with_name("kube-apiserver.sha256"), hashlib.sha256(path.read_bytes()).hexdigest().encode())
    with pytest.raises(BinariesError, match=r"is not kube-apiserver 1\.36\.1"):
        find(environ=environment(tmp_path / "cache"), say=print, hosts=hosts)
    assert "1.36.1/kube-apiserver" not in cached(tmp_path / "cache")


def test_without_download_and_go_there_is_one_sentence(tmp_path: Path, unreachable: Hosts) -> None:
    with pytest.raises(BinariesError) as caught:
        find(environ=environment(tmp_path / "cache"), say=print, hosts=unreachable)
    told = str(caught.value)
    assert "\n" not in told
    assert all(word in told for word in ("etcd 3.6.7", "127.0.0.1", "install Go", "KUBEBUILDER_ASSETS"))


def test_what_is_not_published_is_built(tmp_path: Path, unreachable: Hosts, go: Path) -> None:
    said = list[str]()
    find(environ=environment(tmp_path / "cache", go), say=said.append, hosts=unreachable)
    assert cached(tmp_path / "cache") == ALL_CACHED
    etcd, kubernetes = (go / "calls").read_text().splitlines()
    for call in (etcd, kubernetes):
        assert call.startswith("0 off build -mod=readonly -trimpath")
    assert "gitVersion=v1.36.1" in kubernetes
    assert any("3 packages compiled" in line for line in said)


def test_a_build_that_fails_shows_its_last_lines(tmp_path: Path, unreachable: Hosts, go: Path) -> None:
    (go / "broken").touch()
    with pytest.raises(BinariesError, match="no such package"):
        find(environ=environment(tmp_path / "cache", go), say=print, hosts=unreachable)
    assert cached(tmp_path / "cache") == []


def test_a_killed_build_leaves_nothing_that_counts(tmp_path: Path, unreachable: Hosts, go: Path) -> None:
    os.mkfifo(go / "gate")
    code = "import os, sys; from roost.local.binaries import *; find(say=print, hosts=Hosts(*sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, unreachable.kubernetes, unreachable.etcd]
    with subprocess.Popen(arguments, env=environment(tmp_path / "cache", go), stdout=subprocess.DEVNULL) as victim:
        gate = (go / "gate").open("w")  # opens when the build is under way
        victim.send_signal(signal.SIGKILL)
    half = list((tmp_path / "cache").rglob("etcd"))
    assert [path.read_text() for path in half] == ["half"]
    (go / "gate").unlink()
    gate.close()
    find(environ=environment(tmp_path / "cache", go), say=print, hosts=unreachable)
    assert cached(tmp_path / "cache") == ALL_CACHED


def test_two_at_once_build_once(tmp_path: Path, unreachable: Hosts, go: Path) -> None:
    os.mkfifo(go / "gate")
    environ = environment(tmp_path / "cache", go)
    waiting = threading.Event()

    def second_says(line: str) -> None:
        assert line.startswith("waiting for another process")
        waiting.set()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(find, environ=environ, say=lambda _: None, hosts=unreachable)
        with (go / "gate").open("w") as gate:
            second = pool.submit(find, environ=environ, say=second_says, hosts=unreachable)
            assert waiting.wait(30)
            (go / "gate").unlink()
            gate.write("\n")
        assert first.result(30) == second.result(30)
    assert len((go / "calls").read_text().splitlines()) == 2
