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
from numpy.typing import NDArray

from fl_privacy import parameters
from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.guard.admission import plan_spends, round_spend
from fl_privacy.guard.corpus import round_down
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, build_model, with_adapters
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import Encoding, Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.accounting import Accountant, epsilon
from fl_privacy.privacy.audit import pld_epsilon
from fl_privacy.strategies.registry import strategy_of

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


class Site(NamedTuple):
    """Where rows lie together: an owner, or all in one place. ``private``: whether DP-SGD is what they are trained with."""

    rows: list[Row]
    private: bool

    @property
    def size(self) -> int:
        """The size that an owner would declare, which sets its sample rate and its weight."""
        return round_down(len(self.rows))

    def update(self, plan: TrainingPlan, order_round: int, model: Parameters, vocabulary: bytes, seed: int) -> Parameters:
        """local - global of one round, the trained tensors only."""
        if self.private:
            noise = round_spend(plan, self.size).noise_multiplier
            return train_update(plan, order_round, model, vocabulary, self.rows, self.size, noise, lambda step, steps: None)
        local = train_without_privacy(
            plan,
            model,
            vocabulary,
            self.rows,
            generator=np.random.default_rng([seed, order_round]),
            first_step=order_round * plan.local_steps,
            steps=plan.local_steps,
        )
        return {spec.name: local[spec.name] - model[spec.name] for spec in specs_for(plan)}

    def epsilons(self, plan: TrainingPlan) -> tuple[float, float]:
        """What a whole plan costs here: as the ledger counts it, and as ``dp-accounting`` does."""
        spends = plan_spends(plan, self.size)
        return epsilon(spends, plan.delta, plan.accountant), pld_epsilon(spends, plan.delta)


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


def mean_update(
    updates: Sequence[Parameters], sizes: Sequence[int], encoding: Encoding, generator: np.random.Generator
) -> Parameters:
    """sum_k p_k u_k, as an opened sum has it."""
    specs = parameters.specs_of(updates[0])
    fields = sum(
        quantise(vector, size / sum(sizes), encoding, _dither(vector.size, generator))
        for vector, size in zip((parameters.flatten(update, specs) for update in updates), sizes, strict=True)
    )
    return parameters.unflatten(dequantise_sum(fields, encoding, len(updates)), specs)


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
    """Rounds of the plan's strategy, weighted by declared size; what is added is in fixed point, as it travels."""
    sites, strategy = _sites(owners, cell), strategy_of(plan)
    sizes, state = [site.size for site in sites], strategy.init(_first_model(plan, bundle))
    encoding, generator = plan_encoding(plan, sizes), np.random.default_rng(cell.seed)
    while state.round < plan.rounds:
        updates = [
            site.update(plan, state.round, state.model, bundle.vocabulary, cell.seed + 1000 * place)
            for place, site in enumerate(sites)
        ]
        state = strategy.apply(state, mean_update(updates, sizes, encoding, generator), 1.0)
    return Result([state.model], plan, sites)


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


def _dither(count: int, generator: np.random.Generator) -> NDArray[np.uint16]:
    return generator.integers(1 << 16, size=count, dtype=np.uint16)
