"""What the supervisor keeps on the data volume: the bundle's files, and its own corner below `.roost/`.

In the corner are the last good bundle, sealed, and a short memory without secrets: which files came from the bundle,
which `restartedAt` is in effect, and which version the runtime's state belongs to. All of it may be lost or spoilt
without harm; nothing here is trusted.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import structlog
from pydantic import ConfigDict, Field, ValidationError

from roost_agent.contract.bundle import FilePath
from roost_agent.contract.paths import RESERVED_DIRECTORY
from roost_agent.contract.tokens import BadSeal, seal, unseal
from roost_agent.contract.wire import Count, Line, Name, RestartedAt, Version, Wire
from roost_agent.runtime import Layout, User
from roost_agent.tree import Staged, Tree

__all__ = ["Memory", "Rejected", "Trial", "Volume"]

_SEALED = f"{RESERVED_DIRECTORY}/bundle.sealed"
_MEMORY = f"{RESERVED_DIRECTORY}/memory.json"
_OURS_AND_THEIRS = 0o1777
"""As of /tmp: whoever has a directory there keeps it, and nobody else can move it away."""
_log = structlog.get_logger()


class Trial(Wire):
    """A version that runs and has not proved itself yet, the one before, and the snapshot of that one's state.

    `boots`: how many boots have gone on with it.
    """

    model_config = ConfigDict(extra="ignore")

    version: Version
    before: Version
    snapshot: Name
    boots: Count = 0


class Rejected(Wire):
    """A version that was taken back, why, and the `restartedAt` of that time: another one is leave to try again."""

    model_config = ConfigDict(extra="ignore")

    version: Version
    why: Line
    restarted_at: RestartedAt | None = None


class Memory(Wire):
    """What outlives a boot. Only what is understood is kept: someone else may have written it.

    `version` is the one to which the runtime's state belongs.
    """

    model_config = ConfigDict(extra="ignore")

    files: list[FilePath] = Field(default_factory=list)
    restarted_at: RestartedAt | None = None
    version: Version | None = None
    trial: Trial | None = None
    rejected: Rejected | None = None


class Volume:
    """Every method blocks on the disk; call it from a thread. All raise OSError where nothing else is said.

    `token` gives the agent's token, None while there is none.
    """

    def __init__(self, root: Path, token: Callable[[], str | None], user: User | None = None) -> None:
        self._tree = Tree(root)
        self._given = Tree(root, user)
        self._root = root
        self._user = user
        self._token = token

    def settle(self) -> None:
        """Makes the volume's root a place where the child may put things of its own, and touch nothing of ours."""
        if self._user is not None and os.geteuid() == 0:
            os.chown(self._root, 0, 0)
            self._root.chmod(_OURS_AND_THEIRS)
        self._tree.make(RESERVED_DIRECTORY)
        (self._root / RESERVED_DIRECTORY).chmod(0o711)  # through it the child reaches the versions that lie there

    def put(self, layout: Layout) -> None:
        """Makes the bundle's files be those: writes them all, and removes those that an earlier bundle had brought.

        First everything new is written beside its place, so that a full disk or a planted link leaves all as it was.
        """
        memory = self.memory
        wanted = {str(PurePosixPath(f.path)): f for f in layout.files}
        for directory in layout.directories:
            self._given.make(directory)
        staged: list[Staged] = []
        try:
            for path, file in wanted.items():
                content, mode = file.content.encode(), int(file.mode, 8)
                if not self._given.holds(path, content, mode):
                    staged.append(self._given.stage(path, content, mode))
            # Remembered before they appear: a file that is not remembered would never be removed.
            self.remember(files=sorted({*memory.files, *wanted}))
            while staged:
                self._given.commit(staged[0])
                del staged[0]
        except OSError:
            self._discard(staged)
            raise
        for seed in layout.seeds:
            self._given.write_new(seed.path, seed.content.encode(), int(seed.mode, 8))
        for directory in layout.closed:
            self._given.clear(directory, keep=wanted)
        left = [path for path in memory.files if path not in wanted and not self._removed(path)]
        self.remember(files=sorted([*wanted, *left]))

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
    def memory(self) -> Memory:
        """What is remembered; nothing, when that can't be read or understood. Never raises."""
        try:
            return Memory.read(self._tree.read(_MEMORY))
        except (OSError, ValidationError):
            return Memory()

    def remember(self, **change: object) -> None:
        """Changes fields of the memory."""
        before = self.memory
        if (after := before.model_copy(update=change)) != before:
            self._tree.write(_MEMORY, after.write())

    def takes_notes(self) -> None:
        """Writes down what is remembered already: whether that can be done at all."""
        self._tree.write(_MEMORY, self.memory.write())

    def _discard(self, staged: Sequence[Staged]) -> None:
        for each in staged:
            try:
                self._given.discard(each)
            except OSError:
                pass

    def _removed(self, path: str) -> bool:
        """False when a file is still there, which must not keep the new configuration from taking effect."""
        try:
            self._given.remove(path)
        except OSError as error:
            _log.warning("file of an earlier bundle not removed", path=path, why=error.strerror)
            return False
        return True
