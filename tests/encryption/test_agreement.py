"""Receipts: exactly the cohort has answered this very order, each owner with its own key and its own ciphertext."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from fl_privacy.encryption.agreement import verify_receipts
from fl_privacy.encryption.keys import Identity
from fl_privacy.errors import CohortMismatch, CohortTooSmall, DigestMismatch, KeyMissing, SignatureInvalid
from fl_privacy.messages import Signed, UpdateReceipt, sign
from tests.secure_cohort import SOME_DIGEST, SecureCohort, make_cohort


def receipt(cohort: SecureCohort, owner: str, signer: str | None = None, **changes: Any) -> Signed:
    ciphertext = hashlib.sha256(owner.encode()).hexdigest()
    fields = {
        "order": cohort.order.digest(), "owner": owner, "ciphertext": ciphertext, "self_mask": SOME_DIGEST,
        "ciphertext_bytes": 1, "training_seconds": 1.0, "encryption_seconds": 1.0,
        "epsilon_spent": 1.0, "epsilon_budget": 8.0, "delta": 1e-5,
        "ledger_head": SOME_DIGEST,
    }  # fmt: skip
    return sign(UpdateReceipt.model_validate(fields | changes), cohort.identities[signer or owner].signing_key)


def test_receipts_of_exactly_the_cohort_are_accepted() -> None:
    cohort = make_cohort(4).ordering(cohort=("owner-03", "owner-00", "owner-01"), weights=(1, 2, 3))
    receipts = [receipt(cohort, owner) for owner in ("owner-00", "owner-01", "owner-03")]
    verified = verify_receipts(cohort.order, receipts, cohort.registry)
    assert [found.owner for found in verified] == ["owner-03", "owner-00", "owner-01"]
    with pytest.raises(SignatureInvalid):  # an owner of the registry, not of the cohort
        verify_receipts(cohort.order, [*receipts, receipt(cohort, "owner-02")], cohort.registry)


def test_missing_repeated_and_foreign_receipts_are_refused() -> None:
    cohort = make_cohort(3)
    first, second, third = (receipt(cohort, owner) for owner in cohort.owners)
    again = receipt(cohort, "owner-00", ciphertext="0" * 64)
    old = receipt(cohort.ordering(attempt=7), "owner-02")
    for receipts in ([], [first, second], [first, second, again], [first, second, third, third], [first, second, old]):
        with pytest.raises(CohortMismatch):
            verify_receipts(cohort.order, receipts, cohort.registry)
    in_anothers_name = receipt(cohort, "owner-02", signer="owner-01")
    stranger = sign(UpdateReceipt.parse(third.body), Identity.generate().signing_key)
    altered = third.model_copy(update={"body": third.body.replace(SOME_DIGEST, "0" * 64, 1)})
    for bad in (in_anothers_name, stranger, altered, cohort.identities["owner-02"].card("owner-02")):
        with pytest.raises(SignatureInvalid):
            verify_receipts(cohort.order, [first, second, bad], cohort.registry)


def test_receipts_need_a_proper_cohort_and_its_registry() -> None:
    cohort = make_cohort(3)
    receipts = [receipt(cohort, owner) for owner in cohort.owners]
    with pytest.raises(DigestMismatch):
        verify_receipts(cohort.order, receipts, make_cohort(3).registry)
    two = cohort.ordering(cohort=cohort.owners[:2], weights=(1, 1))
    with pytest.raises(CohortTooSmall):
        verify_receipts(two.order, receipts[:2], cohort.registry)
    twice = cohort.ordering(cohort=("owner-00", "owner-01", "owner-01"))
    with pytest.raises(CohortMismatch):
        verify_receipts(twice.order, receipts, cohort.registry)
    stranger = cohort.ordering(cohort=("owner-00", "owner-01", "owner-09"))
    with pytest.raises(KeyMissing):
        verify_receipts(stranger.order, receipts, cohort.registry)


def test_a_ciphertext_delivered_twice_or_a_receipt_without_self_mask_is_refused() -> None:
    cohort = make_cohort(3)
    first, second, third = cohort.owners
    receipts = [receipt(cohort, first), receipt(cohort, second)]
    copied = receipt(cohort, third, ciphertext=UpdateReceipt.parse(receipts[0].body).ciphertext)
    with pytest.raises(CohortMismatch, match="same ciphertext"):
        verify_receipts(cohort.order, [*receipts, copied], cohort.registry)
    with pytest.raises(CohortMismatch, match="self-mask"):
        verify_receipts(cohort.order, [*receipts, receipt(cohort, third, self_mask=None)], cohort.registry)
