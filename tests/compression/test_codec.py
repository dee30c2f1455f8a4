"""The one linear map of a round: what is sent, what a mean of it stands for, and what owners keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_privacy.compression.codec import Codec
from fl_privacy.compression.rotation import BLOCK, rotate
from fl_privacy.compression.subsets import random_subset, shared_top
from fl_privacy.encryption.packing import choose_encoding
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.encryption.secret_sum import representable
from fl_privacy.errors import CompressionError
from fl_privacy.messages import TensorSpec
from fl_privacy.parameters import Vector
from tests.secure_cohort import make_cohort

SEED = b"round 3"
SPECS = (TensorSpec(name="a", shape=(10, 300)), TensorSpec(name="b", shape=(96,)), TensorSpec(name="c", shape=(1000,)))
SIZE = BLOCK  # of SPECS: one block, whose rotation float32 holds exactly for small whole numbers
RANGES = (0.5, 0.25, 4.0)  # powers of two: scaling is exact


def every_codec(**changes: Any) -> list[Codec]:
    """All compositions, with and without a subset."""
    steps: list[dict[str, Any]] = [{}, {"rotation": SEED}, {"ranges": RANGES, "update_range": 2.0}]
    kept = random_subset(SEED, SIZE, 1024)
    return [Codec(SPECS, **step | changes) for step in steps] + [Codec(SPECS, kept=kept, **step | changes) for step in steps]


def normal(seed: int = 0, scale: float = 1.0) -> Vector:
    return np.random.default_rng(seed).normal(scale=scale, size=SIZE).astype(np.float32)


@given(arrays(np.int64, (3, SIZE), elements=st.integers(-400, 400)))
def test_sending_and_restoring_are_linear_bit_for_bit_where_float32_is_exact(integers: Any) -> None:
    updates = integers.astype(np.float32)
    for codec in every_codec():
        sent = [codec.send(update) for update in updates]
        total = codec.send(updates.sum(axis=0))
        assert np.array_equal(sum(sent), total)
        assert np.array_equal(sum(codec.restore(each) for each in sent), codec.restore(total))


def test_what_keeps_everything_and_scales_nothing_is_the_identity_bit_for_bit() -> None:
    update = normal()
    update[5] = -0.0
    for codec in (Codec(SPECS), Codec(SPECS, kept=random_subset(SEED, SIZE, SIZE))):
        assert codec.send(update).tobytes() == update.tobytes()
        assert codec.restore(codec.send(update)).tobytes() == update.tobytes()


def test_a_mean_of_whole_updates_comes_back() -> None:
    for codec in every_codec()[:3]:
        mean = np.mean([codec.send(normal(seed)) for seed in range(5)], axis=0, dtype=np.float32)
        exact = np.mean([normal(seed) for seed in range(5)], axis=0)
        assert np.allclose(codec.restore(mean), exact, atol=3e-6)


def test_what_is_sent_are_the_kept_coordinates_of_the_rotated_update_and_no_others() -> None:
    kept, update = random_subset(SEED, SIZE, 100), normal()
    codec = Codec(SPECS, rotation=b"r", kept=kept)
    assert codec.coordinates == codec.send(update).size == 100 and codec.size == SIZE
    assert np.array_equal(codec.send(update), rotate(update, b"r")[kept])


def test_each_kept_coordinate_is_scaled_by_the_range_of_its_tensor() -> None:
    kept = np.array([0, 2999, 3000, 3095, 3096, SIZE - 1])
    codec = Codec(SPECS, kept=kept, ranges=RANGES, update_range=2.0)
    assert codec.send(np.ones(SIZE, np.float32)).tolist() == [4, 4, 8, 8, 0.5, 0.5]


def test_random_subsets_give_the_update_on_average() -> None:
    """2000 draws: each coordinate is then normal around the truth, of deviation sqrt((d/k - 1) / 2000) |x|."""
    specs, draws = (TensorSpec(name="w", shape=(60,)),), 2000
    update = np.random.default_rng(1).normal(size=60).astype(np.float32)
    for rotation in (None, b"r"):
        codecs = [Codec(specs, rotation, random_subset(number.to_bytes(4, "big"), 60, 12)) for number in range(draws)]
        restored = np.array([codec.restore(codec.send(update)) for codec in codecs], np.float64)
        spread = restored.std(axis=0) / draws**0.5
        assert np.abs((restored.mean(axis=0) - update) / spread).max() < 4.5
        exact = (60 / 12 - 1) * float(update @ update)
        assert np.square(restored - update).sum(axis=1).mean() == pytest.approx(exact, rel=0.1)


@given(st.integers(1, SIZE), st.integers(2, 8), st.booleans())
def test_what_was_sent_and_what_is_kept_add_up_to_all_updates(kept: int, rounds: int, rotated: bool) -> None:
    memory, reached, meant = np.zeros(SIZE, np.float32), np.zeros(SIZE), np.zeros(SIZE)
    for number in range(rounds):
        seed = bytes([number])
        codec = Codec(SPECS, seed if rotated else None, random_subset(seed, SIZE, kept), error_feedback=True)
        update = normal(number)
        sent = codec.send(update + memory)
        memory = codec.remaining(update + memory, sent)
        reached += codec.restore(sent)
        meant += update
    assert np.allclose(reached + memory, meant, atol=1e-4)


def test_what_is_kept_without_rotation_is_all_that_was_not_sent_and_nothing_else() -> None:
    kept, update = random_subset(SEED, SIZE, 1000), normal()
    codec = Codec(SPECS, kept=kept, error_feedback=True)
    memory = codec.remaining(update, codec.send(update))
    others = np.setdiff1d(np.arange(SIZE), kept)
    assert not memory[kept].any() and np.array_equal(memory[others], update[others])


def test_the_top_of_all_coordinates_leaves_nothing_to_keep() -> None:
    update = normal()
    codec = Codec(SPECS, kept=shared_top(normal(1), SIZE, 0, SEED), error_feedback=True)
    assert np.array_equal(codec.restore(codec.send(update)), update)
    assert not codec.remaining(update, codec.send(update)).any()


def test_what_rounding_and_clipping_take_is_kept_too() -> None:
    cohort = make_cohort(3, 500, 8, 0.01)
    codec = Codec(SPECS, kept=random_subset(SEED, SIZE, 500), ranges=(0.05, 0.1, 0.2), update_range=0.03, error_feedback=True)
    update = normal(scale=0.05)
    sent = representable(codec.send(update), cohort.order, cohort.owners[0])
    restored = codec.restore(sent)
    assert np.abs(restored[codec.kept] - update[codec.kept]).max() > 0.01  # some are beyond their range
    assert np.allclose(restored + codec.remaining(update, sent), update, atol=1e-7)


def test_the_opened_sum_of_sent_updates_restores_to_their_weighted_mean() -> None:
    """Masks, ciphertexts and all: within the sum of the roundings, per tensor."""
    kept = random_subset(SEED, SIZE, 1500)
    codec = Codec(SPECS, kept=kept, ranges=(0.5, 0.01, 4.0), update_range=0.3, error_feedback=True)
    cohort = make_cohort(3, codec.coordinates, 8, 0.3 / 2).ordering(weights=(1, 2, 1))
    updates = [np.concatenate([normal(seed)[:3000] * 0.1, normal(seed)[:96] * 0.002, normal(seed)[:1000]]) for seed in range(3)]
    updates = [update.astype(np.float32) for update in updates]
    restored = codec.restore(cohort.open(cohort.total([codec.send(update) for update in updates])))
    exact = sum(weight / 4 * update for weight, update in zip((1, 2, 1), updates, strict=True))
    error, start = np.abs(restored - exact), 0
    for spec, reach in zip(SPECS, (0.5, 0.01, 4.0), strict=True):
        inside = kept[(kept >= start) & (kept < start + np.prod(spec.shape))]
        assert inside.size and error[inside].max() <= 3 * reach / 2 / 127 * 1.001  # the largest weight is 1/2
        start += int(np.prod(spec.shape))
    assert not restored[np.setdiff1d(np.arange(SIZE), kept)].any()


def _errors_of_a_mean(codec: Codec, owners: int, bound: float) -> list[Any]:
    """Of each tensor: the opened mean of 8-bit updates less the true one; ``bound`` is how much of their range updates fill."""
    draw, encoding = np.random.default_rng(2), choose_encoding(owners, 8, codec.update_range / owners)
    sizes = [int(np.prod(spec.shape)) for spec in codec.specs]
    reach = np.repeat(np.array(RANGES) * bound, sizes)
    updates = [(draw.uniform(-1, 1, SIZE) * reach).astype(np.float32) for _ in range(owners)]
    dithers = [draw.integers(0, 1 << 16, SIZE, np.uint16) for _ in range(owners)]
    fields = [quantise(codec.send(u), 1 / owners, encoding, dither) for u, dither in zip(updates, dithers, strict=True)]
    total = np.sum(fields, axis=0, dtype=np.uint64)
    errors = codec.restore(dequantise_sum(total, encoding, owners)) - np.mean(updates, axis=0, dtype=np.float64)
    return np.split(errors, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("owners", [3, 10, 40])
def test_an_8_bit_mean_is_unbiased_and_its_deviation_within_the_closed_form_for_each_tensor(owners: int) -> None:
    for error, reach in zip(_errors_of_a_mean(Codec(SPECS, ranges=RANGES), owners, 0.99), RANGES, strict=True):
        levels = 127 / reach  # s: levels per unit
        bound = (1 / (4 * levels**2 * owners)) ** 0.5
        assert error.std() <= bound
        assert abs(error.mean()) < 5 * bound / error.size**0.5


def test_ranges_of_its_own_give_a_tensor_of_small_updates_its_precision() -> None:
    one_range = Codec(SPECS, ranges=(4.0,) * 3, update_range=4.0)
    own, common = (_errors_of_a_mean(codec, 5, 0.99)[1].std() for codec in (Codec(SPECS, ranges=RANGES), one_range))
    assert common > 10 * own  # 0.25 against 4: sixteen


def test_the_next_ranges_are_of_what_was_sent_whatever_the_scale_and_the_subset() -> None:
    update = normal() * np.repeat(np.float32([0.1, 0.05, 1.0]), [3000, 96, 1000])
    for feedback in (False, True):
        codec = Codec(SPECS, kept=random_subset(SEED, SIZE, 2000), ranges=RANGES, update_range=0.1, error_feedback=feedback)
        assert codec.next_ranges(codec.send(update), 1) == pytest.approx((0.4, 0.2, 4.0), rel=0.3)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"rotation": SEED, "ranges": RANGES}, "mixes the tensors"),
        ({"ranges": RANGES[:2]}, "2 ranges do not fit 3 tensors"),
        ({"ranges": (1.0, 0.0, 1.0)}, "not a positive number"),
        ({"ranges": (1.0, float("nan"), 1.0)}, "not a positive number"),
        ({"ranges": RANGES, "update_range": float("inf")}, "not a positive number"),
        ({"kept": np.array([], np.int64)}, "not rising indices"),
        ({"kept": np.array([1, 1])}, "not rising indices"),
        ({"kept": np.array([2, 1])}, "not rising indices"),
        ({"kept": np.array([-1, 1])}, "not rising indices"),
        ({"kept": np.array([1, SIZE])}, "not rising indices"),
    ],
)
def test_what_makes_no_codec_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(CompressionError, match=why):
        Codec(SPECS, **fields)


def test_vectors_of_other_lengths_are_refused() -> None:
    codec = Codec(SPECS, kept=random_subset(SEED, SIZE, 10), error_feedback=True)
    right, wrong = np.zeros(SIZE, np.float32), np.zeros(SIZE - 1, np.float32)
    for call in (lambda: codec.send(wrong), lambda: codec.restore(right), lambda: codec.remaining(wrong, right[:10])):
        with pytest.raises(CompressionError, match="coordinates of this round"):
            call()


def test_nothing_is_kept_where_the_mean_stands_for_what_was_not_sent() -> None:
    codec = Codec(SPECS, kept=random_subset(SEED, SIZE, 10))
    with pytest.raises(CompressionError, match="keep nothing"):
        codec.remaining(normal(), codec.send(normal()))
    with pytest.raises(CompressionError, match="no ranges"):
        codec.next_ranges(codec.send(normal()), 3)


def test_the_update_stays_as_it_was() -> None:
    for codec in every_codec(error_feedback=True):
        update, kept = normal(), normal()
        sent = codec.send(update)
        before = sent.copy()
        codec.remaining(update, sent)
        codec.restore(sent)
        assert np.array_equal(update, kept) and np.array_equal(sent, before)
