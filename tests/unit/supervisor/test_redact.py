"""No secret leaves in a line: known values in every spelling, and what looks like one."""

import base64
import json
import re
import string
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from roost_agent.redact import MARK, Redactor, compiled, redacted

RUN = 8
"""So many characters of a secret in a row count as a part of it."""
NO_BREAKS = st.characters(exclude_categories=["Cs", "Zl", "Zp"], exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85")
KEY_LIKE = st.text(string.ascii_letters + string.digits + "-_+/=.:%\\\"'& ", min_size=RUN, max_size=90)
SECRETS = (KEY_LIKE | st.text(NO_BREAKS, min_size=RUN, max_size=50)).map(str.strip).filter(lambda s: len(s) >= RUN)
AROUND = st.text(NO_BREAKS, max_size=20)
NASTY = 'p\\\\"q%s/+ =é\U0001f511&<tail>'

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "in a URL": lambda s: quote(s, safe=""),
    "in a path": quote,
    "in a form": quote_plus,
    "by encodeURIComponent": lambda s: quote(s, safe="!'()*~"),
    "in a URL in a URL": lambda s: quote(quote(s, safe=""), safe=""),
    "in a URL, in small letters": lambda s: re.sub("%..", lambda m: m[0].lower(), quote(s, safe="")),
    "in JSON": lambda s: json.dumps(s)[1:-1],
    "in JSON with letters of all kinds": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "in JSON in JSON": lambda s: json.dumps(json.dumps(s)[1:-1])[1:-1],
    "in JSON for a page": lambda s: json.dumps(s)[1:-1].replace("<", "\\u003c").replace("&", "\\u0026"),
    "with escaped slashes": lambda s: json.dumps(s)[1:-1].replace("/", "\\/"),
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
}


def runs(text: str) -> set[str]:
    return {text[n : n + RUN] for n in range(len(text) - RUN + 1)}


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(deadline=None)
@given(secret=SECRETS, before=AROUND, after=AROUND, others=st.lists(SECRETS, max_size=2))
@example(secret=NASTY, before="key=", after=";", others=[])
@example(secret="0" * 9, before="0" * 7, after="00", others=["0" * 8, "0" * 40])
@example(secret="abcdefghijklmnopqrst", before="1234", after="5678", others=["1234abcdef", "opqrst5678"])
def test_nothing_of_a_secret_is_left_wherever_it_stands(
    spelling: str, secret: str, before: str, after: str, others: list[str]
) -> None:
    spelled = SPELLINGS[spelling](secret)
    assume(not (runs(secret) | runs(spelled)) & (runs(before) | runs(after)))
    left = redacted(before + spelled + after, compiled([secret, *others]))
    assert MARK in left
    assert not (runs(spelled) | runs(secret)) & runs(left.replace(MARK, "\n"))


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("then", [str, lambda s: quote(s, safe=""), lambda s: json.dumps(s)[1:-1].replace("/", "\\/")])
@settings(deadline=None)
@given(secret=SECRETS, before=st.binary(max_size=7), after=st.binary(max_size=7))
@example(secret="\xfb\xef\xbe\xff\xfe?>" * 9, before=b"", after=b"")
def test_nor_in_base64_of_something_longer_at_any_alignment(
    encode: Callable[[bytes], bytes], then: Callable[[str], str], secret: str, before: bytes, after: bytes
) -> None:
    octets = secret.encode()
    whole = encode(before + octets + after).decode()
    first, end = -(-len(before) * 8 // 6), (len(before) + len(octets)) * 8 // 6
    left = redacted(then(whole), compiled([secret]))
    assert MARK in left
    assert not runs(then(whole[first:end])) & runs(left)


@settings(deadline=None)
@given(st.lists(SECRETS, min_size=1, max_size=4), st.text(max_size=60))
def test_a_line_without_a_secret_is_left_as_it_is(secrets: list[str], line: str) -> None:
    assume(len(line) < RUN or not any(MARK in redacted(line, compiled([s])) for s in secrets))
    assert redacted(line, compiled(secrets)) == line


def test_a_value_of_several_lines_is_found_line_by_line_and_as_one() -> None:
    pem = "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIE\nIDlE0ZpGoWzqxVYt\n-----END KEY-----\n"
    known = compiled([pem])
    for line in pem.splitlines():
        assert redacted(f"| {line} |", known) == f"| {MARK} |"
    assert "YDK2VwBC" not in redacted(json.dumps({"key": pem}), known)
    encoded = base64.b64encode(pem.encode()).decode()
    assert not runs(encoded) & runs(redacted(encoded, known))


def test_a_value_of_any_length_is_found() -> None:
    """Also one that is longer than an expression could be deep."""
    for length in (8, 31, 32, 33, 39, 40, 41, 64, 5000):
        secret = "".join(chr(97 + n * n % 26) for n in range(length))
        assert redacted(f"<{secret}>", compiled([secret])) == f"<{MARK}>", length
        assert redacted(secret[-7:], compiled([secret])) == secret[-7:], "no piece of it is as short as a word"


def test_what_is_too_short_to_be_told_from_a_word_is_left() -> None:
    assert redacted("region iad, debug off", compiled(["iad", "off", "", "  debug  "])) == "region iad, debug off"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-api03-AbCdEf0123456789-_xyz",
        "sk-proj-AbCdEf0123456789AbCdEf",
        "xai-AbCdEf0123456789AbCdEf",
        "gsk_AbCdEf0123456789AbCdEf",
        "AIzaSyAbCdEf0123456789AbCdEf0123456789x",
        "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw",
        "xoxb-123456789012-AbCdEfGhIjKl",
        "xapp-1-A0123456789-AbCdEfGhIjKl",
        "MTAxMjM0NTY3ODkwMTIzNDU2.GabcDe.AbCdEf0123456789AbCdEf0123456789",
        "ghp_AbCdEf0123456789AbCdEf0123456789abcd",
        "github_pat_AbCdEf0123456789AbCdEf",
        "fm2_lJPECAAAAAAAAbCdEf+/0123456789==",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.AbCdEf0123456789",
    ],
)
@pytest.mark.parametrize("around", ["{}", "token={}", 'key "{}" refused', "https://example.org/{}/x", "Bearer {}"])
def test_what_looks_like_a_secret_goes_though_nobody_knows_it(secret: str, around: str) -> None:
    if secret.startswith("AAH"):
        secret = f"123456789:{secret}"
    left = redacted(around.format(secret), None)
    assert MARK in left
    assert not runs(secret.rpartition(":")[2]) & runs(left)


