"""The real supervisor checks in with an operator over a real socket, and the pace is a matter of the bundle."""

from endpoint import DID, OperatorDouble, refuse
from machine import Machine, eventually

GATEWAY = "gateway-token-of-the-agent"
OFTEN = {"intervalSeconds": 1, "initialDelaySeconds": 0}


async def test_a_command_checks_in_as_its_bundle_says(operator: OperatorDouble, machine: Machine) -> None:
    # given: a bundle whose first check-in is far away
    quiet = {"secretEnv": {"OPENCLAW_GATEWAY_TOKEN": GATEWAY}, "telemetry": {"initialDelaySeconds": 86_400}}
    operator.change(**quiet)
    machine.start()
    pid = await machine.ready()
    assert operator.checkins == []
    # when: another asks for more, it is heard without a restart
    operator.change(**quiet | {"telemetry": OFTEN})
    await eventually(lambda: len(operator.checkins) >= 2, "two check-ins")
    assert await machine.ready() == pid
    said, _ = operator.checkins[-1]
    assert (said["sandboxId"], said["machineId"], said["supervisorState"]) == (DID, "m-1", "running")
    assert (said["openclawVersion"], said["openclawCommit"], said["productTelemetry"]) == (None, None, None)
    assert said["diskTotalBytes"] > 0
    assert await machine.stop() == 0


async def test_what_was_not_taken_is_told_next_time(operator: OperatorDouble, machine: Machine) -> None:
    operator.change(secretEnv={"OPENCLAW_GATEWAY_TOKEN": GATEWAY}, telemetry=OFTEN)
    operator.checkin_answer = refuse(500)
    machine.start()
    await eventually(lambda: len(operator.checkins) >= 2, "two check-ins in vain")
    operator.checkin_answer = None
    await eventually(lambda: machine.lines("check-in taken again"), "one that was taken")
    assert len(machine.lines("check-in not taken")) == 1
    assert GATEWAY not in machine.log.read_text()
