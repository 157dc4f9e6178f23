"""What passes between a machine and the operator, and what becomes of it when something is wrong."""

import os
import signal
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from endpoint import DID, OperatorDouble, refuse
from machine import Machine, alive, eventually

from roost_agent.contract import Exit, bundle_path


async def test_a_stop_command_ends_it(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    pid = await machine.runs()
    operator.stop_cause = "deleted"
    operator.wake()
    assert await machine.ended() == Exit.ASKED
    assert not alive(pid)
    assert machine.lines("ended")[-1]["why"] == "asked by stop:deleted"
    assert operator.last["status"] == "stopping"


async def test_superseded_while_running(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    pid = await machine.runs()
    beats = len(operator.beats)
    operator.beat_answer = refuse(409)
    operator.wake()
    assert await machine.ended() == Exit.ASKED
    assert not alive(pid)
    assert not (machine.data / ".roost/bundle.sealed").exists()
    assert len(operator.beats) == beats  # nothing more to say


async def test_superseded_at_boot(machine: Machine, operator: OperatorDouble) -> None:
    operator.bundle_answer = refuse(409)
    machine.start()
    assert await machine.ended() == Exit.ASKED
    assert machine.lines("runtime started") == []


async def test_a_refusal_leaves_the_runtime_alone(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    pid = await machine.runs()
    beats = len(operator.beats)
    operator.beat_answer = refuse(403)
    operator.wake()
    await eventually(lambda: len(operator.beats) > beats, "another try")
    assert alive(pid)
    [line] = machine.lines("heartbeat not taken")
    assert line["why"] == "refused with 403"
    operator.beat_answer, operator.holds = None, False
    await eventually(lambda: machine.lines("heartbeat taken again"), "peace")
    assert machine.lines("heartbeat taken again")[0]["failures"] >= 1
    assert alive(pid)


async def test_the_time_asked_for_is_waited(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    pid = await machine.runs()
    operator.beat_answer = refuse(429, **{"Retry-After": "1"})
    operator.wake()
    await eventually(lambda: machine.lines("heartbeat not taken"), "the refusal")
    beats = len(operator.beats)
    refused = operator.beats[-1].at
    os.kill(pid, signal.SIGKILL)  # news does not cut it short
    await eventually(lambda: len(operator.beats) > beats, "the next try")
    assert operator.beats[beats].at - refused >= 0.95


async def test_an_early_answer_is_followed_by_the_interval(machine: Machine, operator: OperatorDouble) -> None:
    operator.holds, operator.next_seconds = False, 1
    never = {"httpGet": {"path": "/", "port": 9}}  # so that there is no news
    runtime = operator.bundle["runtime"] | {"readiness": never}
    operator.change(heartbeat={"intervalSeconds": 1}, runtime=runtime)
    machine.start()
    await machine.heard(lambda b: b["runtime"]["pid"] and b["bootPhase"] == "done", "the end of the boot")
    beats = len(operator.beats)
    await eventually(lambda: len(operator.beats) > beats, "another")
    assert 0.9 < operator.beats[-1].at - operator.beats[-2].at < 2


async def test_a_command_without_effect_does_not_spin(machine: Machine, operator: OperatorDouble) -> None:
    """One replica wants a revision that the other does not serve yet."""
    machine.start()
    await machine.runs()
    answer = {"commands": [{"id": "update_config:never", "type": "update_config"}, {"id": "x", "type": "dance"}]}
    operator.beat_answer = lambda: web.json_response(answer | {"nextHeartbeatSeconds": 1})
    beats, calls = len(operator.beats), len(operator.bundle_calls)
    operator.wake()
    await machine.heard(lambda b: b["lastCommandId"] == "update_config:never", "it to be carried out")
    await machine.heard(lambda b: b["ready"], "the next news")
    counted = len(operator.beats)
    await eventually(lambda: len(operator.beats) > counted, "another heartbeat")
    assert operator.beats[-1].at - operator.beats[-2].at > 0.9
    assert len(operator.bundle_calls) == calls + 1
    assert len(operator.beats) - beats <= 6
    assert len(machine.lines("command not known to this version")) == 1


async def test_an_endpoint_that_comes_back_is_found_again(machine: Machine, operator: OperatorDouble) -> None:
    machine.start()
    pid = await machine.runs()
    await operator.stop()
    await eventually(lambda: machine.lines("heartbeat not taken"), "the silence")
    beats = len(operator.beats)
    await operator.start()
    await eventually(lambda: len(operator.beats) > beats, "a heartbeat")
    assert operator.last["runtime"]["pid"] == pid
    operator.change(heartbeat={"intervalSeconds": 60})
    await machine.runs()


async def test_nothing_is_told_to_where_a_redirect_leads(machine: Machine, operator: OperatorDouble) -> None:
    elsewhere = OperatorDouble()
    await elsewhere.start()
    operator.bundle_answer = refuse(307, Location=elsewhere.url + bundle_path(DID))
    machine.start()
    await eventually(lambda: len(operator.bundle_calls) > 1, "another try")
    assert elsewhere.bundle_calls == []
    await elsewhere.stop()


def _certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A private authority's certificate for 127.0.0.1, and a server that has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "private authority")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    public, private = folder / "ca.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(public, private)
    return public, server


async def test_a_private_authority_is_trusted_when_it_is_named(
    machine: Machine, operator: OperatorDouble, tmp_path: Path
) -> None:
    ca, tls = _certificate(tmp_path)
    await operator.stop()
    await operator.start(tls)
    url = operator.url.replace("http:", "https:")
    machine.start(AGENTSHIELD_API_URL=url)
    await eventually(lambda: machine.lines("no bundle yet"), "the refusal")
    assert "Certificate" in machine.lines("no bundle yet")[0]["why"]
    assert operator.bundle_calls == []
    assert await machine.stop() == Exit.ASKED
    machine.start(AGENTSHIELD_API_URL=url, ROOST_CA_FILE=str(ca))
    await machine.runs()
