"""``domain.toml``: who an owner is, its budget, and what it refuses whatever has been approved."""

from __future__ import annotations

import re
import tomllib
from datetime import time
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fl_privacy.cohort_fields import MINIMAL_COHORT
from fl_privacy.errors import HomeError
from fl_privacy.messages import OwnerName, PrivacyUnit, first_problem
from fl_privacy.model_spec import MODEL_TYPES, Head, ModelType

Days = Annotated[int, Field(ge=1, le=36_500)]
Epsilon = Annotated[float, Field(gt=0, le=100)]
Trainable = Literal["all", "head", "layers", "lora", "ffa-lora"]


def _window(text: str) -> str:
    """Check that ``hours`` is a span of one day; raises ValueError."""
    hour_of(text)
    return text


def hour_of(window: str) -> tuple[time, time]:
    """Begin and end of a window such as "08:00-18:00"; one that ends before it begins goes on after midnight."""
    found = re.fullmatch(r"(\d{2}:\d{2})-(\d{2}:\d{2})", window)
    if not found:
        raise ValueError('write a span of local time as "08:00-18:00"')
    begin, end = time.fromisoformat(found[1]), time.fromisoformat(found[2])
    if begin == end:
        raise ValueError("the span is empty; leave `hours` out to admit orders at any time")
    return begin, end


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Budget(_Section):
    """The most that this owner's ledger will ever let out: (epsilon, delta) over all plans together, per ``unit``.

    With ``period_days`` the budget holds within any so many days, and nothing bounds the total. Only ``epsilon`` may be changed
    later; the ledger records the change.
    """

    epsilon: Epsilon
    delta: Annotated[float, Field(gt=0, le=1e-3)]
    accountant: Literal["prv", "rdp"] = "prv"
    unit: PrivacyUnit = "record"
    period_days: Days | None = None


class Policy(_Section):
    """What the guard refuses whatever has been approved. A scientist is known by its signing key."""

    minimal_cohort: Annotated[int, Field(ge=MINIMAL_COHORT)] = MINIMAL_COHORT
    allow_ckks: bool = False  # sums without masks: any other owner together with the scientist could read single updates
    max_epsilon_per_request: Epsilon | None = None  # a plan's target_epsilon
    max_epsilon_per_scientist: Epsilon | None = None  # all that was ever reserved for plans of one scientist's key
    tasks: tuple[Head, ...] = get_args(Head)  # the built-in ones
    custom_tasks: bool = False  # the scientist's own features and loss
    model_types: tuple[ModelType, ...] = MODEL_TYPES
    trainable: tuple[Trainable, ...] = get_args(Trainable)
    require_isolation: bool = False  # refuse to train where the worker's sandbox lacks something
    auto_approve_epsilon: Epsilon | None = None  # built-in tasks with at most this target_epsilon need no owner at the desk
    hours: Annotated[str, AfterValidator(_window)] | None = None  # local time in which orders are admitted
    approval_days: Days = 90  # how long an approval admits orders
    retention_days: Days = 30  # how long blobs lie that no unopened order names


class Training(_Section):
    """Where and by how many processes this owner's worker trains; no plan has a say in it, and no accountant needs to know."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where torch finds one
    processes: Annotated[int, Field(ge=1, le=64)] = 1  # which share every step; on GPUs each needs one of its own


class Domain(_Section):
    """``domain.toml``: who the owner is, and what it is willing to give."""

    owner: OwnerName
    title: str
    description: str = ""
    budget: Budget
    policy: Policy = Policy()
    training: Training = Training()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a domain.toml; raises HomeError that names the field."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise HomeError(f"{path} does not exist") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise HomeError(f"{path}: not a TOML file: {problem}") from None
        except ValidationError as problem:
            raise HomeError(f"{path}: {first_problem(problem)}") from None
