"""Answers of Fly in its documented shapes, with invented values."""

from typing import Any

CONFIG = {
    "image": "roost/agent:0.1.0",
    "init": {},
    "guest": {"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048},
    "mounts": [{"volume": "vol_1", "path": "/data"}],
    "metadata": {"roost_name": "ada", "fly_platform_version": "v2"},
}
MACHINE: dict[str, Any] = {
    "id": "3d8d413b29d089",
    "name": "ada-1",
    "state": "started",
    "region": "ams",
    "version": "01J9ZC8N6Q7W4S2R0K5T1V3X9Y",
    "instance_id": "01J9ZC8N6Q7W4S2R0K5T1V3X9Y",
    "private_ip": "fdaa:0:18::2",
    "image_ref": {"registry": "registry-1.docker.io", "repository": "roost/agent", "digest": "sha256:ab"},
    "created_at": "2026-11-01T10:00:00Z",
    "updated_at": "2026-11-01T10:00:05Z",
    "config": CONFIG,
    "events": [
        {"type": "start", "status": "started", "request": None},
        {
            "type": "exit",
            "request": {
                "exit_event": {"exit_code": 2, "signal": -1, "requested_stop": False, "exited_at": "2026-11-01"}
            },
        },
        {"type": "exit", "request": {"exit_event": {"exit_code": 9}}},
    ],
}
ROW = {key: MACHINE[key] for key in MACHINE if key not in ("events", "image_ref", "config")} | {
    "app_name": "ag-1",
    "config": {"image": "roost/agent:0.1.0", "guest": {}, "metadata": {"roost_name": "ada"}},
}
VOLUME: dict[str, Any] = {
    "id": "vol_1",
    "name": "data",
    "state": "created",
    "size_gb": 10,
    "region": "ams",
    "attached_machine_id": None,
    "created_at": "2026-11-01T10:00:00.5Z",
}
