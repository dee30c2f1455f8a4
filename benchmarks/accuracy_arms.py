"""The arms of the accuracy benchmark: what the base becomes with one owner, with all of them apart, and with all in one place.

Training, noise, weights and the rounding of updates are the product's own. Encryption is left out: it adds integers exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from accuracy_data import Amounts, Owners, Split, Task, bundle_of, evaluation_rows, owners_of
from accuracy_federation import Site, federate

from fl_privacy import parameters
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.models import ModelBundle, build_model, with_adapters
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.accounting import Accountant

Arm = Literal["base", "local", "federated", "centralised"]

DELTA = 1e-5
EVALUATION_SEED = 5  # the same masks for every model
MAX_LENGTH = 52  # tokens: every labelled row fits, and nearly all of the domains'


class Recipe(NamedTuple):
    """Training settings of an owner; training in one place takes as many steps, with the batches of all owners together."""

    learning_rate: float
    batch_size: int
    rounds: int
    local_steps: int
    trainable: str = "all"
    max_grad_norm: float = 0.5
    warmup: float = 0.1  # share of all steps
    lora_rank: int = 8
    optimizer: str = "adamw"
    strategy: str = "fedavg"
    server_lr: float = 1.0
    prox_mu: float = 0.0
    update_range: float | None = None  # as far as AdamW gets in a round
    accountant: Accountant = "prv"


class Cell(NamedTuple):
    """One number of the benchmark. ``epsilon`` is None without privacy."""

    task: Task
    arm: Arm
    epsilon: float | None
    seed: int


class Setting(NamedTuple):
    """What is the same for all cells of a task with the same privacy."""

    data: Path
    base: Path
    amounts: Amounts
    split: Split
    recipe: Recipe


class Result(NamedTuple):
    """A model, and every plan with a site that paid for it."""

    models: list[Parameters]
    plan: TrainingPlan
    paid: list[Site]


def run_cell(setting: Setting, cell: Cell) -> dict[str, Any]:
    """Train, evaluate, and account for one cell. Privacy: none of this is a release; the rows are public."""
    started = time.process_time()
    bundle = bundle_of(cell.task, setting.base, setting.data, cell.seed)
    owners = owners_of(cell.task, setting.data, setting.amounts, cell.seed)
    plan = plan_of(cell, setting.recipe, bundle, owners)
    found = _ARMS[cell.arm](plan, bundle, owners, cell)
    tested = evaluation_rows(cell.task, setting.data, setting.amounts, setting.split)
    headlines = [headline(found.plan, bundle.vocabulary, model, tested) for model in found.models]
    counted = [site.epsilons(found.plan) for site in found.paid if site.private]
    return cell._asdict() | {
        "strategy": setting.recipe.strategy if cell.arm == "federated" else None,
        "headline": float(np.mean(headlines)),
        "headlines": headlines,
        "owners": {owner: len(rows) for owner, rows in owners.items()},
        "epsilon_ledger": max((ledger for ledger, _ in counted), default=None),
        "epsilon_recounted": max((recounted for _, recounted in counted), default=None),
        "cpu_seconds": time.process_time() - started,
    }


def plan_of(cell: Cell, recipe: Recipe, bundle: ModelBundle, owners: Owners) -> TrainingPlan:
    """The plan of a cell; what is trained in one place takes all its steps as one round."""
    return TrainingPlan.create(
        name=f"accuracy-{cell.task}",
        purpose="Compare what owners reach together, apart and in one place, with and without privacy.",
        task=bundle.spec.head,
        model=bundle.spec,
        owners=tuple(owners),
        rounds=recipe.rounds,
        local_steps=recipe.local_steps,
        batch_size=recipe.batch_size,
        trainable=recipe.trainable,
        lora_rank=recipe.lora_rank,
        optimizer=recipe.optimizer,
        strategy=recipe.strategy,
        server_lr=recipe.server_lr,
        prox_mu=recipe.prox_mu,
        max_length=MAX_LENGTH,
        learning_rate=recipe.learning_rate,
        warmup_steps=int(recipe.warmup * recipe.rounds * recipe.local_steps),
        update_range=recipe.update_range or min(10.0, recipe.learning_rate * recipe.local_steps),
        max_grad_norm=recipe.max_grad_norm,
        target_epsilon=cell.epsilon or TrainingPlan.model_fields["target_epsilon"].default,
        delta=DELTA,
        accountant=recipe.accountant,
    )


def headline(plan: TrainingPlan, vocabulary: bytes, model: Parameters, rows: Sequence[Row]) -> float:
    """The task's one number: top-1 of hidden tokens, accuracy, or strict micro-F1 of entities."""
    built = build_model(plan.model, vocabulary, model, plan.adapter)
    return evaluate(plan, built, tokenizer_of(vocabulary), rows, EVALUATION_SEED).headline


def _base(plan: TrainingPlan, bundle: ModelBundle, owners: Owners, cell: Cell) -> Result:
    """Nothing trained; a fresh head guesses."""
    return Result([_first_model(plan, bundle)], plan, [])


def _local(plan: TrainingPlan, bundle: ModelBundle, owners: Owners, cell: Cell) -> Result:
    """Each owner alone, with one optimizer throughout."""
    alone, sites = _at_once(plan, plan.batch_size), _sites(owners, cell)
    return Result([_in_one_place(alone, bundle, site, cell.seed) for site in sites], alone, sites)


def _centralised(plan: TrainingPlan, bundle: ModelBundle, owners: Owners, cell: Cell) -> Result:
    """All rows pooled, with one optimizer throughout and as many examples as all owners together have in the federation."""
    pooled = _at_once(plan, plan.batch_size * len(owners))
    site = Site([row for rows in owners.values() for row in rows], private=cell.epsilon is not None)
    return Result([_in_one_place(pooled, bundle, site, cell.seed)], pooled, [site])


def _federated(plan: TrainingPlan, bundle: ModelBundle, owners: Owners, cell: Cell) -> Result:
    """Rounds of the plan's strategy."""
    sites = _sites(owners, cell)
    return Result([federate(plan, _first_model(plan, bundle), bundle.vocabulary, sites, cell.seed)], plan, sites)


_ARMS: dict[Arm, Callable[[TrainingPlan, ModelBundle, Owners, Cell], Result]] = {
    "base": _base,
    "local": _local,
    "federated": _federated,
    "centralised": _centralised,
}


def _in_one_place(plan: TrainingPlan, bundle: ModelBundle, site: Site, seed: int) -> Parameters:
    model = _first_model(plan, bundle)
    update = site.update(plan, 0, model, bundle.vocabulary, seed)
    return model | parameters.add({name: model[name] for name in update}, update)


def _first_model(plan: TrainingPlan, bundle: ModelBundle) -> Parameters:
    return with_adapters(plan, parameters.from_bytes(bundle.weights))


def _sites(owners: Owners, cell: Cell) -> list[Site]:
    return [Site(rows, private=cell.epsilon is not None) for rows in owners.values()]


def _at_once(plan: TrainingPlan, batch_size: int) -> TrainingPlan:
    """The same steps as one round."""
    return TrainingPlan.create(**(plan.model_dump() | {"rounds": 1, "local_steps": plan.total_steps, "batch_size": batch_size}))
