"""The fields of a plan that say which layers take part in a round; docs/efficient.md has the methods and what they save."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from fl_privacy.layer_schedules import further_pretraining_layers
from fl_privacy.messages import Message

# field -> the schedule that uses it; with any other it has to be empty, so that no plan promises what is not done
_USED_BY = {
    "pretraining_rounds": "fedbt",
    "local_depths": "fedbt",
    "layer_cycle": "fedbt",
    "growth_stages": "progfed",
    "warmup_rounds": "progfed",
}
STAGES = 4  # of ProgFed, as published


class LayerFields(Message):
    """Which encoder layers a round trains, and how many of them the model has that it trains.

    ``fixed``: ``trainable`` in every round. ``fedbt`` (Wang et al. 2025): without labels stage 1, one shallow layer and the
    head, on models of ``local_depths`` layers (one for all owners, or one each in their order; none: all layers) whose upper
    layers are drawn; with labels stage 2, the upper layers from L - 1 - (i mod ``layer_cycle``) on; ``pretraining_rounds`` of
    stage 1 before it need a model with both heads. ``progfed`` (Wang et al. 2022): the model grows in ``growth_stages``, its
    head starting anew each time; the first ``warmup_rounds`` of a stage train only what is new. ``local_layers`` ``a-b``
    (FedSplitBERT): these layers and the head are each owner's own, trained with the others and never sent.
    """

    layer_schedule: Literal["fixed", "fedbt", "progfed"] = "fixed"
    pretraining_rounds: Annotated[int, Field(ge=0, le=1000)] = 0
    local_depths: Annotated[tuple[Annotated[int, Field(ge=1, le=999)], ...], Field(max_length=100)] = ()
    layer_cycle: Annotated[int, Field(ge=0, le=999)] = 0  # zero: half of the layers, as published
    growth_stages: Annotated[int, Field(ge=0, le=999)] = 0  # zero: four as published, or as many as there are layers
    warmup_rounds: Annotated[int, Field(ge=0, le=100)] = 0
    local_layers: Annotated[str, StringConstraints(pattern=r"^(|\d{1,3}-\d{1,3})$")] = ""

    @model_validator(mode="after")
    def _schedule_uses(self) -> Self:
        for field, schedule in _USED_BY.items():
            if getattr(self, field) and self.layer_schedule != schedule:
                raise ValueError(f"{field}: layer_schedule {self.layer_schedule!r} does not use it; it is for {schedule}")
        if self.local_layers and self.layer_schedule != "fixed":
            raise ValueError('local_layers: they go with layer_schedule = "fixed" only')
        return self

    def stage_1_rounds(self, rounds: int, has_labels: bool) -> int:
        """Of so many rounds of FedBT, those of stage 1: further pre-training, which comes first."""
        return self.pretraining_rounds if has_labels else rounds

    def depth_at(self, owner: int, layers: int) -> int:
        """How many layers the local models of the owner at this place have in stage 1."""
        return self.local_depths[owner % len(self.local_depths)] if self.local_depths else layers

    def check_layers(self, rounds: int, layers: int, owners: int, has_labels: bool) -> None:
        """Raise ValueError unless the schedule can be carried out in so many rounds, on a model with so many layers."""
        if self.local_layers:
            first, last = layer_range(self.local_layers)
            if not first <= last < layers:
                raise ValueError(f"local_layers: {self.local_layers} is not a range within the model's {layers} layers")
        if self.layer_schedule == "fedbt":
            self._check_fedbt(rounds, layers, owners, has_labels)
        if self.layer_schedule == "progfed":
            stages = self.growth_stages or min(STAGES, layers)
            if stages > layers:
                raise ValueError(f"growth_stages: {stages} is more than the model's {layers} layers")
            if stages > 1 and self.warmup_rounds >= rounds // (2 * stages):
                raise ValueError(
                    f"growth_stages: of {rounds} rounds a stage has {rounds // (2 * stages)}, which must be more than"
                    f" warmup_rounds, {self.warmup_rounds}"
                )

    def _check_fedbt(self, rounds: int, layers: int, owners: int, has_labels: bool) -> None:
        if self.pretraining_rounds and not has_labels:
            raise ValueError("pretraining_rounds: without labels all rounds are stage 1; it is for classification and ner")
        if self.pretraining_rounds >= rounds:
            raise ValueError(f"pretraining_rounds: {self.pretraining_rounds} leave none of the {rounds} rounds for stage 2")
        if len(self.local_depths) not in (0, 1, owners):
            raise ValueError(f"local_depths: one for all or one for each of the {owners} owners, not {len(self.local_depths)}")
        if max(self.layer_cycle, 1) > layers or (self.layer_cycle and not has_labels):
            raise ValueError(f"layer_cycle: it is for stage 2, of a plan with labels, and at most the model's {layers} layers")
        stage_1 = self.stage_1_rounds(rounds, has_labels)
        if self.local_depths and not stage_1:
            raise ValueError("local_depths: they are for stage 1, which this plan has no rounds of")
        depths = self.local_depths or (layers,)
        deepest = stage_1 and further_pretraining_layers(stage_1)[-1]
        if stage_1 and not deepest < min(depths) <= max(depths) <= layers:
            raise ValueError(
                f"local_depths: {stage_1} rounds of stage 1 reach layer {deepest}, so local models need at least {deepest + 1}"
                f" layers, and have at most the model's {layers}"
            )


def layer_range(told: str) -> tuple[int, int]:
    """First and last of ``a-b``."""
    first, _, last = told.partition("-")
    return int(first), int(last)
