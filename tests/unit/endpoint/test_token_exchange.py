"""Machines without a stored token: who gets the agent's for Fly's, over real sockets; everybody else is a stranger."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import jwt
import pytest
from endpoint_world import NAMESPACE, ROOTS, Answer, Caller, EndpointWorld, endpoint_world
from hypothesis import given
from hypothesis import strategies as st
from oidc_issuer import AUDIENCE, KEYS, Issuer

from roost.agents.memory import Installation, Memories
from roost.agents.proof import NotIts, NotKnown, Proofs, Replaced
from roost.agents.view import MachineSight
from roost.endpoint import bootstrap
from roost.endpoint.oidc import Verifier
from roost.kube.records import Cache, record
from roost.secrets.lookup import Lookup
from roost.secrets.table import SecretTable
from roost.settings import Settings
from roost_agent.contract import token_path

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class Bed:
    """An endpoint and an issuer; `ada` proves itself, `bob` was given a token."""

    def __init__(self, world: EndpointWorld, issuer: Issuer, web: aiohttp.ClientSession) -> None:
        self.world, self.issuer = world, issuer
        template = issuer.url.replace("acme", "{org}")
        settings = Settings.model_validate(
            {"fly": {"oidcIssuer": template, "org": "acme"}, "endpoint": {"publicUrl": AUDIENCE}}
        )
        proofs = Proofs(world.cache, world.memories, world.here, settings)
        verifier = Verifier(web, time.monotonic)
        routes = bootstrap.routes(world.walls, world.relay, proofs, verifier, world.metrics.token_exchanges)
        world.endpoint.add(*routes)
        self.ada = self.declare("ada")
        self.bob = world.agent("bob")

    def declare(self, name: str = "ada", *, fly: dict[str, Any] | None = None, **identity: Any) -> Caller:
        given = {"identity": {"bootstrap": "FlyOidc"} | identity, "fly": fly or {}}
        return self.world.agent(name, **given)

    def sees(self, caller: Caller, machine: str | None = "m-1", *, digest: str = DIGEST, version: str = "v1") -> None:
        """What the reconcile knows of its machine."""
        memory = caller.memory
        memory.machine_id = machine
        sight = MachineSight(
            id=machine or "",
            name=self.name(caller),
            state="started",
            version=version,
            region="iad",
            private_ip="",
            image="image",
            metadata={},
            updated_at="",
            seen_at=0.0,
            image_digest=digest,
        )
        memory.world = replace(memory.world, machines=(sight,) if machine else ())

    def status(self, caller: Caller, **status: Any) -> None:
        found = self.world.cache.get(caller.key)
        assert found is not None
        self.world.cache.put(replace(found, status=status))

    def name(self, caller: Caller) -> str:
        return caller.memory.names.machine("vol_1")

    def proof(self, caller: Caller | None = None, **claims: Any) -> str:
        """The token that Fly makes of the machine of this agent."""
        caller = caller or self.ada
        plain = {"app_name": caller.memory.names.app, "machine_name": self.name(caller), "image_digest": DIGEST}
        return self.issuer.token(**plain | claims)

    async def asks(self, proof: str | None, did: str | None = None, machine: str | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {proof}"} if proof is not None else {}
        headers |= {"X-Machine-Id": machine} if machine is not None else {}
        async with self.world.http.post(token_path(did or self.ada.did), headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.read())


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    issuer = Issuer()
    await issuer.start()
    async with endpoint_world() as world, aiohttp.ClientSession() as web:
        yield Bed(world, issuer, web)
    await issuer.stop()


async def test_a_machine_that_proves_itself_gets_its_agents_token_and_may_call_with_it(bed: Bed) -> None:
    bed.sees(bed.ada)
    answer = await bed.asks(bed.proof(), machine="m-1")
    assert (answer.status, answer.json) == (200, {"token": bed.ada.token, "epoch": 0})
    assert answer.headers["Cache-Control"] == "no-store"
    assert (await bed.ada.fetch(X_Heartbeat_Token=answer.json["token"], X_Machine_Id="m-1")).status == 200
    assert bed.world.metric("roost_token_exchanges_total", code="200") == 1


async def test_it_gets_the_token_of_the_epoch_that_is_declared(bed: Bed) -> None:
    ada = bed.declare(tokenEpoch=2)
    answer = await bed.asks(bed.proof())
    assert answer.json == {"token": Caller(bed.world, "ada", 2).token, "epoch": 2}
    assert answer.json["token"] != ada.token


STRANGERS: dict[str, dict[str, Any]] = {
    "another app": {"app_name": "roost-other"},
    "no app": {"app_name": None},
    "another machine": {"machine_id": "m-2", "machine_name": "somebody"},
    "no machine": {"machine_id": None},
    "a machine's id that is no text": {"machine_id": 5},
    "another image": {"image_digest": OTHER},
    "no image": {"image_digest": None},
    "another audience": {"aud": "https://fly.io/acme"},
    "another issuer": {"iss": "https://oidc.fly.io/acme"},
    "expired": {"exp": 1_600_000_000},
}


@pytest.mark.parametrize("claims", STRANGERS.values(), ids=STRANGERS.keys())
async def test_whoever_is_not_its_machine_is_a_stranger(bed: Bed, claims: dict[str, Any]) -> None:
    bed.sees(bed.ada)
    answer = await bed.asks(bed.proof(**claims))
    assert (answer.status, answer.json["error"]) == (403, "forbidden")
    assert (await bed.asks(bed.proof())).status == 200, "and that was the reason"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    said=st.fixed_dictionaries(
        {},
        optional={
            "app_name": st.just("ada-app") | json_values,
            "machine_id": st.sampled_from(["m-1", "m-2"]) | json_values,
            "machine_name": st.sampled_from(["ours", "somebody"]) | json_values,
            "machine_version": st.sampled_from(["v1", "v2"]) | json_values,
            "image_digest": st.sampled_from([DIGEST, OTHER]) | json_values,
            "more": json_values,
        },
    ),
    known=st.booleans(),
)
def test_only_what_fits_is_accepted_whatever_is_said(said: dict[str, Any], known: bool) -> None:
    """Signed by Fly, and about whatever machine: nothing else than a refusal comes of it."""
    here = Installation(ROOTS, "cluster", 0.0)
    cache = Cache()
    memories = Memories(here, SecretTable(Lookup(cache, "roost-system"), lambda _: None))
    identity = {"identity": {"bootstrap": "FlyOidc"}, "fly": {"app": "ada-app"}, "machine": {"image": f"i@{DIGEST}"}}
    runtime = {"runtime": {"kind": "Command", "command": ["sleep"]}}
    metadata = {"namespace": NAMESPACE, "name": "ada", "uid": "u", "resourceVersion": "1", "generation": 1}
    found = record(
        {
            "kind": "Agent",
            "metadata": metadata | {"creationTimestamp": "2026-11-21T10:00:00Z"},
            "spec": identity | runtime,
        }
    )
    cache.put(found)
    memory = memories.of(found, 0.0)
    memory.machine_id = "m-1" if known else None
    if said.get("machine_name") == "ours":
        said["machine_name"] = memory.names.machine("vol_1")
    ours = said.get("machine_name") == memory.names.machine("vol_1")
    right = said.get("app_name") == "ada-app" and said.get("image_digest") == DIGEST
    right = right and (said.get("machine_id") == "m-1" if known else ours and isinstance(said.get("machine_id"), str))
    proofs = Proofs(cache, memories, here, Settings())
    try:
        session, token, epoch = proofs.accept(memory.names.did, said)
    except (NotIts, Replaced, NotKnown):
        assert not right
    else:
        assert right
        assert (session.key, epoch, bool(token)) == (found.key, 0, True)


async def test_every_stranger_gets_the_same_answer(bed: Bed) -> None:
    bed.sees(bed.ada)
    wrong = [
        await bed.asks(bed.proof(), did="did:key:z6MkNobody"),
        await bed.asks(bed.proof(), did=bed.bob.did),
        await bed.asks(bed.proof(bed.bob), did=bed.bob.did),
        await bed.asks(bed.proof(machine_id="m-9", machine_name="x")),
        await bed.asks(bed.proof(), machine="m-9"),
        await bed.asks(bed.ada.token),
        await bed.asks("nonsense"),
        await bed.asks("a.b.c"),
        await bed.asks("x" * 8000),
        await bed.asks(jwt.encode(bed.issuer.claims(), KEYS["stranger"], algorithm="RS256", headers={"kid": "one"})),
    ]
    assert {(a.status, a.content) for a in wrong} == {(wrong[0].status, wrong[0].content)}
    assert wrong[0].status == 403
    stranger = await bed.ada.fetch(X_Heartbeat_Token="wrong")
    assert wrong[0].content == stranger.content


async def test_without_a_proof_one_is_asked_for(bed: Bed) -> None:
    assert (await bed.asks(None)).status == 401
    assert (await bed.asks("")).status == 401


async def test_a_machine_that_was_followed_by_another_is_told_so(bed: Bed) -> None:
    bed.sees(bed.ada, "m-2")
    answer = await bed.asks(bed.proof(machine_id="m-1"))
    assert (answer.status, answer.json["error"]) == (409, "superseded")


async def test_a_machine_that_boots_before_its_create_has_answered_is_known_by_its_name(bed: Bed) -> None:
    assert (await bed.asks(bed.proof())).status == 200
    assert (await bed.asks(bed.proof(machine_name="ada-machine"))).status == 403
    bed.sees(bed.ada, None)
    assert (await bed.asks(bed.proof())).status == 200


async def test_after_a_restart_the_status_tells_which_machine_it_is(bed: Bed) -> None:
    bed.status(bed.ada, machine={"id": "m-1", "version": "v1", "image": f"image@{DIGEST}"})
    assert (await bed.asks(bed.proof())).status == 200
    assert (await bed.asks(bed.proof(image_digest=OTHER))).status == 403
    answer = await bed.asks(bed.proof(machine_id="m-2"))
    assert answer.status == 503, "it may have been made since"
    bed.sees(bed.ada, "m-2")
    assert (await bed.asks(bed.proof(machine_id="m-2"))).status == 200


async def test_a_version_that_was_not_seen_yet_is_held_to_the_digest_that_is_declared(bed: Bed) -> None:
    """Its update has not answered yet: what is known of the version before says nothing of it."""
    bed.sees(bed.ada, digest=OTHER, version="v0")
    assert (await bed.asks(bed.proof())).status == 200
    bed.world.agent("ada", identity={"bootstrap": "FlyOidc"}, machine={"image": f"image@{OTHER}"})
    assert (await bed.asks(bed.proof())).status == 403
    assert (await bed.asks(bed.proof(image_digest=OTHER))).status == 200


async def test_app_and_org_are_those_that_were_pinned(bed: Bed) -> None:
    bed.status(bed.ada, app={"name": "kept", "org": "acme"})
    bed.declare("ada", fly={"app": "declared", "org": "elsewhere"})
    assert (await bed.asks(bed.proof(app_name="kept"))).status == 200
    assert (await bed.asks(bed.proof(app_name="declared"))).status == 403


async def test_an_agent_of_another_org_must_be_vouched_for_by_that_orgs_issuer(bed: Bed) -> None:
    eve = bed.declare("eve", fly={"org": "elsewhere"})
    answer = await bed.asks(bed.proof(eve), eve.did)
    assert answer.status == 503, "that org's issuer is asked, and nobody answers there"


async def test_who_no_longer_proves_itself_so_gets_nothing(bed: Bed) -> None:
    assert (await bed.asks(bed.proof())).status == 200
    bed.declare(bootstrap="Token")
    assert (await bed.asks(bed.proof())).status == 403
    bed.world.forget("ada")
    assert (await bed.asks(bed.issuer.token())).status == 403


async def test_while_the_issuer_is_away_nobody_is_called_a_stranger_for_it(bed: Bed) -> None:
    bed.issuer.away = True
    proof = bed.proof()
    for did in (bed.ada.did, "did:key:z6MkNobody"):
        answer = await bed.asks(proof, did)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


async def test_nothing_is_told_before_the_cluster_is_known(bed: Bed) -> None:
    bed.world.ready = False
    assert (await bed.asks(bed.proof())).status == 503
    assert bed.issuer.asked == 0


async def test_a_body_that_nobody_asked_for_is_bounded(bed: Bed) -> None:
    headers = {"Authorization": f"Bearer {bed.proof()}"}
    async with bed.world.http.post(token_path(bed.ada.did), headers=headers, data=b"x" * 100_000) as answer:
        assert answer.status == 413


async def test_a_standby_asks_the_leader_who_knows_the_machine(bed: Bed) -> None:
    bed.sees(bed.ada)
    async with endpoint_world() as standby:
        standby.leads, standby.leader = False, f"http://127.0.0.1:{bed.world.port}"
        other = Issuer()  # never started: a standby asks nobody but the leader
        async with aiohttp.ClientSession() as web:
            settings = Settings.model_validate({"fly": {"oidcIssuer": "https://nobody.invalid/{org}"}})
            proofs = Proofs(standby.cache, standby.memories, standby.here, settings)
            verifier = Verifier(web, time.monotonic)
            standby.endpoint.add(
                *bootstrap.routes(standby.walls, standby.relay, proofs, verifier, standby.metrics.token_exchanges)
            )
            headers = {"Authorization": f"Bearer {bed.proof()}"}
            async with standby.http.post(token_path(bed.ada.did), headers=headers) as answer:
                assert (answer.status, await answer.json()) == (200, {"token": bed.ada.token, "epoch": 0})
                assert answer.headers["Cache-Control"] == "no-store"
            standby.leader = ""
            async with standby.http.post(token_path(bed.ada.did), headers=headers) as answer:
                assert answer.status == 503
        assert other.asked == 0


async def test_neither_token_is_logged(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    proof = bed.proof()
    assert (await bed.asks(proof)).status == 200
    assert (await bed.asks(bed.proof(app_name="other"))).status == 403
    out = "".join(capsys.readouterr())
    assert "machine proved itself" in out
    assert proof.split(".")[2] not in out
    assert bed.ada.token not in out
