"""The harness of the figures on the real stack still works, with a handful of agents."""

from dataclasses import replace

import endpoint_bench as bench


def test_changes_of_specs_and_secrets_reach_agents_on_the_real_stack() -> None:
    found = bench.run(["change"], replace(bench.Size(), fleet=3, changes=2))
    assert (found["change_agents"], found["changes"]) == (3, 2)
    assert found["change_p99_ms"] is not None
    assert (found["change_lost"], found["change_refused"]) == (0, {})
