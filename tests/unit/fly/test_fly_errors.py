"""Fly's refusals, as they were seen, mean what the planner is told; anything else is still exactly one FlyError."""

import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roost.api.conditions import Reason
from roost.fly import errors
from roost.fly.errors import classify

CASES = json.loads((Path(__file__).parent / "data" / "fly-error-bodies.json").read_text())["cases"]

MEANINGS: dict[str, tuple[type[errors.FlyError], dict[str, Any]]] = {
    "capacity_host": (errors.Capacity, {"scope": "host"}),
    "capacity_region": (errors.Capacity, {"scope": "region"}),
    "quota_region": (errors.Capacity, {"scope": "quota", "reason": "QuotaExceeded"}),
    "not_found": (errors.NotFound, {}),
    "missing_volume": (errors.VolumeMissing, {}),
    "bound_volume": (errors.VolumeBound, {"machine_id": "784eee3f40130"}),
    "busy": (errors.NotYet, {}),
    "precondition": (errors.NotYet, {}),
    "name_taken": (errors.NameTaken, {}),
    "already_exists": (errors.AlreadyExists, {"machine_id": "90801d65f0e487"}),
    "auth": (errors.Unauthorized, {}),
    "rate_limited": (errors.RateLimited, {"retry_after": None}),
    "timeout_ambiguous": (errors.Ambiguous, {"effect": "unknown"}),
    "bad_request": (errors.Invalid, {}),
    "server_error": (errors.Ambiguous, {}),
}
# Where our tree is finer than the file's classes, by a piece of the text.
FINER: dict[str, tuple[type[errors.FlyError], dict[str, Any]]] = {
    "concurrent update": (errors.Conflict, {"kind": "concurrent"}),
    "already being updated": (errors.Conflict, {"kind": "concurrent"}),
    "machine_version mismatch": (errors.Conflict, {"kind": "version"}),
    "uniqueness constraint": (errors.Conflict, {"kind": "concurrent"}),
    "add a payment method": (errors.AccountLimit, {"reason": "QuotaExceeded"}),
    "failed to reach desired state": (errors.NotYet, {}),
}


def may(kind: type[errors.FlyError]) -> str:
    """What a planner may do after this error, as the module's own drawing of the tree says it."""
    assert errors.__doc__ is not None
    found = re.search(rf"─ {kind.__name__} .* {{2,}}(\S.*)$", errors.__doc__, re.MULTILINE)
    assert found, kind
    return found[1]


# What may be done after a case of the file, by its class, in the tree's words.
MAY = {
    "capacity_host": "elsewhere",
    "capacity_region": "elsewhere",
    "quota_region": "elsewhere",
    "not_found": "it is gone (on a young app: not yet)",
    "missing_volume": "look at the volume",
    "bound_volume": "that machine first",
    "busy": "the same call later",
    "precondition": "the same call later",
    "name_taken": "look whether it is ours",
    "already_exists": "look at that machine",
    "auth": "nothing until it changes",
    "rate_limited": "the same call later",
    "timeout_ambiguous": "look before anything else",
    "bad_request": "nothing until something changes",
    "server_error": "look before anything else",
}
FINER_MAY = {
    errors.Conflict: "look again, then decide again",
    errors.AccountLimit: "nothing until a person acts",
    errors.NotYet: "the same call later",
    errors.NotFound: "it is gone (on a young app: not yet)",
}


def op_of(case: dict[str, Any]) -> str:
    name = "".join("_" + c.lower() if c.isupper() else c for c in case["op"])
    return "update_machine" if name == "any" else name


