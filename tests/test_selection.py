"""Who trains in a round; and that no combination of sums leaves one owner alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fl_privacy.errors import PlanError
from fl_privacy.selection import cohort, first_isolation, isolated
from tests.test_plan import plan

TEN = tuple("abcdefghij")


def test_all_is_everybody_every_round() -> None:
    assert cohort(("c", "a", "b"), "all", 0, 0, 7) == ("a", "b", "c")


def test_groups_take_turns_and_the_last_takes_what_is_left_over() -> None:
    told = [cohort(TEN, "groups", 3, 0, number) for number in range(4)]
    assert told == [("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i", "j"), ("a", "b", "c")]


def test_a_draw_is_repeatable_sorted_and_without_replacement() -> None:
    for number in range(50):
        drawn = cohort(TEN, "random", 4, 99, number)
        assert drawn == cohort(tuple(reversed(TEN)), "random", 4, 99, number)
        assert len(set(drawn)) == 4 and list(drawn) == sorted(drawn) and set(drawn) <= set(TEN)
    assert cohort(TEN, "random", 4, 98, 0) != cohort(TEN, "random", 4, 99, 0) or cohort(TEN, "random", 4, 98, 1) != cohort(
        TEN, "random", 4, 99, 1
    )


def test_s1_every_pair_of_owners_is_drawn_equally_often() -> None:
    """Chi-square on pairs: also dependence between owners would show."""
    rounds, pairs = 10_000, list(combinations(TEN, 2))
    counts = dict.fromkeys(pairs, 0)
    for number in range(rounds):
        for pair in combinations(cohort(TEN, "random", 4, 1, number), 2):
            counts[pair] += 1
    expected = rounds * (4 * 3) / (10 * 9)
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < chi2.ppf(1 - 1e-6, len(pairs) - 1)


def unit_vector_in_span(rows: Sequence[set[str]]) -> set[str]:
    """By floating point least squares, which is exact enough for a few owners."""
    owners = sorted(set().union(*rows))
    matrix = np.array([[owner in row for owner in owners] for row in rows], float)
    found = set()
    for place, owner in enumerate(owners):
        target = np.eye(len(owners))[place]
        answer, *_ = np.linalg.lstsq(matrix.T, target, rcond=None)
        if np.abs(matrix.T @ answer - target).max() < 1e-9:
            found.add(owner)
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=2), min_size=1, max_size=8))
def test_s2_an_owner_is_isolated_exactly_when_its_unit_vector_is_in_the_row_space(cohorts: list[set[str]]) -> None:
    expected = unit_vector_in_span(cohorts)
    told = isolated(cohorts)
    assert told in expected if expected else told is None


@pytest.mark.parametrize(
    ("cohorts", "owner"),
    [
        ([{"a", "b", "c", "d"}, {"a", "b", "c"}], "d"),
        ([{"a", "b", "c"}, {"a", "b", "d"}, {"a", "c", "d"}, {"b", "c", "d"}], "a"),  # no difference of two does it
        ([{"a", "b", "c"}, {"d", "e", "f"}, {"a", "b", "c", "d", "e", "f"}], None),
        ([{"a", "b", "c"}] * 5, None),
    ],
)
def test_known_cohorts_isolate_whom_they_should(cohorts: list[set[str]], owner: str | None) -> None:
    assert isolated(cohorts) == owner


@given(st.integers(3, 40), st.integers(3, 40))
def test_groups_and_everybody_never_isolate(owners: int, size: int) -> None:
    names = tuple(f"o{number}" for number in range(owners))
    assert first_isolation(names, "all", 0, 0, 1000) is None
    assert first_isolation(names, "groups", min(size, owners), 0, 200) is None


def test_random_cohorts_of_six_by_three_isolate_within_about_nine_rounds() -> None:
    rounds = [first_isolation(tuple("abcdef"), "random", 3, seed, 100) for seed in range(100)]
    assert 6 <= np.mean([found[0] + 1 for found in rounds if found]) <= 10 and None not in rounds


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"selection": "random", "cohort_size": 4, "rounds": 200}, "selection: the sums of rounds 0 to .* update away"),
        ({"selection": "random"}, "cohort_size"),
        ({"selection": "groups", "cohort_size": 2}, "cohort_size: 2 is not between minimal_cohort"),
        ({"selection": "groups", "cohort_size": 11}, "cohort_size: 11 is not between"),
        ({"selection": "groups", "cohort_size": 4, "minimal_cohort": 5}, "cohort_size: 4 is not between minimal_cohort"),
        ({"cohort_size": 4}, "cohort_size: it goes with"),
        ({"selection_seed": 4}, "selection_seed"),
        ({"selection": "best"}, "selection"),
    ],
)
def test_a_plan_whose_cohorts_would_not_hide_an_owner_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        plan(**{"owners": TEN, **changes})


def test_the_noise_is_for_the_owner_that_trains_most_often() -> None:
    grouped = plan(owners=TEN, selection="groups", cohort_size=3, rounds=7, retries=2, local_steps=10)
    assert (grouped.busiest_rounds, grouped.trainings, grouped.paid_steps) == ((0, 3, 6), 5, 50)
    assert grouped.paid_orders == 5
    drawn = plan(owners=TEN, selection="random", cohort_size=4, rounds=5)
    counts = {owner: sum(owner in drawn.cohort(number) for number in range(5)) for owner in TEN}
    assert drawn.trainings == max(counts.values()) < 5
    assert plan(owners=TEN, rounds=5).trainings == 5
