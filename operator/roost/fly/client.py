"""The Fly Machines API, one method a call. Each docstring is a contract: what it does, and what to do when in doubt.

Promises: a call ends, within a bound, in a parsed answer or in exactly one `FlyError`; it waits for the documented rate
limits before it sends, never after; the credential is asked for at each call, so a replaced token is used at once;
while Fly answers nobody, calls are refused as Unavailable without being sent, but for a probe now and then.
Never: sends a change twice (the planner decides; only a read whose connection was cut is sent once more, by the HTTP
library), follows a redirect, logs, or holds any state of a machine.

After `Ambiguous` the rule is the same everywhere: look, never repeat. Each method says where to look.

Source of paths and fields: Fly's OpenAPI document and "Working with the Machines API".
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from roost import __version__
from roost.fly import types
from roost.fly.breaker import Breaker
from roost.fly.errors import (
    AccountLimit,
    Ambiguous,
    Conflict,
    FlyError,
    Invalid,
    RateLimited,
    TokenMissing,
    Unavailable,
    classify,
    is_read,
    unanswered,
)
from roost.fly.limits import COMMON, DELETE_APP, GET_MACHINE, Limit, Limits, WaitTooLong

PUBLIC_API: Final = "https://api.machines.dev"
MAX_WAIT_SECONDS: Final = 60
"""What Fly's wait call takes at most."""
PAGE: Final = 1000
"""What Fly's lists give at most."""

Observer = Callable[[str, str, float, float], None]
"""(op, "2xx" … "5xx", "error" without an answer or "cancelled"; seconds of the call; seconds it waited for a turn)"""
Token = Callable[[], Awaitable[str | None]]
Json = Mapping[str, Any]
Query = dict[str, str]
IpType = Literal["v6", "shared_v4", "v4", "private_v6"]
_T = TypeVar("_T")
_NO_QUERY: Final[Query] = {}

_READ_SECONDS: Final = 30.0
_WRITE_SECONDS: Final = 60.0
"""Creates were seen to take 2.5 s; Fly gives up on its own host before this, with a 408."""
_CONNECT_SECONDS: Final = 5.0
_KEEPALIVE_SECONDS: Final = 15.0
"""Shorter than any server's own limit, so that a change seldom meets a connection that was just closed."""
_MAX_CONNECTIONS: Final = 256
_WAIT_MARGIN_SECONDS: Final = 15.0
_THROTTLE_SECONDS: Final = 10.0
_MAX_BODY: Final = 32 * 1024 * 1024
"""40 times the largest page seen (0.8 kB a row)."""
_MAX_PAGES: Final = 1000
_DEFAULT_CLOSE_SECONDS: Final = 1.0
"""A 429 without Retry-After (the usual one): the time in which the documented limits give one more call."""

_SEGMENT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SCHEME = re.compile(r"^(bearer|flyv1)(\s+|$)", re.IGNORECASE)
_MACAROONS: Final = ("fm1r_", "fm1a_", "fm2_")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_NOTHING_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


def authorization(token: str) -> str | None:
    """The Authorization header for a token as people paste it, or None when it can't be one.

    The scheme that `fly tokens create` prints is taken off. Macaroons go as `FlyV1`, comma-joined; a user token beside
    them is left out, because Fly refuses the mixture (as fly-go does). Anything else is an OAuth token: `Bearer`.
    """
    token = token.strip()
    while (bare := _SCHEME.sub("", token)) != token:
        token = bare.strip()
    parts = [part.strip() for part in token.split(",") if part.strip()]
    if not parts or not all(_TOKEN.fullmatch(part) for part in parts):
        return None
    macaroons = [part for part in parts if part.startswith(_MACAROONS)]
    return f"FlyV1 {','.join(macaroons)}" if macaroons else f"Bearer {','.join(parts)}"


