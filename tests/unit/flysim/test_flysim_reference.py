"""The reference page names what there is: flags, operations, fields of faults, causes."""

import re
from pathlib import Path

import pytest

from flysim.cli import main
from flysim.faults import Order
from flysim.routes import OPERATIONS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "flysim.md").read_text()


def test_every_flag_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert {flag for flag in flags if f"| `{flag}" not in PAGE} == set()


def test_every_operation_and_field_of_a_fault_is_on_the_page() -> None:
    assert {op for op in OPERATIONS if op not in PAGE} == set()
    assert {field for field in Order.model_fields if f"`{field}`" not in PAGE} == set()


def test_every_event_and_cause_is_on_the_page() -> None:
    source = "".join(path.read_text() for path in (ROOT / "operator" / "flysim").glob("*.py"))
    events = set(re.findall(r'(?:_tell|ledger\.event)\(\s*"(\w+)"', source))
    causes = set(re.findall(r'because\("([^"]+)"\)|Origin\(cause="([^"]+)"\)', source))
    assert len(events) > 15
    assert {event for event in events if event not in PAGE} == set()
    assert {cause for pair in causes for cause in pair if cause and f"`{cause}`" not in PAGE} == set()
