"""What only all Agents together show: how many fell silent, and how many take up changed defaults. Pure state.

Belongs to one event loop. Each Agent's reconcile tells its own part and asks for the whole.
"""

from dataclasses import dataclass, field

from roost.kube.records import Key

MASS_SHARE = 0.2
MASS_LEAST = 5
TOGETHER_SECONDS = 600.0
"""Agents that fell silent within this time of each other fell silent together."""
ROLL_SHARE = 0.05

TIDINGS_PER_SECOND = 20.0
TIDINGS_BURST = 20


@dataclass(slots=True)
class Silence:
    """Which of the agents that should be heard are not, and since when (clock seconds)."""

    _expected: set[Key] = field(default_factory=set)
    _since: dict[Key, float] = field(default_factory=dict)
    _mass: tuple[float, float] = (float("-inf"), float("-inf"))
    """When agents last fell silent together, and when that was last seen to last."""

    def told(self, key: Key, *, expected: bool, silent_since: float | None) -> None:
        """How it is with one Agent now."""
        (self._expected.add if expected else self._expected.discard)(key)
        if expected and silent_since is not None:
            self._since[key] = silent_since
        else:
            self._since.pop(key, None)

    def __len__(self) -> int:
        return len(self._since)

    def suspect(self, since: float, now: float, window: float) -> bool:
        """Whether so many fell silent when this one did that it is not the agents' fault, however long it lasts.

        And for one window (seconds) longer: when they can be heard again, they are not all heard at once.
        """
        if self._many(since):
            self._mass = (since, now)
            return True
        fell, seen = self._mass
        return abs(since - fell) < TOGETHER_SECONDS and now - seen < window

    @property
    def mass(self) -> bool:
        """Whether many that fell silent together are so still."""
        return self._many(self._mass[0])

    def _many(self, since: float) -> bool:
        together = sum(abs(since - other) < TOGETHER_SECONDS for other in self._since.values())
        return together >= MASS_LEAST and together > MASS_SHARE * len(self._expected)


@dataclass(slots=True)
class Rolls:
    """Agents whose machines are taking up a changed default: at most 5 % at a time, at least one.

    One that does not come to rest keeps its place, so a default that does not work stops there.
    """

    _rolling: set[Key] = field(default_factory=set)

    def may(self, key: Key, agents: int) -> bool:
        """Whether an Agent of so many may begin now, or has begun."""
        return key in self._rolling or len(self._rolling) < max(1, int(agents * ROLL_SHARE))

    def begin(self, key: Key) -> None:
        self._rolling.add(key)

    def end(self, key: Key) -> None:
        self._rolling.discard(key)


@dataclass(slots=True)
class RoomTable:
    """Where Fly had room for a guest, for `FRESH_SECONDS`: everybody asks the same."""

    FRESH_SECONDS = 60.0
    _told: dict[tuple[object, ...], dict[str, tuple[float, tuple[str, ...] | None]]] = field(default_factory=dict)

    def put(self, asked: tuple[object, ...], region: str, found: tuple[str, ...] | None, now: float) -> None:
        """An answer for (credential, org, guest); None: Fly could not tell."""
        self._told.setdefault(asked, {})[region] = (now, found)

    def of(self, asked: tuple[object, ...], now: float) -> dict[str, tuple[str, ...] | None]:
        """What is known by now."""
        told = self._told.get(asked, {})
        return {region: found for region, (at, found) in told.items() if now - at < self.FRESH_SECONDS}


class Tidings:
    """When what agents say of themselves may be written: 20 a second of all together, after a burst of 20."""

    def __init__(self) -> None:
        self._next = float("-inf")

    def book(self, now: float) -> float:
        """The next moment that is free; from now on it is taken."""
        at = max(now, self._next - (TIDINGS_BURST - 1) / TIDINGS_PER_SECOND)
        self._next = max(self._next, now) + 1 / TIDINGS_PER_SECOND
        return at
