"""The arms of the accuracy part of the benchmark of efficient training, and how one cell is run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from accuracy_arms import Cell, Recipe, Setting, headline, plan_of
from accuracy_data import Owners, Task, bundle_of, evaluation_rows, owners_of
from accuracy_federation import Site
from efficient_data import LAYERS, rows_by_owner, with_language_head
from efficient_methods import METHODS, RANDOM_QUARTER, RANDOM_TENTH
from efficient_rounds import Federation, apart, at_once

from fl_privacy import parameters
from fl_privacy.learning.models import ModelBundle
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan

# Steps, batches and rounds are the same for all; 24 rounds give each stage of ProgFed three before the last.
PLAIN = Recipe(learning_rate=1e-3, batch_size=64, rounds=24, local_steps=6)
# With DP owners take single plain steps, and Adam runs at the server, as in ``accuracy.py``.
PRIVATE = Recipe(
    learning_rate=1.0, batch_size=256, rounds=24, local_steps=1, optimizer="sgd", strategy="fedadam", update_range=0.05
)
LANGUAGE = Recipe(learning_rate=5e-4, batch_size=64, rounds=7, local_steps=15)


class Arm(NamedTuple):
    """One line of the table: what its plan says besides the recipe, and its rates without and with DP.

    ``rate`` is AdamW's at the owners, ``server_rate`` FedAdam's. ``exact``: updates are added in float32, as plain federated
    learning does.
    """

    title: str
    fields: Mapping[str, Any] = {}
    rate: float = 2e-3
    server_rate: float | None = 1e-2  # None: not run with DP
    exact: bool = False


EIGHT_BITS = {"downlink_bits": 8}
_WIDE = {"update_range": 0.05}  # what was not sent for some rounds adds up; what is clipped would have to wait again
_LAYERED = {name: METHODS[name].fields(LAYERS) for name in ("lora", "ffa-lora", "fedbt-2", "progfed", "split")}
ARMS: dict[str, Arm] = {
    "base": Arm("public base", server_rate=None),
    "centralised": Arm("all in one place"),
    "alone": Arm("each owner alone, own rows", server_rate=None),
    "plain": Arm("plain federated, float32", exact=True, server_rate=None),
    "full": Arm("full FedAvg, 8 bit both ways", EIGHT_BITS),
    "full-random": Arm("full FedAvg, a random tenth sent, 8 bit", RANDOM_TENTH | EIGHT_BITS | _WIDE),
    "full-quarter": Arm("full FedAvg, a random quarter sent, 8 bit", RANDOM_QUARTER | EIGHT_BITS | _WIDE),
    "lora": Arm("LoRA r = 8, 8 bit", _LAYERED["lora"] | EIGHT_BITS, 1e-2, 4e-2),
    "ffa-lora": Arm("FFA-LoRA r = 8, 8 bit", _LAYERED["ffa-lora"] | EIGHT_BITS, 1e-2, 4e-2),
    "fedbt-2": Arm("FedBT stage 2, 8 bit", _LAYERED["fedbt-2"] | EIGHT_BITS, 4e-3, 2e-2),
    "fedbt-both": Arm(
        "FedBT both stages, 8 bit",
        _LAYERED["fedbt-2"] | EIGHT_BITS | {"pretraining_rounds": 7, "local_depths": (LAYERS - 1,)},
        4e-3,
        2e-2,
    ),
    "progfed": Arm("ProgFed, 8 bit", _LAYERED["progfed"] | EIGHT_BITS),
    "split": Arm("FedSplitBERT, 8 bit, own rows", _LAYERED["split"]),
    "fedbt-1": Arm("FedBT stage 1, 8 bit", METHODS["fedbt-1"].fields(LAYERS) | {"local_depths": (LAYERS - 1,)} | EIGHT_BITS),
}
TASKS: dict[Task, tuple[str, ...]] = {
    "cls": tuple(name for name in ARMS if name != "fedbt-1"),
    "mlm": ("base", "plain", "fedbt-1"),
}
_ONE_BY_ONE = ("alone", "split")  # as many models as owners, each tried on rows like its owner's


class EfficientJob(NamedTuple):
    """A cell, and all that its result depends on besides the code and the data."""

    cell: Cell
    setting: Setting

    @property
    def key(self) -> str:
        """What a kept result is found by."""
        base = hashlib.sha256((self.setting.base / "model.safetensors").read_bytes()).hexdigest()
        told = repr((self.cell, ARMS[self.cell.arm], self.setting.recipe, self.setting.amounts, self.setting.split, base))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        privacy = "no privacy" if self.cell.epsilon is None else f"epsilon {self.cell.epsilon:g}"
        return f"{self.cell.task}, {ARMS[self.cell.arm].title}, {privacy}, seed {self.cell.seed}"

    def run(self) -> dict[str, Any]:
        """Train, evaluate, and account. Privacy: none of this is a release; the rows are public."""
        started = time.process_time()
        cell, setting = self.cell, self.setting
        owners = owners_of(cell.task, setting.data, setting.amounts, cell.seed)
        plan, bundle = _plan(setting, cell, owners)
        sites = {owner: Site(rows, private=cell.epsilon is not None) for owner, rows in owners.items()}
        tested = _tested(cell, owners, evaluation_rows(cell.task, setting.data, setting.amounts, setting.split))
        models, paid = _trained(cell, plan, bundle, sites)
        scores = [headline(plan, bundle.vocabulary, *one) for one in zip(models, tested, strict=True)]
        counted = [site.epsilons(one) for site, one in paid if site.private]
        return cell._asdict() | {
            "headline": sum(score * len(rows) for score, rows in zip(scores, tested, strict=True)) / sum(map(len, tested)),
            "headlines": scores,
            "epsilon_ledger": max((ledger for ledger, _ in counted), default=None),
            "epsilon_recounted": max((recounted for _, recounted in counted), default=None),
            "cpu_seconds": time.process_time() - started,
        }


def cells_of(arms: Sequence[str], epsilons: Sequence[float | None], seeds: int) -> Iterator[Cell]:
    """Everything to run, seed by seed, so that a stopped run has whole seeds; language modelling without DP only."""
    for seed in range(seeds):
        for value in epsilons:
            for task, names in TASKS.items():
                for name in (name for name in names if name in arms):
                    if value is None or (task == "cls" and ARMS[name].server_rate is not None):
                        yield Cell(task, name, value, seed)


def recipe_of(cell: Cell) -> Recipe:
    """The common recipe with the arm's rate."""
    arm = ARMS[cell.arm]
    if cell.task == "mlm":
        return LANGUAGE
    if cell.epsilon is None:
        return PLAIN._replace(learning_rate=arm.rate)
    if cell.arm == "centralised":  # one optimizer throughout, so Adam can be where the data are
        return Recipe(learning_rate=1e-2, batch_size=256, rounds=24, local_steps=1, trainable="lora")
    if cell.arm == "split":  # the layers that stay see no server
        return PRIVATE._replace(strategy="fedavg")
    return PRIVATE._replace(server_lr=arm.server_rate)


