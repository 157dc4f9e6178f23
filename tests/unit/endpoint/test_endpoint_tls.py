"""The endpoint's own certificate: real handshakes, a Secret that changes, and replicas that trust nobody else."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from datetime import datetime

import aiohttp
import pytest
import structlog
from certificates import SECRET, Keeper, Made, keeper, make, open_files
from cryptography import x509
from endpoint_world import DEADLINE, MANY_CALLS, EndpointWorld, endpoint_world

from roost import run
from roost.kube.cluster import Cluster
from roost.settings import EndpointLimits, Settings
from roost_agent.contract import MACHINE_ID_HEADER, TOKEN_HEADER, bundle_path, heartbeat_path


@pytest.fixture
async def kept() -> AsyncIterator[Keeper]:
    async with keeper() as made:
        yield made


def trusting(made: Made) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=made.certificate.decode())


async def shown(world: EndpointWorld) -> datetime:
    """When the certificate ends that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=context)
    found = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    writer.close()
    return found.not_valid_after_utc


async def test_an_agent_that_trusts_the_authority_is_served(kept: Keeper) -> None:
    authority = make("authority")
    kept.store(make(by=authority), ca_crt=authority.certificate)
    assert await kept.certificate.look() == ""
    assert kept.certificate.authority == authority.certificate.decode()
    async with endpoint_world(certificate=kept.certificate) as world:
        ada = world.agent("ada")
        url = f"https://127.0.0.1:{world.port}{bundle_path(ada.did)}"
        headers = {TOKEN_HEADER: ada.token, MACHINE_ID_HEADER: "m1"}
        async with aiohttp.ClientSession(headers=headers) as http:
            async with http.get(url, ssl=trusting(authority)) as answer:
                assert answer.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await http.get(url, ssl=trusting(make("another")))
            with pytest.raises(aiohttp.ClientError):
                await http.get(url.replace("https", "http"))


async def test_a_new_pair_is_shown_to_who_comes_and_those_who_are_there_live_on(kept: Keeper) -> None:
    first, second = make(days=10), make(days=20)
    kept.store(first)
    assert await kept.certificate.look() == ""
    async with endpoint_world(certificate=kept.certificate) as world:
        ada = world.agent("ada")
        url = f"https://127.0.0.1:{world.port}{heartbeat_path(ada.did)}"
        # One connection for all calls: it trusts nobody but the first certificate.
        connector = aiohttp.TCPConnector(ssl=trusting(first), limit=1)
        async with aiohttp.ClientSession(headers={TOKEN_HEADER: ada.token}, connector=connector) as http:
            for _ in range(2):
                async with http.post(url, json=ada.beat()) as answer:
                    assert answer.status == 200
                kept.store(second)
                await kept.certificate.keep()
        assert await shown(world) == second.ends
        assert kept.metric("roost_endpoint_certificate_expiry_timestamp_seconds") == second.ends.timestamp()


