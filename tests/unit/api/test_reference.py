"""The reference pages: complete, and every link in them leads somewhere."""

import re

import pytest

from roost.api import generate, reference
from roost.api.block import Kind
from roost.api.conditions import ConditionType, Reason
from roost.api.crd import KINDS, resolved

PAGES = reference.pages()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_field_has_a_row(kind: Kind) -> None:
    rows = set(re.findall(r"^\| `([A-Za-z]+)` \|", PAGES[f"{kind.singular}.md"], re.MULTILINE))
    for block in (kind.spec, kind.status):
        assert resolved(block)["properties"].keys() <= rows


def test_every_condition_and_reason_has_a_row() -> None:
    for word in (*ConditionType, *Reason):
        assert f"| `{word}` | {word.doc} |" in PAGES["conditions.md"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        page = PAGES.get(path or name)
        if page is None:
            assert (generate.CHECKOUT / "docs/reference" / path).resolve().is_file(), target
        if anchor:
            assert page is not None
            headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("name", PAGES)
def test_tables_have_no_holes(name: str) -> None:
    for line in PAGES[name].splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            assert cells[-1].strip(), line
            assert len(cells) in (2, 4), line
