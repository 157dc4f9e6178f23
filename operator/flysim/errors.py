"""What Fly answers when it refuses, text by text.

Texts come from public reports of live answers and from Fly's own client; those that nobody has published are our
choice and listed in docs/reference/flysim.md. Nothing here decides; it only words.
"""

from typing import Any

from flysim.clock import rfc3339


class Refusal(Exception):
    """Fly's answer to a call that it does not carry out. `body` is JSON, or plain text for a route that is none."""

    def __init__(self, status: int, error: str, code: str | None = None, *, body: Any = None) -> None:
        super().__init__(status, error)
        self.error = error
        self.status = status
        self.body: Any = body if body is not None else {"error": error} | ({"status": code} if code else {})


def no_such_route() -> Refusal:
    return Refusal(404, "no such route", body="404 page not found")


def unauthorized() -> Refusal:
    return Refusal(401, "Authenticate: token validation error")


def rate_limited() -> Refusal:
    return Refusal(429, "rate limit exceeded")


def internal() -> Refusal:
    return Refusal(500, "internal")


def invalid(what: str) -> Refusal:
    return Refusal(400, f"invalid_argument: {what}")


def unreadable(what: str) -> Refusal:
    """A body that Go's JSON decoder does not take."""
    return Refusal(400, what)


def not_simulated(what: str) -> Refusal:
    """Fly can do this and flysim can't: better a loud 501 than an answer that nobody gave."""
    return Refusal(501, f"flysim does not simulate {what}")


# Orgs and apps


def org_not_found(slug: str) -> Refusal:
    return Refusal(404, f"organization not found: {slug}")


def org_missing() -> Refusal:
    return Refusal(400, "authorization: request doesn't contain org_slug")


def app_not_found(name: str) -> Refusal:
    return Refusal(404, f'Could not find App "{name}"')


def app_name_taken() -> Refusal:
    return Refusal(422, "Validation failed: Name has already been taken", "name_taken")


def app_name_bad() -> Refusal:
    return Refusal(422, "Validation failed: Name under 63 chars using numbers, lowercase letters and dashes")


def idempotency_key_reused() -> Refusal:
    return Refusal(422, "Validation failed: idempotency key has already been used with another name")


# Machines


def machine_not_found() -> Refusal:
    return Refusal(404, "machine not found")


def machine_name_taken(machine_id: str, name: str) -> Refusal:
    text = f'unique machine name violation, machine ID {machine_id} already exists with name "{name}"'
    return Refusal(409, f"already_exists: {text}")


def wrong_state(verb: str, state: str) -> Refusal:
    return Refusal(412, f"failed_precondition: unable to {verb} machine from current state: '{state}'")


def being_replaced() -> Refusal:
    return Refusal(412, "failed_precondition: machine getting replaced, refusing to start")


def still_active() -> Refusal:
    return Refusal(412, "failed_precondition: machine still active, refusing to start")


def not_destroyable() -> Refusal:
    text = "unable to destroy machine, not currently stopped, suspended, failed or created"
    return Refusal(412, f"failed_precondition: {text}")


def not_suspendable(why: str) -> Refusal:
    return Refusal(412, f"failed_precondition: unable to suspend machine: {why}")


def concurrent_update() -> Refusal:
    return Refusal(409, "aborted: machine update failed due to concurrent update")


def version_mismatch() -> Refusal:
    return Refusal(409, "aborted: machine_version mismatch: current_version does not match")


def metadata_version_mismatch() -> Refusal:
    return Refusal(412, "failed_precondition: machine_version does not match")


def metadata_not_found() -> Refusal:
    return Refusal(404, "metadata key not found")


def guest_refused(text: str) -> Refusal:
    return Refusal(422, f"invalid guest: {text}")


def wait_timeout(wanted: str, state: str) -> Refusal:
    text = f"machine failed to reach desired state, {wanted}, currently {state}"
    return Refusal(408, f"deadline_exceeded: {text}")


def wait_range() -> Refusal:
    return invalid("invalid WaitMachineRequest.Timeout: value must be inside range [1s, 1m0s]")


