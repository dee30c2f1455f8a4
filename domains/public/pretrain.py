"""Make the public base model of the demo: ``python domains/public/pretrain.py``; ten to fifteen minutes on one thread.

Everything comes from ``domains/public/grammar.toml``: the vocabulary, and the text that the model is trained on. Nothing of an
owner's text is read. The same seed gives the same base on the same machine and library versions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from fl_privacy.learning.pretraining import Settings, pretrain, start
from fl_privacy.messages import Row

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from generate import sentences

FOLDER = Path(__file__).resolve().parent / "base"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # one thread adds in one order, so that a second run gives the same weights
    rows = [Row(text=text) for text in sentences("public", asked.rows, asked.seed)]
    settings = Settings(steps=asked.steps, vocabulary_size=2400, seed=asked.seed)
    progress = iter(track(range(asked.steps), description="pre-training"))
    found = pretrain(
        start("tiny", rows, settings), rows, asked.out, settings, lambda done, steps: next(progress, None) and None
    )
    for derived in asked.out.glob("tokenizer*.json"):
        derived.unlink()  # says again what vocab.txt says
    told = found.held_out.summary()
    Console().print(f"{asked.out}: top-1 {told['accuracy']:.3f}, perplexity {told['perplexity']:.1f} on held-out public rows")


if __name__ == "__main__":
    main()
