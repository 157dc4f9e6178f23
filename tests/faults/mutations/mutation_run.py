"""Switches off one safety rule at a time and sees a test turn red: a proof that can't fail proves nothing.

    python tests/faults/mutations/mutation_run.py [--only NAME …] [--processes 2]

Works on copies in a temporary folder; the code here is never touched. The tests must be green on the unchanged copy,
and each mutation must turn one of its own red, by a test that fails: a mutation that can't be imported proves nothing.
The last line is JSON; the exit code is 1 when a mutation survives.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).parents[3]
COPIED = ("operator", "agent_image", "tests", "pyproject.toml", "crds", "manifests", "docs")
PATIENCE = 240
"""Seconds for the tests of one mutation; a test that hangs is ended by pytest before."""
FAILED = 1
"""pytest's exit code when tests ran and some failed; others mean that they could not be run."""


class Unusable(Exception):
    """The list does not fit the code, or the copy is not what is tested."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The code in a folder of its own, and how tests are run on it."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> "Copy":
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            elif source.exists():
                shutil.copy2(source, root / name)
        copy = cls(root)
        copy._check()
        return copy

    @contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """The copy with the mutation in it, and without it afterwards."""
        path = self.root / mutation.file
        before = path.read_text()
        path.write_text(applied(mutation, before))
        try:
            yield
        finally:
            path.write_text(before)

    def run(self, tests: Sequence[str]) -> tuple[int, str]:
        """Runs tests up to the first that fails: pytest's exit code and the last of what it said."""
        order = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--timeout=60"]
        return self._call([*order, *tests])

    def _check(self) -> None:
        """The package is installed in place: what is imported must be the copy all the same."""
        told = "import flysim, roost, roost_agent; print(*(m.__path__[0] for m in (flysim, roost, roost_agent)))"
        code, said = self._call([sys.executable, "-c", told])
        if code or not all(Path(where).is_relative_to(self.root) for where in said.split()):
            raise Unusable(f"not the copy in {self.root} is imported: {said}")

    def _call(self, order: list[str]) -> tuple[int, str]:
        paths = os.pathsep.join(str(self.root / part) for part in ("operator", "agent_image"))
        # No byte code: two edits of one file within a second would look the same.
        env = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                order, cwd=self.root, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            return -1, f"not done within {PATIENCE} s"
        return done.returncode, (done.stdout + done.stderr).strip()


def applied(mutation: Mutation, text: str) -> str:
    """The text of the file with the mutation in it.

    Raises:
        Unusable: the old text does not stand in it exactly once.
    """
    if (count := text.count(mutation.old)) != 1:
        raise Unusable(
            f'mutation "{mutation.name}": its old text stands {count} times in {mutation.file}, not once; '
            "write it as the code is now"
        )
    return text.replace(mutation.old, mutation.new)


def all_green(copy: Copy, chosen: Sequence[Mutation]) -> None:
    """Without a mutation all the tests must pass."""
    code, said = copy.run(sorted({test for mutation in chosen for test in mutation.tests}))
    if code:
        raise Unusable(f"the tests are not green on the code as it is:\n{said}")


def verdict(copies: "SimpleQueue[Copy]", mutation: Mutation) -> tuple[Mutation, str, float]:
    """`caught`, `SURVIVED`, or why it could not be told; and the seconds it took."""
    copy, began = copies.get(), time.monotonic()
    try:
        with copy.mutated(mutation):
            code, said = copy.run(mutation.tests)
    finally:
        copies.put(copy)
    told = {FAILED: "caught", 0: "SURVIVED"}.get(code, f"could not be told (pytest ended with {code}): {said[-600:]}")
    return mutation, told, time.monotonic() - began


def main() -> int:
    options = argparse.ArgumentParser(description="Switches off one safety rule at a time and sees a test turn red.")
    options.add_argument("--only", nargs="+", metavar="NAME", help="only mutations whose name has this in it")
    options.add_argument("--processes", type=int, default=2)
    given = options.parse_args()
    chosen = [m for m in MUTATIONS if not given.only or any(part in m.name for part in given.only)]
    if not chosen:
        options.error(f"--only: no mutation has any of {given.only} in its name; see mutation_list.py")
    caught = 0
    processes = min(given.processes, len(chosen))
    with tempfile.TemporaryDirectory(prefix="roost-mutations-") as temporary, ThreadPoolExecutor(processes) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for n in range(processes):
            copies.put(Copy.made(Path(temporary) / str(n)))
        try:
            for mutation in chosen:
                applied(mutation, (ROOT / mutation.file).read_text())
            print(f"{len(chosen)} mutations; first all their tests on the code as it is …", flush=True)
            copy = copies.get()
            all_green(copy, chosen)
            copies.put(copy)
        except Unusable as error:
            sys.exit(str(error))
        running = [pool.submit(verdict, copies, mutation) for mutation in chosen]
        for n, done in enumerate(as_completed(running), 1):
            mutation, told, seconds = done.result()
            caught += told == "caught"
            print(f"{n:3}/{len(chosen)} {seconds:5.1f} s  {told:9} {mutation.name}", flush=True)
            if told != "caught":
                print(f"      {mutation.why}: see {mutation.file}", flush=True)
    print(json.dumps({"mutations": len(chosen), "caught": caught}))
    return caught < len(chosen)


if __name__ == "__main__":
    sys.exit(main())
