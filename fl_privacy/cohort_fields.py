"""The fields of a plan that say whose guards it is for, and who of them trains in a round."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fl_privacy.messages import OwnerName
from fl_privacy.selection import Selection, cohort, first_isolation, most_rounds
from fl_privacy.step_fields import StepFields

MINIMAL_COHORT = 3  # with two owners, each reads the other's update by subtracting its own from the sum


class CohortFields(StepFields):
    """The owners, and who trains (see ``selection``): ``cohort_size`` is that of a group, or of a draw from the public seed."""

    owners: Annotated[tuple[OwnerName, ...], Field(max_length=100)]
    minimal_cohort: Annotated[int, Field(ge=MINIMAL_COHORT)] = MINIMAL_COHORT
    selection: Selection = "all"
    cohort_size: Annotated[int, Field(ge=0, le=100)] = 0  # with "all" zero: everybody
    selection_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _owners_are_enough(self) -> Self:
        if len(set(self.owners)) != len(self.owners):
            raise ValueError("owners: a name appears twice")
        if len(self.owners) < self.minimal_cohort:
            raise ValueError(f"owners: {len(self.owners)} named, minimal_cohort is {self.minimal_cohort}")
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
