"""
The memory that the models of one enclave server take together.

Rule 1: a model counts from before it is fetched until it is wiped, so that nothing is begun that
        could not be ended.
Rule 2: what it counts for is said by its signed manifest: the bytes of its files, twice where the
        runtime keeps a packed copy of its weights. Queries in flight have a room of their own.
"""

from __future__ import annotations

from aigovtool.errors import UnavailableError
from aigovtool.sealing.manifest import SealedManifest

RETRY_AFTER_S = 30.0


class NoRoomError(UnavailableError):
    """One more model does not fit into the memory for models."""

    code = "enclave.memory"


class ModelRoom:
    """
    Args:
        max_bytes: of all models together.
        packed_bytes: models of at most this size are kept twice.
    """

    def __init__(self, max_bytes: int, *, packed_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._packed_bytes = packed_bytes
        self.taken_bytes = 0

    def take(self, model: SealedManifest) -> None:
        """Count a model; raises NoRoomError when it does not fit beside those that there are."""
        size = self.bytes_of(model)
        if self.lacking_bytes(model) > 0:
            raise NoRoomError(
                "there is no memory for the model",
                came=f"{size} bytes, beside {self.taken_bytes} of other models",
                mend="give the enclave more memory and a larger --max-model-bytes, or fewer loans",
                retry_after_s=RETRY_AFTER_S,
            )
        self.taken_bytes += size

    def lacking_bytes(self, model: SealedManifest) -> int:
        """How many bytes are too few for a model, 0 or less when it fits."""
        return self.taken_bytes + self.bytes_of(model) - self._max_bytes

    def give_back(self, model: SealedManifest) -> None:
        """A model is wiped."""
        self.taken_bytes -= self.bytes_of(model)

    def fits_instead(self, model: SealedManifest, of: SealedManifest) -> bool:
        """Whether *model* would fit once *of*, which is counted, is wiped."""
        return self.lacking_bytes(model) <= self.bytes_of(of)

    def bytes_of(self, model: SealedManifest) -> int:
        """What a model counts for."""
        size = model.plaintext_size
        return 2 * size if size <= self._packed_bytes else size
