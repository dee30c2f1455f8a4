"""A run's history, as it grows, where other programs show it: TensorBoard's event files, or an MLflow server.

A tracker tells the numbers of ``history.jsonl`` by owners' names and nothing else, so whoever may see the history may see what
it writes: sums of whole cohorts and what owners signed of their ledgers. What is there already is not written again, and what a
crash has kept from being written is written when the run goes on: each number is there once, however often a run was resumed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fl_privacy.errors import CheckpointError, ConnectionFailed, ExtraMissing
from fl_privacy.scientist.history import EvaluationRecord, History, OwnerSpend, RoundRecord, Watcher, Watchers
from fl_privacy.scientist.run_folder import RunFolder

Numbers = Mapping[tuple[str, int], float]  # by tag and step, the number of rounds that were over


class Tracker(Watcher, ABC):
    """Copies a run's history to where another program shows it; give it to ``Federation.run`` or ``resume`` as ``track``."""

    def begin(self, run: RunFolder, is_resumed: bool) -> None:
        """Look at what is there already. Raises: CheckpointError when that is not of this run's history, ConnectionFailed."""
        self._run, self._is_resumed = run, is_resumed
        history = numbers(run.read_history()) if is_resumed else {}
        self._written = set(known := self.known())
        foreign = [name for name, value in known.items() if not _is_same(value, history.get(name))]
        if foreign:
            tag, step = min(foreign)
            told = f"{self.place} holds numbers of another run, such as {tag} at step {step}"
            raise CheckpointError(f"{told}; take another place, or resume the run that they are of")

    def catch_up(self) -> None:
        """Write whatever is in the history and not there yet."""
        new = {name: value for name, value in numbers(self._run.read_history()).items() if name not in self._written}
        if new:
            self.add(new)
            self._written |= new.keys()

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the numbers go, in words."""

    @abstractmethod
    def known(self) -> Numbers:
        """What is there already."""

    @abstractmethod
    def add(self, new: Numbers) -> None:
        """Write numbers, by growing steps for each tag."""

    def finish(self) -> None:
        """The run is over: write what is still missing. Raises: ConnectionFailed."""
        self.catch_up()

    def close(self) -> None:
        """Let go of files and connections."""

    def _catch_up_or_wait(self) -> None:
        """In the middle of a run; a server that does not answer then gets these numbers with the next."""
        with suppress(ConnectionFailed):
            self.catch_up()

    def resumed(self, history: History, round_index: int) -> None:
        """What the last process may not have come to."""
        self._catch_up_or_wait()

    def round_done(self, record: RoundRecord) -> None:
        """A round's numbers."""
        self._catch_up_or_wait()

    def evaluated(self, record: EvaluationRecord) -> None:
        """An evaluation's numbers."""
        self._catch_up_or_wait()


class TensorBoard(Tracker):
    """A run's history as TensorBoard's event files: ``tensorboard --logdir FOLDER`` shows them, also while the run goes on.

    Args: ``folder`` is for one run; by convention, folders of runs that are to be compared lie in one folder.
    Raises: ExtraMissing without the package ``tensorboard``. Needs neither TensorFlow nor torch.
    """

    def __init__(self, folder: Path | str) -> None:
        require("tensorboard", "tracking")
        self.folder = Path(folder)
        self._writer: Any = None

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    def known(self) -> Numbers:
        """What the folder's event files hold; a last event that was cut short is not one."""
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray

        return {
            (value.tag, event.step): float(make_ndarray(value.tensor))
            for file in sorted(self.folder.glob("events.out.tfevents.*"))
            for event in EventFileLoader(str(file)).Load()
            for value in event.summary.value
        }

    def add(self, new: Numbers) -> None:
        """Add events to a file of this process, flushed when this returns."""
        if self._writer is None:
            self._writer = import_module("tensorboard.summary").Writer(self.place)
        for (tag, step), value in new.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def numbers(history: History) -> dict[tuple[str, int], float]:
    """All finite numbers of a history by tag and step; for each tag, steps grow.

    A step is the number of rounds that were over: 0 is the model that the run started from. ``validation/loss`` is the natural
    logarithm of the perplexity, the mean cross entropy of what the task predicts.
    """
    found = {("validation/accuracy", 0): history.accuracy_before}
    for record in history.rounds:
        found |= {(tag, record.round + 1): value for tag, value in _of_round(record)}
    for evaluation in history.evaluations:
        step = min(evaluation.round, history.rounds_over)  # the finished model's may have come early
        found |= {(f"evaluation/{tag}", step): value for tag, value in _of_evaluation(evaluation)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _of_round(record: RoundRecord) -> Iterator[tuple[str, float]]:
    told = {
        "validation/accuracy": record.accuracy,
        "validation/perplexity": record.perplexity,
        "validation/loss": math.log(record.perplexity) if record.perplexity else None,
        "bytes/up": record.bytes_up,
        "bytes/down": record.bytes_down,
        "seconds/training": record.seconds_training,
        "seconds/crypto": record.seconds_crypto,
        "seconds/transport": record.seconds_transport,
        "update/norm": record.update_norm,
        "update/noise_floor": record.noise_floor,
        "update/relative": record.relative_update,
    }
    yield from ((tag, value) for tag, value in told.items() if value is not None)
    yield from _of_spends(record.spends)


def _of_evaluation(record: EvaluationRecord) -> Iterator[tuple[str, float]]:
    told = {
        "headline": record.headline,
        "headline_deviation": record.headline_deviation,
        **record.metrics,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "seconds": record.seconds,
    }
    yield from ((tag, value) for tag, value in told.items() if value is not None)
    yield from _of_spends(record.spends)


def _of_spends(spends: Mapping[str, OwnerSpend]) -> Iterator[tuple[str, float]]:
    for owner, spend in spends.items():
        yield f"epsilon/{owner}", spend.epsilon
        yield f"budget/{owner}", spend.budget
        if spend.epsilon_in_period is not None:
            yield f"epsilon_in_period/{owner}", spend.epsilon_in_period


@contextmanager
def tracked(track: Sequence[Tracker], run: RunFolder, is_resumed: bool, watcher: Watcher) -> Iterator[Watcher]:
    """The watcher of a run with its trackers behind it, which have everything when the run is over.

    Raises: CheckpointError, ConnectionFailed before anything is trained.
    """
    try:
        for tracker in track:
            tracker.begin(run, is_resumed)
        yield Watchers(watcher, *track) if track else watcher
        for tracker in track:
            tracker.finish()  # also where nobody was told anything: the run was finished before
    finally:
        for tracker in track:
            tracker.close()


def require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        told = f"{package} is not installed: it comes with the extra {extra!r} of this package"
        raise ExtraMissing(f"{told}; in its repository, run `pip install -c constraints.txt '.[{extra}]'`")


def _is_same(one: float, other: float | None) -> bool:
    """Whether two numbers are the same as TensorBoard keeps them, which is in single precision."""
    return other is not None and bool(np.float32(one) == np.float32(other))