# IP addresses


def ip_taken(kind: str) -> Refusal:
    return Refusal(422, f"Validation failed: app already has an address of type {kind}")


def ip_not_found() -> Refusal:
    return Refusal(404, "IP address not found")


# Leases


def _held(machine_id: str, owner: str, expires_at: int) -> str:
    return f"machine ID {machine_id} lease currently held by {owner}, expires at {rfc3339(expires_at)}"


def leased(machine_id: str, owner: str, expires_at: int) -> Refusal:
    """To a write without the nonce of a lease that is held."""
    return Refusal(409, f"aborted: {_held(machine_id, owner, expires_at)}")


def lease_held(machine_id: str, owner: str, expires_at: int) -> Refusal:
    """To a call on the lease itself: another envelope."""
    text = _held(machine_id, owner, expires_at)
    return Refusal(409, text, body={"status": "error", "message": text, "code": "invalid"})


def lease_not_found() -> Refusal:
    text = "lease not found"
    return Refusal(404, text, body={"status": "error", "message": text, "code": "not_found"})


# Volumes


def volume_not_found() -> Refusal:
    return Refusal(404, "volume not found")


def mounted_volume_not_found() -> Refusal:
    return Refusal(400, "volume not found")


def volume_claimed(machine_id: str) -> Refusal:
    return Refusal(412, f"failed_precondition: volume already claimed by machine {machine_id}")


def volume_bound(machine_id: str) -> Refusal:
    return Refusal(412, f"failed_precondition: volume is currently bound to machine: {machine_id}")


def volume_elsewhere(volume_id: str, region: str, wanted: str) -> Refusal:
    return Refusal(422, f"volume {volume_id} is in region {region}, the machine was requested in {wanted}")


def volume_size_bad(text: str) -> Refusal:
    """A fork or a restore into too little."""
    return Refusal(422, text)


def volume_unreachable(volume_id: str) -> Refusal:
    """The source of a fork can't be read."""
    return Refusal(412, f"failed_precondition: volume {volume_id} is on a host that is unreachable")


def snapshot_not_found() -> Refusal:
    return Refusal(404, "snapshot not found")


def snapshot_running(since: float) -> Refusal:
    return Refusal(412, f"failed_precondition: snapshot is already scheduled at {rfc3339(since)}")


def snapshot_unfinished(snapshot_id: str) -> Refusal:
    return Refusal(422, f"snapshot {snapshot_id} is not ready to restore from")


# Room


def region_full() -> Refusal:
    """To a machine."""
    return Refusal(422, "could not find a candidate host", "insufficient_capacity")


def no_capacity() -> Refusal:
    """To a volume: the region is full."""
    return Refusal(409, "aborted: no capacity")


def volume_host_full(volume_id: str) -> Refusal:
    """To a new machine on a volume that is there already."""
    text = f"insufficient resources to create new machine with existing volume id '{volume_id}'"
    return Refusal(412, text, "volume_placement_capacity")


def host_full(lack: str) -> Refusal:
    """To a machine that has its host."""
    text = f"could not reserve resource for machine: insufficient {lack} available to fulfill request"
    return Refusal(409, f"aborted: {text}")


def over_quota(org: str, megabytes: int, region: str) -> Refusal:
    text = f"is using {megabytes} MB of memory in {region} which is over the allowed quota"
    return Refusal(403, f'organization "{org}" {text}. please consider other regions')


def account_limit(most: int) -> Refusal:
    machines = f"{most} machine{'s' if most != 1 else ''}"
    return Refusal(422, f"To create more than {machines} per app please add a payment method.")


def host_unreachable() -> Refusal:
    """To a change of what stands on a dead host."""
    return Refusal(408, "deadline_exceeded: request to the host timed out")


# Secrets


def secrets_not_yet() -> Refusal:
    return Refusal(412, "failed_precondition: min_secrets_version not yet available")


def secret_not_found() -> Refusal:
    return Refusal(404, "secret not found")
