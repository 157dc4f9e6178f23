"""OpenClaw as it runs in a machine: a child of a real PID 1, as the image's own user, in the image's root directory."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from endpoint import OperatorDouble
from openclaw_image import GATEWAY_TOKEN, want
from pid1_root import ENTER, FirstProcess, root_directory, why_not

from roost.local import openclaw
from roost_agent.contract import Exit

WHY_NOT = why_not()
pytestmark = [pytest.mark.openclaw_full, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

# The image's versions and its Node, from the cache, where the image has them.
PARTS = """
for part in node openclaw; do mkdir -p "$root/opt/$part"; mount --rbind "$OPT/$part" "$root/opt/$part"; done
"""


@pytest.fixture
async def operator() -> AsyncIterator[OperatorDouble]:
    double = OperatorDouble()
    await double.start()
    yield double
    await double.stop()


@pytest.mark.timeout(600)
async def test_openclaw_below_a_real_first_process_as_a_user_of_its_own(
    operator: OperatorDouble, tmp_path: Path
) -> None:
    machine = FirstProcess(operator, tmp_path, "127.61.7.1", root_directory())
    machine.environment |= {
        "ROOST_RUNTIME_USER": "agent",
        "ROOST_OPENCLAW_DIR": "/opt/openclaw",
        "ROOST_NODE": "/opt/node/bin/node",
        "ROOST_STOP_GRACE_SECONDS": "20",
        "OPT": str(openclaw.find(versions=("2026.9.6",))),
    }
    want(operator, "2026.9.6", secretEnv={"OPENCLAW_GATEWAY_TOKEN": GATEWAY_TOKEN, "ANTHROPIC_API_KEY": "sk-ant-test"})
    machine.enter(way=ENTER.replace("mount --rbind /dev", PARTS + "mount --rbind /dev"))
    try:
        await machine.heard(lambda beat: beat["ready"], "OpenClaw below the first process", 300)
        assert machine.nspid(machine.first) == 1
        running = machine.inside().values()
        assert {process.uids().effective for process in running} == {10001}
        assert operator.last["degraded"] == []
        owners = {name: machine.at(name).stat().st_uid for name in ("openclaw", "workspace", ".roost")}
        assert owners == {"openclaw": 10001, "workspace": 10001, ".roost": 0}
        assert machine.at(".").stat().st_uid == 0
        assert await machine.stopped(signal.SIGTERM) == Exit.ASKED
    finally:
        machine.kill()
