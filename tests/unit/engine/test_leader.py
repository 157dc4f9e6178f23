"""Who leads: candidates on virtual time, before a Lease that answers as the API server does, fails and hangs."""

import asyncio
import copy
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from roost.engine.leader import ENDPOINT_ANNOTATION, LEASE_NAME, Leader
from roost.kube.client import Body, Conflict, Gone, NotLeading, Unreachable
from roost.settings import LeaderElection

pytestmark = pytest.mark.looptime
TIMING = LeaderElection()
PATH = f"/apis/coordination.k8s.io/v1/namespaces/roost-system/leases/{LEASE_NAME}"


class LeaseServer:
    """One Lease. `trouble`, when set, is asked before each call and after its effect: it may wait or raise."""

    def __init__(self) -> None:
        self.lease: Body | None = None
        self.trouble: Callable[[str], object] | None = None
        self._version = 0
        self.writes: list[tuple[float, str]] = []

    async def get(self, path: str) -> Body:
        await self._meddle("before")
        return copy.deepcopy(self._there(path))

    async def create(self, path: str, body: Body) -> Body:
        assert PATH.startswith(path)
        await self._meddle("before")
        if self.lease is not None:
            raise Conflict(f"POST {path}", 409, "already exists")
        return await self._store(body)

    async def update(self, path: str, body: Body) -> Body:
        await self._meddle("before")
        if self._there(path)["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Conflict(f"PUT {path}", 409, "the object has been modified")
        return await self._store(body)

    def _there(self, path: str) -> Body:
        assert path == PATH
        if self.lease is None:
            raise Gone(f"{path}", 404, "not found")
        return self.lease

    async def _store(self, body: Body) -> Body:
        self._version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self._version)
        self.writes.append((asyncio.get_running_loop().time(), body["spec"]["holderIdentity"]))
        answer = copy.deepcopy(self.lease)
        await self._meddle("after")
        return answer

    async def _meddle(self, where: str) -> None:
        await asyncio.sleep(0.001)
        if self.trouble is not None and asyncio.iscoroutine(wait := self.trouble(where)):
            await wait


class Replicas:
    """Replicas of one operator; `running` are their elections."""

    def __init__(self) -> None:
        self.server = LeaseServer()
        self.running: dict[str, tuple[Leader, asyncio.Task[None]]] = {}

    def start(self, name: str, server: LeaseServer | None = None) -> Leader:
        clock = asyncio.get_running_loop().time
        leader = Leader(server or self.server, "roost-system", TIMING, name, f"http://{name}:8081", clock)
        self.running[name] = leader, asyncio.create_task(leader.run())
        return leader

    def kill(self, name: str) -> None:
        self.running.pop(name)[1].cancel()

    async def stop(self, name: str) -> None:
        """As by SIGTERM."""
        leader, task = self.running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await leader.release()

    def leading(self) -> list[str]:
        return [name for name, (leader, _) in self.running.items() if leader.leads]


async def within(seconds: float, holds: Callable[[], object]) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not holds():
        assert loop.time() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.05)
    return loop.time() - began


async def test_one_of_two_leads_and_says_where_it_is_reached() -> None:
    replicas = Replicas()
    one = replicas.start("one")
    await within(0.1, lambda: one.leads)
    two = replicas.start("two")
    await asyncio.sleep(60)
    assert replicas.leading() == ["one"]
    assert (two.leader_address, one.leader_address) == ("http://one:8081", None)
    assert replicas.server.lease is not None
    assert replicas.server.lease["spec"]["leaseTransitions"] == 0


async def test_a_standby_may_not_change_anything() -> None:
    replicas = Replicas()
    replicas.start("one")
    await asyncio.sleep(1)
    two = replicas.start("two")
    await asyncio.sleep(5)
    with pytest.raises(NotLeading):
        two.fence()
    assert [holder for _, holder in replicas.server.writes if holder != "one"] == []


async def test_a_leader_that_is_killed_is_followed_when_its_lease_has_run_out_and_not_before() -> None:
    replicas = Replicas()
    replicas.start("one")
    await asyncio.sleep(5)
    two = replicas.start("two")
    await asyncio.sleep(5)
    replicas.kill("one")
    last, _ = replicas.server.writes[-1]
    await within(20, lambda: two.leads)
    after = replicas.server.writes[-1][0] - last
    assert TIMING.lease_seconds <= after <= TIMING.lease_seconds + 1.1
    assert replicas.server.lease is not None
    assert replicas.server.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_ends_in_order_is_followed_within_a_second() -> None:
    replicas = Replicas()
    replicas.start("one")
    await asyncio.sleep(5)
    two = replicas.start("two")
    await asyncio.sleep(5)
    await replicas.stop("one")
    assert await within(1.1, lambda: two.leads) <= 1.1


async def test_a_leader_that_is_cut_off_stops_before_anybody_may_follow() -> None:
    """The fence closes ten seconds after the last renewal was sent; the Lease is free after fifteen."""
    replicas = Replicas()
    loop = asyncio.get_running_loop()
    cut = LeaseServer()
    one = replicas.start("one", cut)
    await within(0.1, lambda: one.leads)

    async def away() -> None:
        raise Unreachable("PUT", 0, "no route to host")

    cut.trouble = lambda _: away()
    began = loop.time()
    await within(20, lambda: not one.leads)
    assert TIMING.renew_seconds - TIMING.retry_seconds <= loop.time() - began <= TIMING.renew_seconds + 0.1
    with pytest.raises(NotLeading):
        one.fence()
    await within(TIMING.retry_seconds + TIMING.renew_seconds / 2 + 0.1, one.lost.is_set)


