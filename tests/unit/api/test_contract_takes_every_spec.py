"""Whatever the API server lets through can be told to the agent: bounds here are never wider than in the contract."""

from hypothesis import given

from agent_specs import SPECS
from roost.agents import bundle
from roost.agents.view import Declared
from roost.api.agent import AgentSpec
from roost_agent.contract.bundle import ConfigBundle


@given(SPECS)
def test_every_spec_gives_a_bundle_that_is_read_back(spec: AgentSpec) -> None:
    declared = Declared("n" * 63, "a" * 52, "uid", 1, "1", (), False, {}, {}, spec)
    rendered = bundle.render(declared, "did:key:z6Mk", lambda ref: f"value of {ref}", "1:ab")
    assert ConfigBundle.read(rendered.write()) == rendered
