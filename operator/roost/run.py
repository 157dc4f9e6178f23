"""The operator's process: puts the rooms together, starts them in order, and takes them down in reverse.

Order of start: settings, login, checks, Lease, roots, listing, endpoint, intake; and, as soon as this replica leads,
the engine. Until then it is a standby: it hears all that Kubernetes says, serves bundles, passes heartbeats on, and
writes nothing. A room that fails ends the process with a sentence, as does the loss of the Lease; Kubernetes starts it
again, and it comes back without a write.
"""

import asyncio
import gc
import os
import random
import signal
import time
import uuid
from contextlib import suppress

import aiohttp
import structlog
from aiohttp import web

from roost import __version__
from roost.agents.memory import Installation, Memories
from roost.agents.orgs import FlyToken, Orgs
from roost.agents.proof import Proofs
from roost.agents.reconcile import Agents
from roost.agents.sessions import Sessions
from roost.api.block import BadResource
from roost.endpoint import bootstrap, checkin
from roost.endpoint.access import AccessLog
from roost.endpoint.oidc import Verifier
from roost.endpoint.relay import Relay
from roost.endpoint.server import Endpoint
from roost.endpoint.site import Site
from roost.endpoint.tls import Certificate
from roost.endpoint.walls import Walls
from roost.engine.engine import Engine, Reconcile
from roost.engine.leader import Leader, LeaseLost
from roost.engine.queue import Lane
from roost.fleets.reconcile import Fleets
from roost.intake import checks, listing
from roost.intake.sweep import DEAF_SWEEPS, Sweep
from roost.intake.watch import HUNG_SECONDS, Intake
from roost.kube.client import Kube, KubeError, NotLeading
from roost.kube.cluster import Cluster
from roost.kube.events import Recorder
from roost.kube.objects import Objects
from roost.kube.records import Cache, Key, Record, record
from roost.kube.roots import AGENT_FINALIZER, Roots, load_roots
from roost.secrets.lookup import Lookup
from roost.secrets.reconcile import Secrets
from roost.secrets.sources import Sources
from roost.secrets.table import SOURCES, SecretTable
from roost.secrets.values import Values
from roost.secrets.watch import Watches
from roost.settings import Settings
from roost.telemetry.metrics import Metrics
from roost.telemetry.probes import probes

log = structlog.get_logger(__name__)
CHECK_AGAIN_SECONDS = 5.0
ROOTS_AGAIN_SECONDS = 0.5
SETTLED_SECONDS = 60.0
LAG_SECONDS = 5.0
"""A loop that turns later than this is not alive."""


