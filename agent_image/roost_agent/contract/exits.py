"""With what codes the supervisor exits, after the habit of sysexits.h."""

from enum import IntEnum

__all__ = ["Exit"]


class Exit(IntEnum):
    """Exit codes of the supervisor; a restart policy of on-failure acts on all but the first."""

    ASKED = 0
    """Asked to stop (by signal or command), revoked, or superseded by another machine."""
    BAD_ENVIRONMENT = 64
    """A variable is missing or makes no sense; standard error and the log name it and the remedy."""
    PORT_TAKEN = 69
    """The health port can't be opened: most likely another supervisor runs here."""
    BROKEN = 70
    """A defect of the supervisor itself; the runtime was stopped first."""
