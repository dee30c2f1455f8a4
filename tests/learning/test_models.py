"""Models as bundles: fresh, from folders, from hostile bytes, and back to files that the library reads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from fl_privacy.errors import ModelError
from fl_privacy.learning.models import build_model, load_bundle, new_bundle, parameters_of, save_pretrained
from fl_privacy.learning.tokenizer import build_vocabulary
from fl_privacy.model_spec import ModelSpec
from fl_privacy.parameters import from_bytes, to_bytes
from tests.tiny_model import SENTENCES, VOCABULARY, tiny_bundle, weights_of


def test_fresh_weights_are_fixed_by_the_seed() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    assert tiny_bundle(seed=1) == tiny_bundle(seed=1)
    assert torch.rand(1) == expected  # the caller's generator is left alone
    assert tiny_bundle(seed=1).spec.weights != tiny_bundle(seed=2).spec.weights


def test_parameters_round_trip_and_hold_shared_tensors_once() -> None:
    bundle = tiny_bundle()
    weights = weights_of(bundle)
    model = build_model(bundle.spec, VOCABULARY, weights)
    assert to_bytes(parameters_of(model)) == bundle.weights
    assert "cls.predictions.decoder.weight" not in weights
    assert "cls.predictions.decoder.bias" not in weights
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert not model.training


def test_saved_model_gives_the_same_logits(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    weights = weights_of(bundle)
    weights["cls.predictions.bias"] = np.linspace(-1, 1, len(weights["cls.predictions.bias"]), dtype=np.float32)
    save_pretrained(tmp_path, bundle.spec, VOCABULARY, weights)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt")]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer([SENTENCES[0], "病人[MASK]痛"], return_tensors="pt", padding=True)
    assert tokenizer.mask_token_id in inputs["input_ids"][1]
    ours, theirs = build_model(bundle.spec, VOCABULARY, weights), AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)


def test_a_saved_folder_loads_as_the_same_bundle(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    save_pretrained(tmp_path, bundle.spec, VOCABULARY, weights_of(bundle))
    loaded = load_bundle(tmp_path)
    assert (loaded.weights, loaded.vocabulary) == (bundle.weights, VOCABULARY)
    assert loaded.spec.architecture == bundle.spec.architecture
    (tmp_path / "vocab.txt").unlink()  # recent folders carry tokenizer.json only
    assert load_bundle(tmp_path).vocabulary == VOCABULARY


def test_a_folder_without_weights_gives_fresh_ones(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    (tmp_path / "config.json").write_text(bundle.spec.architecture)
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    assert load_bundle(tmp_path).weights == bundle.weights
    assert load_bundle(tmp_path, seed=5).weights == tiny_bundle(seed=5).weights
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ModelError, match="needs a config.json and a vocab.txt"):
        load_bundle(tmp_path)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickle_weights_are_never_read(tmp_path: Path) -> None:
    folder, sprung = tmp_path / "model", tmp_path / "sprung"
    folder.mkdir()
    (folder / "config.json").write_text(tiny_bundle().spec.architecture)
    (folder / "vocab.txt").write_bytes(VOCABULARY)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(ModelError, match="never read"):
        load_bundle(folder)
    with pytest.raises(ModelError, match="not a safetensors file"):
        from_bytes(pickle.dumps(_Trap(sprung)))
    assert not sprung.exists()


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "truncated"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    bundle, name = tiny_bundle(), "cls.predictions.transform.dense.weight"
    save_pretrained(tmp_path, bundle.spec, VOCABULARY, weights_of(bundle))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = np.zeros((3, 3), dtype=np.float32)
    elif damage == "nan":
        tensors[name][0, 0] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=tmp_path.name if damage == "truncated" else "transform.dense.weight"):
        load_bundle(tmp_path)


def test_a_model_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in ("no-such-owner/no-such-model", "not/a/hub/name"):
        with pytest.raises(ModelError, match=f"'{source}' cannot be loaded.*give a hub name"):
            load_bundle(source)


def test_hostile_weights_are_refused_by_tensor() -> None:
    bundle, name = tiny_bundle(), "bert.embeddings.LayerNorm.bias"
    good = weights_of(bundle)
    for damaged, told in (
        ({key: array for key, array in good.items() if key != name}, f"'{name}' is missing"),
        (good | {name: np.zeros(3, dtype=np.float32)}, rf"'{name}' has shape \(3,\), expected \(16,\)"),
        (good | {name: np.full(16, np.inf, dtype=np.float32)}, f"'{name}' holds a value that is not finite"),
        (good | {"bert.pooler.dense.bias": np.zeros(16, dtype=np.float32)}, "'bert.pooler.dense.bias' does not belong"),
    ):
        with pytest.raises(ModelError, match=told):
            build_model(bundle.spec, VOCABULARY, damaged)
    good[name][0] = np.nan
    with pytest.raises(ModelError, match=name):
        from_bytes(to_bytes(good))


def test_another_vocabulary_is_refused() -> None:
    bundle = tiny_bundle()
    with pytest.raises(ModelError, match="sha256 differs"):
        build_model(bundle.spec, build_vocabulary(SENTENCES, 40), weights_of(bundle))


def _spec(**changes: Any) -> ModelSpec:
    spec = tiny_bundle().spec
    return spec.model_copy(update={"architecture": json.dumps(spec.config | changes)})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"is_decoder": True}, "only an encoder"),
        ({"tie_word_embeddings": False}, "only an encoder"),
        ({"hidden_act": "xielu"}, "hidden_act must be one of"),
        ({"hidden_size": 15}, "not a multiple"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": 7}, "the architecture of 'tiny' 7"),
    ],
)
def test_an_architecture_that_cannot_be_trained_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        build_model(_spec(**changes), VOCABULARY, weights_of(tiny_bundle()))


def test_fields_that_load_code_or_repeat_layers_are_not_read() -> None:
    spec = _spec(attn_implementation="someone/kernel", auto_map={"AutoModel": "evil.Model"}, chunk_size_feed_forward=4)
    config = build_model(spec, VOCABULARY, weights_of(tiny_bundle())).config
    assert config.chunk_size_feed_forward == 0
    assert config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(config, "auto_map")


def test_new_bundle_refuses_a_model_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    with pytest.raises(ModelError, match="model_type"):
        load_bundle(tmp_path)
    with pytest.raises(ModelError, match="hidden_size is not a multiple"):
        new_bundle({"hidden_size": 10, "num_attention_heads": 3}, VOCABULARY, 0, "odd")
