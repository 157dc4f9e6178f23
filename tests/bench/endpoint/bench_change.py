"""How soon a change reaches a connected agent: a real API server, a simulated Fly (virtual machines), a real operator.

The operator has one core, all else has the other: etcd, the API server, Fly, and the agents, which are here. Each agent
holds a heartbeat open; told of a new configuration, it fetches its bundle and beats with it. A change counts from the
API server's answer to the write until the held heartbeat is answered (told) and until the new value is here (fetched).
"""

import asyncio
import base64
import json
import os
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx
import uvloop
from bench_client import Caller, Connection, Lost, connected, percentile

from roost.agents.names import heartbeat_token
from roost.kube.roots import SECRET_NAME
from roost.local.processes import last_lines
from roost.local.recipes import FLY_ORG, NAMESPACE
from roost.local.stack import Stack

HOME = "bench"
"""The namespace of the agents."""
OWN_SECRETS = 50
"""So many agents have a Secret of their own beside the one that all share."""
WAIT_SECONDS = 25
START_SECONDS, CHANGE_SECONDS = 600.0, 30.0
AT_ONCE = 16
GRANT = "roost-watches-secrets"


@dataclass(frozen=True, slots=True)
class Reached:
    """From the API server's answer to a write, in ms: the heartbeat answered, the new bundle here."""

    told: float
    fetched: float


class Agent:
    """What lives in a virtual machine: it holds a heartbeat, and takes up what it is told."""

    def __init__(self, caller: Caller, number: int, address: tuple[str, int]) -> None:
        self.caller, self._number, self._address = caller, number, address
        self._loop = asyncio.get_running_loop()
        self._awaited: tuple[str, str] = ("", "")
        self._arrived: asyncio.Future[tuple[float, float]] | None = None
        self.refused: Counter[int] = Counter()
        self.lost = 0

    def expect(self, name: str, value: str) -> asyncio.Future[tuple[float, float]]:
        """When it is told of, and has, a bundle in which a variable has this value (`time.monotonic()`)."""
        self._awaited, self._arrived = (name, value), self._loop.create_future()
        return self._arrived

    async def live(self) -> None:
        """Until cancelled."""
        while True:
            try:
                connection = await connected(self._address, self._number)
                try:
                    await self._talk(connection)
                finally:
                    connection.close()
            except (Lost, OSError):
                self.lost += 1
                await asyncio.sleep(1.0)

    async def _talk(self, connection: Connection) -> None:
        while True:
            beat = await connection.ask(self.caller.beat(WAIT_SECONDS))
            if beat.status != 200:
                self.refused[beat.status] += 1
                await asyncio.sleep(1.0)
                continue
            if any(command["type"] == "update_config" for command in json.loads(beat.body)["commands"]):
                fetched = await connection.ask(self.caller.fetch())
                if fetched.status == 200:
                    self._take(json.loads(fetched.body), beat.at, fetched.at)
                elif fetched.status != 304:
                    self.refused[fetched.status] += 1
                    await asyncio.sleep(1.0)

    def _take(self, bundle: Mapping[str, Any], told: float, fetched: float) -> None:
        self.caller = replace(self.caller, revision=bundle["revision"])
        name, value = self._awaited
        if self._arrived is not None and (bundle["env"] | bundle["secretEnv"]).get(name) == value:
            self._arrived.set_result((told, fetched))
            self._arrived = None


