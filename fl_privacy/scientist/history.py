"""What a run tells and leaves behind: one record per round, opened or skipped, kept as a JSON line, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from fl_privacy.errors import RoundFailed
from fl_privacy.messages import Message, Purpose
from fl_privacy.parallel_composition import federation_claim

NOISY = 0.05  # standard deviation of a headline number beyond which it tells little

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class OwnerSpend(Message):
    """An owner's ledger after a round, from its signed receipt.

    ``epsilon`` is the total since the ledger began. With ``period_days`` the budget bounds only ``epsilon_in_period``.
    """

    epsilon: float
    budget: float
    delta: float
    ledger_head: str
    period_days: int | None = None
    epsilon_in_period: float | None = None

    @property
    def counted(self) -> float:
        """What the budget bounds of what was spent."""
        return self.epsilon if self.epsilon_in_period is None else self.epsilon_in_period

    @property
    def period(self) -> str:
        """The period that ``counted`` and ``budget`` speak of, as an ending of a sentence; empty for a budget for good."""
        return f" in {self.period_days} days" if self.period_days else ""


class RoundRecord(Message):
    """One finished round. Bytes are HTTP bodies on the wire: up from the owners, down to them. Seconds are wall time.

    ``openers`` opened the sum and agreed on it; ``failure_log2`` is log2 of the bound on the probability that
    it decrypts wrongly, which would show (None for CKKS, which is approximate). ``accuracy`` is the headline number of the
    plan's task on validation rows (for entities their strict F1), ``perplexity`` that of guessed tokens, if there are any.
    """

    model_config = ConfigDict(protected_namespaces=())

    round: int
    attempt: int
    order: str
    cohort: tuple[str, ...]
    openers: tuple[str, ...]
    failure_log2: float | None
    accuracy: float
    perplexity: float | None
    update_norm: float
    spends: dict[str, OwnerSpend]
    parameters: int
    ciphertext_bytes: int
    bytes_up: int
    bytes_down: int
    seconds_training: float
    seconds_crypto: float
    seconds_transport: float


class EvaluationRecord(Message):
    """One evaluation on held-out private rows, of the model that ``round`` starts from; after the last, of the finished one.

    ``counts`` are sums over the whole cohort, with the noise of each owner in them; ``deviations`` is the standard deviation of
    that noise. ``metrics`` are their ratios, None where noise left nothing to divide by; ``headline_deviation`` is how far the
    noise moves the headline, None where that cannot be told. Nothing of a single owner is in any of them.
    """

    evaluation: Literal[True] = True
    round: int
    attempt: int
    order: str
    cohort: tuple[str, ...]
    openers: tuple[str, ...]
    counts: dict[str, float]
    deviations: dict[str, float]
    metrics: dict[str, float | None]
    headline: float | None
    headline_deviation: float | None
    spends: dict[str, OwnerSpend]
    bytes_up: int
    bytes_down: int
    seconds: float

    @property
    def in_words(self) -> str:
        """The headline number with the noise beside it, and what to know where that is large."""
        where, more = (
            f"on {len(self.cohort)} owners' held-out rows: ",
            "hold out more, or take less evaluation_noise for more epsilon",
        )
        if self.headline is None or self.headline_deviation is None:
            return f"{where}the noise drowns the counts; {more}"
        told = f"{where}{self.headline:.2%} ± {self.headline_deviation:.2%} (noise, one standard deviation)"
        return f"{told}; too noisy to compare models by; {more}" if self.headline_deviation > NOISY else told


class SkippedRound(Message):
    """A round that no attempt could open: the model stayed, the spends of those who trained are in their ledgers.

    ``failures`` has one mapping per attempt, from owner to reason. A skipped evaluation leaves nothing but what it has spent.
    """

    round: int
    skipped: Literal[True] = True
    purpose: Purpose = "train"
    failures: tuple[dict[str, str], ...]


class Watcher:
    """What ``Federation.run`` tells while it works; the default says nothing."""

    def step(self, owner: str, step: int, steps: int) -> None:
        """An owner has done ``step`` of ``steps`` training steps of the round."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is on disk."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """An evaluation on private rows is on disk."""

    def evaluation_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """All attempts at the evaluation before a round were lost; ``failures`` as in ``round_skipped``."""

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
        self.evaluations: list[EvaluationRecord] = []
        self.skipped: list[SkippedRound] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def append(self, record: RoundRecord) -> None:
        """Keep a round; it is on disk when this returns."""
        self.rounds.append(record)
        self._write(record)

    def append_evaluation(self, record: EvaluationRecord) -> None:
        """Keep an evaluation; it is on disk when this returns."""
        self.evaluations.append(record)
        self._write(record)

    def skip(self, skipped: SkippedRound) -> None:
        """Keep why a round was skipped; it is on disk when this returns."""
        self.skipped.append(skipped)
        self._write(skipped)

    @property
    def federation_claim(self) -> str:
        """What the ledgers add up to for all owners together, by their last receipts; empty when nothing was opened."""
        spends = {owner: spend for record in self._in_turn() for owner, spend in record.spends.items()}
        return federation_claim({owner: (spend.epsilon, spend.delta) for owner, spend in spends.items()}) if spends else ""

    def plot(self, path: Path) -> None:
        """Accuracy, epsilon, bytes and seconds by round, as one PNG."""
        from matplotlib import pyplot as plt  # a second of import, for the end of a run only
        from matplotlib.ticker import MaxNLocator

        figure, axes = plt.subplots(1, 4, figsize=(17, 3.8), layout="constrained")
        at = [record.round + 1 for record in self.rounds]
        axes[0].plot([0, *at], [self.accuracy_before, *(record.accuracy for record in self.rounds)], marker="o")
        axes[0].set(title="validation: accuracy (entities: F1)", xlabel="round")
        self._plot_evaluations(axes[0])
        self._plot_epsilon(axes[1])
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

    def _plot_evaluations(self, axis: Axes) -> None:
        """What was measured on private rows, with two standard deviations of the noise."""
        known = [
            (record.round, record.headline, 2 * record.headline_deviation)
            for record in self.evaluations
            if record.headline is not None and record.headline_deviation is not None
        ]
        if known:
            at, measured, spread = (list(column) for column in zip(*known, strict=True))
            axis.errorbar(at, measured, yerr=spread, marker="s", capsize=4, alpha=0.8, label="held-out private rows, ± 2 sd")
            axis.legend()

    def _plot_epsilon(self, axis: Axes) -> None:
        """What budgets bound; where one holds for a period, also the total, as a thin line."""
        for index, owner in enumerate(sorted({owner for record in self.rounds for owner in record.spends})):
            spends = [(record.round + 1, record.spends[owner]) for record in self.rounds if owner in record.spends]
            at, last = [number for number, _ in spends], spends[-1][1]
            (line,) = axis.plot(
                at,
                [spend.counted for _, spend in spends],
                marker="osD^v<>"[index % 7],
                markersize=11 - 2 * (index % 4),
                alpha=0.7,
                label=f"{owner}{last.period}",
            )
            if last.period_days:
                axis.plot(at, [spend.epsilon for _, spend in spends], ls=":", c=line.get_color(), label=f"{owner} in total")
        budget = min(spend.budget for spend in self.rounds[-1].spends.values())
        axis.axhline(budget, ls="--", c="grey", label="smallest budget")
        axis.set(title="epsilon spent (upper bound)", xlabel="round")
        axis.legend()

    def _in_turn(self) -> list[RoundRecord | EvaluationRecord]:
        """All that was opened, in the order in which it was: a round's evaluation comes before its training."""
        opened: list[RoundRecord | EvaluationRecord] = [*self.evaluations, *self.rounds]
        return sorted(opened, key=lambda record: record.round)

    def _write(self, line: Message) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.canonical().decode() + "\n")
