"""Skills are taken whole and as declared, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from openclaw_bundles import bundle, rendered, sha256
from roost_agent.runtime import Layout, Refused
from roost_agent.runtime.openclaw.workspace import layout

SAMPLE = json.loads((Path(__file__).parent / "data" / "skills-manifest-sample.json").read_text())
NEGATIVE = [n for n in SAMPLE["negative"] if n["why"] != "esm without index.mjs"]
"""A bundle names no module format: what a skill runs stands in its SKILL.md."""
GREETER = SAMPLE["manifest"]["skills"][0]


def file(path: str, content: str = "x") -> dict[str, str]:
    return {"path": path, "content": content, "sha256": sha256(content)}


def skill(**changes: Any) -> dict[str, Any]:
    return {"name": "greeter", "version": "1.0.0", "sha256": None, "files": [file("SKILL.md")], **changes}


def laid_out(*items: dict[str, Any], **skills: Any) -> Layout:
    one = bundle(skills={"items": list(items), **skills})
    return layout(one, rendered(one))


def test_a_skill_of_the_published_manifest_lands_in_its_directory_with_its_own_checksum():
    found = laid_out(skill(sha256=GREETER["sha256"], files=GREETER["files"]))
    places = {f.path: f.content for f in found.files}
    assert places["workspace/skills/greeter/SKILL.md"] == "# Greeter\n\nSay hello.\n"
    assert "workspace/skills/greeter/scripts/index.mjs" in places


def test_the_order_in_which_files_come_does_not_change_the_checksum():
    laid_out(skill(sha256=GREETER["sha256"], files=list(reversed(GREETER["files"]))))


def test_what_is_not_listed_goes_unless_it_may_stay():
    assert laid_out(skill()).closed == ["workspace/skills"]
    assert laid_out().closed == ["workspace/skills"]
    assert laid_out(skill(), policy="Merge").closed == ["workspace/skills/greeter"]


@pytest.mark.parametrize("negative", NEGATIVE, ids=lambda n: n["why"])
def test_the_published_negatives_are_refused(negative):
    with pytest.raises((Refused, ValidationError)):
        laid_out(skill(files=negative["files"]))


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([skill(files=[file("README.md")])], "skills greeter has no SKILL.md"),
        ([skill(files=[file("SKILL.md"), {**file("a"), "content": "y"}])], "skills greeter a is not what its sha256"),
        ([skill(sha256="0" * 64)], "skills greeter is not what its sha256"),
        ([skill(files=[file("SKILL.md"), file("./SKILL.md")])], "two files of the same path"),
        ([skill(files=[file("SKILL.md"), file("a"), file("a/b")])], "is to be a file, and the directory of"),
        ([skill(files=[file("SKILL.md"), file("x/.af-global-skill.json")])], "which is reserved"),
        ([skill(files=[file("SKILL.md", "x" * 200_001)])], "200000 are the most"),
        ([skill(), skill()], "skills greeter is there twice"),
        ([skill(name="../x")], "'../x' is no name of a skill"),
        ([skill(name="a/b")], "'a/b' is no name of a skill"),
        ([skill(name="A")], "'A' is no name of a skill"),
    ],
)
def test_a_skill_that_is_not_whole_is_refused(items, sentence):
    with pytest.raises(Refused) as refused:
        laid_out(*items)
    assert sentence in str(refused.value)


def test_words_of_a_newer_contract_are_refused():
    with pytest.raises(Refused, match=r"^skills\.policy"):
        laid_out(policy="Sometimes")
    with pytest.raises(Refused, match=r"^skills\.layoutVersion v9"):
        laid_out(layoutVersion="v9")
