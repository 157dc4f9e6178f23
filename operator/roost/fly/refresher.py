"""One list of an org's machines, and one of its volumes, for everybody who wants to know.

So a converged Agent costs no calls of its own. Promises: of each kind one list at a time, none sooner than
`MIN_GAP_SECONDS` after the last one began; every list that was read to its end is handed over whole, in order; `run`
ends by cancellation only.
Never: concludes that anything is gone. It tells what was listed, for which apps, and which regions could not be read;
lists lag behind, leave out, and have been empty by mistake, so absence is the reader's question to a GET by id.

Between full sweeps only changes are asked for: what was updated after the newest time seen, set back by an overlap for
the list's lag and by the time that the sweep itself took. Those include what was destroyed; a full sweep does not,
because the dead only grow in number. A region that could not be read may have changed unseen, so the first sweep that
reads it again is followed by a full one.

A credential that may not list the org may still list its apps: then each app is listed by itself, spread over the
period, and the org is tried again every `ORG_AGAIN_SECONDS`. Where the org could be listed before, one refusal alone
is not believed.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

import structlog

from roost.fly.client import Fly
from roost.fly.errors import FlyError, Invalid, NotFound, RateLimited, Unauthorized, Unavailable
from roost.fly.types import MachineRow, Volume, row_of

log = structlog.get_logger(__name__)

MIN_GAP_SECONDS = 2.0
OVERLAP_SECONDS = 60.0
"""Fly names no figure for the list's lag, it only asks to set `updated_after` back. Full sweeps find the rest."""
ORG_AGAIN_SECONDS = 600.0
APPS_PER_SECOND = 10
"""So many apps are listed a second where the org can't be; with more than that in a period, the period gets longer."""
_FIRST_BACKOFF_SECONDS = 4.0
_MAX_BACKOFF_SECONDS = 60.0


class State(StrEnum):
    """Whether the list can be had."""

    STARTING = "starting"
    OK = "ok"
    UNAUTHORIZED = "unauthorized"
    CANNOT_LIST_ORG = "cannot_list_org"
    """The credential may be good, but not for the whole org: its apps are listed one by one."""
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Health:
    """For status and readiness: the state, since when (clock seconds), and a sentence for a person unless ok."""

    state: State
    since: float
    message: str = ""


class _Row(Protocol):
    @property
    def updated_at(self) -> str: ...


Row = TypeVar("Row", bound=_Row)
_Row_co = TypeVar("_Row_co", bound=_Row, covariant=True)


