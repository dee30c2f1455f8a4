"""The training worker as a real process: what it leaves behind, with a built-in and a custom task, and when it is ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy.errors import CorpusError, OrderFailed, PlanError
from fl_privacy.guard import sandbox, worker
from fl_privacy.learning.models import ModelBundle, new_bundle
from fl_privacy.learning.tokenizer import build_vocabulary
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import Row
from fl_privacy.model_spec import Head
from fl_privacy.parameters import count
from fl_privacy.row_files import stored
from tests.builders import CONFIG, text_rows, texts, tiny_bundle, tiny_plan

TASK = """
import torch.nn.functional as F

def features(text, tokenizer, draws):
    ids = tokenizer.encode(text)
    labels = [-100] * len(ids)
    for place in range(len(ids)):
        if draws[place] < 0.3 and ids[place] not in tokenizer.all_special_ids:
            labels[place] = ids[place]
            ids[place] = tokenizer.mask_token_id
    return {"input_ids": ids, "labels": labels}

def loss(scores, labels):
    return F.cross_entropy(scores, labels)
"""


def job(folder: Path, bundle: ModelBundle | None = None, rows: Sequence[Row] = (), **changes: Any) -> worker.Job:
    """A job for one round of the tiny plan, with all its files."""
    bundle, rows = bundle or tiny_bundle(), rows or text_rows(50)
    plan = tiny_plan(bundle, **changes)
    (folder / "rows.jsonl").write_bytes(b"".join(map(stored, rows)))
    (folder / "weights").write_bytes(bundle.weights)
    (folder / "vocabulary").write_bytes(bundle.vocabulary)
    return worker.Job(
        plan=plan,
        round=0,
        declared_size=50,
        noise_multiplier=1.0,
        corpus=str(folder / "rows.jsonl"),
        weights=str(folder / "weights"),
        vocabulary=str(folder / "vocabulary"),
        tensors=specs_for(plan),
        update=str(folder / "update.f32"),
        owner=plan.owners[0],
        order="0" * 64,
    )


@pytest.mark.parametrize("changes", [{}, {"task": "custom", "custom_task": TASK}], ids=["built-in task", "custom task"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_leaves_one_finite_update_and_tells_each_step_once(
    tmp_path: Path, changes: dict[str, Any], processes: int, caplog: pytest.LogCaptureFixture
) -> None:
    order, steps = job(tmp_path, **changes).model_copy(update={"processes": processes}), []
    with caplog.at_level(logging.WARNING):
        worker.run(order, lambda step, of: steps.append((step, of)), lambda pid: None)
    update = np.fromfile(order.update, "<f4")
    assert steps == [(1, 2), (2, 2)] and update.shape == (count(order.tensors),)
    assert np.isfinite(update).all() and update.any()
    isolation = sandbox.probe(tmp_path)
    assert bool(caplog.records) == ("not isolated" in (isolation.network, isolation.files))  # it is told, or it is so


@pytest.mark.parametrize("task", ["classification", "ner"])
def test_a_worker_that_can_open_no_file_any_more_still_reads_labels_and_tags_of_the_corpus(tmp_path: Path, task: Head) -> None:
    rows = [
        Row(text=text, label=("病", "学")[number % 2], tags=("B-病", *("I-病" for _ in text[1:])))
        for number, text in enumerate(texts(50))
    ]
    bundle = new_bundle(CONFIG, build_vocabulary(texts(200), 100), 0, "tiny", head=task, labels=("病", "学"))
    order = job(tmp_path, bundle, rows, task=task)
    worker.run(order, lambda *_: None, lambda pid: None)
    update = np.fromfile(order.update, "<f4")
    assert np.isfinite(update).all() and update.any()


def test_a_damaged_row_ends_the_order_with_its_line(tmp_path: Path) -> None:
    order = job(tmp_path, batch_size=50)  # every row is sampled
    rows = Path(order.corpus).read_bytes().split(b"\n")
    Path(order.corpus).write_bytes(b"\n".join([*rows[:6], rows[6].replace(b'"text"', b'"test"'), *rows[7:]]))
    with pytest.raises(CorpusError, match="line 7: damaged") as caught:
        worker.run(order, lambda *_: None, lambda pid: None)
    assert texts(7)[6] not in str(caught.value)


def test_a_custom_task_outside_the_language_ends_the_order_with_a_typed_error(tmp_path: Path) -> None:
    order = job(tmp_path, task="custom", custom_task=TASK.replace("ids = tok", "print(text)\n    ids = tok"))
    with pytest.raises(PlanError, match="custom_task, line 5: print"):
        worker.run(order, lambda *_: None, lambda pid: None)


def test_a_silent_worker_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LONGEST_SILENCE", 0.0)
    with pytest.raises(OrderFailed, match="was silent"):
        worker.run(job(tmp_path, local_steps=5000), lambda *_: None, lambda pid: None)
