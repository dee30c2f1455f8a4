"""Several processes that train one order: the mechanism of one process, whatever each of them does."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from fl_privacy.errors import FlPrivacyError, OrderFailed
from fl_privacy.parameters import norm, subtract
from fl_privacy.privacy.team import Team
from tests.privacy import teams
from tests.privacy.teams import in_team

# all rows; none; one, so that one process has none; more than one
SAMPLES = [[0, 1, 2, 3, 4, 5, 6, 7], [], [3], [1, 4, 6]]


@pytest.mark.parametrize("trainable", ["all", "lora", "layers:1-1"])
def test_two_processes_make_the_steps_of_one(trainable: str) -> None:
    # Clipping, the tied embedding, an empty sample and a process without examples; the second's own samples count for nothing.
    alone = teams.train(Team(), trainable, SAMPLES, "sgd", False)
    first, second = in_team(2, teams.train, trainable, SAMPLES, "sgd", False)
    start = teams.train(Team(), trainable, [], "sgd", False)
    assert norm(subtract(alone, start)) > 0.01
    assert norm(subtract(first, alone)) <= 1e-5 * norm(subtract(alone, start))
    assert all(np.array_equal(first[name], second[name]) for name in alone)


@pytest.mark.skipif(not torch.cuda.device_count(), reason="needs a GPU that torch can use; there is none here")
@pytest.mark.parametrize("trainable", ["all", "lora", "layers:1-1"])
def test_a_gpu_makes_the_steps_of_a_cpu(trainable: str) -> None:
    start, on_cpu, on_gpu = (
        teams.train(Team(), trainable, samples, "sgd", False, device)
        for samples, device in (([], "cpu"), (SAMPLES, "cpu"), (SAMPLES, "cuda"))
    )
    assert norm(subtract(on_gpu, on_cpu)) <= 1e-4 * norm(subtract(on_cpu, start))


def test_all_processes_end_with_the_same_bits_under_noise() -> None:
    one, *others = in_team(3, teams.train, "all", SAMPLES, "adamw", True)
    assert all(np.array_equal(one[name], other[name]) for other in others for name in one)
    again = in_team(3, teams.train, "all", SAMPLES, "adamw", True)[0]
    assert not any(np.array_equal(one[name], again[name]) for name in one)


def test_an_owners_whole_part_is_the_same_in_every_process() -> None:
    one, other = in_team(2, teams.owners_update)
    assert all(np.array_equal(one[name], other[name]) and one[name].any() for name in one)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("samples", [[[]], [[0, 1, 2, 3]], [[2]]], ids=["empty sample", "all", "one"])
def test_noise_is_added_once_whatever_the_number_of_processes(size: int, samples: list[list[int]]) -> None:
    # 20,000 coordinates: noise of each process would give a deviation sqrt(2) or sqrt(3) times as large.
    released = in_team(size, teams.noise_alone, samples)
    for noise in released:
        assert float(noise.std()) == pytest.approx(1.5 * 0.4 / 30, rel=0.03)
        assert np.array_equal(noise, released[0])


def test_every_sampled_row_is_computed_by_exactly_one_process() -> None:
    seen = in_team(3, teams.seen_by, 200)
    for parts in zip(*seen, strict=True):
        rows = sorted(chain.from_iterable(parts))
        assert len(rows) == len(set(rows)) and 25 < len(rows) < 100  # 60 are expected: one sample, not one for each process
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_process_that_ends_in_a_step_ends_the_others_with_a_typed_error(who: int, how: str) -> None:
    told = in_team(2, teams.leave, who, how)
    assert isinstance(told[1 - who], OrderFailed) and "ended before the others" in str(told[1 - who])
    assert told[who] is None if how == "killed" else type(told[who]) is FlPrivacyError


def test_a_process_without_the_key_is_taken_for_a_stranger() -> None:
    assert all(isinstance(error, OrderFailed) for error in in_team(2, teams.meet_a_stranger))
    told = in_team(3, teams.meet_a_stranger)
    assert "a stranger came between" in str(told[0])


def test_processes_that_never_meet_end_with_a_typed_error() -> None:
    told = in_team(2, teams.nobody_comes)
    assert isinstance(told[0], OrderFailed)
