"""What we write to Kubernetes, and what a real API server says to it: guards, patches, events, roots, Secrets, Fleets.

No operator runs here: each room is called as the engine would call it, with a cache that is read from the API server.
"""

import asyncio
import base64
import json
import os
import random
import secrets
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from roost.engine.engine import Again, News, Reconcile
from roost.engine.queue import Turn
from roost.fleets.reconcile import Fleets
from roost.intake import listing
from roost.kube.client import Conflict, Gone, Kube, Refused, Unreachable, collection, core_secret, set_finalizers
from roost.kube.cluster import Cluster
from roost.kube.events import Recorder
from roost.kube.objects import Objects, condition, regarding
from roost.kube.records import Cache, Key, Record, record
from roost.kube.roots import LostRoots, load_roots
from roost.local import binaries
from roost.local.stack import Stack
from roost.secrets.lookup import Lookup
from roost.secrets.reconcile import Secrets
from roost.secrets.sources import Sources
from roost.secrets.state import Ref
from roost.secrets.table import SecretTable
from roost.telemetry.metrics import Metrics

Body = dict[str, Any]
OURS, THEIRS = "roost.dev/machine", "example.com/theirs"
RUNTIME = {"runtime": {"kind": "Command", "command": ["sleep", "infinity"]}}
MERGE = {"Content-Type": "application/merge-patch+json"}
DEADLINE = 30.0


