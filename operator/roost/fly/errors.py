"""Every way in which a call to Fly does not succeed, as one small tree.

    FlyError                the call did not succeed                             what a planner may do
     ├─ NotFound            what the path names is not there                     it is gone (on a young app: not yet)
     ├─ AlreadyExists       a machine has this name: `machine_id`                look at that machine
     ├─ NameTaken           somebody has an app of this name                     look whether it is ours
     ├─ Conflict            `kind`: lease | version | concurrent                 look again, then decide again
     ├─ NotYet              time heals it                                        the same call later
     ├─ VolumeBound         another machine holds the volume: `machine_id`       that machine first
     ├─ VolumeMissing       the volume that the body names is not there          look at the volume
     ├─ Capacity            `scope`: region | host | quota                       elsewhere
     ├─ RateLimited         `retry_after` seconds, or None                       the same call later
     ├─ Invalid             the same call will be refused again                  nothing until something changes
     │   ├─ AccountLimit    Fly wants a payment method or another plan           nothing until a person acts
     │   ├─ SnapshotMissing the snapshot that the body names is not there        nothing until another is named
     │   └─ ImageMissing    Fly can't have the image that the body names         nothing until another is named
     ├─ Unauthorized        the credential is not good for this                  nothing until it changes
     │   └─ TokenMissing    there is no credential; nothing was sent             nothing until there is one
     ├─ Unavailable         no usable answer, nothing changed: `retry_after`     the same call later
     └─ Ambiguous           sent, outcome unknown                                look before anything else

`effect` is "unknown" for Ambiguous alone: after every other error the call has changed nothing. `classify` reads the
body's `status` first, its text second, and the HTTP code only where both are silent, because 409 has five meanings and
412 has five others. A 404 counts as absence only in Fly's own words: a wrong address or a proxy in between also says
404, and would let us believe that a whole fleet is gone.

Never: raises on any input, holds a credential, or decides whether to call again.
"""

import math
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import ClassVar, Literal

import orjson

Effect = Literal["none", "unknown"]
_MAX_MESSAGE = 300
_MAX_TEXT = 2000
"""What is read of Fly's text to understand it."""
_MAX_RETRY_AFTER = 3600.0


class FlyError(Exception):
    """A call to Fly that did not succeed.

    Attributes:
        op: the client's method, for example `create_machine`.
        status: the HTTP code; 0 when there was no answer, or nothing was sent.
        message: what Fly said, on one line of at most 300 characters; never a secret value.
        request_id: Fly's `fly-request-id`, for its support; empty without an answer.
    """

    reason: str = "FlyUnavailable"
    """The reason of a condition: a word of `roost.api.conditions.Reason`."""
    effect: ClassVar[Effect] = "none"
    """`unknown` when the call may have changed something all the same."""
    advice: str = ""
    """What a person can do, in one sentence; empty when time or the planner does it."""

    def __init__(self, op: str, status: int, message: str, request_id: str = "") -> None:
        super().__init__(op, status, message, request_id)
        self.op, self.status, self.message, self.request_id = op, status, message, request_id

    def __str__(self) -> str:
        code = f"HTTP {self.status}" if self.status else "no answer"
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.op}: {self.message} ({code}{request})"


class NotFound(FlyError):
    """What the path names is not there: gone, never made, or (an app's first minute) not known everywhere yet."""

    reason = "FlyConflict"


class AlreadyExists(FlyError):
    """A machine of this app has the name already; None when Fly did not tell which."""

    reason = "FlyConflict"

    def __init__(
        self, op: str, status: int, message: str, request_id: str = "", *, machine_id: str | None = None
    ) -> None:
        super().__init__(op, status, message, request_id)
        self.machine_id = machine_id


class NameTaken(FlyError):
    """App names are one global space, and this one is in use: by us, or by anybody."""

    reason = "AppNameTaken"
    advice = "If the app is not yours, set spec.fly.app to another name on a new Agent."


class Conflict(FlyError):
    """Somebody else was quicker: holds a lease, made another version, or is changing the machine now."""

    reason = "FlyConflict"

    def __init__(
        self,
        op: str,
        status: int,
        message: str,
        request_id: str = "",
        *,
        kind: Literal["lease", "version", "concurrent"],
    ) -> None:
        super().__init__(op, status, message, request_id)
        self.kind: Literal["lease", "version", "concurrent"] = kind


