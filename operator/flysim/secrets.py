"""App secrets: write-only values under one version number that every change raises."""

import re
from collections.abc import Mapping

from flysim import errors, requests
from flysim.call import Answer, Call, answer
from flysim.records import App, Secret, secret_json
from flysim.requests import MachineConfig, SetSecrets, SetValue
from flysim.world import World

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Secrets:
    """The calls on `/v1/apps/{app}/secrets`. Values never leave it but through `injected`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def list_secrets(self, call: Call) -> Answer:
        app = self._at_version(call)
        return answer(200, {"secrets": [secret_json(app.secrets[name]) for name in sorted(app.secrets)]})

    async def set_secrets(self, call: Call) -> Answer:
        app = self._world.living_app(call.params["app"])
        body = requests.read(SetSecrets, call.body)
        before = {name: secret.digest for name, secret in app.secrets.items()}
        changed = self._change(app, body.values)
        if before != {name: secret.digest for name, secret in app.secrets.items()}:
            call.effect = "secrets set"
        return answer(200, {"secrets": [secret_json(secret) for secret in changed], "version": app.secrets_version})

    async def set_secret(self, call: Call) -> Answer:
        app = self._world.living_app(call.params["app"])
        (secret,) = self._change(app, {call.params["name"]: requests.read(SetValue, call.body).value})
        call.effect = "secrets set"
        version = app.secrets_version
        return answer(201, secret_json(secret) | {"version": version, "Version": version})

    async def delete_secret(self, call: Call) -> Answer:
        app = self._world.living_app(call.params["app"])
        if call.params["name"] not in app.secrets:
            raise errors.secret_not_found()
        self._change(app, {call.params["name"]: None})
        call.effect = "secrets set"
        return answer(200, {"version": app.secrets_version})

    def _change(self, app: App, values: Mapping[str, str | None]) -> list[Secret]:
        """One new version; None deletes. Returns the secrets that were set."""
        for name in values:
            if _NAME.fullmatch(name) is None:
                raise errors.invalid(f"secret name {name!r}: letters, digits and underscores")
        now = self._world.clock.now()
        changed: list[Secret] = []
        for name, value in values.items():
            before = app.secrets.pop(name, None)
            if value is not None:
                created = before.created_at if before is not None else now
                app.secrets[name] = Secret(name, value, self._world.digest(value), created, now)
                changed.append(app.secrets[name])
        app.secrets_version += 1
        detail = {"names": sorted(values), "version": app.secrets_version}
        self._world.ledger.event("secrets_set", app=app.name, detail=detail)
        return changed

    def _at_version(self, call: Call) -> App:
        app = self._world.app(call.params["app"])
        wanted = requests.number(call.query, "min_version") or requests.number(call.query, "version") or 0
        if wanted > app.secrets_version:
            raise errors.secrets_not_yet()
        return app


def injected(app: App, config: MachineConfig) -> dict[str, str]:
    """The secrets that a machine of this config gets as environment variables, names with values."""
    process = config.process
    everything = {} if process.ignore_app_secrets else {name: secret.value for name, secret in app.secrets.items()}
    chosen = {
        entry.env_var: app.secrets[entry.name or entry.env_var].value
        for entry in process.secrets
        if (entry.name or entry.env_var) in app.secrets
    }
    return everything | chosen
