"""The owner's randomness has the right distribution and cannot be seeded by anyone.

Thresholds are set so that a correct generator fails less than once in a million runs.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from scipy import stats

from fl_privacy.privacy.randomness import OwnerRandomness


def test_gaussian_is_gaussian() -> None:
    values = OwnerRandomness().gaussian((300, 1001), std=3.0).ravel()
    assert stats.kstest(values / 3.0, "norm").pvalue > 1e-6
    assert values.std() == pytest.approx(3.0, rel=0.01)


def test_gaussian_values_are_independent() -> None:
    # Box-Muller gives two values from one radius; lags around the half of a chunk would show a shared one.
    values = OwnerRandomness().gaussian((200_000,), std=1.0)
    for lag in (1, 2, 1 << 15, 1 << 16, 100_000):
        squares = values**2
        for series in (values, squares):
            correlation = np.corrcoef(series[:-lag], series[lag:])[0, 1]
            assert abs(correlation) < 5.5 / math.sqrt(len(values) - lag), lag


def test_gaussian_is_half_the_sum_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    # Holohan and Braghin 2021: one Gaussian alone would let an attacker list the doubles that can occur.
    randomness = OwnerRandomness()
    monkeypatch.setattr(randomness, "_box_muller", lambda count: np.arange(count, dtype=float))
    assert randomness.gaussian((3,), std=1.0).tolist() == [(0 + 3 + 6 + 9) / 2, (1 + 4 + 7 + 10) / 2, (2 + 5 + 8 + 11) / 2]


@pytest.mark.parametrize("shape", [(), (1,), (7, 3), ((1 << 16) + 5,)])
def test_gaussian_shapes(shape: tuple[int, ...]) -> None:
    values = OwnerRandomness().gaussian(shape, std=1.0)
    assert values.shape == shape
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == values.size


def test_uniform_uses_53_bits() -> None:
    values = OwnerRandomness().uniform(200_000)
    assert 0 <= values.min() < values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-6
    steps = values * 2.0**53
    assert (steps == np.floor(steps)).all()
    assert 0.49 < (steps % 2).mean() < 0.51  # the lowest bit is random too


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5])
def test_poisson_sample_takes_each_row_at_the_rate(rate: float) -> None:
    randomness, rounds, rows = OwnerRandomness(), 3000, 400
    sizes = np.array([len(randomness.poisson_sample(rows, rate)) for _ in range(rounds)])
    expected, spread = rows * rate, math.sqrt(rows * rate * (1 - rate))
    assert abs(sizes.mean() - expected) < 5 * spread / math.sqrt(rounds)
    assert len(set(sizes)) > 1  # DP9: the batch's size is random, not B
    assert 0.75 < sizes.var() / spread**2 < 1.25  # DP9: variance n q (1 - q)


def test_poisson_sample_bounds() -> None:
    randomness = OwnerRandomness()
    assert randomness.poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert randomness.poisson_sample(0, 0.5).tolist() == []


def test_seeds_of_others_change_nothing() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(OwnerRandomness().gaussian((8,), std=1.0))
    assert not np.array_equal(*drawn)


def test_the_stream_is_keyed_by_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fixed key with a fresh nonce would look as random to every statistical test.
    drawn = []
    for key in (b"k" * 32, b"k" * 32, b"l" * 32):
        monkeypatch.setattr(os, "urandom", lambda size, key=key: key if size == 32 else bytes(size))
        drawn.append(OwnerRandomness().uniform(2).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_forked_process_draws_other_values() -> None:
    # Both halves of a fork continue one keystream unless the child takes a key of its own.
    randomness = OwnerRandomness()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, randomness.uniform(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 32) != randomness.uniform(4).tobytes()
    os.close(reading), os.close(writing)
