"""A run with evaluations on private rows: what is measured, kept, told and proved, and that a lost evaluation ends nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from fl_privacy.auditor import audit_ledgers, read_history
from fl_privacy.encryption.evidence import judge, round_folders
from fl_privacy.guard.corpus import holdout_key, rows_file
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_evaluation import SEED
from fl_privacy.learning.metrics import Counts, TokenCounts
from fl_privacy.learning.models import build_model
from fl_privacy.learning.private_counts import NATS
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.parallel_composition import ASSUMPTION
from fl_privacy.parameters import Parameters
from fl_privacy.privacy.holdout import held_out
from fl_privacy.row_files import StoredRows
from fl_privacy.scientist import rounds
from fl_privacy.scientist.history import EvaluationRecord, History, OwnerSpend, RoundRecord, Watcher
from tests.builders import OWNERS
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Worker
from tests.guard_desk import GuardDesk, unreachable
from tests.scientist.runs import a_run, validation

# no record's counts reach the bound, so that the true sums are those of an ordinary evaluation
PLAN = {"holdout": 0.25, "evaluation_noise": 4.0, "evaluation_bound": 60.0, "evaluate_every": 1, "rounds": 1}


class Seen(Watcher):
    """Remembers what a run tells, and the models that it had."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.evaluations: list[EvaluationRecord] = []
        self.models: list[Parameters] = []

    def remember(self, model: Parameters, round_index: int) -> Counts:
        self.models.append(model)
        return validation(model)

    def round_done(self, record: RoundRecord) -> None:
        self.order.append(f"round {record.round}")

    def evaluated(self, record: EvaluationRecord) -> None:
        self.order.append(f"evaluation {record.round}")
        self.evaluations.append(record)

    def evaluation_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        self.order.append(f"skipped {round_index}: {sorted(failures[-1])}")


@pytest.fixture(scope="module")
def rooms_of_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strongrooms]:
    made = make_strongrooms(tmp_path_factory.mktemp("rooms"), **PLAN)
    yield made
    for guard in made.guards.values():
        guard.close()


@pytest.fixture(scope="module")
def ran(rooms_of_run: Strongrooms, tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Seen, Path]:
    """A whole run in real worker processes: evaluation, training, evaluation."""
    desks = {owner: GuardDesk(guard) for owner, guard in rooms_of_run.guards.items()}
    out, seen = tmp_path_factory.mktemp("scientist") / "out", Seen()
    return a_run(rooms_of_run, desks, seen, seen.remember).train(out), seen, out


def true_counts(rooms: Strongrooms, model: Parameters) -> TokenCounts:
    """Of all owners' held-out rows together, without noise: nobody but this test can know them."""
    plan, held = rooms.plan, []
    for guard in rooms.guards.values():
        with StoredRows(rows_file(guard.home)) as rows:
            held += [rows[int(place)] for place in np.flatnonzero(held_out(rows, 0.25, holdout_key(guard.home), "record"))]
    built = build_model(plan.model, rooms.bundle.vocabulary, model)
    found = evaluate(plan, built, tokenizer_of(rooms.bundle.vocabulary), held, SEED)
    assert isinstance(found, TokenCounts)
    return found


def test_each_planned_model_is_measured_within_the_noise_that_is_told_beside_it(
    ran: tuple[History, Seen, Path], rooms_of_run: Strongrooms
) -> None:
    history, seen, _ = ran
    assert seen.order == ["evaluation 0", "round 0", "evaluation 1"]
    assert seen.models[0] is not seen.models[1] and len(seen.models) == 2
    for record, model in zip(history.evaluations, seen.models, strict=True):
        truth = true_counts(rooms_of_run, model)
        sd = 4.0 * 60.0 * math.sqrt(3)
        assert list(record.deviations.values()) == pytest.approx([NATS * sd, sd, sd, sd])
        off = [abs(record.counts[name] - truth[name]) / record.deviations[name] for name in truth.names]
        assert 1e-4 < max(off) < 6
    assert history.evaluations == seen.evaluations


def test_history_and_picture_hold_sums_and_nothing_of_one_owner(ran: tuple[History, Seen, Path]) -> None:
    history, _, out = ran
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [(line.get("evaluation", False), line["round"]) for line in lines] == [(True, 0), (False, 0), (True, 1)]
    assert EvaluationRecord.model_validate(lines[0]) == history.evaluations[0]
    assert lines[0].keys() == EvaluationRecord.model_fields.keys()
    assert set(lines[0]["counts"]) == set(TokenCounts.NAMES), "counts by what is counted, never by owner"
    assert set(lines[0]["spends"]["bank"]) == set(OwnerSpend.model_fields)
    assert (out / "rounds.png").stat().st_size > 10_000


def test_every_evaluation_has_evidence_like_a_round(ran: tuple[History, Seen, Path], rooms_of_run: Strongrooms) -> None:
    _, _, out = ran
    folders = round_folders(out)
    assert [f"{path.parent.name}/{path.name}" for path in folders] == ["rounds/000", "evaluations/000", "evaluations/001"]
    verdicts = [judge(folder, rooms_of_run.guards["bank"].home.registry) for folder in folders]
    assert [verdict.error for verdict in verdicts] == [None] * 3
    (out / "rounds" / "001").symlink_to(out / "evaluations" / "001")
    misplaced = judge(out / "rounds" / "001", rooms_of_run.guards["bank"].home.registry)
    (out / "rounds" / "001").unlink()
    assert "holds the evidence of the evaluation before round 1" in str(misplaced.error)