def test_a_bots_token_goes_from_its_address() -> None:
    url = "https://api.telegram.org/bot123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/getMe"
    assert redacted(url, None) == f"https://api.telegram.org/bot123456789{MARK}/getMe"


@pytest.mark.parametrize(
    "line",
    [
        "the bearer authentication of task-force-one failed at risk-assessment-department",
        "channels.status 61ms conn=683ef097…a3a2 id=45887ff5…9f8c",
        "2026-11-21T23:32:44.866+00:00 pid=29643 sk-short",
        "config change detected; evaluating reload (channels.telegram.botToken)",
        "agent model: anthropic/claude-sonnet-4-6 (thinking=off, fast=off)",
        '{"elapsedMs":148.736154000002,"pid":1234567:"x"}',
    ],
)
def test_what_is_none_stays(line: str) -> None:
    assert redacted(line, None) == line


def test_a_new_value_counts_at_once_and_the_one_before_until_the_next() -> None:
    """A process that was started with the old key may still print it."""
    now = ["first-secret"]
    redact = Redactor(lambda: now)
    assert redact("first-secret second-secret") == f"{MARK} second-secret"
    now[:] = ["second-secret"]
    assert redact("first-secret second-secret") == f"{MARK} {MARK}"
    assert redact("first-secret second-secret") == f"{MARK} {MARK}"


def test_the_same_values_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = []

    def counted(secrets: frozenset[str]) -> None:
        compilations.append(set(secrets))

    monkeypatch.setattr("roost_agent.redact.compiled", counted)
    redact = Redactor(lambda: iter(["first-secret"]))
    for _ in range(3):
        redact("x")
    assert compilations == [{"first-secret"}]


@pytest.mark.parametrize(
    "unit", ["x", "\\", "sk-", "eyJ", "Bearer ", " ", "M", "a.", "123456:", "%5c", "\\u005c", "0a"]
)
def test_no_line_takes_long_whatever_it_says(unit: str) -> None:
    """Who writes it may be hostile. A second is far from what it takes, and nearer than anything quadratic."""
    known = compiled(["\\" * 20 + "z", '"' * 30, "0a" * 16, "M-secret-that-is-long", NASTY])
    line = unit * (65536 // len(unit))
    began = time.process_time()
    redacted(line, known)
    assert time.process_time() - began < 1
