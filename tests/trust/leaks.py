"""Does something secret stand in what was told? Any 16 bytes of it, raw, in hex, in base64, or as numbers written out.

What was told is decoded, rather than the secrets encoded, so that a piece is found wherever it starts and however it was cut.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

WINDOW = 16  # bytes
PLAIN = 4  # windows of fewer different bytes, such as runs of zeros, stand in many places and tell nothing
_HEX = re.compile(rb"[0-9a-fA-F]{32,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{22,}")
_NUMBER = re.compile(rb"-?\d+\.\d+(?:[eE][-+]?\d+)?")
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class Leaks:
    """What to look for, by name: bytes of which no window may be seen, and sentences that may not be seen as a whole."""

    def __init__(self, secrets: Mapping[str, bytes], sentences: Mapping[str, str]) -> None:
        self._secrets = {name: np.unique(_hashes(_telling(_windows(data)))) for name, data in secrets.items()}
        self._sentences = {name: (text.encode(), json.dumps(text)[1:-1].encode()) for name, text in sentences.items()}
        blind = [name for name, hashes in self._secrets.items() if not hashes.size]
        if blind:
            raise ValueError(f"no window to look for in {', '.join(blind)}")

    def found_in(self, told: bytes) -> set[str]:
        """Names of the secrets of which a piece stands in ``told``."""
        views = b"\0".join(_views(told))
        seen = np.unique(_hashes(_windows(views)))
        found = {name for name, hashes in self._secrets.items() if np.isin(hashes, seen, assume_unique=True).any()}
        return found | {name for name, forms in self._sentences.items() if any(form in views for form in forms)}


def _views(told: bytes) -> Iterator[bytes]:
    """The text itself, and everything that can be decoded from it, at every alignment."""
    yield told
    for match in _HEX.finditer(told):
        for start in (0, 1):
            digits = match[0][start:]
            yield bytes.fromhex(digits[: len(digits) & ~1].decode())
    for match in _BASE64.finditer(told):
        plain = match[0].translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            yield base64.b64decode(plain[start : start + (len(plain) - start & ~3)])
    numbers = [float(number) for number in _NUMBER.findall(told)]
    yield np.array(numbers, "<f4").tobytes()
    yield np.array(numbers, "<f8").tobytes()


def _windows(data: bytes) -> NDArray[np.uint64]:
    """Every window, at every byte, as two words: (n, 2)."""
    starts = [np.frombuffer(data, "<u8", (len(data) - start) // 8, start) for start in range(min(8, len(data)))]
    pairs = [np.stack([words[:-1], words[1:]], axis=1) for words in starts if words.size > 1]
    return np.concatenate([*pairs, np.empty((0, 2), np.uint64)])


def _telling(windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The windows of at least PLAIN different bytes."""
    rows = np.sort(np.ascontiguousarray(windows).view(np.uint8).reshape(-1, WINDOW), axis=1)
    return windows[(np.diff(rows, axis=1) != 0).sum(axis=1) + 1 >= PLAIN]


def _hashes(windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits a window; two windows share them by chance in less than 1 of 2**60 pairs."""
    return windows[:, 0] * _MIX[0] ^ windows[:, 1] * _MIX[1]