class Fly:
    """Calls with one credential. Use as an async context manager, in one event loop.

    Args:
        token: asked at each call, so it must be quick (a cached value); None or "" when there is none.
        observer: told of every call that was sent; must not raise.
        base_url: scheme, host and port, without `/v1`.
        clock: monotonic seconds, in step with the event loop's sleep; for the rate limits and durations.
        transport: in place of the network, for a simulator in the same process.
        max_throttle_seconds: a call whose turn comes later is refused as RateLimited, without being sent.
        fence: called right before a change is sent; what it raises keeps it from being sent, and is raised on.
        user_agent: who Fly is told that we are.
    """

    def __init__(
        self,
        token: Token,
        observer: Observer,
        *,
        base_url: str = PUBLIC_API,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
        max_throttle_seconds: float = _THROTTLE_SECONDS,
        fence: Callable[[], None] = lambda: None,
        user_agent: str = f"roost/{__version__}",
    ) -> None:
        self._token, self._observer, self._clock = token, observer, clock
        self._base = base_url.rstrip("/") + "/v1"
        self._limits = Limits(clock)
        self._breaker = Breaker(clock, random.Random())  # noqa: S311 - jitter
        self._silent_since = ""
        self._max_throttle, self._fence = max_throttle_seconds, fence
        self._known_token = ""
        self._authorization: str | None = None
        self._http = httpx.AsyncClient(
            headers={"User-Agent": user_agent, "Accept": "application/json"},
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),  # `_send` bounds the whole call
            follow_redirects=False,
            transport=transport or _transport(self._base),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    @property
    def silent(self) -> bool:
        """Whether Fly answers no call at present, so that calls are refused without being sent."""
        return self._breaker.is_open

    # --- Apps ----------------------------------------------------------------------------------------------------

    async def create_app(self, name: str, org: str, network: str | None) -> types.App:
        """Makes an app, on a private network of that name (the org's own one when None).

        Fly answers with an id alone, so what is returned is what was asked for, with status `pending`. For about a
        minute, other calls may answer NotFound or Unauthorized for the new app.

        Raises:
            NameTaken: by us before, or by anybody: `get_app` and compare the org. Unauthorized there means abroad.
            Ambiguous: `get_app`; repeating is harmless too, it ends in NameTaken.
        """
        body = {"name": name, "org_slug": org} | ({"network": network} if network else {})
        await self._call("create_app", "POST", "/apps", _ignore, key=name, body=body)
        return types.App(name=name, org=org, network=network or "", status="pending")

    async def get_app(self, name: str) -> types.App:
        """Raises NotFound, and Unauthorized also when the app belongs to an org that the credential is not for."""
        return await self._call("get_app", "GET", f"/apps/{_segment('get_app', name)}", types.parse_app, key=name)

    async def list_apps(self, org: str) -> list[types.App]:
        """All apps of an org that the credential sees, all pages, or an error. An empty list proves no absence."""

        async def page(cursor: str | None) -> types.AppsPage:
            query = {"org_slug": org, "limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
            return await self._call(
                "list_apps", "GET", "/apps", lambda data: types.parse_apps_page(org, data), key=org, query=query
            )

        return [app async for found in _pages("list_apps", page) for app in found.apps]

    async def delete_app(self, name: str) -> None:
        """Deletes an app **and every machine and volume in it**: list both first. Accepted; done a moment later.

        Raises:
            NotFound: it is gone.
            Ambiguous: `get_app`; repeating is harmless.
        """
        path = f"/apps/{_segment('delete_app', name)}"
        await self._call("delete_app", "DELETE", path, _ignore, key=None, limit=DELETE_APP)

    async def set_secrets(self, app: str, values: Mapping[str, str | None]) -> int:
        """Sets app secrets (None deletes one) and returns their new version, for `min_secrets_version`.

        Machines see them when they are next updated or created. Repeating is harmless: the same values again.
        No error of this call carries a value.
        """
        path = f"/apps/{_segment('set_secrets', app)}/secrets"
        try:
            return await self._call(
                "set_secrets", "POST", path, types.parse_secrets_version, key=app, body={"values": dict(values)}
            )
        except FlyError as error:
            if error.status:
                _hush(error)
            raise

    async def list_secret_names(self, app: str) -> list[str]:
        """The names of an app's secrets; Fly never tells their values."""
        path = f"/apps/{_segment('list_secret_names', app)}/secrets"
        return await self._call("list_secret_names", "GET", path, types.parse_secret_names, key=app)

    async def list_ips(self, app: str) -> list[types.Ip]:
        """The addresses of an app. They are gone with it."""
        path = f"/apps/{_segment('list_ips', app)}/ip_assignments"
        return await self._call("list_ips", "GET", path, types.parse_ips, key=app)

    async def assign_ip(self, app: str, kind: IpType, *, network: str | None = None) -> None:
        """Gives an app an address of this kind, which it may have already.

        Args:
            app: the app.
            kind: `v6` and `shared_v4` are free, `v4` costs; `private_v6` is reached from a private network only.
            network: that network, for `private_v6`: Fly does **not** take the app's own by itself.

        Raises:
            AccountLimit: the account may not have one.
            Ambiguous: `list_ips`. Repeating is harmless for `shared_v4`, a second `v4` would be paid for.
        """
        body = {"type": kind} | ({"network": network} if network else {})
        path = f"/apps/{_segment('assign_ip', app)}/ip_assignments"
        try:
            await self._call("assign_ip", "POST", path, _ignore, key=app, body=body)
        except AccountLimit:
            raise
        except (Conflict, Invalid) as error:
            if error.status not in (409, 422):  # how Fly says that the app has it, as clients of it have seen
                raise

    # --- Machines ------------------------------------------------------------------------------------------------

    async def list_machines(self, app: str, *, include_deleted: bool = False) -> list[types.Machine]:
        """All machines of an app, whole, or an error; destroyed ones only when asked for.

        The list lags behind, and has been empty by mistake for existing apps: empty is no proof of absence.
        """
        query: Query = {"include_deleted": "true"} if include_deleted else {}
        path = f"/apps/{_segment('list_machines', app)}/machines"
        return await self._list("list_machines", path, lambda data: types.parse_machines(app, data), app, query)

    async def get_machine(self, app: str, machine_id: str) -> types.Machine:
        """One machine. A destroyed one answers with state `destroyed` for a while, then NotFound: both mean gone.

        A machine that was made a moment ago may be NotFound too.
        """
        path = _machine_path("get_machine", app, machine_id)
        return await self._call("get_machine", "GET", path, _machine(app), key=machine_id, limit=GET_MACHINE)

    async def create_machine(
        self,
        app: str,
        name: str,
        region: str,
        config: Json,
        *,
        min_secrets_version: int | None = None,
        skip_launch: bool = False,
    ) -> types.Machine:
        """Makes a machine, and starts it unless `skip_launch`. Answers in state `created`, seconds before `started`.

        The unique name makes it safe to repeat: at most one machine of a name lives.

        Args:
            app: the app it belongs to.
            name: unique in the app; free again once its machine is destroyed.
            region: one, or a comma list with aliases, in order (`ams,eu`); with a volume, the volume's.
            config: Fly's machine config, whole.
            min_secrets_version: as `set_secrets` returned it: the boot waits until the host has it.
            skip_launch: leave it `created` or `stopped`.

        Raises:
            AlreadyExists: adopt or remove the machine it names.
            Capacity: region (try the next), host (the volume's host is full) or quota.
            VolumeMissing, VolumeBound, NotYet (secrets' version not there yet), Invalid, AccountLimit.
            Ambiguous: `list_machines` and look for the name; a repeat ends in AlreadyExists.
        """
        body = {"name": name, "region": region, "config": config, **_launch(min_secrets_version, skip_launch)}
        path = f"/apps/{_segment('create_machine', app)}/machines"
        return await self._call("create_machine", "POST", path, _machine(app), key=app, body=body)

    async def update_machine(
        self,
        app: str,
        machine_id: str,
        config: Json,
        current_version: str,
        *,
        min_secrets_version: int | None = None,
        skip_launch: bool = False,
    ) -> types.Machine:
        """Replaces the whole config (nothing is merged) and reboots, or starts, unless `skip_launch`.

        Name, region and the mounted volume can't change. Metadata is part of the config: what is left out is lost.

        Raises:
            Conflict: version (`current_version` is no longer it; nothing changed), lease or concurrent: look again.
            Capacity: host; only another machine elsewhere helps.
            Ambiguous: `get_machine` and compare the version.
        """
        body = {"config": config, "current_version": current_version, **_launch(min_secrets_version, skip_launch)}
        path = _machine_path("update_machine", app, machine_id)
        return await self._call("update_machine", "POST", path, _machine(app), key=machine_id, body=body)

    async def start_machine(self, app: str, machine_id: str) -> None:
        """Starts a stopped, suspended or failed machine; harmless when it is started.

        Raises:
            NotYet: it is being created, replaced or stopped.
            Capacity: host.
            Ambiguous: `get_machine`; repeating is harmless.
        """
        await self._act("start", app, machine_id)

    async def stop_machine(self, app: str, machine_id: str, *, signal: str, timeout_seconds: int) -> None:
        """Sends the signal (`SIGTERM` …) and kills after the timeout; returns before it has stopped.

        Raises:
            Ambiguous: `get_machine`; repeating is harmless.
        """
        await self._act("stop", app, machine_id, body={"signal": signal, "timeout": f"{timeout_seconds}s"})

    async def suspend_machine(self, app: str, machine_id: str) -> None:
        """Writes a started machine's memory down and halts it; returns before it is suspended.

        It still takes its place on the host. Fly wants at most 2 GB of memory, no swap and no schedule. A later start
        goes on where it was, or boots as after a stop when the snapshot could not be kept.

        Raises:
            NotYet: it is not started, or is of a kind that can't be suspended (Fly's words for that are not known).
            Ambiguous: `get_machine`; repeating is harmless.
        """
        await self._act("suspend", app, machine_id)

    async def restart_machine(
        self, app: str, machine_id: str, *, signal: str = "SIGTERM", timeout_seconds: int = 30
    ) -> None:
        """Stops and starts it. Repeating restarts once more, so after Ambiguous compare `last_exit` first."""
        await self._act("restart", app, machine_id, query={"signal": signal, "timeout": f"{timeout_seconds}s"})

    async def delete_machine(self, app: str, machine_id: str, *, force: bool) -> None:
        """Destroys a machine; with `force` also one that runs. Returns before it is gone: state `destroying`.

        Its volume stays, and stays bound for seconds up to minutes. On a host that can't be reached, it happens when
        the host comes back.

        Raises:
            NotFound: it is gone.
            NotYet: without force, it is not stopped.
            Ambiguous: `get_machine`; repeating is harmless.
        """
        path = _machine_path("delete_machine", app, machine_id)
        query = {"force": "true"} if force else {}
        await self._call("delete_machine", "DELETE", path, _ignore, key=machine_id, query=query)

    async def wait_machine(
        self, app: str, machine_id: str, states: Sequence[str], *, version: str | None, timeout_seconds: int
    ) -> types.WaitResult:
        """Returns when the machine is in one of the states: started, stopped, suspended, destroyed, failed, settled.

        A GET right afterwards may still tell the state before. Changes nothing, so it can be cancelled at any time.

        Args:
            app: the app it belongs to.
            machine_id: the machine.
            states: one or more; the result tells which it was.
            version: only this version of the machine; None for any.
            timeout_seconds: 1 to 60.

        Raises:
            NotYet: it was in none of them in time. No failure: look again.
            NotFound: gone, or (right after its creation) not known yet.
        """
        seconds = min(max(timeout_seconds, 1), MAX_WAIT_SECONDS)
        query = {"state": ",".join(states), "timeout": str(seconds)} | ({"version": version} if version else {})
        wanted = tuple(states)
        return await self._call(
            "wait_machine",
            "GET",
            _machine_path("wait_machine", app, machine_id) + "/wait",
            lambda data: types.parse_wait(data, wanted),
            key=machine_id,
            query=query,
            seconds=seconds + _WAIT_MARGIN_SECONDS,
        )

    async def patch_metadata(
        self, app: str, machine_id: str, metadata: Mapping[str, str | None], *, machine_version: str | None = None
    ) -> None:
        """Sets some keys of a machine's metadata (None deletes); no restart, no new version.

        Raises:
            Conflict: version, when `machine_version` was given and is no longer it.
            Ambiguous: repeating is harmless.
        """
        body = {"metadata": dict(metadata)} | ({"machine_version": machine_version} if machine_version else {})
        path = _machine_path("patch_metadata", app, machine_id) + "/metadata"
        await self._call("patch_metadata", "PATCH", path, _ignore, key=machine_id, body=body)

    # --- Volumes -------------------------------------------------------------------------------------------------

    async def list_volumes(self, app: str) -> list[types.Volume]:
        """All volumes of an app, whole, or an error; those with `deleted` are on their way out.

        The list lags behind in both directions, and has been empty by mistake.
        """
        path = f"/apps/{_segment('list_volumes', app)}/volumes"
        return await self._list("list_volumes", path, lambda data: types.parse_volumes(app, data), app, {})

    async def get_volume(self, app: str, volume_id: str) -> types.Volume:
        """One volume; a deleted one answers for a while with `deleted`, then NotFound."""
        path = _volume_path("get_volume", app, volume_id)
        return await self._call("get_volume", "GET", path, _volume(app), key=volume_id)

    async def create_volume(
        self,
        app: str,
        name: str,
        region: str,
        size_gb: int | None,
        *,
        snapshot_retention_days: int | None = None,
        snapshot_id: str | None = None,
        source_volume_id: str | None = None,
        compute: Json | None = None,
    ) -> types.Volume:
        """Makes a volume in one region (no list, no alias): empty, restored from a snapshot, or forked from a volume.

        Args:
            app: the app it belongs to.
            name: need not be unique.
            region: one region.
            size_gb: GiB, at most 500; not smaller than the snapshot's volume. None for a fork, which is as large as
                its source.
            snapshot_retention_days: 1 to 60; Fly's default is 5.
            snapshot_id: restore this one.
            source_volume_id: fork this one.
            compute: the guest that will mount it, so that a host is chosen that has room for it.

        Raises:
            Capacity: region: try the next.
            SnapshotMissing: there is no such snapshot, it has expired, or it is somebody else's.
            VolumeMissing: the source to fork is gone.
            Ambiguous: **never repeat**, names are not unique and a second volume would be made. `list_volumes`, twice
                and far enough apart, because the list lags.
        """
        optional = {
            "size_gb": size_gb,
            "snapshot_retention": snapshot_retention_days,
            "snapshot_id": snapshot_id,
            "source_volume_id": source_volume_id,
            "compute": compute,
        }
        body: dict[str, Any] = {"name": name, "region": region, "encrypted": True}
        body |= {field: value for field, value in optional.items() if value is not None}
        path = f"/apps/{_segment('create_volume', app)}/volumes"
        return await self._call("create_volume", "POST", path, _volume(app), key=app, body=body)

    async def update_volume(self, app: str, volume_id: str, *, snapshot_retention_days: int) -> types.Volume:
        """Sets for how long the snapshots that are taken from now on are kept: 1 to 60 days.

        Raises:
            Ambiguous: `get_volume`; repeating is harmless.
        """
        path = _volume_path("update_volume", app, volume_id)
        body = {"snapshot_retention": snapshot_retention_days}
        return await self._call("update_volume", "PUT", path, _volume(app), key=volume_id, body=body)

    async def extend_volume(self, app: str, volume_id: str, size_gb: int) -> types.Extended:
        """Grows a volume to `size_gb`; the file system follows by itself, or at the machine's next restart.

        Raises:
            Capacity: host.
            Ambiguous: `get_volume`; repeating is harmless.
        """
        path = _volume_path("extend_volume", app, volume_id) + "/extend"
        return await self._call(
            "extend_volume",
            "PUT",
            path,
            lambda data: types.parse_extended(app, data),
            key=volume_id,
            body={"size_gb": size_gb},
        )

    async def delete_volume(self, app: str, volume_id: str) -> None:
        """Deletes a volume **with its data**; Fly keeps it listed for a day or so.

        Raises:
            NotFound: it is gone.
            VolumeBound: a machine holds it, or held it until minutes ago.
            Ambiguous: `get_volume`; repeating is harmless.
        """
        path = _volume_path("delete_volume", app, volume_id)
        await self._call("delete_volume", "DELETE", path, _ignore, key=volume_id)

    async def list_snapshots(self, app: str, volume_id: str) -> list[types.Snapshot]:
        """The snapshots of a volume, also of a deleted one until their retention ends.

        Raises:
            NotFound: no such volume is known any more.
        """
        path = _volume_path("list_snapshots", app, volume_id) + "/snapshots"
        return await self._call("list_snapshots", "GET", path, types.parse_snapshots, key=volume_id)

    async def create_snapshot(self, app: str, volume_id: str) -> None:
        """Asks for a snapshot of a volume; it is taken a while later. Which one it is, Fly does not tell.

        Raises:
            NotYet: one is scheduled already.
            Ambiguous: `list_snapshots`, for one that is newer; a repeat takes one more.
        """
        path = _volume_path("create_snapshot", app, volume_id) + "/snapshots"
        await self._call("create_snapshot", "POST", path, _ignore, key=volume_id)

    # --- Lists of an org -----------------------------------------------------------------------------------------

    async def org_machines(
        self,
        org: str,
        *,
        updated_after: str | None = None,
        include_deleted: bool = False,
        cursor: str | None = None,
        limit: int = PAGE,
    ) -> types.MachinesPage:
        """One page of all machines that the credential sees in an org; a view that lags behind.

        Args:
            org: its slug.
            updated_after: RFC 3339; only what changed since.
            include_deleted: destroyed ones too.
            cursor: of the page before; good for 30 minutes.
            limit: 1 to 1000 rows; pages may be shorter, or empty, in the middle.
        """
        query = _page_query(updated_after, include_deleted, cursor, limit)
        path = f"/orgs/{_segment('org_machines', org)}/machines"
        return await self._call("org_machines", "GET", path, types.parse_machines_page, key=org, query=query)

    async def org_volumes(
        self,
        org: str,
        *,
        updated_after: str | None = None,
        include_deleted: bool = False,
        cursor: str | None = None,
        limit: int = PAGE,
    ) -> types.VolumesPage:
        """One page of all volumes that the credential sees in an org; as `org_machines`."""
        query = _page_query(updated_after, include_deleted, cursor, limit)
        path = f"/orgs/{_segment('org_volumes', org)}/volumes"
        return await self._call("org_volumes", "GET", path, types.parse_volumes_page, key=org, query=query)

    def org_machine_pages(
        self, org: str, *, updated_after: str | None = None, include_deleted: bool = False
    ) -> AsyncIterator[types.MachinesPage]:
        """All pages of `org_machines`, one after the other. Any page's error ends the list: it is not whole then."""
        return _pages(
            "org_machines",
            lambda cursor: self.org_machines(
                org, updated_after=updated_after, include_deleted=include_deleted, cursor=cursor
            ),
        )

    def org_volume_pages(
        self, org: str, *, updated_after: str | None = None, include_deleted: bool = False
    ) -> AsyncIterator[types.VolumesPage]:
        """All pages of `org_volumes`, one after the other, as above."""
        return _pages(
            "org_volumes",
            lambda cursor: self.org_volumes(
                org, updated_after=updated_after, include_deleted=include_deleted, cursor=cursor
            ),
        )

    async def placements(
        self, org: str, regions: Sequence[str], guest: Json, *, volume_size_gb: int = 0
    ) -> dict[str, int]:
        """How many such machines an org could place now, by region. Changes nothing; a forecast, no reservation.

        Args:
            org: its slug; its limits count too.
            regions: in order; aliases (`eu`) are opened by Fly.
            guest: as in a machine's config.
            volume_size_gb: GiB of the volume that comes with each; 0 for none.

        Returns:
            Region to count. A region without room is left out.
        """
        body = {
            "org_slug": org,
            "region": ",".join(regions),
            "compute": guest,
            "count": 0,
            "volume_size_bytes": volume_size_gb << 30,
        }
        return await self._call(
            "placements", "POST", "/platform/placements", types.parse_placements, key=org, body=body
        )

    # --- One call ------------------------------------------------------------------------------------------------

    async def _act(
        self, verb: str, app: str, machine_id: str, *, body: Json | None = None, query: Query = _NO_QUERY
    ) -> None:
        op = f"{verb}_machine"
        path = f"{_machine_path(op, app, machine_id)}/{verb}"
        await self._call(op, "POST", path, _ignore, key=machine_id, body=body, query=query)

    async def _list(self, op: str, path: str, parse: Callable[[Any], list[_T]], app: str, query: Query) -> list[_T]:
        """A bare array, all pages of it: Fly pages by itself only when asked to, and says so in a header."""
        found: list[_T] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = query | {"cursor": cursor} if cursor else query
            content, headers = await self._exchange(op, "GET", path, key=app, query=page)
            found += _parsed(op, content, headers, parse)
            if not (following := headers.get("fly-next-cursor", "")):
                return found
            if following == cursor:
                break
            cursor = following
        raise _endless(op)

    async def _call(
        self,
        op: str,
        method: str,
        path: str,
        parse: Callable[[Any], _T],
        *,
        key: Hashable,
        limit: Limit = COMMON,
        body: Json | None = None,
        query: Query = _NO_QUERY,
        seconds: float | None = None,
    ) -> _T:
        content, headers = await self._exchange(
            op, method, path, key=key, limit=limit, body=body, query=query, seconds=seconds
        )
        return _parsed(op, content, headers, parse)

    async def _exchange(
        self,
        op: str,
        method: str,
        path: str,
        *,
        key: Hashable,
        limit: Limit = COMMON,
        body: Json | None = None,
        query: Query = _NO_QUERY,
        seconds: float | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """Waits for the turn, sends once, and gives the answer of a success; everything else is a FlyError."""
        self._refuse_while_silent(op)
        throttled = await self._turn(op, key, limit)
        headers = {"Authorization": await self._credential(op)}
        self._refuse_while_silent(op)
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = self._http.build_request(
            method,
            self._base + path,
            params=query or None,
            headers=headers,
            content=None if body is None else _json(op, body),
        )
        if not is_read(op):
            self._fence()
        started, outcome = self._breaker.sent(), "cancelled"
        try:
            answer, content = await self._send(op, request, seconds)
            outcome = f"{answer.status_code // 100}xx"
        except FlyError:
            outcome = "error"
            self._unanswered(key, started)
            raise
        finally:
            self._observer(op, outcome, self._clock() - started, throttled)
        if answer.is_success:
            self._breaker.answered()
            return content, answer.headers
        error = classify(op, answer.status_code, content, answer.headers)
        if not isinstance(error, Unavailable | Ambiguous):
            self._breaker.answered()
        elif op != "wait_machine" or answer.status_code != 408:  # a wait's 408 is the host's silence at most
            self._unanswered(key, started)
        if isinstance(error, RateLimited):
            wait = _DEFAULT_CLOSE_SECONDS if error.retry_after is None else error.retry_after
            self._limits.close((op, key), limit, wait)
        raise error

    def _refuse_while_silent(self, op: str) -> None:
        if (seconds := self._breaker.wait()) > 0:
            message = f"not sent: Fly has not answered any call since {self._silent_since}"
            raise Unavailable(op, 0, message, retry_after=seconds)

    def _unanswered(self, thing: Hashable, sent_at: float) -> None:
        if self._breaker.failed(thing, sent_at):
            self._silent_since = datetime.now(UTC).isoformat(timespec="seconds")

    async def _turn(self, op: str, key: Hashable, limit: Limit) -> float:
        try:
            return await self._limits.take((op, key), limit, self._max_throttle)
        except WaitTooLong as late:
            message = f"not sent: Fly takes {limit.per_second:g} calls a second of this kind, and the queue is full"
            raise RateLimited(op, 0, message, retry_after=late.seconds) from None

    async def _credential(self, op: str) -> str:
        """The Authorization header of this moment."""
        try:
            token = await self._token() or ""
        except Exception as error:  # the source is not ours (a file, a Secret): whatever it raises, nothing was sent
            raise unanswered(op, f"the Fly token could not be read: {type(error).__name__}", sent=False) from error
        if token != self._known_token:
            self._known_token, self._authorization = token, authorization(token)
        if self._authorization is None:
            problem = "the Fly token has characters that no token has" if token else "there is no Fly token"
            raise TokenMissing(op, 0, problem)
        return self._authorization

    async def _send(self, op: str, request: httpx.Request, seconds: float | None) -> tuple[httpx.Response, bytes]:
        """One request, one answer, read whole, within a bound of time and size."""
        bound = seconds or (_READ_SECONDS if is_read(op) else _WRITE_SECONDS)
        try:
            async with asyncio.timeout(bound):
                answer = await self._http.send(request, stream=True)
                try:
                    return answer, await _body(op, answer)
                finally:
                    await answer.aclose()
        except FlyError:
            raise
        except TimeoutError:
            raise unanswered(op, f"no answer within {bound:.0f} s", sent=True) from None
        except Exception as error:  # any other is the HTTP library's; an unknown one counts as sent
            message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise unanswered(op, message, sent=not _never_sent(error)) from error


def _transport(base_url: str) -> AiohttpTransport:
    """The network: httpx over aiohttp, at 32 calls in flight a ninth of the CPU of httpx's own transport.

    The address is one for all calls, so whether a proxy of the environment (HTTPS_PROXY, NO_PROXY) is in between is
    settled once. SSL_CERT_FILE and SSL_CERT_DIR name other authorities.
    """
    url = urlsplit(base_url)
    context = httpx.create_ssl_context(verify=url.scheme == "https")  # reading the authorities takes a while

    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),  # httpx has its own
            middlewares=(_changes_once,),
        )

    proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
    return AiohttpTransport(verify=context, client=session, proxy=httpx.Proxy(proxy) if proxy else None)


