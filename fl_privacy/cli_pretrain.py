"""``fl-privacy pretrain``: a public base model, so that private runs do not start from noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from fl_privacy.learning.devices import Place
    from fl_privacy.learning.models import ModelBundle
    from fl_privacy.learning.pretraining import Pretrained, Settings
    from fl_privacy.messages import Row


class _Usual(NamedTuple):
    steps: int
    learning_rate: float


USUAL = {"tiny": _Usual(4000, 2e-3), "small": _Usual(10_000, 1e-3), "base": _Usual(100_000, 1e-4)}


@click.command("pretrain")
@click.argument("files", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the model, and for the checkpoint of a run that was stopped.",
)
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    metavar="SIZE|FOLDER|NAME",
    help="A new BERT: tiny (2 layers of 128), small (4 of 256) or base (12 of 768); or a folder or Hugging Face name to"
    " train further.",
)
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A vocab.txt for a new BERT; by default made from FILES, one token a character.",
)
@click.option("--vocabulary-size", default=8000, show_default=True, help="Tokens at most of a vocabulary made from FILES.")
@click.option("--steps", type=click.IntRange(20), help="By default 4000 (tiny), 10000 (small), 100000 (base and others).")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Texts in a step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="By default 2e-3 (tiny), 1e-3 (small), 1e-4 (base and others).",
)
@click.option(
    "--max-length",
    type=click.IntRange(8),
    default=48,
    show_default=True,
    help="Tokens of a text; the rest of a longer one is left out.",
)
@click.option("--field", default="text", show_default=True, help="Name of the text field or column.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto: on a GPU where there is one.",
)
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same weights on the same machine.")
def pretrain_command(
    files: tuple[Path, ...],
    out: Path,
    model: str,
    vocabulary: Path | None,
    vocabulary_size: int,
    steps: int | None,
    batch_size: int,
    learning_rate: float | None,
    max_length: int,
    field: str,
    device: str,
    seed: int,
) -> None:
    """Train a language model on public text, WITHOUT PRIVACY, for private runs to start from.

    Every word of FILES may be found in the model: give text that anybody may read. FILES are .txt (one text a line), .jsonl,
    .csv or .parquet. A plan names the model by its folder: model = "OUT".

    A run that was stopped, by Ctrl-C too, goes on from its last checkpoint (every 200 steps) when the same command is given
    again.
    """
    from fl_privacy.display import console
    from fl_privacy.learning import devices
    from fl_privacy.learning.pretraining import CHECKPOINT, Settings, start
    from fl_privacy.learning.tokenizer import tokens_of
    from fl_privacy.row_files import Fields, read_rows

    if vocabulary and model not in USUAL:
        raise click.UsageError("--vocabulary is for a new model (tiny, small, base); one that is trained further has its own")
    if (out / "config.json").exists() and not (out / CHECKPOINT).exists():
        raise click.UsageError(f"{out} holds a finished model; give another --out, or remove it first")
    usual = USUAL.get(model, USUAL["base"])
    settings = Settings(
        steps=steps or usual.steps,
        batch_size=batch_size,
        learning_rate=learning_rate or usual.learning_rate,
        max_length=max_length,
        vocabulary_size=vocabulary_size,
        seed=seed,
    )
    rows = [row for file in files for row in read_rows(file, Fields(text=field))]
    bundle = start(model, rows, settings, vocabulary.read_bytes() if vocabulary else None)
    console.print(
        f"{bundle.spec.source}, a vocabulary of {len(tokens_of(bundle.vocabulary)):,} tokens, {len(rows):,} public texts"
    )
    counts = _train(bundle, rows, out, settings, devices.start(devices.resolve(device))).held_out
    console.print(
        f"{out}: guesses {counts.headline:.1%} of {counts['positions']:,.0f} tokens right (perplexity"
        f' {counts.summary()["perplexity"]:.1f}), in texts that were kept aside. In a plan: model = "{out}"',
        soft_wrap=True,
    )


def _train(bundle: ModelBundle, rows: Sequence[Row], out: Path, settings: Settings, device: Place) -> Pretrained:
    """With a bar; Ctrl-C says what is kept."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fl_privacy.display import console
    from fl_privacy.learning.pretraining import CHECKPOINT, pretrain

    done = 0
    with Progress(TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("steps", total=settings.steps)

        def on_step(step: int, steps: int) -> None:
            nonlocal done
            if not done and step > 1:
                console.print(f"going on after step {step - 1:,}, from the checkpoint in {out}")
            done = step
            progress.update(bar, completed=step)

        try:
            return pretrain(bundle, rows, out, settings, on_step, device)
        except KeyboardInterrupt:
            kept = "give the same command again to go on from the last checkpoint"
            told = kept if (out / CHECKPOINT).exists() else "before the first checkpoint, so nothing is kept"
            raise click.ClickException(f"stopped: {told}") from None
