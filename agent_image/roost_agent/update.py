"""Another version of the runtime, with a net: what runs is drained, its state kept, the new one watched, or taken back.

What has begun is remembered on the volume before anything is changed, so a machine that dies in the middle goes on, or
back, at its next boot. Only one that was ready for a minute without a break is kept.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import structlog

from roost_agent import log
from roost_agent.contract.bundle import ConfigBundle
from roost_agent.runtime import Refused, RuntimeBinding
from roost_agent.snapshot import NotRestored, Snapshots
from roost_agent.supervisor import Supervisor
from roost_agent.vitals import printable
from roost_agent.volume import Rejected, Trial, Volume

__all__ = ["Update", "rejection"]

_DRAIN_SECONDS = 30.0
_GATE_SECONDS = 300.0
"""A first start of a version may unpack and migrate for minutes."""
_PROOF_SECONDS = 60.0
_KEPT = 2
_MOST_BOOTS = 3
_LONGEST = 200
"""Characters of a `Line`."""
_log = structlog.get_logger()


def rejection(trial: Trial, why: str, restarted_at: str | None) -> Rejected:
    """The memory of a version that was tried in vain."""
    begins = f"version {trial.version} "
    ends = f". {trial.before} runs: name another version, or restart to try again"
    said = printable(why)[: max(0, _LONGEST - len(begins) - len(ends))]
    return Rejected(version=trial.version, why=f"{begins}{said}{ends}"[:_LONGEST], restarted_at=restarted_at)


class Update:
    """The steps of one change of version, for `Control`, which calls them one after the other.

    Args:
        now: The wall clock.
    """

    def __init__(
        self, volume: Volume, snapshots: Snapshots, supervisor: Supervisor, *, now: Callable[[], datetime]
    ) -> None:
        self._volume = volume
        self._snapshots = snapshots
        self._supervisor = supervisor
        self._now = now

    def recover(self) -> None:
        """Ends what a crash interrupted, before anything else touches the state. Blocks on the disk; raises OSError."""
        self._snapshots.recover()

    async def begin(self, binding: RuntimeBinding, bundle: ConfigBundle, before: str) -> None:
        """Ends what runs, keeps its state, and sees that the new version takes that. The new one is on trial then.

        Raises:
            Refused: it does not take the state, or that can't be kept. Nothing has been changed, nothing runs, and the
                version is not to be tried again unasked.
            OSError: the volume can't be written to.
        """
        trial = Trial(version=bundle.to_run.version, before=before, snapshot=f"before-{self._now():%Y%m%dT%H%M%S%f}")
        # Before anything is ended: a refusal that can't be remembered would end it again with every repetition.
        await asyncio.to_thread(self._volume.takes_notes)
        _log.info("update begins", version=trial.version, before=before)
        await binding.drain(_DRAIN_SECONDS)
        await self._supervisor.halt()
        try:
            await asyncio.to_thread(self._take, binding.state, trial)
            await binding.preflight(bundle)
        except (Refused, NotRestored, OSError) as error:
            rejected = rejection(trial, f"can't take over: {log.reason(error)}", bundle.to_run.restarted_at)
            await asyncio.to_thread(partial(self._volume.remember, rejected=rejected))
            raise Refused(rejected.why) from None
        await asyncio.to_thread(partial(self._volume.remember, trial=trial))

    def _take(self, paths: Sequence[str], trial: Trial) -> None:
        self._snapshots.keep(_KEPT - 1)
        self._snapshots.take(paths, label=trial.snapshot, version=trial.before)

    def worn(self, trial: Trial) -> str | None:
        """Why a trial is to end that so many boots have gone on with already; None: it may go on."""
        return f"did not outlive {trial.boots} boots" if trial.boots >= _MOST_BOOTS else None

    def boot(self, trial: Trial) -> None:
        """One more boot goes on with the trial. Blocks on the disk; raises OSError."""
        self._volume.remember(trial=trial.model_copy(update={"boots": trial.boots + 1}))

    async def prove(self) -> str | None:
        """Watches the new version, which has just been started. Returns why it is no good; None when it is."""
        watched = self._supervisor
        try:
            async with asyncio.timeout(_GATE_SECONDS):
                await watched.until(lambda: watched.ready or watched.ends > 0)
        except TimeoutError:
            return f"was not ready within {_GATE_SECONDS:.0f} s"
        try:
            async with asyncio.timeout(_PROOF_SECONDS):
                await watched.until(lambda: watched.ends > 0)
        except TimeoutError:
            return None
        how = watched.state.last_exit
        return "ended" if how is None else f"ended with {f'signal {how.signal}' if how.signal else f'exit {how.code}'}"

    def keep(self, trial: Trial) -> None:
        """The new version is the one from now on. Blocks on the disk; raises OSError."""
        _log.info("update done", version=trial.version)
        self._volume.remember(version=trial.version, trial=None, rejected=None)

    async def take_back(self, trial: Trial, rejected: Rejected | None) -> None:
        """Ends what runs, and puts the state from before in its place.

        Raises:
            Refused: that can never be. The state and its version stay, and nothing runs.
            OSError: it is to be tried again.
        """
        _log.warning("update taken back", version=trial.version, before=trial.before)
        await self._supervisor.halt()

        def write() -> None:
            try:
                kept = [each for each in self._snapshots.list() if each.label == trial.snapshot]
                if not kept:
                    raise NotRestored(f"snapshot {trial.snapshot} is gone")
                self._snapshots.restore(kept[0])
            except NotRestored as error:
                self._volume.remember(version=trial.version, trial=None)
                raise Refused(f"version {trial.version} can't be taken back: {error}") from None
            self._volume.remember(version=trial.before, trial=None, rejected=rejected)

        await asyncio.to_thread(write)
