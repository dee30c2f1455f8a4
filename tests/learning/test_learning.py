"""Every kind of task is learnt, with and without privacy, and tested on generated public sentences that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy.errors import PrivacyError
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, build_model, new_bundle, with_adapters
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import build_vocabulary, tokenizer_of
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters, add, from_bytes, specs_of
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.accounting import calibrate
from fl_privacy.row_files import StoredRows, stored
from tests.tiny_families import KINDS, bundle_of
from tests.tiny_model import ROWS, VOCABULARY, tiny_bundle, tiny_plan, weights_of

WHEN = ("今天", "昨天上午", "上周", "刚才", "")
WHO = (("王医生", "PER"), ("李老师", "PER"), ("北京", "LOC"), ("上海市", "LOC"), ("他们", None), ("有人", None))
WHAT = {
    "医疗": ("做了手术", "开了药方", "量了体温"),
    "教育": ("改了作业", "上了数学课", "发了课本"),
    "客服": ("退了货款", "改了密码", "换了屏幕"),
}
HOW = ("。", ",很快。", ",但是没有人知道。")


def _rows() -> list[Row]:
    rows = []
    for when, (who, kind), (label, whats), how in product(WHEN, WHO, WHAT.items(), HOW):
        for what in whats:
            named = [f"B-{kind}", *[f"I-{kind}"] * (len(who) - 1)] if kind else ["O"] * len(who)
            tags = ("O",) * len(when), named, ("O",) * len(what + how)
            rows.append(Row(text=when + who + what + how, label=label, tags=tuple(tag for part in tags for tag in part)))
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]


GENERATED = _rows()
LEARNT, HELD_OUT = GENERATED[200:], GENERATED[:200]
WORDS = build_vocabulary([row.text for row in GENERATED], 200)
LABELS = {"classification": tuple(WHAT), "ner": ("PER", "LOC")}
NO_HEAD = ("clm", "head")  # its output layer is the word embedding
CHANCE = {"classification": 1 / 3, "ner": 0.0}


def _plan(head: Any, **changes: Any) -> tuple[ModelBundle, TrainingPlan]:
    config = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
    }
    bundle = new_bundle(config, WORDS, 0, "small", head, LABELS[head])
    return bundle, tiny_plan(bundle, rounds=1, **changes)


def _headline(plan: TrainingPlan, parameters: Parameters) -> float:
    return evaluate(plan, build_model(plan.model, WORDS, parameters), tokenizer_of(WORDS), HELD_OUT, 0).headline


@pytest.mark.parametrize("head", ["classification", "ner"])
def test_labels_are_learnt_without_privacy(head: str) -> None:
    bundle, plan = _plan(head, local_steps=60, batch_size=32, learning_rate=1e-2)
    first = from_bytes(bundle.weights)
    trained = train_without_privacy(plan, first, WORDS, LEARNT, generator=np.random.default_rng(0))
    assert _headline(plan, first) < CHANCE[head] + 0.2
    assert _headline(plan, trained) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("head", ["classification", "ner"])
def test_labels_are_learnt_with_privacy_from_plenty_of_rows(head: str) -> None:
    bundle, plan = _plan(head, local_steps=60, batch_size=150, learning_rate=2e-2, max_grad_norm=1.0, schedule="constant")
    rows = LEARNT * 10
    noise = calibrate(8.0, 1e-5, plan.sample_rate(len(rows)), plan.total_steps, plan.accountant)
    update = train_update(plan, 0, from_bytes(bundle.weights), WORDS, rows, len(rows), noise, lambda *_: None)
    assert _headline(plan, add(from_bytes(bundle.weights), update)) > 0.8


@pytest.mark.parametrize(
    ("family", "head", "trainable"),
    [
        (*kind, trainable)
        for kind in KINDS
        for trainable in ("all", "head", "lora", "ffa-lora")
        if (kind[1], trainable) != NO_HEAD
    ],
)
def test_an_update_holds_the_plans_tensors_only_and_the_frozen_ones_keep_their_bits(
    family: str, head: str, trainable: str
) -> None:
    # G5. What is not in the update is as it was: the model is rebuilt from the parameters that were given.
    bundle = bundle_of(family, head)
    plan = tiny_plan(bundle, trainable=trainable, local_steps=1, rounds=1, max_length=48)
    first = with_adapters(plan, from_bytes(bundle.weights))
    rows = [row.model_copy(update={"label": bundle.spec.labels[0] if bundle.spec.labels else None}) for row in ROWS]
    update = train_update(plan, 0, first, bundle.vocabulary, rows, 80, 1.0, lambda *_: None)
    assert specs_of(update) == specs_for(plan)
    assert all(array.dtype == np.float32 and array.any() for array in update.values())  # noise reaches every one
    trained = train_without_privacy(plan, first, bundle.vocabulary, rows, generator=np.random.default_rng(0))
    assert trained.keys() == first.keys()
    assert all(np.array_equal(trained[name], first[name]) for name in first.keys() - update.keys())


def test_rows_on_disk_are_read_when_they_are_sampled_and_no_others(tmp_path: Path) -> None:
    class Watched(StoredRows):
        read: list[int] = []

        def __getitem__(self, index: Any) -> Any:
            self.read.append(int(index))
            return super().__getitem__(index)

    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(stored(row) for row in ROWS))
    with Watched(file) as rows:
        plan = tiny_plan(tiny_bundle(), local_steps=2, batch_size=8)
        update = train_update(plan, 0, weights_of(tiny_bundle()), VOCABULARY, rows, 75, 1.0, lambda *_: None)
        assert 0 < len(rows.read) < 40  # 16 are expected of 75
    assert all(array.any() for array in update.values())


def _train_on_subjects(subjects: Sequence[int | None]) -> Parameters:
    rows = [row.model_copy(update={"subject": subject}) for row, subject in zip(ROWS, subjects, strict=False)]
    plan, told = tiny_plan(tiny_bundle(), local_steps=1, batch_size=2), lambda *_: None
    return train_update(plan, 0, weights_of(tiny_bundle()), VOCABULARY, rows, 5, 1.0, told, unit="subject")


def test_subjects_are_the_units_where_the_plans_owner_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr("fl_privacy.learning.local_training.train_privately", lambda *_, **told: seen.update(told))
    _train_on_subjects([3, 1, 3, 1, 2])
    lengths = [len(row.text) for row in ROWS[:5]]
    assert seen["subjects"] == [(3, 1, 3, 1, 2)[index] for index in np.argsort(lengths, kind="stable")]  # beside their rows


def test_a_row_without_a_subject_is_refused_where_subjects_are_protected() -> None:
    with pytest.raises(PrivacyError, match="has no subject"):
        _train_on_subjects([0, None, 1])
