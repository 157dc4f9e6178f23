"""Fixtures that every kind of test may ask for."""

from stack import admin, namespace, stack

__all__ = ["admin", "namespace", "stack"]
