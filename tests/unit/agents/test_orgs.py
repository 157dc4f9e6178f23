"""Fly from above: what the lists of an org show is handed on, and that they can't be had is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from roost.agents import orgs as orgs_module
from roost.agents.orgs import FlyToken, Orgs
from roost.fly import errors
from roost.fly import refresher as refresher_module
from roost.fly.refresher import State, Sweep, VolumeSweep
from roost.settings import Credential, Settings
from roost.telemetry.metrics import Metrics

MACHINE = {"app_name": "ag-1", "id": "e1", "state": "started", "config": {"image": "x"}}
VOLUME = {"app_name": "ag-1", "id": "vol_1", "state": "created", "size_gb": 1}


class Token(FlyToken):
    """A token that needs no Kubernetes."""

    def __init__(self) -> None:
        super().__init__(None, "roost-system", Credential(), lambda: None)  # type: ignore[arg-type]

    async def __call__(self) -> str | None:
        return "fm2_x"


@dataclass
class World:
    orgs: Orgs
    metrics: Metrics
    told: asyncio.Queue[tuple[str, str, Sweep]] = field(default_factory=asyncio.Queue)
    volumes: asyncio.Queue[tuple[str, str, VolumeSweep]] = field(default_factory=asyncio.Queue)


def fly_says(status: int, text: str = "") -> Callable[[web.Request], Awaitable[web.Response]]:
    """Every list of the org succeeds with one thing, or fails; an app's own lists always succeed."""

    async def handle(request: web.Request) -> web.Response:
        parts = request.path.split("/")
        kind, item = parts[-1], MACHINE if parts[-1] == "machines" else VOLUME
        if "apps" in parts:
            return web.json_response([item])
        return web.json_response({kind: [item]} if status == 200 else {"error": text}, status=status)

    return handle


@contextlib.asynccontextmanager
async def world(handle: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[World]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    settings = Settings.model_validate({"fly": {"base_url": f"http://{host}:{port}"}})
    metrics = Metrics()
    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            orgs = Orgs(
                settings,
                {"default": Token()},
                metrics,
                tasks,
                lambda credential, org, sweep: here.told.put_nowait((credential, org, sweep)),
                lambda credential, org, sweep: here.volumes.put_nowait((credential, org, sweep)),
                lambda credential, org: [f"ag-of-{credential}-{org}"],
            )
            here = World(orgs, metrics)
            async with orgs:
                yield here
                orgs.stop()
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresher_module, "MIN_GAP_SECONDS", 0.05)


async def test_an_org_that_is_watched_is_listed_and_both_lists_are_handed_on() -> None:
    async with world(fly_says(200)) as here:
        assert not here.orgs.swept("default", "personal")
        here.orgs.watch("default", "personal")
        here.orgs.watch("default", "personal")

        credential, org, sweep = await here.told.get()
        assert (credential, org, [row.id for row in sweep.rows]) == ("default", "personal", ["e1"])
        credential, org, volumes = await here.volumes.get()
        assert (credential, org, [volume.id for volume in volumes.rows]) == ("default", "personal", ["vol_1"])
        assert here.orgs.swept("default", "personal")
        assert here.orgs.listing("default", "personal").state is State.OK
        assert not here.orgs.swept("default", "other")
        assert here.orgs.listing("default", "other").state is State.STARTING
        assert (here.metrics.registry.get_sample_value("roost_fly_sweep_timestamp_seconds", {"org": org}) or 0) > 1e9


async def test_an_org_that_cannot_be_listed_holds_up_nobody_and_its_apps_are_listed() -> None:
    async with world(fly_says(403, "not allowed")) as here:
        here.orgs.watch("default", "personal")

        _, _, sweep = await here.told.get()
        _, _, volumes = await here.volumes.get()

        assert (sweep.apps, [row.app for row in sweep.rows]) == ({"ag-of-default-personal"}, ["ag-of-default-personal"])
        assert volumes.apps == {"ag-of-default-personal"}
        assert here.orgs.swept("default", "personal")
        health = here.orgs.listing("default", "personal")
        assert (health.state, "not allowed" in health.message) == (State.CANNOT_LIST_ORG, True)


async def test_an_org_whose_list_takes_long_is_waited_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        reached.set()
        await go_on.wait()
        return web.json_response({})

    async with world(hang) as here:
        here.orgs.watch("default", "personal")
        await reached.wait()
        assert not here.orgs.swept("default", "personal")
        monkeypatch.setattr(orgs_module, "PATIENCE_SECONDS", -1.0)
        assert here.orgs.swept("default", "personal")
        go_on.set()


async def test_that_fly_answers_nobody_is_a_metric() -> None:
    async with world(fly_says(502, "bad gateway")) as here:
        fly = here.orgs.flies["default"]
        assert here.metrics.registry.get_sample_value("roost_fly_breaker_open") == 0
        for n in range(5):
            with pytest.raises(errors.Unavailable):
                await fly.org_machines(f"org-{n}")
        assert here.metrics.registry.get_sample_value("roost_fly_breaker_open") == 1
