"""What a run tells and leaves behind: one record per round, opened or skipped, kept as a JSON line, and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from fl_privacy.errors import CheckpointError, MessageError, RoundFailed
from fl_privacy.messages import Message, Purpose
from fl_privacy.parallel_composition import federation_claim

NOISY = 0.05  # standard deviation of a headline number beyond which it tells little


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
    ``update_norm`` is the norm of the mean update; ``noise_floor`` is what it would be if the owners' gradients were
    nothing but the noise that is added to them, None where that is not predicted (``strategies.stopping.noise_floor``).
    ``relative_update`` is the norm of the model's change over that of the trained tensors (at least 1). ``absent`` are owners
    that the round was for but that are not in its cohort, and why; ``failures`` are those of the attempts before this one.
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
    relative_update: float | None = None  # not told before there were rules for stopping
    noise_floor: float | None = None
    absent: dict[str, str] = {}
    failures: tuple[dict[str, str], ...] = ()


class EvaluationRecord(Message):
    """One evaluation on held-out private rows, of the model that ``round`` starts from, or, ``is_final``, of the finished one.

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
    is_final: bool = False  # not told by earlier versions
    absent: dict[str, str] = {}
    failures: tuple[dict[str, str], ...] = ()

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


Line = RoundRecord | EvaluationRecord | SkippedRound


def parse_line(line: str) -> Line:
    """One line of a history. Raises: MessageError."""
    kinds: dict[str, type[Line]] = {"evaluation": EvaluationRecord, "skipped": SkippedRound}
    try:
        told = json.loads(line)
    except json.JSONDecodeError as problem:
        raise MessageError(f"a history has one JSON value a line: {problem}") from None
    return next((kind for name, kind in kinds.items() if name in told), RoundRecord).parse(line)


class Watcher:
    """What ``Federation.run`` tells while it works; the default says nothing."""

    def resumed(self, history: History, round_index: int) -> None:
        """The run goes on with this round; what was done before is in the history."""

    def step(self, owner: str, step: int, steps: int) -> None:
        """An owner has done ``step`` of ``steps`` training steps of the round."""

    def phase(self, owner: str, phase: str) -> None:
        """What goes on with an owner besides its steps: sending, encrypting, fetching, adding, agreeing or opening."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is on disk."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """An evaluation on private rows is on disk."""

    def evaluation_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """All attempts at the evaluation before a round were lost; ``failures`` as in ``round_skipped``."""

    def ended(self, reason: str) -> None:
        """No round is left, or the plan's rules end the run before; only the finished model may still be evaluated."""

    def waiting(self, error: RoundFailed, seconds_left: float) -> None:
        """Owners are waited for, as the run is to; the same order is sent again and again for so long."""

    def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
        """An attempt was lost; the round is tried again if any attempt is left."""

    def round_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """All attempts were lost and the model stays as it is; ``failures`` are by attempt, from owner to reason."""


class Watchers(Watcher):
    """Several watchers as one: each is told everything, in their order."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers


def _tell_all(name: str) -> Callable[..., None]:
    @wraps(getattr(Watcher, name))
    def tell(self: Watchers, *told: object, **named: object) -> None:
        for watcher in self.watchers:
            getattr(watcher, name)(*told, **named)

    return tell


for _name in [name for name in vars(Watcher) if not name.startswith("_")]:  # also those that are added to it one day
    setattr(Watchers, _name, _tell_all(_name))


class History:
    """Records in memory and, line by line, in ``history.jsonl``, to which lines are only ever added."""

    def __init__(self, path: Path, accuracy_before: float, lines: Sequence[Line] = ()) -> None:
        """Args: ``accuracy_before`` is the validation accuracy of the model that the run starts from; ``lines`` are on disk."""
        self.path, self.accuracy_before = path, accuracy_before
        self.rounds: list[RoundRecord] = []
        self.evaluations: list[EvaluationRecord] = []
        self.skipped: list[SkippedRound] = []
        for line in lines:
            self._sort_in(line)

    @classmethod
    def reopen(cls, path: Path, accuracy_before: float, lines: int, last: str) -> History:
        """Go on with a file that should have so many ``lines``, the last being ``last``.

        A crash may have kept the last line from being written, or cut it short: then it is written now.
        Raises: CheckpointError when anything else is there.
        """
        try:
            found = path.read_bytes()
        except OSError as problem:
            raise CheckpointError(f"{path} cannot be read: {problem.strerror}") from None
        whole = found[: found.rfind(b"\n") + 1]
        known = whole.decode("utf-8", "replace").split("\n")[:-1]
        is_short = len(known) == lines - 1
        if is_short:
            known.append(last)
        if len(known) != lines or known[-1:] != ([last] if lines else []):
            told = f"{path} has {len(known)} lines, the run has written {lines}, or the last one is another"
            raise CheckpointError(f"{told}; bring the file back as it was")
        history = cls(path, accuracy_before, [parse_line(line) for line in known])
        if len(whole) < len(found):
            os.truncate(path, len(whole))
        if is_short:
            history._write(last)
        return history

    def append(self, line: Line) -> None:
        """Keep a round, an evaluation, or why one was skipped; it is on disk when this returns."""
        self._sort_in(line)
        self._write(line.canonical().decode())

    @property
    def scores(self) -> list[float]:
        """The validation score of every model so far, that of the first model first."""
        return [self.accuracy_before, *(record.accuracy for record in self.rounds)]

    @property
    def rounds_over(self) -> int:
        """How many rounds were opened or skipped."""
        skipped = [skip.round for skip in self.skipped if skip.purpose == "train"]
        return 1 + max([*skipped, *(record.round for record in self.rounds)], default=-1)

    @property
    def federation_claim(self) -> str:
        """What the ledgers add up to for all owners together, by their last receipts; empty when nothing was opened."""
        spends = {owner: spend for record in self._in_turn() for owner, spend in record.spends.items()}
        return federation_claim({owner: (spend.epsilon, spend.delta) for owner, spend in spends.items()}) if spends else ""

    def plot(self, path: Path) -> None:
        """Accuracy, epsilon, bytes and seconds by round, and accuracy by epsilon, as one PNG."""
        from fl_privacy.scientist.plots import plot_run  # matplotlib: a second of import, for the end of a run only

        plot_run(self, path)

    def _in_turn(self) -> list[RoundRecord | EvaluationRecord]:
        """All that was opened, in the order in which it was: a round's evaluation comes before its training."""
        opened: list[RoundRecord | EvaluationRecord] = [*self.evaluations, *self.rounds]
        return sorted(opened, key=lambda record: record.round)

    def _sort_in(self, line: Line) -> None:
        if isinstance(line, RoundRecord):
            self.rounds.append(line)
        elif isinstance(line, EvaluationRecord):
            self.evaluations.append(line)
        else:
            self.skipped.append(line)

    def _write(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
