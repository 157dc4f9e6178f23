"""What the page on OpenClaw agents shows is what the models take and what the contract means."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from roost.api import generate
from roost.api.agent import parse_agent_spec

PAGE = (generate.CHECKOUT / "docs/how-to/openclaw-agent.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
[CHECKSUM] = re.findall(r"```sh\n(python3 .*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[text.split(":", 1)[0] for text in EXAMPLES])
def test_an_example_is_read_as_it_stands(example: str) -> None:
    written = yaml.safe_load(example)
    spec = {"runtime": {"kind": "OpenClaw", "version": "2026.9.6"}} | (written.get("spec") or written)
    read = parse_agent_spec({"spec": spec}).model_dump(mode="json", by_alias=True)
    assert _within(spec, read) == spec


def test_the_checksum_of_a_skill_is_that_of_the_seed(tmp_path: Path) -> None:
    """A published manifest's files and checksum."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "SKILL.md").write_text("# Greeter\n\nSay hello.\n")
    (tmp_path / "scripts/index.mjs").write_text('export default async () => "hello";\n')
    printed = subprocess.run(["sh", "-c", CHECKSUM], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "ba1cd0d43b60e10774a78be1b49c63b2b4c512cb9753a935f27fad4ef9d1dd70"


def _within(wanted: Any, read: Any) -> Any:
    """What was read, without what was not written."""
    if isinstance(wanted, dict) and isinstance(read, dict):
        return {key: _within(value, read.get(key)) for key, value in wanted.items()}
    if isinstance(wanted, list) and isinstance(read, list):
        return [_within(*pair) for pair in zip(wanted, read, strict=True)]
    return read
