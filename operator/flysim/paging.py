"""Lists in pages, with cursors that say where the last page ended.

A cursor holds the sort key of the last row, so rows that come and go between pages are never skipped.
"""

import base64
import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from flysim import errors, requests
from flysim.requests import Query

_LIFE = 30 * 60.0
Key = tuple[float, str]
_Row = TypeVar("_Row")


def page(
    rows: Iterable[_Row], key: Callable[[_Row], Key], query: Query, *, now: float, most: int, always: bool = False
) -> tuple[list[_Row], str]:
    """The rows of one page in the order of their keys, and the cursor of the next one ("" after the last).

    Without `limit` in the query there is one page with everything, unless paging is `always` on.

    Raises:
        Refusal: 400, the limit is outside 1..`most`, or the cursor is none of ours or older than 30 minutes.
    """
    ordered = sorted(rows, key=key)
    limit = requests.number(query, "limit")
    if limit is not None and not 1 <= limit <= most:
        raise errors.invalid(f"limit: value must be inside range [1, {most}]")
    if cursor := requests.last(query, "cursor"):
        after = _open(cursor, now)
        ordered = [row for row in ordered if key(row) > after]
    size = limit if limit is not None else most if always or cursor else len(ordered)
    shown = ordered[:size]
    return shown, _seal(key(shown[-1]), now) if len(ordered) > size else ""


def _seal(key: Key, now: float) -> str:
    return base64.urlsafe_b64encode(json.dumps([now, *key]).encode()).decode()


def _open(cursor: str, now: float) -> Key:
    try:
        issued, moment, name = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        age, after = now - float(issued), (float(moment), str(name))
    except (ValueError, TypeError) as error:
        raise errors.invalid("cursor is not valid") from error
    if age > _LIFE:
        raise errors.invalid("cursor has expired")
    return after
