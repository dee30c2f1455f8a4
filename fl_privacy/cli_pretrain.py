"""``fl-privacy pretrain``: a public base model, so that private runs do not start from noise."""

from __future__ import annotations

from pathlib import Path

import click

DEFAULTS = {"tiny": 4000, "small": 10_000, "base": 100_000}  # steps


@click.command("pretrain")
@click.argument("files", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the model.")
@click.option(
    "--model",
    default="tiny",
    show_default=True,
    help="tiny (2 layers of 128), small (4 of 256), base (12 of 768), or a folder or Hugging Face name to train further.",
)
@click.option("--vocabulary", type=click.Path(path_type=Path, exists=True), help="A vocab.txt; by default made from FILES.")
@click.option("--vocabulary-size", default=8000, show_default=True, help="Tokens at most of a vocabulary made from FILES.")
@click.option("--steps", type=click.IntRange(20), help="By default 4000 (tiny), 10000 (small), 100000 (base and others).")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Rows in a step.")
@click.option("--learning-rate", type=float, default=2e-3, show_default=True, help="2e-3 suits tiny; take 1e-4 for base.")
@click.option("--max-length", type=click.IntRange(8), default=48, show_default=True, help="Tokens of a row.")
@click.option("--field", default="text", show_default=True, help="Name of the text field or column.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same weights on the same machine.")
def pretrain_command(
    files: tuple[Path, ...],
    out: Path,
    model: str,
    vocabulary: Path | None,
    vocabulary_size: int,
    steps: int | None,
    batch_size: int,
    learning_rate: float,
    max_length: int,
    field: str,
    seed: int,
) -> None:
    """Train a language model on public text, WITHOUT PRIVACY, for private runs to start from.

    FILES are .txt (one text a line), .jsonl, .csv or .parquet. A run that was stopped goes on when the same command is given
    again. Name the folder as `model` in a plan.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from fl_privacy.display import console
    from fl_privacy.learning.pretraining import Settings, pretrain, start
    from fl_privacy.row_files import Fields, read_rows

    rows = [row for file in files for row in read_rows(file, Fields(text=field))]
    steps = steps or DEFAULTS.get(model, DEFAULTS["base"])
    settings = Settings(steps, batch_size, learning_rate, max_length, vocabulary_size=vocabulary_size, seed=seed)
    bundle = start(model, rows, settings, vocabulary.read_bytes() if vocabulary else None)
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{len(rows):,} public rows", total=steps)
        found = pretrain(bundle, rows, out, settings, lambda done, total: progress.update(bar, completed=done))
    told = found.held_out.summary()
    console.print(f"{out}: top-1 {told['accuracy']:.3f}, perplexity {told['perplexity']:.1f} on public rows kept aside")
