"""Is a plan worth asking the owners for? Checked at the scientist's, as the guards will check it, before anybody is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fl_privacy.errors import PlanError
from fl_privacy.learning import custom_task
from fl_privacy.learning.models import ModelBundle
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import CorpusCard
from fl_privacy.plan import TrainingPlan


def check_proposal(plan: TrainingPlan, bundle: ModelBundle | None, corpora: Mapping[str, Sequence[CorpusCard]]) -> None:
    """Raise unless every corpus suits the plan and a custom task is one that guards run.

    With the plan's ``bundle`` a custom task is first tried on the owners' mock rows.
    Raises: PlanError that names the owner whose corpus does not suit the plan, or the line of a custom task.
    """
    for owner, cards in corpora.items():
        for card in cards:
            try:
                plan.check_suits(card)
            except PlanError as problem:
                raise PlanError(f"{problem}; this is so at {owner}") from None
    if plan.task == "custom":
        _check_task(plan, bundle, corpora)


def _check_task(plan: TrainingPlan, bundle: ModelBundle | None, corpora: Mapping[str, Sequence[CorpusCard]]) -> None:
    custom_task.check(plan.custom_task)
    if bundle is None:
        return
    if bundle.spec != plan.model:
        raise PlanError(f"model: the bundle is not that of plan {plan.name!r}")
    texts = [row.text for cards in corpora.values() for card in cards for row in card.mock_rows]
    custom_task.rehearse(plan.custom_task, tokenizer_of(bundle.vocabulary), plan.max_length, texts)
