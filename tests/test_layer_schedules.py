"""Which layers FedBT and ProgFed train, and of which layers an owner's small model is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement
from math import factorial, log2, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from fl_privacy.errors import PlanError
from fl_privacy.layer_schedules import drawn_layers, fine_tuning_layers, further_pretraining_layers, growing_depths


def halved(rounds: int) -> list[int]:
    """The published procedure, step by step."""
    layer, left, told = 0, rounds, []
    for index in range(rounds):
        if index > 0 and index == rounds - left // 2:
            layer, left = layer + 1, rounds - index
        told.append(layer)
    return told


@pytest.mark.parametrize(
    ("rounds", "each"),
    [
        (1, [1]),
        (2, [1, 1]),
        (3, [2, 1]),
        (5, [3, 1, 1]),
        (10, [5, 3, 1, 1]),
        (20, [10, 5, 3, 1, 1]),
        (50, [25, 13, 6, 3, 2, 1]),
    ],
)
def test_fb1_each_layer_has_half_of_the_rounds_that_are_left(rounds: int, each: list[int]) -> None:
    told = further_pretraining_layers(rounds)
    assert told == tuple(layer for layer, count in enumerate(each) for _ in range(count))


@given(st.integers(1, 3000))
def test_fb1_further_pre_training_is_the_published_procedure_and_ends_at_log2_of_the_rounds(rounds: int) -> None:
    told = further_pretraining_layers(rounds)
    assert list(told) == halved(rounds)
    assert told[-1] == int(log2(rounds))


@pytest.mark.parametrize(
    ("rounds", "layers", "cycle", "told"),
    [
        (10, 12, 6, (11, 10, 9, 8, 7, 6, 11, 10, 9, 8)),
        (4, 12, 1, (11, 11, 11, 11)),  # the top layer and the head only
        (5, 3, 3, (2, 1, 0, 2, 1)),
        (1, 1, 1, (0,)),
    ],
)
def test_fb1_fine_tuning_goes_down_from_the_top_and_starts_again(
    rounds: int, layers: int, cycle: int, told: tuple[int, ...]
) -> None:
    assert fine_tuning_layers(rounds, layers, cycle) == told


@given(st.integers(1, 40), st.data())
def test_pg2_pg4_a_growing_model_has_a_round_in_every_stage_and_the_whole_depth_at_the_end(
    layers: int, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, layers))
    rounds = data.draw(st.integers(2 * stages, 200))
    told = growing_depths(rounds, layers, stages)
    assert len(told) == rounds and list(told) == sorted(told)
    assert sorted(set(told)) == [-(-stage * layers // stages) for stage in range(1, stages + 1)]
    assert told[-1] == layers
    counts = Counter(told)
    assert {counts[depth] for depth in set(told) - {layers}} <= {rounds // (2 * stages)}
    assert 2 * counts[layers] >= rounds


def test_pg1_one_stage_is_the_whole_model_in_every_round() -> None:
    assert growing_depths(1, 12, 1) == (12,)
    assert growing_depths(5, 12, 1) == (12,) * 5


def test_the_published_example_of_growth_has_375_rounds_in_each_early_stage() -> None:
    assert Counter(growing_depths(3000, 12, 4)) == {3: 375, 6: 375, 9: 375, 12: 1875}


@given(st.binary(), st.integers(1, 30), st.data())
def test_fb2_a_local_model_has_the_layers_up_to_the_trained_one_and_sorted_ones_from_above(
    seed: bytes, layers: int, data: st.DataObject
) -> None:
    depth = data.draw(st.integers(1, layers))
    slot = data.draw(st.integers(0, depth - 1))
    told = drawn_layers(seed, slot, depth, layers)
    assert len(told) == depth
    assert told[: slot + 1] == tuple(range(slot + 1))
    assert list(told) == sorted(told) and all(slot < layer < layers for layer in told[slot + 1 :])
    assert told == drawn_layers(seed, slot, depth, layers)


def test_fb2_the_draw_is_the_same_on_every_machine() -> None:
    """Known answers: another machine, or another release, must not find other layers."""
    assert drawn_layers(b"order/clinic", 2, 6, 12) == (0, 1, 2, 3, 10, 11)
    assert drawn_layers(b"order/school", 2, 6, 12) == (0, 1, 2, 6, 7, 9)


def test_fb2_owners_and_orders_draw_independently() -> None:
    seeds = [f"{order}/{owner}".encode() for order in range(5) for owner in ("clinic", "school")]
    assert len({drawn_layers(seed, 0, 10, 12) for seed in seeds}) == len(seeds)


def test_fb2_draws_are_uniform_and_independent_with_replacement() -> None:
    """Chi-square on whole draws: also dependence, or too few repetitions (the birthday probability), would show."""
    draws, slot, depth, layers = 100_000, 2, 6, 12
    drawn = depth - slot - 1
    counts = Counter(drawn_layers(number.to_bytes(4), slot, depth, layers)[slot + 1 :] for number in range(draws))
    possible = list(combinations_with_replacement(range(slot + 1, layers), drawn))
    expected = {
        chosen: draws * factorial(drawn) / prod(map(factorial, Counter(chosen).values())) / (layers - slot - 1) ** drawn
        for chosen in possible
    }
    assert sum(expected.values()) == pytest.approx(draws)
    statistic = sum((counts[chosen] - expected[chosen]) ** 2 / expected[chosen] for chosen in possible)
    assert chi2.ppf(1e-6, len(possible) - 1) < statistic < chi2.ppf(1 - 1e-6, len(possible) - 1)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (lambda: further_pretraining_layers(-1), "rounds: -1 is less than 0"),
        (lambda: fine_tuning_layers(10, 12, 13), "cycle: 13 is more than 12"),
        (lambda: fine_tuning_layers(10, 12, 0), "cycle: 0 is less than 1"),
        (lambda: growing_depths(100, 12, 13), "stages: 13 is more than 12"),
        (lambda: growing_depths(100, 12, 0), "stages: 0 is less than 1"),
        (lambda: growing_depths(7, 12, 4), "rounds: 7 is less than 8"),
        (lambda: drawn_layers(b"", 6, 6, 12), "slot: 6 is more than 5"),
        (lambda: drawn_layers(b"", -1, 6, 12), "slot: -1 is less than 0"),
        (lambda: drawn_layers(b"", 0, 13, 12), "depth: 13 is more than 12"),
        (lambda: drawn_layers(b"", 0, 0, 12), "depth: 0 is less than 1"),
    ],
)
def test_an_impossible_schedule_is_refused_by_name(schedule: Callable[[], object], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        schedule()
