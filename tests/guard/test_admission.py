"""Every reason for which a guard refuses an order, and that a refusal costs nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.encryption.packing import choose_encoding, plan_encoding
from fl_privacy.errors import (
    AdmissionError,
    BudgetExceeded,
    CohortTooSmall,
    FlPrivacyError,
    MessageError,
    NotApproved,
    OrderRefused,
    RequestDenied,
    SignatureInvalid,
)
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.messages import TensorSpec, sign
from fl_privacy.round_order import CkksEncoding
from tests.builders import tiny_plan
from tests.guard.conftest import ROWS, Strongrooms, finished, make_strongrooms
from tests.guard.protocol import Worker

SOME_DIGEST = "ab" * 32


def refused(rooms: Strongrooms, error: type[FlPrivacyError], told: str, **changes: Any) -> None:
    """Place a wrong order at the bank; nothing may be reserved, kept or started."""
    bank = rooms.guards["bank"]
    before = bank.home.ledger.statement()
    with pytest.raises(error, match=told):
        bank.rounds.place(rooms.order(**changes))
    assert bank.home.ledger.statement() == before
    assert list((bank.home.folder / "rounds").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"plan": SOME_DIGEST}, NotApproved, "never approved"),
        ({"code": SOME_DIGEST}, NotApproved, "names code"),
        ({"registry": SOME_DIGEST}, OrderRefused, "another registry"),
        ({"key": SOME_DIGEST}, OrderRefused, "names encryption key"),
        ({"model": SOME_DIGEST}, OrderRefused, "must start from the approved"),
        ({"model": SOME_DIGEST, "round": 1}, OrderRefused, "has not been uploaded"),
        ({"round": 2}, OrderRefused, "outside the approved 2 rounds"),
        ({"attempt": 3}, OrderRefused, "attempt 3 is more than the 3 that a round may take"),
        ({"cohort": ("bank", "clinic"), "weights": (ROWS, ROWS)}, CohortTooSmall, "less than 3"),
        ({"cohort": ("bank", "clinic", "clinic")}, OrderRefused, "each owner once"),
        ({"cohort": ("bank", "school", "clinic")}, OrderRefused, "in order"),
        ({"cohort": ("bank", "clinic", "stranger")}, OrderRefused, "not in the approved plan: stranger"),
        ({"weights": (ROWS, ROWS)}, OrderRefused, "no part for bank"),
        ({"weights": (10 * ROWS, ROWS, ROWS)}, OrderRefused, "declared size"),
        ({"tensors": (TensorSpec(name="bert.embeddings.word_embeddings.weight", shape=(1, 1)),)}, OrderRefused, "tensors"),
        ({"encoding": choose_encoding(3, 8, 10.0)}, OrderRefused, "encoding"),
        ({"encoding": choose_encoding(3, 12, 0.05 / 3)}, OrderRefused, "encoding"),
        ({"encoding": CkksEncoding(value_range=0.05 / 3)}, OrderRefused, "encoding"),
        ({"signer": Ed25519PrivateKey.generate()}, SignatureInvalid, "signed by key"),
    ],
)
def test_an_order_that_differs_from_the_approval_is_refused_at_no_cost(
    untouched_rooms: Strongrooms, changes: dict[str, Any], error: type[FlPrivacyError], told: str
) -> None:
    refused(untouched_rooms, error, told, **changes)


def test_a_changed_body_under_an_old_signature_is_refused(rooms: Strongrooms) -> None:
    order = rooms.order()
    forged = order.model_copy(update={"body": order.body.replace('"attempt":0', '"attempt":1')})
    with pytest.raises(SignatureInvalid, match="does not verify"):
        rooms.guards["bank"].rounds.place(forged)


def test_another_scientists_submission_of_the_same_plan_is_not_covered(rooms: Strongrooms) -> None:
    other = Ed25519PrivateKey.generate()
    code = template.code_digest(template.render(sign(rooms.plan, other)))
    refused(rooms, SignatureInvalid, "signed by key", code=code, signer=other)
    refused(rooms, NotApproved, "names code", code=code)


def test_a_message_of_another_kind_is_refused(rooms: Strongrooms) -> None:
    with pytest.raises(MessageError, match="expected a signed RoundOrder"):
        rooms.guards["bank"].rounds.place(sign(rooms.plan, rooms.key))


def test_a_plan_that_changed_after_approval_is_another_plan(rooms: Strongrooms) -> None:
    rooms.plan = tiny_plan(rooms.bundle, local_steps=3)
    refused(rooms, NotApproved, "never approved")


def test_a_denial_takes_an_approval_back_and_tells_why(rooms: Strongrooms) -> None:
    rooms.guards["bank"].deny(rooms.code, "the purpose changed")
    refused(rooms, RequestDenied, "the purpose changed")
    with pytest.raises(NotApproved):
        rooms.guards["bank"].approvals.code_approved(template.code_digest(rooms.code))


def test_a_corpus_that_changed_after_approval_is_refused(rooms: Strongrooms, tmp_path: Path) -> None:
    bank = rooms.guards["bank"]
    bank.home.close()  # as when the owner stops the guard to add a corpus
    bank.home.__init__(bank.home.folder)  # type: ignore[misc]
    file = tmp_path / "other.txt"
    file.write_text("新的\n" * ROWS, encoding="utf-8")
    add_corpus(bank.home, file, [])
    refused(rooms, NotApproved, "corpus has changed")


def test_rows_edited_on_disk_are_refused(rooms: Strongrooms) -> None:
    rows = rooms.guards["bank"].home.folder / "corpus" / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"text": "planted"}\n')
    refused(rooms, FlPrivacyError, "changed outside")


def test_more_than_the_budget_is_refused_before_the_first_gradient(tmp_path: Path) -> None:
    rooms = make_strongrooms(tmp_path, epsilon=4.2)
    bank = rooms.guards["bank"]
    other = tiny_plan(rooms.bundle, name="second", target_epsilon=4.1)
    bank.approve(template.render(sign(other, rooms.key)))  # alone it fits, both together do not
    bank.home.ledger.reserve(SOME_DIGEST, rooms.plan.digest(), bank_spend(rooms))
    bank.home.ledger.reserve("cd" * 32, rooms.plan.digest(), bank_spend(rooms))
    rooms.plan = other
    refused(rooms, BudgetExceeded, "4.2")


def bank_spend(rooms: Strongrooms) -> Any:
    from fl_privacy.guard.admission import round_spend

    return round_spend(rooms.plan, ROWS)


def test_a_plan_over_the_budget_cannot_be_approved(tmp_path: Path) -> None:
    rooms = make_strongrooms(tmp_path, epsilon=4.2)
    greedy = tiny_plan(rooms.bundle, name="greedy", target_epsilon=20.0)
    with pytest.raises(NotApproved, match=r"of a budget of 4\.20"):
        rooms.guards["bank"].approve(template.render(sign(greedy, rooms.key)))


def test_code_that_is_not_the_template_cannot_be_approved(rooms: Strongrooms) -> None:
    with pytest.raises(NotApproved, match="no other code"):
        rooms.guards["bank"].approve(rooms.code.replace("return", "print(open('/etc/passwd').read())\n    return"))


def test_an_unknown_order_is_named(rooms: Strongrooms) -> None:
    with pytest.raises(AdmissionError, match="never admitted"):
        rooms.guards["bank"].rounds.state(hashlib.sha256(b"").hexdigest())


def test_a_cohort_that_the_plans_selection_does_not_give_is_refused(tmp_path: Path, worker: Worker) -> None:
    """Groups of three take turns; only dropouts may be missing, and an evaluation is by all."""
    owners = ("bank", "clinic", "desk", "firm", "school", "shop")
    rooms = make_strongrooms(tmp_path, owners=owners, selection="groups", cohort_size=3)
    for cohort, others in ((owners, "firm, school, shop"), (("bank", "clinic", "firm"), "firm")):
        weights = (ROWS,) * len(cohort)
        encoding = plan_encoding(rooms.plan, weights)
        told = f"selection has no part in round 0 for {others}"
        refused(rooms, OrderRefused, told, cohort=cohort, weights=weights, encoding=encoding)
    weights = (ROWS,) * 3
    second = rooms.order(cohort=owners[3:], weights=weights, encoding=plan_encoding(rooms.plan, weights), round=1)
    digest = rooms.guards["shop"].rounds.place(second)["digest"]
    assert finished(rooms.guards["shop"], digest)["state"] == "sealed"
    for guard in rooms.guards.values():
        guard.close()
