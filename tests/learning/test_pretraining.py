"""A public base model: trained, stopped and gone on with, and of use to a plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from torch import Tensor

from fl_privacy.cli import app
from fl_privacy.errors import CorpusError, ModelError
from fl_privacy.learning.models import load_bundle
from fl_privacy.learning.pretraining import CHECKPOINT, Settings, pretrain, start
from fl_privacy.learning.tasks.mlm import MaskedLanguageTask
from fl_privacy.messages import Row
from fl_privacy.parameters import from_bytes

WORDS = ("医生开了药", "学生写作业", "客服接电话", "今天下雨了", "明天会很冷")
ROWS = [Row(text=f"{WORDS[i % 5]}，{WORDS[(i // 5) % 5]}。") for i in range(60)]
SETTINGS = Settings(steps=6, batch_size=8, max_length=16, vocabulary_size=100)


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_privacy.learning.checkpoint.EVERY", 2)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return from_bytes((folder / "model.safetensors").read_bytes())


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    def stop(done: int, steps: int) -> None:
        if done == 5:
            raise Stopped

    bundle = start("tiny", ROWS, SETTINGS)
    with pytest.raises(Stopped):
        pretrain(bundle, ROWS, tmp_path / "stopped", SETTINGS, stop)
    taken: list[int] = []
    pretrain(bundle, ROWS, tmp_path / "stopped", SETTINGS, lambda done, steps: taken.append(done))
    pretrain(bundle, ROWS, tmp_path / "whole", SETTINGS)
    assert taken == [5, 6]  # it went on from step 4
    assert not (tmp_path / "stopped" / CHECKPOINT).exists()
    one, other = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_the_model_is_better_than_at_the_start_and_loads_for_a_plan(tmp_path: Path) -> None:
    settings = SETTINGS._replace(steps=60)
    bundle = start("tiny", ROWS, settings)
    before = pretrain(bundle, ROWS, tmp_path / "before", settings._replace(steps=1)).held_out.summary()
    after = pretrain(bundle, ROWS, tmp_path / "after", settings).held_out.summary()
    assert after["perplexity"] < before["perplexity"] / 2
    assert load_bundle(tmp_path / "after").spec.vocabulary == bundle.spec.vocabulary


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    def stop(done: int, steps: int) -> None:
        if done == 3:
            raise Stopped

    bundle = start("tiny", ROWS, SETTINGS)
    with pytest.raises(Stopped):
        pretrain(bundle, ROWS, tmp_path, SETTINGS, stop)
    with pytest.raises(ModelError, match="other settings"):
        pretrain(bundle, ROWS, tmp_path, SETTINGS._replace(learning_rate=1e-3))
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="is no checkpoint"):
        pretrain(bundle, ROWS, tmp_path, SETTINGS)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="too few"):
        pretrain(start("tiny", ROWS, SETTINGS), ROWS[:9], tmp_path, SETTINGS)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "public.txt"
    path.write_text("\n".join(row.text for row in ROWS), encoding="utf-8")
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["pretrain", *map(str, arguments), "--steps", "20", "--batch-size", "8"])


def test_the_command_leaves_a_model_and_tells_how_good_it_is_and_what_to_do_with_it(public: Path, tmp_path: Path) -> None:
    told = run(public, "--out", tmp_path / "base")
    assert told.exit_code == 0, told.output
    assert re.search(r"guesses [\d.]+% of \d+ tokens right \(perplexity [\d.]+\)", told.output)
    assert f'In a plan: model = "{tmp_path / "base"}"' in told.output
    assert load_bundle(tmp_path / "base").spec.config["num_hidden_layers"] == 2


def test_a_finished_model_is_not_trained_over(public: Path, tmp_path: Path) -> None:
    assert run(public, "--out", tmp_path / "base").exit_code == 0
    before = weights(tmp_path / "base")
    told = run(public, "--out", tmp_path / "base")
    assert told.exit_code == 2 and "holds a finished model; give another --out" in told.output
    assert all((before[name] == array).all() for name, array in weights(tmp_path / "base").items())
    further = run(
        public, "--model", tmp_path / "base", "--out", tmp_path / "further", "--vocabulary", tmp_path / "base" / "vocab.txt"
    )
    assert further.exit_code == 2 and "--vocabulary is for a new model" in further.output
    assert run(public, "--model", tmp_path / "base", "--out", tmp_path / "further").exit_code == 0


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps, kept in (
        (1, "before the first checkpoint, so nothing is kept"),
        (5, "to go on from the last checkpoint"),
        (0, "to go on"),
    ):
        with monkeypatch.context() as patch:
            press_after(steps, patch)
            told = run(public, "--out", tmp_path / "base")
        assert told.exit_code == 1 and "stopped: " in told.output and kept in told.output
    told = run(public, "--out", tmp_path / "base")
    assert told.exit_code == 0 and "going on after step 4, from the checkpoint in" in told.output
    assert run(public, "--out", tmp_path / "whole").exit_code == 0
    whole = weights(tmp_path / "whole")
    assert all((whole[name] == array).all() for name, array in weights(tmp_path / "base").items())


def press_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the step that follows so many."""
    loss = MaskedLanguageTask.loss
    left = iter(range(steps))

    def interrupted(*arguments: Any) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(MaskedLanguageTask, "loss", interrupted)
