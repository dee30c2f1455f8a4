"""Low-rank adapters: put on a model, started, and merged into its weights again.

Beside a layer's weight W, (out, in), stand A, (rank, in), and B, (out, rank); the layer works with W + (alpha / rank) B A.
Source: Hu et al. 2022 (LoRA); Sun et al. 2024 (FFA-LoRA: A stays as it started, so that means of updates are exact).
"""

from __future__ import annotations

import numpy as np
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from fl_privacy.learning.families import FAMILIES, family_of
from fl_privacy.model_spec import Adapter, ModelSpec
from fl_privacy.parameters import Parameters

A, B = "lora_A.weight", "lora_B.weight"


def inject(model: PreTrainedModel, adapter: Adapter) -> None:
    """Put adapters on every layer, in place; with B zero they change nothing."""
    family = family_of(model)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=list(family.adapted),
        lora_dropout=0.0,
        fan_in_fan_out=family.transposed,
    )
    inject_adapter_in_model(config, model)


def named_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained or frozen tensor once, under its canonical name: the one that it has without peft's wrapping modules."""
    return {name.replace(".base_layer.", ".").replace(".default.", "."): tensor for name, tensor in model.named_parameters()}


def initial(shapes: dict[str, tuple[int, ...]], seed: int) -> Parameters:
    """First values of adapter tensors: A uniform on [-1, 1] / sqrt(in), as peft draws it, and B zero.

    Args: shapes, by canonical name, may hold other tensors as well. The same seed gives the same bits on any machine, so that
        owners start from one model without its being sent.
    """
    generator = np.random.default_rng(seed)
    started: Parameters = {}
    for name in sorted(shapes):
        if name.endswith(A):
            width = shapes[name][1]
            started[name] = ((2.0 * generator.random(shapes[name]) - 1.0) / np.sqrt(width)).astype(np.float32)
        elif name.endswith(B):
            started[name] = np.zeros(shapes[name], dtype=np.float32)
    return started


def merged(spec: ModelSpec, adapter: Adapter, parameters: Parameters) -> Parameters:
    """The parameters of the same model without adapters: every adapted weight is W + (alpha / rank) B A.

    Args: parameters are whole, as ``build_model`` takes them.
    """
    transposed = FAMILIES[spec.config["model_type"]].transposed
    plain = {name: array for name, array in parameters.items() if not name.endswith((A, B))}
    for stem in (name.removesuffix(A) for name in parameters if name.endswith(A)):
        product = adapter.alpha / adapter.rank * (parameters[stem + B].astype(np.float64) @ parameters[stem + A])
        weight = plain[stem + "weight"]
        plain[stem + "weight"] = (weight + (product.T if transposed else product)).astype(np.float32)
    return plain
