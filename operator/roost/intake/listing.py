"""Whole listings of our kinds: once at the start, and one now and then to see whether the watch told us everything."""

from collections.abc import AsyncIterator

from roost.kube.client import Body, Gone, Kube, collection

PAGE = "500"
ATTEMPTS = 3
KINDS = ("Secret", "Fleet", "Agent")
"""Secrets first: an Agent that is looked at finds its Secrets in the cache."""


async def objects(kube: Kube, kind: str) -> AsyncIterator[Body]:
    """Every object of a kind, page by page; some of them twice when a page expired and the listing began anew.

    Raises:
        KubeError: the list can't be read to its end.
    """
    token, expired = "", 0
    while True:
        try:
            page = await kube.get(collection(kind, ""), limit=PAGE, **({"continue": token} if token else {}))
        except Gone as error:
            expired += 1
            if error.status != 410 or expired >= ATTEMPTS:
                raise
            token = ""
            continue
        for item in page["items"]:
            yield {"kind": kind} | item
        token = page["metadata"].get("continue", "")
        if not token:
            return
