"""The short form of `make faults-process`: the kinds of process faults once each, with real processes."""

import signal
from collections.abc import Iterator

import pytest
from process_bed import Bed, bed
from process_outages import (
    api_server_away,
    clock_jumps,
    restored_backup,
    unrelated_clusters,
    watches_break,
)
from process_rivals import TIMING, RivalAssassin, ended, paused, two_replicas
from process_schedules import SHORT_LEASE, Account, Strike, killed_at_each_change, leave, random_life

FAILOVER_SECONDS = 2.0


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with bed(tmp_path_factory.mktemp("roost-faults"), say=print) as made:
        yield made


@pytest.fixture
def account(here: Bed) -> Iterator[Account]:
    """An account of one test; what the records tell afterwards of all that happened on this bed must be sound."""
    account = Account(print)
    here.end_operators()
    yield account
    leave(here)
    account.judge(here)


def test_an_operator_killed_at_any_change_loses_and_doubles_nothing(here: Bed, account: Account) -> None:
    here.start(leaderElection=SHORT_LEASE)
    killed_at_each_change(here, account, ["before"])
    assert account.converged == 9


def test_a_leader_that_was_paused_past_its_lease_does_nothing_more(here: Bed, account: Account) -> None:
    two_replicas(here, TIMING)
    paused(here, account, "in an update", held=Strike("before", op="update_machine", hold=TIMING["leaseSeconds"] + 2))
    ended(here, account, signal.SIGTERM)
    assert max(account.failover) <= FAILOVER_SECONDS


def test_random_hits_on_two_replicas_lose_and_double_nothing(here: Bed, account: Account) -> None:
    two_replicas(here, SHORT_LEASE)
    random_life(here, account, "short/1", RivalAssassin(here))
    assert account.schedules > 0


def test_an_outage_of_the_api_server_heals(here: Bed, account: Account) -> None:
    here.start(leaderElection=SHORT_LEASE)
    api_server_away(here, account, 1)


def test_a_clock_that_jumps_changes_nothing(here: Bed, account: Account) -> None:
    clock_jumps(here, account, 2)


def test_watches_that_break_while_agents_come_and_go_lose_nothing(here: Bed, account: Account) -> None:
    watches_break(here, account, 1)


def test_two_clusters_on_one_org_leave_each_other_alone(here: Bed, account: Account) -> None:
    with bed(here.folder / "other", fly_of=here) as other:
        unrelated_clusters(here, other, account)
        restored_backup(here, other, account)
