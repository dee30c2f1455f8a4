"""``domain.toml``: who an owner is, its budget, and what it refuses whatever has been approved."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_privacy.errors import HomeError
from fl_privacy.messages import OwnerName, first_problem
from fl_privacy.plan import MINIMAL_COHORT


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Budget(_Section):
    """The most that this owner's ledger will ever let out: (epsilon, delta) over all plans together."""

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, le=1e-3)]
    accountant: Literal["prv", "rdp"] = "prv"


class Policy(_Section):
    """What the guard refuses whatever has been approved."""

    minimal_cohort: Annotated[int, Field(ge=MINIMAL_COHORT)] = MINIMAL_COHORT


class Domain(_Section):
    """``domain.toml``: who the owner is, and what it is willing to give."""

    owner: OwnerName
    title: str
    description: str = ""
    budget: Budget
    policy: Policy = Policy()

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
