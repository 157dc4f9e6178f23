"""Takes secrets out of lines before they leave: known values in all their spellings, and whatever looks like one.

A known value of at least 8 characters is found as it is, URL-encoded, escaped as in JSON, in hex and in base64 at each
of its three alignments, also in the middle of something longer that was encoded. Of a value with several lines each
line counts as one, since lines are what is looked at.

It can't find what is spread over two lines, wrapped, compressed, encoded in another way or twice in these, cut down
to a part of it, or shorter than 8 characters. Pure, but for asking what the values are now.
"""

import base64
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["MARK", "Redactor", "compiled", "redacted"]

MARK = "***"
_LEAST = 8
_PIECE = 32
"""Characters that are looked for as one; a long value is found piece by piece, which keeps the expression shallow. In
base64 a character may be left between two pieces: it has bits of both."""
_NEVER_ESCAPED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_JSON_SHORT = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_LOOKS_SECRET = re.compile(
    "|".join(
        (
            r"sk-(?<=\bsk-)[A-Za-z0-9_-]{16,}",  # Anthropic, OpenAI, OpenRouter, DeepSeek
            r"xai-[A-Za-z0-9_-]{20,}",
            r"gsk_[A-Za-z0-9_-]{20,}",  # Groq
            r"AIza[A-Za-z0-9_-]{20,}",  # Google
            r":(?<=\d{6}:)[A-Za-z0-9_-]{30,}",  # a bot of Telegram; the number before it is its public id
            r"xox[a-z]-[A-Za-z0-9-]{8,}",  # Slack
            r"xapp-[A-Za-z0-9-]{8,}",
            *(
                rf"{first}(?<=\b.)[A-Za-z0-9_-]{{22,27}}\.[A-Za-z0-9_-]{{6}}\.[A-Za-z0-9_-]{{27,}}" for first in "MNO"
            ),  # Discord
            r"gh[oprsu]_[A-Za-z0-9_]{20,}",
            r"github_pat_[A-Za-z0-9_]{20,}",
            r"fm[0-9][a-z]{0,4}_[A-Za-z0-9+/=_-]{16,}",  # Fly
            r"eyJ(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # a JWT (RFC 7519)
            r"Bearer\s+[A-Za-z0-9._~+/=-]{16,}",  # RFC 6750
            r"bearer\s+[A-Za-z0-9._~+/=-]{16,}",
        )
    )
)
"""Each begins with a character of its own, or the search could not leap to the places where one may be."""

_Word = Sequence[str]
"""What is looked for: of each character an expression of its spellings."""
_Tree = dict[str, Any]


class Redactor:
    """Redacts with the values of now, and those before the last change, which a process may still hold.

    Args:
        secrets: What the values are now; asked for every text. Only another set of them costs a compilation.
    """

    def __init__(self, secrets: Callable[[], Iterable[str]]) -> None:
        self._secrets = secrets
        self._known: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def __call__(self, text: str) -> str:
        known = frozenset(self._secrets())
        if known != self._known:
            self._pattern = compiled(known | self._known)
            self._known = known
        return redacted(text, self._pattern)


def compiled(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """The expression that finds these values; None when there is nothing to find."""
    words = [word for piece in {p for secret in secrets for p in _pieces(secret)} for word in _spellings(piece)]
    return re.compile("|".join(_branches(_tree(words)))) if words else None


def redacted(text: str, known: re.Pattern[str] | None) -> str:
    """The text with a mark for each known value, also where two overlap, and for all that looks like a secret.

    Takes time in proportion to the text, whatever it says: who writes it may be hostile.
    """
    kept: list[str] = []
    end = at = 0
    while known is not None and (found := known.search(text, at)) is not None:
        start, at = found.start(), found.start() + 1
        if not kept or start > end:
            kept.append(text[end:start])
        end = max(end, found.end())
    return _LOOKS_SECRET.sub(MARK, MARK.join([*kept, text[end:]]))


def _pieces(secret: str) -> Iterator[str]:
    for line in map(str.strip, secret.splitlines()):
        ends = [*range(_PIECE, len(line) - _LEAST + 1, _PIECE), len(line)]
        if len(line) >= _LEAST:
            yield from (line[a:b] for a, b in itertools.pairwise([0, *ends]))


def _spellings(piece: str) -> Iterator[_Word]:
    yield [_spelled(c) for c in re.findall(r"\\+|.", piece, re.DOTALL)]
    octets = piece.encode(errors="surrogatepass")
    yield from (octets.hex(), octets.hex().upper())
    for before in range(3):
        text = base64.b64encode(bytes(before) + octets).decode()
        # What shares no bits with the neighbours: 6 bits a character, 8 an octet.
        own = text[-(-before * 8 // 6) : (before + len(octets)) * 8 // 6]
        yield [f"(?:{_spelled('+')}|-)" if c == "+" else f"(?:{_spelled('/')}|_)" if c == "/" else c for c in own]


def _spelled(text: str) -> str:
    r"""One character, or a run of backslashes, in a URL (RFC 3986 section 2.1) and in JSON (RFC 8259 section 7).

    In each of these also once more, as in a URL within a URL. A run is one repetition: several in a row could share
    it out among them in too many ways.
    """
    if text in _NEVER_ESCAPED:
        return re.escape(text)
    octets, units = (text.encode(form, errors="surrogatepass") for form in ("utf-8", "utf-16-be"))
    ways = [
        rf"\\{{{len(text)},{4 * len(text)}}}" if text[0] == "\\" else rf"\\{{0,3}}{re.escape(text)}",
        "".join(f"%(?:25)?(?i:{octet:02x})" for octet in octets),
        "".join(rf"\\{{1,3}}u(?i:{units[n : n + 2].hex()})" for n in range(0, len(units), 2)),
    ]
    if text == " ":
        ways.append(r"\+")
    if text in _JSON_SHORT:
        ways.append(rf"\\{{1,3}}{_JSON_SHORT[text]}")
    return f"(?:{'|'.join(ways)})"


def _tree(words: Iterable[_Word]) -> _Tree:
    """All words as one tree, so that what begins alike is tried once; an empty key is an end."""
    root: _Tree = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return root


def _branches(node: _Tree) -> list[str]:
    """An expression for each way on from here."""
    return [character + _onward(rest) for character, rest in node.items() if character]


def _onward(node: _Tree) -> str:
    """The longest first: an end comes after all that goes on."""
    further = _branches(node)
    if not further:
        return ""
    if len(further) == 1 and "" not in node:
        return further[0]
    return f"(?:{'|'.join(further)}){'?' if '' in node else ''}"
