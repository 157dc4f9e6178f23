"""The supervisor of one agent machine, and the wire contract that the operator shares with it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
