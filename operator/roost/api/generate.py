"""Writes what follows from the models: the CRDs and the reference pages. `python -m roost.api.generate [ROOT]`.

ROOT is the checkout; by default the one that this file is in.
"""

import sys
from pathlib import Path

from roost.api import crd, reference

CHECKOUT = Path(__file__).resolve().parents[3]


def files() -> dict[str, str]:
    """Every generated file: path in the checkout to text."""
    return {f"crds/{name}": text for name, text in crd.manifests().items()} | {
        f"docs/reference/{name}": text for name, text in reference.pages().items()
    }


def main(root: Path) -> None:
    for path, text in files().items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKOUT)
