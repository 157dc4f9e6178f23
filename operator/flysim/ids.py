"""Everything that looks random in Fly's answers, from one generator: the same seed and times give the same ids."""

from collections.abc import Container
from random import Random

from flysim.clock import Clock

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
_QUALITIES = ("aged", "billowing", "cold", "dark", "empty", "falling", "green", "holy", "icy", "late", "misty", "young")
_THINGS = ("bird", "brook", "cloud", "dawn", "dew", "field", "fog", "leaf", "moon", "pond", "river", "thunder", "wind")


class Ids:
    """Makes ids in the forms that Fly uses."""

    def __init__(self, random: Random, clock: Clock) -> None:
        self._random = random
        self._clock = clock
        self._last = (0, 0)

    def machine(self) -> str:
        return f"{self._random.getrandbits(56):014x}"

    def machine_name(self) -> str:
        choice = self._random.choice
        return f"{choice(_QUALITIES)}-{choice(_THINGS)}-{self._random.randrange(1, 10_000)}"

    def volume(self) -> str:
        return f"vol_{self._letters(16)}"

    def snapshot(self) -> str:
        return f"vs_{self._letters(21)}"

    def app(self) -> str:
        return self._letters(16)

    def number(self) -> int:
        return self._random.randrange(1_000_000, 10_000_000)

    def zone(self) -> str:
        return f"{self._random.getrandbits(16):04x}"

    def byte(self) -> int:
        return self._random.getrandbits(8)

    def nonce(self) -> str:
        return f"{self._random.getrandbits(48):012x}"

    def key(self) -> bytes:
        return self._random.randbytes(32)

    def private_ip(self) -> str:
        """A 6PN address; nothing listens there."""
        groups = ":".join(f"{self._random.getrandbits(16):x}" for _ in range(3))
        return f"fdaa:0:18:a7b:{groups}:2"

    def address(self, taken: Container[str]) -> str:
        """An IPv4 loopback address outside 127.0.0.0/16 that is not among `taken`."""
        while True:
            parts = (self._random.randrange(1, 255) for _ in range(3))
            if (address := "127." + ".".join(map(str, parts))) not in taken:
                return address

    def ulid(self) -> str:
        """A ULID; later calls give greater texts, within one millisecond too."""
        moment = int(self._clock.now() * 1000)
        if moment <= self._last[0]:
            moment, tail = self._last[0], self._last[1] + 1
        else:
            tail = self._random.getrandbits(79)
        self._last = (moment, tail)
        value = (moment << 80) | tail
        return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))

    def _letters(self, count: int) -> str:
        return "".join(self._random.choices(_LOWER, k=count))