class _Cut(aiohttp.ClientError):
    """The connection ended after the request may have been sent."""


async def _changes_once(
    request: aiohttp.ClientRequest, send: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
) -> aiohttp.ClientResponse:
    """Keeps aiohttp from sending a PUT or DELETE again when its connection is cut: it takes those for harmless."""
    try:
        return await send(request)
    except _NOTHING_SENT:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if request.method == "GET":
            raise
        raise _Cut(f"{type(error).__name__}: {error}") from error


def _never_sent(error: Exception) -> bool:
    """Whether the connection failed before a byte of the request could leave: refused, no route, DNS, TLS, proxy.

    httpx's own types do not tell. The aiohttp transport turns both a refused connection and one that was cut in the
    middle of an answer into httpx.ConnectTimeout, so aiohttp's type behind it decides; httpx.ConnectError is what other
    transports raise for a connection that was never made. Whatever is not known to be harmless counts as sent.
    """
    return isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol) or isinstance(
        error.__cause__, _NOTHING_SENT
    )


def _json(op: str, body: Json) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:  # a number or a string of a spec that JSON can't carry
        raise Invalid(op, 0, f"not sent: {error}") from None


async def _body(op: str, answer: httpx.Response) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in answer.aiter_bytes():
        size += len(chunk)
        if size > _MAX_BODY:
            raise unanswered(
                op, f"the answer is larger than {_MAX_BODY >> 20} MiB", sent=True, status=answer.status_code
            )
        chunks.append(chunk)
    return b"".join(chunks)


