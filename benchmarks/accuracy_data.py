"""What the accuracy benchmark trains on: a public part and its base model, owners that differ, and test sets.

The data folder has one folder for each set, with JSONL files; README.md beside this file describes them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fl_privacy.learning.models import ModelBundle, load_bundle
from fl_privacy.learning.pretraining import CHECKPOINT, Settings, pretrain, start
from fl_privacy.messages import Row
from fl_privacy.row_files import PLAIN, Fields, read_rows

Task = Literal["mlm", "cls", "ner"]
Split = Literal["dev", "test"]
Owners = dict[str, list[Row]]

DOMAINS = ("poetry", "dialogue", "news", "medical")
LABELLED = {"cls": ("cls-zh-thucnews", Fields(label="label")), "ner": ("ner-zh-cluener", Fields(tags="tags"))}
SPLITS = ("train", "dev", "test")
OWNERS = ("north", "east", "south", "west")  # of labelled rows; a domain's owner is named after it
ALPHA = 0.5  # of the Dirichlet distribution: most of a class lies at one or two of four owners
_MAXIMAL_DRAWS = 1000


class Amounts(NamedTuple):
    """How many rows are used. A domain's train file is cut into a public, a dev and a private part, in this order."""

    public: int = 12_000  # of each domain
    dev: int = 1_000
    private: int = 24_000
    labelled: int = 1_000_000  # of all owners together
    least: int = 600  # of each owner of labelled rows
    tested: int = 1_000_000
    base: Settings = Settings(steps=6000, max_length=52)


QUICK = Amounts(public=500, dev=50, private=600, labelled=1000, least=80, tested=200, base=Settings(steps=20, batch_size=32))


def public_rows(data: Path, amounts: Amounts) -> list[Row]:
    """The domains' public parts, mixed, without the few headlines that are also in a labelled set."""
    labelled = {_bare(row.text) for task in LABELLED for split in SPLITS for row in _labelled(task, data, split)}
    rows = [row for domain in DOMAINS for row in _domain(data, domain, "train", 0, amounts.public)]
    rows = [row for row in rows if _bare(row.text) not in labelled]
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]


def make_base(data: Path, folder: Path, amounts: Amounts, on_step: Callable[[int, int], None]) -> Path:
    """Pre-train the public base into ``folder`` unless it is there; goes on where a stopped run left off."""
    if (folder / "config.json").exists() and not (folder / CHECKPOINT).exists():
        return folder
    rows = public_rows(data, amounts)
    pretrain(start("tiny", rows, amounts.base), rows, folder, amounts.base, on_step)
    return folder


def bundle_of(task: Task, base: Path, data: Path, seed: int) -> ModelBundle:
    """The base with the task's head; that of a labelled task is fresh, from ``seed``."""
    if task == "mlm":
        return load_bundle(base)
    labels = sorted({kind for row in _labelled(task, data, "train") for kind in _kinds(row)})  # documented with the set
    return load_bundle(base, seed, {"cls": "classification", "ner": "ner"}[task], labels)


def owners_of(task: Task, data: Path, amounts: Amounts, seed: int) -> Owners:
    """Each owner's private rows: a domain's, or a Dirichlet split of labelled rows by what they mostly are about."""
    generator = np.random.default_rng(seed)
    if task == "mlm":
        first = amounts.public + amounts.dev
        return {domain: _sample(_domain(data, domain, "train", first), amounts.private, generator) for domain in DOMAINS}
    rows = _sample(_labelled(task, data, "train"), amounts.labelled, generator)
    return dirichlet_split(rows, [_main_kind(row) for row in rows], amounts.least, generator)


def evaluation_rows(task: Task, data: Path, amounts: Amounts, split: Split) -> list[Row]:
    """All owners' test rows together; ``dev`` is what hyper-parameters were chosen on."""
    if task != "mlm":
        return list(_labelled(task, data, split)[: amounts.tested])
    found: list[Row] = []
    for domain in DOMAINS:
        dev = _domain(data, domain, "train", amounts.public, amounts.dev)
        found += dev if split == "dev" else _domain(data, domain, "test")[: amounts.tested // len(DOMAINS)]
    return found


def dirichlet_split(rows: Sequence[Row], kinds: Sequence[str], least: int, generator: np.random.Generator) -> Owners:
    """Deal the rows of each kind to the owners in proportions from a Dirichlet distribution, until each owner has ``least``.

    Source: Hsu et al. 2019 (Measuring the effects of non-identical data distribution), section 2, proportions by class.
    Raises: ValueError when no draw gives every owner enough.
    """
    by_kind = [np.flatnonzero(np.array(kinds) == kind) for kind in sorted(set(kinds))]
    for _ in range(_MAXIMAL_DRAWS):
        parts: list[list[int]] = [[] for _ in OWNERS]
        for places in by_kind:
            shares = generator.dirichlet([ALPHA] * len(OWNERS))
            cuts = (np.cumsum(shares)[:-1] * len(places)).astype(int)
            for part, dealt in zip(parts, np.split(generator.permutation(places), cuts), strict=True):
                part += dealt.tolist()
        if min(map(len, parts)) >= least:
            return {owner: [rows[place] for place in part] for owner, part in zip(OWNERS, parts, strict=True)}
    raise ValueError(f"no split in {_MAXIMAL_DRAWS} gave each of {len(OWNERS)} owners {least} of {len(rows)} rows")


def _domain(data: Path, domain: str, split: str, first: int = 0, rows: int | None = None) -> tuple[Row, ...]:
    last = None if rows is None else first + rows
    return _rows(data / f"mlm-zh-{domain}" / f"{split}.jsonl", PLAIN, last)[first:]


def _labelled(task: str, data: Path, split: str) -> tuple[Row, ...]:
    name, fields = LABELLED[task]
    return _rows(data / name / f"{split}.jsonl", fields)


@cache
def _rows(path: Path, fields: Fields, most: int | None = None) -> tuple[Row, ...]:
    return tuple(islice(read_rows(path, fields), most))


def _sample(rows: Sequence[Row], most: int, generator: np.random.Generator) -> list[Row]:
    return [rows[place] for place in generator.permutation(len(rows))[:most]]


def _kinds(row: Row) -> Iterable[str]:
    """The class of a text, or the kind of each of its entities."""
    return [row.label] if row.label is not None else [tag[2:] for tag in row.tags or () if tag.startswith("B-")]


def _main_kind(row: Row) -> str:
    """The kind that is most frequent in a row, ties by name; empty for a row without entities."""
    counts = Counter(_kinds(row))
    return min(counts, key=lambda kind: (-counts[kind], kind), default="")


def _bare(text: str) -> str:
    return re.sub(r"\W", "", text)
