"""Make the public base model of the demo: ``python domains/public/pretrain.py``; ten to fifteen minutes on one thread.

Everything comes from ``domains/public/grammar.toml``: the vocabulary, and the text that the model is trained on. Nothing of an
owner's text is read. The same seed gives the same base on the same machine and library versions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.models import ModelBundle, build_model, new_bundle, save_pretrained
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import build_vocabulary, tokenizer_of
from fl_privacy.parameters import Parameters, from_bytes
from fl_privacy.plan import TrainingPlan

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from generate import sentences

FOLDER = Path(__file__).resolve().parent / "base"
VOCABULARY_SIZE = 2400
CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,  # a model this small underfits; dropout would only add noise to that of DP-SGD
    "attention_probs_dropout_prob": 0.0,
}
HELD_OUT = 500


def pretrain(rows: int, steps: int, seed: int) -> tuple[ModelBundle, Parameters, list[str]]:
    """Train the base without privacy on generated public text; also returns the sentences held out for a check."""
    texts = sentences("public", rows + HELD_OUT, seed)
    training, held_out = texts[HELD_OUT:], texts[:HELD_OUT]
    bundle = new_bundle(CONFIG, build_vocabulary(training, VOCABULARY_SIZE), seed, "fl-privacy-public-base")
    plan = TrainingPlan.create(
        name="public-base",
        purpose="Pre-train the demo's base model on public text, in one place and without privacy.",
        model=bundle.spec,
        owners=("public", "none", "nobody"),  # a plan names three owners; this one is only a set of training settings
        rounds=1,
        local_steps=steps,
        batch_size=128,
        mask_probability=0.2,
        max_length=48,
        learning_rate=2e-3,
        warmup_steps=steps // 20,
    )
    progress = iter(track(range(steps), description="pre-training"))
    trained = train_without_privacy(
        plan,
        from_bytes(bundle.weights),
        bundle.vocabulary,
        training,
        generator=np.random.default_rng(seed),
        on_step=lambda done, total: next(progress, None) and None,
    )
    return bundle, trained, held_out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # one thread adds in one order, so that a second run gives the same weights
    bundle, parameters, held_out = pretrain(asked.rows, asked.steps, asked.seed)
    save_pretrained(asked.out, bundle.spec, bundle.vocabulary, parameters)
    for derived in asked.out.glob("tokenizer*.json"):
        derived.unlink()  # says again what vocab.txt says
    model = build_model(bundle.spec, bundle.vocabulary, parameters)
    counts = evaluate(model, tokenizer_of(bundle.vocabulary), held_out, 48, 0.15, asked.seed)
    Console().print(f"{asked.out}: top-1 {counts.accuracy:.3f}, perplexity {counts.perplexity:.1f} on held-out public rows")


if __name__ == "__main__":
    main()
