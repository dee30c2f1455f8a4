"""A finished run's folder, as a scientist's process leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_privacy.learning.models import ModelBundle, with_adapters
from fl_privacy.messages import Purpose, Row
from fl_privacy.parameters import Parameters, from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.history import SkippedRound
from fl_privacy.scientist.run_folder import RunFolder, RunSettings
from fl_privacy.strategies.base import ServerState
from tests.scientist.history_records import trained
from tests.tiny_model import ROWS, tiny_bundle, tiny_plan


def finished_run(
    out: Path,
    bundle: ModelBundle | None = None,
    rows: Sequence[Row] = ROWS[:20],
    purpose: Purpose | None = None,
    model: Parameters | None = None,
    **plan: Any,
) -> TrainingPlan:
    """Three rounds, of which the second was skipped; ``purpose`` other than None leaves the run unfinished."""
    bundle = bundle or tiny_bundle()
    made = tiny_plan(bundle, **({"rounds": 3, "owners": ("bank", "clinic", "school")} | plan))
    folder = RunFolder(out)
    settings = RunSettings(plan=made, strategy="FedAvg()", when_late="go-on", wait=1.0, timeout=1.0, score_before=0.3125)
    state = ServerState(round=3, model=model or with_adapters(made, from_bytes(bundle.weights)), slots={}, since=0)
    with folder.locked():
        position = folder.create(settings, bundle, rows, state, purpose)
        folder.move(position.model_copy(update={"ended": "all 3 rounds are done"}))
        history = folder.read_history()
        for line in (trained(0), SkippedRound(round=1, failures=({"bank": "away"},)), trained(2)):
            history.append(line)
    return made
