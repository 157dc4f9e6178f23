"""The runtime Command: any program of the image, started as the bundle says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from roost_agent.contract.bundle import BundleFile, ConfigBundle, Readiness
from roost_agent.runtime import Launch
from roost_agent.settings import TOKEN_VARIABLE

__all__ = ["CommandRuntime"]


class CommandRuntime:
    """The program is part of the image, its files are those of the bundle."""

    async def install(self, bundle: ConfigBundle) -> None:
        """The image brought it."""

    def files(self, bundle: ConfigBundle) -> Sequence[BundleFile]:
        return bundle.files

    def launch(self, bundle: ConfigBundle, base_env: Mapping[str, str], data_dir: Path) -> Launch:
        assert bundle.runtime is not None, "only a revoked agent has no runtime, and that one is never started"
        assert bundle.runtime.command is not None, "a bundle of this kind without a command is not understood"
        env = {**base_env, **bundle.env, **bundle.secret_env}
        for ours in (TOKEN_VARIABLE, bundle.gateway.token_env):
            env.pop(ours, None)
        return Launch(tuple(bundle.runtime.command), env, data_dir, bundle.runtime.readiness or Readiness())
