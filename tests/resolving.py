"""What tests of a hostile directory share: both ways of resolving a path, and a hand that acts meanwhile."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from roost_agent import beneath

MECHANISMS = ("openat2", "walk") if sys.platform == "linux" else ("walk",)


def resolve_by(mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mechanism == "walk":
        monkeypatch.setattr(beneath, "_kernel_resolves", lambda: False)
    else:
        assert beneath._kernel_resolves(), "this kernel has no openat2(2), or a sandbox forbids it"


class Interruption:
    """Does something once, just before the n-th step of this process on the file system."""

    _listening = False
    _left = -1
    _act: Callable[[], object]

    @classmethod
    def _step(cls, event: str, _: object) -> None:
        if cls._left >= 0 and (event == "open" or event.startswith("os.")):
            cls._left -= 1
            if cls._left < 0:
                cls._act()

    @classmethod
    @contextmanager
    def before(cls, step: int, act: Callable[[], object]) -> Iterator[Callable[[], bool]]:
        """Gives whether it has been done."""
        if not cls._listening:
            sys.addaudithook(cls._step)  # for good: there is no way to take it back
            cls._listening = True
        cls._left, cls._act = step, act
        try:
            yield lambda: cls._left < 0
        finally:
            cls._left = -1
