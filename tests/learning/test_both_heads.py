"""Bundles with a head for labels and the language model's beside it: one run pre-trains further, then trains for the labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_privacy.errors import ModelError
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.local_models import local_parameters
from fl_privacy.learning.models import ModelBundle, build_model, load_bundle, new_bundle, save_pretrained
from fl_privacy.learning.scores import scores
from fl_privacy.learning.trainable import trainable_specs
from fl_privacy.model_spec import Head
from fl_privacy.parameters import from_bytes
from tests.tiny_families import CONFIGS, LABELS, VOCABULARIES, batch_of, bundle_of

HEADS: tuple[Head, ...] = ("classification", "ner")
every_kind = pytest.mark.parametrize(("family", "head"), [(family, head) for family in FAMILIES for head in HEADS])


def language(family: str) -> ModelBundle:
    return bundle_of(family, FAMILIES[family].language_model)


def folder_of(path: Path, bundle: ModelBundle) -> Path:
    save_pretrained(path, bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    return path


def both(path: Path, family: str, head: Head) -> ModelBundle:
    """A language model with a fresh head for labels beside its own."""
    return load_bundle(folder_of(path / "language", language(family)), 3, head, LABELS[head], language_head=True)


@every_kind
def test_the_weights_hold_the_encoder_once_and_both_heads_under_their_own_names(
    family: str, head: Head, tmp_path: Path
) -> None:
    found = both(tmp_path, family, head)
    one = from_bytes(load_bundle(tmp_path / "language", 3, head, LABELS[head]).weights)
    two, other = from_bytes(found.weights), from_bytes(language(family).weights)
    assert found.spec.language_head and found.spec.head == head
    assert two.keys() == one.keys() | other.keys()
    assert two.keys() - one.keys() == {
        name for name in other if name.startswith(FAMILIES[family].heads[language(family).spec.head])
    }
    assert all(np.array_equal(two[name], array) for known in (one, other) for name, array in known.items())


@every_kind
def test_the_model_of_such_a_plan_is_that_of_its_labels(family: str, head: Head, tmp_path: Path) -> None:
    found, batch = both(tmp_path, family, head), batch_of(family, head)
    alone = load_bundle(tmp_path / "language", 3, head, LABELS[head])
    models = [build_model(one.spec, one.vocabulary, from_bytes(one.weights)) for one in (found, alone)]
    with torch.no_grad():
        assert torch.equal(scores(models[0], batch), scores(models[1], batch))
    assert trainable_specs(models[0], "all") == trainable_specs(models[1], "all")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_the_language_model_can_be_taken_out_as_it_came_in(family: str, head: Head, tmp_path: Path) -> None:
    found, known = both(tmp_path, family, head), language(family)
    spec = found.spec.language_model
    assert (spec.head, spec.labels, spec.language_head) == (known.spec.head, (), False)
    taken = local_parameters(spec, from_bytes(found.weights), range(spec.num_layers))
    model, batch = build_model(spec, found.vocabulary, taken), batch_of(family, known.spec.head)
    with torch.no_grad():
        expected = scores(build_model(known.spec, known.vocabulary, from_bytes(known.weights)), batch)
        assert torch.equal(scores(model, batch), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_and_the_families_agree_on_which_head_is_the_language_models(family: str) -> None:
    spec = bundle_of(family, "ner").spec.language_model
    assert spec == spec.language_model == spec.model_validate(spec.model_dump())
    assert spec.head == FAMILIES[family].language_model


@every_kind
def test_a_trained_model_is_written_with_the_head_for_its_labels_only(family: str, head: Head, tmp_path: Path) -> None:
    found = both(tmp_path, family, head)
    written = load_bundle(folder_of(tmp_path / "trained", found), 9, head, LABELS[head])
    alone = load_bundle(tmp_path / "language", 3, head, LABELS[head])
    assert written.weights == alone.weights


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_a_source_without_the_language_head_is_refused(family: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, bundle_of(family, "ner"))
    with pytest.raises(ModelError, match=f"no whole {family} mlm model: tensor '{FAMILIES[family].heads['mlm'][0]}"):
        load_bundle(folder, 0, "ner", LABELS["ner"], language_head=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_weights_have_both_heads_too(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family] | {"model_type": family}))
    (tmp_path / ("vocab.txt" if family == "bert" else "tokenizer.json")).write_bytes(VOCABULARIES[family])
    found = from_bytes(load_bundle(tmp_path, 0, "ner", LABELS["ner"], language_head=True).weights)
    alone = from_bytes(bundle_of(family, "ner").weights)
    assert found.keys() == alone.keys() | from_bytes(language(family).weights).keys()
    assert all(np.array_equal(found[name], array) for name, array in alone.items())


def test_every_tensor_of_both_heads_is_demanded_and_no_other_is_let_in(tmp_path: Path) -> None:
    found, name = both(tmp_path, "bert", "ner"), "cls.predictions.bias"
    good = from_bytes(found.weights)
    for damaged, told in (
        ({key: array for key, array in good.items() if key != name}, f"'{name}' is missing"),
        (good | {name: good[name][:-1]}, f"'{name}' has shape"),
        (good | {name: np.full_like(good[name], np.nan)}, f"'{name}' holds a value that is not finite"),
        (good | {"bert.pooler.dense.bias": np.zeros(16, dtype=np.float32)}, "'bert.pooler.dense.bias' does not belong"),
    ):
        with pytest.raises(ModelError, match=told):
            build_model(found.spec, found.vocabulary, damaged)
    with pytest.raises(ModelError, match="'cls.predictions.bias' does not belong"):
        build_model(found.spec.model_copy(update={"language_head": False}), found.vocabulary, good)


@pytest.mark.parametrize(("family", "head"), [("bert", "mlm"), ("gpt2", "clm")])
def test_a_language_model_has_no_second_head_of_that_kind(family: str, head: Head) -> None:
    config = CONFIGS[family] | {"model_type": family}
    with pytest.raises(ModelError, match=f"language_head: a {head} head is the language model's already"):
        new_bundle(config, VOCABULARIES[family], 0, "odd", head, language_head=True)
