"""The page for those who come from other systems, held to its promise: every row, shown by tests that exist."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/reference/compatibility.md").read_text()
NOT_YET = {*range(11, 17), 22, 31, 47, 48}
"""Of the KYA supervisor: what belongs to agents that talk among themselves."""
EXPECTED = [
    *(f"S0-{n:02}" for n in range(1, 56) if n not in NOT_YET),
    *(f"S1-{n}" for n in range(90, 109)),
    *(f"S2-{n:02}" for n in range(1, 27)),
]
TEST = re.compile(r"`(tests/[\w/]+/test_\w+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of every row of the three tables."""
    lines = (line for line in PAGE.splitlines() if re.match(r"\| S\d-", line))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@functools.cache
def functions(file: str) -> frozenset[str]:
    """The tests of a file, parametrised ones under their one name; it is read, not run."""
    path = ROOT / file
    tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
    return frozenset(each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_row_is_there_once_and_in_its_place() -> None:
    assert [cells[0] for cells in rows()] == EXPECTED


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0])
def test_a_row_says_what_was_what_is_and_what_shows_it(cells: list[str]) -> None:
    assert len(cells) == 5
    assert all(cells)
    assert re.fullmatch(rf"{TEST.pattern}(, {TEST.pattern})*", cells[-1])


def test_every_test_that_is_named_anywhere_on_the_page_is_there() -> None:
    named = TEST.findall(PAGE)
    assert len(named) == len(re.findall(r"::", PAGE)), "something that looks like a test is none"
    assert [f"{file}::{name}" for file, name in named if name not in functions(file)] == []


def test_what_is_not_there_yet_is_said() -> None:
    [said] = re.findall(r"\*\*Not there yet\*\* (.*?)\. Accepted", PAGE, re.DOTALL)
    spans = re.findall(r"S0-(\d+)(?: to S0-(\d+))?", said)
    assert {n for first, last in spans for n in range(int(first), int(last or first) + 1)} == NOT_YET
    assert re.search(r"\*\*Not offered\*\* is S1-109", PAGE)
