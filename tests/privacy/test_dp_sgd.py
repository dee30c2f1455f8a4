"""DP-SGD on small linear models, where every gradient is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy import dp_sgd
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from fl_privacy.privacy.randomness import OwnerRandomness
from tests.tiny_model import NoNoise

Losses = Callable[[np.ndarray[Any, np.dtype[np.int64]]], Tensor]


class Slope(nn.Module):
    """w . x without bias, started at zero: with the loss -w . x an example's gradient is -x, so SGD adds clipped x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def losses(self, examples: Tensor) -> Losses:
        return lambda indices: -self.layer(examples[torch.from_numpy(indices)]).squeeze(1)


def settings(**changes: Any) -> DPSettings:
    fields = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "sample_rate": 0.5, "expected_batch_size": 1}
    return DPSettings(**(fields | changes))


def released(examples: Tensor, randomness: OwnerRandomness | None = None, steps: int = 1, **changes: Any) -> Tensor:
    """What SGD with rate 1 adds to the weight: the sum of the released gradients."""
    model = Slope(examples.shape[1])
    train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        settings(**changes),
        rows=len(examples),
        steps=steps,
        losses=model.losses(examples),
        after_step=lambda step: None,
        randomness=randomness,
    )
    return model.layer.weight.detach()[0]


rows = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


@hypothesis_settings(deadline=None)
@given(rows, st.sampled_from([0.01, 0.5, 100.0]))
def test_one_record_moves_the_sum_by_at_most_the_bound(values: list[list[float]], bound: float) -> None:
    # DP1: neighbours differ by one record, so the sums with and without the last one differ by at most C.
    examples = torch.tensor(values)
    everyone = released(examples, NoNoise(), max_grad_norm=bound)
    others = released(examples, NoNoise(list(range(len(values) - 1))), max_grad_norm=bound)
    assert (everyone.double() - others.double()).norm() <= bound * (1 + 1e-6) + 1e-6 * len(values) * bound


def test_without_clipping_and_noise_it_is_sgd() -> None:
    # DP2. Two steps of a squared loss, so that the second depends on the first.
    torch.manual_seed(1)
    x, y = torch.randn(10, 4), torch.randn(10)
    plain, private = nn.Linear(4, 1), nn.Linear(4, 1)
    private.load_state_dict(plain.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ((plain(x).squeeze(1) - y) ** 2).mean().backward()
        optimizer.step()
    train_privately(
        private,
        torch.optim.SGD(private.parameters(), lr=0.1),
        settings(max_grad_norm=1e9, expected_batch_size=10),
        rows=10,
        steps=2,
        losses=lambda indices: (private(x[indices]).squeeze(1) - y[indices]) ** 2,
        after_step=lambda step: None,
        randomness=NoNoise(),
    )
    for left, right in zip(plain.parameters(), private.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [[[]], [[0, 1]]], ids=["empty sample", "zero gradients"])
def test_noise_has_the_promised_deviation(samples: list[list[int]]) -> None:
    # DP3: 20,000 coordinates whose gradient is zero; the release is noise of deviation sigma C / B alone.
    sampler = NoNoise(*samples)
    randomness = OwnerRandomness()
    randomness.poisson_sample = sampler.poisson_sample  # type: ignore[method-assign]
    noise = released(torch.zeros(2, 20_000), randomness, noise_multiplier=1.5, max_grad_norm=0.4, expected_batch_size=30)
    assert float(noise.std()) == pytest.approx(1.5 * 0.4 / 30, rel=0.03)
    assert abs(float(noise.mean())) < 6 * 0.02 / math.sqrt(20_000)


def test_noise_comes_from_the_owner_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # With virtual batches, noise must come once for the whole sample, not once for each part, and from the owner alone.
    class Sevens(NoNoise):
        asked: list[tuple[tuple[int, ...], float]] = []

        def gaussian(self, shape: tuple[int, ...], std: float) -> np.ndarray[Any, np.dtype[np.float64]]:
            self.asked.append((shape, std))
            return np.full(shape, -7.0)

    monkeypatch.setattr(dp_sgd, "_LARGEST_PART", 2)
    sevens = Sevens()
    change = released(torch.zeros(9, 3), sevens, noise_multiplier=2.0, max_grad_norm=0.5, expected_batch_size=10)
    assert change.tolist() == pytest.approx([0.7] * 3)
    assert sevens.asked == [((1, 3), 1.0)]


def test_virtual_batches_equal_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = torch.randn(11, 5, generator=torch.Generator().manual_seed(2))
    whole = released(examples, NoNoise(), max_grad_norm=0.7)
    for part in (1, 2, 10, 11):
        monkeypatch.setattr(dp_sgd, "_LARGEST_PART", part)
        torch.testing.assert_close(released(examples, NoNoise(), max_grad_norm=0.7), whole, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(dp_sgd, "_MEMORY", 1)  # too little for one example: still one at a time
    torch.testing.assert_close(released(examples, NoNoise(), max_grad_norm=0.7), whole, rtol=1e-6, atol=1e-6)


def test_divides_by_the_expected_size_not_the_sample_s() -> None:
    # The realised size is private: dividing by it would release it and change the sensitivity.
    examples = torch.tensor([[0.3, 0.0], [0.0, 0.4], [0.5, 0.5]])
    change = released(examples, NoNoise([0, 1]), expected_batch_size=10)
    assert change.tolist() == pytest.approx([0.03, 0.04])


def test_steps_do_not_depend_on_the_data() -> None:
    done: list[int] = []
    model = Slope(2)
    train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        settings(sample_rate=1e-9),
        rows=0,
        steps=4,
        losses=model.losses(torch.zeros(0, 2)),
        after_step=done.append,
    )
    assert done == [0, 1, 2, 3]
    assert model.layer.weight.abs().min() > 0  # four steps of pure noise


def test_neither_noise_nor_batches_can_be_seeded() -> None:
    # DP8, G7: the same data, the same seeds in torch and numpy, and yet another release.
    examples, changes = torch.randn(40, 3), []
    for multiplier in (1.0, 1.0, 1e-9, 1e-9):
        torch.manual_seed(3)
        np.random.seed(3)
        changes.append(released(examples, noise_multiplier=multiplier, steps=20))
    assert not torch.equal(changes[0], changes[1])
    assert (changes[2] - changes[3]).abs().max() > 1e-3  # nearly no noise: the batches differ


def test_the_same_randomness_gives_the_same_release() -> None:
    # G7: given noise and batches there is nothing else random, so the two stand-ins agree to the bit.
    examples = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(released(examples, NoNoise(), steps=3), released(examples, NoNoise(), steps=3))


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan, 3e38])
def test_an_overflowing_record_adds_nothing(poison: float) -> None:
    # One nan in the sum would tell, without noise, that a record for which the model overflows is present.
    examples = torch.tensor([[0.3, 0.1], [poison, 0.5], [0.2, 0.2]])
    torch.testing.assert_close(released(examples, NoNoise()), torch.tensor([0.5, 0.3]))


