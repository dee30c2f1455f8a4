"""Private evaluation by guards in this process: what is opened is the noised pooled counts, and all of it is paid for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy import parameters, template
from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.errors import BudgetExceeded, OrderFailed, OrderRefused
from fl_privacy.guard import worker
from fl_privacy.guard.admission import evaluation_spend, plan_spends, round_spend
from fl_privacy.guard.corpus import holdout_key, rows_file
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OrderFolder
from fl_privacy.guard.worker import Job
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_evaluation import SEED
from fl_privacy.learning.metrics import TokenCounts
from fl_privacy.learning.models import build_model
from fl_privacy.learning.private_counts import COUNTS, NATS, order_specs, read_sum
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import OpenedSum, Row, Signed, UpdateReceipt, sign
from fl_privacy.parallel_composition import ASSUMPTION
from fl_privacy.parameters import count
from fl_privacy.privacy.accounting import epsilon
from fl_privacy.privacy.audit import audit_export, pld_epsilon
from fl_privacy.privacy.holdout import held_out
from fl_privacy.round_order import RoundOrder
from fl_privacy.row_files import StoredRows
from tests.builders import tiny_plan
from tests.guard.conftest import ROWS, Strongrooms, finished, make_strongrooms
from tests.guard.protocol import Attempt, Worker, attempt, sealed, values_of
from tests.guard.test_rounds import worker_of

# every record's counts keep within the bound, so that the true sums are those of an ordinary evaluation
PLAN = {"holdout": 0.25, "evaluation_noise": 4.0, "evaluation_bound": 60.0, "evaluate_every": 1, "rounds": 2}


@pytest.fixture(scope="module")
def rooms_of_evaluation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strongrooms]:
    rooms = make_strongrooms(tmp_path_factory.mktemp("rooms"), **PLAN)
    yield rooms
    for guard in rooms.guards.values():
        guard.close()


@pytest.fixture(scope="module")
def evaluated(rooms_of_evaluation: Strongrooms, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """The first model, evaluated for real in worker processes; each owner's noised counts are kept aside, for tests only."""
    made = attempt(rooms_of_evaluation, tmp_path_factory.mktemp("scientist") / "first", purpose="evaluate")
    for owner, guard in made.guards.items():
        kept_aside(made, owner).write_bytes((folder_of(guard, made.order) / "update.f32").read_bytes())
    return made


def kept_aside(evaluated: Attempt, owner: str) -> Path:
    return evaluated.total.with_name(f"{owner}.f32")


def folder_of(guard: Guard, order: RoundOrder) -> Path:
    return guard.home.folder / "rounds" / order.digest()


def own_rows(guard: Guard, share: float, held: bool) -> list[Row]:
    with StoredRows(rows_file(guard.home)) as rows:
        chosen = held_out(rows, share, holdout_key(guard.home), "record")
        return [rows[place] for place in np.flatnonzero(chosen == held)]


def true_counts(rooms: Strongrooms) -> TokenCounts:
    plan, bundle = rooms.plan, rooms.bundle
    model = build_model(plan.model, bundle.vocabulary, parameters.from_bytes(bundle.weights))
    rows = [row for guard in rooms.guards.values() for row in own_rows(guard, plan.holdout, True)]
    found = evaluate(plan, model, tokenizer_of(bundle.vocabulary), rows, SEED)
    assert isinstance(found, TokenCounts)
    return found


def test_the_opened_counts_are_the_pooled_ones_within_the_noise(evaluated: Attempt, rooms_of_evaluation: Strongrooms) -> None:
    request = evaluated.opening()
    opened = {OpenedSum.parse(guard.closing.open(request).body).values for guard in evaluated.guards.values()}
    values = values_of(rooms_of_evaluation.guards["bank"], opened.pop())
    found = read_sum(rooms_of_evaluation.plan, {COUNTS: values}, evaluated.order.weights)
    sd = 4.0 * 60.0 * np.sqrt(3)
    assert found.deviations.tolist() == pytest.approx([sd * NATS, sd, sd, sd])
    off = np.abs(found.counts.vector - true_counts(rooms_of_evaluation).vector) / found.deviations
    assert off.max() < 6 and off.max() > 1e-4, "the sum of all owners' counts, and not without noise"


