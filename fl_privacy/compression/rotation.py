"""The public random rotation R = H diag(+-1) of a flat update: spreads each coordinate over 4096, so that none stands out.

H is the Hadamard matrix of a block, divided by the root of its size: orthonormal and symmetric, so R^-1 = diag(+-1) H. What is
left after the last whole block of 4096 is cut into blocks of falling powers of two, those of its binary digits: nothing is
padded, a rotated update is as long as it was, and R is orthonormal at every length.

Every step adds or subtracts two float32 numbers in a fixed order: the result has the same bits on every machine.
Source: Suresh et al. 2017 (Distributed mean estimation), section 3; the transform is Pease's (1968), its steps all alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fl_privacy.compression.keystream import keystream
from fl_privacy.parameters import Vector

BLOCK = 4096  # coordinates that are mixed with one another
_STRETCH = 64 * BLOCK  # coordinates that are worked on at once, 1 MB: they stay in the processor's cache


def rotate(vector: Vector, seed: bytes) -> Vector:
    """R vector: float32 (n,) -> new float32 (n,) of the same norm. Linear but for float32's rounding; ``seed`` is public."""
    rotated = vector.astype(np.float32, order="C")
    for number, (piece, block) in enumerate(_pieces(rotated)):
        piece *= _signs(seed, number, piece.size)
        _hadamard(piece.reshape(-1, block))
    return rotated


def unrotate(vector: Vector, seed: bytes) -> Vector:
    """R^-1 vector, which is also R transposed: float32 (n,) -> new float32 (n,)."""
    restored = vector.astype(np.float32, order="C")
    for number, (piece, block) in enumerate(_pieces(restored)):
        _hadamard(piece.reshape(-1, block))
        piece *= _signs(seed, number, piece.size)
    return restored


def _pieces(vector: Vector) -> Iterator[tuple[Vector, int]]:
    """Views of the vector one after the other, with the size of the blocks that each is made of."""
    whole = vector.size - vector.size % BLOCK
    for start in range(0, whole, _STRETCH):
        yield vector[start : min(start + _STRETCH, whole)], BLOCK
    start, size = whole, BLOCK // 2
    while size:
        if vector.size & size:
            yield vector[start : start + size], size
            start += size
        size //= 2


def _signs(seed: bytes, number: int, size: int) -> NDArray[np.int8]:
    """+1 or -1 for each coordinate of a piece: the bits of one block of the stream, highest first, a set one for -1."""
    bits = np.unpackbits(np.frombuffer(keystream("rotation", seed, number, -(-size // 8)), np.uint8), count=size)
    return np.int8(1) - np.int8(2) * bits.view(np.int8)


def _hadamard(rows: Vector) -> None:
    """Multiply each row by the orthonormal Hadamard matrix, in place; rows (m, n), n a power of two.

    One step takes (x, y), the halves of a row, to (x_0 + y_0, x_0 - y_0, x_1 + y_1, ...); after log2 n of them each coordinate
    is the signed sum of all.
    """
    size = rows.shape[1]
    half, source, target = size // 2, rows, np.empty_like(rows)
    for _ in range(size.bit_length() - 1):
        np.add(source[:, :half], source[:, half:], out=target[:, 0::2])
        np.subtract(source[:, :half], source[:, half:], out=target[:, 1::2])
        source, target = target, source
    np.multiply(source, np.float32(1 / math.sqrt(size)), out=rows)
