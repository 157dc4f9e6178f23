"""An API server that misbehaves: what it costs us, and when what changed meanwhile is known.

kopf's intake and the sweep run here as in the operator, through a proxy before the real API server. A person's hands
reach the API server itself. Each story ends with the watch telling of a change again.
"""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import kopf
import psutil
import pytest
from aiohttp import ClientSession
from api_proxy import ApiProxy, Call, Event, Fault, lists, pages, serving_pair, watches

from roost import run
from roost.intake import listing, sweep, watch
from roost.intake.sweep import DEAF_SWEEPS, Sweep
from roost.intake.watch import Intake
from roost.kube.client import Gone, Kube, KubeError, collection
from roost.kube.cluster import Cluster
from roost.kube.records import Cache, Key, Record, record
from roost.local.stack import Stack
from roost.settings import Settings
from roost.telemetry.metrics import Metrics

DEADLINE = 30.0
MERGE = {"Content-Type": "application/merge-patch+json"}
SECRET = {"apiVersion": "roost.dev/v1alpha1", "kind": "Secret", "spec": {"source": {"secretRef": {"name": "core"}}}}
PERSISTENT_STATUSES = (401, 403, 429, 500, 503)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code with less patience; the pauses are not what is shown here."""
    monkeypatch.setattr(watch, "RESTART_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(watch._Endless, "__iter__", lambda _: iter(lambda: 0.2, None))
    monkeypatch.setattr(sweep, "GRACE_SECONDS", 0.5)


class World:
    """Our intake behind a proxy, and somebody who changes things behind its back."""

    def __init__(self, proxy: ApiProxy, http: httpx.Client, kube: Kube, cluster: Cluster, namespace: str) -> None:
        self.proxy, self.kube, self.namespace = proxy, kube, namespace
        self._http, self._path = http, collection("Secret", namespace)
        self.metrics, self.cache = Metrics(), Cache()
        self.gone: list[str] = []
        self.intake = Intake(cluster, self._told, self.metrics)
        self.sweep = Sweep(kube, self.cache, self._gone, self.intake.restart, self.metrics)

    def _told(self, kind: str | None, new: Record) -> None:
        if kind == "DELETED":
            self._gone(new)
        else:
            self.cache.put(new)

    def _gone(self, old: Record) -> None:
        self.cache.drop(old.key, old.uid)
        if old.key.namespace == self.namespace:  # the namespaces of other tests are being emptied
            self.gone.append(old.key.name)

    # --- A person's hands --------------------------------------------------------------------------------------------

    def make(self, name: str) -> Record:
        return self._answered(self._http.post(self._path, json=SECRET | {"metadata": {"name": name}}))

    def change(self, name: str = "ada") -> Record:
        patch = {"metadata": {"annotations": {"roost.dev/n": str(time.monotonic())}}}
        return self._answered(self._http.patch(f"{self._path}/{name}", json=patch, headers=MERGE))

    def delete(self, name: str) -> None:
        self._http.delete(f"{self._path}/{name}").raise_for_status()

    @staticmethod
    def _answered(answer: httpx.Response) -> Record:
        assert answer.is_success, answer.text
        return record(answer.json())

    def loses(self, kind: str) -> Fault:
        """The next event of this kind about one of our objects never arrives."""

        def ours(event: Event) -> bool:
            return event["type"] == kind and event["object"]["metadata"]["namespace"] == self.namespace

        return self.proxy.loses(ours, on=watches("secrets"), times=1)

    # --- What we know ------------------------------------------------------------------------------------------------

    def knows(self, what: Record) -> bool:
        found = self.cached(what.key.name)
        return found is not None and found.version >= what.version

    def cached(self, name: str) -> Record | None:
        return self.cache.get(Key("Secret", self.namespace, name))

    def restarts(self) -> int:
        return int(self.metrics.registry.get_sample_value("roost_intake_restarts_total") or 0)

    async def known(self, what: Record) -> None:
        await until(lambda: self.knows(what), f"it should be known: {what.key} at {what.version}")

    def opened(self) -> int:
        """How many watches were ever opened."""
        return len(self.proxy.calls(watches()))

    async def watching(self, since: int = 0) -> None:
        """All three kinds are watched; by watches that were opened after so many others."""
        await until(lambda: self.opened() >= since + 3 and self.proxy.open_watches() == 3, "all should be watched")

    async def restart(self) -> None:
        seen, restarts = self.opened(), self.restarts()
        self.intake.restart()
        await self.watching(seen)
        assert self.restarts() == restarts + 1

    async def all_is_well(self) -> None:
        """Watches are open and tell of a change, nothing is missed any more, and one thread does it."""
        await self.watching()
        await self.known(self.change())
        assert sum(t.name == "kopf" for t in threading.enumerate()) == 1
        await self.sweep.once()
        assert self.sweep.deaf == 0


@pytest.fixture
def proxy(stack: Stack) -> Iterator[ApiProxy]:
    with ApiProxy(stack.admin.server, stack.admin.ca_file) as standing:
        yield standing


@pytest.fixture
async def world(stack: Stack, proxy: ApiProxy, admin: httpx.Client, namespace: str) -> AsyncIterator[World]:
    """Intake runs, watches everything and knows of one object, ada."""
    cluster = Cluster(proxy.url, None, fixed_token=stack.admin.token)
    async with Kube(cluster, Metrics()) as kube:
        world = World(proxy, admin, kube, cluster, namespace)
        ada = world.make("ada")
        world.intake.start()
        try:
            await world.known(ada)
            await world.watching()
            yield world
        finally:
            await world.intake.stop()


async def until(holds: Callable[[], Any], what: str, seconds: float = DEADLINE) -> None:
    """Waits for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


