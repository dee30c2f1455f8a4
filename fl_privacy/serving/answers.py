"""Scores to answers: guesses of masked tokens, classes, entities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_privacy.learning.metrics import entities
from fl_privacy.messages import Message
from fl_privacy.serving.texts import TextReader, Tokens, beginnings


class Guess(Message):
    """A token for a mask, as the tokenizer writes it out, and its probability."""

    token: str
    token_id: int
    probability: float


class Mask(Message):
    """A mask, characters ``start`` to ``end`` (behind the last) of the text, and the likeliest tokens for it, best first."""

    start: int = Field(ge=0)
    end: int
    guesses: tuple[Guess, ...]


class Filled(Message):
    """The masks of a text in their order; each is guessed with all of them still in their places."""

    masks: tuple[Mask, ...]


class Class(Message):
    """One of the model's labels."""

    label: str
    probability: float


class Classified(Message):
    """The likeliest labels of a text, best first."""

    classes: tuple[Class, ...]


class Entity(Message):
    """Characters ``start`` to ``end`` (behind the last) of a text; ``probability`` is the mean of its tags'."""

    label: str
    start: int = Field(ge=0)
    end: int
    text: str
    probability: float


class Entities(Message):
    """The entities of a text in their order; none overlaps another."""

    entities: tuple[Entity, ...]


def probabilities(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax of scores (..., C)."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def best(shares: NDArray[np.float64], top_k: int) -> NDArray[np.int64]:
    """Indices of the largest of (C,), best first; of equal ones the earlier first."""
    return np.argsort(-shares, kind="stable")[:top_k]


def filled(tokens: Tokens, scores: NDArray[np.float32], top_k: int, reader: TextReader) -> Filled:
    """Args: scores (M, vocabulary) at the text's masks."""
    masks = []
    for (start, end), shares in zip(tokens.characters[tokens.places], probabilities(scores), strict=True):
        guesses = tuple(
            Guess(token=reader.token(int(index)), token_id=int(index), probability=float(shares[index]))
            for index in best(shares, top_k)
        )
        masks.append(Mask(start=int(start), end=int(end), guesses=guesses))
    return Filled(masks=tuple(masks))


def classified(scores: NDArray[np.float32], labels: Sequence[str], top_k: int) -> Classified:
    """Args: scores (labels,)."""
    shares = probabilities(scores)
    return Classified(
        classes=tuple(Class(label=labels[index], probability=float(shares[index])) for index in best(shares, top_k))
    )


def entities_of(text: str, tokens: Tokens, scores: NDArray[np.float32], tags: Sequence[str]) -> Entities:
    """Args: scores (M, tags) at the tokens that begin a character. BIO is read strictly, as the model's score counts it."""
    _, reach = beginnings(tokens.characters, len(text))
    shares = probabilities(scores)
    chosen = shares.argmax(axis=1)
    found = entities([tags[index] for index in chosen], strict=True)
    return Entities(
        entities=tuple(
            Entity(
                label=kind,
                start=int(reach[first, 0]),
                end=int(reach[behind - 1, 1]),
                text=text[reach[first, 0] : reach[behind - 1, 1]],
                probability=float(shares[np.arange(first, behind), chosen[first:behind]].mean()),
            )
            for first, behind, kind in found
        )
    )