class Operator:
    """All rooms of one process. `run` returns after SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self._settings, self._cluster = settings, cluster
        self._loop = asyncio.get_running_loop()
        self._metrics = Metrics()
        self._cache = Cache()
        self._closing = asyncio.Event()
        self._ready = self._acts = False
        self._beat_at = self._loop.time()
        self._identity = f"{os.environ.get('HOSTNAME', 'roost')}_{uuid.uuid4().hex[:8]}"
        self._agent = f"roost/{__version__} ({self._identity})"
        self._engine: Engine
        self._memories: Memories
        self._intake: Intake
        self._sweep: Sweep

    async def run(self) -> None:
        """Runs until told to stop.

        Raises:
            LostRoots: the roots are gone while Agents exist.
            LeaseLost: another replica leads, or may by now.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._closing.set)
        probe_site = await _serve(
            probes(self._metrics, self._alive, lambda: self._ready), self._settings.metrics.listen
        )
        try:
            async with (
                Kube(self._cluster, self._metrics, self._agent) as kube,
                Kube(self._cluster, self._metrics, self._agent) as leases,  # its renewal waits behind no other write
            ):
                settings = self._settings
                tls = settings.endpoint.tls
                certificate = Certificate(kube, settings.namespace, tls, self._metrics, self._wake_all) if tls else None
                if not await self._until_able(kube, certificate):
                    return
                address = _reached_at(settings.endpoint.listen, "https" if tls else "http")
                leader = Leader(leases, settings.namespace, settings.leader_election, self._identity, address)
                self._metrics.leader.labels("roost").set_function(lambda: float(leader.leads))
                election = asyncio.create_task(leader.run(), name="election")
                try:
                    await self._run(kube, leader, certificate)
                finally:
                    election.cancel()
                    await asyncio.gather(election, return_exceptions=True)
                    await leader.release()  # nothing that was begun is still under way
        finally:
            await probe_site.cleanup()

    async def _run(self, kube: Kube, leader: Leader, certificate: Certificate | None) -> None:
        writer = kube.fenced(leader.fence)
        here = await self._roots(writer)
        if here is None:
            return
        roots, cluster = here
        settings, metrics, cache = self._settings, self._metrics, self._cache
        installation = Installation(roots, cluster, self._loop.time())
        table = SecretTable(Lookup(cache, settings.namespace), self._wake)
        memories = self._memories = Memories(installation, table)
        objects = Objects(writer, cache, metrics)
        recorder = Recorder(writer, self._loop.time, self._identity)
        agents = Agents(
            objects,
            cache,
            table,
            memories,
            settings,
            installation,
            recorder,
            metrics,
            self._loop.time,
            authority=lambda: certificate.authority if certificate is not None else "",
        )
        sources = Sources(kube, table, roots.fingerprint, settings.secret_poll_seconds, self._loop.time)
        secrets = Secrets(objects, cache, table, sources, roots.fingerprint, recorder, metrics, self._loop.time)
        fleets = Fleets(writer, objects, cache, recorder, metrics, self._wake)
        reconciles: dict[str, Reconcile] = {
            "Agent": agents.reconcile,
            "Fleet": fleets.reconcile,
            "Secret": secrets.reconcile,
        }
        reconciles |= dict.fromkeys(SOURCES, sources.reconcile)
        engine = self._engine = Engine(reconciles, metrics, random.Random(), in_flight=settings.in_flight)  # noqa: S311
        tokens = {
            name: FlyToken(kube, settings.namespace, credential, self._wake_all)
            for name, credential in settings.fly.credentials.items()
        }
        async with (
            asyncio.TaskGroup() as tasks,
            Orgs(
                settings,
                tokens,
                metrics,
                tasks,
                agents.swept,
                agents.volumes_swept,
                agents.apps,
                fence=leader.fence,
                user_agent=self._agent,
            ) as orgs,
            Relay(lambda: leader.leads, lambda: leader.leader_address, certificate) as relay,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as issuers,
        ):
            agents.connect(engine, orgs)
            for kind in listing.KINDS:
                async for body in listing.objects(kube, kind):
                    self._told(None, record(body))
            sessions = Sessions(
                Values(kube, table, self._loop.time), cache, memories, installation, engine, self._loop.time
            )
            proofs, verifier = Proofs(cache, memories, installation, settings), Verifier(issuers, self._loop.time)
            site = self._site(kube, sessions, relay, proofs, verifier, certificate)
            await site.start(settings.endpoint.listen)
            intake = self._intake = Intake(self._cluster, self._told, metrics)
            self._sweep = Sweep(kube, cache, self._gone, intake.restart, metrics)
            intake.start()
            rooms = {"sweep": self._sweep.run(), "lag": self._measure_lag()}
            if certificate is not None:
                rooms["certificate"] = certificate.run()
            work = [tasks.create_task(room, name=name) for name, room in rooms.items()]
            settle()
            self._ready = True
            log.info("ready", agents=sum(1 for _ in cache.of_kind("Agent")), owner=roots.owner_id)
            if await self._first_of(leader.acquired):
                self._act()
                for source in table.asked:
                    self._wake(source)
                self._loop.call_later(SETTLED_SECONDS, settle)  # with what the first look at everything has made
                work.append(tasks.create_task(engine.run(), name="engine"))
                work.append(tasks.create_task(Watches(kube, table, self._loop.time).run(), name="secret watches"))
                await self._first_of(leader.lost)
            log.info("stopping")
            self._closing.set()
            self._ready = False
            await site.drain()
            await intake.stop()
            orgs.stop()
            for task in work:
                task.cancel()
        await recorder.flush()
        if leader.lost.is_set():
            raise LeaseLost("this replica was the leader and is no longer: it ends, to come back as a standby")

    def _site(
        self,
        kube: Kube,
        sessions: Sessions,
        relay: Relay,
        proofs: Proofs,
        verifier: Verifier,
        certificate: Certificate | None,
    ) -> Site:
        """The endpoint with all its calls, ready to listen."""
        settings, metrics, clock = self._settings, self._metrics, self._loop.time
        limits = settings.endpoint.limits
        walls = Walls(sessions, lambda: self._ready, limits.requests_per_second, clock)
        endpoint = Endpoint(sessions, metrics, walls, relay, self._alive)
        endpoint.add(*bootstrap.routes(walls, relay, proofs, verifier, metrics.token_exchanges))
        seed_secret = checkin.SeedSecret(kube, settings.namespace, settings.endpoint.gateway_secret, clock)
        endpoint.add(*checkin.routes(walls, sessions, relay, seed_secret, metrics))
        metrics.watch_agents(sessions.seen)
        access = AccessLog(clock, successes=settings.log_level == "debug")
        return Site(endpoint, limits, metrics, access, certificate.context if certificate is not None else None)

    async def _first_of(self, event: asyncio.Event) -> bool:
        """Whether it happens before we are told to stop."""
        waits = [asyncio.ensure_future(e.wait()) for e in (event, self._closing)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return event.is_set() and not self._closing.is_set()

    def _act(self) -> None:
        """From now on this replica is the one that works: on everything that there is."""
        self._memories.begin(self._loop.time())
        self._acts = True
        for kind in listing.KINDS:
            for found in self._cache.of_kind(kind):
                self._add(found.key, Lane.BACKGROUND)

    async def _until_able(self, kube: Kube, certificate: Certificate | None) -> bool:
        """True as soon as the cluster has what we need, False when told to stop before."""
        told: list[str] = []
        while not self._closing.is_set():
            try:
                lacking = await checks.problems(kube, self._settings.namespace)
                if certificate is not None and (problem := await certificate.look()):
                    lacking = [*lacking, problem]
                if not lacking:
                    return True
            except KubeError as error:
                lacking = [f"the Kubernetes API does not answer: {error}"]
            if lacking != told:
                for sentence in lacking:
                    log.error("can not start yet", problem=sentence)
                told = lacking
            await self._pause(CHECK_AGAIN_SECONDS)
        return False

    async def _roots(self, kube: Kube) -> tuple[Roots, str] | None:
        """Roots and cluster; a standby waits until the leader has made them. None when told to stop before."""
        while not self._closing.is_set():
            try:
                return await load_roots(kube, self._settings.namespace), await checks.cluster_uid(kube)
            except NotLeading:
                await self._pause(ROOTS_AGAIN_SECONDS)
            except KubeError as error:
                log.error("can not start yet", problem=f"the Kubernetes API does not answer: {error}")
                await self._pause(CHECK_AGAIN_SECONDS)
        return None

    async def _pause(self, seconds: float) -> None:
        """Lets time pass, unless we are told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    # --- News --------------------------------------------------------------------------------------------------

    def _told(self, kind: str | None, new: Record) -> None:
        """One event from Kubernetes: into the cache, and its key into the queue when it says something new."""
        self._metrics.watch_last_event.labels(new.key.kind).set(time.time())
        if kind == "DELETED":
            self._gone(new)
            return
        before = self._cache.put(new)
        if self._cache.get(new.key) is not new:
            return
        if not self._acts and new.key.kind == "Agent":
            with suppress(BadResource):  # the leader says so in its status
                self._memories.of(new, self._loop.time())  # so that its calls find their agent
        if (lane := lane_of(kind, before, new, worked_on=self._engine.works_on(new.key))) is not None:
            self._add(new.key, lane)
        self._wake_fleet(new)

    def _gone(self, old: Record) -> None:
        self._cache.bury(old.key, old.uid)
        if not self._acts:
            self._memories.forget(old.key)
        self._add(old.key, Lane.USER)
        self._wake_fleet(old)

    def _add(self, key: Key, lane: Lane) -> None:
        """A standby keeps no list of what to do: whoever becomes leader looks at everything."""
        if self._acts:
            self._engine.add(key, lane)

    def _wake_fleet(self, member: Record) -> None:
        if member.owner_uid is not None and (fleet := member.labels.get("roost.dev/fleet")):
            self._add(Key("Fleet", member.key.namespace, fleet), Lane.BACKGROUND)

    def _wake(self, key: Key) -> None:
        found = self._cache.get(key)
        leaving = found is not None and found.deleting  # nobody waits for it, and its wait need not be cut short
        self._add(key, Lane.BACKGROUND if leaving else Lane.USER)

    def _wake_all(self) -> None:
        for found in self._cache.of_kind("Agent"):
            self._add(found.key, Lane.BACKGROUND)

    async def _measure_lag(self) -> None:
        """Measures how late the loop runs; the liveness probe reads it."""
        while True:
            due = self._loop.time() + 1.0
            await asyncio.sleep(1.0)
            self._beat_at = self._loop.time()
            self._metrics.loop_lag.set(max(0.0, self._beat_at - due))

    def _alive(self) -> bool:
        """What only a new process helps against: a loop that hangs, ours or kopf's, or an intake that stays deaf."""
        return not self._ready or (
            self._loop.time() - self._beat_at < LAG_SECONDS + 1.0
            and self._intake.age() < HUNG_SECONDS
            and self._sweep.deaf < DEAF_SWEEPS
        )


def settle() -> None:
    """Tells the garbage collector that what there is now stays.

    It would walk all of it again and again, and everybody would wait: for up to 0.6 s each time at 10,000 Agents.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)


def lane_of(kind: str | None, before: Record | None, new: Record, *, worked_on: bool) -> Lane | None:
    """How soon an event is worth a look; None when it says nothing new. `kind` is None for an item of a listing."""
    if before is None or before.uid != new.uid:
        return Lane.USER if kind is not None else Lane.BACKGROUND
    if _says_something(before, new):
        return Lane.USER
    # A status of somebody else's: our own are in the cache before the turn that wrote them has ended.
    return Lane.BACKGROUND if before.status != new.status and not worked_on else None


def _says_something(before: Record, new: Record) -> bool:
    """Whether somebody but us changed something that matters: our own status writes come back as events too."""
    return (
        before.generation != new.generation
        or before.deleting != new.deleting
        or before.annotations != new.annotations
        or before.labels != new.labels
        or before.owner_uid != new.owner_uid
        or (AGENT_FINALIZER in before.finalizers and AGENT_FINALIZER not in new.finalizers)
        or ("orphan" in before.finalizers) != ("orphan" in new.finalizers)
    )


def _reached_at(listen: str, scheme: str) -> str:
    """Where another replica reaches this one's endpoint: by the Pod's address, or where it listens on a laptop."""
    host, _, port = listen.rpartition(":")
    host = os.environ.get("POD_IP") or host.strip("[]") or "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _serve(app: web.Application, listen: str) -> web.AppRunner:
    host, _, port = listen.rpartition(":")
    runner = web.AppRunner(app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=2.0)
    await runner.setup()
    await web.TCPSite(runner, host.strip("[]") or None, int(port), reuse_address=True).start()
    return runner
