"""One list of an org's machines for everybody who wants to know, so that a converged Agent costs no calls of its own.

Promises: one sweep at a time, none sooner than `MIN_GAP_SECONDS` after the last one began; every sweep that was read to
its end is handed over whole, in order; `run` ends by cancellation only.
Never: concludes that a machine is gone. It tells what was listed and which regions could not be read; the list lags
behind, leaves out, and has been empty by mistake, so absence is the reader's question to a GET by id.

Between full sweeps only changes are asked for: what was updated after the newest time seen, set back by an overlap for
the list's lag and by the time that the sweep itself took. Those include destroyed machines; a full sweep does not,
because the dead only grow in number. A region that could not be read may have changed unseen, so the first sweep that
reads it again is followed by a full one.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import structlog

from roost.fly.client import Fly
from roost.fly.errors import FlyError, Invalid, NotFound, RateLimited, Unauthorized
from roost.fly.types import MachineRow, MachinesPage

log = structlog.get_logger(__name__)

MIN_GAP_SECONDS = 2.0
OVERLAP_SECONDS = 60.0
"""Fly names no figure for the list's lag, it only asks to set `updated_after` back. Full sweeps find the rest."""
_FIRST_BACKOFF_SECONDS = 4.0
_MAX_BACKOFF_SECONDS = 60.0


class State(StrEnum):
    """Whether the list can be had."""

    STARTING = "starting"
    OK = "ok"
    UNAUTHORIZED = "unauthorized"
    CANNOT_LIST_ORG = "cannot_list_org"
    """The credential may be good, but not for the whole org: list app by app."""
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Health:
    """For status and readiness: the state, since when (clock seconds), and a sentence for a person unless ok."""

    state: State
    since: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one list said. Times are clock seconds; what happened after `started_at` may be missing."""

    rows: tuple[MachineRow, ...]
    full: bool
    """Everything that was listed, not only changes; destroyed machines are then left out."""
    error_regions: frozenset[str]
    """Not read: their machines are unknown."""
    started_at: float
    finished_at: float


class Refresher:
    """Sweeps one org with one credential. Belongs to one event loop, whose sleep must run with `clock`.

    Args:
        fly: the client of the credential.
        org: the org's slug.
        clock: monotonic seconds.
        on_rows: gets each sweep, in the loop, at once; quick, and best without exceptions.
        rng: for jitter.
        period: seconds from one sweep to the next, ±10 %.
        full_every: seconds from one full sweep to the next.
        overlap: seconds by which `updated_after` is set back.
    """

    def __init__(
        self,
        fly: Fly,
        org: str,
        *,
        clock: Callable[[], float],
        on_rows: Callable[[Sweep], None],
        rng: random.Random,
        period: float = 15.0,
        full_every: float = 600.0,
        overlap: float = OVERLAP_SECONDS,
    ) -> None:
        self._fly, self._org, self._clock, self._on_rows, self._rng = fly, org, clock, on_rows, rng
        self._period, self._full_every, self._overlap = period, full_every, overlap
        self._kicked = asyncio.Event()
        self._newest: datetime | None = None
        """The newest change that any sweep has seen, by Fly's clock."""
        self._updated_after: str | None = None
        self._full_due = float("-inf")
        self._blind = False
        """Some region was left out since the last full sweep."""
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
        full = self._updated_after is None or started >= self._full_due
        try:
            sweep, newest = await self._sweep(started, full=full)
            self._on_rows(sweep)
            self._succeeded(sweep, newest)
        except FlyError as error:
            return self._failed(error)
        except Exception as error:
            return self._stumbled(error)
        if self._blind and not sweep.error_regions:
            self._full_due = started
            return MIN_GAP_SECONDS
        return self._period * self._rng.uniform(0.9, 1.1)

    async def _sweep(self, started: float, *, full: bool) -> tuple[Sweep, datetime | None]:
        rows: list[MachineRow] = []
        regions: set[str] = set()
        newest = self._newest
        updated_after = None if full else self._updated_after
        pages = self._fly.org_machine_pages(self._org, updated_after=updated_after, include_deleted=not full)
        async for page in pages:
            rows += page.rows
            regions.update(page.error_regions)
            newest = _later(newest, _newest(page))
        return Sweep(tuple(rows), full, frozenset(regions), started, self._clock()), newest

    def _succeeded(self, sweep: Sweep, newest: datetime | None) -> None:
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

    def _failed(self, error: FlyError) -> float:
        match error:
            case Invalid():  # perhaps the time we asked from: a full sweep asks for none
                self._updated_after = None
                state = State.UNAVAILABLE
            case NotFound() | Unauthorized(status=403):
                state = State.CANNOT_LIST_ORG
            case Unauthorized():
                state = State.UNAUTHORIZED
            case _:
                state = State.UNAVAILABLE
        self._set_health(
            state, f'machines of org "{self._org}" can\'t be listed: {error.message}. {error.advice}'.strip()
        )
        backoff = self._backoff()
        return max(backoff, error.retry_after or 0.0) if isinstance(error, RateLimited) else backoff

    def _stumbled(self, error: Exception) -> float:
        """A defect: told once per kind, counted always; the next turn may go better."""
        self.unexpected_errors += 1
        kind = type(error).__qualname__
        if kind not in self._logged:
            self._logged.add(kind)
            log.error("a sweep stumbled over a defect; its kind is logged once", org=self._org, exc_info=error)
        self._set_health(State.UNAVAILABLE, f'machines of org "{self._org}" can\'t be read: {kind}')
        return self._backoff()

    def _backoff(self) -> float:
        """Full jitter: many operators must not come back together."""
        most = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return max(MIN_GAP_SECONDS, self._rng.uniform(0.0, most))

    def _set_health(self, state: State, message: str) -> None:
        changed = state is not self.health.state
        self.health = Health(state, self._clock() if changed else self.health.since, message)
        if changed:
            log.info("listing of machines changed", org=self._org, state=state.value, message=message)

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


def _newest(page: MachinesPage) -> datetime | None:
    told = _time(page.last_updated_at)
    return told if told is not None else _newest_row(page.rows)


def _newest_row(rows: Sequence[MachineRow]) -> datetime | None:
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