async def test_a_renewal_counts_from_when_it_was_sent() -> None:
    """Its answer may have been on the way for long: to the others the Lease is as old as its arrival."""
    replicas = Replicas()
    loop = asyncio.get_running_loop()
    one = replicas.start("one")
    await within(0.1, lambda: one.leads)

    async def slow() -> None:
        await asyncio.sleep(4)

    replicas.server.trouble = lambda where: slow() if where == "after" else None
    await asyncio.sleep(TIMING.retry_seconds + 4.5)
    replicas.server.trouble = None
    sent = replicas.server.writes[-1][0]
    replicas.running["one"][1].cancel()  # no renewal any more
    await within(20, lambda: not one.leads)
    assert loop.time() - sent <= TIMING.renew_seconds + 0.1


async def test_a_leader_that_sees_another_one_stops_at_once() -> None:
    replicas = Replicas()
    one = replicas.start("one")
    await within(0.1, lambda: one.leads)
    assert replicas.server.lease is not None
    replicas.server.lease["spec"]["holderIdentity"] = "a person"
    replicas.server.lease["metadata"]["resourceVersion"] = "99"
    await within(TIMING.retry_seconds + 0.1, one.lost.is_set)
    assert not one.leads


async def test_a_lease_that_somebody_deletes_is_made_again_by_its_holder_and_not_taken_by_another() -> None:
    replicas = Replicas()
    one = replicas.start("one")
    await asyncio.sleep(1)
    replicas.start("two")
    await asyncio.sleep(5)
    replicas.server.lease = None
    for _ in range(400):
        await asyncio.sleep(0.05)
        assert replicas.leading() == ["one"]
    assert one.leads
    assert replicas.server.lease is not None


async def test_an_annotation_of_somebody_elses_costs_nobody_the_lease() -> None:
    replicas = Replicas()
    one = replicas.start("one")
    await asyncio.sleep(1)
    assert replicas.server.lease is not None
    replicas.server.lease["metadata"]["annotations"]["team"] = "blue"
    replicas.server.lease["metadata"]["resourceVersion"] = "99"
    await asyncio.sleep(30)
    assert one.leads
    assert replicas.server.lease["metadata"]["annotations"] == {ENDPOINT_ANNOTATION: "http://one:8081", "team": "blue"}


async def test_a_lease_whose_taking_was_not_heard_of_is_taken_at_once_and_not_waited_for() -> None:
    replicas = Replicas()
    lost = iter([True])

    async def swallow() -> None:
        raise Unreachable("POST", 0, "connection reset")

    replicas.server.trouble = lambda where: swallow() if where == "after" and next(lost, False) else None
    one = replicas.start("one")
    await within(2.5, lambda: one.leads)


async def test_a_lost_answer_to_a_renewal_costs_nobody_the_lease() -> None:
    replicas = Replicas()
    one = replicas.start("one")
    await within(0.1, lambda: one.leads)
    lost = iter([True])

    async def swallow() -> None:
        raise Unreachable("PUT", 0, "connection reset")

    replicas.server.trouble = lambda where: swallow() if where == "after" and next(lost, False) else None
    await asyncio.sleep(60)
    assert one.leads


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_no_two_lead_at_once_and_somebody_leads_in_the_end(seed: int) -> None:
    """Three replicas are killed, stopped and started; calls fail, hang and get lost, before and after their effect."""
    rng, replicas, numbers = random.Random(seed), Replicas(), iter(range(1000))
    troubled = True

    async def trouble() -> None:
        what = rng.random()
        if what < 0.10:
            await asyncio.sleep(rng.choice((0.5, 3.0, 12.0, 40.0)))
        elif what < 0.2:
            raise Unreachable("call", rng.choice((0, 429, 500)), "trouble")

    replicas.server.trouble = lambda _: trouble() if troubled else None
    for _ in range(3):
        replicas.start(f"r{next(numbers)}")
    for _ in range(600):
        await asyncio.sleep(0.25)
        assert len(replicas.leading()) <= 1
        for name, (leader, _) in list(replicas.running.items()):
            if leader.lost.is_set() or rng.random() < 0.003:
                replicas.kill(name) if rng.random() < 0.7 else await replicas.stop(name)
        if len(replicas.running) < 3 and rng.random() < 0.2:
            replicas.start(f"r{next(numbers)}")
    troubled = False
    while len(replicas.running) < 2:
        replicas.start(f"r{next(numbers)}")
    with suppress(AssertionError):
        await within(60, lambda: len(replicas.leading()) == 1)
    for name, (leader, _) in list(replicas.running.items()):
        if leader.lost.is_set():
            replicas.kill(name)
            replicas.start(f"r{next(numbers)}")
    await within(60, lambda: len(replicas.leading()) == 1)


async def test_a_renewal_that_hangs_is_given_up_in_time_for_another() -> None:
    replicas = Replicas()
    one = replicas.start("one")
    await within(0.1, lambda: one.leads)
    hangs = iter([True])

    async def hang() -> None:
        await asyncio.sleep(300)

    replicas.server.trouble = lambda where: hang() if where == "before" and next(hangs, False) else None
    for _ in range(600):
        await asyncio.sleep(0.1)
        assert one.leads
