"""Writes what follows from the models: the CRDs, the schemas of the wire contract and the reference pages.

`python -m roost.api.generate [ROOT]`; ROOT is the checkout, by default the one that this file is in.
"""

import json
import sys
from pathlib import Path

from pydantic.json_schema import GenerateJsonSchema

from roost.api import crd, reference
from roost.api.crd import Schema
from roost_agent.contract import Checkin, ConfigBundle, Heartbeat, HeartbeatAnswer
from roost_agent.contract.bootstrap import TokenAnswer
from roost_agent.contract.wire import Wire

CHECKOUT = Path(__file__).resolve().parents[3]
MESSAGES: dict[str, type[Wire]] = {
    "config-bundle": ConfigBundle,
    "heartbeat": Heartbeat,
    "heartbeat-answer": HeartbeatAnswer,
    "checkin": Checkin,
    "token-answer": TokenAnswer,
}
"""What travels between operator and agent, by the name of its schema."""


def files() -> dict[str, str]:
    """Every generated file: path in the checkout to text.

    The schemas lie in a folder of their own, so that `kubectl apply -f crds` does not take them for objects.
    """
    return (
        {f"crds/{name}": text for name, text in crd.manifests().items()}
        | {f"crds/contract/{name}.schema.json": _json(schema(name)) for name in MESSAGES}
        | {f"docs/reference/{name}": text for name, text in reference.pages().items()}
    )


def schema(message: str) -> Schema:
    """The JSON Schema of a message, by its name in `MESSAGES`."""
    head = {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$comment": "Generated from roost_agent.contract by `make generate`; change the models, not this file.",
    }
    return head | MESSAGES[message].model_json_schema(by_alias=True, schema_generator=_Untitled)


def main(root: Path) -> None:
    for path, text in files().items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


class _Untitled(GenerateJsonSchema):
    """A field's name says enough; pydantic would add a title made of it."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        return False


def _json(document: Schema) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKOUT)
