"""What a kind of runtime must say to be run: how it is installed, configured, started, and known to be ready."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from roost_agent.contract.bundle import BundleFile, ConfigBundle, Readiness

__all__ = ["Launch", "RuntimeBinding"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One way of starting a process. The environment is whole: nothing is inherited."""

    argv: Sequence[str] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    readiness: Readiness


class RuntimeBinding(Protocol):
    """One kind of runtime. It holds no state: everything is in the bundle and on the volume."""

    async def install(self, bundle: ConfigBundle) -> None:
        """Brings the version that the bundle names to the machine, unless it is there.

        Raises:
            OSError: it can't be had now; the text says why.
        """

    def files(self, bundle: ConfigBundle) -> Sequence[BundleFile]:
        """All files that the runtime reads, to be written below the data directory before it starts."""

    def launch(self, bundle: ConfigBundle, base_env: Mapping[str, str], data_dir: Path) -> Launch:
        """How it is started; pure, and equal for bundles of equal `runtime_inputs`."""