def test_an_owner_releases_nothing_of_its_own_that_others_can_read(
    evaluated: Attempt, rooms_of_evaluation: Strongrooms
) -> None:
    """The noised counts wait in the home, for nobody else; what leaves is masked and encrypted."""
    for owner, guard in rooms_of_evaluation.guards.items():
        leaving = [path.read_bytes() for path in (guard.home.folder / "outbox").iterdir()]
        leaving += [receipt.canonical() for receipt in evaluated.receipts]
        own = np.fromfile(kept_aside(evaluated, owner), "<f4")
        assert own.shape == (4,) and np.isfinite(own).all() and own.all()
        assert all(count.tobytes() not in blob for blob in leaving for count in own)
        assert all(count.astype(str) not in blob.decode("latin-1") for blob in leaving for count in own)


def test_evaluations_are_on_the_ledger_and_the_auditor_finds_the_same_epsilon(
    evaluated: Attempt, rooms_of_evaluation: Strongrooms, tmp_path: Path
) -> None:
    for owner, guard in rooms_of_evaluation.guards.items():
        ledger = guard.home.ledger
        assert ledger.spends[0] == evaluation_spend(rooms_of_evaluation.plan)
        assert ledger.orders[evaluated.order.digest()] == "committed"
        receipt = next(word for word in map(parsed, evaluated.receipts) if word.owner == owner)
        assert receipt.epsilon_spent == ledger.forecast([]) == epsilon(ledger.spends, 1e-5, "rdp") > 0
        ledger.export(tmp_path / f"{owner}.jsonl")
        result = audit_export(tmp_path / f"{owner}.jsonl", evaluated.guards[owner].home.registry.card(owner).signing_key)
        assert result.findings == ()
        assert result.epsilon_recomputed == pytest.approx(pld_epsilon(ledger.spends, 1e-5))
        assert result.epsilon_recomputed <= result.epsilon_ledger <= 1.15 * result.epsilon_recomputed


def parsed(receipt: Signed) -> UpdateReceipt:
    return UpdateReceipt.parse(receipt.body)


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Strongrooms]:
    made = make_strongrooms(tmp_path, **PLAN)
    yield made
    for guard in made.guards.values():
        guard.close()


def place(guard: Guard, signed: Signed) -> RoundOrder:
    """Place an order and wait for its receipt."""
    order = RoundOrder.parse(signed.body)
    guard.rounds.place(signed)
    sealed(guard, order)
    return order


