"""What OpenClaw says of itself while it runs; and what is done about it: suppressed messengers are started.

After three unclean starts within five minutes OpenClaw comes up with its messengers switched off ("suppressed", docs/
gateway/restart-recovery.md): it is up and deaf. A change of a messenger's configuration in that state switches it off
again. So whatever is suppressed is started once the gateway has held for a while, and again whenever it is needed.

All that is read may be hostile: nothing of it is trusted to be of the right type, every text is made one short
printable line, every list is cut.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from roost_agent.backoff import Backoff
from roost_agent.contract.bundle import BundleChannels
from roost_agent.contract.heartbeat import ChannelReport, ChannelState
from roost_agent.runtime import Sight
from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway, GatewayError

__all__ = ["Observer", "Seen", "Tries", "sight"]

_LOOK_SECONDS = 5.0
"""One look costs the gateway 20 ms of a core."""
_SETTLED_SECONDS = 30.0
"""A messenger that made it crash would do so again: it must have held for so long before one is started."""
_STARTS = Backoff(start=5, cap=300)
_MISSES = 3
_SESSIONS = 20
"""The newest are looked at: one that is at work has just been written to."""
_MOST_CHANNELS = 16
_MOST_ACCOUNTS = 16
_LONGEST_LINE = 160
_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_OURS = frozenset(BundleChannels.model_fields)
"""Other names come from the gateway alone: they must not pass for a topic of the supervisor's own."""
_OF_THE_MOMENT = {"startup-sidecars", "gateway-draining"}
"""What /readyz names while it starts or drains."""
_log = structlog.get_logger()