def meaning(case: dict[str, Any]) -> tuple[type[errors.FlyError], dict[str, Any]]:
    text = case["body"]["error"]
    for piece, finer in FINER.items():
        if piece in text:
            return finer
    if op_of(case) == "get_volume":  # the path names the volume itself
        return errors.NotFound, {}
    return MEANINGS[case["class"]]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{op_of(case)}-{case['status']}-{case['body']['error'][:60].replace(' ', '_')}"
)
def test_a_refusal_that_fly_was_seen_to_give(case: dict[str, Any]) -> None:
    kind, facts = meaning(case)

    error = classify(op_of(case), case["status"], orjson.dumps(case["body"]), {"fly-request-id": "01J-ams"})

    assert type(error) is kind
    assert {name: getattr(error, name) for name in facts} == facts
    assert (error.op, error.status, error.request_id) == (op_of(case), case["status"], "01J-ams")
    assert error.message == case["body"]["error"]
    assert (error.effect == "unknown") == (kind is errors.Ambiguous)
    assert may(kind) == (MAY[case["class"]] if kind is MEANINGS[case["class"]][0] else FINER_MAY[kind])


def test_every_row_is_covered_and_every_exception_to_the_classes_is_used() -> None:
    assert {case["class"] for case in CASES} <= MEANINGS.keys()
    texts = [case["body"]["error"] for case in CASES]
    assert [piece for piece in FINER if not any(piece in text for text in texts)] == []