def test_frozen_tensors_keep_their_bits() -> None:
    # DP13, G5: neither noise nor weight decay reaches what is not trained.
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    before = [tensor.clone() for tensor in model.parameters()]
    train_privately(
        model,
        torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.1, weight_decay=0.5),
        settings(),
        rows=4,
        steps=3,
        losses=lambda indices: model(torch.ones(len(indices), 3)).squeeze(1),
        after_step=lambda step: None,
    )
    same = [torch.equal(left, right) for left, right in zip(before, model.parameters(), strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("field", ["noise_multiplier", "max_grad_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_no_privacy_is_refused(field: str, value: float) -> None:
    with pytest.raises(PrivacyError, match=field):
        settings(**{field: value})


@pytest.mark.parametrize("changes", [{"sample_rate": 0.0}, {"sample_rate": 1.1}, {"sample_rate": math.nan}])
def test_impossible_sampling_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match="sample_rate"):
        settings(**changes)
    with pytest.raises(PrivacyError, match="expected_batch_size"):
        settings(expected_batch_size=0)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Losses) -> None:
    train_privately(
        model, optimizer, settings(), rows=3, steps=1, losses=losses, after_step=lambda step: None, randomness=NoNoise()
    )


def test_losses_that_mix_examples_are_refused() -> None:
    model = Slope(2)
    with pytest.raises(PrivacyError, match="one value for each example"):
        _train(model, torch.optim.SGD(model.parameters(), lr=1.0), lambda indices: model.layer(torch.ones(3, 2)).mean())
    assert not model.layer._forward_hooks  # gone, also after an error


def test_a_tensor_without_per_example_gradients_is_refused() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    with pytest.raises(PrivacyError, match="no gradient for each example"):
        _train(
            model, torch.optim.SGD(model.parameters(), lr=1.0), lambda indices: model[0](torch.ones(len(indices), 2)).squeeze(1)
        )


def test_a_broadcast_input_is_refused() -> None:
    # What BERT's position_ids of batch dimension 1 do: one gradient for all examples, which clipping would not bound.
    model = nn.ModuleDict({"places": nn.Embedding(4, 2), "out": nn.Linear(2, 1)})

    def losses(indices: Any) -> Tensor:
        hidden: Tensor = model["out"](torch.ones(len(indices), 1, 2) + model["places"](torch.zeros(1, 1, dtype=torch.long)))
        return hidden.flatten()

    with pytest.raises(PrivacyError, match="no gradient for each example"):
        _train(model, torch.optim.SGD(model.parameters(), lr=1.0), losses)


def test_an_optimizer_that_is_not_fresh_or_not_whole_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    used = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    used.step()
    with pytest.raises(PrivacyError, match="fresh"):
        _train(model, used, lambda indices: model(torch.ones(3, 2)).squeeze(1))
    with pytest.raises(PrivacyError, match="exactly the trainable"):
        _train(model, torch.optim.SGD(model[0].parameters(), lr=1.0), lambda indices: model(torch.ones(3, 2)).squeeze(1))
