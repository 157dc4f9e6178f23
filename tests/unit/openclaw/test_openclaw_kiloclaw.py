"""What KiloClaw's controller did to OpenClaw so that it stays put, and what is done for that here."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from openclaw_bundles import PLACES, bundle, rendered
from roost_agent.runtime import Refused
from roost_agent.runtime.openclaw.binding import OpenClawRuntime
from roost_agent.runtime.openclaw.config import environment
from roost_agent.settings import read


def test_it_is_started_without_flags_since_its_configuration_says_it_all(tmp_path: Path) -> None:
    package = tmp_path / "openclaw/2026.9.6/node_modules/openclaw"
    package.mkdir(parents=True)
    (package / "openclaw.mjs").touch()
    (package.parents[1] / "schema.json").write_text("{}")
    settings = read(
        {
            "AGENT_DID": "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",
            "AGENTSHIELD_API_URL": "https://roost.example.com",
            "AS_HEARTBEAT_TOKEN": "t",
            "DATA_DIR": str(tmp_path / "data"),
            "ROOST_OPENCLAW_DIR": str(tmp_path / "openclaw"),
            "ROOST_NODE": "/opt/node/bin/node",
        }
    )

    async def run(*_: Any, **__: Any) -> Any:
        pytest.fail("nothing is run to know how it is started")

    runtime = OpenClawRuntime(settings, run, token=lambda: "g", hidden=list, changed=lambda: None)
    launch = runtime.launch(bundle())
    assert launch.argv == ("/opt/node/bin/node", str(package / "openclaw.mjs"), "gateway", "run")
    assert launch.env["OPENCLAW_GATEWAY_PORT"] == "3001"
    assert launch.env["OPENCLAW_GATEWAY_TOKEN"] == "gateway-token-1"
    assert not any("gateway-token-1" in word for word in launch.argv)


def test_it_is_told_that_somebody_else_starts_it_again_and_in_no_other_way() -> None:
    """The compile cache that KiloClaw set makes what we start the parent of the gateway, not the gateway."""
    env = environment(bundle(), {"PATH": "/bin", "INVOCATION_ID": "1", "NODE_COMPILE_CACHE": "/c"}, places=PLACES)
    assert env["OPENCLAW_SUPERVISOR_MODE"] == "external"
    assert not env.keys() & {"INVOCATION_ID", "OPENCLAW_NO_RESPAWN", "NODE_COMPILE_CACHE"}
    for name, field in itertools.product(("OPENCLAW_NO_RESPAWN", "NODE_COMPILE_CACHE"), ("env", "secretEnv")):
        with pytest.raises(Refused, match=f"env {name} is set by the supervisor, or breaks it: leave it out"):
            environment(bundle(**{field: {name: "1"}}), {}, places=PLACES)


def test_nobody_can_set_it_to_work_by_a_hook_unless_hooks_are_declared() -> None:
    assert "hooks" not in rendered(bundle())
    declared = {"enabled": True, "token": "${HOOKS_TOKEN}", "path": "/hooks"}
    one = bundle(openclaw={"overlay": {"hooks": declared}}, secretEnv={"HOOKS_TOKEN": "h" * 32})
    assert rendered(one)["hooks"] == declared
