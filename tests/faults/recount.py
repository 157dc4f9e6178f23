"""The figures of a sweep from the records of its runs alone: `python -m faults.recount DIR`, or `make verify-figures`.

Reads what `make faults` has kept: of each run Fly's ledger, and every version that the API server has held.
"""

import gzip
import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from faults.oracles import Version, judge


def recount(folder: Path) -> Counter[str]:
    """How many runs there are, and of each wrong how many were found. Prints each."""
    found: Counter[str] = Counter()
    with ProcessPoolExecutor() as pool:
        for said in pool.map(wrongs, sorted(folder.glob("*.json.gz")), chunksize=100):
            found["runs"] += 1
            for kind, sentences in said.items():
                found[kind] += len(sentences)
                print(*sentences, sep="\n", end="\n" if sentences else "")
    return found


def wrongs(path: Path) -> dict[str, list[str]]:
    """Of each kind what is wrong with one run, in sentences."""
    run = json.loads(gzip.decompress(path.read_bytes()))
    verdict = judge(run["ledger"], [Version(*version) for version in run["versions"]])
    return {kind: [f"{run['name']}: {kind}: {said}" for said in found] for kind, found in verdict.found.items()}


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 nothing wrong, 1 something is, 2 there are no records."""
    if len(argv) != 1 or not (found := recount(Path(argv[0]))):
        print("give the folder that make faults has filled (KEEP=dir)", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 1 if any(count for name, count in found.items() if name != "runs") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
