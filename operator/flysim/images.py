"""Image references and the digests behind them, without a registry.

A reference's digest is made up from its text, so it is the same in every simulator, until it is moved to another one. A
digest that was ever given out leads back to the reference that it stood for: `repo@sha256:…` runs what the tag ran.
"""

import hashlib


class Images:
    """Which digest each reference has now, and which reference each digest of a repository stands for."""

    def __init__(self) -> None:
        self._moved: dict[str, str] = {}
        self._references: dict[tuple[str, str], str] = {}

    def move(self, reference: str, digest: str) -> None:
        """From now on the reference has this digest; what was pulled before keeps the one that it had."""
        self.resolve(reference)
        self._moved[reference] = digest
        self._references[_repository(reference), digest] = reference

    def resolve(self, image: str) -> tuple[str, str]:
        """The digest of what a machine's config asks for, and the reference under which it is run."""
        name, at, digest = image.partition("@")
        if at:
            return digest, self._references.get((_repository(name), digest), image)
        digest = self._moved.get(image) or f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"
        self._references[_repository(image), digest] = image
        return digest, image


def _repository(name: str) -> str:
    """Without the tag; a colon before the last slash belongs to the registry's port."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]
