"""The figures of a sweep from the records of its runs alone: `python -m faults.recount DIR`.

Reads what `make faults KEEP=DIR` has kept: of each run Fly's ledger, and every version that the API server has held.
"""

import gzip
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from faults.oracles import Version, judge


def recount(folder: Path) -> Counter[str]:
    """How many runs there are, and of each wrong how many were found. Prints each."""
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("*.json.gz")):
        run = json.loads(gzip.decompress(path.read_bytes()))
        verdict = judge(run["ledger"], [Version(*version) for version in run["versions"]])
        found["runs"] += 1
        for kind, sentences in verdict.found.items():
            found[kind] += len(sentences)
            for sentence in sentences:
                print(f"{run['name']}: {kind}: {sentence}")
    return found


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 nothing wrong, 1 something is, 2 there are no records."""
    if len(argv) != 1 or not (found := recount(Path(argv[0]))):
        print("give the folder that make faults KEEP=DIR has filled", file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 1 if any(count for name, count in found.items() if name != "runs") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
