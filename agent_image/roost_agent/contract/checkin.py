"""The figures that a machine reports now and then, for dashboards and alerts; nothing is decided by them.

Names, units and bounds are those that agents of the seed systems send. Deltas count since the last check-in that was
answered with 204: an agent whose check-in failed reports them again.
"""

from typing import Annotated

from pydantic import Field

from roost_agent.contract.wire import Count, Line, Name, Version, Wire

__all__ = ["MAX_CHECKIN_BYTES", "Checkin", "ProductTelemetry"]

MAX_CHECKIN_BYTES = 16 * 1024

Label = Annotated[str, Field(max_length=64, pattern=r"^[\x20-\x7e]*$")]


class ProductTelemetry(Wire):
    """What the runtime is set up as; about once a day."""

    openclaw_version: Version | None = None
    default_model: Annotated[str, Field(max_length=256)] | None = None
    channel_count: Count | None = None
    enabled_channels: Annotated[list[Label], Field(max_length=32)] = Field(default_factory=list)
    tools_profile: Label | None = None
    exec_security: Label | None = None
    browser_enabled: bool | None = None


class Checkin(Wire):
    """One check-in. `sandbox_id` is the agent's DID; `load_avg5m` the load average over five minutes.

    `last_exit_reason` is `signal:<name>`, `code:<number>` or empty. Bytes and restarts since the last check-in are
    deltas; `total_restarts` counts since the supervisor's start, `failed_checkins` those tried since the last that was
    answered with 204. `region` is Fly's code of where the machine says that it is.
    """

    sandbox_id: Name
    machine_id: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9:._+-]*$")] | None = None
    controller_version: Version
    controller_commit: Version
    openclaw_version: Version | None = None
    openclaw_commit: Version | None = None
    supervisor_state: Label
    total_restarts: Count
    restarts_since_last_checkin: Count
    uptime_seconds: Count
    load_avg5m: Annotated[float, Field(ge=0, le=1_000_000)] = Field(alias="loadAvg5m")
    bandwidth_bytes_in: Count
    bandwidth_bytes_out: Count
    last_exit_reason: Line = ""
    disk_used_bytes: Count | None = None
    disk_total_bytes: Count | None = None
    product_telemetry: ProductTelemetry | None = None
    failed_checkins: Count = 0
    region: Label | None = None
