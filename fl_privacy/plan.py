"""TrainingPlan: what a scientist proposes and an owner approves.

Everything that decides what happens to private text is in the plan, so approving its digest approves exactly one course of
training. A plan is a frozen value; its canonical bytes are what is signed, hashed and shown.
"""

from __future__ import annotations

import re
import tomllib
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from fl_privacy.errors import PlanError
from fl_privacy.messages import Annotation, CorpusCard, OwnerName, first_problem
from fl_privacy.model_spec import Adapter, ModelSpec
from fl_privacy.selection import Selection, cohort, first_isolation, most_rounds
from fl_privacy.strategy_fields import StrategyFields

MINIMAL_COHORT = 3  # with two owners, each reads the other's update by subtracting its own from the sum
ATTEMPTS_PER_ROUND = 3  # one and two repetitions; then the round is skipped
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


def _usual_bound(plan: dict[str, Any]) -> float:
    """The norm that most records' counts keep within: one class, two or three entities, five nats at each expected place.

    A field at fault is missing in ``plan``, which is then refused for that field.
    """
    task, probability = plan.get("task"), plan.get("mask_probability", 1.0)
    places: float = plan.get("max_length", 1) * (probability if task == "mlm" else 1)
    return {"classification": 1.1, "ner": 5.0}.get(str(task), round(1.6 * places, 2))