BROKEN = {
    "of another key": lambda: make().pair | {"tls.key": make().key},
    "no PEM": lambda: {"tls.crt": b"certificate", "tls.key": b"key"},
    "without a key": lambda: {"tls.crt": make().certificate},
    "with a password": lambda: make(password=b"secret").pair,
    "with an authority that is none": lambda: make().pair | {"ca.crt": b"-----BEGIN CERTIFICATE-----\nAA"},
    "with a huge authority": lambda: make().pair | {"ca.crt": b"x" * 100_000},
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_pair_that_is_broken_changes_nothing_and_is_told_once(kept: Keeper, how: str) -> None:
    good = make(days=10)
    kept.store(good)
    assert await kept.certificate.look() == ""
    async with endpoint_world(certificate=kept.certificate) as world:
        kept.secrets.values[SECRET] = BROKEN[how]()
        with structlog.testing.capture_logs() as lines:
            for _ in range(3):
                await kept.certificate.keep()
        [told] = [line for line in lines if line["log_level"] == "error"]
        assert f"team-a/{SECRET}" in told["problem"]
        assert "kubectl -n team-a create secret tls" in told["problem"]
        assert kept.metric("roost_endpoint_certificate_unusable") == 1
        assert await shown(world) == good.ends
        kept.store(make(days=40))
        await kept.certificate.keep()
        assert kept.metric("roost_endpoint_certificate_unusable") == 0
        assert await shown(world) > good.ends


async def test_a_secret_that_is_missing_is_named_with_the_command_that_heals_it(kept: Keeper) -> None:
    problem = await kept.certificate.look()
    assert "is missing" in problem
    assert f"kubectl -n team-a create secret tls {SECRET} --cert=tls.crt --key=tls.key" in problem
    kept.store(make())
    assert await kept.certificate.look() == ""


async def test_while_kubernetes_is_away_the_pair_at_hand_is_good(kept: Keeper) -> None:
    kept.store(make())
    await kept.certificate.look()
    kept.secrets.fails_with = 500
    assert "can't be read" in await kept.certificate.look()
    assert kept.metric("roost_endpoint_certificate_unusable") == 0


async def test_another_authority_is_news_for_the_machines(kept: Keeper) -> None:
    one, other = make("one"), make("other")
    kept.store(make(by=one), ca_crt=one.certificate)
    await kept.certificate.look()
    kept.store(make(by=one), ca_crt=one.certificate)
    await kept.certificate.look()
    assert kept.authorities == 0
    kept.store(make(by=other), ca_crt=other.certificate)
    await kept.certificate.look()
    assert kept.authorities == 1


async def test_the_key_is_in_no_file_and_in_no_word(kept: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = make()
    secret = made.key.decode().splitlines()[1]
    with structlog.testing.capture_logs() as lines:
        kept.store(made)
        await kept.certificate.look()
        kept.secrets.values[SECRET] = made.pair | {"tls.crt": make().certificate}
        problem = await kept.certificate.look()
    assert problem
    assert secret not in repr(lines) + caplog.text + problem + repr(kept.certificate._pair)
    assert not open_files()


async def test_older_than_tls_1_2_is_not_spoken(kept: Keeper) -> None:
    kept.store(make())
    await kept.certificate.look()
    assert kept.certificate.context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_a_handshake_that_does_not_go_on_is_cut_and_counts_as_a_connection(kept: Keeper) -> None:
    kept.store(make())
    await kept.certificate.look()
    short = EndpointLimits(requests_per_second=MANY_CALLS.requests_per_second, request_seconds=0.3)
    async with endpoint_world(short, kept.certificate) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        await world.until(lambda: world.metric("roost_endpoint_connections") == 1, "it is counted")
        async with asyncio.timeout(DEADLINE):
            assert await reader.read() == b""
        await world.until(lambda: world.metric("roost_endpoint_connections") == 0, "it is gone")
        assert world.metric("roost_endpoint_connections_closed_total", reason="no_handshake") == 1
        writer.close()


# --- Between replicas -----------------------------------------------------------------------------------------------


async def test_a_standby_passes_on_to_whoever_shows_the_same_certificate(kept: Keeper) -> None:
    kept.store(make())
    await kept.certificate.look()
    async with (
        endpoint_world(certificate=kept.certificate) as leader,
        endpoint_world(certificate=kept.certificate) as standby,
    ):
        leader.agent("ada", restartedAt="now")
        assert await passed_on(standby, leader) == (200, ["restart:now"])


async def test_it_gives_no_token_to_anybody_else_and_none_in_the_clear(kept: Keeper) -> None:
    authority = make("authority")
    kept.store(make(by=authority), ca_crt=authority.certificate)
    await kept.certificate.look()
    async with keeper() as others, endpoint_world() as plain:
        others.store(make(by=authority), ca_crt=authority.certificate)  # signed by the same, and for the same address
        await others.certificate.look()
        async with (
            endpoint_world(certificate=others.certificate) as impostor,
            endpoint_world(certificate=kept.certificate) as standby,
        ):
            assert (await passed_on(standby, impostor))[0] == 503
            assert (await passed_on(standby, plain, scheme="http"))[0] == 503
        for world in (impostor, plain):
            assert not world.metrics.registry.get_sample_value("roost_heartbeats_total", {"code": "403"})


@pytest.mark.parametrize("first", ["leader", "standby"])
async def test_while_a_certificate_is_exchanged_replicas_go_on_to_trust_each_other(first: str) -> None:
    """They read the Secret at different moments, and the one that is behind looks when it must."""
    async with keeper() as at_leader, keeper() as at_standby:
        before, after = make(days=10), make(days=20)
        for each in (at_leader, at_standby):
            each.store(before)
            await each.certificate.look()
        async with (
            endpoint_world(certificate=at_leader.certificate) as leader,
            endpoint_world(certificate=at_standby.certificate) as standby,
        ):
            for each in (at_leader, at_standby):
                each.store(after)
            await (at_leader if first == "leader" else at_standby).certificate.look()
            leader.agent("ada", restartedAt="now")
            assert await passed_on(standby, leader) == (200, ["restart:now"])


async def passed_on(standby: EndpointWorld, leader: EndpointWorld, scheme: str = "https") -> tuple[int, list[str]]:
    """What an agent that calls the standby over TLS is told by the leader."""
    ada = standby.agent("ada")
    standby.leads, standby.leader = False, f"{scheme}://127.0.0.1:{leader.port}"
    url = f"https://127.0.0.1:{standby.port}{heartbeat_path(ada.did)}"
    beat = ada.beat(bundleRevision=leader_revision(leader))
    async with (
        aiohttp.ClientSession(headers={TOKEN_HEADER: ada.token}) as http,
        http.post(url, json=beat, ssl=False) as answer,
    ):
        body = await answer.json()
    return answer.status, [command["id"] for command in body.get("commands", ())]


def leader_revision(leader: EndpointWorld) -> str | None:
    return next((memory.revision for _, memory in leader.memories.items()), None)


async def test_without_its_secret_the_operator_waits_and_goes_on_by_itself(
    kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_lacks(*_: object) -> list[str]:
        return []

    monkeypatch.setattr(run.checks, "problems", nothing_lacks)
    monkeypatch.setattr(run, "CHECK_AGAIN_SECONDS", 0.01)
    operator = run.Operator(Settings(), Cluster("http://127.0.0.1:9", None))
    with structlog.testing.capture_logs() as lines:
        able = asyncio.create_task(operator._until_able(kept.certificate._kube, kept.certificate))
        while kept.secrets.reads < 3:
            await asyncio.wait_for(asyncio.sleep(0), DEADLINE)
        assert not able.done()
        kept.store(make())
        assert await asyncio.wait_for(able, DEADLINE)
    [told] = [line["problem"] for line in lines if line["event"] == "can not start yet"]
    assert "create secret tls" in told