class _Page(Protocol[_Row_co]):
    @property
    def rows(self) -> tuple[_Row_co, ...]: ...
    @property
    def last_updated_at(self) -> str: ...
    @property
    def error_regions(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Listing(Generic[Row]):
    """What one list said. Times are clock seconds; what happened after `started_at` may be missing."""

    rows: tuple[Row, ...]
    full: bool
    """Everything that was listed, not only changes; what was destroyed is then left out."""
    error_regions: frozenset[str]
    """Not read: what is there is unknown."""
    started_at: float
    finished_at: float
    apps: frozenset[str] | None = None
    """The apps that it speaks for; None for all of the org."""


Sweep = Listing[MachineRow]
VolumeSweep = Listing[Volume]


@dataclass(frozen=True, slots=True)
class Source(Generic[Row]):
    """Where a `Lister` reads: the org's pages from a time on or from the beginning, and one app's whole list."""

    what: str
    org: str
    pages: Callable[[str | None], AsyncIterator[_Page[Row]]]
    of_app: Callable[[str], Awaitable[Sequence[Row]]]


class Lister(Generic[Row]):
    """Sweeps one source. Belongs to one event loop, whose sleep must run with `clock`.

    Args:
        source: what is listed.
        apps: the apps to list where the org can't be; asked at the beginning of each round.
        clock: monotonic seconds.
        on_sweep: gets each list, in the loop, at once; quick, and best without exceptions.
        rng: for jitter.
        period: seconds from one sweep to the next, ±10 %.
        full_every: seconds from one full sweep to the next.
        overlap: seconds by which `updated_after` is set back.
    """

    def __init__(
        self,
        source: Source[Row],
        *,
        apps: Callable[[], Iterable[str]],
        clock: Callable[[], float],
        on_sweep: Callable[[Listing[Row]], None],
        rng: random.Random,
        period: float,
        full_every: float,
        overlap: float,
    ) -> None:
        self._source, self._apps, self._clock, self._on_sweep, self._rng = source, apps, clock, on_sweep, rng
        self._period, self._full_every, self._overlap = period, full_every, overlap
        self._kicked = asyncio.Event()
        self._newest: datetime | None = None
        """The newest change that any sweep has seen, by Fly's clock."""
        self._updated_after: str | None = None
        self._full_due = float("-inf")
        self._blind = False
        """Some region was left out since the last full sweep."""
        self._org_due = float("-inf")
        """Until then, apps are listed one by one."""
        self._org_refusal = ""
        self._round: deque[str] = deque()
        self._round_size = 0
        self._failures = 0
        self._logged: set[str] = set()
        self.health = Health(State.STARTING, clock())
        self.unexpected_errors = 0
        """Exceptions that were no FlyError: defects, of this program or of what reads the sweeps."""

    def kick(self) -> None:
        """Asks for a sweep soon: at once, or when the gap has passed.

        Something has changed, or a credential was replaced; so while Fly gives no answer, the back-off holds.
        """
        self._kicked.set()

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            self._kicked.clear()
            started = self._clock()
            delay = await self._turn(started)
            await self._pause(started, delay)

    async def _turn(self, started: float) -> float:
        """One sweep; returns the seconds from its start to the next."""
        whole = started >= self._org_due
        try:
            return await (self._whole_org(started) if whole else self._some_apps(started))
        except FlyError as error:
            not_allowed = isinstance(error, NotFound) or (isinstance(error, Unauthorized) and error.status == 403)
            again = self.health.state is State.OK  # a list that was just answered is refused: asked for once more
            return self._refused(error, started) if whole and not_allowed and not again else self._failed(error)
        except Exception as error:
            return self._stumbled(error)

    # --- The whole org -------------------------------------------------------------------------------------------

    async def _whole_org(self, started: float) -> float:
        full = self._updated_after is None or started >= self._full_due
        rows: list[Row] = []
        regions: set[str] = set()
        newest = self._newest
        async for page in self._source.pages(None if full else self._updated_after):
            rows += page.rows
            regions.update(page.error_regions)
            newest = _later(newest, _newest(page))
        sweep = Listing(tuple(rows), full, frozenset(regions), started, self._clock())
        self._on_sweep(sweep)
        self._succeeded(sweep, newest)
        if self._blind and not sweep.error_regions:
            self._full_due = started
            return MIN_GAP_SECONDS
        return self._period * self._rng.uniform(0.9, 1.1)

    def _succeeded(self, sweep: Listing[Row], newest: datetime | None) -> None:
        self._newest = newest
        if newest is not None:
            back = timedelta(seconds=self._overlap + sweep.finished_at - sweep.started_at)
            self._updated_after = (newest - back).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if sweep.full:
            self._full_due = sweep.started_at + self._full_every
            self._blind = False
        self._blind = self._blind or bool(sweep.error_regions)
        self._failures = 0
        self._set_health(State.OK, "")

    def _refused(self, error: FlyError, started: float) -> float:
        """The org can't be listed: its apps, one by one, for a while."""
        self._org_due = started + ORG_AGAIN_SECONDS
        self._updated_after = None  # what changes until then is seen by a full sweep
        self._org_refusal = (
            f"{self._cannot(error.message)}. Each app is listed by itself, which takes more calls and tells changes "
            'later; a token of the whole org makes it one list: fly tokens create org --org "'
            f'{self._source.org}"'
        )
        self._set_health(State.CANNOT_LIST_ORG, self._org_refusal)
        return MIN_GAP_SECONDS

    # --- App by app ----------------------------------------------------------------------------------------------

    async def _some_apps(self, started: float) -> float:
        """The next apps of a round: as many at a time as it takes to be round in a period, within the rate."""
        if not self._round:
            self._round.extend(sorted(set(self._apps())))
            self._round_size = len(self._round)
        share = min(
            math.ceil(self._round_size * MIN_GAP_SECONDS / self._period), math.ceil(APPS_PER_SECOND * MIN_GAP_SECONDS)
        )
        names = [self._round.popleft() for _ in range(min(share, len(self._round)))]
        answers = dict(zip(names, await asyncio.gather(*map(self._one_app, names)), strict=True))
        read = {name: rows for name, rows in answers.items() if not isinstance(rows, FlyError)}
        if read:
            rows = tuple(row for found in read.values() for row in found)
            self._on_sweep(Listing(rows, True, frozenset(), started, self._clock(), frozenset(read)))
        else:
            for error in answers.values():
                if isinstance(error, Unavailable | RateLimited):
                    raise error
                if isinstance(error, Unauthorized) and error.status != 403:
                    self._org_due = started  # the token, or this app: the org's answer tells
                    return MIN_GAP_SECONDS
        self._failures = 0
        self._set_health(State.CANNOT_LIST_ORG, self._org_refusal)
        return self._period * (len(names) / self._round_size if names else 1.0) * self._rng.uniform(0.9, 1.1)

    async def _one_app(self, name: str) -> Sequence[Row] | FlyError:
        """An error leaves this app out of the sweep; its Agents meet the same one and say so."""
        try:
            return await self._source.of_app(name)
        except FlyError as error:
            return error

    # --- Errors and pauses ---------------------------------------------------------------------------------------

    def _failed(self, error: FlyError) -> float:
        if isinstance(error, Invalid):  # perhaps the time we asked from: a full sweep asks for none
            self._updated_after = None
        state = State.UNAUTHORIZED if isinstance(error, Unauthorized) else State.UNAVAILABLE
        self._set_health(state, f"{self._cannot(error.message)}. {error.advice}".strip())
        backoff = self._backoff()
        return max(backoff, error.retry_after or 0.0) if isinstance(error, RateLimited | Unavailable) else backoff

    def _stumbled(self, error: Exception) -> float:
        """A defect: told once per kind, counted always; the next turn may go better."""
        self.unexpected_errors += 1
        kind = type(error).__qualname__
        if kind not in self._logged:
            self._logged.add(kind)
            log.error("a sweep stumbled over a defect; its kind is logged once", org=self._source.org, exc_info=error)
        self._set_health(State.UNAVAILABLE, self._cannot(kind))
        return self._backoff()

    def _cannot(self, why: str) -> str:
        return f'{self._source.what} of org "{self._source.org}" can\'t be listed: {why}'

    def _backoff(self) -> float:
        """Full jitter: many operators must not come back together."""
        most = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return max(MIN_GAP_SECONDS, self._rng.uniform(0.0, most))

    def _set_health(self, state: State, message: str) -> None:
        changed = state is not self.health.state
        self.health = Health(state, self._clock() if changed else self.health.since, message)
        if changed:
            log.info(
                "listing changed", what=self._source.what, org=self._source.org, state=state.value, message=message
            )

    async def _pause(self, started: float, delay: float) -> None:
        """Until the next sweep is due, counted from the start of the last; or until a kick."""
        due = started + delay
        if self.health.state is not State.UNAVAILABLE:
            try:
                async with asyncio.timeout(max(due - self._clock(), 0.0)):
                    await self._kicked.wait()
            except TimeoutError:
                pass
            due = started + MIN_GAP_SECONDS
        await asyncio.sleep(max(due - self._clock(), 0.0))


class Refresher:
    """Lists the machines and, more slowly, the volumes of one org with one credential.

    Args:
        fly: the client of the credential.
        org: the org's slug.
        apps: the apps that are of interest, for when the org can't be listed.
        clock: monotonic seconds, in step with the event loop's sleep.
        on_rows: gets each list of machines, in the loop, at once; quick, and best without exceptions.
        on_volumes: gets each list of volumes, in the same way.
        rng: for jitter.
        period: seconds from one list of machines to the next, ±10 %.
        volume_period: the same for volumes.
        full_every: seconds from one full list to the next.
        overlap: seconds by which `updated_after` is set back.
    """

    def __init__(
        self,
        fly: Fly,
        org: str,
        *,
        apps: Callable[[], Iterable[str]],
        clock: Callable[[], float],
        on_rows: Callable[[Sweep], None],
        on_volumes: Callable[[VolumeSweep], None],
        rng: random.Random,
        period: float = 15.0,
        volume_period: float = 60.0,
        full_every: float = 600.0,
        overlap: float = OVERLAP_SECONDS,
    ) -> None:
        async def machines_of(app: str) -> list[MachineRow]:
            return [row_of(machine) for machine in await fly.list_machines(app)]

        machines = Source(
            "machines",
            org,
            lambda after: fly.org_machine_pages(org, updated_after=after, include_deleted=after is not None),
            machines_of,
        )
        volumes = Source(
            "volumes",
            org,
            lambda after: fly.org_volume_pages(org, updated_after=after, include_deleted=after is not None),
            fly.list_volumes,
        )
        self._machines = Lister(
            machines,
            apps=apps,
            clock=clock,
            on_sweep=on_rows,
            rng=rng,
            period=period,
            full_every=full_every,
            overlap=overlap,
        )
        self._volumes = Lister(
            volumes,
            apps=apps,
            clock=clock,
            on_sweep=on_volumes,
            rng=rng,
            period=volume_period,
            full_every=full_every,
            overlap=overlap,
        )

    @property
    def health(self) -> Health:
        """Of the list of machines; what keeps that of volumes away is the same, but for a moment."""
        return self._machines.health

    @property
    def unexpected_errors(self) -> int:
        return self._machines.unexpected_errors + self._volumes.unexpected_errors

    def kick(self) -> None:
        """Asks for both lists soon; as `Lister.kick`."""
        self._machines.kick()
        self._volumes.kick()

    async def run(self) -> None:
        """Lists until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._machines.run())
            tasks.create_task(self._volumes.run())


def _newest(page: _Page[Row]) -> datetime | None:
    told = _time(page.last_updated_at)
    return told if told is not None else _newest_row(page.rows)


def _newest_row(rows: Sequence[Row]) -> datetime | None:
    newest = None
    for row in rows:
        newest = _later(newest, _time(row.updated_at))
    return newest


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one is not None and other is not None else one or other


def _time(text: str) -> datetime | None:
    """An RFC 3339 time in UTC; None when it is none that a machine can have (Go's zero time is in the year 1)."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if not 2000 < time.year < 9999:
        return None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
