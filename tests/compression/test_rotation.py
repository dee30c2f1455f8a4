"""The public rotation: orthonormal, linear, its own inverse's transpose, and it spreads what stands out."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.linalg import hadamard

from fl_privacy.compression.rotation import BLOCK, rotate, unrotate
from fl_privacy.parameters import Vector

SEED = b"round 3"
SIZES = st.integers(1, 3 * BLOCK)
LONG = 64 * BLOCK + 2 * BLOCK + 77  # more than is worked on at once


def normal(size: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


@given(SIZES, st.binary(max_size=40))
def test_unrotate_undoes_rotate_at_every_length(size: int, seed: bytes) -> None:
    vector = normal(size)
    assert np.abs(unrotate(rotate(vector, seed), seed) - vector).max() < 1e-5
    assert np.abs(rotate(unrotate(vector, seed), seed) - vector).max() < 1e-5


@given(SIZES)
def test_a_rotation_keeps_length_norm_and_inner_products(size: int) -> None:
    one, other = normal(size, 1), normal(size, 2)
    left, right = rotate(one, SEED), rotate(other, SEED)
    assert left.shape == one.shape and left.dtype == np.float32
    assert abs(np.linalg.norm(left) / np.linalg.norm(one) - 1) < 1e-5
    assert abs(float(left @ right) - float(one @ other)) < 1e-4 * size


@given(arrays(np.int64, (2, BLOCK + 1024 + 4), elements=st.integers(-500, 500)))
def test_a_rotation_is_linear_bit_for_bit_where_float32_is_exact(integers: Vector) -> None:
    one, other = integers.astype(np.float32)
    assert np.array_equal(rotate(one + other, SEED), rotate(one, SEED) + rotate(other, SEED))
    assert np.array_equal(unrotate(rotate(one, SEED), SEED), one)


@pytest.mark.parametrize("size", [1, 2, 64, 2048, BLOCK])
def test_a_block_is_the_hadamard_matrix_after_the_signs_of_the_stream(size: int) -> None:
    stream = hashlib.shake_256(b"fl_privacy/v1/compression/rotation\0" + bytes(8) + SEED).digest(BLOCK // 8)
    bits = "".join(f"{byte:08b}" for byte in stream)[:size]
    signed = np.array([-1.0 if bit == "1" else 1.0 for bit in bits]) * normal(size)
    assert np.allclose(rotate(normal(size), SEED), hadamard(size) @ signed / size**0.5, atol=1e-5)


def test_blocks_do_not_touch_one_another() -> None:
    changed = normal(LONG)
    changed[BLOCK : 2 * BLOCK] += 1
    differs = rotate(changed, SEED) != rotate(normal(LONG), SEED)
    assert differs[BLOCK : 2 * BLOCK].mean() > 0.9
    assert not differs[:BLOCK].any() and not differs[2 * BLOCK :].any()


def test_signs_are_even_and_differ_between_blocks_and_seeds() -> None:
    ones = np.ones(LONG, np.float32)

    def signs(seed: bytes) -> Vector:
        rotated = rotate(ones, seed)[: 66 * BLOCK].reshape(66, BLOCK)
        return np.sign(rotated @ hadamard(BLOCK).astype(np.float32))  # H H = I leaves the signs

    drawn = signs(SEED)
    assert abs(drawn.mean()) < 5 / drawn.size**0.5
    assert abs((drawn[:-1] * drawn[1:]).mean()) < 5 / drawn.size**0.5
    assert abs((drawn[0] * drawn[64]).mean()) < 5 / BLOCK**0.5  # the first blocks of two pieces
    assert abs((drawn * signs(b"round 4")).mean()) < 5 / drawn.size**0.5


def test_one_coordinate_that_stands_out_is_spread_over_its_block() -> None:
    vector = np.zeros(BLOCK, np.float32)
    vector[1234] = 64
    assert np.unique(np.abs(rotate(vector, SEED))).tolist() == [1.0]


def test_the_rotation_is_the_same_on_every_machine() -> None:
    integers = (np.arange(LONG) * 7919 % 2003 - 1001).astype(np.float32)
    told = hashlib.sha256(rotate(integers, SEED).astype("<f4").tobytes()).hexdigest()
    assert told == "bd919d578aa741d20fc5d1be8a2ee2b8a8f51fe5c81f66bda70a8dcb2f3d8b71"


def test_the_vector_that_is_rotated_stays_as_it_was() -> None:
    vector = normal(BLOCK + 5)
    kept = vector.copy()
    unrotate(rotate(vector, SEED), SEED)
    assert np.array_equal(vector, kept)