class World:
    """An API server, a namespace of the test's own, and our rooms on top."""

    def __init__(self, kube: Kube, http: httpx.Client, namespace: str, kubectl: Path, kubeconfig: Path) -> None:
        self.kube, self.http, self.namespace = kube, http, namespace
        self._kubectl, self._kubeconfig = kubectl, kubeconfig
        self.metrics, self.cache = Metrics(), Cache()
        self.objects = Objects(kube, self.cache, self.metrics)
        self.recorder = Recorder(kube, time.monotonic, "test")
        self.woken: list[Key] = []

    # --- A person's hands --------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return self._run(str(self._kubectl), "-n", self.namespace, *arguments, given=given)

    def obey(self, sentence: str) -> None:
        """Runs the command that a message ends with, as a person would who copies it."""
        command = sentence[sentence.index("kubectl ") :].removeprefix("kubectl ")
        self._run("sh", "-c", f"{self._kubectl} {command}")

    def _run(self, *command: str, given: str | None = None) -> str:
        env = {**os.environ, "KUBECONFIG": str(self._kubeconfig)}
        done = subprocess.run(
            command, env=env, input=given, capture_output=True, text=True, check=False, timeout=DEADLINE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make(self, kind: str, name: str, spec: Body, **metadata: Any) -> Record:
        body = {"apiVersion": "roost.dev/v1alpha1", "kind": kind, "metadata": {"name": name} | metadata, "spec": spec}
        answer = self.http.post(collection(kind, self.namespace), json=body)
        assert answer.status_code == 201, answer.text
        return self.told(answer.json())

    def change(self, kind: str, name: str, patch: Body) -> Record:
        answer = self.http.patch(f"{collection(kind, self.namespace)}/{name}", json=patch, headers=MERGE)
        assert answer.status_code == 200, answer.text
        return self.told(answer.json())

    def delete(self, kind: str, name: str) -> None:
        self.http.delete(f"{collection(kind, self.namespace)}/{name}").raise_for_status()

    def core_secret(self, name: str, **values: str | bytes) -> None:
        data = {k: base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode() for k, v in values.items()}
        path = core_secret(self.namespace, name)
        answer = self.http.put(path, json={"metadata": {"name": name}, "data": data})
        if answer.status_code == 404:
            answer = self.http.post(path.rpartition("/")[0], json={"metadata": {"name": name}, "data": data})
        answer.raise_for_status()

    def stored(self, kind: str, name: str) -> Body:
        answer = self.http.get(f"{collection(kind, self.namespace)}/{name}")
        return {} if answer.status_code == 404 else dict(answer.json())

    def names(self, kind: str) -> list[str]:
        return [o["metadata"]["name"] for o in self.http.get(collection(kind, self.namespace)).json()["items"]]

    # --- Us ----------------------------------------------------------------------------------------------------------

    def told(self, body: Body) -> Record:
        found = record(body)
        self.cache.put(found)
        return found

    def refresh(self) -> None:
        """What a watch would have told: all that is there, and what is no more."""
        for kind in listing.KINDS:
            items = self.http.get(collection(kind, self.namespace)).json()["items"]
            there = {self.told({"kind": kind} | o).key for o in items}
            for gone in [r for r in self.cache.of_kind(kind) if r.key not in there]:
                self.cache.drop(gone.key, gone.uid)

    def with_rights(self, *rules: Body) -> "Hand":
        """A ServiceAccount of its own that may do this and no more."""
        return Hand(self, rules)


class Hand:
    """Credentials with few rights; rights can be added."""

    def __init__(self, world: World, rules: tuple[Body, ...]) -> None:
        self._world, self.name = world, f"hand-{secrets.token_hex(3)}"
        self._rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{world.namespace}"
        meta = {"metadata": {"name": self.name}}
        accounts = f"/api/v1/namespaces/{world.namespace}/serviceaccounts"
        world.http.post(accounts, json=meta).raise_for_status()
        world.http.post(f"{self._rbac}/roles", json=meta | {"rules": list(rules)}).raise_for_status()
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": self.name}
        subject = {"kind": "ServiceAccount", "name": self.name, "namespace": world.namespace}
        binding = meta | {"roleRef": role, "subjects": [subject]}
        world.http.post(f"{self._rbac}/rolebindings", json=binding).raise_for_status()
        answer = world.http.post(f"{accounts}/{self.name}/token", json={"spec": {"expirationSeconds": 3600}})
        self.token: str = answer.raise_for_status().json()["status"]["token"]

    def may_also(self, *rules: Body) -> None:
        role = f"{self._rbac}/roles/{self.name}"
        before = self._world.http.get(role).json()["rules"] or []
        self._world.http.patch(role, json={"rules": [*before, *rules]}, headers=MERGE).raise_for_status()

    async def can(self, kube: Kube, verb: str, resource: str, group: str = "roost.dev") -> None:
        """Waits until the API server knows of the right."""
        what = {"namespace": self._world.namespace, "verb": verb, "group": group}
        resource, _, sub = resource.partition("/")
        what |= {"resource": resource} | ({"subresource": sub} if sub else {})
        review = {"spec": {"resourceAttributes": what}}

        async def allowed() -> bool:
            answer = await kube.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", dict(review))
            return bool(answer["status"]["allowed"])

        await until(allowed, f"{self.name} may {verb} {resource}")


async def until(condition_holds: Callable[[], Any], what: str) -> None:
    """Waits for a condition, with a deadline."""
    end = time.monotonic() + DEADLINE
    while True:
        holds = condition_holds()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def http(control_plane: Stack) -> Iterator[httpx.Client]:
    access = control_plane.admin
    with httpx.Client(
        base_url=access.server,
        headers={"Authorization": f"Bearer {access.token}"},
        verify=ssl.create_default_context(cafile=str(access.ca_file)),
        timeout=30,
    ) as client:
        yield client


@pytest.fixture
def kubes(control_plane: Stack) -> Iterator[Callable[..., Kube]]:
    """Makes our client for a token, or a file with one."""
    access = control_plane.admin

    def made(token: str | None = access.token, *, path: Path | None = None, server: str = access.server) -> Kube:
        return Kube(Cluster(server, str(access.ca_file), token_path=path, fixed_token=token), Metrics())

    return made  # type: ignore[return-value]


@pytest.fixture
def namespace(http: httpx.Client) -> Iterator[str]:
    """A fresh namespace of this module's API server, with nothing left in it that somebody would have to release."""
    name = f"kube-{secrets.token_hex(4)}"
    http.post("/api/v1/namespaces", json={"metadata": {"name": name}}).raise_for_status()
    yield name
    for kind in ("Fleet", "Agent"):
        for found in http.get(collection(kind, name)).json()["items"]:
            path = f"{collection(kind, name)}/{found['metadata']['name']}"
            http.patch(path, json={"metadata": {"finalizers": None}}, headers=MERGE)
    http.delete(f"/api/v1/namespaces/{name}").raise_for_status()


@pytest.fixture
async def world(
    control_plane: Stack, http: httpx.Client, kubes: Callable[..., Kube], namespace: str
) -> AsyncIterator[World]:
    async with kubes() as kube:
        yield World(kube, http, namespace, binaries.find(say=print).kubectl, control_plane.kubeconfig)


# --- Finalizers: one guarded patch, one meaning for each answer ------------------------------------------------------


async def test_our_finalizer_is_stored_beside_theirs_and_released_without_touching_theirs(world: World) -> None:
    found = world.make("Agent", "ada", RUNTIME, finalizers=[THEIRS])
    assert await world.objects.finalizer(found, OURS, held=True)
    assert world.stored("Agent", "ada")["metadata"]["finalizers"] == [THEIRS, OURS]
    again = world.cache.get(found.key)
    assert again is not None
    assert again.finalizers == (THEIRS, OURS), "the cache does not know what we wrote ourselves"
    assert await world.objects.finalizer(again, OURS, held=False)
    assert world.stored("Agent", "ada")["metadata"]["finalizers"] == [THEIRS]


async def test_a_finalizer_is_never_written_over_somebody_elses_change(world: World) -> None:
    """409: the version that was seen is no more; what is there now is read, and decided upon anew."""
    found = world.make("Agent", "ada", RUNTIME)
    world.http.patch(
        f"{collection('Agent', world.namespace)}/ada",
        json={"metadata": {"finalizers": [THEIRS]}},
        headers=MERGE,
    ).raise_for_status()
    assert not await world.objects.finalizer(found, OURS, held=True)
    assert world.stored("Agent", "ada")["metadata"]["finalizers"] == [THEIRS]
    newest = world.cache.get(found.key)
    assert newest is not None
    assert newest.finalizers == (THEIRS,)
    assert await world.objects.finalizer(newest, OURS, held=True)


async def test_no_finalizer_is_added_once_deletion_has_begun(world: World) -> None:
    """422, whatever the version: the Agent goes, and nothing may be made for it any more."""
    world.make("Agent", "ada", RUNTIME, finalizers=[THEIRS])
    world.delete("Agent", "ada")
    going = world.told(world.stored("Agent", "ada"))
    with pytest.raises(Refused) as caught:
        await set_finalizers(
            world.kube, f"{collection('Agent', world.namespace)}/ada", str(going.version), [THEIRS, OURS]
        )
    assert caught.value.status == 422
    assert not await world.objects.finalizer(going, OURS, held=True)
    assert world.stored("Agent", "ada")["metadata"]["finalizers"] == [THEIRS]


async def test_a_finalizer_of_what_is_gone_needs_no_releasing(world: World) -> None:
    """404."""
    found = world.make("Agent", "ada", RUNTIME)
    world.delete("Agent", "ada")
    assert await world.objects.finalizer(found, OURS, held=False)
    assert world.cache.get(found.key) is None


async def test_with_the_last_finalizer_the_object_goes_and_the_cache_knows(world: World) -> None:
    world.make("Agent", "ada", RUNTIME, finalizers=[OURS])
    world.delete("Agent", "ada")
    going = world.told(world.stored("Agent", "ada"))
    assert going.deleting
    assert await world.objects.finalizer(going, OURS, held=False)
    assert world.stored("Agent", "ada") == {}
    assert world.cache.get(going.key) is None


# --- Status ----------------------------------------------------------------------------------------------------------


async def test_a_status_patch_takes_away_what_is_no_longer_said(world: World) -> None:
    found = world.make("Agent", "ada", RUNTIME)
    whole = {
        "phase": "Running",
        "nextAction": "wait",
        "machine": {"id": "m", "state": "started"},
        "secrets": [{"name": "a"}],
    }
    assert await world.objects.write_status(found, whole)
    found = world.told(world.stored("Agent", "ada"))
    assert await world.objects.write_status(found, {"phase": "Stopped", "machine": {"id": "m"}})
    status = world.stored("Agent", "ada")["status"]
    assert (status["phase"], status["machine"]) == ("Stopped", {"id": "m"})
    assert "nextAction" not in status
    assert "secrets" not in status
    assert world.cache.get(found.key) == record(world.stored("Agent", "ada"))


@pytest.mark.parametrize("change", ["deletion", "spec", "annotation"])
async def test_a_status_that_was_made_of_something_older_is_not_written(world: World, change: str) -> None:
    """Its answer would bring the change into the cache before the watch does, and nobody would look at it."""
    found = world.make("Agent", "ada", RUNTIME, finalizers=[OURS])
    path = f"{collection('Agent', world.namespace)}/ada"
    match change:
        case "deletion":
            world.http.delete(path).raise_for_status()
        case "spec":
            world.http.patch(path, json={"spec": {"paused": True}}, headers=MERGE).raise_for_status()
        case _:
            annotations = {"metadata": {"annotations": {"roost.dev/revoked": "true"}}}
            world.http.patch(path, json=annotations, headers=MERGE).raise_for_status()
    with pytest.raises(Conflict):
        await world.objects.write_status(found, {"phase": "Running"})
    assert "phase" not in world.stored("Agent", "ada").get("status", {})
    newest = world.cache.get(found.key)
    assert newest == record(world.stored("Agent", "ada"))
    assert newest is not None
    assert await world.objects.write_status(newest, {"phase": "Running"})


async def test_a_status_of_what_is_gone_is_written_nowhere(world: World) -> None:
    found = world.make("Agent", "ada", RUNTIME)
    world.delete("Agent", "ada")
    assert not await world.objects.write_status(found, {"phase": "Running"})
    assert world.cache.get(found.key) is None


async def test_a_slip_of_ours_in_a_status_is_told_loudly(world: World) -> None:
    found = world.make("Agent", "ada", RUNTIME)
    with structlog.testing.capture_logs() as lines:
        await world.objects.write_status(found, {"phase": "Running", "nextActoin": "x", "alsoWrong": "y"})
    told = [line["warning"] for line in lines if line["log_level"] == "error"]
    assert len(told) == 2
    assert any("status.nextActoin" in warning for warning in told)


# --- Deleting exactly what was seen ----------------------------------------------------------------------------------


async def test_only_the_object_that_was_seen_is_deleted(world: World) -> None:
    found = world.make("Agent", "ada", RUNTIME)
    path = f"{collection('Agent', world.namespace)}/ada"
    with pytest.raises(Conflict):
        await world.kube.delete(path, uid="another-uid")
    changed = world.change("Agent", "ada", {"spec": {"paused": True}})
    with pytest.raises(Conflict):
        await world.kube.delete(path, uid=found.uid, resource_version=str(found.version))
    assert world.stored("Agent", "ada")
    await world.kube.delete(path, uid=found.uid, resource_version=str(changed.version))
    assert world.stored("Agent", "ada") == {}
    with pytest.raises(Gone):
        await world.kube.delete(path, uid=found.uid)


# --- Errors ----------------------------------------------------------------------------------------------------------


async def test_what_is_refused_for_good_is_told_from_what_time_may_heal(
    world: World, kubes: Callable[..., Kube]
) -> None:
    agents = collection("Agent", world.namespace)
    with pytest.raises(Refused, match=r"spec.runtime: Required"):
        await world.kube.create(
            agents, {"apiVersion": "roost.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "x"}, "spec": {}}
        )
    with pytest.raises(Gone):
        await world.kube.get(f"{agents}/nobody")
    async with kubes("not-a-token") as stranger:
        with pytest.raises(Unreachable, match="401"):
            await stranger.get(agents)
    async with kubes(world.with_rights().token) as powerless:
        with pytest.raises(Refused, match="403"):
            await powerless.get(agents)
    async with kubes(server="https://127.0.0.1:9") as nowhere:
        with pytest.raises(Unreachable):
            await nowhere.get(agents)


async def test_a_rotated_token_is_read_again_when_the_one_before_is_refused(
    world: World, kubes: Callable[..., Kube], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("expired\n")
    async with kubes(None, path=file) as kube:
        with pytest.raises(Unreachable, match="401"):
            await kube.get(collection("Agent", world.namespace))
        file.write_text(f"{world.http.headers['Authorization'].removeprefix('Bearer ')}\n")
        assert (await kube.get(collection("Agent", world.namespace)))["items"] == []


async def test_a_listing_of_many_pages_is_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE", "2")
    names = {f"a-{n}" for n in range(5)}
    for name in names:
        world.make("Agent", name, RUNTIME)
    found = [o["metadata"] async for o in listing.objects(world.kube, "Agent")]
    assert sorted(m["name"] for m in found if m["namespace"] == world.namespace) == sorted(names)


# --- Events ----------------------------------------------------------------------------------------------------------


async def events(world: World) -> list[Body]:
    found: list[Body] = (await world.kube.get(f"/apis/events.k8s.io/v1/namespaces/{world.namespace}/events"))["items"]
    return found


async def test_an_event_is_shown_by_kubectl_at_its_object(world: World) -> None:
    found = world.make("Agent", "ada", RUNTIME)
    world.recorder.record(regarding(found), "Warning", "SecretMissing", "Reconcile", "create it")
    await world.recorder.flush()
    assert "SecretMissing" in world.kubectl("describe", "agents.roost.dev", "ada")
    [event] = await events(world)
    assert (event["type"], event["action"], event["note"]) == ("Warning", "Reconcile", "create it")
    assert event["reportingController"] == "roost.dev/operator"


@pytest.mark.parametrize("note", ["x" * 5000, "…" * 5000, "é" + "🦜" * 2000, ""])
async def test_an_event_of_any_length_in_any_script_is_taken(world: World, note: str) -> None:
    found = world.make("Agent", "ada", RUNTIME)
    world.recorder.record(regarding(found), "Normal", "Running", "Reconcile", note)
    await world.recorder.flush()
    [event] = await events(world)
    assert note.startswith(event.get("note", ""))
    assert len(event.get("note", "").encode()) >= min(len(note.encode()), 990)


# --- Roots -----------------------------------------------------------------------------------------------------------


async def test_roots_are_made_once_and_found_again(world: World) -> None:
    first, rival = await asyncio.gather(*(load_roots(world.kube, world.namespace) for _ in range(2)))
    assert first == rival == await load_roots(world.kube, world.namespace)
    assert len({first.identity, first.token, first.fingerprint}) == 3
    for root in (first.identity, first.token, first.fingerprint):
        assert len(root) == 32
        assert repr(root) not in repr(first)


async def test_two_installations_have_nothing_in_common(world: World) -> None:
    other = f"{world.namespace}-b"
    world.http.post("/api/v1/namespaces", json={"metadata": {"name": other}}).raise_for_status()
    one, two = await load_roots(world.kube, world.namespace), await load_roots(world.kube, other)
    world.http.delete(f"/api/v1/namespaces/{other}").raise_for_status()
    assert not {one.owner_id, one.identity, one.token, one.fingerprint} & {
        two.owner_id,
        two.identity,
        two.token,
        two.fingerprint,
    }


async def test_lost_roots_are_never_made_anew_while_agents_live_by_them(world: World) -> None:
    world.make("Agent", "ada", RUNTIME, finalizers=[OURS])
    with pytest.raises(LostRoots) as caught:
        await load_roots(world.kube, world.namespace)
    said = str(caught.value)
    assert f"Secret {world.namespace}/roost-roots is missing" in said
    assert f"{world.namespace}/ada" in said
    assert "Restore it from your backup" in said
    with pytest.raises(Gone):
        await world.kube.get(core_secret(world.namespace, "roost-roots"))


async def test_an_agent_that_has_nothing_at_fly_yet_is_no_reason_to_refuse(world: World) -> None:
    world.make("Agent", "ada", RUNTIME)
    assert (await load_roots(world.kube, world.namespace)).owner_id


GOOD = {"identity": b"i" * 32, "token": b"t" * 32, "fingerprint": b"f" * 32, "ownerId": b"0123456789abcdef"}


@pytest.mark.parametrize(
    "damage",
    [
        {"identity": b""},
        {"token": b"t" * 31},
        {"identity": b"i" * 32 + b"\n"},  # `base64` or an editor added a line's end
        {"ownerId": b""},
        {"ownerId": b"0123456789abcdef\n"},
        {"ownerId": b"\xff\xfe"},
        {"fingerprint": None},
        {"tokenPrevious": b"t" * 31},
        {"tokenPrevious": b""},
    ],
)
async def test_damaged_roots_are_refused_and_left_as_they_are(world: World, damage: dict[str, bytes | None]) -> None:
    world.core_secret("roost-roots", **{k: v for k, v in (GOOD | damage).items() if v is not None})
    before = await world.kube.get(core_secret(world.namespace, "roost-roots"))
    with pytest.raises(LostRoots, match=r"is damaged .*restore it from your backup"):
        await load_roots(world.kube, world.namespace)
    assert await world.kube.get(core_secret(world.namespace, "roost-roots")) == before


async def test_restored_roots_are_the_ones(world: World) -> None:
    world.core_secret("roost-roots", **GOOD)
    roots = await load_roots(world.kube, world.namespace)
    assert (roots.identity, roots.owner_id, roots.token_before) == (b"i" * 32, "0123456789abcdef", None)


async def test_the_token_root_before_is_kept_beside_the_new_one(world: World) -> None:
    world.core_secret("roost-roots", **GOOD | {"token": b"u" * 32, "tokenPrevious": b"t" * 32})
    roots = await load_roots(world.kube, world.namespace)
    assert (roots.token, roots.token_before) == (b"u" * 32, b"t" * 32)


async def test_the_backup_that_the_docs_describe_brings_the_roots_back(world: World, tmp_path: Path) -> None:
    before = await load_roots(world.kube, world.namespace)
    world.make("Agent", "ada", RUNTIME, finalizers=[OURS])
    page = (Path(__file__).parents[2] / "docs/how-to/uninstall.md").read_text()
    backup = next(block for block in page.split("```sh\n") if "go-template" in block).partition("```")[0]
    file = tmp_path / "roost-roots.yaml"
    world.obey(backup.replace("roost-system", world.namespace).replace("roost-roots.yaml", str(file)))
    world.kubectl("delete", "secret", "roost-roots")
    with pytest.raises(LostRoots):
        await load_roots(world.kube, world.namespace)
    world.kubectl("apply", "-f", str(file))
    assert await load_roots(world.kube, world.namespace) == before


# --- Secrets ---------------------------------------------------------------------------------------------------------

VALUE = "sk-ant-very-secret-value"


class SecretRoom:
    """The room of Secrets, with an Agent that uses the Secret `anthropic`."""

    def __init__(self, world: World, kube: Kube | None = None) -> None:
        self.world = world
        self.table = SecretTable(Lookup(world.cache, "roost-system"), world.woken.append)
        self.key = Key("Secret", world.namespace, "anthropic")
        self.ada = Key("Agent", world.namespace, "ada")
        self.table.uses(self.ada, [Ref("anthropic", "api-key")])
        metrics = Metrics()
        recorder = Recorder(world.kube, time.monotonic, "roost")
        self._sources = Sources(kube or world.kube, self.table, b"r" * 32, 15.0, time.monotonic)
        self._secrets = Secrets(
            world.objects, world.cache, self.table, self._sources, b"r" * 32, recorder, metrics, time.monotonic
        )

    def declare(self, *keys: Body) -> None:
        spec: Body = {"source": {"secretRef": {"name": "anthropic-v1"}}}
        self.world.make("Secret", "anthropic", spec | ({"keys": list(keys)} if keys else {}))

    async def look(self) -> Body:
        """What a change of anything leads to; the status that is stored then."""
        self.world.woken.clear()
        source = Key("CoreSecret", self.world.namespace, "anthropic-v1")
        await self._reconcile(self._secrets.reconcile, self.key)
        self.table.asked.add(source)
        await self._reconcile(self._sources.reconcile, source)
        self.again = await self._reconcile(self._secrets.reconcile, self.key)
        status: Body = self.world.stored("Secret", "anthropic").get("status", {})
        return status

    async def _reconcile(self, reconcile: Reconcile, key: Key) -> Again:
        return await reconcile(key, News(Turn(key, 0.0), asyncio.Event()))

    def woken(self) -> list[Key]:
        """The Agents that were woken."""
        return [key for key in self.world.woken if key.kind == "Agent"]


async def test_a_missing_core_secret_is_named_with_a_command_that_heals_it(world: World) -> None:
    room = SecretRoom(world)
    room.declare({"name": "api-key", "from": "ANTHROPIC_API_KEY"}, {"name": "org", "required": False})
    status = await room.look()
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "SecretMissing")
    assert f'core Secret "anthropic-v1" not found in namespace "{world.namespace}"' in ready["message"]
    assert condition(status, "Stalled")["status"] == "True"
    assert room.woken() == [room.ada]

    world.obey(ready["message"])
    status = await room.look()
    assert condition(status, "Ready")["status"] == "True"
    assert condition(status, "Stalled")["status"] == "False"
    assert status["activeVersion"] == 1
    assert status["keys"] == [{"name": "api-key", "present": True}, {"name": "org", "present": False}]
    assert room.woken() == [room.ada]


async def test_a_missing_key_is_named_with_a_command_that_adds_it_and_takes_nothing_away(world: World) -> None:
    room = SecretRoom(world)
    manifest = "apiVersion: v1\nkind: Secret\nmetadata: {name: anthropic-v1}\n" + f"stringData: {{ORG: {VALUE}}}\n"
    world.kubectl("apply", "-f", "-", given=manifest)
    room.declare({"name": "api-key", "from": "ANTHROPIC_API_KEY"}, {"name": "org", "from": "ORG"})
    ready = condition(await room.look(), "Ready")
    assert ready["reason"] == "SecretKeyMissing"
    assert "lacks ANTHROPIC_API_KEY" in ready["message"]
    assert VALUE not in json.dumps(world.stored("Secret", "anthropic")) + repr(room.table)
    world.obey(ready["message"])
    status = await room.look()
    assert condition(status, "Ready")["status"] == "True"
    assert status["keys"] == [{"name": "api-key", "present": True}, {"name": "org", "present": True}]


async def test_a_change_of_values_is_a_new_version_and_wakes_those_who_use_it(world: World) -> None:
    room = SecretRoom(world)
    world.core_secret("anthropic-v1", **{"api-key": VALUE})
    room.declare()
    first = await room.look()
    assert first["activeVersion"] == 1
    version = world.stored("Secret", "anthropic")["metadata"]["resourceVersion"]
    await room.look()
    assert room.woken() == []
    assert world.stored("Secret", "anthropic")["metadata"]["resourceVersion"] == version, "written without a change"
    world.core_secret("anthropic-v1", **{"api-key": VALUE + "2"})
    second = await room.look()
    assert second["activeVersion"] == 2
    assert second["fingerprint"] != first["fingerprint"]
    assert room.woken() == [room.ada]


async def test_versions_outlive_the_process_that_counted_them(world: World) -> None:
    world.core_secret("anthropic-v1", **{"api-key": VALUE})
    room = SecretRoom(world)
    room.declare()
    await room.look()
    again = SecretRoom(world)
    assert (await again.look())["activeVersion"] == 1
    assert again.table.resolve(again.ada).versions == (("anthropic", 1),)


async def test_a_value_is_in_no_status_no_state_and_no_log(world: World) -> None:
    room = SecretRoom(world)
    world.core_secret("anthropic-v1", **{"api-key": VALUE})
    room.declare()
    with structlog.testing.capture_logs() as lines:
        status = await room.look()
    encoded = base64.b64encode(VALUE.encode()).decode()
    seen = json.dumps(status) + repr(room.table) + repr(lines) + repr(world.cache.get(room.key))
    assert VALUE not in seen
    assert encoded not in seen


async def test_a_core_secret_that_may_not_be_read_is_said_with_the_right_that_lacks(
    world: World, kubes: Callable[..., Kube]
) -> None:
    world.core_secret("anthropic-v1", **{"api-key": VALUE})
    async with kubes(world.with_rights().token) as powerless:
        room = SecretRoom(world, powerless)
        room.declare()
        ready = condition(await room.look(), "Ready")
    assert ready["reason"] == "SecretForbidden"
    assert ready["message"].endswith("grant the operator get on secrets")


async def test_bytes_that_are_no_text_are_said_by_the_name_of_their_key(world: World) -> None:
    room = SecretRoom(world)
    world.core_secret("anthropic-v1", blob=b"\xff\xfe\x00")
    room.declare()
    ready = condition(await room.look(), "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "SecretKeyInvalid")
    assert 'key "blob" of core Secret "anthropic-v1"' in ready["message"]


async def test_a_secret_that_is_taken_away_is_told_to_those_who_use_it_and_forgotten(world: World) -> None:
    room = SecretRoom(world)
    world.core_secret("anthropic-v1", **{"api-key": VALUE})
    room.declare()
    await room.look()
    world.delete("Secret", "anthropic")
    world.refresh()
    await room.look()
    assert set(room.woken()) == {room.ada}
    assert room.table.sources == {}
    assert room.again == Again()


# --- Fleets ----------------------------------------------------------------------------------------------------------


class FleetRoom:
    """The room of Fleets, and a Fleet `support`."""

    def __init__(self, world: World, kube: Kube | None = None) -> None:
        self.world = world
        kube = kube or world.kube
        self.key = Key("Fleet", world.namespace, "support")
        objects = Objects(kube, world.cache, world.metrics)
        self._fleets = Fleets(kube, objects, world.cache, world.recorder, world.metrics, world.woken.append)

    async def look(self) -> Again:
        """What a watch would tell, then one reconcile."""
        self.world.refresh()
        return await self._fleets.reconcile(self.key, News(Turn(self.key, 0.0), asyncio.Event()))

    async def until_gone(self) -> list[str]:
        """Looks until the Fleet is gone; the order in which its members went."""
        order: list[str] = []
        before = set(self.world.names("Agent"))

        async def gone() -> bool:
            nonlocal before
            await self.look()
            now = set(self.world.names("Agent"))
            order.extend(sorted(before - now))
            before = now
            return not self.world.stored("Fleet", "support")

        await until(gone, "the Fleet is gone")
        return order

    def status(self) -> Body:
        return dict(self.world.stored("Fleet", "support").get("status", {}))

    def become_ready(self, *names: str) -> None:
        """As the Agents' own reconciles would say."""
        for name in names:
            path = f"{collection('Agent', self.world.namespace)}/{name}"
            generation = self.world.http.get(path).json()["metadata"]["generation"]
            ready = {"type": "Ready", "status": "True", "reason": "Running", "message": ""}
            ready["lastTransitionTime"] = "2026-11-21T10:00:00Z"
            status = {"observedGeneration": generation, "phase": "Running", "conditions": [ready]}
            self.world.http.patch(f"{path}/status", json={"status": status}, headers=MERGE).raise_for_status()


def fleet_spec(replicas: int | None = 3, **spec: Any) -> Body:
    return {"template": {"spec": RUNTIME | spec}} | ({} if replicas is None else {"replicas": replicas})


async def test_a_fleet_makes_its_members_and_says_how_they_are(world: World) -> None:
    room = FleetRoom(world)
    fleet = world.make("Fleet", "support", fleet_spec())
    await room.look()
    assert sorted(world.names("Agent")) == ["support-0", "support-1", "support-2"]
    member = world.stored("Agent", "support-1")["metadata"]
    assert member["labels"]["roost.dev/ordinal"] == "1"
    assert member["ownerReferences"][0] | {"uid": fleet.uid, "controller": True} == member["ownerReferences"][0]
    status = room.status()
    assert (status["replicas"], status["readyReplicas"], status["unavailableReplicas"]) == (3, 0, 3)
    assert condition(status, "Ready")["status"] == "False"
    room.become_ready("support-0", "support-1", "support-2")
    await room.look()
    assert (room.status()["readyReplicas"], condition(room.status(), "Ready")["status"]) == (3, "True")
    assert {k.name for k in world.woken} == {"support-0", "support-1", "support-2"}


async def test_a_converged_fleet_writes_nothing(world: World) -> None:
    room = FleetRoom(world)
    world.make("Fleet", "support", fleet_spec(2))
    await room.look()
    room.become_ready("support-0", "support-1")
    await room.look()
    before = world.stored("Fleet", "support")["metadata"]["resourceVersion"]
    await room.look()
    assert world.stored("Fleet", "support")["metadata"]["resourceVersion"] == before


async def test_what_a_person_set_on_one_member_outlives_a_rollout(world: World) -> None:
    room = FleetRoom(world)
    world.make("Fleet", "support", fleet_spec(1))
    await room.look()
    world.change("Agent", "support-0", {"spec": {"paused": True, "desiredState": "Stopped", "restartedAt": "monday"}})
    world.change("Fleet", "support", {"spec": fleet_spec(1, env=[{"name": "A", "value": "1"}])})
    await room.look()
    spec = world.stored("Agent", "support-0")["spec"]
    assert spec["env"] == [{"name": "A", "value": "1"}]
    assert (spec["paused"], spec["desiredState"], spec["restartedAt"]) == (True, "Stopped", "monday")


async def test_a_field_that_leaves_the_template_leaves_the_members(world: World) -> None:
    room = FleetRoom(world)
    world.make("Fleet", "support", fleet_spec(1, env=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]))
    await room.look()
    world.change("Fleet", "support", {"spec": fleet_spec(1, env=[{"name": "B", "value": "2"}])})
    await room.look()
    assert world.stored("Agent", "support-0")["spec"]["env"] == [{"name": "B", "value": "2"}]


async def test_labels_that_somebody_took_away_come_back(world: World) -> None:
    room = FleetRoom(world)
    world.make("Fleet", "support", fleet_spec(1))
    await room.look()
    before = world.stored("Agent", "support-0")["metadata"]
    world.kubectl(
        "label", "agents.roost.dev", "support-0", "roost.dev/ordinal-", "roost.dev/revision-", "roost.dev/fleet-"
    )
    await room.look()
    after = world.stored("Agent", "support-0")["metadata"]
    assert after["labels"] == before["labels"]
    assert after["uid"] == before["uid"]


async def test_scale_through_kubectl_removes_the_highest(world: World) -> None:
    room = FleetRoom(world)
    world.make("Fleet", "support", fleet_spec(3))
    await room.look()
    world.kubectl("scale", "fleets.roost.dev", "support", "--replicas=1")
    await room.look()
    assert world.names("Agent") == ["support-0"]


async def test_a_deleted_fleet_takes_its_members_from_the_highest_down_and_leaves_nothing(world: World) -> None:
    room = FleetRoom(world)
    world.make("Fleet", "support", fleet_spec(3))
    await room.look()
    for name in world.names("Agent"):  # each takes its time, as an Agent with a machine does
        world.change("Agent", name, {"metadata": {"finalizers": [OURS]}})
    world.delete("Fleet", "support")
    for highest in ("support-2", "support-1", "support-0"):
        await room.look()
        going = [n for n in world.names("Agent") if "deletionTimestamp" in world.stored("Agent", n)["metadata"]]
        assert going == [highest]
        world.change("Agent", highest, {"metadata": {"finalizers": None}})
    await room.until_gone()
    revisions = f"/apis/apps/v1/namespaces/{world.namespace}/controllerrevisions"
    assert world.http.get(revisions).json()["items"] == []


async def test_orphan_deletion_lets_the_members_live(world: World) -> None:
    """The garbage collector sets them free at its own time; we may hear of the Fleet before we hear of them.

    It also patches the Fleet's revisions, whose data is immutable to the byte.
    """
    room = FleetRoom(world)
    script = "cd /data && exec sleep <<<\u2028 infinity >/dev/null"
    world.make("Fleet", "support", fleet_spec(3, runtime={"kind": "Command", "command": ["bash", "-c", script]}))
    await room.look()
    world.kubectl("delete", "fleets.roost.dev", "support", "--cascade=orphan", "--wait=false")
    await until(
        lambda: world.stored("Fleet", "support")["metadata"]["finalizers"] == ["roost.dev/members"],
        "the garbage collector has set the members free",
    )
    world.told(world.stored("Fleet", "support"))  # and of the members we believe what we saw before
    await room._fleets.reconcile(room.key, News(Turn(room.key, 0.0), asyncio.Event()))
    await room.until_gone()
    assert sorted(world.names("Agent")) == ["support-0", "support-1", "support-2"]
    assert all("deletionTimestamp" not in world.stored("Agent", n)["metadata"] for n in world.names("Agent"))


async def test_an_agent_of_a_members_name_is_left_as_it_is_and_a_person_is_told(world: World) -> None:
    room = FleetRoom(world)
    world.make("Agent", "support-1", RUNTIME | {"identity": {"displayName": "mine"}})
    before = world.stored("Agent", "support-1")
    world.make("Fleet", "support", fleet_spec(3))
    await room.look()
    assert world.stored("Agent", "support-1") == before
    stalled = condition(room.status(), "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "MemberNotOurs")
    assert 'Agent "support-1" exists' in stalled["message"]
    assert sorted(world.names("Agent")) == ["support-0", "support-1", "support-2"]


MAY_KEEP_FLEETS = [
    {"apiGroups": ["roost.dev"], "resources": ["fleets", "agents"], "verbs": ["get", "list"]},
    {"apiGroups": ["roost.dev"], "resources": ["fleets"], "verbs": ["patch"]},
    {"apiGroups": ["roost.dev"], "resources": ["fleets/status"], "verbs": ["patch"]},
    {"apiGroups": ["roost.dev"], "resources": ["fleets/finalizers"], "verbs": ["update"]},
    {"apiGroups": ["apps"], "resources": ["controllerrevisions"], "verbs": ["get", "list", "create", "delete"]},
]
MAY_MAKE_AGENTS = {"apiGroups": ["roost.dev"], "resources": ["agents"], "verbs": ["create", "patch", "delete"]}


async def test_a_refused_member_is_said_and_tried_again_without_a_change_of_the_fleet(
    world: World, kubes: Callable[..., Kube], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota, a policy, a missing right: each heals elsewhere, and nobody will touch the Fleet for it."""
    hand = world.with_rights(*MAY_KEEP_FLEETS)
    async with kubes(hand.token) as kube:
        await hand.can(kube, "patch", "fleets/status")
        room = FleetRoom(world, kube)
        world.make("Fleet", "support", fleet_spec(2))
        again = await room.look()
        stalled = condition(room.status(), "Stalled")
        assert (stalled["status"], stalled["reason"]) == ("True", "MemberRefused")
        assert "support-0 was refused" in stalled["message"]
        hand.may_also(MAY_MAKE_AGENTS)
        await hand.can(kube, "create", "agents")
        await room.look()
        assert world.names("Agent") == [], "it does not wait before it tries again"
        monkeypatch.setattr("roost.fleets.reconcile.REFUSED_SECONDS", 0.0)
        for memory in room._fleets._memories.values():
            memory.refused_until -= again.after or 0.0  # as if this look were the one that was asked for
        await room.look()
    assert sorted(world.names("Agent")) == ["support-0", "support-1"]
    assert condition(room.status(), "Stalled")["status"] == "False"


async def test_a_finalizer_that_is_refused_is_not_asked_for_in_a_circle(
    world: World, kubes: Callable[..., Kube]
) -> None:
    hand = world.with_rights(MAY_KEEP_FLEETS[0])
    async with kubes(hand.token) as kube:
        await hand.can(kube, "get", "fleets")
        room = FleetRoom(world, kube)
        world.make("Fleet", "support", fleet_spec(2))
        assert await room.look() == Again(backoff=True)
        labels = {"code": "403", "method": "PATCH"}
        assert kube._metrics.registry.get_sample_value("rest_client_requests_total", labels) == 1
    assert world.names("Agent") == []


async def test_fleets_of_any_change_end_as_declared(world: World) -> None:
    """Scale up and down and change the template at random; then let everybody become ready."""
    room, rng = FleetRoom(world), random.Random(5)
    world.make("Fleet", "support", fleet_spec(2))
    for n in range(6):
        await room.look()
        if names := world.names("Agent"):
            room.become_ready(rng.choice(names))
        change = fleet_spec(rng.randrange(5), env=[{"name": "A", "value": str(rng.randrange(n + 1))}])
        world.change("Fleet", "support", {"spec": change})
    world.change("Fleet", "support", {"spec": fleet_spec(3, env=[{"name": "A", "value": "last"}])})

    async def settled() -> bool:
        await room.look()
        room.become_ready(*world.names("Agent"))
        return condition(room.status(), "Ready").get("status") == "True"

    await until(settled, "the Fleet is as declared")
    assert sorted(world.names("Agent")) == ["support-0", "support-1", "support-2"]
    for name in world.names("Agent"):
        assert world.stored("Agent", name)["spec"]["env"] == [{"name": "A", "value": "last"}]