def test_training_never_sees_a_held_out_row_and_evaluation_no_other(
    rooms: Strongrooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each part of the worker is given, of the very job that the guard made for it."""
    bank, jobs = rooms.guards["bank"], list[Job]()
    monkeypatch.setattr(
        worker, "run", lambda job, *_: jobs.append(job) or np.ones(count(job.tensors), "<f4").tofile(job.update)
    )
    for changes in ({"purpose": "evaluate"}, {}):
        place(bank, rooms.order(**changes))
    given: dict[str, list[Row]] = {}
    monkeypatch.setattr(worker, "train_update", lambda *args, **_: given.setdefault("train", list(args[4])))
    monkeypatch.setattr(worker, "evaluate_privately", lambda *args, **_: given.setdefault("evaluate", list(args[3])))
    with StoredRows(rows_file(bank.home)) as rows:
        for job in jobs:
            worker._work(job, rows, {}, b"", lambda *_: None)
        everything = list(rows)
    assert given == {"evaluate": own_rows(bank, 0.25, True), "train": own_rows(bank, 0.25, False)}
    assert len(given["train"]) + len(given["evaluate"]) == len(everything) == ROWS
    assert not {row.text for row in given["train"]} & {row.text for row in given["evaluate"]}
    assert 20 < len(given["evaluate"]) < 80, "about a quarter of 200"


def test_without_a_holdout_training_sees_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = make_strongrooms(tmp_path)
    bank, jobs = rooms.guards["bank"], list[Job]()
    monkeypatch.setattr(
        worker, "run", lambda job, *_: jobs.append(job) or np.ones(count(job.tensors), "<f4").tofile(job.update)
    )
    place(bank, rooms.order())
    assert (jobs[0].holdout_key, jobs[0].purpose) == ("", "train")
    given: list[Row] = []
    monkeypatch.setattr(worker, "train_update", lambda *args, **_: given.extend(args[4]))
    with StoredRows(rows_file(bank.home)) as rows:
        worker._work(jobs[0], rows, {}, b"", lambda *_: None)
    assert len(given) == ROWS
    for guard in rooms.guards.values():
        guard.close()


def test_the_key_of_the_split_is_the_owners_own_and_in_no_words(rooms: Strongrooms, stub: Worker) -> None:
    keys = {holdout_key(guard.home) for guard in rooms.guards.values()}
    assert len(keys) == 3
    bank = rooms.guards["bank"]
    place(bank, rooms.order(purpose="evaluate"))
    key = holdout_key(bank.home)
    assert stub.jobs[0].holdout_key == key.hex() and key.hex() not in repr(stub.jobs[0])
    for path in (path for path in bank.home.folder.rglob("*") if path.is_file()):
        assert key not in path.read_bytes() and key.hex().encode() not in path.read_bytes(), path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """In place of worker processes."""
    made = Worker()
    monkeypatch.setattr(worker, "run", made.run)
    return made


def test_a_rounds_evaluation_comes_before_its_training_and_after_the_round_before(rooms: Strongrooms, stub: Worker) -> None:
    bank = rooms.guards["bank"]
    other = rooms.upload(b"another model")
    for changes in ({"purpose": "evaluate"}, {}, {"purpose": "evaluate", "round": 1, "model": other}):
        place(bank, rooms.order(**changes))
    for late, told in (
        (
            {"purpose": "evaluate", "attempt": 2},
            "the evaluation before round 0 attempt 2 is not after the evaluation before round 1",
        ),
        ({"attempt": 2}, "round 0 attempt 2 is not after the evaluation before round 1 attempt 0"),
        ({"purpose": "evaluate", "round": 1, "model": other, "code": rooms_code(rooms)}, "attempt 0 is not after"),
    ):
        with pytest.raises(OrderRefused, match=told):
            bank.rounds.place(rooms.order(**late | {"weights": (200, 200, 300)}))
    place(bank, rooms.order(round=1, model=other))
    place(bank, rooms.order(round=2, purpose="evaluate", model=other))
    assert [job.purpose for job in stub.jobs] == ["evaluate", "train", "evaluate", "train", "evaluate"]
    total = epsilon(bank.home.ledger.spends, rooms.plan.delta, rooms.plan.accountant)
    assert sorted(map(repr, bank.home.ledger.spends)) == sorted(map(repr, plan_spends(rooms.plan, ROWS)))
    assert 0.99 * rooms.plan.target_epsilon <= total <= rooms.plan.target_epsilon


def rooms_code(rooms: Strongrooms) -> str:
    return RoundOrder.parse(rooms.order().body).code


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"round": 3}, "the approved plan evaluates no model before round 3"),
        ({"encoding": "train"}, "encoding"),
        ({"tensors": "train"}, "tensors are not the ones that an evaluation of this task counts"),
        ({"purpose": "train", "tensors": "evaluate"}, "tensors are not the ones that the approved plan trains in round 0"),
        ({"purpose": "train", "round": 2}, "round 2 is outside"),
        ({"weights": (200, 200, 100)}, "the weight of|encoding"),
        ({"model": "cd" * 32}, "round 0 must start"),
    ],
)
def test_an_evaluation_that_the_plan_does_not_imply_is_refused_and_costs_nothing(
    rooms_of_evaluation: Strongrooms, changes: dict[str, Any], told: str
) -> None:
    rooms = rooms_of_evaluation
    school, plan = rooms.guards["school"], rooms.plan
    fields = {"purpose": "evaluate", "round": 0, "attempt": 1} | changes
    if "tensors" in changes:
        fields["tensors"] = order_specs(plan, changes["tensors"])
    if "encoding" in changes:
        fields["encoding"] = plan_encoding(plan, (ROWS,) * 3, "train")
    before = school.home.ledger.statement()
    with pytest.raises(OrderRefused, match=told):
        school.rounds.place(rooms.order(**fields))
    assert school.home.ledger.statement() == before


def test_a_plan_without_a_holdout_is_never_evaluated(untouched_rooms: Strongrooms) -> None:
    rooms = untouched_rooms
    signed = rooms.order()
    order = RoundOrder.parse(signed.body).model_copy(
        update={"purpose": "evaluate", "tensors": order_specs(rooms.plan, "evaluate"), "round": rooms.plan.rounds}
    )
    with pytest.raises(OrderRefused, match="evaluates no model"):
        rooms.guards["bank"].rounds.place(sign(order, rooms.key))


def test_noised_counts_are_resent_for_free_and_are_the_same(rooms: Strongrooms, stub: Worker) -> None:
    bank = rooms.guards["bank"]
    first = place(bank, rooms.order(purpose="evaluate"))
    counts, before = (folder_of(bank, first) / "update.f32").read_bytes(), bank.home.ledger.statement()
    second = place(bank, rooms.order(purpose="evaluate", attempt=1))
    assert (folder_of(bank, second) / "update.f32").read_bytes() == counts
    assert bank.home.ledger.statement() == before and len(stub.jobs) == 1


def test_counts_are_never_taken_for_an_update_of_the_same_round(rooms: Strongrooms, stub: Worker) -> None:
    bank = rooms.guards["bank"]
    counts = place(bank, rooms.order(purpose="evaluate"))
    place(bank, rooms.order())
    assert [job.purpose for job in stub.jobs] == ["evaluate", "train"] and len(bank.home.ledger.spends) == 2
    assert not (folder_of(bank, counts) / "update.f32").exists()


def test_evaluations_beyond_those_paid_for_are_refused(rooms: Strongrooms, stub: Worker) -> None:
    """Each attempt fails in the worker and stays paid; three were approved, and the trainings are none of theirs."""
    bank = rooms.guards["bank"]

    def fail(job: Job) -> None:
        raise OrderFailed("the worker died")

    stub.fail = fail
    for attempt_number in range(3):
        signed = rooms.order(purpose="evaluate", attempt=attempt_number)
        bank.rounds.place(signed)
        assert finished(bank, RoundOrder.parse(signed.body).digest())["state"] == "failed"
    before = bank.home.ledger.statement()
    assert len(bank.home.ledger.spends) == 3 and set(bank.home.ledger.orders.values()) == {"void"}
    model = rooms.upload(b"another model")
    with pytest.raises(OrderRefused, match="all 3 evaluations that the plan pays for have been used"):
        bank.rounds.place(rooms.order(purpose="evaluate", round=1, model=model))
    assert bank.home.ledger.statement() == before
    stub.fail = lambda job: None
    place(bank, rooms.order(round=1, model=model))


def test_an_evaluation_over_the_budget_is_refused_before_anything_is_counted(rooms: Strongrooms, stub: Worker) -> None:
    bank = rooms.guards["bank"]
    bank.home.ledger.change_budget(0.5, "less for everybody")
    signed = rooms.order(purpose="evaluate")
    with pytest.raises(BudgetExceeded):
        bank.rounds.place(signed)
    assert bank.home.ledger.spends == [] and stub.jobs == []
    assert not folder_of(bank, RoundOrder.parse(signed.body)).exists()


def test_a_guard_that_dies_right_after_it_has_paid_never_counts_less(rooms: Strongrooms, stub: Worker) -> None:
    bank, signed = rooms.guards["bank"], rooms.order(purpose="evaluate")
    order = RoundOrder.parse(signed.body)
    OrderFolder(folder_of(bank, order)).create(signed)
    bank.home.ledger.reserve(order.digest(), order.plan, evaluation_spend(rooms.plan))
    spent = bank.home.ledger.spent
    bank.close()
    rooms.guards["bank"] = reborn = Guard(GuardHome(bank.home.folder))
    assert reborn.home.ledger.spent == spent > 0
    assert reborn.rounds.place(signed)["state"] == "failed" and stub.jobs == []
    place(reborn, rooms.order(purpose="evaluate", attempt=1))
    assert reborn.home.ledger.spends == [evaluation_spend(rooms.plan)] * 2 and reborn.home.ledger.spent > spent


def test_a_worker_killed_while_it_counts_fails_the_order_and_keeps_the_spend(rooms: Strongrooms) -> None:
    bank, signed = rooms.guards["bank"], rooms.order(purpose="evaluate")
    digest = RoundOrder.parse(signed.body).digest()
    bank.rounds.place(signed)
    os.kill(worker_of(bank, digest), signal.SIGKILL)
    state = finished(bank, digest)
    assert (state["state"], state["error"]["error"]) == ("failed", "OrderFailed")
    assert bank.home.ledger.spends == [evaluation_spend(rooms.plan)]


def test_an_approval_covers_trainings_and_evaluations_within_the_target(rooms_of_evaluation: Strongrooms) -> None:
    rooms = rooms_of_evaluation
    bank, plan = rooms.guards["bank"], rooms.plan
    decided = bank.home.ledger.decisions[plan.digest()]
    assert decided.rounds == plan.rounds + plan.retries + 3
    spends = plan_spends(plan, ROWS)
    assert epsilon(spends, plan.delta, plan.accountant) <= plan.target_epsilon
    assert round_spend(plan, ROWS).sample_rate == plan.batch_size / (0.75 * ROWS)
    cheaper = plan.model_copy(update={"holdout": 0.0})
    assert round_spend(cheaper, ROWS).noise_multiplier < round_spend(plan, ROWS).noise_multiplier


def test_the_review_tells_what_is_held_out_counted_and_noised_and_forecasts_both(
    untouched_rooms: Strongrooms,
) -> None:
    rooms = untouched_rooms
    plan = tiny_plan(rooms.bundle, name="evaluated", **PLAN | {"retries": 1})
    report = rooms.guards["bank"].review(template.render(sign(plan, rooms.key)))
    told = " ".join(report.words)
    assert "25% of the corpus, chosen by a secret key of this owner, is never trained on" in told
    assert "3 models, the finished one too, are tried" in told
    assert "cut to a length of 60; each has noise of standard deviation 240" in told
    assert "a random 10.7% of those that are not held out a step" in told
    assert (
        "3 different updates of all layers and 3 lists of counts on held-out records, each with random noise" in report.sentence
    )
    assert f"provided that {ASSUMPTION}" in report.sentence and "(and evaluating)" in report.sentence
    assert report.epsilon_after == pytest.approx(epsilon(plan_spends(plan, ROWS), 1e-5, "rdp"))
    assert len(report.epsilon_by_round) == 3 and list(report.epsilon_by_round) == sorted(report.epsilon_by_round)
    first = [round_spend(plan, ROWS), evaluation_spend(plan)]
    assert report.epsilon_by_round[0] == pytest.approx(epsilon(first, 1e-5, "rdp"))


def test_the_review_of_a_plan_without_evaluation_does_not_speak_of_any(untouched_rooms: Strongrooms) -> None:
    report = untouched_rooms.guards["bank"].review(untouched_rooms.code)
    assert not any(word in told for told in (*report.words, report.sentence) for word in ("held-out", "held out", "evaluat"))
    assert f"provided that {ASSUMPTION}" in report.sentence
