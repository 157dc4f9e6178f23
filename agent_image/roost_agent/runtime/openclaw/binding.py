"""The runtime OpenClaw, put together from its parts.

`versions` brings it; `config`, `workspace` and `check` make what it reads; `probe` and `sight` follow its life over
`gateway`. What it prints may be an answer of the model, so it goes through `output`.
"""

import asyncio
import errno
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roost_agent import policy
from roost_agent.contract.bundle import ConfigBundle, Readiness
from roost_agent.output import Output
from roost_agent.redact import Redactor
from roost_agent.runtime import Launch, Layout, Ran, Refused, Run, Sight, Tell
from roost_agent.runtime.openclaw import STATE, Places, config, probe, traits, workspace
from roost_agent.runtime.openclaw.check import problems, refusals
from roost_agent.runtime.openclaw.drain import drain
from roost_agent.runtime.openclaw.gateway import Gateway, GatewayAway, GatewayError
from roost_agent.runtime.openclaw.pairing import Pairings
from roost_agent.runtime.openclaw.reload import reloaded
from roost_agent.runtime.openclaw.sight import Observer
from roost_agent.runtime.openclaw.versions import Installed, Versions
from roost_agent.settings import Settings

__all__ = ["OpenClawRuntime"]

_LOOPBACK = "127.0.0.1"
_RELOAD_SECONDS = 15.0
_PREFLIGHT_SECONDS = 120.0
_STANDALONE = Path(__file__).with_name("standalone.py")
_TAKES = frozenset({"exact", "migration-required"})
"""What `database preflight` says of a state that the version takes."""
_MOST_PROBLEMS = 3


class OpenClawRuntime:
    """OpenClaw of the versions that the image or the volume has.

    Args:
        run: Runs short programs.
        token: The gateway's token as it is now.
        hidden: Every value that must appear nowhere.
        changed: Called when `sight` has changed.
    """

    def __init__(
        self,
        settings: Settings,
        run: Run,
        *,
        token: Callable[[], str | None],
        hidden: Callable[[], Iterable[str]],
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._run = run
        self._places = Places(settings.data_dir)
        self._versions = Versions(
            settings.openclaw_dir,
            settings.data_dir,
            run,
            node=settings.node,
            env=settings.fetch_env,
            user=settings.user,
        )
        self.address = (_LOOPBACK, settings.openclaw_port)
        """Where it listens."""
        self._gateway = Gateway(*self.address, lambda: token() or "")
        self._output = Output(hidden)
        self._observer = Observer(self._gateway, changed=changed, clean=Redactor(hidden))
        self._launched: bytes | None = None
        """The inputs of the process that was started last."""
        self.pairings = Pairings(self._gateway, self._places.state, run, settings.user)

    @property
    def state(self) -> Sequence[str]:
        return (STATE,)

    @property
    def sight(self) -> Sight:
        return self._observer.sight

    async def install(self, bundle: ConfigBundle) -> None:
        await self._versions.install(traits.of(bundle.to_run.version).version)

    async def check(self, bundle: ConfigBundle) -> Layout:
        rendered = self._rendered(bundle)
        layout = workspace.layout(bundle, rendered)
        self._environment(bundle)
        installed = self._installed(bundle)
        found = await problems(rendered, installed, run=self._run)
        if not found and self._launched not in (None, self.inputs(bundle)):
            found = await refusals(rendered, installed, run=self._run)  # slower, and all that a new process would say
        if found:
            more = f" and {len(found) - _MOST_PROBLEMS} more" if len(found) > _MOST_PROBLEMS else ""
            raise Refused(f"openclaw.json: {'; '.join(found[:_MOST_PROBLEMS])}{more}")
        return layout

    def inputs(self, bundle: ConfigBundle) -> bytes:
        known = traits.of(bundle.to_run.version)
        return config.restart_inputs(self._here(bundle), self._settings.base_env, places=self._places, traits=known)

    def launch(self, bundle: ConfigBundle) -> Launch:
        installed, self._launched = self._installed(bundle), self.inputs(bundle)
        deadline = (bundle.to_run.readiness or Readiness()).initial_deadline_seconds

        async def follow(tell: Tell) -> str:
            return await probe.follow(tell, self._gateway, deadline=deadline, while_ready=self._observer.run)

        return Launch(
            (str(installed.node), str(installed.entry), "gateway", "run"),
            self._environment(bundle),
            self._places.home,
            follow,
            policy.gateway,
            output=self._output.line,
            user=self._settings.user,
            term_group=False,
        )

    async def reloaded(self, bundle: ConfigBundle) -> None:
        try:
            await reloaded(self._gateway, self._rendered(bundle), _RELOAD_SECONDS)
        except GatewayAway:
            return  # it ended, so that it is started anew with what lies there
        except GatewayError as error:
            raise Refused(f"openclaw.json: {error.code}") from None
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, f"{error}: it waits for what is under way") from None

    async def drain(self, seconds: float) -> None:
        await drain(self._gateway, seconds)

    async def preflight(self, bundle: ConfigBundle) -> None:
        database = self._places.state / "state" / "openclaw.sqlite"
        if not await asyncio.to_thread(database.is_file):
            return  # it has never run
        copy = self._places.temporary / f"preflight-{secrets.token_hex(8)}.sqlite"
        try:
            await self._ran((sys.executable, "-I", "-S", str(_STANDALONE), str(database), str(copy)), {})
            installed = self._installed(bundle)
            argv = (str(installed.node), str(installed.entry), "database", "preflight", str(copy), "--json")
            env = self._environment(bundle)
            ran = await self._ran(argv, env | {"OPENCLAW_STATE_DIR": f"{copy}.state", "HOME": f"{copy}.state"})
        finally:
            await asyncio.to_thread(self._remove, copy)
        try:
            said = json.loads(ran.stdout)
            status, found, target = str(said["status"]), said.get("foundVersion"), said.get("targetVersion")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refused(f"its state can't be looked at (exit {ran.code})") from None
        if status not in _TAKES:
            raise Refused(f"its state has schema {found}, and {installed.version} knows {target} ({status})")

    async def forget_others(self, versions: Collection[str]) -> None:
        await self._versions.keep(versions)

    async def _ran(self, argv: Sequence[str], env: Mapping[str, str]) -> Ran:
        try:
            return await self._run(
                argv, env=env, cwd=self._places.temporary, user=self._settings.user, seconds=_PREFLIGHT_SECONDS
            )
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, f"no answer within {_PREFLIGHT_SECONDS:.0f} s") from None

    def _remove(self, copy: Path) -> None:
        for left in copy.parent.glob(f"{copy.name}*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    async def probe(self, bundle: ConfigBundle) -> tuple[str, str]:
        """Version and commit, as the installed program says. Raises OSError and TimeoutError."""
        return await self._versions.probe(self._installed(bundle))

    def _rendered(self, bundle: ConfigBundle) -> dict[str, Any]:
        return config.render(self._here(bundle), places=self._places, traits=traits.of(bundle.to_run.version))

    def _environment(self, bundle: ConfigBundle) -> dict[str, str]:
        return config.environment(self._here(bundle), self._settings.base_env, places=self._places)

    def _here(self, bundle: ConfigBundle) -> ConfigBundle:
        """The bundle with the port that this machine has for it."""
        return bundle.model_copy(update={"gateway": bundle.gateway.model_copy(update={"port": self.address[1]})})

    def _installed(self, bundle: ConfigBundle) -> Installed:
        """Raises Refused: that version is not here."""
        version = bundle.to_run.version
        if (found := self._versions.find(version)) is None:
            raise Refused(f"runtime.version {version} is not installed")
        return found
