"""What is assumed of a version that nobody has tried."""

import pytest

from roost_agent.runtime import Refused
from roost_agent.runtime.openclaw.traits import of


@pytest.mark.parametrize("version", ["2026.7.35", "2025.12.1", "2026.6.11"])
def test_a_version_of_which_nobody_could_tell_that_it_has_started_is_refused(version):
    with pytest.raises(Refused, match=f"runtime.version {version} is too old"):
        of(version)


@pytest.mark.parametrize("version", ["", "latest", "2026.9", "v2026.9.6", "2026.9.6 ; rm", "^2026.9.6"])
def test_only_an_exact_version_is_one(version):
    with pytest.raises(Refused, match="is no version of OpenClaw"):
        of(version)


@pytest.mark.parametrize(
    ("version", "like"),
    [("2026.8.2", "2026.9.5"), ("2026.9.6-1", "2026.9.6"), ("2026.10.0", "2026.9.6"), ("2027.1.3", "2026.9.6")],
)
def test_any_other_is_taken_to_behave_like_the_nearest_one_below(version, like):
    assert of(version).reload == of(like).reload
