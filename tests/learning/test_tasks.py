"""Tasks: what each makes of a record, the loss of each example by itself, and what it counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fl_privacy.errors import ModelError
from fl_privacy.learning.batches import IGNORED, Batch, Features, collate
from fl_privacy.learning.losses import per_example_loss
from fl_privacy.learning.models import build_model
from fl_privacy.learning.tasks.base import Task
from fl_privacy.learning.tasks.mlm import MaskedLanguageTask
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import Row
from fl_privacy.parameters import from_bytes
from tests.tiny_families import KINDS as FAMILIES_AND_HEADS
from tests.tiny_families import LABELS, VOCABULARIES, bundle_of
from tests.tiny_model import ROWS, SENTENCES, VOCABULARY, tiny_bundle, tiny_plan, weights_of

TOKENIZER = tokenizer_of(VOCABULARY)
GENERATOR = np.random.default_rng(0)
CLASSES, PLACES = ("物", "人"), ("PER", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def _masking(probability: float = 0.3, max_length: int = 40) -> MaskedLanguageTask:
    return MaskedLanguageTask(TOKENIZER, max_length, probability)


def _task(head: str, labels: Sequence[str], max_length: int = 40) -> Task:
    return task_of(tiny_plan(tiny_bundle(head=head, labels=labels), max_length=max_length), TOKENIZER)


def _tagged(text: str, tags: str) -> Row:
    return Row(text=text, tags=tuple(tags.split()))


def _certain(examples: Sequence[Features], told: Sequence[Sequence[int]], outputs: int) -> Tensor:
    """Scores (B, M, outputs) that are highest at the told labels."""
    width = max(len(example.labels) for example in examples)
    chosen = torch.zeros(len(examples), max(width, 1), dtype=torch.int64)
    for row, labels in zip(chosen, told, strict=True):
        row[: len(labels)] = torch.tensor(labels)
    return 50.0 * functional.one_hot(chosen, outputs).float()


# masked language modelling


def test_masks_are_15_percent_and_80_10_10() -> None:
    text, task = "".join(SENTENCES)[:198], _masking(0.15, 200)
    ordinary = int((~task.special[task.encoder.encode(text)]).sum()) * 500
    examples = [task.features(Row(text=text), GENERATOR) for _ in range(500)]
    shown = np.concatenate([example.ids[example.places] for example in examples])
    hidden = np.concatenate([example.labels for example in examples])
    assert len(hidden) / ordinary == pytest.approx(0.15, abs=0.005)
    assert np.mean(shown == TOKENIZER.mask_token_id) == pytest.approx(0.8, abs=0.02)
    assert np.mean(shown == hidden) == pytest.approx(0.1 + 0.1 / (len(TOKENIZER) - 5), abs=0.015)  # random can be the same
    random = shown[(shown != TOKENIZER.mask_token_id) & (shown != hidden)]
    assert len(np.unique(random)) > 0.9 * (len(TOKENIZER) - 5)
    assert not np.isin(random, TOKENIZER.all_special_ids).any()


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SENTENCES, "", "鼠", "[MASK]", "\ud800"]), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_batch_hides_only_ordinary_tokens_and_loses_nothing(texts: list[str], seed: int) -> None:
    task = _masking(0.5, 20)
    batch = task.batch([Row(text=text) for text in texts], np.random.default_rng(seed))
    for index, ids in enumerate(task.encoder.encode(text) for text in texts):
        hidden = batch.labels[index] != IGNORED
        places = batch.places[index][hidden].tolist()
        assert batch.attention_mask[index].tolist() == [1] * len(ids) + [0] * (batch.input_ids.shape[1] - len(ids))
        restored = batch.input_ids[index].clone()
        restored[places] = batch.labels[index][hidden]
        assert restored[: len(ids)].tolist() == ids.tolist()
        assert (batch.input_ids[index, len(ids) :] == TOKENIZER.pad_token_id).all()
        assert not np.isin(ids[places], TOKENIZER.all_special_ids).any()


def test_masks_are_fresh_draws_of_the_records_generator() -> None:
    task, row = _masking(), ROWS[11]
    first, again, other = (task.features(row, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.ids, again.ids) and np.array_equal(first.places, again.places)
    assert not np.array_equal(first.places, other.places)


def test_a_vocabulary_without_a_mask_token_cannot_be_masked() -> None:
    with pytest.raises(ModelError, match="no mask token"):
        MaskedLanguageTask(tokenizer_of(VOCABULARIES["gpt2"]), 40, 0.15)


# causal language modelling


def test_every_next_token_is_predicted_from_those_before_it() -> None:
    bundle = bundle_of("gpt2", "clm")
    task = task_of(tiny_plan(bundle), tokenizer_of(bundle.vocabulary))
    example = task.features(ROWS[0], GENERATOR)
    assert example.ids.tolist() == task.encoder.encode(SENTENCES[0]).tolist()
    assert example.places.tolist() == list(range(len(example.ids) - 1))
    assert example.ids[example.places + 1].tolist() == example.labels.tolist()
    assert task.features(Row(text=""), GENERATOR).labels.tolist() == [TOKENIZER_END]


TOKENIZER_END = tokenizer_of(VOCABULARIES["gpt2"]).eos_token_id or tokenizer_of(VOCABULARIES["gpt2"]).sep_token_id


# classification


@pytest.mark.parametrize(("label", "labels"), [("物", [0]), ("人", [1]), ("鬼", []), ("", []), (None, [])])
def test_a_class_is_its_place_in_the_plan_and_one_outside_of_it_is_nothing_to_predict(
    label: str | None, labels: list[int]
) -> None:
    example = _task("classification", CLASSES).features(Row(text=SENTENCES[0], label=label), GENERATOR)
    assert example.labels.tolist() == labels
    assert example.places.tolist() == [0] * len(labels)
    assert example.ids.tolist() == TOKENIZER(SENTENCES[0])["input_ids"]


def test_a_text_counts_in_the_cell_of_its_true_and_its_predicted_class() -> None:
    task = _task("classification", CLASSES)
    rows = [Row(text=SENTENCES[0], label=label) for label in ("物", "人", "人", "鬼")]
    examples = [task.features(row, GENERATOR) for row in rows]
    counts = task.per_example_counts(rows, examples, _certain(examples, [[0], [0], [1], [0]], 2))
    assert counts[:, :4].tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert counts[:, 4] == pytest.approx([0, 50, 0, 0])
    assert task.count_names[:4] == ("物 as 物", "物 as 人", "人 as 物", "人 as 人")


# entities

ENTITIES = _tagged("病人在门诊", "B-PER I-PER O B-LOC I-LOC")


def test_a_tag_is_predicted_at_the_first_token_of_its_character() -> None:
    example = _task("ner", PLACES).features(ENTITIES, GENERATOR)
    assert example.places.tolist() == [1, 2, 3, 4, 5]
    assert example.labels.tolist() == [1, 2, 0, 3, 4]


def test_of_byte_level_tokens_the_first_of_each_character_is_predicted() -> None:
    bundle = bundle_of("roberta", "ner")
    task = task_of(tiny_plan(bundle), tokenizer_of(bundle.vocabulary))
    row = _tagged("鼠x鼹", "B-人名 I-人名 O")  # unseen: three bytes, three tokens
    example = task.features(row, GENERATOR)
    assert len(example.ids) == 2 + 3 + 1 + 3
    assert (example.places.tolist(), example.labels.tolist()) == ([1, 4, 5], [1, 2, 0])
    assert task.counts([row], [example], _certain([example], [[1, 2, 0]], 5)).headline == 1.0


def test_characters_without_a_token_of_their_own_belong_to_the_token_before() -> None:
    # [UNK] stands for a whole Latin word here, and a space has no token.
    task, row = _task("ner", PLACES), _tagged("老qxj qj师", "O B-PER I-PER I-PER I-PER I-PER I-PER O")
    example = task.features(row, GENERATOR)
    assert example.places.tolist() == [1, 2, 3, 4]
    assert example.labels.tolist() == [0, 1, 2, 0]
    assert task.counts([row], [example], _certain([example], [[0, 1, 2, 0]], 5)).f1("strict") == 1.0
    assert task.counts([row], [example], _certain([example], [[0, 1, 0, 0]], 5)).f1("strict") == 0.0  # too short


MISFITS = {
    "no tags": Row(text="病人"),
    "fewer tags than characters": _tagged("病人", "O"),
    "more tags than characters": _tagged("病人", "O O O"),
    "a kind that the plan does not have": _tagged("病人", "B-ORG O"),
    "no BIO tag": _tagged("病人", "S-PER O"),
    "a class in place of tags": Row(text="病人", label="PER"),
}


@pytest.mark.parametrize("row", MISFITS.values(), ids=MISFITS.keys())
def test_a_record_whose_tags_do_not_fit_the_plan_is_an_example_without_places_and_counts_nothing(row: Row) -> None:
    task = _task("ner", PLACES)
    example = task.features(row, GENERATOR)
    assert len(example.ids) == 4
    assert not len(example.places) and not len(example.labels)
    batch = collate([example, task.features(ENTITIES, GENERATOR)], task.pad)
    bundle = tiny_bundle(head="ner", labels=PLACES)
    losses = task.loss(build_model(bundle.spec, VOCABULARY, weights_of(bundle)), batch)
    assert losses[0] == 0 < losses[1]
    assert not task.per_example_counts([row], [example], torch.ones(1, 1, 5)).any()


def test_an_entity_that_was_cut_off_with_the_end_of_its_text_is_missed() -> None:
    task = _task("ner", PLACES, max_length=8)  # six characters fit
    row = _tagged("病人在门诊在门诊在门诊", "B-PER I-PER O O O B-LOC I-LOC I-LOC O B-LOC I-LOC")
    example = task.features(row, GENERATOR)
    assert example.labels.tolist() == [1, 2, 0, 0, 0, 3]
    counts = task.counts([row], [example], _certain([example], [example.labels.tolist()], 5))
    assert [counts[f"strict {column} LOC"] for column in ("found", "predicted", "true")] == [0, 1, 2]
    assert counts.f1("strict", "PER") == 1.0
    assert counts.headline == pytest.approx(2 * 1 / (2 + 3))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=20), st.lists(st.sampled_from(range(5)), min_size=20, max_size=20))
def test_entities_of_a_tagged_text_are_counted_as_its_tags_are(tags: list[str], told: list[int]) -> None:
    from tests.learning.test_metrics import entity_counts

    task, row = _task("ner", PLACES), Row(text="病" * len(tags), tags=tuple(tags))
    example = task.features(row, GENERATOR)
    counts = task.counts([row], [example], _certain([example], [told[: len(tags)]], 5))
    assert counts == entity_counts(tags, [TAGS[tag] for tag in told[: len(tags)]])


# all tasks: every family with every head


def _annotated(head: str, texts: Sequence[str]) -> list[Row]:
    labels, draw = LABELS.get(head, ()), np.random.default_rng(5)
    tags = ("O", *(f"{place}-{label}" for label in labels for place in "BI"))
    return [
        Row(text=text, label=labels[index % len(labels)] if labels else None, tags=tuple(draw.choice(tags, len(text))))
        for index, text in enumerate(texts)
    ]


def _ready(family: str, head: str) -> tuple[Task, torch.nn.Module, list[Row]]:
    bundle = bundle_of(family, head)
    task = task_of(tiny_plan(bundle, max_length=48), tokenizer_of(bundle.vocabulary))
    model = build_model(bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    return task, model, _annotated(head, [SENTENCES[11], "病人", SENTENCES[0], SENTENCES[37]])


@pytest.mark.parametrize(("family", "head"), FAMILIES_AND_HEADS)
def test_a_loss_is_the_mean_over_its_own_places_and_depends_on_its_own_example_only(family: str, head: str) -> None:
    # With the library's .loss (a mean over the batch's places) the first example's share changes with its neighbours.
    task, model, rows = _ready(family, head)
    batch = task.batch(rows, np.random.default_rng(1))
    with torch.no_grad():
        together = task.loss(model, batch)
        for index in range(len(rows)):
            size, real = int(batch.attention_mask[index].sum()), batch.labels[index] != IGNORED
            logits = model(input_ids=batch.input_ids[index : index + 1, :size]).logits[0]
            if logits.ndim == 2:
                logits = logits[batch.places[index][real]]
            alone = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.labels[index][real])
            expected = alone if real.any() else torch.tensor(0.0)
            torch.testing.assert_close(together[index], expected, rtol=1e-4, atol=1e-5)
    assert together.std() > 0


@pytest.mark.parametrize(("family", "head"), FAMILIES_AND_HEADS)
def test_an_example_without_places_has_no_loss_and_no_gradient(family: str, head: str) -> None:
    task, model, rows = _ready(family, head)
    nothing = np.zeros(0, dtype=np.int64)
    examples = [task.features(row, GENERATOR)._replace(places=nothing, labels=nothing) for row in rows]
    losses = per_example_loss(model, collate(examples, task.pad))
    losses.sum().backward()
    assert losses.tolist() == [0.0] * len(rows)
    assert all(not tensor.grad.any() for tensor in model.parameters() if tensor.grad is not None)


@pytest.mark.parametrize(("family", "head"), FAMILIES_AND_HEADS)
def test_counts_are_the_sum_of_each_examples_whatever_it_is_batched_with(family: str, head: str) -> None:
    task, _, rows = _ready(family, head)
    examples = [task.features(row, np.random.default_rng(3)) for row in rows]
    outputs = bundle_of(family, head).spec.outputs or len(task.tokenizer)
    scores = torch.randn(len(rows), max(len(example.labels) for example in examples), outputs)
    each = task.per_example_counts(rows, examples, scores)
    assert each.shape == (len(rows), len(task.count_names)) and each.any()
    assert np.array_equal(task.counts(rows, examples, scores).vector, each.sum(axis=0))
    for index, example in enumerate(examples):
        own = scores[index : index + 1, : max(len(example.labels), 1)]
        assert np.array_equal(task.per_example_counts(rows[index : index + 1], [example], own)[0], each[index])


# Tokens of several characters cannot tell all random tags apart, so entities are copied with tokens of one character only.
@pytest.mark.parametrize(
    ("family", "head"), [kind for kind in FAMILIES_AND_HEADS if kind[1] != "ner" or kind[0] in ("bert", "albert")]
)
def test_copied_labels_are_all_right_and_shuffled_ones_right_by_chance(family: str, head: str) -> None:
    # E5
    task, _, _ = _ready(family, head)
    rows = _annotated(head, SENTENCES)
    examples = [task.features(row, np.random.default_rng(index)) for index, row in enumerate(rows)]
    outputs = bundle_of(family, head).spec.outputs or len(task.tokenizer)
    copied = task.counts(rows, examples, _certain(examples, [example.labels.tolist() for example in examples], outputs))
    assert copied.headline == 1.0
    shuffled = GENERATOR.permutation(np.concatenate([example.labels for example in examples]))
    parts = np.split(shuffled, np.cumsum([len(example.labels) for example in examples])[:-1])
    chance = task.counts(rows, examples, _certain(examples, [part.tolist() for part in parts], outputs))
    assert chance.headline < 0.6


@settings(max_examples=30, deadline=None)
@given(
    st.text(max_size=80),
    st.sampled_from([*CLASSES, None, "x"]),
    st.none() | st.lists(st.sampled_from([*TAGS, "B-", "-", ""]), max_size=80),
)
def test_no_record_makes_a_task_fail(text: str, label: str | None, tags: list[str] | None) -> None:
    row = Row.model_construct(text=text, label=label, tags=None if tags is None else tuple(tags))
    for task in (_masking(), _task("classification", CLASSES), _task("ner", PLACES)):
        example = task.features(row, GENERATOR)
        assert 2 <= len(example.ids) <= 40 and len(example.places) == len(example.labels)
        assert isinstance(task.batch([row], GENERATOR), Batch)
