"""What a run was worth to each owner, on the mock rows that it publishes: no private row is involved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_privacy.learning.fairness import fairness
from fl_privacy.learning.models import ModelBundle, build_model, load_bundle
from fl_privacy.learning.owner_scores import OwnerScores, scores_by_owner
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import CorpusCard, Row
from fl_privacy.parameters import from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.federation import VALIDATION_SEED

FILE = "by_owner.json"


def measure_by_owner(
    plan: TrainingPlan, bundle: ModelBundle, cards: Mapping[str, Sequence[CorpusCard]], out: Path
) -> dict[str, OwnerScores]:
    """Measure the model that the run started from, ``base``, and the one that it left in ``out/model``, ``federated``.

    Args: cards by owner, as ``Federation.corpora`` gives them. ``out`` gets ``by_owner.json``.
    Raises: ModelError when ``out/model`` is not the plan's model.
    """
    rows = mock_rows_by_owner(plan, cards)
    trained = load_bundle(out / "model", head=plan.model.head, labels=plan.model.labels)
    found = {name: _measured(plan, model, rows) for name, model in (("base", bundle), ("federated", trained))}
    told = json.dumps({name: as_json(scores) for name, scores in found.items()}, indent=1, ensure_ascii=False)
    (out / FILE).write_text(told + "\n", encoding="utf-8")
    return found


def mock_rows_by_owner(plan: TrainingPlan, cards: Mapping[str, Sequence[CorpusCard]]) -> dict[str, list[Row]]:
    """The rows that each of the plan's owners publishes."""
    return {owner: [row for card in cards[owner] for row in card.mock_rows] for owner in plan.owners}


def as_json(scores: OwnerScores) -> dict[str, object]:
    """Scores by owner, what ``fairness`` makes of them, and the calibration; only ``uncounted`` where that is every owner."""
    if not scores.headlines:
        return {"uncounted": scores.uncounted}
    spread = {name: value for name, value in fairness(scores.headlines)._asdict().items() if value is not None}
    calibration = scores.calibration.summary()
    return {"scores": scores.headlines, "uncounted": scores.uncounted, "fairness": spread, "calibration": calibration}


def _measured(plan: TrainingPlan, bundle: ModelBundle, rows: Mapping[str, Sequence[Row]]) -> OwnerScores:
    model = build_model(bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    return scores_by_owner(plan, dict.fromkeys(rows, model), tokenizer_of(bundle.vocabulary), rows, VALIDATION_SEED)
