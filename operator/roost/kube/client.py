"""One thin module over aiohttp for everything we read from and write to the Kubernetes API ourselves.

Thin because a hot status write through the official client costs more than twice the CPU. Every error is one of the
types below; a warning about an unknown field in our own write is logged as the defect it is.
"""

import copy
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import aiohttp
import orjson
import structlog

from roost import __version__
from roost.kube.cluster import Cluster
from roost.kube.records import Key
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
Body = dict[str, Any]
FIELD_MANAGER = "roost"
_CONTENT_TYPES = {
    "merge": "application/merge-patch+json",
    "apply": "application/apply-patch+yaml",
    "json": "application/json",
}
_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
_METADATA = "application/json;as={};g=meta.k8s.io;v=v1"
WATCH_SECONDS = 290
"""How long a watch lasts that nothing ends."""
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=WATCH_SECONDS + 30, connect=5, sock_read=120)
"""The API server sends a bookmark about once a minute: what is silent for longer is cut off, and nobody has said so."""
_LONGEST_LINE = 4 * 1024 * 1024


class KubeError(Exception):
    """A call to the Kubernetes API that did not succeed: `status` is the HTTP code, 0 when there was no answer."""

    def __init__(self, call: str, status: int, message: str) -> None:
        super().__init__(f"{call}: {status} {message}" if status else f"{call}: {message}")
        self.status, self.message = status, message


class NotLeading(Exception):
    """Not sent: this process does not hold the Lease, or has not renewed it for too long, so it may change nothing."""


class Gone(KubeError):
    """404: the object, or its kind, is not there."""


class Conflict(KubeError):
    """409: the object moved on (or exists already); look again, then decide again."""


class Refused(KubeError):
    """400, 403, 413, 422: the same call will be refused again."""


class Unreachable(KubeError):
    """No answer, no whole one, 401, 429 or 5xx: whether a write took effect is unknown, time may heal it."""


def _error(call: str, status: int, message: str) -> KubeError:
    kinds: dict[int, type[KubeError]] = {404: Gone, 410: Gone, 409: Conflict}
    fallback = Unreachable if status in (401, 429) or status >= 500 else Refused
    return kinds.get(status, fallback)(call, status, message)


class Kube:
    """Calls of one process to one API server. Use as an async context manager."""

    def __init__(self, cluster: Cluster, metrics: Metrics, user_agent: str = f"roost/{__version__}") -> None:
        self._cluster, self._metrics, self._user_agent = cluster, metrics, user_agent
        self._fence: Callable[[], None] = lambda: None

    def fenced(self, fence: Callable[[], None]) -> "Kube":
        """The same connection for those who may write only while `fence` lets them: what it raises is raised on."""
        guarded = copy.copy(self)
        guarded._fence = fence  # noqa: SLF001 - of the same class
        return guarded

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._cluster.server,
            connector=aiohttp.TCPConnector(ssl=self._cluster.ssl_context(), limit=64),
            headers={"User-Agent": self._user_agent, "Accept": "application/json"},
            timeout=_TIMEOUT,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str, **params: str) -> Body:
        return await self._call("GET", path, None, "json", params)

    async def metadata(self, path: str, **params: str) -> Body:
        """A page of a list, of each object its metadata alone."""
        accept = {"Accept": _METADATA.format("PartialObjectMetadataList")}
        return await self._call("GET", path, None, "json", params, accept)

    async def watch(self, path: str, **params: str) -> AsyncIterator[tuple[str, Body]]:
        """The events of a watch, of each object its metadata alone; ends when the API server ends it in good order.

        Raises:
            Gone: what it was to begin from is no longer kept: list anew.
            KubeError: it is refused, can't be asked, was cut off, or is silent.
        """
        call = f"WATCH {path}"
        headers = {"Accept": _METADATA.format("PartialObjectMetadata")}
        if token := self._cluster.token():
            headers["Authorization"] = f"Bearer {token}"
        params = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)} | params
        rest = b""
        try:
            async with self._session.get(path, params=params, headers=headers, timeout=_WATCH_TIMEOUT) as answer:
                self._metrics.rest_requests.labels(str(answer.status), "WATCH").inc()
                if answer.status >= 300:
                    raise _error(call, answer.status, _message(await answer.read()))
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):
                        event = orjson.loads(line)
                        if event["type"] == "ERROR":
                            raise _error(call, event["object"].get("code", 500), event["object"].get("message", ""))
                        yield event["type"], event["object"]
                    if len(rest) > _LONGEST_LINE:
                        raise Unreachable(call, 0, "a line of the answer has no end")
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Unreachable(call, 0, f"{type(error).__name__}: {error}") from error
        if rest:
            raise Unreachable(call, 0, "the answer ends within a line")

    async def create(self, path: str, body: Body) -> Body:
        return await self._call("POST", path, body, "json", {"fieldManager": FIELD_MANAGER})

    async def merge(self, path: str, body: Body) -> Body:
        """A merge patch; guarded when `body.metadata.resourceVersion` is set."""
        return await self._call("PATCH", path, body, "merge", {"fieldManager": FIELD_MANAGER})

    async def apply(self, path: str, body: Body, manager: str) -> Body:
        """A forced server-side apply under its own field manager."""
        return await self._call("PATCH", path, body, "apply", {"fieldManager": manager, "force": "true"})

    async def update(self, path: str, body: Body) -> Body:
        return await self._call("PUT", path, body, "json", {"fieldManager": FIELD_MANAGER})

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> Body:
        """Deletes exactly the object that was seen: `uid`, and its version when the decision depended on it."""
        preconditions = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
        return await self._call("DELETE", path, {"preconditions": preconditions}, "json", {})

    async def _call(
        self,
        method: str,
        path: str,
        body: Body | None,
        kind: Literal["merge", "apply", "json"],
        params: Mapping[str, str],
        accept: Mapping[str, str] = MappingProxyType({}),
    ) -> Body:
        call = f"{method} {path}"
        data = None if body is None else _as_go_writes(body)
        for fresh in (False, True):
            headers = {"Content-Type": _CONTENT_TYPES[kind], **accept}
            if token := self._cluster.token(fresh=fresh):
                headers["Authorization"] = f"Bearer {token}"
            if method != "GET":
                self._fence()
            try:
                async with self._session.request(method, path, data=data, params=params, headers=headers) as answer:
                    content = await answer.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                self._metrics.rest_requests.labels("<error>", method).inc()
                raise Unreachable(call, 0, f"{type(error).__name__}: {error}") from error
            self._metrics.rest_requests.labels(str(answer.status), method).inc()
            if answer.status != 401:  # refused: the token may have been rotated, read it again once
                break
        for warning in answer.headers.getall("Warning", ()):
            if body is not None and "unknown field" in warning:
                log.error("a write of ours names a field the CRD does not have", call=call, warning=warning)
        if answer.status < 300:
            try:
                result: Body = orjson.loads(content) if content else {}
            except orjson.JSONDecodeError as error:  # half an answer, or a login page
                raise Unreachable(call, 0, f"the answer is not JSON: {error}") from error
            return result
        raise _error(call, answer.status, _message(content))