_WORST_FIRST = (
    ChannelState.FAILED,
    ChannelState.SUPPRESSED,
    ChannelState.STOPPED,
    ChannelState.CONNECTING,
    ChannelState.CONNECTED,
    ChannelState.DISABLED,
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: the answers as they came. `ready` is the body of /readyz, the others are payloads of the RPC."""

    ready: Any = None
    channels: Any = None
    pairings: Any = None
    sessions: Any = None
    cron: Any = None


@dataclass(frozen=True, slots=True)
class Tries:
    """How often a suppressed messenger has been started, when next (seconds of the loop), and what came of it last."""

    count: int = 0
    due: float = 0.0
    said: str = ""


def sight(seen: Seen, tries: Mapping[str, Tries], clean: Callable[[str], str]) -> Sight:
    """What is to be said of a look. Pure; never raises, whatever has been seen.

    Args:
        seen: The look.
        tries: What has been done about the suppressed messengers, by name.
        clean: Takes secrets out of a text.
    """
    suppressed = _suppressed(seen)
    channels: dict[str, ChannelReport] = {}
    troubles: dict[str, str] = {}
    for name, accounts in _accounts(seen):
        states = [_state(account, suppressed=name in suppressed) for account in accounts]
        worst = min(range(len(accounts)), key=lambda i: _WORST_FIRST.index(states[i]))
        state, error = states[worst], _line(accounts[worst].get("lastError"), clean)
        channels[name] = ChannelReport(state=state, last_error=error)
        if trouble := _trouble(state, error, tries.get(name, Tries())):
            troubles[name if name in _OURS else f"channel {name}"] = trouble
    failing = [text for item in _list(_dict(seen.ready).get("failing")) if (text := _line(item, clean))]
    if others := [text for text in failing if text not in channels and text not in _OF_THE_MOMENT]:
        troubles["openclaw"] = f"not ready: {', '.join(others[:4])}"[:_LONGEST_LINE]
    sessions = [_dict(row) for row in _list(_dict(seen.sessions).get("sessions"))]
    pairings = _dict(seen.pairings).get("requests")
    return Sight(
        channels=channels,
        pending_pairings=len(pairings) if isinstance(pairings, list) else None,
        active_sessions=None if seen.sessions is None else sum(row.get("hasActiveRun") is True for row in sessions),
        last_activity_at=max(filter(None, (_moment(row.get("lastActivityAt")) for row in sessions)), default=None),
        next_scheduled_run_at=_moment(_dict(seen.cron).get("nextWakeAtMs")),
        troubles=troubles,
    )


def _suppressed(seen: Seen) -> list[str]:
    """The messengers that are set up and on, but were not started because of bad starts before."""
    named = [name for name in _list(_dict(seen.ready).get("suppressed")) if isinstance(name, str)]
    return [name for name, _ in _accounts(seen) if name in named]


def _accounts(seen: Seen) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every messenger with its accounts, as many as a heartbeat holds."""
    found = _dict(_dict(seen.channels).get("channelAccounts"))
    known = [(name, found[name]) for name in found if _CHANNEL.fullmatch(name)]
    for name, accounts in known[:_MOST_CHANNELS]:
        if taken := [account for account in _list(accounts)[:_MOST_ACCOUNTS] if isinstance(account, dict)]:
            yield name, taken


def _state(account: Mapping[str, Any], *, suppressed: bool) -> ChannelState:
    """The state of one account, as its `lifecycle` (starting, ready, recovering, blocked, stopped) and flags say."""
    if account.get("enabled") is False:
        return ChannelState.DISABLED
    if account.get("running") is True:
        connected = account.get("connected", account.get("lifecycle") == "ready")
        return ChannelState.CONNECTED if connected is True else ChannelState.CONNECTING
    if account.get("terminalDisconnect") is True or account.get("lifecycle") == "blocked":
        return ChannelState.FAILED
    if suppressed:
        return ChannelState.SUPPRESSED
    if account.get("restartPending") is True or account.get("lifecycle") in ("starting", "recovering"):
        return ChannelState.CONNECTING
    return (
        ChannelState.FAILED if account.get("lastError") or account.get("configured") is False else ChannelState.STOPPED
    )


def _trouble(state: ChannelState, error: str | None, tries: Tries) -> str | None:
    match state:
        case ChannelState.FAILED:
            return error or "failed"
        case ChannelState.STOPPED:
            return "switched on, but not running"
        case ChannelState.SUPPRESSED:
            tried = f", started {tries.count} times in vain ({tries.said})" if tries.count else ""
            return f"held back by OpenClaw after bad starts{tried}"
        case ChannelState.CONNECTING:
            return error and f"not connected: {error}"
    return None


class Observer:
    """Looks at a gateway that is ready, life after life.

    Args:
        changed: Called after every change of `sight`, and never without one.
        clean: Takes secrets out of a text.
        look_seconds: Between two looks.
        settled_seconds: For so long a gateway must have been ready before a suppressed messenger is started.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        changed: Callable[[], None],
        clean: Callable[[str], str],
        look_seconds: float = _LOOK_SECONDS,
        settled_seconds: float = _SETTLED_SECONDS,
    ) -> None:
        self._gateway = gateway
        self._changed = changed
        self._clean = clean
        self._look_seconds = look_seconds
        self._settled_seconds = settled_seconds
        self._sight = Sight()

    @property
    def sight(self) -> Sight:
        """What was seen last; empty while nothing runs."""
        return self._sight

    async def run(self) -> None:
        """Looks until it is cancelled; to be run for as long as a gateway is ready."""
        clock = asyncio.get_running_loop().time
        ready_since, misses = clock(), 0
        tries: dict[str, Tries] = {}
        try:
            while True:
                try:
                    seen = await self._look()
                except GatewayAway as error:
                    misses += 1
                    if misses >= _MISSES:
                        self._show(Sight(troubles={"openclaw": _line(str(error), self._clean) or "no answer"}))
                except GatewayError:
                    pass  # it drains, or is about to take up another configuration: what was seen before still holds
                else:
                    misses = 0
                    if clock() - ready_since >= self._settled_seconds:
                        tries = await self._start(seen, tries, clock)
                    self._show(sight(seen, tries, self._clean))
                await asyncio.sleep(self._look_seconds)
        finally:
            self._show(Sight())

    async def _look(self) -> Seen:
        _, ready = await self._gateway.get("/readyz", 5)
        return Seen(
            ready=ready,
            channels=await self._ask("channels.status"),
            pairings=await self._ask("channels.pairing.list"),
            sessions=await self._ask("sessions.list", {"limit": _SESSIONS}),
            cron=await self._ask("cron.status"),
        )

    async def _ask(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """The answer; None when it is refused for good, as a method that this version does not know."""
        try:
            return await self._gateway.call(method, params)
        except GatewayError as error:
            if error.retry_after is not None:
                raise
            return None

    async def _start(self, seen: Seen, tries: Mapping[str, Tries], clock: Callable[[], float]) -> dict[str, Tries]:
        """Starts what is suppressed and due. Whether that worked shows in the next look."""
        left = {name: tries.get(name, Tries()) for name in _suppressed(seen)}
        for name, accounts in _accounts(seen):
            if name not in left or clock() < left[name].due:
                continue
            count = left[name].count + 1
            said = [
                await self._start_one(name, account.get("accountId"))
                for account in accounts
                if _state(account, suppressed=True) is ChannelState.SUPPRESSED
            ]
            left[name] = Tries(count, clock() + _STARTS.seconds(count), "; ".join(said)[:_LONGEST_LINE])
            _log.info("suppressed messenger started", channel=name, tries=count, said=left[name].said)
        return left

    async def _start_one(self, channel: str, account: object) -> str:
        params = {"channel": channel, **({"accountId": account} if isinstance(account, str) else {})}
        try:
            answer = await self._gateway.call("channels.start", params)
        except (GatewayAway, GatewayError) as error:
            return _line(str(error), self._clean) or "no answer"
        outcome = _dict(answer.get("outcome"))
        return _line(outcome.get("reason") or outcome.get("status"), self._clean) or "no outcome"

    def _show(self, sight: Sight) -> None:
        if sight != self._sight:
            self._sight = sight
            self._changed()


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _line(value: object, clean: Callable[[str], str]) -> str | None:
    """One short printable line without secrets; None for what is no text, or empty."""
    if not isinstance(value, str):
        return None
    # Cleaned before it is cut: the half of a secret would not be known for one.
    return _UNPRINTABLE.sub(" ", clean(value[: 100 * _LONGEST_LINE]))[:_LONGEST_LINE].strip() or None


def _moment(milliseconds: object) -> str | None:
    """An RFC 3339 time of milliseconds since 1970; None for what is no such number."""
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool):
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None
