"""What a run tells and leaves behind: one record per round, opened or skipped, kept as a JSON line, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from fl_privacy.errors import RoundFailed
from fl_privacy.messages import Message


class OwnerSpend(Message):
    """An owner's ledger after a round, from its signed receipt."""

    epsilon: float
    budget: float
    delta: float
    ledger_head: str


class RoundRecord(Message):
    """One finished round. Bytes are HTTP bodies on the wire: up from the owners, down to them. Seconds are wall time.

    ``openers`` opened the sum and agreed on it; ``failure_log2`` is log2 of the bound on the probability that
    it decrypts wrongly, which would show (None for CKKS, which is approximate).
    """

    model_config = ConfigDict(protected_namespaces=())

    round: int
    attempt: int
    order: str
    cohort: tuple[str, ...]
    openers: tuple[str, ...]
    failure_log2: float | None
    accuracy: float
    perplexity: float
    update_norm: float
    spends: dict[str, OwnerSpend]
    parameters: int
    ciphertext_bytes: int
    bytes_up: int
    bytes_down: int
    seconds_training: float
    seconds_crypto: float
    seconds_transport: float


class SkippedRound(Message):
    """A round that no attempt could open: the model stayed, the spends of those who trained are in their ledgers.

    ``failures`` has one mapping per attempt, from owner to reason.
    """

    round: int
    skipped: Literal[True] = True
    failures: tuple[dict[str, str], ...]


class Watcher:
    """What ``Federation.run`` tells while it works; the default says nothing."""

    def step(self, owner: str, step: int, steps: int) -> None:
        """An owner has done ``step`` of ``steps`` training steps of the round."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is on disk."""

    def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
        """An attempt was lost; the round is tried again if any attempt is left."""

    def round_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """All attempts were lost and the model stays as it is; ``failures`` are by attempt, from owner to reason."""


class History:
    """Round records in memory and, line by line, in ``history.jsonl``."""

    def __init__(self, path: Path, accuracy_before: float) -> None:
        """Args: ``accuracy_before`` is the validation accuracy of the model that the run starts from."""
        self.path, self.accuracy_before = path, accuracy_before
        self.rounds: list[RoundRecord] = []
        self.skipped: list[SkippedRound] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def append(self, record: RoundRecord) -> None:
        """Keep a round; it is on disk when this returns."""
        self.rounds.append(record)
        self._write(record)

    def skip(self, skipped: SkippedRound) -> None:
        """Keep why a round was skipped; it is on disk when this returns."""
        self.skipped.append(skipped)
        self._write(skipped)

    def plot(self, path: Path) -> None:
        """Accuracy, epsilon, bytes and seconds by round, as one PNG."""
        from matplotlib import pyplot as plt  # a second of import, for the end of a run only
        from matplotlib.ticker import MaxNLocator

        figure, axes = plt.subplots(1, 4, figsize=(17, 3.8), layout="constrained")
        at = [record.round + 1 for record in self.rounds]
        axes[0].plot([0, *at], [self.accuracy_before, *(record.accuracy for record in self.rounds)], marker="o")
        axes[0].set(title="MLM top-1 on validation text", xlabel="round")
        for index, owner in enumerate(sorted({owner for record in self.rounds for owner in record.spends})):
            took_part = [record for record in self.rounds if owner in record.spends]
            spent = [record.spends[owner].epsilon for record in took_part]
            axes[1].plot(
                [record.round + 1 for record in took_part],
                spent,
                marker="osD^v<>"[index % 7],
                markersize=11 - 2 * (index % 4),
                alpha=0.7,
                label=owner,
            )
        budget = min(spend.budget for spend in self.rounds[-1].spends.values())
        axes[1].axhline(budget, ls="--", c="grey", label="smallest budget")
        axes[1].set(title="epsilon spent (one record, upper bound)", xlabel="round")
        axes[1].legend()
        axes[2].bar([i - 0.2 for i in at], [record.bytes_up / 1e6 for record in self.rounds], 0.4, label="up (encrypted)")
        axes[2].bar([i + 0.2 for i in at], [record.bytes_down / 1e6 for record in self.rounds], 0.4, label="down")
        axes[2].set(title="MB on the wire, all owners", xlabel="round")
        axes[2].legend()
        bottom = [0.0] * len(at)
        for label in ("training", "crypto", "transport"):
            heights = [getattr(record, f"seconds_{label}") for record in self.rounds]
            axes[3].bar(at, heights, bottom=bottom, label=label)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes[3].set(title="seconds", xlabel="round")
        axes[3].legend()
        for axis in axes:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path, dpi=110)
        plt.close(figure)

    def _write(self, line: Message) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.canonical().decode() + "\n")