HOST, REGION, QUOTA = {"scope": "host"}, {"scope": "region"}, {"scope": "quota", "reason": "QuotaExceeded"}
MACHINE_OPS = ("update_machine", "start_machine", "stop_machine", "delete_machine")
SEEN: list[tuple[str, int, str, str, type[errors.FlyError], dict[str, Any]]] = [
    # op, HTTP code, text, status in the body, class, facts: the fact sheet's tables of refusals, row by row.
    # Capacity
    ("create_machine", 422, "could not find a candidate host", "insufficient_capacity", errors.Capacity, REGION),
    ("create_machine", 503, "could not find a candidate host", "insufficient_capacity", errors.Capacity, REGION),
    *(
        ("create_machine", 412, "insufficient resources to create new machine with existing volume id 'vol_1'", code,
         errors.Capacity, HOST)
        for code in ("volume_placement_capacity", "")
    ),
    *(
        (op, 409, f"aborted: could not reserve resource for machine: insufficient {what} available to fulfill request",
         "", errors.Capacity, HOST)
        for op in ("update_machine", "start_machine")
        for what in ("CPUs", "memory")
    ),
    ("start_machine", 409, "aborted: could not reserve resource for machine: insufficient memory available to fulfill "
     "request on the current host", "", errors.Capacity, HOST),
    ("create_machine", 409, "aborted: insufficient IPs available to fulfill request", "", errors.Capacity, HOST),
    ("create_machine", 409, "aborted: insufficient resources available to fulfill request: no room", "",
     errors.Capacity, HOST),
    ("create_volume", 409, "aborted: no capacity", "", errors.Capacity, REGION),
    ("create_volume", 400, "no capacity", "", errors.Capacity, REGION),
    ("start_machine", 409, "governor policy blocked start", "", errors.Capacity, HOST),
    ("start_machine", 409, "deploys to this host are temporarily disabled", "", errors.Capacity, HOST),
    ("create_machine", 403, 'organization "X" is using 9 MB of memory in dfw which is over the allowed quota. please '
     "consider other regions", "", errors.Capacity, QUOTA),
    ("create_machine", 422, "To create more than 1 machine per app please add a payment method.", "",
     errors.AccountLimit, {"reason": "QuotaExceeded"}),
    *((op, code, "deadline exceeded", "", errors.Ambiguous, {"effect": "unknown"})  # a dead host
      for op in MACHINE_OPS for code in (408, 503)),
    # Other exact errors
    ("create_machine", 409, 'already_exists: unique machine name violation, machine ID 90801d65f0e487 already exists '
     'with name "ada"', "", errors.AlreadyExists, {"machine_id": "90801d65f0e487"}),
    ("start_machine", 412, "failed_precondition: unable to start machine from current state: 'created'", "",
     errors.NotYet, {}),
    ("start_machine", 412, "failed_precondition: machine getting replaced, refusing to start", "", errors.NotYet, {}),
    ("start_machine", 412, "failed_precondition: machine still active, refusing to start", "", errors.NotYet, {}),
    ("suspend_machine", 412, "failed_precondition: unable to suspend machine from current state: 'stopped'", "",
     errors.NotYet, {}),
    ("delete_machine", 412, "failed_precondition: unable to destroy machine, not currently stopped, suspended, failed "
     "or created", "", errors.NotYet, {}),
    ("delete_machine", 409, "unable to destroy machine, not currently stopped", "", errors.NotYet, {}),
    ("delete_volume", 412, "failed_precondition: volume is currently bound to machine: 784eee3f40130", "",
     errors.VolumeBound, {"machine_id": "784eee3f40130"}),
    ("create_machine", 412, "failed_precondition: volume already claimed by machine 784eee3f40130", "",
     errors.VolumeBound, {"machine_id": "784eee3f40130"}),
    ("create_machine", 412, "failed_precondition: volume already claimed by machine " + 14 * "\0", "",
     errors.VolumeBound, {"machine_id": None}),
    ("create_machine", 400, "volume not found", "", errors.VolumeMissing, {}),
    ("create_volume", 404, "volume not found", "", errors.VolumeMissing, {}),  # the one to fork
    *((op, 404, "volume not found", "", errors.NotFound, {})
      for op in ("get_volume", "extend_volume", "update_volume", "list_snapshots", "create_snapshot")),
    ("create_snapshot", 412, "failed_precondition: snapshot is already scheduled at 2026-10-07T12:00:00Z", "",
     errors.NotYet, {}),
    ("update_machine", 409, "aborted: machine update failed due to concurrent update", "", errors.Conflict,
     {"kind": "concurrent"}),
    *((op, 409, "aborted: machine ID 78 lease currently held by x@tokens.fly.io, expires at 2026-08-14T09:57:35Z", "",
       errors.Conflict, {"kind": "lease"}) for op in (*MACHINE_OPS, "suspend_machine", "restart_machine")),
    ("patch_metadata", 412, "failed_precondition: machine_version does not match", "", errors.Conflict,
     {"kind": "version"}),
    ("get_machine", 429, "rate limit exceeded", "", errors.RateLimited, {"retry_after": None}),
    ("create_machine", 400, "invalid_argument: only one mount is allowed", "", errors.Invalid, {}),
    ("create_app", 422, "Validation failed: Name has already been taken", "name_taken", errors.NameTaken, {}),
    ("get_app", 404, 'Could not find App "x"', "", errors.NotFound, {}),
    # What the body names and Fly does not have: exact words are guesses, but none may be read as the app's absence.
    *(("create_volume", code, text, "", errors.SnapshotMissing, {"reason": "SnapshotNotFound"})
      for code in (400, 404, 422)
      for text in ("snapshot not found", "not_found: snapshot vs_1 not found", "Could not find snapshot vs_1",
                   "snapshot vs_1 does not exist", "failed_precondition: snapshot has expired")),
    *(("create_machine", code, text, "", errors.ImageMissing, {"reason": "ImageNotFound"})
      for code in (400, 404, 422)
      for text in ("failed to get manifest docker.io/library/x:1: unknown: manifest unknown", "MANIFEST_UNKNOWN",
                   "Could not find image \"registry.fly.io/x:1\"", "unable to resolve image x:1",
                   "image registry.fly.io/x:1 not found")),
]  # fmt: skip
REGIONS = [
    ("create_volume", 400, "invalid_argument: region xxx not found"),
    ("create_machine", 404, "Could not find region xxx"),
    ("create_machine", 422, "Region xxx does not exist"),
    ("placements", 400, "invalid region xxx"),
]
GUESTS = [
    ("create_machine", 422, "invalid guest: performance-8x needs at least 16384 MB"),
    ("create_machine", 400, "invalid_argument: invalid config.guest.memory_mb, minimum required 16384 MiB"),
    ("update_machine", 400, "invalid config.guest.cpus"),
]


def named(row: Any) -> str:
    op, status, text = row[:3]
    return f"{op}-{status}-{text[:60]}-{row[3] if len(row) > 3 else ''}".replace(" ", "_").replace("\0", "0")


@pytest.mark.parametrize("row", SEEN, ids=named)
def test_a_refusal_of_the_fact_sheet(row: Any) -> None:
    op, status, text, code, kind, facts = row

    error = classify(op, status, say(text, **({"status": code} if code else {})), {"fly-request-id": "01J"})

    assert type(error) is kind
    assert {name: getattr(error, name) for name in facts} == facts
    assert (error.effect == "unknown") == (kind is errors.Ambiguous)
    assert may(kind)


