"""From a plan to its task."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from fl_privacy.learning.custom_task import CustomTask
from fl_privacy.learning.tasks.base import Task
from fl_privacy.learning.tasks.classification import ClassificationTask
from fl_privacy.learning.tasks.clm import CausalLanguageTask
from fl_privacy.learning.tasks.mlm import MaskedLanguageTask
from fl_privacy.learning.tasks.ner import EntityTask
from fl_privacy.plan import TrainingPlan


def task_of(plan: TrainingPlan, tokenizer: PreTrainedTokenizerFast, *, only_mask: bool = False) -> Task:
    """The task that a plan names.

    Args: only_mask lets masked language modelling replace every chosen token by the mask token, instead of the 80/10/10 mix of
        training; other tasks have no use for it.
    Raises: PlanError that names the line of a custom task no guard would run; ModelError.
    """
    if plan.task == "custom":
        return CustomTask(plan.custom_task, tokenizer, plan.max_length)
    if plan.task == "classification":
        return ClassificationTask(tokenizer, plan.max_length, plan.model.labels)
    if plan.task == "ner":
        return EntityTask(tokenizer, plan.max_length, plan.model)
    if plan.task == "clm":
        return CausalLanguageTask(tokenizer, plan.max_length)
    shares = {"mask_share": 1.0, "random_share": 0.0} if only_mask else {}
    return MaskedLanguageTask(tokenizer, plan.max_length, plan.mask_probability, **shares)
