"""What is known of Secrets: versions by keyed fingerprint, what is missing and how to heal it; a value never."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.api.block import parse
from roost.api.conditions import Reason
from roost.api.secret import SecretSpec
from roost.kube.records import Key
from roost.secrets.state import NotAText, Ref, Resolution, SecretState, SecretTable, fingerprint, values_of

ROOT, OTHER_ROOT = b"r" * 32, b"s" * 32
VALUE = "sk-ant-very-secret"
ADA, GRACE = Key("Agent", "team-a", "ada"), Key("Agent", "team-a", "grace")
API_KEY = Ref("anthropic", "api-key")


def encoded(**values: str | bytes) -> dict[str, str]:
    """The `data` of a core Secret."""
    return {
        k.replace("_", "-"): base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode()
        for k, v in values.items()
    }


def spec(*keys: dict[str, object]) -> SecretSpec:
    return parse(SecretSpec, {"source": {"secretRef": {"name": "anthropic-v1"}}, "keys": list(keys)})


def state(version: int = 1, **values: str) -> SecretState:
    return SecretState(version, {k.replace("_", "-"): fingerprint(ROOT, v) for k, v in values.items()})


def resolved(table: SecretTable, *refs: Ref, exists: set[str] | None = None) -> Resolution:
    return table.resolve("team-a", refs, {"anthropic"} if exists is None else exists)


# --- Fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_a_change_and_nothing_else() -> None:
    assert fingerprint(ROOT, VALUE) == fingerprint(ROOT, VALUE)
    assert fingerprint(ROOT, VALUE) != fingerprint(ROOT, VALUE + " ")
    assert re.fullmatch(r"[0-9a-f]{32}", fingerprint(ROOT, VALUE))


def test_a_fingerprint_is_keyed_so_that_nobody_can_try_out_guesses() -> None:
    assert fingerprint(ROOT, VALUE) != fingerprint(OTHER_ROOT, VALUE)


# --- Which values are offered ---------------------------------------------------------------------------------------


def test_without_keys_everything_is_offered_under_its_own_name() -> None:
    assert values_of(spec(), encoded(a="1", b="2")) == ({"a": "1", "b": "2"}, [])


def test_keys_rename_and_leave_out() -> None:
    data = encoded(ANTHROPIC="1", unrelated="2")
    assert values_of(spec({"name": "api-key", "from": "ANTHROPIC"}), data) == ({"api-key": "1"}, [])


def test_a_required_key_that_lacks_is_named_as_it_is_called_in_the_source() -> None:
    keys = spec({"name": "api-key", "from": "ANTHROPIC"}, {"name": "org", "required": False}, {"name": "user"})
    assert values_of(keys, encoded(user="u")) == ({"user": "u"}, ["ANTHROPIC"])


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x80abc", b"before\0after"])
def test_what_is_not_a_text_is_refused_by_name_and_its_content_is_not_told(content: bytes) -> None:
    """Bytes that no text has, and NUL, which neither a variable nor an argument can hold."""
    with pytest.raises(NotAText) as caught:
        values_of(spec({"name": "cert", "from": "blob"}), encoded(blob=content))
    assert str(caught.value) == "blob"


def test_a_binary_key_that_is_not_on_offer_is_in_nobodys_way() -> None:
    assert values_of(spec({"name": "user"}), encoded(user="u", blob=b"\xff")) == ({"user": "u"}, [])


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), TEXTS))
def test_any_text_comes_out_as_it_went_in(values: dict[str, str]) -> None:
    assert values_of(spec(), encoded(**values)) == (values, [])


# --- What an Agent's references resolve to --------------------------------------------------------------------------


def test_before_a_look_nothing_is_known_and_nothing_is_called_missing() -> None:
    answer = resolved(SecretTable(), API_KEY)
    assert not answer.known
    assert answer.missing == ()


def test_an_agent_without_references_needs_nothing() -> None:
    assert resolved(SecretTable()) == Resolution(known=True)


def test_what_is_found_comes_with_its_version_and_fingerprint() -> None:
    table = SecretTable(states={("team-a", "anthropic"): state(3, api_key=VALUE)})
    assert resolved(table, API_KEY, API_KEY) == Resolution(
        known=True, versions=(("anthropic", 3),), fingerprints=(("anthropic/api-key", fingerprint(ROOT, VALUE)),)
    )


def test_a_secret_that_is_not_declared_is_missing_with_the_command_that_makes_it() -> None:
    answer = resolved(SecretTable(), API_KEY, exists=set())
    assert answer.known
    assert answer.missing_reason is Reason.SECRET_MISSING
    [sentence] = answer.missing
    assert 'secrets.roost.dev "anthropic" not found in namespace "team-a"' in sentence
    assert "kubectl -n team-a create secret generic anthropic --from-literal=api-key=VALUE" in sentence


def test_a_secret_of_the_same_name_in_another_namespace_does_not_count() -> None:
    table = SecretTable(states={("team-b", "anthropic"): state(api_key=VALUE)})
    assert not resolved(table, API_KEY).known
    assert resolved(table, API_KEY, exists=set()).missing


def test_a_key_that_is_not_on_offer_is_missing_and_those_on_offer_are_named() -> None:
    table = SecretTable(states={("team-a", "anthropic"): state(token="t", user="u")})
    answer = resolved(table, API_KEY)
    assert answer.missing_reason is Reason.SECRET_KEY_MISSING
    assert 'has no key "api-key" (it has: token, user)' in answer.missing[0]


def test_the_secrets_own_trouble_is_told_once_however_many_keys_are_wanted() -> None:
    problem = 'core Secret "anthropic-v1" not found in namespace "team-a": kubectl …'
    table = SecretTable(states={("team-a", "anthropic"): SecretState(2, {}, problem, Reason.SECRET_MISSING)})
    answer = resolved(table, API_KEY, Ref("anthropic", "other"))
    assert answer.missing == (problem,)
    assert answer.missing_reason is Reason.SECRET_MISSING


def test_a_key_that_is_there_serves_though_another_required_one_lacks() -> None:
    half = SecretState(2, {"api-key": fingerprint(ROOT, VALUE)}, "lacks user", Reason.SECRET_KEY_MISSING)
    table = SecretTable(states={("team-a", "anthropic"): half})
    assert resolved(table, API_KEY).missing == ()
    assert resolved(table, API_KEY, Ref("anthropic", "user")).missing == ("lacks user",)


# --- Who uses it ----------------------------------------------------------------------------------------------------


def test_those_who_use_a_secret_are_known_until_they_refer_to_it_no_more() -> None:
    table, name = SecretTable(), ("team-a", "anthropic")
    table.uses(ADA, [API_KEY, Ref("anthropic", "user"), Ref("telegram", "token")])
    table.uses(GRACE, [API_KEY])
    assert table.users[name] == {ADA, GRACE}
    table.uses(ADA, [Ref("telegram", "token")])
    assert table.users[name] == {GRACE}
    table.uses(GRACE, [])
    assert name not in table.users
    assert table.users == {("team-a", "telegram"): {ADA}}


@given(
    st.lists(st.tuples(st.sampled_from([ADA, GRACE]), st.sets(st.sampled_from(["a", "b", "c"])))),
)
def test_users_are_always_exactly_those_whose_last_references_name_it(
    history: list[tuple[Key, set[str]]],
) -> None:
    table, last = SecretTable(), {}
    for agent, names in history:
        table.uses(agent, [Ref(name, "key") for name in names])
        last[agent] = names
    expected: dict[tuple[str, str], set[Key]] = {}
    for agent, names in last.items():
        for name in names:
            expected.setdefault(("team-a", name), set()).add(agent)
    assert table.users == expected
