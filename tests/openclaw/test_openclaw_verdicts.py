"""What is rendered, OpenClaw itself takes; what it refuses is told in its own words."""

from typing import Any

from openclaw_bundles import BOTH, REALISTIC, bundle, package, rendered, run
from roost_agent.runtime.openclaw.check import refusals


@BOTH
async def test_openclaw_itself_takes_them_all_at_once(version):
    together: dict[str, Any] = {}
    for changes in REALISTIC.values():
        for field, value in changes.items():
            if field == "providers":
                together[field] = [*together.get(field, []), *value]
            else:
                together[field] = {**together.get(field, {}), **value} if isinstance(value, dict) else value
    one = bundle(runtime={"kind": "OpenClaw", "version": version}, **together)
    assert await refusals(rendered(one), package(version), run=run) == []


async def test_openclaw_itself_says_what_no_schema_can():
    overlay = {"models": {"providers": {"own": {"models": []}}}}
    said = await refusals(rendered(bundle(openclaw={"overlay": overlay})), package("2026.9.6"), run=run)
    assert said == [
        "models.providers.own.baseUrl: custom model providers must declare baseUrl; provider overlays without baseUrl "
        "are only supported for bundled providers"
    ]
