"""Apps: their names are one space for everybody, and deleting one takes everything in it along."""

import asyncio
import re

from flysim import errors, paging, requests
from flysim.call import Answer, Call, answer
from flysim.life import Life
from flysim.records import App, Machine, app_json
from flysim.requests import CreateApp
from flysim.runner import Runner
from flysim.world import World

_NAME = re.compile(r"[a-z0-9-]{1,62}")
_PAGE = 5000


class Apps:
    """The calls on `/v1/apps`."""

    def __init__(self, world: World, life: Life, runner: Runner) -> None:
        self._world = world
        self._life = life
        self._runner = runner
        self._deletions: set[asyncio.Task[None]] = set()

    async def create_app(self, call: Call) -> Answer:
        body = requests.read(CreateApp, call.body)
        if not body.org_slug:
            raise errors.org_missing()
        self._world.require_org(body.org_slug)
        if not (app := self._same_again(body)):
            app = self._make(body)
            call.app, call.effect = app.name, "app created"
        return answer(201, {"id": app.id, "created_at": int(app.created_at * 1000)})

    def _same_again(self, body: CreateApp) -> App | None:
        """The app that this idempotency key has made before. Raises Refusal (422)."""
        if not body.idempotency_key:
            return None
        app = self._world.idempotency.get((body.org_slug, body.idempotency_key))
        if app is not None and body.wanted not in ("", app.name):
            raise errors.idempotency_key_reused()
        return app

    def _make(self, body: CreateApp) -> App:
        world = self._world
        name = body.wanted or f"{world.ids.machine_name()}-{world.ids.zone()}"
        if _NAME.fullmatch(name) is None:
            raise errors.app_name_bad()
        if name in world.apps:
            raise errors.app_name_taken()
        network = body.network or "default"
        app = App(world.ids.app(), world.ids.number(), name, body.org_slug, network, world.clock.now())
        world.apps[name] = app
        if body.idempotency_key:
            world.idempotency[body.org_slug, body.idempotency_key] = app
        world.ledger.event("app_created", app=name, detail={"org": app.org, "network": app.network})
        return app

    async def list_apps(self, call: Call) -> Answer:
        if not (slug := requests.last(call.query, "org_slug")):
            raise errors.org_missing()
        self._world.require_org(slug)
        apps = [app for app in self._world.apps.values() if app.org == slug]
        shown, cursor = paging.page(
            apps, lambda app: (0.0, app.name), call.query, now=self._world.clock.now(), most=_PAGE
        )
        rows = [app_json(app) for app in shown]
        return answer(200, {"total_apps": len(apps), "apps": rows} | ({"next_cursor": cursor} if cursor else {}))

    async def get_app(self, call: Call) -> Answer:
        return answer(200, app_json(self._world.seen_app(call.params["app"])))

    async def delete_app(self, call: Call) -> Answer:
        """Without force, machines that live end in their own time, and the app is there until they have."""
        app = self._world.app(call.params["app"])
        force = requests.flag(call.query, "force")
        if not app.deleting or force:
            call.effect = None if app.deleting else "app deleted"
            app.deleting = True
            living = [machine for machine in app.machines.values() if machine.state != "destroyed"]
            for machine in living:
                self._life.destroy(machine, gracefully=not force)
            if force:
                self._forget(app)
            if not living:
                self._cascade(app)
            deletion = asyncio.create_task(self._delete(app, living), name=f"deletion of app {app.name}")
            self._deletions.add(deletion)
            deletion.add_done_callback(self._deletions.discard)
        return answer(202)

    async def _delete(self, app: App, living: list[Machine]) -> None:
        if living:
            await self._life.gone(living)
            self._cascade(app)
        for volume in app.volumes.values():
            await self._runner.drop_volume(volume.id)

    def _cascade(self, app: App) -> None:
        """All machines have ended: the volumes go, then the app itself."""
        for volume in app.volumes.values():
            if volume.state != "destroyed":
                if volume.deleted_at is None:
                    volume.deleted_at = self._world.clock.now()
                    self._world.ledger.event("volume_destroyed", app=app.name, volume=volume.id)
                volume.state, volume.machine_id = "destroyed", None
                self._world.touch(volume)
        self._forget(app)

    def _forget(self, app: App) -> None:
        """The app can't be seen any more, and its name is free."""
        if self._world.apps.get(app.name) is app:
            del self._world.apps[app.name]
            self._world.ledger.event("app_destroyed", app=app.name)

    async def close(self) -> None:
        """Ends deletions that are still under way."""
        for deletion in self._deletions:
            deletion.cancel()
        await asyncio.gather(*self._deletions, return_exceptions=True)
