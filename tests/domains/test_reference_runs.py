"""The runs that federated training is compared with work for every kind of plan, adapters included."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tiny_model import ROWS, tiny_bundle, tiny_plan

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "domains"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import demo_headroom
import reference_runs

every_plan = pytest.mark.parametrize("trainable", ["all", "lora"])


@every_plan
def test_reference_runs_score_the_base_the_owners_alone_and_all_rows_together(
    trainable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_runs, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    bundle = tiny_bundle()
    plan = tiny_plan(bundle, trainable=trainable, accountant="rdp", rounds=1)
    corpora = dict.fromkeys(plan.owners, ROWS * 14)
    found = reference_runs.reference_runs(plan, bundle, corpora, dict.fromkeys(plan.owners, ROWS[:20]))
    assert set(found.accuracy) == {"public_base", "local_only", "centralised"}
    assert all(0 <= value <= 1 for value in found.accuracy.values())
    assert set(found.alone.headlines) == set(plan.owners)


@every_plan
def test_the_headroom_of_the_demo_can_be_measured(trainable: str) -> None:
    bundle = tiny_bundle()
    plan = tiny_plan(bundle, trainable=trainable, accountant="rdp", rounds=1)
    headroom = demo_headroom.Headroom(plan, bundle, 200, 1)
    for parameters in (headroom.base, headroom.federated(), headroom.centralised()):
        assert set(headroom.accuracy(parameters)) == {*headroom.mock, "all"}