def _parsed(op: str, content: bytes, headers: Mapping[str, str], parse: Callable[[Any], _T]) -> _T:
    """The answer of a success. One that can't be read proves nothing: neither that it happened, nor an empty list."""
    try:
        if not content and parse is not _ignore:
            raise types.Malformed("it is empty")
        return parse(orjson.loads(content) if content else None)
    except (orjson.JSONDecodeError, types.Malformed) as error:
        raise unanswered(
            op,
            f"the answer can't be understood: {error}",
            sent=True,
            status=200,
            request_id=headers.get("fly-request-id", ""),
        ) from None


def _ignore(_: Any) -> None:
    """For calls whose success says it all; the body may be empty, but not something else than JSON."""


class _Page(Protocol):
    @property
    def next_cursor(self) -> str: ...


_P = TypeVar("_P", bound=_Page)


async def _pages(op: str, fetch: Callable[[str | None], Awaitable[_P]]) -> AsyncIterator[_P]:
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await fetch(cursor)
        yield page
        if not page.next_cursor:
            return
        if page.next_cursor == cursor:
            break
        cursor = page.next_cursor
    raise _endless(op)


def _endless(op: str) -> FlyError:
    return unanswered(op, "the list does not end: its pages go in circles", sent=True)


def _hush(error: FlyError) -> None:
    """Fly's text may repeat what it was sent; the type of the error and its advice stay."""
    error.message = "Fly's answer is not shown, because it may hold a secret value"
    error.args = (error.op, error.status, error.message, error.request_id)