class NotYet(FlyError):
    """The machine, or the secrets' version, is on its way; the same call succeeds later."""

    reason = "WaitingForFly"


class VolumeBound(FlyError):
    """A machine holds the volume; it may be one that was destroyed up to minutes ago (then often None)."""

    reason = "WaitingForFly"

    def __init__(
        self, op: str, status: int, message: str, request_id: str = "", *, machine_id: str | None = None
    ) -> None:
        super().__init__(op, status, message, request_id)
        self.machine_id = machine_id


class VolumeMissing(FlyError):
    """The volume that a machine's config names is not there, or is going (a GET of it may still succeed)."""

    reason = "FlyConflict"


class Capacity(FlyError):
    """No room: in the region, on the host that the machine or volume is tied to, or in the org's quota there."""

    reason = "CapacityExhausted"
    advice = "Add regions to spec.placement.regions, or, if the message names a quota, ask Fly to raise it."

    def __init__(
        self,
        op: str,
        status: int,
        message: str,
        request_id: str = "",
        *,
        scope: Literal["region", "host", "quota"],
    ) -> None:
        super().__init__(op, status, message, request_id)
        self.scope: Literal["region", "host", "quota"] = scope
        if scope == "quota":
            self.reason = "QuotaExceeded"


class RateLimited(FlyError):
    """Too many calls of this kind for this machine or app; nothing was done. `retry_after` is in seconds."""

    reason = "FlyRateLimited"

    def __init__(
        self, op: str, status: int, message: str, request_id: str = "", *, retry_after: float | None = None
    ) -> None:
        super().__init__(op, status, message, request_id)
        self.retry_after = retry_after


class Invalid(FlyError):
    """Fly does not take this request, and will not take the same one again."""

    reason = "FlyInvalid"
    advice = "Change the field that the message names."

    def __init__(self, op: str, status: int, message: str, request_id: str = "", *, advice: str | None = None) -> None:
        super().__init__(op, status, message, request_id)
        if advice is not None:
            self.advice = advice


class AccountLimit(Invalid):
    """The account may not have more of this."""

    reason = "QuotaExceeded"
    advice = "Add a payment method, or a plan that allows it, at https://fly.io/dashboard (Billing)."


class SnapshotMissing(Invalid):
    """The snapshot to restore from never was, has expired, or is somebody else's: Fly does not tell which."""

    reason = "SnapshotNotFound"
    advice = "Name another in spec.volume.restoreFrom, or take the field out; snapshots are kept for a limited time."


class ImageMissing(Invalid):
    """Fly can't have the image: no such name or tag, or its registry does not let Fly read it."""

    reason = "ImageNotFound"
    advice = "Correct spec.machine.image, and see that its registry lets anybody read it."


class Unauthorized(FlyError):
    """The credential is not good for this: wrong, expired, of another org, or too narrow."""

    reason = "FlyUnauthorized"
    advice = (
        "Put a good token in its place: kubectl -n roost-system create secret generic roost-fly "
        '--from-literal=token="$(fly tokens create org)" --dry-run=client -o yaml | kubectl apply -f -'
    )


class TokenMissing(Unauthorized):
    """There is no token, or what there is can't be one; nothing was sent."""

    reason = "FlyTokenMissing"
    advice = (
        "Create it: kubectl -n roost-system create secret generic roost-fly "
        '--from-literal=token="$(fly tokens create org)"'
    )


class Unavailable(FlyError):
    """No usable answer, and nothing was changed.

    A read that failed, a connection that was never made, or a call that was not sent, because Fly does not answer
    others either; then `retry_after` says in how many seconds one may be tried.
    """

    reason = "FlyUnavailable"
    advice = "It is tried again; https://status.flyio.net says whether Fly has an incident."

    def __init__(
        self, op: str, status: int, message: str, request_id: str = "", *, retry_after: float | None = None
    ) -> None:
        super().__init__(op, status, message, request_id)
        self.retry_after = retry_after


class Ambiguous(FlyError):
    """The request may have been carried out, but the answer did not come or does not tell. Look before acting."""

    reason = "FlyUnknown"
    effect = "unknown"


def is_read(op: str) -> bool:
    """Whether a call changes nothing, so that a lost answer leaves nothing in doubt."""
    return op == "placements" or op.startswith(("get_", "list_", "org_", "wait_"))


