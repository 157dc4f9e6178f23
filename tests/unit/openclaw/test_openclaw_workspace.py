"""A bundle becomes files: each in its place, none cut short, none over what the agent made its own."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openclaw_bundles import bundle, rendered
from roost_agent.contract import ConfigBundle
from roost_agent.runtime import Layout, Refused
from roost_agent.runtime.openclaw.workspace import layout

LONG = "x" * 19_000


def laid_out(one: ConfigBundle) -> Layout:
    return layout(one, rendered(one))


def contents(files) -> dict[str, str]:
    return {file.path: file.content for file in files}


def test_the_configuration_is_a_file_for_its_owner_alone():
    one = bundle()
    file = next(f for f in laid_out(one).files if f.path == "openclaw/openclaw.json")
    assert file.mode == "0600"
    assert json.loads(file.content) == rendered(one)


def test_the_soul_always_stands_as_it_is_declared():
    found = laid_out(bundle(soul="Be kind. 🙂"))
    assert contents(found.files)["workspace/SOUL.md"] == "Be kind. 🙂"
    assert "workspace/SOUL.md" not in contents(found.seeds)


def test_a_seed_is_the_agents_own_and_what_is_overwritten_never_is():
    files = [
        {"path": "AGENTS.md", "content": "a", "policy": "Seed"},
        {"path": "b/c.md", "content": "b", "policy": "Overwrite"},
    ]
    found = laid_out(bundle(workspace=files))
    assert contents(found.seeds)["workspace/AGENTS.md"] == "a"
    assert contents(found.files)["workspace/b/c.md"] == "b"


def test_an_agent_begins_with_a_name_and_rules_but_without_a_ritual():
    found = contents(laid_out(bundle()).seeds)
    assert set(found) == {f"workspace/{name}.md" for name in ("AGENTS", "IDENTITY", "SOUL", "USER")}
    assert "ada" in found["workspace/IDENTITY.md"]


def test_what_the_bundle_brings_is_not_seeded_over():
    files = [{"path": "USER.md", "content": "u", "policy": "Overwrite"}]
    assert "workspace/USER.md" not in contents(laid_out(bundle(workspace=files)).seeds)


def test_every_directory_that_openclaw_needs_is_made():
    assert {"openclaw", "workspace", "home", "tmp"} <= set(laid_out(bundle()).directories)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"soul": "x" * 10_000_000}, "soul has 10000000 characters, of which OpenClaw reads 20000"),
        ({"soul": "x" * 20_001}, "bootstrapMaxChars"),
        ({"soul": "🙂" * 10_001}, "soul has 20002 characters"),
        ({"workspace": [{"path": "USER.md", "content": "x" * 4_001}]}, "workspace USER.md has 4001 characters"),
        (
            {
                "soul": LONG,
                "workspace": [{"path": f"{n}.md", "content": LONG} for n in ("AGENTS", "MEMORY", "IDENTITY")],
            },
            "have 76000 characters",
        ),
        ({"workspace": [{"path": "SOUL.md", "content": ""}], "soul": "x"}, "workspace SOUL.md is what soul"),
        ({"workspace": [{"path": "skills/x/SKILL.md", "content": ""}]}, "workspace skills/x/SKILL.md lies among"),
        ({"workspace": [{"path": "a", "content": ""}, {"path": "./a", "content": ""}]}, "workspace/a is written twice"),
        ({"workspace": [{"path": "a", "content": ""}, {"path": "a/b", "content": ""}]}, "workspace/a is to be a file"),
        ({"workspace": [{"path": "a", "content": "", "policy": "Sometimes"}]}, "workspace a has a policy"),
        ({"files": [{"path": "openclaw/openclaw.json", "content": "{}"}]}, "use runtime.config"),
        ({"files": [{"path": "openclaw/./openclaw.json.bak", "content": "{}"}]}, "use runtime.config"),
        ({"files": [{"path": "workspace/skills/x", "content": ""}]}, "declare it in skills"),
        ({"files": [{"path": "tmp", "content": ""}]}, "files tmp is a directory"),
        ({"files": [{"path": "workspace/SOUL.md", "content": ""}], "soul": "x"}, "workspace/SOUL.md is written twice"),
    ],
)
def test_what_openclaw_would_misread_or_a_path_spoil_is_refused(changes, sentence):
    with pytest.raises(Refused) as refused:
        laid_out(bundle(**changes))
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_longer_soul_is_taken_where_openclaw_is_told_to_read_it():
    overlay = {"agents": {"defaults": {"bootstrapMaxChars": 30_000}}}
    found = laid_out(bundle(soul="x" * 25_000, openclaw={"overlay": overlay}))
    assert len(contents(found.files)["workspace/SOUL.md"]) == 25_000


def test_a_text_that_is_not_read_each_time_may_be_long():
    found = laid_out(bundle(workspace=[{"path": "notes/long.md", "content": "x" * 100_000}]))
    assert "workspace/notes/long.md" in contents(found.seeds)


paths = st.lists(st.sampled_from(["a", "b", "skills", "SOUL.md", ".", "openclaw", "workspace"]), min_size=1, max_size=4)


@settings(deadline=None)
@given(
    workspace=st.lists(st.tuples(paths, st.sampled_from(["Seed", "Overwrite"])), max_size=4),
    files=st.lists(paths, max_size=3),
    soul=st.none() | st.just("x"),
)
def test_no_two_files_have_one_place_and_all_stay_in_theirs(workspace, files, soul):
    try:
        one = bundle(
            workspace=[{"path": "/".join(p), "content": "", "policy": policy} for p, policy in workspace],
            files=[{"path": "/".join(p), "content": ""} for p in files],
            soul=soul,
        )
        found = laid_out(one)
    except (Refused, ValueError):
        return
    places = [file.path for file in (*found.files, *found.seeds)]
    assert len(places) == len(set(places))
    assert not any(one != other and other.startswith(f"{one}/") for one in places for other in places)
    assert not any(part in ("..", ".", "") for place in places for part in place.split("/"))
    assert {place for place in places if place.startswith("workspace/skills")} == set()
