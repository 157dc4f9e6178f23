"""Where a scan looks, what it makes of lists that lag, and what it says when it can't look; Fly is the simulator."""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from flysim.clock import Clock
from flysim.sim import Sim
from flysim.transport import SimTransport
from flysim.virtual import VirtualRunner
from flysim.world import Timing
from roost.agents.names import derive
from roost.fly.client import Fly
from roost.housekeeping.scan import Report, Wanted, scan
from roost.kube.client import Gone, Kube
from roost.settings import Settings

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]
EPOCH, TOKEN, ROOT, OWNER = 1_800_000_000.0, "fm2_test", b"i" * 32, "owner1"
SETTINGS = Settings.model_validate(
    {"fly": {"org": "personal", "credentials": {"first": {}, "second": {"secretName": "other"}}}}
)
ROOTS = {"ownerId": OWNER.encode(), "identity": ROOT, "token": b"t" * 32, "fingerprint": b"f" * 32}


class Cluster:
    """The few objects that a scan reads."""

    def __init__(self) -> None:
        self.agents: list[dict[str, Any]] = []
        self.objects: dict[str, dict[str, Any]] = {
            "/api/v1/namespaces/roost-system/secrets/roost-roots": {
                "data": {key: base64.b64encode(value).decode() for key, value in ROOTS.items()}
            },
            "/api/v1/namespaces/kube-system": {"metadata": {"uid": "cluster-1"}},
        }

    def agent(self, name: str, status: Any = None, **fly: str) -> None:
        meta = {"namespace": "team-a", "name": name, "uid": name, "resourceVersion": "1", "creationTimestamp": "-"}
        self.agents.append({"metadata": meta, "spec": {"fly": fly}, "status": status or {}})

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        """Lists come in pages of one."""
        lists = {
            "/apis/roost.dev/v1alpha1/agents": self.agents,
            "/api/v1/namespaces": [{"metadata": {"name": name}} for name in ("default", "team-a")],
        }
        if path in lists:
            at = int(params.get("continue", "0"))
            after = {"continue": str(at + 1)} if at + 1 < len(lists[path]) else {}
            return {"items": lists[path][at : at + 1], "metadata": after}
        if path not in self.objects:
            raise Gone(f"GET {path}", 404, "not found")
        return self.objects[path]


class Place:
    """A cluster and a Fly with two orgs, seen through two credentials."""

    def __init__(self, sim: Sim, flies: dict[str, Fly]) -> None:
        self.sim, self.flies, self.cluster = sim, flies, Cluster()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = await self.sim.handle(method, path, {}, headers, json.dumps(body).encode() if body else b"")
        assert answer.status < 300, answer.body
        return json.loads(answer.body) if answer.body else None

    async def app(self, name: str, org: str = "personal") -> str:
        app = derive(ROOT, OWNER, "team-a", name).app
        await self.call("POST", "/v1/apps", {"name": app, "org_slug": org})
        return app

    async def scan(self, **wanted: Any) -> Report:
        now = datetime.fromtimestamp(self.sim.world.clock.now(), UTC)
        return await scan(cast("Kube", self.cluster), self.flies, SETTINGS, Wanted(**wanted), now)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    sim = Sim(
        VirtualRunner(), Clock(EPOCH), random.Random(1), tokens=[TOKEN], orgs=("personal", "team"), timing=Timing()
    )

    async def token() -> str:
        return TOKEN

    def fly() -> Fly:
        clock = asyncio.get_running_loop().time
        return Fly(token, lambda *_: None, base_url="http://fly", clock=clock, transport=SimTransport(sim))

    async with fly() as first, fly() as second:
        yield Place(sim, {"first": first, "second": second})
    await sim.close()


async def test_it_looks_where_the_settings_and_the_agents_say(place: Place) -> None:
    place.cluster.agent("ada")
    place.cluster.agent("bob", credential="second", org="team")
    place.cluster.agent("eve", status={"app": {"org": "team", "name": await place.app("eve", "team")}})
    report = await place.scan()
    assert report.scopes == (("first", "personal"), ("second", "team"), ("first", "team"))
    assert (report.problems, report.left, report.missing) == ((), (), ())


