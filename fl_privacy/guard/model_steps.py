"""Models that a guard makes itself, of one that it has and a step to the next: so a round need not bring a whole model.

Both must have been brought by the caller's own key, or made here of what it brought; what others have brought is answered as if
it were not there. The digest that the caller gives decides whether the result is kept, and an order names models by digest: a
step can therefore give an owner no model but the one that the order names.
"""

from __future__ import annotations

import asyncio
import os
from typing import BinaryIO

from fl_privacy.compression.steps import LARGEST_COMPOSED, apply_step
from fl_privacy.errors import DigestMismatch, TooLarge
from fl_privacy.guard.blobs import Blobs
from fl_privacy.parameters import from_bytes, to_bytes


class ModelSteps:
    """Reads whole models for callers, one at a time: a core and some gigabytes at most, whoever asks how often."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs, self._turn = blobs, asyncio.Lock()

    async def holds(self, sha256: str, uploader: str) -> bool:
        """Whether this key need not send a blob; see ``Blobs.holds``. Raises: MessageError (name)."""
        async with self._turn:
            return await asyncio.to_thread(self._blobs.holds, sha256, uploader)

    async def compose(self, model: str, base: str, step: str, uploader: str) -> None:
        """Make the blob ``model`` of two that this key has brought (all by sha256), and keep it as if the key had brought it.

        The step is deleted then. The same request again changes nothing.
        Raises: BlobMissing (base or step) and TooLarge (to be made here, or quota), after which the model may be sent whole;
            DigestMismatch (the result is not ``model``), CompressionError, ModelError, MessageError (name). Nothing is kept.
        """
        async with self._turn:
            await asyncio.to_thread(self._compose, model, base, step, uploader)

    def _compose(self, model: str, base: str, step: str, uploader: str) -> None:
        if self._blobs.holds(model, uploader):
            return  # the answer was lost
        with self._blobs.open(base, uploader) as before, self._blobs.open(step, uploader) as change:
            if _size(before) + _size(change) > LARGEST_COMPOSED:
                raise TooLarge(f"this guard makes models of at most {LARGEST_COMPOSED} bytes itself; send the whole model")
            content = to_bytes(apply_step(from_bytes(before.read()), change.read()))
        try:
            self._blobs.store(model, content, uploader)
        except DigestMismatch:
            told = f"model {base[:16]}… and step {step[:16]}… do not give model {model[:16]}… here"
            raise DigestMismatch(f"{told}; owner and scientist need the same versions of numpy and safetensors") from None
        self._blobs.discard(step, uploader)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
