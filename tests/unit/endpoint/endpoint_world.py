"""An endpoint on 127.0.0.1 with the real rooms behind it, and a server of core Secrets in place of a cluster.

Agents are declared as the API server would tell of them; `look` does what a reconcile does for the endpoint: it takes
in what is declared, knows the bundle's revision, and rings the bell. No Fly, no queue that runs.
"""

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import web

from roost.agents import bundle
from roost.agents.memory import Installation, Memories, Memory
from roost.agents.names import derive, heartbeat_token
from roost.agents.sessions import Sessions
from roost.endpoint import checkin
from roost.endpoint.access import AccessLog
from roost.endpoint.relay import Relay
from roost.endpoint.server import Endpoint
from roost.endpoint.site import Site
from roost.endpoint.tls import Certificate
from roost.endpoint.walls import Walls
from roost.engine.engine import Engine
from roost.engine.queue import Lane
from roost.kube.client import Kube
from roost.kube.cluster import Cluster
from roost.kube.records import Cache, Key, Record, record
from roost.kube.roots import Roots
from roost.run import _serve
from roost.secrets.lookup import Lookup
from roost.secrets.state import fingerprint
from roost.secrets.table import SecretTable
from roost.secrets.values import Values
from roost.settings import EndpointLimits, GatewaySecret
from roost.telemetry.metrics import Metrics
from roost_agent.contract import MACHINE_ID_HEADER, MAX_HEARTBEAT_BYTES, TOKEN_HEADER, bundle_path, heartbeat_path

NAMESPACE = "team-a"
MAX_BODY = MAX_HEARTBEAT_BYTES
DEADLINE = 5.0
MANY_CALLS = EndpointLimits(requests_per_second=10_000)
ROOTS = Roots("0123456789abcdef", b"identity" * 4, b"token---" * 4, b"finger--" * 4)


class Clock:
    """Seconds as the sessions see them; they pass only when told to."""

    def __init__(self) -> None:
        self.now = 50_000.0

    def __call__(self) -> float:
        return self.now


