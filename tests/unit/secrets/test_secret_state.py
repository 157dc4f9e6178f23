"""What is known of core Secrets and ConfigMaps: fingerprints, what is missing and how to heal it; a value never."""

import base64
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.api import secret as api
from roost.api.block import BadResource, parse
from roost.api.conditions import Reason
from roost.kube.client import Body
from roost.kube.records import Key
from roost.secrets.state import (
    MOST_MATCHED,
    NotAText,
    SourceState,
    checked,
    digest,
    fingerprint,
    looked_at,
    matches,
    offered,
    print_of,
    problem_of,
    text_of,
)

ROOT, OTHER_ROOT = b"r" * 32, b"s" * 32
VALUE = "sk-ant-very-secret"
SOURCE, SOULS = Key("CoreSecret", "team-a", "anthropic-v1"), Key("ConfigMap", "team-a", "souls")


def core(**values: str | bytes) -> Body:
    """A core Secret."""
    data = {
        k.replace("_", "-"): base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode()
        for k, v in values.items()
    }
    return {"metadata": {"resourceVersion": "7"}, "data": data}


def keys(*declared: dict[str, object]) -> tuple[api.Key, ...]:
    return parse(api.SecretSpec, {"source": {"secretRef": {"name": "anthropic-v1"}}, "keys": list(declared)}).keys


def seen(*declared: api.Key, **values: str | bytes) -> SourceState:
    """The core Secret as it is looked at for these keys."""
    return looked_at(ROOT, SOURCE, core(**values), [(k.in_source, k.pattern) for k in declared if k.pattern])


def said(declared: tuple[api.Key, ...], state: SourceState, source: Key = SOURCE) -> tuple[Reason, str]:
    problem = problem_of(source, declared, state)
    assert problem is not None
    return problem


# --- Fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_a_change_and_nothing_else() -> None:
    assert fingerprint(ROOT, VALUE) == fingerprint(ROOT, VALUE)
    assert fingerprint(ROOT, VALUE) != fingerprint(ROOT, VALUE + " ")
    assert re.fullmatch(r"[0-9a-f]{32}", fingerprint(ROOT, VALUE))


def test_a_fingerprint_is_keyed_so_that_nobody_can_try_out_guesses() -> None:
    assert fingerprint(ROOT, VALUE) != fingerprint(OTHER_ROOT, VALUE)
    assert digest(ROOT, {"a": "1"}) != digest(OTHER_ROOT, {"a": "1"})


def test_what_is_kept_of_a_core_secret_has_no_value() -> None:
    state = seen(api_key=VALUE)
    assert VALUE not in repr(state)
    assert base64.b64encode(VALUE.encode()).decode() not in repr(state)


def test_another_version_of_the_same_values_is_no_change() -> None:
    assert seen(a="1") == looked_at(ROOT, SOURCE, core(a="1") | {"metadata": {"resourceVersion": "8"}}, [])


# --- Which values are offered ---------------------------------------------------------------------------------------


def test_without_keys_everything_is_offered_under_its_own_name() -> None:
    assert offered((), seen(a="1", b="2")) == {"a": fingerprint(ROOT, "1"), "b": fingerprint(ROOT, "2")}


def test_keys_rename_and_leave_out() -> None:
    declared = keys({"name": "api-key", "from": "ANTHROPIC"})
    assert offered(declared, seen(ANTHROPIC="1", unrelated="2")) == {"api-key": fingerprint(ROOT, "1")}
    assert print_of(declared, seen(ANTHROPIC="1"), "ANTHROPIC") is None


def test_a_required_key_that_lacks_is_named_as_it_is_called_in_the_source() -> None:
    declared = keys({"name": "api-key", "from": "ANTHROPIC"}, {"name": "org", "required": False}, {"name": "user"})
    reason, message = said(declared, seen(user="u"))
    assert reason is Reason.SECRET_KEY_MISSING
    assert message.endswith(
        """lacks ANTHROPIC: kubectl -n team-a patch secret anthropic-v1 -p '{"stringData":{"ANTHROPIC":"VALUE"}}'"""
    )
    assert offered(declared, seen(user="u")) == {"user": fingerprint(ROOT, "u")}, "what is there serves"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x80abc", b"before\0after"])
def test_what_is_not_a_text_is_refused_by_name_and_its_content_is_not_told(content: bytes) -> None:
    """Bytes that no text has, and NUL, which neither a variable nor an argument can hold."""
    with pytest.raises(NotAText) as caught:
        text_of(SOURCE, core(blob=content), "blob")
    assert str(caught.value) == "blob"
    reason, message = said(keys({"name": "cert", "from": "blob"}), seen(blob=content, user="u"))
    assert reason is Reason.SECRET_KEY_INVALID
    assert 'key "blob" of core Secret "anthropic-v1" is not UTF-8 text' in message
    assert offered((), seen(blob=content, user="u")) == {"user": fingerprint(ROOT, "u")}


def test_a_binary_key_that_is_not_on_offer_is_in_nobodys_way() -> None:
    assert problem_of(SOURCE, keys({"name": "user"}), seen(user="u", blob=b"\xff")) is None


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), TEXTS))
def test_any_text_comes_out_as_it_went_in(values: dict[str, str]) -> None:
    body = core(**values)
    assert {key: text_of(SOURCE, body, key) for key in values} == values
    assert looked_at(ROOT, SOURCE, body, []).prints == {k: fingerprint(ROOT, v) for k, v in values.items()}


