"""One claim for all owners together, out of each owner's own, and the assumption that it rests on."""

from __future__ import annotations

from collections.abc import Mapping

ASSUMPTION = "every person's records lie at exactly one owner"


def federation_claim(claims: Mapping[str, tuple[float, float]]) -> str:
    """What the releases of these owners together cost the unit that each owner's ledger protects, in one sentence.

    Args: claims are (epsilon, delta) by owner, at least one.
    Privacy: parallel composition. If a unit lies at one owner only, the others' releases depend on it through that owner's
        releases alone, so the whole is as private for it as that owner's ledger says: the largest epsilon and delta hold for
        everybody.
    Source: McSherry 2009 (Privacy integrated queries), theorem 4.
    """
    epsilon, delta = (max(values) for values in zip(*claims.values(), strict=True))
    who = " and ".join(sorted(owner for owner, claim in claims.items() if claim[0] == epsilon))
    return (
        f"These {len(claims)} owners together: epsilon {epsilon:.2f} at delta {delta:g}, the largest of any of them ({who}),"
        f" provided that {ASSUMPTION}; for a person with records at several, their epsilons and deltas add up."
    )
