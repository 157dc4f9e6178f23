"""The runtime Command: any program of the image, started as the bundle says."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import aiohttp
import structlog

from roost_agent import policy, readiness
from roost_agent.contract.bundle import ConfigBundle, Readiness
from roost_agent.runtime import Follow, Launch, Layout, Sight, Tell, User
from roost_agent.settings import TOKEN_VARIABLE

__all__ = ["CommandRuntime"]

_log = structlog.get_logger()


class CommandRuntime:
    """The program is part of the image, its files are those of the bundle. Nothing is known of it but its readiness.

    Args:
        base_env: What it gets of the supervisor's environment.
        data_dir: Where it starts.
        address: Where it is looked at for its readiness, and from where.
        user: As whom it runs.
    """

    def __init__(self, base_env: Mapping[str, str], data_dir: Path, address: str, user: User | None) -> None:
        self._base_env = base_env
        self._data_dir = data_dir
        self._address = address
        self._user = user

    @property
    def state(self) -> Sequence[str]:
        return ()

    @property
    def sight(self) -> Sight:
        return Sight()

    async def install(self, bundle: ConfigBundle) -> None:
        """The image brought it."""

    async def check(self, bundle: ConfigBundle) -> Layout:
        return Layout(bundle.files)

    def inputs(self, bundle: ConfigBundle) -> bytes:
        return bundle.runtime_inputs()

    def launch(self, bundle: ConfigBundle) -> Launch:
        runtime = bundle.to_run
        assert runtime.command is not None, "a bundle of this kind without a command is not understood"
        env = {**self._base_env, **bundle.env, **bundle.secret_env}
        for ours in (TOKEN_VARIABLE, bundle.gateway.token_env):
            env.pop(ours, None)
        follow = _follow(runtime.readiness or Readiness(), self._address)
        return Launch(tuple(runtime.command), env, self._data_dir, follow, policy.steady, user=self._user)

    async def reloaded(self, bundle: ConfigBundle) -> None:
        """Whatever it reads while it runs is its own affair."""

    async def drain(self, seconds: float) -> None:
        """It knows of no other end than SIGTERM."""

    async def preflight(self, bundle: ConfigBundle) -> None:
        """It has no state that would belong to a version."""

    async def forget_others(self, versions: Collection[str]) -> None:
        """Nothing was installed."""


def _follow(said: Readiness, address: str) -> Follow:
    async def follow(tell: Tell) -> str:
        get, deadline = said.http_get, said.initial_deadline_seconds
        if get is None:
            await readiness.settle(tell)
        # From the machine's own address, so that a look is never taken for somebody's visit.
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with aiohttp.ClientSession(connector=connector, timeout=readiness.TIMEOUT) as web:
            assert get is not None, "settling lasts until it is cancelled"
            await readiness.follow(readiness.by_http(web, address, get), deadline, tell)
        return f"not ready within {deadline} s"

    return follow
