"""A plan's file names its task, and with labels its model's head."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_privacy.errors import ModelError, PlanError
from fl_privacy.learning.models import save_pretrained
from fl_privacy.parameters import from_bytes
from fl_privacy.scientist.files import read_plan
from tests.tiny_families import LABELS, bundle_of

PLAN = """
name = "tiny"
purpose = "a plan for tests only"
model = "base"
owners = ["clinic", "school", "desk"]
max_length = 40
"""

TASK = """
def features(text, tokenizer):
    return {"input_ids": [1], "labels": [1]}
def loss(scores, labels):
    return scores.sum()
"""


def _plan(folder: Path, more: str, family: str = "bert") -> Path:
    bundle = bundle_of(family, "clm" if family == "gpt2" else "mlm")
    save_pretrained(folder / "base", bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    (folder / "PLAN.toml").write_text(PLAN + more, encoding="utf-8")
    return folder / "PLAN.toml"


def test_labels_in_the_file_give_the_model_a_head_for_them(tmp_path: Path) -> None:
    plan, bundle = read_plan(
        _plan(tmp_path, 'task = "classification"\nlabels = ["体育", "财经", "其他"]\ntrainable = "lora"\n')
    )
    assert plan.model == bundle.spec
    assert (plan.model.head, plan.model.labels) == ("classification", LABELS["classification"])
    assert from_bytes(bundle.weights)["classifier.weight"].shape == (3, 16)


def test_a_custom_task_has_the_models_own_language_head(tmp_path: Path) -> None:
    path = _plan(tmp_path, 'task = "own.py"\n', "gpt2")
    (tmp_path / "own.py").write_text(TASK)
    assert read_plan(path)[0].model.head == "clm"


@pytest.mark.parametrize("labels", ['"体育"', "[1, 2]", "{a = 1}"])
def test_labels_that_are_no_list_of_names_are_refused(tmp_path: Path, labels: str) -> None:
    with pytest.raises(PlanError, match="PLAN.toml: labels: give a list of names"):
        read_plan(_plan(tmp_path, f'task = "ner"\nlabels = {labels}\n'))


def test_a_task_without_its_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="labels: a ner head has at least 1, got 0"):
        read_plan(_plan(tmp_path, 'task = "ner"\n'))