async def test_it_looks_only_where_it_is_told_to(place: Place) -> None:
    place.cluster.agent("bob", credential="second", org="team")
    place.cluster.agent("eve", org="team")
    assert (await place.scan(credential="second")).scopes == (("second", "personal"), ("second", "team"))
    assert (await place.scan(orgs=("team",))).scopes == (("first", "team"), ("second", "team"))
    assert (await place.scan(orgs=("team",), credential="first")).scopes == (("first", "team"),)


async def test_an_orphan_of_the_agents_org_is_found_and_of_a_namespace_that_is_named(place: Place) -> None:
    app = await place.app("gone", "team")
    assert [f.id for f in (await place.scan(orgs=("team",))).left] == [app]
    elsewhere = derive(ROOT, OWNER, "bygone", "ada").app
    await place.call("POST", "/v1/apps", {"name": elsewhere, "org_slug": "personal"})
    assert (await place.scan()).left == ()
    assert [f.id for f in (await place.scan(namespaces=("bygone",))).left] == [elsewhere]


async def test_what_a_list_does_not_show_yet_is_not_missing(place: Place) -> None:
    app = await place.app("ada")
    await place.call("POST", "/_sim/lists", {"lag": 60})
    made = await place.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", "region": "iad", "size_gb": 1})
    place.cluster.agent("ada", status={"app": {"name": app}, "volume": {"id": made["id"]}})
    assert (await place.scan()).missing == ()
    await place.call("DELETE", f"/v1/apps/{app}/volumes/{made['id']}")
    assert [(f.kind, f.id, f.verdict) for f in (await place.scan()).missing] == [("volume", made["id"], "missing")]


async def test_what_is_not_in_a_list_that_is_not_whole_is_unknown(place: Place) -> None:
    app = await place.app("ada")
    place.cluster.agent("ada", status={"app": {"name": app}, "machine": {"id": "m1"}})
    await place.call("POST", "/_sim/lists", {"error_regions": ["ams"]})
    assert [(f.id, f.verdict) for f in (await place.scan()).missing] == [("m1", "unknown")]


async def test_an_app_that_is_gone_is_missing_with_all_that_was_in_it(place: Place) -> None:
    place.cluster.agent("ada", status={"app": {"name": "roost-ada"}, "machine": {"id": "m1"}})
    assert [(f.kind, f.id) for f in (await place.scan()).missing] == [("app", "roost-ada")]


async def test_a_look_by_id_that_fails_leaves_it_unknown(place: Place) -> None:
    app = await place.app("ada")
    place.cluster.agent("ada", status={"app": {"name": app}, "machine": {"id": "m1"}})
    await place.call("POST", "/_sim/faults", {"op": "get_machine", "status": 500})
    report = await place.scan()
    assert [(f.id, f.verdict) for f in report.missing] == [("m1", "unknown")]
    assert report.problems[0].startswith("machine m1 can't be looked at")


@pytest.mark.parametrize(
    ("op", "says"),
    [
        ("list_apps", "apps can't be listed"),
        ("org_machines", "machines can't be listed"),
        ("org_volumes", "volumes can't be listed"),
        ("list_secrets", "the names of the secrets of app"),
    ],
)
async def test_any_list_that_fails_is_said_and_nothing_is_an_orphan(place: Place, op: str, says: str) -> None:
    app = await place.app("gone")
    await place.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", "region": "iad", "size_gb": 1})
    await place.call("POST", "/_sim/faults", {"op": op, "status": 500})
    report = await place.scan()
    assert [says in problem for problem in report.problems] == [True]
    assert "orphan" not in {f.verdict for f in report.left}


async def test_an_agents_credential_that_the_settings_do_not_have_is_a_problem(place: Place) -> None:
    place.cluster.agent("ada", credential="lost")
    (problem,) = (await place.scan()).problems
    assert problem == ("org personal through credential lost: the settings have no such credential, only first, second")


async def test_without_roots_nothing_is_recognised_and_none_are_made(place: Place) -> None:
    del place.cluster.objects["/api/v1/namespaces/roost-system/secrets/roost-roots"]
    report = await place.scan()
    assert report.here is None
    assert "Secret roost-system/roost-roots is missing" in report.problems[0]


async def test_what_a_living_agents_status_names_anywhere_is_never_found(place: Place) -> None:
    app = await place.app("gone")
    place.cluster.agent("ada", status={"destroy": {"volumeIds": ["vol_x", app]}})
    assert (await place.scan()).left == ()
