"""Both stand-ins in a thread of their own, for a program that is not asynchronous itself."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from roost.local.fakes.model import FakeModel
from roost.local.fakes.telegram import FakeTelegram

__all__ = ["Background"]

_SECONDS = 300.0
_T = TypeVar("_T")


class Background:
    """A context manager: within it both answer on 127.0.0.1."""

    def __init__(self) -> None:
        self.model = FakeModel()
        self.telegram = FakeTelegram()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fakes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self.model.start())
        self.run(self.telegram.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self.telegram.stop())
        self.run(self.model.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs this where they live, and waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_SECONDS)