def _segment(op: str, name: str) -> str:
    """A name that goes into a path; names come from specs and statuses, and `..` would name something else."""
    if _SEGMENT.fullmatch(name):
        return name
    raise Invalid(op, 0, f"not sent: {name!r:.80} is not a name that Fly can hold")


def _machine_path(op: str, app: str, machine_id: str) -> str:
    return f"/apps/{_segment(op, app)}/machines/{_segment(op, machine_id)}"


def _volume_path(op: str, app: str, volume_id: str) -> str:
    return f"/apps/{_segment(op, app)}/volumes/{_segment(op, volume_id)}"


def _machine(app: str) -> Callable[[Any], types.Machine]:
    return lambda data: types.parse_machine(app, data)


def _volume(app: str) -> Callable[[Any], types.Volume]:
    return lambda data: types.parse_volume(app, data)


def _launch(min_secrets_version: int | None, skip_launch: bool) -> dict[str, Any]:
    body: dict[str, Any] = {} if min_secrets_version is None else {"min_secrets_version": min_secrets_version}
    return body | ({"skip_launch": True} if skip_launch else {})


def _page_query(updated_after: str | None, include_deleted: bool, cursor: str | None, limit: int) -> dict[str, str]:
    query = {"limit": str(limit), "include_deleted": "true" if include_deleted else "false"}
    if updated_after:
        query["updated_after"] = updated_after
    return query | ({"cursor": cursor} if cursor else {})
