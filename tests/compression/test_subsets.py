"""Which coordinates are sent: drawn evenly, the same everywhere; the largest, and enough of the others."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2

from fl_privacy.compression.keystream import keystream
from fl_privacy.compression.subsets import random_subset, shared_top
from fl_privacy.errors import CompressionError

VECTORS = arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0]))


def one_by_one(seed: bytes, size: int, kept: int) -> list[int]:
    """What ``random_subset`` promises, told by sets and whole numbers."""
    wanted = min(kept, size - kept)
    found: set[int] = set()
    block = 0
    while len(found) < wanted:
        words = min(wanted - len(found), 2**20)
        text = b"fl_privacy/v1/compression/subset\0" + block.to_bytes(8, "big") + seed
        stream = hashlib.shake_256(text).digest(8 * words)
        numbers = [int.from_bytes(stream[at : at + 8], "little") for at in range(0, 8 * words, 8)]
        found |= {number % size for number in numbers if number < 2**64 - 2**64 % size}
        block += 1
    return sorted(found if kept <= size - kept else set(range(size)) - found)


@given(st.binary(max_size=40), st.integers(1, 300), st.data())
def test_a_subset_is_what_the_rule_gives_one_by_one(seed: bytes, size: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, size))
    subset = random_subset(seed, size, kept)
    assert subset.dtype == np.int64 and len(subset) == kept
    assert subset.tolist() == one_by_one(seed, size, kept)


def test_exactly_half_is_drawn_and_not_left_out() -> None:
    assert random_subset(b"s", 100, 50).tolist() == one_by_one(b"s", 100, 50)


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5])
def test_every_subset_is_as_likely_as_any_other(kept: int) -> None:
    draws = 6000
    counts = Counter(tuple(random_subset(number.to_bytes(4, "big"), 6, kept).tolist()) for number in range(draws))
    subsets = list(combinations(range(6), kept))
    expected = draws / len(subsets)
    statistic = sum((counts[subset] - expected) ** 2 / expected for subset in subsets)
    assert counts.keys() == set(subsets)
    assert statistic < chi2.ppf(1 - 1e-4, len(subsets) - 1)


def test_all_of_the_coordinates_are_all_of_them() -> None:
    assert random_subset(b"", 1000, 1000).tolist() == list(range(1000))


def test_a_large_subset_is_the_same_on_every_machine() -> None:
    subset = random_subset(b"round 3", 5_000_000, 1_200_000)  # more words than are drawn at once
    assert len(subset) == 1_200_000 and (np.diff(subset) > 0).all()
    assert (
        hashlib.sha256(subset.astype("<i8").tobytes()).hexdigest()
        == "150e31725ada065e5b6afc4bcd661b7679b328bf8606cdc77ed3608d230d3b4a"
    )


def test_streams_of_other_labels_blocks_and_seeds_have_nothing_in_common() -> None:
    streams = [("rotation", b"a", 0), ("subset", b"a", 0), ("subset", b"a", 1), ("subset", b"b", 0), ("subset", b"", 0)]
    assert len({keystream(label, seed, block, 32) for label, seed, block in streams}) == len(streams)
    assert keystream("subset", b"a", 0, 64)[:32] == keystream("subset", b"a", 0, 32)


@pytest.mark.parametrize(("size", "kept"), [(5, 0), (5, 6), (5, -1), (0, 0)])
def test_more_coordinates_than_there_are_or_none_are_refused(size: int, kept: int) -> None:
    with pytest.raises(CompressionError, match="at least one and at most all"):
        random_subset(b"", size, kept)


@given(VECTORS, st.data())
def test_the_top_is_what_a_stable_sort_puts_first(mean: np.ndarray, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, mean.size))
    at_random = data.draw(st.integers(0, kept))
    chosen = shared_top(mean, kept, at_random, b"s")
    order = np.argsort(-np.abs(mean), kind="stable")[: kept - at_random]
    largest = {int(place) for place in order if mean[place]}
    assert len(chosen) == kept and (np.diff(chosen) > 0).all()
    assert largest <= set(chosen.tolist())
    if not at_random and len(largest) == kept:
        assert set(chosen.tolist()) == largest


def test_what_is_not_largest_is_drawn_evenly_from_the_others() -> None:
    mean = np.array([0, 9, 0, 0.5, 0, 7, 0.25, 0], np.float32)
    counts = Counter(
        place for number in range(3000) for place in shared_top(mean, 4, 2, bytes([number % 256, number // 256])).tolist()
    )
    assert counts[1] == counts[5] == 3000
    assert all(abs(counts[place] - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for place in (0, 2, 3, 4, 6, 7))


def test_after_a_mean_of_zeros_all_are_drawn() -> None:
    assert np.array_equal(shared_top(np.zeros(500, np.float32), 50, 5, b"s"), random_subset(b"s", 500, 50))


def test_the_top_of_all_is_all() -> None:
    assert shared_top(np.array([0, 1, -2], np.float32), 3, 1, b"s").tolist() == [0, 1, 2]


@pytest.mark.parametrize("at_random", [-1, 3])
def test_more_drawn_than_kept_is_refused(at_random: int) -> None:
    with pytest.raises(CompressionError, match="at random"):
        shared_top(np.ones(5, np.float32), 2, at_random, b"s")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_mean_that_is_not_finite_has_no_top(bad: float) -> None:
    with pytest.raises(CompressionError, match="not finite"):
        shared_top(np.array([1, bad], np.float32), 1, 0, b"s")