class CoreSecrets:
    """The calls of the Kubernetes API that a bundle needs: GET of a core Secret or a ConfigMap, as a real server."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, str | bytes]] = {}
        self.maps: dict[str, dict[str, Any]] = {}
        """ConfigMaps, by name: `data` and `binaryData`."""
        self.fails_with: int | None = None
        self.reads = 0

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/{namespace}/secrets/{name}", self._get)
        app.router.add_get("/api/v1/namespaces/{namespace}/configmaps/{name}", self._get_map)
        return app

    async def _get_map(self, request: web.Request) -> web.Response:
        found = self.maps.get(request.match_info["name"])
        return web.json_response({"message": "not found"}, status=404) if found is None else web.json_response(found)

    async def _get(self, request: web.Request) -> web.Response:
        self.reads += 1
        if self.fails_with is not None:
            return web.json_response({"message": "no"}, status=self.fails_with)
        values = self.values.get(request.match_info["name"])
        if values is None or request.match_info["namespace"] != NAMESPACE:
            return web.json_response({"message": "not found"}, status=404)
        data = {k: base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode() for k, v in values.items()}
        return web.json_response({"data": data})


class EndpointWorld:
    """All of it; made by `endpoint_world`."""

    def __init__(
        self,
        kube: Kube,
        secrets: CoreSecrets,
        metrics: Metrics,
        limits: EndpointLimits,
        certificate: Certificate | None,
        gateway_secret: GatewaySecret | None,
    ) -> None:
        self.secrets, self.metrics, self.clock = secrets, metrics, Clock()
        self.cache = Cache()
        self.table = SecretTable(Lookup(self.cache, "roost-system"), lambda key: self.engine.add(key, Lane.USER))
        here = self.here = Installation(ROOTS, "cluster", self.clock.now)
        self.memories = Memories(here, self.table)
        self.engine = Engine({}, metrics, random.Random(1))
        self.sessions = Sessions(
            Values(kube, self.table, self.clock), self.cache, self.memories, here, self.engine, self.clock
        )
        self.ready = True
        self.leads, self.leader = True, ""
        self.relay = Relay(lambda: self.leads, lambda: self.leader or None, certificate)
        self.access = AccessLog(asyncio.get_running_loop().time, successes=True)
        self.walls = Walls(self.sessions, lambda: self.ready, limits.requests_per_second, self.clock)
        self.endpoint = Endpoint(self.sessions, metrics, self.walls, self.relay, lambda: True)
        seed_secret = checkin.SeedSecret(kube, NAMESPACE, gateway_secret, self.clock)
        self.endpoint.add(*checkin.routes(self.walls, self.sessions, self.relay, seed_secret, metrics))
        metrics.watch_agents(self.sessions.seen)
        self.site = Site(self.endpoint, limits, metrics, self.access, certificate.context if certificate else None)
        self.port = 0
        self.http: aiohttp.ClientSession
        self._versions = 1

    # --- What is declared ------------------------------------------------------------------------------------------

    def declare(self, kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> Record:
        """An object as the API server tells of it; its generation rises when its spec changes."""
        key = Key(kind, NAMESPACE, name)
        before = self.cache.get(key)
        self._versions += 1
        changed = before is None or before.spec != spec
        plain = {
            "namespace": NAMESPACE,
            "name": name,
            "uid": before.uid if before is not None else f"uid-of-{name}",
            "resourceVersion": str(self._versions),
            "generation": (before.generation if before is not None else 0) + changed,
            "creationTimestamp": "2026-11-21T10:00:00Z",
        }
        found = record({"kind": kind, "metadata": plain | metadata, "spec": spec})
        self.cache.put(found if before is None else replace(found, status=before.status))
        return found

    def agent(self, name: str = "ada", *, metadata: dict[str, Any] | None = None, **spec: Any) -> "Caller":
        """Declares an Agent and looks at it."""
        runtime = {"runtime": {"kind": "Command", "command": ["sleep", "infinity"]}}
        found = self.declare("Agent", name, runtime | spec, **(metadata or {}))
        self.look(found.key)
        return Caller(self, name)

    def secret(self, name: str, values: dict[str, str | bytes]) -> None:
        """Declares a Secret over a core Secret `<name>-v1` with these values."""
        self.secrets.values[f"{name}-v1"] = values
        self.declare("Secret", name, {"source": {"secretRef": {"name": f"{name}-v1"}}})

    def remembers_machine(self, name: str, machine: str) -> None:
        """The Agent's status says that this is its machine."""
        found = self.cache.get(Key("Agent", NAMESPACE, name))
        assert found is not None
        self.cache.put(replace(found, status={"machine": {"id": machine}}))

    def look(self, key: Key) -> Memory:
        """What a reconcile does for the endpoint."""
        found = self.cache.get(key)
        assert found is not None
        memory = self.memories.of(found, self.clock.now)
        memory.revision = self._revision(memory)
        memory.ring()
        return memory

    def forget(self, name: str) -> None:
        """The Agent is gone."""
        key = Key("Agent", NAMESPACE, name)
        found = self.cache.get(key)
        assert found is not None
        self.cache.drop(key, found.uid)
        self.memories.forget(key)

    def _revision(self, memory: Memory) -> str | None:
        root, d = ROOTS.fingerprint, memory.declared
        try:
            return bundle.revision(root, d, memory.names.did, lambda r: fingerprint(root, self._value(r.name, r.key)))
        except KeyError:
            return None

    def _value(self, name: str, key: str) -> str:
        value = self.secrets.values[f"{name}-v1"][key]
        assert isinstance(value, str)
        return value

    # --- What is seen ----------------------------------------------------------------------------------------------

    def metric(self, name: str, /, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a condition of the world, with a deadline."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
            await asyncio.sleep(0.002)

    async def until_held(self, count: int = 1) -> None:
        await self.until(lambda: self.metric("roost_long_polls") == count, f"{count} heartbeats held")


class Caller:
    """An agent, with the token of an epoch."""

    def __init__(self, world: EndpointWorld, name: str, epoch: int = 0, *, incarnation: str | None = None) -> None:
        self.world, self.name = world, name
        self.key = Key("Agent", NAMESPACE, name)
        self.did = derive(ROOTS.identity, ROOTS.owner_id, NAMESPACE, name).did
        born = incarnation or f"uid-of-{name}"
        self.token = heartbeat_token(ROOTS.token, ROOTS.owner_id, NAMESPACE, name, born, epoch)
        self.machine = f"machine-of-{name}"

    @property
    def memory(self) -> Memory:
        memory = self.world.memories.get(self.key)
        assert memory is not None
        return memory

    def beat(self, **other: Any) -> dict[str, Any]:
        """A heartbeat of an agent that runs what is desired."""
        plain = {
            "status": "running",
            "machineId": self.machine,
            "uptimeSeconds": 60,
            "memoryMb": 40,
            "computeVersion": "0.1.0",
            "bundleRevision": self.memory.revision,
            "ready": True,
        }
        return plain | other

    async def fetch(self, path: str | None = None, **headers: str | None) -> "Answer":
        return await self._call("GET", path or bundle_path(self.did), None, headers)

    async def say(
        self,
        beat: dict[str, Any] | bytes | None = None,
        *,
        path: str | None = None,
        wait: str = "",
        **headers: str | None,
    ) -> "Answer":
        """Posts a heartbeat; header names are written with underscores, None leaves one out."""
        query = f"?wait={wait}" if wait else ""
        body = self.beat() if beat is None else beat
        return await self._call("POST", (path or heartbeat_path(self.did)) + query, body, headers)

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | bytes | None, headers: dict[str, str | None]
    ) -> "Answer":
        given = {TOKEN_HEADER: self.token, MACHINE_ID_HEADER: self.machine}
        for name, value in headers.items():
            given[name.replace("_", "-")] = value  # type: ignore[assignment]
        sent = {k: v for k, v in given.items() if v is not None}
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.world.http.request(method, path, headers=sent, **data) as answer:
            content = await answer.read()
            return Answer(answer.status, answer.headers, content)


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.status, self.headers, self.content = status, headers, content

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def commands(self) -> list[str]:
        """Ids of the commands of a heartbeat's answer."""
        assert self.status == 200, self.content
        return [c["id"] for c in self.json["commands"]]


@asynccontextmanager
async def endpoint_world(
    limits: EndpointLimits = MANY_CALLS,
    certificate: Certificate | None = None,
    gateway_secret: GatewaySecret | None = None,
) -> AsyncIterator[EndpointWorld]:
    """Everything up; everything down again at the end, with no heartbeat still held."""
    secrets, metrics = CoreSecrets(), Metrics()
    secrets_site = await _serve(secrets.application(), "127.0.0.1:0")
    server = f"http://127.0.0.1:{secrets_site.addresses[0][1]}"
    async with Kube(Cluster(server, None), metrics) as kube:
        world = EndpointWorld(kube, secrets, metrics, limits, certificate, gateway_secret)
        await world.site.start("127.0.0.1:0")
        world.port = world.site.port
        timeout = aiohttp.ClientTimeout(total=DEADLINE * 4)
        async with (
            world.relay,
            aiohttp.ClientSession(f"http://127.0.0.1:{world.port}", timeout=timeout) as world.http,
        ):
            yield world
        await world.site.drain(1.0)
    await secrets_site.cleanup()
