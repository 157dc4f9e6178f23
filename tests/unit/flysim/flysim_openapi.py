"""Fly's own OpenAPI document as a judge of calls, made strict, with a list of where Fly itself departs from it.

The document makes every field optional and forbids none, so on its own it would pass almost anything. Here an object
with declared fields may hold no others, and everything that the simulator answers or takes beyond it stands below with
a reason. A body that the simulator refuses may be anything.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_DOCUMENT = Path(__file__).parent / "data" / "fly-machines-openapi.json"

NEWER = "in Fly's document since it was saved here"
DOCS = "in the sample answers of Fly's documentation"
LIVE = "reported of live answers"

EXTRA_FIELDS: dict[str, dict[str, tuple[Any, str]]] = {
    "Machine": {
        "version": ({"type": "string"}, NEWER),
        "cordoned": ({"type": "boolean"}, NEWER),
        "lease": ({"$ref": "#/components/schemas/Lease"}, NEWER),
    },
    "ListAppsResponse": {"next_cursor": ({"type": "string"}, NEWER)},
    "Volume": {"host_dedication_key": ({"type": "string"}, DOCS)},
    "OrgVolume": {"host_dedication_key": ({"type": "string"}, DOCS)},
    "IPAssignment": {"network": ({"type": "string"}, NEWER)},
    "OrgVolumesResponse": {"error_regions": ({"type": "array", "items": {"type": "string"}}, NEWER)},
}
NULLABLE: dict[str, dict[str, str]] = {
    "Volume": {"attached_machine_id": DOCS, "attached_alloc_id": DOCS},
    "OrgVolume": {"attached_machine_id": DOCS, "attached_alloc_id": DOCS},
    "MachineEvent": {"request": LIVE},
}
OTHER_TYPES: dict[str, dict[str, tuple[Any, str]]] = {
    "fly.MachineService": {"autostop": ({"enum": [False, True, "suspend"]}, LIVE)},
    "fly.StopConfig": {"timeout": ({"type": ["string", "number"]}, "Fly's client reads numbers as nanoseconds")},
}
CLIENT = "sent by Fly's own client, and taken"
REQUEST_FIELDS: dict[str, dict[str, tuple[Any, str]]] = {
    "CreateAppRequest": {
        "app_name": ({"type": "string"}, "the name in Fly's documentation, still taken"),
        "idempotency_key": ({"type": "string"}, NEWER),
    },
}
REQUEST_TYPES: dict[str, dict[str, tuple[Any, str]]] = {
    "fly.MachineService": {"autostop": ({"enum": [False, True, "off", "stop", "suspend"]}, "old and new form")},
    "fly.StopConfig": {"timeout": ({"type": ["string", "number"]}, "numbers are nanoseconds")},
    "StopRequest": {"timeout": ({"type": ["string", "number"]}, "numbers are nanoseconds")},
    "SignalRequest": {"signal": ({"type": ["string", "integer"]}, CLIENT)},
    "AppSecretsUpdateRequest": {
        "values": ({"type": "object", "additionalProperties": {"type": ["string", "null"]}}, "null deletes")
    },
    "updateMetadataRequest": {
        "metadata": ({"type": "object", "additionalProperties": {"type": ["string", "null"]}}, "null deletes")
    },
}
MORE_STATUS_CODES = {"volume_placement_capacity": NEWER, "name_taken": NEWER}

_OK = {"type": "object", "properties": {"ok": {"const": True}}, "required": ["ok"], "additionalProperties": False}
_LEASE = {
    "type": "object",
    "properties": {"status": {"const": "success"}, "data": {"$ref": "#/components/schemas/Lease"}},
    "required": ["status", "data"],
    "additionalProperties": False,
}
_STARTED = {
    "type": "object",
    "properties": {
        "previous_state": {"type": "string"},
        "migrated": {"type": "boolean"},
        "new_host": {"type": "string"},
    },
    "required": ["previous_state", "migrated", "new_host"],
    "additionalProperties": False,
}
_RELEASED = {
    "type": "object",
    "properties": {"status": {"const": "success"}, "data": _OK},
    "required": ["status", "data"],
    "additionalProperties": False,
}
_CREATED_APP = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "created_at": {"type": "integer"}},
    "required": ["id", "created_at"],
    "additionalProperties": False,
}
_REGIONS = {
    "type": "object",
    "properties": {
        "Regions": {"type": "array", "items": {"$ref": "#/components/schemas/main.regionRow"}},
        "Nearest": {"type": "string"},
    },
    "required": ["Regions", "Nearest"],
    "additionalProperties": False,
}
_PLACEMENT = {
    "type": "object",
    "properties": {"Region": {"type": "string"}, "Count": {"type": "integer"}, "Concurrency": {"type": "integer"}},
    "required": ["Region", "Count", "Concurrency"],
    "additionalProperties": False,
}
_PLACEMENTS = {
    "type": "object",
    "properties": {"Regions": {"type": "array", "items": _PLACEMENT}},
    "required": ["Regions"],
    "additionalProperties": False,
}
_JOB_FIELDS = ("id", "app_id", "volume_id", "state", "type", "message", "created_at", "updated_at", "graph_id")
_BACKUP = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in _JOB_FIELDS} | {"finished_at": {"type": ["string", "null"]}},
    "required": [*_JOB_FIELDS, "finished_at"],
    "additionalProperties": False,
}
_MESSAGE = {"type": "object", "properties": {"backup": _BACKUP}, "required": ["backup"], "additionalProperties": False}
_JOB = {"type": "object", "properties": {"Msg": _MESSAGE}, "required": ["Msg"], "additionalProperties": False}
_MACHINE = "/apps/{app_name}/machines/{machine_id}"
OTHER_ANSWERS: dict[tuple[str, str, int], tuple[Any, str]] = {
    ("POST", "/apps", 201): (_CREATED_APP, DOCS),
    ("DELETE", _MACHINE, 200): (_OK, DOCS),
    ("POST", f"{_MACHINE}/start", 200): (_STARTED, DOCS),
    ("POST", f"{_MACHINE}/stop", 200): (_OK, DOCS),
    ("POST", f"{_MACHINE}/restart", 200): (_OK, DOCS),
    ("POST", f"{_MACHINE}/suspend", 200): (_OK, DOCS),
    ("POST", f"{_MACHINE}/cordon", 200): (_OK, DOCS),
    ("POST", f"{_MACHINE}/uncordon", 200): (_OK, DOCS),
    ("POST", f"{_MACHINE}/signal", 200): (_OK, DOCS),
    ("GET", f"{_MACHINE}/lease", 200): (_LEASE, DOCS),
    ("POST", f"{_MACHINE}/lease", 201): (_LEASE, DOCS),
    ("DELETE", f"{_MACHINE}/lease", 200): (_RELEASED, DOCS),
    ("POST", "/apps/{app_name}/volumes/{volume_id}/snapshots", 200): (_JOB, DOCS),
    ("GET", "/platform/regions", 200): (_REGIONS, LIVE),
    ("POST", "/platform/placements", 200): (_PLACEMENTS, LIVE),
}
_LEASE_ERROR = {
    "type": "object",
    "properties": {
        "status": {"const": "error"},
        "message": {"type": "string", "minLength": 1},
        "code": {"type": "string"},
    },
    "required": ["status", "message", "code"],
    "additionalProperties": False,
}
_ERROR = {"allOf": [{"$ref": "#/components/schemas/ErrorResponse"}, {"required": ["error"]}]}


def check(method: str, path: str, status: int, content_type: str, body: bytes) -> tuple[str, str]:
    """Fails when the document does not allow this answer; returns the method and path template of the operation."""
    template, operation = _operation(method, path.removeprefix("/v1"))
    schema = _schema_of(method, template, operation, status)
    where = f"{method} {path} {status}"
    if schema is None:
        assert body == b"", f"{where}: the document has no body here, got {body!r}"
        return method, template
    assert content_type == "application/json; charset=utf-8", where
    errors = [
        f"{error.json_path}: {error.message}" for error in _validator(json.dumps(schema)).iter_errors(json.loads(body))
    ]
    assert not errors, f"{where}: {errors}"
    return method, template


def check_request(method: str, path: str, body: bytes) -> None:
    """Fails when the document does not allow this body, which the simulator has taken."""
    template, operation = _operation(method, path.removeprefix("/v1"))
    if not body:
        return
    assert "requestBody" in operation, f"{method} {template}: the document has no body here, sent {body!r}"
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    judge = _validator(json.dumps(schema), of="requests")
    errors = [f"{error.json_path}: {error.message}" for error in judge.iter_errors(json.loads(body))]
    assert not errors, f"body of {method} {path}: {errors}"


def _schema_of(method: str, template: str, operation: dict[str, Any], status: int) -> dict[str, Any] | None:
    if (method, template, status) in OTHER_ANSWERS:
        schema: dict[str, Any] = OTHER_ANSWERS[method, template, status][0]
        return schema
    if status >= 400:
        # Most refusals are undeclared; they have the declared form, but for those on leases.
        return {"anyOf": [_LEASE_ERROR, _ERROR]} if template.endswith("/lease") else _ERROR
    declared = operation["responses"]
    assert str(status) in declared, f"{method} {template}: the document has no answer {status}"
    content = declared[str(status)].get("content")
    found: dict[str, Any] | None = content["application/json"]["schema"] if content else None
    return found


def _operation(method: str, path: str) -> tuple[str, dict[str, Any]]:
    for template, operations in _document()["paths"].items():
        pattern = re.sub(r"\{[^/]+\}", "[^/]+", template)
        if re.fullmatch(pattern, path) and method.lower() in operations:
            return template, operations[method.lower()]
    raise AssertionError(f"the document has no {method} {path}")


@cache
def _validator(schema: str, of: str = "answers") -> Draft202012Validator:
    resource = Resource.from_contents(_document(of), default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("urn:fly", resource)
    absolute = schema.replace('"#/components', '"urn:fly#/components')
    return Draft202012Validator(json.loads(absolute), registry=registry)


@cache
def _document(of: str = "answers") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_DOCUMENT.read_bytes())
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        _make_strict(schema)
    extra, other = (EXTRA_FIELDS, OTHER_TYPES) if of == "answers" else (REQUEST_FIELDS, REQUEST_TYPES)
    for name, fields in extra.items():
        schemas[name]["properties"] |= {field: declared for field, (declared, _) in fields.items()}
    for name, changes in other.items():
        schemas[name]["properties"] |= {field: declared for field, (declared, _) in changes.items()}
    for name, nullable in NULLABLE.items():
        for field in nullable:
            schemas[name]["properties"][field]["nullable"] = True
    schemas["main.statusCode"]["enum"] += MORE_STATUS_CODES
    _to_json_schema(document)
    return document


def _make_strict(schema: dict[str, Any]) -> None:
    if schema.get("type") == "object" and "properties" in schema and "allOf" not in schema:
        schema.setdefault("additionalProperties", False)


def _to_json_schema(value: Any) -> None:
    """OpenAPI 3.0 says `nullable` where JSON Schema has a type or an alternative."""
    if isinstance(value, dict):
        for item in value.values():
            _to_json_schema(item)
        if value.pop("nullable", False):
            value["type"] = [value["type"], "null"]
    elif isinstance(value, list):
        for item in value:
            _to_json_schema(item)
