"""Every family with every head: scores, names, hooks' view, configuration fields."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fl_privacy.errors import ModelError
from fl_privacy.learning.batches import IGNORED, Batch
from fl_privacy.learning.families import FAMILIES, configuration, head_of
from fl_privacy.learning.models import build_model, new_bundle, outline, parameters_of
from fl_privacy.learning.scores import positions, scores
from fl_privacy.model_spec import Head, ModelSpec
from fl_privacy.parameters import from_bytes
from tests.tiny_families import CONFIGS, KINDS, LABELS, VOCABULARIES, batch_of, bundle_of

every_kind = pytest.mark.parametrize(("family", "head"), KINDS)


def _model(family: str, head: Head) -> Any:
    bundle = bundle_of(family, head)
    return build_model(bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))


def _whole_pass(model: Any, batch: Batch) -> torch.Tensor:
    """The library's own scores of the whole model, at the places of the batch."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    if logits.ndim == 2:
        return logits[:, None]
    return logits.gather(1, batch.places[..., None].expand(-1, -1, logits.shape[-1]))


@every_kind
def test_scores_are_those_of_the_library_at_the_places(family: str, head: Head) -> None:
    model, batch = _model(family, head), batch_of(family, head)
    assert not batch.attention_mask.all()
    with torch.no_grad():
        ours, theirs = scores(model, batch), _whole_pass(model, batch)
    assert ours.shape == (*batch.labels.shape, bundle_of(family, head).spec.outputs or model.config.vocab_size)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.01


@every_kind
def test_scores_of_an_example_do_not_depend_on_the_others(family: str, head: Head) -> None:
    model, batch = _model(family, head), batch_of(family, head)
    with torch.no_grad():
        together = scores(model, batch)
        for row, kept in enumerate(batch.attention_mask.bool()):
            real = batch.labels[row] != IGNORED
            alone = Batch(
                batch.input_ids[row, kept][None],
                batch.attention_mask[row, kept][None],
                batch.places[row, real][None],
                batch.labels[row, real][None],
            )
            assert torch.allclose(scores(model, alone)[0], together[row, real], rtol=1e-4, atol=1e-5)


@every_kind
def test_position_ids_have_a_row_for_each_example(family: str, head: Head) -> None:
    model, batch = _model(family, head), batch_of(family, head)
    found = positions(model, batch.input_ids)
    assert found.shape == batch.input_ids.shape and found.is_contiguous()
    kept = batch.attention_mask.bool()
    first = 2 if family == "roberta" else 0  # its padding is token 1, so its first position is 2
    for row in range(len(found)):
        assert found[row, kept[row]].tolist() == list(range(first, first + int(kept[row].sum())))
    if family == "roberta":
        assert (found[~kept] == 1).all()


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_the_output_layer_of_an_mlm_shares_the_word_embedding_and_its_bias(family: str) -> None:
    model = _model(family, "mlm")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = model.get_submodule(FAMILIES[family].language_head)
    assert head.decoder.bias is head.bias


def test_the_layers_of_an_albert_are_one_set_of_weights_that_runs_for_each_layer() -> None:
    model, batch = _model("albert", "mlm"), batch_of("albert", "mlm")
    layer, runs = model.albert.encoder.albert_layer_groups[0].albert_layers[0], []
    layer.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        scores(model, batch)
    assert len(runs) == model.config.num_hidden_layers == 3
    assert sum(".attention.query.weight" in name for name in parameters_of(model)) == 1


@every_kind
def test_a_causal_model_does_not_see_what_follows_and_an_encoder_does(family: str, head: Head) -> None:
    if head == "classification":
        return
    model, batch = _model(family, head), batch_of(family, head)
    ids = batch.input_ids.clone()
    place = int(batch.places[0, 0])
    ids[0, place + 1] = (ids[0, place + 1] + 1) % 5 + 5
    with torch.no_grad():
        before = scores(model, batch)[0, 0]
        after = scores(model, Batch(ids, batch.attention_mask, batch.places, batch.labels))[0, 0]
    assert torch.equal(before, after) == (family == "gpt2")