def _plan(setting: Setting, cell: Cell, owners: Owners) -> tuple[TrainingPlan, ModelBundle]:
    bundle = bundle_of(cell.task, setting.base, setting.data, cell.seed)
    fields = plan_of(cell, setting.recipe, bundle, owners).model_dump() | ARMS[cell.arm].fields
    if "pretraining_rounds" in ARMS[cell.arm].fields:
        bundle = with_language_head(setting.base, setting.data, cell.seed)
    return TrainingPlan.create(**(fields | {"model": bundle.spec})), bundle


def _tested(cell: Cell, owners: Owners, rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that each of the arm's models is tried on."""
    return list(rows_by_owner(rows, owners).values()) if cell.arm in _ONE_BY_ONE else [list(rows)]


def _trained(
    cell: Cell, plan: TrainingPlan, bundle: ModelBundle, sites: Mapping[str, Site]
) -> tuple[list[Parameters], list[tuple[Site, TrainingPlan]]]:
    """The arm's models, and what was paid for them where."""
    if cell.arm == "base":
        return [parameters.from_bytes(bundle.weights)], []
    if cell.arm == "alone":
        alone = at_once(plan, plan.batch_size)
        return [apart(alone, bundle, site, cell.seed) for site in sites.values()], []
    if cell.arm == "centralised":
        pooled = Site([row for site in sites.values() for row in site.rows], next(iter(sites.values())).private)
        together = at_once(plan, plan.batch_size * len(sites))
        return [apart(together, bundle, pooled, cell.seed)], [(pooled, together)]
    outcome = Federation(plan, bundle, sites, cell.seed, exact=ARMS[cell.arm].exact).train()
    models = [outcome.model | own for own in outcome.own.values()] if cell.arm in _ONE_BY_ONE else [outcome.model]
    return models, [(site, plan) for site in sites.values()]