# --- Watches that end: a restart of kopf's run at most ---------------------------------------------------------------


def cut(world: World) -> None:
    world.proxy.cut()


def truncated_line(world: World) -> None:
    world.proxy.cut_after(b'{"type": "MODIFIED", "obj')


def expired_in_the_stream(world: World) -> None:
    world.proxy.says_expired()


def error_in_the_stream(world: World) -> None:
    world.proxy.says({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is gone"}})


def expired_watch(world: World) -> None:
    world.proxy.answers(410, on=watches(), times=3)
    world.proxy.cut()


def expired_page(world: World) -> None:
    world.make("bob")  # two objects, so that there is a second page
    world.proxy.answers(410, on=pages("secrets"), times=1)
    world.proxy.says_expired()


def half_a_list(world: World) -> None:
    world.proxy.answers_with(b'{"kind": "SecretList", "items": [{"met', on=lists("secrets"), times=1)
    world.proxy.says_expired()


def stale_list(world: World) -> None:
    world.proxy.lists_stale(on=lists("secrets"), times=1)
    world.proxy.says_expired()


@pytest.mark.parametrize(
    ("breaks", "restarts"),
    [
        (cut, 0),
        (expired_in_the_stream, 0),
        (stale_list, 0),
        (truncated_line, 1),
        (error_in_the_stream, 1),
        (expired_watch, 1),
        (expired_page, 1),
        (half_a_list, 1),
    ],
)
async def test_whatever_ends_a_watch_the_next_change_is_known(
    world: World, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[World], None], restarts: int
) -> None:
    whole = watch._settings

    def one_a_page() -> kopf.OperatorSettings:
        settings = whole()
        settings.watching.chunk_size = 1
        return settings

    if breaks is expired_page:
        monkeypatch.setattr(watch, "_settings", one_a_page)
        await world.restart()
    before = world.restarts()
    breaks(world)
    await world.known(world.change())
    await world.all_is_well()
    assert world.restarts() - before == restarts


@pytest.mark.parametrize("status", PERSISTENT_STATUSES)
async def test_what_is_refused_for_a_while_costs_no_restart(world: World, status: int) -> None:
    with world.proxy.answers(status) as refused:
        world.proxy.cut()
        await until(lambda: refused.hits >= (3 if status == 401 else 6), "it should ask again")  # a login takes 2 s
        missed = world.change()
    await world.known(missed)
    await world.all_is_well()
    assert world.restarts() == 0


async def test_an_api_server_that_is_away_costs_no_restart(world: World) -> None:
    world.proxy.goes_away()
    missed = world.change()
    with pytest.raises(KubeError):
        await world.kube.get(collection("Secret", world.namespace))
    world.proxy.comes_back()
    await world.known(missed)
    await world.all_is_well()
    assert world.restarts() == 0


async def test_a_kopf_that_does_not_end_is_ended(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One watcher dies while another one is just connecting: that one swallows its cancellation, and kopf waits for it
    for ever."""
    began = time.monotonic()
    slow = world.proxy.delays(60, on=watches("fleets"))
    world.proxy.cut(on=watches("fleets"))
    await until(lambda: slow.hits, "one should be connecting")
    world.proxy.cut_after(b'{"type', on=watches("agents"))
    await until(lambda: world.restarts() == 1, "kopf should be started again", watch.END_SECONDS + 3)
    slow.end()
    assert time.monotonic() - began < 10
    tasks = [o for o in gc.get_objects() if isinstance(o, asyncio.Task) and not o.done()]
    assert [t for t in tasks if t.get_loop().is_closed()] == [], "never ended, and holds its connection"
    assert "Task was destroyed but it is pending" not in caplog.text
    world.proxy.cut(on=watches("fleets"))
    await world.all_is_well()


# --- Streams that are open, and silent or not whole ------------------------------------------------------------------


async def test_a_silent_stream_is_opened_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that a firewall forgot. The API server sends a bookmark each minute; kopf waits for 70 s."""
    whole = watch._settings

    def impatient() -> kopf.OperatorSettings:
        settings = whole()
        settings.watching.inactivity_timeout = 0.5
        return settings

    assert 60 < whole().watching.inactivity_timeout <= 90, "longer than a bookmark is away, and not much longer"
    monkeypatch.setattr(watch, "_settings", impatient)
    await world.restart()
    since = time.monotonic()
    with world.proxy.holds(on=lambda call: call.watch and call.at < since):
        await world.known(world.change())


async def test_a_lost_event_is_found_by_the_sweep_and_told_by_a_fresh_listing(world: World) -> None:
    lost = world.loses("MODIFIED")
    missed = world.change()
    await until(lambda: lost.hits, "the event should get lost")
    assert not world.knows(missed)
    await world.sweep.once()
    assert world.sweep.deaf == 1
    await world.known(missed)
    assert world.restarts() == 1
    await world.all_is_well()


async def test_an_object_of_which_we_never_heard_is_found_by_the_sweep(world: World) -> None:
    lost = world.loses("ADDED")
    missed = world.make("bob")
    await until(lambda: lost.hits, "the event should get lost")
    await world.sweep.once()
    assert world.sweep.deaf == 1
    await world.known(missed)
    await world.all_is_well()


async def test_deaf_again_and_again_is_counted_until_somebody_helps(world: World) -> None:
    for n in range(1, DEAF_SWEEPS + 1):
        seen = world.opened()
        with world.proxy.loses(lambda event: event["type"] != "BOOKMARK") as lost:
            missed = world.change()
            await until(lambda lost=lost: lost.hits, "the event should get lost")
            await world.sweep.once()
            await world.known(missed)
        assert world.sweep.deaf == n
        assert world.metrics.registry.get_sample_value("roost_intake_deaf_sweeps") == n
        await world.watching(seen)
        assert world.restarts() == n
    await world.all_is_well()


async def test_a_watch_that_is_a_little_behind_is_not_deaf(world: World) -> None:
    with world.proxy.delays(0.1, on=watches("secrets")) as late:
        missed = world.change()
        await world.sweep.once()
        assert late.hits
    assert world.knows(missed)
    assert (world.sweep.deaf, world.restarts()) == (0, 0)


async def test_what_is_made_and_deleted_during_a_sweep_was_not_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = world.loses("ADDED")
    world.make("bob")
    await until(lambda: lost.hits, "the event should get lost")
    seen = len(world.proxy.calls(lists()))
    sweeping = asyncio.create_task(world.sweep.once())
    await until(lambda: len(world.proxy.calls(lists())) == seen + 3, "the lists should be read")
    world.delete("bob")
    await sweeping
    assert (world.sweep.deaf, world.restarts()) == (0, 0)


# --- Deletions in a gap ----------------------------------------------------------------------------------------------


async def test_a_deletion_in_a_gap_is_found_by_the_sweep(world: World) -> None:
    bob = world.make("bob")
    await world.known(bob)
    lost = world.loses("DELETED")
    world.delete("bob")
    await until(lambda: lost.hits, "the event should get lost")
    await world.restart()
    await world.known(world.change())
    assert world.knows(bob), "a fresh listing tells of no deletion"
    await world.sweep.once()
    assert world.gone == ["bob"]
    await world.all_is_well()


async def test_an_old_list_makes_the_sweep_forget_nothing(world: World) -> None:
    await world.sweep.once()
    bob = world.make("bob")
    await world.known(bob)
    with world.proxy.lists_stale() as stale:
        await world.sweep.once()
        assert stale.hits == 3
    assert world.knows(bob)
    assert (world.gone, world.sweep.deaf) == ([], 0)


@pytest.mark.parametrize("status", [200, 410, *PERSISTENT_STATUSES])
async def test_a_sweep_that_can_not_be_made_is_put_off(world: World, status: int) -> None:
    """200 is half a list."""
    await world.known(world.make("bob"))
    lost = world.loses("DELETED")
    world.delete("bob")
    await until(lambda: lost.hits, "the event should get lost")

    def asked(call: Call) -> bool:
        return not call.watch

    proxy = world.proxy
    with proxy.answers_with(b'{"items": [', on=asked) if status == 200 else proxy.answers(status, on=asked) as fault:
        await world.sweep.once()
        assert fault.hits >= 3
    assert (world.gone, world.sweep.deaf) == ([], 0)
    await world.sweep.once()
    assert world.gone == ["bob"]
    await world.all_is_well()


async def test_a_listing_whose_page_expires_begins_anew_and_is_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE", "1")
    for name in ("bob", "eve"):
        world.make(name)
    expired = world.proxy.answers(410, on=pages("secrets"), times=2)
    names = {o["metadata"]["name"] async for o in listing.objects(world.kube, "Secret")}
    assert (expired.hits, names >= {"ada", "bob", "eve"}) == (2, True)
    with world.proxy.answers(410, on=pages("secrets")), pytest.raises(Gone):
        _ = [o async for o in listing.objects(world.kube, "Secret")]


# --- Guards ----------------------------------------------------------------------------------------------------------


async def test_a_loop_that_hangs_shows_its_age(world: World) -> None:
    """The probe fails by it: nothing but a new process helps. Our own loop goes on, this test runs in it."""
    assert world.intake.age() < 5
    loop, hang = world.intake._kopf_loop, threading.Event()
    assert loop is not None
    loop.call_soon_threadsafe(hang.wait)
    try:
        await until(lambda: world.intake.age() > 1, "its age should grow")
        age = world.metrics.registry.get_sample_value("roost_intake_loop_age_seconds")
        assert age is not None
        assert age > 1
    finally:
        hang.set()
    await until(lambda: world.intake.age() < 0.5, "it should be young again")


async def test_the_probe_fails_on_what_only_a_new_process_heals(
    world: World, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "HUNG_SECONDS", 2.0)
    operator = run.Operator(Settings(), Cluster(stack.admin.server, None))
    assert operator._alive(), "one that still waits for its CRDs is alive"
    operator._ready, operator._intake, operator._sweep = True, world.intake, world.sweep
    assert operator._alive()
    world.sweep.deaf = DEAF_SWEEPS
    assert not operator._alive()
    world.sweep.deaf = 0
    loop, hang = world.intake._kopf_loop, threading.Event()
    assert loop is not None
    loop.call_soon_threadsafe(hang.wait)
    try:
        await until(lambda: world.intake.age() > 2, "its age should grow")
        operator._beat_at = operator._loop.time()
        assert not operator._alive()
    finally:
        hang.set()
    await until(lambda: world.intake.age() < 1, "it should be young again")
    operator._beat_at = operator._loop.time()
    assert operator._alive()
    operator._beat_at -= 60
    assert not operator._alive(), "our own loop is late"


async def test_restarts_leave_nothing_behind(world: World) -> None:
    process = psutil.Process()

    def left() -> dict[str, int]:
        gc.collect()
        found = gc.get_objects()
        loops = sum(isinstance(o, asyncio.BaseEventLoop) and not o.is_closed() for o in found)
        kinds = {t.__name__: sum(type(o) is t for o in found) for t in (kopf.OperatorRegistry, ClientSession)}
        return kinds | {"loops": loops, "threads": threading.active_count(), "files": process.num_fds()}

    for _ in range(2):
        await world.restart()
    before = left()
    for _ in range(10):
        await world.restart()
    after = left()
    assert {k: n for k, n in after.items() if n > before[k] + 4} == {}
    assert after["loops"] == before["loops"]
    await world.all_is_well()


async def test_a_process_reaches_it_by_tls_and_calls_are_on_record(stack: Stack) -> None:
    """As an operator's process does, which knows the CA of its service account and nothing of a proxy."""
    async with ApiProxy(stack.admin.server, stack.admin.ca_file, tls=serving_pair(stack)) as proxy:
        cluster = Cluster(proxy.url, str(stack.admin.ca_file), fixed_token=stack.admin.token)
        async with Kube(cluster, Metrics()) as kube:
            assert (await kube.get("/api/v1/namespaces/kube-system"))["metadata"]["name"] == "kube-system"
        found: list[Call] = proxy.calls()
        assert [(c.method, c.path) for c in found] == [("GET", "/api/v1/namespaces/kube-system")]
