"""TrainingPlan: what a scientist proposes and an owner approves.

Everything that decides what happens to private text is in the plan, so approving its digest approves exactly one course of
training. A plan is a frozen value; its canonical bytes are what is signed, hashed and shown.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from fl_privacy.errors import PlanError
from fl_privacy.messages import Digest, Message, OwnerName, first_problem

MINIMAL_COHORT = 3  # with two owners, each reads the other's update by subtracting its own from the sum
ATTEMPTS_PER_ROUND = 3  # one and two repetitions; then the round is skipped
MODEL_TYPES = ("bert",)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class ModelSpec(Message):
    """The model that a plan trains: architecture in full, vocabulary and first weights by digest.

    ``architecture`` is the Hugging Face configuration as canonical JSON; weights travel as safetensors, never pickle.
    """

    source: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    architecture: Annotated[str, StringConstraints(max_length=20_000)]
    vocabulary: Digest
    weights: Digest

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, text: str) -> str:
        try:
            config = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as problem:
            raise ValueError(f"not JSON: {problem}") from None
        if not isinstance(config, dict) or config.get("model_type") not in MODEL_TYPES:
            raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}")
        for field in ("num_hidden_layers", "max_position_embeddings"):
            value = config.get(field, 512 if field == "max_position_embeddings" else None)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field} must be a positive integer")
        return json.dumps(config, sort_keys=True, separators=(",", ":"))

    @property
    def config(self) -> dict[str, Any]:
        """The architecture as a mapping."""
        config: dict[str, Any] = json.loads(self.architecture)
        return config


class TrainingPlan(Message):
    """A course of federated training with differential privacy.

    Privacy: each owner's updates, all rounds together, are (``target_epsilon``, ``delta``)-differentially private for adding
    or removing one record (one corpus row), by DP-SGD with Poisson sampling (Abadi et al. 2016); the noise is calibrated
    by ``accountant`` for ``(rounds + retries) * local_steps`` steps at sample rate ``batch_size / declared size``.
    """

    version: Literal[1] = 1
    name: Name
    purpose: Annotated[str, StringConstraints(min_length=10, max_length=500)]
    task: Literal["mlm", "custom"] = "mlm"
    custom_task: Annotated[str, StringConstraints(max_length=10_000)] = ""  # source, see learning.custom_task
    model: ModelSpec
    owners: Annotated[tuple[OwnerName, ...], Field(max_length=100)]
    minimal_cohort: Annotated[int, Field(ge=MINIMAL_COHORT)] = MINIMAL_COHORT

    rounds: Annotated[int, Field(ge=1, le=1000)] = 5
    retries: Annotated[int, Field(ge=0, le=100)] = 0  # trainings beyond one per round, already paid for in the noise
    local_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 512  # expected size of a Poisson batch
    trainable: Annotated[str, StringConstraints(pattern=r"^(all|head|layers:\d{1,3}-\d{1,3})$")] = "all"
    max_length: Annotated[int, Field(ge=8, le=512)] = 64  # tokens; longer records are cut
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # counted over the whole run, not per round
    schedule: Literal["constant", "linear"] = "linear"  # after the warm-up; linear falls to zero at the end of the run
    server_lr: Annotated[float, Field(gt=0, le=10)] = 1.0

    target_epsilon: Annotated[float, Field(gt=0, le=50)] = 8.0
    delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-5
    accountant: Literal["prv", "rdp"] = "prv"
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 0.5

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
        if self.layers and not self.layers[0] <= self.layers[1] < self.model.config["num_hidden_layers"]:
            raise ValueError(f"trainable: {self.trainable} is not a range within the model's layers")
        if self.max_length > self.model.config.get("max_position_embeddings", 512):
            raise ValueError(f"max_length: {self.max_length} is more than the model's positions")
        return self

    @property
    def layers(self) -> tuple[int, int] | None:
        """First and last trained encoder layer when ``trainable`` is a range, else None."""
        found = re.fullmatch(r"layers:(\d+)-(\d+)", self.trainable)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run at one owner, which the learning-rate schedule counts."""
        return self.rounds * self.local_steps

    @property
    def paid_steps(self) -> int:
        """DP-SGD steps that the noise is calibrated for: every round, and every retry the plan allows."""
        return (self.rounds + self.retries) * self.local_steps

    def sample_rate(self, declared_size: int) -> float:
        """Poisson rate q at an owner: expected batch over *declared* (public) size. Raises PlanError when q > 1."""
        if self.batch_size > declared_size:
            raise PlanError(f"batch_size: {self.batch_size} is more than the corpus's declared size {declared_size}")
        return self.batch_size / declared_size

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
