"""A BERT of a few thousand parameters and public sentences for it, so that tests need no hub and little time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from fl_privacy.learning.models import ModelBundle, new_bundle
from fl_privacy.learning.tokenizer import build_vocabulary
from fl_privacy.messages import Row
from fl_privacy.model_spec import Head
from fl_privacy.parameters import Parameters, from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.randomness import OwnerRandomness

WHO = ("病人", "李老师", "那位客户", "新来的学生", "张工程师")
WHAT = ("今天上午头痛发热", "需要修改密码", "已经交了作业", "在门诊等了很久以后终于见到了医生", "想退款3次")
HOW = ("。", ",但是没有人回答。", ",所以请尽快处理这件事情。")
SENTENCES = tuple("".join(parts) for parts in product(WHO, WHAT, HOW))
ROWS = tuple(Row(text=text) for text in SENTENCES)
VOCABULARY = build_vocabulary(SENTENCES, 120)


def tiny_bundle(seed: int = 0, head: Head = "mlm", labels: Sequence[str] = (), **changes: Any) -> ModelBundle:
    """Two layers of width 16; dropout only if asked for."""
    config: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,  # large, so that no gradient is near zero
    }
    return new_bundle(config | changes, VOCABULARY, seed, "tiny", head, labels)


def tiny_plan(bundle: ModelBundle, **changes: Any) -> TrainingPlan:
    """A short plan for ``bundle``."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "purpose": "a plan for tests only",
        "task": bundle.spec.head,
        "model": bundle.spec,
        "owners": ("clinic", "school", "desk"),
        "rounds": 2,
        "local_steps": 2,
        "batch_size": 8,
        "max_length": 40,
        "mask_probability": 0.3,
    }
    return TrainingPlan.create(**(fields | changes))


def weights_of(bundle: ModelBundle) -> Parameters:
    """The bundle's first weights."""
    return from_bytes(bundle.weights)


class NoNoise(OwnerRandomness):
    """Randomness whose noise is zero and whose samples are given, so that the clipped sum itself can be seen."""

    def __init__(self, *samples: list[int]) -> None:
        super().__init__()
        self.samples = list(samples)

    def gaussian(self, shape: tuple[int, ...], std: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.zeros(shape)

    def poisson_sample(self, count: int, rate: float) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(self.samples.pop(0), dtype=np.int64) if self.samples else np.arange(count)


def clipped(gradients: list[torch.Tensor], bound: float) -> list[torch.Tensor]:
    """One example's gradients scaled to a joint norm of at most ``bound``."""
    norm = torch.sqrt(sum((gradient.double() ** 2).sum() for gradient in gradients))
    return [gradient.double() * min(1.0, bound / float(norm)) if norm > 0 else gradient.double() for gradient in gradients]
