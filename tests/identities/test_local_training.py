"""Local training against what it must equal: one-example-at-a-time gradients, one long run, one central step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from fl_privacy.errors import ModelError, PlanError, PrivacyError
from fl_privacy.learning.batches import IGNORED, Batch
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.losses import per_example_loss
from fl_privacy.learning.models import ModelBundle, build_model, parameters_of
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tasks.mlm import MaskedLanguageTask
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import freeze_except, trainable_specs
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters, add, norm, scale, specs_of, subtract
from fl_privacy.privacy import dp_sgd
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from fl_privacy.privacy.randomness import OwnerRandomness
from tests.tiny_model import ROWS, SENTENCES, VOCABULARY, NoNoise, clipped, tiny_bundle, tiny_plan, weights_of

TOKENIZER = tokenizer_of(VOCABULARY)
SETTINGS = ["all", "head", "layers:0-0", "layers:1-1", "layers:0-1"]
# Different lengths, so that the batch is padded; one text has nothing to hide.
TEXTS = [SENTENCES[0], "病人", SENTENCES[11], "鼠", SENTENCES[22], SENTENCES[37] + SENTENCES[3]]


def _fixed_batch(texts: list[str]) -> Batch:
    return MaskedLanguageTask(TOKENIZER, 40, 0.4).batch([Row(text=text) for text in texts], np.random.default_rng(1))


def _some(batch: Batch, indices: np.ndarray[Any, Any]) -> Batch:
    return Batch(batch.input_ids[indices], batch.attention_mask[indices], batch.places[indices], batch.labels[indices])


def _model(bundle: ModelBundle, trainable: str = "all") -> PreTrainedModel:
    model = build_model(bundle.spec, VOCABULARY, weights_of(bundle))
    freeze_except(model, trainable_specs(model, trainable))
    return model


def _sgd(
    model: PreTrainedModel,
    batch: Batch,
    randomness: OwnerRandomness,
    *,
    bound: float,
    divisor: int = 1,
    steps: int = 1,
    rate: float = 1.0,
) -> Parameters:
    """DP-SGD steps on fixed masks; returns before - after of all tensors."""
    before = parameters_of(model)
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    train_privately(
        model,
        torch.optim.SGD(trained, lr=rate),
        DPSettings(noise_multiplier=1.0, max_grad_norm=bound, sample_rate=0.5, expected_batch_size=divisor),
        rows=len(batch.labels),
        steps=steps,
        losses=lambda indices: per_example_loss(model, _some(batch, indices)),
        after_step=lambda step: None,
        randomness=randomness,
    )
    return subtract(before, parameters_of(model))


def _one_at_a_time(model: PreTrainedModel, batch: Batch, bound: float) -> dict[str, torch.Tensor]:
    """The clipped sum by plain autograd: each text alone, without padding, through the library's whole model."""
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    total = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in trained.items()}
    for index in range(len(batch.labels)):
        size, hidden = int(batch.attention_mask[index].sum()), batch.labels[index] != IGNORED
        if not hidden.any():
            continue
        logits = model(input_ids=batch.input_ids[index : index + 1, :size]).logits[0]
        loss = functional.cross_entropy(logits[batch.places[index][hidden]], batch.labels[index][hidden])
        gradients = clipped(list(torch.autograd.grad(loss, list(trained.values()))), bound)
        for name, gradient in zip(trained, gradients, strict=True):
            total[name] += gradient
    return total


