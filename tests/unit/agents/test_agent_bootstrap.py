"""How a machine comes to its token: stored at Fly, or had for the one that Fly makes of it; and from one to another."""

from dataclasses import replace
from typing import Any

import pytest
from test_agent_machine_config import CONFIG
from world import (
    SHARED_APP,
    Fate,
    Life,
    Story,
    agent,
    apply_again,
    crash,
    delete,
    edit,
    names_of,
    settled,
    shared,
    view,
)

from roost.agents import machine_config
from roost.agents.view import Settled
from roost.api.agent import Phase

ADA = names_of("ada")
OWN_SECRET = f"ROOST_TOKEN_{ADA.digest[:16].upper()}"


def prove(life: Life) -> Life:
    return edit(life, identity={"bootstrap": "FlyOidc"})


def unprove(life: Life) -> Life:
    return edit(life, identity={"bootstrap": "Token"})


def config_of(life: Life) -> dict[str, Any]:
    return machine_config.render(view(life), "vol_1")


def runs(story: Story) -> bool:
    step = story.run()
    return isinstance(step, Settled) and step.phase is Phase.RUNNING


def mark(story: Story) -> str:
    [machine] = story.life.cloud.my_machines()
    return dict(machine.metadata)["roost_token_epoch"]


def stored(story: Story) -> set[str]:
    return {name for _, name in story.life.cloud.secrets}


def test_nothing_is_stored_for_it_and_one_call_less_is_made() -> None:
    story = Story(prove(agent()))
    assert runs(story)
    assert story.calls == ["StoreFinalizer", "CreateApp", "CreateVolume", "CreateMachine", "AwaitMachine"]
    assert stored(story) == set()
    story.quiet()


@pytest.mark.parametrize("life", [agent(), shared()], ids=["own app", "shared app"])
def test_its_machine_is_told_so_and_sees_no_secret_of_the_app(life: Life) -> None:
    config = config_of(prove(life))
    CONFIG.validate(config)
    assert config["env"]["ROOST_BOOTSTRAP"] == "FlyOidc"
    assert config["processes"] == [{"ignore_app_secrets": True}]
    assert "ROOST_BOOTSTRAP" not in config_of(life)["env"]


def test_a_config_with_a_token_is_as_it_was_before_there_was_a_choice() -> None:
    """An upgrade restarts nobody."""
    config = config_of(agent(identity={"token_epoch": 3}))
    assert config["metadata"]["roost_config_hash"] == "2:116503dc5b2a:d480c159e3c0"
    assert config["metadata"]["roost_token_epoch"] == "3"
    assert "processes" not in config


def test_a_token_is_given_up_by_an_update_and_only_then_taken_away() -> None:
    story = settled()
    assert stored(story) == {"AS_HEARTBEAT_TOKEN"}
    story.life = prove(story.life)
    assert runs(story)
    assert story.calls == ["UpdateMachine", "AwaitMachine", "ForgetToken", "StampMachine"]
    assert stored(story) == set()
    assert mark(story) == "oidc"
    story.quiet()


def test_a_token_is_stored_again_before_the_machine_is_told_to_use_it() -> None:
    story = settled(prove(agent()))
    story.life = unprove(story.life)
    assert runs(story)
    assert story.calls == ["StampMachine", "SetToken", "UpdateMachine", "AwaitMachine"]
    assert stored(story) == {"AS_HEARTBEAT_TOKEN"}
    assert mark(story) == "0"
    story.quiet()


def test_a_raised_epoch_leaves_a_machine_without_a_token_alone() -> None:
    story = settled(prove(agent()))
    story.life = edit(story.life, identity={"token_epoch": 1})
    assert runs(story)
    assert story.calls == []
    assert stored(story) == set()


def test_a_changed_root_of_all_tokens_leaves_it_alone_too() -> None:
    story = settled(prove(agent()))
    seen = replace(view(story.life), token_root="root-2", token_root_changed=True)
    [machine] = seen.ours()
    assert machine_config.token(seen, machine) == ""
    assert machine_config.without_token(machine.metadata), "so it is not waited for"
    given = settled()
    assert not machine_config.without_token(view(given.life).ours()[0].metadata)
    seen = replace(view(given.life), token_root="root-2", token_root_changed=True)
    assert machine_config.token(seen, seen.ours()[0]) == "defaults"


def test_in_a_shared_app_only_its_own_secret_is_taken_away() -> None:
    life = shared()
    others = frozenset({(SHARED_APP, "DATABASE_URL")})
    story = settled(replace(life, cloud=replace(life.cloud, secrets=others)))
    assert stored(story) == {"DATABASE_URL", OWN_SECRET}
    story.life = prove(story.life)
    assert runs(story)
    assert stored(story) == {"DATABASE_URL"}
    story.life = delete(story.life)
    story.run()
    assert stored(story) == {"DATABASE_URL"}


def test_what_an_earlier_life_left_in_the_app_is_taken_away_before_the_machine_is_made() -> None:
    story = settled(agent(deletion_policy="Retain"))
    story.life = delete(story.life)
    story.run()
    assert stored(story) == {"AS_HEARTBEAT_TOKEN", "ROOST_RETAINED"}
    story.life = prove(apply_again(story.life, "uid-2"))
    story.calls.clear()
    assert runs(story)
    assert story.calls.index("ForgetToken") < story.calls.index("CreateMachine")
    assert stored(story) == set(), "it is retained no more"
    assert mark(story) == "oidc"


def test_a_token_whose_storing_was_not_heard_of_is_taken_away_all_the_same() -> None:
    story = Story(agent()).when("SetToken", Fate.LOST).until("SetToken")
    story.step()
    story.life = prove(story.life)
    assert runs(story)
    assert stored(story) == set()


@pytest.mark.parametrize("lost", ["ForgetToken", "StampMachine", "UpdateMachine"])
def test_the_operator_may_die_at_any_call_of_the_change(lost: str) -> None:
    story = settled()
    story.life = prove(story.life)
    story.until(lost).step()
    story.life = crash(story.life)
    assert runs(story)
    assert stored(story) == set()
    assert mark(story) == "oidc"
    story.quiet()


def test_the_operator_may_die_between_the_storing_of_a_token_and_the_change_of_mind() -> None:
    story = settled(prove(agent()))
    story.life = unprove(story.life)
    story.until("UpdateMachine")
    story.life = prove(crash(story.life))
    assert runs(story)
    assert stored(story) == set()


def test_a_stopped_one_changes_when_it_runs_again() -> None:
    story = settled()
    story.life = prove(edit(story.life, desired_state="Stopped"))
    story.run()
    assert stored(story) == {"AS_HEARTBEAT_TOKEN"}, "the machine that is kept still needs it"
    story.life = edit(story.life, desired_state="Running")
    assert runs(story)
    assert stored(story) == set()


def test_a_lost_answer_to_the_taking_away_is_asked_for_again_and_a_token_wanted_again_is_stored() -> None:
    story = settled()
    story.life = prove(story.life)
    story.when("ForgetToken", Fate.LOST).until("ForgetToken").step()
    assert stored(story) == set()
    story.life = unprove(story.life)
    assert runs(story)
    assert stored(story) == {"AS_HEARTBEAT_TOKEN"}