def measure(directory: Path, agents: int, changes: int, core: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it; the figures by name."""
    stack = Stack(directory, operator=False, fly=False, say=say)
    with stack, stack.api() as admin:
        recipe = stack.operator_recipe()
        metrics = urlsplit(recipe.ready_url)
        operator = ("taskset", "-c", str(core), *recipe.argv)
        _grant(admin)
        with (
            _running("flysim", _virtual_fly(stack), dict(os.environ), f"{stack.fly_url}/_sim/machines", directory),
            _running("operator", operator, recipe.env, recipe.ready_url, directory),
        ):
            say(f"change: stack up, operator at {metrics.netloc}")
            return uvloop.run(_Change(stack, agents, say).run(changes))


class _Change:
    """The agents, and who changes what is declared of them."""

    def __init__(self, stack: Stack, count: int, say: Callable[[str], None]) -> None:
        self._stack, self._count, self._say = stack, count, say
        self._owners, self._pause = min(OWN_SECRETS, count), max(0.2, count / 400)
        self._agents: dict[str, Agent] = {}
        self._living: list[asyncio.Task[None]] = []
        self._kube: aiohttp.ClientSession

    async def run(self, changes: int) -> dict[str, Any]:
        admin = self._stack.admin
        tls = ssl.create_default_context(cafile=str(admin.ca_file))
        async with aiohttp.ClientSession(
            admin.server,
            headers={"Authorization": f"Bearer {admin.token}"},
            connector=aiohttp.TCPConnector(ssl=tls),
            trust_env=False,
        ) as self._kube:
            await self._declare()
            await self._until_ready()
            try:
                return await self._figures(changes)
            finally:
                for task in self._living:
                    task.cancel()
                await asyncio.gather(*self._living, return_exceptions=True)

    # --- A beginning -----------------------------------------------------------------------------------------------

    async def _declare(self) -> None:
        await self._make("/api/v1/namespaces", {"metadata": {"name": HOME}})
        names = ["shared", *(f"own-{number}" for number in range(self._owners))]
        for name in names:
            await self._make(_core(), {"metadata": {"name": f"{name}-v1"}, "stringData": {"k": "0"}})
            await self._make(_path("secrets"), _object("Secret", name, source={"secretRef": {"name": f"{name}-v1"}}))
        began, room = time.monotonic(), asyncio.Semaphore(AT_ONCE)

        async def declare(number: int) -> None:
            async with room:
                await self._make(_path("agents"), self._agent(number))

        await asyncio.gather(*(declare(number) for number in range(self._count)))
        self._say(f"change: {self._count} Agents declared in {time.monotonic() - began:.1f} s")

    def _agent(self, number: int) -> dict[str, Any]:
        env: list[dict[str, Any]] = [
            {"name": "N", "value": "0"},
            {"name": "SHARED", "valueFrom": {"name": "shared", "key": "k"}},
        ]
        if number < self._owners:
            env.append({"name": "OWN", "valueFrom": {"name": f"own-{number}", "key": "k"}})
        runtime = {"kind": "Command", "command": ["sleep", "infinity"]}
        return _object("Agent", _name(number), runtime=runtime, env=env)

    async def _until_ready(self) -> None:
        """Each agent lives as soon as its machine is there; until all are Ready."""
        began, told = time.monotonic(), 0.0
        token_of = await self._tokens()
        while True:
            found = (await self._ask("GET", _path("agents")))["items"]
            for body in found:
                name, status = body["metadata"]["name"], body.get("status") or {}
                machine = (status.get("machine") or {}).get("id")
                if name not in self._agents and machine and status.get("did"):
                    caller = Caller(status["did"], token_of(body), machine)
                    agent = Agent(caller, len(self._agents), _address(self._stack))
                    self._agents[name] = agent
                    self._living.append(asyncio.create_task(agent.live()))
            ready = sum(_is_ready(body) for body in found)
            if ready == self._count:
                self._say(f"change: all {ready} Agents Ready after {time.monotonic() - began:.0f} s")
                return
            if time.monotonic() - began > START_SECONDS:
                raise TimeoutError(f"{ready} of {self._count} Agents are Ready after {START_SECONDS:.0f} s")
            if time.monotonic() - told > 15:
                told = time.monotonic()
                self._say(f"change: {ready} of {self._count} Agents Ready, {len(self._agents)} connected")
            await asyncio.sleep(self._pause)

    async def _tokens(self) -> Callable[[Mapping[str, Any]], str]:
        """How the token of an Agent is derived: as the operator does it, from its roots."""
        found = await self._ask("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET_NAME}")
        owner, root = (base64.b64decode(found["data"][key]) for key in ("ownerId", "token"))

        def token(body: Mapping[str, Any]) -> str:
            meta, incarnation = body["metadata"], body["status"]["app"]["incarnation"]
            return heartbeat_token(root, owner.decode(), meta["namespace"], meta["name"], incarnation, 0)

        return token

    # --- Changes ---------------------------------------------------------------------------------------------------

    async def _figures(self, changes: int) -> dict[str, Any]:
        names = sorted(self._agents)
        await asyncio.sleep(2 * self._pause)  # what becoming Ready has left to do
        by_spec = [await self._spec(names[(7 * turn) % self._count], turn + 1) for turn in range(changes // 2)]
        self._say(f"change: of a spec {_told(by_spec)}")
        by_secret = [await self._own(turn % self._owners, turn + 1) for turn in range(changes - changes // 2)]
        self._say(f"change: of a core Secret {_told(by_secret)}")
        shared = await self._shared()
        self._say(f"change: of the core Secret that all share {_told(shared)}")
        both = by_spec + by_secret
        refused = sum((agent.refused for agent in self._agents.values()), Counter[int]())
        return {
            "change_agents": self._count,
            "changes": len(both),
            "change_p99_ms": percentile([r.fetched for r in both], 0.99),
            "change_told_p99_ms": percentile([r.told for r in both], 0.99),
            **_summary("change_spec", [r.fetched for r in by_spec]),
            **_summary("change_secret", [r.fetched for r in by_secret]),
            **_summary("change_shared", [r.fetched for r in shared]),
            "change_lost": sum(agent.lost for agent in self._agents.values()),
            "change_refused": {str(status): count for status, count in refused.items()},
        }

    async def _spec(self, name: str, turn: int) -> Reached:
        _, *others = (await self._ask("GET", _path("agents", name)))["spec"]["env"]
        change = {"spec": {"env": [{"name": "N", "value": str(turn)}, *others]}}
        (reached,) = await self._changed([name], _path("agents", name), change, "N", str(turn))
        return reached

    async def _own(self, number: int, turn: int) -> Reached:
        change = {"stringData": {"k": str(turn)}}
        (reached,) = await self._changed([_name(number)], _core(f"own-{number}-v1"), change, "OWN", str(turn))
        return reached

    async def _shared(self) -> list[Reached]:
        return await self._changed(list(self._agents), _core("shared-v1"), {"stringData": {"k": "1"}}, "SHARED", "1")

    async def _changed(
        self, names: Sequence[str], path: str, change: Mapping[str, Any], variable: str, value: str
    ) -> list[Reached]:
        """When each of these agents has this value of a variable, after a change."""
        arriving = [self._agents[name].expect(variable, value) for name in names]
        await self._ask("PATCH", path, change)
        acknowledged = time.monotonic()
        try:
            async with asyncio.timeout(CHANGE_SECONDS):
                arrived = await asyncio.gather(*arriving)
        except TimeoutError as error:
            missing = sum(not future.done() or future.cancelled() for future in arriving)
            what = f"{variable}={value} has not reached {missing} of {len(names)} agents after {CHANGE_SECONDS:.0f} s"
            raise TimeoutError(what) from error
        return [Reached(*(max(0.0, (at - acknowledged) * 1000) for at in both)) for both in arrived]

    # --- The API server --------------------------------------------------------------------------------------------

    async def _make(self, path: str, body: Mapping[str, Any]) -> None:
        await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body)
        async with self._kube.request(method, path, data=data, headers={"Content-Type": kind}) as answer:
            content = await answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:500].decode(errors='replace')}")
        return json.loads(content)


# --- Around it ---------------------------------------------------------------------------------------------------


def _virtual_fly(stack: Stack) -> tuple[str, ...]:
    """A simulated Fly at the stack's address whose machines cost nothing."""
    listen, state = urlsplit(stack.fly_url).netloc, stack.layout.fly
    options = (f"--listen={listen}", f"--state={state}", f"--token={stack.fly_token}", f"--org={FLY_ORG}", "--virtual")
    return (sys.executable, "-m", "flysim.cli", "serve", *options)


@contextmanager
def _running(
    name: str, argv: Sequence[str], env: Mapping[str, str], ready_url: str, directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that answers, until the end of the block."""
    path = directory / "logs" / f"{name}.log"
    with path.open("wb") as log, httpx.Client(timeout=5.0, trust_env=False) as http:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 30.0
            while not _answers(http, ready_url):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("\n".join([f"{name} does not start:", *last_lines(path, 15)]))
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == 200
    except httpx.TransportError:
        return False


def _grant(admin: httpx.Client) -> None:
    """Lets the operator list and watch core Secrets, as an administrator may: else it polls them."""
    meta, group = {"name": GRANT}, "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "watch"]}]
    subject = {"kind": "ServiceAccount", "name": "roost", "namespace": NAMESPACE}
    role = {"apiGroup": group, "kind": "ClusterRole", "name": GRANT}
    for kind, content in (
        ("clusterroles", {"rules": rules}),
        ("clusterrolebindings", {"roleRef": role, "subjects": [subject]}),
    ):
        admin.post(f"/apis/{group}/v1/{kind}", json={"metadata": meta, **content}).raise_for_status()


def _object(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "roost.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _name(number: int) -> str:
    return f"agent-{number:04d}"


def _path(plural: str, name: str = "") -> str:
    return f"/apis/roost.dev/v1alpha1/namespaces/{HOME}/{plural}" + (f"/{name}" if name else "")


def _core(name: str = "") -> str:
    return f"/api/v1/namespaces/{HOME}/secrets" + (f"/{name}" if name else "")


def _address(stack: Stack) -> tuple[str, int]:
    at = urlsplit(stack.endpoint_url)
    return at.hostname or "", at.port or 0


def _is_ready(body: Mapping[str, Any]) -> bool:
    conditions = (body.get("status") or {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _summary(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_p50_ms": percentile(values, 0.5),
        f"{name}_p99_ms": percentile(values, 0.99),
        f"{name}_max_ms": max(values),
    }


def _told(reached: Sequence[Reached]) -> str:
    fetched = [r.fetched for r in reached]
    told = [r.told for r in reached]
    return (
        f"{len(reached)}: told p50 {percentile(told, 0.5):.0f} p99 {percentile(told, 0.99):.0f} ms, fetched p50 "
        f"{percentile(fetched, 0.5):.0f} p99 {percentile(fetched, 0.99):.0f} max {max(fetched):.0f} ms"
    )
