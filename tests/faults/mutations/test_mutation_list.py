"""The list of mutations fits the code: each can still be applied, and names tests that exist."""

import ast
import functools
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]

from mutation_list import MUTATIONS, Mutation  # noqa: E402 - found by the path above
from mutation_run import ROOT, Unusable, applied  # noqa: E402


@functools.cache
def defined_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_can_be_applied_and_its_tests_exist(mutation: Mutation) -> None:
    mutated = applied(mutation, (ROOT / mutation.file).read_text())
    ast.parse(mutated)
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in defined_in(file)


def test_no_two_mutations_have_the_same_name() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


def test_a_list_that_the_code_has_left_behind_is_an_error() -> None:
    stale = Mutation("a", "b", "c.py", "gone", "new", ("d",))
    with pytest.raises(Unusable, match="stands 0 times in c"):
        applied(stale, "what is there now")
    with pytest.raises(Unusable, match="2 times"):
        applied(stale, "gone gone")