def unanswered(op: str, message: str, *, sent: bool, status: int = 0, request_id: str = "") -> FlyError:
    """The error of a call without a usable answer; `sent` when its request may have reached Fly."""
    kind = Ambiguous if sent and not is_read(op) else Unavailable
    return kind(op, status, _one_line(message)[:_MAX_MESSAGE], request_id)


def classify(op: str, status: int, body: bytes, headers: Mapping[str, str]) -> FlyError:
    """What an answer that is no success means. Takes any status and any body, and never raises.

    Args:
        op: the client's method.
        status: the HTTP code.
        body: the body as it came: Fly's `{"error", "status"}`, a lease's `{"message"}`, plain text, or anything.
        headers: looked up in lower case: `fly-request-id`, `retry-after`, `date`.
    """
    code, text, by_fly = _read(body)
    request_id = _one_line(headers.get("fly-request-id", ""))[:80]
    at = _At(op, status, text[:_MAX_MESSAGE] or f"HTTP {status} with an empty answer", request_id)
    if (error := _by_code(at, code)) is not None:
        return error
    if status == 401:
        return Unauthorized(*at.args)
    if status == 429:
        return RateLimited(*at.args, retry_after=_retry_after(headers))
    if op == "wait_machine" and "desired state" in text:
        return NotYet(*at.args)
    if status == 408 or not 400 <= status < 500:  # a timeout between Fly's API and its host, 5xx, or no HTTP of Fly's
        return unanswered(op, at.message, sent=True, status=status, request_id=request_id)
    if (error := _by_text(at, text)) is not None:
        return error
    return _by_status(at, known=by_fly or bool(request_id))


class _At:
    """The facts that every error carries."""

    __slots__ = ("args", "message", "op", "status")

    def __init__(self, op: str, status: int, message: str, request_id: str) -> None:
        self.op, self.status, self.message = op, status, message
        self.args = (op, status, message, request_id)


_PINNED = frozenset({"update_machine", "start_machine", "restart_machine", "extend_volume"})
"""Calls on what already has its host: no other host of the region can help."""
_VOLUME_OPS = frozenset(
    {"get_volume", "delete_volume", "extend_volume", "update_volume", "list_snapshots", "create_snapshot"}
)
"""Calls whose path names the volume."""
_REGIONS_ADVICE = "Correct spec.placement.regions: https://fly.io/docs/reference/regions has the codes."
_GUEST_ADVICE = (
    "Change spec.machine.cpuKind, cpus or memoryMb; Fly's sizes: "
    "https://fly.io/docs/machines/guides-examples/machine-sizing."
)


def _by_code(at: _At, code: str) -> FlyError | None:
    match code:
        case "insufficient_capacity":
            return Capacity(*at.args, scope="host" if at.op in _PINNED else "region")
        case "volume_placement_capacity":
            return Capacity(*at.args, scope="host")
        case "name_taken":
            return NameTaken(*at.args)
        case _:
            return None


def _volume_gone(at: _At, _: "re.Match[str]") -> FlyError:
    return NotFound(*at.args) if at.op in _VOLUME_OPS else VolumeMissing(*at.args)


def _snapshot_gone(at: _At, _: "re.Match[str]") -> FlyError:
    return SnapshotMissing(*at.args) if at.op == "create_volume" else NotFound(*at.args)


def _machine_in(found: "re.Match[str]") -> str | None:
    """The machine id that a text names; None when it is left out (Fly has sent 14 NUL bytes in its place)."""
    return found["id"] or None