@pytest.mark.parametrize("row", REGIONS, ids=named)
def test_a_region_that_does_not_exist_names_the_field(row: Any) -> None:
    error = classify(row[0], row[1], say(row[2]), {})
    assert (type(error), error.effect) == (errors.Invalid, "none")
    assert "spec.placement.regions" in error.advice


@pytest.mark.parametrize("row", GUESTS, ids=named)
def test_a_size_that_fly_refuses_names_the_fields(row: Any) -> None:
    error = classify(row[0], row[1], say(row[2]), {})
    assert (type(error), error.effect) == (errors.Invalid, "none")
    assert "spec.machine.cpuKind, cpus or memoryMb" in error.advice


def test_what_is_not_named_keeps_the_general_advice() -> None:
    assert classify("create_machine", 400, say("bad"), {}).advice == "Change the field that the message names."


def say(text: str, **more: str) -> bytes:
    return orjson.dumps({"error": text, **more})


@pytest.mark.parametrize(
    ("op", "status", "text", "kind", "facts"),
    [
        # More of what was seen than the file has.
        (
            "create_machine",
            412,
            "volume already claimed by machine " + "\0" * 14,
            errors.VolumeBound,
            {"machine_id": None},
        ),
        (
            "delete_volume",
            412,
            "failed_precondition: volume is currently bound to machine: e28",
            errors.VolumeBound,
            {},
        ),
        ("start_machine", 409, "governor policy blocked start", errors.Capacity, {"scope": "host"}),
        ("update_machine", 409, "aborted: insufficient IPs available to fulfill request", errors.Capacity, {}),
        ("start_machine", 412, "failed_precondition: machine getting replaced, refusing to start", errors.NotYet, {}),
        ("delete_machine", 409, "unable to destroy machine, not currently stopped", errors.NotYet, {}),
        (
            "update_machine",
            409,
            "aborted: machine ID 78 lease currently held by x@tokens.fly.io, expires at 2026-08-14T09:57:35Z",
            errors.Conflict,
            {"kind": "lease"},
        ),
        ("create_volume", 409, "aborted: " + "x" * 400 + " no capacity", errors.Capacity, {"scope": "region"}),
        ("create_app", 409, "app exists", errors.NameTaken, {}),
        ("create_app", 422, "Validation failed: Name has already been taken", errors.NameTaken, {}),
        ("get_app", 404, "Could not find App x", errors.NotFound, {}),
        ("update_machine", 400, "machine not found", errors.NotFound, {}),
        ("get_machine", 400, "invalid machine ID, '5683'", errors.Invalid, {}),
        ("list_machines", 401, "Authenticate: token validation error", errors.Unauthorized, {}),
        ("patch_metadata", 412, "whatever it says", errors.Conflict, {"kind": "version"}),
        ("create_machine", 412, "whatever it says", errors.NotYet, {}),
        ("update_machine", 409, "whatever it says", errors.Conflict, {"kind": "concurrent"}),
        ("delete_volume", 400, "volume not found", errors.NotFound, {}),
        ("delete_volume", 403, "rate limit exceeded", errors.RateLimited, {}),
        ("wait_machine", 408, "timed out talking to the host", errors.Unavailable, {}),
        ("update_machine", 301, "moved", errors.Ambiguous, {}),
        ("get_machine", 301, "moved", errors.Unavailable, {}),
    ],
)
def test_what_fly_says_decides(
    op: str, status: int, text: str, kind: type[errors.FlyError], facts: dict[str, Any]
) -> None:
    error = classify(op, status, say(text), {})
    assert type(error) is kind
    assert {name: getattr(error, name) for name in facts} == facts


@pytest.mark.parametrize("status", [400, 403, 408, 409, 412, 422, 500, 503])
def test_a_status_in_the_body_wins_over_code_and_text(status: int) -> None:
    misleading = say("failed_precondition: min_secrets_version not yet available", status="insufficient_capacity")
    error = classify("create_machine", status, misleading, {})
    assert isinstance(error, errors.Capacity)
    assert error.scope == "region"


