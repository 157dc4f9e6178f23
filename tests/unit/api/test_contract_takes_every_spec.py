"""Whatever the API server lets through can be told to the agent, in the words of the published schema: bounds here are
never wider than in the contract.
"""

import json

from hypothesis import given
from jsonschema import Draft202012Validator

from agent_specs import SPECS
from roost.agents import bundle
from roost.agents.view import Declared
from roost.api import generate
from roost.api.agent import AgentSpec
from roost.secrets.state import Ref
from roost_agent.contract.bundle import ConfigBundle

PUBLISHED = Draft202012Validator(generate.schema("config-bundle"))


def value_of(ref: Ref) -> str:
    return f"value of {ref}" if ref.key else '{"SKILL.md": "x"}'


@given(SPECS)
def test_every_spec_gives_a_bundle_that_is_read_back(spec: AgentSpec) -> None:
    declared = Declared("n" * 63, "a" * 52, "uid", 1, "1", (), False, {}, {}, spec)
    rendered = bundle.render(declared, "did:key:z6Mk", value_of, "token", "1:ab")
    assert ConfigBundle.read(rendered.write()) == rendered
    PUBLISHED.validate(json.loads(rendered.write()))
