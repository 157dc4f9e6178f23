"""The simulator: one function from request to answer over one world, whatever the door.

Every call to the API takes the same way: route, fault, token, rate limit, operation, fault, ledger. The calls of the
admin side (`/_sim/…`) take none of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

from flysim import errors, requests, routes
from flysim.admin import Admin
from flysim.apps import Apps
from flysim.call import Answer, Call, answer
from flysim.clock import Clock
from flysim.errors import Refusal
from flysim.faults import Fault, Faults, Order
from flysim.hardware import Hardware
from flysim.hosts import Hosts, Size
from flysim.ids import Ids
from flysim.ips import Ips
from flysim.leases import Leases
from flysim.ledger import Ledger, Origin, because, within
from flysim.life import Life
from flysim.limits import Limits
from flysim.lists import Lists
from flysim.machines import Machines
from flysim.metadata import Metadata
from flysim.oidc import Oidc
from flysim.org import Org
from flysim.platform import Platform
from flysim.records import Machine
from flysim.regions import NEAREST
from flysim.requests import CreateApp, Named, Query
from flysim.runner import Api, Runner
from flysim.secrets import Secrets
from flysim.snapshots import Snapshots
from flysim.volumes import Volumes
from flysim.world import Timing, World

_log = logging.getLogger(__name__)
_LONGEST_CAUSE = 200
_Operation = Callable[[Call], Awaitable[Answer]]


class Sim:
    """A whole simulated Fly. Must be made inside the running loop, and closed.

    Args:
        runner: where machines run.
        clock: epoch seconds; all durations run on the event loop's timers.
        random: where ids come from.
        tokens: what callers may present.
        orgs: slugs of the orgs that there are.
        timing: how long things take.
        rate_limits: whether Fly's documented limits are enforced.
        ledger: the file that the record goes to; only in memory without it.
        hosts: the hosts of regions; a region that is not named has plenty.
    """

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        random: Random,
        *,
        tokens: Iterable[str],
        orgs: Sequence[str] = ("personal",),
        timing: Timing | None = None,
        rate_limits: bool = False,
        ledger: Path | None = None,
        hosts: Mapping[str, Sequence[Size]] | None = None,
    ) -> None:
        ids = Ids(random, clock)
        timing = timing or Timing()
        self.world = World(
            orgs,
            clock,
            ids,
            Ledger(clock, ledger),
            timing,
            Hosts(hosts),
            Lists(clock, timing.list_lag),
            digest_key=ids.key(),
        )
        self.faults = Faults(random)
        self.tokens = frozenset(tokens)
        self.oidc = Oidc(self.world)
        self.life = Life(self.world, runner, self._inside)
        self._limits = Limits(clock.now) if rate_limits else None
        self._apps = Apps(self.world, self.life, runner)
        self._snapshots = Snapshots(self.world, runner)
        self._volumes = Volumes(self.world, runner, self._snapshots)
        hardware = Hardware(self.world, self.life, runner, self._snapshots)
        self._admin = Admin(self.world, self.life, runner, self.faults, self.replace_tokens, self.oidc, hardware)
        self._operations = self._table()

    def _table(self) -> Mapping[str, _Operation]:
        leases = Leases(self.world)
        rooms = (
            self._apps,
            Machines(self.world, self.life, leases),
            leases,
            Metadata(self.world),
            Ips(self.world),
            self._volumes,
            self._snapshots,
            Secrets(self.world),
            Org(self.world),
            Platform(self.world),
            self.oidc,
        )
        return {name: getattr(room, name) for room in rooms for name in routes.OPERATIONS if hasattr(room, name)}

    def replace_tokens(self, tokens: Iterable[str]) -> None:
        """From now on these tokens are good, and no others."""
        self.tokens = frozenset(tokens)

    async def close(self) -> None:
        """Ends all machines, and the record."""
        await self._apps.close()
        await self._snapshots.close()
        await self._volumes.close()
        await self.life.close()
        self.world.ledger.close()

    async def handle(self, method: str, path: str, query: Query, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answers one request. Never raises but when it is cancelled.

        Args:
            method: in upper case.
            path: as it came, percent-encoding included, without the query.
            query: each parameter with all its values, decoded.
            headers: names in lower case.
            body: empty when there is none.
        """
        if path.startswith("/_sim/"):
            with because("admin"):
                return await self._admin.handle(method, path, query, body)
        return await self._handle(Call(method, path, query, headers, body, self.world.clock.now()))

    def _inside(self, machine: Machine) -> Api:
        """Answers what is asked over the machine's own socket: no token is needed there."""

        async def handle(method: str, path: str, query: Query, headers: Mapping[str, str], body: bytes) -> Answer:
            now = self.world.clock.now()
            return await self._handle(Call(method, path, query, headers, body, now, inside=machine))

        return handle

    async def _handle(self, call: Call) -> Answer:
        request_id = f"{self.world.ids.ulid()}-{NEAREST}"
        if (route := routes.match(call.method, call.path)) is not None:
            call.op, call.params = route
            self._identify(call)
        fault = self._fault(call)
        with within(Origin(request_id=request_id)):
            reply = await self._reply(call, fault, request_id)
        self._record(call, reply, fault, request_id)
        return Answer(reply.status, {**reply.headers, "fly-request-id": request_id}, reply.body, reply.cut)

    # The way of a call

    def _identify(self, call: Call) -> None:
        """What the path tells about the call, for faults and the ledger."""
        call.app, call.machine = call.params.get("app"), call.params.get("machine")
        if call.inside is not None:
            call.app, call.machine = call.inside.app.name, call.inside.id
        call.volume, call.org = call.params.get("volume"), call.params.get("org")
        if call.op == "create_app":
            try:
                body = requests.read(CreateApp, call.body)
                call.app, call.org = body.wanted or None, body.org_slug or None
            except Refusal:  # answered in its turn
                pass
        elif call.op == "list_apps":
            call.org = requests.last(call.query, "org_slug")
        elif call.org is None and call.app in self.world.apps:
            call.org = self.world.apps[call.app].org
        call.name = self._name(call)

    def _name(self, call: Call) -> str | None:
        """The name of the machine or volume that the call is about, or would make."""
        thing = self.world.machines.get(call.machine or "") or self.world.volumes.get(call.volume or "")
        if thing is not None:
            return thing.name
        if call.op in ("create_machine", "create_volume"):
            try:
                return requests.read(Named, call.body).name or None
            except Refusal:  # answered in its turn
                pass
        return None

    def _fault(self, call: Call) -> Fault | None:
        facts = {
            "org": call.org,
            "app": call.app,
            "machine": call.machine,
            "volume": call.volume,
            "name": call.name,
            "method": call.method,
            "agent": call.headers.get("user-agent", ""),
        }
        return self.faults.take(call.op, facts) if call.op is not None else None

    async def _reply(self, call: Call, fault: Fault | None, request_id: str) -> Answer:
        if fault is None:
            return await self._operate(call)
        order = fault.order
        if order.delay:
            self.world.ledger.begin(call.op, request_id)
            await asyncio.sleep(order.delay)
        ordered = _ordered(order)
        if order.where == "before" and ordered is not None:
            return ordered
        done = await self._operate(call)
        if order.hold:
            self.world.ledger.held(call.op, request_id)
            await asyncio.sleep(order.hold)
        if order.where == "reply":
            return Answer(done.status, done.headers, done.body, cut=True)
        return ordered if ordered is not None else done

    async def _operate(self, call: Call) -> Answer:
        try:
            if call.op is None:
                raise errors.no_such_route()
            if call.inside is not None and call.op not in routes.INSIDE:
                raise errors.not_simulated(f"{call.op} over a machine's own socket")
            if call.op not in routes.PUBLIC:
                self._admit(call)
            return await self._operations[call.op](call)
        except Refusal as refusal:
            return answer(refusal.status, refusal.body)
        except Exception:
            _log.exception("%s %s broke", call.method, call.path)
            return answer(500, errors.internal().body)

    def _admit(self, call: Call) -> None:
        """Raises Refusal: 401 without a good token, 429 beyond the rate limits."""
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        call.token = token.strip()
        good = scheme.lower() in ("bearer", "flyv1") and call.token in self.tokens
        if not good and call.inside is None:
            raise errors.unauthorized()
        assert call.op is not None
        subject = call.machine or call.volume or call.app or call.org or call.token
        if self._limits is not None and not self._limits.allow(call.op, subject):
            raise errors.rate_limited()

    def _record(self, call: Call, reply: Answer, fault: Fault | None, request_id: str) -> None:
        machine = self.world.machines.get(call.machine) if call.machine is not None else None
        metadata = machine.config.metadata if machine is not None else {}
        self.world.ledger.call(
            {
                "at": call.at,
                "seconds": round(self.world.clock.now() - call.at, 6),
                "op": call.op,
                "method": call.method,
                "path": call.path,
                "query": {name: values[0] if len(values) == 1 else list(values) for name, values in call.query.items()},
                "org": call.org,
                "app": call.app,
                "machine": call.machine,
                "volume": call.volume,
                "status": reply.status,
                "request_id": request_id,
                "agent": call.headers.get("user-agent", ""),
                "cause": call.headers.get("x-cause", "")[:_LONGEST_CAUSE] or None,
                "fault": {"id": fault.id, "where": fault.order.where} if fault is not None else None,
                "effect": call.effect,
                "metadata": {key: value for key, value in metadata.items() if key.startswith("roost_")},
            }
        )


def _ordered(order: Order) -> Answer | None:
    """The answer that a fault gives in place of Fly's."""
    if order.status is None:
        return None
    return answer(order.status, order.body if order.body is not None else errors.internal().body)
