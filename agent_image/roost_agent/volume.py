"""What the supervisor keeps on the data volume: the bundle's files, and its own corner below `.roost/`.

In the corner are the last good bundle, sealed, and a short memory without secrets: which files came from the bundle,
and which `restartedAt` is in effect. All of it may be lost or spoilt without harm; nothing here is trusted.
"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import structlog
from pydantic import ConfigDict, Field, ValidationError

from roost_agent.contract.bundle import BundleFile, FilePath
from roost_agent.contract.paths import RESERVED_DIRECTORY
from roost_agent.contract.tokens import BadSeal, seal, unseal
from roost_agent.contract.wire import RestartedAt, Wire
from roost_agent.tree import Staged, Tree

__all__ = ["Volume"]

_SEALED = f"{RESERVED_DIRECTORY}/bundle.sealed"
_MEMORY = f"{RESERVED_DIRECTORY}/memory.json"
_log = structlog.get_logger()


class _Memory(Wire):
    """What outlives a boot. Only what is understood is kept: someone else may have written it."""

    model_config = ConfigDict(extra="ignore")

    files: list[FilePath] = Field(default_factory=list)
    restarted_at: RestartedAt | None = None


class Volume:
    """Every method blocks on the disk; call it from a thread. All raise OSError where nothing else is said.

    `token` gives the agent's token, None while there is none.
    """

    def __init__(self, root: Path, token: Callable[[], str | None]) -> None:
        self._tree = Tree(root)
        self._token = token

    def put(self, files: Sequence[BundleFile]) -> None:
        """Makes the bundle's files be those: writes them all, and removes those that an earlier bundle had brought.

        First everything new is written beside its place, so that a full disk or a planted link leaves all as it was.
        """
        memory = self._remembered()
        wanted = {str(PurePosixPath(f.path)): f for f in files}
        staged: list[Staged] = []
        try:
            for path, file in wanted.items():
                content, mode = file.content.encode(), int(file.mode, 8)
                if not self._tree.holds(path, content, mode):
                    staged.append(self._tree.stage(path, content, mode))
            # Remembered before they appear: a file that is not remembered would never be removed.
            self._remember(files=sorted({*memory.files, *wanted}))
        except OSError:
            self._discard(staged)
            raise
        for each in staged:
            self._tree.commit(each)
        left = [path for path in memory.files if path not in wanted and not self._removed(path)]
        self._remember(files=sorted([*wanted, *left]))

    def keep(self, bundle: bytes) -> None:
        """Keeps this bundle, sealed, as the one to start with while the endpoint is away."""
        token = self._token()
        assert token is not None, "no bundle is fetched without a token"
        self._tree.write(_SEALED, seal(token, bundle))

    def last_good(self) -> bytes | None:
        """The bundle that was kept; None when there is none, or none that the token opens. Never raises."""
        if (token := self._token()) is None:
            return None
        try:
            return unseal(token, self._tree.read(_SEALED))
        except FileNotFoundError:
            return None
        except (OSError, BadSeal) as error:
            _log.warning("last good bundle ignored", why=error.strerror if isinstance(error, OSError) else str(error))
            return None

    def forget(self) -> None:
        """Removes the kept bundle: an agent that was revoked or replaced must not start from it."""
        self._tree.remove(_SEALED)

    @property
    def restarted_at(self) -> str | None:
        return self._remembered().restarted_at

    def remember_restart(self, restarted_at: str | None) -> None:
        self._remember(restarted_at=restarted_at)

    def _remembered(self) -> _Memory:
        try:
            return _Memory.read(self._tree.read(_MEMORY))
        except (OSError, ValidationError):
            return _Memory()

    def _remember(self, **change: object) -> None:
        before = self._remembered()
        if (after := before.model_copy(update=change)) != before:
            self._tree.write(_MEMORY, after.write())

    def _discard(self, staged: Sequence[Staged]) -> None:
        for each in staged:
            try:
                self._tree.discard(each)
            except OSError:
                pass

    def _removed(self, path: str) -> bool:
        """False when a file is still there, which must not keep the new configuration from taking effect."""
        try:
            self._tree.remove(path)
        except OSError as error:
            _log.warning("file of an earlier bundle not removed", path=path, why=error.strerror)
            return False
        return True
