"""Bundles from folders of every family: whole models, bodies without the wanted head, heads for other labels."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from fl_privacy.errors import ModelError
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.models import load_bundle, new_bundle, save_pretrained
from fl_privacy.model_spec import Head
from fl_privacy.parameters import from_bytes
from tests.tiny_families import CONFIGS, KINDS, LABELS, VOCABULARIES, bundle_of

every_kind = pytest.mark.parametrize(("family", "head"), KINDS)
WITHOUT_LABELS = [(family, FAMILIES[family].language_model) for family in FAMILIES]


def _folder(path: Path, family: str, head: Head, seed: int = 0) -> Path:
    bundle = bundle_of(family, head, seed)
    save_pretrained(path, bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    return path


@every_kind
def test_a_saved_folder_loads_as_the_same_bundle(family: str, head: Head, tmp_path: Path) -> None:
    saved, found = bundle_of(family, head), load_bundle(_folder(tmp_path, family, head), 9, head, LABELS.get(head, ()))
    assert (found.weights, found.vocabulary) == (saved.weights, saved.vocabulary)
    assert found.spec == saved.spec.model_copy(update={"source": tmp_path.name})


@every_kind
def test_the_same_seed_gives_the_same_model(family: str, head: Head) -> None:
    config = CONFIGS[family] | {"model_type": family}
    again = [new_bundle(config, VOCABULARIES[family], seed, f"tiny-{family}", head, LABELS.get(head, ())) for seed in (0, 1)]
    assert again[0] == bundle_of(family, head)
    assert again[1].spec.weights != again[0].spec.weights


@pytest.mark.parametrize(("family", "language"), WITHOUT_LABELS)
@pytest.mark.parametrize("head", ["classification", "ner"])
def test_a_body_gets_a_fresh_head_from_the_seed(family: str, language: Head, head: Head, tmp_path: Path) -> None:
    body = from_bytes(bundle_of(family, language).weights)
    folder = _folder(tmp_path, family, language)
    one, other = (from_bytes(load_bundle(folder, seed, head, LABELS[head]).weights) for seed in (1, 2))
    assert from_bytes(load_bundle(folder, 1, head, LABELS[head]).weights).keys() == one.keys()
    fresh = {name for name in one if name not in body}
    assert fresh == {name for name in one if name.startswith(FAMILIES[family].heads[head])}
    for name in one:
        assert name in fresh or np.array_equal(one[name], body[name])
        assert np.array_equal(one[name], other[name]) == (name not in fresh or not name.endswith("weight"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_for_the_same_outputs_is_kept_and_one_for_others_is_not(family: str, tmp_path: Path) -> None:
    folder, output = _folder(tmp_path, family, "classification"), FAMILIES[family].heads["classification"][-1]
    saved = from_bytes(bundle_of(family, "classification").weights)
    for labels in (LABELS["classification"][::-1], ("a", "b", "c"), ("a", "b")):
        found = from_bytes(load_bundle(folder, 7, "classification", labels).weights)
        for name, array in found.items():
            same = array.shape == saved[name].shape and np.array_equal(array, saved[name])
            assert same == (not name.startswith(output) or (name.endswith("bias") and array.shape == saved[name].shape))


@pytest.mark.parametrize(("family", "language"), WITHOUT_LABELS)
def test_a_language_model_without_its_head_or_a_body_without_a_layer_is_refused(
    family: str, language: Head, tmp_path: Path
) -> None:
    if language == "mlm":
        with pytest.raises(ModelError, match=f"no whole {family} mlm model"):
            load_bundle(_folder(tmp_path / "ner", family, "ner"))
    folder = _folder(tmp_path / "short", family, language)
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "attn.c_attn.weight" in name or "attention" in name)
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no whole"):
        load_bundle(folder, 0, "ner", LABELS["ner"])


@pytest.mark.parametrize("family", FAMILIES)
def test_pickle_weights_of_no_family_are_read(family: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, family, "ner")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ModelError, match="never read"):
        load_bundle(folder, 0, "ner", LABELS["ner"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_weights_gives_fresh_ones(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family] | {"model_type": family}))
    name = "vocab.txt" if family == "bert" else "tokenizer.json"
    (tmp_path / name).write_bytes(VOCABULARIES[family])
    assert load_bundle(tmp_path, 0, "ner", LABELS["ner"]).weights == bundle_of(family, "ner").weights


def test_padding_must_be_the_vocabularys(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "roberta", "mlm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 3}))
    with pytest.raises(ModelError, match="token 3, not its vocabulary's <pad>"):
        load_bundle(folder)


def test_an_mlm_needs_a_mask() -> None:
    with pytest.raises(ModelError, match="no mask token"):
        new_bundle(CONFIGS["roberta"] | {"model_type": "roberta"}, VOCABULARIES["gpt2"], 0, "odd")


def test_a_gpt2_may_have_a_vocabulary_of_characters(tmp_path: Path) -> None:
    bundle = new_bundle(CONFIGS["gpt2"] | {"model_type": "gpt2"}, VOCABULARIES["bert"], 0, "characters")
    assert bundle.spec.head == "clm"
    assert {bundle.spec.config[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")} == {0, 2, 3}
    save_pretrained(tmp_path, bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    assert load_bundle(tmp_path).vocabulary == VOCABULARIES["bert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_head_is_no_news_for_the_terminal_but_other_warnings_are(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    logger = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(logger, "handle", lambda record: told.append(record.getMessage()) if logger.filter(record) else None)
    folder = _folder(tmp_path, family, FAMILIES[family].language_model)
    model, initialise = FAMILIES[family].models["ner"], PreTrainedModel._initialize_missing_keys
    model.from_pretrained(folder)
    assert len(told) == 1 and "LOAD REPORT" in told.pop(), "the library would tell"

    def warn(*arguments: object) -> None:
        logger.warning("something else")
        initialise(*arguments)

    monkeypatch.setattr(PreTrainedModel, "_initialize_missing_keys", warn)
    load_bundle(folder, 0, "ner", LABELS["ner"])
    assert told == ["something else"]
    model.from_pretrained(folder)
    assert "LOAD REPORT" in told[-1], "nothing is silenced for others"
