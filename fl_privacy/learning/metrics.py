"""What an evaluation counts, so that the counts of several owners can be added, in the clear or encrypted, before any ratio.

A mean of owners' accuracies, F1 scores or perplexities is not that of all their records together; a ratio of sums is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_privacy.model_spec import OUTSIDE

_LARGEST_EXPONENT = 700.0  # exp of more is no float


class Counts(ABC):
    """Sums over records, one float64 for each of ``names``; add those of several parts, then read the ratios.

    Privacy: counts carry no noise of their own.
    """

    def __init__(self, names: Sequence[str], vector: ArrayLike | None = None) -> None:
        """Args: vector has one number for each name; None is nothing counted. Raises: ValueError."""
        self.names = tuple(names)
        self.vector: NDArray[np.float64] = np.zeros(len(self.names)) if vector is None else np.array(vector, np.float64)
        if self.vector.shape != (len(self.names),):
            raise ValueError(f"{type(self).__name__}: {len(self.names)} counts expected, got shape {self.vector.shape}")
        self.vector.setflags(write=False)

    @abstractmethod
    def from_vector(self, vector: ArrayLike) -> Self:
        """Other numbers for the same names, such as those of an opened sum. Raises: ValueError."""

    @abstractmethod
    def summary(self) -> dict[str, float]:
        """The ratios by name; nan where nothing was counted that a ratio could be formed of."""

    @property
    @abstractmethod
    def headline(self) -> float:
        """The one number of ``summary`` that runs are compared by; higher is better."""

    def __getitem__(self, name: str) -> float:
        return float(self.vector[self.names.index(name)])

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, type(self)) or other.names != self.names:
            raise TypeError(f"{type(self).__name__} can only be added to counts of the same names")
        return self.from_vector(self.vector + other.vector)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.names == other.names and np.array_equal(self.vector, other.vector)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value:g}' for name, value in self.summary().items())})"


class TokenCounts(Counts):
    """Over predicted tokens: summed negative log-likelihood (nats), how often the best and the five best guesses hold the
    right token, and how many tokens were predicted.
    """

    NAMES = ("nll", "top1", "top5", "positions")

    def __init__(self, vector: ArrayLike | None = None) -> None:
        super().__init__(self.NAMES, vector)

    def from_vector(self, vector: ArrayLike) -> Self:
        return type(self)(vector)

    @property
    def accuracy(self) -> float:
        """Share of tokens whose best guess is right; nan when none was predicted."""
        return ratio(self["top1"], self["positions"])

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; a uniform guess gives the vocabulary's size."""
        return exp(ratio(self["nll"], self["positions"]))

    @property
    def headline(self) -> float:
        return self.accuracy

    def summary(self) -> dict[str, float]:
        top5 = ratio(self["top5"], self["positions"])
        return {"accuracy": self.accuracy, "top5_accuracy": top5, "perplexity": self.perplexity}


