"""The owner's own randomness: noise and batches that nothing a scientist sends can seed, predict or repeat."""

from __future__ import annotations

import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_CHUNK = 1 << 16  # values computed at once, so that they stay in the processor's cache
_SUMMANDS = 4


class OwnerRandomness:
    """An AES-256-CTR keystream keyed by the operating system; a forked process takes a key of its own.

    Privacy: differential privacy holds against whoever cannot predict the noise and the batches. Torch's and numpy's generators
        are predictable from their seed, so neither is used here.
    """

    def __init__(self) -> None:
        self._rekey()

    def uniform(self, count: int) -> NDArray[np.float64]:
        """``count`` independent values, uniform on the multiples of 2^-53 in [0, 1)."""
        return np.right_shift(np.frombuffer(self._bytes(8 * count), dtype="<u8"), 11).astype(np.float64) * 2.0**-53

    def gaussian(self, shape: tuple[int, ...], std: float) -> NDArray[np.float64]:
        """Independent N(0, std^2) values in double precision.

        Each value is half the sum of four Box-Muller Gaussians of 53 random bits, so that which doubles can occur no longer
        tells the value that the noise was added to.
        Source: Holohan and Braghin 2021 (Secure random sampling in differential privacy), section 5.1, against
            Mironov 2012 (On significance of the least significant bits); Box and Muller 1958.
        """
        count = math.prod(shape)
        values = np.empty(count)
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            standard = self._box_muller(_SUMMANDS * size).reshape(_SUMMANDS, size)
            values[start : start + size] = standard.sum(axis=0) * (std / math.sqrt(_SUMMANDS))
        return values.reshape(shape)

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.int64]:
        """Indices below ``count``, each taken independently with probability ``rate``; often none at a small rate."""
        return np.flatnonzero(self.uniform(count) < rate)

    def _box_muller(self, count: int) -> NDArray[np.float64]:
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(half)))
        angle = 2.0 * math.pi * self.uniform(half)
        values = np.empty(2 * half)
        np.multiply(radius, np.cos(angle), out=values[:half])
        np.multiply(radius, np.sin(angle), out=values[half:])
        return values[:count]

    def _bytes(self, count: int) -> bytes:
        if os.getpid() != self._process:
            self._rekey()
        return self._keystream.update(bytes(count))

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._keystream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
