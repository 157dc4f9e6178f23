"""The page about the contract, held to its models: each example is understood, and shows every field."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from roost_agent.contract import HOT, Checkin, CommandType, ConfigBundle, Heartbeat, HeartbeatAnswer
from roost_agent.contract.wire import Wire

PAGE = (Path(__file__).parents[3] / "docs/reference/contract.md").read_text()


def example(of: type[Wire]) -> dict[str, Any]:
    """The page's example of a message, without its comments."""
    needed = {ConfigBundle: '"ConfigBundle"', Heartbeat: '"bootPhase"', Checkin: '"sandboxId"'}.get(of, '"commands"')
    [text] = [block for block in re.findall(r"```jsonc\n(.*?)```", PAGE, re.DOTALL) if needed in block]
    text = re.sub(r"\s//.*", "", text).replace("{…}", "{}").replace('"sha256": "…"', f'"sha256": "{"0" * 64}"')
    return json.loads(text.replace("…", "some"))


def lacking(model: BaseModel, shown: dict[str, Any], where: str = "") -> list[str]:
    """The fields of a message that its example does not show, those of its parts too."""
    found = [f"{where}{f.alias}" for f in type(model).model_fields.values() if f.alias not in shown]
    for name, field in type(model).model_fields.items():
        part, there = getattr(model, name), shown.get(str(field.alias))
        pairs = zip(part, there, strict=True) if isinstance(part, list) and there else [(part, there)]
        for one, given in pairs:
            if isinstance(one, BaseModel) and isinstance(given, dict) and given:
                found += lacking(one, given, f"{where}{field.alias}.")
    return found


@pytest.mark.parametrize("message", [ConfigBundle, Heartbeat, HeartbeatAnswer, Checkin])
def test_the_example_is_understood_and_shows_every_field(message: type[Wire]) -> None:
    shown = example(message)
    read = message.read(json.dumps(shown))
    read.write()  # refuses a field that nobody knows
    left = lacking(read, shown)
    assert [f for f in left if not f.startswith("commands.version")] == []  # of another command than the one shown


def test_the_hot_fields_are_those_of_the_schema() -> None:
    [said] = re.findall(r"\*\*Hot\*\* are (.*?), marked", PAGE)
    marked = {k for k, v in ConfigBundle.model_json_schema(by_alias=True)["properties"].items() if v.get(HOT)}
    assert set(re.findall(r"`(\w+)`", said)) == marked


def test_every_command_has_its_row() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| `\w+:<", PAGE, re.MULTILINE))
    assert rows == {str(c) for c in CommandType if c is not CommandType.UNKNOWN}
