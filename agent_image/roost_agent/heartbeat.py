"""Tells the operator how this machine is, and hears what it is asked to do.

Each heartbeat is a long poll: its answer is held open until there is a command. So there is always just one open, a
command costs at most one round trip, and an idle agent makes about one request per 25 s, or per interval if that is
shorter. Any news cancels the open one and is told at once. No answer is ever followed by a hot loop: one that comes
early, or whose command is still being carried out, is followed by the interval.

A machine that was suspended does not notice: its clock may have stood still, its connections may be dead. So the wall
clock is watched, and after a sleep whatever was under way is given up and a heartbeat begun on a fresh connection.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from roost_agent.activity import Activity
from roost_agent.backoff import Random
from roost_agent.contract.heartbeat import MAX_WAIT_SECONDS, Command, Heartbeat, HeartbeatAnswer
from roost_agent.endpoint import CallFailed, Endpoint, Superseded, Unreachable, pause
from roost_agent.vitals import Vitals

__all__ = ["Heart", "gap", "overslept"]

_LAST_BEAT_SECONDS = 1.5
_TICK_SECONDS = 1.0
_log = structlog.get_logger()


def gap(answer: HeartbeatAnswer, *, elapsed: float, wait: float, interval: float) -> float:
    """Seconds from this answer to the next heartbeat, unless there is news before.

    Args:
        answer: What the operator said; its `nextHeartbeatSeconds` counts within 1 to 300.
        elapsed: How long the answer took.
        wait: For how long it might have been held open.
        interval: The bundle's interval.
    """
    asked = interval if answer.next_heartbeat_seconds is None else min(max(answer.next_heartbeat_seconds, 1), 300)
    if answer.commands:
        return asked  # the same command would come back at once until it has taken effect, and that is news
    held = elapsed >= wait / 2
    return 0.0 if held and asked <= interval else max(0.0, asked - elapsed)


async def overslept(wall: Callable[[], datetime], allowed: Callable[[], float]) -> float:
    """Returns once this process was asleep: by how many seconds the wall clock moved further than it should have.

    That is so when it was stopped (SIGSTOP), when the whole machine was suspended with its clock and the wall clock was
    put right afterwards, and also when somebody sets the clock forward, which can't be told apart and does no harm.

    Args:
        wall: The wall clock.
        allowed: How many seconds more are no sleep.
    """
    while True:
        before = wall()
        await asyncio.sleep(_TICK_SECONDS)
        if (lost := (wall() - before).total_seconds() - _TICK_SECONDS) > allowed():
            return lost


class Heart:
    """Beats until it is cancelled.

    Args:
        offer: Takes the commands of an answer. They are repeated until a heartbeat shows their effect.
        clock: A monotonic clock, in seconds.
        wall: The wall clock.
        random: Numbers from 0 up to 1, for the jitter.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        vitals: Vitals,
        activity: Activity,
        *,
        offer: Callable[[Sequence[Command]], None],
        clock: Callable[[], float],
        wall: Callable[[], datetime],
        random: Random,
    ) -> None:
        self._endpoint = endpoint
        self._vitals = vitals
        self._activity = activity
        self._offer = offer
        self._clock = clock
        self._wall = wall
        self._random = random
        self._failures = 0
        self._mood: type[CallFailed] | None = None

    async def run(self) -> None:
        """Beats and hears, for ever.

        Raises:
            Superseded: another machine is the agent's now.
        """
        while True:
            beating = asyncio.create_task(self._beat())
            sleeping = asyncio.create_task(overslept(self._wall, lambda: 2 * self._vitals.interval))
            try:
                await asyncio.wait({beating, sleeping}, return_when=asyncio.FIRST_COMPLETED)
                if beating.done():
                    beating.result()  # it ends by an error only
            finally:
                beating.cancel()
                sleeping.cancel()
                await asyncio.gather(beating, sleeping, return_exceptions=True)
            _log.info("awake again", seconds=round(sleeping.result()))
            await self._endpoint.renew()

    async def _beat(self) -> None:
        while True:
            beat = await self._heartbeat()
            began, interval = self._clock(), self._vitals.interval
            wait = max(1, int(min(MAX_WAIT_SECONDS, interval)))
            try:
                answer = await self._unless_news(beat, wait)
            except CallFailed as error:
                await self._after(error)
                continue
            if answer is None:
                continue
            self._well()
            self._offer(answer.commands)
            await self._rest(gap(answer, elapsed=self._clock() - began, wait=wait, interval=interval))

    async def last(self) -> None:
        """Says how it ended, if that can be said quickly. Never raises."""
        try:
            async with asyncio.timeout(_LAST_BEAT_SECONDS):
                await self._endpoint.beat(await self._heartbeat(), wait=0)
        except (CallFailed, Superseded, TimeoutError) as error:
            _log.warning("last heartbeat not delivered", why=str(error) or "no answer in time")

    async def _heartbeat(self) -> Heartbeat:
        """All that is true now, so that everything that came until now is no news any more."""
        self._vitals.activity = signs = await self._activity.look()
        if self._vitals.trouble("activity", signs.wrong) and signs.wrong:
            _log.warning("degraded", topic="activity", why=signs.wrong)
        # Only here: a file that is right and wrong by turns must not make news of its own, and so a hot loop.
        self._vitals.news.clear()
        return self._vitals.heartbeat()

    async def _unless_news(self, beat: Heartbeat, wait: int) -> HeartbeatAnswer | None:
        """The answer to a heartbeat; None when there was news before it came, and the call was given up for it."""
        call = asyncio.create_task(self._endpoint.beat(beat, wait))
        news = asyncio.create_task(self._vitals.news.wait())
        try:
            await asyncio.wait({call, news}, return_when=asyncio.FIRST_COMPLETED)
            return call.result() if call.done() else None
        finally:
            news.cancel()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def _after(self, error: CallFailed) -> None:
        """Backs off. News does not cut it short where it was the operator who asked for patience."""
        self._failures += 1
        if type(error) is not self._mood:
            self._mood = type(error)
            _log.warning("heartbeat not taken", why=str(error))
        seconds = pause(error, self._failures, self._random)
        if isinstance(error, Unreachable):
            await self._rest(seconds)
        else:
            await asyncio.sleep(seconds)

    def _well(self) -> None:
        if self._mood is not None:
            _log.info("heartbeat taken again", failures=self._failures)
        self._failures, self._mood = 0, None

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._vitals.news.wait()
        except TimeoutError:
            pass
