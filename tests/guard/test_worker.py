"""The training worker as a real process: what it leaves behind, with a built-in and a custom task, and when it is ended."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy.errors import OrderFailed, PlanError
from fl_privacy.guard import sandbox, worker
from fl_privacy.learning.trainable import specs_for
from fl_privacy.parameters import count
from tests.builders import texts, tiny_bundle, tiny_plan

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


def job(folder: Path, **changes: Any) -> worker.Job:
    """A job for one round of the tiny plan, with all its files."""
    bundle = tiny_bundle()
    plan = tiny_plan(bundle, **changes)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(50)), encoding="utf-8")
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
        tensors=specs_for(plan.model, plan.trainable),
        update=str(folder / "update.f32"),
    )


@pytest.mark.parametrize("changes", [{}, {"task": "custom", "custom_task": TASK}], ids=["built-in task", "custom task"])
def test_a_worker_leaves_one_finite_update_and_tells_its_steps(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    order, steps = job(tmp_path, **changes), []
    with caplog.at_level(logging.WARNING):
        worker.run(order, lambda step, of: steps.append((step, of)), lambda pid: None)
    update = np.fromfile(order.update, "<f4")
    assert steps == [(1, 2), (2, 2)] and update.shape == (count(order.tensors),)
    assert np.isfinite(update).all() and update.any()
    isolation = sandbox.probe(tmp_path)
    assert bool(caplog.records) == ("not isolated" in (isolation.network, isolation.files))  # it is told, or it is so


def test_a_custom_task_outside_the_language_ends_the_order_with_a_typed_error(tmp_path: Path) -> None:
    order = job(tmp_path, task="custom", custom_task=TASK.replace("ids = tok", "print(text)\n    ids = tok"))
    with pytest.raises(PlanError, match="custom_task, line 5: print"):
        worker.run(order, lambda *_: None, lambda pid: None)


def test_a_silent_worker_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LONGEST_SILENCE", 0.0)
    with pytest.raises(OrderFailed, match="was silent"):
        worker.run(job(tmp_path, local_steps=5000), lambda *_: None, lambda pid: None)