class TrainingPlan(StrategyFields):
    """A course of federated training with differential privacy.

    Privacy: all that an owner's guard releases, the updates of all rounds and the evaluations, is (``target_epsilon``,
    ``delta``)-differentially private for adding or removing one record (one corpus row), or one person where that is the unit
    of the owner's ledger. Updates: DP-SGD with Poisson sampling (Abadi et al. 2016), ``paid_steps`` steps at ``sample_rate``.
    Evaluations: ``evaluations`` Gaussian mechanisms with ``evaluation_noise``. ``accountant`` gives DP-SGD the noise with
    which both together stay within the target.
    """

    version: Literal[1] = 1
    name: Name
    purpose: Annotated[str, StringConstraints(min_length=10, max_length=500)]
    task: Literal["mlm", "clm", "classification", "ner", "custom"] = "mlm"
    custom_task: Annotated[str, StringConstraints(max_length=10_000)] = ""  # source, see learning.custom_task
    model: ModelSpec
    owners: Annotated[tuple[OwnerName, ...], Field(max_length=100)]
    minimal_cohort: Annotated[int, Field(ge=MINIMAL_COHORT)] = MINIMAL_COHORT

    rounds: Annotated[int, Field(ge=1, le=1000)] = 5
    retries: Annotated[int, Field(ge=0, le=100)] = 0  # trainings beyond one per round, already paid for in the noise
    local_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 512  # expected size of a Poisson batch
    trainable: Annotated[str, StringConstraints(pattern=r"^(all|head|layers:\d{1,3}-\d{1,3}|lora|ffa-lora)$")] = "all"
    lora_rank: Annotated[int, Field(ge=1, le=256)] = 8
    lora_alpha: Annotated[float, Field(gt=0, le=1024)] = 16.0
    max_length: Annotated[int, Field(ge=8, le=512)] = 64  # tokens; longer records are cut
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # counted over the whole run, not per round
    schedule: Literal["constant", "linear"] = "linear"  # after the warm-up; linear falls to zero at the end of the run

    # who trains in a round (see ``selection``): cohort_size is that of a group, or of a draw from the public seed
    selection: Selection = "all"
    cohort_size: Annotated[int, Field(ge=0, le=100)] = 0  # with "all" zero: everybody
    selection_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    # when to end before all rounds are done (see ``strategies.stopping``); 0: never
    patience: Annotated[int, Field(ge=0, le=1000)] = 0  # rounds without a better validation score; then the best model counts
    minimal_update: Annotated[float, Field(ge=0, lt=1)] = 0.0  # relative norm of a round's change of the trained tensors

    target_epsilon: Annotated[float, Field(gt=0, le=50)] = 8.0
    delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-5
    accountant: Literal["prv", "rdp"] = "prv"
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 0.5

    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of an owner's units kept from training, to evaluate on
    evaluate_every: Annotated[int, Field(ge=0, le=1000)] = 0  # rounds; 0: only the finished model
    evaluation_noise: Annotated[float, Field(ge=0.5, le=1000)] = 10.0  # noise multiplier of one evaluation
    # what one unit may add to the counts (L2; nll in units of ten nats): a public number, whatever records are there
    evaluation_bound: Annotated[float, Field(gt=0, le=1e6, default_factory=_usual_bound)]

    update_range: Annotated[float, Field(gt=0, le=10)] = 0.05  # public bound on each coordinate of local - global
    update_bits: Annotated[int, Field(ge=4, le=12)] = 8
    encryption: Literal["bfv", "ckks"] = "bfv"  # ckks: float sums without masks, which owners must allow by policy

    @field_validator("custom_task")
    @classmethod
    def _readable(cls, source: str) -> str:
        # Invisible and direction-changing characters could show an owner another text than the one that runs.
        if not all(line.isprintable() for line in source.split("\n")):
            raise ValueError("only printable characters and line feeds; write others as escapes, indent with spaces")
        return source

    @model_validator(mode="after")
    def _no_conflict(self) -> Self:
        if len(set(self.owners)) != len(self.owners):
            raise ValueError("owners: a name appears twice")
        if len(self.owners) < self.minimal_cohort:
            raise ValueError(f"owners: {len(self.owners)} named, minimal_cohort is {self.minimal_cohort}")
        if (self.task == "custom") != bool(self.custom_task):
            raise ValueError('custom_task: its source is needed with task = "custom", and with no other task')
        if self.warmup_steps >= self.rounds * self.local_steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} leaves none of the {self.rounds * self.local_steps} steps")
        if self.task not in ("custom", self.model.head) or (self.task == "custom" and self.model.labels):
            raise ValueError(f"task: {self.task} does not fit the model's {self.model.head} head")
        if self.layers and not self.layers[0] <= self.layers[1] < self.model.num_layers:
            raise ValueError(f"trainable: {self.trainable} is not a range within the model's layers")
        if self.layers and self.model.config["model_type"] == "albert":
            raise ValueError("trainable: the layers of an ALBERT are one set of weights; use all, head, lora or ffa-lora")
        if self.evaluate_every and not self.holdout:
            raise ValueError("evaluate_every: there is nothing to evaluate on; set holdout as well")
        if self.max_length > self.model.positions:
            raise ValueError(f"max_length: {self.max_length} is more than the model's {self.model.positions} positions")
        return self

    @model_validator(mode="after")
    def _strategy_fits(self) -> Self:
        if self.strategy != "scaffold":
            return self
        if self.optimizer != "sgd":
            raise ValueError(
                'strategy: scaffold needs optimizer = "sgd"; an update by AdamW is no mean of gradients, as its control'
                " variates have to be"
            )
        if self.selection == "random":
            raise ValueError(
                "strategy: scaffold carries an owner's earlier updates into later sums, where random cohorts could isolate"
                ' them; use selection = "all" or "groups"'
            )
        return self

    @model_validator(mode="after")
    def _cohorts_hide(self) -> Self:
        if (self.selection == "all") != (self.cohort_size == 0):
            raise ValueError("cohort_size: it goes with selection groups or random, which need it")
        if self.selection != "random" and self.selection_seed:
            raise ValueError('selection_seed: only selection = "random" uses it')
        if self.selection == "all":
            return self
        if not self.minimal_cohort <= self.cohort_size <= len(self.owners):
            raise ValueError(f"cohort_size: {self.cohort_size} is not between minimal_cohort and the number of owners")
        if found := first_isolation(self.owners, self.selection, self.cohort_size, self.selection_seed, self.rounds):
            raise ValueError(
                f"selection: the sums of rounds 0 to {found[0]} together would give {found[1]}'s update away; plan fewer"
                ' rounds, or selection = "groups"'
            )
        return self

    def cohort(self, round_index: int) -> tuple[str, ...]:
        """The owners that train in a round, sorted; all of them evaluate."""
        return cohort(self.owners, self.selection, self.cohort_size, self.selection_seed, round_index)

    @property
    def busiest_rounds(self) -> tuple[int, ...]:
        """The rounds in which the owner trains that trains most often; the noise is calibrated for as many at every owner."""
        return most_rounds(self.owners, self.selection, self.cohort_size, self.selection_seed, self.rounds)

    @property
    def trainings(self) -> int:
        """Trainings that an owner's ledger lets this plan pay for."""
        return len(self.busiest_rounds) + self.retries

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rate at a step of the whole run (0 to total_steps - 1), always above zero.

        Rises linearly over ``warmup_steps``, then stays (``constant``) or falls linearly (``linear``), to zero at
        ``total_steps``.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        return max(self.total_steps - step, 0) / (self.total_steps - self.warmup_steps)

    def rates(self, round_index: int) -> tuple[float, ...]:
        """The learning rates of a round's local steps."""
        first = round_index * self.local_steps
        return tuple(self.learning_rate * self.rate_factor(step) for step in range(first, first + self.local_steps))

    @property
    def layers(self) -> tuple[int, int] | None:
        """First and last trained encoder layer when ``trainable`` is a range, else None."""
        found = re.fullmatch(r"layers:(\d+)-(\d+)", self.trainable)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def adapter(self) -> Adapter | None:
        """The adapters that the plan puts on the model and trains, if it does."""
        if self.trainable not in ("lora", "ffa-lora"):
            return None
        return Adapter(rank=self.lora_rank, alpha=self.lora_alpha, frozen_a=self.trainable == "ffa-lora")

    @property
    def annotation(self) -> Annotation | None:
        """What the task needs every row to have besides its text."""
        needs: dict[str, Annotation] = {"classification": "label", "ner": "tags"}
        return needs.get(self.task)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run at one owner, which the learning-rate schedule counts."""
        return self.rounds * self.local_steps

    @property
    def paid_steps(self) -> int:
        """DP-SGD steps that the noise is calibrated for: every round of an owner, and every retry the plan allows."""
        return self.trainings * self.local_steps

    @property
    def evaluated_rounds(self) -> tuple[int, ...]:
        """Before which rounds the global model is evaluated on private rows; ``rounds`` stands for the finished model."""
        if not self.holdout:
            return ()
        return (*(range(0, self.rounds, self.evaluate_every) if self.evaluate_every else ()), self.rounds)

    @property
    def evaluations(self) -> int:
        """Evaluations that are paid for; a repeated one takes the place of a later one."""
        return len(self.evaluated_rounds)

    @property
    def paid_orders(self) -> int:
        """Trainings and evaluations that an owner's ledger lets this plan pay for."""
        return self.trainings + self.evaluations

    def sample_rate(self, declared_size: int) -> float:
        """Poisson rate q at an owner: expected batch over the *declared* (public) number of units that are trained on.

        Raises: PlanError when q > 1.
        """
        trained = declared_size * (1 - self.holdout)
        if self.batch_size > trained:
            kept = f" less a holdout of {self.holdout:.0%}" if self.holdout else ""
            raise PlanError(f"batch_size: {self.batch_size} is more than the corpus's declared size {declared_size}{kept}")
        return self.batch_size / trained

    def check_suits(self, card: CorpusCard) -> None:
        """Raise PlanError unless the corpus is large enough, and has what the task needs besides texts."""
        self.sample_rate(card.declared_size)
        if (needed := self.annotation) is not None and needed not in card.annotations:
            raise PlanError(
                f"task: {self.task} needs each row's {needed}, but the corpus was added without"
                f" (`corpus add --{needed}-field` takes them from the owner's file)"
            )

    def to_toml(self) -> str:
        """The plan as TOML; ``from_toml`` reads it back to the same digest."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_toml(cls, text: str, **resolved: Any) -> TrainingPlan:
        """Read a plan from TOML. ``resolved`` replaces top-level fields (such as a model given by name).

        Raises: PlanError that names the field.
        """
        try:
            fields = tomllib.loads(text)
        except tomllib.TOMLDecodeError as problem:
            raise PlanError(f"not a TOML file: {problem}") from None
        return cls.create(**(fields | resolved))

    @classmethod
    def create(cls, **fields: Any) -> TrainingPlan:
        """Build a plan; raises PlanError that names the field at fault."""
        try:
            return cls.model_validate(fields)
        except ValidationError as problem:
            raise PlanError(first_problem(problem)) from None