_TEXTS: tuple[tuple["re.Pattern[str]", Callable[[_At, "re.Match[str]"], FlyError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), make)
    for pattern, make in (
        (r"rate limit exceeded", lambda at, _: RateLimited(*at.args)),
        # Names
        (
            r"unique machine name violation(, machine ID (?P<id>[0-9a-z]+))?",
            lambda at, found: AlreadyExists(*at.args, machine_id=_machine_in(found)),
        ),
        (r"name has already been taken", lambda at, _: NameTaken(*at.args)),
        # Of an app, mostly: a race that the database saw. It is not said what clashed, so it is no NameTaken.
        (r"uniqueness constraint violated", lambda at, _: Conflict(*at.args, kind="concurrent")),
        # Volumes
        (
            r"(volume already claimed by machine|volume is currently bound to machine):? *(?P<id>[0-9a-z]+)?",
            lambda at, found: VolumeBound(*at.args, machine_id=_machine_in(found)),
        ),
        (r"volume (\S+ )?not found|could not find volume", _volume_gone),
        # Room
        (
            r"insufficient resources to create new machine with existing volume|could not reserve resource"
            r"|insufficient \w+ available to fulfill request|governor policy blocked"
            r"|deploys to this host are temporarily disabled",
            lambda at, _: Capacity(*at.args, scope="host"),
        ),
        (
            r"could not find a candidate host|no capacity\.?$",
            lambda at, _: Capacity(*at.args, scope="host" if at.op in _PINNED else "region"),
        ),
        (r"over the allowed quota", lambda at, _: Capacity(*at.args, scope="quota")),
        (r"add a payment method", lambda at, _: AccountLimit(*at.args)),
        # What the body names. Exact words are guesses; all that is told is that such a thing is not there, and it must
        # not be read as the absence of the app.
        (r"snapshot\b.{0,80}\b(not found|not exist|expired)|(could not|unable to) find snapshot", _snapshot_gone),
        (
            r"manifest.unknown|(failed to|could not|unable to) (get|fetch|find|pull|resolve) (the )?(image|manifest)"
            r"|\bimage\b.{0,200}\b(not found|does not exist)",
            lambda at, _: ImageMissing(*at.args),
        ),
        (
            r"region\b.{0,40}\b(not found|not exist|invalid|unknown)|(could not find|invalid|unknown) region",
            lambda at, _: Invalid(*at.args, advice=_REGIONS_ADVICE),
        ),
        (
            r"invalid (config\.)?guest|guest\.(memory_mb|cpus|cpu_kind)|memory_mb",
            lambda at, _: Invalid(*at.args, advice=_GUEST_ADVICE),
        ),
        # Time and others
        (
            r"min_secrets_version|unable to (start|stop|suspend) machine from current state"
            r"|unable to destroy machine, not currently|still active, refusing|(getting|currently) replaced"
            r"|snapshot is already scheduled",
            lambda at, _: NotYet(*at.args),
        ),
        (r"lease currently held", lambda at, _: Conflict(*at.args, kind="lease")),
        (
            r"concurrent update|already being updated",
            lambda at, _: Conflict(*at.args, kind="concurrent"),
        ),
        (r"current_version|machine_version|version mismatch", lambda at, _: Conflict(*at.args, kind="version")),
    )
)


def _by_text(at: _At, text: str) -> FlyError | None:
    for pattern, make in _TEXTS:
        if (found := pattern.search(text)) is not None:
            return make(at, found)
    return None


_GONE = re.compile(r"not_found:|(machine|app|volume|organization) not found|could not find ", re.IGNORECASE)


def _by_status(at: _At, *, known: bool) -> FlyError:
    """The code alone, read as that meaning which does least harm when it is wrong."""
    match at.status:
        case 403:
            return Unauthorized(*at.args)
        case 404 if not known or "page not found" in at.message:
            message = f"the 404 is not Fly's own, is the Fly address in the settings right? {at.message}"
            return Unavailable(at.op, at.status, message[:_MAX_MESSAGE], at.args[3])
        case 404:
            return NotFound(*at.args)
        case 409:
            return NameTaken(*at.args) if at.op == "create_app" else Conflict(*at.args, kind="concurrent")
        case 412:
            return Conflict(*at.args, kind="version") if at.op == "patch_metadata" else NotYet(*at.args)
        case _:
            return NotFound(*at.args) if known and _GONE.match(at.message) else Invalid(*at.args)


def _read(body: bytes) -> tuple[str, str, bool]:
    """The body's status code, its text on one line, and whether it has the form of Fly's errors."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        return "", _one_line(body[:_MAX_TEXT].decode(errors="replace")), False
    code, text = data.get("status"), data.get("error") or data.get("message")
    code = code if isinstance(code, str) else ""
    return (code, _one_line(text), True) if isinstance(text, str) else (code, "", False)


_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def _one_line(text: str) -> str:
    """Fit for a status and a log line: bounded, printable, no line breaks, no lone surrogates."""
    return _UNPRINTABLE.sub(" ", text[:_MAX_TEXT]).strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header (a number, or a date that is measured against the answer's own), or None."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _MAX_RETRY_AFTER)
