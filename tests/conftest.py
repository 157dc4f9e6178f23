"""Fixtures that every kind of test may ask for."""

import os

from hypothesis import settings

from stack import admin, namespace, stack

# The same examples on every run, so that red is red for a reason; `HYPOTHESIS_PROFILE=default` looks for new ones.
settings.register_profile("steady", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

__all__ = ["admin", "namespace", "stack"]
