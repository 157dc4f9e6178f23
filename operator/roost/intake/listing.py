"""Whole listings of our kinds: once at the start, and a light one now and then for deletions nobody told us of.

kopf never reports a deletion that fell into a gap of its watch; so names and uids are listed every few minutes and
what is in the cache but not in the list is looked at by name.
"""

from collections.abc import AsyncIterator

from roost.kube.client import Body, Kube, collection
from roost.kube.records import Key

PAGE = "500"
KINDS = ("Secret", "Fleet", "Agent")
"""Secrets first: an Agent that is looked at finds its Secrets in the cache."""


async def objects(kube: Kube, kind: str) -> AsyncIterator[Body]:
    """Every object of a kind, page by page.

    Raises:
        KubeError: the list can't be read to its end.
    """
    token = ""
    while True:
        page = await kube.get(collection(kind, ""), limit=PAGE, **({"continue": token} if token else {}))
        for item in page["items"]:
            yield {"kind": kind} | item
        token = page["metadata"].get("continue", "")
        if not token:
            return


async def keys(kube: Kube, kind: str) -> set[Key]:
    """The keys of all objects of a kind."""
    return {Key(kind, o["metadata"]["namespace"], o["metadata"]["name"]) async for o in objects(kube, kind)}