def _as_go_writes(body: Body) -> bytes:
    """JSON as the API server itself would write it: keys in order, and these characters (in strings only) escaped.

    It keeps the data of a ControllerRevision as the bytes that came, holds it immutable to the byte, and writes it anew
    with every patch: written otherwise, nobody could patch it, and the garbage collector not set it free.
    """
    text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    for character in ("&", "<", ">", "\u2028", "\u2029"):
        text = text.replace(character.encode(), rb"\u%04x" % ord(character))
    return text


def _message(content: bytes) -> str:
    try:
        return str(orjson.loads(content).get("message", ""))[:500]
    except (orjson.JSONDecodeError, AttributeError):
        return content[:200].decode(errors="replace")


def collection(kind: str, namespace: str) -> str:
    """The path of our own objects of a kind in a namespace; of the whole cluster when the namespace is empty."""
    plural = {"Agent": "agents", "Fleet": "fleets", "Secret": "secrets"}[kind]
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/roost.dev/v1alpha1{scope}/{plural}"


def core_secret(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets/{name}"


def core_collection(kind: str, namespace: str) -> str:
    """The path of core Secrets or ConfigMaps in a namespace; of the whole cluster when the namespace is empty."""
    plural = {"CoreSecret": "secrets", "ConfigMap": "configmaps"}[kind]
    return f"/api/v1/namespaces/{namespace}/{plural}" if namespace else f"/api/v1/{plural}"


def core_object(key: Key) -> str:
    """The path of a core Secret or a ConfigMap."""
    return f"{core_collection(key.kind, key.namespace)}/{key.name}"


async def may(kube: "Kube", group: str, resource: str, verb: str, namespace: str = "", name: str = "") -> bool:
    """Whether this process has a right: in a namespace, or in the whole cluster; on one object, or on any.

    Raises:
        KubeError: it can't be asked.
    """
    kind, _, sub = resource.partition("/")
    attributes = {"group": group, "resource": kind, "verb": verb}
    attributes |= {k: v for k, v in (("subresource", sub), ("namespace", namespace), ("name", name)) if v}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await kube.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


async def set_finalizers(kube: Kube, path: str, resource_version: str, finalizers: Sequence[str]) -> Body:
    """Replaces the finalizers of the version that was seen (theirs kept by the caller); answers the new object.

    A merge patch with resourceVersion and the whole list has one meaning per code: 200 done, 409 look again, 404
    gone, 422 deletion has begun. Without the resourceVersion it would overwrite other owners' finalizers.
    """
    return await kube.merge(path, {"metadata": {"resourceVersion": resource_version, "finalizers": list(finalizers)}})
