"""TrainingPlan: what a scientist proposes and an owner approves.

Everything that decides what happens to private text is in the plan, so approving its digest approves exactly one course of
training. A plan is a frozen value; its canonical bytes are what is signed, hashed and shown.
"""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from fl_privacy.cohort_fields import CohortFields
from fl_privacy.compression_fields import CompressionFields
from fl_privacy.errors import PlanError
from fl_privacy.layer_fields import STAGES, LayerFields, layer_range
from fl_privacy.messages import Annotation, CorpusCard, first_problem
from fl_privacy.model_spec import Adapter, ModelSpec
from fl_privacy.strategy_fields import StrategyFields

ATTEMPTS_PER_ROUND = 3  # one and two repetitions; then the round is skipped
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


def _usual_bound(plan: dict[str, Any]) -> float:
    """The norm that most records' counts keep within: one class, two or three entities, five nats at each expected place.

    A field at fault is missing in ``plan``, which is then refused for that field.
    """
    task, probability = plan.get("task"), plan.get("mask_probability", 1.0)
    places: float = plan.get("max_length", 1) * (probability if task == "mlm" else 1)
    return {"classification": 1.1, "ner": 5.0}.get(str(task), round(1.6 * places, 2))


class TrainingPlan(CohortFields, StrategyFields, LayerFields, CompressionFields):
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

    retries: Annotated[int, Field(ge=0, le=100)] = 0  # trainings beyond one per round, already paid for in the noise
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 512  # expected size of a Poisson batch
    trainable: Annotated[str, StringConstraints(pattern=r"^(all|head|layers:\d{1,3}-\d{1,3}|lora|ffa-lora)$")] = "all"
    lora_rank: Annotated[int, Field(ge=1, le=256)] = 8
    lora_alpha: Annotated[float, Field(gt=0, le=1024)] = 16.0
    max_length: Annotated[int, Field(ge=8, le=512)] = 64  # tokens; longer records are cut
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15

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
        if (self.task == "custom") != bool(self.custom_task):
            raise ValueError('custom_task: its source is needed with task = "custom", and with no other task')
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
    def _layers_fit(self) -> Self:
        self.check_layers(self.rounds, self.model.num_layers, len(self.owners), bool(self.model.labels))
        if self.layer_schedule == "fixed" and not self.local_layers:
            return self
        if self.trainable != "all" and not (self.local_layers and self.layers):
            raise ValueError(
                f"trainable: {self.trainable!r} goes with fixed layers only; here the schedule says what is trained"
            )
        if self.model.config["model_type"] == "albert":
            raise ValueError("layer_schedule, local_layers: the layers of an ALBERT are one set of weights")
        if self.task in ("clm", "custom"):
            raise ValueError(f"layer_schedule, local_layers: they are for mlm, classification and ner, not for {self.task}")
        if (self.patience or self.minimal_update) and (self.layer_schedule == "progfed" or self.pretraining_rounds):
            raise ValueError(
                "patience, minimal_update: the run could end before its last stage, with a model that is not finished"
            )
        if self.local_layers and (self.patience or self.strategy == "scaffold"):
            raise ValueError(
                "local_layers: with them goes no patience, since only owners can score their models, and no scaffold"
            )
        if self.local_layers and self.layers:
            trained, own = set(range(self.layers[0], self.layers[1] + 1)), set(self.own_layers)
            if not own <= trained:
                raise ValueError(
                    f"local_layers: {self.local_layers} are not all among the layers that {self.trainable!r} trains"
                )
            if own == trained:
                raise ValueError("local_layers: nothing that is trained would be sent; owners can train alone for that")
        if bool(self.pretraining_rounds) != self.model.language_head:
            raise ValueError("pretraining_rounds: they go with a model that has the language-model head beside its own")
        return self

    @model_validator(mode="after")
    def _compression_goes_with_the_rest(self) -> Self:
        if self.is_compressed and self.strategy == "scaffold":
            raise ValueError(
                "strategy: scaffold needs whole updates; it goes with no update_ranges, rotation, or part that is sent"
            )
        if (self.error_feedback or self.sent == "shared-top") and self.layer_schedule != "fixed":
            raise ValueError("error_feedback: what is left of a round has to fit the next, so layer_schedule must be fixed")
        if self.error_feedback and self.encryption == "ckks":
            raise ValueError("error_feedback: it is for bfv")
        return self

    @property
    def trainings(self) -> int:
        """Trainings that an owner's ledger lets this plan pay for."""
        return len(self.busiest_rounds) + self.retries

    @property
    def layers(self) -> tuple[int, int] | None:
        """First and last trained encoder layer when ``trainable`` is a range, else None."""
        return layer_range(self.trainable.removeprefix("layers:")) if self.trainable.startswith("layers:") else None

    @property
    def own_layers(self) -> range:
        """FedSplitBERT: the layers that each owner keeps to itself."""
        first, last = layer_range(self.local_layers) if self.local_layers else (0, -1)
        return range(first, last + 1)

    @property
    def cycle(self) -> int:
        """FedBT's stage 2: how many rounds it takes from the top layer down to the lowest that is trained."""
        return self.layer_cycle or max(1, self.model.num_layers // 2)

    @property
    def stages(self) -> int:
        """ProgFed: the depths that the model has, one after the other."""
        return self.growth_stages or min(STAGES, self.model.num_layers)

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