@pytest.mark.parametrize("part", [2, 32])
@pytest.mark.parametrize("bound", [0.3, 1e6], ids=["all clipped", "none clipped"])
@pytest.mark.parametrize("trainable", SETTINGS)
def test_clipped_sum_equals_one_example_at_a_time(
    trainable: str, bound: float, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Covers the shared word embedding, the second name of the output bias, position and type ids, padding, the mean over
    # each example's own tokens, and scores at hidden places only: each of them wrong gives another sum, or an error.
    monkeypatch.setattr(dp_sgd, "_LARGEST_PART", part)
    batch = _fixed_batch(TEXTS)
    expected = _one_at_a_time(_model(tiny_bundle(), trainable).eval(), batch, bound)
    ours = _sgd(_model(tiny_bundle(), trainable), batch, NoNoise(), bound=bound)
    wrong = sum(float(((torch.from_numpy(ours[name]) - wanted) ** 2).sum()) for name, wanted in expected.items()) ** 0.5
    size = sum(float((wanted**2).sum()) for wanted in expected.values()) ** 0.5
    # ours is a difference of float32 weights of size 1, hence the second term
    assert wrong <= 1e-5 * size + 1e-7 * np.sqrt(sum(wanted.numel() for wanted in expected.values()))
    assert size > 0.1 * min(bound, 1.0)
    frozen = ours.keys() - expected.keys()
    assert all(not ours[name].any() for name in frozen)


def test_removing_one_text_moves_the_sum_by_at_most_the_bound() -> None:
    # DP1 on the real model. A mean over the batch's tokens moved it by three times the bound.
    batch = _fixed_batch(TEXTS)
    everyone = _sgd(_model(tiny_bundle()), batch, NoNoise(), bound=0.5)
    for absent in range(len(TEXTS)):
        others = [index for index in range(len(TEXTS)) if index != absent]
        without = _sgd(_model(tiny_bundle()), batch, NoNoise(others), bound=0.5)
        assert norm(subtract(everyone, without)) <= 0.5 * (1 + 1e-4)


def test_weights_that_overflow_on_one_text_release_no_nan() -> None:
    weights = weights_of(tiny_bundle())
    weights["bert.embeddings.word_embeddings.weight"][TOKENIZER.convert_tokens_to_ids("师")] = 3e38
    model = build_model(tiny_bundle().spec, VOCABULARY, weights)
    batch = _fixed_batch(["病人头痛", "李老师", "退款"])
    assert not torch.isfinite(per_example_loss(model, batch)).all()  # the trap works ...
    change = _sgd(model, batch, NoNoise(), bound=0.5)
    assert all(np.isfinite(array).all() for array in change.values())  # ... and tells nothing


def test_frozen_tensors_keep_their_bits_under_noise() -> None:
    # G5, DP13
    change = _sgd(_model(tiny_bundle(), "layers:1-1"), _fixed_batch(TEXTS), OwnerRandomness(), bound=0.5, steps=3)
    moved = {name for name, array in change.items() if array.any()}
    assert moved == {spec.name for spec in trainable_specs(_model(tiny_bundle()), "layers:1-1")}


def test_rounds_equal_one_long_run_without_noise() -> None:
    # F1 for the private path: 3 rounds x 2 steps with the model handed on == 6 steps, plain SGD, the same samples.
    batch, samples = _fixed_batch(TEXTS), [[0, 1, 2], [3], [], [4, 5], [0, 5], [1, 2, 3, 4]]
    long = _model(tiny_bundle())
    _sgd(long, batch, NoNoise(*samples), bound=0.5, steps=6, rate=0.1)
    weights = weights_of(tiny_bundle())
    for start in (0, 2, 4):
        model = build_model(tiny_bundle().spec, VOCABULARY, weights)
        change = _sgd(model, batch, NoNoise(*samples[start : start + 2]), bound=0.5, steps=2, rate=0.1)
        assert norm(change) > 0
        weights = parameters_of(model)
    for name, array in parameters_of(long).items():
        assert np.array_equal(array, weights[name]), name


@pytest.mark.parametrize("trainable", ["all", "layers:0-0"])
def test_rounds_equal_one_long_run_of_the_reference(trainable: str) -> None:
    # F1 with warm-up and decay counted over the whole run and the order of the data continued: equal to the bit.
    plan = tiny_plan(
        tiny_bundle(), rounds=3, local_steps=2, warmup_steps=2, optimizer="sgd", learning_rate=0.1, trainable=trainable
    )
    first = weights_of(tiny_bundle())
    long = train_without_privacy(plan, first, VOCABULARY, ROWS, generator=np.random.default_rng(7))
    weights, generator = first, np.random.default_rng(7)
    for start in (0, 2, 4):
        weights = train_without_privacy(plan, weights, VOCABULARY, ROWS, generator=generator, first_step=start, steps=2)
    assert all(np.array_equal(long[name], weights[name]) for name in first)
    assert norm(subtract(long, first)) > 0
    restarted = train_without_privacy(plan, weights, VOCABULARY, ROWS, generator=generator, steps=2)
    assert norm(subtract(restarted, weights)) > 0


def test_one_full_batch_step_over_owners_is_a_central_step() -> None:
    # F2: sum over owners of n_k / n times their update == one gradient step on the pooled mean loss.
    batch, owners = _fixed_batch(TEXTS), ([0], [1, 2], [3, 4, 5])
    weighted = [
        scale(
            _sgd(_model(tiny_bundle()), _some(batch, np.array(rows)), NoNoise(), bound=1e6, divisor=len(rows)),
            len(rows) / len(TEXTS),
        )
        for rows in owners
    ]
    federated = add(add(weighted[0], weighted[1]), weighted[2])
    central = _model(tiny_bundle())
    before = parameters_of(central)
    optimizer = torch.optim.SGD(central.parameters(), lr=1.0)
    per_example_loss(central, batch).mean().backward()
    optimizer.step()
    change = subtract(before, parameters_of(central))
    assert norm(subtract(federated, change)) <= 1e-5 * norm(change)


def _update(**changes: Any) -> Parameters:
    plan_changes = {name: changes.pop(name) for name in list(changes) if name not in ("rows", "noise", "bundle", "round")}
    bundle = changes.get("bundle", tiny_bundle())
    return train_update(
        tiny_plan(bundle, **plan_changes),
        changes.get("round", 0),
        weights_of(bundle),
        VOCABULARY,
        changes.get("rows", ROWS),
        80,
        changes.get("noise", 1.0),
        lambda done, steps: None,
    )


@pytest.mark.parametrize("trainable", SETTINGS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_update_holds_the_trained_tensors_only(trainable: str, optimizer: str) -> None:
    bundle = tiny_bundle(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    update = _update(bundle=bundle, trainable=trainable, optimizer=optimizer)
    assert specs_of(update) == trainable_specs(_model(bundle), trainable)
    assert all(array.dtype == np.float32 and array.any() for array in update.values())


def test_the_global_model_is_left_alone_and_progress_is_told() -> None:
    bundle, told = tiny_bundle(), []
    weights = weights_of(bundle)
    plan = tiny_plan(bundle, local_steps=3)
    train_update(plan, 1, weights, VOCABULARY, ROWS, 80, 1.0, lambda done, steps: told.append((done, steps)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert all(np.array_equal(weights[name], array) for name, array in weights_of(bundle).items())


def test_an_owner_without_rows_sends_noise() -> None:
    update = _update(rows=[])
    assert all(array.any() for array in update.values())


def test_seeds_of_the_scientist_do_not_repeat_an_update() -> None:
    # DP8
    updates = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        updates.append(_update())
    assert norm(subtract(*updates)) > 0.1 * norm(updates[0])


def test_training_leaves_torchs_generator_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    _update(bundle=tiny_bundle(hidden_dropout_prob=0.5))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_training_without_noise_is_refused(noise: float) -> None:
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        _update(noise=noise)


def test_impossible_orders_are_refused() -> None:
    with pytest.raises(PlanError, match="declared size"):
        _update(batch_size=81)
    with pytest.raises(PlanError, match="round 2 is outside"):
        _update(round=2)
    with pytest.raises(ModelError, match="training diverged.*lower learning_rate"):
        _update(noise=1e38, max_grad_norm=1000.0, learning_rate=10.0, optimizer="sgd")


def test_the_model_learns_when_there_is_little_noise() -> None:
    bundle = tiny_bundle(initializer_range=0.05)
    plan = tiny_plan(bundle, rounds=1, local_steps=25, batch_size=40, learning_rate=0.04, max_grad_norm=1.0)
    first = weights_of(bundle)
    update = train_update(plan, 0, first, VOCABULARY, ROWS, 75, 0.01, lambda done, steps: None)
    before, after = (
        evaluate(plan, build_model(bundle.spec, VOCABULARY, weights), TOKENIZER, ROWS, 0).summary()["perplexity"]
        for weights in (first, add(first, update))
    )
    assert after < 0.5 * before
