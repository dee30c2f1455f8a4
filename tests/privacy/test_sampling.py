"""Subjects as the unit: one subject with many rows moves a step's sum by no more than one clipped gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from fl_privacy.privacy.randomness import OwnerRandomness
from fl_privacy.privacy.sampling import Units

CLIP = 0.5


class Repeatable(OwnerRandomness):
    """No noise, and uniform draws that are alike in two runs, whose number of units may differ by the last one."""

    def __init__(self, seed: int = 0) -> None:
        self._seed, self._calls = seed, 0

    def uniform(self, count: int) -> NDArray[np.float64]:
        self._calls += 1
        return np.random.default_rng([self._seed, self._calls]).random(count)

    def gaussian(self, shape: tuple[int, ...], std: float) -> NDArray[np.float64]:
        return np.zeros(shape)


def step_sum(inputs: NDArray[np.float64], subjects: list[int] | None, seed: int = 0) -> NDArray[np.float64]:
    """The sum of clipped gradients of one step in which every unit is sampled; the gradient of a row is its input."""
    model = nn.Linear(inputs.shape[1], 1, bias=False)
    before = model.weight.detach().numpy().copy()
    settings = DPSettings(noise_multiplier=1.0, max_grad_norm=CLIP, sample_rate=1.0, expected_batch_size=1)
    rows = torch.tensor(inputs, dtype=torch.float32)
    train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        settings,
        rows=len(inputs),
        subjects=subjects,
        steps=1,
        losses=lambda indices: model(rows[indices])[:, 0],
        after_step=lambda step: None,
        randomness=Repeatable(seed),
    )
    moved: NDArray[np.float64] = before - model.weight.detach().numpy()
    return moved[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_subject_with_many_rows_changes_the_sum_by_at_most_one_clipped_gradient(seed: int) -> None:
    """Neighbours: the same corpus without the last subject, who has 40 rows that all pull the same way."""
    draw = np.random.default_rng(seed)
    others = draw.normal(size=(30, 6))
    theirs = [subject for subject in range(10) for _ in range(3)]
    loud = np.full((40, 6), 10.0)
    both = np.concatenate([others, loud])
    labels = [*theirs, *[10] * 40]
    assert np.linalg.norm(step_sum(both, labels, seed) - step_sum(others, theirs, seed)) <= CLIP * (1 + 1e-5)
    assert np.linalg.norm(step_sum(both, None) - step_sum(others, None)) > 30 * CLIP, "records as the unit would not bound it"


def test_every_subject_is_in_with_the_rate_by_one_row_and_every_row_stands_for_it_alike() -> None:
    labels = [subject for subject in range(40) for _ in range(1 + subject % 7)]
    np.random.default_rng(1).shuffle(labels)
    units, randomness, rate, steps = Units(len(labels), labels), Repeatable(), 0.2, 5000
    subjects = np.zeros(40)
    rows = np.zeros(len(labels))
    for _ in range(steps):
        sample = units.sample(rate, randomness)
        chosen = np.asarray(labels)[sample]
        assert len(set(chosen)) == len(chosen), "a subject is in a sample with one row at most"
        subjects[chosen] += 1
        rows[sample] += 1
    sizes = np.bincount(labels)
    assert units.count == 40
    assert np.abs(subjects / steps - rate).max() < 5 * np.sqrt(rate * (1 - rate) / steps)
    expected = rate / sizes[labels]
    assert (np.abs(rows / steps - expected) < 5 * np.sqrt(expected / steps)).all()


def test_subjects_of_one_row_each_are_sampled_as_records_are() -> None:
    """Poisson sampling itself is that of records, so the accountants' amplification holds with the subjects' rate."""
    alone, records = Units(500, list(range(500))), Units(500)
    assert [alone.sample(0.1, Repeatable(7)).tolist() for _ in range(3)] == [records.sample(0.1, Repeatable(7)).tolist()] * 3


def test_another_row_stands_for_a_subject_in_another_step() -> None:
    units, randomness = Units(100, [0] * 100), Repeatable()
    assert len({int(units.sample(1.0, randomness)[0]) for _ in range(50)}) > 20


def test_a_sample_may_be_empty() -> None:
    assert Units(10, [0] * 10).sample(1e-12, Repeatable()).tolist() == []


def test_a_row_without_a_subject_is_refused() -> None:
    with pytest.raises(PrivacyError, match="each row needs exactly one"):
        Units(3, [0, 1])
