"""An export gives the scores of the model that it was made from, says so, and is not made where it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_privacy.errors import ExportError
from fl_privacy.learning.models import build_model, save_pretrained
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.model_spec import Head
from fl_privacy.parameters import from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.serving.export_format import CARD, DESCRIPTION, INT8, MODEL, read_export
from fl_privacy.serving.sources import read_source
from fl_privacy.strategies.base import ServerState
from tests.serving.conftest import Exported
from tests.serving.extra import need_extra
from tests.serving.runs import finished_run
from tests.tiny_families import bundle_of
from tests.tiny_model import ROWS, SENTENCES, tiny_bundle

need_extra()

from fl_privacy.serving import onnx_export  # noqa: E402 - what follows needs the extra
from fl_privacy.serving.engine import Graph  # noqa: E402

QUICK = [("bert", "mlm"), ("bert", "classification"), ("bert", "ner")]
SLOW = [
    *((family, head) for family in ("roberta", "albert") for head in ("mlm", "classification", "ner")),
    *(("gpt2", head) for head in ("classification", "ner")),
]
KINDS = [*QUICK, *(pytest.param(*kind, marks=pytest.mark.slow) for kind in SLOW)]


@pytest.mark.parametrize(("family", "head"), KINDS)
def test_an_export_has_the_scores_of_the_whole_model(exported: Exported, family: str, head: Head) -> None:
    folder, bundle = exported(family, head), bundle_of(family, head)
    export, tokenizer = read_export(folder), tokenizer_of(bundle.vocabulary)
    model = build_model(bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    given = tokenizer(list(SENTENCES[:7]), padding=True, return_tensors="pt", add_special_tokens=False)
    ids, mask = given["input_ids"], given["attention_mask"]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
    texts = [row[kept.bool()].numpy() for row, kept in zip(ids, mask, strict=True)]
    found = Graph(folder / MODEL, export.inputs, export.tokens.padding).scores(texts, ids.shape[1])
    apart = np.abs(found - expected)
    assert (apart if found.ndim == 2 else apart[mask.numpy().astype(bool)]).max() < 1e-4
    assert len({len(text) for text in texts}) > 2


def test_an_export_says_what_it_is_and_how_far_it_was_checked(exported: Exported) -> None:
    export = read_export(exported("bert", "ner"))
    assert (export.task, export.outputs) == ("ner", ("O", "B-人名", "I-人名", "B-地名", "I-地名"))
    assert export.max_length == export.checked_lengths[-1] == 60
    assert 0 < export.largest_difference < export.tolerance


def test_a_model_whose_scores_differ_is_not_exported(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bundle_of("bert", "mlm", seed=1)
    save_pretrained(tmp_path / "model", other.spec, other.vocabulary, from_bytes(other.weights))
    foreign = exported("bert", "mlm") / MODEL
    monkeypatch.setattr(onnx_export, "_write_graph", lambda model, inputs, file: shutil.copy(foreign, file))
    with pytest.raises(ExportError, match="differ from PyTorch's by .*, more than 0.001"):
        onnx_export.export_model(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", [MODEL, CARD, "tokenizer.json"])
def test_a_file_that_was_changed_is_found(exported: Exported, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(exported("bert", "mlm"), tmp_path / "copy")
    read_export(copy)
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ExportError, match=f"{name} is not the exported file"):
        read_export(copy)


def test_every_file_but_the_description_is_bound_by_it(exported: Exported) -> None:
    folder = exported("bert", "mlm")
    assert {path.name for path in folder.iterdir()} == {*read_export(folder).files, DESCRIPTION}


def test_a_description_that_names_a_file_elsewhere_is_refused(exported: Exported, tmp_path: Path) -> None:
    copy = shutil.copytree(exported("bert", "mlm"), tmp_path / "copy")
    told = json.loads((copy / DESCRIPTION).read_text())
    (copy / DESCRIPTION).write_text(json.dumps(told | {"files": {"../x": "00" * 32}}))
    with pytest.raises(ExportError, match="outside its folder"):
        read_export(copy)


def test_the_8_bit_model_is_compared_on_every_prediction_of_the_validation_rows(
    exported_run: tuple[TrainingPlan, Path, Path],
) -> None:
    _, _, out = exported_run
    told = read_export(out).int8
    assert told is not None and told.share is not None
    assert len(ROWS[:20]) < told.predictions and told.predictions / 2 < told.equal <= told.predictions
    assert (out / INT8).stat().st_size < (out / MODEL).stat().st_size


def test_a_run_that_is_not_over_is_refused(tmp_path: Path) -> None:
    finished_run(tmp_path, purpose="train")
    with pytest.raises(ExportError, match="not over; finish it with `fl-privacy resume"):
        read_source(tmp_path)


def test_a_folder_with_neither_a_run_nor_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="neither a run .* nor a saved model"):
        read_source(tmp_path)


def test_a_folder_in_use_is_not_written_over(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ExportError, match="no empty folder"):
        onnx_export.export_model(exported("bert", "mlm"), tmp_path)
    with pytest.raises(ExportError, match="no empty folder"):
        onnx_export.export_model(exported("bert", "mlm"), tmp_path / "mine")


def test_a_model_that_guesses_next_tokens_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of("gpt2", "clm")
    save_pretrained(tmp_path / "model", bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    with pytest.raises(ExportError, match="clm head"):
        onnx_export.export_model(tmp_path / "model", tmp_path / "out")


def test_a_head_that_is_named_but_not_there_is_refused(tmp_path: Path) -> None:
    """For training, a missing head is made anew; its answers would be chance."""
    bundle = tiny_bundle()
    save_pretrained(tmp_path, bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="not whole"):
        read_source(tmp_path)


def test_a_saved_model_is_read_with_its_labels(exported: Exported) -> None:
    for head in ("classification", "ner"):
        folder = exported("bert", head)
        source = read_source(folder.with_name(f"model-{folder.name}"))
        assert (source.spec.head, source.spec.labels) == (head, bundle_of("bert", head).spec.labels)


def test_adapters_of_a_run_are_merged(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    plan = finished_run(tmp_path, bundle, trainable="lora")
    given = read_source(tmp_path)
    start = from_bytes(bundle.weights)
    assert plan.adapter is not None and given.parameters.keys() == start.keys()


def test_the_best_model_of_a_run_is_the_one_that_is_exported(tmp_path: Path) -> None:
    """The best stood before round 1, after one opened round; the last state is another model."""
    best, last = from_bytes(tiny_bundle(seed=5).weights), from_bytes(tiny_bundle(seed=6).weights)
    finished_run(tmp_path, model=last, patience=2)
    folder = RunFolder(tmp_path)
    folder.move(
        folder.position.model_copy(update={"best": folder.keep_best(ServerState(round=1, model=best, slots={}, since=0))})
    )
    source = read_source(tmp_path)
    assert all(np.array_equal(source.parameters[name], best[name]) for name in best)
    assert source.run is not None and source.run.counts == 1 and source.run.score == pytest.approx(0.4)
