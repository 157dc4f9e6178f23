"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator

import pytest

from roost.local.stack import Stack


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real API server with the manifests applied and nothing else running."""
    with Stack(tmp_path_factory.mktemp("control-plane"), fly=False, say=print) as running:
        yield running