def test_an_audit_of_ledgers_and_history_finds_nothing_and_states_the_claim_for_all_owners(
    ran: tuple[History, Seen, Path], rooms_of_run: Strongrooms, tmp_path: Path
) -> None:
    history, _, out = ran
    for owner, guard in rooms_of_run.guards.items():
        guard.home.ledger.export(tmp_path / f"{owner}.jsonl")
    exports = [tmp_path / f"{owner}.jsonl" for owner in OWNERS]
    report = audit_ledgers(exports, rooms_of_run.guards["bank"].home.registry, out / "history.jsonl")
    assert report.findings == ()
    largest = max(one.epsilon_pld for one in report.owners)
    assert f"epsilon {largest:.2f} at delta 1e-05" in report.federation and ASSUMPTION in report.federation
    assert ASSUMPTION.replace("'", "&#39;") in report.to_html()
    spent = max(guard.home.ledger.spent for guard in rooms_of_run.guards.values())
    assert f"epsilon {spent:.2f} at delta 1e-05" in history.federation_claim and ASSUMPTION in history.federation_claim
    assert spent == history.evaluations[-1].spends["bank"].epsilon > history.rounds[-1].spends["bank"].epsilon
    assert 0.99 * rooms_of_run.plan.target_epsilon <= spent <= rooms_of_run.plan.target_epsilon
    claims = read_history(out / "history.jsonl")
    assert {claim.place for claim in claims} == {
        "the evaluation before round 0 of the history",
        "round 0 of the history",
        "the evaluation of the finished model in the history",
    }


def test_an_audit_finds_an_evaluation_that_was_never_paid_for(
    ran: tuple[History, Seen, Path], rooms_of_run: Strongrooms, tmp_path: Path
) -> None:
    _, _, out = ran
    lines = (out / "history.jsonl").read_text().splitlines()
    lines.append(lines[0].replace(json.loads(lines[0])["order"], "ab" * 32))
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    for owner, guard in rooms_of_run.guards.items():
        guard.home.ledger.export(tmp_path / f"{owner}.jsonl")
    exports = [tmp_path / f"{owner}.jsonl" for owner in OWNERS]
    report = audit_ledgers(exports, rooms_of_run.guards["bank"].home.registry, tmp_path / "history.jsonl")
    assert {finding.owner for finding in report.findings if finding.kind == "unpaid"} == set(OWNERS)


@pytest.fixture
def rooms(tmp_path: Path, worker: Worker) -> Iterator[Strongrooms]:
    made = make_strongrooms(tmp_path, **PLAN)
    yield made
    for guard in made.guards.values():
        guard.close()


def test_a_lost_evaluation_is_kept_as_skipped_and_ends_nothing(
    rooms: Strongrooms, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "PATIENCE_SECONDS", 0.0)  # asked once in each attempt
    desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}
    desks["school"].before = unreachable("train", times=3)
    history = a_run(rooms, desks, seen := Seen()).train(tmp_path / "out")
    assert seen.order == ["skipped 0: ['school']", "round 0", "evaluation 1"]
    assert [(skip.round, skip.purpose) for skip in history.skipped] == [(0, "evaluate")]
    assert not (tmp_path / "out" / "evaluations" / "000").exists()
    assert [sum(job.purpose == purpose for job in worker.jobs) for purpose in ("train", "evaluate")] == [3, 5]
    assert read_history(tmp_path / "out" / "history.jsonl"), "an auditor passes over what was skipped"


def test_noise_that_drowns_the_counts_is_told_in_words(rooms: Strongrooms, worker: Worker, tmp_path: Path) -> None:
    """The stand-in's counts are a few, the noise that the plan tells has a deviation of hundreds."""
    desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}
    history = a_run(rooms, desks, Seen()).train(tmp_path / "out")
    assert len(history.evaluations) == 2
    for record in history.evaluations:
        assert "the noise drowns the counts; hold out more" in record.in_words
        assert record.headline_deviation is None


def record_with(headline: float | None, deviation: float | None) -> EvaluationRecord:
    return EvaluationRecord(
        round=1,
        attempt=0,
        order="ab" * 32,
        cohort=OWNERS,
        openers=OWNERS[:2],
        counts={},
        deviations={},
        metrics={},
        headline=headline,
        headline_deviation=deviation,
        spends={},
        bytes_up=0,
        bytes_down=0,
        seconds=0.0,
    )


def test_the_noise_stands_beside_every_number_and_a_large_one_is_pointed_out() -> None:
    good = record_with(0.5, 0.01).in_words
    assert good == "on 3 owners' held-out rows: 50.00% ± 1.00% (noise, one standard deviation)"
    assert "too noisy to compare models by; hold out more" in record_with(0.5, 0.06).in_words