def test_a_full_region_means_a_full_host_for_what_already_has_its_host() -> None:
    error = classify("update_machine", 422, say("no room", status="insufficient_capacity"), {})
    assert isinstance(error, errors.Capacity)
    assert error.scope == "host"


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_failure_at_fly_leaves_only_changes_in_doubt(status: int) -> None:
    body = say("already_exists: unique machine name violation")  # words of a 5xx are not trusted
    assert type(classify("get_machine", status, body, {})) is errors.Unavailable
    assert type(classify("create_machine", status, body, {})) is errors.Ambiguous


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"404 page not found", {}),
        (b"<html><h1>404 Not Found</h1>nginx</html>", {}),
        (b"", {}),
        (b'{"detail": "Not Found"}', {}),
        (b'{"error": "404 page not found"}', {"fly-request-id": "01J"}),
    ],
)
def test_a_404_that_is_not_flys_own_proves_no_absence(body: bytes, headers: dict[str, str]) -> None:
    error = classify("get_machine", 404, body, headers)
    assert type(error) is errors.Unavailable
    assert "Fly address" in error.message


def test_an_empty_404_of_fly_counts() -> None:
    assert type(classify("get_machine", 404, b"", {"fly-request-id": "01J"})) is errors.NotFound


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "1e9"}, 3600.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    error = classify("stop_machine", 429, b"", headers)
    assert isinstance(error, errors.RateLimited)
    assert error.retry_after == seconds


def test_a_lease_answers_in_its_own_envelope() -> None:
    body = orjson.dumps({"status": "error", "message": "machine ID 1 lease currently held by x", "code": "invalid"})
    error = classify("stop_machine", 409, body, {})
    assert isinstance(error, errors.Conflict)
    assert error.kind == "lease"


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FlyError)]


def test_every_reason_is_in_the_closed_list_of_reasons() -> None:
    assert {kind.reason for kind in KINDS} | {"QuotaExceeded"} <= {reason.value for reason in Reason}


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in errors.__doc__] == []


def test_advice_for_a_missing_token_is_a_command() -> None:
    error = errors.TokenMissing("get_app", 0, "there is no Fly token")
    assert (
        'kubectl -n roost-system create secret generic roost-fly --from-literal=token="$(fly tokens create org)"'
        in (error.advice)
    )
    assert str(error) == "get_app: there is no Fly token (no answer)"


OPS = st.sampled_from(
    ["get_machine", "create_machine", "update_machine", "delete_volume", "create_app", "wait_machine"]
)
WORDS = [case["body"]["error"] for case in CASES] + ["claimed by machine ", "no capacity", "not found", "\0", "\ud800"]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=20), max_size=4).map(" ".join)
JSONS = st.recursive(st.none() | st.booleans() | st.floats() | TEXTS, lambda x: st.lists(x) | st.dictionaries(TEXTS, x))
BODIES = (
    st.binary(max_size=200)
    | JSONS.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({}, optional={"error": TEXTS | JSONS, "status": TEXTS | JSONS, "message": JSONS}).map(
        lambda value: json.dumps(value).encode()
    )
)
HEADERS = st.dictionaries(st.sampled_from(["retry-after", "date", "fly-request-id", "x"]), st.text(max_size=40))


@given(OPS, st.integers(-1, 1000), BODIES, HEADERS)
@example("create_machine", 409, b'{"error": "\\ud800"}', {})
@example("create_machine", 400, b"[" * 5000, {})
def test_any_answer_is_exactly_one_error(op: str, status: int, body: bytes, headers: dict[str, str]) -> None:
    error = classify(op, status, body, headers)

    assert isinstance(error, errors.FlyError)
    assert type(error) is not errors.FlyError
    assert 0 < len(error.message) <= 300
    assert "\n" not in error.message
    assert "\0" not in error.message
    error.message.encode()
    assert (error.effect == "unknown") == isinstance(error, errors.Ambiguous)
    assert not (errors.is_read(op) and error.effect == "unknown")
    assert str(error)
