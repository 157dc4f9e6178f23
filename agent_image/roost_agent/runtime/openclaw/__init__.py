"""The runtime OpenClaw: where its things lie below the data directory.

The root of the volume and `.roost/` belong to the supervisor; these directories belong to OpenClaw's user.
"""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONFIG", "HOME", "STATE", "TEMPORARY", "WORKSPACE", "Places"]

STATE, WORKSPACE, HOME, TEMPORARY = "openclaw", "workspace", "home", "tmp"
CONFIG = f"{STATE}/openclaw.json"


@dataclass(frozen=True, slots=True)
class Places:
    """The same, absolute."""

    data_dir: Path

    @property
    def state(self) -> Path:
        return self.data_dir / STATE

    @property
    def config(self) -> Path:
        return self.data_dir / CONFIG

    @property
    def workspace(self) -> Path:
        return self.data_dir / WORKSPACE

    @property
    def home(self) -> Path:
        return self.data_dir / HOME

    @property
    def temporary(self) -> Path:
        return self.data_dir / TEMPORARY

    @property
    def log(self) -> Path:
        return self.state / "logs" / "openclaw.log"
