"""A tiny model of every family with every head it has, each with a vocabulary of the kind that the family is known for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fl_privacy.learning.batches import Batch, Features, collate
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.models import ModelBundle, new_bundle
from fl_privacy.learning.text_encoder import TextEncoder
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.model_spec import Head
from tests.tiny_model import SENTENCES, VOCABULARY

KINDS = [(family, head) for family in FAMILIES for head in FAMILIES[family].models]
LABELS = {"classification": ("体育", "财经", "其他"), "ner": ("人名", "地名")}
_ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 60,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,  # large, so that no gradient is near zero
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "albert": _ENCODER | {"num_hidden_layers": 3, "embedding_size": 8, "classifier_dropout_prob": 0.0},
    "gpt2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 60,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "classifier_dropout": 0.0,
        "initializer_range": 0.3,
    },
}


def byte_level(special: Sequence[str], size: int = 320) -> bytes:
    """A byte-level BPE as RoBERTa and GPT-2 have it, as a tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str().encode()


def unigram() -> bytes:
    """A unigram model as ALBERT has it, as a tokenizer.json."""
    special = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
    characters = sorted(set("".join(SENTENCES)) | {"▁"})
    tokenizer = Tokenizer(models.Unigram([(token, -float(place)) for place, token in enumerate((*special, *characters))], 1))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer.to_str().encode()


VOCABULARIES = {
    "bert": VOCABULARY,
    "roberta": byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "albert": unigram(),
    "gpt2": byte_level(["<|endoftext|>"]),
}


@lru_cache
def bundle_of(family: str, head: Head, seed: int = 0) -> ModelBundle:
    """Two or three layers of width 16, no dropout."""
    config = CONFIGS[family] | {"model_type": family}
    return new_bundle(config, VOCABULARIES[family], seed, f"tiny-{family}", head, LABELS.get(head, ()))


def batch_of(family: str, head: Head, texts: Sequence[str] = SENTENCES[:5]) -> Batch:
    """Texts of unequal length, places here and there, labels by turns."""
    tokenizer = tokenizer_of(VOCABULARIES[family])
    encoder, outputs = TextEncoder(tokenizer, 50), bundle_of(family, head).spec.outputs or len(tokenizer)
    draw = torch.Generator().manual_seed(0)
    examples = []
    for text in texts:
        ids = encoder.encode(text)
        places = [0] if head == "classification" else range(1, len(ids) - 1, 2)
        labels = torch.randint(outputs, (len(places),), generator=draw).numpy()
        examples.append(Features(ids, torch.tensor(list(places)).numpy(), labels))
    return collate(examples, tokenizer.pad_token_id)


def changed(vocabulary: bytes, **changes: Any) -> bytes:
    """A tokenizer.json with other parts at its top."""
    return json.dumps(json.loads(vocabulary) | changes).encode()