def test_a_whole_config_map_is_the_json_of_its_data_in_one_order() -> None:
    one, other = ({"data": data, "binaryData": {"b": "AA=="}} for data in ({"x": "1", "a": "2"}, {"a": "2", "x": "1"}))
    assert text_of(SOULS, one, "") == text_of(SOULS, other, "") == '{"a":"2","x":"1"}'
    assert looked_at(ROOT, SOULS, one, []).prints.keys() == {"", "a", "x"}
    assert said(keys({"name": "b"}), looked_at(ROOT, SOULS, one, []), SOULS)[0] is Reason.SECRET_KEY_INVALID
    assert problem_of(SOULS, (), looked_at(ROOT, SOULS, one, [])) is None


# --- Missing --------------------------------------------------------------------------------------------------------


def test_what_is_absent_is_named_with_the_command_that_makes_it() -> None:
    gone, declared = SourceState(absent=True), keys({"name": "a", "from": "A"}, {"name": "b", "required": False})
    assert said(declared, gone) == (
        Reason.SECRET_MISSING,
        'core Secret "anthropic-v1" not found in namespace "team-a": '
        "kubectl -n team-a create secret generic anthropic-v1 --from-literal=A=VALUE",
    )
    assert said((), gone)[1].endswith("--from-literal=KEY=VALUE")
    assert said((), gone, SOULS)[1].endswith("create configmap souls --from-file=DIRECTORY")
    assert said(keys({"name": "a"}), gone, SOULS)[0] is Reason.CONFIG_MAP_MISSING


def test_what_may_not_be_read_is_said_with_the_right_that_lacks() -> None:
    refused = SourceState(refused="User roost cannot get it")
    assert said((), refused) == (
        Reason.SECRET_FORBIDDEN,
        'core Secret "anthropic-v1" can not be read: User roost cannot get it; grant the operator get on secrets',
    )
    assert said((), refused, SOULS)[1].endswith("grant the operator get on configmaps")


# --- Patterns -------------------------------------------------------------------------------------------------------


def test_a_value_that_does_not_match_is_not_on_offer_and_not_shown() -> None:
    declared = keys({"name": "api-key", "from": "A", "pattern": "^sk-ant-"}, {"name": "user"})
    good, bad = seen(*declared, A=VALUE, user="u"), seen(*declared, A="hunter2", user="u")
    assert problem_of(SOURCE, declared, good) is None
    reason, message = said(declared, bad)
    assert reason is Reason.SECRET_KEY_INVALID
    assert 'key "A" of core Secret "anthropic-v1"' in message
    assert "^sk-ant-" in message
    assert "hunter2" not in message
    assert offered(declared, bad).keys() == {"user"}


def test_a_pattern_that_was_not_asked_for_yet_is_not_taken_for_met() -> None:
    declared = keys({"name": "api-key", "pattern": "^sk-"})
    state = seen(api_key=VALUE)
    assert not checked(declared, state)
    assert print_of(declared, state, "api-key") is None
    assert checked(declared, seen(*declared)), "what lacks the key has nothing to ask"
    assert checked(declared, SourceState(absent=True))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^sk-ant-", "sk-ant-x", "x sk-ant-"),
        (r"^[0-9]{6,}:[A-Za-z0-9_-]{30,}$", "123456:" + "a" * 35, "123456:short"),
        ("^(sk|pk)-", "pk-1", "rk-1"),
        ("^https?://", "http://x", "ftp://x"),
        ("[A-Z]{4}", "abcABCDabc", "abcd"),
        (r"\.example\.com$", "a.example.com", "a.example.com.org"),
        ("^-----BEGIN .* PRIVATE KEY-----", "-----BEGIN EC PRIVATE KEY-----\n…", "BEGIN"),
    ],
)
def test_patterns_that_people_write_are_taken_and_mean_what_they_say(pattern: str, good: str, bad: str) -> None:
    assert keys({"name": "k", "pattern": pattern})[0].pattern == pattern
    assert matches(pattern, good)
    assert not matches(pattern, bad)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "^(a|b)*",
        "^(a(b))",
        "a+",
        "^a+b+c+",
        "^(a|aa)(a|aa)(a|aa)",
        r"^(a)\1",
        "^a++",
        "^a*?",
        "x|y",
        "^[a-z",
        "",
    ],
)
def test_patterns_that_could_take_for_ever_or_are_none_are_refused(pattern: str) -> None:
    with pytest.raises(BadResource, match="pattern"):
        keys({"name": "k", "pattern": pattern})


@given(st.from_regex(api._PATTERN, fullmatch=True).filter(lambda p: 0 < len(p) <= 128), st.sampled_from("a0-. !"))
def test_whatever_pattern_is_taken_is_decided_soon(pattern: str, letter: str) -> None:
    began = time.process_time()
    matches(pattern, letter * MOST_MATCHED)
    assert time.process_time() - began < 1.0


def test_a_pattern_that_only_looks_like_one_is_met_by_nothing() -> None:
    assert not matches("[z-a]", "a")


def test_a_value_that_is_too_long_for_a_pattern_does_not_match() -> None:
    assert matches("^a", "a" * MOST_MATCHED)
    assert not matches("^a", "a" * (MOST_MATCHED + 1))
