"""What the accuracy part of the benchmark of efficient training starts from: a deeper base, both heads, test rows by owner."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accuracy_data import Amounts, Owners, bundle_of, public_rows

from fl_privacy.learning.models import ModelBundle, load_bundle, new_bundle
from fl_privacy.learning.pretraining import CHECKPOINT, Settings, pretrain, start
from fl_privacy.messages import Row

LAYERS = 4  # the base of ``accuracy.py`` has two, which leaves methods that choose among layers nothing to choose
AMOUNTS = Amounts(base=Settings(steps=1500, batch_size=64, max_length=52))


def make_deep_base(data: Path, folder: Path, amounts: Amounts, on_step: Callable[[int, int], None]) -> Path:
    """As ``accuracy_data.make_base``, with LAYERS layers."""
    if (folder / "config.json").exists() and not (folder / CHECKPOINT).exists():
        return folder
    rows = public_rows(data, amounts)
    tiny = start("tiny", rows, amounts.base)
    config = tiny.spec.config | {"num_hidden_layers": LAYERS}
    deep = new_bundle(config, tiny.vocabulary, amounts.base.seed, f"tiny-{LAYERS}")
    pretrain(deep, rows, folder, amounts.base, on_step)
    return folder


def with_language_head(base: Path, data: Path, seed: int) -> ModelBundle:
    """The classifier of ``bundle_of`` with the base's own head beside it, for both stages of FedBT in one plan."""
    labels = bundle_of("cls", base, data, seed).spec.labels
    return load_bundle(base, seed, "classification", labels, language_head=True)


def rows_by_owner(rows: Sequence[Row], owners: Owners) -> Owners:
    """Test rows dealt to the owners class by class, in the proportions of their training rows: each row to one owner.

    So what all owners together get right of their own rows is what one model for all would get right of all rows.
    """
    by_class: defaultdict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        by_class[row.label].append(row)
    known = {owner: Counter(row.label for row in own) for owner, own in owners.items()}
    dealt: Owners = {owner: [] for owner in owners}
    for label, some in by_class.items():
        shares = np.array([counts[label] for counts in known.values()], float)
        ends = np.rint(np.cumsum(shares) / shares.sum() * len(some)).astype(int)
        for owner, first, last in zip(owners, [0, *ends[:-1]], ends, strict=True):
            dealt[owner] += some[first:last]
    return dealt
