"""What a failure that lasts may cost: one call to Fly in five minutes, whatever it is that fails. Pure.

Back-off alone does not hold that: it ends at five minutes less its jitter, a retry may take several calls, news from
Fly's lists come between, and one that runs for a moment after each start has not failed at all. So calls are counted:
after half an hour each is paid for with a pause, several of one retry after it, together. What a person changes is
acted on at once, and what has failed for long and is done at last goes on at full speed.
"""

from dataclasses import dataclass

LONG_SECONDS = 1800.0
PAUSE_SECONDS = 300.0
STEADY_SECONDS = 600.0
"""So long an agent must run for it to be well; one that falls sooner, again and again, fails."""


@dataclass(slots=True)
class Pace:
    """How long one Agent has had things to do and was never done, and when it may go on. Times are clock seconds.

    `period` are the seconds from one try to the next once it has failed for long, 0 before. It only grows, so that
    what is said of it does not change with each try.
    """

    period: float = 0.0
    _cause: object = None
    _busy_since: float | None = None
    _runs_since: float | None = None
    _failed: tuple[object, float] | None = None
    """A change that failed whenever it was tried, and since when."""
    _free_at: float = 0.0
    _calls: int = 0

    def caused_by(self, cause: object) -> None:
        """Begins anew when the cause is another: all that a person can change about an Agent."""
        if cause != self._cause:
            self._well()
            self._cause = cause

    def rests(self, now: float, *, runs: bool) -> None:
        """It is as declared: down, and so done; or it runs, and has to show that it stays so."""
        if not runs:
            self._well()
        elif self._runs_since is None:
            self._runs_since = now

    def moves(self, now: float) -> None:
        """It is not as declared."""
        if self._runs_since is not None and now - self._runs_since >= STEADY_SECONDS:
            self._well()
        self._runs_since = None

    def called(self, change: object, now: float, *, failed: bool) -> None:
        """A call was made. That a change is made which has failed for long is progress; a look (None) is none."""
        before = self._failed
        if change is not None and failed:
            self._failed = before if before is not None and before[0] == change else (change, now)
        elif before is not None and before[0] == change:
            self._failed = None
            if now - before[1] >= LONG_SECONDS:
                self._well()
        if self._busy_since is None:
            self._busy_since = now
        if not self.slow(now):
            return
        self._calls = self._calls + 1 if now < self._free_at else 1
        self._free_at = max(self._free_at, now) + PAUSE_SECONDS
        self.period = max(self.period, self._calls * PAUSE_SECONDS)

    def slow(self, now: float) -> bool:
        """Whether it has failed for long."""
        return self._busy_since is not None and now - self._busy_since >= LONG_SECONDS

    def pause(self, now: float) -> float:
        """Seconds until the next try may begin; 0.0 when it may now."""
        return max(0.0, self._free_at - now)

    def _well(self) -> None:
        self.period, self._busy_since, self._runs_since = 0.0, None, None
        self._failed, self._free_at, self._calls = None, 0.0, 0