class ClassificationCounts(Counts):
    """Over labelled texts: the confusion matrix (what is true by row, what is predicted by column), and the summed negative
    log-likelihood (nats).
    """

    def __init__(self, labels: Sequence[str], vector: ArrayLike | None = None) -> None:
        super().__init__((*(f"{true} as {told}" for true in labels for told in labels), "nll"), vector)
        self.labels = tuple(labels)

    def from_vector(self, vector: ArrayLike) -> Self:
        return type(self)(self.labels, vector)

    @property
    def confusion(self) -> NDArray[np.float64]:
        """(C, C): entry [i, j] counts texts of class i that are taken for class j."""
        return self.vector[:-1].reshape(len(self.labels), -1)

    @property
    def accuracy(self) -> float:
        """Share of texts whose class is right; nan when there was none."""
        return ratio(float(self.confusion.trace()), float(self.confusion.sum()))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over all classes that the plan declares; one that is neither true nor predicted anywhere counts as 0."""
        hits, told, true = self.confusion.diagonal(), self.confusion.sum(axis=0), self.confusion.sum(axis=1)
        return float(np.mean([f1(*counts) for counts in zip(hits, told, true, strict=True)]))

    @property
    def headline(self) -> float:
        return self.accuracy

    def summary(self) -> dict[str, float]:
        nll = ratio(self["nll"], float(self.confusion.sum()))
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "nll": nll}


class EntityCounts(Counts):
    """Over texts with tagged entities: for each kind how many entities were found (right from the first to the last character,
    and in kind), predicted and true; under ``strict`` reading of the tags, and under ``default`` (see ``entities``).
    """

    READINGS = ("strict", "default")
    COLUMNS = ("found", "predicted", "true")

    def __init__(self, kinds: Sequence[str], vector: ArrayLike | None = None) -> None:
        names = (f"{reading} {column} {kind}" for reading in self.READINGS for column in self.COLUMNS for kind in kinds)
        super().__init__(tuple(names), vector)
        self.kinds = tuple(kinds)

    def from_vector(self, vector: ArrayLike) -> Self:
        return type(self)(self.kinds, vector)

    def f1(self, reading: str, kind: str | None = None) -> float:
        """F1 of one kind, or micro-F1 of all; 0 where there is no entity, neither true nor predicted, as seqeval has it."""
        table = self.vector.reshape(len(self.READINGS), len(self.COLUMNS), -1)[self.READINGS.index(reading)]
        found, predicted, true = table.sum(axis=1) if kind is None else table[:, self.kinds.index(kind)]
        return f1(found, predicted, true)

    @property
    def headline(self) -> float:
        return self.f1("strict")

    def summary(self) -> dict[str, float]:
        kinds = {f"f1_strict {kind}": self.f1("strict", kind) for kind in self.kinds}
        return {"f1_strict": self.f1("strict"), "f1_default": self.f1("default"), **kinds}


class CalibrationCounts(Counts):
    """Whether a model's probabilities can be believed: over all predictions, the summed negative log-likelihood and the entropy
    (nats) of what it told; and by the probability of its best guess, in equal bins, the sum of that probability, how often the
    guess was right, and how many there were.

    Source: Guo et al. 2017 (On calibration of modern neural networks), section 2, for the expected calibration error.
    """

    BINS = 10
    COLUMNS = ("confidence", "right", "count")

    def __init__(self, vector: ArrayLike | None = None) -> None:
        names = (f"{column} {place}" for column in self.COLUMNS for place in range(self.BINS))
        super().__init__((*names, "nll", "entropy"), vector)

    def from_vector(self, vector: ArrayLike) -> Self:
        return type(self)(vector)

    @classmethod
    def of(cls, probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> Self:
        """Args: probabilities (P, C) of P predictions, each row summing to 1; truth (P,) is what was right."""
        best, counted = probabilities.max(axis=1), np.zeros((len(cls.COLUMNS), cls.BINS))
        bins = np.minimum((best * cls.BINS).astype(np.int64), cls.BINS - 1)
        for column, values in enumerate((best, probabilities.argmax(axis=1) == truth, np.ones(len(truth)))):
            np.add.at(counted[column], bins, values)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(probabilities)
            entropy = -np.where(probabilities > 0, probabilities * logs, 0.0).sum()
        return cls([*counted.ravel(), -logs[np.arange(len(truth)), truth].sum(), entropy])

    @property
    def predictions(self) -> int:
        """How many predictions were counted, each once: places of hidden tokens, texts, or characters."""
        return round(float(self.vector[:-2].reshape(len(self.COLUMNS), -1)[-1].sum()))

    @property
    def headline(self) -> float:
        return 1 - self.summary()["calibration_error"]

    def summary(self) -> dict[str, float]:
        """``calibration_error``: mean over predictions of |confidence - accuracy| in their bin; 0 is perfect. ``perplexity``,
        and ``own_perplexity``, which it would be if the model's probabilities were true: equal for a calibrated model.
        """
        confidence, right, count = self.vector[:-2].reshape(len(self.COLUMNS), -1)
        total = float(count.sum())
        return {
            "calibration_error": ratio(float(np.abs(confidence - right).sum()), total),
            "perplexity": exp(ratio(self["nll"], total)),
            "own_perplexity": exp(ratio(self["entropy"], total)),
        }


def entities(tags: Sequence[str], *, strict: bool) -> Iterator[tuple[int, int, str]]:
    """The entities (first place, place behind the last, kind) of BIO tags.

    Args: strict reads IOB2: an entity begins with B only, and an I that does not carry one on belongs to none. Otherwise such
        an I begins one as well, as in conlleval and seqeval's default mode.
    """
    start, kind = 0, ""
    for place, tag in enumerate((*tags, OUTSIDE)):
        prefix, _, told = tag.partition("-")
        if kind and prefix == "I" and told == kind:
            continue
        if kind:
            yield start, place, kind
        begins = prefix == "B" or (prefix == "I" and not strict)
        start, kind = (place, told) if begins else (0, "")


def f1(found: float, predicted: float, true: float) -> float:
    """2 found / (predicted + true); 0 when there is nothing to find and nothing was predicted."""
    return float(2 * found / (predicted + true)) if predicted + true > 0 else 0.0


def ratio(part: float, whole: float) -> float:
    """part / whole; nan when there is nothing."""
    return part / whole if whole > 0 else math.nan


def exp(exponent: float) -> float:
    """e to that, but never more than a float holds."""
    return math.exp(min(exponent, _LARGEST_EXPONENT))