@every_kind
def test_outline_has_the_names_and_shapes_of_the_model(family: str, head: Head) -> None:
    found = outline(bundle_of(family, head).spec)
    assert head_of(found) == head
    assert {tensor.device.type for tensor in found.parameters()} == {"meta"}
    assert {name: tensor.shape for name, tensor in found.named_parameters()} == {
        name: array.shape for name, array in from_bytes(bundle_of(family, head).weights).items()
    }


def _spec(family: str, head: Head, **changes: Any) -> ModelSpec:
    spec = bundle_of(family, head).spec
    return spec.model_copy(update={"architecture": json.dumps(spec.config | changes)})


@every_kind
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"is_decoder": True}, "only an encoder"),
        ({"add_cross_attention": True}, "only an encoder"),
        ({"tie_word_embeddings": False}, "only an encoder"),
        ({"vocab_size": 1 << 21}, "vocab_size must be between"),
        ({"pad_token_id": 10**5}, "pad_token_id must be one of"),
        ({"pad_token_id": -1}, "pad_token_id must be between"),
    ],
)
def test_what_cannot_be_trained_is_refused(family: str, head: Head, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        outline(_spec(family, head, **changes))


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("gpt2", {"n_embd": 15}, "not a multiple"),
        ("gpt2", {"activation_function": "xielu"}, "activation_function must be one of"),
        ("gpt2", {"n_layer": 129}, "n_layer must be between 1 and 128"),
        ("albert", {"num_hidden_layers": 10**6}, "num_hidden_layers must be between 1 and 128"),
        ("albert", {"inner_group_num": 10**6}, "inner_group_num must be between 1 and 128"),
        ("albert", {"num_hidden_groups": 0}, "num_hidden_groups"),
        ("roberta", {"hidden_size": "wide"}, "hidden_size"),
        ("roberta", {"initializer_range": -1.0}, "initializer_range must be between 0 and 1"),
        ("bert", {"hidden_dropout_prob": float("inf")}, "hidden_dropout_prob must be between 0 and 1"),
        ("roberta", {"num_attention_heads": 0}, "num_attention_heads"),
    ],
)
def test_sizes_out_of_range_are_refused(family: str, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        outline(_spec(family, "ner", **changes))


@every_kind
def test_fields_that_load_code_or_repeat_layers_are_not_read(family: str, head: Head) -> None:
    config = configuration(
        _spec(
            family, head, attn_implementation="someone/kernel", auto_map={"AutoModel": "evil.Model"}, chunk_size_feed_forward=4
        )
    )
    assert config.chunk_size_feed_forward == 0
    assert config._attn_implementation is None or config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(config, "auto_map")


@pytest.mark.parametrize(("family", "head"), [("gpt2", "mlm"), ("bert", "clm"), ("roberta", "clm"), ("albert", "clm")])
def test_a_family_has_only_its_own_language_head(family: str, head: Head) -> None:
    with pytest.raises(ModelError, match=f"a {family} has no {head} head"):
        new_bundle(CONFIGS[family] | {"model_type": family}, VOCABULARIES[family], 0, "odd", head)


def test_labels_must_fit_the_head() -> None:
    for head, labels in (("classification", ("one",)), ("ner", ()), ("mlm", ("a", "b"))):
        with pytest.raises(ModelError, match="labels"):
            new_bundle(CONFIGS["bert"], VOCABULARIES["bert"], 0, "odd", head, labels)


def test_outputs_are_named_in_the_configuration() -> None:
    assert configuration(bundle_of("bert", "classification").spec).id2label == dict(enumerate(LABELS["classification"]))
    assert list(configuration(bundle_of("gpt2", "ner").spec).label2id) == ["O", "B-人名", "I-人名", "B-地名", "I-地名"]
