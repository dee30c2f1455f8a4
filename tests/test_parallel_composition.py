"""The claim for all owners together: the largest, with its assumption, and what breaks it."""

from __future__ import annotations

from fl_privacy.parallel_composition import ASSUMPTION, federation_claim


def test_the_claim_is_the_largest_of_any_owner_and_tells_its_assumption() -> None:
    told = federation_claim({"bank": (1.25, 1e-5), "clinic": (3.5, 1e-6), "school": (2.0, 1e-5)})
    assert told.startswith("These 3 owners together: epsilon 3.50 at delta 1e-05, the largest of any of them (clinic)")
    assert f"provided that {ASSUMPTION}" in told and "their epsilons and deltas add up" in told


def test_owners_with_the_same_claim_are_all_named() -> None:
    assert "(bank and school)" in federation_claim({"school": (2.0, 1e-5), "bank": (2.0, 1e-5), "clinic": (1.0, 1e-5)})
